//! A selection of jobs, as used by the ledger, the HTTP API, the tools and the command line.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::{
    event::{JobEvent, JobState},
    time::Timestamp,
};

/// A selection of jobs. All conditions must hold; an absent condition always holds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct JobFilter {
    /// Only jobs in one of these states; all states if empty.
    #[serde(default)]
    pub states: Vec<JobState>,
    /// Only jobs of this type: `tool-call`, `tool-batch` or `server-init`.
    #[serde(default)]
    pub job_type: Option<String>,
    /// Only jobs that call this tool.
    #[serde(default)]
    pub tool: Option<String>,
    /// Only jobs of this tenant.
    #[serde(default)]
    pub tenant: Option<String>,
    /// Only jobs submitted at this time or later.
    #[serde(default)]
    pub since: Option<Timestamp>,
    /// Only jobs submitted before this time.
    #[serde(default)]
    pub until: Option<Timestamp>,
}

impl JobFilter {
    /// Returns whether the filter accepts jobs in this state.
    pub fn wants_state(&self, state: JobState) -> bool {
        self.states.is_empty() || self.states.contains(&state)
    }

    /// Returns whether the filter accepts the job whose newest event this is.
    pub fn matches(&self, event: &JobEvent) -> bool {
        let submitted = event.submitted_at.unwrap_or(event.time);
        let same =
            |wanted: &Option<String>, found: &Option<String>| wanted.is_none() || wanted == found;

        self.wants_state(event.state)
            && same(&self.job_type, &event.job_type)
            && same(&self.tool, &event.tool)
            && same(&self.tenant, &event.tenant)
            && self.since.is_none_or(|since| submitted >= since)
            && self.until.is_none_or(|until| submitted < until)
    }

    /// Returns the filter as the query parameters of a URL.
    pub fn parameters(&self) -> Vec<(&'static str, String)> {
        let states: Vec<_> = self.states.iter().map(|state| state.as_str()).collect();
        let states = (!states.is_empty()).then(|| ("state", states.join(",")));
        let time = |name, time: Option<Timestamp>| time.map(|time| (name, time.to_string()));

        let mut parameters: Vec<_> = states.into_iter().collect();
        parameters.extend(self.lasting_parameters());
        parameters.extend(time("since", self.since).into_iter().chain(time("until", self.until)));
        parameters
    }

    /// Returns the parameters for conditions whose result never changes during the life of a job.
    /// Only these may filter a stream of events: a stream filtered by state would not show when a
    /// job leaves that state.
    pub fn lasting_parameters(&self) -> Vec<(&'static str, String)> {
        [("type", &self.job_type), ("tool", &self.tool), ("tenant", &self.tenant)]
            .into_iter()
            .filter_map(|(name, value)| Some((name, value.clone()?)))
            .collect()
    }
}
