//! The loop: waits for whatever happens next, and hands it on.

use std::time::{Duration, Instant};

use fleet_engine::Input;
use fleet_kafka::{KafkaError, consumer::Events};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{Shell, answers::Answer};
use crate::cancel_requests::ControlFeed;

/// How often gauges are brought up to date, unless the session is so short that it must be more
/// often: the loop turns at least as often.
const GAUGES: Duration = Duration::from_secs(2);
/// How much of what has happened is taken before timers and signals are looked at again.
const AT_ONCE: usize = 64;

impl Shell {
    /// Works until `shutdown`, then drains, commits and leaves the group.
    pub(crate) async fn run(
        mut self,
        mut events: Events,
        mut control: ControlFeed,
        shutdown: CancellationToken,
    ) -> Result<(), KafkaError> {
        // Taken once, here: nothing else reads it.
        let Some(mut inbox) = self.inbox.take() else { return Ok(()) };
        self.publish_readiness();
        let mut gauges = tokio::time::interval(GAUGES.min(self.patience / 2));
        let alarm = tokio::time::sleep(Duration::ZERO);
        tokio::pin!(alarm);
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
                Some(done) = inbox.recv() => self.handle_answer(done),
                event = events.recv() => match event {
                    Some(event) => self.handle_event(event)?,
                    None => return Err(KafkaError::PollThread("it has ended")),
                },
                control = control.next_request() => self.cancel_jobs(control),
                () = alarm.as_mut(), if wake.is_some() => self.feed_engine(Input::Tick),
                _ = gauges.tick() => self.update_gauges(),
                () = shutdown.cancelled(), if self.stop_by.is_none() => self.begin_drain(),
            }
            self.take_backlog(&mut inbox, &mut events)?;
        }
        self.leave_group(events).await
    }

    /// Takes what has happened meanwhile without asking for each whether anything else has, which
    /// costs more than most of what happens. Not too much of it: timers and signals wait as long.
    fn take_backlog(
        &mut self,
        inbox: &mut mpsc::UnboundedReceiver<Answer>,
        events: &mut Events,
    ) -> Result<(), KafkaError> {
        for _ in 0..AT_ONCE {
            let (done, event) = (inbox.try_recv().ok(), events.try_recv());
            if done.is_none() && event.is_none() {
                break;
            }
            done.into_iter().for_each(|done| self.handle_answer(done));
            event.map_or(Ok(()), |event| self.handle_event(event))?;
            self.carry_out_commands();
        }
        Ok(())
    }

    /// Whether the worker is to stop, and nothing more is to be waited for.
    pub(super) fn is_stopped(&self) -> bool {
        self.stop_by
            .is_some_and(|by| Instant::now() >= by || self.engine.is_drained(&self.partitions))
    }

    fn next_wakeup(&self) -> Option<Instant> {
        let engine = self.engine.next_wakeup().map(|at| self.clock.instant_of(at));
        let revokes = self.revokes.iter().map(|revoke| revoke.deadline);
        revokes.chain(engine).chain(self.stop_by).min()
    }
}
