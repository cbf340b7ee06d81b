//! A job as people and programs are shown it.

use std::borrow::Cow;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{
    event::{JobEvent, JobState, RESULT_OMITTED},
    outcome::ErrorKind,
    size::clipped,
    time::Timestamp,
};

/// The state of a job: its newest event, and whether somebody wants it cancelled.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(title = "Job")]
pub struct JobView {
    /// The newest event.
    #[serde(flatten)]
    pub event: JobEvent,
    /// When somebody asked for it to be cancelled, while it has not ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cancel_requested_at: Option<Timestamp>,
}

impl JobView {
    /// The same without its result and the details of its error.
    #[must_use]
    pub fn without_result(mut self) -> Self {
        self.event.result = None;
        if let Some(error) = &mut self.event.error {
            error.data = None;
        }
        self
    }

    /// The same as it stands in a list: without its result, its metadata and the details of its
    /// error, and with texts cut that have no other bound.
    #[must_use]
    pub fn in_a_list(self) -> Self {
        let mut view = self.without_result();
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

    /// Whether the job has come to its end.
    pub fn is_terminal(&self) -> bool {
        self.event.is_over()
    }

    /// How it is, in a few words.
    pub fn summary(&self) -> String {
        let event = &self.event;
        if event.asks_for_input() {
            return format!("job `{}` waits for input", event.job_id);
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
            text.push_str("; its cancellation was asked for");
        }
        text
    }
}

/// The longest text of a job in a list.
const LISTED_TEXT: usize = 1024;

fn shorten(text: &mut String) {
    if let Cow::Owned(start) = clipped(text, LISTED_TEXT) {
        *text = start;
    }
}

/// Many jobs. Results, metadata and error details are left out, and long texts are cut.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct JobList {
    /// The jobs, those that were submitted last first. There can be fewer than were asked for, and
    /// more to come.
    pub jobs: Vec<JobView>,
    /// What to ask for the next page with; absent after the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

/// What became of a request to submit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct SubmittedJobs {
    /// One entry for each job, in the order of the request.
    pub jobs: Vec<Submitted>,
}

/// A job that was submitted, now or before.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Submitted {
    /// Its id.
    #[serde(rename = "jobID")]
    pub job_id: String,
    /// Its state.
    #[schemars(with = "crate::event::JobState")]
    pub state: String,
    /// Whether it had been there already, and was not submitted again.
    pub existing: bool,
}

/// What a cancellation came to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Cancellation {
    /// `cancelled`, `too-late` where the job came to another end first, or `requested` where it has
    /// not ended yet.
    pub outcome: CancelOutcome,
    /// Whether anything is known of the job. If not, the workers drop it when they come to it, if
    /// it was written to Kafka before.
    #[serde(default = "yes")]
    pub known: bool,
    /// The job as it is now, if anything is known of it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub job: Option<JobView>,
}

fn yes() -> bool {
    true
}

impl Cancellation {
    /// What a job that is known came to.
    pub fn of(job: JobView) -> Self {
        let outcome = match job.event.state {
            JobState::Cancelled => CancelOutcome::Cancelled,
            _ if job.is_terminal() => CancelOutcome::TooLate,
            _ => CancelOutcome::Requested,
        };
        Self { outcome, known: true, job: Some(job) }
    }

    /// Nothing is known of the job.
    pub fn unknown() -> Self {
        Self { outcome: CancelOutcome::Requested, known: false, job: None }
    }
}

/// What a cancellation can come to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum CancelOutcome {
    /// The job has ended as cancelled.
    Cancelled,
    /// The job had come to another end.
    TooLate,
    /// The workers know; the job has not ended yet.
    Requested,
}

/// The result of a job as the tool gave it, where there is one.
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
    fn a_job_in_a_list_is_small() {
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
