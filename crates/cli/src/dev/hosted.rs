//! What `dev` hosts: the files of the directory, or servers of the user's own.

use std::path::Path;

use fleet_job::mcp_servers::{McpServers, ServerEntry};
use serde_json::{Value, json};

use crate::{
    error::CliError,
    input::{is_stdin, read_input},
    servers::{Extras, SourceError, WantedServer, from_command, from_file},
    stack::HostedByStack,
};

/// Returns what the flags ask for. The servers of a command are written to a file in `run_dir`,
/// where the mcp-server reads them at every start.
pub(super) fn hosted_servers(
    file: Option<&Path>,
    command: &[String],
    name: Option<&str>,
    run_dir: &Path,
) -> Result<HostedByStack, CliError> {
    if let Some(file) = file {
        if is_stdin(file) {
            return Err(CliError::Usage(
                "--servers must be a file, which is read at every start of the mcp-server".into(),
            ));
        }
        let entries = entries_of(from_file(&file.display().to_string(), &read_input(file)?, &[])?)?;
        if entries.is_empty() {
            return Err(CliError::Usage(format!("`{}` has no servers", file.display())));
        }
        let file = std::path::absolute(file)
            .map_err(|error| CliError::Io("could not determine the current directory", error))?;
        return Ok(HostedByStack::Servers { file, entries });
    }

    if command.is_empty() {
        return Ok(HostedByStack::Files);
    }
    let wanted = from_command(command, name, &Extras::default())?;
    let (file, config) = (run_dir.join("servers.json"), config_of(&wanted));
    std::fs::write(&file, config.to_string()).map_err(|source| CliError::File {
        what: "could not write",
        path: file.clone(),
        source,
    })?;
    Ok(HostedByStack::Servers { file, entries: entries_of(vec![wanted])? })
}

fn config_of(wanted: &WantedServer) -> Value {
    json!({"mcpServers": {wanted.name.as_str(): wanted.config}})
}

/// Reads the servers in the way in which the mcp-server will.
fn entries_of(wanted: Vec<WantedServer>) -> Result<Vec<(String, ServerEntry)>, CliError> {
    let mut entries = Vec::new();
    for wanted in wanted {
        let bad = |source| SourceError::Config { file: wanted.name.clone(), source };
        let config = McpServers::from_value(&config_of(&wanted)).map_err(bad)?;
        for (name, entry) in config.servers {
            entries.push((name, entry.map_err(|unusable| bad(unusable.error))?));
        }
    }
    Ok(entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(hosts: HostedByStack) -> Vec<String> {
        match hosts {
            HostedByStack::Files => Vec::new(),
            HostedByStack::Servers { entries, .. } => {
                entries.into_iter().map(|(name, _)| name).collect()
            }
        }
    }

    #[test]
    fn a_command_becomes_a_file_that_the_server_reads() {
        let dir = tempfile::tempdir().unwrap();
        let words = ["uvx", "my-server"].map(str::to_owned);
        let hosts = hosted_servers(None, &words, None, dir.path()).unwrap();
        assert_eq!(names(hosts), ["my-server"]);
        let written = std::fs::read_to_string(dir.path().join("servers.json")).unwrap();
        assert_eq!(
            written,
            r#"{"mcpServers":{"my-server":{"command":"uvx","args":["my-server"]}}}"#
        );

        assert!(names(hosted_servers(None, &[], None, dir.path()).unwrap()).is_empty());
    }

    #[test]
    fn a_file_is_used_where_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("mcp.json");
        let hosted = || hosted_servers(Some(&path), &[], None, dir.path());
        std::fs::write(&path, r#"{"mcpServers": {"a": {"command": "x"}}}"#).unwrap();
        match hosted().unwrap() {
            HostedByStack::Servers { file, entries } => {
                assert_eq!((file, entries.len()), (path.clone(), 1));
            }
            HostedByStack::Files => panic!("not the servers"),
        }

        std::fs::write(&path, r#"{"mcpServers": {"a": {"command": "x", "disabled": true}}}"#)
            .unwrap();
        assert!(hosted().unwrap_err().to_string().contains("has no servers"));
        let stdin = hosted_servers(Some(Path::new("-")), &[], None, dir.path());
        assert!(stdin.unwrap_err().to_string().contains("must be a file"));
    }
}
