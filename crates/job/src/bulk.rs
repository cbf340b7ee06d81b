//! The answer to an operation on all jobs that match a filter.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::event::JobState;

/// What one step of a bulk operation has done, or, in a preview, what all its steps would do.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BulkReport {
    /// Whether this is a preview, so that nothing was done.
    pub dry_run: bool,
    /// The number of jobs that the operation applies to: those of this step or, in a preview, those
    /// of all steps as far as they were counted.
    pub matched: u64,
    /// The number of jobs for which it was done.
    pub done: u64,
    /// The number of jobs for which it failed.
    pub failed: u64,
    /// The jobs of this step; in a preview, the first of all steps.
    pub jobs: Vec<BulkItem>,
    /// Whether no more jobs match. In a preview: whether all of them were counted.
    pub complete: bool,
    /// The cursor of the next step; absent in a preview and after the last step.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
    /// Whether a failure may pass, so that this step should be repeated later with its own cursor.
    pub retry_step: bool,
    /// The name of the operation, under which its steps can be repeated without running a job
    /// twice.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<String>,
}

/// One job of a bulk operation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct BulkItem {
    /// The id of the job.
    #[serde(rename = "jobID")]
    pub job_id: String,
    /// The state of the job before the operation.
    pub state: JobState,
    /// The tool that the job calls.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tool: Option<String>,
    /// What was done.
    pub outcome: BulkOutcome,
    /// The id of the new job, if the job was run again.
    #[serde(rename = "newJobID", default, skip_serializing_if = "Option::is_none")]
    pub new_job_id: Option<String>,
    /// Why it failed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub detail: Option<String>,
}

/// What a bulk operation has done with a job.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum BulkOutcome {
    /// Nothing: it is a preview.
    Planned,
    /// It was done: the cancellation was requested, or the job was submitted again.
    Done,
    /// It failed for this job.
    Failed,
}

impl BulkReport {
    /// Adds a job.
    pub fn add(&mut self, item: BulkItem) {
        self.matched += 1;
        match item.outcome {
            BulkOutcome::Planned => {}
            BulkOutcome::Done => self.done += 1,
            BulkOutcome::Failed => self.failed += 1,
        }
        self.jobs.push(item);
    }
}
