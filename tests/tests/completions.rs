//! Completions in live shells: commands, flags and values, and what the server and Kafka know.

#![expect(clippy::expect_used, reason = "a panic is the report of a test")]

use std::{
    env, fs,
    path::{Path, PathBuf},
    process::Command,
};

use fleet_tests::{Env, Fleet, bins, fleet::ServerOptions, rest, wait};
use serde_json::json;

/// Prints what bash offers for the last word.
const IN_BASH: &str = r#"
    source "$1"; shift
    complete -p mcp-fleet >/dev/null || exit 1
    COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMP_TYPE=9; COMPREPLY=()
    _clap_complete_mcp_fleet mcp-fleet "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
    printf '%s\n' "${COMPREPLY[@]}"
"#;
/// Prints what fish offers.
const IN_FISH: &str = r#"
    source $argv[1]
    complete --do-complete "$argv[2..]" | string replace --regex '\t.*' ''
"#;
/// Types the words and a tab into a zsh terminal and prints the resulting command, one word per
/// line.
const IN_ZSH: &str = r#"
    zmodload zsh/zpty
    zpty shell zsh -f -i
    until_it_prints() {
        local all= part
        while [[ $all != *"$1"* ]]; do zpty -r shell part || exit 1; all+=$part; done
        print -r -- "$all"
    }
    directory=${1:h}; shift
    zpty -w shell "PROMPT=; fpath=($directory \$fpath); autoload -Uz compinit; compinit -u -D"
    zpty -w shell 'mcp-fleet() {
        if [[ -n $MCP_FLEET_COMPLETE ]]; then command mcp-fleet "$@"; return; fi
        print -r -- "ty""ped: $* ."
    }'
    zpty -w shell "print re''ady"
    until_it_prints ready >/dev/null
    zpty -w -n shell "$*"$'\t'
    zpty -w -n shell $'\n'
    until_it_prints 'typed: ' | grep 'typed: ' | tr ' =' '\n\n'
"#;

#[test]
fn live_shells_complete_what_the_server_and_kafka_know() {
    let brokers = Env::embedded_broker(module_path!());
    let mut fleet = Fleet::new(&brokers, "completions", 1);
    let options = ServerOptions {
        roots: vec![fleet.files()],
        allowed: vec![format!(
            "{} {}",
            env!("CARGO_BIN_EXE_fixture_tools"),
            fleet.directory.join("calls").display()
        )],
        ..ServerOptions::default()
    };
    fleet.start_server(&fleet.with_jobs(options));
    let server = fleet.server.as_ref().expect("the server");
    let config = json!({"command": env!("CARGO_BIN_EXE_fixture_tools"),
        "args": [fleet.directory.join("calls")]});
    server.call("server_initialize", &json!({"name": "weather", "config": config}));
    let job = json!({"jobID": "job-of-monday", "tool": "file_list", "arguments": {"path": "."}});
    rest::post(server.address, "/jobs", &job).expect(202);
    let address = server.address.to_string();

    let shells = Shells::new(&fleet.directory, &brokers, &address);
    for (words, expected) in [
        (&["jo"][..], "jobs"),
        (&["jobs", "wai"], "wait"),
        (&["dlq", "replay", "--dry"], "--dry-run"),
        (&["jobs", "list", "--state", "succ"], "succeeded"),
        (&["completions", "fi"], "fish"),
        (&["tools", "call", "file_re"], "file_read"),
        (&["tools", "show", "weather__w"], "weather__work"),
        (&["submit", "--tool", "file_dig"], "file_digest"),
        (&["servers", "check", "wea"], "weather"),
        (&["jobs", "show", "job-of-"], "job-of-monday"),
        (&["lag", "--topic", "comple"], &fleet.topic),
    ] {
        shells.offer(words, expected);
    }

    // An id that a shell would run is not offered.
    let odd = json!({"jobID": "job-of-$(id)", "tool": "file_list", "arguments": {"path": "."}});
    rest::post(server.address, "/jobs", &odd).expect(202);
    shells.offer(&["jobs", "show", "job-of-"], "job-of-monday");

    // The server of the command line goes before that of the environment, and one that does not
    // answer offers nothing.
    let nowhere = Shells::new(&fleet.directory, &brokers, "127.0.0.1:1");
    nowhere.offer(&["tools", "call", "--server", &address, "file_re"], "file_read");
    nowhere.offer(&["tools", "li"], "list");
}

/// The shells that are installed, with scripts for `mcp-fleet`.
struct Shells {
    directory: PathBuf,
    env: Vec<(&'static str, String)>,
}

impl Shells {
    fn new(directory: &Path, brokers: &Env, server: &str) -> Self {
        let program = bins::bin("mcp-fleet");
        let beside = program.parent().expect("its directory").display();
        let path = format!("{beside}:{}", env::var("PATH").unwrap_or_default());
        for (shell, file) in
            [("bash", "mcp-fleet.bash"), ("zsh", "_mcp-fleet"), ("fish", "mcp-fleet.fish")]
        {
            let script = Command::new(&program).args(["completions", shell]).output();
            let script = script.expect("mcp-fleet");
            assert!(script.status.success(), "{script:?}");
            fs::write(directory.join(file), script.stdout).expect("the script");
        }
        let env = vec![
            ("PATH", path),
            ("MCP_SERVER_URL", server.to_owned()),
            ("KAFKA_BROKERS", brokers.brokers.clone()),
        ];
        Self { directory: directory.to_owned(), env }
    }

    /// Expects all shells to offer `expected`, and nothing with a `$`, for the last of the words.
    fn offer(&self, words: &[&str], expected: &str) {
        for (shell, file) in [
            (&["bash", "--norc", "-c", IN_BASH, "bash"][..], "mcp-fleet.bash"),
            (&["zsh", "-f", "-c", IN_ZSH, "zsh"], "_mcp-fleet"),
            (&["fish", "--no-config", "-c", IN_FISH], "mcp-fleet.fish"),
        ] {
            let what = format!("{} to complete {words:?}", shell[0]);
            let Some(mut offered) = self.completed(shell, file, words) else { continue };
            // On a busy machine, the server may take longer than the program waits for it.
            let has = |offered: &str| offered.lines().any(|line| line.trim() == expected);
            if !has(&offered) {
                offered = wait::poll_until_ok(&what, wait::LONG, || {
                    match self.completed(shell, file, words) {
                        Some(offered) if has(&offered) => Ok(offered),
                        other => Err(other),
                    }
                });
            }
            assert!(!offered.contains('$'), "{what}: {offered}");
        }
    }

    /// Completes the words in a shell; `None` if the shell is not installed and not required.
    fn completed(&self, shell: &[&str], file: &str, words: &[&str]) -> Option<String> {
        const NOT_FOUND: i32 = 127;
        let output = Command::new("timeout")
            .arg("20")
            .args(shell)
            .arg(self.directory.join(file))
            .arg("mcp-fleet")
            .args(words)
            .envs(self.env.iter().map(|(name, value)| (name, value)))
            .output()
            .expect("timeout of coreutils");
        if output.status.code() == Some(NOT_FOUND) {
            assert!(env::var_os("FLEET_REQUIRE_TOOLS").is_none(), "{} is not installed", shell[0]);
            return None;
        }
        Some(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}
