//! The outcomes of a job's calls, as far as the job's events can carry them.
//!
//! A job can have ten thousand calls, and each answer can have megabytes. What is too large for an
//! event is only counted: it could not be written in the end, so it is not held until then.

use std::collections::{BTreeMap, BTreeSet};

use fleet_job::{
    event::ResultOmitted,
    outcome::{Failure, FailureClass, JobError},
    size::{clipped, json_bytes},
};
use serde_json::Value;

/// How many bytes of an error's message are kept once a job's errors are too large for an event.
const SHORT_MESSAGE: usize = 256;

/// A result, or only its size if it is too large to be written.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum KeptResult {
    Whole {
        result: Value,
        /// Its size as JSON.
        bytes: u64,
    },
    Omitted(ResultOmitted),
}

impl KeptResult {
    /// Keeps a result that fits into `limit_bytes`, or its size.
    pub(crate) fn within(result: Value, limit_bytes: u64) -> Self {
        match json_bytes(&result) {
            bytes if bytes <= limit_bytes => Self::Whole { result, bytes },
            bytes => Self::Omitted(ResultOmitted { bytes, limit_bytes }),
        }
    }

    /// How many bytes are held.
    pub(crate) fn held_bytes(&self) -> u64 {
        match self {
            Self::Whole { bytes, .. } => *bytes,
            Self::Omitted(_) => 0,
        }
    }
}

/// The results of the calls that have succeeded in any attempt, by index.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Results {
    stored: Stored,
    /// The size of all results, whether held or not.
    bytes: u64,
}

#[derive(Debug, Clone, PartialEq)]
enum Stored {
    All(BTreeMap<usize, Value>),
    /// Together they are too large. Only the indices of the finished calls are held.
    Counted(BTreeSet<usize>),
}

impl Default for Stored {
    fn default() -> Self {
        Self::All(BTreeMap::new())
    }
}

impl Results {
    /// Adds the result of a call. If all results together exceed `limit` bytes, none is held.
    pub(crate) fn insert(&mut self, index: usize, result: Value, limit: u64) {
        self.bytes = self.bytes.saturating_add(json_bytes(&result));
        match &mut self.stored {
            Stored::All(results) if self.bytes <= limit => _ = results.insert(index, result),
            Stored::All(results) => {
                let done = results.keys().copied().chain([index]).collect();
                self.stored = Stored::Counted(done);
            }
            Stored::Counted(done) => _ = done.insert(index),
        }
    }

    pub(crate) fn contains(&self, index: usize) -> bool {
        match &self.stored {
            Stored::All(results) => results.contains_key(&index),
            Stored::Counted(done) => done.contains(&index),
        }
    }

    pub(crate) fn len(&self) -> usize {
        match &self.stored {
            Stored::All(results) => results.len(),
            Stored::Counted(done) => done.len(),
        }
    }

    /// The result of a call, if it is held.
    pub(crate) fn get(&self, index: usize) -> Option<&Value> {
        match &self.stored {
            Stored::All(results) => results.get(&index),
            Stored::Counted(_) => None,
        }
    }

    /// Takes out the result of a call, if it is held.
    pub(crate) fn take(&mut self, index: usize) -> Option<Value> {
        match &mut self.stored {
            Stored::All(results) => results.remove(&index),
            Stored::Counted(_) => None,
        }
    }

    /// The size of all results, if they are too large to be held.
    pub(crate) fn omitted_bytes(&self) -> Option<u64> {
        matches!(self.stored, Stored::Counted(_)).then_some(self.bytes)
    }

    /// How many bytes are held.
    pub(crate) fn held_bytes(&self) -> u64 {
        match self.stored {
            Stored::All(_) => self.bytes,
            Stored::Counted(_) => 0,
        }
    }
}

#[cfg(test)]
impl<const N: usize> From<[(usize, Value); N]> for Results {
    fn from(results: [(usize, Value); N]) -> Self {
        let mut all = Self::default();
        results.into_iter().for_each(|(index, result)| all.insert(index, result, u64::MAX));
        all
    }
}

/// The calls of a job that need not be made again, and what became of them.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct FinishedCalls {
    /// The calls that have succeeded.
    pub(crate) results: Results,
    /// The calls that have failed for good.
    pub(crate) failures: Failures,
}

impl FinishedCalls {
    pub(crate) fn contains(&self, index: usize) -> bool {
        self.results.contains(index) || self.failures.contains(index)
    }

    /// How many bytes are held.
    pub(crate) fn held_bytes(&self) -> u64 {
        self.results.held_bytes() + self.failures.held_bytes()
    }
}

/// The calls that have failed, by index.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Failures {
    by_call: BTreeMap<usize, Failure>,
    detail: Detail,
    /// The size of their errors.
    bytes: u64,
}

/// How much of each error is held.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum Detail {
    #[default]
    Whole,
    WithoutData,
    ShortMessage,
}

impl Detail {
    fn reduced(self) -> Option<Self> {
        match self {
            Self::Whole => Some(Self::WithoutData),
            Self::WithoutData => Some(Self::ShortMessage),
            Self::ShortMessage => None,
        }
    }

    fn apply(self, error: &mut JobError) {
        if self != Self::Whole {
            error.data = None;
        }
        if self == Self::ShortMessage {
            error.message = clipped(&error.message, SHORT_MESSAGE).into_owned();
        }
    }
}

impl Failures {
    /// Adds a failed call. If all errors together exceed `limit` bytes, they lose their data, and
    /// then all but the beginning of their messages.
    pub(crate) fn insert(&mut self, index: usize, mut failure: Failure, limit: u64) {
        self.detail.apply(&mut failure.error);
        self.bytes = self.bytes.saturating_add(json_bytes(&failure.error));
        self.by_call.insert(index, failure);

        while self.bytes > limit
            && let Some(less) = self.detail.reduced()
        {
            self.detail = less;
            self.by_call.values_mut().for_each(|failure| less.apply(&mut failure.error));
            self.bytes = self.by_call.values().map(|failure| json_bytes(&failure.error)).sum();
        }
    }

    pub(crate) fn contains(&self, index: usize) -> bool {
        self.by_call.contains_key(&index)
    }

    pub(crate) fn get(&self, index: usize) -> Option<&Failure> {
        self.by_call.get(&index)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = (usize, &Failure)> {
        self.by_call.iter().map(|(index, failure)| (*index, failure))
    }

    /// Keeps only the calls that have failed for good.
    pub(crate) fn retain_permanent(&mut self) {
        self.by_call.retain(|_, failure| failure.class == FailureClass::Permanent);
        self.bytes = self.by_call.values().map(|failure| json_bytes(&failure.error)).sum();
    }

    /// Whether errors have lost data.
    pub(crate) fn is_clipped(&self) -> bool {
        self.detail != Detail::Whole
    }

    /// How many bytes are held.
    pub(crate) fn held_bytes(&self) -> u64 {
        self.bytes
    }
}

#[cfg(test)]
impl<const N: usize> From<[(usize, Failure); N]> for Failures {
    fn from(failures: [(usize, Failure); N]) -> Self {
        let mut all = Self::default();
        failures.into_iter().for_each(|(index, failure)| all.insert(index, failure, u64::MAX));
        all
    }
}

#[cfg(test)]
mod tests {
    use fleet_job::outcome::ErrorKind;
    use serde_json::json;

    use super::*;

    #[test]
    fn results_that_can_not_be_written_are_not_held() {
        let mut results = Results::default();
        results.insert(0, json!("x".repeat(600)), 1000);
        assert_eq!((results.held_bytes(), results.omitted_bytes()), (602, None));

        for index in 1..1000 {
            results.insert(index, json!("x".repeat(600)), 1000);
        }
        assert_eq!((results.held_bytes(), results.omitted_bytes()), (0, Some(602_000)));
        assert_eq!((results.len(), results.contains(999), results.get(0)), (1000, true, None));
    }

    #[test]
    fn errors_that_can_not_be_written_are_cut() {
        let failure = |message: usize, data: usize| {
            let error = JobError::new(ErrorKind::Tool, "m".repeat(message))
                .with_data(json!("d".repeat(data)));
            Failure::retry(error)
        };

        let mut failures = Failures::default();
        failures.insert(0, failure(100, 100), 4000);
        assert!(failures.get(0).unwrap().error.data.is_some() && !failures.is_clipped());

        failures.insert(1, failure(100, 1 << 20), 4000);
        failures.insert(2, failure(100, 1 << 20), 4000);
        assert!(failures.iter().all(|(_, failure)| failure.error.data.is_none()));
        assert_eq!(failures.get(2).unwrap().error.message.len(), 100);

        for index in 3..20 {
            failures.insert(index, failure(1 << 20, 0), 4000);
        }
        assert!(failures.held_bytes() < 20 * 400, "{}", failures.held_bytes());
    }
}
