//! Who asks: the shell around [`fleet_access`], which decides and does no IO.
//!
//! [`AccessControl`] holds what the files about access say at the moment. `layer` asks it about
//! every request before a route is chosen, and puts the [`Principal`] into the request's extensions;
//! everything behind that reads the principal and never a credential. `files` replaces the state
//! when a file changes, `issuers` fetches the keys of issuers, `metadata` tells clients which
//! issuers there are, and `streams` ends event streams whose credentials are no longer accepted.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    sync::Arc,
};

use axum::http::Extensions;
use fleet_access::{
    AuthRefusal, Authentication, Authenticator, Limits, Presented, Principal, PrincipalId, Rules,
    WithoutCredentials,
};
use parking_lot::RwLock;
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::error::ServerError;

mod files;
mod issuers;
pub(crate) mod layer;
pub(crate) mod metadata;
mod streams;

pub(crate) use files::{check_policy_file, warn_of_readable_secrets};

use issuers::{Flight, Issuers};

/// Whose requests a server serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum AccessMode {
    /// Callers with credentials; on loopback everybody, if no credentials are configured.
    #[default]
    Auto,
    /// Callers with credentials.
    Required,
    /// Everybody who can reach the port.
    Open,
}

/// The settings about access, and the files that they name.
#[derive(Debug, Clone, PartialEq)]
pub struct AccessSource {
    /// Whose requests are served.
    pub mode: AccessMode,
    /// The address to listen on.
    pub host: IpAddr,
    /// The file of API keys.
    pub keys: Option<PathBuf>,
    /// The file of the keys' pepper; beside the keys file by default.
    pub pepper: Option<PathBuf>,
    /// The policy file.
    pub policy: Option<PathBuf>,
    /// The URL at which clients reach this server.
    pub public_url: Option<Url>,
}

impl Default for AccessSource {
    fn default() -> Self {
        Self {
            mode: AccessMode::Auto,
            host: IpAddr::V4(Ipv4Addr::LOCALHOST),
            keys: None,
            pepper: None,
            policy: None,
            public_url: None,
        }
    }
}

/// The content of the files about access, replaced as a whole when one of them changes. A decision
/// takes the state once and uses it to its end.
#[derive(Debug)]
pub struct AccessState {
    /// What principals may do.
    pub rules: Rules,
    /// How much they may do.
    pub limits: Limits,
    /// The scopes that rules require, which clients are told to ask for.
    pub scopes: Vec<String>,
    pub(crate) authenticator: Authenticator,
}

/// Whose requests are served, and what they may do. Clones share everything.
#[derive(Debug, Clone)]
pub struct AccessControl {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    source: AccessSource,
    /// What requests without credentials get. Fixed at the start, so that a file that is emptied
    /// later closes the server instead of opening it.
    without: WithoutCredentials,
    state: RwLock<Arc<AccessState>>,
    issuers: Issuers,
}

impl AccessControl {
    /// Reads the files, and follows them and the keys of issuers until `stop` is cancelled.
    ///
    /// # Errors
    ///
    /// Returns an error if a file can't be used, or if callers could not be told apart and the
    /// settings don't say that everybody is served.
    pub fn start(source: AccessSource, stop: CancellationToken) -> Result<Self, ServerError> {
        let mut state = files::read_state(&source, WithoutCredentials::Refused)?;
        let is_unconfigured = state.authenticator.is_unconfigured();
        let has_certificates = state.authenticator.has_certificates();
        if has_certificates {
            tracing::warn!(
                "the policy file has [[certificate]] tables, which are checked and not applied yet: \
                 this server does not terminate TLS, so callers need API keys or access tokens"
            );
        }

        let without = match source.mode {
            AccessMode::Open => WithoutCredentials::Anonymous,
            // A keys file that is still empty says that callers are to be told apart, and so do
            // [[certificate]] tables.
            AccessMode::Auto
                if is_unconfigured
                    && source.keys.is_none()
                    && !has_certificates
                    && source.host.is_loopback() =>
            {
                WithoutCredentials::LocalIfLoopback
            }
            AccessMode::Auto | AccessMode::Required if is_unconfigured => {
                return Err(ServerError::NoAuthenticator { host: source.host });
            }
            AccessMode::Auto | AccessMode::Required => WithoutCredentials::Refused,
        };
        if without != WithoutCredentials::Refused {
            state = files::read_state(&source, without)?;
        }
        log_start(&state, without);

        let (state, issuers) = (RwLock::new(Arc::new(state)), Issuers::default());
        let control = Self { inner: Arc::new(Inner { source, without, state, issuers }) };

        files::follow(&control, stop.clone())?;
        tokio::spawn(control.clone().refresh_keys(stop));
        Ok(control)
    }

    /// What the files say at the moment.
    pub fn current(&self) -> Arc<AccessState> {
        self.inner.state.read().clone()
    }

    /// Says who sends a request. Waits for the keys of an issuer if that takes another look at
    /// them; otherwise this does no IO.
    ///
    /// # Errors
    ///
    /// Returns the refusal of credentials that are missing, invalid, or can't be checked now.
    pub async fn identify(&self, presented: &Presented<'_>) -> Result<Arc<Principal>, AuthRefusal> {
        let state = self.current();
        let authenticate = || state.authenticator.authenticate(presented, fleet_ops::clock::now());

        let (fetch, refusal) = match authenticate() {
            Authentication::Verified(principal) => return Ok(principal),
            Authentication::Refused(refusal) => return Err(refusal),
            Authentication::NeedsKeys { fetch, otherwise } => (fetch, otherwise),
        };

        let landed = match self.join_fetch(&state, fetch, authenticate) {
            Flight::Running(landed) => landed,
            Flight::Needless(authentication) => return verdict(authentication, refusal),
        };
        issuers::wait_until_landed(landed).await;
        verdict(authenticate(), refusal)
    }
}

/// The principal to whom what a request creates belongs; `None` if nobody was identified.
pub(crate) fn owner_of(extensions: &Extensions) -> Option<PrincipalId> {
    let principal = extensions.get::<Arc<Principal>>()?;
    principal.is_verified().then(|| principal.id())
}

/// The end of an authentication that may not wait for keys once more.
fn verdict(
    authentication: Authentication,
    refusal: AuthRefusal,
) -> Result<Arc<Principal>, AuthRefusal> {
    match authentication {
        Authentication::Verified(principal) => Ok(principal),
        Authentication::Refused(refusal) => Err(refusal),
        Authentication::NeedsKeys { .. } => Err(refusal),
    }
}

fn log_start(state: &AccessState, without: WithoutCredentials) {
    if !state.rules.is_empty() {
        tracing::warn!(
            rules = state.rules.len(),
            "the policy file has [[rule]] tables, which are checked and not applied yet: every \
             caller that is served may do everything"
        );
    }

    let issuers = state.authenticator.tokens().issuers().count();
    match without {
        WithoutCredentials::Anonymous => tracing::warn!(
            issuers,
            "MCP_ACCESS=open: everybody who can reach this server is served with every right; \
             docs/access.md says how to configure keys and tokens"
        ),
        WithoutCredentials::LocalIfLoopback => tracing::info!(
            "no keys or issuers are configured: every program on this machine is served as one \
             local principal with every right"
        ),
        WithoutCredentials::Refused => {
            tracing::info!(issuers, "serving callers with API keys or access tokens only");
        }
    }
}
