//! Submits jobs straight to Kafka, and waits for them on the events topic.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use fleet_job::{
    envelope::Envelope,
    event::{JobEvent, JobState},
    time::Timestamp,
    topics::Topics,
};
use fleet_kafka::{
    KafkaError, admin,
    producer::{Delivered, Outgoing, Producer},
    reader::{From, Reader},
    settings::Settings,
};
use fleet_ops::blocking::run_blocking;
use indicatif::ProgressBar;
use tokio_util::sync::CancellationToken;

use super::{Submission, requested::Job};
use crate::{
    connection::Connection,
    dlq::text::shorten,
    error::CliError,
    job_end::{EndPrinter, WaitResult},
    jobs::render,
    output,
    pending::{PartitionOffset, Pending, RecordUpdate},
    wait_notice::{Outage, SILENCE, WaitNotice},
};

/// How long a broker may take to respond at all.
const REACH: Duration = Duration::from_secs(5);
const OPEN: Duration = Duration::from_secs(10);
const POLL: Duration = Duration::from_millis(100);
/// The maximum number of records that wait for acknowledgement.
const WINDOW: usize = 1000;

/// The message before the progress bar while no job reports its progress.
const WAITING: &str = "waiting";
/// The maximum length of a job's progress message in that place.
const MAX_PROGRESS: usize = 100;

/// Writes jobs to the jobs topic and, if `wait` is set, waits for their ends.
pub(super) async fn submit(
    connection: Connection,
    jobs: &[Job],
    wait: Option<(EndPrinter, Duration)>,
    stop: CancellationToken,
) -> Result<Submission, CliError> {
    let settings = connection.settings()?;
    let topics = connection.topics();
    let notice = WaitNotice::for_kafka(&settings);

    // Fail quickly and clearly if Kafka is unreachable; a producer would take half a minute to
    // fail.
    let (look, topic) = (settings.clone(), topics.jobs.clone());
    let look = move || Ok::<_, CliError>(admin::partitions(&look, &topic, REACH)?);
    let partitions = run_blocking(look).await?;

    // Open the reader before writing the first job, or it could miss the job's end.
    let reader = if wait.is_some() {
        let (settings, topic) = (settings.clone(), topics.events.clone());
        let open = move || Ok::<_, CliError>(Reader::open(&settings, &topic, From::Now, OPEN)?);
        Some(run_blocking(open).await?)
    } else {
        None
    };

    drop(notice);
    let producer = Producer::new(&settings)?;

    let bar = progress_bar(jobs.len(), "submitting");
    let places = write_jobs(&producer, &topics, partitions, jobs, &bar).await?;
    bar.finish_and_clear();

    let (Some(reader), Some((printer, timeout))) = (reader, wait) else {
        return Ok(Submission::Written { to: topics.jobs, existing: None });
    };
    let waiting = JobWait { settings, topic: topics.jobs, places, timeout, printer, stop };
    run_blocking(move || waiting.run(reader)).await
}

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

/// A wait for submitted jobs.
struct JobWait {
    settings: Settings,
    topic: String,
    places: Vec<PartitionOffset>,
    timeout: Duration,
    printer: EndPrinter,
    stop: CancellationToken,
}

impl JobWait {
    fn run(&self, mut reader: Reader) -> Result<Submission, CliError> {
        let deadline = Instant::now() + self.timeout;
        let mut pending = Pending::new(&self.topic, self.places.iter().copied());
        let mut waited = WaitResult::of(self.places.len());
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
                    bar.suspend(|| self.printer.print(&end));
                }
                None => {}
            }
        }
        bar.finish_and_clear();

        Ok(match self.stop.is_cancelled() {
            true => Submission::Interrupted { open: Some(pending.len()) },
            false => Submission::Waited(waited),
        })
    }
}
