//! The thread that follows a topic until it is no longer needed. It opens the topic again after
//! each failure, hands the records to its [`Listener`], and tells it when it has caught up.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use fleet_job::record::RawRecord;
use fleet_retry::{Backoff, Retry};
use rdkafka::error::{KafkaError as Native, RDKafkaErrorCode as Code};

use super::{FollowedTopic, Follower, Mailbox};
use crate::{error::KafkaError, reader::From as Start, settings::Settings};

/// The timeout of one request to a broker.
const ASK: Duration = Duration::from_secs(10);
/// How long to wait for a record before checking whether the listener still needs the topic.
const LOOK: Duration = Duration::from_secs(5);
/// The largest number of records that a listener gets at once.
const BATCH: usize = 1_000;
/// The pauses before a topic is opened again.
const REOPENING: Backoff =
    Backoff { base: Duration::from_millis(250), max: Duration::from_secs(10) };

/// Receives the records of a topic. All calls come from one thread and may block it.
pub trait Listener: Send + 'static {
    /// Why the topic could not be opened or its records could not be processed.
    type Error: From<KafkaError>;

    /// Opens the topic: at the start, and again after each failure.
    ///
    /// # Errors
    ///
    /// Returns [`Interrupted`] if the topic has to be opened again or is no longer needed.
    fn open(&mut self, opener: &Opener<'_>) -> Result<FollowedTopic, Interrupted<Self::Error>>;

    /// Takes records, which are in order within each partition. [`FollowedTopic::positions`]
    /// already lie behind them.
    ///
    /// # Errors
    ///
    /// Returns [`Interrupted`] if the topic has to be opened again or is no longer needed.
    fn take(
        &mut self,
        records: Vec<RawRecord>,
        topic: &FollowedTopic,
    ) -> Result<(), Interrupted<Self::Error>>;

    /// Reports that the listener has received every record that was on the topic when
    /// [`Following::ask`] returned this number, or, for 0, when the topic was opened.
    ///
    /// # Errors
    ///
    /// Returns [`Interrupted`] if the topic has to be opened again or is no longer needed.
    fn caught_up(&mut self, number: u64) -> Result<(), Interrupted<Self::Error>> {
        _ = number;
        Ok(())
    }

    /// Reports that opening or following the topic failed. The topic is opened again after a pause.
    ///
    /// # Errors
    ///
    /// Returns [`Unneeded`] to stop following the topic.
    fn failed(&mut self, error: Self::Error) -> Result<(), Unneeded>;

    /// Returns whether the topic is still needed. Called after every wait for records.
    fn is_needed(&self) -> bool {
        true
    }
}

/// Why following a topic was interrupted.
#[derive(Debug)]
pub enum Interrupted<E> {
    /// The topic is no longer needed.
    Unneeded,
    /// The topic has to be opened again.
    Failed(E),
}

/// The topic is no longer needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unneeded;

impl<E> From<E> for Interrupted<E> {
    fn from(error: E) -> Self {
        Self::Failed(error)
    }
}

/// Opens the topic of a [`Listener`].
#[derive(Debug)]
pub struct Opener<'a> {
    follower: &'a Follower,
    mailbox: &'a Mailbox,
}

impl Opener<'_> {
    /// Returns the settings of the clients.
    pub fn settings(&self) -> &Settings {
        self.follower.settings()
    }

    /// Opens `topic` at its first record.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`Reader::open`](crate::reader::Reader::open).
    pub fn open(&self, topic: &str) -> Result<FollowedTopic, KafkaError> {
        self.follower.open(topic, Start::Start, ASK, self.mailbox)
    }

    /// Opens `topic` at these offsets. Partitions without an offset are read from their start.
    ///
    /// # Errors
    ///
    /// Returns the errors of [`Reader::open_at`](crate::reader::Reader::open_at).
    pub fn open_at(
        &self,
        topic: &str,
        offsets: &std::collections::BTreeMap<i32, i64>,
    ) -> Result<FollowedTopic, KafkaError> {
        self.follower.open_at(topic, offsets, ASK, self.mailbox)
    }
}

/// Starts the thread that follows a topic, and asks it how far it has come. Clones refer to the
/// same thread.
#[derive(Debug, Clone, Default)]
pub struct Following {
    asked: Arc<AtomicU64>,
    mailbox: Mailbox,
}

/// Ends the thread that follows a topic when dropped, even while the thread pauses.
#[must_use = "the topic is followed until this is dropped"]
#[derive(Debug)]
pub struct FollowGuard {
    stopped: Arc<AtomicBool>,
    mailbox: Mailbox,
}

impl Drop for FollowGuard {
    fn drop(&mut self) {
        self.stopped.store(true, Ordering::Release);
        self.mailbox.wake();
    }
}

impl Following {
    /// Starts the thread with this name. Only one may run at a time.
    ///
    /// # Errors
    ///
    /// Returns [`KafkaError::Client`] if the operating system cannot create a thread.
    pub fn start(
        &self,
        name: &str,
        follower: Follower,
        listener: impl Listener,
    ) -> Result<FollowGuard, KafkaError> {
        let stopped = Arc::new(AtomicBool::new(false));
        let thread = FollowThread { follower, following: self.clone(), stopped: stopped.clone() };
        thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || thread.run(listener))
            .map_err(|error| KafkaError::Client(Native::ClientCreation(error.to_string())))?;

        Ok(FollowGuard { stopped, mailbox: self.mailbox.clone() })
    }

    /// Asks for a call of [`Listener::caught_up`] with the returned number or a higher one.
    pub fn ask(&self) -> u64 {
        let number = self.asked.fetch_add(1, Ordering::AcqRel) + 1;
        self.mailbox.wake();
        number
    }
}

struct FollowThread {
    follower: Follower,
    following: Following,
    stopped: Arc<AtomicBool>,
}

impl FollowThread {
    fn run<L: Listener>(self, mut listener: L) {
        let mut retry = Retry::new(REOPENING, rand::random());
        while self.is_needed(&listener) {
            let opener = Opener { follower: &self.follower, mailbox: &self.following.mailbox };
            let followed = listener.open(&opener).and_then(|topic| {
                retry.succeeded();
                self.follow(topic, &mut listener)
            });

            let Err(Interrupted::Failed(error)) = followed else { return };
            if !self.is_needed(&listener) || listener.failed(error).is_err() {
                return;
            }
            self.following.mailbox.pause(Instant::now() + retry.failed(), &self.stopped);
        }
    }

    /// Passes the records of the topic to the listener until following is interrupted.
    fn follow<L: Listener>(
        &self,
        mut topic: FollowedTopic,
        listener: &mut L,
    ) -> Result<(), Interrupted<L::Error>> {
        let (mut asked, mut told) = (0, None);
        loop {
            let wanted = self.following.asked.load(Ordering::Acquire);
            if told.is_some() && wanted > asked && refresh_end(&mut topic)? {
                asked = wanted;
            }

            // Report before waiting for a record, which may take long.
            if topic.at_end() && told != Some(asked) {
                listener.caught_up(asked)?;
                told = Some(asked);
                // Check for a newer request first: it should not wait for the next record.
                continue;
            }

            let records = next_records(&mut topic).map_err(L::Error::from)?;
            if !self.is_needed(listener) {
                return Err(Interrupted::Unneeded);
            }
            if !records.is_empty() {
                listener.take(records, &topic)?;
            }
        }
    }

    fn is_needed(&self, listener: &impl Listener) -> bool {
        !self.stopped.load(Ordering::Acquire) && listener.is_needed()
    }
}

/// Fetches where the topic ends, and returns whether that is known now. If the topic no longer
/// exists, it has to be opened again.
fn refresh_end<E: From<KafkaError>>(topic: &mut FollowedTopic) -> Result<bool, Interrupted<E>> {
    match topic.refresh_end(ASK) {
        Ok(()) => Ok(true),
        Err(error) if is_gone(&error) => Err(Interrupted::Failed(error.into())),
        Err(error) => {
            tracing::debug!(?error, "could not fetch the end of a followed topic; trying again");
            Ok(false)
        }
    }
}

/// Returns whether the broker no longer knows the topic or one of its partitions.
fn is_gone(error: &KafkaError) -> bool {
    let KafkaError::Request { source, .. } = error else { return false };
    matches!(
        source.rdkafka_error_code(),
        Some(Code::UnknownTopic | Code::UnknownPartition | Code::UnknownTopicOrPartition)
    )
}

/// Waits for the next record and returns it with those behind it; none if the mailbox was woken.
fn next_records(topic: &mut FollowedTopic) -> Result<Vec<RawRecord>, KafkaError> {
    let mut records = Vec::new();
    let mut wait = LOOK;
    while records.len() < BATCH
        && let Some(record) = topic.next(wait)?
    {
        records.push(record);
        wait = Duration::ZERO;
    }

    Ok(records)
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    use super::*;

    /// A listener that never opens its topic and reports each attempt.
    struct Refused(mpsc::Sender<&'static str>);

    impl Listener for Refused {
        type Error = KafkaError;

        fn open(&mut self, _: &Opener<'_>) -> Result<FollowedTopic, Interrupted<KafkaError>> {
            Err(KafkaError::NoTopic("t".to_owned()).into())
        }

        fn take(
            &mut self,
            _: Vec<RawRecord>,
            _: &FollowedTopic,
        ) -> Result<(), Interrupted<KafkaError>> {
            Ok(())
        }

        fn failed(&mut self, _: KafkaError) -> Result<(), Unneeded> {
            self.0.send("failed").map_err(|_| Unneeded)
        }
    }

    impl Drop for Refused {
        fn drop(&mut self) {
            _ = self.0.send("ended");
        }
    }

    #[test]
    fn a_topic_is_opened_again_until_the_guard_is_dropped() {
        let (sender, calls) = mpsc::channel();
        let follower = Follower::new(Settings::new("127.0.0.1:1"));
        let guard = Following::default().start("test", follower, Refused(sender)).unwrap();
        let next_call = || calls.recv_timeout(Duration::from_secs(30));
        for _ in 0..3 {
            assert_eq!(next_call(), Ok("failed"));
        }

        drop(guard);
        assert_eq!(next_call(), Ok("ended"));
    }

    #[test]
    fn each_question_has_its_own_number() {
        let following = Following::default();
        assert_eq!((following.ask(), following.clone().ask(), following.ask()), (1, 2, 3));
    }

    #[test]
    fn a_missing_topic_is_opened_again_but_an_unreachable_broker_is_asked_again() {
        let error =
            |code| KafkaError::Request { what: "asking", source: Native::MetadataFetch(code) };
        assert!(is_gone(&error(Code::UnknownTopicOrPartition)));
        assert!(is_gone(&error(Code::UnknownPartition)));
        assert!(!is_gone(&error(Code::AllBrokersDown)));
        assert!(!is_gone(&KafkaError::NoTopic("t".to_owned())));
    }
}
