//! How a call's result is read, and the one error vocabulary of the fleet.
//!
//! A call to a tool passes three layers (transport, JSON-RPC, tool), and each fails in its own way. Callers must not
//! guess from strings whether to try again, so the layer that saw the failure says it once, here.

use std::time::Duration;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

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
    /// The server's own wish for the delay before the next attempt (`Retry-After`).
    pub retry_after: Option<Duration>,
}

/// What follows from a failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum FailureClass {
    /// The server can't be reached or refuses us (401, 403). No attempt is spent; the worker waits (I7).
    Unavailable,
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
        !matches!(self, Self::Unavailable)
    }
}

/// An error as it stands in events, dead letters and answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct JobError {
    /// The bounded vocabulary to filter and count by.
    pub kind: ErrorKind,
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
}

impl JobError {
    /// An error of `kind` with a sentence for people.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into(), code: None, data: None }
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
        Self { class: FailureClass::Retry, error, retry_after: None }
    }

    /// A failure that every attempt would meet.
    pub fn permanent(error: JobError) -> Self {
        Self { class: FailureClass::Permanent, error, retry_after: None }
    }

    /// A failure that is the server's and not the job's.
    pub fn unavailable(error: JobError) -> Self {
        Self { class: FailureClass::Unavailable, error, retry_after: None }
    }

    /// The same failure with the server's wish for the delay.
    #[must_use]
    pub fn after(mut self, delay: Option<Duration>) -> Self {
        self.retry_after = delay;
        self
    }
}
