//! Pauses: people keep jobs from starting, and let them go on.

use super::*;

/// The number of pauses: 0 covers all jobs, and each of the others a part of them.
const PAUSES: u64 = 3;

/// Whether a pause covers the job with this id.
fn covers(pause: u64, id: u64) -> bool {
    pause == 0 || id % PAUSES == pause
}

impl<E: Subject> World<E> {
    /// Somebody pauses jobs, or resumes them.
    pub(crate) fn toggle_pause(&mut self) {
        // All jobs are paused more rarely than some.
        let pause = self.rng.below(2 * PAUSES - 1).div_ceil(2);
        if self.pauses.contains(&pause) {
            self.resume(pause);
        } else {
            self.pauses.insert(pause);
        }
    }

    /// A pause ends, if it is in force.
    pub(crate) fn resume(&mut self, pause: u64) {
        if self.pauses.remove(&pause) {
            for worker in 0..self.workers.len() {
                self.feed(worker, Input::Resumed(pause));
            }
        }
    }

    /// The pause that covers the job of a token, if one does.
    pub(crate) fn pause_of(&self, token: Token) -> Option<u64> {
        let id = self.known_job(token)?.id;
        self.pauses.iter().copied().find(|pause| covers(*pause, id))
    }

    pub(super) fn is_paused(&self, job: &Job) -> bool {
        self.pauses.iter().any(|pause| covers(*pause, job.id))
    }

    /// The worker does not begin the attempt of a paused job. The engine must have decided well all
    /// the same.
    pub(crate) fn refuse_start(&mut self, worker: usize, token: Token, attempt: u32, pause: u64) {
        self.check_start(worker, token, attempt);

        let now = self.time();
        let attempt = Attempt::Paused(pause);
        self.workers[worker].engine.handle(now, Input::Finished(token, attempt));
    }
}
