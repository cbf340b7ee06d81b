//! A job that is not settled, and where it stands.

use fleet_job::time::Timestamp;

use crate::{
    keys::Lane,
    types::{JobSpec, Need, Terminal},
};

/// Where a job stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Behind another job of its key.
    Queued,
    /// Waits for a time: `notBefore`, or its backoff.
    Delayed,
    /// Its backoff is over, but the attempt that it has spent is not committed yet (I6).
    AwaitsCommit,
    /// May start as soon as there is room.
    Ready,
    /// Waits for something that is away.
    Held(Need),
    /// An attempt is under way.
    Running,
    /// Its terminal record is being written.
    Settling(Terminal),
    /// Its terminal record could not be written and waits to be tried again.
    Unwritten(Terminal),
}

/// A job that is not settled.
#[derive(Debug, Clone)]
pub(crate) struct Slot {
    /// What is to be run; `None` for what never is.
    pub(crate) spec: Option<JobSpec>,
    /// Its place among those of its key, where something orders it.
    pub(crate) lane: Option<Lane>,
    /// The end that it comes to without being run, when its key's turn comes.
    pub(crate) early: Option<Terminal>,
    /// It went as a scout: what becomes of it says whether what it needs is back.
    pub(crate) scouts: bool,
    /// Since when it has waited for something that is away.
    pub(crate) held_since: Option<Timestamp>,
    /// The delayed topic does not take it.
    pub(crate) stays: bool,
    /// It runs, and is not wanted any more.
    pub(crate) cancelled: bool,
    pub(crate) bytes: usize,
    pub(crate) phase: Phase,
    /// Attempts spent.
    pub(crate) attempts: u32,
    /// Those of them that a commit has made durable.
    pub(crate) durable: u32,
    /// Failed writes of the terminal record in a row.
    pub(crate) rewrites: u32,
}

impl Slot {
    /// Waits for its time.
    pub(crate) fn is_parked(&self) -> bool {
        matches!(self.phase, Phase::Delayed | Phase::AwaitsCommit)
    }

    pub(crate) fn new(bytes: usize, attempts: u32) -> Self {
        Self {
            spec: None,
            lane: None,
            early: None,
            scouts: false,
            held_since: None,
            stays: false,
            cancelled: false,
            bytes,
            phase: Phase::Queued,
            attempts,
            durable: attempts,
            rewrites: 0,
        }
    }
}
