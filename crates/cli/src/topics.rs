//! `mcp-fleet topics`: creates the topics of a fleet.

use std::{process::ExitCode, time::Duration};

use fleet_job::topics::Topics;
use fleet_kafka::{KafkaError, admin, settings::Settings};
use serde_json::json;

use crate::{connection::Connection, error::CliError, output, wait_notice::WaitNotice};

/// How long a broker may take to respond at all.
const REACH: Duration = Duration::from_secs(5);
/// The number of partitions of a new jobs topic.
const PARTITIONS: i32 = 12;

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// Create the jobs topic and its companions; existing topics are left unchanged
    Create(Create),
}

const EXAMPLES: &str = "Examples:
  mcp-fleet topics create
  mcp-fleet topics create --brokers kafka:9092 --partitions 48 --replication 3
  mcp-fleet topics create --replies mcp-replies";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Create {
    #[command(flatten)]
    connection: Connection,

    /// Partitions of the jobs topic, which limit how many workers can share it; 12 for a new topic
    ///
    /// An existing topic with more partitions keeps them.
    #[arg(
        help_heading = "Topics",
        long,
        value_name = "N",
        value_parser = clap::value_parser!(i32).range(1..),
    )]
    partitions: Option<i32>,

    /// Add partitions to an existing jobs topic that has fewer than --partitions
    ///
    /// Keys then move to other partitions: until the jobs that wait now have ended, jobs of one key
    /// can overtake each other.
    #[arg(help_heading = "Topics", long, requires = "partitions")]
    grow: bool,

    /// Accept a jobs or delayed topic that is compacted, although compaction loses jobs
    #[arg(help_heading = "Topics", long)]
    allow_compacted_topic: bool,

    /// Replicas of new topics; by default, whatever the broker is configured for
    #[arg(
        help_heading = "Topics",
        long,
        value_name = "N",
        value_parser = clap::value_parser!(i32).range(1..),
    )]
    replication: Option<i32>,

    /// Also create this topic, for jobs that name it in `replyTo`; may be repeated
    #[arg(help_heading = "Topics", long, value_name = "NAME", value_parser = fleet_job::topics::parse_name)]
    replies: Vec<String>,

    /// Print one JSON object
    #[arg(help_heading = "Output", long)]
    json: bool,
}

pub(crate) async fn run(command: Command) -> Result<ExitCode, CliError> {
    let Command::Create(args) = command;

    let replication = args.replication.unwrap_or(-1);
    let mut specs = admin::fleet_topics(
        &args.connection.topics(),
        args.partitions.unwrap_or(PARTITIONS),
        replication,
    );
    specs.extend(args.replies.iter().map(|name| admin::reply_topic(name, replication)));

    let settings = args.connection.settings()?;
    let notice = WaitNotice::for_kafka(&settings);

    // This checks only that a broker responds, and fails quickly if not. Whether the topic exists
    // does not matter here.
    let (look, topic) = (settings.clone(), args.connection.topic.clone());
    let found = tokio::task::spawn_blocking(move || admin::partitions(&look, &topic, REACH)).await;
    if let Ok(Err(error @ KafkaError::Unreachable { .. })) = found {
        return Err(error.into());
    }

    let found = found.ok().and_then(Result::ok);
    let grows = match decide_growth(&args.connection.topic, found, args.partitions, args.grow)? {
        Growth::None => None,
        Growth::To(partitions) => Some(partitions),
        Growth::HasMore { found, wanted } => {
            let topic = &args.connection.topic;
            output::problem(&format!(
                "topic `{topic}` has {found} partitions, more than the requested {wanted}; it keeps them"
            ));
            None
        }
    };

    if !args.allow_compacted_topic {
        refuse_compacted(&settings, &args.connection.topics()).await?;
    }
    let created = admin::create_topics(&settings, &specs).await?;
    if let Some(partitions) = grows {
        admin::grow(&settings, &args.connection.topic, partitions).await?;
    }
    if !args.allow_compacted_topic && !created.is_empty() {
        // The broker's own default for new topics may be compaction.
        refuse_compacted(&settings, &args.connection.topics()).await?;
    }

    drop(notice);
    if args.json {
        output::json(&json!({ "created": created, "grownTo": grows }));
        return Ok(ExitCode::SUCCESS);
    }

    if let Some(partitions) = grows {
        output::line(&format!("grown    {} ({partitions} partitions)", args.connection.topic));
    }

    for spec in &specs {
        // An existing topic keeps its number of partitions.
        output::line(&match created.contains(&spec.name) {
            true => format!("created  {} ({} partitions)", spec.name, spec.partitions),
            false => format!("exists   {}", spec.name),
        });
    }
    Ok(ExitCode::SUCCESS)
}

/// Fails if a topic from which workers read jobs is compacted. If the broker does not say, as of a
/// topic that does not exist, it is not.
async fn refuse_compacted(settings: &Settings, topics: &Topics) -> Result<(), CliError> {
    for topic in [&topics.jobs, &topics.delayed] {
        if admin::is_compacted(settings, topic).await.unwrap_or_default() {
            return Err(KafkaError::Compacted(topic.clone()).into());
        }
    }
    Ok(())
}

/// What to do about the number of partitions of a topic.
#[derive(Debug, PartialEq)]
enum Growth {
    /// Nothing: the topic is new or has the requested number.
    None,
    /// Increase the number to this total.
    To(i32),
    /// Nothing: the topic has more than requested, for example because someone added partitions by
    /// hand.
    HasMore { found: i32, wanted: i32 },
}

/// Decides what to do about a topic that has `found` partitions (`None` if it does not exist) and
/// should have at least `wanted`.
fn decide_growth(
    topic: &str,
    found: Option<i32>,
    wanted: Option<i32>,
    may_grow: bool,
) -> Result<Growth, CliError> {
    let (Some(found), Some(wanted)) = (found, wanted) else { return Ok(Growth::None) };
    if wanted == found {
        return Ok(Growth::None);
    }
    if wanted < found {
        return Ok(Growth::HasMore { found, wanted });
    }
    if !may_grow {
        let message = format!(
            "topic `{topic}` has {found} partitions, not {wanted}. To add partitions, use --grow; keys then move to \
             other partitions, so jobs of one key can overtake each other until the jobs that wait now have ended"
        );
        return Err(CliError::Usage(message));
    }
    Ok(Growth::To(wanted))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_topic_grows_only_on_request_and_every_difference_is_reported() {
        let growth = |found, wanted, grow| {
            decide_growth("t", found, wanted, grow).map_err(|error| error.to_string())
        };
        assert_eq!(growth(None, Some(20), false), Ok(Growth::None));
        assert_eq!(growth(Some(12), None, false), Ok(Growth::None));
        assert_eq!(growth(Some(12), Some(12), false), Ok(Growth::None));
        assert_eq!(growth(Some(12), Some(20), true), Ok(Growth::To(20)));
        assert!(growth(Some(12), Some(20), false).is_err_and(|text| text.contains("--grow")));
        let more = Growth::HasMore { found: 20, wanted: 12 };
        assert_eq!(
            growth(Some(20), Some(12), false).as_ref(),
            Ok(&more),
            "a job that creates topics may run again"
        );
        assert_eq!(growth(Some(20), Some(12), true), Ok(more));
    }
}
