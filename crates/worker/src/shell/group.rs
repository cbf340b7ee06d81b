//! What the consumer reports: partitions that come and go, records, commits, and whether partitions
//! can be read.

use std::{sync::mpsc as std_mpsc, time::Instant};

use fleet_engine::Input;
use fleet_group::{FinalCommit, Partition};
use fleet_kafka::{
    KafkaError,
    consumer::{Assigned, Event, Stuck},
};
use metrics::{counter, gauge};

use super::{JOBS, Shell, TOPICS, assignment_log::log_assignment, topic_of};
use crate::{metrics as names, readiness::Obstacle};

/// Partitions that the poll thread is about to give back. It waits for their final commits, until
/// the deadline.
pub(super) struct Revoke {
    pub(super) partitions: Vec<Partition>,
    pub(super) deadline: Instant,
    pub(super) reply: std_mpsc::SyncSender<Vec<FinalCommit>>,
}

impl Shell {
    pub(super) fn handle_event(&mut self, event: Event) -> Result<(), KafkaError> {
        match event {
            Event::Assigned(assigned) => self.add_partitions(assigned),
            Event::Revoking(partitions, deadline, reply) => {
                self.drain_partitions(partitions, deadline, reply)
            }
            Event::LogReplaced(partitions, deadline, reply) => {
                self.drain_replaced_log(partitions, deadline, reply)
            }
            Event::Lost(partitions) => self.lose_partitions(&partitions),

            Event::Record(partition, record) => self.admit_record(partition, record),
            Event::End(partition, offset) => self.feed_engine(Input::End(partition, offset)),
            Event::Committed(partition, generation, ok) => {
                let label = if ok { "true" } else { "false" };
                counter!(names::COMMITS.name, "ok" => label).increment(1);
                self.uncommitted.note_answered(partition, ok);
                self.feed_engine(Input::Committed { partition, generation, ok });
            }

            Event::Lag(lags) => {
                // What librdkafka knows may be older than the last rebalance.
                for (partition, lag) in lags {
                    if self.partitions.contains(&partition) {
                        self.set_lag(partition, lag);
                    }
                }
            }
            Event::Reach(topic, reach) => self.track_reach(topic, reach),
            Event::Topic(topic, exists) => self.track_topic(topic, exists),
            Event::Unreadable(topic, stuck) => self.report_unreadable(topic, stuck),
            Event::Failed(error) => return Err(error),
        }
        Ok(())
    }

    // --- Partitions that come -------------------------------------------------------------------

    fn add_partitions(&mut self, assigned: Vec<Assigned>) {
        counter!(names::REBALANCES.name, "kind" => "assigned").increment(1);
        if assigned.iter().any(|assigned| assigned.partition.topic == JOBS) {
            self.clear_obstacle(Obstacle::NoGroup);
        }

        for assigned in assigned {
            self.add_partition(assigned);
        }
    }

    /// Takes over a partition that the group has assigned to us, or whose log was replaced.
    fn add_partition(&mut self, assigned: Assigned) {
        log_assignment(&assigned);
        let Assigned { partition, generation, log, start } = assigned;
        let name = log.name();
        self.logs.insert(partition, log);

        let progress = start.progress;
        self.feed_engine(Input::Assigned { partition, generation, log: name, progress });
        self.partitions.push(partition);
        if self.stop_by.is_some() {
            self.feed_engine(Input::Draining(&[partition]));
        }
    }

    // --- Partitions that go ---------------------------------------------------------------------

    /// The group wants partitions back: nothing more of theirs is started.
    fn drain_partitions(
        &mut self,
        partitions: Vec<Partition>,
        deadline: Instant,
        reply: std_mpsc::SyncSender<Vec<FinalCommit>>,
    ) {
        counter!(names::REBALANCES.name, "kind" => "revoked").increment(1);
        self.feed_engine(Input::Draining(&partitions));
        self.revokes.push(Revoke { partitions, deadline, reply });
    }

    /// A topic was deleted and made again, or a log has lost its end. Running jobs finish and are
    /// reported; jobs that have not started are dropped, because their records no longer exist.
    /// Nothing is committed: it would apply to the new log.
    fn drain_replaced_log(
        &mut self,
        partitions: Vec<Partition>,
        deadline: Instant,
        reply: std_mpsc::SyncSender<Vec<FinalCommit>>,
    ) {
        let status = self.engine.status();
        let open = status.partitions.iter().filter(|status| partitions.contains(&status.partition));
        let open: usize = open.map(|status| status.open).sum();
        let numbers: Vec<_> = partitions.iter().map(|partition| partition.number).collect();
        tracing::warn!(
            topic = partitions.first().map(|partition| topic_of(*partition)),
            partitions = ?numbers,
            open,
            "the log was replaced: running calls will finish; jobs that have not started are \
             dropped, because their records no longer exist"
        );

        self.settled.forget_partitions(&partitions);
        self.feed_engine(Input::Draining(&partitions));
        self.revokes.push(Revoke { partitions, deadline, reply });
    }

    /// Partitions were taken away without notice.
    fn lose_partitions(&mut self, partitions: &[Partition]) {
        counter!(names::REBALANCES.name, "kind" => "lost").increment(1);
        if partitions.iter().any(|partition| partition.topic == JOBS) {
            self.set_obstacle(
                Obstacle::NoGroup,
                "the consumer group has taken all partitions away",
            );
        }
        tracing::warn!(?partitions, "lost: their jobs will run elsewhere");

        self.partitions.retain(|partition| !partitions.contains(partition));
        self.forget_partitions(partitions);
        self.feed_engine(Input::Lost(partitions));

        // A member loses all its partitions together, so nothing about that topic is ours to write
        // any more.
        if let Some(lost) = partitions.first() {
            self.producers.forget_topic(lost.topic);
        }
    }

    /// Gives back the partitions that have drained, or whose time to do so is over.
    pub(super) fn answer_revokes(&mut self) {
        let now = Instant::now();
        let (ready, waiting): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.revokes).into_iter().partition(|revoke| {
                now >= revoke.deadline || self.engine.is_drained(&revoke.partitions)
            });
        self.revokes = waiting;

        for revoke in ready {
            if !self.engine.is_drained(&revoke.partitions) {
                tracing::warn!(
                    "jobs are still running at the end of the drain; they will run again elsewhere"
                );
            }

            let commits = self.engine.release(&revoke.partitions);
            self.forget_partitions(&revoke.partitions);
            self.partitions.retain(|partition| !revoke.partitions.contains(partition));
            self.carry_out_commands();
            send_final_commits(&revoke.reply, commits);
        }
    }

    /// Forgets what was measured of partitions that now belong to another worker. A gauge can't be
    /// removed, only set to 0.
    fn forget_partitions(&mut self, partitions: &[Partition]) {
        self.uncommitted.forget_partitions(partitions);
        for partition in partitions {
            self.stalled.remove(partition);
            self.set_lag(*partition, 0);
        }
    }

    // --- What is measured and reported of partitions --------------------------------------------

    fn set_lag(&self, partition: Partition, lag: i64) {
        let (topic, number) = (topic_of(partition), partition.number.to_string());
        gauge!(names::LAG.name, "topic" => topic, "partition" => number).set(lag as f64);
    }

    /// Reports which partitions of a topic can't be read further. Their jobs wait; other partitions
    /// are not affected.
    fn report_unreadable(&mut self, number: u16, stuck: Stuck) {
        let topic = TOPICS.get(usize::from(number)).copied().unwrap_or_default();
        gauge!(names::UNREADABLE.name, "topic" => topic).set(stuck.partitions.len() as f64);
        if number == JOBS {
            self.clear_obstacle(Obstacle::Unreadable);
        }
        let Some((first, offset)) = stuck.partitions.first() else {
            tracing::info!(topic, "all partitions can be read again");
            return;
        };

        for (partition, offset) in &stuck.partitions {
            tracing::error!(
                topic,
                partition = partition.number,
                offset,
                why = stuck.why,
                "the batch at this offset can't be read: the partition's jobs wait, other \
                 partitions go on"
            );
        }

        if number == JOBS {
            let (partition, why) = (first.number, &stuck.why);
            let sentence = format!(
                "partition {partition} of the jobs topic can't be read past offset {offset}: {why}"
            );
            self.set_obstacle(Obstacle::Unreadable, sentence);
        }
    }
}

pub(super) fn send_final_commits(
    reply: &std_mpsc::SyncSender<Vec<FinalCommit>>,
    commits: Vec<FinalCommit>,
) {
    // The poll thread waits a little longer than the drain may take, so it should be there.
    if reply.send(commits).is_err() {
        tracing::warn!(
            "the poll thread gave partitions back without waiting for their final commits"
        );
    }
}
