//! `mcp-fleet dev`: whatever is killed in the middle of it, every job comes to its end; and a restart goes on.

#![expect(clippy::expect_used, reason = "a panic is the report of a test")]

use std::{fs, path::Path, process::Command, time::Duration};

use fleet_tests::{Oracle, bins, process, process::Process, topics, topics::Outgoing};
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
    let brokers = said(&dev, "broker ");
    let jobs = (0..JOBS).map(|n| {
        let payload = json!({"server": "files", "tool": "file_digest", "arguments": {"path": "a.txt"}});
        let job = json!({"jobID": format!("job-{n}"), "jobType": "tool-call", "payload": payload});
        Outgoing::value(job.to_string()).key(format!("key-{}", n % 20))
    });
    let submitted = topics::produce(&brokers, "mcp-jobs", jobs.collect());
    let oracle = Oracle::new("mcp-jobs", &submitted).repeats(JOBS);
    let ended = |dev: &mut Process, n: usize| {
        dev.until(&format!("{n} jobs to end"), DEADLINE, || {
            (oracle.read(&brokers).ended() >= n).then_some(())
        });
    };
    ended(&mut dev, 20);
    kill(&said(&dev, "worker      kafka-worker-1 (pid "));
    dev.says("kafka-worker-1 started again", DEADLINE);
    kill(&server_pid(&directory));
    dev.says("mcp-server started again", DEADLINE);
    ended(&mut dev, JOBS);
    let account = oracle.check(&brokers);
    assert_eq!(account.count(fleet_job::event::JobState::Succeeded), JOBS);
    dev.signal(Signal::SIGINT);
    assert!(dev.wait(DEADLINE).success(), "{}", dev.log());

    // With the same directory everything is still there.
    let mut again = start(&directory, &work);
    let brokers = said(&again, "broker ");
    assert_eq!(Oracle::new("mcp-jobs", &submitted).repeats(JOBS).read(&brokers).ended(), JOBS);
    again.signal(Signal::SIGINT);
    assert!(again.wait(DEADLINE).success(), "{}", again.log());
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
    dev.says("Ctrl-C ends everything", DEADLINE);
    dev
}

/// The word after the last `start` in what dev has said.
fn said(dev: &Process, start: &str) -> String {
    let log = dev.log();
    let line = log
        .lines()
        .rev()
        .find_map(|line| line.strip_prefix(start))
        .unwrap_or_else(|| panic!("{start}: {log}"));
    line.split_whitespace().next().unwrap_or_default().trim_end_matches(')').to_owned()
}

/// The server writes its own process id nowhere; its parent knows it.
fn server_pid(directory: &Path) -> String {
    let ready = directory.join("data/run/mcp-server.ready");
    let ready = ready.to_str().expect("a path in UTF-8");
    let processes = fs::read_dir("/proc").expect("/proc").flatten();
    let found = processes.filter_map(|entry| entry.file_name().into_string().ok()).find(|pid| {
        let command = fs::read_to_string(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        command.split('\0').any(|word| word == ready)
    });
    found.expect("the server's process")
}

fn kill(pid: &str) {
    let pid = nix::unistd::Pid::from_raw(pid.parse().unwrap_or_else(|_| panic!("{pid} is no process id")));
    nix::sys::signal::kill(pid, Signal::SIGKILL).expect("a running process");
}
