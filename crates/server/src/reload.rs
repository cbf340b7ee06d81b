//! Applies a changed policy file without a restart.
//!
//! The file is polled, for the reasons that [`fleet_ops::watched`] gives. A change is applied once
//! two polls in a row have seen it, because a file that is written in place is briefly empty or
//! truncated, and an empty policy is valid and allows nothing. SIGHUP applies the file at once.

use std::sync::Arc;

use fleet_hosting::Fleet;
use fleet_ops::{
    errors::chain,
    watched::{INTERVAL, Version},
};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::{error::ServerError, metrics::POLICY_RELOADS, policy_source::PolicySource};

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
