//! Checks that the first signal cancels the token and that the second ends the process with code
//! 130.
//!
//! The test runs itself as a child, because a signal goes to a whole process.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};

use fleet_ops::shutdown::signal_token;

const CHILD: &str = "FLEET_TEST_SIGNAL_CHILD";
const BLOCKED_CHILD: &str = "FLEET_TEST_BLOCKED_CHILD";
/// What a pipe holds.
const PIPE: usize = 64 * 1024;

#[test]
fn child() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let token = signal_token().unwrap();
        eprintln!("armed");
        token.cancelled().await;
        eprintln!("cancelled");
        std::future::pending::<()>().await;
    });
}

#[test]
fn two_signals() {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture"])
        .env(CHILD, "1")
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let kill = |name: &str, id: u32| {
        assert!(Command::new("kill").args([name, &id.to_string()]).status().unwrap().success());
    };

    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line == "armed"));
    kill("-TERM", child.id());
    assert!(lines.any(|line| line == "cancelled"));
    kill("-INT", child.id());
    assert_eq!(child.wait().unwrap().code(), Some(130));
}

/// A process that logs to a pipe that is full.
#[test]
fn blocked_child() {
    if std::env::var_os(BLOCKED_CHILD).is_none() {
        return;
    }
    fleet_ops::telemetry::init("blocked");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let token = signal_token().unwrap();
        std::io::stderr().write_all(&[b'.'; PIPE]).unwrap();
        println!("armed");
        token.cancelled().await;
        println!("cancelled");
        std::future::pending::<()>().await;
    });
}

#[test]
fn two_signals_need_no_reader_of_the_log() {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "blocked_child", "--nocapture"])
        .env(BLOCKED_CHILD, "1")
        .env("RUST_LOG", "info")
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let kill = |name: &str, id: u32| {
        assert!(Command::new("kill").args([name, &id.to_string()]).status().unwrap().success());
    };
    let _never_read = child.stderr.take();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
    assert!(lines.any(|line| line.ends_with("armed")));
    kill("-TERM", child.id());
    assert!(lines.any(|line| line == "cancelled"));
    kill("-INT", child.id());
    assert_eq!(child.wait().unwrap().code(), Some(130));
}
