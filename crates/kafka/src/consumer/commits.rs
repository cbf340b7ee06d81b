//! The thread that commits while partitions are kept. Their last commits, before they go, are the
//! poll thread's.

use std::{
    io,
    sync::{Arc, mpsc},
    thread,
};

use fleet_group::FinalCommit;
use rdkafka::consumer::{BaseConsumer, Consumer as _};

use super::{Event, context::Context};
use crate::error::KafkaError;

/// The poll thread's end of the thread.
#[derive(Debug)]
pub(super) struct CommitThread {
    /// `None` when nothing more is to be committed.
    orders: Option<mpsc::Sender<FinalCommit>>,
    thread: thread::JoinHandle<()>,
}

impl CommitThread {
    /// # Errors
    /// When the system gives no thread.
    pub(super) fn start(consumer: Arc<BaseConsumer<Context>>) -> io::Result<Self> {
        let (orders, inbox) = mpsc::channel();
        let thread = thread::Builder::new()
            .name("kafka-commit".to_owned())
            .spawn(move || commit_all(&consumer, &inbox))?;
        Ok(Self { orders: Some(orders), thread })
    }

    /// Commits as soon as those before are done, together with those that are ordered meanwhile.
    ///
    /// # Errors
    /// [`KafkaError::PollThread`] when the thread has ended, which it does by a panic only.
    pub(super) fn commit(&self, commit: FinalCommit) -> Result<(), KafkaError> {
        let sent = self.orders.as_ref().map(|orders| orders.send(commit));
        match sent {
            Some(Ok(())) => Ok(()),
            _ => Err(KafkaError::PollThread("the thread that commits has ended")),
        }
    }

    /// Ends the thread after what was ordered.
    pub(super) fn finish(&mut self) {
        self.orders = None;
    }

    /// Whether the thread has ended, and has left the consumer to us.
    pub(super) fn is_finished(&self) -> bool {
        self.thread.is_finished()
    }
}

fn commit_all(consumer: &BaseConsumer<Context>, inbox: &mpsc::Receiver<FinalCommit>) {
    let context = consumer.context();
    loop {
        match inbox.recv_timeout(context.membership.pace()) {
            Ok(first) => commit(consumer, std::iter::once(first).chain(inbox.try_iter()).collect()),
            Err(mpsc::RecvTimeoutError::Timeout) => prove(consumer),
            Err(mpsc::RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// Proves the membership, if it is time to.
fn prove(consumer: &BaseConsumer<Context>) {
    let context = consumer.context();
    if context.membership.wants_proof() {
        let _alone = context.alone();
        if let Err(error) = context.prove(consumer) {
            tracing::debug!(%error, "the membership in the group could not be proven");
        }
    }
}

/// Commits for many partitions at once, and one by one where that fails, so that one that is
/// refused does not hold up the others.
fn commit(consumer: &BaseConsumer<Context>, commits: Vec<FinalCommit>) {
    let context = consumer.context();
    let _alone = context.alone();
    let commits = context.membership.still_owned(commits);
    if commits.is_empty() {
        return;
    }

    let proven = context.prove_after_gap(consumer);
    let together = proven.clone().and_then(|()| context.commit_together(consumer, &commits));
    for commit in commits {
        let result = match (&proven, &together) {
            (_, Ok(())) => Ok(()),
            (Err(error), _) => Err(error.clone()),
            (Ok(()), Err(_)) => context.commit_alone(consumer, &commit),
        };
        if let Err(error) = &result {
            tracing::warn!(%error, partition = commit.partition.number, "a commit failed and will be repeated");
        }
        context.emit(Event::Committed(commit.partition, commit.generation, result.is_ok()));
    }
}
