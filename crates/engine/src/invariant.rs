//! The promises that the engine checks at run time, and how often it has done so.

use std::fmt;

/// A promise that the engine checks while it works. `docs/guarantees.md` says what each one means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Invariant {
    /// I1: a committed offset never covers a job that is not settled, and never goes back.
    NoCommitPastGap,
    /// I2: a job is settled only after its end was handed over for writing.
    SettledMeansWritten,
    /// I5: a job starts only when no earlier job of its key is open.
    OrderOfKeys,
    /// I6: a job starts only when its earlier attempts are durable, and never more often than it
    /// may.
    AttemptsAreDurable,
    /// What is known beyond the committed offset fits into the commit's metadata.
    MetadataFits,
}

impl Invariant {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::NoCommitPastGap,
        Self::SettledMeansWritten,
        Self::OrderOfKeys,
        Self::AttemptsAreDurable,
        Self::MetadataFits,
    ];

    /// Its name in metrics, logs and documentation.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::NoCommitPastGap => "I1",
            Self::SettledMeansWritten => "I2",
            Self::OrderOfKeys => "I5",
            Self::AttemptsAreDurable => "I6",
            Self::MetadataFits => "metadata-overflow",
        }
    }
}

impl fmt::Display for Invariant {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(self.name())
    }
}

/// How often each invariant was checked.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Checks([u64; Invariant::ALL.len()]);

impl Checks {
    pub(crate) fn count(&mut self, invariant: Invariant) {
        self.0[invariant as usize] += 1;
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (Invariant, u64)> {
        Invariant::ALL.into_iter().zip(self.0)
    }
}
