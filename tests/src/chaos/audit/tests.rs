//! The audit finds what it is for.

use fleet_job::event::{Source, Waiting};

use super::*;
use crate::{
    chaos::{evidence::UNWRITTEN, ledger::Overlap},
    topics::Outgoing,
};

fn end(worker: &str, at: i64, attempts: u32) -> JobEvent {
    let at = Timestamp::from_millis(at).expect("a time");
    let source = Source { topic: "jobs".into(), topic_id: None, partition: 0, offset: 0 };
    let bare = JobEvent::new("c0", JobState::Succeeded, at);
    JobEvent { attempts, worker: Some(worker.into()), source: Some(source), ..bare }
}

/// The violations of one job with these calls and ends, if worker `a` was lost at 100,000, the
/// server was killed at 150,000, the remote server was cut off at 170,000, and a broker was down
/// from 200,000 to 210,000.
fn wrong(ends: &[JobEvent], calls: &[(u32, usize)]) -> Vec<String> {
    wrong_by(&[], ends, calls)
}

fn wrong_by(witnesses: &[Witness], ends: &[JobEvent], calls: &[(u32, usize)]) -> Vec<String> {
    let mut account = Account::default();
    account.events.insert((0, 0), ends.iter().cloned().map(Arc::new).collect());
    // A server restates the first end if another end follows it.
    let first = ends.iter().find(|event| event.state.is_terminal()).expect("an end");
    account.last.insert((0, 0), Arc::new(first.clone()));
    audited(&account, witnesses, calls)
}

fn audited(account: &Account, witnesses: &[Witness], calls: &[(u32, usize)]) -> Vec<String> {
    let record = Record {
        partition: 0,
        offset: 0,
        timestamp: None,
        content: Outgoing::value("a job").key("k"),
    };

    let mut ledger = Ledger::default();
    ledger.calls.insert("c0".into(), calls.iter().copied().collect());
    let audit = Audit {
        account,
        plans: &[(record, Plan::Succeeds { failures: 1 })],
        ledger: &ledger,
        losses: vec![Loss { worker: "a".into(), from: 96_000, until: 100_000 }],
        outages: vec![(200_000, 210_000)],
        witnesses,
        cuts: vec![
            Cut { from: 150_000, until: 152_000, lost_calls: 1, only_remote: false },
            Cut { from: 170_000, until: 172_000, lost_calls: 1, only_remote: true },
        ],
        cancelled_late: &HashSet::new(),
        in_flight: 1,
    };

    audit.report().wrong
}

fn check(ends: &[JobEvent], calls: &[(u32, usize)], expected: &[&str]) {
    let wrong = wrong(ends, calls);
    assert_eq!(wrong.len(), expected.len(), "{wrong:?}");
    for (wrong, expected) in wrong.iter().zip(expected) {
        assert!(wrong.contains(expected), "{wrong} should be about {expected}");
    }
}

const CALLS: [(u32, usize); 2] = [(1, 1), (2, 1)];

#[test]
fn one_end_as_planned_is_no_violation() {
    check(&[end("a", 50_000, 2)], &CALLS, &[]);
}

fn running(at: i64) -> JobEvent {
    JobEvent { state: JobState::Running, ..end("b", at, 0) }
}

#[test]
fn a_cut_explains_one_more_attempt_of_a_job_that_it_met() {
    let calls = [(1, 1), (2, 1), (3, 1)];
    check(&[running(149_000), end("b", 153_000, 3)], &calls, &[]);
    check(&[running(149_000), end("b", 153_000, 4)], &calls, &["succeeded after 4 attempts"]);
    check(&[running(163_000), end("b", 164_000, 3)], &calls, &["succeeded after 3 attempts"]);
    check(&[running(169_000), end("b", 173_000, 3)], &calls, &["succeeded after 3 attempts"]);
}

#[test]
fn a_cut_explains_attempts_of_the_ends_that_followed_it() {
    let calls = [(1, 1), (2, 1), (3, 1)];
    check(&[end("a", 98_000, 2), end("b", 153_000, 3)], &calls, &[]);
    for ends in
        [[end("a", 98_000, 2), end("b", 107_000, 3)], [end("a", 98_000, 3), end("b", 153_000, 3)]]
    {
        check(&ends, &calls, &["succeeded after 3 attempts"]);
    }
}

#[test]
fn an_attempt_that_is_spent_on_an_outage_is_found() {
    let error = |kind, data| Some(JobError { data, ..JobError::new(kind, "no") });
    let busy = Some(serde_json::json!({"reason": "server-busy"}));
    for (error, is_wrong) in [
        (error(ErrorKind::Connect, None), true),
        (error(ErrorKind::JsonRpc, busy.clone()), true),
        (error(ErrorKind::ConnectionLost, None), false),
    ] {
        let failed = JobEvent { state: JobState::Retrying, error, ..end("b", 149_500, 1) };
        let events = [running(149_000), failed.clone(), end("b", 153_000, 2)];
        let expected = is_wrong.then_some("spent on an outage");
        check(&events, &CALLS, expected.as_slice());

        let waiting = Waiting {
            reason: "server-busy".into(),
            server: None,
            since: failed.time,
            ..Waiting::default()
        };
        let waits = JobEvent { waiting: Some(waiting), ..failed };
        check(&[running(149_000), waits, end("b", 153_000, 2)], &CALLS, &[]);
    }
}

#[test]
fn unplanned_and_missing_attempts_are_found() {
    check(&[end("a", 50_000, 3)], &[(1, 1), (2, 1), (3, 1)], &["succeeded after 3 attempts"]);
    check(&[end("a", 50_000, 2)], &[(2, 1)], &["2 attempts were reported"]);
    let beyond = [(1, 1), (2, 1), (MAX_ATTEMPTS + 1, 1)];
    check(&[end("a", 50_000, 2)], &beyond, &["2 attempts were reported"]);
}

#[test]
fn repeats_need_a_loss_that_explains_them() {
    check(&[end("a", 98_000, 2), end("b", 107_000, 2)], &CALLS, &[]);
    // The end was committed long before the worker was killed; the worker was not killed.
    check(&[end("a", 90_000, 2), end("b", 107_000, 2)], &CALLS, &["ended twice for no reason"]);
    check(&[end("c", 98_000, 2), end("b", 107_000, 2)], &CALLS, &["ended twice for no reason"]);
}

#[test]
fn an_end_is_written_again_by_the_same_worker_and_in_an_outage_only() {
    check(&[end("b", 201_000, 2), end("b", 205_000, 2)], &CALLS, &[]);
    check(&[end("b", 301_000, 2), end("b", 305_000, 2)], &CALLS, &["ended twice for no reason"]);
    check(&[end("b", 201_000, 2), end("c", 205_000, 2)], &CALLS, &["ended twice for no reason"]);
}

/// If a broker answers too late, a worker logs that and writes an end again; the job itself has
/// run once.
#[test]
fn an_end_may_be_written_again_after_a_missing_acknowledgement() {
    let directory = crate::bins::scratch("audit");
    crate::process::remove_at_exit(&directory);
    let at = Timestamp::from_millis(304_000).expect("a time");
    let log = directory.join("log");
    let line =
        format!("{at} ERROR shell: {UNWRITTEN}; its offset is held and it is written again\n");
    std::fs::write(&log, line).expect("a log");
    let said = [Witness { worker: "b".into(), log }];
    let twice = [end("b", 301_000, 2), end("b", 301_001, 2)];
    assert_eq!(wrong_by(&said, &twice, &CALLS), [] as [String; 0]);

    for (ends, calls) in [
        (&twice, &[(1, 1), (2, 2)]),
        (&[end("b", 280_000, 2), end("b", 280_001, 2)], &CALLS),
        (&[end("c", 301_000, 2), end("c", 301_001, 2)], &CALLS),
    ] {
        let wrong = wrong_by(&said, ends, calls);
        assert!(wrong.iter().any(|wrong| wrong.contains("ended twice for no reason")), "{wrong:?}");
    }
}

#[test]
fn a_newest_event_that_is_not_the_first_end_is_found() {
    let ends = [end("a", 98_000, 2), end("b", 107_000, 2)];
    let mut account = Account::default();
    account.last.insert((0, 0), Arc::new(ends[1].clone()));
    account.events.insert((0, 0), ends.iter().cloned().map(Arc::new).collect());

    let wrong = audited(&account, &[], &CALLS);

    assert!(wrong.len() == 1 && wrong[0].contains("its newest event is"), "{wrong:?}");
}

#[test]
fn overlaps_and_a_wrong_order_are_found() {
    let account = Account::default();
    let overlap =
        |zombies| Overlap { key: "k".into(), job: "c2".into(), during: "c1".into(), zombies };
    let ledger = Ledger {
        order: BTreeMap::from([(
            "k".to_owned(),
            vec!["c9".to_owned(), "c10".to_owned(), "c3".to_owned()],
        )]),
        overlaps: vec![overlap(true), overlap(false)],
        ..Ledger::default()
    };

    let (losses, outages) = (Vec::new(), Vec::new());
    let audit = Audit {
        account: &account,
        plans: &[],
        ledger: &ledger,
        losses,
        outages,
        witnesses: &[],
        cuts: Vec::new(),
        cancelled_late: &HashSet::new(),
        in_flight: 1,
    };

    let wrong = audit.report().wrong;
    assert!(wrong.iter().any(|wrong| wrong.contains("c3 started after c10")), "{wrong:?}");
    assert_eq!(wrong.iter().filter(|wrong| wrong.contains("Overlap")).count(), 1, "{wrong:?}");
}
