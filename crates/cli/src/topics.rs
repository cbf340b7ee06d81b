//! `mcp-fleet topics`: making the topics.

use std::{process::ExitCode, time::Duration};

use fleet_kafka::{KafkaError, admin};
use serde_json::json;

use crate::{connection::Connection, error::CliError, output};

/// How long a broker may take to answer at all.
const REACH: Duration = Duration::from_secs(5);

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Create the jobs topic, its events, dead letters and delayed jobs; those that exist are left as they are.
    Create(Create),
}

const EXAMPLES: &str = "Examples:
  mcp-fleet topics create
  mcp-fleet topics create --brokers kafka:9092 --partitions 48 --replication 3 --replies mcp-replies";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Create {
    #[command(flatten)]
    connection: Connection,

    /// Partitions of the jobs topic: the most workers that can share the work.
    #[arg(long, default_value_t = 12, value_parser = clap::value_parser!(i32).range(1..))]
    partitions: i32,

    /// Replicas; the broker's default where it is not set.
    #[arg(long, value_parser = clap::value_parser!(i32).range(1..))]
    replication: Option<i32>,

    /// Create this topic too, for jobs that name it in `replyTo`; may be repeated.
    #[arg(long, value_name = "NAME")]
    replies: Vec<String>,

    /// Print one JSON object.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(command: Command) -> Result<ExitCode, CliError> {
    let Command::Create(args) = command;
    let replication = args.replication.unwrap_or(-1);
    let mut specs = admin::fleet_topics(&args.connection.topics(), args.partitions, replication);
    specs.extend(args.replies.iter().map(|name| admin::reply_topic(name, replication)));
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
        // What is there already has as many as it was made with.
        output::line(&match created.contains(&spec.name) {
            true => format!("created  {} ({} partitions)", spec.name, spec.partitions),
            false => format!("exists   {}", spec.name),
        });
    }
    Ok(ExitCode::SUCCESS)
}
