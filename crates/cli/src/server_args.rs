//! The flags of all commands that talk to an mcp-server.

use std::path::PathBuf;

use fleet_mcp_client::ClientConfig;
use fleet_ops::{
    config::{path_parser, read_secret_file},
    tls::{ClientTls, ServerTlsArgs},
};
use url::Url;

use crate::{api_error::ApiError, error::CliError, mcp::McpServer};

/// The server of a command that is not told which one.
const DEFAULT_SERVER: &str = "http://127.0.0.1:8080";

/// The server that a command talks to.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct ServerArgs {
    /// The mcp-server's URL, such as localhost:8080
    ///
    /// Of several, comma-separated, the first is used. Without any, `submit` writes to Kafka, and
    /// all other commands ask http://127.0.0.1:8080.
    #[arg(help_heading = "Server", long, env = "MCP_SERVER_URL", value_name = "URL")]
    server: Option<String>,

    /// A bearer token for the server; prefer the variable, since others can see the command line
    #[arg(
        help_heading = "Server",
        long,
        env = "MCP_SERVER_TOKEN",
        hide_env_values = true,
        value_name = "TOKEN"
    )]
    token: Option<String>,

    /// A file with the token, in place of --token, which goes before it
    #[arg(
        help_heading = "Server",
        long,
        env = "MCP_SERVER_TOKEN_FILE",
        value_name = "FILE",
        value_parser = path_parser(),
    )]
    token_file: Option<PathBuf>,

    #[command(flatten)]
    tls: ServerTlsArgs,
}

impl ServerArgs {
    /// Returns whether the user has named a server. An empty variable counts as unset.
    pub(crate) fn is_given(&self) -> bool {
        self.given().is_some()
    }

    fn given(&self) -> Option<&str> {
        self.server.as_deref().map(str::trim).filter(|server| !server.is_empty())
    }

    /// Returns the URL of the server's MCP endpoint.
    pub(crate) fn endpoint(&self) -> Result<Url, CliError> {
        let given = self.given().unwrap_or(DEFAULT_SERVER);
        let mut urls = ClientConfig::parse_urls(given).map_err(|source| {
            let hint = "--server names the mcp-server by its URL, such as localhost:8080; a tool \
                        of a hosted server is named SERVER__TOOL";
            CliError::ServerUrl { hint, source }
        })?;
        Ok(urls.swap_remove(0))
    }

    /// Returns scheme, host and port of the server.
    pub(crate) fn base_url(&self) -> Result<Url, CliError> {
        let mut base = self.endpoint()?;
        base.set_path("");
        base.set_query(None);
        Ok(base)
    }

    /// Returns the token. An empty variable counts as unset.
    pub(crate) fn read_token(&self) -> Result<Option<String>, CliError> {
        let given = self.token.clone().filter(|token| !token.is_empty());
        let file = self.token_file.as_ref().filter(|path| !path.as_os_str().is_empty());
        match (given, file) {
            (None, Some(path)) => Ok(Some(read_secret_file(path)?)),
            (given, _) => Ok(given),
        }
    }

    /// Reads the files of TLS.
    pub(crate) fn read_tls(&self) -> Result<ClientTls, CliError> {
        Ok(self.tls.files().and_then(|files| files.read()).map_err(ApiError::Tls)?)
    }

    /// Returns a client of the server's MCP endpoint. It connects when it is first used.
    pub(crate) fn mcp(&self) -> Result<McpServer, CliError> {
        let mut config = ClientConfig::new(vec![self.endpoint()?]);
        config.bearer_token = self.read_token()?.map(Into::into);
        config.tls = self.tls.files().map_err(ApiError::Tls)?;
        McpServer::new(config)
    }
}

#[cfg(test)]
impl ServerArgs {
    /// The flags with this URL.
    pub(crate) fn of(server: &str) -> Self {
        Self { server: Some(server.to_owned()), ..Self::default() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_first_server_counts_and_an_empty_variable_is_none() {
        for (urls, base, endpoint) in [
            ("http://a:8080", "http://a:8080/", "http://a:8080/mcp"),
            ("localhost:8080", "http://localhost:8080/", "http://localhost:8080/mcp"),
            ("https://a/x/mcp?y=1,http://b", "https://a/", "https://a/x/mcp?y=1"),
            ("", "http://127.0.0.1:8080/", "http://127.0.0.1:8080/mcp"),
        ] {
            let args = ServerArgs::of(urls);
            assert_eq!(args.base_url().unwrap().as_str(), base, "{urls}");
            assert_eq!(args.endpoint().unwrap().as_str(), endpoint, "{urls}");
            assert_eq!(args.is_given(), !urls.is_empty());
        }
        assert!(!ServerArgs::default().is_given());
    }

    #[test]
    fn the_name_of_a_hosted_server_is_no_url() {
        let error = ServerArgs::of("files").base_url().unwrap_err();
        let text = fleet_ops::errors::chain(&error);
        assert!(text.contains("SERVER__TOOL") && text.contains("FLEET-SERVER-URL"), "{text}");
    }

    #[test]
    fn a_token_goes_before_its_file_and_what_is_empty_is_unset() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("operator.key");
        std::fs::write(&path, "from-file\n").unwrap();
        let read = |token: &str, file: &std::path::Path| {
            let (token, token_file) = (Some(token.to_owned()), Some(file.to_owned()));
            ServerArgs { token, token_file, ..ServerArgs::of("http://a") }.read_token()
        };

        assert_eq!(read("", &path).unwrap().as_deref(), Some("from-file"));
        assert_eq!(read("given", &path).unwrap().as_deref(), Some("given"));
        assert_eq!(read("", "".as_ref()).unwrap(), None);
        let error = read("", &directory.path().join("other")).unwrap_err().to_string();
        assert!(error.contains("other"), "{error}");
    }
}
