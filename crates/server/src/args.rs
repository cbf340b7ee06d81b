//! The command line. Every flag is an environment variable too.

use std::{net::IpAddr, path::PathBuf, time::Duration};

use fleet_kafka::compression::Compression;
use fleet_ops::config::{parse_bytes, parse_duration};

/// Flags of the server.
#[derive(Debug, Clone, clap::Args)]
pub struct Args {
    /// The address to listen on. Only this machine by default; 0.0.0.0 for containers.
    #[arg(long, env = "MCP_HOST", default_value = "127.0.0.1")]
    pub host: IpAddr,
    /// The port to listen on; 0 for any free one.
    #[arg(long, env = "PORT", default_value_t = 8080)]
    pub port: u16,
    /// A file to write `host:port` to once the server listens.
    #[arg(long, env = "MCP_READY_FILE", value_name = "FILE")]
    pub ready_file: Option<PathBuf>,
    /// Speak MCP on standard input and output, and listen on no port.
    #[arg(long)]
    pub stdio: bool,
    /// Offer the tools, prompts and resources that the official conformance suite asks for. Not for
    /// anything else.
    #[arg(long, hide = true)]
    pub conformance: bool,
    /// Host names that requests may be for, beside loopback ones: HOST or HOST:PORT; `*` for any.
    #[arg(long, env = "MCP_ALLOWED_HOSTS", value_delimiter = ',', value_name = "HOST")]
    pub allowed_hosts: Vec<String>,
    /// Origins that browsers may send requests from. None by default.
    #[arg(long, env = "MCP_ALLOWED_ORIGINS", value_delimiter = ',', value_name = "ORIGIN")]
    pub allowed_origins: Vec<String>,
    /// Where clients reach this server, without `/mcp`: `https://mcp.example.com`, or with the path
    /// that a proxy puts before it. Stands in the server card and the AI catalog; without it, they
    /// name the host that they were asked for at.
    #[arg(long, env = "MCP_PUBLIC_URL", value_name = "URL")]
    pub public_url: Option<String>,
    /// Give clients of older protocol revisions a session, which every replica can serve; `false`
    /// serves them without one, and they can't be asked for anything during a call.
    #[arg(long, env = "MCP_LEGACY_SESSIONS", value_parser = clap::builder::BoolishValueParser::new(),
          num_args = 0..=1, default_value = "true", default_missing_value = "true", require_equals = true)]
    pub legacy_sessions: bool,
    /// A directory that the `file_*` tools may read. Without one, they are not offered.
    #[arg(long = "root", env = "MCP_FILES_ROOTS", value_delimiter = ':', value_name = "DIR")]
    pub roots: Vec<PathBuf>,
    /// How many bytes `file_read` reads at once at most.
    #[arg(long, env = "MCP_FILES_MAX_READ", default_value_t = 1024 * 1024, value_name = "BYTES")]
    pub files_max_read: u64,
    /// A command line that may be started, as a pattern over all of its arguments; several are
    /// separated by `;`.
    #[arg(long = "allow-command", env = "MCP_ALLOWED_COMMANDS", value_name = "PATTERN")]
    pub allow_commands: Vec<String>,
    /// A directory in which `cwd` and `envFile` of what `--allow-command` allows may be.
    #[arg(long = "allow-dir", env = "MCP_ALLOWED_DIRS", value_delimiter = ':', value_name = "DIR")]
    pub allow_dirs: Vec<PathBuf>,
    /// Environment variables that may be set for what `--allow-command` allows: names or globs.
    /// None by default; those that can change what code runs need their exact name.
    #[arg(long = "allow-env", env = "MCP_ALLOWED_ENV", value_delimiter = ',', value_name = "NAME")]
    pub allow_env: Vec<String>,
    /// A remote host that may be connected to: HOST, HOST:PORT or *.DOMAIN.
    #[arg(
        long = "allow-remote",
        env = "MCP_ALLOWED_REMOTES",
        value_delimiter = ',',
        value_name = "HOST"
    )]
    pub allow_remotes: Vec<String>,
    /// A variable of the server's environment that `${VAR}` may name in configurations of what
    /// `--allow-command` and `--allow-remote` allow.
    #[arg(long, env = "MCP_EXPAND_ENV", value_delimiter = ',', value_name = "NAME")]
    pub expand_env: Vec<String>,
    /// A policy file (TOML) that allows more.
    #[arg(long = "policy", env = "MCP_POLICY_FILE", value_name = "FILE")]
    pub policy_file: Option<PathBuf>,
    /// Brokers of a Kafka in which replicas share what they host, comma-separated host:port.
    /// Without them, this process hosts for itself and forgets it at its end.
    #[arg(long, env = "KAFKA_BROKERS", value_name = "HOSTS")]
    pub kafka_brokers: Option<String>,
    /// How what is written to Kafka is compressed: none, gzip, snappy, lz4 or zstd. Every Kafka
    /// client reads the first two.
    #[arg(long, env = "KAFKA_COMPRESSION", default_value_t, value_name = "CODEC")]
    pub compression: Compression,
    /// The topic for that: compacted, one partition, created where it is missing.
    #[arg(long, env = "MCP_REGISTRY_TOPIC", default_value = fleet_job::topics::DEFAULT_REGISTRY_TOPIC, value_name = "TOPIC")]
    pub registry_topic: String,
    /// Environment variables, headers and URL parameters of hosted servers that are no secrets, so
    /// that their values may be written to that topic. All others must be references such as
    /// `${VAR}`.
    #[arg(long, env = "MCP_SHARE_PLAIN", value_delimiter = ',', value_name = "NAME")]
    pub share_plain: Vec<String>,
    /// Take jobs and tell what has become of them, where there are brokers.
    #[arg(long, env = "MCP_JOBS", value_parser = clap::builder::BoolishValueParser::new(),
          num_args = 0..=1, default_value = "true", default_missing_value = "true", require_equals = true)]
    pub jobs: bool,
    /// The jobs topic. Events are read from `<topic>.events`; wishes to cancel go to
    /// `<topic>.control`.
    #[arg(long, env = "KAFKA_TOPIC", default_value = fleet_job::topics::DEFAULT_JOBS_TOPIC, value_name = "NAME")]
    pub jobs_topic: String,
    /// The consumer group of the workers: jobs that it has not come to are looked for in the jobs
    /// topic.
    #[arg(long, env = "MCP_CONSUMER_GROUP", default_value = "mcp-workers", value_name = "NAME")]
    pub consumer_group: String,
    /// The largest job that is taken; as for the workers.
    #[arg(long, env = "MCP_MAX_JOB_BYTES", default_value = "1MiB", value_parser = parse_bytes, value_name = "SIZE")]
    pub max_job_bytes: u64,
    /// A directory for the ledger of jobs, which then survives a restart. Without one it is kept in
    /// memory and read again from the topic.
    #[arg(long, env = "MCP_DATA_DIR", value_name = "DIR")]
    pub data_dir: Option<PathBuf>,
    /// For how long the ledger remembers a job that has ended.
    #[arg(long, env = "MCP_LEDGER_MAX_AGE", default_value = "168h", value_parser = parse_duration, value_name = "DURATION")]
    pub ledger_max_age: Duration,
    /// How many jobs the ledger remembers at most. Those that ended first go first.
    #[arg(long, env = "MCP_LEDGER_MAX_JOBS", default_value_t = 1_000_000, value_name = "NUMBER")]
    pub ledger_max_jobs: usize,
    /// How much room the ledger's jobs may take, in memory or in the file.
    #[arg(long, env = "MCP_LEDGER_MAX_BYTES", default_value = "1GiB", value_parser = parse_bytes, value_name = "SIZE")]
    pub ledger_max_bytes: u64,
    /// A secret that goes into the names by which submitters are known in topics, the same for all
    /// replicas. Needed only where credentials are so weak that they could be guessed from a
    /// digest.
    #[arg(long, env = "MCP_OWNER_KEY", hide_env_values = true, value_name = "SECRET")]
    pub owner_key: Option<String>,
    /// Tools whose calls take long: names or globs. Called by a client that knows tasks, they run
    /// as durable tasks.
    #[arg(
        long = "task-tool",
        env = "MCP_TASK_TOOLS",
        value_delimiter = ',',
        value_name = "PATTERN"
    )]
    pub task_tools: Vec<String>,
    /// For how long a task can be asked for after it was made. The ledger must remember it for as
    /// long.
    #[arg(long, env = "MCP_TASK_TTL", default_value = "24h", value_parser = parse_duration, value_name = "DURATION")]
    pub task_ttl: Duration,
    /// How often clients are told to ask for a task.
    #[arg(long, env = "MCP_TASK_POLL_INTERVAL", default_value = "1s", value_parser = parse_duration, value_name = "DURATION")]
    pub task_poll_interval: Duration,
    /// How long a hosted server may take for its start and handshake, in milliseconds. Overrides
    /// the policy file.
    #[arg(long, env = "MCP_HANDSHAKE_TIMEOUT_MS", value_name = "MS")]
    pub handshake_timeout_ms: Option<u64>,
    /// For how long a result is remembered, so that a repeat of a job's call is answered without
    /// calling the tool again; 0 for not at all.
    #[arg(long, env = "MCP_REPEAT_WINDOW", default_value = "10m", value_parser = parse_duration, value_name = "DURATION")]
    pub repeat_window: Duration,
    /// How much memory remembered results may take. The oldest go first; one above an eighth of
    /// this is not kept.
    #[arg(long, env = "MCP_REPEAT_MAX_BYTES", default_value = "64MiB", value_parser = parse_bytes, value_name = "SIZE")]
    pub repeat_max_bytes: u64,
    /// How long open requests may take to finish after SIGTERM, in milliseconds.
    #[arg(long, env = "MCP_DRAIN_TIMEOUT_MS", default_value_t = 10_000, value_name = "MS")]
    pub drain_timeout_ms: u64,
}

impl Args {
    /// The drain timeout as a duration.
    pub fn drain_timeout(&self) -> Duration {
        Duration::from_millis(self.drain_timeout_ms)
    }
}
