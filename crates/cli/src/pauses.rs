//! `mcp-fleet pause`, `pauses` and `resume`: people keep jobs from starting, and let them go on.

use std::{collections::BTreeMap, process::ExitCode, time::Duration};

use clap::builder::{PossibleValuesParser, TypedValueParser};
use clap_complete::engine::ArgValueCompleter;
use fleet_job::{
    envelope::JobType,
    pause::{Pause, PauseRequest, PauseScope},
    time::Timestamp,
};
use fleet_ops::{clock, config::parse_duration};

use crate::{
    api_error::ApiError,
    dlq::text::{format_age, format_time, new_table, shorten},
    error::CliError,
    output,
    result_view::for_terminal,
    server_args::ServerArgs,
    suggestions,
};

/// The longest reason or scope in a list, in characters.
const SHOWN: usize = 80;

const PAUSE_EXAMPLES: &str = "Paused jobs wait without a slot and spend no attempt. Jobs that run go on, and deadlines still end
jobs. All conditions must hold; without any, --all is needed. A pause with --tenant takes the right
`jobs.pause` in that tenant, any other the right for all tenants.

Examples:
  mcp-fleet pause --hosted db --reason 'migration' --for 1h
  mcp-fleet pause --tool 'mail__*' --tenant acme --reason 'wrong addresses'
  mcp-fleet pause --all --reason 'incident 17'";

const LIST_EXAMPLES: &str = "Examples:
  mcp-fleet pauses
  mcp-fleet pauses --json | jq -r .id";

const RESUME_EXAMPLES: &str = "Examples:
  mcp-fleet resume 0b8ef8a4-7bd5-4a3e-9a76-0f6f2b0f7f0e
  mcp-fleet resume --all";

#[derive(Debug, clap::Args)]
#[command(after_help = PAUSE_EXAMPLES)]
pub(crate) struct PauseArgs {
    #[command(flatten)]
    server: ServerArgs,

    #[command(flatten)]
    scope: ScopeArgs,

    /// Why; shown with the jobs that wait
    #[arg(long, value_name = "TEXT")]
    reason: String,

    /// How long (30m, 2h, 7d); otherwise until `mcp-fleet resume`
    #[arg(long = "for", value_name = "DURATION", value_parser = parse_duration)]
    lasts: Option<Duration>,

    /// Print the pause as JSON
    #[arg(help_heading = "Output", long)]
    json: bool,
}

/// Which jobs to pause.
#[derive(Debug, Default, clap::Args)]
struct ScopeArgs {
    /// Jobs that call a tool of this hosted server
    #[arg(help_heading = "Jobs", long, value_name = "NAME")]
    hosted: Option<String>,

    /// Jobs that call a tool whose name matches this pattern
    #[arg(help_heading = "Jobs", long, value_name = "PATTERN", add = ArgValueCompleter::new(suggestions::tools))]
    tool: Option<String>,

    /// Jobs of this tenant
    #[arg(help_heading = "Jobs", long, value_name = "NAME")]
    tenant: Option<String>,

    /// Jobs of this type
    #[arg(help_heading = "Jobs", long = "type", value_name = "TYPE", value_parser = type_parser())]
    job_type: Option<JobType>,

    /// Jobs whose id begins with this
    #[arg(help_heading = "Jobs", long, value_name = "PREFIX")]
    id_prefix: Option<String>,

    /// Jobs whose metadata has this member; can be repeated
    #[arg(help_heading = "Jobs", long, value_name = "NAME=VALUE", value_parser = parse_member)]
    metadata: Vec<(String, String)>,

    /// All jobs
    #[arg(help_heading = "Jobs", long)]
    all: bool,
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
#[command(after_help = RESUME_EXAMPLES)]
pub(crate) struct ResumeArgs {
    #[command(flatten)]
    server: ServerArgs,

    /// The ids of the pauses to end
    #[arg(value_name = "PAUSE_ID", required_unless_present = "all")]
    pause_ids: Vec<String>,

    /// End all pauses that you may end
    #[arg(long, conflicts_with = "pause_ids")]
    all: bool,

    /// Print one JSON object per pause
    #[arg(help_heading = "Output", long)]
    json: bool,
}

fn type_parser() -> impl TypedValueParser<Value = JobType> {
    PossibleValuesParser::new(JobType::ALL.map(JobType::as_str)).try_map(|name| {
        JobType::from_name(&name).ok_or_else(|| format!("`{name}` is not a type of job"))
    })
}

fn parse_member(text: &str) -> Result<(String, String), String> {
    let member = text.split_once('=').filter(|(name, _)| !name.is_empty());
    let (name, value) = member.ok_or("expected NAME=VALUE, with a member of the metadata")?;
    Ok((name.to_owned(), value.to_owned()))
}

impl ScopeArgs {
    /// Returns the scope. To pause all jobs takes saying so.
    fn into_scope(self) -> Result<PauseScope, ApiError> {
        let all = self.all;
        let scope = PauseScope {
            server: self.hosted,
            tool: self.tool,
            tenant: self.tenant,
            job_type: self.job_type,
            id_prefix: self.id_prefix,
            metadata: BTreeMap::from_iter(self.metadata),
        };

        let problem = match (all, scope.is_everything()) {
            (true, true) | (false, false) => return Ok(scope),
            (false, true) => "nothing is selected; name jobs to pause, or pass --all",
            (true, false) => "--all and other conditions exclude each other",
        };
        Err(ApiError::Usage(problem.to_owned()))
    }
}

pub(crate) async fn pause(args: PauseArgs) -> Result<ExitCode, CliError> {
    let for_ms = args.lasts.map(|lasts| u64::try_from(lasts.as_millis()).unwrap_or(u64::MAX));
    let scope = args.scope.into_scope()?;
    let request = PauseRequest { scope, reason: args.reason, until: None, for_ms };

    let pause = args.server.api()?.pause_jobs(&request).await?;
    match args.json {
        true => output::json(&pause),
        false => output::line(&for_terminal(&describe_new(&pause))),
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn list(args: ListArgs) -> Result<ExitCode, CliError> {
    let list = args.server.api()?.pauses().await?;
    if args.json {
        list.pauses.iter().for_each(output::json);
        return Ok(ExitCode::SUCCESS);
    }

    match list.pauses.as_slice() {
        [] => output::line("nothing is paused"),
        pauses => output::line(&render_table(pauses, clock::now())),
    }
    Ok(ExitCode::SUCCESS)
}

pub(crate) async fn resume(args: ResumeArgs) -> Result<ExitCode, CliError> {
    let api = args.server.api()?;
    let ids = match args.all {
        true => api.pauses().await?.pauses.into_iter().map(|pause| pause.id).collect(),
        false => args.pause_ids,
    };

    let mut failed = false;
    for id in ids {
        match api.resume_jobs(&id).await {
            Ok(pause) if args.json => output::json(&pause),
            Ok(pause) => output::line(&for_terminal(&format!("resumed: {}", pause.scope))),
            // Another one may be resumed all the same.
            Err(error @ ApiError::Refused(_)) => {
                failed = true;
                output::problem(&error.to_string());
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn describe_new(pause: &Pause) -> String {
    let until = match pause.until {
        Some(until) => format!("until {until}"),
        None => "until they are resumed".to_owned(),
    };
    format!("paused {until}: {}\nresume them with: mcp-fleet resume {}", pause.scope, pause.id)
}

fn render_table(pauses: &[Pause], now: Timestamp) -> String {
    let mut table = new_table(["PAUSE", "JOBS", "REASON", "BY", "FOR", "UNTIL"]);
    for pause in pauses {
        let shown = |text: &str| for_terminal(&shorten(text, SHOWN));
        table.add_row([
            shown(&pause.id),
            shown(&pause.scope.to_string()),
            shown(&pause.reason),
            shown(pause.by.as_deref().unwrap_or("-")),
            format_age(now.since(pause.since)),
            format_time(pause.until),
        ]);
    }
    table.trim_fmt()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn to_pause_everything_takes_saying_so() {
        let scope = |all, tenant: Option<&str>| {
            let tenant = tenant.map(str::to_owned);
            ScopeArgs { all, tenant, ..ScopeArgs::default() }.into_scope()
        };
        assert!(scope(false, None).unwrap_err().to_string().contains("--all"));
        assert!(scope(true, Some("a")).unwrap_err().to_string().contains("exclude"));
        assert!(scope(true, None).unwrap().is_everything());
        assert_eq!(scope(false, Some("a")).unwrap().tenant.as_deref(), Some("a"));
    }

    #[test]
    fn members_have_a_name_and_a_value() {
        assert_eq!(parse_member("a=1=2"), Ok(("a".to_owned(), "1=2".to_owned())));
        assert!(parse_member("a").is_err() && parse_member("=1").is_err());
    }

    #[test]
    fn reasons_can_not_write_to_the_terminal() {
        let text = r#"{"id":"p","scope":{"tenant":"a"},"reason":"r","since":0}"#;
        let pause: Pause = serde_json::from_str(text).unwrap();
        let pause = Pause { reason: "\u{1b}[2Jwhy".to_owned(), ..pause };
        let table = render_table(&[pause], Timestamp::default());
        assert!(!table.contains('\u{1b}') && table.contains("tenant a"), "{table}");
    }
}
