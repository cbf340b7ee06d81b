//! How a call's result is read, and the one error vocabulary of the fleet.
//!
//! A call to a tool passes three layers (transport, JSON-RPC, tool), and each fails in its own way.
//! Callers must not guess from strings whether to try again, so the layer that saw the failure says
//! it once, here.

use std::time::Duration;

use fleet_codes::{self as codes, Code};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// `data.reason` of an error: a hosted server's answer to this very call can't be read. The tool
/// may have run, so the call is not to be made again.
pub const UNREADABLE_ANSWER: &str = "unreadable-answer";

/// What one attempt at a job came to.
#[derive(Debug, Clone, PartialEq)]
pub enum Outcome {
    /// The tool answered, and not with an error. The value is the result as the tool gave it.
    Succeeded(Value),
    /// The attempt failed. What follows from that is decided by [`Failure::class`].
    Failed(Failure),
}

/// One failed attempt.
#[derive(Debug, Clone, PartialEq)]
pub struct Failure {
    /// What follows from the failure.
    pub class: FailureClass,
    /// What went wrong, for people and for the terminal event.
    pub error: JobError,
    /// The server's own wish for the delay before the next attempt (`Retry-After`, `retryAfterMs`).
    pub retry_after: Option<Duration>,
    /// The hosted server that a [`FailureClass::Held`] is about; `None` where it is about our
    /// server as a whole.
    pub server: Option<String>,
}

/// What follows from a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FailureClass {
    /// The server can't be reached or refuses us (401, 403). No attempt is spent; the worker waits
    /// (I7).
    Unavailable,
    /// Our server answers, and what the job needs behind it is unavailable, or our server is full.
    /// No attempt is spent; the jobs that need the same wait, and others go on (I7).
    Held(WaitReason),
    /// One attempt is spent; the job is tried again after a backoff while it has attempts left.
    Retry,
    /// Trying again can't help. The job fails at once and becomes a dead letter.
    Permanent,
}

impl FailureClass {
    /// Whether the job may be tried again after this failure.
    pub fn is_retryable(self) -> bool {
        !matches!(self, Self::Permanent)
    }

    /// Whether the failure counts as one of the job's attempts.
    pub fn spends_attempt(self) -> bool {
        !matches!(self, Self::Unavailable | Self::Held(_))
    }
}

/// Why a job waits for something that is not its fault (I7): `waiting.reason` of an event, and a
/// metric label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum WaitReason {
    /// The hosted server can't be reached, or does not run.
    ServerUnavailable,
    /// The hosted server, or our server, has as many calls as it takes.
    ServerBusy,
    /// The hosted server refuses our server's credentials.
    UpstreamUnauthorized,
    /// The caller has used up its allowance.
    RateLimited,
    /// `mcp-server` can't be reached.
    Unavailable,
    /// `mcp-server` refuses the worker's credentials.
    Unauthorized,
}

impl WaitReason {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::ServerUnavailable,
        Self::ServerBusy,
        Self::UpstreamUnauthorized,
        Self::RateLimited,
        Self::Unavailable,
        Self::Unauthorized,
    ];

    /// The name on the wire and in metric labels.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::ServerUnavailable => "server-unavailable",
            Self::ServerBusy => "server-busy",
            Self::UpstreamUnauthorized => "upstream-unauthorized",
            Self::RateLimited => "rate-limited",
            Self::Unavailable => "unavailable",
            Self::Unauthorized => "unauthorized",
        }
    }

    /// The stable code of the reason.
    pub fn code(self) -> Code {
        match self {
            Self::ServerUnavailable => codes::SERVER_UNAVAILABLE,
            Self::ServerBusy => codes::SERVER_BUSY,
            Self::UpstreamUnauthorized => codes::UPSTREAM_UNAUTHORIZED,
            Self::RateLimited => codes::RATE_LIMITED,
            Self::Unavailable => codes::CONNECT,
            Self::Unauthorized => codes::UNAUTHORIZED,
        }
    }

    /// The reason that our server gives in a JSON-RPC error's `data.reason` for a call that was not
    /// made; `None` for any other text.
    pub fn of_answer(reason: &str) -> Option<Self> {
        let given = &Self::ALL[..4];
        given.iter().copied().find(|known| known.as_str() == reason)
    }

    /// The reason that follows from a [`FailureClass::Unavailable`] with this error.
    pub fn of_outage(error: &JobError) -> Self {
        if error.kind == ErrorKind::Unauthorized { Self::Unauthorized } else { Self::Unavailable }
    }
}

/// An error as it stands in events, dead letters and answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct JobError {
    /// The bounded vocabulary to filter and count by.
    pub kind: ErrorKind,
    /// The stable code that `docs/errors.md` explains, such as `FLEET-TIMEOUT`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error_code: Option<String>,
    /// One sentence for people: what failed, and what to do where that is known.
    pub message: String,
    /// The code of the layer that failed: an HTTP status or a JSON-RPC error code.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub code: Option<i64>,
    /// What the other side said: the JSON-RPC error's `data`, or the tool's error result.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub data: Option<Value>,
}

/// Which rule or layer failed. The set is closed so that it can label metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "kebab-case")]
#[non_exhaustive]
pub enum ErrorKind {
    /// The record's bytes are not an envelope.
    Undecodable,
    /// The envelope is well-formed and one of its fields is not acceptable.
    InvalidEnvelope,
    /// The record is larger than the worker takes.
    TooLarge,
    /// The server could not be reached (refused, DNS, TLS).
    Connect,
    /// The server refused the worker's credentials (401, 403).
    Unauthorized,
    /// The connection was lost after the request had been sent: the tool may have run.
    ConnectionLost,
    /// The call took longer than it may.
    Timeout,
    /// The server answered with an HTTP error status.
    Http,
    /// The server answered with a JSON-RPC error.
    JsonRpc,
    /// The answer was not what the protocol allows.
    Protocol,
    /// The tool itself reported failure (`isError: true`).
    Tool,
    /// The job's deadline passed before it could be done.
    Expired,
    /// The job was cancelled.
    Cancelled,
}

impl ErrorKind {
    /// The name as it is written in events, headers and metric labels.
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

    /// The stable code of the kind.
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
    /// An error of `kind` with a sentence for people.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        let error_code = Some(kind.code().to_string());
        Self { kind, error_code, message: message.into(), code: None, data: None }
    }

    /// The same error under a more specific code than that of its kind.
    #[must_use]
    pub fn with_error_code(mut self, code: Code) -> Self {
        self.error_code = Some(code.to_string());
        self
    }

    /// The same error with the code of the layer that failed.
    #[must_use]
    pub fn with_code(mut self, code: i64) -> Self {
        self.code = Some(code);
        self
    }

    /// The same error with what the other side said.
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
    /// A failure that a later attempt may not meet again.
    pub fn retry(error: JobError) -> Self {
        Self { class: FailureClass::Retry, error, retry_after: None, server: None }
    }

    /// A failure that every attempt would meet.
    pub fn permanent(error: JobError) -> Self {
        Self { class: FailureClass::Permanent, error, retry_after: None, server: None }
    }

    /// A failure that is the server's and not the job's.
    pub fn unavailable(error: JobError) -> Self {
        Self { class: FailureClass::Unavailable, error, retry_after: None, server: None }
    }

    /// A failure of what the job needs: the hosted server of this name, or our server as a whole.
    pub fn held(reason: WaitReason, server: Option<String>, error: JobError) -> Self {
        Self { class: FailureClass::Held(reason), error, retry_after: None, server }
    }

    /// The same failure with the server's wish for the delay.
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
    fn an_answer_can_give_the_reasons_of_the_contract_and_no_others() {
        for reason in WaitReason::ALL {
            let of_outage = matches!(reason, WaitReason::Unavailable | WaitReason::Unauthorized);
            assert_eq!(WaitReason::of_answer(reason.as_str()), Some(reason).filter(|_| !of_outage));
            assert!(!FailureClass::Held(reason).spends_attempt());
        }
        assert_eq!(WaitReason::of_answer("denied"), None);
    }
}
