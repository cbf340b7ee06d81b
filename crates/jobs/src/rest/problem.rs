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
use fleet_job::view::JobView;
use fleet_kafka::KafkaError;
use schemars::JsonSchema;
use serde::Serialize;

mod kind;

pub use kind::ProblemKind;

use super::routes;
use crate::{JobsError, request::BadRequest};

/// The content type of a problem.
pub(super) const CONTENT_TYPE: &str = "application/problem+json";
/// The longest detail, in bytes.
const MAX_DETAIL: usize = 2048;
/// The `Retry-After` of an answer with status 503, in seconds.
const RETRY_AFTER: u64 = 2;

/// An error as RFC 9457 defines it.
#[derive(Debug, Clone, Serialize, JsonSchema)]
pub struct Problem {
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
    /// A problem of this kind.
    pub fn new(kind: ProblemKind, detail: impl Into<String>) -> Self {
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
    pub fn denied(decision: Decision, detail: String) -> Self {
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
    pub fn limited(reached: &LimitReached) -> Self {
        let ms = u64::try_from(reached.retry_after.as_millis()).unwrap_or(u64::MAX);
        Self {
            retry_after_ms: Some(ms),
            ..Self::new(ProblemKind::RateLimited, reached.to_string())
        }
    }

    /// The problem of an invalid parameter or header.
    pub fn parameter(name: &str, why: impl std::fmt::Display) -> Self {
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
            JobsError::RecordGone { .. } => Self::new(ProblemKind::RecordGone, detail),
            JobsError::NoLetter(_) => Self::new(ProblemKind::NoSuchLetter, detail),
            JobsError::NoPause(_) => Self::new(ProblemKind::NoSuchPause, detail),
            JobsError::BadPause(_) => Self::new(ProblemKind::BadPause, detail),
            JobsError::Unsupported(_) => Self::new(ProblemKind::KafkaRefused, detail),
            JobsError::TooLate(_) => Self::new(ProblemKind::TooLate, detail),
            JobsError::Denied { decision, .. } => Self::denied(*decision, detail),
            JobsError::NotPending(job) => Self::new(ProblemKind::NotPending, detail).with_job(*job),
            JobsError::OwnApproval(_) => Self::new(ProblemKind::OwnApproval, detail),
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
            (JobsError::RecordGone { job_id: "j".to_owned() }, 410),
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
