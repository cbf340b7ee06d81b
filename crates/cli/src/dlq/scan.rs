//! Reads the dead letters and replay markers that exist when reading begins.

use std::{
    ops::ControlFlow,
    time::{Duration, Instant},
};

use fleet_dead_letters::{Replayed, marker_topic};
use fleet_job::{record::RawRecord, topics::Topics};
use fleet_kafka::{
    KafkaError,
    reader::{From, Reader},
    settings::Settings,
};

use crate::{
    error::CliError,
    output,
    wait_notice::{Outage, WaitNotice},
};

/// How long a request to the brokers may take.
pub(super) const TIMEOUT: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(200);
/// If neither a record nor the end of the topic arrives for this long, something is wrong with the
/// brokers.
const STALLED: Duration = Duration::from_secs(30);

/// Passes every record of `topic` to `with` until it breaks off. Records of a partition come in
/// order.
pub(super) fn for_each_record(
    settings: &Settings,
    topic: &str,
    mut with: impl FnMut(RawRecord) -> Result<ControlFlow<()>, CliError>,
) -> Result<(), CliError> {
    let notice = WaitNotice::for_kafka(settings);
    let mut reader = Reader::open(settings, topic, From::Start, TIMEOUT)?;
    drop(notice);

    let (mut last, mut outage) = (Instant::now(), Outage::default());
    while !reader.at_end() {
        let record = reader.next(POLL)?;
        if outage.observe(reader.is_out_of_reach(), Instant::now()) {
            output::problem(&Outage::message(settings));
        }
        match record {
            Some(record) => {
                if with(record)?.is_break() {
                    return Ok(());
                }
                last = Instant::now();
            }
            None if last.elapsed() > STALLED => {
                let seconds = STALLED.as_secs();
                return Err(CliError::Usage(format!(
                    "no record of `{topic}` arrived for {seconds} s; check the brokers and try again"
                )));
            }
            None => {}
        }
    }
    Ok(())
}

/// Returns which letters have been replayed.
pub(super) fn read_replayed(settings: &Settings, topics: &Topics) -> Result<Replayed, CliError> {
    let mut replayed = Replayed::default();
    let read = for_each_record(settings, &marker_topic(topics), |record| {
        replayed.add(&topics.dlq, &record);
        Ok(ControlFlow::Continue(()))
    });
    match read {
        // Without the topic, nothing has ever been replayed.
        Err(CliError::Kafka(KafkaError::NoTopic(_))) => Ok(Replayed::default()),
        Err(error) => Err(error),
        Ok(()) => Ok(replayed),
    }
}
