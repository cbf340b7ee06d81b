//! The jobs of a chaos run, with their expected ends, which don't depend on the disturbances.

use std::num::NonZeroUsize;

use fleet_job::event::{JobEvent, JobState};
use serde_json::json;

use super::Random;
use crate::topics::Outgoing;

/// The number of keys.
const KEYS: usize = 200;
/// The skew of the keys; 1 would be Zipf's law. The jobs of a key run one after the other, so the
/// first key is a lower bound for the duration of a run.
const SKEW: f64 = 0.6;
/// The attempts of jobs that always fail.
pub const HOPELESS_ATTEMPTS: u32 = 3;
/// The attempts of all other jobs: enough for the planned failures and for three calls that are lost
/// because a server is killed or cut off. A job that spends attempts on an outage becomes a dead
/// letter.
pub const MAX_ATTEMPTS: u32 = 6;
/// One in this many keys, and one in this many jobs without a key, is for the hosted remote server;
/// the others are for the child.
const REMOTE: u64 = 3;
/// The remote server's name in jobs.
const REMOTE_NAME: &str = "remote";

/// Whether a record's job is for the hosted remote server.
pub fn is_for_remote(record: &Outgoing) -> bool {
    let server = format!("\"server\":\"{REMOTE_NAME}\"");
    let value = record.value.as_deref().unwrap_or_default();
    value.windows(server.len()).any(|window| window == server.as_bytes())
}

/// The planned behaviour of a job.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// The tool succeeds after a number of failures.
    Succeeds {
        /// The number of failures.
        failures: u32,
    },
    /// The tool always fails.
    Hopeless,
    /// The tool fails, and marks the failure as final.
    Final,
    /// The record is not a job.
    Undecodable,
}

impl Plan {
    /// How the job's end differs from the plan, if it does. Up to `lost` calls may have been lost
    /// with a server that was killed or cut off, each of which counts as an attempt.
    pub fn differs(self, end: &JobEvent, lost: u32) -> Option<String> {
        let (state, low, high) = match self {
            Self::Succeeds { failures } => (JobState::Succeeded, failures + 1, failures + 1 + lost),
            Self::Hopeless => (JobState::Failed, HOPELESS_ATTEMPTS, HOPELESS_ATTEMPTS),
            // A worker may have committed the failure and died before it wrote the end.
            Self::Final => (JobState::Failed, 1, 2 + lost),
            Self::Undecodable => (JobState::Failed, 0, 0),
        };

        // A lost connection in place of a planned failure also counts as an attempt, so `low`
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

/// All jobs of a run, generated on demand.
#[derive(Clone, Debug)]
pub struct Jobs {
    random: Random,
    /// The cumulative weights of the keys.
    weights: Vec<f64>,
    next: usize,
}

impl Jobs {
    /// Creates the jobs of a seed.
    pub fn new(seed: u64) -> Self {
        let weight = |key: usize| (key as f64 + 1.0).powf(-SKEW);
        let weights = (0..KEYS).scan(0.0, |sum, key| {
            *sum += weight(key);
            Some(*sum)
        });
        Self { random: Random::new(!seed), weights: weights.collect(), next: 0 }
    }

    /// The next jobs: their records and plans.
    pub fn take(&mut self, count: NonZeroUsize) -> Vec<(Outgoing, Plan)> {
        (0..count.get()).map(|_| self.job()).collect()
    }

    fn job(&mut self) -> (Outgoing, Plan) {
        let id = format!("c{}", self.next);
        self.next += 1;
        let key = (self.random.between(1, 100) > 15).then(|| self.key());

        // All jobs of a key are for one server, whose ledger then shows the order of their calls.
        let share = key.map_or_else(|| self.random.number(), |key| key as u64);
        let server = if share.is_multiple_of(REMOTE) { REMOTE_NAME } else { "chaos" };
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
            // Use random bytes that are not UTF-8, so that a wrong dead letter shows.
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
    fn all_kinds_of_jobs_occur_and_a_seed_is_reproducible() {
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
