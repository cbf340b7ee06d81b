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
    expand::{FieldExpandError, Variable},
};
use fleet_policy::{Policy, Refusal, confinement::Confinement};
use http::{HeaderName, HeaderValue};
use schemars::JsonSchema;
use serde::Serialize;
use url::Url;

use super::secrets::Secrets;

mod child;
mod named_file;
mod url_target;

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
}

/// A remote that may be connected to.
#[derive(Clone, PartialEq, Eq)]
pub struct RemoteSpec {
    /// The URL.
    pub url: Url,
    /// Headers for every request.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// The values to hide in errors.
    pub secrets: Secrets,
}

impl LaunchSpec {
    /// Returns the values to hide in texts about the server.
    pub fn secrets(&self) -> &Secrets {
        match self {
            Self::Child(spec) => &spec.secrets,
            Self::Url(spec) | Self::Remote(spec) | Self::Sse(spec) => &spec.secrets,
        }
    }
}

/// Why a configuration must not or can't be started. The caller can fix all of these.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// A variable can't be expanded.
    #[error("could not expand the configuration [{code}]", code = codes::SERVER_CONFIG)]
    Expand(#[from] FieldExpandError),
    /// Policy refuses it.
    #[error(transparent)]
    Refused(#[from] Refusal),
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

/// Turns a configuration into something that may be started.
///
/// # Errors
///
/// Returns an error if policy refuses the configuration, or something that it names does not exist.
pub async fn resolve(entry: &ServerEntry, policy: &Policy) -> Result<LaunchSpec, LaunchError> {
    resolve_with_rule(entry, policy).await.map(|(spec, _)| spec)
}

/// Does the same as [`resolve`], and also returns the rule that allows it.
///
/// # Errors
///
/// As [`resolve`].
pub async fn resolve_with_rule(
    entry: &ServerEntry,
    policy: &Policy,
) -> Result<(LaunchSpec, RuleRef), LaunchError> {
    match &entry.transport {
        Transport::Stdio(server) => {
            let (spec, rule) = child::resolve_child(server, policy).await?;
            let number = policy.commands.iter().position(|other| std::ptr::eq(other, rule));
            let (number, line, covers) =
                (number.unwrap_or_default() + 1, rule.line, rule.argv.to_string());
            Ok((LaunchSpec::Child(spec), RuleRef { table: "command", number, line, covers }))
        }
        Transport::Url(server) => {
            let (spec, rule) = url_target::resolve_remote(server, policy)?;
            Ok((LaunchSpec::Url(spec), url_target::rule_ref(rule, policy)))
        }
        Transport::Http(server) => {
            let (spec, rule) = url_target::resolve_remote(server, policy)?;
            Ok((LaunchSpec::Remote(spec), url_target::rule_ref(rule, policy)))
        }
        Transport::Sse(server) => {
            let (spec, rule) = url_target::resolve_remote(server, policy)?;
            Ok((LaunchSpec::Sse(spec), url_target::rule_ref(rule, policy)))
        }
    }
}

/// The variables of the server's environment that a rule allows, and the values that were used.
struct Environment<'a> {
    allowed: &'a BTreeSet<String>,
    used: RefCell<BTreeMap<String, String>>,
}

impl<'a> Environment<'a> {
    fn new(allowed: &'a BTreeSet<String>) -> Self {
        Self { allowed, used: RefCell::default() }
    }

    fn look_up(&self, name: &str) -> Variable {
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
}

/// Picks the error to report if several rules fail. A rule that allows the configuration but fails
/// otherwise tells more than one that refuses it.
fn pick_error(first: Option<LaunchError>, second: LaunchError) -> LaunchError {
    match first {
        Some(first) if !first.is_refusal() || second.is_refusal() => first,
        _ => second,
    }
}
