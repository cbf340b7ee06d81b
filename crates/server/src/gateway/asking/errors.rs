//! The errors that callers get instead of what they may not do, or not now.

use std::time::Duration;

use fleet_access::{Action, Decision, LimitReached, RuleEffect};
use rmcp::model::{ErrorCode, ErrorData};
use serde_json::json;

/// The error for what a decision does not allow. If it can be approved, the error says how long
/// somebody may take.
pub(super) fn refusal_error(
    action: Action,
    decision: &Decision,
    approval_ttl: Option<Duration>,
) -> ErrorData {
    let message = decision.message(action.as_str()).unwrap_or_default();
    let mut data = json!({
        "reason": decision.reason(),
        "code": decision.code().map(|code| code.as_str()),
        "action": action.as_str(),
        "rule": decision.rule.as_str(),
    });
    if let Some(ttl) = approval_ttl.filter(|_| decision.verdict == RuleEffect::Approve) {
        data["approvalTtlMs"] = u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX).into();
    }
    if !decision.scopes.is_empty() {
        data["scopes"] = json!(decision.scopes);
    }
    ErrorData::new(ErrorCode::INVALID_REQUEST, message, Some(data))
}

/// The error for a call that met a limit. A job waits until then.
pub(super) fn limit_error(reached: &LimitReached, server: Option<&str>) -> ErrorData {
    let mut data = json!({
        "reason": "rate-limited",
        "code": reached.code().as_str(),
        "limit": &*reached.limit,
        "retryAfterMs": u64::try_from(reached.retry_after.as_millis()).unwrap_or(u64::MAX),
    });
    if let Some(server) = server {
        data["server"] = server.into();
    }
    ErrorData::new(ErrorCode::INVALID_REQUEST, reached.to_string(), Some(data))
}

/// The error for a worker that may not act for others.
pub(super) fn refused_worker_error(again: Duration) -> ErrorData {
    let code = fleet_codes::WORKER_REFUSED;
    let data = json!({
        // A reason that workers of all versions know, and that has their jobs wait.
        "reason": "server-busy",
        "code": code.as_str(),
        "retryAfterMs": u64::try_from(again.as_millis()).unwrap_or(u64::MAX),
    });
    let message = format!(
        "this caller may not make calls for jobs of others: it needs the role `fleet-worker` or a \
         rule for `act-as`, and has to pass on who has signed the job [{code}]"
    );
    ErrorData::new(ErrorCode::INVALID_REQUEST, message, Some(data))
}

/// The error for a request that nobody was authenticated for. Its transport authenticates all, so
/// this is a fault of the server.
pub(super) fn unauthenticated() -> ErrorData {
    let code = fleet_codes::UNAUTHENTICATED;
    let data = json!({ "reason": "denied", "code": code.as_str() });
    let message = format!("nobody was authenticated for this request [{code}]");
    ErrorData::new(ErrorCode::INVALID_REQUEST, message, Some(data))
}
