//! Deliberate faults, each a mistake that a consumer somewhere has shipped. The simulation shows
//! that it finds every one of them.

/// A mistake that is made on purpose: by a mutant of the engine (`engine/mutants.rs`), by the
/// simulated shell around it, or by the simulated reader of events.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// A commit covers everything that was delivered, even what is still open (I1).
    CommitPastGap,
    /// A job counts as settled when its end is handed over for writing, before that is acknowledged
    /// (I2).
    SettleBeforeWritten,
    /// A failed write counts as acknowledged (I2).
    WriteFailureIgnored,
    /// The attempts of a partition's last owner are forgotten (I6).
    AttemptsForgotten,
    /// A retry does not wait until the attempt before it is committed (I6).
    RetryBeforeDurable,
    /// An answer from an earlier assignment of the partition counts for the current one (fence).
    NoFence,
    /// A commit from before a revoke is sent after it and replaces the last one (I4).
    CommitAfterRevoke,
    /// What the last owner knew about offsets that have not been read again is not passed on to the
    /// next owner (I4).
    KnowledgeNotHandedOn,
    /// The next job of a key starts when the one before it has finished, before that end is written
    /// (I5).
    NextBeforeWritten,
    /// Keys are ignored (I5).
    KeysIgnored,
    /// An outage spends attempts (I7).
    OutageSpendsAttempts,
    /// No probe asks whether the server is back (I3).
    NeverProbes,
    /// A job that waits for its backoff keeps its slot for ever (I3).
    SlotLeak,
    /// A paused partition stays paused (I3).
    NeverResumes,
    /// A record that is not a job is dropped silently (I3).
    RejectsDropped,
    /// Deadlines are ignored.
    DeadlineIgnored,
    /// Attempts that were spent before a job was deferred are forgotten (I6).
    DeferredAttemptsForgotten,
    /// A record of the delayed topic counts as relayed without having been written (I3).
    RelaysDropped,
    /// The end of a job whose record is read again is not written again.
    EndsNotRepeated,
    /// Limits are ignored.
    LimitsIgnored,
    /// A job that has ended still counts against its limits (I3).
    LimitLeak,
    /// A cancelled job starts all the same.
    CancelIgnored,
    /// A start that was decided before a gap in contact is carried out after it, however much time
    /// has passed.
    StartsNotRecalled,
    /// After a gap in contact, one turn of the poll thread counts as contact.
    TurnLiftsGap,
    /// An offset that was committed for an earlier topic of the same name is believed (I3).
    LogIgnored,
    /// After a topic was recreated, reading goes on where it was (I3).
    OldFrontierKept,
    /// Records of a new log count as settled because the records at their offsets in the old log
    /// were (I3).
    SettledInAnyLog,
    /// A hosted server that is away spends attempts (I7).
    HoldSpendsAttempts,
    /// A hosted server that is away holds up the jobs of all others (I7).
    HoldBlocksOthers,
    /// A job that waits for a hosted server gives up its place in its key (I5).
    HoldForgetsOrder,
    /// No scout asks whether a hosted server is back (I3).
    NeverScouts,
    /// All jobs that need a hosted server which is away call it, before the time that it asked for.
    HoldIgnored,
    /// A job with a key goes to the delayed topic because of an outage, and loses its place (I5).
    HoldDefersKeys,
    /// The deadline of a job that waits for a hosted server is ignored.
    HoldIgnoresDeadline,
    /// A job with a deadline is relayed for an outage until after it.
    RelaysPastDeadline,
    /// An attempt that was not begun because its job is paused counts as spent.
    PauseSpendsAttempts,
    /// A paused job holds up all others, as if the server were unavailable.
    PauseBlocksOthers,
    /// The deadline of a paused job is ignored.
    PauseIgnoresDeadline,
    /// The jobs of a pause that ends are not started (I3).
    ResumedForgotten,
    /// The reader of events takes the newest end for a job's state, and not the first one.
    NewestEndStands,
    /// The reader of events takes the newest event for a job's state, even if that follows the
    /// job's end.
    NewestWordStands,
    /// An end that other events follow is not written again.
    EndsNotRestated,
    /// A record that ends without being run does so before earlier jobs of its key have ended (I5).
    EndsOutOfTurn,
    /// All jobs are of one tenant (I8).
    TenantsIgnored,
    /// The tenant with the most urgent job has its turn (I8).
    UrgentTenantFirst,
    /// A tenant that has its turn keeps it while it has a job to start (I8).
    TurnNeverEnds,
    /// A tenant that has jobs which are set aside for a limit keeps its turn meanwhile (I8).
    SetAsideKeepsTurn,
}

impl Fault {
    /// All faults, in the order of `regressions.txt`.
    pub(crate) const ALL: [Self; 47] = [
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
        Self::RelaysPastDeadline,
        Self::PauseSpendsAttempts,
        Self::PauseBlocksOthers,
        Self::PauseIgnoresDeadline,
        Self::ResumedForgotten,
        Self::NewestEndStands,
        Self::NewestWordStands,
        Self::EndsNotRestated,
        Self::EndsOutOfTurn,
        Self::TenantsIgnored,
        Self::UrgentTenantFirst,
        Self::TurnNeverEnds,
        Self::SetAsideKeepsTurn,
    ];
}
