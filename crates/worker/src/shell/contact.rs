//! Whether this worker can still count on its partitions, and what it does until it knows.

use std::time::{Duration, Instant};

use fleet_kafka::{KafkaError, consumer::Events};
use tokio_util::sync::CancellationToken;

use super::Shell;

/// How often to look whether contact with the group is back.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

impl Shell {
    /// Waits until the membership is proven after a gap, or the partitions are known to be lost:
    /// before that, another worker may have our jobs, and may have ended them.
    pub(super) async fn regain_contact(
        &mut self,
        events: &mut Events,
        shutdown: &CancellationToken,
    ) -> Result<(), KafkaError> {
        self.has_old_commands = true;
        if self.turn_began.elapsed() > self.patience {
            // The threads of the consumer may have gone on meanwhile; what they have met is in the
            // channel.
            self.contact.suspect();
        }
        let silence = self.turn_began.elapsed().max(self.contact.silence());
        tracing::warn!(
            ?silence,
            "no contact with the consumer group; pausing all jobs until the current assignment is known"
        );
        let began = Instant::now();

        while self.contact.is_lost() && !self.is_stopped() {
            tokio::select! {
                event = events.recv() => match event {
                    Some(event) => self.handle_event(event)?,
                    None => return Err(KafkaError::PollThread("it has ended")),
                },
                () = tokio::time::sleep(LOOK_AGAIN) => {}
                () = shutdown.cancelled(), if self.stop_by.is_none() => self.begin_drain(),
            }
            self.answer_revokes();
        }
        // What has become of the assignment stands in the channel, before anything that was read
        // since.
        while let Some(event) = events.try_recv() {
            self.handle_event(event)?;
        }

        if !self.contact.is_lost() {
            let paused = began.elapsed();
            tracing::info!(?paused, "contact with the consumer group again; jobs go on");
        }
        Ok(())
    }

    /// Whether another worker may have the partitions.
    pub(super) fn is_out_of_contact(&self) -> bool {
        self.turn_began.elapsed() > self.patience || self.contact.is_lost()
    }
}
