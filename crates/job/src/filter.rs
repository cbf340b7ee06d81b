//! A selection of jobs, as used by the ledger, the HTTP API, the tools and the command line.

use std::{borrow::Cow, collections::BTreeMap};

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::{
    event::{JobEvent, JobState},
    outcome::JobError,
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
    /// Only jobs whose id begins with this.
    #[serde(default)]
    pub id_prefix: Option<String>,
    /// Only jobs whose newest event has an error with this code, such as `FLEET-TIMEOUT`.
    #[serde(default)]
    pub error_code: Option<String>,
    /// Only jobs whose metadata has all of these members. A value that is not a string is compared
    /// with its JSON text.
    #[serde(default)]
    pub metadata: BTreeMap<String, String>,
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
            && self.wants_id(&event.job_id)
            && self.wants_error(event.error.as_ref())
            && self.wants_metadata(&event.metadata)
    }

    /// Returns whether the filter accepts jobs with this id.
    pub fn wants_id(&self, job_id: &str) -> bool {
        self.id_prefix.as_deref().is_none_or(|prefix| job_id.starts_with(prefix))
    }

    /// Returns whether the filter accepts jobs with this error, or without one.
    pub fn wants_error(&self, error: Option<&JobError>) -> bool {
        self.error_code.as_deref().is_none_or(|code| error.map(JobError::stable_code) == Some(code))
    }

    /// Returns whether the filter accepts jobs with this metadata.
    pub fn wants_metadata(&self, metadata: &Map<String, Value>) -> bool {
        has_metadata(&self.metadata, metadata)
    }

    /// Returns the filter as the query parameters of a URL.
    pub fn parameters(&self) -> Vec<(&'static str, String)> {
        let states: Vec<_> = self.states.iter().map(|state| state.as_str()).collect();
        let states = (!states.is_empty()).then(|| ("state", states.join(",")));
        let time = |name, time: Option<Timestamp>| time.map(|time| (name, time.to_string()));

        let mut parameters: Vec<_> = states.into_iter().collect();
        parameters.extend(self.lasting_parameters());
        parameters.extend(time("since", self.since).into_iter().chain(time("until", self.until)));
        parameters.extend(self.error_code.clone().map(|code| ("errorCode", code)));
        parameters
    }

    /// Returns the parameters for conditions whose result never changes during the life of a job.
    /// Only these may filter a stream of events: a stream filtered by state would not show when a
    /// job leaves that state.
    pub fn lasting_parameters(&self) -> Vec<(&'static str, String)> {
        let texts = [
            ("type", &self.job_type),
            ("tool", &self.tool),
            ("tenant", &self.tenant),
            ("idPrefix", &self.id_prefix),
        ];
        let texts = texts.into_iter().filter_map(|(name, value)| Some((name, value.clone()?)));
        let members =
            self.metadata.iter().map(|(name, value)| ("metadata", format!("{name}={value}")));
        texts.chain(members).collect()
    }
}

/// Whether `metadata` has all of the wanted members.
pub(crate) fn has_metadata(
    wanted: &BTreeMap<String, String>,
    metadata: &Map<String, Value>,
) -> bool {
    wanted.iter().all(|(name, wanted)| {
        metadata.get(name).is_some_and(|value| text_of(value) == wanted.as_str())
    })
}

/// The text with which a value is compared.
fn text_of(value: &Value) -> Cow<'_, str> {
    match value {
        Value::String(text) => Cow::Borrowed(text),
        other => Cow::Owned(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::outcome::ErrorKind;

    fn event() -> JobEvent {
        let metadata = json!({"team": "search", "attempt": 3, "tags": ["a"]});
        JobEvent {
            error: Some(JobError::new(ErrorKind::Timeout, "too slow")),
            metadata: metadata.as_object().cloned().unwrap_or_default(),
            ..JobEvent::new("order-17", JobState::Failed, Timestamp::default())
        }
    }

    fn check(filter: Value, expected: bool) {
        let read: JobFilter = serde_json::from_value(filter.clone()).unwrap();
        assert_eq!(read.matches(&event()), expected, "{filter}");
    }

    #[test]
    fn a_search_looks_at_id_error_and_metadata() {
        for (filter, expected) in [
            (json!({"idPrefix": "order-"}), true),
            (json!({"idPrefix": "order-18"}), false),
            (json!({"errorCode": "FLEET-TIMEOUT"}), true),
            (json!({"errorCode": "FLEET-TOOL"}), false),
            (json!({"metadata": {"team": "search", "attempt": "3"}}), true),
            (json!({"metadata": {"tags": "[\"a\"]"}}), true),
            (json!({"metadata": {"team": "search", "attempt": "4"}}), false),
            (json!({"metadata": {"unknown": ""}}), false),
        ] {
            check(filter, expected);
        }
    }

    #[test]
    fn an_error_of_an_older_worker_has_the_code_of_its_kind() {
        let mut event = event();
        if let Some(error) = &mut event.error {
            error.error_code = None;
        }
        let code = Some("FLEET-TIMEOUT".to_owned());
        assert!(JobFilter { error_code: code, ..JobFilter::default() }.matches(&event));
    }

    #[test]
    fn a_url_has_all_conditions_and_a_stream_those_that_last() {
        let filter = JobFilter {
            id_prefix: Some("a".to_owned()),
            error_code: Some("FLEET-TOOL".to_owned()),
            metadata: [("x".to_owned(), "1=2".to_owned())].into(),
            ..JobFilter::default()
        };
        let lasting = [("idPrefix", "a".to_owned()), ("metadata", "x=1=2".to_owned())];
        assert_eq!(filter.lasting_parameters(), lasting);
        let [prefix, member] = lasting;
        assert_eq!(filter.parameters(), [prefix, member, ("errorCode", "FLEET-TOOL".to_owned())]);
    }
}
