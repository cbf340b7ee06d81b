//! Outages: why a server did not take a request. The request has not run and may be repeated later.

use std::time::Duration;

use fleet_codes::{self as codes, Code};

/// When to try again if the outage's end is not known.
pub(crate) const SOON: Duration = Duration::from_secs(1);

/// An outage of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outage {
    /// The kind of outage.
    pub reason: OutageReason,
    /// When the server asks to be called again, if it says so.
    pub retry_after: Option<Duration>,
}

/// The kind of outage, which callers get as `data.reason`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OutageReason {
    /// The server can't be reached, or the handshake with it fails.
    #[default]
    Unavailable,
    /// The server refuses our credentials.
    Unauthorized,
    /// The server has no capacity for the request.
    Busy,
}

impl OutageReason {
    /// Returns the value of `data.reason`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Unavailable => "server-unavailable",
            Self::Unauthorized => "upstream-unauthorized",
            Self::Busy => "server-busy",
        }
    }

    /// Returns the value of `data.code`.
    pub(crate) fn code(self) -> Code {
        match self {
            Self::Unavailable => codes::SERVER_UNAVAILABLE,
            Self::Unauthorized => codes::UPSTREAM_UNAUTHORIZED,
            Self::Busy => codes::SERVER_BUSY,
        }
    }
}

impl Outage {
    /// The server can't be reached.
    pub(crate) const UNAVAILABLE: Self =
        Self { reason: OutageReason::Unavailable, retry_after: None };
    /// The server refuses our credentials.
    pub(crate) const UNAUTHORIZED: Self =
        Self { reason: OutageReason::Unauthorized, retry_after: None };

    /// Returns the outage that an HTTP status means, if it means that the request was not taken.
    pub(crate) fn of_status(status: u16, retry_after: Option<Duration>) -> Option<Self> {
        match status {
            401 | 403 => Some(Self { retry_after, ..Self::UNAUTHORIZED }),
            429 => Some(Self { reason: OutageReason::Busy, retry_after }),
            503 if retry_after.is_some() => Some(Self { reason: OutageReason::Busy, retry_after }),
            _ => None,
        }
    }
}
