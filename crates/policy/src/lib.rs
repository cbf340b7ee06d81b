//! What messages may make this server do: which programs may be started, with what around them, and
//! which hosts may be connected to.
//!
//! `server_initialize` starts programs that are named in a message, so this is what stands between
//! a message and remote code execution. The default allows nothing. The rules are pure: paths come
//! in resolved and addresses come in looked up, so that each can be tested without a process or a
//! network.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    path::{Path, PathBuf},
};

pub mod argv;
pub mod confinement;
pub mod current;
pub mod env;
mod file;
pub mod glob;
pub use glob::escape;
pub mod limits;
pub mod remote;

use argv::{ArgvPattern, PatternError};
use confinement::Confinement;
use env::{EnvRefusal, EnvRule};
use limits::Limits;
use remote::{RemoteRule, RemoteRuleError};

/// Everything that is allowed.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Policy {
    /// Programs that may be started.
    pub commands: Vec<CommandRule>,
    /// Hosts that may be connected to.
    pub remotes: Vec<RemoteRule>,
    /// Limits for all hosted servers.
    pub limits: Limits,
}

/// One sort of command line that may be started, and what it may be started with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandRule {
    /// The command lines.
    pub argv: ArgvPattern,
    /// The working directories. Without `cwd` in the configuration the child gets the server's own,
    /// which is always allowed.
    pub cwd: PathRule,
    /// The environment variables that the configuration and its `envFile` may set.
    pub env: EnvRule,
    /// Where `envFile` may be.
    pub env_files: PathRule,
    /// Variables that the child gets from the server's own environment.
    pub env_passthrough: Vec<String>,
    /// Variables of the server's own environment that `${VAR}` may name.
    pub expand: BTreeSet<String>,
    /// What of the machine the child may use.
    pub confinement: Confinement,
    /// Where it stands in the policy file; nothing for a flag.
    pub line: Option<usize>,
}

/// Directories (with all that is in them) and files.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PathRule {
    paths: Vec<PathBuf>,
}

/// What somebody wants a program to be started with.
#[derive(Debug, Clone, Copy)]
pub struct LaunchRequest<'a> {
    /// The working directory, where one was asked for.
    pub cwd: Option<NamedPath<'a>>,
    /// The `envFile`, where one was named.
    pub env_file: Option<NamedPath<'a>>,
    /// The variables asked for, those of the `envFile` among them.
    pub env: &'a BTreeMap<String, String>,
}

/// A path that a message names.
#[derive(Debug, Clone, Copy)]
pub struct NamedPath<'a> {
    /// The path as it was written, with variables unexpanded: what a refusal may show.
    pub written: &'a str,
    /// The canonical path: what is compared with the rules.
    pub path: &'a Path,
}

/// Why something is not allowed, and what would allow it. A refusal shows what the message said and
/// no value of a variable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No rule covers the command line.
    #[error(
        "policy refuses to start `{argv}`: no rule covers this whole command line. To allow it, start the server \
             with --allow-command (MCP_ALLOWED_COMMANDS) or add a [[command]] with this argv to the policy file"
    )]
    Command {
        /// The command line.
        argv: String,
    },
    /// The working directory is not allowed.
    #[error(
        "policy refuses the working directory `{cwd}` for `{rule}`. To allow it, use --allow-dir (MCP_ALLOWED_DIRS) \
             or `cwd` in the [[command]] of the policy file"
    )]
    Cwd {
        /// The directory.
        cwd: String,
        /// The rule that covers the command line.
        rule: String,
    },
    /// The `envFile` is not where one may be.
    #[error(
        "policy refuses the envFile `{path}` for `{rule}`. To allow it, use --allow-dir (MCP_ALLOWED_DIRS) or \
             `env_files` in the [[command]] of the policy file"
    )]
    EnvFile {
        /// The file.
        path: String,
        /// The rule that covers the command line.
        rule: String,
    },
    /// An environment variable is not allowed.
    #[error(
        "policy refuses the environment variable `{name}` for `{rule}`: {why}. To allow it, use --allow-env \
             (MCP_ALLOWED_ENV) or `env` in the [[command]] of the policy file"
    )]
    Env {
        /// The variable.
        name: String,
        /// The rule that covers the command line.
        rule: String,
        /// What about it.
        why: &'static str,
    },
    /// An environment variable has a name that none can have, or none should: it would pose as
    /// something else where environments are written out.
    #[error("no environment variable can be called {name:?}")]
    EnvName {
        /// The name.
        name: String,
    },
    /// An argument or a variable holds a zero byte.
    #[error("a zero byte in {place}")]
    ZeroByte {
        /// Where.
        place: String,
    },
    /// No rule covers the host.
    #[error(
        "policy refuses to connect to `{target}`: no rule covers it. To allow it, start the server with \
             --allow-remote (MCP_ALLOWED_REMOTES) or add a [[remote]] to the policy file"
    )]
    Remote {
        /// Host and port.
        target: String,
    },
    /// The host is covered, and its address is not one that the rule may reach.
    #[error(
        "policy refuses to connect to `{host}` at {address}: rule `{rule}` does not reach such addresses. Private \
             ones need the literal host in the rule, loopback ones `localhost` or the address, others the address"
    )]
    Address {
        /// The host.
        host: String,
        /// The address.
        address: IpAddr,
        /// The rule that covers the host.
        rule: String,
    },
    /// There are as many servers as there may be.
    #[error(
        "{limit} servers are hosted, which is the limit (`max_servers` in the policy file); remove one first"
    )]
    TooManyServers {
        /// The limit.
        limit: usize,
    },
}

/// Why a policy can't be read.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// The policy file can't be read.
    #[error("policy file {}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// Why not.
        #[source]
        error: std::io::Error,
    },
    /// It is no TOML, or has unknown keys.
    #[error("policy file")]
    Toml(#[source] Box<toml::de::Error>),
    /// A command pattern is none.
    #[error("command pattern `{pattern}`{}", in_line(*line))]
    Pattern {
        /// The pattern.
        pattern: String,
        /// Where it stands in the policy file; nothing for a flag.
        line: Option<usize>,
        /// Why not.
        #[source]
        error: PatternError,
    },
    /// A path of a rule is relative, so that it would depend on where a child is started.
    #[error("`{key}`{}: {path:?} is not an absolute path", in_line(*line))]
    RelativePath {
        /// The key in the policy file.
        key: &'static str,
        /// The path.
        path: PathBuf,
        /// Where the rule stands in the policy file.
        line: Option<usize>,
    },
    /// A flag or rule would let configurations set every variable.
    #[error(
        "`{entry}` in {} stands for every variable; name the variables, or how their names begin, such as LOG_*",
        env_setting(*line)
    )]
    EveryVariable {
        /// The entry.
        entry: String,
        /// Where the rule stands in the policy file; nothing for a flag.
        line: Option<usize>,
    },
    /// The list of variables stands where it would hold for all rules.
    #[error(
        "`expand` at the top of the policy file: list the variables in the [[command]] or [[remote]] whose \
         configurations may name them"
    )]
    ExpandForAll,
    /// A remote rule is none.
    #[error("remote rule{}", in_line(*line))]
    Remote {
        /// Where it stands in the policy file; nothing for a flag.
        line: Option<usize>,
        /// What is wrong with it.
        #[source]
        error: RemoteRuleError,
    },
}

fn in_line(line: Option<usize>) -> String {
    line.map_or_else(String::new, |line| format!(" in line {line} of the policy file"))
}

fn env_setting(line: Option<usize>) -> String {
    match line {
        Some(line) => format!("`env` of the [[command]] in line {line} of the policy file"),
        None => "--allow-env (MCP_ALLOWED_ENV)".to_owned(),
    }
}

impl Policy {
    /// The rules that cover a command line, which is compared as it was written. Asked before
    /// anything else of a request is looked at, so that a refused request learns nothing about this
    /// machine.
    ///
    /// # Errors
    ///
    /// Returns an error if the command line can't be one.
    pub fn rules_for(
        &self,
        argv: &[String],
    ) -> Result<impl Iterator<Item = &CommandRule>, Refusal> {
        if argv.iter().any(|element| element.contains('\0')) {
            return Err(Refusal::ZeroByte { place: "the command line".to_owned() });
        }
        Ok(self.commands.iter().filter(move |rule| rule.argv.matches(argv)))
    }

    /// The rule under which a host may be connected to, before its addresses are known.
    ///
    /// # Errors
    ///
    /// Where no rule covers it.
    pub fn check_remote(&self, host: &str, port: u16) -> Result<&RemoteRule, Refusal> {
        let covering = self.remotes.iter().find(|rule| rule.covers(host, port));
        covering.ok_or_else(|| Refusal::remote(host, port))
    }

    /// The rule under which a host may be connected to at this address.
    ///
    /// # Errors
    ///
    /// Where no rule covers the host, or none that does reaches the address.
    pub fn check_address(
        &self,
        host: &str,
        port: u16,
        address: IpAddr,
    ) -> Result<&RemoteRule, Refusal> {
        let mut covering = self.remotes.iter().filter(|rule| rule.covers(host, port)).peekable();
        let Some(first) = covering.peek() else {
            return Err(Refusal::remote(host, port));
        };
        let rule = first.to_string();
        if let Some(rule) = covering.find(|rule| rule.allows_address(address)) {
            return Ok(rule);
        }
        Err(Refusal::Address { host: host.to_owned(), address, rule })
    }
}

impl Refusal {
    /// No rule covers a command line.
    pub fn command(argv: &[String]) -> Self {
        Self::Command { argv: argv::join_words(argv) }
    }

    fn remote(host: &str, port: u16) -> Self {
        Self::Remote { target: format!("{host}:{port}") }
    }
}

impl CommandRule {
    /// The rule that `--allow-command` makes: the environment variables that `--allow-env` lists
    /// and no others, and working directories and `envFile`s where `--allow-dir` says.
    pub fn simple(argv: ArgvPattern, dirs: &[PathBuf], env: &[String]) -> Self {
        Self {
            argv,
            cwd: PathRule::new(dirs),
            env: EnvRule::new(env.iter().map(String::as_str)),
            env_files: PathRule::new(dirs),
            env_passthrough: Vec::new(),
            expand: BTreeSet::new(),
            confinement: Confinement::default(),
            line: None,
        }
    }

    /// Whether what the rule covers may be started with all of this.
    ///
    /// # Errors
    ///
    /// Returns what is not allowed.
    pub fn check(&self, request: LaunchRequest<'_>) -> Result<(), Refusal> {
        check_env_syntax(request.env)?;
        let rule = || self.argv.to_string();
        if let Some(cwd) = request.cwd.filter(|cwd| !self.cwd.covers(cwd.path)) {
            return Err(Refusal::Cwd { cwd: cwd.written.to_owned(), rule: rule() });
        }
        if let Some(file) = request.env_file.filter(|file| !self.env_files.covers(file.path)) {
            return Err(Refusal::EnvFile { path: file.written.to_owned(), rule: rule() });
        }
        for name in request.env.keys() {
            let why = match self.env.check(name) {
                Ok(()) => continue,
                Err(EnvRefusal::NotListed) => "it is not listed",
                Err(EnvRefusal::Dangerous) => {
                    "it can change what code runs, so it must be listed by its exact name"
                }
            };
            return Err(Refusal::Env { name: name.clone(), rule: rule(), why });
        }
        Ok(())
    }
}

impl PathRule {
    /// A rule from paths. They should be canonical, as what they are compared with is.
    pub fn new<P: Into<PathBuf>>(paths: impl IntoIterator<Item = P>) -> Self {
        Self { paths: paths.into_iter().map(Into::into).collect() }
    }

    /// The same rule with every path resolved by `resolve`; paths that can't be resolved cover
    /// nothing but themselves.
    pub fn resolve(&mut self, resolve: impl Fn(&Path) -> Option<PathBuf>) {
        for path in &mut self.paths {
            if let Some(resolved) = resolve(path) {
                *path = resolved;
            }
        }
    }

    /// Whether a canonical path is one of the rule's, or lies in one of them.
    pub fn covers(&self, path: &Path) -> bool {
        self.paths.iter().any(|own| path.starts_with(own))
    }
}

fn check_env_syntax(env: &BTreeMap<String, String>) -> Result<(), Refusal> {
    let nameless =
        |name: &&String| name.is_empty() || name.contains(|c: char| c == '=' || c.is_control());
    if let Some(name) = env.keys().find(nameless) {
        return Err(Refusal::EnvName { name: name.clone() });
    }
    match env.iter().find(|(_, value)| value.contains('\0')) {
        Some((name, _)) => {
            Err(Refusal::ZeroByte { place: format!("the environment variable {name:?}") })
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests;
