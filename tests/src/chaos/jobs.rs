//! The jobs of a chaos run, and the end that each of them has to come to whatever happens.

use std::num::NonZeroUsize;

use fleet_job::event::{JobEvent, JobState};
use serde_json::json;

use super::Random;
use crate::topics::Outgoing;

/// How many keys there are.
const KEYS: usize = 200;
/// How much more often the first keys are used than the last ones; 1 would be Zipf's own law. A
/// key's jobs run one after the other, so the first key bounds how short a run can be.
const SKEW: f64 = 0.6;
/// Attempts of the jobs that fail for ever.
pub const HOPELESS_ATTEMPTS: u32 = 3;
/// Attempts of all others: more than they can need, even if servers are killed and cut off under
/// some of them, which costs one each time.
pub const MAX_ATTEMPTS: u32 = 20;
/// One in so many keys, and of the jobs without one, is for the hosted remote server; the others
/// are for the child.
const REMOTE: u64 = 3;

/// What a job is going to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// The tool succeeds after failing so many times.
    Succeeds {
        /// How many times.
        failures: u32,
    },
    /// The tool fails for ever.
    Hopeless,
    /// The tool fails and says that trying again can't help.
    Final,
    /// The record holds no job.
    Undecodable,
}

impl Plan {
    /// What is wrong with how the job has ended, if anything. `lost` attempts may have been spent
    /// on connections that were lost, which is what happens to calls that are under way while the
    /// server is killed.
    pub fn differs(self, end: &JobEvent, lost: u32) -> Option<String> {
        let (state, low, high) = match self {
            Self::Succeeds { failures } => (JobState::Succeeded, failures + 1, failures + 1 + lost),
            Self::Hopeless => (JobState::Failed, HOPELESS_ATTEMPTS, HOPELESS_ATTEMPTS),
            // The failure can have been committed by a worker that died before it had written the
            // end.
            Self::Final => (JobState::Failed, 1, 2 + lost),
            Self::Undecodable => (JobState::Failed, 0, 0),
        };
        // A lost connection in place of a planned failure is an attempt all the same, so `low`
        // holds in any case.
        let right = end.state == state && (low..=high).contains(&end.attempts);
        (!right).then(|| {
            let (was, attempts) = (end.state.as_str(), end.attempts);
            format!(
                "{}: {was} after {attempts} attempts; planned: {} after {low} to {high}; {:?}",
                end.job_id,
                state.as_str(),
                end.error
            )
        })
    }
}

/// All jobs of a run, made when they are needed.
#[derive(Clone, Debug)]
pub struct Jobs {
    random: Random,
    /// Cumulated weights of the keys.
    weights: Vec<f64>,
    next: usize,
}

impl Jobs {
    /// The jobs of a seed.
    pub fn new(seed: u64) -> Self {
        let weight = |key: usize| (key as f64 + 1.0).powf(-SKEW);
        let weights = (0..KEYS).scan(0.0, |sum, key| {
            *sum += weight(key);
            Some(*sum)
        });
        Self { random: Random::new(!seed), weights: weights.collect(), next: 0 }
    }

    /// The next jobs, as records and what is planned for them.
    pub fn take(&mut self, count: NonZeroUsize) -> Vec<(Outgoing, Plan)> {
        (0..count.get()).map(|_| self.job()).collect()
    }

    fn job(&mut self) -> (Outgoing, Plan) {
        let id = format!("c{}", self.next);
        self.next += 1;
        let key = (self.random.between(1, 100) > 15).then(|| self.key());
        // All jobs of a key are for one server, whose ledger then tells the order of their calls.
        let share = key.map_or_else(|| self.random.number(), |key| key as u64);
        let server = if share.is_multiple_of(REMOTE) { "remote" } else { "chaos" };
        let key = key.map(|key| format!("k{key}"));
        let (plan, slow) = match self.random.between(1, 1_000) {
            1..=20 => (Plan::Undecodable, false),
            21..=50 => (Plan::Final, false),
            51..=80 => (Plan::Hopeless, false),
            81..=140 => (Plan::Succeeds { failures: 1 }, false),
            141..=160 => (Plan::Succeeds { failures: 2 }, false),
            161..=165 => (Plan::Succeeds { failures: 0 }, true),
            _ => (Plan::Succeeds { failures: 0 }, false),
        };
        let ms = if slow { self.random.between(300, 1_500) } else { self.random.between(0, 20) };
        let failures = match plan {
            Plan::Succeeds { failures } => failures,
            _ => u32::MAX,
        };
        let value = if plan == Plan::Undecodable {
            // Random bytes that are no UTF-8, so that the dead letter has something to get wrong.
            [&[0xff][..], &self.random.number().to_le_bytes()].concat()
        } else {
            let attempts = if plan == Plan::Hopeless { HOPELESS_ATTEMPTS } else { MAX_ATTEMPTS };
            let arguments =
                json!({"ms": ms, "failures": failures, "final": plan == Plan::Final, "key": key});
            let job = json!({"jobID": id, "jobType": "tool-call", "maxAttempts": attempts,
                "payload": {"server": server, "tool": "work", "arguments": arguments}});
            job.to_string().into_bytes()
        };
        let record = Outgoing::value(value);
        (if let Some(key) = key { record.key(key) } else { record }, plan)
    }

    fn key(&mut self) -> usize {
        let all = self.weights.last().copied().unwrap_or_default();
        let at = all * (self.random.number() >> 11) as f64 / (1_u64 << 53) as f64;
        self.weights.partition_point(|weight| *weight <= at).min(KEYS - 1)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn there_is_something_of_everything_and_it_is_the_same_again() {
        let count = NonZeroUsize::new(5_000).expect("not zero");
        let jobs = Jobs::new(7).take(count);
        assert_eq!(jobs, Jobs::new(7).take(count));
        assert_ne!(jobs, Jobs::new(8).take(count));
        let share = |holds: &dyn Fn(&(Outgoing, Plan)) -> bool| {
            jobs.iter().filter(|job| holds(job)).count() as f64 / jobs.len() as f64
        };
        for (plan, low, high) in [
            (Plan::Undecodable, 0.01, 0.03),
            (Plan::Final, 0.02, 0.04),
            (Plan::Hopeless, 0.02, 0.04),
            (Plan::Succeeds { failures: 1 }, 0.04, 0.08),
            (Plan::Succeeds { failures: 0 }, 0.8, 0.9),
        ] {
            let found = share(&|(_, other)| *other == plan);
            assert!((low..high).contains(&found), "{plan:?}: {found}");
        }
        let remote = share(&|(record, _)| {
            let value = String::from_utf8_lossy(record.value.as_deref().unwrap_or_default());
            value.contains("\"remote\"")
        });
        assert!((0.25..0.42).contains(&remote), "{remote}");
        let of_key =
            |key: &str| share(&|(record, _)| record.key.as_deref() == Some(key.as_bytes()));
        assert!((0.03..0.08).contains(&of_key("k0")), "{}", of_key("k0"));
        assert!(of_key("k0") > 4.0 * of_key("k199"));
        let without = share(&|(record, _)| record.key.is_none());
        assert!((0.1..0.2).contains(&without), "{without}");
    }
}
