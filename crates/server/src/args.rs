//! The command line. Most flags can also be set by environment variables.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use fleet_kafka::compression::Compression;
use fleet_ops::{
    config::{parse_bytes, parse_duration, path_parser},
    tls::TlsArgs,
};

use crate::{
    access::{AccessMode, UnsignedJobs},
    audit::AuditMode,
    console::ConsoleMode,
};

/// The flags of the server.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The address to listen on; 0.0.0.0 for containers. By default, only this machine can connect.
    #[arg(help_heading = "Listening", long, env = "MCP_HOST", default_value = "127.0.0.1")]
    pub host: IpAddr,
    /// The port to listen on; 0 picks a free port.
    #[arg(help_heading = "Listening", long, env = "PORT", default_value_t = 8080)]
    pub port: u16,
    /// TLS of the port.
    #[command(flatten)]
    pub tls: TlsArgs,
    /// Write `host:port` to this file once the server listens.
    #[arg(
        help_heading = "Listening",
        long,
        env = "MCP_READY_FILE",
        value_name = "FILE",
        value_parser = path_parser(),
    )]
    pub ready_file: Option<PathBuf>,
    /// Speak MCP on standard input and output, without listening on a port.
    #[arg(help_heading = "Listening", long)]
    pub stdio: bool,
    /// Offer the tools, prompts and resources of the official conformance suite. Only for testing.
    #[arg(long, hide = true)]
    pub conformance: bool,
    /// Host names that requests may be addressed to, besides loopback: HOST or HOST:PORT; `*`
    /// allows any.
    #[arg(
        help_heading = "Listening",
        long,
        env = "MCP_ALLOWED_HOSTS",
        value_delimiter = ',',
        value_name = "HOST"
    )]
    pub allowed_hosts: Vec<String>,
    /// Origins from which browsers may send requests. None by default.
    #[arg(
        help_heading = "Listening",
        long,
        env = "MCP_ALLOWED_ORIGINS",
        value_delimiter = ',',
        value_name = "ORIGIN"
    )]
    pub allowed_origins: Vec<String>,
    /// The URL at which clients reach this server, without `/mcp`: `https://mcp.example.com`, or
    /// with the path prefix of a proxy. The server card and the AI catalog name it; by default,
    /// they name the host that a request was addressed to.
    #[arg(help_heading = "Listening", long, env = "MCP_PUBLIC_URL", value_name = "URL")]
    pub public_url: Option<String>,
    /// Give clients of older protocol revisions a session, which every replica can serve. With
    /// `false`, they get none, and cannot be asked for input during a call.
    #[arg(
        help_heading = "Listening",
        long,
        env = "MCP_LEGACY_SESSIONS",
        value_parser = clap::builder::BoolishValueParser::new(),
        num_args = 0..=1,
        default_value = "true",
        default_missing_value = "true",
        require_equals = true,
    )]
    pub legacy_sessions: bool,
    /// A directory that the `file_*` tools may read. Without one, these tools are not offered.
    #[arg(
        help_heading = "File tools",
        long = "root",
        env = "MCP_FILES_ROOTS",
        value_delimiter = ':',
        value_name = "DIR",
        value_parser = path_parser(),
    )]
    pub roots: Vec<PathBuf>,
    /// A directory below a root whose content the `file_*` tools neither list nor read.
    #[arg(
        help_heading = "File tools",
        long = "exclude",
        env = "MCP_FILES_EXCLUDE",
        value_delimiter = ':',
        value_name = "DIR",
        value_parser = path_parser(),
    )]
    pub excluded: Vec<PathBuf>,
    /// The maximum number of bytes that `file_read` returns at once.
    #[arg(
        help_heading = "File tools",
        long,
        env = "MCP_FILES_MAX_READ",
        default_value_t = 1024 * 1024,
        value_name = "BYTES",
    )]
    pub files_max_read: u64,
    /// Allow this command line to be started: a pattern over all of its arguments. Separate several
    /// with `;`.
    #[arg(
        help_heading = "Hosted servers",
        long = "allow-command",
        env = "MCP_ALLOWED_COMMANDS",
        value_name = "PATTERN"
    )]
    pub allow_commands: Vec<String>,
    /// A directory that may contain the `cwd` and `envFile` of commands allowed by
    /// `--allow-command`.
    #[arg(
        help_heading = "Hosted servers",
        long = "allow-dir",
        env = "MCP_ALLOWED_DIRS",
        value_delimiter = ':',
        value_name = "DIR",
        value_parser = path_parser(),
    )]
    pub allow_dirs: Vec<PathBuf>,
    /// Environment variables that may be set for commands allowed by `--allow-command`: names or
    /// patterns. None by default; variables that can change what code runs need their exact name.
    #[arg(
        help_heading = "Hosted servers",
        long = "allow-env",
        env = "MCP_ALLOWED_ENV",
        value_delimiter = ',',
        value_name = "NAME"
    )]
    pub allow_env: Vec<String>,
    /// Allow connections to this remote host: HOST, HOST:PORT or *.DOMAIN.
    #[arg(
        help_heading = "Hosted servers",
        long = "allow-remote",
        env = "MCP_ALLOWED_REMOTES",
        value_delimiter = ',',
        value_name = "HOST"
    )]
    pub allow_remotes: Vec<String>,
    /// A variable of the server's environment that `${VAR}` may refer to, in configurations that
    /// `--allow-command` or `--allow-remote` allows.
    #[arg(
        help_heading = "Hosted servers",
        long,
        env = "MCP_EXPAND_ENV",
        value_delimiter = ',',
        value_name = "NAME"
    )]
    pub expand_env: Vec<String>,
    /// A directory with one file per secret, such as a mounted Secret: `${secret:NAME}` in the
    /// configuration of a hosted server is the text of the file NAME, if its rule lists it in
    /// `secrets`. Without such a file, it is the variable MCP_SECRET_NAME.
    #[arg(
        help_heading = "Hosted servers",
        long,
        env = "MCP_SECRETS_DIR",
        value_name = "DIR",
        value_parser = path_parser(),
    )]
    pub secrets_dir: Option<PathBuf>,
    /// The console, which shows jobs, tools and servers to people below `/console`: `off`, `read` to
    /// change nothing, or `full`. By default `full` if there are jobs, and `off` if not.
    #[arg(help_heading = "Console", long, env = "MCP_CONSOLE", value_enum, value_name = "MODE")]
    pub console: Option<ConsoleMode>,
    /// A file with a secret of at least 32 characters that seals the console's sessions. Replicas
    /// need the same one. Without a file, sessions end with the process.
    #[arg(
        help_heading = "Console",
        long,
        env = "MCP_CONSOLE_KEY_FILE",
        value_name = "FILE",
        value_parser = path_parser(),
    )]
    pub console_key_file: Option<PathBuf>,
    /// Whose requests are served. `auto`: on loopback, everybody on this machine if nothing is
    /// configured; elsewhere, only callers with a key, a token or a client certificate. `required`:
    /// only callers with one of these, on loopback, too. `local`, on loopback only: callers with one
    /// of these as who they are, and everybody else on this machine without. `open`: everybody who
    /// can reach the port.
    #[arg(help_heading = "Access", long, env = "MCP_ACCESS", value_enum, default_value_t)]
    pub access: AccessMode,
    /// The file of API keys, which `mcp-fleet keys` writes. Changes apply within two
    /// seconds.
    #[arg(
        help_heading = "Access",
        long,
        env = "MCP_ACCESS_KEYS_FILE",
        value_name = "FILE",
        value_parser = path_parser(),
    )]
    pub access_keys: Option<PathBuf>,
    /// The file of the pepper that the keys were made with. By default, `FILE.pepper` beside the
    /// keys file FILE, if it exists.
    #[arg(
        help_heading = "Access",
        long,
        env = "MCP_ACCESS_PEPPER_FILE",
        value_name = "FILE",
        value_parser = path_parser(),
    )]
    pub access_pepper_file: Option<PathBuf>,
    /// The file of the Ed25519 keys (PEM) that sign jobs, so that a job runs with the rights of who
    /// has submitted it. The first private key signs; those of all keys are accepted.
    /// `mcp-fleet keys init` makes one.
    #[arg(
        help_heading = "Access",
        long = "signing-key",
        env = "MCP_SIGNING_KEY_FILE",
        value_name = "FILE",
        value_parser = path_parser(),
    )]
    pub signing_key: Option<PathBuf>,
    /// A file of public keys whose signatures are accepted, too.
    #[arg(
        help_heading = "Access",
        long = "signing-public-keys",
        env = "MCP_SIGNING_PUBLIC_KEYS_FILE",
        value_name = "FILE",
        value_parser = path_parser(),
    )]
    pub signing_public_keys: Option<PathBuf>,
    /// What jobs may do that nobody has signed, such as those that a producer has written to Kafka,
    /// where other jobs are signed. `rules`: what rules allow the principal `kafka:<topic>`.
    /// `trusted`: everything that no rule denies it.
    #[arg(help_heading = "Access", long, env = "MCP_UNSIGNED_JOBS", value_enum, default_value_t)]
    pub unsigned_jobs: UnsignedJobs,
    /// How long somebody may take to approve a job that a rule with `effect = "approve"` covers.
    /// Then the job expires.
    #[arg(
        help_heading = "Access",
        long,
        env = "MCP_APPROVAL_TTL",
        default_value = "24h",
        value_parser = parse_duration,
        value_name = "DURATION",
    )]
    pub approval_ttl: Duration,
    /// Record what callers do and what is refused to them, in `<topic>.audit` if there are brokers
    /// and in the file of `--audit-file`. `auto`: if callers are told apart. `required`: always, and
    /// what can't be recorded is not done.
    #[arg(help_heading = "Access", long, env = "MCP_AUDIT", value_enum, default_value_t)]
    pub audit: AuditMode,
    /// A file to which audit records are appended, one JSON object per line. It may be renamed at
    /// any time, as by logrotate.
    #[arg(
        help_heading = "Access",
        long,
        env = "MCP_AUDIT_FILE",
        value_name = "FILE",
        value_parser = path_parser(),
    )]
    pub audit_file: Option<PathBuf>,
    /// A policy file (TOML): what may be hosted, issuers of access tokens, and the rules and limits
    /// of principals.
    #[arg(
        help_heading = "Hosted servers",
        long = "policy",
        env = "MCP_POLICY_FILE",
        value_name = "FILE",
        value_parser = path_parser(),
    )]
    pub policy_file: Option<PathBuf>,
    /// A file with an `mcpServers` object (JSON): servers that are hosted from the start, as far as
    /// the policy allows them. One that fails is tried again, and `server_list` shows it. They are
    /// not shared with other replicas.
    #[arg(
        help_heading = "Hosted servers",
        long,
        env = "MCP_SERVERS_FILE",
        value_name = "FILE",
        value_parser = path_parser(),
    )]
    pub servers: Option<PathBuf>,
    /// Host other MCP servers, and offer the `server_*` tools for that. With `false`, this server
    /// has only tools of its own.
    #[arg(
        help_heading = "Hosted servers",
        long,
        env = "MCP_HOSTING",
        value_parser = clap::builder::BoolishValueParser::new(),
        num_args = 0..=1,
        default_value = "true",
        default_missing_value = "true",
        require_equals = true,
    )]
    pub hosting: bool,
    /// Kafka brokers as comma-separated host:port, through which replicas share what they host and
    /// accept jobs. Without them, this process hosts servers only for itself and forgets them at
    /// exit.
    #[arg(help_heading = "Kafka", long, env = "KAFKA_BROKERS", value_name = "HOSTS")]
    pub kafka_brokers: Option<String>,
    /// The compression of written records: none, gzip, snappy, lz4 or zstd. All Kafka clients can
    /// read uncompressed and gzip records.
    #[arg(
        help_heading = "Kafka",
        long,
        env = "KAFKA_COMPRESSION",
        default_value_t,
        value_name = "CODEC"
    )]
    pub compression: Compression,
    /// The topic in which replicas share what they host: compacted, with one partition, created if
    /// missing.
    #[arg(
        help_heading = "Kafka",
        long,
        env = "MCP_REGISTRY_TOPIC",
        default_value = fleet_job::topics::DEFAULT_REGISTRY_TOPIC,
        value_name = "TOPIC",
    )]
    pub registry_topic: String,
    /// Environment variables, headers and URL parameters of hosted servers that are not secret, so
    /// that their values may be written to the registry topic. All others must be references such
    /// as `${VAR}`.
    #[arg(
        help_heading = "Kafka",
        long,
        env = "MCP_SHARE_PLAIN",
        value_delimiter = ',',
        value_name = "NAME"
    )]
    pub share_plain: Vec<String>,
    /// Accept jobs and report on them, if there are brokers.
    #[arg(
        help_heading = "Jobs",
        long,
        env = "MCP_JOBS",
        value_parser = clap::builder::BoolishValueParser::new(),
        num_args = 0..=1,
        default_value = "true",
        default_missing_value = "true",
        require_equals = true,
    )]
    pub jobs: bool,
    /// The jobs topic. Events are read from `<topic>.events`; cancel requests are written to
    /// `<topic>.control`, pauses to `<topic>.pauses`.
    #[arg(
        help_heading = "Jobs",
        long,
        env = "KAFKA_TOPIC",
        default_value = fleet_job::topics::DEFAULT_JOBS_TOPIC,
        value_name = "NAME",
    )]
    pub jobs_topic: String,
    /// The consumer group of the workers. Jobs that it has not reached yet are looked up in the
    /// jobs topic.
    #[arg(
        help_heading = "Jobs",
        long,
        env = "MCP_CONSUMER_GROUP",
        default_value = "mcp-workers",
        value_name = "NAME"
    )]
    pub consumer_group: String,
    /// The maximum size of a job. Use the same value as for the workers.
    #[arg(
        help_heading = "Jobs",
        long,
        env = "MCP_MAX_JOB_BYTES",
        default_value = "1MiB",
        value_parser = parse_bytes,
        value_name = "SIZE",
    )]
    pub max_job_bytes: u64,
    /// Where the ledger of jobs is kept: `memory`, `sqlite` (a file in `--data-dir`), or the URL of a
    /// PostgreSQL database that all replicas share (`postgres://user:password@host/name`, TLS by
    /// `sslmode` as for psql). By default, a file if there is a directory, and memory otherwise.
    #[arg(
        help_heading = "Jobs",
        long,
        env = "MCP_LEDGER",
        hide_env_values = true,
        value_name = "WHERE"
    )]
    pub ledger: Option<String>,
    /// A file with the value of `--ledger`, which goes before it. Read at the start.
    #[arg(
        help_heading = "Jobs",
        long,
        env = "MCP_LEDGER_FILE",
        value_name = "FILE",
        value_parser = path_parser(),
    )]
    pub ledger_file: Option<PathBuf>,
    /// A directory for the ledger's file, with which the ledger survives a restart.
    #[arg(
        help_heading = "Jobs",
        long,
        env = "MCP_DATA_DIR",
        value_name = "DIR",
        value_parser = path_parser(),
    )]
    pub data_dir: Option<PathBuf>,
    /// How long the ledger remembers a job that has ended.
    #[arg(
        help_heading = "Jobs",
        long,
        env = "MCP_LEDGER_MAX_AGE",
        default_value = "168h",
        value_parser = parse_duration,
        value_name = "DURATION",
    )]
    pub ledger_max_age: Duration,
    /// The maximum number of jobs in the ledger. Jobs that ended first are forgotten first.
    #[arg(
        help_heading = "Jobs",
        long,
        env = "MCP_LEDGER_MAX_JOBS",
        default_value_t = 1_000_000,
        value_name = "NUMBER"
    )]
    pub ledger_max_jobs: usize,
    /// The maximum size of the ledger's jobs, in memory, in the file or in the database.
    #[arg(
        help_heading = "Jobs",
        long,
        env = "MCP_LEDGER_MAX_BYTES",
        default_value = "1GiB",
        value_parser = parse_bytes,
        value_name = "SIZE",
    )]
    pub ledger_max_bytes: u64,
    /// A secret that is mixed into the digests by which topics identify submitters; the same for
    /// all replicas. Needed only if credentials are weak enough to be guessed from a digest.
    #[arg(
        help_heading = "Jobs",
        long,
        env = "MCP_OWNER_KEY",
        hide_env_values = true,
        value_name = "SECRET"
    )]
    pub owner_key: Option<String>,
    /// A file with that secret, in place of --owner-key, which goes before it. It is read at the
    /// start.
    #[arg(
        help_heading = "Jobs",
        long,
        env = "MCP_OWNER_KEY_FILE",
        value_name = "FILE",
        value_parser = path_parser(),
    )]
    pub owner_key_file: Option<PathBuf>,
    /// Tools whose calls take long: names or patterns. If the client supports tasks, their calls
    /// run as durable tasks.
    #[arg(
        help_heading = "Tasks",
        long = "task-tool",
        env = "MCP_TASK_TOOLS",
        value_delimiter = ',',
        value_name = "PATTERN"
    )]
    pub task_tools: Vec<String>,
    /// How long a task can be queried after its creation. The ledger must remember jobs for at
    /// least as long.
    #[arg(
        help_heading = "Tasks",
        long,
        env = "MCP_TASK_TTL",
        default_value = "24h",
        value_parser = parse_duration,
        value_name = "DURATION",
    )]
    pub task_ttl: Duration,
    /// How often clients are told to query a task.
    #[arg(
        help_heading = "Tasks",
        long,
        env = "MCP_TASK_POLL_INTERVAL",
        default_value = "1s",
        value_parser = parse_duration,
        value_name = "DURATION",
    )]
    pub task_poll_interval: Duration,
    /// How long a hosted server may take to start and complete its handshake, in milliseconds.
    /// Overrides the policy file.
    #[arg(
        help_heading = "Hosted servers",
        long,
        env = "MCP_HANDSHAKE_TIMEOUT_MS",
        value_name = "MS"
    )]
    pub handshake_timeout_ms: Option<u64>,
    /// How long a result is remembered, so that a repeat of a call is answered without calling the
    /// tool again; 0 disables this.
    #[arg(
        help_heading = "Repeats",
        long,
        env = "MCP_REPEAT_WINDOW",
        default_value = "10m",
        value_parser = parse_duration,
        value_name = "DURATION",
    )]
    pub repeat_window: Duration,
    /// The maximum memory for remembered results. The oldest are dropped first; a result larger
    /// than an eighth of this is not kept.
    #[arg(
        help_heading = "Repeats",
        long,
        env = "MCP_REPEAT_MAX_BYTES",
        default_value = "64MiB",
        value_parser = parse_bytes,
        value_name = "SIZE",
    )]
    pub repeat_max_bytes: u64,
    /// How long open requests may take to finish after SIGTERM, in milliseconds.
    #[arg(
        help_heading = "Listening",
        long,
        env = "MCP_DRAIN_TIMEOUT_MS",
        default_value_t = 10_000,
        value_name = "MS"
    )]
    pub drain_timeout_ms: u64,
}

impl Args {
    /// Returns the drain timeout.
    pub fn drain_timeout(&self) -> Duration {
        Duration::from_millis(self.drain_timeout_ms)
    }
}

/// Returns the entries of a list that are not blank, trimmed. An empty variable is an empty list.
pub(crate) fn non_empty(list: &[String]) -> impl Iterator<Item = &str> {
    list.iter().map(|text| text.trim()).filter(|text| !text.is_empty())
}
