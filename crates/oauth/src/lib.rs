//! Access tokens for calls of our own: OAuth 2.1 client credentials, as MCP has them
//! (`io.modelcontextprotocol/oauth-client-credentials`, SEP-1046).
//!
//! A [`TokenSource`] finds the authorization server of an MCP server by its metadata (RFC 9728,
//! RFC 8414), gets tokens from it, and keeps each one until shortly before it ends. The protocol is
//! rmcp's; this crate adds what a process with many calls needs: one request for all of them, no
//! request storm while the authorization server is away, and bounded answers.

mod fetch;
mod held;

use std::{fmt, sync::Arc, time::Instant};

use fleet_codes as codes;
use rmcp::transport::{
    JwtSigningAlgorithm,
    auth::{AuthError, ClientCredentialsConfig, OAuthHttpClient, OAuthState},
};
use serde_json::Value;
use tokio::{runtime::Handle, sync::Mutex};
use url::Url;

pub use fetch::BoundedClient;
use held::{Held, Next};

/// How a client proves to an authorization server who it is.
#[derive(Clone, PartialEq, Eq)]
pub enum Proof {
    /// A secret that both know.
    Secret(String),
    /// A private key, as PEM; the authorization server has its public key (RFC 7523).
    PrivateKey {
        /// The key.
        pem: String,
        /// The algorithm that it signs with.
        algorithm: Algorithm,
    },
}

impl fmt::Debug for Proof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

/// The algorithm of a client's private key.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Algorithm {
    /// ECDSA with P-256.
    #[default]
    Es256,
    /// ECDSA with P-384.
    Es384,
    /// RSA.
    Rs256,
}

impl Algorithm {
    /// The algorithm that is written like this, as in RFC 7518.
    pub fn parse(text: &str) -> Option<Self> {
        match text {
            "ES256" => Some(Self::Es256),
            "ES384" => Some(Self::Es384),
            "RS256" => Some(Self::Rs256),
            _ => None,
        }
    }
}

/// What a client is registered with at an authorization server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCredentials {
    /// The client's id.
    pub client_id: String,
    /// How it proves that.
    pub proof: Proof,
    /// The scopes to ask for.
    pub scopes: Vec<String>,
}

/// Reads a client's credentials. It is asked whenever a token is fetched, so that replaced ones
/// count without a restart.
#[derive(Clone)]
pub struct CredentialsReader(Arc<ReadCredentials>);

type ReadCredentials = dyn Fn() -> Result<ClientCredentials, String> + Send + Sync;

impl CredentialsReader {
    /// Reads credentials with this function, whose error is a text for people.
    pub fn new(
        read: impl Fn() -> Result<ClientCredentials, String> + Send + Sync + 'static,
    ) -> Self {
        Self(Arc::new(read))
    }
}

impl fmt::Debug for CredentialsReader {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("CredentialsReader")
    }
}

/// There is no access token.
#[derive(Debug, Clone, thiserror::Error)]
pub enum TokenError {
    /// The authorization server can't be found or asked, or gives no token.
    #[error("could not get an access token for {resource}: {reason} [{code}]", code = codes::NO_ACCESS_TOKEN)]
    NoToken {
        /// The MCP server.
        resource: Url,
        /// Why not.
        reason: Arc<str>,
    },
    /// A new token was refused as well.
    #[error(
        "{resource} refuses the access tokens that its authorization server issues to us [{code}]",
        code = codes::NO_ACCESS_TOKEN
    )]
    Refused {
        /// The MCP server.
        resource: Url,
    },
}

/// Gets and keeps the access tokens for one MCP server.
pub struct TokenSource {
    resource: Url,
    credentials: CredentialsReader,
    http: Arc<dyn OAuthHttpClient>,
    /// Locked while a token is fetched, so that all calls wait for the same one.
    held: Mutex<Held>,
}

impl fmt::Debug for TokenSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenSource")
            .field("resource", &self.resource.as_str())
            .finish_non_exhaustive()
    }
}

impl TokenSource {
    /// A source of tokens for the MCP endpoint `resource`, with requests through `http`.
    pub fn new(
        resource: Url,
        credentials: CredentialsReader,
        http: Arc<dyn OAuthHttpClient>,
    ) -> Self {
        Self { resource, credentials, http, held: Mutex::default() }
    }

    /// The token to send, which is fetched if there is none or it ends soon. After a failure, the
    /// answer is the same for a second.
    ///
    /// # Errors
    ///
    /// Returns an error if there is no token.
    pub async fn token(&self) -> Result<Arc<str>, TokenError> {
        self.token_instead_of(None).await
    }

    /// The token to send in place of one that the server has refused.
    ///
    /// # Errors
    ///
    /// Returns an error if there is no other token.
    pub async fn token_after_refusal(&self, refused: &str) -> Result<Arc<str>, TokenError> {
        self.token_instead_of(Some(refused)).await
    }

    async fn token_instead_of(&self, refused: Option<&str>) -> Result<Arc<str>, TokenError> {
        let mut held = self.held.lock().await;
        match held.next(refused, Instant::now()) {
            Next::Use(token) => return Ok(token),
            Next::Failed(reason) => return Err(self.no_token(reason)),
            Next::Refused => return Err(TokenError::Refused { resource: self.resource.clone() }),
            Next::Fetch => {}
        }

        let fetched = match (self.credentials.0)() {
            Ok(credentials) => {
                fetch(self.resource.clone(), credentials, Arc::clone(&self.http)).await
            }
            Err(error) => Err(error),
        };
        // Later than before the request, so a token is never used beyond its end by this.
        let now = Instant::now();
        match fetched {
            Ok(response) => held.take(&response, now).map_err(|reason| self.no_token(reason)),
            Err(error) => Err(self.no_token(held.fail(&error, now))),
        }
    }

    fn no_token(&self, reason: Arc<str>) -> TokenError {
        TokenError::NoToken { resource: self.resource.clone(), reason }
    }
}

/// Fetches a token, and returns the response of the authorization server.
async fn fetch(
    resource: Url,
    credentials: ClientCredentials,
    http: Arc<dyn OAuthHttpClient>,
) -> Result<Value, String> {
    let runtime = Handle::current();
    // rmcp's future can't move between threads, so one thread makes it and runs it to its end.
    let fetched = tokio::task::spawn_blocking(move || {
        runtime.block_on(async move {
            let config = config(&resource, credentials);
            let state = OAuthState::new_with_oauth_http_client(resource.as_str(), http).await;
            let mut state = state.map_err(|error| describe(&error))?;
            let authenticated = state.authenticate_client_credentials(config).await;
            authenticated.map_err(|error| describe(&error))?;
            let (_, response) = state.get_credentials().await.map_err(|error| describe(&error))?;
            serde_json::to_value(&response).map_err(|error| error.to_string())
        })
    });
    fetched.await.unwrap_or_else(|error| Err(error.to_string()))
}

fn config(resource: &Url, credentials: ClientCredentials) -> ClientCredentialsConfig {
    let ClientCredentials { client_id, proof, scopes } = credentials;
    let resource = Some(resource.to_string());
    match proof {
        Proof::Secret(client_secret) => {
            ClientCredentialsConfig::ClientSecret { client_id, client_secret, scopes, resource }
        }
        Proof::PrivateKey { pem, algorithm } => ClientCredentialsConfig::PrivateKeyJwt {
            client_id,
            signing_key: pem.into_bytes(),
            signing_algorithm: match algorithm {
                Algorithm::Es256 => JwtSigningAlgorithm::ES256,
                Algorithm::Es384 => JwtSigningAlgorithm::ES384,
                Algorithm::Rs256 => JwtSigningAlgorithm::RS256,
            },
            token_endpoint_audience: None,
            scopes,
            resource,
        },
    }
}

/// An error and its causes.
fn describe(error: &AuthError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}
