//! The engine with one deliberate mistake, for the simulation.
//!
//! A mutant wraps the engine, which knows nothing of it. A mistake is made in what goes in or comes
//! out, where that is possible; otherwise the mutant meddles with the engine's state between two
//! inputs.

use fleet_group::{FinalCommit, Partition, Progress};
use fleet_job::{outcome::FailureClass, time::Timestamp};

use super::{Engine, Status};
use crate::{
    schedule::Alarm,
    simulation::{Fault, Subject},
    slot::{Slot, State, Wait},
    sums::Sums,
    types::{Admission, Attempt, Command, Config, Input, JobSpec, Need, Tenant, Terminal, Token},
};

/// The engine, perhaps with a mistake.
pub(crate) struct Mutant {
    engine: Engine,
    fault: Option<Fault>,
}

impl Subject for Mutant {
    fn new(config: Config, fault: Option<Fault>) -> Self {
        Self { engine: Engine::new(config), fault }
    }

    fn handle(&mut self, now: Timestamp, input: Input<'_>) {
        let cause = Cause::of(&input);

        match self.fault {
            None => self.engine.handle(now, input),
            Some(fault) => {
                self.meddle_before(now, fault, cause);
                let input = self.distort_input(fault, input);
                self.engine.handle(now, input);
                self.meddle_after(now, fault, cause);
            }
        }

        self.engine.assert_sums_follow_from_states();
    }

    fn poll(&mut self) -> Option<Command> {
        loop {
            let command = self.engine.poll()?;
            match (self.fault, &command) {
                (Some(Fault::NeverProbes), Command::Probe)
                | (Some(Fault::NeverResumes), Command::Resume(..))
                | (Some(Fault::RejectsDropped), Command::Settle(_, Terminal::Rejected, _)) => {}
                (Some(Fault::CommitPastGap), Command::Commit(commit)) => {
                    return Some(Command::Commit(self.past_gaps(commit)));
                }
                _ => return Some(command),
            }
        }
    }

    fn release(&mut self, partitions: &[Partition]) -> Vec<FinalCommit> {
        self.engine.release(partitions)
    }

    fn token(&self, partition: Partition, offset: i64) -> Option<Token> {
        self.engine.token(partition, offset)
    }

    fn status(&self) -> Status {
        self.engine.status()
    }

    fn startable(&self) -> Vec<Token> {
        self.engine.startable()
    }
}

/// What an input is about, as far as mistakes depend on it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    Record(Partition, i64),
    Succeeded(Token),
    Held(Token),
    Paused(Token),
    Failed(Token),
    Resumed(u64),
    Other,
}

impl Cause {
    fn of(input: &Input<'_>) -> Self {
        match *input {
            Input::Record { partition, offset, .. } => Self::Record(partition, offset),
            Input::Finished(token, Attempt::Succeeded) => Self::Succeeded(token),
            Input::Finished(token, Attempt::Held(..)) => Self::Held(token),
            Input::Finished(token, Attempt::Paused(_)) => Self::Paused(token),
            Input::Resumed(pause) => Self::Resumed(pause),
            Input::Finished(token, _) => Self::Failed(token),
            _ => Self::Other,
        }
    }

    /// The job whose attempt has ended.
    fn finished(self) -> Option<Token> {
        match self {
            Self::Succeeded(token)
            | Self::Held(token)
            | Self::Paused(token)
            | Self::Failed(token) => Some(token),
            Self::Record(..) | Self::Resumed(_) | Self::Other => None,
        }
    }
}

impl Mutant {
    /// What the engine is told in place of `input`.
    fn distort_input<'a>(&self, fault: Fault, input: Input<'a>) -> Input<'a> {
        use Attempt::{Failed, Held, NotMade, Paused};

        match (fault, input) {
            (
                Fault::AttemptsForgotten,
                Input::Assigned { partition, generation, log, progress: Some(progress) },
            ) => {
                let progress = Some(Progress { attempts: Vec::new(), ..progress });
                Input::Assigned { partition, generation, log, progress }
            }
            (Fault::NoFence, Input::Finished(token, attempt)) => {
                let token = self.engine.token(token.partition, token.offset).unwrap_or(token);
                Input::Finished(token, attempt)
            }
            (
                Fault::OutageSpendsAttempts,
                Input::Finished(token, Failed(FailureClass::Unavailable, wish)),
            ) => Input::Finished(token, Failed(FailureClass::Retry, wish)),
            (Fault::HoldSpendsAttempts, Input::Finished(token, Held(..))) => {
                Input::Finished(token, Failed(FailureClass::Retry, None))
            }
            (Fault::PauseSpendsAttempts, Input::Finished(token, Paused(_))) => {
                Input::Finished(token, Failed(FailureClass::Retry, None))
            }
            (Fault::PauseBlocksOthers, Input::Finished(token, Paused(_))) => {
                Input::Finished(token, Failed(FailureClass::Unavailable, None))
            }
            (Fault::HoldBlocksOthers, Input::Finished(token, Held(_, wish))) => {
                Input::Finished(token, Failed(FailureClass::Unavailable, wish))
            }
            (Fault::HoldIgnored, Input::Finished(token, Held(..))) => {
                Input::Finished(token, NotMade)
            }
            (Fault::CancelIgnored, Input::Cancel(_))
            | (Fault::StartsNotRecalled, Input::ContactRegained) => Input::Tick,
            (_, Input::Record { partition, offset, bytes, admission }) => {
                let admission = distort_admission(fault, admission);
                Input::Record { partition, offset, bytes, admission }
            }
            (_, input) => input,
        }
    }

    fn meddle_before(&mut self, now: Timestamp, fault: Fault, cause: Cause) {
        let engine = &mut self.engine;

        match (fault, cause) {
            (Fault::LimitLeak, cause) => {
                // What is counted twice is given back once.
                let slot = cause.finished().and_then(|token| engine.slot(token));
                if let Some(State::Running { job, .. }) = slot.map(Slot::state) {
                    engine.ready.started(&job.spec.limits.clone());
                }
            }
            (Fault::NeverScouts, _) => {
                let needs: Vec<_> = engine.holds.all().map(|(need, ..)| need).collect();
                for need in needs {
                    let never = Some(std::time::Duration::from_secs(600));
                    engine.holds.turned_away(need, now, never, false, &mut engine.random);
                }
            }
            (Fault::HoldIgnoresDeadline, Cause::Held(token))
            | (Fault::PauseIgnoresDeadline, Cause::Paused(token)) => engine.forget_deadline(token),
            (Fault::ResumedForgotten, Cause::Resumed(pause)) => {
                // The hold ends, and nobody makes its jobs ready.
                engine.holds.lift(Need::Paused(pause));
            }
            (Fault::UrgentTenantFirst, _) => {
                let urgent = engine.ready.most_urgent();
                urgent.into_iter().for_each(|tenant| engine.ready.favour(tenant));
            }
            (Fault::TurnNeverEnds, _) => engine.ready.prolong_turn(),
            (Fault::SetAsideKeepsTurn, _) => {
                let tenants = engine.ready.set_aside_tenants();
                tenants.into_iter().for_each(|tenant| engine.ready.favour(tenant));
            }
            _ => {}
        }
    }

    fn meddle_after(&mut self, now: Timestamp, fault: Fault, cause: Cause) {
        let engine = &mut self.engine;

        match (fault, cause) {
            (Fault::KnowledgeNotHandedOn, Cause::Record(partition, _)) => {
                if let Some(state) = engine.partitions.get_mut(partition) {
                    state.forget_restored();
                }
            }
            (Fault::KeysIgnored, Cause::Record(partition, offset)) => {
                let token = engine.token(partition, offset);
                if let Some(token) = token.filter(|token| engine.is_behind_others(*token)) {
                    engine.unblock(now, token);
                }
            }
            (Fault::RetryBeforeDurable, _) => {
                let partitions: Vec<_> = engine.partitions.iter().map(|(at, _)| at).collect();
                for partition in partitions {
                    engine.confirm_attempts(partition, |_, slot| slot.attempts());
                }
            }
            (Fault::SlotLeak, Cause::Failed(token)) => {
                let waits = engine.slot(token).and_then(Slot::wait);
                if waits == Some(Wait::Time) {
                    engine.config.max_in_flight = engine.config.max_in_flight.saturating_sub(1);
                }
            }
            (Fault::NextBeforeWritten, Cause::Succeeded(token))
            | (Fault::HoldForgetsOrder, Cause::Held(token)) => {
                let lane = engine.slot(token).and_then(Slot::lane);
                engine.leave_lane(now, token, lane);
            }
            (Fault::HoldDefersKeys, _) => engine.defer_held(now, |slot| slot.lane().is_some()),
            (Fault::RelaysPastDeadline, _) => engine.defer_held(now, |slot| {
                let has_deadline = slot.job().is_some_and(|job| job.spec.deadline.is_some());
                has_deadline && slot.lane().is_none()
            }),
            (Fault::HoldIgnoresDeadline, _) => {
                let held = engine.tokens(|slot| slot.is_held());
                held.into_iter().for_each(|token| engine.forget_deadline(token));
            }
            (Fault::EndsOutOfTurn, _) => {
                let ends = engine.tokens(|slot| slot.is_behind_others() && slot.end().is_some());
                ends.into_iter().for_each(|token| engine.end_early(token));
            }
            _ => return,
        }

        engine.advance(now);
    }

    /// The commit that takes everything for settled that was delivered.
    fn past_gaps(&self, commit: &FinalCommit) -> FinalCommit {
        let state = self.engine.partitions.get(commit.partition);
        let Some((state, last)) =
            state.and_then(|state| Some((state, state.open().offsets().last()?)))
        else {
            return commit.clone();
        };

        let offset = last + 1;
        let metadata = Progress::none(offset).encode(state.log).unwrap();
        FinalCommit { offset, metadata, ..commit.clone() }
    }
}

fn distort_admission(fault: Fault, admission: Admission) -> Admission {
    let Admission::Job(spec) = admission else {
        return match (fault, admission) {
            (Fault::CancelIgnored, Admission::Cancelled(spec)) => Admission::Job(spec),
            (Fault::EndsNotRepeated, Admission::Ended) => Admission::Settled,
            (_, admission) => admission,
        };
    };

    Admission::Job(match fault {
        Fault::DeadlineIgnored => JobSpec { deadline: None, ..spec },
        Fault::DeferredAttemptsForgotten => JobSpec { spent: 0, ..spec },
        Fault::LimitsIgnored => JobSpec { limits: [None; 2], ..spec },
        Fault::TenantsIgnored => JobSpec { tenant: Tenant::UNNAMED, ..spec },
        _ => spec,
    })
}

impl Engine {
    fn is_behind_others(&self, token: Token) -> bool {
        self.slot(token).is_some_and(Slot::is_behind_others)
    }

    /// The tokens of these records, in the order of their partitions and offsets.
    fn tokens(&self, is_wanted: impl Fn(&Slot) -> bool) -> Vec<Token> {
        let all = self.partitions.iter().flat_map(|(partition, state)| {
            let generation = state.generation;
            let wanted = state.open().iter().filter(|(_, slot)| is_wanted(slot));
            let tokens = wanted.map(|(offset, _)| Token { partition, offset, generation });
            tokens.collect::<Vec<_>>()
        });

        let mut all: Vec<_> = all.collect();
        all.sort_unstable();
        all
    }

    /// The jobs that wait for nothing but a slot, a limit and the turn of their tenant.
    fn startable(&self) -> Vec<Token> {
        let mut ready = self.tokens(|slot| slot.wait() == Some(Wait::Start));
        ready.retain(|token| {
            let state = self.partitions.get(token.partition);
            let has_room =
                state.is_some_and(|state| !state.draining && state.has_room(token.offset));
            let job = self.slot(*token).and_then(Slot::job);
            let needs = job.map(|job| job.spec.needs());
            has_room && needs.is_some_and(|needs| self.holds.obstacle(needs, *token).is_none())
        });
        ready
    }

    fn forget_deadline(&mut self, token: Token) {
        let job = self.slot(token).and_then(Slot::job);
        let Some(deadline) = job.and_then(|job| job.spec.deadline) else { return };

        self.timers.clear(deadline, token, Alarm::Deadline);
        self.transition(token, |slot| slot.edit_job(|job| job.spec.deadline = None));
    }

    /// Defers those of the wanted jobs that have waited for a hosted server, as if neither a key
    /// nor a deadline kept them here.
    fn defer_held(&mut self, now: Timestamp, is_wanted: impl Fn(&Slot) -> bool) {
        let Some(max) = self.config.max_park else { return };

        for token in self.tokens(|slot| slot.is_held() && is_wanted(slot)) {
            let Some(slot) = self.slot(token) else { continue };
            let (Some(Wait::Need(need)), Some(job)) = (slot.wait(), slot.job()) else { continue };
            let has_waited = job.held_since.is_some_and(|since| since.plus(max / 4) <= now);
            let stays = !matches!(need, Need::Hosted(_)) || job.stays || job.spec.keeps_progress;

            if has_waited && !stays && !self.holds.is_next(need, token) {
                self.end_now(token, Terminal::Deferred(now.plus(max * 2)));
            }
        }
    }

    /// The sums are those that a recount gives.
    fn assert_sums_follow_from_states(&self) {
        let mut total = Sums::default();

        for (_, state) in self.partitions.iter() {
            let mut sums = Sums::default();
            state.open().slots().for_each(|slot| sums += Sums::of(slot));
            assert_eq!(state.sums(), sums);
            total += sums;
        }

        assert_eq!(self.partitions.sums(), total);
    }
}
