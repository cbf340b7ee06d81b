//! Classifying what came back, as pure functions.
//!
//! Three layers can fail: the transport, JSON-RPC, and the tool. Each has one function here.
//! Together they are the only place that decides whether a job waits, is retried, or has failed for
//! good.

use std::time::{Duration, SystemTime};

use fleet_codes as codes;
use fleet_job::meta::FINAL;
use fleet_job::outcome::{ErrorKind, Failure, JobError, Outcome, UNREADABLE_ANSWER, WaitReason};
use fleet_wire::head::{MAX_RETRY_AFTER, retry_after};
use serde_json::{Value, json};

use crate::wire::{HEADER_MISMATCH, MISSING_CAPABILITY, RpcError, UNSUPPORTED_VERSION};

/// The longest quote of the other side in a message, in characters.
const MAX_QUOTE: usize = 500;

/// Why a request got no readable answer.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Broken {
    /// The server cannot have seen the request: connection refused, DNS, TLS, or no connection in
    /// time.
    NotSent(String),
    /// The connection broke after the request was handed to it.
    Lost(String),
    /// The answer did not come in time.
    TimedOut(Duration),
    /// The answer is larger than the limit.
    TooLarge(usize),
    /// The answer is complete but cannot be read. Tells what is wrong.
    Unreadable(String),
    /// The answer is complete but is neither JSON nor an event stream. Tells what it is.
    ContentType(String),
    /// The request was accepted without an answer.
    Unanswered,
}

/// The parts of an HTTP response other than its JSON-RPC message.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Head {
    pub(crate) status: u16,
    /// The header `Retry-After` as received.
    pub(crate) retry_after: Option<String>,
    /// The header `Location` as received.
    pub(crate) location: Option<String>,
    /// The start of a body that is not JSON-RPC.
    pub(crate) text: String,
}

/// What follows from an HTTP status.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// The status tells nothing by itself; the JSON-RPC error decides, if there is one.
    AskBody,
    Unauthorized,
    Redirected,
    /// The server says that it is at capacity.
    Full(WaitReason),
    Retry,
    Permanent,
}

/// Classifies an HTTP error by its status.
fn judge_status(head: &Head) -> Verdict {
    match head.status {
        401 | 403 | 407 => Verdict::Unauthorized,
        300..=399 => Verdict::Redirected,
        429 => Verdict::Full(WaitReason::RateLimited),
        // A server that asks for a delay is running. Otherwise the call may have been lost behind
        // it.
        503 if head.retry_after.is_some() => Verdict::Full(WaitReason::ServerBusy),
        // A request that came too early or to the wrong host may succeed later.
        408 | 421 | 425 | 502..=504 => Verdict::Retry,
        400..=499 => Verdict::Permanent,
        _ => Verdict::AskBody,
    }
}

/// Returns the failure for a request that got no readable answer. `at` is the label of the
/// endpoint.
pub(crate) fn classify_broken(broken: &Broken, at: &str) -> Failure {
    let error = |kind, message| JobError::new(kind, message);
    match broken {
        Broken::NotSent(why) => Failure::unavailable(error(
            ErrorKind::Connect,
            format!("cannot connect to {at}: {}", quote(why)),
        )),
        Broken::Lost(why) => Failure::retry(error(
            ErrorKind::ConnectionLost,
            format!("the connection to {at} was lost after the request was sent: {}", quote(why)),
        )),
        Broken::TimedOut(limit) => Failure::retry(error(
            ErrorKind::Timeout,
            format!("{at} did not answer within {} ms", limit.as_millis()),
        )),
        // The tool has run and would give the same answer again.
        Broken::TooLarge(limit) => Failure::permanent(error(
            ErrorKind::Protocol,
            format!("the answer of {at} exceeds the limit of {limit} bytes"),
        )),
        Broken::Unreadable(why) => {
            unreadable_failure(format!("the answer of {at} cannot be read: {}", quote(why)))
        }
        Broken::ContentType(found) => unreadable_failure(format!(
            "the answer of {at} is neither JSON nor an event stream, but {}",
            quote(found)
        )),
        Broken::Unanswered => {
            unreadable_failure(format!("{at} accepted the request without answering it"))
        }
    }
}

/// Returns the failure of a call whose answer cannot be read. The tool may have run and would give
/// the same answer again.
fn unreadable_failure(message: String) -> Failure {
    let data = json!({ "reason": UNREADABLE_ANSWER });
    let error = JobError::new(ErrorKind::Protocol, message).with_data(data);
    Failure::permanent(error.with_error_code(codes::UNREADABLE_ANSWER))
}

/// Returns the failure for an HTTP error status, with the JSON-RPC error in its body if there is
/// one.
pub(crate) fn classify_http(
    head: &Head,
    error: Option<&RpcError>,
    now: SystemTime,
    at: &str,
) -> Failure {
    let delay = head.retry_after.as_deref().and_then(|text| retry_after(text, now));
    // The reason that our server gives for a call takes precedence over the status of the request.
    if let Some(failure) = error.and_then(|error| classify_reason(error, at)) {
        let wish = failure.retry_after.max(delay);
        return failure.after(wish);
    }

    let status = i64::from(head.status);
    let verdict = judge_status(head);
    let detail =
        error.map_or_else(|| describe_status(head, at), |error| to_job_error(error, at).message);

    let failure = match verdict {
        Verdict::Unauthorized => {
            let message = format!("{at} refuses our credentials (HTTP {status}): {detail}");
            Failure::unavailable(JobError::new(ErrorKind::Unauthorized, message).with_code(status))
        }
        Verdict::Redirected => {
            let target = quote(head.location.as_deref().unwrap_or("an unknown URL"));
            let message = format!(
                "{at} redirects to {target} (HTTP {status}), but redirects are not followed; configure the final URL"
            );
            Failure::unavailable(JobError::new(ErrorKind::Http, message).with_code(status))
        }
        Verdict::Full(_) | Verdict::Retry | Verdict::Permanent => {
            let error = match error {
                Some(error) => to_job_error(error, at),
                None => JobError::new(ErrorKind::Http, detail).with_code(status),
            };
            match verdict {
                Verdict::Full(reason) => Failure::held(reason, None, error),
                Verdict::Retry => Failure::retry(error),
                _ => Failure::permanent(error),
            }
        }
        Verdict::AskBody => match error {
            Some(error) => classify_rpc(error, at),
            None => Failure::retry(JobError::new(ErrorKind::Http, detail).with_code(status)),
        },
    };

    failure.after(delay)
}

/// Returns whether the error gives one of the contract's reasons for waiting.
pub(crate) fn gives_reason(error: &JobError) -> bool {
    let reason = error.data.as_ref().and_then(|data| data.get("reason")?.as_str());
    reason.and_then(WaitReason::of_answer).is_some()
}

/// Returns the failure for the reason that our server gives in `data.reason` for not making a call.
/// Returns `None` if there is no known reason.
fn classify_reason(error: &RpcError, at: &str) -> Option<Failure> {
    let data = error.data.as_ref()?;
    let reason = data.get("reason")?.as_str()?;
    match reason {
        // Repeating a call does not get it approved.
        "denied" | "approval-required" => return Some(Failure::permanent(to_job_error(error, at))),
        // The tool behind our server has run and would give the same answer again.
        UNREADABLE_ANSWER => {
            let error = JobError { kind: ErrorKind::Protocol, ..to_job_error(error, at) };
            return Some(Failure::permanent(error.with_error_code(codes::UNREADABLE_ANSWER)));
        }
        _ => {}
    }

    let reason = WaitReason::of_answer(reason)?;
    let server = data.get("server").and_then(Value::as_str).map(str::to_owned);
    let delay = data.get("retryAfterMs").and_then(Value::as_u64).map(Duration::from_millis);
    let delay = delay.map(|delay| delay.min(MAX_RETRY_AFTER));

    Some(Failure::held(reason, server, to_job_error(error, at)).after(delay))
}

/// Describes an HTTP error that has no JSON-RPC error in its body.
fn describe_status(head: &Head, at: &str) -> String {
    let text = quote(&head.text);
    let separator = if text.is_empty() { "" } else { ": " };
    format!("{at} answered HTTP {}{separator}{text}", head.status)
}

/// Returns the failure for a JSON-RPC error.
pub(crate) fn classify_rpc(error: &RpcError, at: &str) -> Failure {
    if let Some(failure) = classify_reason(error, at) {
        return failure;
    }
    match error.code {
        -32700 | -32600 | -32601 | -32602 => Failure::permanent(to_job_error(error, at)),
        HEADER_MISMATCH | MISSING_CAPABILITY | UNSUPPORTED_VERSION => {
            Failure::permanent(to_job_error(error, at))
        }
        _ => Failure::retry(to_job_error(error, at)),
    }
}

/// Converts a JSON-RPC error into the fleet's error.
fn to_job_error(error: &RpcError, at: &str) -> JobError {
    let message = format!("{at} answered with error {}: {}", error.code, quote(&error.message));
    let told = JobError {
        data: error.data.clone(),
        ..JobError::new(ErrorKind::JsonRpc, message).with_code(error.code)
    };

    // Our server names a more precise code.
    let code = error.data.as_ref().and_then(|data| codes::find(data.get("code")?.as_str()?));
    match code {
        Some(code) => told.with_error_code(code),
        None => told,
    }
}

/// Classifies the result of `tools/call`. A question is a result too if somebody can be asked.
pub(crate) fn classify_result(result: Value, may_ask: bool, at: &str) -> Outcome {
    let protocol = |message: String| {
        Outcome::Failed(Failure::permanent(JobError::new(ErrorKind::Protocol, message)))
    };

    match result.get("resultType").map(|kind| kind.as_str().unwrap_or_default()) {
        None | Some("complete") => {}
        Some("input_required") if may_ask => return Outcome::Succeeded(result),
        Some("input_required") => {
            return protocol(format!(
                "the tool at {at} asks for input, but nobody can be asked within a job"
            ));
        }
        Some("task") => {
            return protocol(format!(
                "{at} answered with a task, although this client does not support tasks"
            ));
        }
        Some(other) => {
            return protocol(format!(
                "{at} answered with a result of unknown type {:?}",
                quote(other)
            ));
        }
    }

    if result.get("isError").and_then(Value::as_bool) != Some(true) {
        return Outcome::Succeeded(result);
    }

    let text = first_text(&result).map(quote).filter(|text| !text.is_empty());
    let message = text.unwrap_or_else(|| "the tool reported an error without a message".to_owned());

    let is_final =
        result.get("_meta").and_then(|meta| meta.get(FINAL)).and_then(Value::as_bool) == Some(true);

    let error = JobError::new(ErrorKind::Tool, message).with_data(result);
    Outcome::Failed(if is_final { Failure::permanent(error) } else { Failure::retry(error) })
}

fn first_text(result: &Value) -> Option<&str> {
    let mut blocks = result.get("content")?.as_array()?.iter();
    blocks.find_map(|block| block.get("text").and_then(Value::as_str))
}

/// Quotes text of the other side on one line, with bounded length.
pub(crate) fn quote(text: &str) -> String {
    fleet_wire::quote(text, MAX_QUOTE)
}

#[cfg(test)]
#[path = "classify_tests.rs"]
mod tests;
