//! Reading the log: events into the ledger, wishes to cancel and claims into memory. A thread
//! follows each topic, because librdkafka's polling blocks.

use std::{
    sync::{Arc, Weak},
    time::Duration,
};

use fleet_job::{
    control::Control,
    event::JobEvent,
    record::RawRecord,
    state::{Restated, Verdict},
};
use fleet_kafka::{
    KafkaError, admin,
    follow::{FollowGuard, FollowedTopic, Following, Interrupted, Listener, Opener, Unneeded},
};
use fleet_ledger::{Batch, LoggedEvent, Update};
use fleet_ops::errors::chain;
use tokio::runtime::Handle;

use super::{Inner, JobsError, LogState};

/// How long the broker may take to say whether there are jobs.
const BROKER_TIMEOUT: Duration = Duration::from_secs(10);

/// Starts the threads, which end with their guards. Questions reach the one that follows the events
/// by [`Inner::events`].
pub(super) fn start_threads(jobs: &Arc<Inner>) -> Result<[FollowGuard; 3], KafkaError> {
    let follower = || jobs.link.follower.clone();
    let service = Service { jobs: Arc::downgrade(jobs), runtime: Handle::current() };
    Ok([
        jobs.events.start("events", follower(), EventsLog(service.clone()))?,
        Following::default().start("control", follower(), ControlLog(service.clone()))?,
        Following::default().start("claims", follower(), ClaimsLog(service))?,
    ])
}

/// Why the log is not read on.
type Stopped = Interrupted<JobsError>;

/// What can fail with another error than ours.
trait OrStopped<T> {
    /// The same, as the listeners report it.
    fn or_stopped(self) -> Result<T, Stopped>;
}

impl<T, E: Into<JobsError>> OrStopped<T> for Result<T, E> {
    fn or_stopped(self) -> Result<T, Stopped> {
        self.map_err(|error| Interrupted::Failed(error.into()))
    }
}

/// The service of jobs, which the threads don't keep alive: nothing holds it while there is nothing
/// to read.
#[derive(Clone)]
struct Service {
    jobs: Weak<Inner>,
    runtime: Handle,
}

impl Service {
    /// The service, if it is still needed.
    fn jobs(&self) -> Result<Arc<Inner>, Stopped> {
        self.jobs.upgrade().filter(|jobs| !jobs.stop.is_cancelled()).ok_or(Interrupted::Unneeded)
    }

    fn is_needed(&self) -> bool {
        self.jobs().is_ok()
    }
}

/// Logs why the log can't be read. A server beside a Kafka without jobs should not hear of it again
/// and again.
fn log_failure(error: &JobsError) {
    match error {
        JobsError::Kafka(KafkaError::NoTopic(topic)) => tracing::debug!(topic, "does not exist"),
        error => tracing::warn!(error = error.cause(), "the log of jobs can't be read"),
    }
}

/// Takes events into the ledger.
struct EventsLog(Service);

impl Listener for EventsLog {
    type Error = JobsError;

    fn open(&mut self, opener: &Opener<'_>) -> Result<FollowedTopic, Stopped> {
        let jobs = self.0.jobs()?;
        let positions = self.0.runtime.block_on(jobs.store.positions()).or_stopped()?;

        let opened = match opener.open_at(&jobs.topics.events, &positions) {
            Err(KafkaError::LogReset(topic)) => {
                tracing::warn!(topic, "was made again: the ledger is made again too");
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

        // Nobody else has to know the rule: what is not the state of its job is not told.
        let told =
            updates.into_iter().zip(verdicts).filter(|(_, verdict)| *verdict == Verdict::State);
        jobs.hub.publish(told.map(|(update, _)| update).collect());
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

/// Takes wishes to cancel into memory.
struct ControlLog(Service);

impl Listener for ControlLog {
    type Error = JobsError;

    fn open(&mut self, opener: &Opener<'_>) -> Result<FollowedTopic, Stopped> {
        opener.open(&self.0.jobs()?.topics.control).or_stopped()
    }

    fn take(&mut self, records: Vec<RawRecord>, _: &FollowedTopic) -> Result<(), Stopped> {
        let jobs = self.0.jobs()?;
        let read = |record: RawRecord| record.value.as_deref().and_then(Control::from_bytes);
        for control in records.into_iter().filter_map(read) {
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

/// Takes claims into memory.
struct ClaimsLog(Service);

impl Listener for ClaimsLog {
    type Error = JobsError;

    /// The topic of claims is the servers' own, so it is made where there are jobs and it is
    /// missing.
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

/// What a record of the events topic says. Anybody who may write there may have written it.
fn read_event_record(record: RawRecord) -> Option<Update> {
    let (partition, offset) = (record.position.partition, record.position.offset);
    let restated = Restated::of(&record);
    let Some(job_id) = record.key.and_then(|key| String::from_utf8(key).ok()) else {
        tracing::warn!(partition, offset, "an event without a readable key is passed over");
        return None;
    };
    let read = record.value.as_deref().map(serde_json::from_slice::<JobEvent>);
    let event = match read {
        None => None,
        Some(Ok(event)) if event.job_id == job_id => {
            Some(LoggedEvent { event, restated, value: record.value.unwrap_or_default() })
        }
        Some(Ok(_)) => {
            tracing::warn!(
                partition,
                offset,
                "an event of another job than its key says is passed over"
            );
            return None;
        }
        Some(Err(error)) => {
            tracing::warn!(
                partition,
                offset,
                error = chain(&error),
                "an event that can't be read is passed over"
            );
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
    fn what_anybody_may_have_written_is_read_with_care() {
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
