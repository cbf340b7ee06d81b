//! From a configuration to something that may be started: variables, `envFile`, paths, policy.
//!
//! Policy is asked about the command line first, before anything that the message names is looked at on the disk, so
//! that a refused message learns nothing about it.

use std::{
    collections::BTreeMap,
    fmt, io,
    path::{Path, PathBuf},
};

use fleet_job::mcp_servers::{
    RemoteServer, ServerEntry, StdioServer, Transport,
    dotenv::{self, DotenvError},
    expand::{FieldExpandError, Variable},
};
use http::{HeaderName, HeaderValue};
use serde::Serialize;
use url::{Host, Url};

use crate::policy::{
    CommandRule, LaunchRequest, Policy, Refusal, confinement::Confinement, remote::RemoteRule,
};

/// The largest `envFile` that is read.
const MAX_ENV_FILE: u64 = 256 * 1024;
/// What a child gets from the server's own environment without being asked.
const BASE_ENV: [&str; 4] = ["PATH", "HOME", "LANG", "TMPDIR"];

/// Something that may be started. Equal specs start the same thing. Holds secrets, so it has no `Debug`.
#[derive(Clone, PartialEq, Eq)]
pub enum LaunchSpec {
    /// A child process.
    Child(ChildSpec),
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
    /// Its working directory; the server's own where there is none.
    pub cwd: Option<PathBuf>,
    /// Its whole environment.
    pub env: BTreeMap<String, String>,
    /// What of the machine it may use.
    pub confinement: Confinement,
}

/// A remote server that may be connected to.
#[derive(Clone, PartialEq, Eq)]
pub struct RemoteSpec {
    /// Where it listens.
    pub url: Url,
    /// Headers for every request to it.
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

/// Why something may or can not be started. All of these are the caller's to mend.
#[derive(Debug, thiserror::Error)]
pub enum LaunchError {
    /// A variable can't be expanded.
    #[error("the configuration can't be expanded")]
    Expand(#[from] FieldExpandError),
    /// Policy refuses it.
    #[error(transparent)]
    Refused(#[from] Refusal),
    /// A path of the configuration can't be used.
    #[error("`{field}` {path:?}")]
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
    #[error("`envFile` {path:?}")]
    EnvFile {
        /// The file.
        path: String,
        /// What is wrong with it.
        #[source]
        error: DotenvError,
    },
    /// The program is not there.
    #[error("the command `{0}` does not exist or is not executable (looked for in the server's PATH)")]
    NoProgram(String),
    /// The URL is no HTTP URL.
    #[error("`url` must be an http or https URL without user name or password")]
    Url,
    /// A header can't be sent.
    #[error("the header {0:?} can't be sent")]
    Header(String),
    /// A header that is the transport's own.
    #[error("the header {0:?} is set by the transport and can't be configured")]
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
    examine(entry, policy).await.map(|(spec, _)| spec)
}

/// The same with the rule that allows it.
///
/// # Errors
///
/// As [`resolve`].
pub async fn examine(entry: &ServerEntry, policy: &Policy) -> Result<(LaunchSpec, RuleRef), LaunchError> {
    let lookup = |name: &str| {
        if !policy.expand.contains(name) {
            return Variable::Refused(
                "it is not listed; use --expand-env (MCP_EXPAND_ENV) or `expand` in the policy file"
                    .to_owned(),
            );
        }
        std::env::var(name).map_or(Variable::Unset, Variable::Value)
    };
    match entry.expand(&lookup)?.transport {
        Transport::Stdio(server) => {
            let (spec, rule) = resolve_child(server, policy).await?;
            let number = policy.commands.iter().position(|other| std::ptr::eq(other, rule));
            let (number, line, covers) = (number.unwrap_or_default() + 1, rule.line, rule.argv.to_string());
            Ok((LaunchSpec::Child(spec), RuleRef { table: "command", number, line, covers }))
        }
        Transport::Http(server) => {
            let (spec, rule) = resolve_remote(&server, policy)?;
            Ok((LaunchSpec::Remote(spec), remote_rule(rule, policy)))
        }
        Transport::Sse(server) => {
            let (spec, rule) = resolve_remote(&server, policy)?;
            Ok((LaunchSpec::Sse(spec), remote_rule(rule, policy)))
        }
    }
}

fn remote_rule(rule: &RemoteRule, policy: &Policy) -> RuleRef {
    let number = policy.remotes.iter().position(|other| std::ptr::eq(other, rule));
    let (number, line, covers) = (number.unwrap_or_default() + 1, rule.line(), rule.to_string());
    RuleRef { table: "remote", number, line, covers }
}

async fn resolve_child(
    server: StdioServer,
    policy: &Policy,
) -> Result<(ChildSpec, &CommandRule), LaunchError> {
    let mut argv = Vec::with_capacity(1 + server.args.len());
    argv.push(server.command.clone());
    argv.extend(server.args.iter().cloned());
    policy.check_argv(&argv)?;

    let cwd = match &server.cwd {
        Some(cwd) => Some(locate("cwd", Path::new(cwd), cwd).await),
        None => None,
    };
    let (cwd, no_cwd) = cwd.unzip();
    let env_file = match &server.env_file {
        // As editors do, a relative `envFile` is looked for in the working directory of the server to be.
        Some(path) => Some(locate("envFile", &cwd.clone().unwrap_or_default().join(path), path).await),
        None => None,
    };
    let (env_file, no_env_file) = env_file.unzip();
    // Checked once before the file is read, for its place, and once with what it holds.
    let request =
        LaunchRequest { argv: &argv, cwd: cwd.as_deref(), env_file: env_file.as_deref(), env: &server.env };
    policy.check_launch(request)?;
    if let Some(missing) = no_cwd.flatten().or(no_env_file.flatten()) {
        return Err(missing);
    }
    let mut wanted = match (&env_file, &server.env_file) {
        (Some(found), Some(named)) => read_env_file(found, named).await?,
        _ => BTreeMap::new(),
    };
    wanted.extend(server.env.clone());
    let rule = policy.check_launch(LaunchRequest { env: &wanted, ..request })?;

    let inherited = BASE_ENV.into_iter().chain(rule.env_passthrough.iter().map(String::as_str));
    let mut env: BTreeMap<String, String> =
        inherited.filter_map(|name| Some((name.to_owned(), std::env::var(name).ok()?))).collect();
    env.extend(wanted);
    let program = find_program(&server.command).await.ok_or(LaunchError::NoProgram(server.command))?;
    let confinement = rule.confinement.clone();
    Ok((ChildSpec { program, args: server.args, cwd, env, confinement }, rule))
}

/// Where a path really leads. Where it leads nowhere, the path as it is written and the error: whether something
/// exists is told only once policy allows the place.
async fn locate(field: &'static str, path: &Path, named: &str) -> (PathBuf, Option<LaunchError>) {
    match tokio::fs::canonicalize(path).await {
        Ok(path) => (path, None),
        Err(error) => {
            let written = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
            // `..` could lead back out of an allowed directory.
            let written = if named.contains("..") { PathBuf::from("/") } else { written };
            (written, Some(LaunchError::Path { field, path: named.to_owned(), error }))
        }
    }
}

async fn read_env_file(path: &Path, named: &str) -> Result<BTreeMap<String, String>, LaunchError> {
    let failure = |error| LaunchError::Path { field: "envFile", path: named.to_owned(), error };
    let metadata = tokio::fs::metadata(path).await.map_err(failure)?;
    if !metadata.is_file() || metadata.len() > MAX_ENV_FILE {
        let problem = format!("not a regular file of at most {MAX_ENV_FILE} bytes");
        return Err(failure(io::Error::new(io::ErrorKind::InvalidInput, problem)));
    }
    let text = tokio::fs::read_to_string(path).await.map_err(failure)?;
    dotenv::parse(&text).map_err(|error| LaunchError::EnvFile { path: named.to_owned(), error })
}

/// Where the program is: a bare name in `PATH`, a path as it stands. Relative ones are relative to the server's own
/// working directory, never to the child's, which a message may choose.
async fn find_program(command: &str) -> Option<PathBuf> {
    let candidates = if command.contains('/') {
        vec![PathBuf::from(command)]
    } else {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).map(|directory| directory.join(command)).collect()
    };
    for candidate in candidates {
        let executable = tokio::fs::metadata(&candidate).await.is_ok_and(|metadata| {
            use std::os::unix::fs::PermissionsExt;
            metadata.is_file() && metadata.permissions().mode() & 0o111 != 0
        });
        if executable {
            return std::path::absolute(&candidate).ok();
        }
    }
    None
}

fn resolve_remote<'a>(
    server: &RemoteServer,
    policy: &'a Policy,
) -> Result<(RemoteSpec, &'a RemoteRule), LaunchError> {
    let url = Url::parse(&server.url).map_err(|_| LaunchError::Url)?;
    let plain = url.username().is_empty() && url.password().is_none();
    let (Some(host), Some(port), true, "http" | "https") =
        (url.host(), url.port_or_known_default(), plain, url.scheme())
    else {
        return Err(LaunchError::Url);
    };
    let rule = match host {
        Host::Domain(name) => policy.check_remote(name, port)?,
        // An address needs no resolver, so the check at connect time would not see it.
        Host::Ipv4(ip) => policy.check_address(&ip.to_string(), port, ip.into())?,
        Host::Ipv6(ip) => policy.check_address(&ip.to_string(), port, ip.into())?,
    };
    let header = |(name, value): (&String, &String)| {
        let parsed = (HeaderName::try_from(name), HeaderValue::try_from(value));
        let (Ok(parsed_name), Ok(mut parsed_value)) = parsed else {
            return Err(LaunchError::Header(name.clone()));
        };
        if is_transports_own(&parsed_name) {
            return Err(LaunchError::OwnHeader(name.clone()));
        }
        parsed_value.set_sensitive(true);
        Ok((parsed_name, parsed_value))
    };
    let headers = server.headers.iter().map(header).collect::<Result<_, _>>()?;
    Ok((RemoteSpec { url, headers }, rule))
}

/// Headers that say where a request goes, where it ends, or what it is in the protocol. `Host` could name a virtual host
/// that policy does not cover; the framing ones could smuggle a second request.
fn is_transports_own(name: &HeaderName) -> bool {
    use http::header;
    let own = [header::HOST, header::CONTENT_LENGTH, header::TRANSFER_ENCODING, header::CONNECTION];
    own.contains(name) || name.as_str().starts_with("mcp-")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn headers_of_the_transport_are_refused() {
        let rules = vec![RemoteRule::parse("mcp.example.com").unwrap()];
        let policy = Policy { remotes: rules, ..Policy::default() };
        let check = |name: &str, allowed: bool| {
            let config = serde_json::json!({"url": "https://mcp.example.com/mcp", "headers": {name: "x"}});
            let Transport::Http(server) = ServerEntry::from_value(&config, "config").unwrap().transport
            else {
                panic!("no remote server");
            };
            match resolve_remote(&server, &policy) {
                Ok(_) => assert!(allowed, "{name}"),
                Err(LaunchError::OwnHeader(refused)) => assert!(!allowed && refused == name, "{name}"),
                Err(other) => panic!("{name}: {other}"),
            }
        };
        for name in [
            "Host",
            "content-length",
            "Transfer-Encoding",
            "Connection",
            "Mcp-Session-Id",
            "MCP-Protocol-Version",
        ] {
            check(name, false);
        }
        check("Authorization", true);
        check("X-Mcp-Key", true);
    }
}
