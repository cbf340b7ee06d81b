//! The outcome of a call, and the one error vocabulary of the fleet.
//!
//! A tool call passes three layers (transport, JSON-RPC, tool), each of which fails in its own way.
//! Callers must not guess from strings whether to retry, so the layer that sees a failure
//! classifies it once, in these terms.

use std::time::Duration;

use fleet_codes::{self as codes, Code};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The `data.reason` of an error: the hosted server answered this call, but the answer cannot be
/// read. The tool may have run, so the call must not be repeated.
pub const UNREADABLE_ANSWER: &str = "unreadable-answer";

/// The outcome of one attempt at a job.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// The tool answered without an error. The value is the result as the tool gave it.
    Succeeded(Value),
    /// The attempt failed. [`Failure::class`] decides what happens next.
    Failed(Failure),
}

/// A failed attempt.
#[derive(Debug, Clone, PartialEq)]
pub struct Failure {
    /// What follows from the failure.
    pub class: FailureClass,
    /// What went wrong, for people and for the terminal event.
    pub error: JobError,
    /// The delay before the next attempt that the server asked for (`Retry-After`, `retryAfterMs`).
    pub retry_after: Option<Duration>,
    /// The hosted server that a [`FailureClass::Held`] is about; `None` if it is about our server
    /// as a whole.
    pub server: Option<String>,
}

/// What follows from a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FailureClass {
    /// The server cannot be reached or refuses our credentials (401, 403). No attempt is spent, and
    /// the worker pauses (I7).
    Unavailable,
    /// Our server answers, but something behind it that the job needs is unavailable, or our server
    /// is at capacity. No attempt is spent; jobs with the same need wait, and others continue (I7).
    Held(WaitReason),
    /// One attempt is spent. The job is retried after a backoff if it has attempts left.
    Retry,
    /// A retry cannot help. The job fails at once and becomes a dead letter.
    Permanent,
}

impl FailureClass {
    /// Returns whether the job may be retried after this failure.
    pub fn is_retryable(self) -> bool {
        !matches!(self, Self::Permanent)
    }

    /// Returns whether the failure counts as one of the job's attempts.
    pub fn spends_attempt(self) -> bool {
        !matches!(self, Self::Unavailable | Self::Held(_))
    }
}

/// Why a job waits through no fault of its own (I7): the `waiting.reason` of an event, and a metric
/// label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum WaitReason {
    /// The hosted server cannot be reached or is not running.
    ServerUnavailable,
    /// The hosted server, or our server, has reached its limit of concurrent calls.
    ServerBusy,
    /// The hosted server refuses our server's credentials.
    UpstreamUnauthorized,
    /// The caller has exceeded its rate limit.
    RateLimited,
    /// `mcp-server` cannot be reached.
    Unavailable,
    /// `mcp-server` refuses the worker's credentials.
    Unauthorized,
    /// People have paused the job.
    Paused,
}

impl WaitReason {
    /// All reasons.
    pub const ALL: [Self; 7] = [
        Self::ServerUnavailable,
        Self::ServerBusy,
        Self::UpstreamUnauthorized,
        Self::RateLimited,
        Self::Unavailable,
        Self::Unauthorized,
        Self::Paused,
    ];

    /// Returns the name in JSON and in metric labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ServerUnavailable => "server-unavailable",
            Self::ServerBusy => "server-busy",
            Self::UpstreamUnauthorized => "upstream-unauthorized",
            Self::RateLimited => "rate-limited",
            Self::Unavailable => "unavailable",
            Self::Unauthorized => "unauthorized",
            Self::Paused => "paused",
        }
    }

    /// Returns the stable code of the reason.
    pub fn code(self) -> Code {
        match self {
            Self::ServerUnavailable => codes::SERVER_UNAVAILABLE,
            Self::ServerBusy => codes::SERVER_BUSY,
            Self::UpstreamUnauthorized => codes::UPSTREAM_UNAUTHORIZED,
            Self::RateLimited => codes::RATE_LIMITED,
            Self::Unavailable => codes::CONNECT,
            Self::Unauthorized => codes::UNAUTHORIZED,
            Self::Paused => codes::PAUSED,
        }
    }

    /// Parses the reason that our server gives for not making a call, in the `data.reason` of a
    /// JSON-RPC error. Returns `None` for any other text.
    pub fn of_answer(reason: &str) -> Option<Self> {
        let given = &Self::ALL[..4];

        given.iter().copied().find(|known| known.as_str() == reason)
    }

    /// Returns the reason that corresponds to a [`FailureClass::Unavailable`] with this error.
    pub fn of_outage(error: &JobError) -> Self {
        if error.kind == ErrorKind::Unauthorized { Self::Unauthorized } else { Self::Unavailable }
    }
}

/// An error in events, dead letters and answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct JobError {
    /// The kind of error, from a closed set for filtering and counting.
    pub kind: ErrorKind,
    /// The stable code that `docs/errors.md` explains, such as `FLEET-TIMEOUT`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_code: Option<String>,
    /// One sentence for people: what failed and, if known, what to do.
    pub message: String,
    /// The code of the layer that failed: an HTTP status or a JSON-RPC error code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<i64>,
    /// Details from the other side: the `data` of the JSON-RPC error, or the tool's error result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Value>,
}

/// The rule or layer that failed. The set is closed so that it can label metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ErrorKind {
    /// The record's bytes are not an envelope.
    Undecodable,
    /// The envelope is well-formed, but one of its fields is invalid.
    InvalidEnvelope,
    /// The record is larger than the worker allows.
    TooLarge,
    /// The server could not be reached (refused, DNS, TLS).
    Connect,
    /// The server refused the worker's credentials (401, 403).
    Unauthorized,
    /// The connection was lost after the request was sent, so the tool may have run.
    ConnectionLost,
    /// The call exceeded its time limit.
    Timeout,
    /// The server answered with an HTTP error status.
    Http,
    /// The server answered with a JSON-RPC error.
    JsonRpc,
    /// The answer violated the protocol.
    Protocol,
    /// The tool itself reported a failure (`isError: true`).
    Tool,
    /// The job's deadline passed before the job was done.
    Expired,
    /// The job was cancelled.
    Cancelled,
}

impl ErrorKind {
    /// Returns the name in events, headers and metric labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Undecodable => "undecodable",
            Self::InvalidEnvelope => "invalid-envelope",
            Self::TooLarge => "too-large",
            Self::Connect => "connect",
            Self::Unauthorized => "unauthorized",
            Self::ConnectionLost => "connection-lost",
            Self::Timeout => "timeout",
            Self::Http => "http",
            Self::JsonRpc => "json-rpc",
            Self::Protocol => "protocol",
            Self::Tool => "tool",
            Self::Expired => "expired",
            Self::Cancelled => "cancelled",
        }
    }

    /// Returns the stable code of the kind.
    pub fn code(self) -> Code {
        match self {
            Self::Undecodable => codes::UNDECODABLE,
            Self::InvalidEnvelope => codes::INVALID_ENVELOPE,
            Self::TooLarge => codes::TOO_LARGE,
            Self::Connect => codes::CONNECT,
            Self::Unauthorized => codes::UNAUTHORIZED,
            Self::ConnectionLost => codes::CONNECTION_LOST,
            Self::Timeout => codes::TIMEOUT,
            Self::Http => codes::HTTP,
            Self::JsonRpc => codes::JSON_RPC,
            Self::Protocol => codes::PROTOCOL,
            Self::Tool => codes::TOOL,
            Self::Expired => codes::EXPIRED,
            Self::Cancelled => codes::CANCELLED,
        }
    }
}

impl JobError {
    /// Creates an error of this kind with a sentence for people.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        let error_code = Some(kind.code().to_string());
        Self { kind, error_code, message: message.into(), code: None, data: None }
    }

    /// Replaces the code of the kind by a more specific one.
    #[must_use]
    pub fn with_error_code(mut self, code: Code) -> Self {
        self.error_code = Some(code.to_string());
        self
    }

    /// Returns the stable code. Older workers wrote none, so their errors have that of the kind.
    pub fn stable_code(&self) -> &str {
        self.error_code.as_deref().unwrap_or_else(|| self.kind.code().as_str())
    }

    /// Adds the code of the layer that failed.
    #[must_use]
    pub fn with_code(mut self, code: i64) -> Self {
        self.code = Some(code);
        self
    }

    /// Adds details from the other side.
    #[must_use]
    pub fn with_data(mut self, data: Value) -> Self {
        self.data = Some(data);
        self
    }
}

impl std::fmt::Display for JobError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for JobError {}

impl Failure {
    /// Creates a failure that a later attempt may avoid.
    pub fn retry(error: JobError) -> Self {
        Self { class: FailureClass::Retry, error, retry_after: None, server: None }
    }

    /// Creates a failure that every attempt would meet.
    pub fn permanent(error: JobError) -> Self {
        Self { class: FailureClass::Permanent, error, retry_after: None, server: None }
    }

    /// Creates a failure that is the server's fault and not the job's.
    pub fn unavailable(error: JobError) -> Self {
        Self { class: FailureClass::Unavailable, error, retry_after: None, server: None }
    }

    /// Creates a failure of something that the job needs: this hosted server, or our server as a
    /// whole.
    pub fn held(reason: WaitReason, server: Option<String>, error: JobError) -> Self {
        Self { class: FailureClass::Held(reason), error, retry_after: None, server }
    }

    /// Sets the delay that the server asked for.
    #[must_use]
    pub fn after(mut self, delay: Option<Duration>) -> Self {
        self.retry_after = delay;
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_may_give_only_the_reasons_of_the_contract() {
        for reason in WaitReason::ALL {
            let is_ours = !matches!(
                reason,
                WaitReason::Unavailable | WaitReason::Unauthorized | WaitReason::Paused
            );
            assert_eq!(WaitReason::of_answer(reason.as_str()), Some(reason).filter(|_| is_ours));
            assert!(!FailureClass::Held(reason).spends_attempt());
        }
        assert_eq!(WaitReason::of_answer("denied"), None);
    }
}
