//! Committing offsets: the requests, and the thread that makes them while partitions stay assigned.
//! The last commit before a partition is given up is made by the poll thread instead.

use std::{
    io,
    sync::{Arc, mpsc},
    thread,
};

use fleet_group::FinalCommit;
use rdkafka::{
    Offset, TopicPartitionList,
    consumer::{BaseConsumer, CommitMode, Consumer as _},
    error::{KafkaResult, RDKafkaErrorCode},
};

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
            .spawn(move || run_commit_loop(&consumer, &inbox))?;

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

fn run_commit_loop(consumer: &BaseConsumer<Context>, inbox: &mpsc::Receiver<FinalCommit>) {
    let context = consumer.context();
    loop {
        match inbox.recv_timeout(context.membership.check_interval()) {
            Ok(first) => {
                commit_orders(consumer, std::iter::once(first).chain(inbox.try_iter()).collect())
            }
            Err(mpsc::RecvTimeoutError::Timeout) => prove_if_due(consumer),
            Err(mpsc::RecvTimeoutError::Disconnected) => return,
        }
    }
}

/// Proves the membership if a proof is due.
fn prove_if_due(consumer: &BaseConsumer<Context>) {
    let context = consumer.context();
    if context.membership.wants_proof() {
        let _committing = context.lock_commits();
        if let Err(error) = context.prove_membership(consumer) {
            tracing::debug!(%error, "could not prove membership in the consumer group");
        }
    }
}

/// Commits many partitions in one request. If that fails, commits them one by one, so that a
/// refused partition does not hold up the others.
fn commit_orders(consumer: &BaseConsumer<Context>, commits: Vec<FinalCommit>) {
    let context = consumer.context();
    let _committing = context.lock_commits();
    let commits = context.membership.retain_owned(commits);
    if commits.is_empty() {
        return;
    }

    let proven = context.prove_after_gap(consumer);
    let together = proven.clone().and_then(|()| context.commit_batch(consumer, &commits));

    for commit in commits {
        let result = match (&proven, &together) {
            (_, Ok(())) => Ok(()),
            (Err(error), _) => Err(error.clone()),
            (Ok(()), Err(_)) => context.commit_one(consumer, &commit),
        };
        if let Err(error) = &result {
            tracing::warn!(%error, partition = commit.partition.number, "a commit failed; it will be repeated");
        }
        context.emit(Event::Committed(commit.partition, commit.generation, result.is_ok()));
    }
}

impl Context {
    fn commit_list<'a>(
        &self,
        commits: impl IntoIterator<Item = &'a FinalCommit>,
    ) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        for commit in commits {
            let mut element = list.add_partition(&self.topic, commit.partition.number);
            // librdkafka rejects only negative offsets, and ours never are.
            if let Err(error) = element.set_offset(Offset::Offset(commit.offset)) {
                tracing::error!(%error, offset = commit.offset, "invalid offset in a commit; leaving the offset out");
            }
            if !commit.metadata.is_empty() {
                element.set_metadata(&commit.metadata);
            }
        }
        list
    }

    /// Commits all these partitions in one request. Returns an error if one of them fails.
    pub(super) fn commit_batch(
        &self,
        consumer: &BaseConsumer<Self>,
        commits: &[FinalCommit],
    ) -> KafkaResult<()> {
        let sent = self.membership.now();

        match consumer.commit(&self.commit_list(commits), CommitMode::Sync) {
            Ok(()) => {
                self.membership.note_accepted(sent, commits);
                Ok(())
            }
            Err(error) => {
                self.membership.note_refused(error.rdkafka_error_code());
                Err(error)
            }
        }
    }

    /// Repeats a commit that is already in place, which the coordinator accepts from members only.
    pub(super) fn prove_membership(&self, consumer: &BaseConsumer<Self>) -> KafkaResult<()> {
        match self.membership.next_proof() {
            Some(standing) => self.commit_one(consumer, &standing),
            None => Ok(()),
        }
    }

    /// Proves the membership if there was a gap in contact, after which nothing new may be
    /// committed without a proof.
    pub(super) fn prove_after_gap(&self, consumer: &BaseConsumer<Self>) -> KafkaResult<()> {
        if self.membership.is_out_of_contact() { self.prove_membership(consumer) } else { Ok(()) }
    }

    /// Commits one partition. If the metadata is too large for the broker, commits the offset
    /// alone: at worst that repeats jobs, and without any commit more of them would repeat.
    pub(super) fn commit_one(
        &self,
        consumer: &BaseConsumer<Self>,
        commit: &FinalCommit,
    ) -> KafkaResult<()> {
        match self.commit_batch(consumer, std::slice::from_ref(commit)) {
            Err(error)
                if error.rdkafka_error_code() == Some(RDKafkaErrorCode::OffsetMetadataTooLarge) =>
            {
                tracing::error!(
                    "the broker's offset.metadata.max.bytes is below 4096; committing the offset alone, so attempts \
                     are not counted across restarts"
                );
                let bare = FinalCommit { metadata: String::new(), ..commit.clone() };
                self.commit_batch(consumer, &[bare])
            }
            other => other,
        }
    }

    /// Commits one by one and leaves in `open` the commits that failed.
    pub(super) fn commit_each(
        &self,
        consumer: &BaseConsumer<Self>,
        open: &mut Vec<FinalCommit>,
    ) -> KafkaResult<()> {
        if !open.is_empty() {
            self.prove_after_gap(consumer)?;
        }

        let mut result = Ok(());
        open.retain(|commit| match self.commit_one(consumer, commit) {
            Ok(()) => false,
            Err(error) => {
                result = Err(error);
                true
            }
        });
        result
    }
}
