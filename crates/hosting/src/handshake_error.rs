//! Errors of handshakes, and whether they mean that a remote can't be reached.

use std::io;

use fleet_ops::errors::chain;
use fleet_policy::Refusal;
use rmcp::{
    model::ProtocolVersion,
    service::{ClientInitializeError, ServiceError},
    transport::{DynamicTransportError, streamable_http_client::StreamableHttpError},
};

use super::{
    handshake::{drive::Broken, read_initialize_result},
    outage::{Outage, OutageReason},
    remote::{exchange::HttpFailure, opening},
    sse_transport::SseError,
};

/// Why a handshake failed.
pub(super) enum HandshakeError {
    /// The server closed the connection.
    Closed {
        /// Whether it had answered anything before.
        answered: bool,
    },
    /// The session does not work, perhaps because `server/discover` preceded it.
    Mixed(String),
    /// The remote can't be reached.
    Unreachable(String),
    /// The remote refuses our credentials.
    Unauthorized(String),
    /// Nothing at the URL accepts `initialize`, so the remote may use the other transport.
    OtherTransport(String),
    /// The remote refuses the revision of `initialize`, and lists this one.
    OtherRevision {
        /// The newest revision that is known here and to the remote.
        listed: ProtocolVersion,
        /// The refusal, for people.
        message: String,
    },
    /// Any other failure.
    Other(String),
}

impl From<Broken> for HandshakeError {
    fn from(broken: Broken) -> Self {
        match broken {
            Broken::Closed { answered } => Self::Closed { answered },
            Broken::Refused(reason) => Self::Other(reason),
        }
    }
}

impl From<ClientInitializeError> for HandshakeError {
    fn from(error: ClientInitializeError) -> Self {
        match error {
            ClientInitializeError::ConnectionClosed(_) => Self::Closed { answered: false },
            ClientInitializeError::TransportError { error, context } => {
                let broken_pipe = |error: &io::Error| error.kind() == io::ErrorKind::BrokenPipe;
                if error.error.downcast_ref().is_some_and(broken_pipe) {
                    return Self::Closed { answered: false };
                }
                let text = format!("{context}: {}", describe_transport_error(&error));
                let outage = outage_of(&error).map(|outage| outage.reason);
                match outage {
                    Some(OutageReason::Unauthorized) => Self::Unauthorized(text),
                    _ if is_unreachable(&error) => Self::Unreachable(text),
                    _ if expects_other_transport(&error) => Self::OtherTransport(text),
                    _ => Self::Other(text),
                }
            }
            ClientInitializeError::JsonRpcError(error) => {
                let message = format!("it answered with error {}: {}", error.code.0, error.message);
                let asked = ProtocolVersion::LATEST_WITH_INITIALIZE;
                match opening::listed_revision(&error, &asked) {
                    Some(listed) => Self::OtherRevision { listed, message },
                    None => Self::Other(message),
                }
            }
            ClientInitializeError::LegacyFallbackFailed { fallback, .. } => Self::from(*fallback),
            ClientInitializeError::ExpectedInitResult(Some(result)) => {
                let problem = read_initialize_result(result).err();
                Self::Other(
                    problem
                        .unwrap_or_else(|| "its answer is not the one to this question".to_owned()),
                )
            }
            other => Self::Other(chain(&other)),
        }
    }
}

/// Returns whether an error means that a remote can't be reached, rather than that the remote or
/// policy refuses.
fn is_unreachable(error: &DynamicTransportError) -> bool {
    let mut source: Option<&(dyn std::error::Error + 'static)> = match http_failure(error) {
        Some(failure) => Some(failure),
        None => Some(error.error.as_ref()),
    };
    while let Some(cause) = source {
        if cause.is::<Refusal>() {
            return false;
        }
        source = cause.source();
    }

    match error.error.downcast_ref() {
        Some(StreamableHttpError::<HttpFailure>::Client(failure)) => match failure {
            HttpFailure::Connection(_) | HttpFailure::Cut | HttpFailure::NoSession(_) => true,
            HttpFailure::Rejected(_) => matches!(failure.status(), Some(429 | 502..=504)),
            HttpFailure::NoToken(_) | HttpFailure::Unreadable(_) => false,
        },
        Some(_) => false,
        None => match error.error.downcast_ref::<SseError>() {
            Some(SseError::Status { status, .. }) => matches!(status.as_u16(), 502..=504),
            Some(error) => {
                matches!(error, SseError::Open(_) | SseError::Post(_) | SseError::Broken(_))
            }
            None => false,
        },
    }
}

/// Returns whether a remote has rejected a request as one with the other transport would.
fn expects_other_transport(error: &DynamicTransportError) -> bool {
    http_failure(error).and_then(HttpFailure::status).is_some_and(opening::expects_other_transport)
}

/// Returns the error of our HTTP client behind an error of rmcp's transport.
pub(crate) fn http_failure(error: &DynamicTransportError) -> Option<&HttpFailure> {
    match error.error.downcast_ref() {
        Some(StreamableHttpError::<HttpFailure>::Client(failure)) => Some(failure),
        _ => None,
    }
}

/// Returns the outage because of which a remote did not take a message, if it did not.
pub(crate) fn outage_of(error: &DynamicTransportError) -> Option<Outage> {
    if let Some(failure) = http_failure(error) {
        return failure.outage();
    }
    outage_of_sse(error.error.downcast_ref()?)
}

fn outage_of_sse(error: &SseError) -> Option<Outage> {
    match error {
        SseError::Post(error) | SseError::Open(error) => {
            error.is_connect().then_some(Outage::UNAVAILABLE)
        }
        SseError::Status { status, .. } => Outage::of_status(status.as_u16(), None),
        SseError::NoToken(_) => Some(Outage::UNAUTHORIZED),
        // Nothing was sent, since the stream had failed before.
        SseError::Gone(error) => outage_of_sse(error),
        _ => None,
    }
}

/// Describes why a request has no result, for people.
pub(crate) fn describe_service_error(error: &ServiceError) -> String {
    match error {
        ServiceError::McpError(error) => {
            format!("it answered with error {}: {}", error.code.0, error.message)
        }
        ServiceError::TransportClosed => "the connection ended before the answer".to_owned(),
        ServiceError::TransportSend(error) => describe_transport_error(error),
        other => chain(other),
    }
}

/// Describes an error of a transport. rmcp's own text contains the whole type of the transport, and
/// leaves out why an HTTP request failed.
pub(crate) fn describe_transport_error(error: &DynamicTransportError) -> String {
    match error.error.downcast_ref() {
        Some(StreamableHttpError::<HttpFailure>::Client(failure)) => chain(failure),
        _ => chain(error.error.as_ref()),
    }
}
