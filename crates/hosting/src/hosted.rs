//! The state of one hosted server: what it was started from, whether it runs, why not, and when it
//! may be started again.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use fleet_job::mcp_servers::ServerEntry;
use fleet_retry::{Backoff, Random};
use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use tokio::sync::watch;

use super::{
    attempt::Attempt,
    calls::Calls,
    catalog::Catalog,
    launch::LaunchSpec,
    outage::OutageReason,
    remote_tokens::RemoteTokens,
    secrets::Secrets,
    upstream::{ConnectError, SHOWN_STDERR, Upstream},
};

/// The waits before restarts, from the second failure in a row on.
const RESTARTS: Backoff =
    Backoff { base: Duration::from_millis(500), max: Duration::from_secs(60) };
/// How long a server that has never run is listed after its last failed start.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(15 * 60);
/// The uptime after which earlier failures are forgotten.
const SUSTAINED: Duration = Duration::from_secs(60);

/// A hosted server.
pub(super) struct Hosted {
    pub(super) name: String,
    /// The position in the order of servers. If names collide, the earlier server keeps the name.
    pub(super) order: u64,
    /// Held while the server is started, replaced or removed.
    pub(super) gate: tokio::sync::Mutex<()>,
    /// The resources that have subscribers, by the server's own URIs.
    pub(super) watched: watch::Sender<BTreeSet<String>>,
    /// The calls of the server.
    pub(super) calls: Arc<Calls>,
    state: RwLock<State>,
}

/// What is known about a hosted server.
pub(super) struct State {
    pub(super) phase: Phase,
    /// The present attempt to start it.
    pub(super) attempt: Option<Attempt>,
    /// What it was last started from, successfully or not.
    pub(super) launch: Option<LaunchSource>,
    /// What it last offered. This stays offered while the server is down, since a call restarts it.
    pub(super) catalog: Catalog,
    pub(super) last_error: Option<String>,
    /// The kind of outage while it does not run.
    pub(super) outage: OutageReason,
    pub(super) stderr: Option<String>,
    pub(super) restarts: u32,
    pub(super) removed: bool,
    /// Connections that get no more calls and still have running ones.
    draining: Vec<Arc<Upstream>>,
    failures: u32,
    /// When the last start failed.
    failed_at: Option<Instant>,
    not_before: Option<Instant>,
    random: Random,
}

/// Marks an attempt to start a server as present until this is dropped.
pub(super) struct Attempting<'a> {
    hosted: &'a Hosted,
    pub(super) attempt: Attempt,
}

impl Drop for Attempting<'_> {
    fn drop(&mut self) {
        self.hosted.state_mut().attempt = None;
    }
}

/// What a server is started from.
#[derive(Clone)]
pub(super) struct LaunchSource {
    /// The configuration as it was given, to be resolved again under a new policy.
    pub(super) entry: ServerEntry,
    /// The result of resolving it the last time.
    pub(super) spec: LaunchSpec,
}

/// Whether a hosted server runs.
pub(super) enum Phase {
    /// The server is being started for the first time.
    Starting,
    /// The server runs.
    Running(Arc<Upstream>),
    /// The server does not run, for the reason in `last_error`.
    Failed,
    /// The server does not run because it was idle. The next call starts it.
    Idle,
    /// Policy does not allow the server, for the reason in `last_error`.
    Refused,
}

impl Phase {
    pub(super) fn name(&self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Running(_) => "running",
            Self::Failed => "failed",
            Self::Idle => "idle",
            Self::Refused => "refused",
        }
    }
}

impl Hosted {
    pub(super) fn new(name: String, order: u64) -> Self {
        let state = State {
            phase: Phase::Starting,
            attempt: None,
            launch: None,
            catalog: Catalog::default(),
            last_error: None,
            outage: OutageReason::default(),
            stderr: None,
            restarts: 0,
            removed: false,
            draining: Vec::new(),
            failures: 0,
            failed_at: None,
            not_before: None,
            random: Random::new(rand::random()),
        };
        Self {
            name,
            order,
            gate: tokio::sync::Mutex::default(),
            watched: watch::Sender::default(),
            calls: Arc::default(),
            state: RwLock::new(state),
        }
    }

    pub(super) fn state(&self) -> RwLockReadGuard<'_, State> {
        self.state.read()
    }

    pub(super) fn state_mut(&self) -> RwLockWriteGuard<'_, State> {
        self.state.write()
    }

    /// Returns the connection if it works.
    pub(super) fn running_upstream(&self) -> Option<Arc<Upstream>> {
        match &self.state().phase {
            Phase::Running(upstream) if !upstream.is_ended() => Some(upstream.clone()),
            _ => None,
        }
    }

    /// Returns the connection if it has ended and that has not been noted yet.
    pub(super) fn ended_upstream(&self) -> Option<Arc<Upstream>> {
        match &self.state().phase {
            Phase::Running(upstream) if upstream.is_ended() => Some(upstream.clone()),
            _ => None,
        }
    }

    /// Begins an attempt to start the server, which ends when the returned value is dropped. There
    /// is one attempt at a time, because the gate is held.
    pub(super) fn begin_attempt(&self, limit: Duration) -> Attempting<'_> {
        let attempt = Attempt::new(limit);
        self.state_mut().attempt = Some(attempt.clone());
        Attempting { hosted: self, attempt }
    }

    /// Returns whether nothing is left to be said about the server: it has never run, and its last
    /// start failed long ago.
    pub(super) fn is_forgotten(&self, now: Instant) -> bool {
        let failed_at = self.state().failed_at;
        failed_at.is_some_and(|at| now.saturating_duration_since(at) >= FORGOTTEN_AFTER)
            && !self.ever_ran()
    }

    /// Returns whether the server has ever run.
    pub(super) fn ever_ran(&self) -> bool {
        let state = self.state();
        matches!(state.phase, Phase::Running(_)) || !state.catalog.is_empty() || state.restarts > 0
    }
}

impl State {
    /// Returns the values that went into the configuration.
    pub(super) fn secrets(&self) -> Secrets {
        self.launch.as_ref().map(|launch| launch.spec.secrets().clone()).unwrap_or_default()
    }

    /// Offers what a connection has that is about to take over.
    pub(super) fn set_offered(&mut self, upstream: &Upstream) {
        self.set_allowed();
        self.catalog = upstream.catalog();
    }

    /// Returns the access tokens that requests to the server have, if policy gets any.
    pub(super) fn tokens(&self) -> Option<Arc<RemoteTokens>> {
        self.launch.as_ref()?.spec.remote()?.headers.tokens()
    }

    /// Uses the access tokens of another spec of the same remote from the next request on.
    pub(super) fn take_tokens_of(&self, other: &LaunchSpec) {
        let own = self.launch.as_ref().and_then(|launch| launch.spec.remote());
        if let (Some(own), Some(other)) = (own, other.remote()) {
            own.headers.take_tokens_of(&other.headers);
        }
    }

    /// Notes that the server runs. Returns the connection that it replaces.
    pub(super) fn set_running(
        &mut self,
        upstream: Arc<Upstream>,
        launch: LaunchSource,
    ) -> Option<Arc<Upstream>> {
        self.catalog = upstream.catalog();
        self.launch = Some(launch);
        self.last_error = None;
        self.stderr = None;
        self.not_before = None;
        match std::mem::replace(&mut self.phase, Phase::Running(upstream)) {
            Phase::Running(old) => Some(old),
            Phase::Starting | Phase::Failed | Phase::Idle | Phase::Refused => None,
        }
    }

    /// Notes that policy does not allow the server. Returns its connection, which gets no more
    /// calls.
    pub(super) fn set_refused(&mut self, reason: &str) -> Option<Arc<Upstream>> {
        self.last_error = Some(reason.to_owned());
        match std::mem::replace(&mut self.phase, Phase::Refused) {
            Phase::Running(upstream) => {
                self.draining.push(upstream.clone());
                Some(upstream)
            }
            Phase::Starting | Phase::Failed | Phase::Idle | Phase::Refused => None,
        }
    }

    /// Notes that policy allows the server. Returns whether it was refused before.
    pub(super) fn set_allowed(&mut self) -> bool {
        let was_refused = matches!(self.phase, Phase::Refused);
        if was_refused {
            self.phase = Phase::Idle;
            self.last_error = None;
        }
        was_refused
    }

    /// Notes that the server is idle. Does nothing and returns `false` if `upstream` is not its
    /// present connection.
    pub(super) fn set_idle(&mut self, upstream: &Arc<Upstream>) -> bool {
        let is_current =
            matches!(&self.phase, Phase::Running(current) if Arc::ptr_eq(current, upstream));
        if is_current {
            self.phase = Phase::Idle;
        }
        is_current
    }

    /// Notes that a connection of a refused server has ended.
    pub(super) fn forget_drained(&mut self, upstream: &Arc<Upstream>) {
        self.draining.retain(|other| !Arc::ptr_eq(other, upstream));
    }

    /// Takes all connections, to end them.
    pub(super) fn take_upstreams(&mut self) -> Vec<Arc<Upstream>> {
        let mut all = std::mem::take(&mut self.draining);
        if let Phase::Running(upstream) = std::mem::replace(&mut self.phase, Phase::Failed) {
            all.push(upstream);
        }
        all
    }

    /// Returns what to offer: the catalog, even if the server does not run, since a call may start
    /// it; nothing if the server is refused.
    pub(super) fn offered_catalog(&self) -> Catalog {
        match self.phase {
            Phase::Refused => Catalog::default(),
            Phase::Starting | Phase::Running(_) | Phase::Failed | Phase::Idle => {
                self.catalog.clone()
            }
        }
    }

    /// Takes over the lists that were read again.
    pub(super) fn refresh_catalog(&mut self, upstream: &Arc<Upstream>) {
        if matches!(&self.phase, Phase::Running(current) if Arc::ptr_eq(current, upstream)) {
            self.catalog = upstream.catalog();
        }
    }

    /// Notes a failed attempt to start the server. A connection that runs already stays.
    pub(super) fn note_start_failure(&mut self, error: &ConnectError, now: Instant) {
        self.last_error = Some(error.message.clone());
        self.outage =
            if error.unauthorized { OutageReason::Unauthorized } else { OutageReason::Unavailable };
        if !matches!(self.phase, Phase::Running(_)) {
            self.stderr.clone_from(&error.stderr);
            self.phase = Phase::Failed;
            self.failed_at = Some(now);
            self.back_off(now);
        }
    }

    /// Notes that a connection ended by itself. Returns `false` if it is not the present one.
    pub(super) fn note_death(
        &mut self,
        upstream: &Arc<Upstream>,
        reason: &str,
        now: Instant,
    ) -> bool {
        match &self.phase {
            Phase::Running(current) if Arc::ptr_eq(current, upstream) => {}
            // The connection was replaced or removed, so its end was intended.
            _ => return false,
        }

        self.note_uptime(now.duration_since(upstream.since));
        self.last_error = Some(reason.to_owned());
        self.outage = OutageReason::default();
        self.stderr = upstream.child.as_ref().map(|child| child.stderr.text(SHOWN_STDERR));
        self.phase = Phase::Failed;
        self.back_off(now);
        true
    }

    /// Forgets earlier failures after a sustained uptime.
    fn note_uptime(&mut self, uptime: Duration) {
        if uptime >= SUSTAINED {
            self.failures = 0;
        }
    }

    /// Returns how long to wait before the server may be started again.
    pub(super) fn restart_wait(&self, now: Instant) -> Duration {
        self.not_before.map_or(Duration::ZERO, |at| at.saturating_duration_since(now))
    }

    /// Sets when the server may be started again: at once after the first failure, later after each
    /// further one.
    fn back_off(&mut self, now: Instant) {
        self.not_before =
            (self.failures > 0).then(|| now + RESTARTS.spread(self.failures, &mut self.random));
        self.failures = self.failures.saturating_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failures_in_a_row_wait_longer() {
        let hosted = Hosted::new("s".to_owned(), 0);
        let now = Instant::now();
        let error = ConnectError {
            message: "no".to_owned(),
            stderr: None,
            unreachable: false,
            unauthorized: false,
        };
        let is_up_to = |wait: Duration, ceiling: u64| {
            let ceiling = Duration::from_millis(ceiling);
            assert!((ceiling / 2..=ceiling).contains(&wait), "{wait:?} is not up to {ceiling:?}");
        };
        for ceiling in [0, 500, 1000, 2000, 4000, 8000, 16000, 32000, 60000, 60000] {
            hosted.state_mut().note_start_failure(&error, now);
            is_up_to(hosted.state().restart_wait(now), ceiling);
        }
        assert_eq!(hosted.state().restart_wait(now + RESTARTS.max), Duration::ZERO);
        assert!(!hosted.ever_ran());
        assert!(!hosted.is_forgotten(now + FORGOTTEN_AFTER - Duration::from_millis(1)));
        assert!(hosted.is_forgotten(now + FORGOTTEN_AFTER));
        // A short uptime changes nothing; a long one resets the failures.
        let wait_after = |uptime| {
            hosted.state_mut().note_uptime(uptime);
            hosted.state_mut().note_start_failure(&error, now);
            hosted.state().restart_wait(now)
        };
        is_up_to(wait_after(SUSTAINED - Duration::from_millis(1)), 60_000);
        assert_eq!(wait_after(SUSTAINED), Duration::ZERO);
        is_up_to(wait_after(Duration::ZERO), 500);
    }
}
