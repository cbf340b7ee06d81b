//! `mcp-fleet dev`: the whole fleet, kept running until Ctrl-C, with workers that are started again when they die.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use fleet_job::topics::DEFAULT_JOBS_TOPIC;
use fleet_ops::shutdown;
use tokio_util::sync::CancellationToken;

use crate::{
    error::CliError,
    output,
    stack::{FILES, Stack, StackConfig},
    supervise::{self, Process},
};

/// How often the children are looked at.
const LOOK: Duration = Duration::from_millis(250);
/// The first delay before a process is started again; it doubles while the process keeps dying.
const RESTART: Duration = Duration::from_millis(500);
const RESTART_MAX: Duration = Duration::from_secs(30);
/// A process that has lived for so long is well; its next death counts as the first.
const WELL: Duration = Duration::from_secs(30);

const EXAMPLES: &str = "Examples:
  mcp-fleet dev
  mcp-fleet dev --workers 4 --data-dir .fleet
  mcp-fleet dev --broker-port 19092 --server-port 18080";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// How many workers to start.
    #[arg(long, default_value_t = 2, value_parser = clap::value_parser!(u16).range(1..=64))]
    workers: u16,

    /// Keep topics, offsets and logs in this directory; without it everything is gone at the end.
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,

    /// Use this Kafka instead of the embedded broker.
    #[arg(long, value_name = "HOSTS")]
    brokers: Option<String>,

    /// The port of the embedded broker.
    #[arg(long, default_value_t = 9092)]
    broker_port: u16,

    /// The port of the MCP server.
    #[arg(long, default_value_t = 8080)]
    server_port: u16,

    /// The jobs topic.
    #[arg(long, env = "KAFKA_TOPIC", default_value = DEFAULT_JOBS_TOPIC, value_name = "NAME")]
    topic: String,

    /// Partitions of the jobs topic, if it has to be made.
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(i32).range(1..))]
    partitions: i32,
}

pub(crate) async fn run(args: Args) -> Result<ExitCode, CliError> {
    let stop = shutdown::signal_token().map_err(|error| CliError::Io("signals can't be handled", error))?;
    let root =
        std::env::current_dir().map_err(|error| CliError::Io("there is no current directory", error))?;
    let temporary = tempfile::Builder::new().prefix("mcp-fleet-dev-").tempdir();
    let temporary = temporary.map_err(|error| CliError::Io("can't make a temporary directory", error))?;
    let run_dir = args.data_dir.as_ref().map_or_else(|| temporary.path().to_owned(), |dir| dir.join("run"));
    let config = StackConfig {
        brokers: args.brokers,
        broker_port: args.broker_port,
        server_port: args.server_port,
        data_dir: args.data_dir.as_ref().map(|dir| dir.join("broker")),
        run_dir: run_dir.clone(),
        root,
        topic: args.topic,
        group: "mcp-workers".to_owned(),
        partitions: args.partitions,
        workers: usize::from(args.workers),
        jobs: true,
    };
    output::line("starting …");
    let mut stack = tokio::select! {
        stack = Stack::start(config) => stack?,
        () = stop.cancelled() => return Ok(ExitCode::FAILURE),
    };
    stack.host_files().await?;
    stack.start_workers().await?;
    say_what_is_next(&stack, &run_dir);
    let died = stack.broker_died();
    let outcome = tokio::select! {
        outcome = keep_running(&mut stack, &stop) => outcome,
        died = died => Err(died),
    };
    output::line("stopping: workers drain, then the server, then the broker …");
    stack.stop().await;
    outcome.map(|()| ExitCode::SUCCESS)
}

fn say_what_is_next(stack: &Stack, run_dir: &std::path::Path) {
    let brokers = &stack.settings.brokers;
    output::line(&format!("broker      {brokers}"));
    output::line(&format!("mcp-server  {}/mcp", stack.server_url));
    output::line(&format!("jobs        {}/jobs", stack.server_url));
    for worker in &stack.workers {
        output::line(&format!("worker      {} (pid {})", worker.name, worker.id().unwrap_or_default()));
    }
    output::line(&format!("logs        {}", run_dir.display()));
    // The program as it was called, so that the lines can be copied as they stand.
    let program = std::env::args().next().unwrap_or_else(|| "mcp-fleet".to_owned());
    output::line("\nIn another terminal, in this directory:");
    output::line(&format!("  {program} events --brokers {brokers}"));
    output::line(&format!(
        "  {program} submit --brokers {brokers} --server {FILES} --tool file_list --arguments '{{\"path\":\".\"}}' --wait"
    ));
    output::line(&format!("  {program} jobs list --server {}", stack.server_url));
    output::line(&format!("  {program} jobs watch --server {}", stack.server_url));
    output::line("\nCtrl-C ends everything; jobs under way are finished first.");
}

/// Deaths of one process in a row.
#[derive(Debug, Clone, Copy)]
struct Deaths {
    count: u32,
    started: tokio::time::Instant,
    restart_at: Option<tokio::time::Instant>,
}

impl Deaths {
    fn none() -> Self {
        Self { count: 0, started: tokio::time::Instant::now(), restart_at: None }
    }

    /// Whether it is time to start the process again.
    fn is_due(&self) -> bool {
        self.restart_at.is_some_and(|at| tokio::time::Instant::now() >= at)
    }

    fn started_again(self) -> Self {
        Self { started: tokio::time::Instant::now(), restart_at: None, ..self }
    }

    /// Looks whether the process lives, and says what follows if not.
    fn look(&mut self, process: &mut Process) {
        if let Some(status) = process.exited() {
            let delay = self.next();
            let (name, how) = (&process.name, supervise::describe(status));
            output::line(&format!("{name} {how}; starting it again in {delay:?}"));
        }
    }

    /// When to start again a process that has just been found dead.
    fn next(&mut self) -> Duration {
        self.count = if self.started.elapsed() >= WELL { 1 } else { self.count.saturating_add(1) };
        let delay = RESTART.saturating_mul(1 << self.count.saturating_sub(1).min(10)).min(RESTART_MAX);
        self.restart_at = Some(tokio::time::Instant::now() + delay);
        delay
    }
}

/// Starts what dies again.
async fn keep_running(stack: &mut Stack, stop: &CancellationToken) -> Result<(), CliError> {
    let mut workers = vec![Deaths::none(); stack.workers.len()];
    let mut server = Deaths::none();
    let mut look = tokio::time::interval(LOOK);
    loop {
        tokio::select! {
            () = stop.cancelled() => return Ok(()),
            _ = look.tick() => {}
        }
        if server.is_due() {
            match start_server_again(stack).await {
                Ok(()) => server = server.started_again(),
                Err(error) => {
                    let delay = server.next();
                    let error = fleet_ops::errors::chain(&error);
                    output::line(&format!(
                        "mcp-server does not come back ({error}); trying again in {delay:?}"
                    ));
                }
            }
        } else if server.restart_at.is_none()
            && let Some(process) = &mut stack.server
        {
            server.look(process);
        }
        for (index, deaths) in workers.iter_mut().enumerate() {
            if deaths.is_due() {
                let worker = stack.start_worker(index + 1)?;
                output::line(&format!(
                    "{} started again (pid {})",
                    worker.name,
                    worker.id().unwrap_or_default()
                ));
                stack.workers[index] = worker;
                *deaths = deaths.started_again();
            } else if deaths.restart_at.is_none() {
                deaths.look(&mut stack.workers[index]);
            }
        }
    }
}

/// Jobs wait for the server meanwhile. It remembers nothing of what it hosted, so that comes first.
async fn start_server_again(stack: &mut Stack) -> Result<(), CliError> {
    stack.restart_server().await?;
    stack.host_files().await?;
    let pid = stack.server.as_ref().and_then(Process::id).unwrap_or_default();
    output::line(&format!("mcp-server started again (pid {pid})"));
    Ok(())
}
