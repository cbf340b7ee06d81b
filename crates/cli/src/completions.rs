//! `mcp-fleet completions`: scripts with which shells complete commands, flags and values.
//!
//! The scripts ask this program at every key, through the variable [`VARIABLE`], so that they also
//! know tools, hosted servers, jobs and topics (`suggestions`), and need no update.

use std::process::ExitCode;

use clap::CommandFactory;
use clap_complete::{CompleteEnv, Shell, env::Shells};

use crate::{error::CliError, output};

/// The variable with which a script asks this program. It has the name of the shell.
const VARIABLE: &str = "MCP_FLEET_COMPLETE";
/// The program, as users call it.
const PROGRAM: &str = "mcp-fleet";

/// Completes at the first use of a script in zsh's `fpath`, which only defines the function.
const FIRST_USE_IN_ZSH: &str = r#"
if [ "$funcstack[1]" = "_mcp-fleet" ]; then
    _clap_dynamic_completer_mcp_fleet "$@"
fi"#;

const EXAMPLES: &str = "Install:
  bash  mcp-fleet completions bash > ~/.local/share/bash-completion/completions/mcp-fleet
  zsh   mcp-fleet completions zsh > \"${fpath[1]}/_mcp-fleet\"
  fish  mcp-fleet completions fish > ~/.config/fish/completions/mcp-fleet.fish

The script asks mcp-fleet at every key. For tools, hosted servers, jobs and topics, mcp-fleet asks
the server or Kafka that the command line or the environment names, for less than a second.";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// The shell to print the script for
    #[arg(value_name = "SHELL")]
    shell: Shell,
}

/// Answers a shell and ends the process, if a script asks.
pub(crate) fn answer_shell<C: CommandFactory>() {
    CompleteEnv::with_factory(C::command).var(VARIABLE).bin(PROGRAM).completer(PROGRAM).complete();
}

/// Prints the script.
pub(crate) fn run(args: &Args) -> Result<ExitCode, CliError> {
    output::line(script(args.shell)?.trim_end());
    Ok(ExitCode::SUCCESS)
}

fn script(shell: Shell) -> Result<String, CliError> {
    let shells = Shells::builtins();
    let name = shell.to_string();
    let shell = shells.completer(&name).ok_or_else(|| {
        CliError::Usage(format!("mcp-fleet has no completions for the shell `{name}`"))
    })?;

    let mut script = Vec::new();
    shell
        .write_registration(VARIABLE, PROGRAM, PROGRAM, PROGRAM, &mut script)
        .map_err(|error| CliError::Io("could not make the script", error))?;
    let script = String::from_utf8_lossy(&script).into_owned();
    Ok(match shell.name() {
        "zsh" => format!("{}\n{FIRST_USE_IN_ZSH}", script.trim_end()),
        _ => script,
    })
}

#[cfg(test)]
mod tests {
    use clap::ValueEnum as _;

    use super::*;

    #[test]
    fn every_shell_gets_a_script_that_asks_the_program() {
        for shell in Shell::value_variants() {
            let script = script(*shell).unwrap();
            for word in [PROGRAM, VARIABLE] {
                assert!(script.contains(word), "{shell}: {word}: {script}");
            }
        }
    }
}
