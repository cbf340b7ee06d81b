//! The hosted servers by name: starting, replacing, removing and reviving them, and saying how they
//! are.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use fleet_job::{mcp_servers::ServerEntry, size::clipped, tool_name};
use futures::future::join_all;
use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

pub use super::errors::{InitError, ServerDown};
use fleet_ops::errors::chain;
use fleet_policy::{Policy, Refusal, current::CurrentPolicy};

use super::{
    apps,
    attempt::Attempt,
    calls::Calls,
    catalog::Catalog,
    changes::{Change, Unseen},
    hosted::{Hosted, LaunchSource, Phase},
    launch,
    notices::{DropReason, Notice},
    outage::{OutageReason, SOON},
    routes::Routes,
    secrets::Secrets,
    status::{ServerStatus, Unavailable},
    supervise::{note_end, supervise_upstream},
    upstream::Upstream,
};
use crate::metrics::{HOSTED_RESTARTS, HOSTED_SERVERS};

/// How many changes a slow listener may be behind before it is told that everything may have
/// changed.
const MAX_BEHIND: usize = 256;
/// What has changed is read at most this often of one server, however often it says so.
const REFRESH: Duration = Duration::from_millis(200);
/// How much of the name of a method the log shows.
const SHOWN_METHOD: usize = 128;

/// When to try again where somebody has to change something first.
const LATER: Duration = Duration::from_secs(30);

/// All hosted servers.
pub struct Fleet {
    pub(super) policy: CurrentPolicy,
    servers: RwLock<BTreeMap<String, Arc<Hosted>>>,
    routes: RwLock<Arc<Routes>>,
    changes: broadcast::Sender<Change>,
    /// How many want to hear of a server's resource, by its URI there.
    watched: Mutex<BTreeMap<(String, String), usize>>,
    order: AtomicU64,
    closed: AtomicBool,
    closing: CancellationToken,
}

/// Somebody's wish to hear of a resource. It ends when this is dropped.
pub struct Watched {
    fleet: Arc<Fleet>,
    key: (String, String),
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.fleet.unwatch(&self.key);
    }
}

impl Fleet {
    /// A fleet without servers.
    pub fn new(policy: CurrentPolicy) -> Arc<Self> {
        Arc::new(Self {
            policy,
            servers: RwLock::default(),
            routes: RwLock::default(),
            changes: broadcast::Sender::new(MAX_BEHIND),
            watched: Mutex::default(),
            order: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            closing: CancellationToken::new(),
        })
    }

    /// The policy that holds now.
    pub fn policy(&self) -> Arc<Policy> {
        self.policy.get()
    }

    /// Hosts a server under a name. Where it runs already from the same configuration, nothing
    /// happens; from another one, it is replaced once the new one has done its handshake.
    ///
    /// # Errors
    ///
    /// Where the name or the configuration is not acceptable, or the handshake fails.
    pub async fn initialize(
        self: &Arc<Self>,
        name: &str,
        entry: &ServerEntry,
    ) -> Result<ServerStatus, InitError> {
        tool_name::check_server(name)?;
        let policy = self.policy();
        let launch =
            LaunchSource { spec: launch::resolve(entry, &policy).await?, entry: entry.clone() };
        loop {
            let hosted = self.find_or_add(name)?;
            let gate = hosted.gate.lock().await;
            if hosted.state().removed {
                // It was removed while we waited. What we were asked comes after that.
                continue;
            }
            let same = hosted.state().launch.as_ref().is_some_and(|last| last.spec == launch.spec);
            if !(same && hosted.running_upstream().is_some()) {
                self.start_server(&hosted, &launch).await?;
                hosted.calls.reset();
            }
            if !Arc::ptr_eq(&policy, &self.policy()) {
                // It changed while the server was being started.
                self.enforce_policy(&hosted).await;
                launch::resolve(entry, &self.policy()).await?;
            }
            drop(gate);
            return Ok(self.status_of(&hosted, Instant::now()));
        }
    }

    /// Whether there is a server of this name, in whatever state. While this server shuts down
    /// nobody can tell.
    pub fn is_hosted(&self, name: &str) -> bool {
        self.find_hosted(name).is_some() || self.closed.load(Ordering::Acquire)
    }

    /// Whether a server of this name was last started from this very configuration, successfully or
    /// not.
    pub async fn is_hosted_from(&self, name: &str, entry: &ServerEntry) -> bool {
        let Some(hosted) = self.find_hosted(name) else { return false };
        let Ok(spec) = launch::resolve(entry, &self.policy()).await else { return false };
        hosted.state().launch.as_ref().is_some_and(|launch| launch.spec == spec)
    }

    /// Removes a server and ends it. `false` where there is none of this name.
    pub async fn remove(&self, name: &str) -> bool {
        let Some(hosted) = self.find_hosted(name) else { return false };
        let _gate = hosted.gate.lock().await;
        if std::mem::replace(&mut hosted.state_mut().removed, true) {
            return false;
        }
        self.servers.write().remove(name);
        self.rebuild_routes();
        stop_upstreams(&hosted).await;
        tracing::info!(server = name, "hosted server removed");
        true
    }

    /// A working connection to a server, which is started again where it died.
    ///
    /// # Errors
    ///
    /// Where it can't be started now.
    pub async fn ensure_running(self: &Arc<Self>, name: &str) -> Result<Arc<Upstream>, ServerDown> {
        let down = |reason: String, retry_after| {
            let outage = OutageReason::Unavailable;
            ServerDown { server: name.to_owned(), reason, outage, retry_after }
        };
        let Some(hosted) = self.find_hosted(name) else {
            let is_closed = self.closed.load(Ordering::Acquire);
            let reason =
                if is_closed { "this server is shutting down" } else { "it was removed just now" };
            return Err(down(reason.to_owned(), SOON));
        };
        // Before the connection is looked at, so that a server that was just found unused is
        // started again.
        hosted.calls.mark_used();
        if let Some(upstream) = hosted.running_upstream() {
            return Ok(upstream);
        }
        let _gate = hosted.gate.lock().await;
        if let Some(upstream) = hosted.running_upstream() {
            return Ok(upstream);
        }
        if let Some(upstream) = hosted.ended_upstream() {
            // Whoever looks after it may come to note that after us, and then a death would not
            // count.
            let reason = upstream.wait_for_end().await;
            note_end(self, &hosted, &upstream, &reason);
        }
        let (launch, wait, reason, failed) = {
            let state = hosted.state();
            let reason =
                state.last_error.clone().unwrap_or_else(|| "it was never started".to_owned());
            let failed = matches!(state.phase, Phase::Failed);
            (state.launch.clone(), state.restart_wait(Instant::now()), reason, failed)
        };
        let Some(mut launch) = launch.filter(|_| !hosted.state().removed) else {
            return Err(down(reason, SOON));
        };
        if !wait.is_zero() {
            let outage = hosted.state().outage;
            return Err(ServerDown { outage, ..down(reason, wait) });
        }
        let policy = self.policy();
        launch.spec = match launch::resolve(&launch.entry, &policy).await {
            Ok(spec) => spec,
            Err(error) => {
                let reason = chain(&error);
                if error.is_refusal() {
                    self.refuse_server(&hosted, &reason, &policy);
                }
                return Err(down(reason, LATER));
            }
        };
        if failed {
            hosted.state_mut().restarts += 1;
            metrics::counter!(HOSTED_RESTARTS.name).increment(1);
            tracing::info!(server = name, %reason, "starting a hosted server again");
        }
        self.start_server(&hosted, &launch).await.map_err(|error| {
            let (wait, outage) = {
                let state = hosted.state();
                (state.restart_wait(Instant::now()), state.outage)
            };
            ServerDown { outage, ..down(error.to_string(), wait.max(SOON)) }
        })
    }

    /// How long a call of an offered tool may take, from its place in the queue to its answer.
    pub fn longest_call(&self, name: &str) -> Duration {
        let policy = self.policy();
        let routes = self.routes();
        let limits = match routes.tool(name) {
            Some(route) => policy.limits.of_call(&route.server, &route.name).server,
            None => policy.limits.defaults,
        };
        // It may wait for a slot of the tool and for one of the server.
        limits.call_timeout.saturating_add(limits.queue_timeout.saturating_mul(2))
    }

    /// The calls of a server, which take part in how long it lives.
    pub(crate) fn calls(&self, name: &str) -> Option<Arc<Calls>> {
        self.find_hosted(name).map(|hosted| hosted.calls.clone())
    }

    /// Starts a server and puts it in place of what ran before. The gate is held.
    async fn start_server(
        self: &Arc<Self>,
        hosted: &Arc<Hosted>,
        launch: &LaunchSource,
    ) -> Result<Arc<Upstream>, InitError> {
        {
            // Before the attempt, which may be given up in the middle: then the next call makes
            // another one.
            let mut state = hosted.state_mut();
            if !matches!(state.phase, Phase::Running(_)) {
                state.launch = Some(launch.clone());
            }
        }

        let limit = self.policy().limits.handshake_timeout;
        let attempting = hosted.begin_attempt(limit);
        let connected =
            Upstream::connect(&hosted.name, &launch.spec, &self.policy, &attempting.attempt).await;
        drop(attempting);
        let upstream = match connected {
            Ok(upstream) => Arc::new(upstream),
            Err(error) => {
                let error = error.hiding(launch.spec.secrets());
                tracing::warn!(server = hosted.name, %error, "a hosted server could not be started");
                let mut state = hosted.state_mut();
                state.note_start_failure(&error, Instant::now());
                if !matches!(state.phase, Phase::Running(_)) {
                    state.launch = Some(launch.clone());
                }
                drop(state);
                self.rebuild_routes();
                return Err(error.into());
            }
        };
        let taken = {
            // Whoever removes a server or closes the fleet says so before it looks for what to end,
            // under this lock. So either it sees what is put in place here, or we see that it has
            // been.
            let mut state = hosted.state_mut();
            if self.closed.load(Ordering::Acquire) {
                Err(InitError::Closed)
            } else if state.removed {
                Err(InitError::Removed)
            } else {
                Ok(state.set_running(upstream.clone(), launch.clone()))
            }
        };
        let old = match taken {
            Ok(old) => old,
            Err(error) => {
                upstream.stop().await;
                return Err(error);
            }
        };
        self.rebuild_routes();
        tracing::info!(
            server = hosted.name,
            protocol = upstream.info.protocol_version.as_str(),
            tools = upstream.catalog().tools.len(),
            pid = upstream.child.as_ref().map(|child| child.pid),
            "hosted server runs"
        );
        upstream.follow_changes(&hosted.name, hosted.watched.subscribe());
        tokio::spawn(supervise_upstream(Arc::clone(self), hosted.clone(), upstream.clone()));
        if let Some(old) = old {
            old.stop().await;
        }
        Ok(upstream)
    }

    /// Ends all servers. None is started any more.
    pub async fn shutdown(&self) {
        self.closed.store(true, Ordering::Release);
        self.end_subscriptions();
        let all = std::mem::take(&mut *self.servers.write());
        join_all(all.values().map(|hosted| async move {
            hosted.state_mut().removed = true;
            stop_upstreams(hosted).await;
        }))
        .await;
    }

    /// Ends the streams that tell of changes, which have no end of their own.
    pub fn end_subscriptions(&self) {
        self.closing.cancel();
    }

    /// Waits until [`Self::end_subscriptions`] is called.
    pub async fn wait_for_closing(&self) {
        self.closing.cancelled().await;
    }

    /// The attempt to start a server that is under way.
    pub fn current_attempt(&self, name: &str) -> Option<Attempt> {
        self.find_hosted(name)?.state().attempt.clone()
    }

    /// The names of all servers.
    pub fn names(&self) -> Vec<String> {
        self.servers().keys().cloned().collect()
    }

    /// How one server is.
    pub fn status(&self, name: &str) -> Option<ServerStatus> {
        self.find_hosted(name).map(|hosted| self.status_of(&hosted, Instant::now()))
    }

    /// How all servers are.
    pub fn statuses(&self) -> Vec<ServerStatus> {
        let now = Instant::now();
        self.servers().values().map(|hosted| self.status_of(hosted, now)).collect()
    }

    /// What clients should be told from now on.
    pub fn changes(&self) -> broadcast::Receiver<Change> {
        self.changes.subscribe()
    }

    /// Tells clients of a change.
    pub fn announce(&self, change: Change) {
        // Nobody needs to be listening.
        _ = self.changes.send(change);
    }

    /// Hears of changes of a resource until what is given back is dropped. `None` where no server
    /// has it.
    pub fn watch_resource(self: &Arc<Self>, uri: &str) -> Option<Watched> {
        let routes = self.routes();
        let (server, own) = routes.resource(uri)?;
        let key = (server.to_owned(), own.to_owned());
        let count = {
            let mut watched = self.watched.lock();
            let count = watched.entry(key.clone()).or_default();
            *count += 1;
            *count
        };
        if count == 1
            && let Some(hosted) = self.find_hosted(server)
        {
            hosted.watched.send_modify(|uris| _ = uris.insert(own.to_owned()));
        }
        Some(Watched { fleet: self.clone(), key })
    }

    fn unwatch(&self, (server, uri): &(String, String)) {
        let mut watched = self.watched.lock();
        let Entry::Occupied(mut count) = watched.entry((server.clone(), uri.clone())) else {
            return;
        };
        *count.get_mut() -= 1;
        if *count.get() == 0 {
            count.remove();
            if let Some(hosted) = self.find_hosted(server) {
                hosted.watched.send_modify(|uris| _ = uris.remove(uri));
            }
        }
    }

    /// Takes in what a server says has changed.
    pub(super) async fn apply_news(
        &self,
        hosted: &Hosted,
        upstream: &Arc<Upstream>,
        unseen: Unseen,
    ) {
        for uri in &unseen.resources {
            let offered = self.routes().offered_uri(&hosted.name, uri);
            self.announce(Change::Resource(offered.into()));
        }
        for notice in unseen.notices {
            self.announce_notice(hosted, upstream, notice);
        }
        if !unseen.lists.any() {
            return;
        }
        let limit = self.policy().limits.handshake_timeout;
        match tokio::time::timeout(limit, upstream.refresh_lists(&hosted.name, unseen.lists)).await
        {
            Ok(Ok(())) => {
                hosted.state_mut().refresh_catalog(upstream);
                self.rebuild_routes();
            }
            Ok(Err(error)) => {
                tracing::warn!(server = hosted.name, %error, "changed lists can't be read")
            }
            Err(_) => tracing::warn!(server = hosted.name, "changed lists were not there in time"),
        }
        tokio::time::sleep(REFRESH).await;
    }

    /// Passes a notification on that belongs to an extension of its server.
    fn announce_notice(&self, hosted: &Hosted, upstream: &Upstream, mut notice: Notice) {
        let routes = self.routes();
        let Some(extension) = routes.extensions().extension_of_notice(&hosted.name, &notice.method)
        else {
            let method = clipped(&notice.method, SHOWN_METHOD).into_owned();
            upstream.log_dropped_notice(&hosted.name, &DropReason::Undeclared(method));
            return;
        };
        notice.params.iter_mut().for_each(|params| apps::offer_in_answer(&hosted.name, params));
        self.announce(Change::Notice { extension: extension.into(), notice: Arc::new(notice) });
    }

    /// The values to hide in what is said about a server.
    pub(crate) fn secrets(&self, name: &str) -> Secrets {
        self.servers().get(name).map(|hosted| hosted.state().secrets()).unwrap_or_default()
    }

    /// Where calls go.
    pub fn routes(&self) -> Arc<Routes> {
        self.routes.read().clone()
    }

    /// The servers that a list of tools should warn of.
    pub fn unavailable_servers(&self) -> Vec<Unavailable> {
        let routes = self.routes();
        self.servers().values().filter_map(|hosted| Unavailable::of(hosted, &routes)).collect()
    }

    fn status_of(&self, hosted: &Hosted, now: Instant) -> ServerStatus {
        ServerStatus::of(hosted, &self.routes(), now)
    }

    pub(super) fn servers(&self) -> RwLockReadGuard<'_, BTreeMap<String, Arc<Hosted>>> {
        self.servers.read()
    }

    fn find_hosted(&self, name: &str) -> Option<Arc<Hosted>> {
        self.servers().get(name).cloned()
    }

    /// The server of this name, made where there is none and room for one.
    fn find_or_add(&self, name: &str) -> Result<Arc<Hosted>, InitError> {
        let mut servers = self.servers.write();
        // Asked under the lock under which the shutdown takes all servers, so that none comes after
        // it.
        if self.closed.load(Ordering::Acquire) {
            return Err(InitError::Closed);
        }
        if let Some(hosted) = servers.get(name) {
            return Ok(hosted.clone());
        }
        let limit = self.policy().limits.max_servers;
        if servers.len() >= limit {
            // What never ran is only kept to be seen, and makes room, unless somebody holds its
            // gate and starts it right now. One that is `Starting` with nobody at its gate is what
            // a cancelled attempt left behind.
            let mut leftovers: Vec<_> =
                servers.values().filter(|hosted| !hosted.ever_ran()).cloned().collect();
            leftovers.sort_by_key(|hosted| hosted.order);
            let evicted = leftovers.iter().find_map(|hosted| {
                let _gate = hosted.gate.try_lock().ok()?;
                hosted.state_mut().removed = true;
                Some(&hosted.name)
            });
            let Some(evicted) = evicted else {
                return Err(InitError::TooMany(Refusal::TooManyServers { limit }));
            };
            servers.remove(evicted);
        }
        let order = self.order.fetch_add(1, Ordering::Relaxed);
        let hosted = Arc::new(Hosted::new(name.to_owned(), order));
        servers.insert(name.to_owned(), hosted.clone());
        Ok(hosted)
    }

    /// Builds the routes anew after something changed, and says what is different.
    pub(super) fn rebuild_routes(&self) {
        let mut servers: Vec<Arc<Hosted>> = self.servers().values().cloned().collect();
        servers.sort_by_key(|hosted| hosted.order);
        let catalogs: Vec<(String, Catalog)> = servers
            .iter()
            .map(|hosted| (hosted.name.clone(), hosted.state().offered_catalog()))
            .collect();
        let routes =
            Routes::build(catalogs.iter().map(|(name, catalog)| (name.as_str(), catalog.clone())));
        let mut current = self.routes.write();
        let differ = routes.changed_lists(&current);
        *current = Arc::new(routes);
        drop(current);
        if differ.any() {
            self.announce(Change::Lists(differ));
        }
        for phase in ["starting", "running", "failed", "idle", "refused"] {
            let count =
                servers.iter().filter(|hosted| hosted.state().phase.name() == phase).count();
            metrics::gauge!(HOSTED_SERVERS.name, "state" => phase).set(count as f64);
        }
    }
}

/// Ends what runs.
async fn stop_upstreams(hosted: &Hosted) {
    let all = hosted.state_mut().take_upstreams();
    join_all(all.iter().map(|upstream| upstream.stop())).await;
}
