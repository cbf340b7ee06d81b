//! Why a handshake came to nothing, and whether that is because a remote server can't be reached.

use std::io;

use rmcp::{
    service::ClientInitializeError,
    transport::{DynamicTransportError, streamable_http_client::StreamableHttpError},
};

use super::{handshake::drive::Broken, sse::SseError};
use crate::{error::chain, policy::Refusal};

/// Why a handshake came to nothing.
pub(super) enum HandshakeError {
    /// The other side has closed the connection.
    Closed {
        /// Whether it had answered anything before that.
        answered: bool,
    },
    /// The session was made and is of no use, perhaps because of the question that came before it.
    Mixed(String),
    /// The server, a remote one, can't be reached.
    Unreachable(String),
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
                let text = format!("{context}: {}", transport_error(&error));
                if is_unreachable(&error) { Self::Unreachable(text) } else { Self::Other(text) }
            }
            ClientInitializeError::JsonRpcError(error) => {
                Self::Other(format!("it answered with error {}: {}", error.code.0, error.message))
            }
            ClientInitializeError::LegacyFallbackFailed { fallback, .. } => Self::from(*fallback),
            other => Self::Other(chain(&other)),
        }
    }
}

/// Whether a remote server is not there, rather than there and of another opinion, or behind a refusal of policy's.
fn is_unreachable(error: &DynamicTransportError) -> bool {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error.error.as_ref());
    while let Some(cause) = source {
        if cause.is::<Refusal>() {
            return false;
        }
        source = cause.source();
    }

    match error.error.downcast_ref() {
        Some(StreamableHttpError::<reqwest::Error>::HttpStatus(error)) => matches!(error.status, 502..=504),
        Some(StreamableHttpError::<reqwest::Error>::Client(_)) => true,
        Some(_) => false,
        None => match error.error.downcast_ref::<SseError>() {
            Some(SseError::Status { status, .. }) => matches!(status.as_u16(), 502..=504),
            Some(error) => matches!(error, SseError::Open(_) | SseError::Post(_) | SseError::Broken(_)),
            None => false,
        },
    }
}

/// What a transport says went wrong. rmcp puts the whole type of the transport into its own text, and leaves out why
/// an HTTP request failed.
pub(crate) fn transport_error(error: &DynamicTransportError) -> String {
    match error.error.downcast_ref() {
        Some(StreamableHttpError::<reqwest::Error>::Client(error)) => {
            let text = chain(error);
            // The query may hold a key.
            match error.url().and_then(|url| Some((url, url.query()?))) {
                Some((url, query)) => text.replace(url.as_str(), &url.as_str().replace(query, "…")),
                None => text,
            }
        }
        _ => chain(error.error.as_ref()),
    }
}
