//! The README's first command: `mcp-fleet demo --json` in a directory with files.

use std::{fs, process::Command, time::Duration};

use fleet_tests::{bins, process, process::Process};
use serde_json::Value;

const DEADLINE: Duration = Duration::from_secs(180);

#[test]
fn the_demo_accounts_for_every_job() {
    let directory = bins::scratch("demo");
    process::remove_at_exit(&directory);
    let work = directory.join("work");
    fs::create_dir_all(work.join("below")).expect("a directory");
    for n in 0..12 {
        fs::write(work.join(format!("below/file-{n}.txt")), format!("file {n}\n")).expect("a file");
    }
    let output = directory.join("out");
    let mut command = Command::new("sh");
    command
        .args(["-c", r#"exec "$1" demo --jobs 40 --workers 2 --json >"$2""#, "sh"])
        .arg(bins::bin("mcp-fleet"))
        .arg(&output)
        .current_dir(&work)
        .env_remove("KAFKA_BROKERS");
    let mut demo = Process::start("demo", &directory, command);
    let status = demo.wait(DEADLINE);
    let stdout = fs::read_to_string(&output).expect("its output");
    assert!(status.success(), "{status}\n{stdout}\n{}", demo.log());

    let last = stdout.trim_end().lines().last().expect("a last line");
    let report: Value =
        serde_json::from_str(last).unwrap_or_else(|error| panic!("{error}: {last}"));
    let number = |name: &str| {
        report[name].as_f64().unwrap_or_else(|| panic!("no number {name} in {report}"))
    };
    assert_eq!(number("lost"), 0.0, "{report}");
    assert_eq!(number("submitted"), number("succeeded") + number("failed"), "{report}");

    // One job hosts the file server; the others are good ones, and deliberately bad ones.
    assert!(number("succeeded") >= 41.0, "{report}");
    assert!(number("dead_lettered") >= 3.0, "{report}");
    assert!(number("jobs_per_second") > 0.0 && number("elapsed_ms") > 0.0, "{report}");
}

#[test]
fn a_missing_broker_is_an_error_that_says_what_to_do() {
    let directory = bins::scratch("no-broker");
    process::remove_at_exit(&directory);
    let program = directory.join("mcp-fleet");
    let original = bins::bin("mcp-fleet");
    fs::hard_link(&original, &program)
        .or_else(|_| fs::copy(&original, &program).map(|_| ()))
        .expect("the program without its neighbours");

    for command in ["demo", "dev", "broker"] {
        let output = Command::new(&program)
            .arg(command)
            .current_dir(&directory)
            .env("PATH", "/nowhere")
            .env_remove("KAFKA_BROKERS")
            .output()
            .expect("mcp-fleet");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{command}");
        assert!(stderr.contains("FLEET-BROKER-MISSING"), "{command}: {stderr}");
        assert!(stderr.contains(directory.to_str().expect("a path")), "{command}: {stderr}");
    }
}
