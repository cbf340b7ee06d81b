//! Writes to the registry until it has accepted a change.

use std::{sync::Arc, time::Instant};

use fleet_ops::errors::chain;
use parking_lot::MutexGuard;
use tokio::time::timeout;

use super::{
    super::{
        presence::ShareError,
        writes::{Unwritten, Write, WriteState, Writes},
    },
    Shared,
};
use crate::{
    metrics::{REGISTRY_UNWRITTEN, REGISTRY_WRITE_FAILURES},
    status::SharingStatus,
};

impl Shared {
    /// Shares a change with all replicas. The write is repeated until the registry has the change
    /// or a newer one, even if the caller stops waiting.
    pub(super) async fn share_write(
        self: &Arc<Self>,
        name: &str,
        write: Write,
    ) -> Result<(), ShareError> {
        let number = self.writes().add(name, write, Instant::now());
        self.count_writes();

        let (this, own_name) = (self.clone(), name.to_owned());
        let writing = tokio::spawn(async move { this.keep_writing(&own_name, number).await });
        match timeout(self.patience.write, writing).await {
            Ok(Ok(true)) => Ok(()),
            // The task ends early only if the whole server does.
            Ok(Ok(false) | Err(_)) => Err(ShareError::Superseded),
            Err(_) => {
                let unwritten = self.writes().unwritten(name, Instant::now());
                let error = unwritten.and_then(|unwritten| unwritten.last_error);
                let why = error.unwrap_or_else(|| "no answer yet".to_owned());
                tracing::warn!(
                    server = name,
                    why,
                    "the registry has not acknowledged a write yet; it is repeated until it succeeds"
                );
                Err(ShareError::Unwritten { why })
            }
        }
    }

    /// Repeats a write until the registry has it. Returns `false` if a newer change has replaced
    /// it.
    async fn keep_writing(&self, name: &str, number: u64) -> bool {
        let is_written = loop {
            // A separate statement, so that the lock is not held during the write.
            let state = self.writes().state(name, number);
            let result = match state {
                WriteState::Open(Write::Put(record)) => self.registry.put(&record).await,
                WriteState::Open(Write::Remove { .. }) => self.registry.remove(name).await,
                WriteState::Written => break true,
                WriteState::Superseded => break false,
            };

            let Err(error) = result else {
                self.writes().note_acknowledged(name, number);
                break true;
            };
            let error = chain(&error);
            metrics::counter!(REGISTRY_WRITE_FAILURES.name).increment(1);
            tracing::warn!(server = name, error, "could not write to the registry; trying again");
            let wait = self.writes().note_failed(name, number, error);
            tokio::time::sleep(wait).await;
        };
        self.count_writes();
        is_written
    }

    /// Updates the gauge of open writes.
    pub(super) fn count_writes(&self) {
        let open = self.writes().len();
        metrics::gauge!(REGISTRY_UNWRITTEN.name).set(open as f64);
    }

    pub(super) fn writes(&self) -> MutexGuard<'_, Writes> {
        self.writes.lock()
    }
}

/// Describes an open write in a status.
pub(super) fn sharing_status(unwritten: Unwritten) -> SharingStatus {
    SharingStatus {
        state: if unwritten.removal { "removal-unwritten" } else { "unwritten" },
        age_ms: u64::try_from(unwritten.age.as_millis()).unwrap_or(u64::MAX),
        failures: unwritten.failures,
        last_error: unwritten.last_error,
    }
}
