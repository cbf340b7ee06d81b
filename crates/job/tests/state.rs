//! Tests the state of a job against a model that sees the whole log at once, and checks that
//! several servers agree on it while the log is compacted.

#![expect(clippy::unwrap_used, reason = "a test reports failures by a panic")]

use fleet_job::{
    event::{JobEvent, JobState, Source},
    state::{Entry, Restated, Standing, Standings, Verdict},
    time::Timestamp,
};
use proptest::prelude::*;
use serde_json::json;

/// An event in short form: its source and its kind.
type Said = (Option<u8>, Kind);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Queued,
    Running,
    Asks,
    Succeeded,
    Cancelled,
}
use Kind::{Asks, Cancelled, Queued, Running, Succeeded};

fn event((source, kind): Said, time: i64) -> JobEvent {
    let state = match kind {
        Queued => JobState::Queued,
        Running => JobState::Running,
        Asks | Succeeded => JobState::Succeeded,
        Cancelled => JobState::Cancelled,
    };
    let source = source.map(|offset| Source {
        topic: "mcp-jobs".to_owned(),
        topic_id: Some("t".to_owned()),
        partition: 0,
        offset: i64::from(offset),
    });
    let result = (kind == Asks).then(|| json!({"resultType": "input_required"}));
    JobEvent { source, result, ..JobEvent::new("j", state, Timestamp::from_millis_clamped(time)) }
}

/// A record of the log.
#[derive(Debug, Clone, PartialEq)]
struct Logged {
    offset: i64,
    event: JobEvent,
    restated: Option<Restated>,
}

impl Logged {
    fn entry(&self) -> Entry {
        Entry::new(self.offset, &self.event, &self.event.to_bytes(), self.restated)
    }
}

/// Creates a log in which each event is at the offset that its time tells.
fn log(said: &[Said]) -> Vec<Logged> {
    let logged = |(offset, said)| Logged { offset, event: event(said, offset), restated: None };
    (0..).zip(said.iter().copied()).map(logged).collect()
}

/// A reader that follows a log.
#[derive(Debug, Clone, Default)]
struct Reader {
    next: usize,
    job: Option<(Standing, JobEvent)>,
}

impl Reader {
    fn take(&mut self, record: &Logged) -> Verdict {
        let Some((standing, event)) = &mut self.job else {
            self.job = Some((Standing::new(&record.entry()), record.event.clone()));
            return Verdict::State;
        };
        let verdict = standing.take(&record.entry());
        if verdict == Verdict::State {
            *event = record.event.clone();
        }
        verdict
    }

    fn of(log: &[Logged]) -> Self {
        let mut reader = Self::default();
        for record in log {
            reader.take(record);
        }
        reader
    }

    /// The state, and the offset at which it was written first.
    fn state(&self) -> Option<(i64, &JobEvent)> {
        self.job.as_ref().map(|(standing, event)| (standing.offset(), event))
    }

    fn is_overtaken(&self) -> bool {
        self.job.as_ref().is_some_and(|(standing, _)| standing.is_overtaken())
    }
}

/// Determines the state of the job by the wording of the rule.
fn expected(log: &[Logged]) -> Option<&Logged> {
    let mut sources: Vec<(Option<i64>, Vec<&Logged>)> = Vec::new();
    for record in log {
        let source = record.event.source.as_ref().map(|source| source.offset);
        let known = sources.iter().position(|(known, _)| source.is_some() && *known == source);
        let announced = sources.len().checked_sub(1).filter(|last| sources[*last].0.is_none());
        match (source, known.or(announced)) {
            (Some(_), Some(of)) => {
                sources[of].0 = source;
                sources[of].1.push(record);
            }
            (None, _) if record.event.state != JobState::Queued && !sources.is_empty() => {
                sources.last_mut().unwrap().1.push(record);
            }
            _ => sources.push((source, vec![record])),
        }
    }

    let (_, events) = sources.last()?;

    let end = events.iter().find(|record| record.event.is_over());
    let asks = || events.iter().rev().find(|record| record.event.asks_for_input());
    end.or_else(asks).or(events.last()).copied()
}

fn said() -> impl Strategy<Value = Said> {
    let kind = prop::sample::select(vec![Queued, Running, Running, Asks, Succeeded, Cancelled]);
    (prop::option::weighted(0.85, 0..3u8), kind)
}

fn check(said: &[Said], state: usize) {
    let log = log(said);
    let found = Reader::of(&log);
    assert_eq!(found.state().map(|(offset, _)| offset), Some(state as i64), "{said:?}");
    assert_eq!(
        expected(&log).map(|record| record.offset),
        Some(state as i64),
        "{said:?}, by the model"
    );
}

#[test]
fn the_first_end_of_the_newest_source_is_the_state() {
    let (a, b) = (Some(1), Some(2));
    check(&[(None, Queued), (a, Running), (a, Succeeded)], 2);
    // A late event of another worker, and a cancellation of a record that runs again.
    check(&[(a, Running), (a, Succeeded), (a, Running)], 1);
    check(&[(a, Running), (a, Succeeded), (a, Cancelled)], 1);
    check(&[(a, Running), (a, Succeeded), (a, Running), (a, Succeeded), (a, Running)], 1);
    // The job was replayed from the dead letters, or submitted again under its id.
    check(&[(a, Succeeded), (b, Running), (a, Running)], 1);
    check(&[(a, Succeeded), (b, Running), (a, Cancelled), (b, Succeeded), (a, Running)], 3);
    check(&[(a, Succeeded), (None, Queued), (a, Running)], 1);
    check(&[(a, Succeeded), (None, Queued), (a, Running), (b, Running)], 3);
    // A task whose round asks for input, and is then partly answered, cancelled, or continued as
    // another record.
    check(&[(a, Running), (a, Asks), (a, Running)], 1);
    check(&[(a, Asks), (a, Asks)], 1);
    check(&[(a, Asks), (a, Cancelled), (a, Asks)], 1);
    check(&[(a, Asks), (None, Queued), (a, Running), (a, Asks), (b, Running)], 4);
    // A worker that could report only how the job ended.
    check(&[(a, Running), (None, Succeeded), (a, Running)], 1);
}

#[test]
fn a_topic_that_was_created_again_has_other_records() {
    let at = |id: Option<&str>, submitted: Option<i64>, state| {
        let source = Source {
            topic: "t".to_owned(),
            topic_id: id.map(str::to_owned),
            partition: 0,
            offset: 7,
        };
        let submitted_at = submitted.map(Timestamp::from_millis_clamped);
        JobEvent {
            source: Some(source),
            submitted_at,
            ..JobEvent::new("j", state, Timestamp::default())
        }
    };

    let check = |end: JobEvent, later: JobEvent, verdict: Verdict| {
        let mut standing = Standing::new(&Entry::new(1, &end, b"end", None));
        assert_eq!(
            standing.take(&Entry::new(2, &later, b"later", None)),
            verdict,
            "{end:?} {later:?}"
        );
        assert_eq!(standing.is_overtaken(), verdict == Verdict::Stale);
    };

    use JobState::{Running, Succeeded};
    check(at(Some("x"), None, Succeeded), at(Some("x"), None, Running), Verdict::Stale);
    check(at(Some("x"), None, Succeeded), at(Some("y"), None, Running), Verdict::State);
    // An older worker or a broker without ids: the time of the record decides.
    check(at(None, None, Succeeded), at(Some("y"), None, Running), Verdict::Stale);
    check(at(None, Some(5), Succeeded), at(Some("y"), Some(5), Running), Verdict::Stale);
    check(at(None, Some(5), Succeeded), at(None, Some(6), Running), Verdict::State);
}

#[test]
fn an_end_that_is_written_again_is_not_overtaken() {
    let log = log(&[(Some(1), Succeeded), (Some(1), Running)]);
    let mut reader = Reader::of(&log);
    assert!(reader.is_overtaken());

    // Written again by the same worker, and by a server.
    for (offset, restated) in [(2, None), (3, Some(Restated { offset: 0, known: 1 }))] {
        let again = Logged { offset, restated, ..log[0].clone() };
        assert_eq!(reader.take(&again), Verdict::Again);
        assert!(!reader.is_overtaken());
        assert_eq!(reader.state(), Some((0, &log[0].event)));
    }

    assert_eq!(reader.take(&log[1]), Verdict::Stale);
    assert!(!reader.is_overtaken(), "taking a record twice changes nothing");
}

#[test]
fn an_earlier_state_can_be_restored() {
    let mut log = log(&[(Some(1), Asks), (None, Queued)]);
    let restated = Some(Restated { offset: 0, known: 1 });
    log.push(Logged { offset: 2, restated, ..log[0].clone() });
    let mut reader = Reader::of(&log);
    assert_eq!(reader.state(), Some((0, &log[0].event)));

    let answered = Logged { offset: 3, event: event((Some(1), Asks), 3), restated: None };
    assert_eq!(reader.take(&answered), Verdict::State);
}

#[test]
fn a_restated_header_from_another_log_is_ignored() {
    let log = log(&[(Some(1), Succeeded), (Some(2), Succeeded)]);
    for restated in [Restated { offset: 0, known: 9 }, Restated { offset: 8, known: 1 }] {
        let mut reader = Reader::of(&log);
        let again = Logged { offset: 2, restated: Some(restated), ..log[0].clone() };
        assert_eq!(reader.take(&again), Verdict::Stale, "{restated:?}");
    }
}

/// A topic with one job, and servers that follow it and write the state again if it is overtaken.
#[derive(Debug, Default)]
struct Fleet {
    log: Vec<Logged>,
    /// All records of workers and submitters, including those that were compacted away.
    written: Vec<Logged>,
    next: i64,
    servers: [Reader; 3],
    /// Whether a server has read a log with missing records.
    has_gaps: bool,
    compacted: bool,
}

#[derive(Debug, Clone)]
enum Move {
    Write(Said),
    /// A server reads this many records.
    Read(usize, usize),
    Restate(usize),
    /// A server restarts with an empty ledger.
    Restart(usize),
    /// Compacts all but this many records.
    Compact(usize),
}

fn moves() -> impl Strategy<Value = Move> {
    prop_oneof![
        5 => said().prop_map(Move::Write),
        6 => (0..3usize, 1..4usize).prop_map(|(server, count)| Move::Read(server, count)),
        4 => (0..3usize).prop_map(Move::Restate),
        1 => (0..3usize).prop_map(Move::Restart),
        1 => (0..4usize).prop_map(Move::Compact),
    ]
}

impl Fleet {
    fn write(&mut self, event: JobEvent, restated: Option<Restated>) -> Logged {
        let record = Logged { offset: self.next, event, restated };
        self.next += 1;
        self.log.push(record.clone());
        record
    }

    fn play(&mut self, one: &Move) {
        match *one {
            Move::Write(said) => {
                let record = self.write(event(said, self.next), None);
                self.written.push(record);
            }
            Move::Read(server, count) => self.read(server, count),
            Move::Restate(server) => {
                self.restate(server);
            }
            Move::Restart(server) => {
                self.servers[server] = Reader::default();
                self.has_gaps |= self.compacted;
            }
            Move::Compact(tail) => {
                let head = self.log.len().saturating_sub(tail);
                // The last record of a job stays, and here all records belong to one job.
                let gone = head.min(self.log.len().saturating_sub(1));
                self.log.drain(..gone);
                self.compacted |= gone > 0;
                for server in &mut self.servers {
                    self.has_gaps |= server.next < gone;
                    server.next = server.next.saturating_sub(gone);
                }
            }
        }
    }

    fn read(&mut self, server: usize, count: usize) {
        let reader = &mut self.servers[server];
        for record in self.log.iter().skip(reader.next).take(count) {
            reader.take(record);
            reader.next += 1;
        }
    }

    /// Acts as a server does: writes an overtaken state again and takes that record before its
    /// turn.
    fn restate(&mut self, server: usize) -> bool {
        let reader = &self.servers[server];
        let Some((standing, event)) =
            reader.job.clone().filter(|(standing, _)| standing.is_overtaken())
        else {
            return false;
        };

        let known = reader
            .next
            .checked_sub(1)
            .and_then(|last| self.log.get(last))
            .map(|record| record.offset);

        let restated = standing.restated(known.unwrap_or(standing.offset()));
        let record = self.write(event, Some(restated));
        self.servers[server].take(&record);
        true
    }

    /// Lets all servers read on in turns and write overtaken states again until nothing changes.
    /// Returns the number of records written.
    fn settle(&mut self) -> usize {
        let mut written = 0;
        loop {
            (0..3).for_each(|server| self.read(server, usize::MAX));
            let again = (0..3).filter(|server| self.restate(*server)).count();
            written += again;
            assert!(written <= 12, "the servers keep writing the state again: {self:#?}");
            if again == 0 {
                return written;
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn reading_in_order_gives_the_state_of_the_rule(said in prop::collection::vec(said(), 0..14)) {
        let log = log(&said);
        let reader = Reader::of(&log);
        prop_assert_eq!(reader.state(), expected(&log).map(|record| (record.offset, &record.event)));
    }

    /// Whatever is written after the end of the newest source.
    #[test]
    fn an_end_survives_later_events_of_the_same_or_older_sources(
        before in prop::collection::vec(said(), 0..8),
        late in prop::collection::vec((0..3u8, said()), 0..8),
    ) {
        let mut said = before;
        said.extend([(Some(2), Running), (None, Queued), (Some(7), Running), (Some(7), Succeeded)]);
        let end = said.len() - 1;
        let known: Vec<u8> = said.iter().filter_map(|(source, _)| *source).collect();
        said.extend(late.into_iter().map(|(at, (_, kind))| (Some(known[known.len() - 1 - usize::from(at)]), kind)));
        check(&said, end);
    }

    /// A server takes the record that it writes before it has read the records in between.
    #[test]
    fn a_record_may_be_taken_before_its_turn(
        parts in prop::array::uniform3(prop::collection::vec(said(), 0..6)),
    ) {
        let [before, unread, after] = parts;
        let (from, ahead) = (before.len(), before.len() + unread.len());
        let log = log(&[before, unread, vec![(None, Queued)], after].concat());
        let mut reader = Reader::of(&log[..from]);
        reader.take(&log[ahead]);
        for record in &log[from..] {
            reader.take(record);
        }
        prop_assert_eq!(reader.state(), expected(&log).map(|record| (record.offset, &record.event)));
    }

    /// Servers that write overtaken states again finish, agree, and leave a topic from which the
    /// same ledger can be rebuilt after compaction, whatever was read, forgotten and compacted at
    /// which time.
    #[test]
    fn compaction_preserves_the_state(moves in prop::collection::vec(moves(), 0..60)) {
        let mut fleet = Fleet::default();
        moves.iter().for_each(|one| fleet.play(one));
        fleet.settle();

        let brief = |reader: &Reader| reader.state().map(|(offset, event)| (offset, event.time, event.state));
        let states: Vec<_> = fleet.servers.iter().map(brief).collect();

        if !fleet.has_gaps {
            let state = expected(&fleet.written);
            let state = state.map(|record| (record.offset, record.event.time, record.event.state));
            prop_assert_eq!(&states, &vec![state; 3]);
        }
        // The state of a running job is not written again: its next event will be the state.
        if states.iter().all(|state| state.is_some_and(|(.., state)| state.is_terminal())) {
            let rebuilt = Reader::of(&fleet.log[fleet.log.len() - 1..]);
            prop_assert_eq!(&states, &vec![brief(&rebuilt); 3]);
        }
    }
}

#[test]
fn standings_keep_jobs_apart_and_remember_the_newest() {
    let log = log(&[(Some(0), Succeeded), (Some(0), Running)]);
    let (end, stale) = (log[0].entry(), log[1].entry());
    let mut standings = Standings::of_at_least(2);
    for job in ["a", "b", "c"] {
        assert_eq!(standings.take(job, &end), Verdict::State);
        assert_eq!(standings.take(job, &stale), Verdict::Stale);
    }

    // `a` is in the older half by now; this event keeps it from being forgotten.
    assert_eq!(standings.take("a", &stale), Verdict::Stale);
    assert_eq!(standings.take("d", &end), Verdict::State);
    assert_eq!(standings.take("a", &stale), Verdict::Stale);
    assert_eq!(standings.take("b", &stale), Verdict::State, "the job was forgotten");

    standings.forget(&"a");
    assert_eq!(standings.take("a", &stale), Verdict::State, "its tombstone was read");
}
