//! A whole fleet on one machine: broker, topics, server, workers.

use std::{
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use fleet_job::{
    envelope::{Envelope, Work},
    outcome::Outcome,
    topics::Topics,
};
use fleet_kafka::{admin, settings::Settings};
use fleet_mcp_client::{ClientConfig, McpClient, ToolCall};
use serde_json::{Map, json};

use crate::{
    broker::{Broker, BrokerConfig},
    connection,
    error::CliError,
    patience::Patience,
    supervise::Process,
};

/// The name under which the files of the current directory are hosted.
pub(crate) const FILES: &str = "files";
/// The end of the name of the topic in which the server of a laptop keeps what it hosts, where the
/// Kafka is not its own.
const LOCAL_SERVERS: &str = "local-servers";
const READY: Duration = Duration::from_secs(30);
/// How long workers may take to share the partitions.
const JOIN: Duration = Duration::from_secs(10);
const LOOK: Duration = Duration::from_millis(100);
/// Longer than the drain of a worker.
const STOP: Duration = Duration::from_secs(40);

/// What to start.
#[derive(Debug, Clone)]
pub(crate) struct StackConfig {
    /// A Kafka that is there already; without it the embedded broker is started.
    pub(crate) brokers: Option<String>,
    pub(crate) broker_port: u16,
    pub(crate) server_port: u16,
    pub(crate) data_dir: Option<PathBuf>,
    /// Where logs and the policy go.
    pub(crate) run_dir: PathBuf,
    /// The directory whose files are hosted.
    pub(crate) root: PathBuf,
    pub(crate) topic: String,
    pub(crate) group: String,
    pub(crate) partitions: i32,
    pub(crate) workers: usize,
    /// Whether the server takes jobs and tells of them, for which it needs the broker.
    pub(crate) jobs: bool,
}

/// A running fleet.
#[derive(Debug)]
pub(crate) struct Stack {
    broker: Option<Broker>,
    pub(crate) settings: Settings,
    pub(crate) topics: Topics,
    pub(crate) server: Option<Process>,
    pub(crate) server_url: String,
    pub(crate) workers: Vec<Process>,
    config: StackConfig,
}

impl Stack {
    /// Starts everything but the workers, and waits until it answers.
    pub(crate) async fn start(config: StackConfig) -> Result<Self, CliError> {
        std::fs::create_dir_all(&config.run_dir).map_err(|source| CliError::File {
            what: "can't make the directory",
            path: config.run_dir.clone(),
            source,
        })?;
        let broker = match &config.brokers {
            Some(_) => None,
            None => {
                let listen = SocketAddr::from((Ipv4Addr::LOCALHOST, config.broker_port));
                Some(
                    Broker::start(BrokerConfig { listen, data_dir: config.data_dir.clone() })
                        .await?,
                )
            }
        };
        let brokers = broker
            .as_ref()
            .map(Broker::bootstrap)
            .or_else(|| config.brokers.clone())
            .unwrap_or_default();
        let settings = connection::settings(&brokers)?;
        let topics = Topics::of(config.topic.clone());
        let replication = if broker.is_some() { 1 } else { -1 };
        let patience = Patience::for_kafka(&settings);
        admin::create_topics(
            &settings,
            &admin::fleet_topics(&topics, config.partitions, replication),
        )
        .await?;
        drop(patience);

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

    /// Starts the workers and waits until they share the work.
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

    /// The job that hosts the files of the root directory: this binary again, over standard input
    /// and output.
    pub(crate) fn files_job(&self, job_id: String) -> Result<Envelope, CliError> {
        let (command, args) = files_command(&self.config.root)?;
        let payload = json!({"mcpServers": {FILES: {"command": command, "args": args}}});
        let payload = payload.as_object().cloned().unwrap_or_else(Map::new);
        Ok(Envelope::new(job_id, Work::ServerInit(payload)))
    }

    /// Returns when the embedded broker has died by itself; never without one.
    pub(crate) fn broker_died(&self) -> impl Future<Output = CliError> + Send + use<> {
        let failed = self.broker.as_ref().map(Broker::failed);
        async move {
            match failed {
                Some(failed) => CliError::BrokerDied(failed.await),
                None => std::future::pending().await,
            }
        }
    }

    /// Ends workers and server; the workers drain first. The broker stays.
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

    /// Ends everything.
    pub(crate) async fn stop(mut self) {
        self.stop_fleet().await;
        if let Some(broker) = self.broker {
            broker.stop().await;
        }
    }
}

/// Waits until all workers share the partitions, so that each gets its part of the first jobs. It
/// is no error when that takes longer: whoever is there does the work.
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
    tracing::warn!("not all workers have joined the group yet");
}

/// Hosts the files by a call of the server itself, which is done when this returns.
pub(crate) async fn host_files(server_url: &str, root: &Path) -> Result<(), CliError> {
    let (command, args) = files_command(root)?;
    let arguments = json!({"name": FILES, "config": {"command": command, "args": args}});
    let urls = ClientConfig::parse_urls(server_url)?;
    let arguments = arguments.as_object().cloned().unwrap_or_else(Map::new);
    let call = ToolCall { timeout: Some(READY), ..ToolCall::new("server_initialize", arguments) };
    match McpClient::new(ClientConfig::new(urls))?.call_tool(call).await {
        Outcome::Succeeded(_) => Ok(()),
        Outcome::Failed(failure) => {
            Err(CliError::Usage(format!("the files can't be hosted: {}", failure.error)))
        }
    }
}

/// Starts an embedded broker as a process of its own, which keeps its data in `data_dir`.
pub(crate) fn start_broker(config: &StackConfig, data_dir: &Path) -> Result<Process, CliError> {
    let args = [
        "broker".to_owned(),
        format!("--listen=127.0.0.1:{}", config.broker_port),
        format!("--data-dir={}", data_dir.display()),
    ];
    Process::start("broker", &config.run_dir, &args, &[])
}

/// Starts worker `number` without waiting for it. Its own port is `port`, or any free one if that
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
        format!("--worker-id={name}"),
    ];
    // On one machine a dead worker should be noticed in seconds; a user's own wish goes before.
    let quick = [
        ("KAFKA_PROPERTY_SESSION_TIMEOUT_MS", "6000"),
        ("KAFKA_PROPERTY_HEARTBEAT_INTERVAL_MS", "1500"),
    ];
    let env: Vec<_> =
        quick.into_iter().filter(|(name, _)| std::env::var_os(name).is_none()).collect();
    Process::start(&name, &config.run_dir, &args, &env)
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
    ];
    if config.jobs {
        args.push(format!("--kafka-brokers={brokers}"));
        args.push(format!("--jobs-topic={}", config.topic));
        if config.brokers.is_some() {
            // What is hosted on a laptop is nothing that the servers of a shared Kafka should hear
            // of.
            args.push(format!("--registry-topic={}.{LOCAL_SERVERS}", config.topic));
        }
    } else {
        // The only one, so there is nobody to share with, whatever the environment says.
        args.push("--kafka-brokers=".to_owned());
    }
    Process::start("mcp-server", &config.run_dir, &args, &[])
}

/// The same as command and arguments.
fn files_command(root: &Path) -> Result<(String, Vec<String>), CliError> {
    let mut argv = files_argv(root)?;
    let args = argv.split_off(1);
    Ok((argv.remove(0), args))
}

/// The command line of the stdio server that offers the files of `root`.
fn files_argv(root: &Path) -> Result<Vec<String>, CliError> {
    let exe =
        std::env::current_exe().map_err(|error| CliError::Io("can't find this program", error))?;
    let text = |path: &Path| {
        path.to_str().map(str::to_owned).ok_or_else(|| {
            CliError::Usage(format!("`{}` is not UTF-8, which JSON needs", path.display()))
        })
    };
    Ok(vec![
        text(&exe)?,
        "server".to_owned(),
        "--stdio".to_owned(),
        format!("--root={}", text(root)?),
    ])
}

/// A policy that allows exactly the one command line that hosts the files.
pub(crate) fn write_policy(config: &StackConfig) -> Result<PathBuf, CliError> {
    #[derive(serde::Serialize)]
    struct Policy {
        command: Vec<Allowed>,
    }
    #[derive(serde::Serialize)]
    struct Allowed {
        argv: Vec<String>,
    }
    let argv = files_argv(&config.root)?.iter().map(|word| fleet_policy::escape(word)).collect();
    let policy = Policy { command: vec![Allowed { argv }] };
    let path = config.run_dir.join("policy.toml");
    let text = toml::to_string(&policy).map_err(|error| CliError::Usage(error.to_string()))?;
    std::fs::write(&path, text).map_err(|source| CliError::File {
        what: "can't write",
        path: path.clone(),
        source,
    })?;
    Ok(path)
}
