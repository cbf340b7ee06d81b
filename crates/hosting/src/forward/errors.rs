//! The errors that callers get for calls without a result. Their `data` says why, for programs.

use std::time::Duration;

use fleet_codes::{self as codes, Code};
use fleet_job::outcome::UNREADABLE_ANSWER;
use rmcp::model::{ErrorCode, ErrorData};
use serde_json::{Value, json};

use crate::{
    calls::TurnedAway,
    fleet::ServerDown,
    outage::{Outage, OutageReason, SOON},
    routes::WithheldTool,
    unreadable::unreadable_answer,
};

/// When to try a call of a withheld tool again. People decide on it.
const WITHHELD: Duration = Duration::from_secs(5);

/// Why a call has no result, as stated in the error's `data`.
#[derive(Clone, Copy)]
pub(super) struct FailureReason {
    /// The value of `data.reason`.
    name: &'static str,
    /// The value of `data.code`.
    code: Code,
}

pub(super) const UNREADABLE: FailureReason =
    FailureReason { name: UNREADABLE_ANSWER, code: codes::UNREADABLE_ANSWER };
pub(super) const TIMED_OUT: FailureReason =
    FailureReason { name: "timeout", code: codes::HOSTED_TIMEOUT };
const CANCELLED: FailureReason = FailureReason { name: "cancelled", code: codes::CANCELLED };
/// The connection to the server was lost during the call.
pub(super) const LOST: FailureReason =
    FailureReason { name: "connection-lost", code: codes::HOSTED_CONNECTION_LOST };

/// The error for an unreadable answer.
pub(super) fn unreadable_error(server: &str, why: &str) -> ErrorData {
    hosted_error(server, UNREADABLE, &unreadable_answer(why).message, None)
}

pub(super) fn cancelled_error(server: &str) -> ErrorData {
    hosted_error(server, CANCELLED, "the call was cancelled", None)
}

/// The error for a call that was not made.
pub(super) fn turned_away_error(server: &str, error: &TurnedAway) -> ErrorData {
    let message = format!("server `{server}` is not available: {error}");
    outage_error(server, error.reason(), message, error.retry_after())
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Returns whether an error means that the connection to the server was lost during the call.
pub fn is_lost(error: &ErrorData) -> bool {
    let reason = error.data.as_ref().and_then(|data| data.get("reason"));
    reason.is_some_and(|reason| reason == LOST.name)
}

/// The error for a call that a hosted server has taken but not answered readably.
pub(super) fn hosted_error(
    server: &str,
    reason: FailureReason,
    message: &str,
    stderr: Option<String>,
) -> ErrorData {
    let FailureReason { name, code } = reason;
    let mut data = json!({ "reason": name, "code": code.as_str(), "server": server });
    if let (Some(stderr), Value::Object(data)) = (stderr, &mut data) {
        data.insert("stderrTail".to_owned(), stderr.into());
    }
    ErrorData::new(ErrorCode::INTERNAL_ERROR, format!("server `{server}`: {message}"), Some(data))
}

/// The error for a call of a tool that is not known while its server is down.
pub fn tool_down_error(tool: &str, error: &ServerDown) -> ErrorData {
    let mut down = server_down_error(error);
    down.message = format!("cannot call tool `{tool}`: {}", down.message).into();
    down
}

/// The error for a call of a server that is down.
pub fn server_down_error(error: &ServerDown) -> ErrorData {
    outage_error(&error.server, error.outage, error.to_string(), error.retry_after)
}

/// The error for a call of a tool that is not as pinned. A job waits, without keeping jobs for other
/// tools of the server waiting: in place of the server, the error names the tool as the one that is
/// unavailable, which workers of all versions take as it is.
pub fn tool_withheld_error(withheld: &WithheldTool) -> ErrorData {
    let WithheldTool { route, standing } = withheld;
    let code = codes::TOOL_WITHHELD.as_str();
    let (server, standing) = (&route.server, standing.as_str());
    let message = format!(
        "tool `{}` is withheld, because it is not as pinned ({standing}): somebody with the right \
         `servers.pins` has to look at it, for example with `mcp-fleet servers pins diff {server}` [{code}]",
        route.listed.name
    );
    let data = json!({
        "reason": OutageReason::Unavailable.name(),
        "code": code,
        "server": route.listed.name,
        "retryAfterMs": millis(WITHHELD),
    });
    ErrorData::new(ErrorCode::INTERNAL_ERROR, message, Some(data))
}

/// The error for a request that fails only because a server, or the registry that knows it, can't
/// be reached. The request may wait and be repeated.
pub fn server_unavailable_error(server: &str, message: String, retry_after: Duration) -> ErrorData {
    outage_error(server, OutageReason::Unavailable, message, retry_after)
}

/// The error for a request that fails only because of an outage of a server.
pub fn server_outage_error(server: &str, message: String, outage: Outage) -> ErrorData {
    outage_error(server, outage.reason, message, outage.retry_after.unwrap_or(SOON))
}

/// The error for a call that a server did not take.
pub(super) fn outage_error(
    server: &str,
    outage: OutageReason,
    message: String,
    retry_after: Duration,
) -> ErrorData {
    let data = json!({
        "reason": outage.name(),
        "code": outage.code().as_str(),
        "server": server,
        "retryAfterMs": millis(retry_after),
    });
    ErrorData::new(ErrorCode::INTERNAL_ERROR, message, Some(data))
}

/// The error for a call of an unknown server. Repeating the call does not help.
pub fn unknown_server_error(server: &str, tool: &str) -> ErrorData {
    let message = format!(
        "cannot call tool `{tool}`: no MCP server named `{server}` is hosted. Host it with a server-init job or \
         server_initialize, and call its tools once that has succeeded"
    );
    let code = codes::UNKNOWN_SERVER.as_str();
    let data = json!({ "reason": "unknown-server", "code": code, "server": server });
    ErrorData::invalid_params(message, Some(data))
}
