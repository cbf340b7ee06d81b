//! Access tokens for remotes, which policy's `oauth` gets from an authorization server.
//!
//! All connections to one remote share its tokens, also the attempts of a start that fails again and
//! again: so an authorization server that is away is asked at growing intervals, and not once per
//! call or attempt. The client's secret is read for each token, so a new value counts at once.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, Weak},
    time::Duration,
};

use fleet_oauth::{
    Algorithm, AuthorizationServer, BoundedClient, ClientCredentials, CredentialsReader, Proof,
    Reach, TokenError, TokenSettings, TokenSource, TokenStanding,
};
use fleet_ops::errors::chain;
use fleet_policy::{
    current::CurrentPolicy,
    oauth::{KeyAlgorithm, ProofRef, RemoteOauth, TokenServer},
};
use http::HeaderValue;
use parking_lot::Mutex;
use tokio::{runtime::Handle, sync::Mutex as AsyncMutex, time::timeout};
use url::Url;

use crate::{
    metrics::UPSTREAM_TOKENS,
    secret_store::{SecretOccasion, SecretStore, SecretUse, SecretValue, UnrecordedUse},
    secrets::{Secrets, secret_reference},
};

/// How texts name a token in place of its value.
const TOKEN_NAME: &str = "oauth:access-token";

/// How long reading the client's secret and recording its use may take.
const READ_LIMIT: Duration = Duration::from_secs(10);

/// There is no access token for a remote.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{reason}")]
pub(crate) struct NoToken {
    reason: Arc<str>,
    /// Whether the remote has refused a new one as well.
    pub(crate) is_refused: bool,
}

/// A token as one request has it.
#[derive(Clone)]
pub(crate) struct SentToken {
    pub(crate) text: Arc<str>,
    pub(crate) header: HeaderValue,
}

/// The token that was hidden last in some texts.
#[derive(Default)]
pub(crate) struct HiddenToken(Mutex<Option<Arc<str>>>);

impl HiddenToken {
    /// Hides a token, if it is another one than the last.
    pub(crate) fn hide_in(&self, hidden: &Secrets, token: &SentToken) {
        let mut last = self.0.lock();
        if last.as_ref() != Some(&token.text) {
            hidden.add(TOKEN_NAME, &token.text);
            *last = Some(token.text.clone());
        }
    }
}

/// The tokens of all remotes. They are kept as long as somebody uses them.
#[derive(Default)]
pub(crate) struct TokenCache(Mutex<Vec<Weak<RemoteTokens>>>);

impl TokenCache {
    /// Returns the tokens of this client for a remote.
    pub(crate) fn get(
        &self,
        oauth: &RemoteOauth,
        remote: &Url,
        new: impl FnOnce() -> RemoteTokens,
    ) -> Arc<RemoteTokens> {
        let mut all = self.0.lock();
        all.retain(|tokens| tokens.strong_count() > 0);
        let is_it = |tokens: &Arc<RemoteTokens>| tokens.oauth == *oauth && tokens.remote == *remote;
        if let Some(known) = all.iter().filter_map(Weak::upgrade).find(is_it) {
            return known;
        }

        let tokens = Arc::new(new());
        all.push(Arc::downgrade(&tokens));
        tokens
    }
}

/// The access tokens for one remote.
pub(crate) struct RemoteTokens {
    oauth: RemoteOauth,
    /// The remote, without what its URL may hide.
    remote: Url,
    store: SecretStore,
    /// The client's secret, and the tokens that authorization servers may quote.
    hidden: Secrets,
    hidden_token: HiddenToken,
    source: Mutex<Option<TokenSource>>,
    /// The servers whose use of the client's secret is recorded.
    recorded: AsyncMutex<BTreeSet<String>>,
}

impl RemoteTokens {
    pub(crate) fn new(oauth: RemoteOauth, remote: Url, store: SecretStore) -> Self {
        let (hidden, hidden_token) = (Secrets::default(), HiddenToken::default());
        let (source, recorded) = (Mutex::default(), AsyncMutex::default());
        Self { oauth, remote, store, hidden, hidden_token, source, recorded }
    }

    /// Returns the client that gets the tokens.
    pub(crate) fn oauth(&self) -> &RemoteOauth {
        &self.oauth
    }

    /// Hides these values of the remote's configuration in texts about tokens, which may have the
    /// remote's URL.
    pub(crate) fn hide(&self, values: &BTreeMap<String, String>) {
        for (name, value) in values {
            self.hidden.add(name, value);
        }
    }

    /// Returns whether both are tokens of the same client for the same remote.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        self.oauth == other.oauth && self.remote == other.remote
    }

    /// Returns the token to send, in place of a refused one if there was one.
    ///
    /// # Errors
    ///
    /// Returns an error if there is none.
    pub(crate) async fn token(
        &self,
        server: &str,
        policy: &CurrentPolicy,
        refused: Option<&str>,
    ) -> Result<SentToken, NoToken> {
        self.record_first_use(server).await?;
        let source = self.source(server, policy)?;
        let token = match refused {
            None => source.token().await,
            Some(refused) => source.token_after_refusal(refused).await,
        };
        let text = token.map_err(|error| NoToken {
            is_refused: matches!(error, TokenError::Refused { .. }),
            ..self.no_token(&error.to_string())
        })?;
        let header = HeaderValue::try_from(format!("Bearer {text}"));
        let mut header =
            header.map_err(|_| self.no_token("the access token can't be sent in a header"))?;
        header.set_sensitive(true);
        let token = SentToken { text, header };
        self.hidden_token.hide_in(&self.hidden, &token);
        Ok(token)
    }

    /// Notes that the use of the client's secret for a server is recorded.
    pub(crate) async fn note_recorded(&self, server: &str) {
        self.recorded.lock().await.insert(server.to_owned());
    }

    /// Records the use of the client's secret for a server, unless it is recorded. After a change of
    /// the policy, a server that runs uses the secret of another client.
    async fn record_first_use(&self, server: &str) -> Result<(), NoToken> {
        let recording = async {
            let mut recorded = self.recorded.lock().await;
            if recorded.contains(server) {
                return Ok(());
            }
            let (secret, occasion) = (self.oauth.proof.secret(), SecretOccasion::Change);
            self.store.record_use(SecretUse { server, secret, occasion }).await?;
            recorded.insert(server.to_owned());
            Ok::<_, UnrecordedUse>(())
        };
        // Those who wait for another call's record have the same limit.
        match timeout(READ_LIMIT, recording).await {
            Ok(recorded) => recorded.map_err(|error| self.no_token(&error.to_string())),
            Err(_) => Err(self.no_token("the use of its secret could not be recorded in time")),
        }
    }

    /// Notes that the remote has taken a request with this token.
    pub(crate) fn note_accepted(&self, token: &SentToken) {
        if let Some(source) = &*self.source.lock() {
            source.note_accepted(&token.text);
        }
    }

    /// Returns what is known of the token, for people.
    pub(crate) fn standing(&self) -> TokenStanding {
        match self.source.lock().as_ref().map(TokenSource::standing) {
            Some(TokenStanding::Failed(reason)) => {
                TokenStanding::Failed(self.hidden.hide_in_message(&reason).into())
            }
            Some(standing) => standing,
            None => TokenStanding::None,
        }
    }

    fn no_token(&self, reason: &str) -> NoToken {
        NoToken { reason: self.hidden.hide_in_message(reason).into(), is_refused: false }
    }

    /// Returns the source of tokens, which is made for the first request.
    fn source(&self, server: &str, policy: &CurrentPolicy) -> Result<TokenSource, NoToken> {
        let mut source = self.source.lock();
        if let Some(source) = &*source {
            return Ok(source.clone());
        }
        let new = self.new_source(server, policy).map_err(|reason| self.no_token(&reason))?;
        Ok(source.insert(new).clone())
    }

    fn new_source(&self, server: &str, policy: &CurrentPolicy) -> Result<TokenSource, String> {
        let issuer = self.oauth.server.url();
        let of_issuer = fleet_egress::client_of_named(issuer, self.oauth.authorities.clone());
        let of_issuer = of_issuer.map_err(|error| chain(&error))?;
        let of_remote = fleet_egress::client(&self.remote, policy.clone());
        let of_remote = of_remote.map_err(|error| chain(&error))?;

        let origin = issuer.origin();
        let current = move |url: &Url| match url.origin() == origin {
            true => of_issuer.current(),
            false => of_remote.current(),
        };
        let http = BoundedClient::new(current, Reach::configured(issuer, &self.remote))
            .with_audience(self.oauth.audience.clone());

        let settings = TokenSettings {
            server: match &self.oauth.server {
                TokenServer::Issuer(url) => AuthorizationServer::Issuer(url.clone()),
                TokenServer::Endpoint(url) => AuthorizationServer::TokenEndpoint(url.clone()),
            },
            resource: self.oauth.resource.clone(),
        };
        let (reader, observer) = (self.credentials_reader(server), self.observer(server));
        Ok(TokenSource::observed(self.remote.clone(), settings, reader, http, observer))
    }

    /// Reads the client's secret as it is now. A changed value is audited before it is used.
    fn credentials_reader(&self, server: &str) -> CredentialsReader {
        let (oauth, store, hidden) = (self.oauth.clone(), self.store.clone(), self.hidden.clone());
        let (server, used) = (server.to_owned(), Mutex::new(None::<SecretValue>));
        CredentialsReader::new(move || {
            let name = oauth.proof.secret();
            // A token is fetched by a thread that may wait.
            let runtime = Handle::current();
            let late = |_| format!("reading its secret took longer than {READ_LIMIT:?}");
            let read = async { timeout(READ_LIMIT, store.read(name)).await.map_err(late) };
            let secret = runtime.block_on(read)?.map_err(|error| chain(&error))?;
            hidden.add(&secret_reference(name), secret.expose());

            let before = used.lock().clone();
            if before.is_some_and(|before| before != secret) {
                let occasion = SecretOccasion::Change;
                let used = SecretUse { server: &server, secret: name, occasion };
                let late = |_| format!("recording its use took longer than {READ_LIMIT:?}");
                let record =
                    async { timeout(READ_LIMIT, store.record_use(used)).await.map_err(late) };
                runtime.block_on(record)?.map_err(|error| error.to_string())?;
            }
            *used.lock() = Some(secret.clone());

            let proof = proof_of(&oauth.proof, &secret);
            let (client_id, scopes) = (oauth.client_id.clone(), oauth.scopes.clone());
            Ok(ClientCredentials { client_id, proof, scopes })
        })
    }

    /// Counts the requests for tokens, and logs when they begin and cease to fail.
    fn observer(&self, server: &str) -> impl Fn(Result<(), &str>) + Send + Sync + 'static {
        let (server, hidden) = (server.to_owned(), self.hidden.clone());
        let failing = Mutex::new(false);
        move |fetched| {
            let outcome = if fetched.is_ok() { "issued" } else { "failed" };
            metrics::counter!(UPSTREAM_TOKENS.name, "outcome" => outcome).increment(1);

            let was_failing = std::mem::replace(&mut *failing.lock(), fetched.is_err());
            match fetched {
                Err(reason) if !was_failing => {
                    let reason = hidden.hide_in_message(reason);
                    tracing::warn!(
                        server,
                        reason,
                        "could not get an access token for a hosted remote; its calls wait"
                    );
                }
                Ok(()) if was_failing => {
                    tracing::info!(server, "there are access tokens for a hosted remote again");
                }
                _ => {}
            }
        }
    }
}

fn proof_of(proof: &ProofRef, secret: &SecretValue) -> Proof {
    let text = secret.expose().to_owned();
    match proof {
        ProofRef::ClientSecret(_) => Proof::Secret(text),
        ProofRef::PrivateKey { algorithm, .. } => Proof::PrivateKey {
            pem: text,
            algorithm: match algorithm {
                KeyAlgorithm::Es256 => Algorithm::Es256,
                KeyAlgorithm::Es384 => Algorithm::Es384,
                KeyAlgorithm::Rs256 => Algorithm::Rs256,
            },
        },
    }
}

/// Returns the URL of a remote as authorization servers may know it: without what may be secret, and
/// what is no part of a resource.
pub(crate) fn resource_of(remote: &Url) -> Url {
    let mut resource = remote.clone();
    resource.set_query(None);
    resource.set_fragment(None);
    resource
}

#[cfg(test)]
mod tests {
    use fleet_policy::Policy;

    use super::*;

    /// A policy for the remote `mcp.example`, and the client in it.
    fn client() -> RemoteOauth {
        let policy = "[[remote]]\nhost = 'mcp.example:443'\n[remote.oauth]\n\
            token_url = 'https://idp.example/token'\nclient_id = 'fleet'\n\
            client_secret = '${secret:c}'\n";
        Policy::from_toml(policy).unwrap().remotes[0].oauth.clone().unwrap()
    }

    #[test]
    fn texts_about_tokens_have_no_value_of_the_remotes_url() {
        let remote = Url::parse("https://mcp.example/hunter2/mcp").unwrap();
        let tokens = RemoteTokens::new(client(), remote.clone(), SecretStore::default());
        tokens.hide(&[("KEY".to_owned(), "hunter2".to_owned())].into());
        let reason = tokens.no_token(&format!("no token for {remote}")).to_string();
        assert_eq!(reason, "no token for https://mcp.example/${KEY}/mcp");
    }
}
