//! Writing the ends of jobs to Kafka: first the dead letter, so that whoever reads the terminal
//! event finds it, then the event, then the reply.

use std::{sync::Arc, time::Duration};

use fleet_engine::Token;
use fleet_job::event::JobState;
use fleet_kafka::{
    KafkaError, admin,
    producer::{Outgoing, Producer},
    settings::Settings,
};
use metrics::counter;

use super::answers::Answer;
use crate::{
    metrics as names,
    report::{self, Letter, Settlement},
};

/// How long a broker may take to list the members of a group.
const ASK_TIMEOUT: Duration = Duration::from_secs(10);

/// How long a reply may take. After that, the job is settled without it.
const REPLY_TIMEOUT: Duration = Duration::from_secs(10);

pub(super) async fn write_settlement(
    producer: &Producer,
    token: Token,
    mut settlement: Settlement,
) -> Answer {
    if let Some((kind, letter)) = &settlement.dead_letter {
        if let Err(error) = write_or_shorten(producer, &letter.whole, || letter.bare.clone()).await
        {
            return report_not_written(token, Some(settlement), "dead-letter", &error);
        }
        counter!(names::DEAD_LETTERS.name, "kind" => kind.as_str()).increment(1);
        // If the event has to be written again, the dead letter has not.
        settlement.dead_letter = None;
    }

    let (state, now) = (settlement.state, fleet_ops::clock::now());
    let shorten = || report::shorten_event(&settlement.event, state, now);
    let short = match write_or_shorten(producer, &settlement.event, shorten).await {
        Ok(short) => short,
        Err(error) => return report_not_written(token, Some(settlement), "event", &error),
    };

    if let Some(reply) = &settlement.reply {
        send_reply(producer, reply).await;
    }
    Answer::Written(token, state, Arc::new(short.unwrap_or(settlement.event)))
}

/// Sends a copy of the terminal event to the topic that the job names. A job does not wait for ever
/// for that.
async fn send_reply(producer: &Producer, reply: &Outgoing) {
    let sent = tokio::time::timeout(REPLY_TIMEOUT, producer.send(reply)).await;
    if !matches!(sent, Ok(Ok(_))) {
        counter!(names::WRITE_FAILURES.name, "kind" => "reply").increment(1);
        tracing::error!(topic = reply.topic, "could not write a reply; does the topic exist?");
    }
}

/// Why the producer has not written an end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Refusal {
    TooLarge,
    NoRoom,
    Other,
}

impl From<&KafkaError> for Refusal {
    fn from(error: &KafkaError) -> Self {
        match error {
            error if error.is_too_large() => Self::TooLarge,
            error if error.is_queue_full() => Self::NoRoom,
            _ => Self::Other,
        }
    }
}

/// What to do about an end that was not written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Remedy {
    /// Nothing: the job is another worker's to report.
    Drop,
    /// Write its short form.
    Shorten,
    /// Wait for room.
    Wait,
    /// Let the engine try again.
    TryAgain,
}

/// A worker that may have lost the job (`is_out_of_contact`) must not write anything, in short or
/// later, before it knows. The engine waits until then.
pub(super) fn choose_remedy(refusal: Refusal, is_ours: bool, is_out_of_contact: bool) -> Remedy {
    match refusal {
        _ if !is_ours => Remedy::Drop,
        Refusal::TooLarge if !is_out_of_contact => Remedy::Shorten,
        Refusal::NoRoom if !is_out_of_contact => Remedy::Wait,
        Refusal::TooLarge | Refusal::NoRoom | Refusal::Other => Remedy::TryAgain,
    }
}

/// Writes the end of a job exactly as it was written before.
pub(super) async fn repeat_end(producer: &Producer, token: Token, event: &Outgoing) -> Answer {
    match producer.send(event).await {
        Ok(_) => Answer::EndRepeated(token),
        Err(error) => report_not_written(token, None, "event", &error),
    }
}

/// Writes the record as which a waiting job goes on. If the delayed topic can't take a deferred
/// job, the job waits in memory. A record that has grown too large for the way back is written in
/// its short form.
pub(super) async fn write_passed_on(
    producer: &Producer,
    token: Token,
    letter: Letter,
    is_deferred: bool,
) -> Answer {
    let Letter { mut whole, bare } = letter;
    let mut written = producer.send(&whole).await;
    if !is_deferred && matches!(&written, Err(error) if error.is_unknown_partition()) {
        whole.partition = None;
        written = producer.send(&whole).await;
    }

    match written {
        Ok(_) => Answer::PassedOn(token),
        Err(error) if is_deferred && (error.is_too_large() || !error.is_retryable()) => {
            let error = fleet_ops::errors::chain(&error);
            tracing::warn!(%error, topic = whole.topic, "could not defer a job; it waits in memory");
            Answer::NotDeferred(token)
        }
        Err(error) if error.is_too_large() => match producer.send(&bare).await {
            Ok(_) => Answer::PassedOn(token),
            Err(error) => report_not_written(token, None, "delayed", &error),
        },
        Err(error) => report_not_written(token, None, "delayed", &error),
    }
}

/// Whether the group that a delayed job names has members. Such a group runs its own jobs. One
/// without members was renamed or is gone: nobody else would run them, and a repeat is better than
/// a loss.
pub(super) async fn group_has_members(settings: Settings, group: &str) -> Result<bool, KafkaError> {
    let group = group.to_owned();
    let asked =
        tokio::task::spawn_blocking(move || admin::has_members(&settings, &group, ASK_TIMEOUT));
    asked.await.unwrap_or(Err(KafkaError::PollThread("asking for a group's members panicked")))
}

/// Writes a terminal event for which the producer had no room.
pub(super) async fn write_when_room(
    producer: &Producer,
    token: Token,
    state: JobState,
    event: Arc<Outgoing>,
) -> Answer {
    match producer.send(&event).await {
        Ok(_) => Answer::Written(token, state, event),
        Err(error) => Answer::EventNotWritten(token, state, event, error),
    }
}

/// Writes the short form of a terminal event that was too large.
pub(super) async fn write_short_event(
    producer: &Producer,
    token: Token,
    state: JobState,
    event: &Outgoing,
) -> Answer {
    warn_of_size(event);

    let bare = report::shorten_event(event, state, fleet_ops::clock::now());
    match producer.send(&bare).await {
        Ok(_) => Answer::Written(token, state, Arc::new(bare)),
        Err(error) => {
            let whole = Settlement::of_event(state, event.clone());
            report_not_written(token, Some(whole), "event", &error)
        }
    }
}

/// Writes a record, or its short form if the topic does not take records of that size: trying the
/// same again could not help, and would hold up the partition for ever. Returns the short form if
/// that was written.
async fn write_or_shorten(
    producer: &Producer,
    whole: &Outgoing,
    bare: impl FnOnce() -> Outgoing,
) -> Result<Option<Outgoing>, KafkaError> {
    match producer.send(whole).await {
        Err(error) if error.is_too_large() => {
            warn_of_size(whole);
            let bare = bare();
            producer.send(&bare).await.map(|_| Some(bare))
        }
        other => other.map(|_| None),
    }
}

fn warn_of_size(record: &Outgoing) {
    tracing::error!(
        topic = record.topic,
        "a record is too large for its topic; writing a short form instead. Raise max.message.bytes"
    );
}

/// Counts and logs a failed write, and lets the engine try again. `rest` is what is left to write
/// of an end.
pub(super) fn report_not_written(
    token: Token,
    rest: Option<Settlement>,
    kind: &'static str,
    error: &KafkaError,
) -> Answer {
    counter!(names::WRITE_FAILURES.name, "kind" => kind).increment(1);
    let error = fleet_ops::errors::chain(error);
    tracing::error!(
        %error,
        kind,
        "the end of a job could not be written; its offset is held and the write will be repeated"
    );
    Answer::NotWritten(token, rest.map(Box::new))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_certain_owner_of_a_job_writes_its_end_in_another_way() {
        let cases = [
            (Refusal::TooLarge, true, false, Remedy::Shorten),
            (Refusal::NoRoom, true, false, Remedy::Wait),
            (Refusal::Other, true, false, Remedy::TryAgain),
            (Refusal::TooLarge, true, true, Remedy::TryAgain),
            (Refusal::NoRoom, true, true, Remedy::TryAgain),
            (Refusal::Other, true, true, Remedy::TryAgain),
        ];

        for (refusal, is_ours, lost, expected) in cases {
            assert_eq!(
                choose_remedy(refusal, is_ours, lost),
                expected,
                "{refusal:?}, out of contact: {lost}"
            );
            assert_eq!(
                choose_remedy(refusal, false, lost),
                Remedy::Drop,
                "{refusal:?}, out of contact: {lost}"
            );
        }
    }
}
