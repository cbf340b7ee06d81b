//! One failure at a chosen moment of a job's life: before its call, during the call, between its
//! end and the commit, and while its end can't be written. `chaos.rs` meets these moments by
//! chance; here they are produced deliberately, for the rows of the documentation's table of
//! failures.

use std::{fs, path::PathBuf};

use fleet_job::event::JobState;
use fleet_tests::{
    Env, Fleet, Oracle, chaos::ledger::Ledger, fleet::now, http, on_every_broker, oracle::Account,
    topics, topics::Record, wait,
};
use serde_json::{Value, json};

on_every_broker!(
    a_worker_is_killed_before_the_call,
    a_worker_is_killed_during_the_call,
    a_worker_is_killed_between_the_end_and_its_commit,
);

/// A job that has not started yet runs once, on the worker's successor.
fn a_worker_is_killed_before_the_call(env: &Env) {
    let mut case = Case::new(env, "before", &[]);
    // No other job of this key starts before the first one has ended, which takes longer than the
    // worker lives.
    case.submit("first", 2_000);
    case.submit("second", 10);
    case.called("first");
    case.replace_worker();
    let (account, ledger) = case.settle(0);
    assert_eq!(account.count(JobState::Succeeded), 2);
    assert_eq!(times(&ledger, "second"), 1);
}

/// The call is repeated, because its outcome is unknown. The interrupted attempt doesn't count.
fn a_worker_is_killed_during_the_call(env: &Env) {
    let mut case = Case::new(env, "during", &[]);
    let job = case.submit("job", 2_000);
    case.called("job");
    case.replace_worker();
    let (account, ledger) = case.settle(0);
    let end = account.of(&job);
    assert_eq!((end.state, end.attempts), (JobState::Succeeded, 1), "{end:?}");
    assert_eq!(times(&ledger, "job"), 2);
}

/// The only case in which a settled job runs and ends again. A server that remembers its result
/// doesn't call the tool a second time.
fn a_worker_is_killed_between_the_end_and_its_commit(env: &Env) {
    for (remembers, calls) in [(false, 2), (true, 1)] {
        killed_between_the_end_and_its_commit(env, remembers, calls);
    }
}

fn killed_between_the_end_and_its_commit(env: &Env, remembers: bool, calls: usize) {
    let mut case = Case::at(env, "between", &[("MCP_COMMIT_INTERVAL", "10m")], remembers);
    // The first commit comes at once, the next one only after ten minutes.
    case.submit("committed", 10);
    case.fleet.wait_for_all();
    let worker = case.fleet.workers[0].address;
    let commits = || http::metric(worker, "fleet_commits_total");
    wait::poll_until("the first commit", wait::LONG, || commits().filter(|commits| *commits > 0.0));
    let job = case.submit("not-yet", 10);
    case.fleet.wait_for_all();
    assert_eq!(case.committed(), Some(1));
    case.replace_worker();
    wait::poll_until("the end of the repeat", wait::LONG, || {
        let account = Oracle::new(&case.fleet.topic, &case.fleet.submitted).read(&env.brokers);
        (account.repeats == 1).then_some(())
    });
    let (account, ledger) = case.settle(1);
    let end = account.of(&job);
    assert_eq!((end.state, end.attempts), (JobState::Succeeded, 1), "{end:?}");
    assert_eq!((times(&ledger, "committed"), times(&ledger, "not-yet")), (1, calls));
}

mod apache_kafka_only {
    use super::*;

    /// I2: the end can't be written for a while, here because even its short form is too large for
    /// the topic. The offset is held, and the worker reports that. Once the topic accepts records
    /// again, the end is written without another call. It is the original end: if a broker had
    /// accepted that without acknowledging it, both would be identical.
    #[test]
    fn an_end_that_can_not_be_written_holds_the_offset() {
        let Some(env) = Env::apache_kafka() else { return };
        for (kind, failures) in [("events", 0), ("dlq", 1_000)] {
            // Allow one attempt, so that the failing job's only trace is its end.
            let mut case = Case::new(env, &format!("refused-{kind}"), &[("MCP_MAX_ATTEMPTS", "1")]);
            let topic = format!("{}.{kind}", case.fleet.topic);
            topics::set(&env.brokers, &topic, "max.message.bytes", "10");
            let job = case.submit_failing("job", failures);
            case.called("job");
            let worker = case.fleet.workers[0].address;
            wait::poll_until("a refused write", wait::LONG, || {
                let ready = http::get(worker, "/ready").ok()?.0;
                let failures = http::metric(worker, "fleet_write_failures_total")?;
                (ready != 200 && failures > 0.0).then_some(())
            });
            assert_eq!(case.committed().unwrap_or_default(), 0, "{kind}");
            let repaired = now();
            topics::set(&env.brokers, &topic, "max.message.bytes", "1000000");
            let (account, ledger) = case.settle(0);
            let state = if failures == 0 { JobState::Succeeded } else { JobState::Failed };
            assert_eq!((account.of(&job).state, account.of(&job).attempts), (state, 1), "{kind}");
            assert_eq!(times(&ledger, "job"), 1, "{kind}");
            let ended = account.of(&job).time;
            assert!(
                ended < repaired,
                "{kind}: the end of {ended} was created again after {repaired}"
            );
        }
    }
}

/// One partition, one worker, one key, and a tool that logs its calls.
struct Case<'e> {
    fleet: Fleet<'e>,
    ledger: PathBuf,
}

impl<'e> Case<'e> {
    fn new(env: &'e Env, name: &str, worker_env: &[(&str, &str)]) -> Self {
        Self::at(env, name, worker_env, false)
    }

    /// Creates the fleet with a server that remembers results, or one that doesn't.
    fn at(env: &'e Env, name: &str, worker_env: &[(&str, &str)], remembers: bool) -> Self {
        let mut fleet = Fleet::new(env, name, 1);
        let ledger = fleet.directory.join("ledger");
        fleet.start_tool_server(env!("CARGO_BIN_EXE_fixture_tools"), &ledger, remembers);
        for (name, value) in worker_env {
            fleet.worker_env(name, value);
        }
        fleet.start_worker();
        Self { fleet, ledger }
    }

    /// Submits a job of the key whose call takes this many milliseconds.
    fn submit(&mut self, id: &str, ms: u64) -> Record {
        self.submit_call(id, &json!({"ms": ms, "key": "k"}))
    }

    fn submit_failing(&mut self, id: &str, failures: u32) -> Record {
        self.submit_call(id, &json!({"failures": failures, "key": "k"}))
    }

    fn submit_call(&mut self, id: &str, arguments: &Value) -> Record {
        let job = json!({"jobID": id, "jobType": "tool-call",
            "payload": {"server": "chaos", "tool": "work", "arguments": arguments}});
        let record = topics::Outgoing::value(job.to_string()).key("k");
        self.fleet.submit(vec![record]).remove(0)
    }

    /// Waits until the call of a job has begun.
    fn called(&self, id: &str) {
        let start = format!("s {id} ");
        wait::poll_until(&format!("the call of {id}"), wait::LONG, || {
            fs::read_to_string(&self.ledger).ok()?.contains(&start).then_some(())
        });
    }

    fn replace_worker(&mut self) {
        self.fleet.workers.remove(0).process.kill();
        self.fleet.start_worker();
    }

    fn committed(&self) -> Option<i64> {
        let fleet = &self.fleet;
        topics::committed(&fleet.env.brokers, &fleet.group, &fleet.topic, 1)[0]
    }

    fn settle(mut self, repeats: usize) -> (Account, Ledger) {
        let account = self.fleet.settle(repeats);
        assert_eq!(account.repeats, repeats, "ends that were repeated");
        (account, Ledger::read(&self.ledger))
    }
}

/// The number of calls for a job.
fn times(ledger: &Ledger, id: &str) -> usize {
    ledger.calls.get(id).map(|attempts| attempts.values().sum()).unwrap_or_default()
}
