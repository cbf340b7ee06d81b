//! The fleet of this process, following the registry.
//!
//! What the registry wants is kept by name, the newest only. A wish is met by a task of its own,
//! which stops where a newer one has come; what could not be done (policy, a server that does not
//! answer) is tried again at growing intervals, since either may change. A server that is hosted
//! from the wanted configuration already is left alone, so a replica does not do again what it has
//! just been told itself.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use fleet_job::{mcp_servers::ServerEntry, tool_name};
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

mod writing;

/// How many servers are started at once because the registry wants them.
const STARTS: usize = 8;
/// How many names are followed. Policy bounds how many run; this bounds what others can make us
/// remember.
const MAX_NAMES: usize = 1000;
/// The waits between attempts to do what the registry asks for.
const ATTEMPTS: Backoff = Backoff { base: Duration::from_secs(5), max: Duration::from_secs(60) };

/// How long the registry is waited for.
#[derive(Debug, Clone, Copy)]
struct Patience {
    /// Until it has told what it knew at some moment.
    catch_up: Duration,
    /// Until it has taken a write, which is made all the same later on.
    write: Duration,
}

const PATIENCE: Patience =
    Patience { catch_up: Duration::from_secs(2), write: Duration::from_secs(10) };

/// The fleet and the registry that it follows.
pub struct Shared {
    fleet: Arc<Fleet>,
    registry: Arc<dyn Registry>,
    plain: Plain,
    patience: Patience,
    wanted: Mutex<Wanted>,
    writes: Mutex<Writes>,
    /// How far the registry has been followed; none before its start has been read.
    caught_up: watch::Sender<Option<u64>>,
    /// Counts attempts that have ended.
    attempts: watch::Sender<u64>,
    starts: Semaphore,
}

/// What the registry wants.
#[derive(Default)]
struct Wanted {
    by_name: BTreeMap<String, Wish>,
    /// Counts changes: a wish is known by its number.
    changes: u64,
}

struct Wish {
    number: u64,
    goal: Goal,
    /// Held while something is done about this name.
    gate: Arc<tokio::sync::Mutex<()>>,
    /// Whether something was tried.
    tried: bool,
    /// Why it is not hosted.
    problem: Option<String>,
}

/// What a name should be.
#[derive(Clone)]
enum Goal {
    /// A server from this configuration.
    Hosted(ServerEntry),
    /// Something that can't be read, so it stays what it is.
    Unreadable,
    /// Nothing any more.
    Gone,
}

impl Wanted {
    /// Notes what a name should be. The number of the new wish; none where there are too many.
    fn put_wish(&mut self, name: String, goal: Goal, problem: Option<String>) -> Option<u64> {
        let old = self.by_name.get(&name);
        if old.is_none() && self.by_name.len() >= MAX_NAMES {
            return None;
        }
        self.changes += 1;
        let gate = old.map(|wish| wish.gate.clone()).unwrap_or_default();
        let tried = matches!(goal, Goal::Unreadable);
        self.by_name.insert(name, Wish { number: self.changes, goal, gate, tried, problem });
        Some(self.changes)
    }

    /// Whether a record that could be read says that a name should be a server.
    fn has_readable(&self, name: &str) -> bool {
        self.by_name.get(name).is_some_and(|wish| matches!(wish.goal, Goal::Hosted(_)))
    }

    /// The wish of a name, where it is still this one.
    fn current_wish(&mut self, name: &str, number: u64) -> Option<&mut Wish> {
        self.by_name.get_mut(name).filter(|wish| wish.number == number)
    }

    /// The wish for something of a name.
    fn wish(&self, name: &str) -> Option<&Wish> {
        self.by_name.get(name).filter(|wish| !matches!(wish.goal, Goal::Gone))
    }

    fn wants(&self, name: &str) -> bool {
        self.wish(name).is_some()
    }
}

impl Shared {
    /// A fleet that follows `registry` from [`Shared::follow`] on. Values of the names in `plain`
    /// are no secrets.
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

    /// The fleet.
    pub fn fleet(&self) -> &Arc<Fleet> {
        &self.fleet
    }

    /// Follows the registry until `stop`.
    ///
    /// # Errors
    ///
    /// If it can't be followed at all, so that [`Self::ready`] would wait for ever.
    pub fn follow(self: &Arc<Self>, stop: CancellationToken) -> Result<(), RegistryError> {
        let mut changes = self.registry.watch()?;
        self.count_writes();
        let this = self.clone();
        tokio::spawn(async move {
            let follow = async {
                // At the start only what is left in the end is done.
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

    /// Waits until the registry has been read to where its end was at the start.
    pub async fn wait_until_read(&self) {
        // The sender lives as long as we do.
        _ = self.caught_up.subscribe().wait_for(Option::is_some).await;
    }

    /// Hosts a server here, and has all others host it.
    ///
    /// # Errors
    ///
    /// Where it may not be shared, can't be hosted here, or the registry does not take it in time.
    /// In the last case it is hosted here all the same, and by the others once the registry has
    /// taken it.
    pub async fn initialize(
        self: &Arc<Self>,
        name: &str,
        entry: &ServerEntry,
    ) -> Result<ServerStatus, ShareError> {
        tool_name::check_server(name)?;
        if self.registry.is_shared() {
            self.plain.check(entry)?;
            // What can't be written should not be hosted here alone.
            Record::new(name, entry).encode().map_err(RegistryError::from)?;
            self.require_read().await?;
        }

        let status = self.fleet.initialize(name, entry).await?;
        self.share_write(name, Write::Put(Box::new(Record::new(name, entry)))).await?;

        // What is older than this has been told by then, and can't undo it after the caller has its
        // answer.
        self.catch_up().await;
        self.wait_until_tried(name).await;
        Ok(status)
    }

    /// Removes a server here and everywhere. `false` where there is none of this name.
    ///
    /// # Errors
    ///
    /// Where the registry does not take it in time. The server is removed once the registry has
    /// taken it.
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
            self.fleet.remove(name).await;
            self.catch_up().await;
            self.wait_until_tried(name).await;
        }
        Ok(was_wanted || was_hosted)
    }

    /// Looks for a server, and waits, where it is not hosted here, for what the registry may know
    /// of it: briefly for the registry, and as long as a handshake may take for a server that is
    /// being started.
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
        // It could have been written since the registry was read last.
        if !is_current {
            return awaited("the shared registry does not answer".to_owned(), LATER);
        }
        Presence::Unknown
    }

    /// Waits until what the registry wants of a name has been tried, as long as a handshake may
    /// take.
    async fn wait_until_tried(&self, name: &str) {
        let mut attempts = self.attempts.subscribe();
        let is_open = || self.wanted().by_name.get(name).is_some_and(|wish| !wish.tried);
        let tried = attempts.wait_for(|_| !is_open());
        // Where it takes longer, the caller hears that the server is not there.
        _ = timeout(self.fleet.policy().limits.handshake_timeout, tried).await;
    }

    /// How all servers are, those among them that others want hosted and that are not.
    pub fn statuses(&self) -> Vec<ServerStatus> {
        let mut all = self.fleet.statuses();
        all.extend(self.refused_servers());
        let (writes, now) = (self.writes(), Instant::now());
        for status in &mut all {
            status.sharing = writes.unwritten(&status.name, now).map(writing::sharing_status);
        }
        all
    }

    /// The servers that others want hosted and that are not, and why.
    pub fn refused_servers(&self) -> Vec<ServerStatus> {
        let wanted = self.wanted();
        let problems =
            wanted.by_name.iter().filter_map(|(name, wish)| Some((name, wish.problem.as_ref()?)));
        problems
            .filter(|(name, _)| self.fleet.status(name).is_none())
            .map(|(name, problem)| ServerStatus::refused(name, problem))
            .collect()
    }

    /// Waits briefly for the start of the registry. Before that, its topic may not even be there.
    async fn require_read(&self) -> Result<(), RegistryError> {
        timeout(self.patience.catch_up, self.wait_until_read())
            .await
            .map_err(|_| RegistryError::NotRead)
    }

    /// Waits briefly until everything has been told that is in the registry now: whether it has.
    async fn catch_up(&self) -> bool {
        let asked = self.registry.catch_up();
        let mut caught_up = self.caught_up.subscribe();
        let done = caught_up.wait_for(|told| told.is_some_and(|told| told >= asked));
        let is_current = timeout(self.patience.catch_up, done).await.is_ok();
        if !is_current {
            tracing::warn!("the registry has not been read to its end in time");
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
        if self.writes().observe(&change) == Observed::Outdated {
            return;
        }

        let (name, goal, problem) = match change {
            RegistryChange::Put(record) => (record.name, Goal::Hosted(record.entry), None),
            // Whoever may write to the topic could end a server by a record that means nothing.
            RegistryChange::Unreadable { name, reason } if self.wanted().has_readable(&name) => {
                tracing::warn!(
                    server = name,
                    reason,
                    "cannot read the newest registry record of this server; keeping the last readable one"
                );
                return;
            }
            RegistryChange::Unreadable { name, reason } => (name, Goal::Unreadable, Some(reason)),
            RegistryChange::Removed { name, .. } => (name, Goal::Gone, None),
            RegistryChange::CaughtUp(number) => {
                let is_first = !self.is_started();
                self.caught_up.send_replace(Some(number));
                if is_first {
                    let open: Vec<_> = self
                        .wanted()
                        .by_name
                        .iter()
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
            // All of them are met once the last one is known.
            Some(_) => {}
            None => tracing::warn!(server = name, "the registry has more names than are followed"),
        }
    }

    /// Starts to meet a wish.
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

    /// Tries to meet a wish: whether nothing is left to be done about it.
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
                        "a server of the registry is not hosted here"
                    );
                }
                wish.problem = problem;
            }
        }
        self.attempts.send_modify(|attempts| *attempts += 1);
        matches!(result, Ok(()) | Err(InitError::Closed))
    }

    /// Hosts what is wanted, unless it is hosted already, in whatever state.
    async fn host_server(&self, name: &str, entry: &ServerEntry) -> Result<(), InitError> {
        if self.fleet.is_hosted_from(name, entry).await {
            return Ok(());
        }
        let error = match self.fleet.initialize(name, entry).await {
            Ok(_) => return Ok(()),
            Err(error) => error,
        };
        if error.is_permanent() {
            // What is wanted may not run here, and what ran before is not what is wanted.
            self.fleet.remove(name).await;
        }
        Err(error)
    }
}

#[cfg(test)]
mod tests;
