//! Limits: how much principals may do.
//!
//! A limit counts per principal, tenant, tool, or principal and tool; its rates are GCRA, a token
//! bucket that is one number per key. What counts is who asks and what for, never a session or an
//! address. Time is passed in as the time since any fixed moment.

mod gcra;
mod limiter;
mod table;

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use fleet_codes::{self as codes, Code};
use sha2::{Digest, Sha256};

pub use gcra::Rate;
pub use limiter::{Limiter, RetryAfter};
use table::LimitRule;
pub(crate) use table::LimitTable;
pub use table::LimitTableError;

use crate::{action::Action, principal::Principal};

/// How many keys each limit remembers.
const MAX_KEYS: usize = 65_536;
/// When to try again if all slots of a limit are taken: nobody knows when one will be free.
const SLOT_RETRY: Duration = Duration::from_secs(1);

/// What a limiter counts separately: a digest, so that it takes the same memory whatever it stands
/// for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct LimitKey([u8; 16]);

impl LimitKey {
    /// A key that stands for these parts.
    pub fn new(parts: &[&[u8]]) -> Self {
        let mut hasher = Sha256::new();
        for part in parts {
            hasher.update((part.len() as u64).to_be_bytes());
            hasher.update(part);
        }

        let digest: [u8; 32] = hasher.finalize().into();
        let mut key = [0; 16];
        key.copy_from_slice(&digest[..16]);
        Self(key)
    }

    /// The key of an address, for requests that nobody has authenticated yet. All IPv6 addresses of
    /// one network (/64) have one key, since a single host can use all of them.
    pub fn of_address(address: IpAddr) -> Self {
        match address.to_canonical() {
            IpAddr::V4(address) => Self::new(&[b"v4", &address.octets()]),
            IpAddr::V6(address) => Self::new(&[b"v6", &address.octets()[..8]]),
        }
    }
}

/// The `[[limit]]` tables, with what has been used of each.
#[derive(Debug, Default)]
pub struct Limits {
    rules: Vec<LimitRule>,
    used: Arc<Mutex<Usage>>,
}

/// What has been used, by the limit's name.
type Usage = HashMap<Arc<str>, Used>;

#[derive(Debug)]
struct Used {
    calls: Option<Limiter>,
    bytes: Option<Limiter>,
    running: HashMap<LimitKey, u32>,
}

/// A call that limits may cover.
#[derive(Debug, Clone, Copy)]
pub struct LimitedCall<'a> {
    /// Who makes it.
    pub principal: &'a Principal,
    /// What it is.
    pub action: Action,
    /// The hosted server that it is for; `None` if it is our own.
    pub server: Option<&'a str>,
    /// The tool, without the name of its server.
    pub tool: Option<&'a str>,
    /// How many bytes the request has.
    pub bytes: u64,
}

/// A call that was let in. Holds its slots until it is dropped.
#[derive(Debug, Default)]
#[must_use = "the slots are free again when this is dropped"]
pub struct AdmittedCall {
    slots: Vec<(Arc<str>, LimitKey)>,
    used: Arc<Mutex<Usage>>,
}

/// A limit was met.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the limit {limit:?} on {what} is reached; try again in {} ms [{}]", retry_after.as_millis(), codes::RATE_LIMITED)]
pub struct LimitReached {
    /// The name of the limit.
    pub limit: Arc<str>,
    /// What is limited: `calls`, `bytes` or `concurrency`.
    pub what: &'static str,
    /// When to try again.
    pub retry_after: Duration,
}

impl LimitReached {
    /// The stable code of the error.
    pub fn code(&self) -> Code {
        codes::RATE_LIMITED
    }
}

impl Limits {
    /// Compiles the tables.
    ///
    /// # Errors
    ///
    /// Returns an error that names the limit, the field and what to do.
    pub(crate) fn new(tables: Vec<LimitTable>) -> Result<Self, LimitTableError> {
        let rules = table::compile_all(tables)?;
        let used = rules.iter().map(|rule| (Arc::clone(&rule.name), Used::new(rule))).collect();
        Ok(Self { rules, used: Arc::new(Mutex::new(used)) })
    }

    /// Takes over what was used of the previous limits, when the file is reloaded: the calls that
    /// run, and the rates that stayed the same.
    pub fn adopt(&mut self, previous: &Self) {
        let mut used = lock(&previous.used);
        used.retain(|name, _| self.rules.iter().any(|rule| rule.name == *name));

        for rule in &self.rules {
            let fresh = Used::new(rule);
            let own = used.entry(Arc::clone(&rule.name)).or_insert_with(|| Used::new(rule));
            if own.calls.as_ref().map(Limiter::rate) != rule.calls {
                own.calls = fresh.calls;
            }
            if own.bytes.as_ref().map(Limiter::rate) != rule.bytes {
                own.bytes = fresh.bytes;
            }
        }
        drop(used);
        self.used = Arc::clone(&previous.used);
    }

    /// Lets a call in if no limit that covers it is reached. Then the call is counted by all of
    /// them; otherwise by none.
    ///
    /// # Errors
    ///
    /// Returns the limit that takes longest to let the call in.
    pub fn admit(
        &self,
        call: &LimitedCall<'_>,
        now: Duration,
    ) -> Result<AdmittedCall, LimitReached> {
        let covering: Vec<_> = (self.rules.iter())
            .filter(|rule| rule.covers(call))
            .filter_map(|rule| Some((rule, rule.key(call)?)))
            .collect();
        if covering.is_empty() {
            return Ok(AdmittedCall::default());
        }

        let mut usage = lock(&self.used);
        let reached = covering.iter().filter_map(|(rule, key)| {
            usage.get_mut(&rule.name)?.find_reached(rule, *key, call.bytes, now)
        });
        if let Some(reached) = reached.max_by_key(|reached| reached.retry_after) {
            return Err(reached);
        }

        let mut slots = Vec::new();
        for (rule, key) in covering {
            let Some(used) = usage.get_mut(&rule.name) else {
                continue;
            };
            used.charge(key, call.bytes, now);
            if rule.concurrency.is_some() {
                *used.running.entry(key).or_default() += 1;
                slots.push((Arc::clone(&rule.name), key));
            }
        }
        Ok(AdmittedCall { slots, used: Arc::clone(&self.used) })
    }

    /// How many keys are remembered.
    pub fn keys(&self) -> usize {
        lock(&self.used).values().map(Used::keys).sum()
    }
}

impl Used {
    fn new(rule: &LimitRule) -> Self {
        Self {
            calls: rule.calls.map(|rate| Limiter::new(rate, MAX_KEYS)),
            bytes: rule.bytes.map(|rate| Limiter::new(rate, MAX_KEYS)),
            running: HashMap::new(),
        }
    }

    fn find_reached(
        &mut self,
        rule: &LimitRule,
        key: LimitKey,
        bytes: u64,
        now: Duration,
    ) -> Option<LimitReached> {
        let wait = |limiter: &mut Option<Limiter>, cost: u64| {
            limiter.as_mut().and_then(|limiter| limiter.wait(key, cost, now))
        };
        let running = self.running.get(&key).copied().unwrap_or(0);
        let is_full = rule.concurrency.is_some_and(|most| running >= most.get());

        let reached = [
            ("calls", wait(&mut self.calls, 1)),
            ("bytes", wait(&mut self.bytes, bytes)),
            ("concurrency", is_full.then_some(SLOT_RETRY)),
        ];
        let (what, retry_after) = reached
            .into_iter()
            .filter_map(|(what, wait)| Some((what, wait?)))
            .max_by_key(|(_, wait)| *wait)?;
        Some(LimitReached { limit: Arc::clone(&rule.name), what, retry_after })
    }

    fn charge(&mut self, key: LimitKey, bytes: u64, now: Duration) {
        let Self { calls, bytes: bytes_limiter, .. } = self;
        // Neither can fail: the caller holds the lock since it has asked.
        for (limiter, cost) in [(calls, 1), (bytes_limiter, bytes)] {
            let charged = limiter.as_mut().map(|limiter| limiter.check(key, cost, now));
            debug_assert!(!matches!(charged, Some(Err(_))), "charged more than there was");
        }
    }

    fn keys(&self) -> usize {
        let limiters = [&self.calls, &self.bytes].into_iter().flatten();
        limiters.map(Limiter::keys).sum::<usize>() + self.running.len()
    }
}

impl Drop for AdmittedCall {
    fn drop(&mut self) {
        if self.slots.is_empty() {
            return;
        }

        let mut usage = lock(&self.used);
        for (name, key) in self.slots.drain(..) {
            let Some(used) = usage.get_mut(&name) else {
                continue;
            };
            if let Some(running) = used.running.get_mut(&key) {
                *running = running.saturating_sub(1);
                if *running == 0 {
                    used.running.remove(&key);
                }
            }
        }
    }
}

fn lock(used: &Mutex<Usage>) -> MutexGuard<'_, Usage> {
    used.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
