//! Why a server can't be hosted, or can't take a call.

use std::time::Duration;

use fleet_job::tool_name::NameError;
use fleet_policy::Refusal;

use super::{launch::LaunchError, outage::OutageReason, upstream::ConnectError};

/// Why a server can't be hosted.
#[derive(Debug, thiserror::Error)]
pub enum InitError {
    /// It can't have its name.
    #[error(transparent)]
    Name(#[from] NameError),
    /// It may or can not be started.
    #[error(transparent)]
    Launch(#[from] LaunchError),
    /// There are too many.
    #[error(transparent)]
    TooMany(Refusal),
    /// It was started and did not do its handshake.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// This server is shutting down.
    #[error("this server is shutting down")]
    Closed,
    /// It was removed while it was being started.
    #[error("the server was removed while it was being started")]
    Removed,
}

impl InitError {
    /// Whether the same attempt would fail again whenever it is made.
    pub fn is_permanent(&self) -> bool {
        match self {
            Self::Name(_) | Self::Launch(_) => true,
            Self::TooMany(_) | Self::Connect(_) | Self::Closed | Self::Removed => false,
        }
    }

    /// Why what was asked for has to wait, if nothing is wrong with it: a remote server can't be
    /// reached or refuses our credentials, or this server is on its way out.
    pub fn outage_reason(&self) -> Option<OutageReason> {
        match self {
            Self::Connect(error) => error.outage_reason(),
            Self::Closed => Some(OutageReason::Unavailable),
            Self::Name(_) | Self::Launch(_) | Self::TooMany(_) | Self::Removed => None,
        }
    }
}

/// A server that can't take a call now.
#[derive(Debug, thiserror::Error)]
#[error("server `{server}` is not available: {reason}")]
pub struct ServerDown {
    /// The server.
    pub server: String,
    /// Why.
    pub reason: String,
    /// What the caller is told.
    pub(crate) outage: OutageReason,
    /// When it may be tried again.
    pub retry_after: Duration,
}
