//! Decides which replica submits a job that several replicas may submit at the same time.
//!
//! The claims topic has one partition, so all replicas see claims in the same order: the first
//! claim of a job id holds for [`CLAIM_LIFETIME`], and later claims lose in the meantime. The
//! winner writes the job within [`WRITE_LIMIT`] or not at all. For the rest of its lifetime a claim
//! covers records that the producer may still be delivering, so that they can't meet those of the
//! next winner.

use std::{
    collections::{HashMap, HashSet},
    time::Duration,
};

use fleet_job::{record::RawRecord, time::Timestamp};
use fleet_kafka::producer::Outgoing;
use schemars::{JsonSchema, Schema, schema_for};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::{Inner, Jobs, JobsError};

/// How long the winner of a claim may take until the last record is passed to the producer.
pub(super) const WRITE_LIMIT: Duration = Duration::from_secs(10);
/// How long a claim holds: the write limit, the producer's delivery timeout for the last record (at
/// most 45 s by default), and a margin for clock differences.
pub(super) const CLAIM_LIFETIME: Duration = Duration::from_secs(75);
/// How long to wait until the outcome of a claim has been read from the topic.
const VERDICT_TIMEOUT: Duration = Duration::from_secs(5);
/// After this many claims, expired ones are removed.
const SWEEP_EVERY: usize = 1_000;

/// The value of a record in the claims topic. The record's key is the job's id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(title = "mcp-fleet claim")]
struct ClaimRecord {
    /// A random name that tells the claim from others.
    mark: String,
    /// When the claim was made.
    time: Timestamp,
}

/// Returns the schema of a record's value.
pub(crate) fn claim_schema() -> Schema {
    schema_for!(ClaimRecord)
}

/// The outcome of claiming several jobs together.
#[derive(Debug)]
pub(crate) struct Claim {
    /// The ids of jobs that only the holder of this claim may submit now.
    pub(crate) won: HashSet<String>,
    /// The ids of jobs that another request submits.
    pub(crate) lost: HashSet<String>,
    made: std::time::Instant,
}

impl Claim {
    /// Checks that there is still time to write.
    pub(super) fn check_age(&self) -> Result<(), JobsError> {
        if self.made.elapsed() < WRITE_LIMIT {
            return Ok(());
        }
        Err(JobsError::NotReady(
            "submitting took too long, so nothing was submitted; try again in a minute".to_owned(),
        ))
    }
}

/// The claims that hold, and the requests that wait for the outcomes of theirs.
#[derive(Debug, Default)]
pub(super) struct Claims {
    /// When the claim that holds was made, by job id.
    holds: HashMap<String, Timestamp>,
    /// The number of claims that were read.
    seen: usize,
    /// Whom to tell the outcome, by job id and mark.
    waiting: HashMap<(String, String), oneshot::Sender<bool>>,
}

impl Claims {
    /// Takes a record of the claims topic in. Anybody may write to the topic, so an unreadable
    /// record is ignored.
    pub(super) fn take_record(&mut self, record: RawRecord) {
        let job_id = record.key.and_then(|key| String::from_utf8(key).ok());
        let claim =
            record.value.and_then(|value| serde_json::from_slice::<ClaimRecord>(&value).ok());
        if let (Some(job_id), Some(claim)) = (job_id, claim) {
            self.decide_claim(job_id, claim);
        }
    }

    fn decide_claim(&mut self, job_id: String, claim: ClaimRecord) {
        let before = self.holds.get(&job_id);
        let wins = before.is_none_or(|before| claim.time > before.plus(CLAIM_LIFETIME));
        if wins {
            self.holds.insert(job_id.clone(), claim.time);
        }

        self.seen += 1;
        if self.seen.is_multiple_of(SWEEP_EVERY) {
            self.holds.retain(|_, time| claim.time <= time.plus(CLAIM_LIFETIME));
            self.waiting.retain(|_, waiting| !waiting.is_closed());
        }

        if let Some(waiting) = self.waiting.remove(&(job_id, claim.mark)) {
            // A request that no longer waits has written nothing.
            _ = waiting.send(wins);
        }
    }

    fn await_verdict(&mut self, job_id: &str, mark: &str) -> oneshot::Receiver<bool> {
        let (sender, receiver) = oneshot::channel();
        self.waiting.insert((job_id.to_owned(), mark.to_owned()), sender);
        receiver
    }
}

impl Jobs {
    /// Claims jobs. Returns which of them the caller may submit.
    pub(super) async fn claim_jobs(&self, job_ids: &HashSet<String>) -> Result<Claim, JobsError> {
        let (made, mark) = (std::time::Instant::now(), uuid::Uuid::new_v4().to_string());
        let record = ClaimRecord { mark: mark.clone(), time: fleet_ops::clock::now() };
        // A string and a time always serialize.
        let value = serde_json::to_vec(&record).unwrap_or_default();

        let waiting: Vec<_> = {
            let mut claims = self.inner.claims();
            job_ids
                .iter()
                .map(|job_id| (job_id.clone(), claims.await_verdict(job_id, &mark)))
                .collect()
        };
        let records = job_ids.iter().map(|job_id| Outgoing {
            topic: self.inner.topics.claims.clone(),
            key: Some(job_id.clone().into_bytes()),
            value: Some(value.clone()),
            ..Outgoing::default()
        });
        self.write_all(records.collect()).await?;

        let mut claim = Claim { won: HashSet::new(), lost: HashSet::new(), made };
        let deadline = tokio::time::Instant::now() + VERDICT_TIMEOUT;
        for (job_id, verdict) in waiting {
            match tokio::time::timeout_at(deadline, verdict).await {
                Ok(Ok(true)) => claim.won.insert(job_id),
                Ok(Ok(false)) => claim.lost.insert(job_id),
                _ => {
                    let why = "could not tell in time whether another request submits this job; try again in a minute";
                    return Err(JobsError::NotReady(why.to_owned()));
                }
            };
        }
        Ok(claim)
    }
}

impl Inner {
    pub(super) fn claims(&self) -> parking_lot::MutexGuard<'_, Claims> {
        self.claims.lock()
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    fn verdict(claims: &mut Claims, job_id: &str, mark: u32, at_ms: i64) -> Option<bool> {
        let waiting = claims.await_verdict(job_id, &mark.to_string());
        claims.decide_claim(
            job_id.to_owned(),
            ClaimRecord { mark: mark.to_string(), time: Timestamp::from_millis_clamped(at_ms) },
        );
        waiting.now_or_never()?.ok()
    }

    #[test]
    fn the_first_claim_holds_for_its_lifetime() {
        let mut claims = Claims::default();
        let holds = i64::try_from(CLAIM_LIFETIME.as_millis()).unwrap();
        assert_eq!(verdict(&mut claims, "a", 1, 0), Some(true));
        assert_eq!(verdict(&mut claims, "b", 2, 0), Some(true));
        assert_eq!(verdict(&mut claims, "a", 3, holds), Some(false));
        assert_eq!(
            verdict(&mut claims, "a", 4, holds + 1),
            Some(true),
            "a lost claim does not extend the one that holds"
        );
        assert_eq!(verdict(&mut claims, "a", 5, 0), Some(false), "the replica's clock is behind");
    }

    #[test]
    fn every_replica_reaches_the_same_verdict() {
        let log = [("a", 1, 0), ("a", 2, 5), ("b", 3, 1), ("a", 4, 200_000), ("b", 5, 2)];
        let own = |mine: u32| {
            let mut claims = Claims::default();
            let mut waiting = claims.await_verdict(
                log.iter().find(|(_, mark, _)| *mark == mine).unwrap().0,
                &mine.to_string(),
            );
            for (job, mark, time) in log {
                claims.decide_claim(
                    job.to_owned(),
                    ClaimRecord {
                        mark: mark.to_string(),
                        time: Timestamp::from_millis_clamped(time),
                    },
                );
            }
            waiting.try_recv().unwrap()
        };
        assert_eq!([1, 2, 3, 4, 5].map(own), [true, false, true, true, false]);
    }

    #[test]
    fn expired_claims_are_removed() {
        let mut claims = Claims::default();
        for n in 0..3 * SWEEP_EVERY {
            let time = Timestamp::from_millis_clamped(n as i64 * 1_000);
            claims.decide_claim(format!("job-{n}"), ClaimRecord { mark: String::new(), time });
        }
        assert!(claims.holds.len() <= SWEEP_EVERY + 100, "{}", claims.holds.len());
    }
}
