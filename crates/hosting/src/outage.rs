//! Why a server did not take a request. The request has not run, and may be made again later.

use std::time::Duration;

use fleet_codes::{self as codes, Code};

/// When to try again if nobody knows.
pub(crate) const SOON: Duration = Duration::from_secs(1);

/// See the module's documentation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outage {
    /// Why.
    pub reason: OutageReason,
    /// When the server wants to be asked again, if it said so.
    pub retry_after: Option<Duration>,
}

/// What a caller is told in `data.reason`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OutageReason {
    /// It can't be reached, or can't do a handshake.
    #[default]
    Unavailable,
    /// It refuses our credentials.
    Unauthorized,
    /// It is there, and has no room for the request.
    Busy,
}

impl OutageReason {
    /// In `data.reason`.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Unavailable => "server-unavailable",
            Self::Unauthorized => "upstream-unauthorized",
            Self::Busy => "server-busy",
        }
    }

    /// In `data.code`.
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

    /// What an HTTP status says, if it says that the request was not taken.
    pub(crate) fn of_status(status: u16, retry_after: Option<Duration>) -> Option<Self> {
        match status {
            401 | 403 => Some(Self { retry_after, ..Self::UNAUTHORIZED }),
            429 => Some(Self { reason: OutageReason::Busy, retry_after }),
            503 if retry_after.is_some() => Some(Self { reason: OutageReason::Busy, retry_after }),
            _ => None,
        }
    }
}
