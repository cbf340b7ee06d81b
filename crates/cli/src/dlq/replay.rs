//! `mcp-fleet dlq replay`: writes the original records back to the jobs topic.
//!
//! Two passes over the topic: the first plans, and keeps a job id and a few bytes per letter; the
//! second carries out the plan. Each letter is written, acknowledged and marked before the next, so
//! an interrupted run repeats at most one job.

use std::{ops::ControlFlow, process::ExitCode};

use fleet_dead_letters::{
    Filter, Letter, Marker, Plan, Planner, Verdict, decide_verdict, marker_topic,
};
use fleet_job::{dead_letter, record::RawRecord, time::Timestamp, topics::Topics};
use fleet_kafka::{
    admin::{self, TopicSpec},
    producer::{Outgoing, Producer},
    settings::Settings,
};
use fleet_ops::{blocking::run_blocking, clock, shutdown};
use serde_json::json;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;

use super::{filter::FilterArgs, scan, text};
use crate::{connection::Connection, error::CliError, output, wait_notice::WaitNotice};

const EXAMPLES: &str = "\
Replayed letters are recorded on <topic>.dlq.replayed, so a second run continues where the first
one ended. Each record carries its number of replays (mcp-fleet-replay-count); at --max-replays it
is left alone. If a job has several letters, only the newest is replayed, so that the job runs once
(--every-letter replays all).

Examples:
  mcp-fleet dlq replay --dry-run
  mcp-fleet dlq replay --reason timeout --since 1d --max 100
  mcp-fleet dlq replay --job job-123

Exit codes:
  0  everything that could be replayed was replayed
  1  there was nothing to replay, something failed, or the run was interrupted; run it again";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Args {
    #[command(flatten)]
    connection: Connection,

    #[command(flatten)]
    filter: FilterArgs,

    /// Only letters of this job
    #[arg(help_heading = "Filters", long, value_name = "ID")]
    job: Option<String>,

    /// Replay at most this many letters, oldest first
    #[arg(help_heading = "Limits", long, value_name = "N")]
    max: Option<usize>,

    /// Leave letters alone that have already been replayed this many times
    #[arg(help_heading = "Limits", long, default_value_t = 3, value_name = "N")]
    max_replays: u32,

    /// Replay all letters of a job, not only the newest: the job runs once for each
    #[arg(help_heading = "Limits", long)]
    every_letter: bool,

    /// Only print what would be done
    #[arg(long)]
    dry_run: bool,

    /// Print JSON: one object per letter, then a summary
    #[arg(help_heading = "Output", long)]
    json: bool,
}

/// The state of a run on its thread.
struct Run {
    settings: Settings,
    topics: Topics,
    filter: Filter,
    args: Args,
    stop: CancellationToken,
    handle: Handle,
}

/// The result of a run.
#[derive(Debug, Default)]
struct RunResult {
    /// Letters that were replayed, or would be in a dry run.
    replayed: usize,
    failed: usize,
}

pub(super) async fn run(args: Args) -> Result<ExitCode, CliError> {
    let stop = shutdown::signal_token()
        .map_err(|error| CliError::Io("could not install signal handlers", error))?;

    let run = Run {
        settings: args.connection.settings()?,
        topics: args.connection.topics(),
        filter: args.filter.at(clock::now(), args.job.as_deref()),
        args,
        stop,
        handle: Handle::current(),
    };

    run_blocking(move || run.run()).await
}

impl Run {
    fn run(&self) -> Result<ExitCode, CliError> {
        let plan = self.plan()?;

        let work = plan.replay.len() + plan.superseded.len();
        let done = if work == 0 { RunResult::default() } else { self.carry_out(&plan)? };

        let interrupted = self.stop.is_cancelled()
            && (work == 0 || done.replayed + done.failed < plan.replay.len());

        self.print_summary(&plan, &done, interrupted);

        Ok(if interrupted || done.failed > 0 || done.replayed == 0 {
            ExitCode::FAILURE
        } else {
            ExitCode::SUCCESS
        })
    }

    fn control_flow(&self) -> ControlFlow<()> {
        if self.stop.is_cancelled() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    /// The first pass: decides what to do with each letter and reports what cannot be replayed.
    fn plan(&self) -> Result<Plan, CliError> {
        let replayed = scan::read_replayed(&self.settings, &self.topics)?;
        let mut planner = Planner::default();

        scan::for_each_record(&self.settings, &self.topics.dlq, |record| {
            let letter = Letter::read(&record);
            let verdict = decide_verdict(&letter, &replayed, &self.topics, self.args.max_replays);
            if !self.args.every_letter {
                planner.record_letter(&letter, verdict);
            }
            if self.filter.matches(&letter) {
                planner.add(&letter, verdict);
                if !matches!(verdict, Verdict::Replay | Verdict::AlreadyReplayed) {
                    self.report(&letter, verdict, None);
                }
            }
            Ok(self.control_flow())
        })?;

        if self.stop.is_cancelled() {
            return Ok(Plan::default());
        }
        Ok(planner.finish(self.args.max))
    }

    /// The second pass: replays the planned letters.
    fn carry_out(&self, plan: &Plan) -> Result<RunResult, CliError> {
        let writes = !self.args.dry_run && !plan.replay.is_empty();
        let producer = if writes { Some(self.producer()?) } else { None };

        let (mut done, mut superseded) = (RunResult::default(), 0);

        scan::for_each_record(&self.settings, &self.topics.dlq, |record| {
            if plan.superseded.contains(&(record.position.partition, record.position.offset)) {
                self.report(&Letter::read(&record), Verdict::Superseded, None);
                superseded += 1;
            } else if plan.replay.contains(&(record.position.partition, record.position.offset)) {
                let letter = Letter::read(&record);
                match &producer {
                    None => {
                        self.report(&letter, Verdict::Replay, None);
                        done.replayed += 1;
                    }
                    Some(producer) => match self.replay(producer, &letter, record)? {
                        Some(to) => {
                            self.report(&letter, Verdict::Replay, Some(&to));
                            done.replayed += 1;
                        }
                        None => done.failed += 1,
                    },
                }
            }
            let all = done.replayed + done.failed + superseded
                >= plan.replay.len() + plan.superseded.len();
            Ok(if all { ControlFlow::Break(()) } else { self.control_flow() })
        })?;
        Ok(done)
    }

    fn producer(&self) -> Result<Producer, CliError> {
        let marker = TopicSpec {
            name: marker_topic(&self.topics),
            partitions: 1,
            // As many replicas as the letters themselves have.
            replication: admin::replication(&self.settings, &self.topics.dlq, scan::TIMEOUT)?,
            properties: vec![("cleanup.policy", "compact")],
        };
        self.handle.block_on(admin::create_topics(&self.settings, &[marker]))?;

        let mut settings = self.settings.clone();
        // Every record is acknowledged before the next, so batching would only add delay.
        settings.properties.entry("linger.ms".to_owned()).or_insert_with(|| "0".to_owned());
        Ok(Producer::new(&settings)?)
    }

    /// Writes the record and then its marker. Returns where the record went, or `None` if the topic
    /// does not accept a record of that size.
    fn replay(
        &self,
        producer: &Producer,
        letter: &Letter,
        record: RawRecord,
    ) -> Result<Option<String>, CliError> {
        let back = Outgoing {
            timestamp: None,
            partition: None,
            topic: self.topics.jobs.clone(),
            headers: dead_letter::headers_for_replay(&record.headers),
            key: record.key,
            value: record.value,
        };

        let _notice = WaitNotice::new("Kafka to acknowledge a replayed record".to_owned());
        let delivered = match self.handle.block_on(producer.send(&back)) {
            Ok(delivered) => delivered,
            Err(error) if error.is_too_large() => {
                output::problem(&format!(
                    "{}: {}",
                    text::format_position(&letter.place),
                    fleet_ops::errors::chain(&error)
                ));
                return Ok(None);
            }
            Err(error) => return Err(error.into()),
        };

        let to = format!("{}/{}/{}", self.topics.jobs, delivered.partition, delivered.offset);
        self.handle.block_on(producer.send(&self.marker(letter, &to, clock::now())?))?;

        Ok(Some(to))
    }

    fn marker(&self, letter: &Letter, to: &str, now: Timestamp) -> Result<Outgoing, CliError> {
        let marker = Marker::new(letter, to.to_owned(), now);

        let value =
            serde_json::to_vec(&marker).map_err(|error| CliError::Usage(error.to_string()))?;
        Ok(Outgoing {
            timestamp: None,
            partition: None,
            topic: marker_topic(&self.topics),
            key: Some(marker.letter.into_bytes()),
            value: Some(value),
            headers: Vec::new(),
        })
    }

    fn report(&self, letter: &Letter, verdict: Verdict, to: Option<&str>) {
        let place = text::format_position(&letter.place);
        if self.args.json {
            return output::json(&json!({
                "letter": place, "jobID": letter.job_id, "kind": letter.kind, "verdict": verdict,
                "replayCount": letter.replays, "replayedTo": to,
            }));
        }

        let what =
            to.map_or_else(|| verdict.explain().to_owned(), |to| format!("replayed to {to}"));
        let (job, kind) = (text::shorten(&letter.job_id, 60), &letter.kind);
        output::line(&format!("{place}  {job}  {kind}  {what}"));
    }

    fn print_summary(&self, plan: &Plan, done: &RunResult, interrupted: bool) {
        let count = |verdict| plan.count(verdict);
        let (already, parked) = (count(Verdict::AlreadyReplayed), count(Verdict::Parked));
        let (omitted, foreign) = (count(Verdict::ValueOmitted), count(Verdict::Foreign));
        let superseded = count(Verdict::Superseded);
        let (dry, left) = (self.args.dry_run, plan.left);

        if self.args.json {
            output::json(&json!({
                "topic": self.topics.dlq, "dryRun": dry, "toReplay": plan.replay.len(),
                "replayed": if dry { 0 } else { done.replayed }, "failed": done.failed,
                "alreadyReplayed": already, "parked": parked, "valueOmitted": omitted, "foreign": foreign,
                "superseded": superseded, "left": left, "interrupted": interrupted,
            }));
            return;
        }

        let verb = if dry { "would be replayed" } else { "replayed" };
        let mut parts = vec![format!("{} {verb}", done.replayed)];
        let others = [
            (done.failed, "failed"),
            (already, "already replayed"),
            (parked, "parked"),
            (omitted, "without a value"),
            (foreign, "not of this fleet"),
            (superseded, "skipped in favour of other letters of their jobs"),
            (left, "excluded by --max"),
        ];
        parts.extend(others.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{n} {what}")));

        output::line(&format!("{}: {}", self.topics.dlq, parts.join(", ")));
        if plan.counts.is_empty() && !interrupted {
            output::problem(
                "no matching dead letter; run `mcp-fleet dlq list` to see those that exist",
            );
        }
        if interrupted {
            output::problem("interrupted; run the same command again to continue");
        }
    }
}
