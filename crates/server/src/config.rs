//! The configuration of a server: built from flags and the policy file, and validated once.

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use fleet_hosting::registry::{RegistryConfig, sharing::Plain};
use fleet_job::{glob::Glob, mcp_servers::ServerEntry};
use fleet_jobs::{Owners, config::JobsConfig};
use fleet_kafka::compression::Compression;
use fleet_ledger::{Retention, StoreConfig};
use fleet_ops::{
    config::{named_path, read_secret_file, read_secret_text},
    http::guard::Origin,
    tls::TlsFiles,
};
use fleet_policy::Policy;
use url::Url;

use crate::{
    access::{AccessSource, PortSecurity},
    args::{Args, non_empty},
    audit::{AuditConfig, AuditTopic},
    console::{ConsoleConfig, ConsoleMode},
    error::ServerError,
    policy_source::PolicySource,
    static_servers,
    tools::files::Files,
};

/// Everything a server needs to know to start.
#[derive(Debug, Clone, PartialEq)]
pub struct ServerConfig {
    /// The address to listen on.
    pub listen: SocketAddr,
    /// The files of the port's TLS; none for plain HTTP.
    pub tls: Option<TlsFiles>,
    /// The file to which the server writes its address once it listens.
    pub ready_file: Option<PathBuf>,
    /// Whether to speak MCP on standard input and output instead of listening.
    pub stdio: bool,
    /// Whether to offer the fixtures of the conformance suite.
    pub conformance: bool,
    /// Host names that requests may use, in addition to loopback names; `*` for any.
    pub allowed_hosts: Vec<String>,
    /// Origins from which browsers may send requests.
    pub allowed_origins: Vec<Origin>,
    /// The URL at which clients reach this server. If there is none, the server card shows the host
    /// name of the request for it.
    pub public_url: Option<Url>,
    /// Whether clients of older protocol revisions get a session.
    pub legacy_sessions: bool,
    /// Directories that the `file_*` tools may read.
    pub roots: Vec<PathBuf>,
    /// Directories below them whose content is not there for callers.
    pub excluded: Vec<PathBuf>,
    /// The most bytes that one call of `file_read` returns.
    pub files_max_read: u64,
    /// The policy for hosted servers, as read at the start.
    pub policy: Policy,
    /// The flags and the file that the policy comes from. The file is watched for changes.
    pub policy_source: PolicySource,
    /// Whose requests are served, and the files that say so.
    pub access: AccessSource,
    /// Servers that are hosted from the start, by name.
    pub servers: Vec<(String, ServerEntry)>,
    /// A directory of secrets for hosted servers.
    pub secrets_dir: Option<PathBuf>,
    /// Whether other servers are hosted at all.
    pub hosting: bool,
    /// Whether callers' actions are recorded, and where.
    pub audit: AuditConfig,
    /// The registry through which replicas share what they host; none by default.
    pub registry: Option<RegistryConfig>,
    /// The jobs topic of the workers that call this server.
    pub jobs_topic: String,
    /// The jobs that this server accepts and follows; none by default.
    pub jobs: Option<JobsConfig>,
    /// The screens for people; none if there is no console.
    pub console: Option<ConsoleConfig>,
    /// The compression of records that the server writes to Kafka.
    pub compression: Compression,
    /// How long results of jobs' calls are remembered; zero to remember nothing.
    pub repeat_window: Duration,
    /// The most bytes that remembered results may take.
    pub repeat_max_bytes: u64,
    /// How long open requests may take to finish at shutdown.
    pub drain_timeout: Duration,
}

impl Default for ServerConfig {
    /// A server on port 8080 of this machine that offers only the `server_*` tools, whose policy
    /// allows nothing.
    fn default() -> Self {
        Self {
            listen: SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 8080),
            tls: None,
            ready_file: None,
            stdio: false,
            conformance: false,
            allowed_hosts: Vec::new(),
            allowed_origins: Vec::new(),
            public_url: None,
            legacy_sessions: true,
            roots: Vec::new(),
            excluded: Vec::new(),
            files_max_read: 1024 * 1024,
            policy: Policy::default(),
            policy_source: PolicySource::default(),
            access: AccessSource::default(),
            servers: Vec::new(),
            secrets_dir: None,
            hosting: true,
            audit: AuditConfig::default(),
            registry: None,
            jobs_topic: fleet_job::topics::DEFAULT_JOBS_TOPIC.to_owned(),
            jobs: None,
            console: None,
            compression: Compression::default(),
            repeat_window: Duration::from_secs(600),
            repeat_max_bytes: 64 * 1024 * 1024,
            drain_timeout: Duration::from_secs(10),
        }
    }
}

impl ServerConfig {
    /// Validates the flags and reads the policy file.
    ///
    /// # Errors
    ///
    /// Returns an error if a setting is invalid or the policy can't be read.
    pub fn from_args(args: &Args) -> Result<Self, ServerError> {
        let origins = non_empty(&args.allowed_origins).map(|text| {
            let text = text.trim_end_matches('/');
            Origin::parse(text).ok_or_else(|| ServerError::Origin(text.to_owned()))
        });
        let roots = non_empty_paths(&args.roots);
        let policy_source = policy_source(args);
        let public_url = parse_public_url(args)?;
        let tls = args.tls.files()?;
        let access = access_source(args, public_url.as_ref(), tls.as_ref());

        let jobs = jobs_config(args)?;
        if jobs.is_some() && access.signing_keys.is_none() && access.signing_public_keys.is_some() {
            return Err(ServerError::UnsignedSubmissions);
        }

        // Report unusable roots now rather than at the first call.
        let excluded = non_empty_paths(&args.excluded);
        Files::new(&roots, args.files_max_read)?.without(&excluded)?;

        Ok(Self {
            listen: SocketAddr::new(args.host, args.port),
            tls,
            ready_file: named_path(&args.ready_file),
            stdio: args.stdio,
            conformance: args.conformance,
            allowed_hosts: non_empty(&args.allowed_hosts).map(str::to_owned).collect(),
            allowed_origins: origins.collect::<Result<_, _>>()?,
            access,
            public_url,
            legacy_sessions: args.legacy_sessions,
            roots,
            excluded,
            files_max_read: args.files_max_read,
            policy: policy_source.load()?,
            servers: static_servers::read(args)?,
            secrets_dir: named_path(&args.secrets_dir),
            hosting: args.hosting,
            policy_source,
            audit: audit_config(args)?,
            registry: registry_config(args),
            jobs_topic: args.jobs_topic.clone(),
            console: console_config(args, jobs.is_some()),
            jobs,
            compression: args.compression,
            repeat_window: args.repeat_window,
            repeat_max_bytes: args.repeat_max_bytes,
            drain_timeout: args.drain_timeout(),
        })
    }
}

/// Returns the sources of the policy that the flags name.
fn policy_source(args: &Args) -> PolicySource {
    let owned = |list: &[String]| non_empty(list).map(str::to_owned).collect();
    PolicySource {
        file: named_path(&args.policy_file),
        commands: args.allow_commands.clone(),
        dirs: non_empty_paths(&args.allow_dirs),
        env: owned(&args.allow_env),
        remotes: owned(&args.allow_remotes),
        expand: owned(&args.expand_env),
        handshake_timeout: args.handshake_timeout_ms.map(Duration::from_millis),
    }
}

/// Returns the settings about access. An empty variable is no file.
fn access_source(args: &Args, public_url: Option<&Url>, tls: Option<&TlsFiles>) -> AccessSource {
    AccessSource {
        mode: args.access,
        host: args.host,
        keys: named_path(&args.access_keys),
        pepper: named_path(&args.access_pepper_file),
        policy: named_path(&args.policy_file),
        signing_keys: named_path(&args.signing_key),
        signing_public_keys: named_path(&args.signing_public_keys),
        unsigned_jobs: args.unsigned_jobs,
        approval_ttl: args.approval_ttl,
        public_url: public_url.cloned(),
        port: match tls.map(|tls| &tls.clients) {
            None => PortSecurity::Plain,
            Some(None) => PortSecurity::Tls,
            Some(Some(_)) => PortSecurity::ClientCertificates,
        },
    }
}

/// Returns the settings of the console, which is there by default if there are jobs.
fn console_config(args: &Args, has_jobs: bool) -> Option<ConsoleConfig> {
    let default = if has_jobs { ConsoleMode::Full } else { ConsoleMode::Off };
    let is_read_only = match args.console.unwrap_or(default) {
        ConsoleMode::Off => return None,
        ConsoleMode::Read => true,
        ConsoleMode::Full => false,
    };
    Some(ConsoleConfig { is_read_only, key_file: named_path(&args.console_key_file) })
}

fn audit_config(args: &Args) -> Result<AuditConfig, ServerError> {
    let topic = brokers(args).map(|brokers| {
        check_jobs_topic(args)?;
        Ok::<_, ServerError>(AuditTopic {
            brokers: brokers.to_owned(),
            jobs: args.jobs_topic.clone(),
        })
    });
    let file = named_path(&args.audit_file);
    Ok(AuditConfig { mode: args.audit, file, topic: topic.transpose()? })
}

fn check_jobs_topic(args: &Args) -> Result<(), ServerError> {
    match fleet_job::topics::is_valid_name(&args.jobs_topic) {
        true => Ok(()),
        false => Err(ServerError::JobsTopic(args.jobs_topic.clone())),
    }
}

fn brokers(args: &Args) -> Option<&str> {
    args.kafka_brokers.as_deref().map(str::trim).filter(|brokers| !brokers.is_empty())
}

fn non_empty_paths(paths: &[PathBuf]) -> Vec<PathBuf> {
    paths.iter().filter(|path| !path.as_os_str().is_empty()).cloned().collect()
}

fn parse_public_url(args: &Args) -> Result<Option<Url>, ServerError> {
    let text = args.public_url.as_deref().map(str::trim).filter(|text| !text.is_empty());
    let Some(text) = text else { return Ok(None) };

    let is_base = |url: &Url| {
        matches!(url.scheme(), "http" | "https")
            && url.username().is_empty()
            && url.password().is_none()
            && url.query().is_none()
            && url.fragment().is_none()
    };

    // The error doesn't repeat the URL, which may contain a password.
    Url::parse(text).ok().filter(is_base).map(Some).ok_or(ServerError::PublicUrl)
}

/// Returns the owner key. An empty variable counts as unset.
fn owner_key(args: &Args) -> Result<Option<String>, ServerError> {
    let given = args.owner_key.clone().filter(|key| !key.is_empty());
    match (given, named_path(&args.owner_key_file)) {
        (None, Some(path)) => Ok(Some(read_secret_text(&path).map_err(ServerError::OwnerKey)?)),
        (given, _) => Ok(given),
    }
}

fn jobs_config(args: &Args) -> Result<Option<JobsConfig>, ServerError> {
    let Some(brokers) = brokers(args).filter(|_| args.jobs) else { return Ok(None) };

    if args.task_ttl > args.ledger_max_age {
        return Err(ServerError::TaskTtl);
    }
    check_jobs_topic(args)?;

    Ok(Some(JobsConfig {
        brokers: brokers.to_owned(),
        topic: args.jobs_topic.clone(),
        registry_topic: args.registry_topic.clone(),
        group: args.consumer_group.clone(),
        max_job_bytes: usize::try_from(args.max_job_bytes).unwrap_or(usize::MAX),
        ledger: store_config(args)?,
        retention: Retention {
            max_age: args.ledger_max_age,
            max_jobs: args.ledger_max_jobs,
            max_bytes: args.ledger_max_bytes,
        },
        owners: Owners::new(owner_key(args)?.as_deref()),
        approval_ttl: args.approval_ttl,
        task_tools: non_empty(&args.task_tools).map(Glob::new).collect(),
        task_ttl: args.task_ttl,
        task_poll_interval: args.task_poll_interval,
    }))
}

fn store_config(args: &Args) -> Result<StoreConfig, ServerError> {
    let named = args.ledger.as_deref().map(str::trim).filter(|ledger| !ledger.is_empty());
    let from_file = match (named, named_path(&args.ledger_file)) {
        (None, Some(path)) => Some(read_secret_file(&path)?),
        _ => None,
    };

    let directory = named_path(&args.data_dir);
    Ok(StoreConfig::parse(named.or(from_file.as_deref()), directory.as_deref())?)
}

fn registry_config(args: &Args) -> Option<RegistryConfig> {
    let brokers = brokers(args)?;
    let plain = Plain::new(non_empty(&args.share_plain));
    Some(RegistryConfig { brokers: brokers.to_owned(), topic: args.registry_topic.clone(), plain })
}
