//! The history of a job: its events, as far as compaction has left them in the events topic.

use std::time::Duration;

use fleet_job::{
    event::JobEvent,
    record::RawRecord,
    size::json_bytes,
    time::Timestamp,
    view::{JobHistory, JobView},
};
use fleet_kafka::reader;
use fleet_ledger::Known;
use fleet_ops::blocking::run_blocking;

use super::{Caller, Jobs, JobsError};

/// The longest time that reading may take.
const READ_LIMIT: Duration = Duration::from_secs(5);
/// The most bytes of the topic that are read.
const MAX_READ_BYTES: usize = 64 << 20;
/// How much earlier than its job an event may be written, by the clocks of other machines.
const CLOCK_MARGIN: Duration = Duration::from_secs(60);
/// The most events of a history.
const MAX_EVENTS: usize = 1_000;
/// The most bytes of JSON that the events of a history take, without the last one.
const MAX_BYTES: u64 = 512 << 10;

impl Jobs {
    /// Returns the events of a job that `caller` may see, oldest first and without results. The
    /// last one is the job's state.
    ///
    /// # Errors
    ///
    /// As [`Jobs::get`]; also returns an error if the events topic can't be read.
    pub async fn history(&self, job_id: &str, caller: &Caller) -> Result<JobHistory, JobsError> {
        let known = match self.find_known(job_id, caller).await {
            Err(JobsError::NotFound(_)) => self.find_in_backlog(job_id, caller).await?,
            known => known?,
        };

        // A job that was found in the backlog has no events.
        let earlier = match known.partition {
            0.. => self.read_events_before(&known, caller).await?,
            _ => Earlier::default(),
        };
        let mut events = earlier.events;
        let state = self.view(known).without_result();
        // A worker may have written the same event before.
        events.pop_if(|last| last.event == state.event);
        events.push(state);
        Ok(JobHistory { events, complete: !earlier.is_cut })
    }

    /// Reads the events of a job that precede its state.
    async fn read_events_before(
        &self,
        known: &Known,
        caller: &Caller,
    ) -> Result<Earlier, JobsError> {
        let permit = self.inner.searches.clone().acquire_owned().await;
        let (settings, topic) =
            (self.inner.link.follower.settings().clone(), self.inner.topics.events.clone());
        let (partition, end) = (known.partition, known.offset);
        let (job_id, caller) = (known.event.job_id.clone(), caller.clone());
        let margin = i64::try_from(CLOCK_MARGIN.as_millis()).unwrap_or_default();
        let since = known.submitted_at().as_millis().saturating_sub(margin);
        let since = Timestamp::from_millis_clamped(since);

        let read = move || {
            let _permit = permit;
            let mut earlier = Earlier::default();
            let is_done = reader::search_partition(
                &settings,
                &topic,
                partition,
                since,
                READ_LIMIT,
                MAX_READ_BYTES,
                |record| {
                    if record.position.offset >= end {
                        return true;
                    }
                    let event = event_of(record, &job_id).filter(|event| caller.may_see(event));
                    event.is_some_and(|event| !earlier.add(event))
                },
            )?;
            earlier.is_cut |= !is_done;
            Ok::<_, JobsError>(earlier)
        };
        run_blocking(read).await
    }
}

/// Reads an event of this job.
fn event_of(record: &RawRecord, job_id: &str) -> Option<JobEvent> {
    if record.key.as_deref() != Some(job_id.as_bytes()) {
        return None;
    }
    let event: JobEvent = serde_json::from_slice(record.value.as_deref()?).ok()?;
    (event.job_id == job_id).then_some(event)
}

/// Events that precede a job's state.
#[derive(Debug, Default)]
struct Earlier {
    events: Vec<JobView>,
    bytes: u64,
    /// Whether there may be more events than were read.
    is_cut: bool,
}

impl Earlier {
    /// Adds an event unless it repeats the one before. Returns whether there is room for more.
    fn add(&mut self, event: JobEvent) -> bool {
        let mut event = JobEvent { owner: None, ..event };
        event.hide_signatures();
        let view = JobView { event, cancel_requested_at: None }.without_result();
        if self.events.last() == Some(&view) {
            return true;
        }

        self.bytes += json_bytes(&view);
        self.events.push(view);
        self.is_cut = self.events.len() >= MAX_EVENTS || self.bytes > MAX_BYTES;
        !self.is_cut
    }
}

#[cfg(test)]
mod tests {
    use fleet_job::{event::JobState, record::Position};

    use super::*;

    fn event(attempts: u32) -> JobEvent {
        let time = Timestamp::from_millis_clamped(i64::from(attempts));
        JobEvent { attempts, ..JobEvent::new("j", JobState::Running, time) }
    }

    #[test]
    fn a_repeated_event_is_shown_once_and_a_long_history_is_cut() {
        let mut earlier = Earlier::default();
        assert!(earlier.add(event(1)) && earlier.add(event(1)));
        assert_eq!(earlier.events.len(), 1);

        let more = (2..).take_while(|n| earlier.add(event(*n))).count();
        assert_eq!((more + 2, earlier.events.len()), (MAX_EVENTS, MAX_EVENTS));
        assert!(earlier.is_cut);
    }

    #[test]
    fn large_events_are_bounded_and_have_no_owner() {
        let mut earlier = Earlier::default();
        let large = |n| JobEvent {
            owner: Some("somebody".to_owned()),
            worker: Some("w".repeat(10_000)),
            ..event(n)
        };
        let added = (1..).take_while(|n| earlier.add(large(*n))).count();
        assert!((40..60).contains(&added), "{added}");
        assert!(earlier.events.iter().all(|view| view.event.owner.is_none()));
    }

    #[test]
    fn only_events_with_the_key_of_their_job_count() {
        let record = |key: &str, value: Option<Vec<u8>>| RawRecord {
            position: Position { topic: "e".to_owned(), partition: 0, offset: 1 },
            timestamp: None,
            key: Some(key.as_bytes().to_vec()),
            value,
            headers: Vec::new(),
        };
        let value = || Some(event(1).to_bytes());
        assert_eq!(event_of(&record("j", value()), "j"), Some(event(1)));
        assert_eq!(event_of(&record("k", value()), "k"), None);
        assert_eq!(event_of(&record("k", value()), "j"), None);
        assert_eq!(event_of(&record("j", None), "j"), None);
        assert_eq!(event_of(&record("j", Some(b"{".to_vec())), "j"), None);
    }
}
