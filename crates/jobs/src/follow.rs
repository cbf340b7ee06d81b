//! Reading the log: events into the ledger, wishes to cancel and claims into memory. Each on a
//! thread of its own, because librdkafka's polling blocks.

use std::{
    sync::{Arc, Weak, atomic::Ordering},
    thread,
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
    follow::{FollowedTopic, Mailbox},
    reader::From,
};
use fleet_ledger::{Batch, LoggedEvent, Update};
use fleet_ops::errors::chain;
use fleet_retry::{Backoff, Retry};
use tokio::runtime::Handle;

use super::{Inner, JobsError, Standing};

/// How long one question to a broker may take.
const ASK: Duration = Duration::from_secs(10);
/// How long to wait for a record before looking whether anybody still needs it.
const LOOK: Duration = Duration::from_secs(5);
/// How many records are taken up at once.
const BATCH: usize = 1_000;
/// The waits between attempts to read a topic.
const READING: Backoff = Backoff { base: Duration::from_millis(250), max: Duration::from_secs(5) };

/// Starts the threads. They end when the jobs are dropped.
pub(super) fn start(jobs: &Arc<Inner>) {
    let runtime = Handle::current();
    for what in [What::Events, What::Control, What::Claims] {
        let mailbox = match what {
            What::Events => jobs.events.clone(),
            What::Control | What::Claims => Mailbox::default(),
        };
        let log = Log { jobs: Arc::downgrade(jobs), runtime: runtime.clone(), mailbox, what };
        thread::spawn(move || log.read());
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum What {
    Events,
    Control,
    Claims,
}

struct Log {
    jobs: Weak<Inner>,
    runtime: Handle,
    mailbox: Mailbox,
    what: What,
}

/// Why reading has stopped.
enum Stopped {
    /// Nobody needs it any more.
    Unneeded,
    /// It has failed, and is begun anew.
    Failed(JobsError),
}

impl<E: Into<JobsError>> std::convert::From<E> for Stopped {
    fn from(error: E) -> Self {
        Self::Failed(error.into())
    }
}

impl Log {
    fn read(&self) {
        let mut retry = Retry::new(READING, rand::random());
        loop {
            let error = match self.open() {
                Ok(topic) => {
                    retry.succeeded();
                    match self.what {
                        What::Events => self.follow_events(topic),
                        What::Control => self.follow_control(topic),
                        What::Claims => self.follow_claims(topic),
                    }
                }
                Err(stopped) => stopped,
            };
            let Some(jobs) = self.jobs.upgrade() else { return };
            let error = match error {
                Stopped::Unneeded => return,
                Stopped::Failed(error) => error,
            };
            // Whoever runs a server beside a Kafka without jobs need not hear of it again and
            // again.
            match &error {
                JobsError::Kafka(KafkaError::NoTopic(topic)) => {
                    tracing::debug!(topic, "does not exist")
                }
                error => tracing::warn!(error = error.cause(), "the log of jobs can't be read"),
            }
            if self.what == What::Events {
                jobs.standing.send_if_modified(|standing| standing.fail(&error));
            }
            drop(jobs);
            thread::sleep(retry.failed());
        }
    }

    fn jobs(&self) -> Result<Arc<Inner>, Stopped> {
        self.jobs.upgrade().filter(|jobs| !jobs.stop.is_cancelled()).ok_or(Stopped::Unneeded)
    }

    fn open(&self) -> Result<FollowedTopic, Stopped> {
        let jobs = self.jobs()?;
        let follower = &jobs.link.follower;
        match self.what {
            What::Events => {}
            What::Control => {
                return Ok(follower.open(&jobs.topics.control, From::Start, ASK, &self.mailbox)?);
            }
            What::Claims => return self.open_claims(&jobs),
        }
        let positions = self.runtime.block_on(jobs.store.positions())?;
        let topic = match follower.open_at(&jobs.topics.events, &positions, ASK, &self.mailbox) {
            Err(KafkaError::LogReset(topic)) => {
                tracing::warn!(topic, "was made again: the ledger is made again too");
                self.runtime.block_on(jobs.store.reset())?;
                follower.open(&topic, From::Start, ASK, &self.mailbox)?
            }
            other => other?,
        };
        jobs.hub.begin(topic.positions());
        Ok(topic)
    }

    /// The topic of claims is the servers' own, so it is made where there are jobs and it is
    /// missing.
    fn open_claims(&self, jobs: &Inner) -> Result<FollowedTopic, Stopped> {
        let (follower, settings) = (&jobs.link.follower, jobs.link.follower.settings());
        let open = || follower.open(&jobs.topics.claims, From::Start, ASK, &self.mailbox);
        match open() {
            Err(KafkaError::NoTopic(_)) => {
                admin::partitions(settings, &jobs.topics.events, ASK)?;
                let topic = admin::claims_topic(&jobs.topics, -1);
                self.runtime.block_on(admin::create_topics(settings, &[topic]))?;
                Ok(open()?)
            }
            other => Ok(other?),
        }
    }

    fn follow_claims(&self, mut topic: FollowedTopic) -> Stopped {
        loop {
            let step = next_records(&mut topic).map_err(Stopped::from).and_then(|records| {
                let jobs = self.jobs()?;
                records.into_iter().for_each(|record| jobs.claims().hear(record));
                Ok(())
            });
            if let Err(stopped) = step {
                return stopped;
            }
        }
    }

    /// Takes up events until that fails.
    fn follow_events(&self, mut topic: FollowedTopic) -> Stopped {
        let (mut asked, mut told) = (0, None);
        loop {
            let step = self.jobs().and_then(|jobs| {
                let wanted = jobs.asked.load(Ordering::Acquire);
                if told.is_some() && wanted > asked {
                    topic.look_for_end(ASK)?;
                    asked = wanted;
                }
                if topic.at_end() && told != Some(asked) {
                    told = Some(asked);
                    jobs.standing.send_replace(Standing::CaughtUp(asked));
                }
                Ok(())
            });
            // The jobs are not held while there is nothing to read, so that they can be dropped.
            let step = step.and_then(|()| {
                let records = next_records(&mut topic)?;
                if records.is_empty() {
                    return Ok(());
                }
                let jobs = self.jobs()?;
                self.take_up(&jobs, records, &topic)
            });
            if let Err(stopped) = step {
                return stopped;
            }
        }
    }

    fn take_up(
        &self,
        jobs: &Inner,
        records: Vec<RawRecord>,
        topic: &FollowedTopic,
    ) -> Result<(), Stopped> {
        let updates: Vec<Update> = records.into_iter().filter_map(update).collect();
        let batch = Batch { updates: updates.clone(), positions: topic.positions() };
        let verdicts = self.runtime.block_on(jobs.store.apply(batch))?;
        if verdicts.contains(&Verdict::Stale) {
            jobs.overtaken.notify_one();
        }

        // Nobody else has to know the rule: what is not the state of its job is not told.
        let told =
            updates.into_iter().zip(verdicts).filter(|(_, verdict)| *verdict == Verdict::State);
        jobs.hub.tell(told.map(|(update, _)| update).collect());
        Ok(())
    }

    fn follow_control(&self, mut topic: FollowedTopic) -> Stopped {
        loop {
            let step = next_records(&mut topic).map_err(Stopped::from).and_then(|records| {
                let jobs = self.jobs()?;
                for record in records {
                    if let Some(control) = record.value.as_deref().and_then(Control::from_bytes) {
                        let job_id = control.job_id.clone();
                        jobs.cancelled().add(control);
                        jobs.hub.nudge(&job_id);
                    }
                }
                Ok(())
            });
            if let Err(stopped) = step {
                return stopped;
            }
        }
    }
}

/// What there is to read, after a wait for the first of it. Nothing also where the mailbox was
/// woken.
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

/// What a record of the events topic says. Anybody who may write there may have written it.
fn update(record: RawRecord) -> Option<Update> {
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
            update(RawRecord { position, timestamp: None, key, value, headers: Vec::new() })
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
