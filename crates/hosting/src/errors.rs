//! Why a server can't be hosted, or can't take a call.

use std::time::Duration;

use fleet_job::tool_name::NameError;
use fleet_policy::Refusal;

use super::{launch::LaunchError, outage::OutageReason, upstream::ConnectError};

/// Why a server can't be hosted.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// The name is invalid.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The server must not or can't be started.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// There are too many servers.
    #[error(transparent)]
    TooMany(Refusal),
    /// The connection could not be established.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// This server is shutting down.
    #[error("this server is shutting down")]
    Closed,
    /// The server was removed while it was starting.
    #[error("the server was removed while it was starting")]
    Removed,
}

impl InitError {
    /// Returns whether the same attempt would always fail.
    pub fn is_permanent(&self) -> bool {
        match self {
            Self::Name(_) => true,
            Self::Launch(error) => !error.is_temporary(),
            Self::TooMany(_) | Self::Connect(_) | Self::Closed | Self::Removed => false,
        }
    }

    /// Returns the outage if the request itself is fine: a remote can't be reached or refuses our
    /// credentials, a secret can't be read or recorded now, or this server is shutting down.
    pub fn outage_reason(&self) -> Option<OutageReason> {
        match self {
            Self::Connect(error) => error.outage_reason(),
            Self::Closed => Some(OutageReason::Unavailable),
            Self::Launch(error) => error.is_temporary().then_some(OutageReason::Unavailable),
            Self::Name(_) | Self::TooMany(_) | Self::Removed => None,
        }
    }
}

/// Why a server can't take a call now.
#[derive(Debug, thiserror::Error)]
#[error("server `{server}` is not available: {reason}")]
pub struct ServerDown {
    /// The server's name.
    pub server: String,
    /// What is wrong, for people.
    pub reason: String,
    /// The kind of outage, for programs.
    pub(crate) outage: OutageReason,
    /// When the call may be tried again.
    pub retry_after: Duration,
}
