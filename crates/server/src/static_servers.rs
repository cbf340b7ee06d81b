//! The servers that a file lists, which are hosted from the start.

use std::{path::PathBuf, sync::Arc};

use fleet_codes as codes;
use fleet_hosting::registry::Shared;
use fleet_job::{
    mcp_servers::{ConfigError, McpServers, ServerEntry, text},
    tool_name::{self, NameError},
};
use fleet_ops::config::named_path;
use tokio_util::sync::CancellationToken;

use crate::args::Args;

/// Why the file of the servers can't be used.
#[derive(Debug, thiserror::Error)]
pub enum ServersFileError {
    /// The file can't be read.
    #[error("could not read --servers {} [{code}]", path.display(), code = codes::SERVER_CONFIG)]
    Read {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        #[source]
        error: std::io::Error,
    },
    /// The file is not JSON.
    #[error("--servers {} [{code}]", path.display(), code = codes::SERVER_CONFIG)]
    Text {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        error: text::TextError,
    },
    /// The file, or an entry of it, is no configuration.
    #[error("--servers {} [{code}]", path.display(), code = codes::SERVER_CONFIG)]
    Config {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        error: ConfigError,
    },
    /// A server can't have its name.
    #[error("--servers {}", path.display())]
    Name {
        /// The file.
        path: PathBuf,
        /// What is wrong with the name.
        #[source]
        error: NameError,
    },
    /// Servers are to be hosted by a server that hosts none.
    #[error(
        "--servers (MCP_SERVERS_FILE) lists servers to host, but --hosting=false (MCP_HOSTING) \
         turns hosting off; remove one of them [{code}]",
        code = codes::SETTING
    )]
    HostingOff,
}

/// Reads the servers that the flags name. Those that are switched off are left out; everything else
/// must be right, since nobody would notice what is missing.
pub(crate) fn read(args: &Args) -> Result<Vec<(String, ServerEntry)>, ServersFileError> {
    let Some(path) = named_path(&args.servers) else { return Ok(Vec::new()) };
    if !args.hosting {
        return Err(ServersFileError::HostingOff);
    }

    let content = std::fs::read(&path);
    let content = content.map_err(|error| ServersFileError::Read { path: path.clone(), error })?;
    parse(&content, &path)
}

fn parse(
    content: &[u8],
    path: &std::path::Path,
) -> Result<Vec<(String, ServerEntry)>, ServersFileError> {
    let path = || path.to_owned();
    let value = text::parse(content);
    let value = value.map_err(|error| ServersFileError::Text { path: path(), error })?;
    let config = McpServers::from_value(&value);
    let config = config.map_err(|error| ServersFileError::Config { path: path(), error })?;

    let mut servers = Vec::new();
    for (name, entry) in config.servers {
        match entry.map_err(|unusable| unusable.error) {
            Err(ConfigError::Disabled { .. }) => {}
            Err(error) => return Err(ServersFileError::Config { path: path(), error }),
            Ok(entry) => {
                let checked = tool_name::check_server(&name);
                checked.map_err(|error| ServersFileError::Name { path: path(), error })?;
                servers.push((name, entry));
            }
        }
    }
    Ok(servers)
}

/// Starts the servers in the background. Those that fail are tried again until `stop` is cancelled.
pub(crate) fn host(
    servers: &[(String, ServerEntry)],
    shared: &Arc<Shared>,
    stop: &CancellationToken,
) {
    for (name, entry) in servers {
        // The names were checked when the file was read.
        if let Err(error) = shared.want(name, entry, stop) {
            tracing::warn!(server = name, %error, "cannot host a server of --servers");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn names(content: &str) -> Result<Vec<String>, String> {
        let servers = parse(content.as_bytes(), Path::new("mcp.json"));
        let servers = servers.map_err(|error| fleet_ops::errors::chain(&error));
        servers.map(|servers| servers.into_iter().map(|(name, _)| name).collect())
    }

    #[test]
    fn every_server_of_the_file_must_be_right() {
        let good = r#"{"mcpServers": {
            "b": {"url": "https://b"}, "a": {"command": "x"},
            "off": {"command": "y", "disabled": true}, // a comment
        }}"#;
        assert_eq!(names(good).unwrap(), ["a", "b"]);
        for (bad, part) in [
            ("[", "FLEET-SERVER-CONFIG"),
            ("{}", "mcpServers"),
            (r#"{"mcpServers": {"a": {"command": 7}}}"#, "mcpServers.a.command"),
            (r#"{"mcpServers": {"a__b": {"command": "x"}}}"#, "FLEET-SERVER-NAME"),
        ] {
            let error = names(bad).unwrap_err();
            assert!(error.contains(part) && error.contains("mcp.json"), "{error}");
        }
    }
}
