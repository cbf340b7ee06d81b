//! The worker's loop: waits for whatever happens next, and hands it on.

use std::time::{Duration, Instant};

use fleet_engine::Input;
use fleet_kafka::{KafkaError, consumer::Events};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Shell, answers::Answer};
use crate::run::Feeds;

/// How often gauges are updated. If half the loop's patience is shorter, they are updated that
/// often, so that the loop never stands still for longer.
const GAUGE_INTERVAL: Duration = Duration::from_secs(2);
/// How many events and answers to take before timers and signals are looked at again.
const BACKLOG_LIMIT: usize = 64;

impl Shell {
    /// Works until `shutdown`, then drains, commits and leaves the group.
    pub(crate) async fn run(
        mut self,
        mut events: Events,
        mut feeds: Feeds,
        shutdown: CancellationToken,
    ) -> Result<(), KafkaError> {
        // Taken once, here: nothing else reads it.
        let Some(mut inbox) = self.inbox.take() else { return Ok(()) };
        let mut gauges = tokio::time::interval(GAUGE_INTERVAL.min(self.patience / 2));
        let alarm = tokio::time::sleep(Duration::ZERO);
        tokio::pin!(alarm);
        self.publish_readiness();

        loop {
            if self.is_out_of_contact() {
                self.regain_contact(&mut events, &shutdown).await?;
            }

            self.turn_began = Instant::now();
            self.carry_out_commands();
            self.answer_revokes();
            if self.is_stopped() {
                break;
            }
            if self.is_out_of_contact() {
                continue;
            }

            let wake = self.next_wakeup().map(tokio::time::Instant::from_std);
            if let Some(wake) = wake.filter(|wake| *wake != alarm.deadline()) {
                alarm.as_mut().reset(wake);
            }

            tokio::select! {
                Some(answer) = inbox.recv() => self.handle_answer(answer),
                event = events.recv() => match event {
                    Some(event) => self.handle_event(event)?,
                    None => return Err(KafkaError::PollThread("it has ended")),
                },
                control = feeds.control.next_record() => self.cancel_jobs(control),
                pause = feeds.pauses.next_record() => self.take_pause(pause),
                () = alarm.as_mut(), if wake.is_some() => self.pass_time(),
                _ = gauges.tick() => self.update_gauges(),
                () = shutdown.cancelled(), if self.stop_by.is_none() => self.begin_drain(),
            }
            self.take_backlog(&mut inbox, &mut events)?;
        }

        self.leave_group(events).await
    }

    /// Takes what has arrived meanwhile without another `select!` for each item, which would cost
    /// more than handling most of them. The number is limited, because timers and signals have to
    /// wait.
    fn take_backlog(
        &mut self,
        inbox: &mut mpsc::UnboundedReceiver<Answer>,
        events: &mut Events,
    ) -> Result<(), KafkaError> {
        for _ in 0..BACKLOG_LIMIT {
            let (answer, event) = (inbox.try_recv().ok(), events.try_recv());
            if answer.is_none() && event.is_none() {
                break;
            }

            if let Some(answer) = answer {
                self.handle_answer(answer);
            }
            if let Some(event) = event {
                self.handle_event(event)?;
            }
            self.carry_out_commands();
        }
        Ok(())
    }

    /// Whether the worker is stopping and has nothing left to wait for.
    pub(super) fn is_stopped(&self) -> bool {
        self.stop_by
            .is_some_and(|by| Instant::now() >= by || self.engine.is_drained(&self.partitions))
    }

    fn next_wakeup(&self) -> Option<Instant> {
        let due = [self.engine.next_wakeup(), self.pauses.next_end()];
        let due = due.into_iter().flatten().map(|at| self.clock.instant_of(at));
        let revokes = self.revokes.iter().map(|revoke| revoke.deadline);

        revokes.chain(due).chain(self.stop_by).min()
    }

    /// Does what a time has been waited for.
    fn pass_time(&mut self) {
        self.end_pauses();
        self.feed_engine(Input::Tick);
    }
}
