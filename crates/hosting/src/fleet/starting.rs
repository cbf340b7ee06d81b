//! Starting hosted servers: because somebody asks for one, or because a call needs one that does
//! not run.

use std::{
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use fleet_job::{mcp_servers::ServerEntry, tool_name};
use fleet_ops::errors::chain;
use fleet_policy::Refusal;

use super::{Fleet, InitError, ServerDown};
use crate::{
    hosted::{Hosted, LaunchSource, Phase},
    launch::{self, LaunchError},
    metrics::HOSTED_RESTARTS,
    outage::{OutageReason, SOON},
    secret_store::{SecretOccasion, SecretUse},
    status::ServerStatus,
    supervise::{note_end, supervise_upstream},
    upstream::{ConnectError, Upstream},
};

/// When to try again if somebody must change something first.
const LATER: Duration = Duration::from_secs(30);

impl Fleet {
    /// Hosts a server under a name. If it already runs from the same configuration, nothing
    /// happens. If it runs from another one, it is replaced once the new one has finished its
    /// handshake.
    ///
    /// # Errors
    ///
    /// Returns an error if the name or the configuration is invalid, or the handshake fails.
    pub async fn initialize(
        self: &Arc<Self>,
        name: &str,
        entry: &ServerEntry,
    ) -> Result<ServerStatus, InitError> {
        tool_name::check_server(name)?;
        let policy = self.policy();
        let spec = launch::resolve(entry, &policy, &self.secret_store).await?;
        let launch = LaunchSource { spec, entry: entry.clone() };

        loop {
            let hosted = self.find_or_add(name)?;
            let gate = hosted.gate.lock().await;
            if hosted.state().removed {
                // It was removed while this request waited. The request comes after that.
                continue;
            }

            let last = hosted.state().launch.as_ref().map(|last| last.spec == launch.spec);
            if last != Some(true) || hosted.running_upstream().is_none() {
                self.start_server(&hosted, &launch).await?;
                hosted.calls.reset();
            }

            if !Arc::ptr_eq(&policy, &self.policy()) {
                // The policy changed while the server was starting.
                self.enforce_policy(&hosted).await;
                launch::resolve(entry, &self.policy(), &self.secret_store).await?;
            }

            drop(gate);
            return Ok(self.status_of(&hosted, Instant::now()));
        }
    }

    /// Starts a server again from its configuration, and replaces what ran before once the new one
    /// has finished its handshake. Returns `None` if there is no server of this name.
    ///
    /// # Errors
    ///
    /// Returns an error if policy no longer allows the configuration, or the handshake fails. What
    /// ran before goes on.
    pub async fn restart(self: &Arc<Self>, name: &str) -> Result<Option<ServerStatus>, InitError> {
        let Some(hosted) = self.find_hosted(name) else { return Ok(None) };
        let _gate = hosted.gate.lock().await;
        let launch = {
            let state = hosted.state();
            state.launch.clone().filter(|_| !state.removed)
        };
        let Some(launch) = launch else { return Ok(None) };

        let spec = launch::resolve(&launch.entry, &self.policy(), &self.secret_store).await?;
        tracing::info!(server = hosted.name, "restarting a hosted server on request");
        self.start_server(&hosted, &LaunchSource { spec, ..launch }).await?;
        hosted.calls.reset();

        hosted.state_mut().restarts += 1;
        metrics::counter!(HOSTED_RESTARTS.name).increment(1);
        Ok(Some(self.status_of(&hosted, Instant::now())))
    }

    /// Returns a working connection to a server. Starts the server again if it has ended.
    ///
    /// # Errors
    ///
    /// Returns an error if the server can't be started now.
    pub async fn ensure_running(self: &Arc<Self>, name: &str) -> Result<Arc<Upstream>, ServerDown> {
        let down = |reason: String, retry_after| {
            let outage = OutageReason::Unavailable;
            ServerDown { server: name.to_owned(), reason, outage, retry_after }
        };

        let Some(hosted) = self.find_hosted(name) else {
            let is_closed = self.closed.load(Ordering::Acquire);
            let reason =
                if is_closed { "this server is shutting down" } else { "it was just removed" };
            return Err(down(reason.to_owned(), SOON));
        };

        // Before looking at the connection, so that a server that is being ended because it is idle
        // is started again.
        hosted.calls.mark_used();
        if let Some(upstream) = hosted.running_upstream() {
            return Ok(upstream);
        }

        let _gate = hosted.gate.lock().await;
        if let Some(upstream) = hosted.running_upstream() {
            return Ok(upstream);
        }
        if let Some(upstream) = hosted.ended_upstream() {
            // The task that supervises the server may note its end only later. The end must count
            // before the server is started again.
            let reason = upstream.wait_for_end().await;
            note_end(self, &hosted, &upstream, &reason);
        }

        self.restart_server(&hosted, down).await
    }

    /// Starts a server that does not run, unless it must wait or may not run. The gate is held.
    async fn restart_server(
        self: &Arc<Self>,
        hosted: &Arc<Hosted>,
        down: impl Fn(String, Duration) -> ServerDown,
    ) -> Result<Arc<Upstream>, ServerDown> {
        let (launch, wait, reason, outage, has_failed) = {
            let state = hosted.state();
            let reason = state.last_error.clone();
            let reason = reason.unwrap_or_else(|| "it was never started".to_owned());
            let has_failed = matches!(state.phase, Phase::Failed);
            let wait = state.restart_wait(Instant::now());
            let launch = state.launch.clone().filter(|_| !state.removed);
            (launch, wait, reason, state.outage, has_failed)
        };
        let Some(mut launch) = launch else { return Err(down(reason, SOON)) };
        if !wait.is_zero() {
            return Err(ServerDown { outage, ..down(reason, wait) });
        }

        let policy = self.policy();
        launch.spec = match launch::resolve(&launch.entry, &policy, &self.secret_store).await {
            Ok(spec) => spec,
            Err(error) => {
                let reason = chain(&error);
                if error.is_refusal() {
                    self.refuse_server(hosted, &reason, &policy);
                }
                return Err(down(reason, LATER));
            }
        };

        if has_failed {
            hosted.state_mut().restarts += 1;
            metrics::counter!(HOSTED_RESTARTS.name).increment(1);
            tracing::info!(server = hosted.name, %reason, "restarting a hosted server");
        }
        self.start_server(hosted, &launch).await.map_err(|error| {
            let (wait, outage) = {
                let state = hosted.state();
                (state.restart_wait(Instant::now()), state.outage)
            };
            ServerDown { outage, ..down(error.to_string(), wait.max(SOON)) }
        })
    }

    /// Starts a server and replaces what ran before. The gate is held.
    async fn start_server(
        self: &Arc<Self>,
        hosted: &Arc<Hosted>,
        launch: &LaunchSource,
    ) -> Result<Arc<Upstream>, InitError> {
        {
            // Before the attempt, because the caller may drop it. The next call then makes another.
            let mut state = hosted.state_mut();
            if !matches!(state.phase, Phase::Running(_)) {
                state.launch = Some(launch.clone());
            }
        }

        if let Err(error) = self.record_secrets(hosted, launch).await {
            let failure = ConnectError::plain(error.to_string());
            hosted.state_mut().note_start_failure(&failure, Instant::now());
            return Err(error.into());
        }
        let upstream = self.connect_upstream(hosted, launch).await?;

        // Its tools are judged before it gets calls, so that none reaches one that is not as pinned.
        hosted.state_mut().set_offered(&upstream);
        self.rebuild_routes();

        let replaced = {
            // Removing a server or closing the fleet sets its flag before taking this lock to look
            // for connections to end. So either that finds this connection, or the flag is seen
            // here.
            let mut state = hosted.state_mut();
            if self.closed.load(Ordering::Acquire) {
                Err(InitError::Closed)
            } else if state.removed {
                Err(InitError::Removed)
            } else {
                Ok(state.set_running(upstream.clone(), launch.clone()))
            }
        };
        let old = match replaced {
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
            "hosted server is running"
        );
        upstream.follow_changes(&hosted.name, hosted.watched.subscribe());
        tokio::spawn(supervise_upstream(Arc::clone(self), hosted.clone(), upstream.clone()));

        if let Some(old) = old {
            old.stop().await;
        }
        Ok(upstream)
    }

    /// Records which secrets a server is given.
    async fn record_secrets(
        &self,
        hosted: &Hosted,
        launch: &LaunchSource,
    ) -> Result<(), LaunchError> {
        for secret in launch.spec.used_secrets() {
            let (server, occasion) = (hosted.name.as_str(), SecretOccasion::Start);
            self.secret_store.record_use(SecretUse { server, secret, occasion }).await?;
        }
        if let Some(tokens) = launch.spec.remote().and_then(|remote| remote.headers.tokens()) {
            tokens.note_recorded(&hosted.name).await;
        }
        Ok(())
    }

    /// Connects to a server. A failure is noted in its state.
    async fn connect_upstream(
        self: &Arc<Self>,
        hosted: &Arc<Hosted>,
        launch: &LaunchSource,
    ) -> Result<Arc<Upstream>, InitError> {
        let limit = self.policy().limits.handshake_timeout;
        let attempting = hosted.begin_attempt(limit);
        let connected =
            Upstream::connect(&hosted.name, &launch.spec, &self.policy, &attempting.attempt).await;
        drop(attempting);

        let error = match connected {
            Ok(upstream) => return Ok(Arc::new(upstream)),
            Err(error) => error.hiding(launch.spec.secrets()),
        };
        tracing::warn!(server = hosted.name, %error, "could not start a hosted server");

        let mut state = hosted.state_mut();
        state.note_start_failure(&error, Instant::now());
        if !matches!(state.phase, Phase::Running(_)) {
            state.launch = Some(launch.clone());
        }
        drop(state);
        self.rebuild_routes();
        Err(error.into())
    }

    /// Returns the server with this name, which is added if it is missing and there is room for it.
    fn find_or_add(&self, name: &str) -> Result<Arc<Hosted>, InitError> {
        let mut servers = self.servers.write();
        // Checked under the lock under which the shutdown takes all servers, so that no server is
        // added afterwards.
        if self.closed.load(Ordering::Acquire) {
            return Err(InitError::Closed);
        }
        if let Some(hosted) = servers.get(name) {
            return Ok(hosted.clone());
        }

        let limit = self.policy().limits.max_servers;
        if servers.len() >= limit {
            // A server that never ran is kept only to show why, so it makes room, unless somebody
            // holds its gate and is starting it. A server that is `Starting` while nobody holds its
            // gate is left over from a cancelled attempt.
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
}
