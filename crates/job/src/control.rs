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
    /// Whose jobs of this id the request is about; missing if it is about anybody's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scope: Option<Scope>,
}

/// Whose jobs a request is about. Before a worker has reported on a job, nobody knows whose job an
/// id will turn out to be: so a request says what its sender may cancel, and the worker that has the
/// job compares.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "ControlScope")]
pub struct Scope {
    /// The owners of the jobs.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub owners: Vec<String>,
    /// Whether jobs that belong to nobody are meant, too.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unowned: bool,
}

impl Scope {
    /// The scope of a request about a job that is known to belong to this owner, or to nobody.
    pub fn of_owner(owner: Option<&str>) -> Self {
        let owners: Vec<_> = owner.into_iter().map(str::to_owned).collect();
        Self { unowned: owners.is_empty(), owners }
    }

    /// Returns whether a job of this owner, or of nobody, is meant.
    pub fn covers(&self, owner: Option<&str>) -> bool {
        match owner {
            Some(owner) => self.owners.iter().any(|own| own == owner),
            None => self.unowned,
        }
    }
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

        let job_id = job_id.into();
        Self { job_id, action: Action::Cancel, until, time: now, reason, scope: None }
    }

    /// The same request about the jobs of a scope alone.
    #[must_use]
    pub fn within(self, scope: Option<Scope>) -> Self {
        Self { scope, ..self }
    }

    /// Returns whether the request is about a job of this owner, or of nobody.
    pub fn covers(&self, owner: Option<&str>) -> bool {
        self.scope.as_ref().is_none_or(|scope| scope.covers(owner))
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
    /// The requests by job, at most [`MAX_SCOPES`] each.
    jobs: HashMap<String, Vec<Control>>,
    /// The jobs by the time of their newest request.
    by_time: BTreeSet<(Timestamp, String)>,
}

/// How many requests with different scopes are kept for one job. A request of somebody who may not
/// cancel the job does not displace that of somebody who may.
const MAX_SCOPES: usize = 8;

impl Cancelled {
    /// Creates an empty set with room for `max` jobs.
    pub fn new(max: usize) -> Self {
        Self { max, jobs: HashMap::new(), by_time: BTreeSet::new() }
    }

    /// Adds a record of the control topic. It replaces an earlier record with the same id and scope,
    /// which may have been about another job.
    pub fn add(&mut self, control: Control) {
        let job_id = control.job_id.clone();
        let requests = self.jobs.entry(job_id.clone()).or_default();
        if let Some(newest) = newest_time(requests) {
            self.by_time.remove(&(newest, job_id.clone()));
        }

        requests.retain(|before| before.scope != control.scope);
        if requests.len() == MAX_SCOPES {
            requests.remove(0);
        }
        let newest = newest_time(requests).map_or(control.time, |newest| newest.max(control.time));
        requests.push(control);
        self.by_time.insert((newest, job_id));

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

    /// Returns the cancellation of the job with this id whose record was written at `written` and
    /// which belongs to `owner`, or to nobody.
    pub fn get(
        &self,
        job_id: &str,
        written: Option<Timestamp>,
        owner: Option<&str>,
    ) -> Option<&Control> {
        let mut newest_first = self.jobs.get(job_id)?.iter().rev();
        newest_first.find(|control| {
            written.is_none_or(|written| written <= control.until) && control.covers(owner)
        })
    }

    /// Returns whether exactly this request is known.
    pub fn contains(&self, control: &Control) -> bool {
        self.jobs.get(&control.job_id).is_some_and(|requests| requests.contains(control))
    }

    /// Returns why the job with this id that was submitted at `submitted_at` and belongs to `owner`,
    /// or to nobody, was cancelled. If that time is unknown, the record may be about another job
    /// with the same id, so only a recent one counts.
    pub fn reason_for(
        &self,
        job_id: &str,
        submitted_at: Option<Timestamp>,
        owner: Option<&str>,
        now: Timestamp,
    ) -> Option<&str> {
        let control = self.get(job_id, submitted_at, owner)?;
        let is_same_job = submitted_at.is_some() || now.since(control.time) <= RECENT;
        control.reason.as_deref().filter(|_| is_same_job)
    }
}

fn newest_time(requests: &[Control]) -> Option<Timestamp> {
    requests.iter().map(|request| request.time).max()
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
        assert!(cancelled.get("j", Some(at(100)), None).is_some());
        assert!(cancelled.get("j", None, None).is_some());
        assert!(cancelled.get("j", Some(at(101)), None).is_none());
        assert!(cancelled.get("k", None, None).is_none());
    }

    #[test]
    fn the_reason_is_that_of_the_newest_record() {
        let mut cancelled = Cancelled::new(10);
        for (time, reason) in [(1, Some("first")), (2, None), (3, Some("other"))] {
            cancelled.add(Control::cancel("j", None, at(time), reason));
            assert_eq!(cancelled.get("j", None, None).unwrap().reason.as_deref(), reason);
        }
    }

    #[test]
    fn a_reason_is_kept_for_the_same_job_only() {
        let mut cancelled = Cancelled::new(10);
        cancelled.add(Control::cancel("j", Some(at(50)), at(100), Some("not needed")));
        let later = at(100).plus(RECENT).plus(Duration::from_millis(1));
        assert_eq!(cancelled.reason_for("j", Some(at(50)), None, later), Some("not needed"));
        assert_eq!(cancelled.reason_for("j", Some(at(101)), None, later), None);
        assert_eq!(cancelled.reason_for("j", None, None, later), None);
    }

    #[test]
    fn a_repeated_request_for_an_unknown_job_keeps_the_reason() {
        let mut cancelled = Cancelled::new(10);
        cancelled.add(Control::cancel("j", None, at(100), Some("not needed")));
        assert_eq!(cancelled.reason_for("j", None, None, at(100).plus(RECENT)), Some("not needed"));
        assert_eq!(cancelled.reason_for("k", None, None, at(100)), None);
    }

    #[test]
    fn the_clock_of_a_submitter_may_be_ahead() {
        let mut cancelled = Cancelled::new(10);
        cancelled.add(Control::cancel("j", Some(at(500)), at(100), None));
        assert!(cancelled.get("j", Some(at(500)), None).is_some());
    }

    #[test]
    fn memory_is_bounded_and_the_oldest_are_forgotten_first() {
        let mut cancelled = Cancelled::new(2);
        for (id, time) in [("a", 3), ("b", 1), ("c", 2), ("c", 4)] {
            cancelled.add(Control::cancel(id, None, at(time), None));
        }
        assert!(cancelled.get("b", None, None).is_none());
        assert!(
            cancelled.get("a", None, None).is_some() && cancelled.get("c", None, None).is_some()
        );

        cancelled.forget_before(at(4));
        assert!(
            cancelled.get("a", None, None).is_none() && cancelled.get("c", None, None).is_some()
        );
        assert_eq!((cancelled.jobs.len(), cancelled.by_time.len()), (1, 1));
    }

    #[test]
    fn requests_of_others_neither_count_nor_displace_each_other() {
        let scoped = |owner: &str, time: i64| {
            Control::cancel("j", None, at(time), Some(owner))
                .within(Some(Scope::of_owner(Some(owner))))
        };
        let mut cancelled = Cancelled::new(10);
        cancelled.add(scoped("me", 1));
        cancelled.add(scoped("you", 2));
        let of = |cancelled: &Cancelled, owner: Option<&str>| {
            cancelled.get("j", None, owner).map(|control| control.time)
        };
        assert_eq!(of(&cancelled, Some("me")), Some(at(1)));
        assert_eq!((of(&cancelled, Some("them")), of(&cancelled, None)), (None, None));

        cancelled.add(Control::cancel("j", None, at(3), None).within(Some(Scope::of_owner(None))));
        assert_eq!((of(&cancelled, None), of(&cancelled, Some("me"))), (Some(at(3)), Some(at(1))));
        cancelled.add(Control::cancel("j", None, at(4), None));
        assert_eq!(of(&cancelled, Some("me")), Some(at(4)), "about anybody's jobs");

        for other in 0..20 {
            cancelled.add(scoped(&format!("other-{other}"), 5));
        }
        assert_eq!(cancelled.jobs["j"].len(), MAX_SCOPES);
        assert_eq!(cancelled.by_time.len(), 1);
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
