//! What messages may make this server do: which programs it may start, in which environment, and
//! which hosts it may connect to.
//!
//! `server_initialize` starts programs that are named in a message, so this crate stands between a
//! message and remote code execution. The default policy allows nothing. The rules are pure:
//! callers resolve paths and look up addresses first, so every rule can be tested without a process
//! or a network.

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
pub mod limits;
pub mod oauth;
pub mod pins;
pub mod remote;

use argv::{ArgvPattern, PatternError};
use confinement::Confinement;
use env::{EnvRefusal, EnvRule};
use fleet_codes as codes;
use fleet_pins::NoDigest;
use limits::Limits;
use oauth::RemoteOauthError;
use pins::PinPolicy;
use remote::{RemoteRule, RemoteRuleError};

/// Everything that messages may make the server do.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Policy {
    /// Programs that may be started.
    pub commands: Vec<CommandRule>,
    /// Hosts that may be connected to.
    pub remotes: Vec<RemoteRule>,
    /// Limits for all hosted servers.
    pub limits: Limits,
    /// Which of their tools are pinned.
    pub pins: PinPolicy,
}

/// A kind of command line that may be started, and the conditions under which it may be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandRule {
    /// The command lines that the rule covers.
    pub argv: ArgvPattern,
    /// The working directories that a configuration may ask for. A configuration without `cwd` gets
    /// the server's own directory, which is always allowed.
    pub cwd: PathRule,
    /// The environment variables that the configuration and its `envFile` may set.
    pub env: EnvRule,
    /// Where an `envFile` may be.
    pub env_files: PathRule,
    /// Variables that the child gets from the server's own environment.
    pub env_passthrough: Vec<String>,
    /// Variables of the server's own environment that `${VAR}` may refer to.
    pub expand: BTreeSet<String>,
    /// Secrets that `${secret:name}` may refer to.
    pub secrets: BTreeSet<String>,
    /// Which parts of the machine the child may use.
    pub confinement: Confinement,
    /// The rule's line in the policy file; `None` if a flag defined it.
    pub line: Option<usize>,
}

/// A set of files and directories; a directory includes everything in it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct PathRule {
    paths: Vec<PathBuf>,
}

/// The conditions under which a message asks for a program to be started.
#[derive(Debug, Clone, Copy)]
pub struct LaunchRequest<'a> {
    /// The working directory, if the message asks for one.
    pub cwd: Option<NamedPath<'a>>,
    /// The `envFile`, if the message names one.
    pub env_file: Option<NamedPath<'a>>,
    /// The requested variables, including those of the `envFile`.
    pub env: &'a BTreeMap<String, String>,
}

/// A path that a message names.
#[derive(Debug, Clone, Copy)]
pub struct NamedPath<'a> {
    /// The path as written, with variables unexpanded. A refusal may show it.
    pub written: &'a str,
    /// The canonical path, which is compared with the rules.
    pub path: &'a Path,
}

/// Why something is not allowed, and what would allow it. A refusal repeats what the message said
/// but never shows the value of a variable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No rule covers the command line.
    #[error(
        "policy refuses to start `{argv}`: no rule covers this whole command line. To allow it, start the server \
             with --allow-command (MCP_ALLOWED_COMMANDS) or add a [[command]] with this argv to the policy file [{code}]",
        code = codes::POLICY_COMMAND
    )]
    Command {
        /// The command line.
        argv: String,
    },
    /// The working directory is not allowed.
    #[error(
        "policy refuses the working directory `{cwd}` for `{rule}`. To allow it, use --allow-dir (MCP_ALLOWED_DIRS) \
             or `cwd` in the [[command]] of the policy file [{code}]",
        code = codes::POLICY_DIRECTORY
    )]
    Cwd {
        /// The requested directory.
        cwd: String,
        /// The rule that covers the command line.
        rule: String,
    },
    /// The `envFile` is outside the allowed paths.
    #[error(
        "policy refuses the envFile `{path}` for `{rule}`. To allow it, use --allow-dir (MCP_ALLOWED_DIRS) or \
             `env_files` in the [[command]] of the policy file [{code}]",
        code = codes::POLICY_ENV_FILE
    )]
    EnvFile {
        /// The requested file.
        path: String,
        /// The rule that covers the command line.
        rule: String,
    },
    /// An environment variable is not allowed.
    #[error(
        "policy refuses the environment variable `{name}` for `{rule}`: {why}. To allow it, use --allow-env \
             (MCP_ALLOWED_ENV) or `env` in the [[command]] of the policy file [{code}]",
        code = codes::POLICY_ENV
    )]
    Env {
        /// The name of the variable.
        name: String,
        /// The rule that covers the command line.
        rule: String,
        /// What is wrong with the variable.
        why: &'static str,
    },
    /// An environment variable has an invalid name, or one that could pass for something else in a
    /// listing of the environment.
    #[error("{name:?} is not a valid environment variable name [{code}]", code = codes::POLICY_ENV)]
    EnvName {
        /// The rejected name.
        name: String,
    },
    /// A secret is not listed.
    #[error(
        "policy refuses the secret `{name}` for `{rule}`: it is not listed. To allow it, add it to `secrets` in the \
             [[command]] or [[remote]] of the policy file [{code}]",
        code = codes::POLICY_SECRET
    )]
    Secret {
        /// The name of the secret.
        name: String,
        /// The rule that covers the command line or the host.
        rule: String,
    },
    /// An argument or a variable contains a zero byte.
    #[error("{place} contains a zero byte; remove it [{code}]", code = codes::SERVER_CONFIG)]
    ZeroByte {
        /// What contains the zero byte.
        place: String,
    },
    /// No rule covers the host.
    #[error(
        "policy refuses to connect to `{target}`: no rule covers it. To allow it, start the server with \
             --allow-remote (MCP_ALLOWED_REMOTES) or add a [[remote]] to the policy file [{code}]",
        code = codes::POLICY_REMOTE
    )]
    Remote {
        /// Host and port.
        target: String,
    },
    /// A rule covers the host but does not allow the address it resolved to.
    #[error(
        "policy refuses to connect to `{host}` at {address}: rule `{rule}` does not allow such addresses. To allow a \
             private address, the rule must name the host literally; a loopback address needs `localhost` or the \
             address itself; any other address needs the address itself [{code}]",
        code = codes::POLICY_REMOTE
    )]
    Address {
        /// The host name in the URL.
        host: String,
        /// The address it resolved to.
        address: IpAddr,
        /// The rule that covers the host.
        rule: String,
    },
    /// The maximum number of hosted servers has been reached.
    #[error(
        "the limit of {limit} hosted servers is reached (`max_servers` in the policy file); remove one first [{code}]",
        code = codes::POLICY_LIMIT
    )]
    TooManyServers {
        /// The value of `max_servers`.
        limit: usize,
    },
}

/// Why a policy is invalid.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// The policy file could not be read.
    #[error("could not read policy file {} [{code}]", path.display(), code = codes::POLICY_FILE)]
    Read {
        /// The policy file.
        path: PathBuf,
        /// The cause.
        #[source]
        error: std::io::Error,
    },
    /// The file is not valid TOML or has unknown keys.
    #[error("invalid policy file [{code}]", code = codes::POLICY_FILE)]
    Toml(#[source] Box<toml::de::Error>),
    /// A table has a key twice, or the file has a table twice.
    #[error(
        "invalid policy file: `{key}` in line {line} is already defined above; remove one of the two [{code}]",
        code = codes::POLICY_FILE
    )]
    Duplicate {
        /// The key or the name of the table, as written.
        key: String,
        /// The line of the second definition, starting at 1.
        line: usize,
    },
    /// A command pattern is invalid.
    #[error(
        "invalid command pattern `{pattern}`{} [{code}]",
        in_line(*line), code = codes::POLICY_FILE
    )]
    Pattern {
        /// The pattern as written.
        pattern: String,
        /// The rule's line in the policy file; `None` if a flag defined it.
        line: Option<usize>,
        /// What is wrong with the pattern.
        #[source]
        error: PatternError,
    },
    /// A rule's path is relative, so its meaning would depend on where a child is started.
    #[error(
        "`{key}`{}: {path:?} is not an absolute path [{code}]",
        in_line(*line), code = codes::POLICY_FILE
    )]
    RelativePath {
        /// The key in the policy file.
        key: &'static str,
        /// The relative path.
        path: PathBuf,
        /// The rule's line in the policy file.
        line: Option<usize>,
    },
    /// A flag or rule would let configurations set every variable.
    #[error(
        "`{entry}` in {} allows every variable; list variable names or prefixes such as LOG_* instead [{code}]",
        env_setting(*line), code = codes::POLICY_FILE
    )]
    EveryVariable {
        /// The offending entry.
        entry: String,
        /// The rule's line in the policy file; `None` if a flag defined it.
        line: Option<usize>,
    },
    /// `expand` is at the top level, where it would apply to all rules.
    #[error(
        "`expand` is not allowed at the top of the policy file; put it into each [[command]] or [[remote]] whose \
         configurations may use these variables [{code}]",
        code = codes::POLICY_FILE
    )]
    ExpandForAll,
    /// `secrets` has an entry that is no name of a secret, such as a pattern.
    #[error(
        "`secrets`{}: {name:?} is not the name of a secret; expected letters, digits, `-`, `_` and `.`, beginning with a \
             letter or digit [{code}]",
        in_line(Some(*line)), code = codes::POLICY_FILE
    )]
    SecretName {
        /// The entry.
        name: String,
        /// The rule's line in the policy file.
        line: usize,
    },
    /// A `[[pin]]` is for a server whose pins are off, so it would be ignored.
    #[error(
        "the [[pin]] for {tool:?} of server {server:?} has no effect, because nothing is pinned there; set `mode` in \
         [pins], or `pins` in the [[server]] [{code}]",
        code = codes::POLICY_FILE
    )]
    PinOff {
        /// The server.
        server: String,
        /// The tool.
        tool: String,
    },
    /// A `[[pin]]` has something else than a digest.
    #[error("`sha256` of the [[pin]] for {tool:?} of server {server:?}: {error} [{code}]", code = codes::POLICY_FILE)]
    PinDigest {
        /// The server.
        server: String,
        /// The tool.
        tool: String,
        /// What is wrong with it.
        error: NoDigest,
    },
    /// A client certificate without its key, or a key without its certificate.
    #[error(
        "the [[remote]] in line {line} of the policy file must have both `client_certificate_file` and \
         `client_key_file`, or neither [{code}]",
        code = codes::POLICY_FILE
    )]
    HalfPair {
        /// The rule's line in the policy file.
        line: usize,
    },
    /// The `oauth` table of a remote is invalid.
    #[error(
        "invalid `oauth` of the [[remote]] in line {line} of the policy file [{code}]",
        code = codes::POLICY_FILE
    )]
    Oauth {
        /// The rule's line in the policy file.
        line: usize,
        /// What is wrong with the table.
        #[source]
        error: RemoteOauthError,
    },
    /// A remote rule is invalid.
    #[error("invalid remote rule{} [{code}]", in_line(*line), code = codes::POLICY_FILE)]
    Remote {
        /// The rule's line in the policy file; `None` if a flag defined it.
        line: Option<usize>,
        /// What is wrong with the rule.
        #[source]
        error: RemoteRuleError,
    },
}

fn in_line(line: Option<usize>) -> String {
    line.map_or_else(String::new, |line| format!(" in line {line} of the policy file"))
}

/// Names the setting that an entry for environment variables came from.
fn env_setting(line: Option<usize>) -> String {
    match line {
        Some(line) => format!("`env` of the [[command]] in line {line} of the policy file"),
        None => "--allow-env (MCP_ALLOWED_ENV)".to_owned(),
    }
}

impl Policy {
    /// Returns the rules that cover a command line, which is compared as written. Call this before
    /// looking at anything else in a request, so that a refused request reveals nothing about this
    /// machine.
    ///
    /// # Errors
    ///
    /// Returns an error if the command line contains a zero byte.
    pub fn rules_for(
        &self,
        argv: &[String],
    ) -> Result<impl Iterator<Item = &CommandRule>, Refusal> {
        if argv.iter().any(|element| element.contains('\0')) {
            return Err(Refusal::ZeroByte { place: "the command line".to_owned() });
        }
        Ok(self.commands.iter().filter(move |rule| rule.argv.matches(argv)))
    }

    /// Returns the rule that allows connections to a host, before its addresses are known.
    ///
    /// # Errors
    ///
    /// Returns an error if no rule covers the host.
    pub fn check_remote(&self, host: &str, port: u16) -> Result<&RemoteRule, Refusal> {
        let covering = self.remotes.iter().find(|rule| rule.covers(host, port));
        covering.ok_or_else(|| Refusal::remote(host, port))
    }

    /// Returns the rule that allows connections to a host at this address.
    ///
    /// # Errors
    ///
    /// Returns an error if no rule covers the host, or if none of those that do allows the address.
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
    /// The refusal of a command line that no rule covers.
    pub fn command(argv: &[String]) -> Self {
        Self::Command { argv: argv::join_words(argv) }
    }

    fn remote(host: &str, port: u16) -> Self {
        Self::Remote { target: format!("{host}:{port}") }
    }
}

impl CommandRule {
    /// Creates the rule for an `--allow-command` flag: configurations may set the variables that
    /// `--allow-env` lists, and working directories and `envFile`s must be in a directory given by
    /// `--allow-dir`.
    pub fn simple(argv: ArgvPattern, dirs: &[PathBuf], env: &[String]) -> Self {
        Self {
            argv,
            cwd: PathRule::new(dirs),
            env: EnvRule::new(env.iter().map(String::as_str)),
            env_files: PathRule::new(dirs),
            env_passthrough: Vec::new(),
            expand: BTreeSet::new(),
            secrets: BTreeSet::new(),
            confinement: Confinement::default(),
            line: None,
        }
    }

    /// Checks whether a command line that this rule covers may be started as requested.
    ///
    /// # Errors
    ///
    /// Returns an error that names the first thing that is not allowed.
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
    /// Creates a rule from paths. They should be canonical, like the paths they are compared with.
    pub fn new<P: Into<PathBuf>>(paths: impl IntoIterator<Item = P>) -> Self {
        Self { paths: paths.into_iter().map(Into::into).collect() }
    }

    /// Replaces each path by what `resolve` returns. A path that cannot be resolved stays as it is.
    pub fn resolve(&mut self, resolve: impl Fn(&Path) -> Option<PathBuf>) {
        for path in &mut self.paths {
            if let Some(resolved) = resolve(path) {
                *path = resolved;
            }
        }
    }

    /// Returns whether a canonical path is one of the rule's paths or lies below one.
    pub fn covers(&self, path: &Path) -> bool {
        self.paths.iter().any(|own| path.starts_with(own))
    }
}

/// Refuses names that the operating system would not accept or that could mislead a reader.
fn check_env_syntax(env: &BTreeMap<String, String>) -> Result<(), Refusal> {
    let is_invalid =
        |name: &&String| name.is_empty() || name.contains(|c: char| c == '=' || c.is_control());
    if let Some(name) = env.keys().find(is_invalid) {
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
