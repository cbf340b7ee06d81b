//! The fleet of this process, following the registry.
//!
//! What the registry wants is kept by name, the newest only. A wish is met by a task of its own, which stops where a newer
//! one has come; what could not be done (policy, a server that does not answer) is tried again at growing intervals,
//! since either may change. A server that is hosted from the wanted configuration already is left alone, so a replica
//! does not do again what it has just been told itself.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use fleet_job::{
    mcp_servers::ServerEntry,
    tool_name::{self, NameError},
};
use futures::StreamExt;
use tokio::{
    sync::{Semaphore, watch},
    time::timeout,
};
use tokio_util::sync::CancellationToken;

use super::{
    Change, Record, Registry, RegistryError,
    sharing::{NotShareable, Plain},
};
use crate::{
    error::chain,
    hosting::{Fleet, fleet::InitError, status::ServerStatus},
};

/// How many servers are started at once because the registry wants them.
const STARTS: usize = 8;
/// How many names are followed. Policy bounds how many run; this bounds what others can make us remember.
const MAX_NAMES: usize = 1000;
/// How long is waited for the registry to tell what it knew at this moment.
const CATCH_UP: Duration = Duration::from_secs(2);
/// The wait before what could not be done is tried again; it doubles from there.
const FIRST_RETRY: Duration = Duration::from_secs(5);
const LONGEST_RETRY: Duration = Duration::from_secs(60);

/// The fleet and the registry that it follows.
pub struct Shared {
    fleet: Arc<Fleet>,
    registry: Arc<dyn Registry>,
    plain: Plain,
    wanted: Mutex<Wanted>,
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
    fn put(&mut self, name: String, goal: Goal, problem: Option<String>) -> Option<u64> {
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

    /// The wish of a name, where it is still this one.
    fn still(&mut self, name: &str, number: u64) -> Option<&mut Wish> {
        self.by_name.get_mut(name).filter(|wish| wish.number == number)
    }

    fn wants(&self, name: &str) -> bool {
        self.by_name.get(name).is_some_and(|wish| !matches!(wish.goal, Goal::Gone))
    }
}

/// Why a server is not hosted everywhere.
#[derive(Debug, thiserror::Error)]
pub enum ShareError {
    /// It can't be hosted here.
    #[error(transparent)]
    Init(#[from] InitError),
    /// It holds what must not be written.
    #[error(transparent)]
    NotShareable(#[from] NotShareable),
    /// The registry has not taken it.
    #[error("the shared registry could not be written")]
    Registry(#[from] RegistryError),
}

impl From<NameError> for ShareError {
    fn from(error: NameError) -> Self {
        Self::Init(error.into())
    }
}

impl ShareError {
    /// Whether the same attempt would fail again whenever it is made.
    pub fn is_permanent(&self) -> bool {
        match self {
            Self::Init(error) => error.is_permanent(),
            Self::NotShareable(_) => true,
            Self::Registry(RegistryError::Kafka(error)) => !error.is_retryable(),
            Self::Registry(RegistryError::NotRead) => false,
            Self::Registry(RegistryError::Record(_)) => true,
        }
    }
}

impl Shared {
    /// A fleet that follows `registry` from [`Shared::follow`] on. Values of the names in `plain` are no secrets.
    pub fn new(fleet: Arc<Fleet>, registry: Arc<dyn Registry>, plain: Plain) -> Arc<Self> {
        Arc::new(Self {
            fleet,
            registry,
            plain,
            wanted: Mutex::default(),
            caught_up: watch::Sender::new(None),
            attempts: watch::Sender::new(0),
            starts: Semaphore::new(STARTS),
        })
    }

    /// The fleet.
    pub fn fleet(&self) -> &Arc<Fleet> {
        &self.fleet
    }

    /// Follows the registry until `stop`.
    pub fn follow(self: &Arc<Self>, stop: CancellationToken) {
        let (this, mut changes) = (self.clone(), self.registry.watch());
        tokio::spawn(async move {
            let follow = async {
                // At the start only what is left in the end is done.
                while let Some(change) = changes.next().await {
                    this.apply(change, &stop);
                }
            };
            tokio::select! {
                () = follow => {}
                () = stop.cancelled() => {}
            }
        });
    }

    /// Waits until the registry has been read to where its end was at the start.
    pub async fn ready(&self) {
        // The sender lives as long as we do.
        _ = self.caught_up.subscribe().wait_for(Option::is_some).await;
    }

    /// Hosts a server here, and has all others host it.
    ///
    /// # Errors
    ///
    /// Where it may not be shared, can't be hosted here, or the registry does not take it. In the last case it is hosted
    /// here all the same.
    pub async fn initialize(&self, name: &str, entry: &ServerEntry) -> Result<ServerStatus, ShareError> {
        tool_name::check_server(name)?;
        if self.registry.is_shared() {
            self.plain.check(entry)?;
            self.read_or_refuse().await?;
        }
        let status = self.fleet.initialize(name, entry).await?;
        self.registry.put(&Record::new(name, entry)).await?;
        // What is older than this has been told by then, and can't undo it after the caller has its answer.
        self.catch_up().await;
        self.settled(name).await;
        Ok(status)
    }

    /// Removes a server here and everywhere. `false` where there is none of this name.
    ///
    /// # Errors
    ///
    /// Where the registry does not take it. Nothing has changed then.
    pub async fn remove(&self, name: &str) -> Result<bool, ShareError> {
        if tool_name::check_server(name).is_err() {
            return Ok(false);
        }
        self.read_or_refuse().await?;
        self.catch_up().await;
        let was_wanted = self.wanted().wants(name);
        let was_hosted = self.fleet.status(name).is_some();
        if was_wanted || was_hosted {
            self.registry.remove(name).await?;
            self.fleet.remove(name).await;
            self.catch_up().await;
            self.settled(name).await;
        }
        Ok(was_wanted || was_hosted)
    }

    /// Waits, where a server is not hosted here, for what the registry may know of it: briefly for the registry, and as
    /// long as a handshake may take for a server that is being started.
    pub async fn wait_for(&self, name: &str) {
        if !self.registry.is_shared() || self.fleet.status(name).is_some() {
            return;
        }
        self.catch_up().await;
        self.settled(name).await;
    }

    /// Waits until what the registry wants of a name has been tried, as long as a handshake may take.
    async fn settled(&self, name: &str) {
        let mut attempts = self.attempts.subscribe();
        let is_open = || self.wanted().by_name.get(name).is_some_and(|wish| !wish.tried);
        let tried = attempts.wait_for(|_| !is_open());
        // Where it takes longer, the caller hears that the server is not there.
        _ = timeout(self.fleet.policy().limits.handshake_timeout, tried).await;
    }

    /// The servers that others want hosted and that are not, and why.
    pub fn refused(&self) -> Vec<ServerStatus> {
        let wanted = self.wanted();
        let problems = wanted.by_name.iter().filter_map(|(name, wish)| Some((name, wish.problem.as_ref()?)));
        problems
            .filter(|(name, _)| self.fleet.status(name).is_none())
            .map(|(name, problem)| ServerStatus::refused(name, problem))
            .collect()
    }

    /// Waits briefly for the start of the registry. Before that, its topic may not even be there.
    async fn read_or_refuse(&self) -> Result<(), RegistryError> {
        timeout(CATCH_UP, self.ready()).await.map_err(|_| RegistryError::NotRead)
    }

    /// Waits briefly until everything has been told that is in the registry now.
    async fn catch_up(&self) {
        let asked = self.registry.catch_up();
        let mut caught_up = self.caught_up.subscribe();
        let done = caught_up.wait_for(|told| told.is_some_and(|told| told >= asked));
        if timeout(CATCH_UP, done).await.is_err() {
            tracing::warn!("the registry has not been read to its end in time");
        }
    }

    fn wanted(&self) -> MutexGuard<'_, Wanted> {
        self.wanted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_started(&self) -> bool {
        self.caught_up.borrow().is_some()
    }

    fn apply(self: &Arc<Self>, change: Change, stop: &CancellationToken) {
        let (name, goal, problem) = match change {
            Change::Put(record) => (record.name, Goal::Hosted(record.entry), None),
            Change::Unreadable { name, reason } => (name, Goal::Unreadable, Some(reason)),
            Change::Removed(name) => (name, Goal::Gone, None),
            Change::CaughtUp(number) => {
                let is_first = !self.is_started();
                self.caught_up.send_replace(Some(number));
                if is_first {
                    let open: Vec<_> = self
                        .wanted()
                        .by_name
                        .iter()
                        .map(|(name, wish)| (name.clone(), wish.number))
                        .collect();
                    open.into_iter().for_each(|(name, number)| self.meet(name, number, stop));
                }
                return;
            }
        };
        let number = self.wanted().put(name.clone(), goal, problem);
        match number {
            Some(number) if self.is_started() => self.meet(name, number, stop),
            // All of them are met once the last one is known.
            Some(_) => {}
            None => tracing::warn!(server = name, "the registry has more names than are followed"),
        }
    }

    /// Starts to meet a wish.
    fn meet(self: &Arc<Self>, name: String, number: u64, stop: &CancellationToken) {
        let (this, stop) = (self.clone(), stop.clone());
        tokio::spawn(async move {
            let mut pause = FIRST_RETRY;
            let meet = async {
                while !this.attempt(&name, number).await {
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(LONGEST_RETRY);
                }
            };
            tokio::select! {
                () = meet => {}
                () = stop.cancelled() => {}
            }
        });
    }

    /// Tries to meet a wish: whether nothing is left to be done about it.
    async fn attempt(&self, name: &str, number: u64) -> bool {
        let Some(gate) = self.wanted().still(name, number).map(|wish| wish.gate.clone()) else { return true };
        let _gate = gate.lock().await;
        let Ok(_permit) = self.starts.acquire().await else { return true };
        let goal = self.wanted().still(name, number).map(|wish| wish.goal.clone());
        let result = match &goal {
            Some(Goal::Hosted(entry)) => self.host(name, entry).await,
            Some(Goal::Gone) => {
                self.fleet.remove(name).await;
                Ok(())
            }
            Some(Goal::Unreadable) | None => return true,
        };
        {
            let mut wanted = self.wanted();
            if matches!(goal, Some(Goal::Gone)) && wanted.still(name, number).is_some() {
                wanted.by_name.remove(name);
            }
            if let Some(wish) = wanted.still(name, number) {
                wish.tried = true;
                let problem = result.as_ref().err().map(|error| chain(error));
                if let Some(problem) = problem.as_ref().filter(|_| problem != wish.problem) {
                    tracing::warn!(server = name, problem, "a server of the registry is not hosted here");
                }
                wish.problem = problem;
            }
        }
        self.attempts.send_modify(|attempts| *attempts += 1);
        matches!(result, Ok(()) | Err(InitError::Closed))
    }

    /// Hosts what is wanted, unless it is hosted already, in whatever state.
    async fn host(&self, name: &str, entry: &ServerEntry) -> Result<(), InitError> {
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
mod tests {
    use serde_json::json;

    use super::*;
    use crate::{
        policy::{Policy, current::CurrentPolicy},
        registry::memory::MemoryRegistry,
    };

    fn entry(command: &str) -> ServerEntry {
        ServerEntry::from_value(&json!({ "command": command }), "config").unwrap()
    }

    async fn eventually(what: &str, check: impl Fn() -> bool) {
        let wait = async {
            while !check() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(Duration::from_secs(30), wait).await.unwrap_or_else(|_| panic!("not in time: {what}"));
    }

    #[tokio::test]
    async fn what_policy_refuses_is_shown_and_goes_with_its_record() {
        let registry = Arc::new(MemoryRegistry::default());
        let bad = Record::new("bad", &entry("rm"));
        registry.put(&bad).await.unwrap();
        registry.put(&Record::new("gone", &entry("rm"))).await.unwrap();
        registry.remove("gone").await.unwrap();
        let fleet = Fleet::new(CurrentPolicy::new(Policy::default()));
        let shared = Shared::new(fleet, registry.clone(), Plain::default());
        let stop = CancellationToken::new();
        shared.follow(stop.clone());
        shared.ready().await;
        eventually("the refusal", || !shared.refused().is_empty()).await;
        let refused = shared.refused();
        assert_eq!(
            (refused.len(), refused[0].name.as_str(), refused[0].state.as_str()),
            (1, "bad", "refused")
        );
        assert!(refused[0].last_error.as_ref().unwrap().contains("rm"), "{refused:?}");

        assert!(shared.remove("bad").await.unwrap());
        assert!(shared.refused().is_empty());
        assert!(!shared.remove("bad").await.unwrap());
        let error = shared.initialize("x", &entry("rm")).await.unwrap_err();
        assert!(
            error.is_permanent() && shared.refused().is_empty(),
            "what is refused here is not shared: {error}"
        );
        stop.cancel();
    }

    #[tokio::test]
    async fn what_can_not_be_read_is_shown() {
        let shared = Shared::new(
            Fleet::new(CurrentPolicy::new(Policy::default())),
            Arc::new(MemoryRegistry::default()),
            Plain::default(),
        );
        let stop = CancellationToken::new();
        let unreadable = Change::Unreadable { name: "odd".to_owned(), reason: "no JSON".to_owned() };
        shared.apply(unreadable, &stop);
        assert_eq!(shared.refused()[0].last_error.as_deref(), Some("no JSON"));
        shared.apply(Change::Removed("odd".to_owned()), &stop);
        assert!(shared.refused().is_empty());
    }
}
