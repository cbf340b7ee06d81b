//! An attempt ends, as the script of its job and the servers would have it.

use super::*;

impl<E: Subject> World<E> {
    /// Ends an attempt, or answers a probe.
    pub(crate) fn finish(&mut self) {
        let worker = self.rng.below(self.workers.len() as u64) as usize;
        if self.is_out_of_contact(worker) {
            return;
        }

        if self.rng.chance(10)
            && let Some((token, _)) = self.workers[worker].late.pop()
        {
            return self.feed(worker, Input::Finished(token, Attempt::Succeeded));
        }
        if self.workers[worker].running.is_empty() {
            return self.probe(worker);
        }

        let index = self.rng.below(self.workers[worker].running.len() as u64) as usize;
        let (token, attempt) = self.workers[worker].running.swap_remove(index);
        self.end_attempt(worker, token, attempt);
    }

    /// Ends an attempt as the script of its job and the servers would have it.
    fn end_attempt(&mut self, worker: usize, token: Token, attempt: u32) {
        let is_lost = self.rng.chance(3);
        let hosted = self.job(token).hosted.map(Need::Hosted);
        let away =
            [Some(Need::Room), hosted].into_iter().flatten().find(|need| self.away.contains(need));

        // The outcome of an aborted call says nothing, and the engine does not hear one of an
        // earlier assignment, which it may not have been able to forget yet.
        let is_heard =
            self.workers[worker].engine.token(token.partition, token.offset) == Some(token);
        let is_wanted = is_heard && self.job(token).cancelled != Some(token.generation);
        if self.server_up {
            self.note_hold(worker, hosted, away, is_heard, is_wanted);
        }

        let outcome = self.outcome_of(token, attempt, away, is_lost);
        // Neither an outage nor a cancel spends an attempt, and the next owner does not know about
        // a success that is not written when the partition moves, nor about an outcome that comes
        // afterwards.
        let spent = matches!(outcome, Attempt::Failed(class, _) if class.spends_attempt());
        if spent && is_wanted {
            self.job(token).ended += 1;
        }
        self.feed(worker, Input::Finished(token, outcome));
    }

    /// Notes until when a worker must leave a hosted server alone, or that it need not any longer.
    fn note_hold(
        &mut self,
        worker: usize,
        hosted: Option<Need>,
        away: Option<Need>,
        is_heard: bool,
        is_wanted: bool,
    ) {
        let held_until = &mut self.workers[worker].held_until;
        match (away, hosted) {
            (Some(Need::Hosted(server)), _) if is_wanted => {
                held_until.insert(server, self.now + LEAVE_ALONE);
            }
            (None, Some(Need::Hosted(server))) if is_heard => {
                held_until.remove(&server);
            }
            _ => {}
        }
    }

    fn outcome_of(
        &mut self,
        token: Token,
        attempt: u32,
        away: Option<Need>,
        is_lost: bool,
    ) -> Attempt {
        if !self.server_up {
            return Attempt::Failed(FailureClass::Unavailable, None);
        }
        if let Some(need) = away {
            return Attempt::Held(need, Some(Duration::from_millis(LEAVE_ALONE as u64)));
        }

        match self.job(token).script {
            Script::Permanent => Attempt::Failed(FailureClass::Permanent, None),
            Script::FailsForEver => Attempt::Failed(FailureClass::Retry, None),
            Script::FailsThenSucceeds(failures) if attempt <= failures || is_lost => {
                Attempt::Failed(FailureClass::Retry, None)
            }
            _ => Attempt::Succeeded,
        }
    }

    fn probe(&mut self, worker: usize) {
        if std::mem::take(&mut self.workers[worker].probing) {
            let up = self.server_up;
            self.feed(worker, Input::Probed(up));
        }
    }
}
