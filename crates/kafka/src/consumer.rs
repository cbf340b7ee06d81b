//! The poll thread.
//!
//! One OS thread owns the consumer and does nothing but poll, so that slow jobs never cost the membership. What it meets
//! becomes an [`Event`] on a channel; what the engine wants becomes an [`Order`]. Rebalance callbacks run on this thread
//! inside `poll`: a revoke waits there, for a bounded time, until the engine has drained the partitions, and then
//! commits synchronously before they are given away.

use std::{
    collections::HashMap,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::{Duration, Instant},
};

use fleet_engine::{FinalCommit, Partition};
use fleet_job::record::RawRecord;
use rdkafka::{
    ClientContext, Message as _, Offset, Statistics, TopicPartitionList,
    client::OAuthToken,
    consumer::{BaseConsumer, CommitMode, Consumer as _, ConsumerContext, Rebalance},
    error::{KafkaError as Native, KafkaResult},
};
use tokio::sync::{mpsc as events, oneshot};

use crate::{convert, error::KafkaError, settings::Settings};

/// The longest a poll waits, and so the longest an order waits to be carried out.
const POLL: Duration = Duration::from_millis(20);
/// How long the broker may take to say what is committed.
const COMMITTED_TIMEOUT: Duration = Duration::from_secs(10);
/// How often it is asked before we go on without.
const COMMITTED_TRIES: usize = 3;

/// What a consumer is made from.
#[derive(Debug, Clone)]
pub struct ConsumerConfig {
    /// Brokers and properties.
    pub settings: Settings,
    /// The consumer group.
    pub group: String,
    /// The topics; a [`Partition`]'s topic is an index into them.
    pub topics: Vec<String>,
    /// How long a revoke waits for running jobs. Must be well below `max.poll.interval.ms`.
    pub drain: Duration,
}

/// What a partition starts from.
#[derive(Debug, Clone)]
pub struct Assigned {
    /// Which.
    pub partition: Partition,
    /// The committed offset and its metadata, where there are any.
    pub committed: Option<(i64, String)>,
}

/// What has happened on the poll thread.
#[derive(Debug)]
pub enum Event {
    /// The group gave us partitions.
    Assigned(Vec<Assigned>),
    /// A record was read.
    Record(Partition, RawRecord),
    /// The group wants partitions back. The poll thread waits for the commits, until the deadline.
    Revoking(Vec<Partition>, Instant, mpsc::SyncSender<Vec<FinalCommit>>),
    /// Partitions were lost without notice: another worker may have them already.
    Lost(Vec<Partition>),
    /// A commit of this generation has ended; `true` when the broker has taken it.
    Committed(Partition, u64, bool),
    /// How far the partitions lag behind the end of their topic.
    Lag(Vec<(Partition, i64)>),
    /// The consumer can't go on.
    Failed(KafkaError),
}

/// What the engine wants of the poll thread.
#[derive(Debug)]
enum Order {
    Commit(FinalCommit),
    Pause(Partition),
    Resume(Partition),
    Close(Vec<FinalCommit>, oneshot::Sender<Result<(), KafkaError>>),
}

/// The engine's end of the poll thread.
#[derive(Debug)]
pub struct Consumer {
    orders: mpsc::Sender<Order>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Consumer {
    /// Subscribes and starts the poll thread.
    ///
    /// # Errors
    /// [`KafkaError::Property`], [`KafkaError::Client`] or [`KafkaError::Request`].
    pub fn start(config: ConsumerConfig) -> Result<(Self, events::UnboundedReceiver<Event>), KafkaError> {
        config.settings.check()?;
        let (events, receiver) = events::unbounded_channel();
        let (orders, inbox) = mpsc::channel();
        let context = Context {
            events,
            topics: config.topics.clone(),
            drain: config.drain,
            closing: AtomicBool::new(false),
            outstanding: Mutex::default(),
        };
        let consumer: BaseConsumer<Context> = config
            .settings
            .consumer(&config.group)
            .create_with_context(context)
            .map_err(KafkaError::Client)?;
        let topics: Vec<_> = config.topics.iter().map(String::as_str).collect();
        consumer
            .subscribe(&topics)
            .map_err(|source| KafkaError::Request { what: "subscribing to the jobs topic", source })?;
        let thread = thread::Builder::new()
            .name("kafka-poll".to_owned())
            .spawn(move || PollThread { consumer, inbox }.run())
            .map_err(|error| KafkaError::Client(Native::ClientCreation(error.to_string())))?;
        Ok((Self { orders, thread: Some(thread) }, receiver))
    }

    fn order(&self, order: Order) {
        // The thread ends only after `Close` or a fatal error, which has been reported as an event.
        if self.orders.send(order).is_err() {
            tracing::debug!("the poll thread has ended; the order is moot");
        }
    }

    /// Commits without waiting; [`Event::Committed`] tells how it went.
    pub fn commit(&self, commit: FinalCommit) {
        self.order(Order::Commit(commit));
    }

    /// Stops fetching a partition.
    pub fn pause(&self, partition: Partition) {
        self.order(Order::Pause(partition));
    }

    /// Fetches a partition again.
    pub fn resume(&self, partition: Partition) {
        self.order(Order::Resume(partition));
    }

    /// Commits `commits`, leaves the group and ends the thread.
    ///
    /// # Errors
    /// [`KafkaError::Request`] when the last commit fails; the group is left all the same.
    pub async fn close(mut self, commits: Vec<FinalCommit>) -> Result<(), KafkaError> {
        let (sender, receiver) = oneshot::channel();
        self.order(Order::Close(commits, sender));
        let result = receiver.await.unwrap_or(Ok(()));
        if let Some(thread) = self.thread.take() {
            // Leaving the group talks to the broker; an executor thread must not wait for that.
            let joined = tokio::task::spawn_blocking(move || thread.join()).await;
            if !matches!(joined, Ok(Ok(()))) {
                tracing::error!("the poll thread panicked");
            }
        }
        result
    }
}

struct PollThread {
    consumer: BaseConsumer<Context>,
    inbox: mpsc::Receiver<Order>,
}

impl PollThread {
    fn run(self) {
        loop {
            match self.consumer.poll(POLL) {
                Some(Ok(message)) => {
                    let context = self.consumer.context();
                    if let Some(partition) = context.partition(message.topic(), message.partition()) {
                        context.emit(Event::Record(partition, convert::to_record(&message)));
                    }
                }
                Some(Err(source @ Native::MessageConsumptionFatal(_))) => {
                    let error = KafkaError::Request { what: "consuming", source };
                    self.consumer.context().emit(Event::Failed(error));
                    return;
                }
                // librdkafka mends everything else by itself and says so in its log.
                Some(Err(error)) => tracing::warn!(%error, "consuming goes on after an error"),
                None => {}
            }
            loop {
                match self.inbox.try_recv() {
                    Ok(Order::Close(commits, done)) => return self.close(&commits, done),
                    Ok(order) => self.carry_out(order),
                    Err(mpsc::TryRecvError::Empty) => break,
                    // The engine is gone without a close: it panicked. Leave, commit nothing.
                    Err(mpsc::TryRecvError::Disconnected) => return,
                }
            }
        }
    }

    fn carry_out(&self, order: Order) {
        let context = self.consumer.context();
        match order {
            Order::Commit(commit) => {
                let list = context.list([&commit]);
                context.outstanding().insert(commit.partition, commit.generation);
                if let Err(error) = self.consumer.commit(&list, CommitMode::Async) {
                    tracing::warn!(%error, "a commit could not be sent and will be repeated");
                    context.commit_ended(commit.partition, false);
                }
            }
            Order::Pause(partition) => {
                let list = context.positions([partition]);
                if let Err(error) = self.consumer.pause(&list) {
                    tracing::debug!(%error, ?partition, "a partition that is gone was to be paused");
                }
            }
            Order::Resume(partition) => {
                let list = context.positions([partition]);
                if let Err(error) = self.consumer.resume(&list) {
                    tracing::debug!(%error, ?partition, "a partition that is gone was to be resumed");
                }
            }
            Order::Close(..) => {}
        }
    }

    fn close(self, commits: &[FinalCommit], done: oneshot::Sender<Result<(), KafkaError>>) {
        let context = self.consumer.context();
        context.closing.store(true, Ordering::Relaxed);
        let result = context.commit_sync(&self.consumer, commits);
        self.consumer.unsubscribe();
        let outcome = result.map_err(|source| KafkaError::Request { what: "the last commit", source });
        // Dropping the consumer leaves the group, which must have happened before we say that we are done.
        drop(self.consumer);
        if done.send(outcome).is_err() {
            tracing::debug!("nobody waits for the consumer to close");
        }
    }
}

/// What librdkafka calls back into.
struct Context {
    events: events::UnboundedSender<Event>,
    topics: Vec<String>,
    drain: Duration,
    closing: AtomicBool,
    /// The generation of each partition's commit that has no answer yet.
    outstanding: Mutex<HashMap<Partition, u64>>,
}

impl Context {
    fn emit(&self, event: Event) {
        // The receiver goes only when the worker ends.
        if self.events.send(event).is_err() {
            tracing::debug!("nobody listens to the poll thread any more");
        }
    }

    fn outstanding(&self) -> std::sync::MutexGuard<'_, HashMap<Partition, u64>> {
        // Insert and remove leave the map whole even if they panic.
        self.outstanding.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn commit_ended(&self, partition: Partition, ok: bool) {
        // Synchronous commits are answered here too; nobody waits for that answer.
        let generation = self.outstanding().remove(&partition);
        if let Some(generation) = generation {
            self.emit(Event::Committed(partition, generation, ok));
        }
    }

    fn partition(&self, topic: &str, number: i32) -> Option<Partition> {
        let topic = self.topics.iter().position(|name| name == topic)?;
        Some(Partition { topic: u16::try_from(topic).ok()?, number })
    }

    fn partitions(&self, list: &TopicPartitionList) -> Vec<Partition> {
        list.elements()
            .iter()
            .filter_map(|element| self.partition(element.topic(), element.partition()))
            .collect()
    }

    fn topic(&self, partition: Partition) -> &str {
        self.topics.get(usize::from(partition.topic)).map_or("", String::as_str)
    }

    fn positions(&self, partitions: impl IntoIterator<Item = Partition>) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        for partition in partitions {
            list.add_partition(self.topic(partition), partition.number);
        }
        list
    }

    fn list<'a>(&self, commits: impl IntoIterator<Item = &'a FinalCommit>) -> TopicPartitionList {
        let mut list = TopicPartitionList::new();
        for commit in commits {
            let mut element = list.add_partition(self.topic(commit.partition), commit.partition.number);
            // Offsets are not negative, which is all that librdkafka could object to.
            if let Err(error) = element.set_offset(Offset::Offset(commit.offset)) {
                tracing::error!(%error, offset = commit.offset, "an impossible offset was to be committed");
            }
            if !commit.metadata.is_empty() {
                element.set_metadata(&commit.metadata);
            }
        }
        list
    }

    fn commit_sync(&self, consumer: &BaseConsumer<Self>, commits: &[FinalCommit]) -> KafkaResult<()> {
        if commits.is_empty() { Ok(()) } else { consumer.commit(&self.list(commits), CommitMode::Sync) }
    }

    fn assigned(&self, consumer: &BaseConsumer<Self>, list: &TopicPartitionList) {
        let partitions = self.partitions(list);
        if partitions.is_empty() {
            return;
        }
        let committed = (1..=COMMITTED_TRIES).find_map(|attempt| {
            match consumer.committed_offsets(self.positions(partitions.iter().copied()), COMMITTED_TIMEOUT) {
                Ok(committed) => Some(committed),
                Err(error) => {
                    tracing::warn!(%error, attempt, "the broker does not say what is committed");
                    None
                }
            }
        });
        if committed.is_none() {
            tracing::error!(
                "going on without commit metadata: settled jobs beyond the frontier may run again"
            );
        }
        let assigned = partitions.into_iter().map(|partition| {
            let found = committed
                .as_ref()
                .and_then(|list| list.find_partition(self.topic(partition), partition.number));
            let committed = found.and_then(|element| match element.offset() {
                Offset::Offset(offset) if offset >= 0 => Some((offset, element.metadata().to_owned())),
                _ => None,
            });
            Assigned { partition, committed }
        });
        self.emit(Event::Assigned(assigned.collect()));
    }

    fn revoked(&self, consumer: &BaseConsumer<Self>, list: &TopicPartitionList) {
        let partitions = self.partitions(list);
        if partitions.is_empty() {
            return;
        }
        if consumer.assignment_lost() {
            self.emit(Event::Lost(partitions));
            return;
        }
        let (reply, commits) = mpsc::sync_channel(1);
        self.emit(Event::Revoking(partitions, Instant::now() + self.drain, reply));
        // The engine keeps the deadline; the margin is for a busy machine.
        match commits.recv_timeout(self.drain + Duration::from_secs(5)) {
            Ok(commits) => {
                if let Err(error) = self.commit_sync(consumer, &commits) {
                    tracing::warn!(%error, "the commit before giving partitions back failed: their jobs may repeat");
                }
            }
            Err(_) => {
                tracing::warn!("partitions are given back without a last commit: their jobs may repeat")
            }
        }
    }
}

impl ClientContext for Context {
    fn stats(&self, statistics: Statistics) {
        let lag = statistics.topics.values().flat_map(|topic| {
            topic.partitions.values().filter_map(|stats| {
                let partition = self.partition(&topic.topic, stats.partition)?;
                (stats.consumer_lag >= 0).then_some((partition, stats.consumer_lag))
            })
        });
        let lag: Vec<_> = lag.collect();
        if !lag.is_empty() {
            self.emit(Event::Lag(lag));
        }
    }

    fn error(&self, error: Native, reason: &str) {
        tracing::warn!(%error, reason, "Kafka");
    }

    fn generate_oauth_token(&self, _: Option<&str>) -> Result<OAuthToken, Box<dyn std::error::Error>> {
        Err("set sasl.oauthbearer.method=oidc and its endpoint: tokens from elsewhere are not supported"
            .into())
    }
}

impl ConsumerContext for Context {
    fn pre_rebalance(&self, consumer: &BaseConsumer<Self>, rebalance: &Rebalance<'_>) {
        if self.closing.load(Ordering::Relaxed) {
            return;
        }
        match rebalance {
            Rebalance::Assign(list) => self.assigned(consumer, list),
            Rebalance::Revoke(list) => self.revoked(consumer, list),
            Rebalance::Error(error) => tracing::warn!(%error, "rebalance"),
        }
    }

    fn commit_callback(&self, result: KafkaResult<()>, offsets: &TopicPartitionList) {
        if let Err(error) = &result {
            tracing::warn!(%error, "a commit failed and will be repeated");
        }
        for element in offsets.elements() {
            if let Some(partition) = self.partition(element.topic(), element.partition()) {
                self.commit_ended(partition, result.is_ok() && element.error().is_ok());
            }
        }
    }
}
