//! Errors as problem details (RFC 9457), the same for errors of handlers, of the router and of
//! middleware.

use axum::{
    body::{Body, to_bytes},
    extract::Request,
    http::{HeaderValue, StatusCode, header},
    middleware::Next,
    response::{IntoResponse, Response},
};
use fleet_access::{Decision, LimitReached, RequiredScopes, RuleEffect};
use fleet_codes::{self as codes, Code};
use fleet_job::view::JobView;
use fleet_kafka::KafkaError;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Serialize, Serializer};

use super::routes;
use crate::{JobsError, request::BadRequest};

/// The content type of a problem.
pub(super) const CONTENT_TYPE: &str = "application/problem+json";
/// Precedes the name of a problem in `type`.
const PREFIX: &str = "urn:mcp-fleet:problem:";
/// The longest detail, in bytes.
const MAX_DETAIL: usize = 2048;
/// The `Retry-After` of an answer with status 503, in seconds.
const RETRY_AFTER: u64 = 2;

/// The kinds of problems. The set is closed, so that programs can tell problems apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ProblemKind {
    BadRequest,
    MalformedCredentials,
    Unauthenticated,
    Forbidden,
    Denied,
    InsufficientScope,
    ApprovalRequired,
    NoSuchJob,
    NoSuchPath,
    JobsOff,
    MethodNotAllowed,
    BodyTimeout,
    RateLimited,
    TooLate,
    TooLarge,
    UnsupportedMediaType,
    BadJob,
    Internal,
    KafkaRefused,
    NotReady,
    KafkaUnavailable,
    LedgerUnavailable,
    TooManyStreams,
    NoIssuerKeys,
    AuditUnavailable,
}

impl ProblemKind {
    pub(super) const ALL: [Self; 25] = [
        Self::BadRequest,
        Self::MalformedCredentials,
        Self::Unauthenticated,
        Self::Forbidden,
        Self::Denied,
        Self::InsufficientScope,
        Self::ApprovalRequired,
        Self::NoSuchJob,
        Self::NoSuchPath,
        Self::JobsOff,
        Self::MethodNotAllowed,
        Self::BodyTimeout,
        Self::RateLimited,
        Self::TooLate,
        Self::TooLarge,
        Self::UnsupportedMediaType,
        Self::BadJob,
        Self::Internal,
        Self::KafkaRefused,
        Self::NotReady,
        Self::KafkaUnavailable,
        Self::LedgerUnavailable,
        Self::TooManyStreams,
        Self::NoIssuerKeys,
        Self::AuditUnavailable,
    ];

    /// Returns name, title and status.
    fn describe(self) -> (&'static str, &'static str, StatusCode) {
        match self {
            Self::BadRequest => {
                ("bad-request", "The request can't be read", StatusCode::BAD_REQUEST)
            }
            Self::MalformedCredentials => (
                "malformed-credentials",
                "The credentials of the request can't be read",
                StatusCode::BAD_REQUEST,
            ),
            Self::Unauthenticated => {
                ("unauthenticated", "The request needs valid credentials", StatusCode::UNAUTHORIZED)
            }
            Self::Forbidden => {
                ("forbidden", "The request is not meant for this server", StatusCode::FORBIDDEN)
            }
            Self::Denied => ("denied", "The caller may not do this", StatusCode::FORBIDDEN),
            Self::InsufficientScope => (
                "insufficient-scope",
                "The caller's access token has too few scopes",
                StatusCode::FORBIDDEN,
            ),
            Self::ApprovalRequired => (
                "approval-required",
                "Another principal has to approve this",
                StatusCode::FORBIDDEN,
            ),
            Self::NoSuchJob => ("no-such-job", "There is no such job", StatusCode::NOT_FOUND),
            Self::NoSuchPath => ("no-such-path", "The path does not exist", StatusCode::NOT_FOUND),
            Self::JobsOff => ("jobs-off", "This server accepts no jobs", StatusCode::NOT_FOUND),
            Self::MethodNotAllowed => (
                "method-not-allowed",
                "The path does not support this method",
                StatusCode::METHOD_NOT_ALLOWED,
            ),
            Self::BodyTimeout => {
                ("body-timeout", "The body took too long", StatusCode::REQUEST_TIMEOUT)
            }
            Self::RateLimited => {
                ("rate-limited", "The caller has reached a limit", StatusCode::TOO_MANY_REQUESTS)
            }
            Self::TooLate => {
                ("too-late", "The job has already ended otherwise", StatusCode::CONFLICT)
            }
            Self::TooLarge => {
                ("too-large", "The request is too large", StatusCode::PAYLOAD_TOO_LARGE)
            }
            Self::UnsupportedMediaType => (
                "unsupported-media-type",
                "The body must be JSON",
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
            ),
            Self::BadJob => ("bad-job", "The job is invalid", StatusCode::UNPROCESSABLE_ENTITY),
            Self::Internal => ("internal", "The server failed", StatusCode::INTERNAL_SERVER_ERROR),
            Self::KafkaRefused => {
                ("kafka-refused", "Kafka refused the job", StatusCode::BAD_GATEWAY)
            }
            Self::NotReady => {
                ("not-ready", "The server is not ready", StatusCode::SERVICE_UNAVAILABLE)
            }
            Self::KafkaUnavailable => {
                ("kafka-unavailable", "Kafka can't be reached", StatusCode::SERVICE_UNAVAILABLE)
            }
            Self::LedgerUnavailable => (
                "ledger-unavailable",
                "The states of jobs can't be looked up now",
                StatusCode::SERVICE_UNAVAILABLE,
            ),
            Self::TooManyStreams => {
                ("too-many-streams", "Too many streams are open", StatusCode::SERVICE_UNAVAILABLE)
            }
            Self::NoIssuerKeys => (
                "no-issuer-keys",
                "The credentials can't be checked now",
                StatusCode::SERVICE_UNAVAILABLE,
            ),
            Self::AuditUnavailable => (
                "audit-unavailable",
                "The request can't be recorded now",
                StatusCode::SERVICE_UNAVAILABLE,
            ),
        }
    }

    pub(super) fn name(self) -> &'static str {
        self.describe().0
    }

    /// The stable code that `docs/errors.md` explains.
    pub(super) fn code(self) -> Code {
        match self {
            Self::BadRequest => codes::BAD_REQUEST,
            Self::MalformedCredentials => codes::MALFORMED_CREDENTIALS,
            Self::Unauthenticated => codes::UNAUTHENTICATED,
            Self::Forbidden => codes::FORBIDDEN,
            Self::Denied => codes::DENIED,
            Self::InsufficientScope => codes::INSUFFICIENT_SCOPE,
            Self::ApprovalRequired => codes::APPROVAL_REQUIRED,
            Self::NoSuchJob => codes::NO_SUCH_JOB,
            Self::NoSuchPath => codes::NO_SUCH_PATH,
            Self::JobsOff => codes::JOBS_OFF,
            Self::MethodNotAllowed => codes::METHOD_NOT_ALLOWED,
            Self::BodyTimeout => codes::BODY_TIMEOUT,
            Self::RateLimited => codes::RATE_LIMITED,
            Self::TooLate => codes::TOO_LATE,
            Self::TooLarge => codes::TOO_LARGE,
            Self::UnsupportedMediaType => codes::UNSUPPORTED_MEDIA_TYPE,
            Self::BadJob => codes::BAD_JOB,
            Self::Internal => codes::INTERNAL,
            Self::KafkaRefused => codes::KAFKA_REFUSED,
            Self::NotReady => codes::NOT_READY,
            Self::KafkaUnavailable => codes::KAFKA_UNAVAILABLE,
            Self::LedgerUnavailable => codes::LEDGER_UNAVAILABLE,
            Self::TooManyStreams => codes::TOO_MANY_STREAMS,
            Self::NoIssuerKeys => codes::NO_ISSUER_KEYS,
            Self::AuditUnavailable => codes::AUDIT_UNAVAILABLE,
        }
    }

    pub(super) fn status(self) -> StatusCode {
        self.describe().2
    }

    /// Returns the kind of an error that was not answered by a handler.
    fn of_status(status: StatusCode) -> Self {
        match status {
            StatusCode::UNAUTHORIZED => Self::Unauthenticated,
            StatusCode::FORBIDDEN => Self::Forbidden,
            StatusCode::NOT_FOUND => Self::NoSuchPath,
            StatusCode::METHOD_NOT_ALLOWED => Self::MethodNotAllowed,
            StatusCode::REQUEST_TIMEOUT => Self::BodyTimeout,
            StatusCode::PAYLOAD_TOO_LARGE => Self::TooLarge,
            StatusCode::UNSUPPORTED_MEDIA_TYPE => Self::UnsupportedMediaType,
            status if status.is_client_error() => Self::BadRequest,
            _ => Self::Internal,
        }
    }
}

impl Serialize for ProblemKind {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{PREFIX}{}", self.name()))
    }
}

impl JsonSchema for ProblemKind {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "ProblemType".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        let names = Self::ALL.map(|kind| format!("{PREFIX}{}", kind.name()));
        json_schema!({"description": "The kind of problem.", "type": "string", "enum": names})
    }
}

/// An error as RFC 9457 defines it.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub(super) struct Problem {
    /// The kind of problem.
    #[serde(rename = "type")]
    kind: ProblemKind,
    /// The stable code of the problem, which `docs/errors.md` explains.
    code: &'static str,
    /// The kind of problem for people.
    title: &'static str,
    /// The HTTP status of the answer.
    status: u16,
    /// What is wrong with this request.
    detail: String,
    /// The position of the invalid job in the request, counted from 0.
    #[serde(skip_serializing_if = "Option::is_none")]
    index: Option<usize>,
    /// The invalid parameter or header.
    #[serde(skip_serializing_if = "Option::is_none")]
    parameter: Option<String>,
    /// The limit that the request exceeds.
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<usize>,
    /// The present state of the job.
    #[serde(skip_serializing_if = "Option::is_none")]
    job: Option<Box<JobView>>,
    /// When to try again, in milliseconds.
    #[serde(rename = "retryAfterMs", skip_serializing_if = "Option::is_none")]
    retry_after_ms: Option<u64>,
    /// The rule that refused the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<String>,
    /// All scopes that an access token needs for the request.
    #[serde(skip_serializing_if = "Option::is_none")]
    scopes: Option<Vec<String>>,
}

impl Problem {
    pub(super) fn new(kind: ProblemKind, detail: impl Into<String>) -> Self {
        let (_, title, status) = kind.describe();
        let mut detail = detail.into();
        // The detail may repeat parts of the request, which may be long.
        if detail.len() > MAX_DETAIL {
            detail.truncate(detail.floor_char_boundary(MAX_DETAIL));
            detail.push('…');
        }

        Self {
            kind,
            code: kind.code().as_str(),
            title,
            status: status.as_u16(),
            detail,
            index: None,
            parameter: None,
            limit: None,
            job: None,
            retry_after_ms: None,
            rule: None,
            scopes: None,
        }
    }

    /// The problem of a request that a decision does not allow.
    pub(super) fn denied(decision: Decision, detail: String) -> Self {
        let kind = match decision.verdict {
            RuleEffect::Approve => ProblemKind::ApprovalRequired,
            _ if decision.scopes.is_empty() => ProblemKind::Denied,
            _ => ProblemKind::InsufficientScope,
        };
        let rule = Some(decision.rule.as_str().to_owned());
        let scopes = (!decision.scopes.is_empty()).then_some(decision.scopes);
        Self { rule, scopes, ..Self::new(kind, detail) }
    }

    /// The problem of a request that met a limit.
    pub(super) fn limited(reached: &LimitReached) -> Self {
        let ms = u64::try_from(reached.retry_after.as_millis()).unwrap_or(u64::MAX);
        Self {
            retry_after_ms: Some(ms),
            ..Self::new(ProblemKind::RateLimited, reached.to_string())
        }
    }

    /// The problem of an invalid parameter or header.
    pub(super) fn parameter(name: &str, why: impl std::fmt::Display) -> Self {
        let name: String = name.chars().take(100).collect();
        Self {
            parameter: Some(name.clone()),
            ..Self::new(ProblemKind::BadRequest, format!("`{name}`: {why}"))
        }
    }

    pub(super) fn with_index(self, index: Option<usize>) -> Self {
        Self { index, ..self }
    }

    pub(super) fn with_limit(self, limit: usize) -> Self {
        Self { limit: Some(limit), ..self }
    }

    pub(super) fn with_job(self, job: JobView) -> Self {
        Self { job: Some(Box::new(job)), ..self }
    }
}

impl From<BadRequest> for Problem {
    fn from(error: BadRequest) -> Self {
        Self::new(ProblemKind::BadJob, error.to_string())
    }
}

impl From<JobsError> for Problem {
    fn from(error: JobsError) -> Self {
        let detail = error.to_string();
        match error {
            JobsError::NotReady(_) => Self::new(ProblemKind::NotReady, detail),
            JobsError::NotFound(_) | JobsError::NotSearched(_) => {
                Self::new(ProblemKind::NoSuchJob, detail)
            }
            JobsError::Denied { decision, .. } => Self::denied(*decision, detail),
            JobsError::Limited(reached) => Self::limited(&reached),
            JobsError::Unrecorded(_) => Self::new(ProblemKind::AuditUnavailable, detail),
            JobsError::Bad(_) => Self::new(ProblemKind::BadJob, detail),
            JobsError::BadJob { index, .. } => {
                Self::new(ProblemKind::BadJob, detail).with_index(Some(index))
            }
            JobsError::TooLarge { limit, .. } => {
                Self::new(ProblemKind::TooLarge, detail).with_limit(limit)
            }
            JobsError::Kafka(KafkaError::NoTopic(_)) => Self::new(ProblemKind::NotReady, detail),
            JobsError::Kafka(error) if error.is_retryable() => {
                Self::new(ProblemKind::KafkaUnavailable, detail)
            }
            JobsError::Kafka(_) => Self::new(ProblemKind::KafkaRefused, detail),
            JobsError::LedgerAway(_) => {
                tracing::debug!(error = error.cause(), "the ledger's database is away");
                Self::new(ProblemKind::LedgerUnavailable, detail)
            }
            JobsError::Store(_) => {
                // The error names files, which only the operator should know.
                tracing::error!(error = detail, "the ledger failed");
                Self::new(ProblemKind::Internal, "the ledger failed; see the server's log")
            }
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let status = self.kind.status();
        // A struct of plain fields always serializes.
        let body = serde_json::to_vec(&self).unwrap_or_default();
        let headers = [(header::CONTENT_TYPE, CONTENT_TYPE)];
        let mut response = (status, headers, body).into_response();
        if let Some(scopes) = self.scopes {
            // The layer that knows where clients get tokens makes a challenge of them.
            response.extensions_mut().insert(RequiredScopes(scopes));
        }
        let retry_after = match self.retry_after_ms {
            Some(ms) => Some(ms.div_ceil(1000).max(1)),
            None => (status == StatusCode::SERVICE_UNAVAILABLE).then_some(RETRY_AFTER),
        };
        if let Some(seconds) = retry_after {
            response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// Turns errors into problems that were not answered by a handler, but by the router or by
/// middleware.
pub async fn translate_errors(request: Request, next: Next) -> Response {
    if routes::path_label(request.uri().path()).is_none() {
        return next.run(request).await;
    }

    let response = next.run(request).await;
    let status = response.status();
    let is_problem = response
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes() == CONTENT_TYPE.as_bytes());
    if is_problem || !(status.is_client_error() || status.is_server_error()) {
        return response;
    }

    let (mut parts, body) = response.into_parts();
    let kind = ProblemKind::of_status(status);
    // The body is a sentence of our own, which is short.
    let text = to_bytes(body, MAX_DETAIL).await.unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let detail = match text.trim() {
        "" => kind.describe().1.to_owned(),
        text => text.to_owned(),
    };

    let problem = Problem { status: status.as_u16(), ..Problem::new(kind, detail) };
    parts.headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE));
    parts.headers.remove(header::CONTENT_LENGTH);
    Response::from_parts(parts, Body::from(serde_json::to_vec(&problem).unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_problem_has_type_status_detail_and_retry_after() {
        let response =
            Problem::from(JobsError::NotReady("the events topic is being read".to_owned()))
                .into_response();
        assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(response.headers()[header::CONTENT_TYPE], CONTENT_TYPE);
        assert_eq!(response.headers()[header::RETRY_AFTER], "2");
        let body = to_bytes(response.into_body(), 10_000).await.unwrap();
        let body: serde_json::Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(body["type"], "urn:mcp-fleet:problem:not-ready");
        assert_eq!(body["status"], 503);
        assert!(body["detail"].as_str().unwrap().contains("is being read"), "{body}");
    }

    #[test]
    fn long_details_are_cut() {
        let problem = Problem::parameter("state", "ä".repeat(1_000_000));
        assert!(problem.detail.len() < MAX_DETAIL + 4 && problem.detail.ends_with('…'));
    }

    #[test]
    fn every_error_has_its_status() {
        let bad = || BadRequest("no".to_owned());
        let too_large = JobsError::TooLarge { job_id: "j".to_owned(), bytes: 2, limit: 1 };
        for (error, status) in [
            (JobsError::NotFound("j".to_owned()), 404),
            (JobsError::Bad(bad()), 422),
            (JobsError::BadJob { index: 3, error: bad() }, 422),
            (too_large, 413),
            (JobsError::Kafka(KafkaError::NoTopic("t".to_owned())), 503),
            (JobsError::Kafka(KafkaError::PollThread("gone")), 502),
            (JobsError::from(fleet_ledger::StoreError::Worker), 500),
            (JobsError::from(fleet_ledger::StoreError::Unanswered), 503),
        ] {
            let problem = Problem::from(error);
            assert_eq!(problem.status, status, "{problem:?}");
        }
    }
}
