//! Bounds concurrent calls, the queue of waiting ones, and the time that they wait.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Slots for calls, granted in the order of requests.
#[derive(Debug)]
pub(super) struct Slots {
    semaphore: Arc<Semaphore>,
    size: usize,
    waiting: AtomicUsize,
}

/// Why a call got no slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum NoSlot {
    /// The queue is full.
    QueueFull,
    /// No slot became free in time.
    TimedOut,
}

impl Slots {
    pub(super) fn new(size: usize) -> Self {
        let size = size.min(Semaphore::MAX_PERMITS);
        Self { semaphore: Arc::new(Semaphore::new(size)), size, waiting: AtomicUsize::new(0) }
    }

    /// Returns the number of slots.
    pub(super) fn size(&self) -> usize {
        self.size
    }

    /// Returns the number of calls in the queue.
    pub(super) fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Acquires a slot, at once or after a wait. Dropping the permit returns the slot.
    pub(super) async fn acquire(
        &self,
        max_queued: usize,
        timeout: Duration,
    ) -> Result<OwnedSemaphorePermit, NoSlot> {
        // Fails while others wait, so nobody is overtaken.
        if let Ok(permit) = self.semaphore.clone().try_acquire_owned() {
            return Ok(permit);
        }
        let _place = QueuePlace::take(&self.waiting, max_queued).ok_or(NoSlot::QueueFull)?;
        match tokio::time::timeout(timeout, self.semaphore.clone().acquire_owned()).await {
            Ok(Ok(permit)) => Ok(permit),
            // The semaphore is never closed.
            Ok(Err(_)) | Err(_) => Err(NoSlot::TimedOut),
        }
    }
}

/// A place in the queue.
struct QueuePlace<'a>(&'a AtomicUsize);

impl<'a> QueuePlace<'a> {
    fn take(waiting: &'a AtomicUsize, max: usize) -> Option<Self> {
        let one_more = |waiting| (waiting < max).then_some(waiting + 1);
        waiting
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more)
            .ok()
            .map(|_| Self(waiting))
    }
}

impl Drop for QueuePlace<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn slots_and_places_in_the_queue_are_bounded() {
        let slots = Slots::new(1);
        let first = slots.acquire(0, LONG).await.unwrap();
        assert_eq!(slots.acquire(0, LONG).await.unwrap_err(), NoSlot::QueueFull);
        assert_eq!(slots.acquire(1, Duration::from_millis(1)).await.unwrap_err(), NoSlot::TimedOut);
        assert_eq!(slots.waiting(), 0);
        let second = slots.acquire(1, LONG);
        tokio::pin!(second);
        assert!(futures::poll!(&mut second).is_pending());
        assert_eq!(slots.waiting(), 1);
        assert_eq!(slots.acquire(1, LONG).await.unwrap_err(), NoSlot::QueueFull);
        drop(first);
        drop(second.await.unwrap());
        // A call that stops waiting leaves the queue.
        let held = slots.acquire(0, LONG).await.unwrap();
        let mut given_up = Box::pin(slots.acquire(1, LONG));
        assert!(futures::poll!(&mut given_up).is_pending());
        drop(given_up);
        assert_eq!(slots.waiting(), 0);
        drop(held);
    }
}
