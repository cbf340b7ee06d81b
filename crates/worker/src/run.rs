//! Putting a worker together: first the health endpoint, then Kafka, then the loop.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use fleet_job::{
    control::Control,
    pause::{Pause, Pauses},
    topics::Topics,
};
use fleet_kafka::{
    KafkaError, admin,
    consumer::{Consumer, ConsumerConfig, Followed},
    follow::Follower,
    producer::Producer,
    settings::{Role, Settings},
};
use fleet_mcp_client::{ClientConfig, McpClient};
use fleet_ops::{
    config::Env,
    errors,
    http::{self, Serving, guard::Guard},
    invariant, shutdown,
    tls::{Tls, TlsError},
};
use tokio::{
    runtime::{Builder, Runtime},
    task::JoinHandle,
};
use tokio_util::sync::CancellationToken;

use crate::{
    cancel_requests::CancelRequests,
    config::Args,
    delay_tiers::Tiers,
    metrics,
    oauth::OAuthError,
    public_keys::PublicKeysError,
    record_feed::RecordFeed,
    report::Reporter,
    required_topics::RequiredTopics,
    shell::{Parts, Shell},
    token_file,
};

/// How long reading cancel requests and pauses may delay the start.
const CATCH_UP_TIMEOUT: Duration = Duration::from_secs(15);

/// Why a worker could not start or go on.
#[derive(Debug, thiserror::Error)]
pub enum WorkerError {
    /// A setting is invalid.
    #[error("the configuration can't be used")]
    Config(#[from] fleet_ops::config::ConfigError),
    /// `MCP_SERVER_URL` or a setting that belongs to it is invalid.
    #[error("the MCP server can't be called")]
    Client(#[from] fleet_mcp_client::ConfigError),
    /// The public keys can't be used.
    #[error(transparent)]
    PublicKeys(#[from] PublicKeysError),
    /// The worker can't be an OAuth client.
    #[error(transparent)]
    OAuth(#[from] OAuthError),
    /// TLS can't be set up.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// Kafka refuses the worker, or can't be used.
    #[error(transparent)]
    Kafka(#[from] KafkaError),
    /// The worker can't listen at the address of its health endpoint.
    #[error("{0}; choose another port with --port or PORT")]
    Listen(std::io::Error),
    /// The ready file or the signal handlers could not be set up.
    #[error("the worker could not start")]
    Io(#[from] std::io::Error),
}

/// The runtime for a worker with this number of threads. With one thread, the steps of a job follow
/// each other without waking a thread for each, which would cost more than the steps.
///
/// # Errors
/// Returns an error if the system provides no thread, or no way to wait for the network.
pub fn runtime(threads: u32) -> std::io::Result<Runtime> {
    let mut builder = match usize::try_from(threads) {
        Ok(threads @ 2..) => {
            let mut builder = Builder::new_multi_thread();
            builder.worker_threads(threads);
            builder
        }
        _ => Builder::new_current_thread(),
    };
    builder.enable_all().build()
}

/// Runs a worker until SIGTERM or SIGINT, then drains it.
///
/// # Errors
/// Returns [`WorkerError`] if the worker can't start, or if Kafka refuses it for good.
pub async fn run(args: Args) -> Result<(), WorkerError> {
    let shutdown = shutdown::signal_token()?;
    let settings =
        Settings { brokers: args.brokers.clone(), properties: Env::process().kafka_properties()? };
    let name = fleet_lag::client_id(&args.worker_name(), env!("CARGO_PKG_VERSION"));
    let settings = settings.compressed(args.compression).named(&name);
    settings.check()?;
    let client = McpClient::new(client_config(&args)?)?;
    if let Some(path) = args.token_file() {
        token_file::follow(client.clone(), path.to_owned()).await;
    }
    let producer = Producer::new(&settings)?;

    let endpoint = Endpoint::start(&args).await?;
    log_start(&args, &settings, endpoint.address);
    let result = work(args, settings, client, producer, endpoint.health.clone(), shutdown).await;

    endpoint.stop().await;
    result
}

/// The HTTP endpoint for health checks and metrics.
struct Endpoint {
    health: http::Health,
    address: SocketAddr,
    stop: CancellationToken,
    serving: JoinHandle<std::io::Result<()>>,
}

impl Endpoint {
    async fn start(args: &Args) -> Result<Self, WorkerError> {
        let recorder = fleet_ops::metrics::install();
        recorder.describe(metrics::TABLE);
        recorder.identify("kafka-worker", env!("CARGO_PKG_VERSION"));
        invariant::declare(&["I1", "I2", "I3", "I4", "I5", "I6", "I7", "metadata-overflow"]);

        let health = http::Health::new();
        let (listener, address) =
            http::bind(SocketAddr::new(args.host, args.port)).await.map_err(WorkerError::Listen)?;
        if let Some(path) = &args.ready_file {
            http::write_ready_file(path, address)?;
        }

        let stop = CancellationToken::new();
        let files = args.tls.files()?;
        let tls = files.map(|files| Tls::start(files, stop.clone())).transpose()?;
        let guard = Arc::new(Guard::new(&args.allowed_hosts, Vec::new()));
        let router = http::router(health.clone(), recorder, guard);
        let serving = Serving { tls, ..Serving::default() };
        let serving = tokio::spawn(http::serve_with(serving, listener, router, stop.clone()));
        Ok(Self { health, address, stop, serving })
    }

    async fn stop(self) {
        self.health.set_not_ready("stopping");
        self.stop.cancel();
        if !matches!(self.serving.await, Ok(Ok(()))) {
            tracing::warn!("the health endpoint did not stop cleanly");
        }
    }
}

fn log_start(args: &Args, settings: &Settings, address: SocketAddr) {
    let worker = args.worker_name();
    tracing::info!(
        %worker,
        brokers = %args.brokers,
        topic = %args.topic,
        group = %args.group,
        health = %address,
        max_in_flight = args.max_in_flight,
        ordering = ?args.ordering,
        "starting"
    );

    if let Some(warning) = settings.warning() {
        tracing::warn!("{warning}");
    }
}

/// Waits for the topics, joins the group, and runs the loop until `shutdown`.
async fn work(
    args: Args,
    settings: Settings,
    client: McpClient,
    producer: Producer,
    health: http::Health,
    shutdown: CancellationToken,
) -> Result<(), WorkerError> {
    let topics = args.topics();
    let required =
        RequiredTopics { settings: &settings, topics: &topics, may_create: args.create_topics };
    let Some(delayed) = required.wait_until_ready(&health, &shutdown).await else { return Ok(()) };
    if delayed.is_none() {
        tracing::info!(topic = topics.delayed, "no such topic: long delays wait in memory");
    }
    refuse_compacted(&settings, &topics, args.allow_compacted_topic).await?;

    let mut feeds = Feeds::start(&args, &settings, &topics)?;
    let (cancel_requests, pauses) = feeds.catch_up(&health, &shutdown).await;

    let tiers = delayed.map(|partitions| Tiers::new(partitions, args.max_park));
    let mut followed = vec![Followed { topic: topics.jobs.clone(), role: Role::Main }];
    followed.extend(
        tiers.map(|_| Followed { topic: topics.delayed.clone(), role: Role::Side("delayed") }),
    );
    let session = settings.session_timeout();
    let (consumer, events) = Consumer::start(ConsumerConfig {
        settings: settings.clone(),
        group: args.group.clone(),
        topics: followed,
        drain: args.drain_timeout,
    })?;

    let reporter = Reporter {
        topics,
        tiers,
        worker: args.worker_name(),
        group: args.group.clone(),
        max_event_bytes: usize::try_from(args.max_event_bytes).unwrap_or(usize::MAX),
    };
    let producer = Arc::new(producer.bound_to(consumer.contact()));
    let parts = Parts {
        consumer,
        producer,
        client,
        reporter,
        health,
        cancel_requests,
        pauses,
        session,
        settings,
    };
    Ok(Shell::new(args, parts).run(events, feeds, shutdown).await?)
}

/// Refuses a compacted topic: it loses jobs before anybody has read them.
async fn refuse_compacted(
    settings: &Settings,
    topics: &Topics,
    is_allowed: bool,
) -> Result<(), KafkaError> {
    for topic in [&topics.jobs, &topics.delayed] {
        match admin::is_compacted(settings, topic).await {
            Ok(true) if is_allowed => tracing::warn!(
                topic,
                "the topic is compacted: of several jobs with one key, only the newest is certain \
                 to run"
            ),
            Ok(true) => return Err(KafkaError::Compacted(topic.clone())),
            Ok(false) => {}
            Err(error) => {
                let error = errors::chain(&error);
                tracing::info!(topic, error, "could not check whether the topic is compacted");
            }
        }
    }
    Ok(())
}

/// What people ask of all workers.
pub(crate) struct Feeds {
    pub(crate) control: RecordFeed<Control>,
    pub(crate) pauses: RecordFeed<Pause>,
}

impl Feeds {
    fn start(args: &Args, settings: &Settings, topics: &Topics) -> Result<Self, WorkerError> {
        let follower = Follower::new(settings.clone());
        let keys = || args.public_keys(&topics.jobs);

        let control = RecordFeed::start(follower.clone(), topics.control.clone(), keys()?)?;
        let pauses = RecordFeed::start(follower, topics.pauses.clone(), keys()?)?;
        Ok(Self { control, pauses })
    }

    /// Learns which jobs were cancelled or are paused, before this worker takes any.
    async fn catch_up(
        &mut self,
        health: &http::Health,
        shutdown: &CancellationToken,
    ) -> (CancelRequests, Pauses) {
        health.set_not_ready("reading cancel requests and pauses");
        let (mut requests, mut pauses) = (CancelRequests::new(), Pauses::default());

        let control = self.control.catch_up(|control| {
            requests.add(fleet_ops::clock::now(), control);
        });
        let paused = self.pauses.catch_up(|pause| {
            pauses.take(pause, fleet_ops::clock::now());
        });
        tokio::select! {
            _ = futures::future::join(control, paused) => {}
            () = shutdown.cancelled() => {}
            () = tokio::time::sleep(CATCH_UP_TIMEOUT) => {
                tracing::warn!(
                    "could not read cancel requests and pauses to their ends yet; cancelled or \
                     paused jobs may start"
                );
            }
        }
        (requests, pauses)
    }
}

fn client_config(args: &Args) -> Result<ClientConfig, WorkerError> {
    let mut config = ClientConfig::new(ClientConfig::parse_urls(&args.server_url)?);

    config.default_timeout = args.call_timeout;
    config.max_response_bytes = usize::try_from(args.max_response_bytes).unwrap_or(usize::MAX);
    config.bearer_token = args.token().map(Into::into);
    let has_token = args.token().is_some() || args.token_file().is_some();
    config.oauth = args.oauth.client(has_token)?;
    config.tls = args.server_tls.files()?;
    Ok(config)
}
