//! Pauses: their jobs don't start, wait without a slot, and say so.

use fleet_engine::{Attempt, Input, Need, Token};
use fleet_job::pause::{Pause, PauseChange};

use super::Shell;
use crate::outages::Outage;

/// How many events about paused jobs are published between two updates of the gauges, which publish
/// the others bit by bit.
const PUBLISH_LIMIT: usize = 512;

impl Shell {
    /// Takes up a record of the topic of pauses.
    pub(super) fn take_pause(&mut self, pause: Pause) {
        let id = pause.id.clone();
        match self.pauses.take(pause, self.clock.now()) {
            PauseChange::None => {}
            PauseChange::Begun => self.log_pause(&id),
            PauseChange::Ended(pause) => self.resume_jobs(&pause),
        }
    }

    /// Ends the pauses whose time has come.
    pub(super) fn end_pauses(&mut self) {
        for pause in self.pauses.take_ended(self.clock.now()) {
            self.resume_jobs(&pause);
        }
    }

    fn log_pause(&self, id: &str) {
        let Some(pause) = self.pauses.get(id) else { return };
        tracing::info!(
            pause = id,
            scope = %pause.scope,
            reason = pause.reason,
            by = pause.by,
            "jobs are paused: they don't start, and those that run go on"
        );
    }

    fn resume_jobs(&mut self, pause: &Pause) {
        tracing::info!(pause = pause.id, scope = %pause.scope, "the pause has ended: jobs start");
        self.feed_engine(Input::Resumed(pause.number()));
    }

    /// Answers that an attempt does not begin, if its job is paused. Returns whether it is.
    pub(super) fn refuse_paused(&mut self, token: Token, attempt: u32) -> bool {
        if self.pauses.is_empty() {
            return false;
        }
        let Some(job) = self.jobs.get(&token).and_then(|held| held.job()) else { return false };
        let Some(pause) = self.pauses.find(&job.envelope, self.clock.now()) else { return false };

        let number = pause.number();
        let need = Some(Need::Paused(number));
        self.outages.note_pause(need, Outage::of_pause(pause));
        if self.published_pauses < PUBLISH_LIMIT {
            let published = self.publish_waiting(token, need, attempt.saturating_sub(1));
            self.published_pauses += usize::from(published);
        }

        self.feed_engine(Input::Finished(token, Attempt::Paused(number)));
        true
    }
}
