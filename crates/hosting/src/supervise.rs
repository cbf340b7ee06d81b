//! Supervises a connection until it ends: reads what changes, notes its end, and ends a child that
//! has been idle for too long.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use super::{Fleet, calls::Calls, hosted::Hosted, upstream::Upstream};

/// Supervises a connection until it has ended.
pub(super) async fn supervise_upstream(
    fleet: Arc<Fleet>,
    hosted: Arc<Hosted>,
    upstream: Arc<Upstream>,
) {
    let mut policy = fleet.policy.subscribe();
    let mut watched = hosted.watched.subscribe();
    let reason = loop {
        let limits = policy.borrow_and_update().limits.of_server(&hosted.name);
        // An idle remote costs nothing, and a server with subscribers is not idle.
        let can_be_idle = upstream.child.is_some() && hosted.watched.borrow().is_empty();
        let timeout = limits.idle_timeout.filter(|_| can_be_idle);

        tokio::select! {
            reason = upstream.wait_for_end() => break reason,
            () = wait_until_unused(&hosted.calls, timeout) => {
                if release_if_idle(&hosted, &upstream) {
                    tracing::info!(
                        server = hosted.name,
                        "stopping an idle hosted server; the next call starts it again"
                    );
                    fleet.rebuild_routes();
                    upstream.stop().await;
                }
            }
            unseen = upstream.next_news() => fleet.apply_news(&hosted, &upstream, unseen).await,
            // The senders live as long as the fleet and the server.
            _ = policy.changed() => {}
            _ = watched.changed() => {}
        }
    };
    note_end(&fleet, &hosted, &upstream, &reason);
}

/// Notes that a connection has ended, unless that was intended or has been noted already.
pub(super) fn note_end(fleet: &Fleet, hosted: &Hosted, upstream: &Arc<Upstream>, reason: &str) {
    if hosted.state().removed {
        return;
    }

    if hosted.state_mut().note_death(upstream, reason, Instant::now()) {
        tracing::warn!(
            server = hosted.name,
            reason,
            "the connection to a hosted server has ended; the next call starts it again"
        );
        fleet.rebuild_routes();
    }
}

/// Waits until there has been no call for as long as `timeout`.
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

/// Marks the server as idle unless there are calls. A call is counted before it asks for the
/// connection. So either it is seen here, or it finds no connection and starts the server again.
fn release_if_idle(hosted: &Hosted, upstream: &Arc<Upstream>) -> bool {
    let mut state = hosted.state_mut();
    hosted.calls.in_flight() == 0 && state.set_idle(upstream)
}
