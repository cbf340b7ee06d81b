//! Checks that the first signal cancels the token and that the second ends the process with code
//! 130.
//!
//! The test runs itself as a child, because a signal goes to a whole process.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Stdio};

use fleet_ops::shutdown::signal_token;

const CHILD: &str = "FLEET_TEST_SIGNAL_CHILD";

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
