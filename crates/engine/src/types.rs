//! What goes into the engine and what comes out of it.

use std::time::Duration;

use fleet_group::{FinalCommit, Partition, Progress, log::LogName};
use fleet_job::{outcome::FailureClass, time::Timestamp};
use fleet_retry::Backoff;

use crate::{invariant::Invariant, sums::Load};

/// One record in the worker's hands: its position, and the assignment under which it was read. The
/// generation fences off what still runs after the partition was taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Token {
    /// The record's partition.
    pub partition: Partition,
    /// The record's offset.
    pub offset: i64,
    /// The number that the shell gave the assignment.
    pub generation: u64,
}

/// How many jobs of a group may run at once in this worker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// The group: a tool or a tenant. The shell maps them to numbers.
    pub group: u64,
    /// The most jobs that may run at once; at least 1.
    pub max: u32,
}

/// Who a job is for. Tenants share the slots of a worker by their weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Tenant {
    /// The shell maps tenants to numbers.
    pub number: u64,
    /// How many jobs the tenant may start in its turn; at least 1.
    pub weight: u32,
}

impl Tenant {
    /// The tenant of all jobs that name none.
    pub const UNNAMED: Self = Self { number: 0, weight: 1 };
}

/// The limits that apply to a job.
pub type Limits = [Option<Limit>; 2];

/// What a job needs besides a free slot, and what can be away while our server answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Need {
    /// Room at our server itself, which every job needs.
    Room,
    /// A server that ours hosts. The shell maps them to numbers.
    Hosted(u64),
    /// The end of a pause that people have ordered. The shell maps pauses to numbers; 0 is a pause
    /// of all jobs.
    Paused(u64),
}

/// What the engine has to know about a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct JobSpec {
    /// A hash of the ordering key; `None` for a job without one. Two keys with the same hash wait
    /// for each other, and nothing worse.
    pub key: Option<u64>,
    /// Who the job is for.
    pub tenant: Tenant,
    /// 0 (last) to 9 (first), among the jobs of the same tenant.
    pub priority: u8,
    /// The job must not start before this time.
    pub not_before: Option<Timestamp>,
    /// The job must not start after this time.
    pub deadline: Option<Timestamp>,
    /// The job fails after this many spent attempts; at least 1.
    pub max_attempts: u32,
    /// Attempts that were spent before the record was written, because the job returns from the
    /// delayed topic.
    pub spent: u32,
    /// The limits on how many jobs like this one run at once.
    pub limits: Limits,
    /// The job returns from the delayed topic, so its wait is nearly over. It is deferred again
    /// only if it has to wait very much longer than others: clocks differ, and it must not go in
    /// circles between workers that disagree.
    pub returned: bool,
    /// Attempts of the job leave something behind that only this worker has, so it is not deferred
    /// between them.
    pub keeps_progress: bool,
    /// The hosted server whose tool the job calls, if that is known before the call.
    pub hosted: Option<u64>,
    /// Since when the job has waited for something that is away, if it returns from the delayed
    /// topic because of that.
    pub held_since: Option<Timestamp>,
}

impl JobSpec {
    /// A job of normal priority that has no tenant, no key, no limits and no dates, and calls no
    /// hosted server.
    #[must_use]
    pub const fn new(max_attempts: u32) -> Self {
        Self {
            key: None,
            tenant: Tenant::UNNAMED,
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

    /// What has to be available before the job can start.
    pub(crate) fn needs(&self) -> [Option<Need>; 2] {
        [Some(Need::Room), self.hosted.map(Need::Hosted)]
    }
}

/// What a record turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    /// A job to run.
    Job(JobSpec),
    /// A job that was cancelled before it was read: it ends as cancelled without being started.
    Cancelled(JobSpec),
    /// Not a job: it is reported and dead-lettered without an attempt when its key's turn comes.
    Reject {
        /// A hash of the ordering key, as in [`JobSpec::key`].
        key: Option<u64>,
    },
    /// A job in the delayed topic: it is relayed at this time, and not run.
    Relay(Timestamp),
    /// A record that is known to be settled and about which nothing is left to say: it is skipped.
    Settled,
    /// A job whose end this worker has written, but not committed. It is not run, and its end is
    /// written again: another worker may have had it meanwhile, reported it as running, and died.
    Ended,
}

/// How an attempt ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Attempt {
    /// With a result.
    Succeeded,
    /// With a failure of this class, and perhaps a delay before the next attempt that the server
    /// asked for.
    Failed(FailureClass, Option<Duration>),
    /// The call was turned away because this is away. No attempt is spent. The server may have
    /// asked for a delay.
    Held(Need, Option<Duration>),
    /// Calls of the job have failed, which spends an attempt, and others were turned away because
    /// `need` is away. The job is tried again after its own delay; it neither waits for `need` nor
    /// asks for it as a scout, which would repeat the failed calls.
    FailedBeside {
        /// What is away.
        need: Need,
        /// The delay that the server asked for before anybody asks for `need` again.
        need_wish: Option<Duration>,
        /// The delay that the server asked for before the job's next attempt.
        wish: Option<Duration>,
    },
    /// The call was not made, because contact with the group was lost before. No attempt is spent,
    /// and the job starts again when it may.
    NotMade,
    /// The shell did not begin the attempt, because a pause with this number covers the job. No
    /// attempt is spent, and nothing is known about any server. The job waits for
    /// [`Input::Resumed`].
    Paused(u64),
}

/// How a record ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Terminal {
    /// The tool has returned a result.
    Succeeded,
    /// No attempt is left, or another one could not help.
    Failed,
    /// The record is not a job.
    Rejected,
    /// The job's deadline has passed.
    Expired,
    /// The job was cancelled before it had succeeded.
    Cancelled,
    /// The job has to wait until this time, which is too long for memory: it goes to the delayed
    /// topic.
    Deferred(Timestamp),
    /// The job was relayed from the delayed topic.
    Relayed,
    /// The job had ended before its record was read again ([`Admission::Ended`]); that end is
    /// written again.
    Again,
}

impl Terminal {
    /// Whether this is the job's own end, so that the job does not go on as another record.
    #[must_use]
    pub fn is_final(self) -> bool {
        !matches!(self, Self::Deferred(_) | Self::Relayed)
    }
}

/// What has happened outside.
#[derive(Debug, Clone, PartialEq)]
pub enum Input<'a> {
    /// The group has assigned a partition to us, or its log has become another one. See
    /// [`start`](fleet_group::log::start).
    Assigned {
        /// The partition.
        partition: Partition,
        /// A number that no earlier assignment had.
        generation: u64,
        /// The log that commits of this partition name.
        log: LogName,
        /// What is known about the log, starting at the first offset to read; `None` if it is read
        /// from its beginning.
        progress: Option<Progress>,
    },
    /// A record was read. Records of a partition arrive in ascending order of their offsets; a
    /// repeated one is ignored.
    Record {
        /// The record's partition.
        partition: Partition,
        /// The record's offset.
        offset: i64,
        /// The bytes that the record occupies in memory.
        bytes: usize,
        /// What the record turned out to be.
        admission: Admission,
    },
    /// A job now occupies this many bytes, its record included.
    Holds(Token, usize),
    /// Everything in a partition's log below this offset has been delivered, as far as anything is
    /// there. The log may end in transaction markers, or in offsets whose records were compacted or
    /// have expired.
    End(Partition, i64),
    /// The attempt that [`Command::Start`] began has ended.
    Finished(Token, Attempt),
    /// The broker has acknowledged what [`Command::Settle`] asked for.
    Written(Token),
    /// What [`Command::Settle`] asked for could not be written. The engine will ask again.
    WriteFailed(Token),
    /// The delayed topic can't take the job, now or ever. The job waits here.
    NotDeferred(Token),
    /// The commit that [`Command::Commit`] asked for has ended.
    Committed {
        /// The committed partition.
        partition: Partition,
        /// The generation in the command.
        generation: u64,
        /// Whether the broker has accepted the commit.
        ok: bool,
    },
    /// The job is not wanted any more. A running attempt is aborted; its outcome tells whether that
    /// was in time.
    Cancel(Token),
    /// The probe that [`Command::Probe`] asked for has ended; `true` if a server has answered.
    Probed(bool),
    /// The group wants these partitions back: nothing more of theirs is started.
    Draining(&'a [Partition]),
    /// These partitions were lost without notice: nothing is committed or reported for them any
    /// more, and everything of theirs is dropped.
    Lost(&'a [Partition]),
    /// The pause with this number has ended: the jobs that wait for its end may start, unless the
    /// shell answers again that they are [paused](Attempt::Paused).
    Resumed(u64),
    /// Contact with the group was lost and is back, and commands were not carried out meanwhile.
    /// Starts that have not been polled are decided again.
    ContactRegained,
    /// Nothing has happened but that time has passed.
    Tick,
}

/// What the shell has to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Command {
    /// Begin this attempt (counted from 1), and answer with [`Input::Finished`].
    Start(Token, u32),
    /// Write the terminal record, and the dead letter if there is one (or what else the end calls
    /// for), and answer with [`Input::Written`], [`Input::WriteFailed`] or [`Input::NotDeferred`].
    /// The number is the attempts spent.
    Settle(Token, Terminal, u32),
    /// Cancel the call that is under way. It still answers with [`Input::Finished`].
    Abort(Token),
    /// Publish that the job will be tried again: the attempts spent, and the time of the next one.
    Retrying(Token, u32, Timestamp),
    /// The record is settled or no longer ours: stop its call, and drop what is held for it.
    Forget(Token),
    /// Commit this offset and metadata without waiting, and answer with [`Input::Committed`].
    Commit(FinalCommit),
    /// Stop fetching the partition, if its assignment still has this generation.
    Pause(Partition, u64),
    /// Fetch the partition again, if its assignment still has this generation.
    Resume(Partition, u64),
    /// The log begins anew below the offset from which reading was to start: records were lost.
    /// Reading goes on from there.
    LogReset(Partition),
    /// Find out whether a server answers, and report it with [`Input::Probed`].
    Probe,
    /// A promise is broken. Count and log it; the engine goes on.
    Violation(Invariant, Token),
}

/// In which order jobs may start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Ordering {
    /// Jobs with the same record key run one after the other; jobs without a key in any order.
    #[default]
    Key,
    /// Jobs of one partition run one after the other.
    Partition,
    /// Jobs run in any order.
    Unordered,
}

/// How the engine works. All bounds are per worker.
#[derive(Debug, Clone)]
pub struct Config {
    /// The order in which jobs start.
    pub ordering: Ordering,
    /// The most attempts under way at once; at least 1.
    pub max_in_flight: usize,
    /// The most unsettled records in memory. One half of it is shared out equally among the
    /// partitions, and the other half is for whatever partition needs more. Once that is taken,
    /// each partition pauses at its share, until half of everything is free.
    pub max_buffered: usize,
    /// The same for the bytes that unsettled records occupy.
    pub max_buffered_bytes: usize,
    /// The least time between two commits of a partition.
    pub commit_interval: Duration,
    /// The least time between a partition's last commit and the one that makes a failed attempt
    /// durable.
    pub urgent_commit_interval: Duration,
    /// The longest time that a job parks in memory. A job that has to wait longer is deferred to
    /// the delayed topic, unless it waits for its next attempt and others of its key would have to
    /// wait, too. `None` if there is no such topic.
    pub max_park: Option<Duration>,
    /// The delay between attempts.
    pub retry: Backoff,
    /// The delay between probes while the server is unavailable.
    pub probe: Backoff,
    /// The delay before a terminal record that could not be written is written again.
    pub rewrite: Backoff,
    /// The seed of all jitter.
    pub seed: u64,
}

impl Config {
    /// The most that may be held in memory.
    pub(crate) fn most_buffered(&self) -> Load {
        Load { records: self.max_buffered, bytes: self.max_buffered_bytes }
    }
}

impl Default for Config {
    fn default() -> Self {
        let ms = Duration::from_millis;
        Self {
            ordering: Ordering::Key,
            max_in_flight: 16,
            max_buffered: 25_000,
            max_buffered_bytes: 64 << 20,
            commit_interval: ms(1_000),
            urgent_commit_interval: ms(50),
            max_park: None,
            retry: Backoff { base: ms(500), max: ms(60_000) },
            probe: Backoff { base: ms(500), max: ms(15_000) },
            rewrite: Backoff { base: ms(200), max: ms(10_000) },
            seed: 0,
        }
    }
}
