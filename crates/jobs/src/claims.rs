//! Who may submit a job that several can submit at the same moment.
//!
//! Claims stand in a topic of one partition, so all replicas see them in one order: the first claim
//! of a job id holds for [`CLAIM_LIFETIME`], and claims that come meanwhile are lost. Who has won writes the
//! job within [`WRITE_LIMIT`] or not at all. The rest of the time that a claim holds is for what the
//! producer may still have under way, so that the next one can't meet it.

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

/// How long whoever has won may take until the last record is handed to the producer.
pub(super) const WRITE_LIMIT: Duration = Duration::from_secs(10);
/// How long a claim keeps others away: the bound, the producer's delivery timeout (at most 45 s by
/// default, for the last record), and room for clocks that differ.
const CLAIM_LIFETIME: Duration = Duration::from_secs(75);
/// How long the log may take to say who has won.
const VERDICT_TIMEOUT: Duration = Duration::from_secs(5);
/// After so many claims those that hold no more are forgotten.
const SWEEP_EVERY: usize = 1_000;

/// The value of a record in the topic of claims; the key is the job's id.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[schemars(title = "mcp-fleet claim")]
struct ClaimRecord {
    /// Whose claim it is: a random name.
    mark: String,
    /// When it was made.
    time: Timestamp,
}

/// What a record of the topic looks like.
pub(crate) fn claim_schema() -> Schema {
    schema_for!(ClaimRecord)
}

/// Jobs that were claimed together.
#[derive(Debug)]
pub(crate) struct Claim {
    /// Those that may be submitted now, and by nobody else.
    pub(crate) won: HashSet<String>,
    /// Those that somebody else submits.
    pub(crate) lost: HashSet<String>,
    made: std::time::Instant,
}

impl Claim {
    /// Whether there is still time to write.
    pub(super) fn check_age(&self) -> Result<(), JobsError> {
        if self.made.elapsed() < WRITE_LIMIT {
            return Ok(());
        }
        Err(JobsError::NotReady(
            "submitting took too long; nothing was submitted, try again in a minute".to_owned(),
        ))
    }
}

/// The claims that hold, and those who wait to hear whether they have won.
#[derive(Debug, Default)]
pub(super) struct Claims {
    holds: HashMap<String, Timestamp>,
    heard: usize,
    waiting: HashMap<(String, String), oneshot::Sender<bool>>,
}

impl Claims {
    /// Takes up a record of the topic. What anybody may have written there and can't be read is
    /// passed over.
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
        self.heard += 1;
        if self.heard.is_multiple_of(SWEEP_EVERY) {
            self.holds.retain(|_, time| claim.time <= time.plus(CLAIM_LIFETIME));
            self.waiting.retain(|_, waiting| !waiting.is_closed());
        }
        if let Some(waiting) = self.waiting.remove(&(job_id, claim.mark)) {
            // Whoever does not wait any more has written nothing.
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
    /// Claims jobs, and says which of them may be submitted.
    pub(super) async fn claim_jobs(&self, job_ids: &HashSet<String>) -> Result<Claim, JobsError> {
        let (made, mark) = (std::time::Instant::now(), uuid::Uuid::new_v4().to_string());
        let record = ClaimRecord { mark: mark.clone(), time: fleet_ops::clock::now() };
        // A struct of a text and a time can't fail to become JSON.
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
                    let why = "the log did not say in time whether this job is submitted elsewhere; try again in a minute";
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
    fn the_first_claim_holds_for_its_time() {
        let mut claims = Claims::default();
        let holds = i64::try_from(CLAIM_LIFETIME.as_millis()).unwrap();
        assert_eq!(verdict(&mut claims, "a", 1, 0), Some(true));
        assert_eq!(verdict(&mut claims, "b", 2, 0), Some(true));
        assert_eq!(verdict(&mut claims, "a", 3, holds), Some(false));
        assert_eq!(
            verdict(&mut claims, "a", 4, holds + 1),
            Some(true),
            "whoever lost does not prolong it"
        );
        assert_eq!(verdict(&mut claims, "a", 5, 0), Some(false), "a clock that is behind");
    }

    #[test]
    fn every_replica_comes_to_the_same_verdict() {
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
    fn what_holds_no_more_is_forgotten() {
        let mut claims = Claims::default();
        for n in 0..3 * SWEEP_EVERY {
            let time = Timestamp::from_millis_clamped(n as i64 * 1_000);
            claims.decide_claim(format!("job-{n}"), ClaimRecord { mark: String::new(), time });
        }
        assert!(claims.holds.len() <= SWEEP_EVERY + 100, "{}", claims.holds.len());
    }
}
