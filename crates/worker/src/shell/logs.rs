//! Partitions that are given to us, and what there is to say about where their logs are read from.

use std::{sync::mpsc as std_mpsc, time::Instant};

use fleet_engine::Input;
use fleet_group::{FinalCommit, Partition, log::Finding};
use fleet_kafka::consumer::{Assigned, Stuck};
use metrics::gauge;

use super::{JOBS, Shell, TOPICS, held::Revoke, topic_of};
use crate::{metrics as names, readiness::Obstacle};

impl Shell {
    /// The group gave us a partition, or its log was replaced.
    pub(super) fn assigned(&mut self, assigned: Assigned) {
        report(&assigned);
        let Assigned { partition, generation, log, start } = assigned;
        let name = log.name();
        self.logs.insert(partition, log);

        self.feed(Input::Assigned { partition, generation, log: name, progress: start.progress });
        self.partitions.push(partition);
        if self.stop_by.is_some() {
            self.feed(Input::Draining(&[partition]));
        }
    }

    /// A topic was made again under us, or a log has lost its end. What runs comes to its end and
    /// is reported; what has not started is dropped, since its records are gone. Nothing is
    /// committed: it would be about the new log.
    pub(super) fn log_replaced(
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
        self.settled.forget(&partitions);
        self.feed(Input::Draining(&partitions));
        self.revokes.push(Revoke { partitions, deadline, reply });
    }
}

impl Shell {
    /// Partitions can't be read on, or can again. Their jobs wait, and nothing of what others do
    /// depends on them.
    pub(super) fn unreadable(&mut self, number: u16, stuck: Stuck) {
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
}

/// Says where a partition is read from, and what follows from it. docs/offsets.md explains each.
fn report(assigned: &Assigned) {
    let (topic, partition) = (topic_of(assigned.partition), assigned.partition.number);
    let from = assigned.start.progress.as_ref().map(|progress| progress.base);
    match &assigned.start.finding {
        Finding::Nothing | Finding::Own => tracing::info!(topic, partition, from, "assigned"),
        Finding::Bare => tracing::info!(
            topic,
            partition,
            from,
            "assigned; the committed offset carries no metadata of a worker, so somebody has set it, or a worker of \
             version 1 committed it: jobs from there on run, whether or not they ran before"
        ),
        Finding::Moved { from: before } => tracing::warn!(
            topic,
            partition,
            from,
            before,
            "assigned; somebody has moved the committed offset: jobs from there on run, whether or not they ran before, \
             and jobs below it do not"
        ),
        Finding::Unreadable(error) => tracing::warn!(
            topic,
            partition,
            from,
            %error,
            "assigned; the commit's metadata can't be read: jobs beyond the committed offset that have ended may run again"
        ),
        Finding::Mirrored => tracing::warn!(
            topic,
            partition,
            from,
            "assigned; the commit comes from another cluster, so its metadata is ignored: jobs beyond the committed \
             offset that have ended may run again"
        ),
        Finding::Remade => tracing::warn!(
            topic,
            partition,
            "assigned; the topic was deleted and made again since the last commit: reading it from its beginning"
        ),
        Finding::BeyondEnd { committed, end } => tracing::warn!(
            topic,
            partition,
            committed,
            end,
            "assigned; the log ends below the committed offset, so it has lost records, or the topic was made again, or \
             somebody has set that offset: reading it from its beginning"
        ),
    }
    let deleted = assigned.start.deleted;
    if deleted > 0 {
        tracing::error!(
            topic,
            partition,
            deleted,
            "records were deleted from the topic before their jobs had ended; see retention.ms and docs/offsets.md"
        );
    }
}
