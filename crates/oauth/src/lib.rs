//! Access tokens for calls of our own: OAuth 2.1 client credentials, as MCP has them
//! (`io.modelcontextprotocol/oauth-client-credentials`, SEP-1046).
//!
//! A [`TokenSource`] finds the authorization server of an MCP server by its metadata (RFC 9728,
//! RFC 8414), gets tokens from it, and keeps each one until shortly before it ends. The protocol is
//! rmcp's; this crate adds what a process with many calls needs: one request for all of them, which
//! goes on when the call that began it is given up, no request storm while the authorization server
//! is away, and secrets that go to the configured issuer alone.

mod answer;
mod discovery;
mod fetch;
mod held;

use std::{
    fmt,
    sync::Arc,
    time::{Duration, Instant},
};

use fleet_codes as codes;
use parking_lot::Mutex;
use rmcp::transport::{
    JwtSigningAlgorithm,
    auth::{AuthError, AuthorizationManager, AuthorizationMetadata, ClientCredentialsConfig},
};
use serde_json::{Value, json};
use tokio::{runtime::Handle, sync::Mutex as AsyncMutex, time::timeout};
use url::Url;

use answer::{WatchedClient, with_causes};
use discovery::{metadata_of_issuer, metadata_of_named};
pub use fetch::{BoundedClient, Reach};
pub use held::TokenStanding;
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

/// How long all requests for one token may take together.
const FETCH_LIMIT: Duration = Duration::from_secs(20);

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

/// Which authorization server is asked, and for what.
#[derive(Debug, Clone, Default)]
pub struct TokenSettings {
    /// Who issues the tokens.
    pub server: AuthorizationServer,
    /// The resource that tokens are for, if it is not the URL of the MCP server.
    pub resource: Option<Url>,
}

/// Who issues the tokens.
#[derive(Debug, Clone, Default)]
pub enum AuthorizationServer {
    /// The MCP server names it, so the MCP server decides who is given the client's secret.
    #[default]
    Named,
    /// The MCP server must name this issuer, whose metadata is read from the issuer itself.
    Issuer(Url),
    /// The authorization server with this token endpoint, whatever the MCP server says.
    TokenEndpoint(Url),
}

/// Is told of each token that was fetched, or why there is none.
type Observer = dyn Fn(Result<(), &str>) + Send + Sync;

/// Gets and keeps the access tokens for one MCP server. Clones share them.
#[derive(Clone)]
pub struct TokenSource(Arc<Inner>);

struct Inner {
    /// The MCP endpoint, without user name and password.
    resource: Url,
    settings: TokenSettings,
    credentials: CredentialsReader,
    http: BoundedClient,
    observer: Box<Observer>,
    held: Mutex<Held>,
    /// Locked while a token is fetched, so that all calls wait for the same one.
    fetching: Arc<AsyncMutex<()>>,
}

impl fmt::Debug for TokenSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TokenSource")
            .field("resource", &self.0.resource.as_str())
            .finish_non_exhaustive()
    }
}

impl TokenSource {
    /// A source of tokens for the MCP endpoint `resource`, with requests through `http`.
    pub fn new(
        resource: Url,
        settings: TokenSettings,
        credentials: CredentialsReader,
        http: BoundedClient,
    ) -> Self {
        Self::observed(resource, settings, credentials, http, |_| ())
    }

    /// As [`Self::new`]. `observer` is told of each token that was fetched, or why there is none.
    pub fn observed(
        mut resource: Url,
        settings: TokenSettings,
        credentials: CredentialsReader,
        http: BoundedClient,
        observer: impl Fn(Result<(), &str>) + Send + Sync + 'static,
    ) -> Self {
        // They are no part of the resource. A URL that can't have them has none.
        _ = resource.set_username("");
        _ = resource.set_password(None);
        let (held, fetching) = (Mutex::default(), Arc::default());
        let observer = Box::new(observer);
        Self(Arc::new(Inner { resource, settings, credentials, http, observer, held, fetching }))
    }

    /// Notes that the MCP server has taken a request with this token. If it refuses the token later,
    /// another one is fetched at once.
    pub fn note_accepted(&self, token: &str) {
        self.0.held.lock().note_accepted(token);
    }

    /// Returns what is known of the token.
    pub fn standing(&self) -> TokenStanding {
        self.0.held.lock().standing(Instant::now())
    }

    /// The token to send, which is fetched if there is none. One that ends soon is sent while another
    /// is fetched in the background. After a failure, the answer is the same for a second.
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
        match self.0.known(refused) {
            Known::Token(token) => return Ok(token),
            Known::NoToken(error) => return Err(error),
            Known::EndsSoon(token) => {
                self.renew(refused);
                return Ok(token);
            }
            Known::Nothing => {}
        }
        let (inner, refused) = (Arc::clone(&self.0), refused.map(str::to_owned));
        // A call that is given up must not take the token of all others with it.
        let fetched = tokio::spawn(async move {
            let _fetching = inner.fetching.lock().await;
            inner.fetch_once(refused.as_deref()).await
        });
        fetched.await.unwrap_or_else(|error| Err(self.0.no_token(error.to_string().into())))
    }

    /// Fetches another token in the background, unless one is being fetched.
    fn renew(&self, refused: Option<&str>) {
        let Ok(fetching) = Arc::clone(&self.0.fetching).try_lock_owned() else { return };
        let (inner, refused) = (Arc::clone(&self.0), refused.map(str::to_owned));
        tokio::spawn(async move {
            let _fetching = fetching;
            // Whoever wants a token is told of a failure once there is none.
            _ = inner.fetch_once(refused.as_deref()).await;
        });
    }
}

/// What is known without asking.
enum Known {
    /// The token to send.
    Token(Arc<str>),
    /// The token to send, while another is fetched.
    EndsSoon(Arc<str>),
    /// There is none to be had now.
    NoToken(TokenError),
    /// A token is to be fetched.
    Nothing,
}

impl Inner {
    fn known(&self, refused: Option<&str>) -> Known {
        match self.held.lock().next(refused, Instant::now()) {
            Next::Use(token) => Known::Token(token),
            Next::Renew(token) => Known::EndsSoon(token),
            Next::Failed(reason) => Known::NoToken(self.no_token(reason)),
            Next::Refused => {
                Known::NoToken(TokenError::Refused { resource: self.resource.clone() })
            }
            Next::Fetch => Known::Nothing,
        }
    }

    /// Fetches a token, unless another call has done so in the meantime. `fetching` is locked.
    async fn fetch_once(&self, refused: Option<&str>) -> Result<Arc<str>, TokenError> {
        match self.known(refused) {
            Known::Token(token) => return Ok(token),
            Known::NoToken(error) => return Err(error),
            Known::EndsSoon(_) | Known::Nothing => {}
        }

        // A token ends so long after it was issued, which is after this.
        let asked = Instant::now();
        self.held.lock().note_fetch(refused, asked);
        let fetched = self.fetch().await;
        let token = {
            let (mut held, now) = (self.held.lock(), Instant::now());
            match fetched {
                Ok(response) => held.take(&response, asked, now),
                Err(error) => Err(held.fail(&error, now)),
            }
        };
        (self.observer)(token.as_ref().map(|_| ()).map_err(|reason| &**reason));
        token.or_else(|reason| match self.known(refused) {
            // It has not ended yet.
            Known::Token(token) => Ok(token),
            _ => Err(self.no_token(reason)),
        })
    }

    /// Fetches a token, and returns the response of the authorization server.
    async fn fetch(&self) -> Result<Value, String> {
        let (resource, settings) = (self.resource.clone(), self.settings.clone());
        let (read, http) = (self.credentials.clone(), self.http.clone());
        let runtime = Handle::current();
        // rmcp's future can't move between threads, so one thread makes it and runs it to its end.
        let fetched = tokio::task::spawn_blocking(move || {
            let requested = settings.resource.as_ref().unwrap_or(&resource);
            let config = config(requested, &settings.server, (read.0)()?);
            let exchange = exchange(&resource, &settings.server, &config, http);
            let exchange = async { timeout(FETCH_LIMIT, exchange).await };
            runtime.block_on(exchange).unwrap_or_else(|_| Err(late()))
        });
        // The credentials, too, may take long to read.
        let fetched = timeout(FETCH_LIMIT, fetched).await.unwrap_or_else(|_| Ok(Err(late())));
        fetched.unwrap_or_else(|error| Err(error.to_string()))
    }

    fn no_token(&self, reason: Arc<str>) -> TokenError {
        TokenError::NoToken { resource: self.resource.clone(), reason }
    }
}

fn late() -> String {
    format!("not done within {FETCH_LIMIT:?}")
}

/// Finds the authorization server, and exchanges the client's credentials for a token.
async fn exchange(
    resource: &Url,
    server: &AuthorizationServer,
    config: &ClientCredentialsConfig,
    http: BoundedClient,
) -> Result<Value, String> {
    let describe = |error: AuthError| describe(&error);
    let watched = WatchedClient::new(http.clone());
    let client = Arc::new(watched.clone());
    let manager = AuthorizationManager::new_with_oauth_http_client(resource.as_str(), client).await;
    let mut manager = manager.map_err(describe)?;

    let metadata = match server {
        AuthorizationServer::Named => metadata_of_named(&manager).await?,
        AuthorizationServer::Issuer(issuer) => metadata_of_issuer(&manager, issuer, &http).await?,
        AuthorizationServer::TokenEndpoint(url) => metadata_of_endpoint(url, config)?,
    };
    manager.set_metadata(metadata);
    manager.validate_client_credentials_metadata(config).map_err(describe)?;
    manager.configure_client_credentials(config).map_err(describe)?;
    let response = manager.exchange_client_credentials(config).await;
    // What rmcp says quotes the answer.
    let response = response.map_err(|_| watched.failure())?;
    serde_json::to_value(&response).map_err(|_| watched.failure())
}

/// The metadata of an authorization server of which only the token endpoint is known. Every such
/// server takes a client's secret by HTTP Basic (RFC 6749, section 2.3.1).
fn metadata_of_endpoint(
    url: &Url,
    config: &ClientCredentialsConfig,
) -> Result<AuthorizationMetadata, String> {
    let method = match config {
        ClientCredentialsConfig::ClientSecret { .. } => "client_secret_basic",
        ClientCredentialsConfig::PrivateKeyJwt { .. } => "private_key_jwt",
        _ => return Err("this proof of a client needs an issuer".to_owned()),
    };
    let metadata = json!({
        // No use is made of it, but rmcp needs one.
        "authorization_endpoint": url,
        "token_endpoint": url,
        "token_endpoint_auth_methods_supported": [method],
    });
    serde_json::from_value(metadata).map_err(|error| error.to_string())
}

fn config(
    resource: &Url,
    server: &AuthorizationServer,
    credentials: ClientCredentials,
) -> ClientCredentialsConfig {
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
            // For whom the assertion is: the issuer if it is known, and otherwise the endpoint, which
            // authorization servers take as well (RFC 7523, section 3).
            token_endpoint_audience: match server {
                AuthorizationServer::TokenEndpoint(url) => Some(url.to_string()),
                AuthorizationServer::Named | AuthorizationServer::Issuer(_) => None,
            },
            scopes,
            resource,
        },
    }
}

/// An error before the request for a token, with its causes.
fn describe(error: &AuthError) -> String {
    with_causes(error)
}

#[cfg(test)]
mod tests;
