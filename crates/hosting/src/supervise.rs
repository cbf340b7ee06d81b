//! Looks after a connection from its first to its last moment: takes in what changes, notes when it
//! dies, and ends a child that nobody needs.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Fleet, calls::Calls, hosted::Hosted, upstream::Upstream};

/// Until the connection has ended.
pub(super) async fn supervise_upstream(
    fleet: Arc<Fleet>,
    hosted: Arc<Hosted>,
    upstream: Arc<Upstream>,
) {
    let mut policy = fleet.policy.subscribe();
    let mut watched = hosted.watched.subscribe();
    let reason = loop {
        let limits = policy.borrow_and_update().limits.of_server(&hosted.name);
        // A remote server costs nothing while it is not used. One that somebody wants to hear of is
        // used.
        let idle = upstream.child.is_some() && hosted.watched.borrow().is_empty();
        let timeout = limits.idle_timeout.filter(|_| idle);
        tokio::select! {
            reason = upstream.wait_for_end() => break reason,
            () = wait_until_unused(&hosted.calls, timeout) => {
                if release_if_idle(&hosted, &upstream) {
                    tracing::info!(server = hosted.name, "a hosted server is ended until it is called again");
                    fleet.rebuild_routes();
                    upstream.stop().await;
                }
            }
            unseen = upstream.next_news() => fleet.apply_news(&hosted, &upstream, unseen).await,
            // The fleet holds the policy, and the server its wishes, so there is somebody to hear
            // from.
            _ = policy.changed() => {}
            _ = watched.changed() => {}
        }
    };
    note_end(&fleet, &hosted, &upstream, &reason);
}

/// Notes that a connection has ended, where that was not wanted and nobody has noted it yet.
pub(super) fn note_end(fleet: &Fleet, hosted: &Hosted, upstream: &Arc<Upstream>, reason: &str) {
    if hosted.state().removed {
        return;
    }
    if hosted.state_mut().note_death(upstream, reason, Instant::now()) {
        tracing::warn!(server = hosted.name, reason, "a hosted server died");
        fleet.rebuild_routes();
    }
}

/// Until there was no call for so long.
async fn wait_until_unused(calls: &Calls, timeout: Option<Duration>) {
    let Some(timeout) = timeout else { return std::future::pending().await };
    loop {
        calls.wait_until_idle().await;
        let end = calls.last_used() + timeout;
        if Instant::now() >= end {
            return;
        }
        tokio::time::sleep_until(end.into()).await;
    }
}

/// Takes the connection away unless there are calls. Whoever calls counts themselves before they
/// ask for the connection, so either their call is seen here, or they see that the connection is
/// gone and start the server again.
fn release_if_idle(hosted: &Hosted, upstream: &Arc<Upstream>) -> bool {
    let mut state = hosted.state_mut();
    hosted.calls.in_flight() == 0 && state.set_idle(upstream)
}
