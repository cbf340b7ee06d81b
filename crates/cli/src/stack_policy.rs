//! The policy of a fleet on one machine: it allows what the fleet hosts, and nothing else. Pure.

use std::{
    cell::RefCell,
    collections::BTreeSet,
    path::{Path, PathBuf},
};

use fleet_job::{
    glob,
    mcp_servers::{
        ServerEntry, StdioServer, Transport, dotenv,
        expand::{FieldExpandError, Reference, Variable},
    },
};
use serde::Serialize;
use url::{Host, Url};

/// How long a server of the user's own may take to start: a package runner may have to download it.
const START_MS: u64 = 300_000;

/// The policy, as its file has it.
#[derive(Debug, Default, PartialEq, Serialize)]
pub(crate) struct LocalPolicy {
    #[serde(skip_serializing_if = "Option::is_none")]
    limits: Option<StartLimits>,
    command: Vec<AllowedCommand>,
    remote: Vec<AllowedRemote>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    rule: Vec<LocalRule>,
}

/// A rule about what principals may do.
#[derive(Debug, PartialEq, Serialize)]
struct LocalRule {
    name: &'static str,
    effect: &'static str,
    principals: &'static [&'static str],
    actions: &'static [&'static str],
    tenants: &'static [&'static str],
}

/// Whoever uses this machine sees and steers the jobs that the fleet's keys have submitted, so that
/// the console needs none of them.
const LOCAL_RULE: LocalRule = LocalRule {
    name: "this machine",
    effect: "allow",
    principals: &["issuer:local"],
    actions: &["jobs.*", "dead-letters.*"],
    tenants: &["*"],
};

#[derive(Debug, PartialEq, Serialize)]
struct StartLimits {
    handshake_timeout_ms: u64,
}

#[derive(Debug, Default, PartialEq, Serialize)]
struct AllowedCommand {
    argv: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    cwd: Vec<PathBuf>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    env: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    env_files: Vec<PathBuf>,
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    expand: BTreeSet<String>,
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    secrets: BTreeSet<String>,
}

#[derive(Debug, PartialEq, Serialize)]
struct AllowedRemote {
    host: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    port: Option<u16>,
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    expand: BTreeSet<String>,
    #[serde(skip_serializing_if = "BTreeSet::is_empty")]
    secrets: BTreeSet<String>,
}

/// Why no policy can allow a server.
#[derive(Debug, thiserror::Error)]
pub(crate) enum LocalPolicyError {
    #[error("server `{server}`")]
    Variables {
        server: String,
        #[source]
        source: FieldExpandError,
    },
    #[error("server `{server}`: `{url}` is not a URL [{code}]", code = fleet_codes::SERVER_CONFIG)]
    Url { server: String, url: String },
}

/// What a configuration refers to on this machine.
pub(crate) struct Surroundings<'a> {
    /// The directory in which the server runs.
    pub(crate) directory: &'a Path,
    /// Returns the value of a variable.
    pub(crate) variable: &'a dyn Fn(&str) -> Option<String>,
    /// Returns the text of a file.
    pub(crate) file: &'a dyn Fn(&Path) -> Option<String>,
}

impl LocalPolicy {
    /// The policy that allows one command line.
    pub(crate) fn for_command(argv: &[String]) -> Self {
        let argv = argv.iter().map(|word| glob::escape(word)).collect();
        let command = AllowedCommand { argv, ..AllowedCommand::default() };
        Self { command: vec![command], ..Self::default() }
    }

    /// The policy that allows these servers as they are configured.
    pub(crate) fn for_servers(
        servers: &[(String, ServerEntry)],
        surroundings: &Surroundings<'_>,
    ) -> Result<Self, LocalPolicyError> {
        let limits = Some(StartLimits { handshake_timeout_ms: START_MS });
        let mut policy = Self { limits, ..Self::default() };
        for (name, entry) in servers {
            policy.allow(name, entry, surroundings)?;
        }
        Ok(policy)
    }

    /// The same policy with a rule that lets local users see and steer all jobs.
    pub(crate) fn with_local_rights(self) -> Self {
        Self { rule: vec![LOCAL_RULE], ..self }
    }

    fn allow(
        &mut self,
        name: &str,
        entry: &ServerEntry,
        surroundings: &Surroundings<'_>,
    ) -> Result<(), LocalPolicyError> {
        let used = RefCell::new(BTreeSet::new());
        let secrets = RefCell::new(BTreeSet::new());
        // The server reports what is not set when it starts the child.
        let lenient = |reference: Reference<'_>| match reference {
            Reference::Variable(variable) => {
                used.borrow_mut().insert(variable.to_owned());
                Variable::Value((surroundings.variable)(variable).unwrap_or_default())
            }
            Reference::Secret(name) => {
                secrets.borrow_mut().insert(name.to_owned());
                Variable::Value(String::new())
            }
        };
        let expanded = entry
            .expand(&lenient)
            .map_err(|source| LocalPolicyError::Variables { server: name.to_owned(), source })?;

        match (&entry.transport, &expanded.transport) {
            (Transport::Stdio(written), Transport::Stdio(expanded)) => {
                let command = allowed_command(written, expanded, surroundings);
                let (expand, secrets) = (used.into_inner(), secrets.into_inner());
                self.command.push(AllowedCommand { expand, secrets, ..command });
            }
            (_, Transport::Url(server) | Transport::Http(server) | Transport::Sse(server)) => {
                let remote = allowed_remote(&server.url, used.into_inner(), secrets.into_inner());
                self.remote.push(remote.ok_or_else(|| LocalPolicyError::Url {
                    server: name.to_owned(),
                    url: server.url.clone(),
                })?);
            }
            // Expansion does not change the transport.
            (_, Transport::Stdio(_)) => {}
        }
        Ok(())
    }
}

fn allowed_command(
    written: &StdioServer,
    expanded: &StdioServer,
    surroundings: &Surroundings<'_>,
) -> AllowedCommand {
    let cwd = expanded.cwd.as_ref().map(|cwd| surroundings.directory.join(cwd));
    let base = cwd.as_deref().unwrap_or(surroundings.directory);
    let env_file = expanded.env_file.as_ref().map(|file| base.join(file));

    let of_file = env_file.as_deref().and_then(|path| (surroundings.file)(path));
    let of_file = of_file.and_then(|text| dotenv::parse(&text).ok()).unwrap_or_default();
    let names: BTreeSet<&String> = written.env.keys().chain(of_file.keys()).collect();

    let argv = [&written.command].into_iter().chain(&written.args);
    AllowedCommand {
        argv: argv.map(|word| glob::escape(word)).collect(),
        cwd: cwd.clone().into_iter().collect(),
        env: names.into_iter().map(|name| glob::escape(name)).collect(),
        env_files: env_file.into_iter().collect(),
        ..AllowedCommand::default()
    }
}

fn allowed_remote(
    url: &str,
    expand: BTreeSet<String>,
    secrets: BTreeSet<String>,
) -> Option<AllowedRemote> {
    let url = Url::parse(url).ok()?;
    let host = match url.host()? {
        Host::Domain(name) => name.to_owned(),
        Host::Ipv4(address) => address.to_string(),
        Host::Ipv6(address) => address.to_string(),
    };
    Some(AllowedRemote { host, port: url.port_or_known_default(), expand, secrets })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn policy(config: Value) -> Result<LocalPolicy, LocalPolicyError> {
        let entry = ServerEntry::from_value(&config, "config").unwrap();
        let surroundings = Surroundings {
            directory: Path::new("/work"),
            variable: &|name| (name == "DATA").then(|| "/data".to_owned()),
            file: &|path| (path == Path::new("/data/.env")).then(|| "TOKEN=x\nA=b\n".to_owned()),
        };
        LocalPolicy::for_servers(&[("s".to_owned(), entry)], &surroundings)
    }

    #[test]
    fn a_command_is_allowed_as_it_is_written() {
        let allowed = policy(json!({
            "command": "uvx",
            "args": ["my-*", "--data=${DATA}", "${OTHER}"],
            "env": {"A": "1", "LOG": "${DATA}", "KEY": "${secret:key}"},
            "cwd": "${DATA}",
            "envFile": ".env",
        }));
        let command = &allowed.unwrap().command[0];
        assert_eq!(command.argv, ["uvx", "my-\\*", "--data=${DATA}", "${OTHER}"]);
        assert_eq!(command.cwd, [Path::new("/data")]);
        assert_eq!(command.env_files, [Path::new("/data/.env")]);
        assert_eq!(command.env, ["A", "KEY", "LOG", "TOKEN"]);
        assert_eq!(command.secrets.iter().collect::<Vec<_>>(), ["key"]);
        assert_eq!(command.expand.iter().collect::<Vec<_>>(), ["DATA", "OTHER"]);
    }

    #[test]
    fn a_remote_is_allowed_at_its_port() {
        let remote = |url: &str| {
            let allowed = policy(json!({"url": url, "headers": {"X": "${KEY}"}})).unwrap();
            let remote = &allowed.remote[0];
            assert!(remote.expand.contains("KEY"));
            (remote.host.clone(), remote.port)
        };
        assert_eq!(remote("https://a.example/mcp"), ("a.example".to_owned(), Some(443)));
        assert_eq!(remote("http://[::1]:9/"), ("::1".to_owned(), Some(9)));
        assert!(policy(json!({"url": "${NOTHING}"})).is_err());
        assert!(policy(json!({"url": "http://a/${input:x}"})).is_err());
    }

    #[test]
    fn the_file_can_be_read_as_a_policy() {
        let allowed = policy(json!({"command": "x", "env": {"A": "1"}, "cwd": "sub"})).unwrap();
        let text = toml::to_string(&allowed).unwrap();
        for part in ["handshake_timeout_ms = 300000", "[[command]]", "cwd = [\"/work/sub\"]"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        let one = LocalPolicy::for_command(&["/a b".to_owned(), "*".to_owned()]);
        let text = toml::to_string(&one).unwrap();
        assert!(text.contains(r#"argv = ["/a b", '\*']"#), "{text}");
        assert!(!text.contains("limits"), "{text}");
    }
}
