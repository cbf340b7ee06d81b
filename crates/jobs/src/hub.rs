//! Passes events on to waiting requests and to streams as they are read from the events topic.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use fleet_ledger::{Update, store::Positions};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, watch};

/// The most records that are kept for readers that reconnect.
const RING: usize = 8_192;
/// The most bytes that the kept records may take.
const RING_BYTES: usize = 32 << 20;

/// Passes the records of the events topic on to waiters and readers.
#[derive(Debug)]
pub(crate) struct Hub {
    inner: Mutex<Inner>,
    /// The number of the next record.
    next: watch::Sender<u64>,
}

#[derive(Debug, Default)]
struct Inner {
    ring: VecDeque<(Arc<Update>, usize)>,
    bytes: usize,
    /// The number of the first record in the ring.
    first: u64,
    /// By partition, the offset after the last record that has left the ring.
    floor: Positions,
    /// By job id, whom to notify, and the number of waiters.
    waiters: HashMap<String, (Arc<Notify>, usize)>,
}

impl Inner {
    /// Returns the next offset to publish, by partition.
    fn positions(&self) -> Positions {
        let mut positions = self.floor.clone();
        positions.extend(self.ring.iter().map(|(update, _)| (update.partition, update.offset + 1)));
        positions
    }
}

impl Hub {
    pub(crate) fn new() -> Self {
        Self { inner: Mutex::default(), next: watch::Sender::new(0) }
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock()
    }

    /// Restarts with records from these positions on, and drops all earlier ones.
    pub(crate) fn restart_at(&self, positions: Positions) {
        let mut inner = self.inner();
        let dropped = inner.ring.len() as u64;
        inner.first += dropped;
        inner.ring.clear();
        inner.bytes = 0;
        inner.floor = positions;
    }

    /// Publishes records that were read from the topic.
    pub(crate) fn publish(&self, updates: Vec<Update>) {
        let mut inner = self.inner();
        for mut update in updates {
            if let Some((notify, _)) = inner.waiters.get(&update.job_id) {
                notify.notify_waiters();
            }

            let bytes = update_bytes(&update);
            inner.bytes += bytes;
            // Readers use the decoded event.
            if let Some(logged) = &mut update.event {
                logged.value = Vec::new();
            }
            inner.ring.push_back((Arc::new(update), bytes));

            while (inner.ring.len() > RING || inner.bytes > RING_BYTES)
                && let Some((oldest, bytes)) = inner.ring.pop_front()
            {
                inner.bytes -= bytes;
                inner.first += 1;
                inner.floor.insert(oldest.partition, oldest.offset + 1);
            }
        }

        let next = inner.first + inner.ring.len() as u64;
        drop(inner);
        self.next.send_replace(next);
    }

    /// Wakes the waiters of one job, without publishing a record.
    pub(crate) fn wake_waiters(&self, job_id: &str) {
        if let Some((notify, _)) = self.inner().waiters.get(job_id) {
            notify.notify_waiters();
        }
    }

    /// Adds a waiter for news of one job.
    pub(crate) fn add_waiter(self: &Arc<Self>, job_id: &str) -> Waiter {
        let mut inner = self.inner();
        let entry = inner.waiters.entry(job_id.to_owned()).or_default();
        entry.1 += 1;
        let notify = entry.0.clone();
        Waiter { hub: self.clone(), job_id: job_id.to_owned(), notify }
    }

    /// Returns a reader of all records from these positions on, or of those published from now on
    /// if there are no positions. Returns `None` if some of the records have left the ring.
    pub(crate) fn follow(self: &Arc<Self>, from: Option<Positions>) -> Option<EventReader> {
        let inner = self.inner();
        let (number, from, read) = match from {
            None => (inner.first + inner.ring.len() as u64, Positions::new(), inner.positions()),
            Some(from) => {
                let known = |(partition, offset): (&i32, &i64)| {
                    inner.floor.get(partition).is_none_or(|floor| offset >= floor)
                };
                // The reader has seen nothing of a partition that it does not name, so it needs all
                // of it.
                let is_named = |partition: &i32| from.contains_key(partition);
                if !from.iter().all(known) || !inner.floor.keys().all(is_named) {
                    return None;
                }
                (inner.first, from.clone(), from)
            }
        };
        Some(EventReader { hub: self.clone(), number, from, read, next: self.next.subscribe() })
    }
}

fn update_bytes(update: &Update) -> usize {
    256 + update.job_id.len() + update.event.as_ref().map_or(0, |logged| logged.value.len())
}

/// Waits for news of one job.
pub(crate) struct Waiter {
    hub: Arc<Hub>,
    job_id: String,
    notify: Arc<Notify>,
}

impl Waiter {
    /// Returns a future that resolves at the next news after this call. The ledger has everything
    /// earlier.
    pub(crate) fn next_news(&self) -> impl Future<Output = ()> + use<> {
        let notified = self.notify.clone().notified_owned();
        let mut notified = Box::pin(notified);
        // Register now, so that news before the first poll is not missed.
        notified.as_mut().enable();
        notified
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let mut inner = self.hub.inner();
        if let Some(entry) = inner.waiters.get_mut(&self.job_id) {
            entry.1 -= 1;
            if entry.1 == 0 {
                inner.waiters.remove(&self.job_id);
            }
        }
    }
}

/// Reads records as they are published.
pub(crate) struct EventReader {
    hub: Arc<Hub>,
    /// The number of the next record to read.
    number: u64,
    /// Records before these positions are skipped.
    from: Positions,
    /// The next offset to read, by partition.
    read: Positions,
    next: watch::Receiver<u64>,
}

/// Records left the ring before they were read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct FellBehind;

impl EventReader {
    /// Returns the next offset to read, by partition.
    pub(crate) fn positions(&self) -> &Positions {
        &self.read
    }

    /// Waits for the next record. Cancel safe.
    pub(crate) async fn next(&mut self) -> Result<Arc<Update>, FellBehind> {
        loop {
            if let Some(update) = self.try_next()? {
                return Ok(update);
            }
            if self.next.changed().await.is_err() {
                // The hub outlives its readers, which hold it.
                std::future::pending::<()>().await;
            }
        }
    }

    fn try_next(&mut self) -> Result<Option<Arc<Update>>, FellBehind> {
        self.next.borrow_and_update();
        let inner = self.hub.inner();
        loop {
            let Some(index) = self.number.checked_sub(inner.first) else { return Err(FellBehind) };
            let index = usize::try_from(index).map_err(|_| FellBehind)?;
            let Some((update, _)) = inner.ring.get(index) else { return Ok(None) };
            self.number += 1;
            if self.from.get(&update.partition).is_none_or(|from| update.offset >= *from) {
                self.read.insert(update.partition, update.offset + 1);
                return Ok(Some(update.clone()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    fn update(partition: i32, offset: i64) -> Update {
        Update { partition, offset, job_id: format!("j{offset}"), event: None }
    }

    fn read(reader: &mut EventReader) -> Vec<(i32, i64)> {
        let mut read = Vec::new();
        while let Some(Ok(update)) = reader.next().now_or_never() {
            read.push((update.partition, update.offset));
        }
        read
    }

    #[test]
    fn a_reader_that_reconnects_gets_what_it_missed_and_nothing_twice() {
        let hub = Arc::new(Hub::new());
        hub.restart_at([(0, 5), (1, 0)].into());
        hub.publish(vec![update(0, 5), update(1, 0), update(0, 6)]);
        let mut reader = hub.follow(Some([(0, 6), (1, 0)].into())).unwrap();
        assert_eq!(read(&mut reader), [(1, 0), (0, 6)]);

        hub.publish(vec![update(1, 1)]);
        assert_eq!(read(&mut reader), [(1, 1)]);
        let mut fresh = hub.follow(None).unwrap();
        assert_eq!(fresh.positions(), &[(0, 7), (1, 2)].into());
        hub.publish(vec![update(1, 2)]);
        assert_eq!(read(&mut fresh), [(1, 2)]);
        assert_eq!(fresh.positions(), &[(0, 7), (1, 3)].into());
    }

    #[test]
    fn a_reader_that_has_fallen_behind_is_refused() {
        let hub = Arc::new(Hub::new());
        hub.restart_at([(0, 5)].into());
        assert!(hub.follow(Some([(0, 4)].into())).is_none());
        assert!(hub.follow(Some(Positions::new())).is_none());
        let mut slow = hub.follow(None).unwrap();
        hub.publish((0..RING as i64 + 1).map(|offset| update(0, 5 + offset)).collect());
        assert_eq!(slow.next().now_or_never(), Some(Err(FellBehind)));
        assert!(hub.follow(Some([(0, 5)].into())).is_none());
        assert!(hub.follow(Some([(0, 6)].into())).is_some());
    }

    #[test]
    fn a_waiter_is_woken_for_its_own_job_only() {
        let hub = Arc::new(Hub::new());
        let waiter = hub.add_waiter("j1");
        let (before, other) = (waiter.next_news(), hub.add_waiter("j2"));
        let never = other.next_news();
        hub.publish(vec![update(0, 1)]);
        assert!(before.now_or_never().is_some());
        assert!(waiter.next_news().now_or_never().is_none(), "the news was before this call");
        assert!(never.now_or_never().is_none());
        drop((waiter, other));
        assert!(hub.inner().waiters.is_empty());
    }
}
