//! Where the records of a followed topic wait for whoever takes them.

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

/// How many records may wait, and how many bytes. Beyond, they are read again later.
const MOST_RECORDS: usize = 10_000;
const MOST_BYTES: usize = 32 << 20;

/// Where the records of a followed topic arrive. Clones are the same mailbox.
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
    /// Whose records are taken; those of an earlier subscription come too late.
    subscription: Option<u64>,
    records: VecDeque<RawRecord>,
    bytes: usize,
    woken: bool,
    end: Option<End>,
}

/// Why no more records come after those that are there.
#[derive(Debug)]
enum End {
    Overflowed,
    Failed(KafkaError),
}

/// What was found in a mailbox.
#[derive(Debug)]
pub(super) enum Received {
    Record(RawRecord),
    /// The time is over, or somebody has woken the mailbox.
    Nothing,
    /// Too many records came at once: go on by reading from the last position.
    Overflowed,
    Failed(KafkaError),
}

impl Mailbox {
    fn state(&self) -> MutexGuard<'_, State> {
        self.shared.state.lock()
    }

    /// Ends the present wait for a record, or the next one if nobody waits.
    pub(super) fn wake(&self) {
        self.state().woken = true;
        self.shared.changed.notify_all();
    }

    /// Whether the mailbox was woken since that was last found out.
    pub(super) fn was_woken(&self) -> bool {
        std::mem::take(&mut self.state().woken)
    }

    /// Waits until `deadline`, or until `stopped` is set and the mailbox woken. A wake without that
    /// is left to the next wait for a record.
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

    /// Empties the mailbox for the records of `subscription`.
    pub(super) fn begin(&self, subscription: u64) {
        let mut state = self.state();
        let woken = state.woken;
        *state = State { subscription: Some(subscription), woken, ..State::default() };
    }

    /// Puts a record in; `false` if there is no room for it, after which no more are taken.
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

    /// Reports an error behind the records that are there.
    pub(super) fn fail(&self, subscription: u64, error: KafkaError) {
        let mut state = self.state();
        if state.subscription == Some(subscription) && state.end.is_none() {
            state.end = Some(End::Failed(error));
        }
        drop(state);
        self.shared.changed.notify_all();
    }

    /// Takes the oldest record, waiting for it until `deadline`.
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
    fn records_come_in_order_and_those_of_an_earlier_subscription_not_at_all() {
        let mailbox = Mailbox::default();
        mailbox.begin(1);
        assert!(mailbox.put(1, record(0, 1)));
        mailbox.begin(2);
        assert!(mailbox.put(1, record(1, 1)), "nobody misses it, so nothing is to be read again");
        assert!(mailbox.put(2, record(2, 1)) && mailbox.put(2, record(3, 1)));
        mailbox.fail(2, KafkaError::PollThread("it has ended"));
        assert_eq!(offset(mailbox.receive(soon())), 2);
        assert_eq!(offset(mailbox.receive(soon())), 3);
        assert!(matches!(mailbox.receive(soon()), Received::Failed(_)));
    }

    #[test]
    fn too_many_records_end_the_subscription_and_those_before_are_kept() {
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
    fn a_wait_ends_when_the_mailbox_is_woken_before_or_meanwhile() {
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
    fn a_pause_ends_early_when_it_is_stopped_and_not_when_it_is_woken() {
        let (mailbox, stopped) = (Mailbox::default(), AtomicBool::new(false));
        let length = Duration::from_millis(50);
        mailbox.wake();
        let begin = Instant::now();
        mailbox.pause(begin + length, &stopped);
        assert!(begin.elapsed() >= length);
        assert!(matches!(mailbox.receive(soon()), Received::Nothing), "the wake is not lost");

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
