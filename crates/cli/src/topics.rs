//! `mcp-fleet topics`: making the topics.

use std::{process::ExitCode, time::Duration};

use fleet_kafka::{KafkaError, admin};
use serde_json::json;

use crate::{connection::Connection, error::CliError, output};

/// How long a broker may take to answer at all.
const REACH: Duration = Duration::from_secs(5);

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Create the jobs topic, its events and its dead letters; those that exist are left as they are.
    Create(Create),
}

#[derive(Debug, clap::Args)]
pub(crate) struct Create {
    #[command(flatten)]
    connection: Connection,

    /// Partitions of the jobs topic: the most workers that can share the work.
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(i32).range(1..))]
    partitions: i32,

    /// Replicas; the broker's default where it is not set.
    #[arg(long, value_parser = clap::value_parser!(i32).range(1..))]
    replication: Option<i32>,

    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(command: Command) -> Result<ExitCode, CliError> {
    let Command::Create(args) = command;
    let specs =
        admin::fleet_topics(&args.connection.topics(), args.partitions, args.replication.unwrap_or(-1));
    let settings = args.connection.settings()?;
    // Whether the topic exists is not the question; whether a broker answers is, and this says so quickly.
    let (look, topic) = (settings.clone(), args.connection.topic.clone());
    let found = tokio::task::spawn_blocking(move || admin::partitions(&look, &topic, REACH)).await;
    if let Ok(Err(error @ KafkaError::Unreachable { .. })) = found {
        return Err(error.into());
    }
    let created = admin::create_topics(&settings, &specs).await?;
    if args.json {
        output::json(&json!({ "created": created }));
        return Ok(ExitCode::SUCCESS);
    }
    for spec in &specs {
        let state = if created.contains(&spec.name) { "created" } else { "exists" };
        output::line(&format!("{state:8} {} ({} partitions)", spec.name, spec.partitions));
    }
    Ok(ExitCode::SUCCESS)
}
