//! `mcp-fleet demo`: runs a whole fleet on the files of the current directory and reports on every
//! job.

mod account;

use std::{
    path::{Path, PathBuf},
    process::ExitCode,
    time::{Duration, Instant},
};

use fleet_job::{
    dead_letter,
    envelope::{Envelope, ToolCall, Work},
    event::JobEvent,
    time::Timestamp,
};
use fleet_kafka::{
    producer::{Outgoing, Producer},
    reader::{From, Reader},
    settings::Settings,
};
use fleet_ops::{blocking::run_blocking, shutdown};
use serde_json::{Map, Value, json};
use tokio_util::sync::CancellationToken;

use crate::{
    error::CliError,
    output::{self, Messages},
    pending::{Pending, RecordUpdate},
    stack::{FILES, HostedByStack, Stack, StackConfig},
    submit,
    tally::{Submitted, Tally},
    wait_notice::Outage,
};

const OPEN: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(100);
/// The demo gives up and reports what it has if no job ends for this long.
const STALLED: Duration = Duration::from_secs(90);
/// Larger files are skipped, since the file tools have a limit of their own.
const MAX_FILE_BYTES: u64 = 512 * 1024;
/// Enough files for variety, without walking a whole disk.
const MAX_FILES: usize = 2_000;
/// The exit code that shells report for an interrupted process.
const INTERRUPTED: u8 = 130;

const EXAMPLES: &str = "Examples:
  mcp-fleet demo --jobs 200 --workers 3
  mcp-fleet demo --json | tail -1
  mcp-fleet demo --brokers kafka:9092";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    /// How many jobs to submit, besides the one that hosts the files and four bad ones
    #[arg(
        help_heading = "Fleet",
        long,
        default_value_t = 50,
        value_parser = clap::value_parser!(u32).range(1..=1_000_000),
    )]
    jobs: u32,

    /// How many workers to start
    #[arg(
        help_heading = "Fleet",
        long,
        default_value_t = 3,
        value_parser = clap::value_parser!(u16).range(1..=64),
    )]
    workers: u16,

    /// Use this Kafka instead of the embedded broker; the demo creates its own topics there
    #[arg(help_heading = "Fleet", long, value_name = "HOSTS")]
    brokers: Option<String>,

    /// Print the report as one JSON object on stdout, and messages on stderr
    #[arg(help_heading = "Output", long)]
    json: bool,
}

pub(crate) async fn run(args: Args) -> Result<ExitCode, CliError> {
    let messages = Messages { json: args.json };
    let stop = shutdown::signal_token()
        .map_err(|error| CliError::Io("could not install signal handlers", error))?;

    let root = std::env::current_dir()
        .map_err(|error| CliError::Io("could not determine the current directory", error))?;

    let run_dir = tempfile::Builder::new().prefix("mcp-fleet-demo-").tempdir();
    let run_dir =
        run_dir.map_err(|error| CliError::Io("could not create a temporary directory", error))?;

    let unique = uuid::Uuid::new_v4().simple().to_string();
    let topic =
        if args.brokers.is_some() { format!("mcp-demo-{unique}") } else { "mcp-jobs".to_owned() };

    messages.print(format!("starting broker, mcp-server and {} workers …", args.workers));
    let mut stack = tokio::select! {
        stack = Stack::start(StackConfig {
            brokers: args.brokers.clone(),
            broker_port: 0,
            server_port: 0,
            run_dir: run_dir.path().to_owned(),
            keys_dir: run_dir.path().join("access"),
            hosts: HostedByStack::Files,
            root: root.clone(),
            hidden: None,
            group: format!("{topic}-workers"),
            topic,
            partitions: i32::from(args.workers).max(4) * 2,
            workers: usize::from(args.workers),
            // The report is built from the topics themselves.
            jobs: false,
        }) => stack?,
        () = stop.cancelled() => return Ok(ExitCode::from(INTERRUPTED)),
    };
    stack.start_workers().await?;
    messages.print(format!("broker {}   mcp-server {}", stack.settings.brokers, stack.server_url));

    let (work_stop, died) = (stop.child_token(), stack.broker_died());
    let outcome = tokio::select! {
        outcome = run_jobs(&stack, &root, args.jobs, messages, &work_stop) => outcome,
        died = died => Err(died),
    };

    work_stop.cancel();
    // Read the topics after everything has stopped, when nothing can be added to them.
    messages.print("stopping the workers …");
    stack.stop_fleet().await;

    let account = match outcome {
        Ok((submitted, elapsed)) => {
            let (settings, topics) = (stack.settings.clone(), stack.topics.clone());
            run_blocking(move || read_all(&settings, &topics.events, &topics.dlq)).await.map(
                |tally| {
                    tally.report(&submitted, u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX))
                },
            )
        }
        Err(error) => Err(error),
    };

    stack.stop().await;
    let report = account?;

    if stop.is_cancelled() {
        messages.print(format!(
            "interrupted; {} of {} jobs have not ended",
            report.lost, report.submitted
        ));
        return Ok(ExitCode::from(INTERRUPTED));
    }

    messages.print(account::render(&report));
    if args.json {
        output::json(&report);
    }
    Ok(if report.is_perfect() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// A record to submit, and its expected outcome.
struct Planned {
    label: String,
    what: String,
    good: bool,
    key: Option<String>,
    value: Vec<u8>,
}

impl Planned {
    fn job(envelope: &Envelope, what: String, good: bool, key: Option<String>) -> Self {
        let value = envelope.to_json().to_string().into_bytes();
        Self { label: envelope.job_id.clone(), what, good, key, value }
    }
}

/// Hosts the files, submits all jobs, and waits until each has ended. Returns the submitted records
/// and how long the jobs took, from the first write to the last end.
async fn run_jobs(
    stack: &Stack,
    root: &Path,
    jobs: u32,
    messages: Messages,
    stop: &CancellationToken,
) -> Result<(Vec<Submitted>, Duration), CliError> {
    let files = {
        let root = root.to_owned();
        run_blocking(move || Ok::<_, CliError>(find_files(&root))).await?
    };
    messages.print(format!(
        "hosting {} as MCP server `{FILES}` ({} files)",
        root.display(),
        files.len()
    ));

    let producer = Producer::new(&stack.settings)?;
    let (settings, events) = (stack.settings.clone(), stack.topics.events.clone());
    let open = move || Ok::<_, CliError>(Reader::open(&settings, &events, From::Start, OPEN)?);
    let mut reader = run_blocking(open).await?;

    let init = stack.files_job("host-files".to_owned())?;
    let init = Planned::job(&init, format!("host server `{FILES}`"), true, Some(FILES.to_owned()));

    let mut submitted = write_jobs(&producer, &stack.topics.jobs, vec![init]).await?;
    let hosted = Pending::new(&stack.topics.jobs, submitted.iter().map(|record| record.place));

    let (bar, token, settings) =
        (submit::progress_bar(1, "hosting"), stop.clone(), stack.settings.clone());
    let wait_for_files =
        move || wait_for_ends(reader, hosted, &settings, &bar, &token).map(|(reader, _)| reader);
    reader = run_blocking(wait_for_files).await?;

    let started = fleet_ops::clock::now();
    let written = write_jobs(&producer, &stack.topics.jobs, plan_jobs(&files, jobs)).await?;
    let pending = Pending::new(&stack.topics.jobs, written.iter().map(|record| record.place));
    submitted.extend(written);
    let bar = submit::progress_bar(pending.len(), "jobs");
    let (token, settings) = (stop.clone(), stack.settings.clone());
    let (_, ended) =
        run_blocking(move || wait_for_ends(reader, pending, &settings, &bar, &token)).await?;

    Ok((
        submitted,
        ended.map_or_else(|| fleet_ops::clock::now().since(started), |ended| ended.since(started)),
    ))
}

/// Plans the jobs over `files`, with a few that cannot succeed in the middle.
fn plan_jobs(files: &[PathBuf], jobs: u32) -> Vec<Planned> {
    let mut planned: Vec<_> = (0..jobs as usize).map(|index| plan_good_job(files, index)).collect();

    let middle = planned.len() / 2;
    planned.splice(middle..middle, plan_bad_jobs());
    planned
}

fn plan_good_job(files: &[PathBuf], index: usize) -> Planned {
    let label = format!("job-{:04}", index + 1);
    match files.get(index % files.len().max(1)) {
        None => plan_call(label, "file_list", json!({"path": "."}), true),
        Some(path) if index % 3 == 2 => plan_call(label, "file_read", json!({"path": path}), true),
        Some(path) => plan_call(label, "file_digest", json!({"path": path}), true),
    }
}

/// Plans one job of each kind that ends as a dead letter.
fn plan_bad_jobs() -> [Planned; 4] {
    let unknown = json!({"jobID": "bad-type", "jobType": "make-coffee", "payload": {}});
    let outside = json!({"path": "../../../../etc/passwd"});

    [
        Planned {
            label: "bad-type".to_owned(),
            what: "unknown jobType".to_owned(),
            good: false,
            key: None,
            value: unknown.to_string().into_bytes(),
        },
        Planned {
            label: "bad-bytes".to_owned(),
            what: "bytes that are not JSON".to_owned(),
            good: false,
            key: None,
            value: vec![0xff, 0xfe, 0x00, b'{'],
        },
        plan_call("bad-path".to_owned(), "file_read", outside, false),
        plan_call("bad-tool".to_owned(), "no_such_tool", json!({}), false),
    ]
}

fn plan_call(label: String, tool: &str, arguments: Value, good: bool) -> Planned {
    let what = format!("{FILES}__{tool} {arguments}");
    let key = arguments["path"].as_str().map(str::to_owned);
    let arguments = arguments.as_object().cloned().unwrap_or_else(Map::new);

    let call = ToolCall {
        server: Some(FILES.to_owned()),
        tool: tool.to_owned(),
        arguments,
        task: None,
        extra: Map::new(),
    };
    Planned::job(&Envelope::new(label, Work::ToolCall(call)), what, good, key)
}

async fn write_jobs(
    producer: &Producer,
    topic: &str,
    planned: Vec<Planned>,
) -> Result<Vec<Submitted>, CliError> {
    let (records, about): (Vec<_>, Vec<_>) = planned
        .into_iter()
        .map(|job| {
            let key = job.key.map(String::into_bytes);
            let record = Outgoing {
                timestamp: None,
                partition: None,
                topic: topic.to_owned(),
                key,
                value: Some(job.value),
                headers: Vec::new(),
            };
            (record, (job.label, job.what, job.good))
        })
        .unzip();

    let places = submit::write_all(producer, &records, || {}).await?;
    let submitted = about.into_iter().zip(places);
    Ok(submitted
        .map(|((label, what, good), place)| Submitted { label, what, good, place })
        .collect())
}

/// Reads events until every pending record has ended. Also returns the time of the last end.
fn wait_for_ends(
    mut reader: Reader,
    mut pending: Pending,
    settings: &Settings,
    bar: &indicatif::ProgressBar,
    stop: &CancellationToken,
) -> Result<(Reader, Option<Timestamp>), CliError> {
    let (mut moved, mut ended, mut outage) = (Instant::now(), None, Outage::default());
    while pending.len() > 0 && !stop.is_cancelled() && moved.elapsed() < STALLED {
        let record = reader.next(POLL)?;
        if outage.observe(reader.is_out_of_reach(), Instant::now()) {
            bar.suspend(|| output::problem(&Outage::message(settings)));
        }
        let Some(record) = record else { continue };
        if let Some(RecordUpdate::End(end)) = pending.take(&record) {
            moved = Instant::now();
            ended = ended.max(Some(ended_at(&end)));
            bar.inc(1);
        }
    }
    bar.finish_and_clear();
    Ok((reader, ended))
}

/// Reads all records of the events and dead-letter topics.
fn read_all(settings: &Settings, events: &str, dlq: &str) -> Result<Tally, CliError> {
    let mut tally = Tally::default();
    let mut reader = Reader::open(settings, events, From::Start, OPEN)?;
    while let Some(record) = next_record(&mut reader)? {
        tally.add_event(&record);
    }

    let mut reader = Reader::open(settings, dlq, From::Start, OPEN)?;
    while let Some(record) = next_record(&mut reader)? {
        if let Some(place) = dead_letter::original_position(&record.headers) {
            tally.add_dead_letter(place, record);
        }
    }

    Ok(tally)
}

/// Returns the next record before the end of the topic.
fn next_record(reader: &mut Reader) -> Result<Option<fleet_job::record::RawRecord>, CliError> {
    let deadline = Instant::now() + OPEN;
    while !reader.at_end() && Instant::now() < deadline {
        if let Some(record) = reader.next(POLL)? {
            return Ok(Some(record));
        }
    }
    Ok(None)
}

/// Finds the files below `root` that the demo can work on: not hidden, not build output, and not
/// too large.
fn find_files(root: &Path) -> Vec<PathBuf> {
    let skip = |name: &str| name.starts_with('.') || name == "target" || name == "node_modules";
    let (mut found, mut open) = (Vec::new(), vec![root.to_owned()]);
    while let Some(directory) = open.pop() {
        let Ok(entries) = std::fs::read_dir(&directory) else { continue };
        let mut entries: Vec<_> = entries.flatten().collect();
        entries.sort_by_key(std::fs::DirEntry::file_name);
        for entry in entries {
            let Ok(name) = entry.file_name().into_string() else { continue };
            let Ok(kind) = entry.file_type() else { continue };
            let path = entry.path();

            if skip(&name) {
                continue;
            }

            if kind.is_dir() {
                open.push(path);
            } else if kind.is_file()
                && entry.metadata().is_ok_and(|metadata| metadata.len() <= MAX_FILE_BYTES)
                && let Ok(relative) = path.strip_prefix(root)
                && relative.to_str().is_some()
            {
                found.push(relative.to_owned());
            }

            if found.len() >= MAX_FILES {
                return found;
            }
        }
    }
    found
}

/// Returns when the job ended, as its terminal event reports it.
fn ended_at(event: &JobEvent) -> Timestamp {
    event.timings.as_ref().map_or(event.time, |timings| timings.finished_at)
}
