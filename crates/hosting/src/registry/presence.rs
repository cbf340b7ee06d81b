//! What is known of a server here, and why one is not hosted everywhere.

use std::time::Duration;

use fleet_job::tool_name::NameError;

use super::{RegistryError, sharing::NotShareable};
use crate::{
    fleet::InitError,
    outage::{Outage, OutageReason},
};

/// When to ask again for a server of which nothing is known yet.
pub(super) const SOON: Duration = Duration::from_secs(1);
/// When to ask again for what waits for the registry, or for a remote server that is away.
pub(super) const LATER: Duration = Duration::from_secs(5);

/// What is known of a server here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Presence {
    /// It is hosted here, in whatever state.
    Hosted,
    /// It is wanted and not there, or nobody knows yet whether it is wanted.
    Awaited {
        /// Why it is not there.
        reason: String,
        /// When to ask again.
        retry_after: Duration,
    },
    /// Nobody wants it.
    Unknown,
}

/// Why a server is not hosted everywhere.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    /// It can't be hosted here.
    #[error(transparent)]
    Init(#[from] InitError),
    /// It holds what must not be written.
    #[error(transparent)]
    NotShareable(#[from] NotShareable),
    /// The registry can't be written.
    #[error("the shared registry can't be written")]
    Registry(#[from] RegistryError),
    /// The registry has not taken it yet.
    #[error(
        "the shared registry has not taken it yet; the write is repeated until it does ({why})"
    )]
    Unwritten {
        /// How the last try came out.
        why: String,
    },
    /// Somebody wanted something else of the same name meanwhile.
    #[error("it was replaced or removed by somebody else meanwhile")]
    Superseded,
}

impl From<NameError> for ShareError {
    fn from(error: NameError) -> Self {
        Self::Init(error.into())
    }
}

impl ShareError {
    /// Whether the same attempt would fail again whenever it is made.
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

    /// Why and until when to wait, if nothing is wrong with what was asked for: something can't be
    /// reached, or a remote server refuses our credentials.
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
