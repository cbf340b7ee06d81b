//! Asks Kafka and the server about a fleet. What can't be answered is a fact, too.

use std::time::Duration;

use fleet_job::topics::Topics;
use fleet_kafka::{KafkaError, admin, settings::Settings};
use fleet_lag::fetch_lag;
use fleet_ops::{blocking::run_blocking, clock, errors::chain};

use super::facts::{Facts, HostedFacts, HostedState, KafkaFacts, ServerFacts, TopicFacts};
use crate::{
    connection::Connection,
    error::CliError,
    jobs::api::Api,
    mcp::{CallError, McpServer},
    server_args::ServerArgs,
    servers::{self, Condition},
    wait_notice::WaitNotice,
};

/// How long a broker may take to answer each question.
const REACH: Duration = Duration::from_secs(5);
/// How long the server may take to say whether it is ready.
const READY: Duration = Duration::from_secs(5);

/// Gathers all facts at once.
///
/// # Errors
///
/// Returns an error if the flags are invalid.
pub(super) async fn gather(
    server: &ServerArgs,
    connection: &Connection,
    group: &str,
) -> Result<Facts, CliError> {
    let (settings, topics) = (connection.settings()?, connection.topics());
    let (api, mcp) = (server.api()?, server.mcp()?);
    let _notice = WaitNotice::new(format!(
        "answers from Kafka at {} and mcp-server at {}",
        settings.brokers,
        api.name()
    ));

    let brokers = settings.brokers.clone();
    let asked = group.to_owned();
    let kafka = run_blocking(move || Ok::<_, CliError>(ask_kafka(&settings, &topics, &asked)?));
    let (kafka, server) = tokio::join!(kafka, ask_server(&api, &mcp));
    let kafka = kafka.unwrap_or_else(|error| KafkaFacts {
        problem: Some(chain(&error)),
        ..KafkaFacts::default()
    });
    Ok(Facts { kafka: KafkaFacts { brokers, group: group.to_owned(), ..kafka }, server })
}

fn ask_kafka(settings: &Settings, topics: &Topics, group: &str) -> Result<KafkaFacts, KafkaError> {
    let named = [
        (&topics.jobs, true),
        (&topics.events, true),
        (&topics.dlq, true),
        (&topics.delayed, false),
        (&topics.control, false),
        (&topics.pauses, false),
        (&topics.claims, false),
        (&topics.audit, false),
    ];
    let spans = admin::spans_of(settings, named.map(|(name, _)| name.as_str()), REACH)?;
    let facts = named.into_iter().zip(&spans).map(|((name, is_needed), spans)| TopicFacts {
        name: name.clone(),
        partitions: spans.len(),
        is_needed,
    });
    let facts: Vec<_> = facts.collect();

    let [jobs, _, letters, ..] = &spans;
    let dead_letters = letters.iter().map(|span| span.end - span.start).sum();
    let members = admin::group_members(settings, group, REACH)?;
    let (lag, unreadable_commits) = match jobs.is_empty() {
        true => (None, 0),
        false => {
            let lag = fetch_lag(settings, group, &topics.jobs, REACH, clock::now())?;
            let unreadable = lag.partitions.iter().filter(|row| row.problem.is_some()).count();
            (Some(lag.totals), unreadable)
        }
    };

    Ok(KafkaFacts {
        topics: facts,
        is_rebalancing: !members.members.is_empty() && members.state != "Stable",
        workers: members.readers_of(&topics.jobs),
        lag,
        unreadable_commits,
        dead_letters,
        ..KafkaFacts::default()
    })
}

async fn ask_server(api: &Api, mcp: &McpServer) -> ServerFacts {
    let mut facts = ServerFacts { url: api.name(), ..ServerFacts::default() };
    if let Err(error) = api.check_ready(READY).await {
        facts.problem = Some(chain(&error));
        return facts;
    }

    let (jobs, tools, hosted, pauses) =
        tokio::join!(api.check_jobs(), mcp.list_tools(), servers::fetch_servers(mcp), api.pauses());
    mcp.close().await;

    // The caller may not be allowed to know them, or the server is older.
    facts.pauses = pauses.map(|list| list.pauses).unwrap_or_default();
    facts.jobs_problem = jobs.err().map(|error| chain(&error));
    let mut is_offered = true;
    match tools {
        Ok(tools) => {
            is_offered = tools.iter().any(|tool| tool.name == servers::STATUS_TOOL);
            facts.tools = tools.len();
        }
        Err(error) => facts.tools_problem = Some(chain(&error)),
    }
    match hosted {
        Ok(hosted) => {
            let read = servers::read_servers(&hosted);
            facts.hosted = read.iter().map(hosted_facts).collect();
        }
        Err(error) if is_failure(is_offered, &error) => {
            facts.tools_problem.get_or_insert_with(|| chain(&error));
        }
        Err(_) => {}
    }
    facts
}

/// Whether something is wrong with a server that does not report on the servers that it hosts. It
/// may not offer this to the caller at all, or the caller may not ask.
fn is_failure(is_offered: bool, error: &CallError) -> bool {
    is_offered && !error.is_denied()
}

fn hosted_facts(server: &servers::HostedServer) -> HostedFacts {
    let state = match server.condition() {
        Condition::Works => HostedState::Works,
        Condition::Starts => HostedState::Starts,
        Condition::Fails { problem, remedy } => HostedState::Fails { problem, remedy },
    };
    HostedFacts { name: server.name.clone(), state }
}

#[cfg(test)]
mod tests {
    use fleet_codes as codes;
    use fleet_job::outcome::{ErrorKind, JobError};

    use super::*;

    #[test]
    fn only_a_server_that_reports_to_this_caller_can_fail_to() {
        let broken = CallError::of(JobError::new(ErrorKind::Timeout, "no answer"));
        assert!(is_failure(true, &broken));
        assert!(!is_failure(false, &broken));
        for code in [codes::DENIED, codes::INSUFFICIENT_SCOPE] {
            let denied = JobError::new(ErrorKind::JsonRpc, "no").with_error_code(code);
            assert!(!is_failure(true, &CallError::of(denied)));
        }
    }
}
