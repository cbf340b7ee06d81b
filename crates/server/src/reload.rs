//! Applies a changed policy file without a restart.
//!
//! The file is polled rather than watched: Kubernetes updates a mounted file by swapping a symbolic
//! link two directories up, which a watch on the file doesn't see, and network file systems have no
//! watches. A change is applied once two polls in a row have seen it, because a file that is
//! written in place is briefly empty or truncated, and an empty policy is valid and allows nothing.
//! SIGHUP applies the file at once.

use std::{io, os::unix::fs::MetadataExt, path::Path, sync::Arc, time::Duration};

use fleet_hosting::Fleet;
use fleet_ops::errors::chain;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::{error::ServerError, metrics::POLICY_RELOADS, policy_source::PolicySource};

/// The time between two polls.
pub(crate) const INTERVAL: Duration = Duration::from_millis(500);

/// The metadata that distinguishes one version of a file from another. Links are followed, so a
/// swapped link is a new version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Version {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Version {
    pub(crate) fn read(path: &Path) -> Result<Self, io::ErrorKind> {
        let metadata = std::fs::metadata(path).map_err(|error| error.kind())?;
        Ok(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}

/// Follows the policy file, if there is one, until `stop` is cancelled.
///
/// # Errors
///
/// Returns an error if the operating system refuses the signal handler.
pub(crate) fn follow_policy_file(
    source: &PolicySource,
    fleet: &Arc<Fleet>,
    stop: CancellationToken,
) -> Result<(), ServerError> {
    if source.file().is_none() {
        // Without a file to reload, SIGHUP keeps its usual meaning.
        return Ok(());
    }

    let hangup = signal(SignalKind::hangup()).map_err(ServerError::Signals)?;
    let (source, fleet) = (source.clone(), fleet.clone());
    tokio::spawn(async move {
        tokio::select! {
            () = stop.cancelled() => {}
            () = watch_file(&source, &fleet, hangup) => {}
        }
    });

    Ok(())
}

async fn watch_file(source: &PolicySource, fleet: &Arc<Fleet>, mut hangup: Signal) {
    let read_version = || source.file().map(Version::read);
    // The file may have changed since it was read at the start, so treat its first version as a
    // change.
    let (mut applied, mut last) = (None, read_version());
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);

    loop {
        let forced = tokio::select! {
            _ = hangup.recv() => true,
            _ = ticks.tick() => false,
        };

        let seen = read_version();
        let settled = seen == last;
        last = seen;
        if forced || (settled && seen != applied) {
            applied = seen;
            reload_policy(source, fleet, forced).await;
        }
    }
}

/// Reads the policy and applies it if it differs from the current one, or if `forced`. An invalid
/// policy is logged, and the current one stays in force.
async fn reload_policy(source: &PolicySource, fleet: &Arc<Fleet>, forced: bool) {
    match source.load() {
        Ok(policy) if policy == *fleet.policy() && !forced => {}
        Ok(policy) => {
            metrics::counter!(POLICY_RELOADS.name, "outcome" => "applied").increment(1);
            tracing::info!(
                commands = policy.commands.len(),
                remotes = policy.remotes.len(),
                "applying the new policy"
            );
            fleet.apply_policy(policy).await;
        }
        Err(error) => {
            metrics::counter!(POLICY_RELOADS.name, "outcome" => "invalid").increment(1);
            let file = source.file().map(|path| path.display().to_string());
            tracing::error!(
                file,
                error = chain(&error),
                "could not read the policy; the previous one stays in force"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_change_a_file_makes_a_new_version() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        // Kubernetes mounts a ConfigMap like this: the file is a link through a link that is
        // swapped.
        for (version, text) in [("v1", "a"), ("v2", "b")] {
            std::fs::create_dir(at(version)).unwrap();
            std::fs::write(at(version).join("policy.toml"), text).unwrap();
        }
        let link = |target: &str, name: &str| std::os::unix::fs::symlink(target, at(name)).unwrap();
        link("v1", "..data");
        link("..data/policy.toml", "policy.toml");
        let file = at("policy.toml");
        let first = Version::read(&file).unwrap();
        assert_eq!(Version::read(&file), Ok(first));
        link("v2", "..data_tmp");
        std::fs::rename(at("..data_tmp"), at("..data")).unwrap();
        let second = Version::read(&file).unwrap();
        assert_ne!(second, first);
        std::fs::write(&file, "longer").unwrap();
        assert_ne!(Version::read(&file), Ok(second));
        std::fs::remove_file(&file).unwrap();
        assert_eq!(Version::read(&file), Err(io::ErrorKind::NotFound));
    }
}
