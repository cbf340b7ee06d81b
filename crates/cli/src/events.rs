//! `mcp-fleet events`: prints job events as they happen.
//!
//! The last line printed for a job is its state. Events that are not their job's state are
//! therefore omitted: events written after the terminal event by another worker, and repeated
//! terminal events.

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use fleet_job::{
    event::{JobEvent, RESULT_OMITTED},
    record::RawRecord,
    state::{Entry, Standings, Verdict},
};
use fleet_kafka::reader::{From, Reader};
use fleet_ops::{blocking::run_blocking, shutdown};

use crate::{
    connection::Connection,
    error::CliError,
    output,
    wait_notice::{Outage, WaitNotice},
};

const OPEN: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(200);
/// How many jobs are remembered in order to recognise stale events. Each takes about 200 bytes.
const REMEMBERED: usize = 100_000;

const EXAMPLES: &str = "Examples:
  mcp-fleet events
  mcp-fleet events --from-start --no-follow --job job-1
  mcp-fleet events --from-start --json | jq -r .state

The last event shown for a job is its state. Events that follow the end of their job, and repeated
terminal events, are omitted unless --all is given. Without --from-start, the command does not know
which jobs ended before it started, so it shows events that follow such an end.";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    connection: Connection,

    /// Start with the oldest event that still exists, instead of only new ones
    ///
    /// Events of one job are shown in order; events of different jobs, partition by partition.
    #[arg(long)]
    from_start: bool,

    /// Print the existing events from the start, then exit
    #[arg(long)]
    no_follow: bool,

    /// Only events of this job
    #[arg(help_heading = "Filters", long, value_name = "ID")]
    job: Option<String>,

    /// Show every event on the topic, including those that are not their job's state
    ///
    /// Without --json, such events are marked.
    #[arg(help_heading = "Filters", long)]
    all: bool,

    /// Print the events unchanged, one JSON object per line
    #[arg(help_heading = "Output", long)]
    json: bool,
}

pub(crate) async fn run(args: Args) -> Result<ExitCode, CliError> {
    let from = if args.from_start || args.no_follow { From::Start } else { From::Now };
    let (settings, topic) = (args.connection.settings()?, args.connection.topics().events);

    run_blocking(move || -> Result<(), CliError> {
        let notice = WaitNotice::for_kafka(&settings);
        let mut reader = Reader::open(&settings, &topic, from, OPEN)?;
        drop(notice);

        // Until here, Ctrl-C ends the process as it is.
        let stop = shutdown::signal_token().map_err(output::no_signals)?;
        if !args.no_follow {
            output::problem(&output::following(&topic));
        }
        let (mut shown, mut outage) = (Shown::new(&args), Outage::default());
        while !stop.is_cancelled() {
            let record = reader.next(POLL)?;
            if outage.observe(reader.is_out_of_reach(), Instant::now()) {
                output::problem(&Outage::message(&settings));
            }
            match record {
                Some(record) => match shown.line(&record) {
                    Ok(Some(line)) => output::line(&line),
                    Ok(None) => {}
                    Err(error) => output::problem(&format!(
                        "{}/{}/{} is not a valid job event: {error}",
                        record.position.topic, record.position.partition, record.position.offset
                    )),
                },
                None if args.no_follow && reader.at_end() => break,
                None => {}
            }
        }
        Ok(())
    })
    .await?;

    Ok(ExitCode::SUCCESS)
}

/// Selects and formats the records to show.
struct Shown<'a> {
    args: &'a Args,
    standings: Standings<String>,
}

impl<'a> Shown<'a> {
    fn new(args: &'a Args) -> Self {
        Self { args, standings: Standings::of_at_least(REMEMBERED) }
    }

    /// Returns the line for a record, if it should be shown.
    fn line(&mut self, record: &RawRecord) -> Result<Option<String>, serde_json::Error> {
        let Some(value) = &record.value else {
            self.forget(record);
            return Ok(None);
        };
        let event: JobEvent = serde_json::from_slice(value)?;

        if self.args.job.as_ref().is_some_and(|job| *job != event.job_id) {
            return Ok(None);
        }

        let verdict = self.standings.take(event.job_id.clone(), &Entry::of(record, &event));
        if verdict != Verdict::State && !self.args.all {
            return Ok(None);
        }

        if self.args.json {
            return Ok(Some(String::from_utf8_lossy(value).into_owned()));
        }
        Ok(Some(format!("{}{}", describe(&event), mark(verdict))))
    }

    /// Forgets a job at its tombstone, so that its next event counts as its first.
    fn forget(&mut self, record: &RawRecord) {
        let key = record.key.as_deref().map(String::from_utf8_lossy);
        if let Some(job_id) = key {
            self.standings.forget(&job_id.into_owned());
        }
    }
}

/// Returns the suffix of an event that is not its job's state.
fn mark(verdict: Verdict) -> &'static str {
    match verdict {
        Verdict::State => "",
        Verdict::Again => "  (repeated)",
        Verdict::Stale => "  (stale: not the state of its job)",
    }
}

/// Formats an event on one line.
pub(crate) fn describe(event: &JobEvent) -> String {
    let worker = event.worker.as_deref().unwrap_or("-");
    let (time, state, job, note) =
        (event.time, event.state.as_str(), &event.job_id, describe_note(event));
    format!("{time}  {state:9}  {job}  attempt {}  {worker}{note}", event.attempts)
}

/// Returns the end of an event's line: what went wrong, if anything did.
pub(crate) fn describe_note(event: &JobEvent) -> String {
    match &event.error {
        Some(error) => format!("  {}", error.message),
        None if event.has_lost_its_result() => {
            format!("  its result was too large to keep ({RESULT_OMITTED})")
        }
        None => {
            let waiting = event.waiting.as_ref();
            waiting.map(|waiting| format!("  {waiting}")).unwrap_or_default()
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;
    use fleet_job::{
        event::{JobState, Source},
        record::Position,
        time::Timestamp,
    };

    use super::*;

    #[derive(Debug, clap::Parser)]
    struct Command {
        #[command(flatten)]
        args: Args,
    }

    fn event(state: JobState, ms: i64) -> Vec<u8> {
        let source =
            Source { topic: "mcp-jobs".to_owned(), topic_id: None, partition: 0, offset: 7 };
        let event = JobEvent::new("j", state, Timestamp::from_millis_clamped(ms));
        JobEvent { source: Some(source), ..event }.to_bytes()
    }

    /// Returns the lines for these values, which follow each other on the topic.
    fn shown(args: &[&str], values: &[Option<Vec<u8>>]) -> Vec<String> {
        let command = Command::parse_from(["events", "--brokers=b"].iter().chain(args));
        let mut shown = Shown::new(&command.args);
        let lines = (0..).zip(values).filter_map(|(offset, value)| {
            let position = Position { topic: "events".to_owned(), partition: 0, offset };
            let key = Some(b"j".to_vec());
            let record = RawRecord {
                position,
                timestamp: None,
                key,
                value: value.clone(),
                headers: Vec::new(),
            };
            shown.line(&record).unwrap()
        });
        lines.collect()
    }

    #[test]
    fn the_last_line_of_a_job_is_its_state() {
        let end = event(JobState::Succeeded, 2);
        let log = [
            event(JobState::Running, 1),
            end.clone(),
            event(JobState::Retrying, 3),
            event(JobState::Cancelled, 4),
            end,
        ]
        .map(Some);
        let lines = shown(&[], &log);
        assert_eq!(lines.len(), 2, "{lines:#?}");
        assert!(lines[0].contains("running") && lines[1].contains("succeeded"), "{lines:#?}");
        assert_eq!(shown(&["--json"], &log).len(), 2);
        assert!(shown(&["--job", "another"], &log).is_empty());

        let all = shown(&["--all"], &log);
        let marks = ["attempt 0  -", "attempt 0  -", "(stale", "(stale", "(repeated)"];
        assert_eq!(all.len(), marks.len());
        for (line, mark) in all.iter().zip(marks) {
            assert!(line.contains(mark), "{mark}: {line}");
        }
    }

    #[test]
    fn a_job_starts_over_after_a_tombstone() {
        let log = [
            Some(event(JobState::Succeeded, 1)),
            Some(event(JobState::Running, 2)),
            None,
            Some(event(JobState::Running, 3)),
        ];
        assert_eq!(shown(&[], &log).len(), 2);
    }
}
