//! The thread that commits offsets while partitions stay assigned. The last commit before a
//! partition is given up is made by the poll thread instead.

use std::{
    io,
    sync::{Arc, mpsc},
    thread,
};

use fleet_group::FinalCommit;
use rdkafka::consumer::{BaseConsumer, Consumer as _};

use super::{Event, context::Context};
use crate::error::KafkaError;

/// A handle to the commit thread, held by the poll thread.
#[derive(Debug)]
pub(super) struct CommitThread {
    /// `None` once no more commits will be ordered.
    orders: Option<mpsc::Sender<FinalCommit>>,
    thread: thread::JoinHandle<()>,
}

impl CommitThread {
    /// Starts the thread.
    ///
    /// # Errors
    ///
    /// Returns an error if the operating system cannot create a thread.
    pub(super) fn start(consumer: Arc<BaseConsumer<Context>>) -> io::Result<Self> {
        let (orders, inbox) = mpsc::channel();
        let thread = thread::Builder::new()
            .name("kafka-commit".to_owned())
            .spawn(move || commit_all(&consumer, &inbox))?;

        Ok(Self { orders: Some(orders), thread })
    }

    /// Orders a commit. It is made after the commits under way, in one request with others that
    /// were ordered in the meantime.
    ///
    /// # Errors
    ///
    /// Returns [`KafkaError::PollThread`] if the thread has ended, which happens only by a panic.
    pub(super) fn commit(&self, commit: FinalCommit) -> Result<(), KafkaError> {
        let sent = self.orders.as_ref().map(|orders| orders.send(commit));

        match sent {
            Some(Ok(())) => Ok(()),
            _ => Err(KafkaError::PollThread("the commit thread has ended")),
        }
    }

    /// Ends the thread once everything ordered so far has been committed.
    pub(super) fn finish(&mut self) {
        self.orders = None;
    }

    /// Returns whether the thread has ended, so that the caller has the consumer to itself.
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

/// Proves the membership if a proof is due.
fn prove(consumer: &BaseConsumer<Context>) {
    let context = consumer.context();
    if context.membership.wants_proof() {
        let _alone = context.alone();
        if let Err(error) = context.prove(consumer) {
            tracing::debug!(%error, "could not prove membership in the consumer group");
        }
    }
}

/// Commits many partitions in one request. If that fails, commits them one by one, so that a
/// refused partition does not hold up the others.
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
            tracing::warn!(%error, partition = commit.partition.number, "a commit failed; it will be repeated");
        }
        context.emit(Event::Committed(commit.partition, commit.generation, result.is_ok()));
    }
}
