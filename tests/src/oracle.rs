//! The oracle: reads the topics after a run, and compares them with the submitted records.
//!
//! It checks the promises of the project: every acknowledged record has exactly one end (I3), every
//! failed record is in the dead letters byte for byte (I2), nothing has ended that was never
//! submitted, and jobs of one key started in order and one at a time (I5). A kill may have repeated
//! jobs that were in flight (I4); a test allows a number of them with [`Oracle::repeats`]. The
//! state of a record is decided by the rule that the fleet itself uses ([`fleet_job::state`]),
//! which has tests of its own.

use std::{
    collections::{BTreeMap, HashMap},
    fmt::Write as _,
    sync::Arc,
};

use fleet_job::{
    dead_letter::header,
    event::{JobEvent, JobState},
    state::{Entry, RESTATED, Standings, Verdict},
    topics::Topics,
};

use crate::topics::{self, Outgoing, Record};

/// The position of a record on the jobs topic: partition and offset.
type JobsOffset = (i32, i64);

/// Compares topics with the submitted records.
#[derive(Debug)]
pub struct Oracle<'a> {
    jobs: &'a str,
    submitted: &'a [Record],
    repeats: usize,
}

/// The outcome of the submitted records. Each event is in memory only once, because a long run has
/// millions.
#[derive(Clone, Debug, Default)]
pub struct Account {
    /// The event that decides the state of each record, by the record's position on the jobs topic.
    pub states: BTreeMap<JobsOffset, Arc<JobEvent>>,
    /// The newest event of each record, which compaction would keep.
    pub last: BTreeMap<JobsOffset, Arc<JobEvent>>,
    /// All events of each record, oldest first.
    pub events: BTreeMap<JobsOffset, Vec<Arc<JobEvent>>>,
    /// The dead letter of each record that has one.
    pub dead: BTreeMap<JobsOffset, Record>,
    /// Ends beyond the first, over all records.
    pub repeats: usize,
    /// Dead letters beyond the first, over all records.
    pub dead_repeats: usize,
}

impl Account {
    /// The number of records that ended in `state`.
    pub fn count(&self, state: JobState) -> usize {
        self.states.values().filter(|event| event.state == state).count()
    }

    /// The number of records that have ended.
    pub fn ended(&self) -> usize {
        self.states.values().filter(|event| event.state.is_terminal()).count()
    }

    /// The state of a submitted record.
    pub fn of(&self, record: &Record) -> &JobEvent {
        let place = (record.partition, record.offset);
        self.states
            .get(&place)
            .unwrap_or_else(|| panic!("no event about the record at {place:?}: {}", record.text()))
    }

    /// Whether one of the ends of the record at `place`, the first or a repeat, has this state.
    fn ended_as(&self, place: JobsOffset, state: JobState) -> bool {
        let events = self.events.get(&place).map_or(&[][..], Vec::as_slice);
        ends(events).any(|end| end.state == state)
    }

    /// The events of the record at `place`, with worker and time, in the order of the topic.
    fn story(&self, place: JobsOffset) -> String {
        let output = |event: &Arc<JobEvent>| {
            let (state, worker) =
                (event.state.as_str(), event.worker.as_deref().unwrap_or_default());
            format!("{} {state} by {worker} (attempts {})", event.time, event.attempts)
        };
        let events: Vec<_> = self.events.get(&place).into_iter().flatten().map(output).collect();
        format!("{place:?} {events:?}")
    }
}

impl<'a> Oracle<'a> {
    /// Creates an oracle for the records submitted to the topic `jobs`.
    pub fn new(jobs: &'a str, submitted: &'a [Record]) -> Self {
        Self { jobs, submitted, repeats: 0 }
    }

    /// Allows this many ends beyond the first, over all records, as a kill may cause.
    #[must_use]
    pub fn repeats(self, repeats: usize) -> Self {
        Self { repeats, ..self }
    }

    /// Reads the topics.
    pub fn read(&self, brokers: &str) -> Account {
        let topics = Topics::of(self.jobs);
        let mut reading = Reading::of(self.jobs);
        topics::read_each(brokers, &topics.events, |record| reading.event(&record));
        topics::read_each(brokers, &topics.dlq, |record| reading.dead(record));
        let (account, strays) = reading.finish();
        assert!(
            strays.is_empty(),
            "records on {} and {} that belong to no submitted record:\n{strays}",
            topics.events,
            topics.dlq
        );

        account
    }

    /// Reads the topics, and panics with all violations.
    pub fn check(&self, brokers: &str) -> Account {
        let account = self.read(brokers);
        let wrong = self.judge(&account);
        assert!(wrong.is_empty(), "the promises were not kept:\n{}", wrong.join("\n"));
        account
    }

    /// All violations in an account.
    pub fn judge(&self, account: &Account) -> Vec<String> {
        let mut wrong = Vec::new();
        let submitted: HashMap<JobsOffset, &Record> = self
            .submitted
            .iter()
            .map(|record| ((record.partition, record.offset), record))
            .collect();
        for (place, record) in &submitted {
            let Some(state) = account.states.get(place) else {
                wrong.push(format!("{place:?}: LOST, no event at all"));
                continue;
            };
            let (is_failed, name) = (state.state == JobState::Failed, state.state.as_str());
            if !state.state.is_terminal() {
                let story = account.story(*place);
                wrong.push(format!("{place:?}: LOST, its last state is {name}: {story}"));
            }
            match (is_failed, account.dead.get(place)) {
                (true, None) => {
                    wrong.push(format!("{place:?}: failed, and is not in the dead letters"))
                }
                // A repeat has failed, and it is counted.
                (false, Some(_)) if account.ended_as(*place, JobState::Failed) => {}
                (false, Some(_)) => wrong.push(format!("{place:?}: {name} and dead-lettered")),
                (true, Some(dead)) => {
                    if let Some(difference) = difference(&record.content, &dead.content) {
                        wrong.push(format!("{place:?}: its dead letter has another {difference}"));
                    }
                }
                (false, None) => {}
            }
        }

        for place in account.events.keys().chain(account.dead.keys()) {
            if !submitted.contains_key(place) {
                wrong.push(format!("{place:?}: came to an end and was never submitted"));
            }
        }

        if account.repeats > self.repeats {
            wrong.push(format!(
                "{} ends were repeated; at most {} may be",
                account.repeats, self.repeats
            ));
        }

        wrong.extend(self.out_of_order(account));
        wrong.sort();
        wrong
    }

    /// Violations of the order of a key: a record starts, or ends if it is not run, only after the
    /// previous one has ended. Only a cancel ends a job out of its turn.
    fn out_of_order(&self, account: &Account) -> Vec<String> {
        let mut by_key: BTreeMap<&[u8], Vec<&Record>> = BTreeMap::new();
        for record in self.submitted {
            if let Some(key) = &record.content.key {
                by_key.entry(key).or_default().push(record);
            }
        }

        let first = |record: &Record, wanted: fn(JobState) -> bool| {
            let events = account.events.get(&(record.partition, record.offset))?;
            events.iter().find(|event| wanted(event.state))
        };
        let mut wrong = Vec::new();
        for (key, mut records) in by_key {
            records.sort_by_key(|record| (record.partition, record.offset));
            for pair in records.windows(2) {
                let [before, after] = pair else { continue };
                let ended = first(before, JobState::is_terminal);
                let next = first(after, |state| state == JobState::Running || state.is_terminal());
                if let (Some(ended), Some(next)) = (ended, next)
                    && next.state != JobState::Cancelled
                    && next.time < ended.time
                {
                    let [before, after] = [before, after]
                        .map(|record| account.story((record.partition, record.offset)));
                    let key = String::from_utf8_lossy(key);
                    wrong.push(format!(
                        "key {key:?}: one started or ended before the one before it: {before}; {after}"
                    ));
                }
            }
        }

        wrong
    }
}

/// An account under construction, from the records of both topics in the order of each partition.
struct Reading<'a> {
    jobs: &'a str,
    account: Account,
    standings: Standings<JobsOffset>,
    /// Records that belong to no submitted record.
    strays: String,
}

impl<'a> Reading<'a> {
    fn of(jobs: &'a str) -> Self {
        Self {
            jobs,
            account: Account::default(),
            standings: Standings::default(),
            strays: String::new(),
        }
    }

    fn event(&mut self, record: &Record) {
        let Ok(event) = serde_json::from_str::<JobEvent>(&record.text()) else {
            return self.stray(record);
        };
        let place = match event.source.as_ref().filter(|source| source.topic == self.jobs) {
            Some(source) => (source.partition, source.offset),
            // Written by the submitter, before the record had a position.
            None if event.state == JobState::Queued => return,
            None => return self.stray(record),
        };

        let is_state = self.standings.take(place, &entry(record, &event)) == Verdict::State;
        let event = Arc::new(event);
        if is_state {
            self.account.states.insert(place, Arc::clone(&event));
        }

        self.account.events.entry(place).or_default().push(event);
    }

    fn dead(&mut self, record: Record) {
        match origin(&record) {
            // A repeat may have written the letter again.
            Some(place) => {
                self.account.dead_repeats +=
                    usize::from(self.account.dead.insert(place, record).is_some());
            }
            None => self.stray(&record),
        }
    }

    fn stray(&mut self, record: &Record) {
        writeln!(self.strays, "{record:?}").expect("a string");
    }

    fn finish(self) -> (Account, String) {
        let Self { mut account, strays, .. } = self;
        for (place, events) in &account.events {
            // The events of one job are on one partition, in order. The events of a killed worker's
            // successor come later.
            account.repeats += ends(events).count().saturating_sub(1);
            if let Some(last) = events.last() {
                account.last.insert(*place, Arc::clone(last));
            }
        }
        (account, strays)
    }
}

/// All ends of a job. An identical end doesn't count again: a worker to which a record returns
/// repeats its earlier event and doesn't run the job.
pub fn ends(events: &[Arc<JobEvent>]) -> impl Iterator<Item = &Arc<JobEvent>> {
    let all = events.iter().enumerate().filter(|(_, event)| event.state.is_terminal());
    all.filter(|(at, event)| !events[..*at].contains(event)).map(|(_, event)| event)
}

/// The entry of a record of the events topic in the state of its job.
fn entry(record: &Record, event: &JobEvent) -> Entry {
    let value = record.content.value.as_deref().unwrap_or_default();
    let restated = record.header(RESTATED).and_then(|header| serde_json::from_slice(header).ok());
    Entry::new(record.offset, event, value, restated)
}

/// The source of a dead letter, according to its headers.
fn origin(record: &Record) -> Option<JobsOffset> {
    let partition = record.header(header::ORIGINAL_PARTITION)?.try_into().ok()?;
    let offset = record.header(header::ORIGINAL_OFFSET)?.try_into().ok()?;
    Some((i32::from_be_bytes(partition), i64::from_be_bytes(offset)))
}

fn difference(original: &Outgoing, dead: &Outgoing) -> Option<&'static str> {
    if original.key != dead.key {
        return Some("key");
    }
    if original.value != dead.value {
        return Some("value");
    }
    (!dead.headers.starts_with(&original.headers)).then_some("set of original headers")
}

#[cfg(test)]
mod tests {
    use fleet_job::{event::Source, time::Timestamp};

    use super::*;

    fn submitted(offset: i64) -> Record {
        let content = Outgoing::value(format!("{offset}")).key("k");
        Record { partition: 0, offset, timestamp: None, content }
    }

    fn event(offset: i64, state: JobState, at: i64) -> Record {
        let mut event = JobEvent::new(
            format!("job-{offset}"),
            state,
            Timestamp::from_millis(at).expect("a time"),
        );
        event.source = Some(Source { topic: "jobs".into(), topic_id: None, partition: 0, offset });
        Record {
            partition: 0,
            offset: at,
            timestamp: None,
            content: Outgoing::value(event.to_bytes()),
        }
    }

    fn dead(offset: i64, value: &str) -> Record {
        let content = Outgoing::value(value)
            .key("k")
            .header(header::ORIGINAL_PARTITION, 0_i32.to_be_bytes())
            .header(header::ORIGINAL_OFFSET, offset.to_be_bytes());
        Record { partition: 0, offset, timestamp: None, content }
    }

    fn sort(events: &[Record], dead: Vec<Record>) -> (Account, String) {
        let mut reading = Reading::of("jobs");
        events.iter().for_each(|record| reading.event(record));
        dead.into_iter().for_each(|record| reading.dead(record));
        reading.finish()
    }

    fn check(events: &[Record], dead: Vec<Record>, expected: &[&str]) {
        let submitted = [submitted(0), submitted(1)];
        let oracle = Oracle::new("jobs", &submitted);
        let (account, strays) = sort(events, dead);
        assert_eq!(strays, "");
        let wrong = oracle.judge(&account);
        assert_eq!(wrong.len(), expected.len(), "{wrong:?}");
        for (wrong, expected) in wrong.iter().zip(expected) {
            assert!(wrong.contains(expected), "{wrong} should be about {expected}");
        }
    }

    use JobState::{Cancelled, Failed, Running, Succeeded};

    #[test]
    fn a_correct_run_has_no_violations() {
        let events = [
            event(0, Running, 1),
            event(0, Succeeded, 2),
            event(1, Running, 3),
            event(1, Failed, 4),
        ];
        check(&events, vec![dead(1, "1")], &[]);
    }

    #[test]
    fn a_job_without_an_end_is_lost() {
        check(&[event(0, Succeeded, 2)], vec![], &["(0, 1): LOST, no event"]);
        check(
            &[event(0, Succeeded, 2), event(1, Running, 3)],
            vec![],
            &["(0, 1): LOST, its last state"],
        );
    }

    #[test]
    fn a_second_end_is_found() {
        let events = [event(0, Succeeded, 2), event(0, Succeeded, 3), event(1, Succeeded, 4)];
        check(&events, vec![], &["1 ends were repeated"]);
    }

    #[test]
    fn later_events_do_not_change_an_end() {
        let events = [event(0, Succeeded, 2), event(0, Running, 3), event(1, Succeeded, 4)];
        check(&events, vec![], &[]);
        let (account, _) = sort(&events[..2], vec![]);
        assert_eq!((account.count(Succeeded), account.ended()), (1, 1));
        assert_eq!(account.last[&(0, 0)].state, Running);
    }

    #[test]
    fn a_repeat_that_failed_explains_a_dead_letter() {
        let events = [event(0, Succeeded, 2), event(0, Failed, 3), event(1, Succeeded, 4)];
        check(&events, vec![dead(0, "0")], &["1 ends were repeated"]);
    }

    #[test]
    fn dead_letters_equal_the_failed_records_byte_for_byte() {
        let events = [event(0, Succeeded, 2), event(1, Failed, 4)];
        check(&events, vec![], &["not in the dead letters"]);
        check(&events, vec![dead(1, "other")], &["another value"]);
        check(&events, vec![dead(0, "0"), dead(1, "1")], &["succeeded and dead-lettered"]);
    }

    #[test]
    fn an_end_without_a_submitted_record_is_found() {
        let events = [event(0, Succeeded, 2), event(1, Succeeded, 3), event(7, Succeeded, 4)];
        check(&events, vec![], &["(0, 7): came to an end"]);
    }

    #[test]
    fn overlapping_jobs_of_a_key_are_found() {
        let events = [
            event(0, Running, 1),
            event(1, Running, 2),
            event(0, Succeeded, 5),
            event(1, Succeeded, 6),
        ];
        check(&events, vec![], &["one started or ended before the one before it"]);
    }

    #[test]
    fn records_that_are_not_run_end_in_the_turn_of_their_key() {
        let wrong = &["one started or ended before the one before it"];
        let late = [event(1, Running, 2), event(1, Succeeded, 3), event(0, Failed, 5)];
        check(&late, vec![dead(0, "0")], wrong);
        let early = [event(1, Failed, 2), event(0, Running, 3), event(0, Succeeded, 5)];
        check(&early, vec![dead(1, "1")], wrong);
        let in_turn = [event(0, Failed, 2), event(1, Running, 3), event(1, Succeeded, 5)];
        check(&in_turn, vec![dead(0, "0")], &[]);
    }

    #[test]
    fn a_cancelled_job_may_end_out_of_its_turn() {
        let events = [event(1, Cancelled, 2), event(0, Running, 3), event(0, Succeeded, 5)];
        check(&events, vec![], &[]);
    }
}
