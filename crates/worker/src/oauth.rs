//! The worker as a client of the authorization server that the MCP server names.

use std::path::{Path, PathBuf};

use fleet_mcp_client::{
    OAuthClient,
    oauth::{Algorithm, ClientCredentials, CredentialsReader, Proof},
};
use fleet_ops::config::{named_path, path_parser, read_secret_file};

const HEADING: &str = "MCP server: OAuth";

/// The settings of the OAuth client. There is one if there is an id.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct OAuthArgs {
    /// The id of an OAuth client, as which the worker gets access tokens for the MCP server (grant
    /// `client_credentials`), in place of `--server-token` and `--server-token-file`.
    #[arg(long, env = "MCP_OAUTH_CLIENT_ID", value_name = "ID", help_heading = HEADING)]
    pub oauth_client_id: Option<String>,

    /// The authorization server that has registered the client, exactly as its metadata names it
    /// (`issuer`). The client's credentials are sent to no other one.
    #[arg(long, env = "MCP_OAUTH_ISSUER", value_name = "URL", help_heading = HEADING)]
    pub oauth_issuer: Option<String>,

    /// The authorities of the authorization server's certificate (PEM), in place of the system's.
    #[arg(
        long,
        env = "MCP_OAUTH_CA_FILE",
        value_name = "FILE",
        help_heading = HEADING,
        value_parser = path_parser(),
    )]
    pub oauth_ca: Option<PathBuf>,

    /// The client's secret.
    #[arg(
        long,
        env = "MCP_OAUTH_CLIENT_SECRET",
        hide_env_values = true,
        value_name = "SECRET",
        help_heading = HEADING
    )]
    pub oauth_client_secret: Option<String>,

    /// A file with the client's secret, which is read for each token.
    #[arg(
        long,
        env = "MCP_OAUTH_CLIENT_SECRET_FILE",
        value_name = "FILE",
        help_heading = HEADING,
        value_parser = path_parser(),
    )]
    pub oauth_client_secret_file: Option<PathBuf>,

    /// A file with the client's private key (PEM), in place of a secret. It is read for each token.
    #[arg(
        long,
        env = "MCP_OAUTH_PRIVATE_KEY_FILE",
        value_name = "FILE",
        help_heading = HEADING,
        value_parser = path_parser(),
    )]
    pub oauth_private_key_file: Option<PathBuf>,

    /// The algorithm of the private key: ES256, ES384 or RS256.
    #[arg(
        long,
        env = "MCP_OAUTH_ALGORITHM",
        default_value = "ES256",
        value_name = "NAME",
        help_heading = HEADING
    )]
    pub oauth_algorithm: String,

    /// Scopes to ask for.
    #[arg(
        long,
        env = "MCP_OAUTH_SCOPES",
        value_delimiter = ',',
        value_name = "SCOPE",
        help_heading = HEADING
    )]
    pub oauth_scopes: Vec<String>,
}

/// Why the worker can't be an OAuth client.
#[derive(Debug, thiserror::Error)]
pub enum OAuthError {
    /// There is not exactly one proof.
    #[error(
        "MCP_OAUTH_CLIENT_ID needs one of MCP_OAUTH_CLIENT_SECRET, MCP_OAUTH_CLIENT_SECRET_FILE and \
         MCP_OAUTH_PRIVATE_KEY_FILE; {found} of them are set"
    )]
    Proofs {
        /// How many there are.
        found: usize,
    },
    /// There is no issuer, or it is no URL.
    #[error(
        "MCP_OAUTH_ISSUER must be the URL of the authorization server that MCP_OAUTH_CLIENT_ID is \
         registered with, such as https://idp.example.com/realms/acme"
    )]
    Issuer,
    /// There is another token.
    #[error(
        "MCP_OAUTH_CLIENT_ID gets access tokens, so MCP_SERVER_TOKEN and MCP_SERVER_TOKEN_FILE must \
         not be set beside it"
    )]
    OtherToken,
    /// The algorithm is unknown.
    #[error("MCP_OAUTH_ALGORITHM: {0:?} is not one of ES256, ES384 and RS256")]
    Algorithm(String),
    /// The files can't be read.
    #[error("{0}")]
    Credentials(String),
}

/// Where the proof is.
#[derive(Clone)]
enum ProofSource {
    Secret(String),
    SecretFile(PathBuf),
    PrivateKeyFile(PathBuf, Algorithm),
}

impl OAuthArgs {
    /// The client; `None` if there is none. `has_token` says whether there is a token of another
    /// origin. The files are read once now, so that a wrong path is seen at the start.
    pub(crate) fn client(&self, has_token: bool) -> Result<Option<OAuthClient>, OAuthError> {
        // An empty variable counts as unset.
        let Some(client_id) = self.oauth_client_id.clone().filter(|id| !id.is_empty()) else {
            return Ok(None);
        };
        if has_token {
            return Err(OAuthError::OtherToken);
        }
        let issuer = self.oauth_issuer.as_deref().and_then(|text| text.trim().parse().ok());
        let issuer = Some(issuer.ok_or(OAuthError::Issuer)?);

        let source = self.proof_source()?;
        let scopes: Vec<_> =
            self.oauth_scopes.iter().filter(|scope| !scope.is_empty()).cloned().collect();
        let read = move || {
            let proof = source.read()?;
            Ok(ClientCredentials { client_id: client_id.clone(), proof, scopes: scopes.clone() })
        };
        read().map_err(OAuthError::Credentials)?;
        let ca = named_path(&self.oauth_ca);
        Ok(Some(OAuthClient { credentials: CredentialsReader::new(read), issuer, ca }))
    }

    fn proof_source(&self) -> Result<ProofSource, OAuthError> {
        let algorithm = Algorithm::parse(&self.oauth_algorithm)
            .ok_or_else(|| OAuthError::Algorithm(self.oauth_algorithm.clone()))?;

        let secret = self.oauth_client_secret.clone().filter(|secret| !secret.is_empty());
        let sources = [
            secret.map(ProofSource::Secret),
            named_path(&self.oauth_client_secret_file).map(ProofSource::SecretFile),
            named_path(&self.oauth_private_key_file)
                .map(|path| ProofSource::PrivateKeyFile(path, algorithm)),
        ];
        let mut sources: Vec<_> = sources.into_iter().flatten().collect();
        match (sources.pop(), sources.len()) {
            (Some(source), 0) => Ok(source),
            (None, _) => Err(OAuthError::Proofs { found: 0 }),
            (Some(_), others) => Err(OAuthError::Proofs { found: 1 + others }),
        }
    }
}

impl ProofSource {
    fn read(&self) -> Result<Proof, String> {
        match self {
            Self::Secret(secret) => Ok(Proof::Secret(secret.clone())),
            Self::SecretFile(path) => {
                read_secret_file(path).map(Proof::Secret).map_err(|error| describe(path, &error))
            }
            Self::PrivateKeyFile(path, algorithm) => std::fs::read_to_string(path)
                .map(|pem| Proof::PrivateKey { pem, algorithm: *algorithm })
                .map_err(|error| describe(path, &error)),
        }
    }
}

fn describe(path: &Path, error: &dyn std::error::Error) -> String {
    format!(
        "could not read the OAuth client's {}: {}",
        path.display(),
        fleet_ops::errors::chain(error)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn args(secret: Option<&str>, file: Option<&Path>) -> OAuthArgs {
        OAuthArgs {
            oauth_client_id: Some("worker".to_owned()),
            oauth_client_secret: secret.map(str::to_owned),
            oauth_private_key_file: file.map(Path::to_owned),
            oauth_issuer: Some("https://idp.example".to_owned()),
            oauth_algorithm: "ES256".to_owned(),
            ..OAuthArgs::default()
        }
    }

    #[test]
    fn a_client_has_one_proof_and_one_issuer() {
        let file = tempfile::NamedTempFile::new().unwrap();
        assert!(args(Some("s"), None).client(false).unwrap().is_some());
        assert!(args(None, Some(file.path())).client(false).unwrap().is_some());
        assert!(OAuthArgs::default().client(true).unwrap().is_none());

        let refusal = |args: OAuthArgs| args.client(false).unwrap_err().to_string();
        assert!(refusal(args(None, None)).contains("0 of them"));
        assert!(refusal(args(Some(""), None)).contains("0 of them"));
        assert!(refusal(args(Some("s"), Some(file.path()))).contains("2 of them"));
        assert!(refusal(args(None, Some(Path::new("/none")))).contains("/none"));
        let odd = OAuthArgs { oauth_algorithm: "HS256".to_owned(), ..args(Some("s"), None) };
        assert!(refusal(odd).contains("HS256"));
        let anywhere = OAuthArgs { oauth_issuer: None, ..args(Some("s"), None) };
        assert!(refusal(anywhere).contains("MCP_OAUTH_ISSUER"));
        assert!(args(Some("s"), None).client(true).is_err(), "two tokens");
    }
}
