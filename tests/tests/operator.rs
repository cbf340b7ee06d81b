//! The operator's commands about tools, hosted servers, submissions and the whole fleet.

#![expect(clippy::expect_used, reason = "a panic is the report of a test")]

use std::{
    collections::BTreeSet,
    fs,
    io::Write as _,
    net::SocketAddr,
    path::Path,
    process::{Command, Stdio},
};

use fleet_tests::{
    Env, Fleet, bins,
    fleet::{ServerOptions, Standalone},
    on_every_broker, process,
    process::Process,
    rest, topics, wait,
};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

on_every_broker!(
    a_file_is_submitted_once_through_the_server,
    the_status_of_a_fleet_says_what_is_wrong,
    the_workers_are_listed_with_their_partitions_and_jobs,
    an_export_has_every_job_once_and_can_be_continued,
);

/// What a command has printed.
#[derive(Debug)]
struct Printed {
    code: i32,
    stdout: String,
    stderr: String,
}

impl Printed {
    /// Expects success and returns standard output.
    fn success(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.stdout
    }

    /// Expects this exit code and all of these texts on standard error.
    fn fails(self, code: i32, texts: &[&str]) {
        assert_eq!(self.code, code, "{self:?}");
        for text in texts {
            assert!(self.stderr.contains(text), "{text}: {self:?}");
        }
    }
}

/// A terminal of an operator: the environment of the commands.
struct Operator {
    env: Vec<(String, String)>,
}

impl Operator {
    /// An operator who knows a server, by its address alone.
    fn of(server: SocketAddr) -> Self {
        Self { env: vec![("MCP_SERVER_URL".to_owned(), server.to_string())] }
    }

    /// An operator who knows Kafka, too.
    fn of_fleet(fleet: &Fleet<'_>) -> Self {
        let mut operator = Self::of(fleet.server.as_ref().expect("the server").address);
        operator.env.extend([
            ("KAFKA_BROKERS".to_owned(), fleet.env.brokers.clone()),
            ("KAFKA_TOPIC".to_owned(), fleet.topic.clone()),
            ("MCP_CONSUMER_GROUP".to_owned(), fleet.group.clone()),
        ]);
        operator
    }

    fn run(&self, args: &[&str]) -> Printed {
        self.run_with(args, "")
    }

    /// Runs a command that reads `input`.
    fn run_with(&self, args: &[&str], input: &str) -> Printed {
        let mut child = Command::new(bins::bin("mcp-fleet"))
            .args(args)
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("mcp-fleet");
        let mut stdin = child.stdin.take().expect("its standard input");
        // A command that does not read it has closed it.
        drop(stdin.write_all(input.as_bytes()));
        drop(stdin);
        let output = child.wait_with_output().expect("its end");
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("UTF-8");
        Printed {
            code: output.status.code().expect("an exit code"),
            stdout: text(output.stdout),
            stderr: text(output.stderr),
        }
    }
}

fn json_lines(text: &str) -> Vec<Value> {
    let parse =
        |line: &str| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
    text.lines().map(parse).collect()
}

#[test]
fn tools_are_listed_described_and_called() {
    let options =
        ServerOptions { args: vec!["--conformance".to_owned()], ..ServerOptions::default() };
    let server = Standalone::start_with("operator-tools", options);
    let operator = Operator::of(server.service.address);

    let listed = operator.run(&["tools", "list", "file_"]).success();
    assert!(listed.contains("file_read") && !listed.contains("server_list"), "{listed}");
    let listed = operator.run(&["tools", "list", "--json"]).success();
    assert!(json_lines(&listed).iter().any(|tool| tool["name"] == "server_list"), "{listed}");
    let shown = operator.run(&["tools", "show", "file_read"]).success();
    assert!(shown.contains("path") && shown.contains("tools call file_read path=…"), "{shown}");

    // Arguments are typed by the schema, and a result that is structured is printed once.
    let call = ["tools", "call", "file_read", "path=hello.txt", "limit=5"];
    let printed = operator.run(&call).success();
    assert_eq!(printed.matches("hello").count(), 2, "its path and its content: {printed}");
    let structured = operator.run(&[&call[..], &["-o", "structured"]].concat()).success();
    assert_eq!(json_lines(&structured)[0]["content"], "hello");
    let whole = ["tools", "call", "file_read", "--args-file", "-", "-o", "json"];
    let whole = operator.run_with(&whole, r#"{"path": "hello.txt"}"#).success();
    assert!(json_lines(&whole)[0]["content"].is_array(), "{whole}");
    assert_eq!(operator.run(&[&call[..], &["-o", "none"]].concat()).success(), "");

    // An image is saved and named.
    let pictures = server.directory.join("pictures");
    let directory = pictures.to_str().expect("UTF-8");
    let image = operator.run(&["tools", "call", "test_image_content", "--save", directory]);
    let image = image.success();
    assert!(image.contains("saved ") && image.contains("image/png"), "{image}");
    let saved = fs::read(pictures.join("test_image_content-1.png")).expect("the image");
    assert!(saved.starts_with(b"\x89PNG"), "{saved:?}");
    let image = operator.run(&["tools", "call", "test_image_content"]).success();
    assert!(image.contains("--save DIR"), "{image}");

    // Wrong use says what was meant.
    operator
        .run(&["tools", "call", "file_raed", "path=hello.txt"])
        .fails(1, &["did you mean `file_read`?", "FLEET-UNKNOWN-TOOL"]);
    operator
        .run(&["tools", "call", "file_read", "pth=hello.txt"])
        .fails(1, &["did you mean `path`?", "FLEET-TOOL-ARGUMENTS"]);
    operator
        .run(&["tools", "call", "file_read", "path=hello.txt", "limit=five"])
        .fails(1, &["must be an integer", "`five`"]);
    operator.run(&["tools", "call", "file_read"]).fails(1, &["needs `path`"]);
    operator
        .run(&["tools", "call", "file_read", "path=no such file"])
        .fails(1, &["file_read failed: ", "FLEET-TOOL"]);
    operator
        .run(&["tools", "list", "--server", "127.0.0.1:1"])
        .fails(1, &["no mcp-server responds", "FLEET-NO-SERVER"]);
    operator.run(&["tools", "list", "--server", "files"]).fails(1, &["SERVER__TOOL"]);
}

/// The command line of the scripted tool, which logs its calls in `directory`.
fn fixture(directory: &Path) -> [String; 2] {
    let log = directory.join("calls");
    [env!("CARGO_BIN_EXE_fixture_tools").to_owned(), log.to_str().expect("UTF-8").to_owned()]
}

#[test]
fn servers_are_added_checked_and_removed() {
    let directory = bins::scratch("operator-servers");
    process::remove_at_exit(&directory);
    let [program, log] = fixture(&directory);
    let options =
        ServerOptions { allowed: vec![format!("{program} {log}")], ..ServerOptions::default() };
    let server = Standalone::start_with("operator-servers", options);
    let operator = Operator::of(server.service.address);

    let file = directory.join("mcp.json");
    let file = file.to_str().expect("UTF-8");
    let config = json!({"mcpServers": {
        "good": {"command": program, "args": [log]},
        "bad": {"command": "rm", "args": ["-rf", "/tmp/x"]},
    }});
    fs::write(file, config.to_string()).expect("a file");

    let added = operator.run(&["servers", "add", file]);
    assert!(added.stdout.contains("good: hosted (stdio, pid"), "{added:?}");
    assert!(added.stdout.contains("good__work"), "{added:?}");
    added.fails(1, &["server \"bad\" is not hosted", "FLEET-POLICY-COMMAND"]);
    let added = operator.run(&["servers", "add", "--name", "more", "--json", "--", &program, &log]);
    assert_eq!(json_lines(&added.success())[0]["name"], "more");

    let listed = operator.run(&["servers", "list"]).success();
    assert!(listed.contains("good") && listed.contains("more"), "{listed}");
    assert!(operator.run(&["servers", "check"]).success().contains("good: works"));
    assert!(operator.run(&["tools", "list", "--of", "more"]).success().contains("more__work"));

    // Called without a job, this tool fails.
    operator.run(&["tools", "call", "more__work"]).fails(1, &["as it was asked to, it fails"]);

    let restarted = operator.run(&["servers", "restart", "more"]).success();
    assert_eq!(restarted, "restarted more\n");
    let unknown = operator.run(&["servers", "restart", "moer", "good"]);
    assert!(unknown.code == 1 && unknown.stdout == "restarted good\n", "{unknown:?}");
    let removed = operator.run(&["servers", "remove", "more"]).success();
    assert_eq!(removed, "removed more\n");
    operator.run(&["servers", "remove", "more"]).fails(1, &["FLEET-UNKNOWN-SERVER"]);
    let checked = operator.run(&["servers", "check", "moer", "good"]);
    assert!(checked.code == 1 && checked.stdout.contains("moer: is not hosted"), "{checked:?}");
    operator.run(&["servers", "logs", "goood"]).fails(1, &["did you mean `good`?"]);
}

/// One of the servers of the file can be started only later, and one never.
#[test]
fn servers_of_a_file_are_hosted_from_the_start_and_tried_again() {
    let directory = bins::scratch("static-servers");
    process::remove_at_exit(&directory);
    let [program, log] = fixture(&directory);
    let later = directory.join("later");
    let later = later.to_str().expect("UTF-8");
    let file = directory.join("mcp.json");
    let config = json!({"mcpServers": {
        "now": {"command": program, "args": [log]},
        "later": {"command": later, "args": [log]},
        "never": {"command": "rm", "args": ["-rf", "/tmp/x"]},
        "off": {"command": "rm", "disabled": true},
    }});
    fs::write(&file, config.to_string()).expect("a file");

    let options = ServerOptions {
        allowed: vec![format!("{program} {log}"), format!("{later} {log}")],
        args: vec![format!("--servers={}", file.display())],
        ..ServerOptions::default()
    };
    let server = Standalone::start_with("static-servers", options);
    let states = || {
        let answer = server.service.call("server_list", &json!({}));
        let servers = answer["result"]["structuredContent"]["servers"].clone();
        let servers = servers.as_array().cloned().unwrap_or_default();
        let state = |name: &str| {
            let server = servers.iter().find(|server| server["name"] == name)?;
            Some(server["state"].as_str()?.to_owned())
        };
        ["now", "later", "never", "off"].map(state)
    };
    let are = |expected: [Option<&str>; 4]| {
        wait::poll_until_ok(&format!("{expected:?}"), wait::LONG, || {
            let found = states();
            let found = found.each_ref().map(Option::as_deref);
            if found == expected { Ok(()) } else { Err(states()) }
        });
    };
    are([Some("running"), Some("refused"), Some("refused"), None]);

    std::os::unix::fs::symlink(&program, later).expect("a link");
    are([Some("running"), Some("running"), Some("refused"), None]);
    let operator = Operator::of(server.service.address);
    let checked = operator.run(&["servers", "check"]);
    assert!(checked.code == 1 && checked.stdout.contains("never: "), "{checked:?}");

    // A file that can't be used ends the server, with a reason.
    fs::write(&file, "{}").expect("a file");
    let output = Command::new(bins::bin("mcp-server"))
        .args(["--port=0", "--servers"])
        .arg(&file)
        .env_remove("KAFKA_BROKERS")
        .output()
        .expect("mcp-server");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && stderr.contains("FLEET-SERVER-CONFIG"), "{stderr}");
}

/// A fleet with one worker, and a server that has files and knows jobs.
fn with_files<'e>(env: &'e Env, name: &str) -> Fleet<'e> {
    let mut fleet = Fleet::new(env, name, 3);
    let options = ServerOptions { roots: vec![fleet.files()], ..ServerOptions::default() };
    fleet.start_server(&fleet.with_jobs(options));
    fleet.start_worker();
    fleet
}

fn job(id: &str, tool: &str) -> String {
    let payload = json!({"tool": tool, "arguments": {"path": "hello.txt"}});
    json!({"jobID": id, "jobType": "tool-call", "payload": payload}).to_string()
}

fn a_file_is_submitted_once_through_the_server(env: &Env) {
    let mut fleet = with_files(env, "operator-submit");
    let operator = Operator::of_fleet(&fleet);
    let records = || topics::read(&env.brokers, &fleet.topic).len();

    // Nothing of a file with an unknown tool is submitted.
    let file: String = [job("good", "file_digest"), job("typo", "file_digset")].join("\n");
    operator
        .run_with(&["submit", "-"], &file)
        .fails(1, &["nothing was submitted", "did you mean `file_digest`?", "FLEET-UNKNOWN-TOOL"]);
    assert_eq!(records(), 0);

    let file: String =
        (0..3).map(|n| job(&format!("job-{n}"), "file_digest")).collect::<Vec<_>>().join("\n");
    let first = operator.run_with(&["submit", "-", "--wait", "--json"], &file).success();
    let summary = json_lines(&first).pop().expect("a summary");
    assert_eq!((&summary["succeeded"], &summary["existing"]), (&json!(3), &json!(0)), "{first}");
    let again = operator.run_with(&["submit", "-", "--wait", "--json"], &file).success();
    let summary = json_lines(&again).pop().expect("a summary");
    assert_eq!((&summary["succeeded"], &summary["existing"]), (&json!(3), &json!(3)), "{again}");
    let told = operator.run_with(&["submit", "-"], &file).success();
    assert!(told.contains("submitted 0 jobs") && told.contains("job-1  existing, succeeded"));
    assert_eq!(records(), 3, "each job has one record");

    // The result of a single job is data, and what is said about it is not.
    let arguments = [r#"{"path":"hello.txt"}"#, "--wait"];
    let call = [&["submit", "--tool", "file_digest", "--arguments"][..], &arguments].concat();
    let one = operator.run(&call);
    assert!(one.stderr.contains("file_digest  took "), "{one:?}");
    assert!(one.stderr.contains("1 of 1 jobs succeeded"), "{one:?}");
    let printed: Value = serde_json::from_str(&one.success()).expect("the result alone");
    assert!(printed["sha256"].is_string(), "{printed}");
    let structured = operator.run(&[&call[..], &["-o", "structured"]].concat()).success();
    assert_eq!(json_lines(&structured), [printed]);

    // What the server does not know may still be submitted, and fails.
    let unknown = ["submit", "--tool", "make_coffee", "--no-check", "--wait", "--job-id", "tea"];
    operator.run(&unknown).fails(1, &["failed", "0 of 1 jobs succeeded"]);
    let shown = operator.run(&["jobs", "show", "job-1"]).success();
    assert_eq!(shown.matches("sha256").count(), 1, "{shown}");

    fleet.stop_workers();
}

fn the_status_of_a_fleet_says_what_is_wrong(env: &Env) {
    let mut fleet = with_files(env, "operator-status");
    let operator = Operator::of_fleet(&fleet);

    let status = |operator: &Operator| {
        let printed = operator.run(&["status", "--json"]);
        let report = json_lines(&printed.stdout).pop().expect("a report");
        (printed.code, report)
    };
    wait::poll_until_ok("a healthy fleet", wait::LONG, || match status(&operator) {
        (0, report) if report["facts"]["kafka"]["workers"] == json!(1) => Ok(()),
        other => Err(other),
    });
    let screen = operator.run(&["status"]).success();
    for part in [&*fleet.topic, "1 in group", "all jobs have ended", "ready", "0 dead letters"] {
        assert!(screen.contains(part), "{part}: {screen}");
    }

    fleet.stop_workers();
    fs::write(fleet.directory.join("jobs"), job("waits", "file_digest")).expect("a file");
    let file = fleet.directory.join("jobs");
    operator.run(&["submit", file.to_str().expect("UTF-8")]).success();
    let (code, report) = status(&operator);
    assert!(code == 1 && report["ok"] == json!(false), "{report}");
    let wrong = report["findings"][0]["problem"].as_str().expect("a problem");
    assert!(wrong.starts_with("1 jobs, and no worker in group"), "{report}");

    let nowhere = Operator {
        env: vec![
            ("MCP_SERVER_URL".to_owned(), "127.0.0.1:1".to_owned()),
            ("KAFKA_BROKERS".to_owned(), "127.0.0.1:1".to_owned()),
        ],
    };
    let (code, report) = status(&nowhere);
    let findings = report["findings"].as_array().expect("findings");
    assert!(code == 1 && findings.len() == 2, "{report}");
}

fn the_workers_are_listed_with_their_partitions_and_jobs(env: &Env) {
    let mut fleet = with_files(env, "operator-workers");
    fleet.worker_env("WORKER_ID", "second");
    fleet.start_worker();
    let operator = Operator::of_fleet(&fleet);

    let partitions = |report: &Value| -> Vec<i64> {
        let workers = report["workers"].as_array().into_iter().flatten();
        let mut all: Vec<_> = workers
            .flat_map(|worker| worker["partitions"].as_array().into_iter().flatten())
            .filter_map(Value::as_i64)
            .collect();
        all.sort_unstable();
        all
    };
    let report = wait::poll_until_ok("a group of two workers", wait::LONG, || {
        let printed = operator.run(&["workers", "--json"]);
        let report = json_lines(&printed.stdout).pop().unwrap_or_default();
        let is_stable = report["state"] == "Stable" && partitions(&report).len() == 3;
        match is_stable && report["workers"].as_array().is_some_and(|workers| workers.len() == 2) {
            true => Ok(report),
            false => Err(printed),
        }
    });
    assert_eq!(partitions(&report), [0, 1, 2], "each partition has one worker: {report}");
    let second = report["workers"].as_array().into_iter().flatten();
    let second = second.into_iter().find(|worker| worker["name"] == "second").expect("the name");
    assert_eq!(second["version"], env!("CARGO_PKG_VERSION"), "{report}");
    assert_eq!((&second["inFlight"], &report["countedAll"]), (&json!(0), &json!(true)), "{report}");
    let screen = operator.run(&["workers"]).success();
    assert!(screen.contains("PARTITIONS") && screen.contains("second"), "{screen}");

    fs::write(fleet.directory.join("jobs"), job("done", "file_digest")).expect("a file");
    let file = fleet.directory.join("jobs");
    operator.run(&["submit", "--wait", file.to_str().expect("UTF-8")]).success();
    let address = fleet.server.as_ref().expect("the server").address;
    wait::poll_until_ok("a lag of nothing", wait::LONG, || {
        let lag = rest::get(address, "/lag").expect(200);
        let same = json_lines(&operator.run(&["lag", "--json"]).stdout).pop().unwrap_or_default();
        let is_settled = lag["remaining"] == json!(0) && lag["partitions"][0]["end"].is_number();
        if is_settled && lag == same { Ok(()) } else { Err((lag, same)) }
    });
}

fn an_export_has_every_job_once_and_can_be_continued(env: &Env) {
    let fleet = with_files(env, "operator-export");
    let operator = Operator::of_fleet(&fleet);
    let good: Vec<_> = (0..20).map(|n| job(&format!("good-{n}"), "file_digest")).collect();
    let bad = json!({"jobID": "=bad", "jobType": "tool-call", "maxAttempts": 1,
        "payload": {"tool": "file_digest", "arguments": {"path": "no such file"}}});
    let file = fleet.directory.join("jobs");
    fs::write(&file, [good.join("\n"), bad.to_string()].join("\n")).expect("a file");
    operator.run(&["submit", "--wait", file.to_str().expect("UTF-8")]);

    let jobs = json_lines(&operator.run(&["jobs", "export"]).success());
    let ids: BTreeSet<_> = jobs.iter().filter_map(|job| job["jobID"].as_str()).collect();
    assert_eq!((jobs.len(), ids.len()), (21, 21));
    assert!(jobs.iter().any(|job| job["result"]["content"].is_array()), "{jobs:?}");

    let [whole, errors] = ["jobs.csv", "errors.csv"].map(|name| fleet.directory.join(name));
    let [whole_path, errors_path] = [&whole, &errors].map(|path| path.to_str().expect("UTF-8"));
    let arguments =
        ["jobs", "export", "-o", "csv", "--output", whole_path, "--errors", errors_path];
    operator.run(&arguments).success();
    let read = |path: &Path| fs::read_to_string(path).expect("the file");
    let (before, failed) = (read(&whole), read(&errors));
    assert_eq!((before.matches("good-").count(), failed.lines().count()), (20, 2));
    assert!(failed.contains("\n'=bad,failed,"), "no formula: {failed}");
    operator.run(&arguments).fails(1, &["jobs.csv"]);

    // The export was killed in the middle of a line, and one file has not come as far.
    let cut = before.len() / 2;
    fs::write(&whole, &before[..cut]).expect("the file");
    fs::remove_file(&errors).expect("the file");
    operator.run(&[&arguments[..], &["--resume"]].concat()).success();
    assert_eq!((read(&whole), read(&errors)), (before, failed));

    let address = fleet.server.as_ref().expect("the server").address;
    let answer = rest::get(address, "/job-exports?format=csv&state=failed");
    assert_eq!(answer.status, 200);
    assert!(answer.header("content-type").starts_with("text/csv"), "{answer:?}");
}

/// `dev` with a command hosts it and nothing else, and still does after the server was killed.
#[test]
fn dev_hosts_the_users_own_server() {
    let directory = bins::scratch("dev-own");
    process::remove_at_exit(&directory);
    let [program, log] = fixture(&directory);
    let mut command = Command::new(bins::bin("mcp-fleet"));
    command
        .args(["dev", "--workers=1", "--broker-port=0", "--server-port=0", "--name=mine"])
        .args(["--", &program, &log])
        .current_dir(&directory)
        .env_remove("KAFKA_BROKERS")
        .env_remove("KAFKA_TOPIC");
    let mut dev = Process::start("dev", &directory, command);
    dev.says("Press Ctrl-C to stop everything", wait::LONG);
    let log = dev.log();
    let summary = log.lines().skip_while(|line| !line.starts_with("url ")).collect::<Vec<_>>();
    assert!(summary[1].starts_with("hosts ") && summary[1].ends_with("mine"), "{log}");

    let url = summary[0].trim_start_matches("url").trim();
    let operator = Operator { env: vec![("MCP_SERVER_URL".to_owned(), url.to_owned())] };
    let names = || {
        let listed = operator.run(&["tools", "list", "*__*", "--json"]);
        let names = json_lines(&listed.stdout);
        names.iter().filter_map(|tool| tool["name"].as_str().map(str::to_owned)).collect()
    };
    let names: &dyn Fn() -> Vec<String> = &names;
    assert_eq!(names(), ["mine__work"]);
    operator.run(&["submit", "--tool", "mine__work", "--wait", "-o", "none"]).success();

    let server = log.lines().find(|line| line.starts_with("mcp-server ")).expect("the server");
    let pid =
        server.rsplit_once("(pid ").and_then(|(_, pid)| pid.trim_end_matches(')').parse().ok());
    let pid = nix::unistd::Pid::from_raw(pid.expect("its process id"));
    nix::sys::signal::kill(pid, Signal::SIGKILL).expect("a running process");
    dev.says("mcp-server restarted (pid", wait::LONG);
    wait::poll_until_ok("the tool after a restart", wait::LONG, || match names() {
        names if names == ["mine__work"] => Ok(()),
        other => Err(other),
    });

    dev.signal(Signal::SIGINT);
    assert!(dev.wait(wait::LONG).success(), "{}", dev.log());
}
