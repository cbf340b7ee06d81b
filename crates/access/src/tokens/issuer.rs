//! An issuer at run time: its keys, and when they may be fetched again.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use fleet_job::time::Timestamp;

use super::{
    FETCH_INTERVAL, FetchKeys, REFRESH_INTERVAL,
    config::IssuerConfig,
    jwks::{JwksError, KeySet},
};

/// An issuer and its keys.
#[derive(Debug)]
pub(super) struct Issuer {
    config: IssuerConfig,
    /// Grows when the keys change.
    generation: AtomicU64,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    keys: Option<Arc<KeySet>>,
    /// When the keys were last read from their source.
    read_at: Option<Timestamp>,
    fetch: Fetch,
}

/// Whether somebody fetches the keys.
#[derive(Debug, Default, Clone, Copy)]
enum Fetch {
    /// Nobody ever did.
    #[default]
    Never,
    /// Somebody does, since then.
    Running(Timestamp),
    /// The last one ended then.
    Ended(Timestamp),
}

/// Whether a token may cause a fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fetching {
    /// Yes: a new one, or the one that is running.
    Allowed,
    /// No: the last one has only just ended.
    TooSoon {
        /// How long it takes until the next is allowed.
        wait: Duration,
    },
}

impl Issuer {
    pub(super) fn new(config: IssuerConfig) -> Self {
        Self { config, generation: AtomicU64::new(0), state: Mutex::default() }
    }

    pub(super) fn config(&self) -> &IssuerConfig {
        &self.config
    }

    pub(super) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// The keys and their generation; `None` if they were never read.
    pub(super) fn keys(&self) -> Option<(Arc<KeySet>, u64)> {
        let state = self.lock();
        state.keys.as_ref().map(|keys| (Arc::clone(keys), self.generation()))
    }

    /// What to fetch.
    pub(super) fn fetch(&self) -> FetchKeys {
        FetchKeys { issuer: self.config.url.clone(), source: self.config.source.clone() }
    }

    /// Asks whether a token may cause a fetch, and notes that there is one if so. A fetch that does
    /// not end within the interval counts as lost.
    pub(super) fn start_fetch(&self, now: Timestamp) -> Fetching {
        let mut state = self.lock();
        // What lies in the future was noted before the clock was set back, and stops nobody.
        let wait = |since: Timestamp| {
            let passed = (since <= now).then(|| now.since(since))?;
            FETCH_INTERVAL.checked_sub(passed).filter(|wait| !wait.is_zero())
        };

        match state.fetch {
            Fetch::Running(since) if wait(since).is_some() => return Fetching::Allowed,
            Fetch::Ended(at) => {
                if let Some(wait) = wait(at) {
                    return Fetching::TooSoon { wait };
                }
            }
            Fetch::Never | Fetch::Running(_) => {}
        }

        state.fetch = Fetch::Running(now);
        Fetching::Allowed
    }

    /// Returns whether the keys should be read again now, and notes that they are if so.
    pub(super) fn start_refresh(&self, now: Timestamp) -> bool {
        let (read_at, fetch) = {
            let state = self.lock();
            (state.read_at, state.fetch)
        };

        let is_within = |since: Timestamp, span| since <= now && now.since(since) < span;
        let is_old = !read_at.is_some_and(|read_at| is_within(read_at, REFRESH_INTERVAL));
        let is_running = matches!(
            fetch,
            Fetch::Running(since) if is_within(since, FETCH_INTERVAL)
        );
        is_old && !is_running && self.start_fetch(now) == Fetching::Allowed
    }

    /// Notes that a fetch has ended.
    pub(super) fn end_fetch(&self, now: Timestamp) {
        self.lock().fetch = Fetch::Ended(now);
    }

    /// Takes keys that were read. Returns whether they differ from those before.
    pub(super) fn install_keys(&self, text: &str, now: Timestamp) -> Result<bool, JwksError> {
        let keys = KeySet::parse(text, &self.config.url, &self.config.algorithms);

        let mut state = self.lock();
        state.fetch = Fetch::Ended(now);
        let keys = keys?;
        state.read_at = Some(now);
        Ok(self.replace_keys(&mut state, Arc::new(keys)))
    }

    /// Takes over the keys of the same issuer in an older configuration.
    pub(super) fn adopt_keys(&self, old: &Self) {
        let fits = self.config.source == old.config.source
            && self.config.algorithms == old.config.algorithms;
        if !fits {
            return;
        }

        let (keys, read_at) = {
            let old = old.lock();
            (old.keys.clone(), old.read_at)
        };
        let mut state = self.lock();
        if let (Some(keys), None) = (keys, &state.keys) {
            state.read_at = read_at;
            self.replace_keys(&mut state, keys);
        }
    }

    fn replace_keys(&self, state: &mut State, keys: Arc<KeySet>) -> bool {
        if state.keys.as_ref() == Some(&keys) {
            return false;
        }
        state.keys = Some(keys);
        self.generation.fetch_add(1, Ordering::AcqRel);
        true
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
