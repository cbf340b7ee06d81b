//! Who asks: the shell around [`fleet_access`], which decides and does no IO.
//!
//! [`AccessControl`] holds what the files about access say at the moment. `layer` asks it about
//! every request before a route is chosen, and puts the [`Asker`] into the request's extensions;
//! everything behind that reads the asker and never a credential. `files` replaces the state
//! when a file changes, `issuers` fetches the keys of issuers, `metadata` tells clients which
//! issuers there are, `refused` gives refusals their HTTP status, and `streams` ends event streams
//! whose credentials are no longer accepted.

use std::{
    net::{IpAddr, Ipv4Addr},
    path::PathBuf,
    sync::{Arc, OnceLock},
    time::Duration,
};

use axum::http::Extensions;
use fleet_access::{
    Asker, AuditLog, AuditRecord, AuthRefusal, Authentication, Authenticator, CurrentRights,
    FleetRole, Origin, Presented, Principal, PrincipalId, Rights, WithoutCredentials,
};
use fleet_job::time::Timestamp;
use fleet_signing::{CurrentKeys, SigningKeys};
use parking_lot::RwLock;
use tokio_util::sync::CancellationToken;
use url::Url;

use crate::{error::ServerError, gateway::SignedJobs};

mod files;
mod issuers;
pub(crate) mod layer;
pub(crate) mod metadata;
mod refused;
mod streams;

pub(crate) use files::{
    read_rights, read_signing_keys, warn_of_readable_secrets, warn_of_shared_secrets,
};
pub(crate) use refused::RefusalNote;

use issuers::{Flight, Issuers};

/// Whose requests a server serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum AccessMode {
    /// Callers with credentials; on loopback everybody, if no credentials are configured.
    #[default]
    Auto,
    /// Callers with credentials.
    Required,
    /// Callers with credentials, and everybody on this machine without any; on loopback only.
    Local,
    /// Everybody who can reach the port.
    Open,
}

/// What jobs may do that nobody has signed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum UnsignedJobs {
    /// What rules allow the principal of their topic.
    #[default]
    Rules,
    /// Everything that no rule denies that principal.
    Trusted,
}

/// How the server's port is secured.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum PortSecurity {
    /// Plain HTTP.
    #[default]
    Plain,
    /// TLS.
    Tls,
    /// TLS, and clients may prove who they are with a certificate.
    ClientCertificates,
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
    /// The file of the keys that sign jobs.
    pub signing_keys: Option<PathBuf>,
    /// A file of more keys whose signatures are accepted.
    pub signing_public_keys: Option<PathBuf>,
    /// What jobs may do that nobody has signed.
    pub unsigned_jobs: UnsignedJobs,
    /// How long somebody may take to approve a job.
    pub approval_ttl: Duration,
    /// The URL at which clients reach this server.
    pub public_url: Option<Url>,
    /// How the port is secured.
    pub port: PortSecurity,
}

impl Default for AccessSource {
    fn default() -> Self {
        Self {
            mode: AccessMode::Auto,
            host: IpAddr::V4(Ipv4Addr::LOCALHOST),
            keys: None,
            pepper: None,
            policy: None,
            signing_keys: None,
            signing_public_keys: None,
            unsigned_jobs: UnsignedJobs::Rules,
            approval_ttl: Duration::from_secs(24 * 3600),
            public_url: None,
            port: PortSecurity::Plain,
        }
    }
}

/// The content of the files about access but for the rights of principals, replaced as a whole when
/// one of them changes.
#[derive(Debug)]
pub struct AccessState {
    /// The scopes that rules require, which clients are told to ask for.
    pub scopes: Vec<String>,
    pub(crate) authenticator: Authenticator,
}

/// Whose requests are served, and what they may do. Clones share everything.
#[derive(Debug, Clone)]
pub struct AccessControl {
    inner: Arc<Inner>,
    log: AuditLog,
}

#[derive(Debug)]
struct Inner {
    source: AccessSource,
    /// What requests without credentials get. Fixed at the start, so that a file that is emptied
    /// later closes the server instead of opening it.
    without: WithoutCredentials,
    state: RwLock<Arc<AccessState>>,
    rights: CurrentRights,
    signing: CurrentKeys,
    issuers: Issuers,
    on_other_views: OnceLock<ViewsHook>,
}

/// Is called when a file has other views than before.
struct ViewsHook(Box<dyn Fn() + Send + Sync>);

impl std::fmt::Debug for ViewsHook {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ViewsHook")
    }
}

impl AccessControl {
    /// Reads the files, and follows them and the keys of issuers until `stop` is cancelled.
    ///
    /// # Errors
    ///
    /// Returns an error if a file can't be used, or if callers could not be told apart and the
    /// settings don't say that everybody is served.
    pub fn start(source: AccessSource, stop: CancellationToken) -> Result<Self, ServerError> {
        let mut files = files::read_files(&source, WithoutCredentials::Refused)?;
        let has_certificates = files.state.authenticator.has_certificates();
        let verifies_certificates = source.port == PortSecurity::ClientCertificates;
        if has_certificates && !verifies_certificates {
            tracing::warn!(
                "the policy file has [[certificate]] tables, which identify nobody without \
                 --tls-client-ca (MCP_TLS_CLIENT_CA_FILE): callers need API keys or access tokens"
            );
        }

        let is_unconfigured = files.state.authenticator.is_unconfigured()
            && !(has_certificates && verifies_certificates);

        let without = match source.mode {
            AccessMode::Open => WithoutCredentials::Anonymous,
            // Beyond loopback, a request that seems to come from this machine may be anybody's: that
            // of a proxy, or of another container of the pod.
            AccessMode::Local if !source.host.is_loopback() => {
                return Err(ServerError::LocalBeyondLoopback { host: source.host });
            }
            AccessMode::Local => WithoutCredentials::LocalBesideCredentials,
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
            files = files::read_files(&source, without)?;
        }
        log_start(&files.state, files.rights.rules.len(), without);
        log_signing(files.signing.as_ref(), without);

        let inner = Inner {
            source,
            without,
            state: RwLock::new(Arc::new(files.state)),
            rights: CurrentRights::new(files.rights),
            signing: CurrentKeys::new(files.signing),
            issuers: Issuers::default(),
            on_other_views: OnceLock::new(),
        };
        let control = Self { inner: Arc::new(inner), log: AuditLog::default() };

        files::follow(&control, stop.clone())?;
        tokio::spawn(control.clone().refresh_keys(stop));
        Ok(control)
    }

    /// The same, with a log of what callers do and of what is refused to them.
    #[must_use]
    pub fn audited(self, log: AuditLog) -> Self {
        Self { log, ..self }
    }

    /// Has `notify` called whenever a changed file has other views. A second call changes nothing.
    pub(crate) fn notify_of_views(&self, notify: impl Fn() + Send + Sync + 'static) {
        self.inner.on_other_views.get_or_init(|| ViewsHook(Box::new(notify)));
    }

    /// Returns whether callers are told apart.
    pub fn identifies_callers(&self) -> bool {
        self.inner.without == WithoutCredentials::Refused
    }

    /// The keys that sign jobs, and those whose signatures are accepted.
    pub fn signing_keys(&self) -> CurrentKeys {
        self.inner.signing.clone()
    }

    /// What the gateway needs to know about the jobs of a topic that are signed.
    pub fn signed_jobs(&self, topic: &str) -> SignedJobs {
        let unsigned = match (self.inner.without, self.inner.source.unsigned_jobs) {
            // Whoever reaches the brokers may do what whoever reaches this server may.
            (WithoutCredentials::Anonymous, _) => Principal::anonymous(),
            (
                WithoutCredentials::LocalIfLoopback | WithoutCredentials::LocalBesideCredentials,
                _,
            ) => Principal::local(),
            (WithoutCredentials::Refused, UnsignedJobs::Rules) => Principal::of_topic(topic),
            (WithoutCredentials::Refused, UnsignedJobs::Trusted) => {
                let mut principal = Principal::of_topic(topic);
                principal.add_roles([FleetRole::Worker.as_str().to_owned()]);
                principal
            }
        };
        SignedJobs {
            keys: self.signing_keys(),
            topic: topic.to_owned(),
            serves_unverified: !self.identifies_callers(),
            approval_ttl: self.inner.source.approval_ttl,
            unsigned: Arc::new(unsigned),
        }
    }

    /// What the files say at the moment.
    pub fn current(&self) -> Arc<AccessState> {
        self.inner.state.read().clone()
    }

    /// Records credentials that are refused.
    pub(crate) fn record_refusal(&self, make: impl FnOnce(Timestamp) -> AuditRecord) {
        self.log.record_refusal(make);
    }

    /// A principal, whose request has this origin, with the rights that decide about it.
    pub(crate) fn asker(&self, principal: Arc<Principal>, origin: Origin) -> Asker {
        Asker::new(principal, self.inner.rights.clone()).audited(self.log.clone(), origin)
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

/// Who asks over standard input: the local principal, with the rights that the policy file gives it
/// now.
///
/// # Errors
///
/// Returns an error if the policy file can't be used.
pub(crate) fn local_asker(source: &AccessSource, log: AuditLog) -> Result<Asker, ServerError> {
    let rights = match &source.policy {
        Some(path) => read_rights(path)?,
        None => Rights::default(),
    };
    let asker = Asker::new(Arc::new(Principal::local()), CurrentRights::new(rights));
    Ok(asker.audited(log, Origin::default()))
}

/// The principal to whom what a request creates belongs; `None` if nobody was identified.
pub(crate) fn owner_of(extensions: &Extensions) -> Option<PrincipalId> {
    extensions.get::<Asker>().and_then(owner)
}

/// The principal to whom what somebody creates belongs; `None` if nobody was identified.
pub(crate) fn owner(asker: &Asker) -> Option<PrincipalId> {
    let principal = asker.principal();
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

fn log_signing(keys: Option<&SigningKeys>, without: WithoutCredentials) {
    match keys {
        Some(keys) => {
            let ids = keys.ids().collect::<Vec<_>>().join(" ");
            tracing::info!(keys = ids, signs = keys.can_sign(), "jobs run as who has signed them");
        }
        None if without == WithoutCredentials::Refused => tracing::warn!(
            "jobs are not signed, so their calls are made with the rights of the workers, whoever \
             has submitted them; `mcp-fleet keys init` makes a key for MCP_SIGNING_KEY_FILE"
        ),
        None => {}
    }
}

fn log_start(state: &AccessState, rules: usize, without: WithoutCredentials) {
    let issuers = state.authenticator.tokens().issuers().count();
    match without {
        WithoutCredentials::Anonymous => tracing::warn!(
            issuers,
            rules,
            "MCP_ACCESS=open: everybody who can reach this server may do whatever no rule denies; \
             docs/access.md says how to configure keys and tokens"
        ),
        WithoutCredentials::LocalIfLoopback => tracing::info!(
            rules,
            "no keys, issuers or certificates are configured: every program on this machine is served as one \
             local principal, which may do whatever no rule denies"
        ),
        WithoutCredentials::LocalBesideCredentials => tracing::info!(
            issuers,
            rules,
            "MCP_ACCESS=local: callers with API keys or access tokens are served as who they are, and \
             every other program on this machine as one local principal, which may do whatever no \
             rule denies"
        ),
        WithoutCredentials::Refused => {
            tracing::info!(
                issuers,
                rules,
                "serving callers with API keys, access tokens or client certificates only"
            );
        }
    }
}
