//! The records that `submit --wait` and `demo` wait for. Pure.
//!
//! The unit is the record, not the job, since two records may have one job id. A record's end is
//! its first terminal event, by the rule of [`fleet_job::state`].

use std::collections::HashSet;

use fleet_job::{
    event::{JobEvent, Progress},
    record::RawRecord,
    state::{Entry, Standings, Verdict},
};

/// Where a record was written: its partition and offset in the jobs topic.
pub(crate) type PartitionOffset = (i32, i64);

/// Records of one jobs topic that have not ended yet.
#[derive(Debug)]
pub(crate) struct Pending {
    topic: String,
    open: HashSet<PartitionOffset>,
    standings: Standings<PartitionOffset>,
}

/// What an event says about a pending record.
#[derive(Debug, PartialEq)]
pub(crate) enum RecordUpdate {
    /// The progress of the record's job.
    Progress(Progress),
    /// The job has ended and is no longer pending.
    End(Box<JobEvent>),
}

impl Pending {
    /// Creates the set of records at `places` in the jobs topic `topic`.
    pub(crate) fn new(topic: &str, places: impl IntoIterator<Item = PartitionOffset>) -> Self {
        Self {
            topic: topic.to_owned(),
            open: places.into_iter().collect(),
            standings: Standings::default(),
        }
    }

    /// Returns the number of pending records.
    pub(crate) fn len(&self) -> usize {
        self.open.len()
    }

    /// Processes the next record of the events topic.
    pub(crate) fn take(&mut self, record: &RawRecord) -> Option<RecordUpdate> {
        let event: JobEvent = serde_json::from_slice(record.value.as_deref()?).ok()?;
        let source = event.source.as_ref().filter(|source| source.topic == self.topic)?;
        let place = (source.partition, source.offset);
        if !self.open.contains(&place) {
            return None;
        }
        let verdict = self.standings.take(place, &Entry::of(record, &event));
        if verdict != Verdict::State {
            return None;
        }

        if event.is_over() {
            self.open.remove(&place);
            self.standings.forget(&place);
            return Some(RecordUpdate::End(Box::new(event)));
        }
        event.progress.map(RecordUpdate::Progress)
    }
}

#[cfg(test)]
mod tests {
    use fleet_job::{
        event::{JobState, Source},
        record::Position,
        time::Timestamp,
    };
    use serde_json::json;

    use super::*;

    fn event(topic: &str, offset: i64, state: JobState) -> JobEvent {
        let source = Source { topic: topic.to_owned(), topic_id: None, partition: 0, offset };
        JobEvent { source: Some(source), ..JobEvent::new("j", state, Timestamp::default()) }
    }

    fn record(at: i64, event: &JobEvent) -> RawRecord {
        let position = Position { topic: "events".to_owned(), partition: 0, offset: at };
        RawRecord {
            position,
            timestamp: None,
            key: None,
            value: Some(event.to_bytes()),
            headers: Vec::new(),
        }
    }

    #[test]
    fn two_records_of_one_job_end_one_by_one() {
        let mut pending = Pending::new("jobs", [(0, 1), (0, 2)]);
        let mut said = Vec::new();
        let log = [
            event("jobs", 1, JobState::Running),
            event("jobs", 2, JobState::Running),
            event("jobs", 1, JobState::Failed),
            event("jobs", 1, JobState::Succeeded),
            event("others", 2, JobState::Failed),
            event("jobs", 3, JobState::Failed),
            event("jobs", 2, JobState::Succeeded),
        ];
        for (at, event) in (0..).zip(&log) {
            if let Some(RecordUpdate::End(end)) = pending.take(&record(at, event)) {
                said.push((end.source.unwrap().offset, end.state));
            }
        }
        assert_eq!(said, [(1, JobState::Failed), (2, JobState::Succeeded)]);
        assert_eq!(pending.len(), 0);
    }

    #[test]
    fn progress_is_reported_and_a_round_that_asks_for_input_is_not_an_end() {
        let mut pending = Pending::new("jobs", [(0, 1)]);
        let progress = Progress { progress: 1.0, total: None, message: None };
        let running =
            JobEvent { progress: Some(progress.clone()), ..event("jobs", 1, JobState::Running) };
        assert_eq!(pending.take(&record(0, &running)), Some(RecordUpdate::Progress(progress)));

        let result = Some(json!({"resultType": "input_required"}));
        let asks = JobEvent { result, ..event("jobs", 1, JobState::Succeeded) };
        assert_eq!(pending.take(&record(1, &asks)), None);
        assert_eq!(pending.take(&record(2, &running)), None, "the round has ended");
        assert_eq!(pending.len(), 1);
    }
}
