//! Cancel requests: a thread follows the control topic, and the loop remembers what was requested.
//!
//! The thread reads the topic from its beginning and goes on reading. A fleet can do without the
//! topic; jobs can't be cancelled then until it is created.

use std::time::Duration;

use fleet_job::{
    control::{Cancelled, Control},
    record::RawRecord,
    time::Timestamp,
};
use fleet_kafka::{
    KafkaError,
    follow::{
        FollowGuard, FollowedTopic, Follower, Following, Interrupted, Listener, Opener, Unneeded,
    },
    settings::Settings,
};
use fleet_ops::errors;
use tokio::sync::mpsc;

use crate::public_keys::PublicKeys;

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
pub(crate) struct ControlFeed {
    news: mpsc::Receiver<News>,
    _guard: FollowGuard,
}

impl ControlFeed {
    /// Starts to read `topic`. With keys, only requests count that were signed with one of them.
    pub(crate) fn start(
        settings: Settings,
        topic: String,
        keys: Option<PublicKeys>,
    ) -> Result<Self, KafkaError> {
        let (sender, news) = mpsc::channel(QUEUE_CAPACITY);
        let reader = ControlReader { topic, keys, news: sender, was_missing: false };
        let guard = Following::default().start("control", Follower::new(settings), reader)?;
        Ok(Self { news, _guard: guard })
    }

    /// Takes up everything that was in the topic when it was opened. Returns once that is done, or
    /// if there is no topic.
    pub(crate) async fn catch_up(&mut self, requests: &mut CancelRequests) {
        while let Some(News::Asked(control)) = self.news.recv().await {
            requests.add(fleet_ops::clock::now(), control);
        }
    }

    /// The next request. Waits for ever if no more can come.
    pub(crate) async fn next_request(&mut self) -> Control {
        loop {
            match self.news.recv().await {
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
        let is_news = !self.0.contains(&control);
        self.0.add(control);

        let oldest = now
            .as_millis()
            .saturating_sub(i64::try_from(REMEMBERED_FOR.as_millis()).unwrap_or(i64::MAX));
        self.0.forget_before(Timestamp::from_millis_clamped(oldest));
        is_news
    }

    /// The request for the job with this id whose record was written at `written`, and which belongs
    /// to `owner`, or to nobody.
    pub(crate) fn get(
        &self,
        job_id: &str,
        written: Option<Timestamp>,
        owner: Option<&str>,
    ) -> Option<&Control> {
        self.0.get(job_id, written, owner)
    }
}

/// Turns the records of the control topic into news.
struct ControlReader {
    topic: String,
    /// The keys of those whose requests count; `None` if everybody's do.
    keys: Option<PublicKeys>,
    news: mpsc::Sender<News>,
    /// Whether the topic did not exist when it was last looked for.
    was_missing: bool,
}

impl Listener for ControlReader {
    type Error = KafkaError;

    fn open(&mut self, opener: &Opener<'_>) -> Result<FollowedTopic, Interrupted<KafkaError>> {
        let opened = opener.open(&self.topic)?;
        if std::mem::take(&mut self.was_missing) {
            tracing::info!(
                topic = self.topic,
                "the control topic exists now: jobs can be cancelled"
            );
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
            let control = match &mut self.keys {
                Some(keys) => keys.read_control(&record),
                None => record.value.as_deref().and_then(Control::from_bytes),
            };
            let Some(control) = control else {
                let offset = record.position.offset;
                tracing::debug!(
                    offset,
                    "ignored a control record that this version does not understand"
                );
                continue;
            };
            self.send_news(News::Asked(control)).map_err(|Unneeded| Interrupted::Unneeded)?;
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
            tracing::warn!(error, topic, "could not read the control topic; opening it again");
            return Ok(());
        }

        if !std::mem::replace(&mut self.was_missing, true) {
            tracing::info!(
                topic,
                "there is no such topic: jobs can't be cancelled until it is made"
            );
        }
        self.send_news(News::NoTopic)
    }
}

impl ControlReader {
    fn send_news(&self, news: News) -> Result<(), Unneeded> {
        self.news.blocking_send(news).map_err(|_| Unneeded)
    }
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
            requests.get("j", Some(at(2_500)), None).is_some()
                && requests.get("j", Some(at(2_501)), None).is_none()
        );

        requests.add(at(2_501 + month), Control::cancel("k", None, at(2_501 + month), None));
        assert!(requests.get("j", None, None).is_none() && requests.get("k", None, None).is_some());
    }
}
