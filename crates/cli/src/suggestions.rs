//! What a shell offers for a tool, a hosted server, a job or a topic: it asks the server or Kafka
//! that the command line names so far, for a moment. If there is no answer, nothing is offered.

use std::{
    ffi::{OsStr, OsString},
    time::Duration,
};

use clap::Parser;
use clap_complete::engine::CompletionCandidate;
use fleet_job::filter::JobFilter;
use fleet_kafka::admin;
use fleet_ops::blocking::run_blocking;

use crate::{
    connection::Connection, dlq::text::shorten, error::CliError, server_args::ServerArgs, servers,
};

/// How long somebody who has pressed a key waits at most. It is shorter than the silence after
/// which commands say what they wait for.
const PATIENCE: Duration = Duration::from_millis(800);
/// The most jobs to offer, newest first.
const MAX_JOBS: usize = 200;
/// The maximum length of the text beside a candidate.
const HELP: usize = 60;
/// The flags that say whom to ask. All of them have a value.
const FLAGS: [&str; 8] = [
    "--server",
    "--token",
    "--token-file",
    "--server-ca",
    "--server-client-certificate",
    "--server-client-key",
    "--brokers",
    "--topic",
];
/// What ends the name of the topic of events, which every jobs topic has.
const EVENTS: &str = ".events";

/// Whom to ask.
#[derive(Debug, Parser)]
#[command(no_binary_name = true, disable_help_flag = true)]
struct Source {
    #[command(flatten)]
    server: ServerArgs,
    #[command(flatten)]
    connection: Connection,
}

/// Something to offer, and a few words about it.
type Suggestion = (String, String);

/// Offers the tools of the server.
pub(crate) fn tools(current: &OsStr) -> Vec<CompletionCandidate> {
    offer(current, |source| async move {
        let tools = source.server.mcp()?.list_tools().await?;
        let about = |text: Option<&str>| text.unwrap_or_default().to_owned();
        Ok(tools.iter().map(|tool| (tool.name.clone(), about(tool.description()))).collect())
    })
}

/// Offers the servers that the server hosts.
pub(crate) fn hosted_servers(current: &OsStr) -> Vec<CompletionCandidate> {
    offer(current, |source| async move {
        let reported = servers::fetch_servers(&source.server.mcp()?).await?;
        let servers = servers::read_servers(&reported);
        Ok(servers.into_iter().map(|server| (server.name, String::new())).collect())
    })
}

/// Offers the newest jobs that the server knows.
pub(crate) fn jobs(current: &OsStr) -> Vec<CompletionCandidate> {
    offer(current, |source| async move {
        let jobs = source.server.api()?.list(&JobFilter::default(), MAX_JOBS, None).await?.jobs;
        let suggest = |job: fleet_job::view::JobView| {
            let tool = job.event.tool.unwrap_or_default();
            (job.event.job_id, format!("{} {tool}", job.event.state.as_str()))
        };
        Ok(jobs.into_iter().map(suggest).collect())
    })
}

/// Offers the jobs topics of Kafka.
pub(crate) fn topics(current: &OsStr) -> Vec<CompletionCandidate> {
    offer(current, |source| async move {
        let settings = source.connection.settings()?;
        let names =
            run_blocking(move || Ok::<_, CliError>(admin::topic_names(&settings, PATIENCE)?));
        let names = names.await?;
        let jobs = names.iter().filter_map(|name| name.strip_suffix(EVENTS));
        Ok(jobs.map(|name| (name.to_owned(), String::new())).collect())
    })
}

/// Asks for suggestions within the limit.
fn offer<F>(current: &OsStr, ask: impl FnOnce(Source) -> F) -> Vec<CompletionCandidate>
where
    F: Future<Output = Result<Vec<Suggestion>, CliError>>,
{
    let words = flags_among(std::env::args_os());
    let (Some(current), Ok(source)) = (current.to_str(), Source::try_parse_from(words)) else {
        return Vec::new();
    };
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    let Ok(runtime) = runtime else { return Vec::new() };

    let suggested = runtime.block_on(async { tokio::time::timeout(PATIENCE, ask(source)).await });
    // A question to Kafka may still block its thread.
    runtime.shutdown_background();
    let suggested = suggested.ok().and_then(Result::ok).unwrap_or_default();
    choose(current, suggested).into_iter().map(candidate).collect()
}

fn candidate((value, help): Suggestion) -> CompletionCandidate {
    let help = Some(shorten(&help, HELP)).filter(|help| !help.is_empty());
    CompletionCandidate::new(value).help(help.map(Into::into))
}

/// Returns the suggestions that begin with what is typed. The shell puts them on the command line
/// as they are, and others choose the ids of jobs: what a shell could take for more than a word is
/// left out.
fn choose(current: &str, suggested: Vec<Suggestion>) -> Vec<Suggestion> {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.:@%+=,/".contains(c);
    let is_word = |text: &str| !text.starts_with('-') && text.chars().all(is_plain);
    let mut chosen = suggested;
    chosen.retain(|(value, _)| value.starts_with(current) && is_word(value));
    chosen
}

/// Returns the flags among the words of a command line that say whom to ask.
fn flags_among(words: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut found = Vec::new();
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        let Some(text) = word.to_str() else { continue };
        if FLAGS.contains(&text) {
            // The word that is being completed may follow, or nothing.
            let value = words.next().filter(|value| !value.is_empty());
            found.extend(value.map(|value| [word, value]).into_iter().flatten());
        } else if text
            .split_once('=')
            .is_some_and(|(name, value)| FLAGS.contains(&name) && !value.is_empty())
        {
            found.push(word);
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_found_wherever_they_are() {
        let check = |words: &[&str], expected: &[&str]| {
            assert_eq!(flags_among(words.iter().map(OsString::from)), expected, "{words:?}");
        };
        check(&["mcp-fleet", "--", "mcp-fleet", "tools", "call", ""], &[]);
        check(
            &["tools", "--server", "a:1", "call", "--token-file=k", "x"],
            &["--server", "a:1", "--token-file=k"],
        );
        check(&["jobs", "show", "--server", ""], &[]);
        check(&["jobs", "show", "--server"], &[]);
        check(&["--brokers=", "--brokers", "b:1"], &["--brokers", "b:1"]);
        let found = flags_among(["--server", "a:1"].map(OsString::from));
        assert!(Source::try_parse_from(found).unwrap().server.is_given());
    }

    #[test]
    fn nothing_that_a_shell_would_run_is_offered() {
        let ids = ["job-1", "job-$(id)", "job`id`", "job;id", "job 2", "--json", "other", "job:3"];
        let suggested = ids.map(|id| (id.to_owned(), String::new())).to_vec();
        let chosen: Vec<_> = choose("job", suggested).into_iter().map(|(id, _)| id).collect();
        assert_eq!(chosen, ["job-1", "job:3"]);
        let flags = vec![("--json".to_owned(), String::new())];
        assert!(choose("", flags).is_empty());
    }
}
