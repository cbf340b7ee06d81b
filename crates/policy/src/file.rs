//! The policy file: TOML in which unknown keys are errors.

use std::{
    collections::{BTreeMap, BTreeSet},
    num::{NonZeroU64, NonZeroUsize},
    path::PathBuf,
    time::Duration,
};

use fleet_job::{glob::Glob, mcp_servers::expand::is_secret_name};
use fleet_pins::{Digest, PinMode};
use serde::{Deserialize, de::IgnoredAny};
use toml::Spanned;

use super::{
    CommandRule, PathRule, Policy, PolicyError,
    argv::ArgvPattern,
    confinement::Confinement,
    env::{EnvRule, every_variable},
    limits::{Limits, ProcessLimits, ServerLimits, ServerRule, ServerSettings, ToolRule},
    oauth::{RemoteOauthError, RemoteOauthFile},
    pins::PinPolicy,
    remote::{RemoteRule, RemoteTls},
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PolicyFile {
    /// Recognised only so that the error can say where this key belongs.
    expand: Option<Vec<String>>,
    #[serde(default)]
    limits: LimitsFile,
    #[serde(default)]
    command: Vec<CommandFile>,
    #[serde(default)]
    remote: Vec<RemoteFile>,
    #[serde(default)]
    server: Vec<ServerFile>,
    #[serde(default)]
    pins: PinsFile,
    #[serde(default)]
    pin: Vec<PinFile>,
    // The tables about access, which `fleet-access` reads.
    #[serde(rename = "access")]
    _access: Option<IgnoredAny>,
    #[serde(rename = "audit")]
    _audit: Option<IgnoredAny>,
    #[serde(rename = "principal")]
    _principal: Option<IgnoredAny>,
    #[serde(rename = "rule")]
    _rule: Option<IgnoredAny>,
    #[serde(rename = "limit")]
    _limit: Option<IgnoredAny>,
    #[serde(rename = "issuer")]
    _issuer: Option<IgnoredAny>,
    #[serde(rename = "certificate")]
    _certificate: Option<IgnoredAny>,
    #[serde(rename = "view")]
    _view: Option<IgnoredAny>,
}

/// Declares a table that may hold every per-server setting plus the given fields. serde cannot both
/// flatten tables and refuse unknown keys, so the macro repeats the fields.
macro_rules! server_table {
    ($(#[$attribute:meta])* struct $name:ident { $($(#[$own:meta])* $field:ident: $type:ty,)* }) => {
        $(#[$attribute])*
        #[derive(Deserialize)]
        #[serde(deny_unknown_fields)]
        struct $name {
            $($(#[$own])* $field: $type,)*
            call_timeout_ms: Option<NonZeroU64>,
            max_concurrency: Option<NonZeroUsize>,
            max_queued: Option<usize>,
            queue_timeout_ms: Option<u64>,
            breaker_failures: Option<u32>,
            breaker_wait_ms: Option<NonZeroU64>,
            breaker_max_wait_ms: Option<NonZeroU64>,
            idle_timeout_ms: Option<u64>,
            max_memory_mb: Option<NonZeroU64>,
            max_cpu_seconds: Option<NonZeroU64>,
            max_open_files: Option<NonZeroU64>,
        }

        impl $name {
            fn server_settings(&self) -> ServerSettings {
                let millis = Duration::from_millis;
                ServerSettings {
                    call_timeout: self.call_timeout_ms.map(above_zero),
                    max_concurrency: self.max_concurrency,
                    max_queued: self.max_queued,
                    queue_timeout: self.queue_timeout_ms.map(millis),
                    breaker_failures: self.breaker_failures,
                    breaker_wait: self.breaker_wait_ms.map(above_zero),
                    breaker_max_wait: self.breaker_max_wait_ms.map(above_zero),
                    idle_timeout: self.idle_timeout_ms.map(millis),
                    process: ProcessLimits {
                        memory_mb: self.max_memory_mb.map(NonZeroU64::get),
                        cpu_seconds: self.max_cpu_seconds.map(NonZeroU64::get),
                        open_files: self.max_open_files.map(NonZeroU64::get),
                    },
                }
            }
        }
    };
}

server_table! {
    #[derive(Default)]
    struct LimitsFile {
        max_servers: Option<usize>,
        handshake_timeout_ms: Option<u64>,
        drain_timeout_ms: Option<u64>,
    }
}

server_table! {
    struct ServerFile {
        name: String,
        /// What to do with its tools when they change.
        pins: Option<PinMode>,
        /// For `fleet-access`.
        #[serde(rename = "trust_annotations")]
        _trust_annotations: Option<bool>,
        #[serde(default)]
        tool: Vec<ToolFile>,
    }
}

/// The `[pins]` table.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct PinsFile {
    #[serde(default)]
    mode: PinMode,
}

/// A `[[pin]]`: a definition of a tool that is accepted.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PinFile {
    server: String,
    tool: String,
    sha256: String,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ToolFile {
    name: String,
    call_timeout_ms: Option<NonZeroU64>,
    max_concurrency: Option<NonZeroUsize>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CommandFile {
    argv: Spanned<Vec<String>>,
    #[serde(default)]
    cwd: Vec<String>,
    #[serde(default)]
    env: Vec<String>,
    #[serde(default)]
    env_files: Vec<String>,
    #[serde(default)]
    env_passthrough: Vec<String>,
    #[serde(default)]
    expand: BTreeSet<String>,
    #[serde(default)]
    secrets: BTreeSet<String>,
    read_files: Option<Vec<PathBuf>>,
    write_files: Option<Vec<PathBuf>>,
    connect_ports: Option<Vec<u16>>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RemoteFile {
    host: Spanned<String>,
    port: Option<u16>,
    #[serde(default)]
    expand: BTreeSet<String>,
    #[serde(default)]
    secrets: BTreeSet<String>,
    ca_file: Option<PathBuf>,
    client_certificate_file: Option<PathBuf>,
    client_key_file: Option<PathBuf>,
    oauth: Option<RemoteOauthFile>,
}

impl Policy {
    /// Parses a policy from the text of a policy file.
    ///
    /// # Errors
    ///
    /// Returns an error if the text is not valid TOML, has unknown keys, or contains an invalid
    /// pattern.
    pub fn from_toml(text: &str) -> Result<Self, PolicyError> {
        let file: PolicyFile = toml::from_str(text).map_err(|error| toml_error(text, error))?;
        if file.expand.is_some() {
            return Err(PolicyError::ExpandForAll);
        }

        let line = |start: usize| line_of(text, start);

        let commands = (file.command.into_iter())
            .map(|command| command_rule(line(command.argv.span().start), command))
            .collect::<Result<_, _>>()?;

        let remotes = (file.remote.into_iter())
            .map(|remote| remote_rule(line(remote.host.span().start), remote))
            .collect::<Result<_, _>>()?;

        let defaults = Limits::default();
        let millis = Duration::from_millis;
        let limits = Limits {
            max_servers: file.limits.max_servers.unwrap_or(defaults.max_servers),
            handshake_timeout: file
                .limits
                .handshake_timeout_ms
                .map_or(defaults.handshake_timeout, millis),
            drain_timeout: file.limits.drain_timeout_ms.map_or(defaults.drain_timeout, millis),
            defaults: file.limits.server_settings().over(ServerLimits::default()),
            servers: file.server.iter().map(server_rule).collect(),
        };

        let pins = pin_policy(file.pins, file.pin, &file.server)?;
        Ok(Self { commands, remotes, limits, pins })
    }
}

/// The number of the line with the byte at `offset`, starting at 1.
fn line_of(text: &str, offset: usize) -> usize {
    1 + text.bytes().take(offset).filter(|byte| *byte == b'\n').count()
}

/// Names what is defined twice. The parser's own message only points at it.
fn toml_error(text: &str, error: toml::de::Error) -> PolicyError {
    let key = error.span().filter(|_| error.message() == "duplicate key");

    match key.and_then(|span| Some((span.start, text.get(span)?))) {
        Some((start, key)) => {
            PolicyError::Duplicate { key: key.to_owned(), line: line_of(text, start) }
        }
        None => PolicyError::Toml(Box::new(error)),
    }
}

fn command_rule(line: usize, file: CommandFile) -> Result<CommandRule, PolicyError> {
    let words = file.argv.into_inner();
    let pattern = super::argv::join_words(&words);
    let argv = ArgvPattern::new(words).map_err(|error| PolicyError::Pattern {
        pattern,
        line: Some(line),
        error,
    })?;

    let confinement = Confinement {
        read_files: file.read_files,
        write_files: file.write_files,
        connect_ports: file.connect_ports,
    };

    if let Some((key, path)) = confinement.relative_path() {
        return Err(PolicyError::RelativePath { key, path: path.to_owned(), line: Some(line) });
    }
    if let Some(entry) = every_variable(&file.env) {
        return Err(PolicyError::EveryVariable { entry: entry.to_owned(), line: Some(line) });
    }

    check_secret_names(&file.secrets, line)?;

    Ok(CommandRule {
        argv,
        cwd: PathRule::new(file.cwd),
        env: EnvRule::new(file.env.iter().map(String::as_str)),
        env_files: PathRule::new(file.env_files),
        env_passthrough: file.env_passthrough,
        expand: file.expand,
        secrets: file.secrets,
        confinement,
        line: Some(line),
    })
}

fn remote_rule(line: usize, file: RemoteFile) -> Result<RemoteRule, PolicyError> {
    let rule = RemoteRule::parse(file.host.get_ref())
        .map_err(|error| PolicyError::Remote { line: Some(line), error })?;

    let paths = [
        ("ca_file", &file.ca_file),
        ("client_certificate_file", &file.client_certificate_file),
        ("client_key_file", &file.client_key_file),
    ];
    for (key, path) in paths {
        if let Some(path) = path.as_ref().filter(|path| path.is_relative()) {
            return Err(PolicyError::RelativePath { key, path: path.clone(), line: Some(line) });
        }
    }

    let pair = match (file.client_certificate_file, file.client_key_file) {
        (Some(certificate), Some(key)) => Some((certificate, key)),
        (None, None) => None,
        _ => return Err(PolicyError::HalfPair { line }),
    };
    check_secret_names(&file.secrets, line)?;
    let oauth = file.oauth.map(RemoteOauthFile::read).transpose();
    let oauth = oauth.map_err(|error| PolicyError::Oauth { line, error })?;

    let tls = RemoteTls { authorities: file.ca_file, pair };
    let rule = rule.with_port(file.port).expanding(file.expand).with_secrets(file.secrets);
    if oauth.is_some() && !rule.is_of_one_origin() {
        return Err(PolicyError::Oauth { line, error: RemoteOauthError::ManyOrigins });
    }
    Ok(rule.with_tls(tls).with_oauth(oauth).at_line(line))
}

fn check_secret_names(names: &BTreeSet<String>, line: usize) -> Result<(), PolicyError> {
    match names.iter().find(|name| !is_secret_name(name)) {
        Some(name) => Err(PolicyError::SecretName { name: name.clone(), line }),
        None => Ok(()),
    }
}

fn pin_policy(
    pins: PinsFile,
    named: Vec<PinFile>,
    servers: &[ServerFile],
) -> Result<PinPolicy, PolicyError> {
    let mut digests: BTreeMap<_, Vec<Digest>> = BTreeMap::new();
    for PinFile { server, tool, sha256 } in named {
        let digest = sha256.parse().map_err(|error| PolicyError::PinDigest {
            server: server.clone(),
            tool: tool.clone(),
            error,
        })?;
        digests.entry((server, tool)).or_default().push(digest);
    }

    let servers = servers.iter().filter_map(|file| Some((Glob::new(&file.name), file.pins?)));
    let policy = PinPolicy { mode: pins.mode, servers: servers.collect(), digests };
    match policy.without_effect() {
        Some((server, tool)) => {
            Err(PolicyError::PinOff { server: server.to_owned(), tool: tool.to_owned() })
        }
        None => Ok(policy),
    }
}

fn server_rule(file: &ServerFile) -> ServerRule {
    let tool = |tool: &ToolFile| ToolRule {
        name: Glob::new(&tool.name),
        call_timeout: tool.call_timeout_ms.map(above_zero),
        max_concurrency: tool.max_concurrency,
    };

    ServerRule {
        name: Glob::new(&file.name),
        settings: file.server_settings(),
        tools: file.tool.iter().map(tool).collect(),
    }
}

fn above_zero(millis: NonZeroU64) -> Duration {
    Duration::from_millis(millis.get())
}
