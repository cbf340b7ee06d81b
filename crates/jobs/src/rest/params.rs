//! The parameters of the operations: declared once, checked before any handler, and documented from
//! the same declaration.

use std::{collections::BTreeMap, fmt::Display, str::FromStr, time::Duration};

use axum::{
    extract::{FromRequestParts, Path, Request, State},
    http::{HeaderMap, request::Parts},
    middleware::Next,
    response::{IntoResponse, Response},
};
use fleet_job::{envelope::MAX_ID_BYTES, export::ExportFormat, filter::JobFilter, time::Timestamp};
use fleet_ledger::Query;
use schemars::{Schema, SchemaGenerator};

use super::problem::Problem;
use crate::PageRequest;

mod letters;
mod table;

pub(super) use letters::LetterId;
pub(super) use table::*;

/// The longest wait that a request may ask for, in seconds.
const MAX_WAIT_SECONDS: u64 = 60;
/// How long a cancellation waits for its outcome by default, in seconds.
pub(super) const CANCEL_WAIT_SECONDS: u64 = 5;
/// The longest reason or filter, in characters.
const MAX_TEXT: usize = 1024;

/// The most members of the metadata in a filter.
const MAX_MEMBERS: usize = 8;

/// The part of a request that contains a parameter.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParamLocation {
    /// A segment of the path.
    Path,
    /// The query.
    Query,
    /// A header.
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
pub struct Param {
    /// The name.
    pub name: &'static str,
    /// Where it is.
    pub location: ParamLocation,
    /// Whether it may occur several times.
    pub many: bool,
    /// Whether it must be given.
    pub required: bool,
    /// What it means.
    pub description: &'static str,
    /// The schema of its value.
    pub schema: fn(&mut SchemaGenerator) -> Schema,
    /// A value.
    pub example: &'static str,
}

/// The query of a request. Every name in it is known, and none occurs too often.
#[derive(Debug, Clone, Default)]
pub struct Parameters(Vec<(String, String)>);

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

    /// Returns the value of a parameter.
    pub fn get(&self, name: &str) -> Option<&str> {
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
        self.text_up_to(name, min, MAX_TEXT)
    }

    /// Returns a text of `min` to `max` characters.
    fn text_up_to(&self, name: &str, min: usize, max: usize) -> Result<Option<String>, Problem> {
        let Some(text) = self.get(name) else { return Ok(None) };
        let length = text.chars().count();
        if !(min..=max).contains(&length) {
            let why = format!("is {length} characters long; it must be {min} to {max} characters");
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

    /// Returns the members that the metadata must have.
    fn members(&self) -> Result<BTreeMap<String, String>, Problem> {
        let mut members = BTreeMap::new();
        for (_, text) in self.0.iter().filter(|(name, _)| name == "metadata") {
            let member = text.split_once('=').filter(|(name, _)| !name.is_empty());
            let Some((name, value)) = member else {
                let why = "must be `name=value`, with the name of a member of the metadata";
                return Err(Problem::parameter("metadata", why));
            };
            if text.chars().count() > MAX_TEXT {
                let why = format!("is longer than {MAX_TEXT} characters");
                return Err(Problem::parameter("metadata", why));
            }
            if members.insert(name.to_owned(), value.to_owned()).is_some() {
                let why = format!("has two values of `{name}`, and a job has one at most");
                return Err(Problem::parameter("metadata", why));
            }
        }

        if members.len() > MAX_MEMBERS {
            let why =
                format!("is given {} times; at most {MAX_MEMBERS} are allowed", members.len());
            return Err(Problem::parameter("metadata", why));
        }
        Ok(members)
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

    /// Returns the name of a bulk operation.
    pub(super) fn operation(&self) -> Result<Option<String>, Problem> {
        self.text_up_to("operation", 1, MAX_ID_BYTES)
    }

    /// Returns whether nothing is to be done.
    pub(super) fn is_dry_run(&self) -> Result<bool, Problem> {
        Ok(self.parse("dryRun")?.unwrap_or(false))
    }

    /// Returns the format of an export.
    pub(super) fn format(&self) -> Result<ExportFormat, Problem> {
        Ok(self.parse("format")?.unwrap_or_default())
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
            id_prefix: self.text_up_to("idPrefix", 1, MAX_ID_BYTES)?,
            error_code: self.text("errorCode", 1)?,
            metadata: self.members()?,
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
    use fleet_job::event::JobState;

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
        check("idPrefix=", "`idPrefix`: is 0 characters long");
        check("metadata=team", "`metadata`: must be `name=value`");
        check("metadata==x", "`metadata`: must be `name=value`");
        check("metadata=a=1&metadata=a=2", "has two values of `a`");
        let many: Vec<_> = (0..9).map(|n| format!("metadata=a{n}=1")).collect();
        check(&many.join("&"), "is given 9 times");
    }

    #[test]
    fn a_search_names_members_of_the_metadata() {
        let read = |query| Parameters::read(Some(query), LIST).unwrap().filter().unwrap().filter;
        let found = read("metadata=a%3D1=2&metadata=team%3Dx&idPrefix=order-&errorCode=FLEET-TOOL");
        let members = [("a", "1=2"), ("team", "x")];
        assert_eq!(found.metadata, members.map(|(a, b)| (a.to_owned(), b.to_owned())).into());
        assert_eq!(found.id_prefix.as_deref(), Some("order-"));
        assert_eq!(found.error_code.as_deref(), Some("FLEET-TOOL"));
    }

    #[test]
    fn states_can_be_repeated_and_comma_separated() {
        let read = |query| Parameters::read(Some(query), LIST).unwrap().filter().unwrap();
        let expected = [JobState::Failed, JobState::Queued];
        assert_eq!(read("state=failed&state=queued").filter.states, expected);
        assert_eq!(read("state=failed,queued&since=0&tool=a%20b").filter.states, expected);
    }
}
