//! `mcp-fleet submit`: submits jobs and optionally waits for them.

mod lines;

use std::{
    collections::{HashMap, VecDeque},
    path::PathBuf,
    process::ExitCode,
    time::{Duration, Instant},
};

use fleet_job::{
    decode,
    envelope::{Envelope, ToolCall, Work},
    event::{JobEvent, JobState, RESULT_OMITTED},
    mcp_servers,
    time::Timestamp,
    topics::Topics,
};
use fleet_kafka::{
    KafkaError, admin,
    producer::{Delivered, Outgoing, Producer},
    reader::{From, Reader},
    settings::Settings,
};
use fleet_ops::{blocking::run_blocking, shutdown};
use indicatif::ProgressBar;
use serde_json::{Map, Value, json};
use tokio_util::sync::CancellationToken;

use crate::{
    connection::Connection,
    dlq::text::shorten,
    error::CliError,
    events,
    input::read_input,
    jobs::render,
    output,
    pending::{PartitionOffset, Pending, RecordUpdate},
    wait_notice::{Outage, SILENCE, WaitNotice},
};

/// How long a broker may take to respond at all.
const REACH: Duration = Duration::from_secs(5);
/// The exit code of `submit --wait` and `jobs wait` if a job has not succeeded.
pub(crate) const FAILED: u8 = 1;
/// The exit code on a timeout.
pub(crate) const TIMED_OUT: u8 = 3;
/// The exit code if all jobs have succeeded but a result was too large to keep.
pub(crate) const NO_RESULT: u8 = 4;
/// The exit code that shells report for an interrupted process.
pub(crate) const INTERRUPTED: u8 = 130;
const OPEN: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(100);
/// The maximum number of records that wait for acknowledgement.
const WINDOW: usize = 1000;

/// The message before the progress bar while no job reports its progress.
const WAITING: &str = "waiting";
/// The maximum length of a job's progress message in that place.
const MAX_PROGRESS: usize = 100;

const EXAMPLES: &str = "Examples:
  mcp-fleet submit --server files --tool file_list --arguments '{\"path\":\".\"}' --wait
  mcp-fleet submit --server-init .mcp.json --wait
  mcp-fleet submit jobs.jsonl --brokers kafka:9092 --wait --json

Exit codes with --wait:
  0    all jobs succeeded
  1    a job did not succeed
  3    the timeout expired before all jobs had ended
  4    all jobs succeeded, but a result was too large to keep (result-omitted)
  130  interrupted";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    connection: Connection,

    /// Submit the jobs in this file, one JSON object per line; `-` for standard input
    #[arg(
        help_heading = "Jobs",
        value_name = "FILE",
        conflicts_with_all = ["tool", "server_init"],
        required_unless_present_any = ["tool", "server_init"],
    )]
    file: Option<PathBuf>,

    /// Submit one call of this tool
    #[arg(help_heading = "Jobs", long, value_name = "NAME")]
    tool: Option<String>,

    /// The hosted server that the tool belongs to
    #[arg(help_heading = "Jobs", long, requires = "tool", value_name = "NAME")]
    server: Option<String>,

    /// The tool's arguments as a JSON object
    #[arg(
        help_heading = "Jobs",
        long,
        requires = "tool",
        default_value = "{}",
        value_name = "JSON"
    )]
    arguments: String,

    /// Submit one job that hosts the servers in this mcpServers file
    #[arg(help_heading = "Jobs", long, conflicts_with = "tool", value_name = "FILE")]
    server_init: Option<PathBuf>,

    /// The job's id; by default a new UUID
    #[arg(help_heading = "Jobs", long, conflicts_with = "file", value_name = "ID")]
    job_id: Option<String>,

    /// The ordering key of all jobs; by default, each job's own `key` field, if it has one
    #[arg(help_heading = "Jobs", long, value_name = "KEY")]
    key: Option<String>,

    /// Wait until every job has ended; see the exit codes below
    #[arg(help_heading = "JobWait", long)]
    wait: bool,

    /// How long to wait, in seconds
    #[arg(
        help_heading = "JobWait",
        long,
        requires = "wait",
        default_value_t = 600,
        value_name = "SECONDS"
    )]
    timeout: u64,

    /// Print JSON: with --wait each terminal event on one line, then a summary
    #[arg(help_heading = "Output", long)]
    json: bool,
}

/// A job and the key of its record.
struct Job {
    envelope: Envelope,
    key: Option<String>,
}

pub(crate) async fn run(args: Args) -> Result<ExitCode, CliError> {
    let jobs = read_jobs(&args)?;

    let settings = args.connection.settings()?;
    let topics = args.connection.topics();
    let notice = WaitNotice::for_kafka(&settings);

    // Fail quickly and clearly if Kafka is unreachable; a producer would take half a minute to
    // fail.
    let (look, topic) = (settings.clone(), topics.jobs.clone());
    let look = move || Ok::<_, CliError>(admin::partitions(&look, &topic, REACH)?);
    let partitions = run_blocking(look).await?;

    // Open the reader before writing the first job, or it could miss the job's end.
    let reader = if args.wait {
        let (settings, topic) = (settings.clone(), topics.events.clone());
        let open = move || Ok::<_, CliError>(Reader::open(&settings, &topic, From::Now, OPEN)?);
        Some(run_blocking(open).await?)
    } else {
        None
    };

    drop(notice);
    let producer = Producer::new(&settings)?;

    let bar = progress_bar(jobs.len(), "submitting");
    let places = write_jobs(&producer, &topics, partitions, &jobs, &bar).await?;
    bar.finish_and_clear();

    let Some(reader) = reader else {
        let ids: Vec<_> = jobs.iter().map(|job| &job.envelope.job_id).collect();
        if args.json {
            output::json(&json!({"submitted": ids.len(), "jobs": ids}));
        } else {
            output::line(&format!("submitted {} jobs to {}", ids.len(), topics.jobs));
            for id in ids.iter().take(10) {
                output::line(&format!("  {id}"));
            }
        }
        return Ok(ExitCode::SUCCESS);
    };

    let (timeout, as_json) = (Duration::from_secs(args.timeout), args.json);
    let stop = shutdown::signal_token()
        .map_err(|error| CliError::Io("could not install signal handlers", error))?;
    let waiting = JobWait { settings, topic: topics.jobs, places, timeout, as_json, stop };
    run_blocking(move || waiting.run(reader)).await
}

// --- What to submit -----------------------------------------------------------------------------

fn read_jobs(args: &Args) -> Result<Vec<Job>, CliError> {
    if let Some(path) = &args.file {
        return read_jobs_file(path, args.key.as_deref());
    }

    let job_id = args.job_id.clone().unwrap_or_else(|| uuid::Uuid::now_v7().to_string());

    let mut object = json!({"jobID": job_id});
    if let Some(path) = &args.server_init {
        let payload = mcp_servers::text::parse(&read_input(path)?)
            .map_err(|error| CliError::Usage(format!("`{}`: {error}", path.display())))?;
        object["jobType"] = "server-init".into();
        object["payload"] = payload;
    } else {
        let arguments: Map<String, Value> =
            serde_json::from_str(&args.arguments).map_err(|error| {
                CliError::Usage(format!("--arguments is not a JSON object: {error}"))
            })?;
        let call = ToolCall {
            server: args.server.clone(),
            tool: args.tool.clone().unwrap_or_default(),
            arguments,
            task: None,
            extra: Map::new(),
        };
        object = Envelope::new(job_id, Work::ToolCall(call)).to_json();
    }

    let envelope = decode::from_json(object.to_string().as_bytes())
        .map_err(|error| CliError::Usage(format!("invalid job: {error}")))?;
    Ok(vec![Job { envelope, key: args.key.clone() }])
}

fn read_jobs_file(path: &PathBuf, key: Option<&str>) -> Result<Vec<Job>, CliError> {
    let file = match path.to_str() {
        Some("-") => "standard input".to_owned(),
        _ => format!("`{}`", path.display()),
    };
    let text = mcp_servers::text::decode(&read_input(path)?)
        .map_err(|error| CliError::Usage(format!("{file}: {error}")))?;

    let jobs = lines::parse(&text, &file, key)?;
    if jobs.is_empty() {
        return Err(CliError::Usage(format!(
            "{file} contains no jobs; expected one JSON object per line"
        )));
    }
    Ok(jobs)
}

// --- Writing ------------------------------------------------------------------------------------

/// Writes the jobs in order and returns where each one was written.
async fn write_jobs(
    producer: &Producer,
    topics: &Topics,
    partitions: i32,
    jobs: &[Job],
    bar: &ProgressBar,
) -> Result<Vec<PartitionOffset>, CliError> {
    let now = fleet_ops::clock::now();
    let queued: Vec<_> = jobs.iter().map(|job| queued_event(topics, &job.envelope, now)).collect();

    // In a burst, jobs without a key take turns. While librdkafka's threads are still taking over
    // the partitions of a new topic, it gives several times as many records to those that have been
    // taken over. It may choose for a few jobs, because it avoids partitions without a leader.
    let is_burst = i32::try_from(jobs.len()).unwrap_or(i32::MAX) > partitions;
    let mut turn = rand::random_range(0..partitions);
    let mut take_turn = || {
        turn = (turn + 1) % partitions;
        turn
    };

    let records: Vec<_> = jobs
        .iter()
        .map(|job| Outgoing {
            timestamp: Some(now),
            partition: (is_burst && job.key.is_none()).then(&mut take_turn),
            topic: topics.jobs.clone(),
            key: job.key.as_ref().map(|key| key.clone().into_bytes()),
            value: Some(job.envelope.to_json().to_string().into_bytes()),
            headers: Vec::new(),
        })
        .collect();

    // Write the queued events first: after the jobs, they could hide events of a fast worker.
    write_all(producer, &queued, || {}).await?;
    Ok(write_all(producer, &records, || bar.inc(1)).await?)
}

fn queued_event(topics: &Topics, envelope: &Envelope, now: Timestamp) -> Outgoing {
    Outgoing {
        timestamp: Some(now),
        partition: None,
        topic: topics.events.clone(),
        key: Some(envelope.job_id.clone().into_bytes()),
        value: Some(
            JobEvent {
                submitted_at: Some(now),
                ..JobEvent::about(envelope, JobState::Queued, now)
            }
            .to_bytes(),
        ),
        headers: Vec::new(),
    }
}

/// Writes `records` in order, several at a time, and returns where each one was written.
pub(crate) async fn write_all(
    producer: &Producer,
    records: &[Outgoing],
    mut written: impl FnMut(),
) -> Result<Vec<PartitionOffset>, KafkaError> {
    let mut places = Vec::with_capacity(records.len());
    let (mut waiting, mut is_silent) = (VecDeque::new(), true);

    for index in 0..=records.len() {
        // After the last record, wait for all acknowledgements.
        let room = match records.get(index) {
            Some(record) => {
                waiting.push_back(producer.enqueue_patiently(record).await?);
                WINDOW
            }
            None => 0,
        };

        while waiting.len() > room
            && let Some(delivery) = waiting.pop_front()
        {
            let Delivered { partition, offset } =
                await_acknowledgement(delivery, &mut is_silent).await?;
            places.push((partition, offset));
            written();
        }
    }
    Ok(places)
}

/// Waits for an acknowledgement. If that takes long, tells the user, once per command.
async fn await_acknowledgement(
    delivery: impl Future<Output = Result<Delivered, KafkaError>>,
    is_silent: &mut bool,
) -> Result<Delivered, KafkaError> {
    let mut delivery = std::pin::pin!(delivery);
    if *is_silent {
        match tokio::time::timeout(SILENCE, &mut delivery).await {
            Ok(delivered) => return delivered,
            Err(_) => {
                *is_silent = false;
                output::problem("waiting for Kafka to acknowledge the written records");
            }
        }
    }
    delivery.await
}

/// Creates a progress bar on standard error, which is hidden if that is not a terminal.
pub(crate) fn progress_bar(length: usize, what: &'static str) -> ProgressBar {
    let style =
        indicatif::ProgressStyle::with_template("{msg} [{bar:40}] {pos}/{len} {rate} {elapsed}");
    let bar = ProgressBar::new(length as u64).with_message(what);
    let rate = |state: &indicatif::ProgressState, to: &mut dyn std::fmt::Write| {
        // If formatting fails, the bar just shows no rate.
        let _written = write!(to, "{:.0}/s", state.per_sec());
    };

    match style {
        Ok(style) => bar.with_style(style.with_key("rate", rate)),
        Err(_) => bar,
    }
}

// --- JobWait ------------------------------------------------------------------------------------

/// A wait for submitted jobs.
struct JobWait {
    settings: Settings,
    topic: String,
    places: Vec<PartitionOffset>,
    timeout: Duration,
    as_json: bool,
    stop: CancellationToken,
}

impl JobWait {
    fn run(&self, mut reader: Reader) -> Result<ExitCode, CliError> {
        let deadline = Instant::now() + self.timeout;
        let mut pending = Pending::new(&self.topic, self.places.iter().copied());
        let mut waited = WaitResult { submitted: self.places.len(), ..WaitResult::default() };
        let mut outage = Outage::default();
        let bar = progress_bar(self.places.len(), WAITING);

        while pending.len() > 0 && Instant::now() < deadline && !self.stop.is_cancelled() {
            let record = reader.next(POLL)?;
            if outage.observe(reader.is_out_of_reach(), Instant::now()) {
                bar.suspend(|| output::problem(&Outage::message(&self.settings)));
            }
            match record.and_then(|record| pending.take(&record)) {
                Some(RecordUpdate::Progress(progress)) => {
                    bar.set_message(shorten(&render::describe_progress(&progress), MAX_PROGRESS));
                }
                Some(RecordUpdate::End(end)) => {
                    waited.add_end(&end);
                    bar.set_message(WAITING);
                    bar.inc(1);
                    bar.suspend(|| match self.as_json {
                        true => output::json(&end),
                        false => output::line(&events::describe(&end)),
                    });
                }
                None => {}
            }
        }
        bar.finish_and_clear();

        if self.stop.is_cancelled() {
            let open = pending.len();
            output::problem(&format!(
                "interrupted; {open} jobs have not ended and continue without this command"
            ));
            return Ok(ExitCode::from(INTERRUPTED));
        }
        waited.print(self.timeout, self.as_json);
        Ok(ExitCode::from(waited.exit_code()))
    }
}

/// How the awaited jobs have ended.
#[derive(Debug, Default)]
struct WaitResult {
    submitted: usize,
    states: HashMap<&'static str, usize>,
    /// Jobs that succeeded with a result that was too large to keep.
    omitted: usize,
}

impl WaitResult {
    fn add_end(&mut self, end: &JobEvent) {
        *self.states.entry(end.state.as_str()).or_default() += 1;
        self.omitted += usize::from(end.has_lost_its_result());
    }

    fn count(&self, state: JobState) -> usize {
        self.states.get(state.as_str()).copied().unwrap_or_default()
    }

    /// Returns the number of jobs that have not ended.
    fn open(&self) -> usize {
        self.submitted - self.states.values().sum::<usize>()
    }

    fn summary(&self) -> Value {
        json!({
            "submitted": self.submitted,
            "succeeded": self.count(JobState::Succeeded),
            "failed": self.count(JobState::Failed),
            "expired": self.count(JobState::Expired),
            "cancelled": self.count(JobState::Cancelled),
            "waiting": self.open(),
            "resultOmitted": self.omitted,
        })
    }

    fn print(&self, timeout: Duration, as_json: bool) {
        if as_json {
            output::json(&self.summary());
        } else {
            let succeeded = self.count(JobState::Succeeded);
            output::line(&format!("{succeeded} of {} jobs succeeded", self.submitted));
        }

        if self.omitted > 0 {
            let omitted = self.omitted;
            output::problem(&format!(
                "the results of {omitted} jobs were too large to keep ({RESULT_OMITTED})"
            ));
        }

        if self.open() > 0 {
            let (open, seconds) = (self.open(), timeout.as_secs());
            output::problem(&format!(
                "{open} jobs have not ended within {seconds} s; they continue to run"
            ));
        }
    }

    /// Returns the exit code of the command.
    fn exit_code(&self) -> u8 {
        match () {
            () if self.open() > 0 => TIMED_OUT,
            () if self.count(JobState::Succeeded) < self.submitted => FAILED,
            () if self.omitted > 0 => NO_RESULT,
            () => 0,
        }
    }
}

#[cfg(test)]
mod tests {
    use fleet_job::event::ResultOmitted;

    use super::*;

    #[test]
    fn exit_codes() {
        let check = |submitted, states: &[JobState], omitted: bool, expected| {
            let mut waited = WaitResult { submitted, ..WaitResult::default() };
            for state in states {
                let mut end = JobEvent::new("j", *state, Timestamp::default());
                if omitted && *state == JobState::Succeeded {
                    end.omit_result(ResultOmitted { bytes: 9, limit_bytes: 5 });
                }
                waited.add_end(&end);
            }
            assert_eq!(waited.exit_code(), expected, "{waited:?}");
        };
        let (good, bad) = (JobState::Succeeded, JobState::Failed);
        check(2, &[good, good], false, 0);
        check(2, &[good, bad], false, 1);
        check(2, &[good, JobState::Cancelled], false, 1);
        check(2, &[good, good], true, 4);
        check(2, &[good, bad], true, 1);
        check(2, &[bad], false, 3);
    }
}
