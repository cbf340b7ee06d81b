//! `mcp-fleet completions`: scripts with which shells complete commands, flags and values.

use std::process::ExitCode;

use clap_complete::Shell;

use crate::{error::CliError, output};

const EXAMPLES: &str = "Install:
  bash  mcp-fleet completions bash > ~/.local/share/bash-completion/completions/mcp-fleet
  zsh   mcp-fleet completions zsh > \"${fpath[1]}/_mcp-fleet\"
  fish  mcp-fleet completions fish > ~/.config/fish/completions/mcp-fleet.fish";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The shell to print the script for
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

/// Prints the script for `command`, which is the whole command line.
pub(crate) fn run(args: &Args, command: &mut clap::Command) -> Result<ExitCode, CliError> {
    output::line(script(args.shell, command).trim_end());
    Ok(ExitCode::SUCCESS)
}

fn script(shell: Shell, command: &mut clap::Command) -> String {
    let (name, mut script) = (command.get_name().to_owned(), Vec::new());
    clap_complete::generate(shell, command, name, &mut script);
    let script = String::from_utf8_lossy(&script).into_owned();
    match shell {
        // clap_complete 4.6 spells the hyphen in the program's name in two ways, so bash would
        // complete nothing after it.
        Shell::Bash => script.replace("mcp__subcmd__fleet", "mcp__fleet"),
        Shell::Fish => format!("{script}{}", fish_values(command)),
        _ => script,
    }
}

/// The values of arguments without a flag, which clap_complete 4.6 leaves out for fish. Only
/// commands of the first level have such arguments.
fn fish_values(command: &clap::Command) -> String {
    let mut lines = String::new();
    for subcommand in command.get_subcommands() {
        for argument in subcommand.get_positionals() {
            let values = argument.get_possible_values();
            let names: Vec<_> = values.iter().map(|value| value.get_name()).collect();
            if !names.is_empty() {
                lines.push_str(&format!(
                    "complete -c mcp-fleet -n \"__fish_mcp_fleet_using_subcommand {}\" -f -a \"{}\"\n",
                    subcommand.get_name(),
                    names.join(" ")
                ));
            }
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use std::{env, fs, iter, path::Path, process::Command};

    use clap::{CommandFactory as _, ValueEnum as _};

    use super::*;

    /// Prints what bash offers for the last word.
    const IN_BASH: &str = r#"
        source "$1"; shift
        complete -p mcp-fleet >/dev/null || exit 1
        COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
        _mcp__fleet mcp-fleet "${COMP_WORDS[COMP_CWORD]}" "${COMP_WORDS[COMP_CWORD - 1]}"
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
        zpty -w shell "mcp-fleet() { print -r -- \"ty\"\"ped: \$* .\" }; print re''ady"
        until_it_prints ready >/dev/null
        zpty -w -n shell "$*"$'\t'
        zpty -w -n shell $'\n'
        until_it_prints 'typed: ' | grep 'typed: ' | tr ' =' '\n\n'
    "#;

    #[test]
    fn every_shell_gets_a_script_with_commands_and_values() {
        for shell in Shell::value_variants() {
            let script = script(*shell, &mut crate::Cli::command());
            for word in ["mcp-fleet", "cancel", "watch", "tenant"] {
                assert!(script.contains(word), "{shell}: {word}");
            }
        }
        let bash = script(Shell::Bash, &mut crate::Cli::command());
        assert!(
            bash.contains("retrying") && bash.contains("tool-batch"),
            "values are completed too"
        );
    }

    #[test]
    fn live_shells_complete_commands_flags_and_values() {
        let directory =
            env::temp_dir().join(format!("mcp-fleet-completions-{}", std::process::id()));
        fs::create_dir_all(&directory).expect("a directory");
        for (shell, file, program) in [
            (Shell::Bash, "mcp-fleet.bash", &["bash", "--norc", "-c", IN_BASH, "bash"][..]),
            (Shell::Zsh, "_mcp-fleet", &["zsh", "-f", "-c", IN_ZSH, "zsh"]),
            (Shell::Fish, "mcp-fleet.fish", &["fish", "--no-config", "-c", IN_FISH]),
        ] {
            let path = directory.join(file);
            fs::write(&path, script(shell, &mut crate::Cli::command())).expect("the script");
            for (words, expected) in [
                (&["jo"][..], "jobs"),
                (&["jobs", "wai"], "wait"),
                (&["dlq", "repl"], "replay"),
                (&["dlq", "replay", "--dry"], "--dry-run"),
                (&["jobs", "list", "--state", "succ"], "succeeded"),
                (&["completions", "fi"], "fish"),
            ] {
                let Some(offered) = completed(program, &path, words) else { continue };
                assert!(
                    offered.lines().any(|line| line.trim() == expected),
                    "{shell} {words:?}: {offered}"
                );
            }
        }
        fs::remove_dir_all(&directory).expect("the directory");
    }

    /// Completes the words in a shell; `None` if the shell is not installed and not required.
    fn completed(shell: &[&str], script: &Path, words: &[&str]) -> Option<String> {
        const NOT_FOUND: i32 = 127;
        let words = iter::once("mcp-fleet").chain(words.iter().copied());
        let output = Command::new("timeout").arg("20").args(shell).arg(script).args(words).output();
        let output = output.expect("timeout of coreutils");
        if output.status.code() == Some(NOT_FOUND) {
            assert!(env::var_os("FLEET_REQUIRE_TOOLS").is_none(), "{} is not installed", shell[0]);
            return None;
        }
        Some(String::from_utf8_lossy(&output.stdout).into_owned())
    }
}
