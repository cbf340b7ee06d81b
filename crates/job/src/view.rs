//! A job as it is shown to people and programs.

use std::{borrow::Cow, collections::BTreeMap};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    event::{JobEvent, JobState, RESULT_OMITTED, Source},
    outcome::ErrorKind,
    size::clipped,
    time::Timestamp,
};

/// The state of a job: its newest event, and whether its cancellation was requested.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(title = "Job")]
pub struct JobView {
    /// The newest event.
    #[serde(flatten)]
    pub event: JobEvent,
    /// When the cancellation of the job was requested, if the job has not ended yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancel_requested_at: Option<Timestamp>,
}

impl JobView {
    /// Removes the result and the details of the error.
    #[must_use]
    pub fn without_result(mut self) -> Self {
        self.event.result = None;
        if let Some(error) = &mut self.event.error {
            error.data = None;
        }
        self
    }

    /// Prepares the job for a list: removes the result, the metadata and the details of the error,
    /// and shortens texts that have no other bound.
    #[must_use]
    pub fn in_a_list(self) -> Self {
        let mut view = self.without_result();
        if let Some(approval) = &mut view.event.approval {
            approval.envelope.clear();
            approval.headers.clear();
        }
        view.event.metadata.clear();
        view.event.tool.iter_mut().for_each(shorten);
        view.event.error.iter_mut().for_each(|error| shorten(&mut error.message));
        view.event
            .progress
            .iter_mut()
            .filter_map(|progress| progress.message.as_mut())
            .for_each(shorten);
        view
    }

    /// Returns whether the job has ended.
    pub fn is_terminal(&self) -> bool {
        self.event.is_over()
    }

    /// Describes the state of the job in a few words.
    pub fn summary(&self) -> String {
        let event = &self.event;
        if event.asks_for_input() {
            return format!("job `{}` waits for input", event.job_id);
        }

        if let Some(approval) = event.awaits_approval() {
            let (rule, until) = (&approval.rule, approval.expires_at);
            return format!("job `{}` awaits approval (rule {rule}) until {until}", event.job_id);
        }

        let mut text = format!("job `{}` is {}", event.job_id, event.state.as_str());

        if event.attempts > 1 {
            text.push_str(&format!(", attempt {}", event.attempts));
        }

        if let Some(progress) = &event.progress {
            match progress.total {
                Some(total) => text.push_str(&format!(", {} of {total}", progress.progress)),
                None => text.push_str(&format!(", at {}", progress.progress)),
            }
            if let Some(message) = &progress.message {
                text.push_str(&format!(" ({message})"));
            }
        }

        if let Some(omitted) = event.result_omitted.as_ref().filter(|_| event.has_lost_its_result())
        {
            let bytes = omitted.bytes;
            text.push_str(&format!(
                ", but its result of {bytes} bytes was too large to keep ({RESULT_OMITTED})"
            ));
        }

        if let Some(waiting) = &event.waiting {
            text.push_str(&format!(", {waiting} since {}", waiting.since));
        }

        if let Some(error) = &event.error {
            text.push_str(&format!(": {}", error.message));
        }

        if self.cancel_requested_at.is_some() {
            text.push_str("; its cancellation was requested");
        }

        text
    }
}

/// The longest text in a listed job, in bytes.
const LISTED_TEXT: usize = 1024;

fn shorten(text: &mut String) {
    if let Cow::Owned(start) = clipped(text, LISTED_TEXT) {
        *text = start;
    }
}

/// A list of jobs. Results, metadata and details of errors are left out, and long texts are
/// shortened.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct JobList {
    /// The jobs, most recently submitted first. A page may have fewer than requested although more
    /// follow.
    pub jobs: Vec<JobView>,
    /// The cursor for the next page; absent on the last page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

/// How many jobs a caller may see in each state.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct JobCounts {
    /// The number of jobs in each state, with all states.
    pub states: BTreeMap<String, u64>,
    /// The number of jobs in all states.
    pub total: u64,
    /// The ledger has forgotten jobs whose last event is older than this, so they are not counted.
    /// Absent if it has forgotten none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub complete_since: Option<Timestamp>,
}

impl JobCounts {
    /// Creates the counts of these numbers of jobs, which may name a state several times.
    pub fn of(
        jobs: impl IntoIterator<Item = (JobState, u64)>,
        complete_since: Option<Timestamp>,
    ) -> Self {
        let states = JobState::ALL.map(|state| (state.as_str().to_owned(), 0));
        let mut counts = Self { states: states.into(), total: 0, complete_since };

        for (state, number) in jobs {
            *counts.states.entry(state.as_str().to_owned()).or_default() += number;
            counts.total += number;
        }
        counts
    }
}

/// What a job was asked to do: its record in the jobs topic.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct JobRecord {
    /// The id of the job.
    #[serde(rename = "jobID")]
    pub job_id: String,
    /// The position of the record.
    pub source: Source,
    /// When the record was written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time: Option<Timestamp>,
    /// The record's key, if it is text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
    /// The envelope, with the payload as an object.
    #[schemars(with = "crate::wire::WireEnvelope")]
    pub envelope: Value,
}

/// The events of a job that are left in the events topic.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct JobHistory {
    /// The events without results, oldest first. The last one is the state of the job.
    pub events: Vec<JobView>,
    /// Whether these are all events that the topic still has. Compaction may have removed earlier
    /// ones in any case.
    pub complete: bool,
}

/// The answer to a request to submit jobs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SubmittedJobs {
    /// One entry per job, in the order of the request.
    pub jobs: Vec<Submitted>,
}

/// A job that was submitted by this request or an earlier one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Submitted {
    /// The id of the job.
    #[serde(rename = "jobID")]
    pub job_id: String,
    /// The state of the job.
    #[schemars(with = "crate::event::JobState")]
    pub state: String,
    /// Whether the job existed already and was not submitted again.
    pub existing: bool,
}

/// The answer to a request to cancel a job.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Cancellation {
    /// `cancelled`, `too-late` if the job had already ended otherwise, or `requested` if it has not
    /// ended yet.
    pub outcome: CancelOutcome,
    /// Whether the job is known. If it is not, but was written to Kafka before, workers drop it
    /// when they read it.
    #[serde(default = "yes")]
    pub known: bool,
    /// The current state of the job, if it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobView>,
}

fn yes() -> bool {
    true
}

impl Cancellation {
    /// Returns the answer for a known job.
    pub fn of(job: JobView) -> Self {
        let outcome = match job.event.state {
            JobState::Cancelled => CancelOutcome::Cancelled,
            _ if job.is_terminal() => CancelOutcome::TooLate,
            _ => CancelOutcome::Requested,
        };
        Self { outcome, known: true, job: Some(job) }
    }

    /// Returns the answer for an unknown job.
    pub fn unknown() -> Self {
        Self { outcome: CancelOutcome::Requested, known: false, job: None }
    }
}

/// The outcome of a request to cancel a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum CancelOutcome {
    /// The job ended as cancelled.
    Cancelled,
    /// The job had already ended otherwise.
    TooLate,
    /// The request was passed to the workers; the job has not ended yet.
    Requested,
}

/// Returns the result that the tool gave, if there is one. A tool's error is such a result.
pub fn tool_result(event: &JobEvent) -> Option<&Value> {
    event.result.as_ref().or_else(|| {
        let error = event.error.as_ref().filter(|error| error.kind == ErrorKind::Tool)?;
        error.data.as_ref().filter(|data| data.get("content").is_some())
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::outcome::JobError;

    #[test]
    fn a_listed_job_is_small() {
        let mut event = JobEvent::new("j", JobState::Failed, Timestamp::from_millis_clamped(0));
        event.metadata.insert("a".to_owned(), "x".repeat(60_000).into());
        event.result = Some(json!("x".repeat(60_000)));
        event.tool = Some("t".repeat(60_000));
        event.error = Some(JobError::new(ErrorKind::Tool, "ä".repeat(60_000)));
        let view = JobView { event, cancel_requested_at: None };

        let bytes = serde_json::to_vec(&view.in_a_list()).unwrap().len();
        assert!(bytes < 4096, "{bytes}");
    }
}
