//! `mcp-fleet dlq` and `mcp-fleet lag` on real dead letters: list, show, replay, the loop guard,
//! resuming, purge.

#![expect(clippy::expect_used, reason = "a panic is the report of a test")]

use std::{collections::BTreeMap, fs, io::Write as _, process::Stdio, time::SystemTime};

use fleet_job::{dead_letter::header, event::JobState, time::Timestamp};
use fleet_tests::{
    Env, Fleet, bins,
    fleet::ServerOptions,
    on_every_broker,
    process::{self, Process},
    topics::{self, Outgoing, Record},
    wait,
};
use serde_json::{Value, json};

on_every_broker!(
    a_dead_letter_is_shown_and_replayed,
    a_job_that_fails_after_each_replay_is_parked,
    a_job_with_two_letters_runs_once,
    max_takes_the_oldest_and_the_next_run_goes_on,
    a_killed_replay_goes_on_and_repeats_one_job_at_most,
    a_letter_without_its_value_is_reported_and_left,
    lag_counts_unsettled_jobs,
    jobs_without_a_key_spread_evenly,
    purge_asks_first,
);

/// A job whose file appears only after the job has failed, and a record that is not a job.
fn a_dead_letter_is_shown_and_replayed(env: &Env) {
    let mut fleet = fleet(env, "dlq-replay", 3);
    fleet.start_worker();
    let original = Outgoing::value(read("late", "later.txt").to_string())
        .key([0xff_u8, 0x00])
        .header("x-own", [0xff_u8, 0xfe])
        .header("x-own", "second")
        .header(header::ORIGINAL_OFFSET, "the producer's own");
    let late = fleet.submit(vec![original.clone()]).remove(0);
    fleet.submit(vec![Outgoing::value("no job at all")]);
    fleet.submit_job(&read("good", "hello.txt"));
    fleet.wait_for_all();

    let list = json_of(&fleet, &["dlq", "list", "--json"]);
    assert_eq!((&list["letters"], &list["replayed"]), (&json!(2), &json!(0)), "{list}");
    let reasons: BTreeMap<_, _> =
        array(&list["reasons"]).iter().map(|r| (text(&r["kind"]), r)).collect();
    assert_eq!(reasons.keys().copied().collect::<Vec<_>>(), ["tool", "undecodable"], "{list}");
    assert_eq!(reasons["tool"]["about"], "file_read", "{list}");
    assert_eq!(array(&list["newestLetters"]).len(), 2, "{list}");

    let tools = json_of(&fleet, &["dlq", "list", "--json", "--reason", "tool", "--since", "1h"]);
    assert_eq!(tools["letters"], 1, "{tools}");
    let future = json_of(&fleet, &["dlq", "list", "--json", "--since", "2999-01-01T00:00:00Z"]);
    assert_eq!(future["letters"], 0, "{future}");

    let table = run(&fleet, &["dlq", "list"]).success();
    assert!(table.contains("undecodable") && table.contains("late"), "{table}");

    let shown = json_of(&fleet, &["dlq", "show", "late", "--json"]);
    assert_eq!(shown["value"]["text"], read("late", "later.txt").to_string(), "{shown}");
    assert_eq!(shown["key"]["base64"], "/wA=", "{shown}");
    assert_eq!(shown["origin"]["offset"], late.offset, "{shown}");
    assert_eq!((&shown["attempts"], &shown["replayCount"]), (&json!(1), &json!(0)), "{shown}");

    let partition =
        array(&shown["headers"]).iter().find(|h| h["name"] == header::ORIGINAL_PARTITION);
    assert_eq!(partition.expect("the partition's header")["value"], late.partition, "{shown}");

    let by_letter = json_of(&fleet, &["dlq", "show", text(&shown["letter"]), "--json"]);
    let place = format!("{}/{}/{}", fleet.topic, late.partition, late.offset);
    let by_record = json_of(&fleet, &["dlq", "show", &place, "--json"]);
    assert_eq!((&by_letter, &by_record), (&shown, &shown));
    assert_eq!(run(&fleet, &["dlq", "show", "nobody"]).code, 1);

    let dry = json_of(&fleet, &["dlq", "replay", "--job", "late", "--dry-run", "--json"]);
    assert_eq!((&dry["toReplay"], &dry["replayed"]), (&json!(1), &json!(0)), "{dry}");
    assert_eq!(replays(&fleet), []);

    fs::write(fleet.files().join("later.txt"), "here I am").expect("the file that was missing");
    let done = json_of(&fleet, &["dlq", "replay", "--job", "late", "--json"]);
    assert_eq!((&done["replayed"], &done["alreadyReplayed"]), (&json!(1), &json!(0)), "{done}");

    let replayed = replays(&fleet);
    let [back] = &replayed[..] else { panic!("one replay: {replayed:?}") };
    assert_eq!(back.content, original.header(header::REPLAY_COUNT, "1"));

    let again = nothing_to_replay(&fleet, &["--job", "late"]);
    assert_eq!((&again["replayed"], &again["alreadyReplayed"]), (&json!(0), &json!(1)), "{again}");
    let nobody = nothing_to_replay(&fleet, &["--job", "nobody"]);
    assert_eq!(nobody["toReplay"], 0, "{nobody}");
    assert_eq!(replays(&fleet).len(), 1);

    let list = json_of(&fleet, &["dlq", "list", "--json"]);
    assert_eq!((&list["letters"], &list["replayed"]), (&json!(2), &json!(1)), "{list}");

    adopt_replays(&mut fleet);
    let account = fleet.settle(0);
    assert_eq!(account.of(back).state, JobState::Succeeded);
    assert_eq!(account.of(back).attempts, 1, "a replay starts with all of its attempts");
}

/// The count survives each failure, because the next dead letter has the record's own headers.
fn a_job_that_fails_after_each_replay_is_parked(env: &Env) {
    let mut fleet = fleet(env, "dlq-loop", 2);
    fleet.start_worker();
    fleet.submit_job(&read("poison", "never there"));
    fleet.wait_for_all();
    let replay = ["dlq", "replay", "--max-replays", "2", "--json"];
    for round in 1..=2 {
        let done = json_of(&fleet, &replay);
        assert_eq!(
            (&done["replayed"], &done["parked"]),
            (&json!(1), &json!(0)),
            "round {round}: {done}"
        );
        adopt_replays(&mut fleet);
        fleet.wait_for_all();
    }

    let done = nothing_to_replay(&fleet, &["--max-replays", "2"]);
    assert_eq!((&done["replayed"], &done["parked"]), (&json!(0), &json!(1)), "{done}");
    assert_eq!(done["alreadyReplayed"], 2, "{done}");

    let human = run(&fleet, &["dlq", "replay", "--max-replays", "2"]);
    assert!(
        human.code == 1 && human.stdout.contains("poison") && human.stdout.contains("parked"),
        "{human:?}"
    );

    let letters = run(&fleet, &["dlq", "show", "poison", "--json"]).lines();
    let counts: Vec<_> = letters.iter().map(|letter| letter["replayCount"].clone()).collect();
    assert_eq!(counts, [0, 1, 2]);

    let counts: Vec<_> = replays(&fleet).iter().map(count).collect();
    assert_eq!(counts, [1, 2]);
    fleet.settle(0);
}

fn max_takes_the_oldest_and_the_next_run_goes_on(env: &Env) {
    let mut fleet = fleet(env, "dlq-max", 1);
    fleet.start_worker();
    for n in 0..5 {
        fleet.submit(vec![Outgoing::value(format!("no job {n}")).key("one key")]);
    }

    fleet.wait_for_all();
    fleet.stop_workers();
    let first = json_of(&fleet, &["dlq", "replay", "--max", "2", "--json"]);
    assert_eq!((&first["replayed"], &first["left"]), (&json!(2), &json!(3)), "{first}");

    let second = json_of(&fleet, &["dlq", "replay", "--json"]);
    assert_eq!(
        (&second["replayed"], &second["alreadyReplayed"]),
        (&json!(3), &json!(2)),
        "{second}"
    );

    let values: Vec<_> = replays(&fleet).iter().map(Record::text).collect();
    assert_eq!(values, ["no job 0", "no job 1", "no job 2", "no job 3", "no job 4"]);
}

/// For example, the job's record was submitted twice, or its worker was killed between the dead
/// letter and the commit.
fn a_job_with_two_letters_runs_once(env: &Env) {
    let mut fleet = fleet(env, "dlq-twice", 1);
    fleet.start_worker();
    for _ in 0..2 {
        fleet.submit(vec![Outgoing::value(read("twice", "../not allowed").to_string())]);
    }
    fleet.wait_for_all();
    fleet.stop_workers();

    let done = json_of(&fleet, &["dlq", "replay", "--json"]);
    assert_eq!((&done["replayed"], &done["superseded"]), (&json!(1), &json!(1)), "{done}");
    let again = nothing_to_replay(&fleet, &[]);
    assert_eq!(
        (&again["alreadyReplayed"], &again["superseded"]),
        (&json!(1), &json!(1)),
        "{again}"
    );
    assert_eq!(replays(&fleet).len(), 1);

    let every = json_of(&fleet, &["dlq", "replay", "--every-letter", "--json"]);
    assert_eq!((&every["replayed"], &every["superseded"]), (&json!(1), &json!(0)), "{every}");
    assert_eq!(replays(&fleet).len(), 2);
}

/// Nothing listens on port 1 of this machine.
#[test]
fn a_command_reports_what_it_waits_for() {
    let directory = bins::scratch("patience");
    process::remove_at_exit(&directory);
    let submit = &["submit", "--tool", "t"][..];
    let commands =
        [submit, &["events"], &["lag"], &["dlq", "list"], &["topics", "create"]].map(|args| {
            let mut command = std::process::Command::new(bins::bin("mcp-fleet"));
            command.args(args).args(["--brokers", "127.0.0.1:1"]);
            Process::start(args[0], &directory, command)
        });
    for mut command in commands {
        command.says("waiting for a response from Kafka at 127.0.0.1:1", wait::LONG);
        command.kill();
    }
}

/// After SIGKILL in the middle, letters that were replayed and marked are not replayed again.
fn a_killed_replay_goes_on_and_repeats_one_job_at_most(env: &Env) {
    const LETTERS: usize = 300;
    let mut fleet = fleet(env, "dlq-killed", 2);
    fleet.start_worker();
    fleet.submit((0..LETTERS).map(|n| Outgoing::value(format!("no job {n}"))).collect());
    fleet.wait_for_all();
    fleet.stop_workers();
    let output = fleet.directory.join("replay.out");
    let mut command = std::process::Command::new("sh");
    command
        .args(["-c", r#"exec "$1" dlq replay --json >"$2""#, "sh"])
        .arg(bins::bin("mcp-fleet"))
        .arg(&output)
        .envs(environment(&fleet));
    let mut replay = Process::start("dlq-replay", &fleet.directory, command);
    replay.wait_until("its first fifty letters", wait::LONG, || {
        (fs::read_to_string(&output).ok()?.lines().count() >= 50).then_some(())
    });
    replay.kill();
    let before = replays(&fleet).len();
    assert!(
        (50..LETTERS).contains(&before),
        "{before} were replayed before the kill: the test shows nothing"
    );

    let done = json_of(&fleet, &["dlq", "replay", "--json"]);
    assert_eq!(done["failed"], 0, "{done}");
    let mut times = BTreeMap::new();
    for record in replays(&fleet) {
        *times.entry(record.text()).or_insert(0) += 1;
    }
    assert_eq!(times.len(), LETTERS, "every letter was replayed");

    let total: usize = times.values().sum();
    assert!(total <= LETTERS + 1, "{} jobs were repeated", total - LETTERS);
}

/// A worker writes such a letter if the topic doesn't accept records of the original's size.
fn a_letter_without_its_value_is_reported_and_left(env: &Env) {
    let fleet = Fleet::new(env, "dlq-bare", 1);
    let reasons = |topic: &str| {
        Outgoing::default()
            .header(header::ORIGINAL_TOPIC, topic)
            .header(header::ORIGINAL_PARTITION, 0_i32.to_be_bytes())
            .header(header::ORIGINAL_OFFSET, 7_i64.to_be_bytes())
            .header(header::EXCEPTION_FQCN, "mcp-fleet.too-large")
            .header(header::JOB_ID, "large")
    };

    let letters = vec![
        reasons(&fleet.topic).header(header::VALUE_OMITTED, "5000000"),
        reasons("another-topic").header(header::WORKER, "w"),
        Outgoing::value("an unrelated record"),
    ];
    topics::produce(&env.brokers, &format!("{}.dlq", fleet.topic), letters);
    let done = nothing_to_replay(&fleet, &[]);
    let counts = ["replayed", "valueOmitted", "foreign", "parked"].map(|name| done[name].clone());
    assert_eq!(counts, [0, 1, 2, 0].map(Value::from), "{done}");

    let shown = run(&fleet, &["dlq", "show", "large", "--json"]).lines();
    assert_eq!(shown[0]["valueOmittedBytes"], 5_000_000, "{shown:?}");
    assert_eq!(replays(&fleet), []);
}

/// One job waits for its time, one for its next attempt, and ten behind them have ended.
fn lag_counts_unsettled_jobs(env: &Env) {
    let mut fleet = Fleet::new(env, "lag", 1);
    let (roots, allowed) = (vec![fleet.files()], vec!["false".to_owned()]);
    fleet.start_server(&ServerOptions { roots, allowed, ..ServerOptions::default() });
    for (name, value) in
        [("MCP_RETRY_BASE", "60s"), ("MCP_RETRY_MAX", "60s"), ("MCP_MAX_ATTEMPTS", "100")]
    {
        fleet.worker_env(name, value);
    }
    let mut later = read("later", "hello.txt");
    later["notBefore"] = json!(in_two_minutes().to_string());

    // A program that exits at once may work the next time, so the job is retried.
    let arguments = json!({"name": "failing", "config": {"command": "false"}});
    let failing = json!({"jobID": "failing", "jobType": "tool-call",
        "payload": {"tool": "server_initialize", "arguments": arguments}});
    let jobs = [later, failing];
    let jobs = jobs.into_iter().chain((0..10).map(|n| read(&format!("good-{n}"), "hello.txt")));
    fleet.submit(jobs.map(|job| Outgoing::value(job.to_string())).collect());
    let lag = ["lag", "--json"];
    let before = json_of(&fleet, &lag);
    assert_eq!((&before["lag"], &before["remaining"]), (&json!(12), &json!(12)), "{before}");
    assert_eq!(before["partitions"][0]["committed"], Value::Null, "{before}");
    assert!(before["oldestAgeMs"].is_u64(), "{before}");

    fleet.start_worker();
    let numbers = |report: &Value| {
        ["lag", "done", "remaining", "open", "retried"]
            .map(|name| report[name].as_i64().unwrap_or(-1))
    };
    wait::poll_until_ok("the lag of two waiting jobs", wait::LONG, || {
        let report = json_of(&fleet, &lag);
        if numbers(&report) == [12, 10, 2, 2, 1] { Ok(()) } else { Err(report) }
    });
    let table = run(&fleet, &["lag"]).success();
    let total = table.lines().last().expect("a last line").split_whitespace();
    assert_eq!(total.take(6).collect::<Vec<_>>(), ["total", "12", "10", "2", "2", "1"], "{table}");
}

/// A burst of jobs without a key is spread over all partitions.
fn jobs_without_a_key_spread_evenly(env: &Env) {
    let fleet = Fleet::new(env, "spread", 12);
    let lines: String =
        (0..1200).map(|n| format!("{}\n", read(&format!("spread-{n}"), "f"))).collect();
    typed(&fleet, &["submit", "-"], &lines).success();

    let mut counts = BTreeMap::new();
    for record in topics::read(&env.brokers, &fleet.topic) {
        *counts.entry(record.partition).or_insert(0) += 1;
    }

    let even: BTreeMap<_, _> = (0..12).map(|partition| (partition, 100)).collect();
    assert_eq!(counts, even, "jobs without a key take turns");
}

fn purge_asks_first(env: &Env) {
    let mut fleet = fleet(env, "dlq-purge", 1);
    fleet.start_worker();
    fleet.submit((0..3).map(|n| Outgoing::value(format!("no job {n}"))).collect());
    fleet.wait_for_all();
    fleet.stop_workers();
    let letters = || json_of(&fleet, &["dlq", "list", "--json"])["letters"].clone();
    if env.is_embedded() {
        let refused = run(&fleet, &["dlq", "purge", "--all", "--yes"]);
        assert!(refused.code == 1 && refused.stderr.contains("embedded"), "{refused:?}");
        assert_eq!(letters(), 3);
        return;
    }

    let refused = typed(&fleet, &["dlq", "purge", "--all"], "yes\n");
    assert_eq!((refused.code, letters()), (1, json!(3)), "{refused:?}");
    assert!(refused.stderr.contains(&fleet.topic), "{refused:?}");
    assert_eq!(run(&fleet, &["dlq", "purge"]).code, 2, "neither --before nor --all");

    let none = json_of(&fleet, &["dlq", "purge", "--before", "1h", "--yes", "--json"]);
    assert_eq!((&none["deleted"], letters()), (&json!(0), json!(3)), "{none}");
    let name = format!("{}.dlq\n", fleet.topic);
    let purged = typed(&fleet, &["dlq", "purge", "--all", "--json"], &name);
    assert_eq!((purged.code, letters()), (0, json!(0)), "{purged:?}");
}

// --- Helpers ------------------------------------------------------------------------------------

/// The outcome of a command.
#[derive(Debug)]
struct Ran {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Ran {
    fn success(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.stdout
    }

    /// The output, as one JSON value per line.
    fn lines(self) -> Vec<Value> {
        let text = self.success();
        let parse = |line: &str| {
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"))
        };
        text.lines().map(parse).collect()
    }
}

fn run(fleet: &Fleet<'_>, args: &[&str]) -> Ran {
    typed(fleet, args, "")
}

/// Runs a command with `input` on standard input.
fn typed(fleet: &Fleet<'_>, args: &[&str], input: &str) -> Ran {
    let mut child = std::process::Command::new(bins::bin("mcp-fleet"))
        .args(args)
        .envs(environment(fleet))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("mcp-fleet");

    // A command that asks for nothing may have exited already.
    child.stdin.take().expect("its input").write_all(input.as_bytes()).ok();
    let output = child.wait_with_output().expect("its output");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
    Ran {
        code: output.status.code().unwrap_or(-1),
        stdout: text(output.stdout),
        stderr: text(output.stderr),
    }
}

fn environment(fleet: &Fleet<'_>) -> [(&'static str, String); 3] {
    [
        ("KAFKA_BROKERS", fleet.env.brokers.clone()),
        ("KAFKA_TOPIC", fleet.topic.clone()),
        ("MCP_CONSUMER_GROUP", fleet.group.clone()),
    ]
}

/// The last JSON value that a command prints.
fn json_of(fleet: &Fleet<'_>, args: &[&str]) -> Value {
    run(fleet, args).lines().pop().unwrap_or_else(|| panic!("{args:?} printed nothing"))
}

/// The summary of a `dlq replay` that has nothing to do.
fn nothing_to_replay(fleet: &Fleet<'_>, args: &[&str]) -> Value {
    let ran = run(fleet, &[&["dlq", "replay", "--json"][..], args].concat());
    assert_eq!(ran.code, 1, "{ran:?}");
    let last = ran.stdout.lines().last().unwrap_or_else(|| panic!("{ran:?}"));
    serde_json::from_str(last).unwrap_or_else(|error| panic!("{error}: {last}"))
}

/// A fleet whose server reads files, and whose jobs have two attempts.
fn fleet<'e>(env: &'e Env, name: &str, partitions: i32) -> Fleet<'e> {
    let mut fleet = Fleet::new(env, name, partitions);
    fleet.start_file_server();
    fleet.worker_env("MCP_MAX_ATTEMPTS", "2");
    fleet
}

fn read(id: &str, path: &str) -> Value {
    json!({"jobID": id, "jobType": "tool-call",
        "payload": {"tool": "file_read", "arguments": {"path": path}}})
}

/// The records that were replayed to the jobs topic.
fn replays(fleet: &Fleet<'_>) -> Vec<Record> {
    let mut records = topics::read(&fleet.env.brokers, &fleet.topic);
    records.retain(|record| record.header(header::REPLAY_COUNT).is_some());
    records.sort_by_key(|record| (count(record), record.partition, record.offset));
    records
}

fn count(record: &Record) -> u32 {
    let text = record.header(header::REPLAY_COUNT).map(String::from_utf8_lossy).unwrap_or_default();
    text.parse().unwrap_or_else(|error| panic!("{error}: {text}"))
}

/// Adds the replays to the submitted records, so that the oracle checks them, too.
fn adopt_replays(fleet: &mut Fleet<'_>) {
    fleet.submitted = topics::read(&fleet.env.brokers, &fleet.topic);
}

fn in_two_minutes() -> Timestamp {
    let now = SystemTime::UNIX_EPOCH.elapsed().expect("a clock").as_millis();
    Timestamp::from_millis_clamped(i64::try_from(now).expect("this century") + 120_000)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_else(|| panic!("no text: {value}"))
}

fn array(value: &Value) -> &[Value] {
    value.as_array().unwrap_or_else(|| panic!("no array: {value}"))
}
