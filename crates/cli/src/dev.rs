//! `mcp-fleet dev`: runs a whole fleet until Ctrl-C. Broker, server and workers are separate
//! processes; one that dies is restarted.
//!
//! [`supervisor`] decides, `fleet` carries out the decisions, and `role` owns the process of a
//! role.

mod advice;
mod fleet;
mod hosted;
mod kafka_probe;
mod role;
mod supervisor;

use std::{
    fs::TryLockError,
    path::{Path, PathBuf},
    process::ExitCode,
};

use fleet_job::topics::DEFAULT_JOBS_TOPIC;
use fleet_ops::shutdown;

use crate::{error::CliError, output, stack::StackConfig};
use fleet::Fleet;

const EXAMPLES: &str = "Examples:
  mcp-fleet dev
  mcp-fleet dev --servers mcp.json
  mcp-fleet dev -- uvx my-server
  mcp-fleet dev --workers 4 --data-dir .fleet
  mcp-fleet dev --broker-port 19092 --server-port 18080";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// Host the servers of this mcpServers file instead of the files of this directory
    #[arg(help_heading = "Hosted servers", long, value_name = "FILE")]
    servers: Option<PathBuf>,

    /// Host the server that this command starts, and nothing else
    #[arg(value_name = "COMMAND", last = true, conflicts_with = "servers")]
    command: Vec<String>,

    /// The name of the server that the command starts; by default, it is made of the command
    #[arg(help_heading = "Hosted servers", long, value_name = "NAME", requires = "command")]
    name: Option<String>,

    /// How many workers to start
    #[arg(
        help_heading = "Fleet",
        long,
        default_value_t = 2,
        value_parser = clap::value_parser!(u16).range(1..=64),
    )]
    workers: u16,

    /// Keep topics, offsets, keys and logs in this directory; by default, they are deleted at exit
    #[arg(help_heading = "Fleet", long, value_name = "DIR")]
    data_dir: Option<PathBuf>,

    /// Use this Kafka instead of the embedded broker
    #[arg(help_heading = "Kafka", long, value_name = "HOSTS")]
    brokers: Option<String>,

    /// The port of the embedded broker; 0 for any free port
    #[arg(help_heading = "Kafka", long, default_value_t = 9092)]
    broker_port: u16,

    /// The port of the MCP server; 0 for any free port
    #[arg(help_heading = "Fleet", long, default_value_t = 8080)]
    server_port: u16,

    /// The jobs topic
    #[arg(
        help_heading = "Kafka",
        long,
        env = "KAFKA_TOPIC",
        default_value = DEFAULT_JOBS_TOPIC,
        value_name = "NAME",
    )]
    topic: String,

    /// Partitions of the jobs topic, if it has to be created
    #[arg(
        help_heading = "Kafka",
        long,
        default_value_t = 12,
        value_parser = clap::value_parser!(i32).range(1..),
    )]
    partitions: i32,
}

pub(crate) async fn run(args: Args) -> Result<ExitCode, CliError> {
    let stop = shutdown::signal_token()
        .map_err(|error| CliError::Io("could not install signal handlers", error))?;

    let root = std::env::current_dir()
        .map_err(|error| CliError::Io("could not determine the current directory", error))?;

    let temporary = tempfile::Builder::new().prefix("mcp-fleet-dev-").tempdir();
    let temporary =
        temporary.map_err(|error| CliError::Io("could not create a temporary directory", error))?;

    let run_dir =
        args.data_dir.as_ref().map_or_else(|| temporary.path().to_owned(), |dir| dir.join("run"));
    let data_dir = args.data_dir.as_deref().unwrap_or(temporary.path());
    let (broker_dir, keys_dir) = (data_dir.join("broker"), data_dir.join("access"));

    if let Some(directory) = &args.data_dir {
        prepare_data_dir(directory)?;
    }

    std::fs::create_dir_all(&run_dir).map_err(|source| CliError::File {
        what: "could not create the directory",
        path: run_dir.clone(),
        source,
    })?;
    // Held until the fleet has ended.
    let _lock = lock(&run_dir)?;

    let config = StackConfig {
        hosts: hosted::hosted_servers(
            args.servers.as_deref(),
            &args.command,
            args.name.as_deref(),
            &run_dir,
        )?,
        brokers: args.brokers,
        broker_port: args.broker_port,
        server_port: args.server_port,
        run_dir,
        keys_dir,
        hidden: hidden_below(&root, args.data_dir.as_deref()),
        root,
        topic: args.topic,
        group: "mcp-workers".to_owned(),
        partitions: args.partitions,
        workers: usize::from(args.workers),
        jobs: true,
    };

    match config.server_port {
        0 => output::line("starting …"),
        port => output::line(&format!("starting http://127.0.0.1:{port} …")),
    }
    Fleet::new(config, broker_dir)?.run(stop).await?;
    Ok(ExitCode::SUCCESS)
}

/// Locks the directory of a running fleet. A second fleet would replace the policy and the logs of
/// the first one.
fn lock(run_dir: &Path) -> Result<std::fs::File, CliError> {
    let path = run_dir.join("lock");
    let failed = |source| CliError::File { what: "could not lock", path: path.clone(), source };
    let mut options = std::fs::OpenOptions::new();
    let file = options.write(true).create(true).truncate(false).open(&path).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(CliError::FleetRuns { directory: run_dir.to_owned() }),
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}

/// Creates the data directory. A new one is kept out of Git, since it has keys.
fn prepare_data_dir(directory: &Path) -> Result<(), CliError> {
    if directory.exists() {
        return Ok(());
    }
    let written = std::fs::create_dir_all(directory)
        .and_then(|()| std::fs::write(directory.join(".gitignore"), "*\n"));
    written.map_err(|source| CliError::File {
        what: "could not create the data directory",
        path: directory.to_owned(),
        source,
    })
}

/// The data directory, if it is below the directory whose files are hosted.
fn hidden_below(root: &Path, data_dir: Option<&Path>) -> Option<PathBuf> {
    let (root, data_dir) = (root.canonicalize().ok()?, data_dir?.canonicalize().ok()?);
    data_dir.starts_with(&root).then_some(data_dir)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_fleet_at_a_time_uses_a_directory() {
        let dir = tempfile::tempdir().unwrap();
        let held = lock(dir.path()).unwrap();
        let refused = lock(dir.path()).unwrap_err().to_string();
        assert!(refused.contains("another `mcp-fleet dev`"), "{refused}");
        drop(held);
        lock(dir.path()).unwrap();
    }

    #[test]
    fn keys_are_neither_hosted_nor_committed() {
        let dir = tempfile::tempdir().unwrap();
        let (root, data) = (dir.path().join("root"), dir.path().join("root/.fleet"));
        prepare_data_dir(&data).unwrap();
        assert_eq!(std::fs::read_to_string(data.join(".gitignore")).unwrap(), "*\n");
        assert_eq!(hidden_below(&root, Some(&data)), Some(data.canonicalize().unwrap()));
        assert_eq!(hidden_below(&root, Some(dir.path())), None);
        assert_eq!(hidden_below(&root, None), None);

        // What the user has put there stays.
        std::fs::write(data.join(".gitignore"), "run\n").unwrap();
        prepare_data_dir(&data).unwrap();
        assert_eq!(std::fs::read_to_string(data.join(".gitignore")).unwrap(), "run\n");
    }
}
