//! Requests to workers about jobs that any of them may have. So far there is one: to cancel a job.
//!
//! The requests are records in the control topic, keyed by job id. Every worker reads the whole
//! topic from its start, because nobody knows which worker has a job or will have it.

use std::{
    collections::{BTreeSet, HashMap},
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::{envelope::MAX_ID_BYTES, time::Timestamp};

/// How long a cancellation counts as one of the same job if nothing is known about the job. People
/// and programs repeat a request whose answer is that the job is unknown.
const RECENT: Duration = Duration::from_secs(10 * 60);
/// The longest reason that is kept, in bytes.
const MAX_REASON_BYTES: usize = 1024;

/// The value of a record in the control topic.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(title = "mcp-fleet control record")]
pub struct Control {
    /// The id of the job, which is also the record's key.
    #[serde(rename = "jobID")]
    #[schemars(length(min = 1, max = 256))]
    pub job_id: String,
    /// What to do with the job.
    pub action: Action,
    /// The request concerns records of this id that were written by this time. A record written
    /// later is another job with the same id.
    pub until: Timestamp,
    /// The time of the request.
    pub time: Timestamp,
    /// The reason, for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// What to do with a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum Action {
    /// The job must not start; if it is running, its call is cancelled.
    Cancel,
}

impl Control {
    /// Creates the cancellation of a job that was submitted at `submitted_at`, if that is known.
    pub fn cancel(
        job_id: impl Into<String>,
        submitted_at: Option<Timestamp>,
        now: Timestamp,
        reason: Option<&str>,
    ) -> Self {
        let reason =
            reason.map(|reason| reason[..reason.floor_char_boundary(MAX_REASON_BYTES)].to_owned());

        // The submitter's clock may be ahead of ours.
        let until = submitted_at.map_or(now, |at| at.max(now));

        Self { job_id: job_id.into(), action: Action::Cancel, until, time: now, reason }
    }

    /// Returns the request as the value of a record.
    pub fn to_bytes(&self) -> Vec<u8> {
        // A struct of plain fields always serializes.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// Reads the value of a record. Returns `None` if this version does not understand it.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let control: Self = serde_json::from_slice(bytes).ok()?;
        (1..=MAX_ID_BYTES).contains(&control.job_id.len()).then_some(control)
    }
}

/// The cancelled jobs. If there are more than `max`, the oldest cancellations are forgotten.
#[derive(Debug)]
pub struct Cancelled {
    max: usize,
    jobs: HashMap<String, Control>,
    by_time: BTreeSet<(Timestamp, String)>,
}

impl Cancelled {
    /// Creates an empty set with room for `max` jobs.
    pub fn new(max: usize) -> Self {
        Self { max, jobs: HashMap::new(), by_time: BTreeSet::new() }
    }

    /// Adds a record of the control topic. It replaces an earlier record with the same id, which may
    /// have been about another job.
    pub fn add(&mut self, control: Control) {
        let key = (control.time, control.job_id.clone());

        if let Some(before) = self.jobs.insert(control.job_id.clone(), control) {
            self.by_time.remove(&(before.time, before.job_id));
        }

        self.by_time.insert(key);

        while self.jobs.len() > self.max
            && let Some((_, oldest)) = self.by_time.pop_first()
        {
            self.jobs.remove(&oldest);
        }
    }

    /// Forgets cancellations that were requested before `time`.
    pub fn forget_before(&mut self, time: Timestamp) {
        while self.by_time.first().is_some_and(|(at, _)| *at < time)
            && let Some((_, oldest)) = self.by_time.pop_first()
        {
            self.jobs.remove(&oldest);
        }
    }

    /// Returns the cancellation of the job with this id whose record was written at `written`.
    pub fn get(&self, job_id: &str, written: Option<Timestamp>) -> Option<&Control> {
        self.jobs
            .get(job_id)
            .filter(|control| written.is_none_or(|written| written <= control.until))
    }

    /// Returns why the job with this id that was submitted at `submitted_at` was cancelled. If that
    /// time is unknown, the record may be about another job with the same id, so only a recent one
    /// counts.
    pub fn reason_for(
        &self,
        job_id: &str,
        submitted_at: Option<Timestamp>,
        now: Timestamp,
    ) -> Option<&str> {
        let control = self.get(job_id, submitted_at)?;
        let is_same_job = submitted_at.is_some() || now.since(control.time) <= RECENT;
        control.reason.as_deref().filter(|_| is_same_job)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_millis_clamped(ms)
    }

    #[test]
    fn a_later_job_with_the_same_id_is_another_job() {
        let mut cancelled = Cancelled::new(10);
        cancelled.add(Control::cancel("j", Some(at(50)), at(100), Some("not needed")));
        assert!(cancelled.get("j", Some(at(100))).is_some());
        assert!(cancelled.get("j", None).is_some());
        assert!(cancelled.get("j", Some(at(101))).is_none());
        assert!(cancelled.get("k", None).is_none());
    }

    #[test]
    fn the_reason_is_that_of_the_newest_record() {
        let mut cancelled = Cancelled::new(10);
        for (time, reason) in [(1, Some("first")), (2, None), (3, Some("other"))] {
            cancelled.add(Control::cancel("j", None, at(time), reason));
            assert_eq!(cancelled.get("j", None).unwrap().reason.as_deref(), reason);
        }
    }

    #[test]
    fn a_reason_is_kept_for_the_same_job_only() {
        let mut cancelled = Cancelled::new(10);
        cancelled.add(Control::cancel("j", Some(at(50)), at(100), Some("not needed")));
        let later = at(100).plus(RECENT).plus(Duration::from_millis(1));
        assert_eq!(cancelled.reason_for("j", Some(at(50)), later), Some("not needed"));
        assert_eq!(cancelled.reason_for("j", Some(at(101)), later), None);
        assert_eq!(cancelled.reason_for("j", None, later), None);
    }

    #[test]
    fn a_repeated_request_for_an_unknown_job_keeps_the_reason() {
        let mut cancelled = Cancelled::new(10);
        cancelled.add(Control::cancel("j", None, at(100), Some("not needed")));
        assert_eq!(cancelled.reason_for("j", None, at(100).plus(RECENT)), Some("not needed"));
        assert_eq!(cancelled.reason_for("k", None, at(100)), None);
    }

    #[test]
    fn the_clock_of_a_submitter_may_be_ahead() {
        let mut cancelled = Cancelled::new(10);
        cancelled.add(Control::cancel("j", Some(at(500)), at(100), None));
        assert!(cancelled.get("j", Some(at(500))).is_some());
    }

    #[test]
    fn memory_is_bounded_and_the_oldest_are_forgotten_first() {
        let mut cancelled = Cancelled::new(2);
        for (id, time) in [("a", 3), ("b", 1), ("c", 2), ("c", 4)] {
            cancelled.add(Control::cancel(id, None, at(time), None));
        }
        assert!(cancelled.get("b", None).is_none());
        assert!(cancelled.get("a", None).is_some() && cancelled.get("c", None).is_some());

        cancelled.forget_before(at(4));
        assert!(cancelled.get("a", None).is_none() && cancelled.get("c", None).is_some());
        assert_eq!((cancelled.jobs.len(), cancelled.by_time.len()), (1, 1));
    }

    #[test]
    fn unknown_or_invalid_records_are_ignored() {
        let whole = Control::cancel("j", None, at(1), Some("why"));
        assert_eq!(Control::from_bytes(&whole.to_bytes()), Some(whole));
        for bad in [&b"{}"[..], b"", br#"{"jobID":"","action":"cancel","until":1,"time":1}"#] {
            assert_eq!(Control::from_bytes(bad), None);
        }

        let unknown = br#"{"jobID":"j","action":"dance","until":1,"time":1}"#;
        assert_eq!(Control::from_bytes(unknown), None);
    }
}
