//! What goes into the engine and what comes out of it.

use std::{hash::Hash, time::Duration};

use fleet_group::{FinalCommit, Partition, Progress, log::LogName};
use fleet_job::{outcome::FailureClass, time::Timestamp};
use fleet_retry::Backoff;

/// One job in the worker's hands: where its record stood, and under which assignment it was read.
/// The generation fences off whatever still runs after the partition was taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token {
    /// The record's partition.
    pub partition: Partition,
    /// The record's offset.
    pub offset: i64,
    /// The number that the shell gave the assignment.
    pub generation: u64,
}

/// How many jobs of one sort may run at once in this worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// The sort: a tool, a tenant. The shell tells them apart by number.
    pub group: u64,
    /// The most that may run at once; at least 1.
    pub max: u32,
}

/// The limits that a job is under.
pub type Limits = [Option<Limit>; 2];

/// What a job needs beside a free slot, and what can be away while our server answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Need {
    /// Room at our server itself, which every job needs.
    Room,
    /// A server that ours hosts. The shell tells them apart by number.
    Hosted(u64),
}

/// What the engine has to know of a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JobSpec {
    /// A hash of the ordering key; `None` for a job without one. Two keys with one hash only wait
    /// for each other.
    pub key: Option<u64>,
    /// 0 (last) to 9 (first).
    pub priority: u8,
    /// The job must not start before.
    pub not_before: Option<Timestamp>,
    /// The job must not start after.
    pub deadline: Option<Timestamp>,
    /// After so many spent attempts the job has failed; at least 1.
    pub max_attempts: u32,
    /// Attempts that were spent before the record was written: it comes back from the delayed
    /// topic.
    pub spent: u32,
    /// What bounds how many jobs like this one run at once.
    pub limits: Limits,
    /// It comes back from the delayed topic, so its wait is nearly over. It is deferred again only
    /// if it has to wait very much longer than others: clocks differ, and it must not go round
    /// between workers that see it differently.
    pub returned: bool,
    /// Its attempts leave something behind that only this worker has, so it is not deferred between
    /// them.
    pub keeps_progress: bool,
    /// The hosted server whose tool it calls, where that is known before it is called.
    pub hosted: Option<u64>,
    /// Since when it has waited for something that is away, if it has come back from the delayed
    /// topic because of that.
    pub held_since: Option<Timestamp>,
}

impl JobSpec {
    /// A job of normal priority that has no key, no limits and no dates, and calls no hosted
    /// server.
    #[must_use]
    pub const fn new(max_attempts: u32) -> Self {
        Self {
            key: None,
            priority: 4,
            not_before: None,
            deadline: None,
            max_attempts,
            spent: 0,
            limits: [None; 2],
            returned: false,
            keeps_progress: false,
            hosted: None,
            held_since: None,
        }
    }

    /// What has to be there for the job to start.
    pub(crate) fn needs(&self) -> [Option<Need>; 2] {
        [Some(Need::Room), self.hosted.map(Need::Hosted)]
    }
}

/// What a record turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// A job to run.
    Job(JobSpec),
    /// A job that is known not to be wanted any more: it ends as cancelled without being started.
    Cancelled(JobSpec),
    /// Not a job: to be reported and dead-lettered without an attempt, in the turn of its key.
    Reject {
        /// A hash of the ordering key, as in [`JobSpec::key`].
        key: Option<u64>,
    },
    /// A job in the delayed topic: to be passed on at this time, and not to be run.
    Relay(Timestamp),
    /// A record that is known to be settled and of which nothing more is to be said: it is passed
    /// over.
    Settled,
    /// A job whose end this worker has written, only the commit did not get through. It is not run,
    /// and its end is written once more: another worker may have had it meanwhile, have said that
    /// it runs, and have died.
    Ended,
}

/// How one attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attempt {
    /// With a result.
    Succeeded,
    /// With a failure of this class, and perhaps the server's wish for the delay before the next
    /// attempt.
    Failed(FailureClass, Option<Duration>),
    /// It was turned away, because this is away. No attempt is spent. With the server's wish for
    /// the delay.
    Held(Need, Option<Duration>),
    /// Its call was not made, because contact with the group was lost before. No attempt is spent,
    /// and the job starts again when it may.
    NotMade,
}

/// How a job ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Terminal {
    /// The tool's result is in.
    Succeeded,
    /// No attempt is left, or none could help.
    Failed,
    /// It was no job to begin with.
    Rejected,
    /// Its deadline passed.
    Expired,
    /// It was cancelled before it had succeeded.
    Cancelled,
    /// It has to wait until then, which is too long for memory: it goes on in the delayed topic.
    Deferred(Timestamp),
    /// It was passed on from the delayed topic.
    Relayed,
    /// As it had ended before it came again ([`Admission::Ended`]).
    Again,
}

impl Terminal {
    /// Whether the job has come to its end, and does not go on as another record.
    pub(crate) fn is_final(self) -> bool {
        !matches!(self, Self::Deferred(_) | Self::Relayed)
    }
}

/// What happened outside.
#[derive(Debug, Clone, PartialEq)]
pub enum Input<'a> {
    /// The group gave us a partition, or its log has become another one. See
    /// [`start`](fleet_group::log::start).
    Assigned {
        /// Which.
        partition: Partition,
        /// A number that no earlier assignment had.
        generation: u64,
        /// The log that its commits are to name.
        log: LogName,
        /// What is known of it, from the first offset to read on; `None` where it is read from its
        /// beginning.
        progress: Option<Progress>,
    },
    /// A record was read. Records of a partition come in ascending order; a repeat is ignored.
    Record {
        /// Its partition.
        partition: Partition,
        /// Its offset.
        offset: i64,
        /// How much memory it holds, in bytes.
        bytes: usize,
        /// What it is.
        admission: Admission,
    },
    /// A job has come to hold so many bytes, its record among them.
    Holds(Token, usize),
    /// Everything of a partition's log below this offset has been delivered, as far as there is
    /// anything. The log may end in transaction markers, or in offsets whose records were compacted
    /// or have expired.
    End(Partition, i64),
    /// An attempt that [`Command::Start`] began has ended.
    Finished(Token, Attempt),
    /// What [`Command::Settle`] asked for has been acknowledged by the broker.
    Written(Token),
    /// What [`Command::Settle`] asked for could not be written; the engine asks again.
    WriteFailed(Token),
    /// The delayed topic can't take the job, now or ever: it waits here.
    NotDeferred(Token),
    /// A commit that [`Command::Commit`] asked for has ended.
    Committed {
        /// Its partition.
        partition: Partition,
        /// The generation in the command.
        generation: u64,
        /// Whether the broker has taken it.
        ok: bool,
    },
    /// The job is not wanted any more. One that runs is aborted; whether that was in time, its end
    /// says.
    Cancel(Token),
    /// The probe that [`Command::Probe`] asked for has ended; `true` when a server answers.
    Probed(bool),
    /// The group wants these partitions back: start nothing more of theirs.
    Draining(&'a [Partition]),
    /// These partitions were lost without notice: commit nothing, report nothing, drop everything.
    Lost(&'a [Partition]),
    /// Contact with the group was lost, and commands were not carried out meanwhile. Starts among
    /// those that have not been polled are decided again.
    ContactRegained,
    /// Nothing but the time.
    Tick,
}

/// What the shell has to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// Begin this attempt (counted from 1) and answer with [`Input::Finished`].
    Start(Token, u32),
    /// Write the terminal record, and the dead letter where there is one (or what else the end asks
    /// for), and answer with [`Input::Written`] or [`Input::WriteFailed`]. The number is the
    /// attempts spent.
    Settle(Token, Terminal, u32),
    /// Cancel the call that is under way and answer with [`Input::Finished`], whatever it came to.
    Abort(Token),
    /// Tell the world that the job will be tried again: attempts spent, and the time of the next
    /// one.
    Retrying(Token, u32, Timestamp),
    /// The job is no longer ours, or is settled: stop what runs of it and drop what is held of it.
    Forget(Token),
    /// Commit this offset and metadata without waiting, and answer with [`Input::Committed`].
    Commit(FinalCommit),
    /// Stop fetching, if the partition's assignment is still this one.
    Pause(Partition, u64),
    /// Fetch again, if the partition's assignment is still this one.
    Resume(Partition, u64),
    /// The log begins anew below the offset that reading was to start from: records were lost.
    /// Reading goes on from there.
    LogReset(Partition),
    /// Find out whether a server answers, and report with [`Input::Probed`].
    Probe,
    /// A promise is broken: count it and shout. The engine goes on.
    Violation(&'static str, Token),
}

/// In which order jobs may start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ordering {
    /// Jobs of one record key one after the other; jobs without a key in any order.
    #[default]
    Key,
    /// Jobs of one partition one after the other.
    Partition,
    /// Any order.
    Unordered,
}

/// How the engine works. All bounds are per worker.
#[derive(Debug, Clone)]
pub struct Config {
    /// The order of starts.
    pub ordering: Ordering,
    /// The most attempts under way at once; at least 1.
    pub max_in_flight: usize,
    /// Fetching pauses at so many unsettled jobs in memory and resumes at half of it.
    pub max_buffered: usize,
    /// Fetching pauses at so many bytes of them and resumes at half of it.
    pub max_buffered_bytes: usize,
    /// The least time between two commits of a partition.
    pub commit_interval: Duration,
    /// The least time between a failed attempt and the commit that makes it durable.
    pub urgent_commit_interval: Duration,
    /// The longest that a job waits in memory for its time. One that has to wait longer is deferred
    /// to the delayed topic, unless others of its key have to wait for its next attempt; `None`
    /// where there is no such topic.
    pub max_park: Option<Duration>,
    /// The delay between attempts.
    pub retry: Backoff,
    /// The delay between probes while the server is unavailable.
    pub probe: Backoff,
    /// The delay before a terminal record that could not be written is written again.
    pub rewrite: Backoff,
    /// Seeds the jitter.
    pub seed: u64,
    /// A mistake to make on purpose.
    #[cfg(test)]
    pub(crate) fault: Option<Fault>,
}

/// A mistake that the engine, or the shell in its place, makes on purpose, so that the simulation
/// can show that it finds it. Each is one that a consumer somewhere has shipped.
#[cfg(test)]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The committed offset is the next one to read, whatever is open below (I1).
    CommitPastGap,
    /// A job counts as settled when its end is handed over for writing, not when that is
    /// acknowledged (I2).
    SettleBeforeWritten,
    /// A failed write counts as done (I2).
    WriteFailureIgnored,
    /// Attempts of the last owner are forgotten (I6).
    AttemptsForgotten,
    /// The next attempt does not wait for the commit of the one before (I6).
    RetryBeforeDurable,
    /// What ends after its partition was taken away is taken for its new assignment's (fence).
    NoFence,
    /// A commit from before a revoke is sent after it, over the last one (I4).
    CommitAfterRevoke,
    /// What the last owner knew of offsets that have not been read again is not handed on (I4).
    KnowledgeNotHandedOn,
    /// The next job of a key starts when the one before has finished, not when its end is written
    /// (I5).
    NextBeforeWritten,
    /// Keys are not looked at (I5).
    KeysIgnored,
    /// An outage spends attempts (I7).
    OutageSpendsAttempts,
    /// Nobody asks whether the server is back (I3).
    NeverProbes,
    /// A job that waits for its backoff keeps its slot for ever (I3).
    SlotLeak,
    /// A paused partition stays paused (I3).
    NeverResumes,
    /// What is no job is dropped without a word (I3).
    RejectsDropped,
    /// Deadlines are not looked at.
    DeadlineIgnored,
    /// Attempts that were spent before a job was deferred are forgotten (I6).
    DeferredAttemptsForgotten,
    /// What comes from the delayed topic is taken as passed on, and is not (I3).
    RelaysDropped,
    /// The end of a job that comes again is not written again.
    EndsNotRepeated,
    /// Limits are not looked at.
    LimitsIgnored,
    /// A limit is not given back when its job ends (I3).
    LimitLeak,
    /// A cancelled job starts all the same.
    CancelIgnored,
    /// What was to start before a gap in contact starts after it, whatever has passed since.
    StartsNotRecalled,
    /// After a gap in contact, one turn of the poll thread is taken for contact.
    TurnLiftsGap,
    /// The offset that was committed for an earlier topic of the name is believed (I3).
    LogIgnored,
    /// When the topic is made again, reading goes on where it was (I3).
    OldFrontierKept,
    /// Records of a new log are taken for those that were settled at their offsets in the old one
    /// (I3).
    SettledInAnyLog,
    /// A hosted server that is away spends attempts (I7).
    HoldSpendsAttempts,
    /// A hosted server that is away holds up the jobs of all others (I7).
    HoldBlocksOthers,
    /// A job that waits for a hosted server gives up its place in its key (I5).
    HoldForgetsOrder,
    /// Nobody asks whether a hosted server is back (I3).
    NeverScouts,
    /// All that wait for a hosted server ask it, and before the time that it gave.
    HoldIgnored,
    /// A job with a key goes to the delayed topic because of an outage, and loses its place (I5).
    HoldDefersKeys,
    /// The deadline of a job that waits for a hosted server is not looked at.
    HoldIgnoresDeadline,
    /// Whoever reads events takes the newest end for a job's state, and not the first one.
    NewestEndStands,
    /// Whoever reads events takes the newest one for a job's state, also where that stands behind
    /// its end.
    NewestWordStands,
    /// An end that something stands behind is not written again.
    EndsNotRestated,
    /// What comes to its end without being run does so before earlier jobs of its key have ended
    /// (I5).
    EndsOutOfTurn,
}

#[cfg(test)]
impl Fault {
    /// All of them.
    pub(crate) const ALL: [Self; 38] = [
        Self::CommitPastGap,
        Self::SettleBeforeWritten,
        Self::WriteFailureIgnored,
        Self::AttemptsForgotten,
        Self::RetryBeforeDurable,
        Self::NoFence,
        Self::CommitAfterRevoke,
        Self::KnowledgeNotHandedOn,
        Self::NextBeforeWritten,
        Self::KeysIgnored,
        Self::OutageSpendsAttempts,
        Self::NeverProbes,
        Self::SlotLeak,
        Self::NeverResumes,
        Self::RejectsDropped,
        Self::DeadlineIgnored,
        Self::DeferredAttemptsForgotten,
        Self::RelaysDropped,
        Self::EndsNotRepeated,
        Self::LimitsIgnored,
        Self::LimitLeak,
        Self::CancelIgnored,
        Self::StartsNotRecalled,
        Self::TurnLiftsGap,
        Self::LogIgnored,
        Self::OldFrontierKept,
        Self::SettledInAnyLog,
        Self::HoldSpendsAttempts,
        Self::HoldBlocksOthers,
        Self::HoldForgetsOrder,
        Self::NeverScouts,
        Self::HoldIgnored,
        Self::HoldDefersKeys,
        Self::HoldIgnoresDeadline,
        Self::NewestEndStands,
        Self::NewestWordStands,
        Self::EndsNotRestated,
        Self::EndsOutOfTurn,
    ];
}

/// Whether this very mistake is to be made. Never outside the simulation, where the question costs
/// nothing.
macro_rules! faulty {
    ($config:expr, $fault:ident) => {{
        #[cfg(test)]
        let faulty = $config.fault == Some($crate::types::Fault::$fault);
        #[cfg(not(test))]
        let faulty = false;
        faulty
    }};
}
pub(crate) use faulty;

impl Default for Config {
    fn default() -> Self {
        let ms = Duration::from_millis;
        Self {
            ordering: Ordering::Key,
            max_in_flight: 16,
            max_buffered: 5_000,
            max_buffered_bytes: 64 << 20,
            commit_interval: ms(1_000),
            urgent_commit_interval: ms(50),
            max_park: None,
            retry: Backoff { base: ms(500), max: ms(60_000) },
            probe: Backoff { base: ms(500), max: ms(15_000) },
            rewrite: Backoff { base: ms(200), max: ms(10_000) },
            seed: 0,
            #[cfg(test)]
            fault: None,
        }
    }
}
