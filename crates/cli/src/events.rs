//! `mcp-fleet events`: following what happens to jobs.

use std::{process::ExitCode, time::Duration};

use fleet_job::event::{JobEvent, RESULT_OMITTED};
use fleet_kafka::reader::{From, Reader};
use fleet_ops::shutdown;

use crate::{connection::Connection, error::CliError, output};

const OPEN: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(200);

const EXAMPLES: &str = "Examples:
  mcp-fleet events
  mcp-fleet events --from-start --no-follow --job job-1
  mcp-fleet events --from-start --json | jq -r .state";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    connection: Connection,

    /// Begin with the oldest event that is still there; otherwise only new ones are shown. Events of one job come in
    /// order, those of different jobs partition by partition.
    #[arg(long)]
    from_start: bool,

    /// Show what is there from the start, and end.
    #[arg(long)]
    no_follow: bool,

    /// Only the events of this job.
    #[arg(long, value_name = "ID")]
    job: Option<String>,

    /// Print the events as they are, one JSON object a line.
    #[arg(long)]
    json: bool,
}

pub(crate) async fn run(args: Args) -> Result<ExitCode, CliError> {
    let stop = shutdown::signal_token().map_err(|error| CliError::Io("signals can't be handled", error))?;
    let from = if args.from_start || args.no_follow { From::Start } else { From::Now };
    let (settings, topic) = (args.connection.settings()?, args.connection.topics().events);
    let read = tokio::task::spawn_blocking(move || -> Result<(), CliError> {
        let mut reader = Reader::open(&settings, &topic, from, OPEN)?;
        while !stop.is_cancelled() {
            match reader.next(POLL)? {
                Some(record) => {
                    let value = record.value.unwrap_or_default();
                    match serde_json::from_slice::<JobEvent>(&value) {
                        Ok(event) if args.job.as_ref().is_some_and(|job| *job != event.job_id) => {}
                        Ok(_) if args.json => output::line(&String::from_utf8_lossy(&value)),
                        Ok(event) => output::line(&describe(&event)),
                        Err(error) => output::problem(&format!(
                            "{}/{}/{} is no event: {error}",
                            record.position.topic, record.position.partition, record.position.offset
                        )),
                    }
                }
                None if args.no_follow && reader.at_end() => break,
                None => {}
            }
        }
        Ok(())
    });
    read.await.map_err(|error| CliError::Usage(error.to_string()))??;
    Ok(ExitCode::SUCCESS)
}

/// An event on one line.
pub(crate) fn describe(event: &JobEvent) -> String {
    let worker = event.worker.as_deref().unwrap_or("-");
    let note = match &event.error {
        Some(error) => format!("  {}", error.message),
        None if event.has_lost_its_result() => {
            format!("  its result was too large to keep ({RESULT_OMITTED})")
        }
        None => String::new(),
    };
    let (time, state, job) = (event.time, event.state.as_str(), &event.job_id);
    format!("{time}  {state:9}  {job}  attempt {}  {worker}{note}", event.attempts)
}
