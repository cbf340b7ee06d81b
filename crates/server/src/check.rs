//! `policy check`: shows what the server would do with a configuration, or with a principal that
//! wants to do something, without doing it.
//!
//! It calls the very functions that decide when a server is to be started or a request is to be
//! served, so its answer cannot differ from what happens.

use std::{
    io::{self, Read, Write},
    path::{Path, PathBuf},
    process::ExitCode,
};

use fleet_hosting::{
    launch::{self, LaunchSpec, RuleRef},
    secret_store::SecretStore,
};
use fleet_job::{
    mcp_servers::{ConfigError, McpServers, ServerEntry, UnusableEntry, text},
    tool_name,
};
use fleet_ops::{
    config::{named_path, path_parser},
    errors::chain,
};
use fleet_policy::{
    Policy,
    limits::{Limits, ServerLimits},
};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use crate::{access, error::ServerError, policy_source::PolicySource};

mod decision;

pub use decision::DecisionArgs;
use decision::DecisionReport;

/// Shown below `--help`.
pub const EXAMPLES: &str = "Examples:
  Check that a policy file is valid:
    mcp-server policy check policy.toml

  Show what would happen to the servers of an editor's configuration:
    mcp-server policy check policy.toml ~/.cursor/mcp.json

  In a script, from standard input:
    mcp-server policy check policy.toml - --json < mcp.json

  Show whether an agent of tenant acme may call a tool, and which rule decides:
    mcp-server policy check policy.toml --role agent --tenant acme --call db__query

Programs, files, ${VAR} and host names are looked up from this process, so run it where the server
runs.

Exit codes:
  0  everything is allowed
  1  something is refused, needs approval or could not be started
  2  a file cannot be read";

/// Commands about policies.
#[derive(Debug, Clone, clap::Subcommand)]
pub enum PolicyCommand {
    /// Show what would happen to each server of a configuration, or to a principal's call, and why
    ///
    /// Starts nothing and connects to nothing.
    #[command(after_help = EXAMPLES)]
    Check(Box<CheckArgs>),
}

/// The flags of `policy check`.
#[derive(Debug, Clone, clap::Args)]
pub struct CheckArgs {
    /// The policy file
    #[arg(value_name = "POLICY")]
    pub policy: PathBuf,
    /// A JSON file with an `mcpServers` or `servers` object, comments allowed; `-` for standard input
    #[arg(value_name = "CONFIG")]
    pub config: Option<PathBuf>,
    /// The directory of the server's secrets
    #[arg(long, env = "MCP_SECRETS_DIR", value_name = "DIR", value_parser = path_parser())]
    pub secrets_dir: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    pub json: bool,
    /// A principal, and what it wants to do.
    #[command(flatten)]
    pub decision: DecisionArgs,
}

/// Why the check could not be carried out.
#[derive(Debug, thiserror::Error)]
enum CheckError {
    #[error(transparent)]
    Policy(#[from] ServerError),
    #[error("could not read configuration {}", path.display())]
    Read { path: PathBuf, source: io::Error },
    #[error("configuration {} is not valid JSON", path.display())]
    Text { path: PathBuf, source: text::TextError },
    #[error("configuration {} is invalid", path.display())]
    Config { path: PathBuf, source: ConfigError },
    #[error("could not write to standard output")]
    Write(#[source] io::Error),
}

/// The result for a configuration, a decision, or both.
#[derive(Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
struct Report {
    #[serde(skip_serializing_if = "Option::is_none")]
    decision: Option<DecisionReport>,
    #[serde(flatten)]
    servers: Option<ServersReport>,
}

/// The result for a configuration.
#[derive(Debug, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ServersReport {
    /// One entry per server.
    servers: Vec<ServerReport>,
    /// Oddities that don't prevent hosting.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

/// The result for one server.
#[derive(Debug, PartialEq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(crate) struct ServerReport {
    /// The server's name.
    name: String,
    /// What would happen.
    verdict: Verdict,
    /// Why the server is not allowed, and what would allow it.
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
    /// The rule of the policy that allows it.
    #[serde(skip_serializing_if = "Option::is_none")]
    rule: Option<RuleRef>,
    /// The program that would be started.
    #[serde(skip_serializing_if = "Option::is_none")]
    program: Option<PathBuf>,
    /// The names of the program's environment variables. Their values may be secret, so they are
    /// left out.
    #[serde(skip_serializing_if = "Option::is_none")]
    environment: Option<Vec<String>>,
    /// The addresses that the server would connect to.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    addresses: Vec<String>,
    /// The authorization server from which requests would get access tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    token_server: Option<String>,
    /// The limits that would apply.
    limits: LimitsReport,
    /// Oddities that don't prevent hosting.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

/// What would happen to one server, in a word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "ServerVerdict")]
pub(crate) enum Verdict {
    /// It would be started or connected to.
    Allowed,
    /// The policy refuses it.
    Refused,
    /// It would fail for a reason other than the policy.
    Fails,
    /// The configuration disables it, so it would not be started.
    Disabled,
}

/// The limits that would apply, under their names in a policy file.
#[derive(Debug, PartialEq, Serialize, JsonSchema)]
pub(crate) struct LimitsReport {
    handshake_timeout_ms: u128,
    call_timeout_ms: u128,
    max_concurrency: Option<usize>,
    idle_timeout_ms: Option<u128>,
    max_memory_mb: Option<u64>,
    max_cpu_seconds: Option<u64>,
    max_open_files: Option<u64>,
}

/// Runs a command about policies. If it can't be carried out, prints the reason on standard error.
pub async fn run(command: PolicyCommand) -> ExitCode {
    let PolicyCommand::Check(args) = command;
    match check_config(&args).await {
        Ok(code) => code,
        Err(error) => {
            // If standard error is closed, the exit status still tells.
            _ = writeln!(io::stderr(), "error: {}", chain(&error));
            ExitCode::from(2)
        }
    }
}

async fn check_config(args: &CheckArgs) -> Result<ExitCode, CheckError> {
    let policy = PolicySource::from_file(&args.policy).load()?;
    let rights = access::read_rights(&args.policy)?;
    let decision = &args.decision;
    let report = Report {
        decision: decision.is_given().then(|| decision.explain(&rights.rules)),
        servers: match &args.config {
            Some(config) => {
                let secrets = SecretStore::local(named_path(&args.secrets_dir));
                Some(ServersReport::examine(&read_config(config)?, &policy, &secrets).await)
            }
            None => None,
        },
    };

    let mut out = io::stdout().lock();
    let written = if args.json {
        serde_json::to_writer_pretty(&mut out, &report)
            .map_err(io::Error::from)
            .and_then(|()| writeln!(out))
    } else {
        report.write(&mut out)
    };
    written.map_err(CheckError::Write)?;

    Ok(ExitCode::from(u8::from(!report.is_good())))
}

fn read_config(path: &Path) -> Result<McpServers, CheckError> {
    let path = path.to_owned();
    let bytes = if path.as_os_str() == "-" {
        let mut bytes = Vec::new();
        io::stdin().read_to_end(&mut bytes).map(|_| bytes)
    } else {
        std::fs::read(&path)
    };
    let bytes = bytes.map_err(|source| CheckError::Read { path: path.clone(), source })?;

    let value =
        text::parse(&bytes).map_err(|source| CheckError::Text { path: path.clone(), source })?;
    McpServers::from_value(&value).map_err(|source| CheckError::Config { path, source })
}

impl Report {
    /// Whether everything is allowed.
    fn is_good(&self) -> bool {
        let mut servers = self.servers.iter().flat_map(|report| &report.servers);
        self.decision.as_ref().is_none_or(DecisionReport::is_allowed)
            && servers.all(|server| matches!(server.verdict, Verdict::Allowed | Verdict::Disabled))
    }

    fn write(&self, out: &mut impl Write) -> io::Result<()> {
        if let Some(decision) = &self.decision {
            decision.write(out)?;
        }
        match (&self.servers, &self.decision) {
            (Some(servers), _) => servers.write(out),
            (None, Some(_)) => Ok(()),
            (None, None) => writeln!(out, "the policy is valid"),
        }
    }
}

impl ServersReport {
    /// Says what would happen to the servers of a configuration.
    pub(crate) async fn examine(
        config: &McpServers,
        policy: &Policy,
        secrets: &SecretStore,
    ) -> Self {
        let mut servers = Vec::new();
        for (name, entry) in &config.servers {
            servers.push(match entry {
                Ok(entry) => ServerReport::examine(name, entry, policy, secrets).await,
                Err(entry) => ServerReport::for_unusable(name, entry, policy),
            });
        }

        let mut warnings = config.warnings();
        let enabled = servers.iter().filter(|server| server.verdict != Verdict::Disabled);
        let (count, limit) = (enabled.count(), policy.limits.max_servers);
        if count > limit {
            warnings.push(format!(
                "{count} servers exceed the limit of {limit} hosted servers (`max_servers`)"
            ));
        }

        let unused = policy.pins.named().filter(|(name, _)| !config.servers.contains_key(*name));
        warnings.extend(unused.map(|(name, tool)| {
            format!("the [[pin]] for `{tool}` of `{name}` matches no server of this configuration")
        }));
        Self { servers, warnings }
    }

    fn write(&self, out: &mut impl Write) -> io::Result<()> {
        for server in &self.servers {
            server.write(out)?;
        }
        for warning in &self.warnings {
            writeln!(out, "warning: {warning}")?;
        }

        let allowed =
            self.servers.iter().filter(|server| server.verdict == Verdict::Allowed).count();
        let disabled =
            self.servers.iter().filter(|server| server.verdict == Verdict::Disabled).count();
        let off = if disabled > 0 { format!(", {disabled} disabled") } else { String::new() };
        writeln!(out, "{allowed} of {} allowed{off}", self.servers.len())
    }
}

impl ServerReport {
    fn new(name: &str, policy: &Policy) -> Self {
        Self {
            name: name.to_owned(),
            verdict: Verdict::Allowed,
            reason: None,
            rule: None,
            program: None,
            environment: None,
            addresses: Vec::new(),
            token_server: None,
            limits: LimitsReport::new(&policy.limits, &policy.limits.of_server(name)),
            warnings: Vec::new(),
        }
    }

    fn for_unusable(name: &str, entry: &UnusableEntry, policy: &Policy) -> Self {
        let verdict = match entry.error {
            ConfigError::Disabled { .. } => Verdict::Disabled,
            _ => Verdict::Fails,
        };
        Self::new(name, policy).with_verdict(verdict, entry.error.to_string())
    }

    async fn examine(
        name: &str,
        entry: &ServerEntry,
        policy: &Policy,
        secrets: &SecretStore,
    ) -> Self {
        let mut report = Self::new(name, policy);
        if let Err(error) = tool_name::check_server(name) {
            return report.with_verdict(Verdict::Fails, error.to_string());
        }

        match launch::resolve_with_rule(entry, policy, secrets).await {
            Ok((LaunchSpec::Child(spec), rule)) => {
                report.rule = Some(rule);
                report.program = Some(spec.program);
                report.environment = Some(spec.env.into_keys().collect());
                report
            }
            Ok((
                LaunchSpec::Url(spec) | LaunchSpec::Remote(spec) | LaunchSpec::Sse(spec),
                rule,
            )) => {
                report.rule = Some(rule);
                if let Some(oauth) = spec.oauth() {
                    report.token_server = Some(oauth.server.url().to_string());
                    if let Err(error) = secrets.read(oauth.proof.secret()).await {
                        report.warnings.push(format!("no access token: {}", chain(&error)));
                    }
                }
                match fleet_egress::lookup(&spec.url).await {
                    Ok(found) => {
                        let allowed = fleet_egress::allowed(&spec.url, policy, &found);
                        if let Err(refusal) = allowed {
                            return report.with_verdict(Verdict::Refused, refusal.to_string());
                        }
                        let addresses = found.iter().map(|address| address.ip().to_string());
                        report.addresses = addresses.collect();
                    }
                    Err(error) => {
                        report
                            .warnings
                            .push(format!("could not look up its address from here: {error}"));
                    }
                }
                report
            }
            Err(error) => {
                let verdict = if error.is_refusal() { Verdict::Refused } else { Verdict::Fails };
                report.with_verdict(verdict, chain(&error))
            }
        }
    }

    fn with_verdict(self, verdict: Verdict, reason: String) -> Self {
        Self { verdict, reason: Some(reason), ..self }
    }

    fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let verdict = match self.verdict {
            Verdict::Allowed => "allowed",
            Verdict::Refused => "refused",
            Verdict::Fails => "would fail",
            Verdict::Disabled => "disabled",
        };

        writeln!(out, "{}: {verdict}", self.name)?;

        if let Some(reason) = &self.reason {
            writeln!(out, "  why: {reason}")?;
        }
        if let Some(rule) = &self.rule {
            writeln!(out, "  rule: {rule}")?;
        }
        if let Some(program) = &self.program {
            writeln!(out, "  program: {}", program.display())?;
        }
        if let Some(names) = &self.environment {
            writeln!(out, "  environment: {}", names.join(" "))?;
        }
        if !self.addresses.is_empty() {
            writeln!(out, "  addresses: {}", self.addresses.join(" "))?;
        }
        if let Some(url) = &self.token_server {
            writeln!(out, "  access tokens: {url}")?;
        }
        if self.verdict == Verdict::Allowed {
            writeln!(out, "  limits: {}", self.limits.list_set())?;
        }
        for warning in &self.warnings {
            writeln!(out, "  warning: {warning}")?;
        }
        Ok(())
    }
}

impl LimitsReport {
    fn new(all: &Limits, own: &ServerLimits) -> Self {
        Self {
            handshake_timeout_ms: all.handshake_timeout.as_millis(),
            call_timeout_ms: own.call_timeout.as_millis(),
            max_concurrency: own.max_concurrency.map(std::num::NonZeroUsize::get),
            idle_timeout_ms: own.idle_timeout.map(|timeout| timeout.as_millis()),
            max_memory_mb: own.process.memory_mb,
            max_cpu_seconds: own.process.cpu_seconds,
            max_open_files: own.process.open_files,
        }
    }

    /// The limits that are set, on one line.
    fn list_set(&self) -> String {
        let Ok(Value::Object(limits)) = serde_json::to_value(self) else { return String::new() };
        let set = limits.iter().filter(|(_, limit)| !limit.is_null());
        set.map(|(name, limit)| format!("{name}={limit}")).collect::<Vec<_>>().join(" ")
    }
}
