//! Stopping: the drain, the final commits, and leaving the group.

use std::time::{Duration, Instant};

use fleet_engine::Input;
use fleet_group::FinalCommit;
use fleet_kafka::{
    KafkaError,
    consumer::{Event, Events},
};

use super::{Shell, group::send_final_commits, producers::Producers};
use crate::readiness::Obstacle;

/// How long the producer may take to write what it holds when the worker stops.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(5);

impl Shell {
    /// Stops fetching and starting jobs. Running jobs have until the drain timeout.
    pub(super) fn begin_drain(&mut self) {
        tracing::info!(in_flight = self.engine.status().in_flight, "draining");
        self.set_obstacle(Obstacle::Draining, "draining");
        self.stop_by = Some(Instant::now() + self.args.drain_timeout);

        let partitions = self.partitions.clone();
        for partition in &partitions {
            if let Some(token) = self.engine.token(*partition, 0) {
                self.consumer.pause(*partition, token.generation);
            }
        }
        self.feed_engine(Input::Draining(&partitions));
    }

    /// Commits, and leaves the group.
    pub(super) async fn leave_group(mut self, mut events: Events) -> Result<(), KafkaError> {
        let left = self.engine.status().in_flight;
        if left > 0 {
            tracing::warn!(
                left,
                "jobs are still running at the end of the drain; they will run again elsewhere"
            );
        }

        for revoke in std::mem::take(&mut self.revokes) {
            let commits = self.engine.release(&revoke.partitions);
            send_final_commits(&revoke.reply, commits);
        }
        let commits = self.engine.release(&std::mem::take(&mut self.partitions));
        self.carry_out_commands();
        flush_events(self.producers).await;

        let closing = self.consumer.close(commits.clone());
        tokio::pin!(closing);
        loop {
            tokio::select! {
                closed = &mut closing => {
                    tracing::info!(ok = closed.is_ok(), "drained, committed and left the group");
                    return closed;
                }
                Some(event) = events.recv() => answer_while_closing(event, &commits),
            }
        }
    }
}

/// Flushes our events before another worker can take over these jobs.
async fn flush_events(producers: Producers) {
    let flushed = tokio::task::spawn_blocking(move || producers.flush_all(FLUSH_TIMEOUT)).await;
    if !matches!(flushed, Ok(Ok(()))) {
        tracing::warn!("some job events may not have been written");
    }
}

/// Partitions may still be asked back while the consumer closes.
fn answer_while_closing(event: Event, commits: &[FinalCommit]) {
    match event {
        Event::Revoking(partitions, _, reply) | Event::LogReplaced(partitions, _, reply) => {
            let theirs = commits.iter().filter(|commit| partitions.contains(&commit.partition));
            send_final_commits(&reply, theirs.cloned().collect());
        }
        Event::Lost(partitions) => {
            tracing::warn!(?partitions, "lost before their final commit: their jobs may run again");
        }
        _ => {}
    }
}
