//! A process whose standard error nobody reads any more goes on and stops like any other.

#![expect(clippy::expect_used, reason = "a panic is the report of a test")]

use std::{
    io::Read as _,
    path::Path,
    process::{Child, ChildStderr, Command, ExitStatus, Stdio},
    time::Duration,
};

use fleet_tests::{
    bins::{self, bin},
    wait,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// How long a drain may take: no job is under way in these tests.
const DRAIN: Duration = Duration::from_secs(20);

struct Running(Child);

impl Running {
    /// Starts a binary without a broker, so that it has much to log.
    fn start(name: &str, ready: &Path, stderr: Stdio) -> Self {
        let mut command = Command::new(bin(name));
        command
            .args(["--host", "127.0.0.1", "--port", "0", "--ready-file"])
            .arg(ready)
            .env("KAFKA_BROKERS", "127.0.0.1:9")
            .env("MCP_SERVER_URL", "http://127.0.0.1:9/mcp")
            .env("RUST_LOG", "debug")
            .stdout(Stdio::null())
            .stderr(stderr);
        Self(command.spawn().expect("a process"))
    }

    fn terminate(&self) {
        let pid = Pid::from_raw(i32::try_from(self.0.id()).expect("a process id"));
        kill(pid, Signal::SIGTERM).expect("a running process");
    }

    fn wait(&mut self, what: &str) -> ExitStatus {
        wait::poll_until_ok(what, DRAIN, || match self.0.try_wait() {
            Ok(Some(status)) => Ok(status),
            other => Err(format!("{other:?}")),
        })
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// Waits until the process listens, and reads what it writes until then.
fn read_until_ready(process: &mut Running, ready: &Path) -> ChildStderr {
    let mut stderr = process.0.stderr.take().expect("a pipe");
    let mut first = [0; 64];
    stderr.read_exact(&mut first).expect("a first line");
    wait::poll_until_ok("a process that listens", DRAIN, || match ready.exists() {
        true => Ok(()),
        false => Err(format!("{:?}", process.0.try_wait())),
    });
    stderr
}

#[test]
fn a_drain_needs_no_reader_of_stderr() {
    for name in ["mcp-server", "kafka-worker"] {
        let ready = bins::scratch("closed-stderr").join(bins::unique("ready"));
        let mut process = Running::start(name, &ready, Stdio::piped());
        drop(read_until_ready(&mut process, &ready));

        process.terminate();
        let status = process.wait(&format!("the end of {name}"));
        assert_eq!(status.code(), Some(0), "{name}");
    }
}
