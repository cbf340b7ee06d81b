//! `mcp-fleet dev`: every job ends whichever part is killed, and a restart continues the work.

#![expect(clippy::expect_used, reason = "a panic is the report of a test")]

use std::{
    collections::BTreeMap,
    fs,
    net::{SocketAddr, TcpStream},
    os::unix::fs::PermissionsExt as _,
    path::Path,
    process::Command,
    time::Duration,
};

use fleet_tests::{Oracle, bins, process, process::Process, rest, topics, topics::Outgoing, wait};
use nix::sys::signal::Signal;
use serde_json::json;

const DEADLINE: Duration = Duration::from_secs(120);
const JOBS: usize = 600;

#[test]
fn nothing_is_lost_when_parts_of_dev_are_killed() {
    let directory = bins::scratch("dev");
    process::remove_at_exit(&directory);
    let work = directory.join("work");
    fs::create_dir_all(&work).expect("a directory");
    fs::write(work.join("a.txt"), "a".repeat(400_000)).expect("a file");

    let mut dev = start(&directory, &work);
    let brokers = word_after(&dev, "broker ");
    let jobs = (0..JOBS).map(|n| {
        let payload =
            json!({"server": "files", "tool": "file_digest", "arguments": {"path": "a.txt"}});
        let job = json!({"jobID": format!("job-{n}"), "jobType": "tool-call", "payload": payload});
        Outgoing::value(job.to_string()).key(format!("key-{}", n % 20))
    });
    let submitted = topics::produce(&brokers, "mcp-jobs", jobs.collect());
    let oracle = Oracle::new("mcp-jobs", &submitted).repeats(JOBS);
    let ended = |dev: &mut Process, n: usize| {
        dev.wait_until(&format!("{n} jobs to end"), DEADLINE, || {
            (oracle.read(&brokers).ended() >= n).then_some(())
        });
    };
    ended(&mut dev, 20);
    for (name, end) in [("kafka-worker-1", 60), ("mcp-server", 120), ("broker", JOBS)] {
        kill(&pid(&dev, name));
        dev.says(&format!("{name} restarted (pid"), DEADLINE);
        dev.wait_until("the broker to listen", DEADLINE, || TcpStream::connect(&brokers).ok());
        ended(&mut dev, end);
    }
    let account = oracle.check(&brokers);
    assert_eq!(account.count(fleet_job::event::JobState::Succeeded), JOBS);

    let attempts = account.events.values().flatten().map(|event| event.attempts).max();
    assert!(attempts <= Some(2), "a job came to attempt {attempts:?}");

    // Only the killed processes have died, and each has had one successor.
    let log = dev.log();
    let deaths: Vec<_> = log.lines().filter(|line| line.contains("restarting it in")).collect();
    let starts = log.lines().filter(|line| line.contains(" restarted (pid ")).count();
    assert!(deaths.len() == 3 && deaths.iter().all(|line| line.contains("SIGKILL")), "{log}");
    assert_eq!(starts, 3, "{log}");
    dev.signal(Signal::SIGINT);
    assert!(dev.wait(DEADLINE).success(), "{}", dev.log());

    // With the same directory, everything still exists.
    let mut again = start(&directory, &work);
    let brokers = word_after(&again, "broker ");
    assert_eq!(Oracle::new("mcp-jobs", &submitted).repeats(JOBS).read(&brokers).ended(), JOBS);
    again.signal(Signal::SIGINT);
    assert!(again.wait(DEADLINE).success(), "{}", again.log());
}

#[test]
fn keys_are_made_at_the_first_start_used_and_kept() {
    let directory = bins::scratch("dev-keys");
    process::remove_at_exit(&directory);
    let work = directory.join("work");
    fs::create_dir_all(&work).expect("a directory");
    let access = directory.join("data/access");
    let read = || -> BTreeMap<String, String> {
        let entries = fs::read_dir(&access).expect("keys").map(|entry| entry.expect("an entry"));
        entries
            .map(|entry| {
                let name = entry.file_name().to_string_lossy().into_owned();
                let mode = entry.metadata().expect("its mode").permissions().mode() & 0o777;
                let expected = if name == "signing.pub" { 0o644 } else { 0o600 };
                assert_eq!(mode, expected, "{name}");
                (name, fs::read_to_string(entry.path()).expect("a file"))
            })
            .collect()
    };

    let mut dev = start(&directory, &work);
    let made = read();
    let names: Vec<_> = made.keys().map(String::as_str).collect();
    let expected = [
        "keys.toml",
        "keys.toml.pepper",
        "metrics.key",
        "operator.key",
        "signing.key",
        "signing.pub",
        "worker.key",
    ];
    assert_eq!(names, expected);
    for (name, secret) in made.iter().filter(|(name, _)| name.ends_with(".key")) {
        assert!(!dev.log().contains(secret.trim()), "dev shows {name}");
    }

    // The worker calls tools with its key, and a person on this machine needs none.
    let server = server(&dev);
    let job = json!({"jobID": "j", "server": "files", "tool": "file_list", "arguments": {}});
    rest::post(server, "/jobs", &job).expect(202);
    let ended = rest::get(server, "/jobs/j?wait=60").expect(200);
    assert_eq!(ended["state"], "succeeded", "{ended}");
    let accepted = |via: &str| {
        let metrics = rest::get(server, "/metrics").text;
        let series = format!("mcp_server_accepted_requests_total{{via=\"{via}\"}} ");
        metrics.lines().any(|line| line.starts_with(&series))
    };
    assert!(accepted("key") && accepted("loopback"));

    // Somebody who brings a wrong key is not served as the local principal.
    let wrong = [("authorization", "Bearer mf_worker_x")];
    rest::request(server, "GET", "/jobs", &wrong, b"").problem(401, "unauthenticated");

    // The commands that dev suggests can be typed.
    let log = dev.log();
    let suggested = log.lines().find(|line| line.contains(" jobs list ")).expect("a command");
    let listed = Command::new("sh").args(["-c", suggested]).current_dir(&work).output();
    let listed = listed.expect("the command");
    assert!(String::from_utf8_lossy(&listed.stdout).contains("succeeded"), "{listed:?}");

    dev.signal(Signal::SIGINT);
    assert!(dev.wait(DEADLINE).success(), "{}", dev.log());

    let mut again = start(&directory, &work);
    assert_eq!(read(), made, "a second start");
    again.signal(Signal::SIGINT);
    assert!(again.wait(DEADLINE).success(), "{}", again.log());
}

#[test]
fn no_process_outlives_a_killed_dev() {
    let directory = bins::scratch("killed-dev");
    process::remove_at_exit(&directory);
    let work = directory.join("work");
    fs::create_dir_all(&work).expect("a directory");

    let mut dev = start(&directory, &work);
    let parts = ["broker", "mcp-server", "kafka-worker-1", "kafka-worker-2"];
    let pids = parts.map(|name| (name, pid(&dev, name)));
    dev.kill();

    for (name, pid) in pids {
        // A process that nobody has waited for yet has no program any more.
        let program = format!("/proc/{pid}/exe");
        let what = format!("{name} to end");
        wait::poll_until(&what, DEADLINE, || fs::read_link(&program).err());
    }
}

/// A part that is started just before its parent is killed must not watch whoever adopts it.
#[test]
fn a_part_whose_parent_has_already_ended_ends() {
    let directory = bins::scratch("orphans");
    process::remove_at_exit(&directory);
    let mut parent = Command::new("true").spawn().expect("true");
    parent.wait().expect("its end");

    for (program, arguments) in [
        ("mcp-fleet-broker", &["--listen=127.0.0.1:0"][..]),
        ("mcp-fleet", &["server", "--host=127.0.0.1", "--port=0", "--kafka-brokers="]),
        ("mcp-fleet", &["worker", "--brokers=127.0.0.1:1", "--server-url=http://127.0.0.1:1"]),
    ] {
        let mut command = Command::new(bins::bin(program));
        command.args(arguments).arg(format!("--exit-with-parent={}", parent.id()));
        let mut part = Process::start(program, &directory, command);
        part.wait(DEADLINE);
        let log = part.log();
        assert!(log.contains("the parent process has ended"), "{program} {arguments:?}: {log}");
    }
}

fn start(directory: &Path, work: &Path) -> Process {
    let mut command = Command::new(bins::bin("mcp-fleet"));
    command
        .args(["dev", "--workers=2", "--broker-port=0", "--server-port=0", "--data-dir"])
        .arg(directory.join("data"))
        .current_dir(work)
        .env_remove("KAFKA_BROKERS")
        .env_remove("KAFKA_TOPIC");
    let mut dev = Process::start("dev", directory, command);
    dev.says("Press Ctrl-C to stop everything", DEADLINE);
    dev
}

/// The address of the server.
fn server(dev: &Process) -> SocketAddr {
    let url = word_after(dev, "mcp-server ");
    let address = url.trim_start_matches("http://").trim_end_matches("/mcp");
    address.parse().unwrap_or_else(|error| panic!("{url}: {error}"))
}

/// The word after the last `start` in the output of dev.
fn word_after(dev: &Process, start: &str) -> String {
    let log = dev.log();
    let line = log
        .lines()
        .rev()
        .find_map(|line| line.strip_prefix(start))
        .unwrap_or_else(|| panic!("{start}: {log}"));
    line.split_whitespace().next().unwrap_or_default().trim_end_matches(')').to_owned()
}

/// The process id that dev has printed for a part, on a line that begins with the part's name or
/// kind.
fn pid(dev: &Process, name: &str) -> String {
    let log = dev.log();
    let lines = log.lines().filter(|line| line.contains(name));
    let pid = lines.filter_map(|line| line.rsplit_once("(pid ")?.1.strip_suffix(')')).next_back();
    pid.unwrap_or_else(|| panic!("no process of {name}: {log}")).to_owned()
}

fn kill(pid: &str) {
    let pid = nix::unistd::Pid::from_raw(
        pid.parse().unwrap_or_else(|_| panic!("{pid} is not a process id")),
    );
    nix::sys::signal::kill(pid, Signal::SIGKILL).expect("a running process");
}
