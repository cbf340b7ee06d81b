//! Applies a new policy to servers that are already hosted.
//!
//! Servers that the policy allows go on undisturbed. The others get no more calls, and are ended
//! once their running calls have ended or the policy's `drain_timeout_ms` is over. They stay
//! visible as `refused`, with the reason, and can be called again when a later policy allows them.

use std::sync::Arc;

use fleet_job::mcp_servers::{ServerEntry, expand::ExpandError};
use fleet_ops::errors::chain;
use fleet_policy::Policy;
use futures::future::join_all;

use super::{
    Fleet,
    hosted::{Hosted, Phase},
    launch::{self, LaunchError, LaunchSpec},
    secret_store::SecretStore,
    upstream::Upstream,
};

impl Fleet {
    /// Puts a policy in force for servers that run, and for what is started or called from now on.
    pub async fn apply_policy(self: &Arc<Self>, policy: Policy) {
        self.policy.replace(policy);
        let all: Vec<Arc<Hosted>> = self.servers().values().cloned().collect();
        join_all(all.iter().map(|hosted| async move {
            // Wait for a start in progress, which may have checked the earlier policy.
            let _gate = hosted.gate.lock().await;
            self.enforce_policy(hosted).await;
        }))
        .await;
        // Other tools may be pinned, or withheld, from now on.
        self.pins.note_policy();
        self.rebuild_routes();
    }

    /// Refuses or allows one server according to the policy. The gate is held.
    pub(super) async fn enforce_policy(self: &Arc<Self>, hosted: &Arc<Hosted>) {
        let Some(entry) = hosted.state().launch.as_ref().map(|launch| launch.entry.clone()) else {
            return;
        };

        let policy = self.policy();
        match check_policy(&entry, &policy, &self.secret_store).await {
            Err(reason) => self.refuse_server(hosted, &reason, &policy),
            Ok(spec) => {
                if let Some(spec) = &spec {
                    hosted.state().take_tokens_of(spec);
                }
                if hosted.state_mut().set_allowed() {
                    tracing::info!(server = hosted.name, "policy allows a hosted server again");
                    self.rebuild_routes();
                }
            }
        }
    }

    /// Refuses a server: takes its connection away, and ends it after its running calls.
    pub(super) fn refuse_server(
        self: &Arc<Self>,
        hosted: &Arc<Hosted>,
        reason: &str,
        policy: &Policy,
    ) {
        let known = matches!(hosted.state().phase, Phase::Refused);
        let taken = hosted.state_mut().set_refused(reason);
        if !known {
            tracing::warn!(
                server = hosted.name,
                reason,
                "policy no longer allows a hosted server; stopping it"
            );
            self.rebuild_routes();
        }

        if let Some(upstream) = taken {
            tokio::spawn(drain_upstream(hosted.clone(), upstream, policy.limits.drain_timeout));
        }
    }
}

/// Ends a connection after its running calls, or after `limit`.
async fn drain_upstream(hosted: Arc<Hosted>, upstream: Arc<Upstream>, limit: std::time::Duration) {
    tokio::select! {
        () = hosted.calls.wait_until_idle() => {}
        _ = upstream.wait_for_end() => {}
        () = tokio::time::sleep(limit) => {
            let calls = hosted.calls.in_flight();
            tracing::warn!(
                server = hosted.name,
                calls,
                "drain timeout reached; cutting off the remaining calls of a refused server"
            );
        }
    }

    upstream.stop().await;
    hosted.state_mut().forget_drained(&upstream);
}

/// Returns why a policy refuses a configuration, or what the configuration is under this policy.
/// Other problems, such as a missing file, are no reason to end a running server; then there is
/// nothing to return.
async fn check_policy(
    entry: &ServerEntry,
    policy: &Policy,
    store: &SecretStore,
) -> Result<Option<LaunchSpec>, String> {
    let spec = match launch::resolve(entry, policy, store).await {
        Ok(spec) => spec,
        Err(error) if error.is_refusal() => return Err(chain(&error)),
        Err(_) => return Ok(None),
    };

    if let Some(remote) = spec.remote()
        // A name that can't be resolved is not a matter of policy.
        && let Ok(found) = fleet_egress::lookup(&remote.url).await
    {
        fleet_egress::allowed(&remote.url, policy, &found)
            .map_err(|refusal| refusal.to_string())?;
    }
    Ok(Some(spec))
}

impl LaunchError {
    /// Returns whether policy is the reason.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Refused(_) => true,
            Self::Expand(error) => matches!(error.error, ExpandError::Refused { .. }),
            _ => self.is_about_tokens(),
        }
    }
}
