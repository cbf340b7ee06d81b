//! Makes the fleet of this process follow the registry.
//!
//! The newest wish of the registry is kept for each name. A task of its own meets it, and stops
//! when a newer wish comes. What fails (because of policy, or because the server does not answer)
//! is tried again at growing intervals, since either may change. A server that already runs from
//! the wanted configuration is left alone, so that a replica does not repeat what it has just done
//! itself.
//!
//! A process may also have wishes of its own ([`Shared::want`]), which are met in the same way. A
//! record of the registry goes before a wish of the same name.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use fleet_job::{
    mcp_servers::ServerEntry,
    tool_name::{self, NameError},
};
use fleet_ops::errors::chain;
use fleet_retry::{Backoff, Retry};
use futures::StreamExt;
use parking_lot::{Mutex, MutexGuard};
use tokio::{
    sync::{Semaphore, watch},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{
    Record, Registry, RegistryChange, RegistryError,
    presence::{LATER, Presence, SOON, ShareError},
    sharing::Plain,
    writes::{Observed, Write, Writes},
};
use crate::{Fleet, fleet::InitError, status::ServerStatus};

mod wanted;
mod writing;

use wanted::{Goal, MAX_NAMES, Wanted};

/// The most servers that are started concurrently because the registry wants them.
const STARTS: usize = 8;
/// The waits between attempts to meet a wish.
const ATTEMPTS: Backoff = Backoff { base: Duration::from_secs(5), max: Duration::from_secs(60) };

/// How long callers wait for the registry.
#[derive(Debug, Clone, Copy)]
struct Patience {
    /// How long to wait until the registry has been read to its end.
    catch_up: Duration,
    /// How long to wait for a write, which is repeated afterwards.
    write: Duration,
}

const PATIENCE: Patience =
    Patience { catch_up: Duration::from_secs(2), write: Duration::from_secs(10) };

/// A fleet that follows a registry.
pub struct Shared {
    fleet: Arc<Fleet>,
    registry: Arc<dyn Registry>,
    plain: Plain,
    patience: Patience,
    wanted: Mutex<Wanted>,
    writes: Mutex<Writes>,
    /// How far the registry has been read; `None` until it has been read once.
    caught_up: watch::Sender<Option<u64>>,
    /// The number of attempts that have ended.
    attempts: watch::Sender<u64>,
    starts: Semaphore,
}

impl Shared {
    /// Creates a fleet that follows `registry` after [`Shared::follow`] is called. Values with
    /// names in `plain` are not secret.
    pub fn new(fleet: Arc<Fleet>, registry: Arc<dyn Registry>, plain: Plain) -> Arc<Self> {
        Arc::new(Self::with_patience(fleet, registry, plain, PATIENCE))
    }

    fn with_patience(
        fleet: Arc<Fleet>,
        registry: Arc<dyn Registry>,
        plain: Plain,
        patience: Patience,
    ) -> Self {
        Self {
            fleet,
            registry,
            plain,
            patience,
            wanted: Mutex::default(),
            writes: Mutex::new(Writes::new(rand::random())),
            caught_up: watch::Sender::new(None),
            attempts: watch::Sender::new(0),
            starts: Semaphore::new(STARTS),
        }
    }

    /// Returns the fleet.
    pub fn fleet(&self) -> &Arc<Fleet> {
        &self.fleet
    }

    /// Follows the registry until `stop` is cancelled.
    ///
    /// # Errors
    ///
    /// Returns an error if the registry can't be followed at all, so that
    /// [`Self::wait_until_read`] would never return.
    pub fn follow(self: &Arc<Self>, stop: CancellationToken) -> Result<(), RegistryError> {
        let mut changes = self.registry.watch()?;
        self.count_writes();
        let this = self.clone();
        tokio::spawn(async move {
            let follow = async {
                // Wishes are met only once the registry has been read to its end.
                while let Some(change) = changes.next().await {
                    this.apply_change(change, &stop);
                }
            };
            tokio::select! {
                () = follow => {}
                () = stop.cancelled() => {}
            }
        });
        Ok(())
    }

    /// Hosts a server here without telling other replicas. Returns at once: the server is started
    /// in the background and, if that fails, again at growing intervals until `stop` is cancelled;
    /// [`Self::statuses`] has the reason. A record that the registry has of the same name, or gets
    /// later, goes before it. If it is removed, it is hosted again after a restart.
    ///
    /// # Errors
    ///
    /// Returns an error if the name is invalid.
    pub fn want(
        self: &Arc<Self>,
        name: &str,
        entry: &ServerEntry,
        stop: &CancellationToken,
    ) -> Result<(), NameError> {
        tool_name::check_server(name)?;
        let number = self.wanted().put_own_wish(name, entry);
        if let Some(number) = number {
            self.start_meeting(name.to_owned(), number, stop);
        }
        Ok(())
    }

    /// Waits until the registry has been read once.
    pub async fn wait_until_read(&self) {
        // The sender lives as long as `self`.
        _ = self.caught_up.subscribe().wait_for(Option::is_some).await;
    }

    /// Hosts a server here, and makes all other replicas host it.
    ///
    /// # Errors
    ///
    /// Returns an error if the configuration must not be shared, the server can't be hosted here,
    /// or the registry does not accept the record in time. In the last case the server is hosted
    /// here, and by the other replicas once the registry has accepted the record.
    pub async fn initialize(
        self: &Arc<Self>,
        name: &str,
        entry: &ServerEntry,
    ) -> Result<ServerStatus, ShareError> {
        tool_name::check_server(name)?;
        if self.registry.is_shared() {
            self.plain.check(entry)?;
            // A server whose record can't be written must not be hosted here alone.
            Record::new(name, entry).encode().map_err(RegistryError::from)?;
            self.require_read().await?;
        }

        let status = self.fleet.initialize(name, entry).await?;
        self.share_write(name, Write::Put(Box::new(Record::new(name, entry)))).await?;

        // Read all older changes, so that none of them is applied after the caller has its answer.
        self.catch_up().await;
        self.wait_until_tried(name).await;
        Ok(status)
    }

    /// Removes a server here and from all other replicas. Returns `false` if there is none of this
    /// name.
    ///
    /// # Errors
    ///
    /// Returns an error if the registry does not accept the change in time. The server is removed
    /// once it does.
    pub async fn remove(self: &Arc<Self>, name: &str) -> Result<bool, ShareError> {
        if tool_name::check_server(name).is_err() {
            return Ok(false);
        }

        self.require_read().await?;
        self.catch_up().await;

        let was_wanted = self.wanted().wants(name);
        let was_hosted = self.fleet.status(name).is_some();
        if was_wanted || was_hosted {
            self.share_write(name, Write::Remove { at: fleet_ops::clock::now() }).await?;
            // The registry may not know what this process alone wants.
            self.wanted().forget_own(name);
            self.fleet.remove(name).await;
            self.catch_up().await;
            self.wait_until_tried(name).await;
        }
        Ok(was_wanted || was_hosted)
    }

    /// Looks for a server. If it is not hosted here, waits briefly for the registry, and, for a
    /// server that is being started, as long as a handshake may take.
    pub async fn look_for(&self, name: &str) -> Presence {
        let is_hosted = || self.fleet.is_hosted(name);
        if is_hosted() {
            return Presence::Hosted;
        }

        let is_shared = self.registry.is_shared();
        let is_current = !is_shared || self.catch_up().await;
        self.wait_until_tried(name).await;
        if is_hosted() {
            return Presence::Hosted;
        }

        let awaited = |reason: String, retry_after| Presence::Awaited { reason, retry_after };
        if let Some(wish) = self.wanted().wish(name) {
            let problem = wish.problem.clone();
            return awaited(problem.unwrap_or_else(|| "it is being started".to_owned()), LATER);
        }
        if is_shared && !self.is_started() {
            return awaited("the shared registry has not been read yet".to_owned(), SOON);
        }
        // The server may have been written since the registry was last read.
        if !is_current {
            return awaited("the shared registry does not answer".to_owned(), LATER);
        }
        Presence::Unknown
    }

    /// Waits until there was an attempt to meet the wish of a name, for at most as long as a
    /// handshake may take.
    async fn wait_until_tried(&self, name: &str) {
        let mut attempts = self.attempts.subscribe();
        let is_open = || self.wanted().by_name.get(name).is_some_and(|wish| !wish.tried);
        let tried = attempts.wait_for(|_| !is_open());
        // After the timeout, the caller learns that the server is not hosted.
        _ = timeout(self.fleet.policy().limits.handshake_timeout, tried).await;
    }

    /// Returns the status of all servers, including those that the registry wants but that are not
    /// hosted here.
    pub fn statuses(&self) -> Vec<ServerStatus> {
        let mut all = self.fleet.statuses();
        all.extend(self.refused_servers());
        let (writes, now) = (self.writes(), Instant::now());
        for status in &mut all {
            status.sharing = writes.unwritten(&status.name, now).map(writing::sharing_status);
        }
        all
    }

    /// Returns the servers that the registry wants but that are not hosted here, with the reasons.
    pub fn refused_servers(&self) -> Vec<ServerStatus> {
        let wanted = self.wanted();
        let problems =
            wanted.by_name.iter().filter_map(|(name, wish)| Some((name, wish.problem.as_ref()?)));
        problems
            .filter(|(name, _)| self.fleet.status(name).is_none())
            .map(|(name, problem)| ServerStatus::refused(name, problem))
            .collect()
    }

    /// Waits briefly until the registry has been read once. Before that, its topic may not exist.
    async fn require_read(&self) -> Result<(), RegistryError> {
        timeout(self.patience.catch_up, self.wait_until_read())
            .await
            .map_err(|_| RegistryError::NotRead)
    }

    /// Waits briefly until everything that the registry holds now has been read. Returns whether
    /// that succeeded.
    async fn catch_up(&self) -> bool {
        let asked = self.registry.catch_up();
        let mut caught_up = self.caught_up.subscribe();
        let done = caught_up.wait_for(|read| read.is_some_and(|read| read >= asked));
        let is_current = timeout(self.patience.catch_up, done).await.is_ok();
        if !is_current {
            tracing::warn!("could not read the registry to its end in time");
        }
        is_current
    }

    fn wanted(&self) -> MutexGuard<'_, Wanted> {
        self.wanted.lock()
    }

    fn is_started(&self) -> bool {
        self.caught_up.borrow().is_some()
    }

    fn apply_change(self: &Arc<Self>, change: RegistryChange, stop: &CancellationToken) {
        // Nobody else writes to a registry that is not shared, so what it says is in order. Its
        // changes can be read before the write that made them is acknowledged.
        let observed = self.writes().observe(&change);
        if observed == Observed::Outdated && self.registry.is_shared() {
            return;
        }

        let (name, goal, problem) = match change {
            RegistryChange::Put(record) => (record.name, Goal::Hosted(record.entry), None),
            // An invalid record, which anybody could write, must not end a server.
            RegistryChange::Unreadable { name, reason } if self.wanted().has_readable(&name) => {
                tracing::warn!(
                    server = name,
                    reason,
                    "cannot read the newest registry record of this server; keeping the last readable one"
                );
                return;
            }
            RegistryChange::Unreadable { name, reason } => (name, Goal::Unreadable, Some(reason)),
            // It was removed before this process wanted it.
            RegistryChange::Removed { name, .. }
                if !self.is_started() && self.wanted().has_own(&name) =>
            {
                return;
            }
            RegistryChange::Removed { name, .. } => (name, Goal::Gone, None),
            RegistryChange::CaughtUp(number) => {
                let is_first = !self.is_started();
                self.caught_up.send_replace(Some(number));
                if is_first {
                    let open: Vec<_> = self
                        .wanted()
                        .by_name
                        .iter()
                        // Those of this process are being met already.
                        .filter(|(_, wish)| !wish.is_own)
                        .map(|(name, wish)| (name.clone(), wish.number))
                        .collect();
                    open.into_iter()
                        .for_each(|(name, number)| self.start_meeting(name, number, stop));
                }
                return;
            }
        };

        let number = self.wanted().put_wish(name.clone(), goal, problem);
        match number {
            Some(number) if self.is_started() => self.start_meeting(name, number, stop),
            // All wishes are met once the registry has been read.
            Some(_) => {}
            None => tracing::warn!(
                server = name,
                "ignoring a registry record: the registry has more than {MAX_NAMES} names"
            ),
        }
    }

    /// Starts a task that meets a wish.
    fn start_meeting(self: &Arc<Self>, name: String, number: u64, stop: &CancellationToken) {
        let (this, stop) = (self.clone(), stop.clone());
        tokio::spawn(async move {
            let mut retry = Retry::new(ATTEMPTS, rand::random());
            let meet = async {
                while !this.try_to_meet(&name, number).await {
                    tokio::time::sleep(retry.failed()).await;
                }
            };
            tokio::select! {
                () = meet => {}
                () = stop.cancelled() => {}
            }
        });
    }

    /// Tries to meet a wish. Returns whether nothing is left to do for it.
    async fn try_to_meet(&self, name: &str, number: u64) -> bool {
        let Some(gate) = self.wanted().current_wish(name, number).map(|wish| wish.gate.clone())
        else {
            return true;
        };
        let _gate = gate.lock().await;
        let Ok(_permit) = self.starts.acquire().await else { return true };

        let goal = self.wanted().current_wish(name, number).map(|wish| wish.goal.clone());
        let result = match &goal {
            Some(Goal::Hosted(entry)) => self.host_server(name, entry).await,
            Some(Goal::Gone) => {
                self.fleet.remove(name).await;
                Ok(())
            }
            Some(Goal::Unreadable) | None => return true,
        };
        {
            let mut wanted = self.wanted();
            if matches!(goal, Some(Goal::Gone)) && wanted.current_wish(name, number).is_some() {
                wanted.by_name.remove(name);
            }
            if let Some(wish) = wanted.current_wish(name, number) {
                wish.tried = true;
                let problem = result.as_ref().err().map(|error| chain(error));
                if let Some(problem) = problem.as_ref().filter(|_| problem != wish.problem) {
                    tracing::warn!(
                        server = name,
                        problem,
                        "could not host a wanted server; trying again later"
                    );
                }
                wish.problem = problem;
            }
        }

        self.attempts.send_modify(|attempts| *attempts += 1);
        matches!(result, Ok(()) | Err(InitError::Closed))
    }

    /// Hosts the wanted server, unless it is hosted already, in whatever state.
    async fn host_server(&self, name: &str, entry: &ServerEntry) -> Result<(), InitError> {
        if self.fleet.is_hosted_from(name, entry).await {
            return Ok(());
        }

        let error = match self.fleet.initialize(name, entry).await {
            Ok(_) => return Ok(()),
            Err(error) => error,
        };
        if error.is_permanent() {
            // The wanted server must not run here, and the one that ran before is not wanted.
            self.fleet.remove(name).await;
        }
        Err(error)
    }
}

#[cfg(test)]
mod tests;
