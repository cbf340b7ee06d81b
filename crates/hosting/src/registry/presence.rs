//! Whether a server is hosted, and why one is not hosted by all replicas.

use std::time::Duration;

use fleet_job::tool_name::NameError;

use super::{RegistryError, sharing::NotShareable};
use crate::{
    fleet::InitError,
    outage::{Outage, OutageReason},
};

/// When to ask again for a server that is not known yet.
pub(super) const SOON: Duration = Duration::from_secs(1);
/// When to try again if the registry does not answer or a remote has an outage.
pub(super) const LATER: Duration = Duration::from_secs(5);

/// Whether a server is hosted here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Presence {
    /// The server is hosted here, in whatever state.
    Hosted,
    /// The server is wanted but not hosted here, or it is not known yet whether it is wanted.
    Awaited {
        /// Why the server is not hosted here.
        reason: String,
        /// When to ask again.
        retry_after: Duration,
    },
    /// Nobody wants the server.
    Unknown,
}

/// Why a server is not hosted by all replicas.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    /// The server can't be hosted here.
    #[error(transparent)]
    Init(#[from] InitError),
    /// The configuration may contain secrets.
    #[error(transparent)]
    NotShareable(#[from] NotShareable),
    /// The registry can't be written.
    #[error("could not write to the shared registry")]
    Registry(#[from] RegistryError),
    /// The registry has not accepted the record yet.
    #[error(
        "the shared registry has not accepted the change yet; the write is repeated until it succeeds ({why})"
    )]
    Unwritten {
        /// The last error.
        why: String,
    },
    /// Somebody else has replaced or removed the server in the meantime.
    #[error("somebody else has replaced or removed the server in the meantime")]
    Superseded,
}

impl From<NameError> for ShareError {
    fn from(error: NameError) -> Self {
        Self::Init(error.into())
    }
}

impl ShareError {
    /// Returns whether the same attempt would always fail.
    pub fn is_permanent(&self) -> bool {
        match self {
            Self::Init(error) => error.is_permanent(),
            Self::NotShareable(_) => true,
            Self::Registry(RegistryError::Kafka(error)) => !error.is_retryable(),
            Self::Registry(RegistryError::NotRead) | Self::Unwritten { .. } | Self::Superseded => {
                false
            }
            Self::Registry(RegistryError::Record(_)) => true,
        }
    }

    /// Returns the outage if the request itself is fine: something can't be reached, or a remote
    /// refuses our credentials.
    pub fn outage(&self) -> Option<Outage> {
        let (reason, retry_after) = match self {
            Self::Init(error) => (error.outage_reason()?, LATER),
            Self::Registry(RegistryError::NotRead) => (OutageReason::Unavailable, SOON),
            Self::Unwritten { .. } => (OutageReason::Unavailable, LATER),
            Self::Registry(_) | Self::NotShareable(_) | Self::Superseded => return None,
        };
        Some(Outage { reason, retry_after: Some(retry_after) })
    }
}
