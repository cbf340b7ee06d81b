//! `job_list`: lists jobs.

use std::sync::Arc;

use fleet_job::{filter::JobFilter, view::JobList};
use fleet_jobs::{Jobs, PageRequest};
use rmcp::{RoleServer, service::RequestContext};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, de::Error as _};
use serde_json::{Map, Value};

use crate::toolkit::{Effect, ToolFailure, ToolSpec};

/// The tool's entry in the tool list.
pub const SPEC: ToolSpec = ToolSpec {
    name: "job_list",
    title: "List jobs",
    description: "Lists jobs without their results, newest submission first. Filters by state, \
                  type, tool, tenant, time, id, error and metadata. Pass `nextCursor` as `cursor` to get the next page.",
    effect: Effect::ReadOnly,
};

/// The filter for the jobs to list.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(extend("additionalProperties" = false))]
pub struct Args {
    #[serde(flatten)]
    filter: JobFilter,
    /// The most jobs on a page; 50 by default.
    #[serde(default)]
    #[schemars(range(min = 1, max = 500))]
    limit: Option<usize>,
    /// The `nextCursor` of the previous page.
    #[serde(default)]
    cursor: Option<String>,
    #[serde(flatten)]
    #[schemars(skip)]
    _others: NoOthers,
}

/// Refuses fields that are not known here. `deny_unknown_fields` can't, beside `flatten`.
#[derive(Debug)]
struct NoOthers;

impl<'de> Deserialize<'de> for NoOthers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        match Map::<String, Value>::deserialize(deserializer)?.keys().next() {
            Some(name) => Err(D::Error::custom(format!("unknown field `{name}`"))),
            None => Ok(Self),
        }
    }
}

/// Lists the caller's jobs.
///
/// # Errors
///
/// Returns an error if the cursor is invalid, or if the ledger can't be queried.
pub async fn job_list(
    jobs: Arc<Jobs>,
    context: RequestContext<RoleServer>,
    args: Args,
) -> Result<JobList, ToolFailure> {
    let Args { filter, limit, cursor, _others: NoOthers } = args;
    let page = PageRequest { filter, limit, cursor };
    let query = page.into_query().map_err(|error| super::failure_of(&context, error.into()))?;
    jobs.list(query, &super::caller_of(&jobs, &context)?)
        .await
        .map_err(|error| super::failure_of(&context, error))
}

#[cfg(test)]
mod tests {
    use fleet_job::event::JobState;
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_known_is_read_and_what_is_not_is_refused() {
        let args: Args = serde_json::from_value(json!({
            "states": ["failed"], "jobType": "tool-call", "since": "2026-11-21T08:00:00Z",
            "until": 1_800_000_000_000_i64, "limit": 7, "cursor": "x",
        }))
        .unwrap();
        assert_eq!(args.filter.states, [JobState::Failed]);
        assert!(args.filter.since.is_some() && args.filter.until.is_some());
        assert_eq!((args.limit, args.cursor.as_deref()), (Some(7), Some("x")));

        let error = serde_json::from_value::<Args>(json!({"state": "failed"})).unwrap_err();
        assert_eq!(error.to_string(), "unknown field `state`");
    }

    #[test]
    fn the_schema_names_all_fields_and_allows_no_others() {
        let schema = serde_json::to_value(schemars::schema_for!(Args)).unwrap();
        let mut names: Vec<_> = schema["properties"].as_object().unwrap().keys().collect();
        names.sort();
        let expected = [
            "cursor",
            "errorCode",
            "idPrefix",
            "jobType",
            "limit",
            "metadata",
            "since",
            "states",
            "tenant",
            "tool",
            "until",
        ];
        assert_eq!(names, expected);
        assert_eq!(schema["additionalProperties"], json!(false));
    }
}
