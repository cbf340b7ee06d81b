//! The queue of records between the shared client and the thread that follows a topic.

use std::{
    collections::VecDeque,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use fleet_job::record::RawRecord;
use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::error::KafkaError;

/// How many records and bytes may wait. What does not fit is read again later.
const MOST_RECORDS: usize = 10_000;
const MOST_BYTES: usize = 32 << 20;

/// The queue of one followed topic. Clones refer to the same mailbox.
#[derive(Debug, Clone, Default)]
pub(super) struct Mailbox {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// The subscription whose records are accepted; those of earlier ones arrive too late.
    subscription: Option<u64>,
    records: VecDeque<RawRecord>,
    bytes: usize,
    woken: bool,
    end: Option<End>,
}

/// Why no more records follow those in the queue.
#[derive(Debug)]
enum End {
    Overflowed,
    Failed(KafkaError),
}

/// The result of a wait for a record.
#[derive(Debug)]
pub(super) enum Received {
    Record(RawRecord),
    /// The deadline has passed or the mailbox was woken.
    Nothing,
    /// The queue was full. Continue by reading from the last position.
    Overflowed,
    Failed(KafkaError),
}

impl Mailbox {
    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock()
    }

    /// Ends the current wait for a record, or the next one if there is none.
    pub(super) fn wake(&self) {
        self.state().woken = true;
        self.shared.changed.notify_all();
    }

    /// Returns whether the mailbox was woken since this was last called.
    pub(super) fn was_woken(&self) -> bool {
        std::mem::take(&mut self.state().woken)
    }

    /// Waits until `deadline`, or until the mailbox is woken with `stopped` set. Any other wakeup
    /// is kept for the next wait for a record.
    pub(super) fn pause(&self, deadline: Instant, stopped: &AtomicBool) {
        let mut state = self.state();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if stopped.load(Ordering::Acquire) || left.is_zero() {
                return;
            }
            self.shared.changed.wait_for(&mut state, left);
        }
    }

    /// Empties the mailbox and accepts the records of `subscription` from now on.
    pub(super) fn begin(&self, subscription: u64) {
        let mut state = self.state();
        let woken = state.woken;
        *state = State { subscription: Some(subscription), woken, ..State::default() };
    }

    /// Adds a record. Returns `false` if there is no room for it; no more records are accepted
    /// then.
    pub(super) fn put(&self, subscription: u64, record: RawRecord) -> bool {
        let mut state = self.state();
        if state.subscription != Some(subscription) || state.end.is_some() {
            return true;
        }

        let fits = state.records.len() < MOST_RECORDS && state.bytes < MOST_BYTES;
        if fits {
            state.bytes += record.size();
            state.records.push_back(record);
        } else {
            state.end = Some(End::Overflowed);
        }

        drop(state);
        self.shared.changed.notify_all();
        fits
    }

    /// Adds an error behind the records in the queue.
    pub(super) fn fail(&self, subscription: u64, error: KafkaError) {
        let mut state = self.state();
        if state.subscription == Some(subscription) && state.end.is_none() {
            state.end = Some(End::Failed(error));
        }
        drop(state);
        self.shared.changed.notify_all();
    }

    /// Takes the oldest record, waiting until `deadline` if there is none.
    pub(super) fn receive(&self, deadline: Instant) -> Received {
        let mut state = self.state();
        loop {
            if let Some(record) = state.records.pop_front() {
                state.bytes -= record.size();
                return Received::Record(record);
            }

            match state.end.take() {
                Some(End::Overflowed) => return Received::Overflowed,
                Some(End::Failed(error)) => return Received::Failed(error),
                None => {}
            }

            let left = deadline.saturating_duration_since(Instant::now());
            if std::mem::take(&mut state.woken) || left.is_zero() {
                return Received::Nothing;
            }
            self.shared.changed.wait_for(&mut state, left);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{thread, time::Duration};

    use fleet_job::record::Position;

    use super::*;

    fn record(offset: i64, size: usize) -> RawRecord {
        let position = Position { topic: "t".to_owned(), partition: 0, offset };
        RawRecord {
            position,
            timestamp: None,
            key: None,
            value: Some(vec![0; size]),
            headers: Vec::new(),
        }
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(30)
    }

    fn offset(received: Received) -> i64 {
        let Received::Record(record) = received else { panic!("{received:?}") };
        record.position.offset
    }

    #[test]
    fn records_keep_their_order_and_those_of_an_earlier_subscription_are_dropped() {
        let mailbox = Mailbox::default();
        mailbox.begin(1);
        assert!(mailbox.put(1, record(0, 1)));
        mailbox.begin(2);
        assert!(mailbox.put(1, record(1, 1)), "nobody needs it, so it need not be read again");
        assert!(mailbox.put(2, record(2, 1)) && mailbox.put(2, record(3, 1)));
        mailbox.fail(2, KafkaError::PollThread("it has ended"));

        assert_eq!(offset(mailbox.receive(soon())), 2);
        assert_eq!(offset(mailbox.receive(soon())), 3);
        assert!(matches!(mailbox.receive(soon()), Received::Failed(_)));
    }

    #[test]
    fn an_overflow_ends_the_subscription_and_keeps_the_queued_records() {
        for (size, most) in [(1, MOST_RECORDS), (1 << 20, 32)] {
            let mailbox = Mailbox::default();
            mailbox.begin(1);
            let taken = (0..).take_while(|n| mailbox.put(1, record(*n, size))).count();
            assert!(taken.abs_diff(most) <= 1, "{taken} of {size} bytes");
            for n in 0..taken {
                assert_eq!(offset(mailbox.receive(soon())), i64::try_from(n).unwrap());
            }
            assert!(matches!(mailbox.receive(soon()), Received::Overflowed));
        }
    }

    #[test]
    fn a_wait_ends_on_a_wakeup_before_or_during_it() {
        let mailbox = Mailbox::default();
        mailbox.wake();
        assert!(matches!(mailbox.receive(soon()), Received::Nothing));

        let waker = mailbox.clone();
        let thread = thread::spawn(move || waker.wake());

        let begin = Instant::now();
        assert!(matches!(mailbox.receive(soon()), Received::Nothing));
        assert!(begin.elapsed() < Duration::from_secs(20));
        thread.join().unwrap();
    }

    #[test]
    fn a_pause_ends_early_when_stopped_but_not_when_merely_woken() {
        let (mailbox, stopped) = (Mailbox::default(), AtomicBool::new(false));
        let length = Duration::from_millis(50);
        mailbox.wake();
        let begin = Instant::now();
        mailbox.pause(begin + length, &stopped);
        assert!(begin.elapsed() >= length);
        assert!(matches!(mailbox.receive(soon()), Received::Nothing), "the wakeup is kept");

        thread::scope(|scope| {
            scope.spawn(|| {
                stopped.store(true, Ordering::Release);
                mailbox.wake();
            });
            let begin = Instant::now();
            mailbox.pause(soon(), &stopped);
            assert!(begin.elapsed() < Duration::from_secs(20));
        });
    }
}
