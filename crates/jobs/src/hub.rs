//! Telling those who wait of what the log says.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use fleet_ledger::{Update, store::Positions};
use parking_lot::{Mutex, MutexGuard};
use tokio::sync::{Notify, watch};

/// How many records are kept for those who come back.
const RING: usize = 8_192;
/// How many bytes of results and errors they may hold.
const RING_BYTES: usize = 32 << 20;

/// Where news of the log come together.
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
    /// The offset after the last record that has left the ring, by partition.
    floor: Positions,
    waiters: HashMap<String, (Arc<Notify>, usize)>,
}

impl Inner {
    /// How far the log has been told, by partition.
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

    /// Begins with records from these positions on; what was before is not known here.
    pub(crate) fn restart_at(&self, positions: Positions) {
        let mut inner = self.inner();
        let skipped = inner.ring.len() as u64;
        inner.first += skipped;
        inner.ring.clear();
        inner.bytes = 0;
        inner.floor = positions;
    }

    /// Tells of records that the log holds.
    pub(crate) fn publish(&self, updates: Vec<Update>) {
        let mut inner = self.inner();
        for mut update in updates {
            if let Some((notify, _)) = inner.waiters.get(&update.job_id) {
                notify.notify_waiters();
            }
            let bytes = update_bytes(&update);
            inner.bytes += bytes;
            // Whoever follows takes the event as it was read.
            if let Some(logged) = &mut update.event {
                logged.value = Vec::new();
            }
            inner.ring.push_back((Arc::new(update), bytes));
            while (inner.ring.len() > RING || inner.bytes > RING_BYTES)
                && let Some((gone, bytes)) = inner.ring.pop_front()
            {
                inner.bytes -= bytes;
                inner.first += 1;
                inner.floor.insert(gone.partition, gone.offset + 1);
            }
        }
        let next = inner.first + inner.ring.len() as u64;
        drop(inner);
        self.next.send_replace(next);
    }

    /// Tells who waits for this job, and nobody else.
    pub(crate) fn wake_waiters(&self, job_id: &str) {
        if let Some((notify, _)) = self.inner().waiters.get(job_id) {
            notify.notify_waiters();
        }
    }

    /// Waits for news of one job.
    pub(crate) fn add_waiter(self: &Arc<Self>, job_id: &str) -> Waiter {
        let mut inner = self.inner();
        let entry = inner.waiters.entry(job_id.to_owned()).or_default();
        entry.1 += 1;
        let notify = entry.0.clone();
        Waiter { hub: self.clone(), job_id: job_id.to_owned(), notify }
    }

    /// All records from these positions on; `None` where some of them are not known here any more.
    /// Without positions, the records that come from now on.
    pub(crate) fn follow(self: &Arc<Self>, from: Option<Positions>) -> Option<EventReader> {
        let inner = self.inner();
        let (number, from, read) = match from {
            None => (inner.first + inner.ring.len() as u64, Positions::new(), inner.positions()),
            Some(from) => {
                let known = |(partition, offset): (&i32, &i64)| {
                    inner.floor.get(partition).is_none_or(|floor| offset >= floor)
                };
                // A partition that is not named was not heard of: then all of it is wanted.
                let unnamed = |partition: &i32| from.contains_key(partition);
                if !from.iter().all(known) || !inner.floor.keys().all(unnamed) {
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
    /// News that come after this call. What has come before, the ledger says.
    pub(crate) fn next_news(&self) -> impl Future<Output = ()> + use<> {
        let notified = self.notify.clone().notified_owned();
        let mut notified = Box::pin(notified);
        // From here on nothing is missed, though nobody waits yet.
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

/// Reads records as they come.
pub(crate) struct EventReader {
    hub: Arc<Hub>,
    number: u64,
    from: Positions,
    read: Positions,
    next: watch::Receiver<u64>,
}

/// Records have left the ring before they were read.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct FellBehind;

impl EventReader {
    /// How far the log has been read: the offset to read next, by partition.
    pub(crate) fn positions(&self) -> &Positions {
        &self.read
    }

    /// The next record. Can be dropped without losing any.
    pub(crate) async fn next(&mut self) -> Result<Arc<Update>, FellBehind> {
        loop {
            if let Some(update) = self.try_next()? {
                return Ok(update);
            }
            if self.next.changed().await.is_err() {
                // The hub outlives its followers, who hold it.
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
    fn who_comes_back_hears_what_was_missed_and_nothing_twice() {
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
    fn what_is_not_known_any_more_is_not_made_up() {
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
    fn a_waiter_hears_of_its_own_job() {
        let hub = Arc::new(Hub::new());
        let waiter = hub.add_waiter("j1");
        let (before, other) = (waiter.next_news(), hub.add_waiter("j2"));
        let never = other.next_news();
        hub.publish(vec![update(0, 1)]);
        assert!(before.now_or_never().is_some());
        assert!(waiter.next_news().now_or_never().is_none(), "that is over");
        assert!(never.now_or_never().is_none());
        drop((waiter, other));
        assert!(hub.inner().waiters.is_empty());
    }
}
