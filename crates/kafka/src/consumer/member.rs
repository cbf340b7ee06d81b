//! One member of the group: a client that follows one topic, its poll thread, and the orders for
//! it.

use std::{
    io,
    sync::{Arc, atomic::AtomicUsize, mpsc},
    thread,
};

use fleet_group::{FinalCommit, Patience};
use rdkafka::{
    consumer::{BaseConsumer, Consumer as _},
    error::KafkaError as Native,
};
use tokio::{
    sync::{mpsc as events, oneshot},
    time::Instant,
};

use super::{
    ConsumerConfig, Event, Followed, Order, REPLY_MARGIN, commits::CommitThread, context::Context,
    membership::Membership, poll::PollThread, wakeup::Wakeup, watch::WatchThread,
};
use crate::error::KafkaError;

/// The way from the members to the engine. All members share it, and what may wait in it.
#[derive(Debug, Clone)]
pub(super) struct Channel {
    pub(super) sender: events::UnboundedSender<Event>,
    /// The weight of records handed over and not taken yet.
    pub(super) queued: Arc<AtomicUsize>,
}

/// The engine's end of one member.
#[derive(Debug)]
pub(super) struct Member {
    orders: mpsc::Sender<Order>,
    wakeup: Arc<Wakeup>,
    pub(super) membership: Arc<Membership>,
    thread: thread::JoinHandle<()>,
}

impl Member {
    /// Subscribes and starts the threads. Dropping the member makes it leave the group without a
    /// commit.
    ///
    /// # Errors
    /// [`KafkaError::Client`] or [`KafkaError::Request`].
    pub(super) fn start(
        config: &ConsumerConfig,
        number: u16,
        followed: &Followed,
        channel: &Channel,
    ) -> Result<Self, KafkaError> {
        let (orders, inbox) = mpsc::channel();
        let patience =
            Patience::new(config.settings.session_timeout(), config.drain + REPLY_MARGIN);
        let membership = Arc::new(Membership::new(patience));
        let topic = followed.topic.clone();
        let wakeup = Arc::new(Wakeup::default());
        let context = Context::new(
            channel.clone(),
            membership.clone(),
            wakeup.clone(),
            number,
            topic,
            config.drain,
        );
        let mut consumer: BaseConsumer<Context> = config
            .settings
            .consumer(&config.group, followed.role)
            .create_with_context(context)
            .map_err(KafkaError::client)?;
        let waker = wakeup.clone();
        consumer.set_nonempty_callback(move || waker.wake());
        consumer.subscribe(&[&followed.topic]).map_err(|source| KafkaError::Request {
            what: "subscribing to a topic of jobs",
            source,
        })?;

        let consumer = Arc::new(consumer);
        let no_thread =
            |error: io::Error| KafkaError::Client(Native::ClientCreation(error.to_string()));
        let commits = CommitThread::start(consumer.clone()).map_err(no_thread)?;
        let watch = WatchThread::start(consumer.clone()).map_err(no_thread)?;
        let thread = thread::Builder::new()
            .name("kafka-poll".to_owned())
            .spawn(move || PollThread::new(consumer, inbox, commits, watch).run())
            .map_err(no_thread)?;
        Ok(Self { orders, wakeup, membership, thread })
    }

    pub(super) fn order(&self, order: Order) {
        // The thread ends only after `Close` or a fatal error, which has been reported as an event.
        if self.orders.send(order).is_err() {
            tracing::debug!("the poll thread has ended; the order is moot");
        }
        self.wakeup.wake();
    }

    /// Orders the member to commit, to leave the group and to end.
    pub(super) fn close(self, commits: Vec<FinalCommit>) -> Closing {
        let (sender, receiver) = oneshot::channel();
        self.order(Order::Close(commits, sender));
        Closing { receiver, thread: self.thread }
    }
}

/// A member that leaves the group.
#[must_use]
#[derive(Debug)]
pub(super) struct Closing {
    receiver: oneshot::Receiver<Result<(), KafkaError>>,
    thread: thread::JoinHandle<()>,
}

impl Closing {
    /// Waits until the member has left.
    ///
    /// # Errors
    /// [`KafkaError::Request`] when the last commit fails, [`KafkaError::PollThread`] when the
    /// thread has ended before or does not end by `deadline`.
    pub(super) async fn wait(self, deadline: Instant) -> Result<(), KafkaError> {
        let Ok(answer) = tokio::time::timeout_at(deadline, self.receiver).await else {
            return Err(KafkaError::PollThread("it did not leave the group in time"));
        };

        let thread = self.thread;
        let joined = tokio::task::spawn_blocking(move || thread.join()).await;
        if !matches!(joined, Ok(Ok(()))) {
            tracing::error!("the poll thread panicked");
        }
        answer.unwrap_or(Err(KafkaError::PollThread("it ended early")))
    }
}
