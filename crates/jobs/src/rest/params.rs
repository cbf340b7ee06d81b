//! The parameters of the operations: declared once, checked before any handler, and documented from
//! the same declaration.

use std::{fmt::Display, str::FromStr, time::Duration};

use axum::{
    extract::{FromRequestParts, Path, Request, State},
    http::{HeaderMap, request::Parts},
    middleware::Next,
    response::{IntoResponse, Response},
};
use fleet_job::{envelope::MAX_ID_BYTES, event::JobState, filter::JobFilter, time::Timestamp};
use fleet_ledger::{Query, query::MAX_LIMIT};
use schemars::{Schema, SchemaGenerator, json_schema};

use super::problem::Problem;
use crate::PageRequest;

/// The longest wait that a request may ask for, in seconds.
const MAX_WAIT_SECONDS: u64 = 60;
/// How long a cancellation waits for its outcome by default, in seconds.
pub(super) const CANCEL_WAIT_SECONDS: u64 = 5;
/// The longest reason or filter, in characters.
const MAX_TEXT: usize = 1024;

/// The part of a request that contains a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ParamLocation {
    Path,
    Query,
    Header,
}

impl ParamLocation {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Path => "path",
            Self::Query => "query",
            Self::Header => "header",
        }
    }
}

/// A parameter of an operation.
#[derive(Clone, Copy)]
pub(super) struct Param {
    pub(super) name: &'static str,
    pub(super) location: ParamLocation,
    /// Whether it may occur several times.
    pub(super) many: bool,
    pub(super) description: &'static str,
    pub(super) schema: fn(&mut SchemaGenerator) -> Schema,
    pub(super) example: &'static str,
}

const fn query_param(
    name: &'static str,
    description: &'static str,
    schema: fn(&mut SchemaGenerator) -> Schema,
    example: &'static str,
) -> Param {
    Param { name, location: ParamLocation::Query, many: false, description, schema, example }
}

const fn header_param(
    name: &'static str,
    description: &'static str,
    schema: fn(&mut SchemaGenerator) -> Schema,
    example: &'static str,
) -> Param {
    Param { name, location: ParamLocation::Header, many: false, description, schema, example }
}

const ID: Param = Param {
    name: "id",
    location: ParamLocation::Path,
    many: false,
    description: "The job's id, percent-encoded: `mcp-jobs/0/17` is `mcp-jobs%2F0%2F17`.",
    schema: |_| {
        let pattern = r"^[^\u0000-\u001f\u007f-\u009f]+$";
        json_schema!({"type": "string", "minLength": 1, "maxLength": MAX_ID_BYTES, "pattern": pattern})
    },
    example: "job-123",
};
const STATE: Param = Param {
    many: true,
    ..query_param(
        "state",
        "Only jobs in one of these states. Can be repeated, or contain several states, separated by commas.",
        |schemas| json_schema!({"type": "array", "items": schemas.subschema_for::<JobState>()}),
        "failed",
    )
};
const TYPE: Param = query_param(
    "type",
    "Only jobs of this type.",
    |schemas| schemas.subschema_for::<fleet_job::envelope::JobType>(),
    "tool-call",
);
const TOOL: Param = query_param(
    "tool",
    "Only jobs that call this tool, by its full name.",
    text_schema,
    "files__file_digest",
);
const TENANT: Param = query_param("tenant", "Only jobs of this tenant.", text_schema, "acme");
const SINCE: Param = query_param(
    "since",
    "Only jobs that were submitted at this time or later.",
    time_schema,
    "2026-11-21T08:00:00Z",
);
const UNTIL: Param = query_param(
    "until",
    "Only jobs that were submitted before this time.",
    time_schema,
    "2026-11-22T08:00:00Z",
);
const LIMIT: Param = query_param(
    "limit",
    "The most jobs on a page.",
    |_| json_schema!({"type": "integer", "minimum": 1, "maximum": MAX_LIMIT, "default": 50}),
    "50",
);
const CURSOR: Param = query_param(
    "cursor",
    "The `nextCursor` of the previous page, unchanged.",
    |_| json_schema!({"type": "string", "minLength": 12, "maxLength": 352}),
    "AAABmqJ2rAFqb2ItMTIz",
);
const REASON: Param = query_param(
    "reason",
    "The reason for the cancellation, for people.",
    |_| json_schema!({"type": "string", "maxLength": MAX_TEXT}),
    "no longer needed",
);
const TRACEPARENT: Param = header_param(
    "traceparent",
    "W3C Trace Context; passed on with the job to the tool calls.",
    |_| json_schema!({"type": "string"}),
    "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
);
const TRACESTATE: Param = header_param(
    "tracestate",
    "W3C Trace Context.",
    |_| json_schema!({"type": "string"}),
    "congo=t61rcWkgMzE",
);
/// The header that makes a submission repeatable.
pub(super) const IDEMPOTENCY_KEY: &str = "Idempotency-Key";

/// The parameters of `POST /jobs`.
pub(super) const SUBMIT: &[Param] = &[
    header_param(
        IDEMPOTENCY_KEY,
        "The `idempotencyKey` for the only job in the body, if it has none of its own.",
        |_| json_schema!({"type": "string", "minLength": 1, "maxLength": MAX_ID_BYTES}),
        "order-4711",
    ),
    TRACEPARENT,
    TRACESTATE,
];
/// The parameters of `GET /jobs`.
pub(super) const LIST: &[Param] = &[STATE, TYPE, TOOL, TENANT, SINCE, UNTIL, LIMIT, CURSOR];
/// The parameters of `GET /jobs/{id}`.
pub(super) const SHOW: &[Param] = &[
    ID,
    query_param(
        "wait",
        "Wait for the end of the job, for at most this many seconds.",
        |_| json_schema!({"type": "integer", "minimum": 0, "maximum": MAX_WAIT_SECONDS, "default": 0}),
        "2",
    ),
    header_param(
        "If-None-Match",
        "The `ETag` of the state that the client has already.",
        |_| json_schema!({"type": "string"}),
        "\"0-17\"",
    ),
];
/// The parameters of `DELETE /jobs/{id}`.
pub(super) const CANCEL: &[Param] = &[
    ID,
    query_param(
        "wait",
        "Wait for the outcome of the cancellation, for at most this many seconds.",
        |_| json_schema!({"type": "integer", "minimum": 0, "maximum": MAX_WAIT_SECONDS, "default": CANCEL_WAIT_SECONDS}),
        "2",
    ),
    REASON,
];
/// The parameters of `GET /jobs/{id}/events`.
pub(super) const WATCH: &[Param] = &[
    ID,
    header_param(
        "Last-Event-ID",
        "The `id` of the last event that the client received. Browsers send it automatically.",
        |_| json_schema!({"type": "string", "pattern": "^(waiting-)?[0-9]{1,9}-[0-9]{1,18}$"}),
        "0-17",
    ),
];
/// The parameters of `GET /events`.
pub(super) const FOLLOW: &[Param] = &[
    STATE,
    TYPE,
    TOOL,
    TENANT,
    header_param(
        "Last-Event-ID",
        "The `id` of the last event that the client received. Browsers send it automatically.",
        |_| json_schema!({"type": "string", "pattern": "^[0-9]{1,9}:[0-9]{1,18}(,[0-9]{1,9}:[0-9]{1,18})*$"}),
        "0:18,1:5",
    ),
];
/// No parameters.
pub(super) const NONE: &[Param] = &[];

fn text_schema(_: &mut SchemaGenerator) -> Schema {
    json_schema!({"type": "string", "minLength": 1, "maxLength": MAX_TEXT})
}

fn time_schema(_: &mut SchemaGenerator) -> Schema {
    let (min, max) = (Timestamp::MIN.as_millis(), Timestamp::MAX.as_millis());
    json_schema!({
        "description": "RFC 3339, or milliseconds since the epoch.",
        "anyOf": [
            {"type": "string", "format": "date-time"},
            {"type": "integer", "minimum": min, "maximum": max},
        ]
    })
}

/// The query of a request. Every name in it is known, and none occurs too often.
#[derive(Debug, Clone, Default)]
pub(super) struct Parameters(Vec<(String, String)>);

impl Parameters {
    fn read(text: Option<&str>, known: &[Param]) -> Result<Self, Problem> {
        let pairs: Vec<(String, String)> =
            url::form_urlencoded::parse(text.unwrap_or_default().as_bytes()).into_owned().collect();
        for (index, (name, _)) in pairs.iter().enumerate() {
            let param = known
                .iter()
                .find(|param| param.location == ParamLocation::Query && param.name == name);
            let Some(param) = param else {
                let names = known
                    .iter()
                    .filter(|param| param.location == ParamLocation::Query)
                    .map(|param| param.name);
                let known = match names.collect::<Vec<_>>().join(", ") {
                    none if none.is_empty() => "this operation has none".to_owned(),
                    names => format!("known parameters are {names}"),
                };
                return Err(Problem::parameter(
                    name,
                    format_args!("is not a query parameter of this operation; {known}"),
                ));
            };

            if !param.many && pairs[..index].iter().any(|(before, _)| before == name) {
                return Err(Problem::parameter(name, "is given twice"));
            }
        }
        Ok(Self(pairs))
    }

    fn get(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value.as_str())
    }

    fn parse<T: FromStr>(&self, name: &str) -> Result<Option<T>, Problem>
    where
        T::Err: Display,
    {
        let parse = |text: &str| text.parse().map_err(|error| Problem::parameter(name, error));
        self.get(name).map(parse).transpose()
    }

    /// Returns a text of at least `min` characters.
    fn text(&self, name: &str, min: usize) -> Result<Option<String>, Problem> {
        let Some(text) = self.get(name) else { return Ok(None) };
        let length = text.chars().count();
        if !(min..=MAX_TEXT).contains(&length) {
            let why =
                format!("is {length} characters long; it must be {min} to {MAX_TEXT} characters");
            return Err(Problem::parameter(name, why));
        }
        Ok(Some(text.to_owned()))
    }

    fn time(&self, name: &str) -> Result<Option<Timestamp>, Problem> {
        let Some(text) = self.get(name) else { return Ok(None) };
        let read = match text.parse::<i64>() {
            Ok(ms) => Timestamp::from_millis(ms)
                .ok_or_else(|| format!("{ms} ms is outside the years 1 to 9999")),
            Err(_) => text.parse(),
        };
        read.map(Some).map_err(|why| Problem::parameter(name, why))
    }

    /// Returns how long to wait.
    pub(super) fn wait(&self, default: u64) -> Result<Duration, Problem> {
        let seconds = self.parse::<u64>("wait")?.unwrap_or(default);
        if seconds > MAX_WAIT_SECONDS {
            let why = format!("is {seconds}; it must be 0 to {MAX_WAIT_SECONDS} seconds");
            return Err(Problem::parameter("wait", why));
        }
        Ok(Duration::from_secs(seconds))
    }

    /// Returns the reason for a cancellation.
    pub(super) fn reason(&self) -> Result<Option<String>, Problem> {
        self.text("reason", 0)
    }

    /// Returns the query of the ledger that the filters describe.
    pub(super) fn filter(&self) -> Result<Query, Problem> {
        let mut states = Vec::new();
        for (_, value) in self.0.iter().filter(|(name, _)| name == "state") {
            for name in value.split(',') {
                let read = serde_json::from_value(name.into());
                states.push(
                    read.map_err(|error: serde_json::Error| Problem::parameter("state", error))?,
                );
            }
        }
        let filter = JobFilter {
            states,
            job_type: self.text("type", 1)?,
            tool: self.text("tool", 1)?,
            tenant: self.text("tenant", 1)?,
            since: self.time("since")?,
            until: self.time("until")?,
        };
        let limit = self.parse("limit")?;
        let cursor = self.get("cursor").map(str::to_owned);
        PageRequest { filter, limit, cursor }.into_query().map_err(|error| {
            Problem::new(super::problem::ProblemKind::BadRequest, error.to_string())
        })
    }
}

/// Refuses a query with unknown parameters, because a misspelled filter must not list all jobs.
pub(super) async fn check_query(
    State(known): State<&'static [Param]>,
    mut request: Request,
    next: Next,
) -> Response {
    match Parameters::read(request.uri().query(), known) {
        Ok(parameters) => {
            request.extensions_mut().insert(parameters);
            next.run(request).await
        }
        Err(problem) => problem.into_response(),
    }
}

impl<S: Sync> FromRequestParts<S> for Parameters {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        Ok(parts.extensions.get::<Self>().cloned().unwrap_or_default())
    }
}

/// The job id in a path. Ids that no job can have are refused.
#[derive(Debug)]
pub(super) struct JobId(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for JobId {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Problem> {
        let id = Path::<String>::from_request_parts(parts, state).await;
        let Path(id) = id.map_err(|error| Problem::parameter("id", error.body_text()))?;
        // The document counts characters. There is no job whose id has too many bytes.
        if !(1..=MAX_ID_BYTES).contains(&id.chars().count()) || id.chars().any(char::is_control) {
            let why = format!("must be 1 to {MAX_ID_BYTES} characters without control characters");
            return Err(Problem::parameter("id", why));
        }
        Ok(Self(id))
    }
}

/// Returns the text of a header.
pub(super) fn header_text<'h>(
    headers: &'h HeaderMap,
    name: &str,
) -> Result<Option<&'h str>, Problem> {
    let Some(value) = headers.get(name) else { return Ok(None) };
    // UTF-8, because clients use it for text that is not ASCII, whatever the standard says.
    let text = std::str::from_utf8(value.as_bytes());
    text.map(Some).map_err(|_| Problem::parameter(name, "is not valid UTF-8 text"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(query: &str, names: &str) {
        let read = Parameters::read(Some(query), LIST).and_then(|parameters| parameters.filter());
        let text = format!("{:?}", read.expect_err(query));
        assert!(text.contains(names), "{query}: {text}");
    }

    #[test]
    fn errors_name_the_invalid_parameter() {
        check(
            "stat=failed",
            "`stat`: is not a query parameter of this operation; known parameters are state, type",
        );
        check("limit=1&limit=2", "`limit`: is given twice");
        check("limit=0", "`limit` is 0");
        check("limit=x", "`limit`: invalid digit");
        check("state=failed&state=nonsense", "`state`: unknown variant `nonsense`");
        check("state=", "`state`: unknown variant ``");
        check("type=nonsense", "`nonsense` is unknown");
        check("since=tomorrow", "`since`: `tomorrow` is not a time");
        check("tool=", "`tool`: is 0 characters long");
        check("cursor=nonsense", "`cursor` is invalid");
    }

    #[test]
    fn states_can_be_repeated_and_comma_separated() {
        let read = |query| Parameters::read(Some(query), LIST).unwrap().filter().unwrap();
        let expected = [JobState::Failed, JobState::Queued];
        assert_eq!(read("state=failed&state=queued").filter.states, expected);
        assert_eq!(read("state=failed,queued&since=0&tool=a%20b").filter.states, expected);
    }
}
