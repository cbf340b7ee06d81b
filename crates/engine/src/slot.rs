//! A record that is not settled, and its state.
//!
//! A record is a job that may still run, a job that runs, or something that only has to come to its
//! end. What matters in one state only lives in that state's variant.

use fleet_job::time::Timestamp;

use crate::{
    keys::Lane,
    types::{JobSpec, Need, Terminal},
};

/// A record that is not settled.
#[derive(Debug, Clone)]
pub(crate) struct Slot {
    state: State,
    /// Its place in the order of its key; `None` if nothing orders it.
    lane: Option<Lane>,
    bytes: usize,
    attempts: u32,
    durable: u32,
}

/// A job that has not come to its end.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Job {
    pub(crate) spec: JobSpec,
    /// Since when it has waited for something that is away.
    pub(crate) held_since: Option<Timestamp>,
    /// The delayed topic did not take it, so it waits here, however long that takes.
    pub(crate) stays: bool,
}

/// The state of a record.
#[derive(Debug, Clone)]
pub(crate) enum State {
    /// A job that may run later.
    Waiting {
        /// The job.
        job: Job,
        /// What it waits for.
        wait: Wait,
    },
    /// A job with an attempt under way.
    Running {
        /// The job.
        job: Job,
        /// What becomes of this attempt says whether what the job needs is back.
        is_scout: bool,
        /// The job was cancelled while it ran.
        is_cancelled: bool,
    },
    /// A record that comes to its end without being run (again).
    Ending {
        /// The job that comes to its end; `None` if the record never was one.
        job: Option<Job>,
        /// How it ends.
        end: Terminal,
        /// How far that has got.
        step: Step,
        /// The job was cancelled while it was being deferred.
        is_cancelled: bool,
    },
}

/// What a job waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wait {
    /// For the jobs of its key that come before it.
    Turn,
    /// For a time: its `notBefore`, or the end of its backoff.
    Time,
    /// For the commit that makes the attempts durable that it has spent (I6).
    Commit,
    /// For a free slot; it is in the queue of jobs that may start.
    Start,
    /// For room in the commit's metadata.
    Room,
    /// For something that is away.
    Need(Need),
}

/// How far the end of a record has got.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    /// It waits for the jobs of its key that come before it.
    Turn,
    /// It waits for the time at which it is to be relayed.
    Time,
    /// It waits for room in the commit's metadata.
    Room,
    /// The terminal record is being written, after so many failed writes in a row.
    Settling(u32),
    /// The terminal record could not be written, so many times in a row; it will be tried again.
    Unwritten(u32),
}

impl Slot {
    /// A job that has just been delivered, with the attempts that it had spent before.
    pub(crate) fn of_job(spec: JobSpec, lane: Option<Lane>, bytes: usize, attempts: u32) -> Self {
        let job = Job { spec, held_since: spec.held_since, stays: false };
        Self {
            state: State::Waiting { job, wait: Wait::Turn },
            lane,
            bytes,
            attempts,
            durable: attempts,
        }
    }

    /// A record that is no job to run and has just been delivered.
    pub(crate) fn of_end(end: Terminal, lane: Option<Lane>, bytes: usize, attempts: u32) -> Self {
        let state = State::Ending { job: None, end, step: Step::Turn, is_cancelled: false };
        Self { state, lane, bytes, attempts, durable: attempts }
    }

    pub(crate) fn state(&self) -> &State {
        &self.state
    }

    pub(crate) fn lane(&self) -> Option<Lane> {
        self.lane
    }

    pub(crate) fn bytes(&self) -> usize {
        self.bytes
    }

    /// The attempts that it has spent.
    pub(crate) fn attempts(&self) -> u32 {
        self.attempts
    }

    /// How many of these attempts are in a commit that the broker has accepted.
    pub(crate) fn durable(&self) -> u32 {
        self.durable
    }

    /// Whether every spent attempt is in such a commit.
    pub(crate) fn is_durable(&self) -> bool {
        self.attempts <= self.durable
    }

    /// The attempts to report with the end: a successful attempt spends nothing that a commit would
    /// have to remember, but it counts.
    pub(crate) fn reported_attempts(&self, end: Terminal) -> u32 {
        self.attempts + u32::from(end == Terminal::Succeeded)
    }

    /// The job, if the record is one.
    pub(crate) fn job(&self) -> Option<&Job> {
        match &self.state {
            State::Waiting { job, .. } | State::Running { job, .. } => Some(job),
            State::Ending { job, .. } => job.as_ref(),
        }
    }

    /// What the job waits for; `None` unless it waits.
    pub(crate) fn wait(&self) -> Option<Wait> {
        match self.state {
            State::Waiting { wait, .. } => Some(wait),
            State::Running { .. } | State::Ending { .. } => None,
        }
    }

    /// The record waits for others of its key, be it to run or to come to its end.
    pub(crate) fn is_behind_others(&self) -> bool {
        matches!(
            self.state,
            State::Waiting { wait: Wait::Turn, .. } | State::Ending { step: Step::Turn, .. }
        )
    }

    /// The job waits for its time, or for the commit that has to come first.
    pub(crate) fn is_parked(&self) -> bool {
        matches!(self.wait(), Some(Wait::Time | Wait::Commit))
    }

    pub(crate) fn is_held(&self) -> bool {
        matches!(self.wait(), Some(Wait::Need(_)))
    }

    pub(crate) fn is_scouting(&self) -> bool {
        matches!(self.state, State::Running { is_scout: true, .. })
    }

    /// The end that the record comes to, if it does.
    pub(crate) fn end(&self) -> Option<Terminal> {
        match self.state {
            State::Ending { end, .. } => Some(end),
            State::Waiting { .. } | State::Running { .. } => None,
        }
    }

    /// The end that is being written, if one is.
    pub(crate) fn settling(&self) -> Option<Terminal> {
        match self.state {
            State::Ending { end, step: Step::Settling(_), .. } => Some(end),
            _ => None,
        }
    }

    // --- Changes. Those of the state are for the engine's `transition` only. ---

    /// One more attempt is spent.
    pub(crate) fn spend_attempt(&mut self) {
        self.attempts = self.attempts.saturating_add(1);
    }

    /// So many attempts are durable.
    pub(crate) fn confirm_attempts(&mut self, durable: u32) {
        self.durable = durable;
    }

    pub(crate) fn resize(&mut self, bytes: usize) {
        self.bytes = bytes;
    }

    /// Changes what is known of the job.
    pub(crate) fn edit_job(&mut self, edit: impl FnOnce(&mut Job)) {
        match &mut self.state {
            State::Waiting { job, .. }
            | State::Running { job, .. }
            | State::Ending { job: Some(job), .. } => edit(job),
            State::Ending { job: None, .. } => {}
        }
    }

    /// The job waits. A record that is no job stays as it is.
    pub(crate) fn wait_for(&mut self, next: Wait) {
        if let State::Waiting { wait, .. } = &mut self.state {
            *wait = next;
        } else if let Some(job) = self.job().copied() {
            self.state = State::Waiting { job, wait: next };
        }
    }

    /// An attempt of the job begins. A record that is no job stays as it is.
    pub(crate) fn start(&mut self, is_scout: bool) {
        if let Some(job) = self.job().copied() {
            self.state = State::Running { job, is_scout, is_cancelled: false };
        }
    }

    /// The record comes to this end, as soon as its turn has come.
    pub(crate) fn end_as(&mut self, end: Terminal) {
        let job = self.job().copied();
        self.state = State::Ending { job, end, step: Step::Turn, is_cancelled: false };
    }

    /// The end goes on to this step. A record that is not ending stays as it is.
    pub(crate) fn go_on_to(&mut self, next: Step) {
        if let State::Ending { step, .. } = &mut self.state {
            *step = next;
        }
    }

    /// The job is not wanted any more. If it runs or is being deferred, that is remembered until
    /// it has stopped.
    pub(crate) fn note_cancel(&mut self) {
        match &mut self.state {
            State::Running { is_cancelled, .. } | State::Ending { is_cancelled, .. } => {
                *is_cancelled = true;
            }
            State::Waiting { .. } => {}
        }
    }
}
