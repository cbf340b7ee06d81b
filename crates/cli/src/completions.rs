//! `mcp-fleet completions`: what shells need to complete commands, flags and values.

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
    /// Which shell.
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

/// Writes the script for `command`, the whole command line.
pub(crate) fn run(args: &Args, command: &mut clap::Command) -> Result<ExitCode, CliError> {
    output::line(script(args.shell, command).trim_end());
    Ok(ExitCode::SUCCESS)
}

fn script(shell: Shell, command: &mut clap::Command) -> String {
    let (name, mut script) = (command.get_name().to_owned(), Vec::new());
    clap_complete::generate(shell, command, name, &mut script);
    String::from_utf8_lossy(&script).into_owned()
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, ValueEnum as _};

    use super::*;

    #[test]
    fn every_shell_gets_a_script_with_commands_and_values() {
        for shell in Shell::value_variants() {
            let script = script(*shell, &mut crate::Cli::command());
            for word in ["mcp-fleet", "cancel", "watch", "tenant"] {
                assert!(script.contains(word), "{shell}: {word}");
            }
        }
        let bash = script(Shell::Bash, &mut crate::Cli::command());
        assert!(bash.contains("retrying") && bash.contains("tool-batch"), "values are completed too");
    }
}
