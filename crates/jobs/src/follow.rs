//! Reads topics: events into the ledger, cancel requests and claims into memory. Each topic is
//! followed by a thread of its own, because librdkafka's polling blocks.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use fleet_job::{
    event::JobEvent,
    record::RawRecord,
    state::{Restated, Verdict},
};
use fleet_kafka::{
    KafkaError, admin,
    follow::{FollowGuard, FollowedTopic, Following, Interrupted, Listener, Opener, Unneeded},
};
use fleet_ledger::{Batch, LogId, LoggedEvent, Update, store::Positions};
use fleet_ops::errors::chain;
use tokio::runtime::Handle;

use super::{Inner, JobsError, LogState};

/// How long the broker may take to tell whether the events topic exists.
const BROKER_TIMEOUT: Duration = Duration::from_secs(10);

/// Starts the threads, which end when their guards are dropped. The one that follows the events
/// topic takes requests through [`Inner::events`].
pub(super) fn start_threads(jobs: &Arc<Inner>) -> Result<[FollowGuard; 3], KafkaError> {
    let follower = || jobs.link.follower.clone();
    let service = Service { jobs: Arc::downgrade(jobs), runtime: Handle::current() };
    Ok([
        jobs.events.start("events", follower(), EventsLog(service.clone()))?,
        Following::default().start("control", follower(), ControlLog(service.clone()))?,
        Following::default().start("claims", follower(), ClaimsLog(service))?,
    ])
}

/// Why a thread stops reading its topic.
type Stopped = Interrupted<JobsError>;

/// Converts errors of other crates into those that listeners report.
trait OrStopped<T> {
    fn or_stopped(self) -> Result<T, Stopped>;
}

impl<T, E: Into<JobsError>> OrStopped<T> for Result<T, E> {
    fn or_stopped(self) -> Result<T, Stopped> {
        self.map_err(|error| Interrupted::Failed(error.into()))
    }
}

/// A weak reference to the job service, so that the threads don't keep it alive.
#[derive(Clone)]
struct Service {
    jobs: Weak<Inner>,
    runtime: Handle,
}

impl Service {
    /// Returns the service if it is still needed.
    fn jobs(&self) -> Result<Arc<Inner>, Stopped> {
        self.jobs.upgrade().filter(|jobs| !jobs.stop.is_cancelled()).ok_or(Interrupted::Unneeded)
    }

    fn is_needed(&self) -> bool {
        self.jobs().is_ok()
    }
}

/// Logs why a topic can't be read. A missing topic is not worth a warning each time, since the
/// cluster may have no jobs.
fn log_failure(error: &JobsError) {
    match error {
        JobsError::Kafka(KafkaError::NoTopic(topic)) => {
            tracing::debug!(topic, "the topic does not exist");
        }
        JobsError::LedgerAway(_) => {
            tracing::warn!(
                error = error.cause(),
                "could not use the ledger's database; questions about jobs are answered with 503, and \
                 reading the events topic goes on when it is back"
            );
        }
        error => {
            tracing::warn!(error = error.cause(), "could not read a topic of jobs; trying again")
        }
    }
}

/// Applies events to the ledger, and publishes them to the hub.
struct EventsLog(Service);

impl EventsLog {
    /// Returns where to begin reading. A ledger that servers share has to know the log first.
    fn find_start(&self, jobs: &Inner, opener: &Opener<'_>) -> Result<Positions, Stopped> {
        if !jobs.store.is_shared() {
            return self.0.runtime.block_on(jobs.store.positions()).or_stopped();
        }

        let topic = &jobs.topics.events;
        let identity =
            admin::log_identity(opener.settings(), topic, BROKER_TIMEOUT).or_stopped()?;
        let owned = |id: Option<Arc<str>>| id.map(|id| id.as_ref().to_owned());
        let log = LogId {
            topic: topic.clone(),
            cluster_id: owned(identity.cluster),
            topic_id: owned(identity.topic),
        };
        self.0.runtime.block_on(jobs.store.resume(&log)).or_stopped()
    }
}

impl Listener for EventsLog {
    type Error = JobsError;

    fn open(&mut self, opener: &Opener<'_>) -> Result<FollowedTopic, Stopped> {
        let jobs = self.0.jobs()?;
        let positions = self.find_start(&jobs, opener)?;

        let opened = match opener.open_at(&jobs.topics.events, &positions) {
            Err(KafkaError::LogReset(topic)) => {
                tracing::warn!(topic, "the topic was created again; emptying the ledger");
                self.0.runtime.block_on(jobs.store.reset()).or_stopped()?;
                opener.open(&topic)
            }
            other => other,
        };
        let topic = opened.or_stopped()?;
        jobs.hub.restart_at(topic.positions());
        Ok(topic)
    }

    fn take(&mut self, records: Vec<RawRecord>, topic: &FollowedTopic) -> Result<(), Stopped> {
        let jobs = self.0.jobs()?;
        let updates: Vec<Update> = records.into_iter().filter_map(read_event_record).collect();
        let batch = Batch { updates: updates.clone(), positions: topic.positions() };
        let verdicts = self.0.runtime.block_on(jobs.store.apply(batch)).or_stopped()?;
        if verdicts.contains(&Verdict::Stale) {
            jobs.overtaken.notify_one();
        }

        // Publish only events that are the state of their job, so that readers need not know the
        // rule.
        let states =
            updates.into_iter().zip(verdicts).filter(|(_, verdict)| *verdict == Verdict::State);
        jobs.hub.publish(states.map(|(update, _)| update).collect());
        Ok(())
    }

    fn caught_up(&mut self, number: u64) -> Result<(), Stopped> {
        self.0.jobs()?.log_state.send_replace(LogState::CaughtUp(number));
        Ok(())
    }

    fn failed(&mut self, error: JobsError) -> Result<(), Unneeded> {
        log_failure(&error);
        if let Some(jobs) = self.0.jobs.upgrade() {
            jobs.log_state.send_if_modified(|state| state.note_failure(&error));
        }
        Ok(())
    }

    fn is_needed(&self) -> bool {
        self.0.is_needed()
    }
}

/// Keeps cancel requests in memory, and wakes those who wait for the jobs.
struct ControlLog(Service);

impl Listener for ControlLog {
    type Error = JobsError;

    fn open(&mut self, opener: &Opener<'_>) -> Result<FollowedTopic, Stopped> {
        opener.open(&self.0.jobs()?.topics.control).or_stopped()
    }

    fn take(&mut self, records: Vec<RawRecord>, _: &FollowedTopic) -> Result<(), Stopped> {
        let jobs = self.0.jobs()?;
        for control in records.iter().filter_map(|record| jobs.read_control(record)) {
            let job_id = control.job_id.clone();
            jobs.cancelled().add(control);
            jobs.hub.wake_waiters(&job_id);
        }
        Ok(())
    }

    fn failed(&mut self, error: JobsError) -> Result<(), Unneeded> {
        log_failure(&error);
        Ok(())
    }

    fn is_needed(&self) -> bool {
        self.0.is_needed()
    }
}

/// Keeps claims in memory.
struct ClaimsLog(Service);

impl Listener for ClaimsLog {
    type Error = JobsError;

    /// Opens the claims topic. Only servers use it, so they create it if it is missing and the
    /// events topic exists.
    fn open(&mut self, opener: &Opener<'_>) -> Result<FollowedTopic, Stopped> {
        let jobs = self.0.jobs()?;
        let topics = &jobs.topics;
        match opener.open(&topics.claims) {
            Err(KafkaError::NoTopic(_)) => {}
            other => return other.or_stopped(),
        }

        admin::partitions(opener.settings(), &topics.events, BROKER_TIMEOUT).or_stopped()?;
        let topic = [admin::claims_topic(topics, -1)];
        let created = admin::create_topics(opener.settings(), &topic);
        self.0.runtime.block_on(created).or_stopped()?;
        opener.open(&topics.claims).or_stopped()
    }

    fn take(&mut self, records: Vec<RawRecord>, _: &FollowedTopic) -> Result<(), Stopped> {
        let jobs = self.0.jobs()?;
        records.into_iter().for_each(|record| jobs.claims().take_record(record));
        Ok(())
    }

    fn failed(&mut self, error: JobsError) -> Result<(), Unneeded> {
        log_failure(&error);
        Ok(())
    }

    fn is_needed(&self) -> bool {
        self.0.is_needed()
    }
}

/// Reads a record of the events topic. Anybody may write to the topic, so an invalid record is
/// ignored.
fn read_event_record(record: RawRecord) -> Option<Update> {
    let (partition, offset) = (record.position.partition, record.position.offset);
    let restated = Restated::of(&record);
    let Some(job_id) = record.key.and_then(|key| String::from_utf8(key).ok()) else {
        tracing::warn!(partition, offset, "ignoring an event without a readable key");
        return None;
    };

    let read = record.value.as_deref().map(serde_json::from_slice::<JobEvent>);
    let event = match read {
        None => None,
        Some(Ok(event)) if event.job_id == job_id => {
            Some(LoggedEvent { event, restated, value: record.value.unwrap_or_default() })
        }
        Some(Ok(_)) => {
            tracing::warn!(partition, offset, "ignoring an event whose key names another job");
            return None;
        }
        Some(Err(error)) => {
            let error = chain(&error);
            tracing::warn!(partition, offset, error, "ignoring an unreadable event");
            return None;
        }
    };

    Some(Update { partition, offset, job_id, event })
}

#[cfg(test)]
mod tests {
    use fleet_job::record::Position;

    use super::*;

    #[test]
    fn invalid_records_are_ignored() {
        let check = |key: Option<&[u8]>, value: Option<&[u8]>| {
            let position = Position { topic: "t".to_owned(), partition: 3, offset: 9 };
            let (key, value) = (key.map(<[u8]>::to_vec), value.map(<[u8]>::to_vec));
            read_event_record(RawRecord {
                position,
                timestamp: None,
                key,
                value,
                headers: Vec::new(),
            })
        };
        let good = br#"{"jobID":"a","state":"running","time":"2026-11-21T08:00:00Z"}"#;
        assert_eq!(check(None, Some(good)), None);
        assert_eq!(check(Some(b"\xff"), Some(good)), None);
        assert_eq!(check(Some(b"b"), Some(good)), None);
        assert_eq!(check(Some(b"a"), Some(b"{}")), None);
        assert!(check(Some(b"a"), None).is_some_and(|update| update.event.is_none()));
        let read = check(Some(b"a"), Some(good)).unwrap();
        assert_eq!((read.partition, read.offset, read.job_id.as_str()), (3, 9, "a"));
    }
}
