//! A whole fleet on one machine: broker, topics, server and workers.

use std::{
    io::Write as _,
    path::{Path, PathBuf},
    time::Duration,
};

use fleet_job::{
    envelope::{Envelope, Work},
    mcp_servers::ServerEntry,
    outcome::Outcome,
    topics::Topics,
};
use fleet_kafka::{admin, settings::Settings};
use fleet_mcp_client::{ClientConfig, McpClient, ToolCall};
use serde_json::{Map, Value, json};

use crate::{
    broker::RunningBroker,
    connection,
    error::CliError,
    keys,
    mcp::McpServer,
    servers::{self, Condition, HostedServer},
    stack_policy::{LocalPolicy, Surroundings},
    supervise::{Process, own_program},
    wait_notice::WaitNotice,
};

/// The server name under which the files of the current directory are hosted.
pub(crate) const FILES: &str = "files";
/// The suffix of the registry topic of a local server whose Kafka is shared with others.
const LOCAL_SERVERS: &str = "local-servers";
const READY: Duration = Duration::from_secs(30);
/// How long workers may take to join the group and divide the partitions.
const JOIN: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(100);
/// How long to wait for servers of the user's own before saying that they are still starting.
const SETTLE: Duration = Duration::from_secs(60);
/// The time for a process to stop. Longer than a worker's drain.
const STOP: Duration = Duration::from_secs(40);

/// What the fleet hosts.
#[derive(Debug, Clone)]
pub(crate) enum HostedByStack {
    /// The files of the root directory.
    Files,
    /// The servers of the user's own that this file lists.
    Servers { file: PathBuf, entries: Vec<(String, ServerEntry)> },
}

/// What to start, and where.
#[derive(Debug, Clone)]
pub(crate) struct StackConfig {
    /// An existing Kafka; `None` starts the embedded broker.
    pub(crate) brokers: Option<String>,
    pub(crate) broker_port: u16,
    pub(crate) server_port: u16,
    /// The directory for logs, the policy file, and the data of a broker that is not to outlive us.
    pub(crate) run_dir: PathBuf,
    /// The directory for API keys, which outlive the fleet if the user keeps its data.
    pub(crate) keys_dir: PathBuf,
    /// What is hosted.
    pub(crate) hosts: HostedByStack,
    /// The directory whose files are hosted, which is that of the fleet's processes.
    pub(crate) root: PathBuf,
    /// A directory below it that is not hosted, since it has the data and the keys of the fleet.
    pub(crate) hidden: Option<PathBuf>,
    pub(crate) topic: String,
    pub(crate) group: String,
    pub(crate) partitions: i32,
    pub(crate) workers: usize,
    /// Whether the server accepts jobs and reports on them, which needs the broker.
    pub(crate) jobs: bool,
}

impl StackConfig {
    /// The file that the server reads the digests of keys from.
    fn keys_file(&self) -> PathBuf {
        self.keys_dir.join("keys.toml")
    }

    /// The file of the pepper of the digests.
    fn pepper_file(&self) -> PathBuf {
        self.keys_dir.join("keys.toml.pepper")
    }

    /// The file of the key with which people operate the fleet.
    pub(crate) fn operator_key(&self) -> PathBuf {
        self.keys_dir.join("operator.key")
    }

    /// Makes the keys of the fleet, unless they were made before.
    pub(crate) fn make_keys(&self) -> Result<(), CliError> {
        keys::make_first_keys(&self.keys_file(), &self.keys_dir)
    }
}

/// A running fleet.
#[derive(Debug)]
pub(crate) struct Stack {
    broker: Option<RunningBroker>,
    pub(crate) settings: Settings,
    pub(crate) topics: Topics,
    pub(crate) server: Option<Process>,
    pub(crate) server_url: String,
    pub(crate) workers: Vec<Process>,
    config: StackConfig,
}

impl Stack {
    /// Starts everything except the workers, and waits until it is ready.
    pub(crate) async fn start(config: StackConfig) -> Result<Self, CliError> {
        std::fs::create_dir_all(&config.run_dir).map_err(|source| CliError::File {
            what: "could not create the directory",
            path: config.run_dir.clone(),
            source,
        })?;

        let broker = match &config.brokers {
            Some(_) => None,
            None => {
                let data_dir = config.run_dir.join("broker");
                Some(RunningBroker::start(&config.run_dir, &data_dir, config.broker_port).await?)
            }
        };

        let brokers = broker
            .as_ref()
            .map(|broker| broker.address().to_string())
            .or_else(|| config.brokers.clone())
            .unwrap_or_default();
        let settings = connection::settings(&brokers)?;
        let topics = Topics::of(config.topic.clone());
        let replication = if broker.is_some() { 1 } else { -1 };

        let notice = WaitNotice::for_kafka(&settings);
        admin::create_topics(
            &settings,
            &admin::fleet_topics(&topics, config.partitions, replication),
        )
        .await?;
        drop(notice);

        config.make_keys()?;
        let policy = write_policy(&config)?;
        let mut server = start_server(&config, &brokers, &policy, config.server_port)?;
        let address = server.ready(READY).await?;
        let server_url = format!("http://{address}");
        Ok(Self {
            broker,
            settings,
            topics,
            server: Some(server),
            server_url,
            workers: Vec::new(),
            config,
        })
    }

    /// Starts the workers and waits until they have divided the partitions.
    pub(crate) async fn start_workers(&mut self) -> Result<(), CliError> {
        for number in 1..=self.config.workers {
            let (brokers, url) = (&self.settings.brokers, &self.server_url);
            self.workers.push(start_worker(&self.config, brokers, url, number, 0)?);
        }
        for worker in &mut self.workers {
            worker.ready(READY).await?;
        }
        wait_for_group(&self.settings, &self.config.group, self.workers.len()).await;
        Ok(())
    }

    /// Returns the job that hosts the files of the root directory, by running this binary over
    /// standard input and output.
    pub(crate) fn files_job(&self, job_id: String) -> Result<Envelope, CliError> {
        let (command, args) = files_command(&self.config)?;
        let payload = json!({"mcpServers": {FILES: {"command": command, "args": args}}});
        let payload = payload.as_object().cloned().unwrap_or_else(Map::new);
        Ok(Envelope::new(job_id, Work::ServerInit(payload)))
    }

    /// Returns once the embedded broker has failed; never returns if there is none.
    pub(crate) fn broker_died(&self) -> impl Future<Output = CliError> + Send + use<> {
        let died = self.broker.as_ref().map(RunningBroker::died);
        async move {
            match died {
                Some(died) => died.await,
                None => std::future::pending().await,
            }
        }
    }

    /// Stops the workers, which drain first, and then the server. The broker keeps running.
    pub(crate) async fn stop_fleet(&mut self) {
        self.workers.iter().for_each(Process::terminate);
        for worker in self.workers.drain(..) {
            worker.stopped(STOP).await;
        }
        if let Some(server) = self.server.take() {
            server.terminate();
            server.stopped(STOP).await;
        }
    }

    /// Stops everything.
    pub(crate) async fn stop(mut self) {
        self.stop_fleet().await;
        if let Some(broker) = self.broker {
            broker.stop().await;
        }
    }
}

/// Variables of a fleet elsewhere that must not reach the one on this machine, whose parts speak
/// plain HTTP on loopback and have keys of their own.
const OF_OTHERS: [(&str, &str); 14] = [
    ("MCP_TLS_CERTIFICATE_FILE", ""),
    ("MCP_TLS_KEY_FILE", ""),
    ("MCP_TLS_CLIENT_CA_FILE", ""),
    ("MCP_TLS_CRL_FILE", ""),
    ("MCP_TLS_CLIENT_AUTH", "optional"),
    ("MCP_SERVER_CA_FILE", ""),
    ("MCP_SERVER_CLIENT_CERTIFICATE_FILE", ""),
    ("MCP_SERVER_CLIENT_KEY_FILE", ""),
    ("MCP_OAUTH_CLIENT_ID", ""),
    ("MCP_PUBLIC_URL", ""),
    ("MCP_AUDIT", "auto"),
    ("MCP_AUDIT_FILE", ""),
    ("MCP_SERVERS_FILE", ""),
    ("MCP_HOSTING", "true"),
];

/// Waits until all workers have joined the group, so that each gets its share of the first jobs. A
/// timeout is not an error: the workers that have joined do the work.
pub(crate) async fn wait_for_group(settings: &Settings, group: &str, members: usize) {
    let deadline = tokio::time::Instant::now() + JOIN;
    while tokio::time::Instant::now() < deadline {
        let (settings, group) = (settings.clone(), group.to_owned());
        let ask = move || admin::is_stable(&settings, &group, members, JOIN);
        if matches!(tokio::task::spawn_blocking(ask).await, Ok(Ok(true))) {
            return;
        }
        tokio::time::sleep(LOOK).await;
    }
    tracing::warn!("some workers have not joined the consumer group yet; continuing without them");
}

/// Hosts the files with a call to the server, which has finished when this returns.
pub(crate) async fn host_files(server_url: &str, config: &StackConfig) -> Result<(), CliError> {
    let (command, args) = files_command(config)?;
    let arguments = json!({"name": FILES, "config": {"command": command, "args": args}});
    let urls = ClientConfig::parse_urls(server_url)?;

    let arguments = arguments.as_object().cloned().unwrap_or_else(Map::new);
    let call = ToolCall { timeout: Some(READY), ..ToolCall::new("server_initialize", arguments) };

    match McpClient::new(ClientConfig::new(urls))?.call_tool(call).await {
        Outcome::Succeeded(_) => Ok(()),
        Outcome::Failed(failure) => {
            Err(CliError::Usage(format!("could not host the files: {}", failure.error)))
        }
    }
}

/// Waits until the servers of the user's own have started or failed, and returns what has become of
/// each. One that takes long is still starting.
pub(crate) async fn wait_for_servers(
    server_url: &str,
    entries: &[(String, ServerEntry)],
) -> Result<Vec<(String, Condition)>, CliError> {
    let server = McpServer::new(ClientConfig::new(ClientConfig::parse_urls(server_url)?))?;
    if !entries.iter().any(|(name, _)| name == FILES) {
        // An earlier run with the same data may have hosted the files, which the policy of this one
        // refuses.
        let arguments = Map::from_iter([("name".to_owned(), FILES.into())]);
        server.call_own::<Value>("server_remove", arguments, READY).await?;
    }

    let deadline = tokio::time::Instant::now() + SETTLE;
    loop {
        let servers = servers::read_servers(&servers::fetch_servers(&server).await?);
        let condition_of = |name: &String| {
            let server = servers.iter().find(|server| server.name == *name);
            server.map_or(Condition::Starts, HostedServer::condition)
        };
        let conditions: Vec<_> =
            entries.iter().map(|(name, _)| (name.clone(), condition_of(name))).collect();

        let is_open = conditions.iter().any(|(_, condition)| *condition == Condition::Starts);
        if !is_open || tokio::time::Instant::now() >= deadline {
            server.close().await;
            return Ok(conditions);
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// Starts worker `number` without waiting for it. It listens on `port`, or on any free port if that
/// is 0.
pub(crate) fn start_worker(
    config: &StackConfig,
    brokers: &str,
    server_url: &str,
    number: usize,
    port: u16,
) -> Result<Process, CliError> {
    let name = format!("kafka-worker-{number}");
    let args = [
        "worker".to_owned(),
        "--host=127.0.0.1".to_owned(),
        format!("--port={port}"),
        format!("--brokers={brokers}"),
        format!("--topic={}", config.topic),
        format!("--group={}", config.group),
        format!("--server-url={server_url}"),
        format!("--server-token-file={}", config.keys_dir.join("worker.key").display()),
        format!("--signing-public-keys={}", config.keys_dir.join("signing.pub").display()),
        format!("--worker-id={name}"),
    ];

    // On one machine, a dead worker should be noticed in seconds. A shorter session would need more
    // frequent statistics, which wake idle workers. Values that the user sets take precedence.
    let quick = [
        ("KAFKA_PROPERTY_SESSION_TIMEOUT_MS", "9000"),
        ("KAFKA_PROPERTY_HEARTBEAT_INTERVAL_MS", "1500"),
    ];
    let quick = quick.into_iter().filter(|(name, _)| std::env::var_os(name).is_none());
    // A token that the user sets is for another server.
    let env: Vec<_> = quick.chain(OF_OTHERS).chain([("MCP_SERVER_TOKEN", "")]).collect();
    Process::start(&own_program()?, &name, &config.run_dir, &args, &env)
}

/// Starts the server without waiting for it.
pub(crate) fn start_server(
    config: &StackConfig,
    brokers: &str,
    policy: &Path,
    port: u16,
) -> Result<Process, CliError> {
    let mut args = vec![
        "server".to_owned(),
        "--host=127.0.0.1".to_owned(),
        format!("--port={port}"),
        format!("--policy={}", policy.display()),
        // Whoever brings a key is known by it, and curl needs none.
        "--access=local".to_owned(),
        format!("--access-keys={}", config.keys_file().display()),
        format!("--access-pepper-file={}", config.pepper_file().display()),
        format!("--signing-key={}", config.keys_dir.join("signing.key").display()),
    ];

    if let HostedByStack::Servers { file, .. } = &config.hosts {
        args.push(format!("--servers={}", file.display()));
    }

    if config.jobs {
        args.push(format!("--kafka-brokers={brokers}"));
        args.push(format!("--jobs-topic={}", config.topic));
        if config.brokers.is_some() {
            // Servers of a shared Kafka must not learn what is hosted on this laptop.
            args.push(format!("--registry-topic={}.{LOCAL_SERVERS}", config.topic));
        }
    } else {
        // This is the only server, so it shares its registry with nobody, whatever the environment
        // says.
        args.push("--kafka-brokers=".to_owned());
    }

    Process::start(&own_program()?, "mcp-server", &config.run_dir, &args, &OF_OTHERS)
}

/// Returns the command and the arguments that host the files.
fn files_command(config: &StackConfig) -> Result<(String, Vec<String>), CliError> {
    let mut argv = files_argv(config)?;
    let args = argv.split_off(1);
    Ok((argv.remove(0), args))
}

/// Returns the command line of the stdio server that offers the files.
fn files_argv(config: &StackConfig) -> Result<Vec<String>, CliError> {
    let exe = own_program()?;
    let text = |path: &Path| {
        path.to_str().map(str::to_owned).ok_or_else(|| {
            CliError::Usage(format!("the path `{}` is not valid UTF-8; rename it", path.display()))
        })
    };

    let mut argv = vec![
        text(&exe)?,
        "server".to_owned(),
        "--stdio".to_owned(),
        // Of its own tools, those for files alone.
        "--hosting=false".to_owned(),
        format!("--root={}", text(&config.root)?),
    ];
    if let Some(hidden) = &config.hidden {
        argv.push(format!("--exclude={}", text(hidden)?));
    }
    Ok(argv)
}

/// Writes a policy that allows exactly what the fleet hosts.
pub(crate) fn write_policy(config: &StackConfig) -> Result<PathBuf, CliError> {
    let policy = match &config.hosts {
        HostedByStack::Files => LocalPolicy::for_command(&files_argv(config)?),
        HostedByStack::Servers { entries, .. } => {
            let surroundings = Surroundings {
                directory: &config.root,
                variable: &|name| std::env::var(name).ok(),
                file: &|path| std::fs::read_to_string(path).ok(),
            };
            LocalPolicy::for_servers(entries, &surroundings)?
        }
    };

    let policy = policy.with_local_rights();
    let path = config.run_dir.join("policy.toml");
    let text = toml::to_string(&policy).map_err(|error| CliError::Usage(error.to_string()))?;
    replace_file(&path, &text).map_err(|source| CliError::File {
        what: "could not write",
        path: path.clone(),
        source,
    })?;
    Ok(path)
}

/// Writes a file that a running server may be reading: it sees the old text or the new one, and
/// never a part.
fn replace_file(path: &Path, text: &str) -> std::io::Result<()> {
    let directory = path.parent().unwrap_or(Path::new("."));
    let mut file = tempfile::NamedTempFile::new_in(directory)?;
    file.write_all(text.as_bytes())?;
    file.persist(path)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::{fs, io::Read as _};

    use super::*;

    #[test]
    fn a_reader_of_the_policy_never_sees_a_part_of_it() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("policy.toml");
        replace_file(&path, "old and long").unwrap();
        let mut reader = fs::File::open(&path).unwrap();

        replace_file(&path, "new").unwrap();

        let mut seen = String::new();
        reader.read_to_string(&mut seen).unwrap();
        assert_eq!(seen, "old and long");
        assert_eq!(fs::read_to_string(&path).unwrap(), "new");
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1, "nothing else is left");
    }
}
