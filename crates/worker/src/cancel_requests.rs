//! Cancel requests: a thread follows the control topic, and the loop remembers what was requested.
//!
//! The thread reads the topic from its beginning and goes on reading. A fleet can do without the
//! topic; jobs can't be cancelled then until it is created.

use std::{
    io, thread,
    time::{Duration, Instant},
};

use fleet_job::{
    control::{Cancelled, Control},
    time::Timestamp,
};
use fleet_kafka::{
    KafkaError,
    follow::{FollowedTopic, Follower, Mailbox},
    reader::From,
    settings::Settings,
};
use fleet_ops::errors;
use fleet_retry::{Backoff, Retry};
use tokio::sync::mpsc;

/// How long a broker may take to answer.
const ASK_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the thread waits for a record before it checks whether anybody still listens.
const RECORD_TIMEOUT: Duration = Duration::from_secs(5);
/// The waits between attempts to read the topic.
const REOPEN_BACKOFF: Backoff =
    Backoff { base: Duration::from_millis(500), max: Duration::from_secs(30) };
/// How many requests may wait for the loop. Beyond that, reading pauses.
const QUEUE_CAPACITY: usize = 256;
/// How many requests are remembered. Beyond that, the oldest are forgotten.
const MAX_REMEMBERED: usize = 100_000;
/// How long a request is remembered: as long as a job can wait in the delayed topic, and as the
/// control topic keeps its records.
const REMEMBERED_FOR: Duration = Duration::from_secs(30 * 24 * 3600);

/// What the thread sends.
#[derive(Debug)]
enum News {
    /// Somebody has requested this.
    Asked(Control),
    /// Everything that was in the topic when it was opened has been sent.
    CaughtUp,
    /// There is no such topic.
    NoTopic,
}

/// Receives what the thread reads. The thread ends when this is dropped.
#[derive(Debug)]
pub(crate) struct ControlFeed(mpsc::Receiver<News>);

impl ControlFeed {
    /// Starts to read `topic`.
    pub(crate) fn start(settings: Settings, topic: String) -> io::Result<Self> {
        let (news, receiver) = mpsc::channel(QUEUE_CAPACITY);
        let reader = ControlReader { follower: Follower::new(settings), topic, news };
        thread::Builder::new().name("control".to_owned()).spawn(move || reader.read_topic())?;
        Ok(Self(receiver))
    }

    /// Takes up everything that was in the topic when it was opened. Returns once that is done, or
    /// if there is no topic.
    pub(crate) async fn catch_up(&mut self, requests: &mut CancelRequests) {
        while let Some(News::Asked(control)) = self.0.recv().await {
            requests.add(fleet_ops::clock::now(), control);
        }
    }

    /// The next request. Waits for ever if no more can come.
    pub(crate) async fn next_request(&mut self) -> Control {
        loop {
            match self.0.recv().await {
                Some(News::Asked(control)) => return control,
                Some(News::CaughtUp | News::NoTopic) => {}
                None => std::future::pending().await,
            }
        }
    }
}

/// The cancel requests that this worker remembers.
#[derive(Debug)]
pub(crate) struct CancelRequests(Cancelled);

impl CancelRequests {
    pub(crate) fn new() -> Self {
        Self(Cancelled::new(MAX_REMEMBERED))
    }

    /// Takes up a request. Returns `false` if it was known: a topic that is opened again is read
    /// from its beginning.
    pub(crate) fn add(&mut self, now: Timestamp, control: Control) -> bool {
        let is_news = self.0.get(&control.job_id, None) != Some(&control);
        self.0.add(control);

        let oldest = now
            .as_millis()
            .saturating_sub(i64::try_from(REMEMBERED_FOR.as_millis()).unwrap_or(i64::MAX));
        self.0.forget_before(Timestamp::from_millis_clamped(oldest));
        is_news
    }

    /// The request for the job with this id whose record was written at `written`.
    pub(crate) fn get(&self, job_id: &str, written: Option<Timestamp>) -> Option<&Control> {
        self.0.get(job_id, written)
    }
}

/// The thread that reads the control topic.
struct ControlReader {
    follower: Follower,
    topic: String,
    news: mpsc::Sender<News>,
}

/// The [`ControlFeed`] was dropped.
struct NobodyListens;

impl ControlReader {
    /// Reads until nobody listens.
    fn read_topic(&self) {
        let mut retry = Retry::new(REOPEN_BACKOFF, rand::random());
        let mut was_missing = false;
        let mailbox = Mailbox::default();

        while !self.news.is_closed() {
            match self.follower.open(&self.topic, From::Start, ASK_TIMEOUT, &mailbox) {
                Ok(topic) => {
                    if std::mem::take(&mut was_missing) {
                        tracing::info!(
                            topic = self.topic,
                            "the control topic exists now: jobs can be cancelled"
                        );
                    }
                    retry.succeeded();
                    match self.follow_topic(topic) {
                        FollowEnd::NobodyListens => return,
                        FollowEnd::Failed(error) => {
                            let error = errors::chain(&error);
                            tracing::warn!(error, "lost the control topic; opening it again");
                        }
                    }
                }
                Err(KafkaError::NoTopic(_)) => {
                    if !std::mem::replace(&mut was_missing, true) {
                        tracing::info!(
                            topic = self.topic,
                            "there is no such topic: jobs can't be cancelled until it is made"
                        );
                    }
                    if self.send_news(News::NoTopic).is_err() {
                        return;
                    }
                }
                Err(error) => {
                    let error = errors::chain(&error);
                    tracing::warn!(error, topic = self.topic, "could not open the control topic");
                }
            }

            self.pause_reading(retry.failed());
        }
    }

    /// Sends everything in the topic, until that fails or nobody listens.
    fn follow_topic(&self, mut topic: FollowedTopic) -> FollowEnd {
        let mut has_caught_up = false;
        while !self.news.is_closed() {
            if topic.at_end()
                && !std::mem::replace(&mut has_caught_up, true)
                && self.send_news(News::CaughtUp).is_err()
            {
                return FollowEnd::NobodyListens;
            }

            match topic.next(RECORD_TIMEOUT) {
                Ok(Some(record)) => {
                    let Some(control) = record.value.as_deref().and_then(Control::from_bytes)
                    else {
                        let offset = record.position.offset;
                        tracing::debug!(
                            offset,
                            "ignored a control record that this version does not understand"
                        );
                        continue;
                    };
                    if self.send_news(News::Asked(control)).is_err() {
                        return FollowEnd::NobodyListens;
                    }
                }
                Ok(None) => {}
                Err(error) => return FollowEnd::Failed(error),
            }
        }
        FollowEnd::NobodyListens
    }

    fn send_news(&self, news: News) -> Result<(), NobodyListens> {
        self.news.blocking_send(news).map_err(|_| NobodyListens)
    }

    fn pause_reading(&self, length: Duration) {
        let end = Instant::now() + length;
        while Instant::now() < end && !self.news.is_closed() {
            thread::sleep(RECORD_TIMEOUT.min(length));
        }
    }
}

/// Why following the topic has ended.
enum FollowEnd {
    NobodyListens,
    Failed(KafkaError),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_read_anew_is_no_news_and_the_old_is_forgotten() {
        let at = Timestamp::from_millis_clamped;
        let month = i64::try_from(REMEMBERED_FOR.as_millis()).unwrap();
        let mut requests = CancelRequests::new();

        let control = Control::cancel("j", None, at(1_000), None);
        assert!(requests.add(at(2_000), control.clone()));
        assert!(!requests.add(at(2_000), control));

        assert!(requests.add(at(3_000), Control::cancel("j", None, at(2_500), None)));
        assert!(
            requests.get("j", Some(at(2_500))).is_some()
                && requests.get("j", Some(at(2_501))).is_none()
        );

        requests.add(at(2_501 + month), Control::cancel("k", None, at(2_501 + month), None));
        assert!(requests.get("j", None).is_none() && requests.get("k", None).is_some());
    }
}
