//! The client that all followed topics share: one thread polls it and puts records into mailboxes.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use parking_lot::{Mutex, MutexGuard};
use rdkafka::{
    Message as _, Offset, TopicPartitionList, consumer::Consumer as _, error::KafkaError as Native,
};

use super::mailbox::Mailbox;
use crate::{
    convert,
    error::KafkaError,
    quiet_context::{QuietConsumer, QuietContext},
    settings::Settings,
};

/// The timeout of a poll, which is also how long the thread outlives its last follower. rdkafka
/// spins through any fraction of a millisecond in a timeout, so this is in whole seconds.
const POLL: Duration = Duration::from_secs(5);

/// The shared client and the subscriptions that it serves.
pub(super) struct Hub {
    consumer: QuietConsumer,
    subscriptions: Mutex<Subscriptions>,
    /// Set after a fatal error, when librdkafka cannot use this client any more.
    failed: AtomicBool,
}

#[derive(Default)]
struct Subscriptions {
    /// The number of subscriptions so far.
    made: u64,
    by_topic: HashMap<String, Subscription>,
}

struct Subscription {
    number: u64,
    partitions: TopicPartitionList,
    mailbox: Mailbox,
}

impl std::fmt::Debug for Hub {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hub")
            .field("topics", &self.subscriptions().by_topic.keys())
            .finish_non_exhaustive()
    }
}

impl Hub {
    /// Creates the client and starts its thread, which ends after the last use.
    pub(super) fn start(settings: &Settings) -> Result<Arc<Self>, KafkaError> {
        let consumer: QuietConsumer = settings
            .follower()
            .create_with_context(QuietContext::default())
            .map_err(KafkaError::client)?;
        let hub = Arc::new(Self {
            consumer,
            subscriptions: Mutex::default(),
            failed: AtomicBool::new(false),
        });

        let weak = Arc::downgrade(&hub);
        thread::Builder::new()
            .name("kafka-follow".to_owned())
            .spawn(move || poll_while_used(&weak))
            .map_err(|error| KafkaError::Client(Native::ClientCreation(error.to_string())))?;

        Ok(hub)
    }

    pub(super) fn is_usable(&self) -> bool {
        !self.failed.load(Ordering::Relaxed)
    }

    fn subscriptions(&self) -> MutexGuard<'_, Subscriptions> {
        self.subscriptions.lock()
    }

    /// Delivers the topic's records from these offsets on to `mailbox`. Returns the number of the
    /// subscription.
    ///
    /// # Errors
    ///
    /// Returns [`KafkaError::Request`] if the topic is already followed.
    pub(super) fn subscribe(
        &self,
        topic: &str,
        positions: &BTreeMap<i32, i64>,
        mailbox: &Mailbox,
    ) -> Result<u64, KafkaError> {
        let request = |source| KafkaError::Request { what: "following a topic", source };
        let mut partitions = TopicPartitionList::new();
        for (partition, offset) in positions {
            partitions
                .add_partition_offset(topic, *partition, Offset::Offset(*offset))
                .map_err(request)?;
        }

        let mut subscriptions = self.subscriptions();
        let number = subscriptions.made + 1;
        subscriptions.made = number;
        // The first record may arrive before this call returns; its delivery waits for the lock.
        self.consumer.incremental_assign(&partitions).map_err(request)?;
        mailbox.begin(number);
        let subscription = Subscription { number, partitions, mailbox: mailbox.clone() };
        subscriptions.by_topic.insert(topic.to_owned(), subscription);
        Ok(number)
    }

    /// Ends a subscription if it is still active.
    pub(super) fn unsubscribe(&self, topic: &str, number: u64) {
        let mut subscriptions = self.subscriptions();
        let found = subscriptions.by_topic.get(topic).is_some_and(|found| found.number == number);

        if found && let Some(subscription) = subscriptions.by_topic.remove(topic) {
            self.unassign(topic, &subscription);
        }
    }

    fn unassign(&self, topic: &str, subscription: &Subscription) {
        if let Err(error) = self.consumer.incremental_unassign(&subscription.partitions) {
            tracing::warn!(%error, topic, "could not stop reading a topic that nobody follows");
        }
    }

    fn poll(&self) {
        match self.consumer.poll(POLL) {
            Some(Ok(message)) => {
                let (topic, record) = (message.topic(), convert::to_record(&message));
                self.deliver(topic, record);
            }
            Some(Err(source @ Native::MessageConsumptionFatal(_))) => self.fail(&source),
            // librdkafka recovers from all other errors.
            Some(Err(error)) => {
                tracing::debug!(%error, "an error while following topics; librdkafka retries")
            }
            None => {}
        }
    }

    fn deliver(&self, topic: &str, record: fleet_job::record::RawRecord) {
        let mut subscriptions = self.subscriptions();
        let Some(subscription) = subscriptions.by_topic.get(topic) else { return };
        if subscription.mailbox.put(subscription.number, record) {
            return;
        }

        if let Some(subscription) = subscriptions.by_topic.remove(topic) {
            self.unassign(topic, &subscription);
        }
    }

    /// Ends all subscriptions with an error. Their topics have to be opened again, with a new
    /// client.
    fn fail(&self, source: &Native) {
        self.failed.store(true, Ordering::Relaxed);

        for (_, subscription) in self.subscriptions().by_topic.drain() {
            let error = KafkaError::Request { what: "reading", source: source.clone() };
            subscription.mailbox.fail(subscription.number, error);
        }
    }
}

fn poll_while_used(hub: &Weak<Hub>) {
    while let Some(hub) = hub.upgrade().filter(|hub| hub.is_usable()) {
        hub.poll();
    }
}
