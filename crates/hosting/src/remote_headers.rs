//! The headers of a remote, whose secrets may change while it is connected.
//!
//! Whoever sends a request asks for the headers as they are now ([`ServerHeaders::now`]). At most
//! once in [`INTERVAL`], one of the requests reads the secrets again before it is sent; the others
//! don't wait for that. If the remote answers 401, the secrets are read at once
//! ([`ServerHeaders::after_refusal`]), and if they have changed, the request is sent again.
//!
//! If policy has an OAuth client for the remote, requests also have an access token, and a 401 gets
//! another one.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use fleet_job::mcp_servers::expand::{Reference, Variable, expand, secrets_in};
use fleet_ops::{clock, errors::chain};
use fleet_policy::current::CurrentPolicy;
use http::{HeaderMap, HeaderName, HeaderValue, header::AUTHORIZATION};
use parking_lot::{Mutex, RwLock};

use crate::{
    launch::{LaunchError, parse_header},
    remote_tokens::{HiddenToken, NoToken, RemoteTokens, SentToken},
    secret_store::{SecretError, SecretOccasion, SecretStore, SecretUse, SecretValue},
    secrets::{Secrets, secret_reference},
};

/// The time between two looks at the secrets of a remote that is called.
const INTERVAL: Duration = Duration::from_secs(1);

/// The headers of a remote, and where their secrets come from. Clones share the present values.
/// There is no `Debug`, which could reveal them.
#[derive(Clone)]
pub struct RemoteHeaders(Arc<Shared>);

struct Shared {
    /// The headers as they are configured.
    written: BTreeMap<String, String>,
    /// The values of the variables in them.
    variables: BTreeMap<String, String>,
    /// The names of the secrets in them.
    names: BTreeSet<String>,
    store: SecretStore,
    /// What texts about the remote must not show.
    hidden: Secrets,
    present: RwLock<Present>,
    /// The access tokens, if the remote gets any. Another policy may replace them.
    tokens: RwLock<Option<Arc<RemoteTokens>>>,
    hidden_token: HiddenToken,
    /// When the secrets were last read, in milliseconds of the monotonic clock.
    read_at: AtomicU64,
    /// Why the last reading was of no use, if it was not.
    problem: Mutex<Option<String>>,
    /// Held while the secrets are read.
    turn: tokio::sync::Mutex<()>,
}

/// What is sent now.
#[derive(Clone)]
struct Present {
    values: BTreeMap<String, SecretValue>,
    headers: SentHeaders,
}

/// The headers of one request.
#[derive(Clone)]
pub(crate) struct SentHeaders {
    all: Arc<[(HeaderName, HeaderValue)]>,
    token: Option<SentToken>,
    /// The number of changes before these headers.
    changes: u64,
}

impl SentHeaders {
    /// Sets these headers among those of a request.
    pub(crate) fn set_in(&self, headers: &mut HeaderMap) {
        for (name, value) in self.iter() {
            headers.insert(name, value);
        }
    }

    /// Returns the headers.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (HeaderName, HeaderValue)> {
        let token = self.token.as_ref().map(|token| (AUTHORIZATION, token.header.clone()));
        self.all.iter().cloned().chain(token)
    }
}

/// Equal headers are configured alike, with the same variables. The values of their secrets don't
/// matter, since they change without a new connection.
impl PartialEq for RemoteHeaders {
    fn eq(&self, other: &Self) -> bool {
        let has_same_tokens = match (self.tokens(), other.tokens()) {
            (None, None) => true,
            (Some(own), Some(other)) => own.is_same(&other),
            _ => false,
        };
        self.0.written == other.0.written
            && self.0.variables == other.0.variables
            && has_same_tokens
    }
}

impl Eq for RemoteHeaders {}

impl RemoteHeaders {
    /// Creates the headers that are configured as `written`, with values that were just read from
    /// `store`, and with tokens of a client if there is one. Values that are read later are added to
    /// `hidden`.
    ///
    /// # Errors
    ///
    /// Returns an error if a header is invalid or belongs to the transport.
    pub(crate) fn new(
        written: BTreeMap<String, String>,
        variables: BTreeMap<String, String>,
        values: BTreeMap<String, SecretValue>,
        (store, tokens): (SecretStore, Option<Arc<RemoteTokens>>),
        hidden: Secrets,
    ) -> Result<Self, LaunchError> {
        let names = secrets_in(written.values().map(String::as_str));
        let all = build(&written, &variables, &values)?;
        let headers = SentHeaders { all, token: None, changes: 0 };
        Ok(Self(Arc::new(Shared {
            written,
            variables,
            names,
            store,
            hidden,
            present: RwLock::new(Present { values, headers }),
            tokens: RwLock::new(tokens),
            hidden_token: HiddenToken::default(),
            read_at: AtomicU64::new(now()),
            problem: Mutex::default(),
            turn: tokio::sync::Mutex::default(),
        })))
    }

    /// Returns the headers as requests to this server use them.
    pub(crate) fn of_server(&self, server: &str, policy: CurrentPolicy) -> ServerHeaders {
        ServerHeaders { headers: self.clone(), server: server.into(), policy }
    }

    /// Returns the access tokens, if the remote gets any.
    pub(crate) fn tokens(&self) -> Option<Arc<RemoteTokens>> {
        self.0.tokens.read().clone()
    }

    /// Uses the tokens of other headers from the next request on, which another policy has changed.
    pub(crate) fn take_tokens_of(&self, other: &Self) {
        let tokens = other.tokens();
        *self.0.tokens.write() = tokens;
    }
}

/// The headers of the requests to a hosted server.
#[derive(Clone)]
pub(crate) struct ServerHeaders {
    headers: RemoteHeaders,
    server: Arc<str>,
    /// Where tokens may come from.
    policy: CurrentPolicy,
}

impl ServerHeaders {
    /// Returns the headers for a request. Reads the secrets again if it is time.
    ///
    /// # Errors
    ///
    /// Returns an error if the request needs an access token and there is none.
    pub(crate) async fn now(&self) -> Result<SentHeaders, NoToken> {
        let shared = &*self.headers.0;
        let is_due =
            || now().saturating_sub(shared.read_at.load(Ordering::Acquire)) >= millis(INTERVAL);
        if !shared.names.is_empty()
            && is_due()
            && let Ok(_turn) = shared.turn.try_lock()
            && is_due()
        {
            self.read_again().await;
        }
        self.with_token(self.present(), None).await
    }

    /// Adds an access token to headers if the remote gets any, in place of a refused one if there
    /// was one.
    async fn with_token(
        &self,
        headers: SentHeaders,
        refused: Option<&SentToken>,
    ) -> Result<SentHeaders, NoToken> {
        let Some(tokens) = self.headers.tokens() else { return Ok(headers) };
        let refused = refused.map(|token| &*token.text);
        let token = tokens.token(&self.server, &self.policy, refused).await?;

        // Before the remote can quote it.
        self.headers.0.hidden_token.hide_in(&self.headers.0.hidden, &token);
        Ok(SentHeaders { token: Some(token), ..headers })
    }

    /// Notes that the remote has taken a request with these headers.
    pub(crate) fn note_accepted(&self, sent: &SentHeaders) {
        if let Some(token) = &sent.token
            && let Some(tokens) = self.headers.tokens()
        {
            tokens.note_accepted(token);
        }
    }

    /// Returns the headers as they are, without an access token.
    pub(crate) fn present(&self) -> SentHeaders {
        self.headers.0.present.read().headers.clone()
    }

    /// Returns other headers than those with which the remote has just refused a request: if the
    /// secrets have changed, or with another access token. Of many requests that are refused
    /// together, one reads the secrets or gets the token.
    ///
    /// # Errors
    ///
    /// Returns an error if the request needs another access token and there is none.
    pub(crate) async fn after_refusal(
        &self,
        refused: &SentHeaders,
    ) -> Result<Option<SentHeaders>, NoToken> {
        let renewed = self.changed_secrets(refused).await;
        if self.headers.tokens().is_none() {
            return Ok(renewed);
        }
        let headers = renewed.unwrap_or_else(|| self.present());
        match self.with_token(headers, refused.token.as_ref()).await {
            // What the remote has answered tells more: it may have forgotten our session.
            Err(error) if error.is_refused => Ok(None),
            renewed => renewed.map(Some),
        }
    }

    /// Returns the headers with secrets other than those that were refused, if they have changed.
    async fn changed_secrets(&self, refused: &SentHeaders) -> Option<SentHeaders> {
        let shared = &*self.headers.0;
        if shared.names.is_empty() {
            return None;
        }

        let asked_at = now();
        let _turn = shared.turn.lock().await;
        let is_newer = |headers: &SentHeaders| headers.changes != refused.changes;
        let was_read_meanwhile = shared.read_at.load(Ordering::Acquire) > asked_at;
        if !is_newer(&self.present()) && !was_read_meanwhile {
            self.read_again().await;
        }
        Some(self.present()).filter(is_newer)
    }

    /// Reads the secrets, and uses them from now on if they have changed. The turn is held.
    async fn read_again(&self) {
        let shared = &*self.headers.0;
        let read = shared.store.read_all(&shared.names).await;
        shared.read_at.store(now(), Ordering::Release);
        let problem = self.take_over(read).await.err();

        let before = std::mem::replace(&mut *shared.problem.lock(), problem.clone());
        if let Some(problem) = problem.filter(|problem| before.as_ref() != Some(problem)) {
            tracing::warn!(
                server = &*self.server,
                problem,
                "could not read the secrets of a hosted remote again; still using those before"
            );
        }
    }

    /// Uses these values from now on.
    async fn take_over(
        &self,
        read: Result<BTreeMap<String, SecretValue>, SecretError>,
    ) -> Result<(), String> {
        let shared = &*self.headers.0;
        let values = read.map_err(|error| chain(&error))?;
        let Present { values: before, headers } = shared.present.read().clone();
        let changed: Vec<_> =
            values.iter().filter(|(name, value)| before.get(*name) != Some(value)).collect();
        if changed.is_empty() {
            return Ok(());
        }

        // Hidden before anything can quote them. Those in use are added last, so that they are never
        // forgotten, however many unusable values come.
        for (name, value) in changed.iter().copied().chain(&before) {
            shared.hidden.add(&secret_reference(name), value.expose());
        }
        let all = build(&shared.written, &shared.variables, &values)
            .map_err(|error| shared.hidden.hide_in_message(&chain(&error)))?;
        for (secret, _) in &changed {
            let occasion = SecretOccasion::Change;
            let used = SecretUse { server: &self.server, secret, occasion };
            shared.store.record_use(used).await.map_err(|error| error.to_string())?;
        }

        let names = changed.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(" ");
        tracing::info!(server = &*self.server, secrets = names, "secrets of a remote have changed");
        let headers = SentHeaders { all, token: None, changes: headers.changes + 1 };
        *shared.present.write() = Present { values, headers };
        Ok(())
    }
}

/// Expands the headers.
fn build(
    written: &BTreeMap<String, String>,
    variables: &BTreeMap<String, String>,
    values: &BTreeMap<String, SecretValue>,
) -> Result<Arc<[(HeaderName, HeaderValue)]>, LaunchError> {
    let lookup = |reference: Reference<'_>| {
        let value = match reference {
            Reference::Variable(name) => variables.get(name).map(String::as_str),
            Reference::Secret(name) => values.get(name).map(SecretValue::expose),
        };
        value.map_or(Variable::Unset, |value| Variable::Value(value.to_owned()))
    };

    let header = |(name, text): (&String, &String)| {
        let value = expand(text, &lookup)
            .map_err(|error| LaunchError::in_field(format!("headers.{name}"), error))?;
        parse_header(name, &value)
    };
    written.iter().map(header).collect()
}

fn now() -> u64 {
    millis(clock::monotonic())
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use fleet_policy::Policy;

    use super::*;
    use crate::secret_store::testing::MemorySecrets;

    async fn headers(secrets: &MemorySecrets) -> ServerHeaders {
        let written = [
            ("Authorization".to_owned(), "Bearer ${secret:token}".to_owned()),
            ("X-Team".to_owned(), "${TEAM}".to_owned()),
        ];
        let store = secrets.store();
        let values = store.read_all(&["token".to_owned()]).await.ok().unwrap();
        let variables = [("TEAM".to_owned(), "blue".to_owned())];
        RemoteHeaders::new(
            written.into(),
            variables.into(),
            values,
            (store, None),
            Secrets::default(),
        )
        .ok()
        .unwrap()
        .of_server("s", CurrentPolicy::new(Policy::default()))
    }

    fn shown(headers: &SentHeaders) -> Vec<String> {
        headers.iter().map(|(_, value)| value.to_str().unwrap().to_owned()).collect()
    }

    #[tokio::test]
    async fn a_refusal_reads_the_secrets_at_once_and_says_whether_they_changed() {
        let secrets = MemorySecrets::default();
        secrets.set("token", "first-token");
        let headers = headers(&secrets).await;
        let first = headers.now().await.unwrap();
        assert_eq!(shown(&first), ["Bearer first-token", "blue"]);
        assert_eq!(secrets.reads(), 1, "they were just read");
        assert!(headers.after_refusal(&first).await.unwrap().is_none(), "nothing has changed");

        secrets.set("token", "second-token");
        let second = headers.after_refusal(&first).await.unwrap().unwrap();
        assert_eq!(shown(&second), ["Bearer second-token", "blue"]);
        let reads = secrets.reads();
        assert!(headers.after_refusal(&first).await.unwrap().is_some());
        assert_eq!(secrets.reads(), reads, "what was sent was older already");
        assert!(headers.headers.0.hidden.hide("second-token").contains("${secret:token}"));

        // A value that can't be a header is not used.
        secrets.set("token", "third\ntoken");
        assert!(headers.after_refusal(&second).await.unwrap().is_none());
        assert_eq!(shown(&headers.now().await.unwrap())[0], "Bearer second-token");
    }

    #[tokio::test]
    async fn secrets_are_read_again_after_a_while() {
        let secrets = MemorySecrets::default();
        secrets.set("token", "first-token");
        let headers = headers(&secrets).await;
        secrets.set("token", "second-token");
        assert_eq!(shown(&headers.now().await.unwrap())[0], "Bearer first-token");
        let deadline = tokio::time::Instant::now() + 10 * INTERVAL;
        while shown(&headers.now().await.unwrap())[0] != "Bearer second-token" {
            assert!(tokio::time::Instant::now() < deadline, "they were not read again");
            tokio::time::sleep(INTERVAL / 20).await;
        }
        assert_eq!(secrets.reads(), 2);
    }

    #[tokio::test]
    async fn headers_are_equal_whatever_their_secrets_are_now() {
        let secrets = MemorySecrets::default();
        secrets.set("token", "first-token");
        let before = headers(&secrets).await;
        secrets.set("token", "second-token");
        assert!(before.headers == headers(&secrets).await.headers);
    }
}
