//! Writing for all replicas, until the registry has taken it.

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
    /// Writes something for all replicas: until the registry has it or something newer, however
    /// long the caller waits.
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
            // A task is given up only when everything ends.
            Ok(Ok(false) | Err(_)) => Err(ShareError::Superseded),
            Err(_) => {
                let unwritten = self.writes().unwritten(name, Instant::now());
                let error = unwritten.and_then(|unwritten| unwritten.last_error);
                let why = error.unwrap_or_else(|| "no answer yet".to_owned());
                tracing::warn!(
                    server = name,
                    why,
                    "a write of the registry is not acknowledged yet"
                );
                Err(ShareError::Unwritten { why })
            }
        }
    }

    /// Tries a write until it is in the registry; `false` if something newer has taken its place.
    async fn keep_writing(&self, name: &str, number: u64) -> bool {
        let is_written = loop {
            // Not in the condition of the loop, where the lock would be held for all of it.
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
            tracing::warn!(
                server = name,
                error,
                "the registry has not taken a write, which is repeated"
            );
            let wait = self.writes().note_failed(name, number, error);
            tokio::time::sleep(wait).await;
        };
        self.count_writes();
        is_written
    }

    /// Shows how many writes are open.
    pub(super) fn count_writes(&self) {
        let open = self.writes().len();
        metrics::gauge!(REGISTRY_UNWRITTEN.name).set(open as f64);
    }

    pub(super) fn writes(&self) -> MutexGuard<'_, Writes> {
        self.writes.lock()
    }
}

/// What a status says about an open write.
pub(super) fn sharing_status(unwritten: Unwritten) -> SharingStatus {
    SharingStatus {
        state: if unwritten.removal { "removal-unwritten" } else { "unwritten" },
        age_ms: u64::try_from(unwritten.age.as_millis()).unwrap_or(u64::MAX),
        failures: unwritten.failures,
        last_error: unwritten.last_error,
    }
}
