//! `mcp-fleet approvals`: jobs that wait for the word of somebody else than who submitted them.

use std::{fmt::Write as _, process::ExitCode};

use fleet_job::{event::JobState, filter::JobFilter, time::Timestamp, view::JobView};
use fleet_ops::clock;

use crate::{
    dlq::text::{format_age, shorten},
    error::CliError,
    jobs::list::Pages,
    output,
    result_view::for_terminal,
    server_args::ServerArgs,
};

/// The most jobs that are listed.
const LISTED: usize = 500;
/// The longest text in a list, in characters. A job's id is never longer.
const SHOWN: usize = 256;

const LIST_EXAMPLES: &str = "Examples:
  mcp-fleet approvals list
  mcp-fleet approvals list --json | jq -r .jobID";

const SHOW_EXAMPLES: &str = "Examples:
  mcp-fleet approvals show job-123";

const APPROVE_EXAMPLES: &str = "Examples:
  mcp-fleet approvals approve job-123 --reason 'agreed in #ops'
  mcp-fleet approvals list --json | jq -r .jobID | xargs -d '\\n' mcp-fleet approvals approve --

It takes the right `jobs.approve`, and nobody approves a job of their own. The exit code is 1 if one
of the jobs could not be decided on.";

const DENY_EXAMPLES: &str = "Examples:
  mcp-fleet approvals deny job-123 --reason 'not during the freeze'";

#[derive(Debug, clap::Subcommand)]
pub(crate) enum Command {
    /// List the jobs that wait for approval
    List(ListArgs),
    /// Show what a job is about that waits for approval
    Show(ShowArgs),
    /// Let jobs run
    #[command(after_help = APPROVE_EXAMPLES)]
    Approve(DecideArgs),
    /// Let jobs end as cancelled, without having run
    #[command(after_help = DENY_EXAMPLES)]
    Deny(DecideArgs),
}

#[derive(Debug, clap::Args)]
#[command(after_help = LIST_EXAMPLES)]
pub(crate) struct ListArgs {
    #[command(flatten)]
    server: ServerArgs,

    /// Print one JSON object per line
    #[arg(help_heading = "Output", long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
#[command(after_help = SHOW_EXAMPLES)]
pub(crate) struct ShowArgs {
    #[command(flatten)]
    server: ServerArgs,

    /// The id of the job
    #[arg(value_name = "JOB_ID")]
    job_id: String,

    /// Print one JSON object
    #[arg(help_heading = "Output", long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
pub(crate) struct DecideArgs {
    #[command(flatten)]
    server: ServerArgs,

    /// The ids of the jobs
    #[arg(value_name = "JOB_ID", required = true)]
    job_ids: Vec<String>,

    /// Why; shown to whoever looks at the job
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,

    /// Print one JSON object per job
    #[arg(help_heading = "Output", long)]
    json: bool,
}

pub(crate) async fn run(command: Command) -> Result<ExitCode, CliError> {
    match command {
        Command::List(args) => list(args).await,
        Command::Show(args) => show(args).await,
        Command::Approve(args) => decide(args, true).await,
        Command::Deny(args) => decide(args, false).await,
    }
}

async fn list(args: ListArgs) -> Result<ExitCode, CliError> {
    let states = vec![JobState::AwaitingApproval];
    let filter = JobFilter { states, ..JobFilter::default() };
    let (api, now) = (args.server.api()?, clock::now());
    let mut pages = Pages::new(&api, &filter, LISTED);

    let mut listed = 0;
    while let Some(jobs) = pages.next().await? {
        listed += jobs.len();
        for job in &jobs {
            match args.json {
                true => output::json(job),
                false => output::line(&one_line(job, now)),
            }
        }
    }

    if listed == 0 && !args.json {
        output::line("no job awaits approval");
    }
    if pages.more {
        output::problem(&format!("only the newest {listed} are listed"));
    }
    Ok(ExitCode::SUCCESS)
}

async fn show(args: ShowArgs) -> Result<ExitCode, CliError> {
    let job = args.server.api()?.get(&args.job_id).await?;
    match args.json {
        true => output::json(&job),
        false => output::line(&for_terminal(&details(&job))),
    }
    Ok(ExitCode::SUCCESS)
}

async fn decide(args: DecideArgs, approve: bool) -> Result<ExitCode, CliError> {
    let api = args.server.api()?;
    let mut code = ExitCode::SUCCESS;
    for job_id in &args.job_ids {
        match api.decide(job_id, approve, args.reason.as_deref()).await {
            Ok(job) if args.json => output::json(&job),
            Ok(job) => output::line(&job.summary()),
            Err(error) => {
                output::problem(&format!("{job_id}: {}", fleet_ops::errors::chain(&error)));
                code = ExitCode::FAILURE;
            }
        }
    }
    Ok(code)
}

/// A job in a list: its id, what it calls, who asks, and how long there is to decide. The texts are
/// those of the submitter, so none of them may begin a line of its own.
fn one_line(job: &JobView, now: Timestamp) -> String {
    let event = &job.event;
    let what = event.tool.as_deref().or(event.job_type.as_deref()).unwrap_or("?");
    let cell = |text: &str| shorten(text, SHOWN);
    let mut line = format!("{}  {}", cell(&event.job_id), cell(what));
    if let Some(approval) = &event.approval {
        if let Some(by) = &approval.requested_by {
            write!(line, "  asked by {}", cell(by)).ok();
        }
        let left = format_age(approval.expires_at.since(now));
        write!(line, "  rule {}  {left} left", cell(&approval.rule)).ok();
    }
    line
}

/// Everything that somebody has to know to decide.
fn details(job: &JobView) -> String {
    let Some(approval) = job.event.awaits_approval() else { return job.summary() };
    let mut text = job.summary();
    if let Some(by) = &approval.requested_by {
        write!(text, "\nAsked by: {by}").ok();
    }
    let envelope: Option<serde_json::Value> = serde_json::from_str(&approval.envelope).ok();
    let shown = envelope.and_then(|envelope| serde_json::to_string_pretty(&envelope).ok());
    write!(text, "\n\nThe job:\n{}", shown.as_deref().unwrap_or(&approval.envelope)).ok();
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use fleet_job::{approval::PendingApproval, event::JobEvent};

    use super::*;

    fn job() -> JobView {
        let now = Timestamp::from_millis_clamped(1_000_000);
        let approval = PendingApproval {
            rule: "ask".to_owned(),
            requested_by: Some("Alice".to_owned()),
            approved: None,
            expires_at: now.plus(Duration::from_secs(7200)),
            envelope: r#"{"jobID":"j"}"#.to_owned(),
            key: None,
            headers: Vec::new(),
        };
        let event = JobEvent {
            tool: Some("db__drop".to_owned()),
            approval: Some(Box::new(approval)),
            ..JobEvent::new("j", JobState::AwaitingApproval, now)
        };
        JobView { event, cancel_requested_at: None }
    }

    #[test]
    fn what_a_decision_needs_is_shown() {
        let line = one_line(&job(), Timestamp::from_millis_clamped(1_000_000));
        assert_eq!(line, "j  db__drop  asked by Alice  rule ask  2h left");

        let mut forged = job();
        forged.event.tool = Some("db__read\nk  files__read".to_owned());
        if let Some(approval) = &mut forged.event.approval {
            approval.requested_by = Some("Bob\r\n\u{1b}[2K".to_owned());
        }
        let line = one_line(&forged, Timestamp::from_millis_clamped(1_000_000));
        assert!(!line.contains(char::is_control), "{line:?}");

        let text = details(&job());
        for part in ["awaits approval (rule ask)", "Asked by: Alice", "\"jobID\": \"j\""] {
            assert!(text.contains(part), "{text}");
        }
    }
}
