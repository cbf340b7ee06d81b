//! Rebalances: what happens on the poll thread when the group assigns or revokes partitions.

use std::{
    sync::{atomic::Ordering, mpsc},
    thread,
    time::{Duration, Instant},
};

use fleet_group::{FinalCommit, Partition};
use rdkafka::{
    Offset, TopicPartitionList,
    consumer::{BaseConsumer, Consumer as _, ConsumerContext, Rebalance},
    error::KafkaResult,
};

use super::{Assigned, Event, REPLY_MARGIN, context::Context, identity::Commits};

/// How long a broker may take to return the committed offsets.
const COMMITTED_TIMEOUT: Duration = Duration::from_secs(10);
/// How often the committed offsets are requested before the assignment goes on without them.
/// Nothing is fetched in the meantime.
const COMMITTED_TRIES: usize = 9;
/// How often the last commit of a partition is tried, and the pause between two tries: while a
/// group rebalances, the coordinator briefly refuses commits.
pub(super) const LAST_COMMIT_TRIES: usize = 25;
pub(super) const LAST_COMMIT_PAUSE: Duration = Duration::from_millis(200);

impl ConsumerContext for Context {
    fn pre_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        self.called_back.store(true, Ordering::Relaxed);
        if self.closing.load(Ordering::Relaxed) {
            return;
        }

        match rebalance {
            Rebalance::Assign(list) => {
                self.handle_assign(consumer, list);
                self.membership.note_joined();
            }
            Rebalance::Revoke(list) => self.handle_revoke(consumer, list),
            Rebalance::Error(error) => tracing::warn!(%error, "a rebalance failed"),
        }
    }

    fn post_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        // The engine assumes that a new partition is being fetched, even if its previous assignment
        // here left it paused.
        if let Rebalance::Assign(list) = rebalance
            && let Err(error) = consumer.resume(list)
        {
            tracing::warn!(%error, "could not resume newly assigned partitions");
        }
    }
}

impl Context {
    /// Begins the assignments of new partitions. Changes `list` where librdkafka would start
    /// reading elsewhere.
    fn handle_assign(&self, consumer: &BaseConsumer<Self>, list: &TopicPartitionList) {
        let partitions = self.partitions_in(list);
        if partitions.is_empty() {
            return;
        }

        let committed = self.fetch_committed(consumer, &partitions);
        if committed.is_none() {
            tracing::error!(
                "going on without commit metadata; settled jobs beyond the frontier may run again"
            );
        }
        let commits = self.commits_in(committed.as_ref());

        let starts = self.find_starts(consumer, list, &partitions, &commits).into_iter();
        let assigned = starts.map(|(partition, start)| {
            let standing = commits.get(&partition).filter(|_| start.progress.is_some());
            let generation = self.begin_assignment(partition, standing.cloned());

            // Without an answer, librdkafka still starts at the committed offset, but we do not
            // know that offset, so reading must not be reset to the beginning of the log.
            let is_known = committed.as_ref().is_some_and(|list| {
                let asked = list.elements_for_topic(&self.topic);
                asked.iter().any(|element| {
                    element.partition() == partition.number && element.error().is_ok()
                })
            });
            if !is_known {
                self.known_ends().forget(partition);
            }

            Assigned { partition, generation, log: self.identity(), start }
        });
        self.emit(Event::Assigned(assigned.collect()));
    }

    /// Fetches what is committed for these partitions; `None` if that fails again and again.
    fn fetch_committed(
        &self,
        consumer: &BaseConsumer<Self>,
        partitions: &[Partition],
    ) -> Option<TopicPartitionList> {
        (1..=COMMITTED_TRIES).find_map(|attempt| {
            let asked = self.partition_list(partitions.iter().copied());
            match consumer.committed_offsets(asked, COMMITTED_TIMEOUT) {
                Ok(committed) => Some(committed),
                Err(error) => {
                    tracing::warn!(%error, attempt, "could not fetch the committed offsets");
                    None
                }
            }
        })
    }

    /// Returns the commits in an answer of the broker.
    fn commits_in(&self, committed: Option<&TopicPartitionList>) -> Commits {
        let elements = committed.into_iter().flat_map(TopicPartitionList::elements);
        let commits = elements.filter_map(|element| match element.offset() {
            Offset::Offset(offset) if offset >= 0 => {
                let partition = self.partition(element.topic(), element.partition())?;
                Some((partition, (offset, element.metadata().to_owned())))
            }
            _ => None,
        });
        commits.collect()
    }

    /// Ends the assignments of partitions, with a last commit unless they are lost already.
    fn handle_revoke(&self, consumer: &BaseConsumer<Self>, list: &TopicPartitionList) {
        let partitions = self.partitions_in(list);
        if partitions.is_empty() {
            return;
        }

        if consumer.assignment_lost() {
            self.emit(Event::Lost(partitions.clone()));
            // The member may join again before the next statistics, with an empty assignment.
            self.tell_all_again();
            // A commit that starts after this member has joined again would be accepted and
            // overwrite the new owner's.
            let _committing = self.lock_commits();
            self.membership.disown(&partitions);
            return;
        }

        let (reply, commits) = mpsc::sync_channel(1);
        self.emit(Event::Revoking(partitions.clone(), Instant::now() + self.drain, reply));
        // The engine answers by the deadline.
        let commits =
            self.membership.excuse_during(|| commits.recv_timeout(self.drain + REPLY_MARGIN));

        let _committing = self.lock_commits();
        match commits.map(|commits| self.commit_before_revoke(consumer, commits)) {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(%error, "the last commit before giving up partitions failed; jobs may repeat");
            }
            Err(_) => {
                tracing::warn!("no last commit before giving up partitions; jobs may repeat");
            }
        }
        // Discard commits that were ordered earlier but not made yet.
        self.membership.disown(&partitions);
    }

    /// Makes the last commit before partitions are given up; no later commit could make up for it.
    fn commit_before_revoke(
        &self,
        consumer: &BaseConsumer<Self>,
        mut open: Vec<FinalCommit>,
    ) -> KafkaResult<()> {
        for attempt in 1.. {
            match self.commit_each(consumer, &mut open) {
                Ok(()) => break,
                Err(error) if attempt >= LAST_COMMIT_TRIES => return Err(error),
                Err(_) => thread::sleep(LAST_COMMIT_PAUSE),
            }
        }
        Ok(())
    }
}
