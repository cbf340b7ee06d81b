//! Tells the user on standard error what a command waits for, once the wait has lasted a second.

use std::{
    sync::{
        Arc,
        mpsc::{self, RecvTimeoutError},
    },
    thread,
    time::{Duration, Instant},
};

use fleet_kafka::settings::Settings;
use parking_lot::Mutex;

use crate::output;

/// How long a command may wait without a message.
pub(crate) const SILENCE: Duration = Duration::from_secs(1);

/// A wait in progress. Dropping it ends the wait.
#[derive(Debug)]
pub(crate) struct WaitNotice {
    what: Arc<Mutex<String>>,
    _wait: mpsc::Sender<()>,
}

impl WaitNotice {
    /// Starts a wait. `what` follows "waiting for" in the message.
    pub(crate) fn new(what: String) -> Self {
        Self::start(what, SILENCE, |what| output::problem(&format!("waiting for {what}")))
    }

    /// Starts a wait for a response from a broker.
    pub(crate) fn for_kafka(settings: &Settings) -> Self {
        Self::new(format!("a response from Kafka at {}", settings.brokers))
    }

    /// Starts a wait with a thread of its own, because the waiting thread may be blocked.
    fn start(what: String, silence: Duration, say: impl FnOnce(&str) + Send + 'static) -> Self {
        let what = Arc::new(Mutex::new(what));
        let (wait, over) = mpsc::channel::<()>();

        let current = Arc::clone(&what);
        thread::spawn(move || {
            if over.recv_timeout(silence) == Err(RecvTimeoutError::Timeout) {
                say(&current.lock());
            }
        });
        Self { what, _wait: wait }
    }

    /// Changes what the wait is for. A message that has been printed stays.
    pub(crate) fn wait_for(&self, what: String) {
        *self.what.lock() = what;
    }
}

/// Detects in a loop that Kafka has been unreachable for too long. Pure.
#[derive(Debug, Default)]
pub(crate) struct Outage {
    since: Option<Instant>,
    is_reported: bool,
}

impl Outage {
    /// Records whether Kafka is unreachable. Returns `true` once per outage, when it should be
    /// reported.
    pub(crate) fn observe(&mut self, is_out_of_reach: bool, now: Instant) -> bool {
        if !is_out_of_reach {
            *self = Self::default();
            return false;
        }

        let since = *self.since.get_or_insert(now);
        let is_due = !self.is_reported && now.duration_since(since) >= SILENCE;
        self.is_reported |= is_due;

        is_due
    }

    /// Returns the message about an outage in the middle of a command.
    pub(crate) fn message(settings: &Settings) -> String {
        format!("lost contact with Kafka at {}; waiting for it to return", settings.brokers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEADLINE: Duration = Duration::from_secs(10);

    #[test]
    fn a_long_wait_is_reported_once_and_a_short_one_never() {
        let (say, said) = mpsc::channel();
        let notice = WaitNotice::start("a".to_owned(), Duration::from_millis(200), move |what| {
            say.send(what.to_owned()).unwrap();
        });
        notice.wait_for("b".to_owned());
        assert_eq!(said.recv_timeout(DEADLINE), Ok("b".to_owned()));
        assert_eq!(said.recv_timeout(DEADLINE), Err(RecvTimeoutError::Disconnected));

        let (say, said) = mpsc::channel::<String>();
        drop(WaitNotice::start("c".to_owned(), DEADLINE, move |what| {
            say.send(what.to_owned()).unwrap()
        }));
        assert_eq!(said.recv_timeout(DEADLINE / 2), Err(RecvTimeoutError::Disconnected));
    }

    #[test]
    fn an_outage_is_reported_once_after_a_second() {
        let begin = Instant::now();
        let at = |millis| begin + Duration::from_millis(millis);
        let mut outage = Outage::default();
        let observed =
            [(true, 0), (true, 999), (true, 1000), (true, 5000), (false, 6000), (true, 7000)]
                .map(|(is_out_of_reach, millis)| outage.observe(is_out_of_reach, at(millis)));
        assert_eq!(observed, [false, false, true, false, false, false]);
        assert!(outage.observe(true, at(8000)), "the next outage is reported too");
    }
}
