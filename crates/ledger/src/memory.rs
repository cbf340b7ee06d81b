//! A ledger in memory: bounded, indexed for the supported queries, and rebuilt from the topic after
//! a restart.

use std::{
    collections::{BTreeSet, HashMap, HashSet, hash_map::Entry},
    ops::Bound,
    sync::Arc,
};

use async_trait::async_trait;
use fleet_job::{
    event::JobEvent,
    outcome::JobError,
    state::{Standing, Verdict},
    time::Timestamp,
};
use parking_lot::{Mutex, MutexGuard};

use crate::{
    query::{Cursor, Page, Query},
    retention::{Forgotten, Retention},
    store::{
        Batch, Known, LoggedEvent, Overtaken, Positions, STATES, Store, StoreError, Tallies, Tally,
        Update, complete_since, state_number, strip_details, submitted_at,
    },
};

/// The bytes that a job needs besides its event, for names and index entries. Measured with a
/// million jobs.
const OVERHEAD: u64 = 676;

/// A ledger in memory.
#[derive(Debug)]
pub struct MemoryStore {
    retention: Retention,
    // Held for microseconds at a time, since a batch is applied record by record.
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    jobs: HashMap<Arc<str>, Slot>,
    positions: Positions,
    bytes: u64,
    /// Indexed by submission time.
    all: BTreeSet<IndexKey>,
    by_state: [BTreeSet<IndexKey>; STATES.len()],
    /// Jobs in a terminal state, indexed by the time they ended.
    ended: BTreeSet<IndexKey>,
    /// Jobs whose terminal event has been overtaken in the log.
    overtaken: BTreeSet<Arc<str>>,
    names: Names,
    /// The number of jobs by state, owner and tenant. There are no zeros.
    tallies: HashMap<TallyKey, u64>,
    /// Jobs evicted for lack of space since the last report.
    evicted: Forgotten,
    /// The newest time of a job that was forgotten.
    forgotten_until: Option<i64>,
}

type TallyKey = (u8, Option<Arc<str>>, Option<Arc<str>>);

type IndexKey = (i64, Arc<str>);

#[derive(Debug)]
struct Slot {
    event: Box<[u8]>,
    partition: i32,
    standing: Standing,
    submitted: i64,
    time: i64,
    state: u8,
    job_type: Option<Arc<str>>,
    tool: Option<Arc<str>>,
    tenant: Option<Arc<str>>,
    owner: Option<Arc<str>>,
    error_code: Option<Arc<str>>,
}

impl Slot {
    fn tally_key(&self) -> TallyKey {
        (self.state, self.owner.clone(), self.tenant.clone())
    }

    fn is_terminal(&self) -> bool {
        STATES.get(usize::from(self.state)).is_some_and(|state| state.is_terminal())
    }

    fn size(&self) -> u64 {
        self.event.len() as u64 + OVERHEAD
    }

    fn read(&self, job_id: &str) -> Result<Known, StoreError> {
        let event: JobEvent = serde_json::from_slice(&self.event)
            .map_err(|source| StoreError::Event { job_id: job_id.to_owned(), source })?;
        Ok(Known { partition: self.partition, offset: self.standing.offset(), event })
    }
}

/// Interns names that many jobs share.
#[derive(Debug, Default)]
struct Names(HashSet<Arc<str>>);

impl Names {
    fn intern(&mut self, name: Option<&str>) -> Option<Arc<str>> {
        let name = name?;
        if let Some(known) = self.0.get(name) {
            return Some(known.clone());
        }
        let fresh: Arc<str> = name.into();
        self.0.insert(fresh.clone());
        Some(fresh)
    }

    fn release(&mut self, name: Option<Arc<str>>) {
        // The set holds one reference and the caller the other.
        if let Some(name) = name
            && Arc::strong_count(&name) == 2
        {
            self.0.remove(&name);
        }
    }
}

impl MemoryStore {
    /// Creates an empty ledger bounded by `retention`.
    pub fn new(retention: Retention) -> Self {
        Self { retention, inner: Mutex::default() }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        // The lock is held only around code that does not panic. If it did, a restart would read
        // the log again.
        self.inner.lock()
    }

    /// Returns how many bytes the jobs occupy, by the store's own estimate.
    pub fn bytes(&self) -> u64 {
        self.inner().bytes
    }
}

impl Inner {
    fn apply(&mut self, update: &Update) -> Verdict {
        if update.was_applied(&self.positions) {
            return Verdict::Again;
        }

        // The index shares its key with the map, so reuse an existing one.
        let known = self.jobs.get_key_value(update.job_id.as_str());
        let known = known.filter(|(_, slot)| slot.partition == update.partition);
        let known = known.map(|(id, slot)| (id.clone(), slot.standing.clone()));
        let Some(logged) = &update.event else {
            return self.apply_tombstone(update, known);
        };

        let entry = update.entry(logged);
        let Some((job_id, mut standing)) = known else {
            let job_id: Arc<str> = update.job_id.as_str().into();
            self.remove(&job_id);
            self.insert(job_id, update.partition, Standing::new(&entry), logged);
            return Verdict::State;
        };

        let verdict = standing.take(&entry);
        if verdict == Verdict::State {
            self.remove(&job_id);
            self.insert(job_id, update.partition, standing, logged);
        } else if let Some(slot) = self.jobs.get_mut(&job_id) {
            if standing.is_overtaken() {
                self.overtaken.insert(job_id);
            } else {
                self.overtaken.remove(&job_id);
            }
            slot.standing = standing;
        }
        verdict
    }

    /// Removes the job, unless the tombstone is older than the job's newest known record.
    fn apply_tombstone(&mut self, update: &Update, known: Option<(Arc<str>, Standing)>) -> Verdict {
        let newer = known.filter(|(_, standing)| standing.seen() >= update.offset);
        if let Some((job_id, _)) = newer {
            if let Some(slot) = self.jobs.get_mut(&job_id) {
                slot.standing.forget_older();
            }
            return Verdict::Stale;
        }

        self.remove(&update.job_id.as_str().into());
        Verdict::State
    }

    fn insert(
        &mut self,
        job_id: Arc<str>,
        partition: i32,
        standing: Standing,
        logged: &LoggedEvent,
    ) {
        let event = &logged.event;
        let state = state_number(event.state);
        let slot = Slot {
            event: logged.value.clone().into_boxed_slice(),
            partition,
            standing,
            submitted: submitted_at(event).as_millis(),
            time: event.time.as_millis(),
            // There are few states.
            state: state as u8,
            job_type: self.names.intern(event.job_type.as_deref()),
            tool: self.names.intern(event.tool.as_deref()),
            tenant: self.names.intern(event.tenant.as_deref()),
            owner: self.names.intern(event.owner.as_deref()),
            error_code: self.names.intern(event.error.as_ref().map(JobError::stable_code)),
        };

        *self.tallies.entry(slot.tally_key()).or_default() += 1;
        self.bytes += slot.size();
        self.all.insert((slot.submitted, job_id.clone()));
        if let Some(index) = self.by_state.get_mut(state) {
            index.insert((slot.submitted, job_id.clone()));
        }
        if slot.is_terminal() {
            self.ended.insert((slot.time, job_id.clone()));
        }
        if slot.standing.is_overtaken() {
            self.overtaken.insert(job_id.clone());
        }

        self.jobs.insert(job_id, slot);
    }

    fn remove(&mut self, job_id: &Arc<str>) -> Option<bool> {
        let slot = self.jobs.remove(job_id)?;

        let (was_terminal, size) = (slot.is_terminal(), slot.size());

        let key = (slot.submitted, job_id.clone());
        self.all.remove(&key);
        if let Some(index) = self.by_state.get_mut(usize::from(slot.state)) {
            index.remove(&key);
        }
        self.overtaken.remove(job_id);
        self.ended.remove(&(slot.time, key.1));
        self.bytes = self.bytes.saturating_sub(size);
        self.remove_from_tally(slot.tally_key());

        for name in [slot.job_type, slot.tool, slot.tenant, slot.owner, slot.error_code] {
            self.names.release(name);
        }

        Some(was_terminal)
    }

    fn remove_from_tally(&mut self, key: TallyKey) {
        if let Entry::Occupied(mut tally) = self.tallies.entry(key) {
            *tally.get_mut() -= 1;
            // An entry without jobs would keep its names for ever.
            if *tally.get() == 0 {
                tally.remove();
            }
        }
    }

    /// Removes a job that the log may still have. Returns whether it had ended.
    fn forget(&mut self, job_id: &Arc<str>) -> Option<bool> {
        let time = self.jobs.get(job_id).map(|slot| slot.time);
        self.forgotten_until = self.forgotten_until.max(time);
        self.remove(job_id)
    }

    /// Evicts jobs until the store is within its bounds, ended jobs first.
    fn enforce_bounds(&mut self, retention: &Retention) {
        while self.jobs.len() > retention.max_jobs || self.bytes > retention.max_bytes {
            let oldest = self.ended.first().or_else(|| self.all.first()).map(|(_, id)| id.clone());
            match oldest.and_then(|id| self.forget(&id)) {
                Some(true) => self.evicted.ended += 1,
                Some(false) => self.evicted.open += 1,
                None => break,
            }
        }
    }

    fn list(&self, query: &Query) -> Result<Page, StoreError> {
        let index = match query.filter.states[..] {
            [state] => self.by_state.get(state_number(state)).unwrap_or(&self.all),
            _ => &self.all,
        };

        let (limit, max_examined) = (query.bounded_limit(), query.max_examined());
        let last = upper_bound(query);
        let range: (Bound<&IndexKey>, Bound<&IndexKey>) =
            (Bound::Unbounded, last.as_ref().map_or(Bound::Unbounded, Bound::Excluded));

        let mut page = Page::default();
        for (examined, key) in index.range(range).rev().enumerate() {
            let (submitted, id) = key;
            if query.filter.since.is_some_and(|since| *submitted < since.as_millis()) {
                return Ok(page);
            }
            if page.jobs.len() == limit || examined == max_examined {
                page.next = page.next.or_else(|| cursor_before(index, key));
                return Ok(page);
            }
            if !query.filter.wants_id(id) {
                continue;
            }
            let Some(slot) = self.jobs.get(id) else { continue };
            if !matches_query(query, slot) {
                continue;
            }
            let known = slot.read(id)?;
            if query.filter.wants_metadata(&known.event.metadata) {
                page.jobs.push(Known { event: strip_details(known.event), ..known });
            }
        }
        Ok(page)
    }
}

/// Returns the exclusive upper bound of a query's index range.
fn upper_bound(query: &Query) -> Option<IndexKey> {
    let cursor = query.after.as_ref().map(|cursor| {
        let id: Arc<str> = cursor.job_id.as_str().into();
        (cursor.submitted_at.as_millis(), id)
    });

    let until = query.filter.until.map(|until| (until.as_millis(), Arc::from("")));
    match (cursor, until) {
        (Some(cursor), Some(until)) => Some(cursor.min(until)),
        (cursor, until) => cursor.or(until),
    }
}

/// Returns the cursor for the entry that was examined just before `key`, where a page ends that
/// does not include `key`.
fn cursor_before(index: &BTreeSet<IndexKey>, key: &IndexKey) -> Option<Cursor> {
    let (submitted, job_id) = index.range((Bound::Excluded(key), Bound::Unbounded)).next()?;
    let submitted_at = Timestamp::from_millis_clamped(*submitted);
    Some(Cursor { submitted_at, job_id: job_id.to_string() })
}

/// Returns whether a job is wanted and may be seen, as far as this is known without its event.
fn matches_query(query: &Query, slot: &Slot) -> bool {
    let is = |wanted: &Option<String>, name: &Option<Arc<str>>| {
        wanted.is_none() || wanted.as_deref() == name.as_deref()
    };
    STATES.get(usize::from(slot.state)).is_some_and(|state| query.filter.wants_state(*state))
        && is(&query.filter.job_type, &slot.job_type)
        && is(&query.filter.tool, &slot.tool)
        && is(&query.filter.tenant, &slot.tenant)
        && is(&query.filter.error_code, &slot.error_code)
        && query.visibility.covers(slot.owner.as_deref(), slot.tenant.as_deref())
}

#[async_trait]
impl Store for MemoryStore {
    async fn apply(&self, batch: Batch) -> Result<Vec<Verdict>, StoreError> {
        let take = |update: &Update| {
            let mut inner = self.inner();
            let verdict = inner.apply(update);
            inner.enforce_bounds(&self.retention);
            verdict
        };
        let verdicts = batch.updates.iter().map(take).collect();
        self.inner().positions.extend(batch.positions);
        Ok(verdicts)
    }

    async fn overtaken(&self, limit: usize) -> Result<Vec<Overtaken>, StoreError> {
        let inner = self.inner();

        let slots =
            inner.overtaken.iter().filter_map(|id| inner.jobs.get_key_value(id)).take(limit);
        let overtaken = slots.map(|(job_id, slot)| Overtaken {
            job_id: job_id.to_string(),
            partition: slot.partition,
            value: slot.event.to_vec(),
            standing: slot.standing.clone(),
        });
        Ok(overtaken.collect())
    }

    async fn positions(&self) -> Result<Positions, StoreError> {
        Ok(self.inner().positions.clone())
    }

    async fn reset(&self) -> Result<(), StoreError> {
        *self.inner() = Inner::default();
        Ok(())
    }

    async fn get(&self, job_id: &str) -> Result<Option<Known>, StoreError> {
        self.inner().jobs.get(job_id).map(|slot| slot.read(job_id)).transpose()
    }

    async fn list(&self, query: &Query) -> Result<Page, StoreError> {
        self.inner().list(query)
    }

    async fn tallies(&self) -> Result<Tallies, StoreError> {
        let inner = self.inner();
        let tally = |((state, owner, tenant), jobs): (&TallyKey, &u64)| {
            let text = |name: &Option<Arc<str>>| name.as_deref().map(str::to_owned);
            let state = *STATES.get(usize::from(*state))?;
            Some(Tally { state, owner: text(owner), tenant: text(tenant), jobs: *jobs })
        };
        let tallies = inner.tallies.iter().filter_map(tally).collect();
        Ok(Tallies { tallies, complete_since: inner.forgotten_until.map(complete_since) })
    }

    async fn forget(&self, now: Timestamp) -> Result<Forgotten, StoreError> {
        let age = i64::try_from(self.retention.max_age.as_millis()).unwrap_or(i64::MAX);
        let oldest = now.as_millis().saturating_sub(age);
        let mut forgotten = std::mem::take(&mut self.inner().evicted);
        loop {
            // Release the lock between jobs, since there can be many.
            let mut inner = self.inner();
            let Some(id) =
                inner.ended.first().filter(|(time, _)| *time < oldest).map(|(_, id)| id.clone())
            else {
                return Ok(forgotten);
            };
            if inner.forget(&id).is_some() {
                forgotten.ended += 1;
            }
        }
    }
}
