//! The hosted servers by name: starting, replacing, removing and restarting them, and reporting
//! their status.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use fleet_job::{mcp_servers::ServerEntry, size::clipped};
use fleet_policy::{Policy, current::CurrentPolicy};
use futures::future::join_all;
use parking_lot::{Mutex, RwLock, RwLockReadGuard};
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

pub use super::errors::{InitError, ServerDown};
use super::{
    apps,
    attempt::Attempt,
    calls::Calls,
    catalog::Catalog,
    changes::{Change, Unseen},
    hosted::Hosted,
    launch,
    notices::{DropReason, Notice},
    pins::Pins,
    remote_tokens::NoToken,
    routes::Routes,
    secret_store::SecretStore,
    secrets::Secrets,
    status::{ServerStatus, Unavailable},
    upstream::Upstream,
};
use crate::metrics::HOSTED_SERVERS;

mod starting;

/// How many changes a slow listener may lag behind before it is told that everything may have
/// changed.
const MAX_BEHIND: usize = 256;
/// The shortest time between two reads of one server's changed lists.
const REFRESH: Duration = Duration::from_millis(200);
/// The longest part of a method's name that is logged.
const SHOWN_METHOD: usize = 128;

/// All hosted servers.
pub struct Fleet {
    pub(super) policy: CurrentPolicy,
    pub(super) secret_store: SecretStore,
    servers: RwLock<BTreeMap<String, Arc<Hosted>>>,
    routes: RwLock<Arc<Routes>>,
    /// Held while the routes are rebuilt, so that the newest ones stay.
    rebuilding: Mutex<()>,
    changes: broadcast::Sender<Change>,
    /// The number of subscriptions to each resource, by its server and its URI there.
    watched: Mutex<BTreeMap<(String, String), usize>>,
    order: AtomicU64,
    closed: AtomicBool,
    closing: CancellationToken,
    pub(super) pins: Pins,
}

/// A subscription to a resource, which ends when this is dropped.
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
    /// Creates a fleet without servers, whose configurations can use no secrets.
    pub fn new(policy: CurrentPolicy) -> Arc<Self> {
        Self::with_secrets(policy, SecretStore::default())
    }

    /// Creates a fleet without servers, whose configurations can use the secrets of a store.
    pub fn with_secrets(policy: CurrentPolicy, secret_store: SecretStore) -> Arc<Self> {
        Arc::new(Self {
            policy,
            secret_store,
            servers: RwLock::default(),
            routes: RwLock::default(),
            rebuilding: Mutex::default(),
            changes: broadcast::Sender::new(MAX_BEHIND),
            watched: Mutex::default(),
            order: AtomicU64::new(0),
            closed: AtomicBool::new(false),
            closing: CancellationToken::new(),
            pins: Pins::default(),
        })
    }

    /// Returns the policy in force.
    pub fn policy(&self) -> Arc<Policy> {
        self.policy.get()
    }

    /// Returns the secrets that configurations can use.
    pub fn secret_store(&self) -> &SecretStore {
        &self.secret_store
    }

    /// Returns whether there is a server of this name, in whatever state. While this server shuts
    /// down, every name counts as hosted, since its servers are being removed.
    pub fn is_hosted(&self, name: &str) -> bool {
        self.find_hosted(name).is_some() || self.closed.load(Ordering::Acquire)
    }

    /// Returns whether the server of this name was last started from this configuration,
    /// successfully or not.
    pub async fn is_hosted_from(&self, name: &str, entry: &ServerEntry) -> bool {
        let Some(hosted) = self.find_hosted(name) else { return false };
        let Ok(spec) = launch::resolve(entry, &self.policy(), &self.secret_store).await else {
            return false;
        };
        hosted.state().launch.as_ref().is_some_and(|launch| launch.spec == spec)
    }

    /// Removes a server and ends it. Returns `false` if no server has this name.
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

    /// Returns the longest time that a call of an offered tool may take, including its wait for a
    /// slot.
    pub fn longest_call(&self, name: &str) -> Duration {
        let policy = self.policy();
        let routes = self.routes();
        let limits = match routes.tool(name) {
            Some(route) => policy.limits.of_call(&route.server, &route.name).server,
            None => policy.limits.defaults,
        };
        // It may wait for a slot of the tool and then for one of the server.
        limits.call_timeout.saturating_add(limits.queue_timeout.saturating_mul(2))
    }

    /// Returns the calls of a server, over all its restarts.
    pub(crate) fn calls(&self, name: &str) -> Option<Arc<Calls>> {
        self.find_hosted(name).map(|hosted| hosted.calls.clone())
    }

    /// Ends all servers. No server is started afterwards.
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

    /// Ends the streams of changes, which would never end by themselves.
    pub fn end_subscriptions(&self) {
        self.closing.cancel();
    }

    /// Waits until [`Self::end_subscriptions`] is called.
    pub async fn wait_for_closing(&self) {
        self.closing.cancelled().await;
    }

    /// Returns the present attempt to start a server.
    pub fn current_attempt(&self, name: &str) -> Option<Attempt> {
        self.find_hosted(name)?.state().attempt.clone()
    }

    /// Returns the names of all servers.
    pub fn names(&self) -> Vec<String> {
        self.servers().keys().cloned().collect()
    }

    /// Returns the status of one server.
    pub fn status(&self, name: &str) -> Option<ServerStatus> {
        self.find_hosted(name).map(|hosted| self.status_of(&hosted, Instant::now()))
    }

    /// Returns the status of every server, except those that have never run and failed to start
    /// long ago: these are forgotten.
    pub fn statuses(&self) -> Vec<ServerStatus> {
        self.statuses_at(Instant::now())
    }

    fn statuses_at(&self, now: Instant) -> Vec<ServerStatus> {
        self.forget_failed(now);
        self.servers().values().map(|hosted| self.status_of(hosted, now)).collect()
    }

    /// Removes servers that have never run and whose last start failed long ago.
    fn forget_failed(&self, now: Instant) {
        let mut servers = self.servers.write();
        let before = servers.len();
        servers.retain(|_, hosted| {
            if !hosted.is_forgotten(now) {
                return true;
            }
            // Somebody who holds the gate is starting it.
            let Ok(_gate) = hosted.gate.try_lock() else { return true };
            hosted.state_mut().removed = true;
            false
        });

        let has_forgotten = servers.len() < before;
        drop(servers);
        if has_forgotten {
            self.rebuild_routes();
        }
    }

    /// Subscribes to changes that clients should be notified of.
    pub fn changes(&self) -> broadcast::Receiver<Change> {
        self.changes.subscribe()
    }

    /// Notifies clients of a change.
    pub fn announce(&self, change: Change) {
        // There may be no listener.
        _ = self.changes.send(change);
    }

    /// Subscribes to changes of a resource until the returned value is dropped. Returns `None` if
    /// no server has the resource.
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

    /// Reads the lists that a server has reported as changed, and announces its other changes.
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
                tracing::warn!(
                    server = hosted.name,
                    %error,
                    "could not read the changed lists of a hosted server; still offering the old ones"
                );
            }
            Err(_) => {
                tracing::warn!(
                    server = hosted.name,
                    "a hosted server did not return its changed lists in time; still offering the old ones"
                );
            }
        }
        tokio::time::sleep(REFRESH).await;
    }

    /// Announces a notification if it belongs to an extension that only its server declares.
    fn announce_notice(&self, hosted: &Hosted, upstream: &Upstream, mut notice: Notice) {
        let routes = self.routes();
        let extension = routes.extensions().extension_of_notice(&hosted.name, &notice.method);
        let Some(extension) = extension else {
            let method = clipped(&notice.method, SHOWN_METHOD).into_owned();
            upstream.log_dropped_notice(&hosted.name, &DropReason::Undeclared(method));
            return;
        };

        notice.params.iter_mut().for_each(|params| apps::offer_in_answer(&hosted.name, params));
        self.announce(Change::Notice {
            server: hosted.name.as_str().into(),
            extension: extension.into(),
            notice: Arc::new(notice),
        });
    }

    /// Returns the values to hide in texts about a server.
    pub(crate) fn secrets(&self, name: &str) -> Secrets {
        self.servers().get(name).map(|hosted| hosted.state().secrets()).unwrap_or_default()
    }

    /// Waits until there is an access token for a server, if it needs one.
    ///
    /// # Errors
    ///
    /// Returns an error if there is none.
    pub(crate) async fn wait_for_token(&self, name: &str) -> Result<(), NoToken> {
        let tokens = self.servers().get(name).and_then(|hosted| hosted.state().tokens());
        let Some(tokens) = tokens else { return Ok(()) };
        tokens.token(name, &self.policy, None).await.map(drop)
    }

    /// Returns the routes of offered names and URIs to servers.
    pub fn routes(&self) -> Arc<Routes> {
        self.routes.read().clone()
    }

    /// Returns the servers that a list of tools should warn about.
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

    /// What a server offers; `None` if there is no such server.
    pub(super) fn catalog_of(&self, name: &str) -> Option<Catalog> {
        self.find_hosted(name).map(|hosted| hosted.state().offered_catalog())
    }

    fn find_hosted(&self, name: &str) -> Option<Arc<Hosted>> {
        self.servers().get(name).cloned()
    }

    /// Rebuilds the routes after a change, and announces which lists differ.
    pub(super) fn rebuild_routes(&self) {
        let _rebuilding = self.rebuilding.lock();
        let mut servers: Vec<Arc<Hosted>> = self.servers().values().cloned().collect();
        servers.sort_by_key(|hosted| hosted.order);
        let catalogs: Vec<(String, Catalog)> = servers
            .iter()
            .map(|hosted| (hosted.name.clone(), hosted.state().offered_catalog()))
            .collect();
        let withheld = self.pins.examine(&self.policy().pins, &catalogs);
        let routes =
            Routes::build(catalogs.iter().map(|(name, catalog)| (name.as_str(), catalog.clone())))
                .withholding(&withheld);

        let mut current = self.routes.write();
        let changed = routes.changed_lists(&current);
        *current = Arc::new(routes);
        drop(current);
        if changed.any() {
            self.announce(Change::Lists(changed));
        }

        for phase in ["starting", "running", "failed", "idle", "refused"] {
            let count =
                servers.iter().filter(|hosted| hosted.state().phase.name() == phase).count();
            metrics::gauge!(HOSTED_SERVERS.name, "state" => phase).set(count as f64);
        }
    }
}

/// Ends all connections of a server.
async fn stop_upstreams(hosted: &Hosted) {
    let all = hosted.state_mut().take_upstreams();
    join_all(all.iter().map(|upstream| upstream.stop())).await;
}

#[cfg(test)]
mod tests {
    use futures::future::BoxFuture;
    use serde_json::json;

    use super::*;
    use crate::secret_store::{SecretAudit, SecretUse, UnrecordedUse, testing::MemorySecrets};

    #[tokio::test]
    async fn a_server_that_never_ran_is_forgotten_after_a_while() {
        let policy = Policy::from_toml("[[remote]]\nhost = \"127.0.0.1\"\n").unwrap();
        let fleet = Fleet::new(CurrentPolicy::new(policy));
        // Nothing listens on port 1.
        let entry = serde_json::from_value(json!({"url": "http://127.0.0.1:1/mcp"})).unwrap();
        let begin = Instant::now();

        fleet.initialize("x", &entry).await.unwrap_err();
        assert_eq!(fleet.statuses_at(begin + Duration::from_secs(60)).len(), 1);

        assert!(fleet.statuses_at(Instant::now() + Duration::from_secs(3600)).is_empty());
        assert!(!fleet.is_hosted("x"));
    }

    /// An audit log that can't keep anything.
    struct NoAudit;

    impl SecretAudit for NoAudit {
        fn record<'a>(&'a self, used: SecretUse<'a>) -> BoxFuture<'a, Result<(), UnrecordedUse>> {
            let (secret, reason) = (used.secret.to_owned(), "the disk is full".to_owned());
            Box::pin(std::future::ready(Err(UnrecordedUse { secret, reason })))
        }
    }

    #[tokio::test]
    async fn a_server_does_not_get_a_secret_whose_use_is_not_recorded() {
        let policy = "[[remote]]\nhost = '127.0.0.1'\nsecrets = ['token']\n";
        let policy = CurrentPolicy::new(Policy::from_toml(policy).unwrap());
        let secrets = MemorySecrets::default();
        secrets.set("token", "hunter2");
        let fleet = Fleet::with_secrets(policy, secrets.store().audited(Arc::new(NoAudit)));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/", listener.local_addr().unwrap());
        let config = json!({"url": url, "headers": {"X-Key": "${secret:token}"}});
        let entry = serde_json::from_value(config).unwrap();

        let error = fleet.initialize("x", &entry).await.unwrap_err();
        assert!(!error.is_permanent() && error.outage_reason().is_some(), "{error}");
        assert!(error.to_string().contains("`token` could not be recorded"), "{error}");
        let status = serde_json::to_string(&fleet.statuses()).unwrap();
        assert!(status.contains("the disk is full") && !status.contains("hunter2"), "{status}");
        assert!(futures::FutureExt::now_or_never(listener.accept()).is_none(), "it was sent");
    }
}
