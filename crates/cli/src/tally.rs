//! What became of every record that was submitted: the oracle behind `demo`. Pure.

use std::collections::HashMap;

use fleet_job::event::{JobEvent, JobState};
use serde::Serialize;

use crate::submit::Place;

/// A record that was submitted.
#[derive(Debug, Clone)]
pub(crate) struct Submitted {
    pub(crate) label: String,
    /// What it asks for, for people.
    pub(crate) what: String,
    /// Whether it is meant to succeed.
    pub(crate) good: bool,
    pub(crate) place: Place,
}

/// What was seen on the events and dead-letter topics.
#[derive(Debug, Default)]
pub(crate) struct Tally {
    terminal: HashMap<Place, Vec<JobEvent>>,
    dead_letters: HashMap<Place, usize>,
}

/// One line of the final table.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Row {
    pub(crate) label: String,
    pub(crate) what: String,
    pub(crate) state: String,
    pub(crate) attempts: u32,
    pub(crate) ms: Option<u64>,
    pub(crate) worker: String,
    pub(crate) note: String,
}

/// What it all adds up to.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Report {
    pub(crate) submitted: usize,
    pub(crate) succeeded: usize,
    pub(crate) failed: usize,
    pub(crate) dead_lettered: usize,
    /// Records without a terminal state.
    pub(crate) lost: usize,
    /// Records with more than one.
    pub(crate) repeated: usize,
    pub(crate) elapsed_ms: u64,
    pub(crate) jobs_per_second: f64,
    /// Good jobs that did not succeed, bad ones that did, failed ones without a dead letter.
    #[serde(skip)]
    pub(crate) surprises: Vec<String>,
    #[serde(skip)]
    pub(crate) rows: Vec<Row>,
}

impl Report {
    /// Whether every record has exactly one terminal state, and the one it was meant to have.
    pub(crate) fn is_perfect(&self) -> bool {
        self.lost == 0 && self.repeated == 0 && self.surprises.is_empty()
    }
}

impl Tally {
    /// Takes in an event; `true` when it is the first terminal one of its record.
    pub(crate) fn event(&mut self, event: JobEvent) -> bool {
        let Some(source) = event.source.as_ref().filter(|_| event.state.is_terminal()) else { return false };
        let seen = self.terminal.entry((source.partition, source.offset)).or_default();
        seen.push(event);
        seen.len() == 1
    }

    /// Takes in a dead letter of the record at `place`.
    pub(crate) fn dead_letter(&mut self, place: Place) {
        *self.dead_letters.entry(place).or_default() += 1;
    }

    /// What became of `submitted`, which took `elapsed_ms` in all.
    pub(crate) fn report(&self, submitted: &[Submitted], elapsed_ms: u64) -> Report {
        let mut report = Report { submitted: submitted.len(), elapsed_ms, ..Report::default() };
        for record in submitted {
            let events = self.terminal.get(&record.place).map_or(&[][..], Vec::as_slice);
            let letters = self.dead_letters.get(&record.place).copied().unwrap_or_default();
            report.repeated += usize::from(events.len() > 1);
            report.dead_lettered += usize::from(letters > 0);
            let Some(event) = events.first() else {
                report.lost += 1;
                report.rows.push(Row::lost(record));
                continue;
            };
            match event.state {
                JobState::Succeeded => report.succeeded += 1,
                _ => report.failed += 1,
            }
            let succeeded = event.state == JobState::Succeeded;
            if succeeded != record.good {
                report.surprises.push(format!("{} ended as {}", record.label, event.state.as_str()));
            }
            if (event.state == JobState::Failed) != (letters == 1) {
                report.surprises.push(format!("{} has {letters} dead letters", record.label));
            }
            report.rows.push(Row::new(record, event, events.len()));
        }
        if elapsed_ms > 0 {
            let rate = report.submitted as f64 * 1000.0 / elapsed_ms as f64;
            report.jobs_per_second = (rate * 10.0).round() / 10.0;
        }
        report
    }
}

impl Row {
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
        let note = event.error.as_ref().map_or_else(String::new, |error| error.message.clone());
        let note = if times > 1 { format!("{times} terminal states! {note}") } else { note };
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
    use fleet_job::{event::Source, time::Timestamp};

    use super::*;

    fn submitted(offset: i64, good: bool) -> Submitted {
        Submitted { label: format!("job-{offset}"), what: String::new(), good, place: (0, offset) }
    }

    fn terminal(offset: i64, state: JobState) -> JobEvent {
        let source = Source { topic: "mcp-jobs".into(), topic_id: None, partition: 0, offset };
        JobEvent { source: Some(source), ..JobEvent::new("j", state, Timestamp::default()) }
    }

    #[test]
    fn a_perfect_run() {
        let mut tally = Tally::default();
        assert!(tally.event(terminal(0, JobState::Succeeded)));
        assert!(!tally.event(terminal(1, JobState::Running)));
        assert!(tally.event(terminal(1, JobState::Failed)));
        tally.dead_letter((0, 1));
        let report = tally.report(&[submitted(0, true), submitted(1, false)], 500);
        assert!(report.is_perfect(), "{report:?}");
        assert_eq!((report.succeeded, report.failed, report.dead_lettered, report.lost), (1, 1, 1, 0));
        assert_eq!(report.jobs_per_second, 4.0);
    }

    #[test]
    fn what_is_wrong_is_found() {
        let check = |events: &[JobEvent], letters: &[Place], good| {
            let mut tally = Tally::default();
            for event in events {
                tally.event(event.clone());
            }
            letters.iter().for_each(|place| tally.dead_letter(*place));
            assert!(!tally.report(&[submitted(0, good)], 1).is_perfect(), "{events:?} {letters:?}");
        };
        check(&[], &[], true);
        check(&[terminal(0, JobState::Failed)], &[(0, 0)], true);
        check(&[terminal(0, JobState::Succeeded)], &[], false);
        check(&[terminal(0, JobState::Failed)], &[], false);
        check(&[terminal(0, JobState::Succeeded), terminal(0, JobState::Succeeded)], &[], true);
        check(&[terminal(0, JobState::Failed)], &[(0, 0), (0, 0)], false);
    }
}
