//! The context of clients that are no members of the group, and what keeps one failure from being
//! logged several times.

use std::collections::VecDeque;

use parking_lot::Mutex;
use rdkafka::{
    ClientContext,
    config::RDKafkaLogLevel,
    consumer::{BaseConsumer, ConsumerContext},
    error::{KafkaError as Native, RDKafkaErrorCode},
    util::Timeout,
};

/// How many messages are compared with a new one. A client with several brokers may report their
/// failures in any order.
const REMEMBERED: usize = 16;

/// A consumer without callbacks of its own.
pub(crate) type QuietConsumer = BaseConsumer<QuietContext>;

/// A context that logs each failure once, and not the reached end of a partition, which librdkafka
/// reports as an error.
#[derive(Debug, Default)]
pub(crate) struct QuietContext {
    failures: FailureLog,
}

impl ClientContext for QuietContext {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.failures.log_line(level, facility, message);
    }

    fn error(&self, error: Native, reason: &str) {
        if error.rdkafka_error_code() != Some(RDKafkaErrorCode::PartitionEOF) {
            self.failures.log_error(&error, reason);
        }
    }
}

impl ConsumerContext for QuietContext {
    /// All messages arrive in the queue that is being polled, so the wait need not be interrupted
    /// for another queue.
    fn main_queue_min_poll_interval(&self) -> Timeout {
        Timeout::Never
    }
}

/// What a client has logged of late. librdkafka reports one failure as a line of its log and as one
/// or two errors with the same text.
#[derive(Debug, Default)]
pub(crate) struct FailureLog {
    messages: Mutex<VecDeque<Message>>,
}

#[derive(Debug)]
struct Message {
    text: String,
    is_line: bool,
}

impl FailureLog {
    /// Writes a line of librdkafka's log to ours, unless it only repeats an error.
    pub(crate) fn log_line(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        use RDKafkaLogLevel::{Alert, Critical, Debug, Emerg, Error, Info, Notice, Warning};

        if !self.note_line(message) {
            return;
        }
        match level {
            Emerg | Alert | Critical | Error => {
                tracing::error!(target: "librdkafka", "librdkafka: {facility} {message}");
            }
            Warning => tracing::warn!(target: "librdkafka", "librdkafka: {facility} {message}"),
            Notice | Info => {
                tracing::info!(target: "librdkafka", "librdkafka: {facility} {message}")
            }
            Debug => tracing::debug!(target: "librdkafka", "librdkafka: {facility} {message}"),
        }
    }

    /// Logs an error of librdkafka, unless its log has said the same.
    pub(crate) fn log_error(&self, error: &Native, reason: &str) {
        if self.note_error(reason) {
            tracing::warn!(%error, reason, "Kafka error");
        } else {
            tracing::debug!(%error, reason, "Kafka error");
        }
    }

    /// Takes note of a line. Returns whether it says something that no error has said.
    fn note_line(&self, line: &str) -> bool {
        let mut messages = self.messages.lock();
        let repeats = |message: &Message| !message.is_line && line.ends_with(&message.text);
        let repeated = messages.iter().position(repeats);

        match repeated {
            // The same line is news when it comes again.
            Some(index) => drop(messages.remove(index)),
            None => remember(&mut messages, Message { text: line.to_owned(), is_line: true }),
        }
        repeated.is_none()
    }

    /// Takes note of an error. Returns whether its reason is new.
    fn note_error(&self, reason: &str) -> bool {
        let mut messages = self.messages.lock();
        let is_new = reason.is_empty()
            || !messages.iter().any(|message| {
                message.text == reason || (message.is_line && message.text.ends_with(reason))
            });

        if is_new && !reason.is_empty() {
            remember(&mut messages, Message { text: reason.to_owned(), is_line: false });
        }
        is_new
    }
}

fn remember(messages: &mut VecDeque<Message>, message: Message) {
    if messages.len() == REMEMBERED {
        messages.pop_front();
    }
    messages.push_back(message);
}

#[cfg(test)]
mod tests {
    use super::*;

    const REASON: &str = "b:9/bootstrap: Connect to ipv4#127.0.0.1:9 failed: Connection refused";
    const LINE: &str = "[thrd:b:9/bootstrap]: b:9/bootstrap: Connect to ipv4#127.0.0.1:9 failed: Connection refused";

    #[test]
    fn a_failure_is_logged_once() {
        let log = FailureLog::default();
        assert!(log.note_line(LINE));
        assert!(!log.note_error(REASON) && !log.note_error(REASON));

        // In the other order.
        let log = FailureLog::default();
        assert!(log.note_error(REASON));
        assert!(!log.note_line(LINE) && log.note_line(LINE));

        // Failures of several brokers, one after the other.
        let log = FailureLog::default();
        for broker in 0..3 {
            assert!(log.note_line(&format!("[thrd:main]: broker {broker} is down")));
        }
        for broker in 0..3 {
            assert!(!log.note_error(&format!("broker {broker} is down")));
        }
    }

    #[test]
    fn different_failures_are_all_logged() {
        let log = FailureLog::default();
        assert!(log.note_line(LINE) && log.note_line(LINE), "librdkafka limits its own repeats");
        assert!(log.note_error("1/1 brokers are down"));
        assert!(log.note_error("") && log.note_error(""), "an error without a reason");
        assert!(log.note_line("[thrd:main]: something else"));

        for n in 0..10 * REMEMBERED {
            log.note_line(&n.to_string());
        }
        assert_eq!(log.messages.lock().len(), REMEMBERED);
    }
}
