//! From a configuration to something that may be started: variables, `envFile`, paths, policy.
//!
//! Policy is asked about the command line as it was written, before a variable is expanded or
//! anything that the message names is looked at on the disk. So a refused message learns nothing
//! about either, and which variables may be expanded is the rule's to say.

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
use serde::Serialize;
use url::Url;

use super::secrets::Secrets;

mod child;
mod named_file;
mod url_target;

/// Something that may be started. Equal specs start the same thing. Holds secrets, so it has no
/// `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub enum LaunchSpec {
    /// A child process.
    Child(ChildSpec),
    /// A remote server that speaks one of the two that follow; nothing says which.
    Url(RemoteSpec),
    /// A remote server that speaks Streamable HTTP.
    Remote(RemoteSpec),
    /// A remote server that speaks the HTTP+SSE transport of 2024.
    Sse(RemoteSpec),
}

/// A child process that may be started.
#[derive(Clone, PartialEq, Eq)]
pub struct ChildSpec {
    /// The program, found.
    pub program: PathBuf,
    /// Its arguments.
    pub args: Vec<String>,
    /// Its working directory, canonical; the server's own where there is none.
    pub cwd: Option<PathBuf>,
    /// Its whole environment.
    pub env: BTreeMap<String, String>,
    /// What of the machine it may use.
    pub confinement: Confinement,
    /// What nobody should read in its words.
    pub secrets: Secrets,
}

/// A remote server that may be connected to.
#[derive(Clone, PartialEq, Eq)]
pub struct RemoteSpec {
    /// Where it listens.
    pub url: Url,
    /// Headers for every request to it.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// What nobody should read in errors about it.
    pub secrets: Secrets,
}

impl LaunchSpec {
    /// What nobody should read in texts about it.
    pub fn secrets(&self) -> &Secrets {
        match self {
            Self::Child(spec) => &spec.secrets,
            Self::Url(spec) | Self::Remote(spec) | Self::Sse(spec) => &spec.secrets,
        }
    }
}

/// Why something may or can not be started. All of these are the caller's to mend.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// A variable can't be expanded.
    #[error("the configuration can't be expanded [{code}]", code = codes::SERVER_CONFIG)]
    Expand(#[from] FieldExpandError),
    /// Policy refuses it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// A path of the configuration can't be used.
    #[error("`{field}` {path:?} [{code}]", code = codes::SERVER_CONFIG)]
    Path {
        /// The field.
        field: &'static str,
        /// The path.
        path: String,
        /// Why not.
        #[source]
        error: io::Error,
    },
    /// The `envFile` is no `.env` file.
    #[error("`envFile` {path:?} [{code}]", code = codes::SERVER_CONFIG)]
    EnvFile {
        /// The file.
        path: String,
        /// What is wrong with it.
        #[source]
        error: DotenvError,
    },
    /// The program is not there.
    #[error(
        "the command `{0}` does not exist or is not executable (looked for in the server's PATH) [{code}]",
        code = codes::SERVER_CONFIG
    )]
    NoProgram(String),
    /// The URL is no HTTP URL.
    #[error(
        "`url` must be an http or https URL without user name or password [{code}]",
        code = codes::SERVER_CONFIG
    )]
    Url,
    /// A header can't be sent.
    #[error("the header {0:?} can't be sent [{code}]", code = codes::SERVER_CONFIG)]
    Header(String),
    /// A header that is the transport's own.
    #[error(
        "the header {0:?} is set by the transport and can't be configured [{code}]",
        code = codes::SERVER_CONFIG
    )]
    OwnHeader(String),
}

/// The rule of a policy that allows something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RuleRef {
    /// The table in the policy file that it is an entry of.
    pub table: &'static str,
    /// Its place among the others of its kind, from 1.
    pub number: usize,
    /// Where it stands in the policy file; nothing for a flag.
    pub line: Option<usize>,
    /// What it covers.
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
/// Where policy refuses it, or something that it names is not there.
pub async fn resolve(entry: &ServerEntry, policy: &Policy) -> Result<LaunchSpec, LaunchError> {
    resolve_with_rule(entry, policy).await.map(|(spec, _)| spec)
}

/// The same with the rule that allows it.
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

/// The variables of the server's environment that a rule allows, and what was used of them.
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
                "it is not listed; use --expand-env (MCP_EXPAND_ENV) or `expand` in the [[command]] or [[remote]] \
                 of the policy file"
                    .to_owned(),
            );
        }
        let Ok(value) = std::env::var(name) else { return Variable::Unset };
        self.used.borrow_mut().insert(name.to_owned(), value.clone());
        Variable::Value(value)
    }
}

/// The error to report of what several rules say: what is allowed and does not work tells more than
/// what is not allowed.
fn pick_error(first: Option<LaunchError>, second: LaunchError) -> LaunchError {
    match first {
        Some(first) if !first.is_refusal() || second.is_refusal() => first,
        _ => second,
    }
}
