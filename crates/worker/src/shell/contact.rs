//! What the worker does when it can no longer count on its partitions.

use std::time::{Duration, Instant};

use fleet_kafka::{KafkaError, consumer::Events};
use tokio_util::sync::CancellationToken;

use super::Shell;

/// How often to check whether contact with the group is back.
const CHECK_INTERVAL: Duration = Duration::from_millis(50);

impl Shell {
    /// Whether another worker may have the partitions: the loop has stood still for too long, or
    /// the coordinator has.
    pub(super) fn is_out_of_contact(&self) -> bool {
        self.turn_began.elapsed() > self.patience || self.contact.is_lost()
    }

    /// After a gap, waits until the membership is proven or the partitions are known to be lost.
    /// Before that, another worker may have our jobs, and may have ended them.
    pub(super) async fn regain_contact(
        &mut self,
        events: &mut Events,
        shutdown: &CancellationToken,
    ) -> Result<(), KafkaError> {
        let began = Instant::now();
        self.has_old_commands = true;
        if self.turn_began.elapsed() > self.patience {
            // The consumer's threads may have gone on meanwhile; what they have seen is in the
            // channel.
            self.contact.suspect();
        }

        let silence = self.turn_began.elapsed().max(self.contact.silence());
        tracing::warn!(
            ?silence,
            "no contact with the consumer group; pausing all jobs until the current assignment is \
             known"
        );

        while self.contact.is_lost() && !self.is_stopped() {
            tokio::select! {
                event = events.recv() => match event {
                    Some(event) => self.handle_event(event)?,
                    None => return Err(KafkaError::PollThread("it has ended")),
                },
                () = tokio::time::sleep(CHECK_INTERVAL) => {}
                () = shutdown.cancelled(), if self.stop_by.is_none() => self.begin_drain(),
            }
            self.answer_revokes();
        }

        // Changes of the assignment are in the channel before any record read since.
        while let Some(event) = events.try_recv() {
            self.handle_event(event)?;
        }

        if !self.contact.is_lost() {
            let paused = began.elapsed();
            tracing::info!(?paused, "back in contact with the consumer group; jobs go on");
        }
        Ok(())
    }
}
