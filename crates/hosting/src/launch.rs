//! Turns a configuration into something that may be started: expands variables, reads the
//! `envFile`, resolves paths, and checks policy.
//!
//! Policy checks the command line as it was written, before any variable is expanded or any file
//! that the message names is looked at. So a refused message learns nothing about either, and the
//! rule that allows the command decides which variables may be expanded.

use std::{
    cell::RefCell,
    collections::{BTreeMap, BTreeSet},
    fmt, io,
    path::PathBuf,
};

use fleet_codes as codes;
use fleet_job::mcp_servers::{
    ServerEntry, Transport,
    dotenv::DotenvError,
    expand::{ExpandError, FieldExpandError, Reference, Variable},
};
use fleet_policy::{Policy, Refusal, confinement::Confinement, oauth::RemoteOauth};
use schemars::JsonSchema;
use serde::Serialize;
use url::Url;

use crate::{
    remote_headers::RemoteHeaders,
    secret_store::{SecretError, SecretStore, SecretValue, UnrecordedUse},
    secrets::{Secrets, secret_reference},
};

mod child;
pub(crate) mod named_file;
mod url_target;

pub(crate) use url_target::parse_header;

/// Something that may be started. Equal specs start the same thing. There is no `Debug`, because a
/// spec contains secrets.
#[derive(Clone, PartialEq, Eq)]
pub enum LaunchSpec {
    /// A child process.
    Child(ChildSpec),
    /// A remote whose transport the configuration does not name: one of the following two.
    Url(RemoteSpec),
    /// A remote with the Streamable HTTP transport.
    Remote(RemoteSpec),
    /// A remote with the HTTP+SSE transport of 2024.
    Sse(RemoteSpec),
}

/// A child process that may be started.
#[derive(Clone, PartialEq, Eq)]
pub struct ChildSpec {
    /// The absolute path of the program.
    pub program: PathBuf,
    /// The arguments.
    pub args: Vec<String>,
    /// The canonical working directory; `None` for the server's own.
    pub cwd: Option<PathBuf>,
    /// The whole environment.
    pub env: BTreeMap<String, String>,
    /// Which parts of the machine the child may use.
    pub confinement: Confinement,
    /// The values to hide in what the child writes.
    pub secrets: Secrets,
    /// The names of the secrets that it gets.
    pub used: BTreeSet<String>,
}

/// A remote that may be connected to.
#[derive(Clone)]
pub struct RemoteSpec {
    /// The URL.
    pub url: Url,
    /// Headers for every request.
    pub headers: RemoteHeaders,
    /// The values to hide in errors.
    pub secrets: Secrets,
    /// The names of the secrets that it gets.
    pub used: BTreeSet<String>,
}

impl RemoteSpec {
    /// Returns the client that gets access tokens for the remote, if policy has one.
    pub fn oauth(&self) -> Option<RemoteOauth> {
        self.headers.tokens().map(|tokens| tokens.oauth().clone())
    }
}

impl PartialEq for RemoteSpec {
    fn eq(&self, other: &Self) -> bool {
        // The values to hide grow when secrets of the headers change, which needs no new connection.
        self.url == other.url && self.headers == other.headers && self.used == other.used
    }
}

impl Eq for RemoteSpec {}

impl LaunchSpec {
    /// Returns the remote; `None` for a child.
    pub(crate) fn remote(&self) -> Option<&RemoteSpec> {
        match self {
            Self::Child(_) => None,
            Self::Url(spec) | Self::Remote(spec) | Self::Sse(spec) => Some(spec),
        }
    }

    /// Returns the values to hide in texts about the server.
    pub fn secrets(&self) -> &Secrets {
        match self {
            Self::Child(spec) => &spec.secrets,
            Self::Url(spec) | Self::Remote(spec) | Self::Sse(spec) => &spec.secrets,
        }
    }

    /// Returns the names of the secrets that the server gets.
    pub fn used_secrets(&self) -> &BTreeSet<String> {
        match self {
            Self::Child(spec) => &spec.used,
            Self::Url(spec) | Self::Remote(spec) | Self::Sse(spec) => &spec.used,
        }
    }
}

/// Why a configuration must not or can't be started. The caller can fix these, but for those that
/// are [temporary](Self::is_temporary).
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// A variable can't be expanded.
    #[error("could not expand the configuration [{code}]", code = codes::SERVER_CONFIG)]
    Expand(#[from] FieldExpandError),
    /// Policy refuses it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// A secret can't be used.
    #[error(transparent)]
    Secret(#[from] SecretError),
    /// The use of a secret can't be recorded.
    #[error(transparent)]
    Unrecorded(#[from] UnrecordedUse),
    /// A path in the configuration is unusable.
    #[error("cannot use `{field}` {path:?} [{code}]", code = codes::SERVER_CONFIG)]
    Path {
        /// The field that has the path.
        field: &'static str,
        /// The path as written.
        path: String,
        /// What is wrong with it.
        #[source]
        error: io::Error,
    },
    /// The `envFile` is not a valid `.env` file.
    #[error("cannot read `envFile` {path:?} [{code}]", code = codes::SERVER_CONFIG)]
    EnvFile {
        /// The file.
        path: String,
        /// What is wrong with it.
        #[source]
        error: DotenvError,
    },
    /// The program does not exist.
    #[error(
        "the command `{0}` does not exist or is not executable (searched in the server's PATH) [{code}]",
        code = codes::SERVER_CONFIG
    )]
    NoProgram(String),
    /// The URL is not an HTTP URL without credentials.
    #[error(
        "`url` must be an http or https URL without user name or password [{code}]",
        code = codes::SERVER_CONFIG
    )]
    Url,
    /// A header is invalid.
    #[error("the header {0:?} has an invalid name or value [{code}]", code = codes::SERVER_CONFIG)]
    Header(String),
    /// A header is reserved for the transport.
    #[error(
        "the header {0:?} is set by the transport and can't be configured [{code}]",
        code = codes::SERVER_CONFIG
    )]
    OwnHeader(String),
    /// A header would replace the access token that policy gets for the remote.
    #[error(
        "the header {0:?} can't be configured, because the policy's `oauth` gets an access token for this host [{code}]",
        code = codes::SERVER_CONFIG
    )]
    TokenHeader(String),
    /// An access token would be sent in clear text.
    #[error(
        "`url` must be https, because the policy's `oauth` gets an access token for this host [{code}]",
        code = codes::SERVER_CONFIG
    )]
    ClearText,
    /// A secret in the path would become known to the authorization server.
    #[error(
        "the path of `url` has a reference, which the authorization server of the policy's `oauth` would learn; move it to the query or a header, or use `token_url` and `resource` in the policy file [{code}]",
        code = codes::SERVER_CONFIG
    )]
    HiddenPath,
}

impl LaunchError {
    /// Returns whether the configuration is at odds with the access tokens that policy gets for its
    /// host.
    pub(crate) fn is_about_tokens(&self) -> bool {
        matches!(self, Self::TokenHeader(_) | Self::ClearText | Self::HiddenPath)
    }

    pub(crate) fn in_field(path: String, error: ExpandError) -> Self {
        Self::Expand(FieldExpandError { path, error })
    }

    /// Returns whether the same configuration may be started later.
    pub fn is_temporary(&self) -> bool {
        match self {
            Self::Secret(error) => error.is_temporary(),
            Self::Unrecorded(_) => true,
            _ => false,
        }
    }
}

/// Refers to the rule of a policy that allows something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct RuleRef {
    /// The table of the policy file that contains the rule.
    pub table: &'static str,
    /// The rule's position in its table, from 1.
    pub number: usize,
    /// The rule's line in the policy file; `None` if a flag defined it.
    pub line: Option<usize>,
    /// What the rule covers.
    pub covers: String,
}

impl fmt::Display for RuleRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { table, number, line, covers } = self;
        write!(f, "[[{table}]] number {number}")?;
        line.map_or(Ok(()), |line| write!(f, " (line {line})"))?;
        write!(f, ": {covers}")
    }
}

/// Turns a configuration into something that may be started, with the secrets as `store` has them
/// now.
///
/// # Errors
///
/// Returns an error if policy refuses the configuration, or something that it names does not exist.
pub async fn resolve(
    entry: &ServerEntry,
    policy: &Policy,
    store: &SecretStore,
) -> Result<LaunchSpec, LaunchError> {
    resolve_with_rule(entry, policy, store).await.map(|(spec, _)| spec)
}

/// Does the same as [`resolve`], and also returns the rule that allows it.
///
/// # Errors
///
/// As [`resolve`].
pub async fn resolve_with_rule(
    entry: &ServerEntry,
    policy: &Policy,
    store: &SecretStore,
) -> Result<(LaunchSpec, RuleRef), LaunchError> {
    match &entry.transport {
        Transport::Stdio(server) => {
            let (spec, rule) = child::resolve_child(server, policy, store).await?;
            let number = policy.commands.iter().position(|other| std::ptr::eq(other, rule));
            let (number, line, covers) =
                (number.unwrap_or_default() + 1, rule.line, rule.argv.to_string());
            Ok((LaunchSpec::Child(spec), RuleRef { table: "command", number, line, covers }))
        }
        Transport::Url(server) => {
            let (spec, rule) = url_target::resolve_remote(server, policy, store).await?;
            Ok((LaunchSpec::Url(spec), url_target::rule_ref(rule, policy)))
        }
        Transport::Http(server) => {
            let (spec, rule) = url_target::resolve_remote(server, policy, store).await?;
            Ok((LaunchSpec::Remote(spec), url_target::rule_ref(rule, policy)))
        }
        Transport::Sse(server) => {
            let (spec, rule) = url_target::resolve_remote(server, policy, store).await?;
            Ok((LaunchSpec::Sse(spec), url_target::rule_ref(rule, policy)))
        }
    }
}

/// The variables of the server's environment that a rule allows, the secrets that were read, and the
/// values that were used.
struct Environment<'a> {
    allowed: &'a BTreeSet<String>,
    secrets: BTreeMap<String, SecretValue>,
    used: RefCell<BTreeMap<String, String>>,
}

impl<'a> Environment<'a> {
    fn new(allowed: &'a BTreeSet<String>, secrets: BTreeMap<String, SecretValue>) -> Self {
        Self { allowed, secrets, used: RefCell::default() }
    }

    fn look_up(&self, reference: Reference<'_>) -> Variable {
        match reference {
            Reference::Variable(name) => self.look_up_variable(name),
            // Those that a rule does not allow were refused before any was read.
            Reference::Secret(name) => match self.secrets.get(name) {
                Some(value) => Variable::Value(value.expose().to_owned()),
                None => Variable::Unset,
            },
        }
    }

    fn look_up_variable(&self, name: &str) -> Variable {
        if !self.allowed.contains(name) {
            return Variable::Refused(
                "it is not listed; to allow it, use --expand-env (MCP_EXPAND_ENV) or `expand` in the [[command]] or \
                 [[remote]] of the policy file"
                    .to_owned(),
            );
        }

        let Ok(value) = std::env::var(name) else { return Variable::Unset };
        self.used.borrow_mut().insert(name.to_owned(), value.clone());
        Variable::Value(value)
    }

    /// Returns the variables that were used, and the secrets.
    fn into_used(self) -> (BTreeMap<String, String>, BTreeMap<String, SecretValue>) {
        (self.used.into_inner(), self.secrets)
    }
}

/// Reads the secrets `names`, all of which a rule must allow. A secret that it does not allow is not
/// looked for, so a refusal tells nothing about it.
async fn read_secrets(
    names: &BTreeSet<String>,
    allowed: &BTreeSet<String>,
    rule: &impl fmt::Display,
    store: &SecretStore,
) -> Result<BTreeMap<String, SecretValue>, LaunchError> {
    if let Some(name) = names.iter().find(|name| !allowed.contains(*name)) {
        return Err(Refusal::Secret { name: name.clone(), rule: rule.to_string() }.into());
    }
    Ok(store.read_all(names).await?)
}

/// Returns secrets as [`Secrets`] hides them.
fn to_hide(secrets: &BTreeMap<String, SecretValue>) -> impl Iterator<Item = (String, String)> {
    secrets.iter().map(|(name, value)| (secret_reference(name), value.expose().to_owned()))
}

/// Picks the error to report if several rules fail. A rule that allows the configuration but fails
/// otherwise tells more than one that refuses it.
fn pick_error(first: Option<LaunchError>, second: LaunchError) -> LaunchError {
    match first {
        Some(first) if !first.is_refusal() || second.is_refusal() => first,
        _ => second,
    }
}
