//! The fate of every submitted record, which `demo` reports. Pure.
//!
//! [`fleet_job::state`] decides a record's state: its first terminal event counts. A worker that
//! receives a settled record again may write the same terminal event again, which is not a second
//! end.

use std::collections::HashMap;

use fleet_job::{
    event::{JobEvent, JobState, RESULT_OMITTED},
    record::RawRecord,
    state::{Entry, Standings, Verdict},
};
use serde::Serialize;

use crate::pending::PartitionOffset;

/// A submitted record.
#[derive(Debug, Clone)]
pub(crate) struct Submitted {
    pub(crate) label: String,
    /// A description of the request for people.
    pub(crate) what: String,
    /// Whether the job should succeed.
    pub(crate) good: bool,
    pub(crate) place: PartitionOffset,
}

/// The records seen on the events and dead-letter topics.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    standings: Standings<PartitionOffset>,
    /// How each record ended: first the terminal event that is its state, then those that differ.
    ends: HashMap<PartitionOffset, Vec<JobEvent>>,
    /// The distinct dead letters of each record. A worker that receives a record again may write
    /// the same letter again.
    dead_letters: HashMap<PartitionOffset, Vec<RawRecord>>,
}

/// One line of the final table.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct ReportRow {
    pub(crate) label: String,
    pub(crate) what: String,
    pub(crate) state: String,
    pub(crate) attempts: u32,
    pub(crate) ms: Option<u64>,
    pub(crate) worker: String,
    pub(crate) note: String,
}

/// The overall result of a demo.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    pub(crate) submitted: usize,
    pub(crate) succeeded: usize,
    pub(crate) failed: usize,
    pub(crate) dead_lettered: usize,
    /// Records without a terminal state.
    pub(crate) lost: usize,
    /// Records with several different terminal states.
    pub(crate) repeated: usize,
    /// Records that succeeded with a result that was too large to keep.
    pub(crate) result_omitted: usize,
    pub(crate) elapsed_ms: u64,
    pub(crate) jobs_per_second: f64,
    /// Good jobs that did not succeed, bad jobs that did, and failed jobs without exactly one dead
    /// letter.
    #[serde(skip)]
    pub(crate) surprises: Vec<String>,
    #[serde(skip)]
    pub(crate) rows: Vec<ReportRow>,
}

impl Report {
    /// Returns whether every record has exactly one terminal state, which is the expected one.
    pub(crate) fn is_perfect(&self) -> bool {
        self.lost == 0 && self.repeated == 0 && self.surprises.is_empty()
    }
}

impl Tally {
    /// Records an event.
    pub(crate) fn add_event(&mut self, record: &RawRecord) {
        let Some(event) =
            record.value.as_deref().and_then(|value| serde_json::from_slice(value).ok())
        else {
            return;
        };
        let event: JobEvent = event;
        let Some(place) = event.source.as_ref().map(|source| (source.partition, source.offset))
        else {
            return;
        };

        let verdict = self.standings.take(place, &Entry::of(record, &event));
        if !event.is_over() {
            return;
        }

        let ends = self.ends.entry(place).or_default();
        match verdict {
            Verdict::State => ends.insert(0, event),
            Verdict::Again => {}
            Verdict::Stale if ends.contains(&event) => {}
            Verdict::Stale => ends.push(event),
        }
    }

    /// Records a dead letter of the record at `place`.
    pub(crate) fn add_dead_letter(&mut self, place: PartitionOffset, letter: RawRecord) {
        let letters = self.dead_letters.entry(place).or_default();
        let is_same = |known: &RawRecord| {
            (&known.key, &known.value, &known.headers)
                == (&letter.key, &letter.value, &letter.headers)
        };
        if !letters.iter().any(is_same) {
            letters.push(letter);
        }
    }

    /// Builds the report on `submitted`, which took `elapsed_ms` in total.
    pub(crate) fn report(&self, submitted: &[Submitted], elapsed_ms: u64) -> Report {
        let mut report = Report { submitted: submitted.len(), elapsed_ms, ..Report::default() };

        for record in submitted {
            let events = self.ends.get(&record.place).map_or(&[][..], Vec::as_slice);
            let letters = self.dead_letters.get(&record.place).map_or(0, Vec::len);
            report.repeated += usize::from(events.len() > 1);
            report.dead_lettered += usize::from(letters > 0);

            let Some(event) = events.first() else {
                report.lost += 1;
                report.rows.push(ReportRow::lost(record));
                continue;
            };

            match event.state {
                JobState::Succeeded => report.succeeded += 1,
                _ => report.failed += 1,
            }

            let succeeded = event.state == JobState::Succeeded;
            if succeeded != record.good {
                report.surprises.push(format!(
                    "{} ended as {}",
                    record.label,
                    event.state.as_str()
                ));
            }

            if (event.state == JobState::Failed) != (letters == 1) {
                report
                    .surprises
                    .push(format!("{} has {letters} different dead letters", record.label));
            }

            report.result_omitted += usize::from(event.has_lost_its_result());
            report.rows.push(ReportRow::new(record, event, events.len()));
        }

        if elapsed_ms > 0 {
            let rate = report.submitted as f64 * 1000.0 / elapsed_ms as f64;
            report.jobs_per_second = (rate * 10.0).round() / 10.0;
        }

        report
    }
}

impl ReportRow {
    fn lost(record: &Submitted) -> Self {
        Self {
            label: record.label.clone(),
            what: record.what.clone(),
            state: "LOST".to_owned(),
            attempts: 0,
            ms: None,
            worker: String::new(),
            note: String::new(),
        }
    }

    fn new(record: &Submitted, event: &JobEvent, times: usize) -> Self {
        let note = match &event.error {
            Some(error) => error.message.clone(),
            None if event.has_lost_its_result() => RESULT_OMITTED.to_owned(),
            None => String::new(),
        };

        let note =
            if times > 1 { format!("{times} different terminal states! {note}") } else { note };

        Self {
            label: record.label.clone(),
            what: record.what.clone(),
            state: event.state.as_str().to_owned(),
            attempts: event.attempts,
            ms: event.timings.as_ref().and_then(|timings| timings.ran_ms),
            worker: event.worker.clone().unwrap_or_default(),
            note,
        }
    }
}

#[cfg(test)]
mod tests {
    use fleet_job::{
        event::{ResultOmitted, Source},
        record::Position,
        time::Timestamp,
    };

    use super::*;

    fn submitted(offset: i64, good: bool) -> Submitted {
        Submitted { label: format!("job-{offset}"), what: String::new(), good, place: (0, offset) }
    }

    /// An event at offset `at` about the record at `offset`.
    fn event(at: i64, offset: i64, state: JobState) -> RawRecord {
        let source = Source { topic: "mcp-jobs".into(), topic_id: None, partition: 0, offset };
        let event = JobEvent::new("j", state, Timestamp::from_millis_clamped(at));
        record(at, &JobEvent { source: Some(source), ..event })
    }

    fn record(at: i64, event: &JobEvent) -> RawRecord {
        let position = Position { topic: "events".into(), partition: 0, offset: at };
        RawRecord {
            position,
            timestamp: None,
            key: None,
            value: Some(event.to_bytes()),
            headers: Vec::new(),
        }
    }

    /// The same record at another offset.
    fn again(at: i64, record: &RawRecord) -> RawRecord {
        let position = Position { offset: at, ..record.position.clone() };
        RawRecord { position, ..record.clone() }
    }

    fn letter(at: i64, value: &str) -> RawRecord {
        let position = Position { topic: "dlq".into(), partition: 0, offset: at };
        RawRecord {
            position,
            timestamp: None,
            key: None,
            value: Some(value.into()),
            headers: Vec::new(),
        }
    }

    fn report(
        records: &[RawRecord],
        letters: &[PartitionOffset],
        submitted: &[Submitted],
    ) -> Report {
        let mut tally = Tally::default();
        records.iter().for_each(|record| tally.add_event(record));
        for (at, place) in (0..).zip(letters) {
            tally.add_dead_letter(*place, letter(at, &format!("letter {at}")));
        }
        tally.report(submitted, 500)
    }

    #[test]
    fn a_perfect_run() {
        let events = [
            event(0, 0, JobState::Succeeded),
            event(1, 1, JobState::Running),
            event(2, 1, JobState::Failed),
        ];
        let report = report(&events, &[(0, 1)], &[submitted(0, true), submitted(1, false)]);
        assert!(report.is_perfect(), "{report:?}");
        assert_eq!(
            (report.succeeded, report.failed, report.dead_lettered, report.lost),
            (1, 1, 1, 0)
        );
        assert_eq!(report.jobs_per_second, 4.0);
    }

    /// A worker that receives a settled record again before the commit writes its terminal event
    /// again.
    #[test]
    fn repeated_terminal_events_count_once() {
        let mut events = vec![event(0, 0, JobState::Running), event(1, 0, JobState::Succeeded)];
        let stale = event(2, 0, JobState::Running);
        let copies: Vec<_> = (3..10).map(|at| again(at, &events[1])).collect();
        events.push(stale);
        events.extend(copies);
        let report = report(&events, &[], &[submitted(0, true)]);
        assert!(report.is_perfect(), "{report:?}");
        assert_eq!(report.rows[0].note, "");
    }

    #[test]
    fn repeated_dead_letters_count_once() {
        let mut tally = Tally::default();
        tally.add_event(&event(0, 0, JobState::Failed));
        for at in 0..3 {
            tally.add_dead_letter((0, 0), letter(at, "the same"));
        }
        let report = tally.report(&[submitted(0, false)], 500);
        assert!(report.is_perfect(), "{report:?}");

        tally.add_dead_letter((0, 0), letter(3, "another"));
        let report = tally.report(&[submitted(0, false)], 500);
        assert_eq!(report.surprises, ["job-0 has 2 different dead letters"]);
    }

    #[test]
    fn the_first_end_counts_and_differing_ones_are_reported_once() {
        let other = event(2, 0, JobState::Cancelled);
        let events =
            [event(1, 0, JobState::Succeeded), other.clone(), again(3, &other), again(4, &other)];
        let report = report(&events, &[], &[submitted(0, true)]);
        assert_eq!((report.succeeded, report.failed, report.repeated), (1, 0, 1));
        assert_eq!(report.rows[0].note, "2 different terminal states! ");
    }

    #[test]
    fn an_omitted_result_is_noted() {
        let mut event: JobEvent =
            serde_json::from_slice(event(0, 0, JobState::Succeeded).value.as_deref().unwrap())
                .unwrap();
        event.omit_result(ResultOmitted { bytes: 9, limit_bytes: 5 });
        let report = report(&[record(0, &event)], &[], &[submitted(0, true)]);
        assert_eq!((report.result_omitted, &*report.rows[0].note), (1, "result-omitted"));
    }

    #[test]
    fn every_fault_is_found() {
        let check = |events: &[RawRecord], letters: &[PartitionOffset], good| {
            let report = report(events, letters, &[submitted(0, good)]);
            assert!(!report.is_perfect(), "{events:?} {letters:?}");
        };
        check(&[], &[], true);
        check(&[event(0, 0, JobState::Running)], &[], true);
        check(&[event(0, 0, JobState::Failed)], &[(0, 0)], true);
        check(&[event(0, 0, JobState::Succeeded)], &[], false);
        check(&[event(0, 0, JobState::Failed)], &[], false);
        check(&[event(0, 0, JobState::Succeeded), event(1, 0, JobState::Succeeded)], &[], true);
        check(&[event(0, 0, JobState::Failed)], &[(0, 0), (0, 0)], false);
    }
}
