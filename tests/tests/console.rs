//! The console in a browser: a walk through every screen of a fleet of `mcp-fleet dev`, which makes its
//! own jobs, and looks for barriers, for what the pages' policy forbids, and for errors of scripts.

use std::{fs, process::Command, time::Duration};

use fleet_tests::{bins, node, process, process::Process};

const DEADLINE: Duration = Duration::from_secs(120);
/// The walk has some thirty pages, each of which is examined.
const WALK: Duration = Duration::from_secs(300);

#[test]
fn a_browser_walks_through_the_console() {
    let Some(mut walk) = node::console_walk() else { return };
    let directory = bins::scratch("console");
    process::remove_at_exit(&directory);
    let work = directory.join("work");
    fs::create_dir_all(&work).expect("a directory");
    fs::write(work.join("hello.txt"), "hello").expect("a file");

    let mut command = Command::new(bins::bin("mcp-fleet"));
    command
        .args(["dev", "--workers=1", "--broker-port=0", "--server-port=0", "--data-dir"])
        .arg(directory.join("data"))
        .current_dir(&work)
        .env_remove("KAFKA_BROKERS")
        .env_remove("KAFKA_TOPIC");
    let mut dev = Process::start("dev", &directory, command);
    dev.says("Press Ctrl-C to stop everything", DEADLINE);

    // The console's URL is the first thing that `dev` says about a fleet that is up.
    let log = dev.log();
    let console = log.lines().find_map(|line| line.strip_prefix("console ")).expect("a URL").trim();
    walk.arg(console.trim_end_matches("/console"));
    let mut walk = Process::start("walk", &directory, walk);
    let status = walk.wait(WALK);
    let output = walk.log();
    assert!(status.success() && output.contains("walked"), "{status}\n{output}");
}
