//! Reading the dead letters, and what was replayed before: everything that is there when the
//! reading begins.

use std::{
    ops::ControlFlow,
    time::{Duration, Instant},
};

use fleet_job::{record::RawRecord, topics::Topics};
use fleet_kafka::{
    KafkaError,
    reader::{From, Reader},
    settings::Settings,
};

use super::marker::{self, Replayed};
use crate::{
    error::CliError,
    output,
    patience::{Outage, Patience},
};

/// How long a request to the brokers may take.
pub(super) const TIMEOUT: Duration = Duration::from_secs(20);
const POLL: Duration = Duration::from_millis(200);
/// After so long without a record, and without the end, something is wrong with the brokers.
const STALLED: Duration = Duration::from_secs(30);

/// Runs what blocks on a thread that may.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, CliError> + Send + 'static,
) -> Result<T, CliError> {
    tokio::task::spawn_blocking(work).await.map_err(|error| CliError::Usage(error.to_string()))?
}

/// Hands every record of `topic` to `with`, until it breaks off. Records of a partition come in
/// order.
pub(super) fn each(
    settings: &Settings,
    topic: &str,
    mut with: impl FnMut(RawRecord) -> Result<ControlFlow<()>, CliError>,
) -> Result<(), CliError> {
    let patience = Patience::for_kafka(settings);
    let mut reader = Reader::open(settings, topic, From::Start, TIMEOUT)?;
    drop(patience);

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
                    "no record of `{topic}` came for {seconds} s"
                )));
            }
            None => {}
        }
    }
    Ok(())
}

/// What was replayed before.
pub(super) fn replayed(settings: &Settings, topics: &Topics) -> Result<Replayed, CliError> {
    let mut replayed = Replayed::default();
    let read = each(settings, &marker::topic(topics), |record| {
        replayed.add(&topics.dlq, &record);
        Ok(ControlFlow::Continue(()))
    });
    match read {
        // Nothing was ever replayed.
        Err(CliError::Kafka(KafkaError::NoTopic(_))) => Ok(Replayed::default()),
        Err(error) => Err(error),
        Ok(()) => Ok(replayed),
    }
}
