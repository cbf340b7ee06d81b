//! A new policy, applied to what is hosted already.
//!
//! What it allows goes on undisturbed. What it does not allow gets no more calls from that moment,
//! and is ended once the calls under way are done, or the policy's `drain_timeout_ms` is over. It
//! stays in sight as `refused`, with the rule, and may be called again when a later policy allows
//! it again.

use std::sync::Arc;

use fleet_job::mcp_servers::{ServerEntry, expand::ExpandError};
use fleet_ops::errors::chain;
use fleet_policy::Policy;
use futures::future::join_all;

use super::{
    Fleet,
    hosted::{Hosted, Phase},
    launch::{self, LaunchError, LaunchSpec},
    upstream::Upstream,
};

impl Fleet {
    /// From now on this policy holds: for what is started and called, and for what runs.
    pub async fn apply_policy(self: &Arc<Self>, policy: Policy) {
        self.policy.replace(policy);
        let all: Vec<Arc<Hosted>> = self.servers().values().cloned().collect();
        join_all(all.iter().map(|hosted| async move {
            // Whoever starts it right now is waited for, since they may have asked the policy
            // before.
            let _gate = hosted.gate.lock().await;
            self.enforce_policy(hosted).await;
        }))
        .await;
    }

    /// Refuses or allows one server as the policy now says. The gate is held.
    pub(super) async fn enforce_policy(self: &Arc<Self>, hosted: &Arc<Hosted>) {
        let Some(entry) = hosted.state().launch.as_ref().map(|launch| launch.entry.clone()) else {
            return;
        };
        let policy = self.policy();
        match policy_refusal(&entry, &policy).await {
            Some(reason) => self.refuse_server(hosted, &reason, &policy),
            None => {
                if hosted.state_mut().set_allowed() {
                    tracing::info!(server = hosted.name, "a hosted server is allowed again");
                    self.rebuild_routes();
                }
            }
        }
    }

    /// Takes a server's connection away and ends it after its calls.
    pub(super) fn refuse_server(
        self: &Arc<Self>,
        hosted: &Arc<Hosted>,
        reason: &str,
        policy: &Policy,
    ) {
        let known = matches!(hosted.state().phase, Phase::Refused);
        let taken = hosted.state_mut().set_refused(reason);
        if !known {
            tracing::warn!(server = hosted.name, reason, "a hosted server is not allowed any more");
            self.rebuild_routes();
        }
        if let Some(upstream) = taken {
            tokio::spawn(drain_upstream(hosted.clone(), upstream, policy.limits.drain_timeout));
        }
    }
}

/// Ends a connection after the calls under way.
async fn drain_upstream(hosted: Arc<Hosted>, upstream: Arc<Upstream>, limit: std::time::Duration) {
    tokio::select! {
        () = hosted.calls.wait_until_idle() => {}
        _ = upstream.wait_for_end() => {}
        () = tokio::time::sleep(limit) => {
            tracing::warn!(server = hosted.name, calls = hosted.calls.in_flight(), "calls are cut off");
        }
    }
    upstream.stop().await;
    hosted.state_mut().forget_drained(&upstream);
}

/// Why a policy does not allow a configuration, where it does not. Other reasons why it may not
/// start, such as a file that is gone, are none to end what runs.
async fn policy_refusal(entry: &ServerEntry, policy: &Policy) -> Option<String> {
    match launch::resolve(entry, policy).await {
        Ok(LaunchSpec::Child(_)) => None,
        Ok(LaunchSpec::Url(spec) | LaunchSpec::Remote(spec) | LaunchSpec::Sse(spec)) => {
            // What can't be resolved can't be reached, which is not for policy to say.
            let found = fleet_egress::lookup(&spec.url).await.ok()?;
            fleet_egress::allowed(&spec.url, policy, &found)
                .err()
                .map(|refusal| refusal.to_string())
        }
        Err(error) => error.is_refusal().then(|| chain(&error)),
    }
}

impl LaunchError {
    /// Whether it is policy that stands in the way.
    pub fn is_refusal(&self) -> bool {
        match self {
            Self::Refused(_) => true,
            Self::Expand(error) => matches!(error.error, ExpandError::Refused { .. }),
            _ => false,
        }
    }
}
