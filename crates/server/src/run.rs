//! Runs a server from start to end: listens, serves, drains, and stops the hosted servers.

use std::{sync::Arc, time::Duration};

use fleet_hosting::{
    Fleet,
    changes::{Change, Lists},
    registry::{Shared, kafka::KafkaRegistry, memory::MemoryRegistry, sharing::Plain},
    secret_store::SecretStore,
};
use fleet_jobs::{Jobs, Tasks};
use fleet_kafka::{compression::Compression, link::Link, settings::Settings};
use fleet_ops::{
    config::Env,
    http::{Health, Serving, bind, serve_with, write_ready_file},
    shutdown::signal_token,
    tls::Tls,
};
use fleet_policy::current::CurrentPolicy;
use fleet_signing::CurrentKeys;
use rmcp::transport::stdio_pipes;
use tokio_util::sync::CancellationToken;

use crate::{
    access::{self, AccessControl},
    args::Args,
    audit::{Audit, SecretUses},
    config::ServerConfig,
    conformance::Fixtures,
    error::ServerError,
    gateway::Gateway,
    http,
    provider::Provider,
    reload, static_servers, stdio,
    tools::{
        self,
        files::{self, Files},
        servers,
    },
};

/// How long the last audit records may take to be kept at the end.
const FLUSH_AUDIT: Duration = Duration::from_secs(5);

/// Runs a server until SIGTERM or SIGINT or, with `--stdio`, until standard input ends.
///
/// # Errors
///
/// Returns an error if a setting is invalid, or the server can't listen or start.
pub async fn run(args: Args) -> Result<(), ServerError> {
    run_with(args, Vec::new()).await
}

/// Runs a server like [`run`], with additional providers whose tools take precedence over the
/// server's own.
///
/// # Errors
///
/// As [`run`].
pub async fn run_with(args: Args, more: Vec<Box<dyn Provider>>) -> Result<(), ServerError> {
    let config = ServerConfig::from_args(&args)?;
    let stop = signal_token().map_err(ServerError::Signals)?;
    run_until(config, more, stop).await
}

/// Runs a server until `stop` is cancelled.
///
/// # Errors
///
/// As [`run`].
pub async fn run_until(
    config: ServerConfig,
    more: Vec<Box<dyn Provider>>,
    stop: CancellationToken,
) -> Result<(), ServerError> {
    // On standard input and output, the one caller is whoever started this process.
    let access = match config.stdio {
        true => None,
        false => Some(AccessControl::start(config.access.clone(), stop.clone())?),
    };
    let mut links = Links { links: Vec::new(), compression: config.compression };
    let identifies_callers = access.as_ref().is_some_and(AccessControl::identifies_callers);
    let audit = config.audit.open(identifies_callers, |brokers| links.link_to(brokers)).await?;
    let log = audit.as_ref().map(|audit| audit.log.clone()).unwrap_or_default();

    if access.is_some() {
        access::warn_of_readable_secrets(&config);
    }

    access::warn_of_shared_secrets(&config);
    let secrets = SecretStore::local(config.secrets_dir.clone());
    let secrets = secrets.audited(Arc::new(SecretUses(log.clone())));
    let fleet = Fleet::with_secrets(CurrentPolicy::new(config.policy.clone()), secrets);
    if !config.policy.commands.is_empty() {
        fleet_launcher::warn_if_inseparable();
    }
    reload::follow_policy_file(&config.policy_source, &fleet, stop.clone())?;

    let shared = share_fleet(&config, &fleet, &mut links, &stop)?;
    static_servers::host(&config.servers, &shared, &stop);
    shared.follow(stop.clone())?;
    let jobs = start_jobs(&config, &mut links, stop.clone()).await?;

    // Standard input has one caller, whose jobs another server may execute.
    let signing = match &access {
        Some(access) => access.signing_keys(),
        None => CurrentKeys::new(access::read_signing_keys(&config.access)?),
    };
    if let Some(jobs) = &jobs {
        jobs.resolve_tools_with(tools::jobs::resolver(fleet.clone()));
        jobs.sign_with(signing);
    }

    let mut providers = more;
    providers.extend(build_toolkits(&config, &fleet, &shared, jobs.as_ref())?);
    let (window, max_bytes) = (config.repeat_window, config.repeat_max_bytes);
    let mut gateway =
        Gateway::new(providers, fleet.clone(), window, max_bytes, Some(shared.clone()));
    if let (Some(jobs), Some(config)) = (&jobs, &config.jobs) {
        gateway = gateway.with_tasks(Tasks::new(jobs.clone(), config));
    }

    if let Some(access) = &access {
        gateway = gateway.with_signed_jobs(access.signed_jobs(&config.jobs_topic));
    }

    let result = match access {
        None => {
            let (stdin, stdout) = stdio_pipes();
            let gateway = gateway.for_client(access::local_asker(&config.access, log)?);
            stdio::serve_client(gateway, stdin, stdout, stop).await
        }
        Some(access) => {
            let access = access.audited(log);
            let told = fleet.clone();
            access.notify_of_views(move || told.announce(Change::Lists(Lists::ALL)));
            serve_http(gateway, &config, access, &fleet, &shared, jobs, stop).await
        }
    };
    // All calls have ended or been abandoned, so the hosted servers are no longer needed.
    fleet.shutdown().await;
    if let Some(Audit { recorder, log }) = audit {
        // Calls that outlast the grace period end with this process.
        log.abandon_all();
        recorder.flush(FLUSH_AUDIT).await;
    }
    result
}

/// Connects the fleet to the configured registry: a Kafka topic, or this process's memory.
fn share_fleet(
    config: &ServerConfig,
    fleet: &Arc<Fleet>,
    links: &mut Links,
    stop: &CancellationToken,
) -> Result<Arc<Shared>, ServerError> {
    Ok(match config.registry.as_ref().filter(|_| config.hosting) {
        Some(kafka) => {
            let link = links.link_to(&kafka.brokers)?;
            fleet.keep_pins(link.clone(), &kafka.topic, stop.clone());
            let registry = KafkaRegistry::new(link, &kafka.topic);
            Shared::new(fleet.clone(), Arc::new(registry), kafka.plain.clone())
        }
        None => {
            if config.hosting && fleet.policy().pins.is_on() {
                tracing::warn!(
                    "without KAFKA_BROKERS, pins are kept in memory: after a restart, hosted servers' tools are accepted as \
                     they are then, and decisions are forgotten; only a [[pin]] of the policy file lasts"
                );
            }
            Shared::new(fleet.clone(), Arc::new(MemoryRegistry::default()), Plain::default())
        }
    })
}

/// Starts the job service if the configuration has one.
async fn start_jobs(
    config: &ServerConfig,
    links: &mut Links,
    stop: CancellationToken,
) -> Result<Option<Jobs>, ServerError> {
    let Some(config) = &config.jobs else { return Ok(None) };
    Ok(Some(Jobs::start(config, links.link_to(&config.brokers)?, stop).await?))
}

/// The connections to Kafka, one per cluster.
struct Links {
    links: Vec<Link>,
    compression: Compression,
}

impl Links {
    /// Returns the connection to these brokers, which it creates the first time.
    fn link_to(&mut self, brokers: &str) -> Result<Link, ServerError> {
        if let Some(link) = self.links.iter().find(|link| link.brokers() == brokers) {
            return Ok(link.clone());
        }

        let properties = Env::process().kafka_properties()?;
        let settings = Settings { brokers: brokers.to_owned(), properties };
        let link = Link::new(settings.compressed(self.compression))?;
        self.links.push(link.clone());
        Ok(link)
    }
}

/// Builds the server's own tools.
fn build_toolkits(
    config: &ServerConfig,
    fleet: &Arc<Fleet>,
    shared: &Arc<Shared>,
    jobs: Option<&Jobs>,
) -> Result<Vec<Box<dyn Provider>>, ServerError> {
    let mut toolkits: Vec<Box<dyn Provider>> = Vec::new();
    if !config.roots.is_empty() {
        let files = Files::new(&config.roots, config.files_max_read)?;
        let files = files.without(&config.excluded)?;
        toolkits.push(Box::new(files::toolkit(Arc::new(files))));
    }

    if config.hosting {
        toolkits.push(Box::new(servers::toolkit(shared.clone())));
    }
    if let Some(jobs) = jobs {
        toolkits.push(Box::new(tools::jobs::toolkit(jobs.clone())));
    }

    if config.conformance {
        tracing::warn!(
            "offering the fixtures of the conformance suite, which only the suite can use"
        );
        toolkits.push(Box::new(Fixtures::new(fleet.clone())));
    }

    Ok(toolkits)
}

async fn serve_http(
    gateway: Gateway,
    config: &ServerConfig,
    access: AccessControl,
    fleet: &Arc<Fleet>,
    shared: &Arc<Shared>,
    jobs: Option<Jobs>,
    stop: CancellationToken,
) -> Result<(), ServerError> {
    let metrics = fleet_ops::metrics::install();
    crate::metrics::TABLES.iter().for_each(|table| metrics.describe(table));
    crate::metrics::show_gauges();
    metrics.identify("mcp-server", env!("CARGO_PKG_VERSION"));

    let tls = config.tls.clone().map(|files| Tls::start(files, stop.clone())).transpose()?;
    let health = Health::new();
    let streams = CancellationToken::new();
    let router = http::router(
        gateway,
        config,
        access,
        jobs.clone(),
        health.clone(),
        metrics,
        streams.clone(),
    )?;

    let (listener, address) = bind(config.listen).await.map_err(ServerError::Listen)?;
    let kafka = config.registry.as_ref().map(|registry| registry.brokers.clone());
    tokio::spawn(report_ready(health.clone(), kafka, shared.clone(), jobs, stop.clone()));
    tracing::info!(%address, tls = tls.is_some(), "listening");
    if let Some(path) = &config.ready_file {
        write_ready_file(path, address)
            .map_err(|error| ServerError::ReadyFile { path: path.clone(), error })?;
    }

    let (stopping, fleet) = (stop.clone(), fleet.clone());
    tokio::spawn(async move {
        stopping.cancelled().await;
        fleet.end_subscriptions();
    });

    let serving = Serving { grace: config.drain_timeout, tls };
    let result = serve_with(serving, listener, router, stop).await;
    streams.cancel();
    result.map_err(ServerError::Http)
}

/// Reports the server as ready from when it has read the registry and the ledger until it shuts
/// down.
async fn report_ready(
    health: Health,
    kafka: Option<String>,
    shared: Arc<Shared>,
    jobs: Option<Jobs>,
    stop: CancellationToken,
) {
    // Whoever asks learns where to look if that takes long.
    let from = kafka.map(|brokers| format!(" from Kafka at `{brokers}`")).unwrap_or_default();
    health.set_not_ready(format!("reading the registry{from}"));
    let ready = async {
        shared.wait_until_read().await;
        health.set_not_ready(format!("reading the pins of tools{from}"));
        shared.fleet().wait_for_pins().await;
        if let Some(jobs) = jobs {
            health.set_not_ready(format!("reading the states of jobs{from}"));
            jobs.wait_until_read().await;
        }
    };

    tokio::select! {
        () = ready => health.set_ready(),
        () = stop.cancelled() => {}
    }

    stop.cancelled().await;
    health.set_not_ready("shutting down");
}
