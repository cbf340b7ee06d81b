//! Suggests what to type next, once `dev` is up.

use std::{borrow::Cow, path::Path};

use fleet_job::topics::DEFAULT_JOBS_TOPIC;

use crate::{output, servers::Condition};

/// Returns the line about a server of the user's own.
pub(super) fn describe_hosted(name: &str, condition: &Condition) -> String {
    match condition {
        Condition::Works => format!("hosts       {name}"),
        Condition::Starts => format!("hosts       {name} (still starting)"),
        Condition::Fails { problem, remedy } => {
            format!("hosts       {name} (fails): {problem}\n            {remedy}")
        }
    }
}

/// Prints what to type next. `tool` is a tool that needs a path and is there for sure.
pub(super) fn print(
    brokers: &str,
    server_url: &str,
    operator_key: &Path,
    topic: &str,
    tool: Option<&str>,
) {
    // Use the program name as it was typed, so that the lines can be copied.
    let program = std::env::args().next().unwrap_or_else(|| "mcp-fleet".to_owned());

    output::line("\nIn another terminal, in this directory:");
    let operator_key = operator_key.display().to_string();
    for command in commands(&program, brokers, server_url, &operator_key, topic, tool) {
        let words: Vec<_> = command.iter().map(|word| quoted(word)).collect();
        output::line(&format!("  {}", words.join(" ")));
    }

    output::line("\nPress Ctrl-C to stop everything; jobs in progress finish first.");
}

/// Returns the suggested command lines, word by word.
fn commands<'a>(
    program: &'a str,
    brokers: &'a str,
    server_url: &'a str,
    operator_key: &'a str,
    topic: &'a str,
    tool: Option<&'a str>,
) -> Vec<Vec<&'a str>> {
    let mut kafka = vec!["--brokers", brokers];
    if topic != DEFAULT_JOBS_TOPIC {
        kafka.extend(["--topic", topic]);
    }
    let server = ["--server", server_url, "--token-file", operator_key];
    let command = |words: &[&'a str], more: &[&'a str]| [&[program], words, &server, more].concat();

    let mut commands = vec![command(&["tools", "list"], &[])];
    if let Some(tool) = tool {
        let job = ["--tool", tool, "--arguments", r#"{"path":"."}"#, "--wait"];
        commands.push(command(&["tools", "call"], &[tool, "path=."]));
        commands.push(command(&["submit"], &job));
    } else {
        commands.push(command(&["servers", "check"], &[]));
    }
    commands.push(command(&["jobs", "list"], &[]));
    commands.push(command(&["jobs", "watch"], &[]));
    commands.push([&[program, "status"][..], &server, &kafka].concat());
    commands
}

/// Quotes a word for a shell, if necessary.
fn quoted(word: &str) -> Cow<'_, str> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=,@%+".contains(c);
    if !word.is_empty() && word.chars().all(is_plain) {
        return word.into();
    }
    format!("'{}'", word.replace('\'', r"'\''")).into()
}

#[cfg(test)]
mod tests {
    use std::{net::TcpListener, process::Command};

    use clap::Parser as _;

    use super::*;

    #[test]
    fn every_command_can_be_typed() {
        for (program, topic) in [("./my fleet", DEFAULT_JOBS_TOPIC), ("./it's mine", "other.jobs")]
        {
            let key = "my fleet/access/operator.key";
            let commands =
                |tool| commands(program, "127.0.0.1:1", "http://127.0.0.1:2", key, topic, tool);
            for words in commands(Some("files__file_list")).into_iter().chain(commands(None)) {
                crate::Cli::try_parse_from(&words)
                    .unwrap_or_else(|error| panic!("{words:?}: {error}"));

                let line: Vec<_> = words.iter().map(|word| quoted(word)).collect();
                let script = format!("printf '%s\\n' {}", line.join(" "));
                let output = Command::new("sh").args(["-c", &script]).output().unwrap();
                let read = String::from_utf8(output.stdout).unwrap();
                assert_eq!(read.lines().collect::<Vec<_>>(), words);
            }
        }
    }

    #[tokio::test]
    async fn the_error_about_a_taken_port_names_a_flag_of_dev() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port().to_string();
        for flag in ["--broker-port", "--server-port"] {
            let command = ["mcp-fleet", "dev", "--broker-port=0", "--server-port=0"];
            let mut command = command.map(str::to_owned).to_vec();
            command.retain(|word| !word.starts_with(flag));
            command.push(format!("{flag}={port}"));
            let crate::Command::Dev(args) = crate::Cli::parse_from(command).command else {
                unreachable!()
            };

            let error = super::super::run(args).await.unwrap_err().to_string();
            assert!(error.contains(&format!("127.0.0.1:{port}: ")), "{error}");
            assert!(error.ends_with(&format!("choose another port with {flag}")), "{error}");
        }
    }
}
