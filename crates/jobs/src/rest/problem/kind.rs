//! The kinds of problems.

use axum::http::StatusCode;
use fleet_codes::{self as codes, Code};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Serialize, Serializer};

/// Precedes the name of a problem in `type`.
const PREFIX: &str = "urn:mcp-fleet:problem:";

/// The kinds of problems. The set is closed, so that programs can tell problems apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ProblemKind {
    /// The request can't be read.
    BadRequest,
    /// The credentials can't be read.
    MalformedCredentials,
    /// The request needs valid credentials.
    Unauthenticated,
    /// The request is not meant for this server.
    Forbidden,
    /// The caller may not do this.
    Denied,
    /// The caller's token has too few scopes.
    InsufficientScope,
    /// Another principal has to approve this.
    ApprovalRequired,
    /// Somebody else than the submitter has to approve this.
    OwnApproval,
    /// The job does not await approval.
    NotPending,
    /// There is no such job.
    NoSuchJob,
    /// The job's record is gone.
    RecordGone,
    /// There is no such dead letter.
    NoSuchLetter,
    /// No such pause is in force.
    NoSuchPause,
    /// There is no such tool.
    NoSuchTool,
    /// No such server is hosted.
    NoSuchServer,
    /// The path does not exist.
    NoSuchPath,
    /// This server accepts no jobs.
    JobsOff,
    /// The path does not support the method.
    MethodNotAllowed,
    /// The body took too long.
    BodyTimeout,
    /// The caller has reached a limit.
    RateLimited,
    /// The decision about a changed tool is not possible now.
    PinConflict,
    /// The job has ended otherwise.
    TooLate,
    /// The request is too large.
    TooLarge,
    /// The body must be JSON.
    UnsupportedMediaType,
    /// The job is invalid.
    BadJob,
    /// The pause is not acceptable.
    BadPause,
    /// The server can't be hosted.
    BadServer,
    /// The server failed.
    Internal,
    /// Kafka refused the job.
    KafkaRefused,
    /// The server is not ready.
    NotReady,
    /// Kafka can't be reached.
    KafkaUnavailable,
    /// The states of jobs can't be looked up now.
    LedgerUnavailable,
    /// The server can't be hosted now.
    ServerUnavailable,
    /// Too many streams are open.
    TooManyStreams,
    /// The credentials can't be checked now.
    NoIssuerKeys,
    /// The request can't be recorded now.
    AuditUnavailable,
}

impl ProblemKind {
    pub(in crate::rest) const ALL: [Self; 36] = [
        Self::BadRequest,
        Self::MalformedCredentials,
        Self::Unauthenticated,
        Self::Forbidden,
        Self::Denied,
        Self::InsufficientScope,
        Self::ApprovalRequired,
        Self::OwnApproval,
        Self::NotPending,
        Self::NoSuchJob,
        Self::RecordGone,
        Self::NoSuchLetter,
        Self::NoSuchPause,
        Self::NoSuchTool,
        Self::NoSuchServer,
        Self::NoSuchPath,
        Self::JobsOff,
        Self::MethodNotAllowed,
        Self::BodyTimeout,
        Self::RateLimited,
        Self::PinConflict,
        Self::TooLate,
        Self::TooLarge,
        Self::UnsupportedMediaType,
        Self::BadJob,
        Self::BadPause,
        Self::BadServer,
        Self::Internal,
        Self::KafkaRefused,
        Self::NotReady,
        Self::KafkaUnavailable,
        Self::LedgerUnavailable,
        Self::ServerUnavailable,
        Self::TooManyStreams,
        Self::NoIssuerKeys,
        Self::AuditUnavailable,
    ];

    /// Returns name, title and status.
    pub(super) fn describe(self) -> (&'static str, &'static str, StatusCode) {
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
            Self::OwnApproval => (
                "own-approval",
                "Somebody else than the submitter has to approve this",
                StatusCode::FORBIDDEN,
            ),
            Self::NotPending => {
                ("not-pending", "The job does not await approval", StatusCode::CONFLICT)
            }
            Self::NoSuchJob => ("no-such-job", "There is no such job", StatusCode::NOT_FOUND),
            Self::RecordGone => ("record-gone", "The job's record is gone", StatusCode::GONE),
            Self::NoSuchLetter => {
                ("no-such-letter", "There is no such dead letter", StatusCode::NOT_FOUND)
            }
            Self::NoSuchPause => {
                ("no-such-pause", "No such pause is in force", StatusCode::NOT_FOUND)
            }
            Self::NoSuchTool => ("no-such-tool", "There is no such tool", StatusCode::NOT_FOUND),
            Self::NoSuchServer => {
                ("no-such-server", "No such server is hosted", StatusCode::NOT_FOUND)
            }
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
            Self::PinConflict => {
                ("pin-conflict", "The decision is not possible now", StatusCode::CONFLICT)
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
            Self::BadPause => {
                ("bad-pause", "The pause is not acceptable", StatusCode::UNPROCESSABLE_ENTITY)
            }
            Self::BadServer => {
                ("bad-server", "The server can't be hosted", StatusCode::UNPROCESSABLE_ENTITY)
            }
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
            Self::ServerUnavailable => (
                "server-unavailable",
                "The server can't be hosted now",
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

    pub(in crate::rest) fn name(self) -> &'static str {
        self.describe().0
    }

    /// The stable code that `docs/errors.md` explains.
    pub(in crate::rest) fn code(self) -> Code {
        match self {
            Self::BadRequest => codes::BAD_REQUEST,
            Self::MalformedCredentials => codes::MALFORMED_CREDENTIALS,
            Self::Unauthenticated => codes::UNAUTHENTICATED,
            Self::Forbidden => codes::FORBIDDEN,
            Self::Denied => codes::DENIED,
            Self::InsufficientScope => codes::INSUFFICIENT_SCOPE,
            Self::ApprovalRequired => codes::APPROVAL_REQUIRED,
            Self::OwnApproval => codes::OWN_APPROVAL,
            Self::NotPending => codes::NOT_PENDING,
            Self::NoSuchJob => codes::NO_SUCH_JOB,
            Self::RecordGone => codes::RECORD_GONE,
            Self::NoSuchLetter => codes::NO_SUCH_LETTER,
            Self::NoSuchPause => codes::NO_SUCH_PAUSE,
            Self::NoSuchTool => codes::NO_SUCH_TOOL,
            Self::NoSuchServer => codes::UNKNOWN_SERVER,
            Self::NoSuchPath => codes::NO_SUCH_PATH,
            Self::JobsOff => codes::JOBS_OFF,
            Self::MethodNotAllowed => codes::METHOD_NOT_ALLOWED,
            Self::BodyTimeout => codes::BODY_TIMEOUT,
            Self::RateLimited => codes::RATE_LIMITED,
            Self::PinConflict => codes::PIN_CONFLICT,
            Self::TooLate => codes::TOO_LATE,
            Self::TooLarge => codes::TOO_LARGE,
            Self::UnsupportedMediaType => codes::UNSUPPORTED_MEDIA_TYPE,
            Self::BadJob => codes::BAD_JOB,
            Self::BadPause => codes::BAD_REQUEST,
            Self::BadServer => codes::SERVER_CONFIG,
            Self::ServerUnavailable => codes::SERVER_UNAVAILABLE,
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

    pub(in crate::rest) fn status(self) -> StatusCode {
        self.describe().2
    }

    /// Returns the kind of an error that was not answered by a handler.
    pub(super) fn of_status(status: StatusCode) -> Self {
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
        let names: Vec<_> =
            Self::ALL.iter().map(|kind| format!("{PREFIX}{}", kind.name())).collect();
        json_schema!({"description": "The kind of problem.", "type": "string", "enum": names})
    }
}
