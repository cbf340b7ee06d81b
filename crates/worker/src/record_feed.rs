//! What people ask of all workers: a thread follows a topic of such records, cancel requests or
//! pauses, and the loop takes them up.
//!
//! The thread reads the topic from its beginning and goes on reading. A fleet can do without these
//! topics; what they are for is impossible then until they are created. All threads share one client
//! of Kafka.

use fleet_job::{control::Control, pause::Pause, record::RawRecord};
use fleet_kafka::{
    KafkaError,
    follow::{
        FollowGuard, FollowedTopic, Follower, Following, Interrupted, Listener, Opener, Unneeded,
    },
};
use fleet_ops::errors;
use fleet_signing::{SignatureFault, SigningKeys};
use tokio::sync::mpsc;

use crate::public_keys::PublicKeys;

/// How many records may wait for the loop. Beyond that, reading pauses.
const QUEUE_CAPACITY: usize = 256;

/// A record of such a topic.
pub(crate) trait FollowedRecord: Send + Sized + 'static {
    /// The name of the thread.
    const THREAD: &str;
    /// What can be done with jobs if there is such a topic, in log lines.
    const VERB: &str;

    /// Reads the value of a record. `None` if this version does not understand it.
    fn read(value: &[u8]) -> Option<Self>;

    /// Reads the value of a record that a server of this fleet has signed.
    fn verify(
        keys: &SigningKeys,
        jobs_topic: &str,
        value: &[u8],
        signature: Option<&str>,
    ) -> Result<Option<Self>, SignatureFault>;
}

impl FollowedRecord for Control {
    const THREAD: &str = "control";
    const VERB: &str = "cancelled";

    fn read(value: &[u8]) -> Option<Self> {
        Self::from_bytes(value)
    }

    fn verify(
        keys: &SigningKeys,
        jobs_topic: &str,
        value: &[u8],
        signature: Option<&str>,
    ) -> Result<Option<Self>, SignatureFault> {
        keys.verify_control(jobs_topic, value, signature)
    }
}

impl FollowedRecord for Pause {
    const THREAD: &str = "pauses";
    const VERB: &str = "paused";

    fn read(value: &[u8]) -> Option<Self> {
        Self::from_bytes(value)
    }

    fn verify(
        keys: &SigningKeys,
        jobs_topic: &str,
        value: &[u8],
        signature: Option<&str>,
    ) -> Result<Option<Self>, SignatureFault> {
        keys.verify_pause(jobs_topic, value, signature)
    }
}

/// What the thread sends.
#[derive(Debug)]
enum News<T> {
    /// Somebody has written this.
    Record(T),
    /// Everything that was in the topic when it was opened has been sent.
    CaughtUp,
    /// There is no such topic.
    NoTopic,
}

/// Receives what the thread reads. The thread ends when this is dropped.
#[derive(Debug)]
pub(crate) struct RecordFeed<T> {
    news: mpsc::Receiver<News<T>>,
    _guard: FollowGuard,
}

impl<T: FollowedRecord> RecordFeed<T> {
    /// Starts to read `topic`. With keys, only records count that were signed with one of them.
    pub(crate) fn start(
        follower: Follower,
        topic: String,
        keys: Option<PublicKeys>,
    ) -> Result<Self, KafkaError> {
        let (sender, news) = mpsc::channel(QUEUE_CAPACITY);
        let reader = RecordReader { topic, keys, news: sender, was_missing: false };
        let guard = Following::default().start(T::THREAD, follower, reader)?;
        Ok(Self { news, _guard: guard })
    }

    /// Hands over everything that was in the topic when it was opened. Returns once that is done, or
    /// if there is no topic.
    pub(crate) async fn catch_up(&mut self, mut take: impl FnMut(T)) {
        while let Some(News::Record(record)) = self.news.recv().await {
            take(record);
        }
    }

    /// The next record. Waits for ever if no more can come.
    pub(crate) async fn next_record(&mut self) -> T {
        loop {
            match self.news.recv().await {
                Some(News::Record(record)) => return record,
                Some(News::CaughtUp | News::NoTopic) => {}
                None => std::future::pending().await,
            }
        }
    }
}

/// Turns the records of a topic into news.
struct RecordReader<T> {
    topic: String,
    /// The keys of those whose records count; `None` if everybody's do.
    keys: Option<PublicKeys>,
    news: mpsc::Sender<News<T>>,
    /// Whether the topic did not exist when it was last looked for.
    was_missing: bool,
}

impl<T: FollowedRecord> Listener for RecordReader<T> {
    type Error = KafkaError;

    fn open(&mut self, opener: &Opener<'_>) -> Result<FollowedTopic, Interrupted<KafkaError>> {
        let opened = opener.open(&self.topic)?;
        if std::mem::take(&mut self.was_missing) {
            tracing::info!(topic = self.topic, "the topic exists now: jobs can be {}", T::VERB);
        }
        Ok(opened)
    }

    fn take(
        &mut self,
        records: Vec<RawRecord>,
        _: &FollowedTopic,
    ) -> Result<(), Interrupted<KafkaError>> {
        if let Some(keys) = &mut self.keys {
            if !keys.wait_until_there(|| !self.news.is_closed()) {
                return Err(Interrupted::Unneeded);
            }
            keys.refresh();
        }

        let unknown = self.keys.as_mut().map(PublicKeys::take_unknown).unwrap_or_default();
        for record in unknown.into_iter().chain(records) {
            let read = match &mut self.keys {
                Some(keys) => keys.read_signed(&record),
                None => record.value.as_deref().and_then(T::read),
            };
            let Some(read) = read else {
                let (topic, offset) = (&record.position.topic, record.position.offset);
                tracing::debug!(
                    topic,
                    offset,
                    "ignored a record that this version does not understand"
                );
                continue;
            };
            self.send_news(News::Record(read)).map_err(|Unneeded| Interrupted::Unneeded)?;
        }
        Ok(())
    }

    fn caught_up(&mut self, _: u64) -> Result<(), Interrupted<KafkaError>> {
        self.send_news(News::CaughtUp).map_err(|Unneeded| Interrupted::Unneeded)
    }

    fn failed(&mut self, error: KafkaError) -> Result<(), Unneeded> {
        let topic = &self.topic;
        if !matches!(error, KafkaError::NoTopic(_)) {
            let error = errors::chain(&error);
            tracing::warn!(error, topic, "could not read the topic; opening it again");
            return Ok(());
        }

        if !std::mem::replace(&mut self.was_missing, true) {
            let verb = T::VERB;
            tracing::info!(topic, "there is no such topic: jobs can't be {verb} until it is made");
        }
        self.send_news(News::NoTopic)
    }
}

impl<T> RecordReader<T> {
    fn send_news(&self, news: News<T>) -> Result<(), Unneeded> {
        self.news.blocking_send(news).map_err(|_| Unneeded)
    }
}
