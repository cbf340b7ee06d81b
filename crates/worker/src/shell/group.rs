//! What the consumer group says: partitions come and go, and how they can be read.

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

/// Partitions that the poll thread waits to give back.
pub(super) struct Revoke {
    pub(super) partitions: Vec<Partition>,
    pub(super) deadline: Instant,
    pub(super) reply: std_mpsc::SyncSender<Vec<FinalCommit>>,
}

impl Shell {
    pub(super) fn handle_event(&mut self, event: Event) -> Result<(), KafkaError> {
        match event {
            Event::Assigned(assigned) => {
                counter!(names::REBALANCES.name, "kind" => "assigned").increment(1);
                if assigned.iter().any(|one| one.partition.topic == JOBS) {
                    self.clear_obstacle(Obstacle::NoGroup);
                }
                assigned.into_iter().for_each(|one| self.add_partition(one));
            }
            Event::Record(partition, record) => self.admit_record(partition, record),
            Event::End(partition, offset) => self.feed_engine(Input::End(partition, offset)),
            Event::Revoking(partitions, deadline, reply) => {
                counter!(names::REBALANCES.name, "kind" => "revoked").increment(1);
                self.feed_engine(Input::Draining(&partitions));
                self.revokes.push(Revoke { partitions, deadline, reply });
            }
            Event::LogReplaced(partitions, deadline, reply) => {
                self.drain_replaced_log(partitions, deadline, reply)
            }
            Event::Lost(partitions) => {
                counter!(names::REBALANCES.name, "kind" => "lost").increment(1);
                if partitions.iter().any(|partition| partition.topic == JOBS) {
                    self.set_obstacle(
                        Obstacle::NoGroup,
                        "the consumer group has taken all partitions away",
                    );
                }
                tracing::warn!(?partitions, "lost: their jobs will run elsewhere");
                self.partitions.retain(|partition| !partitions.contains(partition));
                self.forget_partitions(&partitions);
                self.feed_engine(Input::Lost(&partitions));
                // A member loses all of its partitions together, so nothing about that topic is
                // still ours to say.
                if let Some(lost) = partitions.first() {
                    self.producers.forget_topic(lost.topic);
                }
            }
            Event::Committed(partition, generation, ok) => {
                counter!(names::COMMITS.name, "ok" => if ok { "true" } else { "false" })
                    .increment(1);
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
            Event::Unreadable(topic, stuck) => self.report_unreadable(topic, stuck),
            Event::Failed(error) => return Err(error),
        }
        Ok(())
    }

    /// The group gave us a partition, or its log was replaced.
    pub(super) fn add_partition(&mut self, assigned: Assigned) {
        log_assignment(&assigned);
        let Assigned { partition, generation, log, start } = assigned;
        let name = log.name();
        self.logs.insert(partition, log);

        self.feed_engine(Input::Assigned {
            partition,
            generation,
            log: name,
            progress: start.progress,
        });
        self.partitions.push(partition);
        if self.stop_by.is_some() {
            self.feed_engine(Input::Draining(&[partition]));
        }
    }

    /// A topic was made again under us, or a log has lost its end. What runs comes to its end and
    /// is reported; what has not started is dropped, since its records are gone. Nothing is
    /// committed: it would be about the new log.
    pub(super) fn drain_replaced_log(
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
            "the log was replaced: calls under way come to their end, jobs that have not started are dropped with \
             their records"
        );
        self.settled.forget_partitions(&partitions);
        self.feed_engine(Input::Draining(&partitions));
        self.revokes.push(Revoke { partitions, deadline, reply });
    }

    /// Partitions can't be read on, or can again. Their jobs wait, and nothing of what others do
    /// depends on them.
    pub(super) fn report_unreadable(&mut self, number: u16, stuck: Stuck) {
        let topic = TOPICS.get(usize::from(number)).copied().unwrap_or_default();
        gauge!(names::UNREADABLE.name, "topic" => topic).set(stuck.partitions.len() as f64);
        if number == JOBS {
            self.clear_obstacle(Obstacle::Unreadable);
        }
        let Some((first, offset)) = stuck.partitions.first() else {
            tracing::info!(topic, "all partitions can be read on again");
            return;
        };

        for (partition, offset) in &stuck.partitions {
            tracing::error!(
                topic,
                partition = partition.number,
                offset,
                why = stuck.why,
                "the batch at this offset can't be read: the partition's jobs wait, other partitions go on"
            );
        }
        if number == JOBS {
            let (partition, why) = (first.number, &stuck.why);
            let sentence = format!(
                "partition {partition} of the jobs topic can't be read on at offset {offset}: {why}"
            );
            self.set_obstacle(Obstacle::Unreadable, sentence);
        }
    }

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
                    "jobs still run at the end of the drain; they will run again elsewhere"
                );
            }
            let commits = self.engine.release(&revoke.partitions);
            self.forget_partitions(&revoke.partitions);
            self.partitions.retain(|partition| !revoke.partitions.contains(partition));
            self.carry_out_commands();
            send_final_commits(&revoke.reply, commits);
        }
    }

    /// Forgets what was measured of partitions that are somebody else's now. A gauge can't be taken
    /// back, only be set to 0.
    pub(super) fn forget_partitions(&mut self, partitions: &[Partition]) {
        self.uncommitted.forget_partitions(partitions);
        for partition in partitions {
            self.stalled.remove(partition);
            self.set_lag(*partition, 0);
        }
    }

    pub(super) fn set_lag(&self, partition: Partition, lag: i64) {
        let (topic, number) = (topic_of(partition), partition.number.to_string());
        gauge!(names::LAG.name, "topic" => topic, "partition" => number).set(lag as f64);
    }
}

pub(super) fn send_final_commits(
    reply: &std_mpsc::SyncSender<Vec<FinalCommit>>,
    commits: Vec<FinalCommit>,
) {
    // The poll thread waits a little longer than the drain, so it should be there.
    if reply.send(commits).is_err() {
        tracing::warn!(
            "the poll thread did not wait for the last commit of partitions that it gives back"
        );
    }
}
