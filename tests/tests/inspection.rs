//! Processes of the same user can't read the secrets of our binaries.

#![expect(clippy::expect_used, reason = "a panic is the report of a test")]

use std::{
    os::unix::fs::MetadataExt as _,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use fleet_tests::bins::bin;

/// The user of the processes if this test runs as root, which may read everything.
const NOBODY: &str = "65534";

struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// A command that runs as an ordinary user.
fn as_ordinary_user(program: &str) -> Command {
    if std::fs::metadata("/proc/self").expect("/proc").uid() != 0 {
        return Command::new(program);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid", NOBODY, "--regid", NOBODY, "--clear-groups", program]);
    command
}

#[test]
fn processes_of_the_same_user_can_not_read_an_environment() {
    let ports = ["--host", "127.0.0.1", "--port", "0"];
    let programs: [(&str, &[&str]); 4] = [
        ("mcp-server", &ports),
        ("kafka-worker", &ports),
        ("mcp-fleet", &["events"]),
        ("mcp-fleet-broker", &["--listen", "127.0.0.1:0"]),
    ];

    for (name, arguments) in programs {
        let mut command = as_ordinary_user(bin(name).to_str().expect("a path"));
        command
            .args(arguments)
            .current_dir("/")
            .env("SECRET", "hidden")
            .env("KAFKA_BROKERS", "127.0.0.1:9")
            .env("MCP_SERVER_URL", "http://127.0.0.1:9/mcp")
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut process = Running(command.spawn().expect("a process"));

        let environment = format!("/proc/{}/environ", process.0.id());
        let deadline = Instant::now() + Duration::from_secs(10);
        loop {
            let read = as_ordinary_user("cat").arg(&environment).output().expect("cat");
            assert_eq!(process.0.try_wait().expect("a status"), None, "{name} has ended");
            let why = String::from_utf8_lossy(&read.stderr).into_owned();
            if why.contains("Permission denied") {
                break;
            }
            assert!(Instant::now() < deadline, "{name} can be read: {read:?}");
        }
    }
}
