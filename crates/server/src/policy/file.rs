//! The policy file: TOML in which every key is known, or it is refused.

use serde::Deserialize;

use super::{
    CommandRule, Limits, PathRule, Policy, PolicyError, argv::ArgvPattern, env::EnvRule, remote::RemoteRule,
};

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PolicyFile {
    #[serde(default)]
    expand: Vec<String>,
    #[serde(default)]
    limits: LimitsFile,
    #[serde(default)]
    command: Vec<CommandFile>,
    #[serde(default)]
    remote: Vec<RemoteFile>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
struct LimitsFile {
    max_servers: Option<usize>,
    handshake_timeout_ms: Option<u64>,
    call_timeout_ms: Option<u64>,
    drain_timeout_ms: Option<u64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct CommandFile {
    argv: Vec<String>,
    #[serde(default)]
    cwd: Vec<String>,
    #[serde(default)]
    env: Vec<String>,
    #[serde(default)]
    env_files: Vec<String>,
    #[serde(default)]
    env_passthrough: Vec<String>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct RemoteFile {
    host: String,
    port: Option<u16>,
}

impl Policy {
    /// Reads a policy from the text of a policy file.
    ///
    /// # Errors
    ///
    /// Where the text is no TOML, has unknown keys, or holds a pattern that is none.
    pub fn from_toml(text: &str) -> Result<Self, PolicyError> {
        let file: PolicyFile = toml::from_str(text).map_err(|error| PolicyError::Toml(Box::new(error)))?;
        let commands = file.command.into_iter().map(command_rule).collect::<Result<_, _>>()?;
        let remotes = (file.remote.into_iter())
            .map(|remote| Ok(RemoteRule::parse(&remote.host)?.with_port(remote.port)))
            .collect::<Result<_, PolicyError>>()?;
        let defaults = Limits::default();
        let millis = std::time::Duration::from_millis;
        let limits = Limits {
            max_servers: file.limits.max_servers.unwrap_or(defaults.max_servers),
            handshake_timeout: file.limits.handshake_timeout_ms.map_or(defaults.handshake_timeout, millis),
            call_timeout: file.limits.call_timeout_ms.map_or(defaults.call_timeout, millis),
            drain_timeout: file.limits.drain_timeout_ms.map_or(defaults.drain_timeout, millis),
        };
        Ok(Self { commands, remotes, expand: file.expand.into_iter().collect(), limits })
    }
}

fn command_rule(file: CommandFile) -> Result<CommandRule, PolicyError> {
    let shown = super::argv::join_words(&file.argv);
    let argv = ArgvPattern::new(file.argv).map_err(|error| PolicyError::Pattern { pattern: shown, error })?;
    Ok(CommandRule {
        argv,
        cwd: PathRule::new(file.cwd),
        env: EnvRule::new(file.env.iter().map(String::as_str)),
        env_files: PathRule::new(file.env_files),
        env_passthrough: file.env_passthrough,
    })
}
