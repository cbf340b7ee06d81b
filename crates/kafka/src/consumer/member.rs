//! One member of the group: a client that follows one topic, its threads, and the channel for
//! orders to them.

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

/// The channel from the members to the engine, which all members share.
#[derive(Debug, Clone)]
pub(super) struct Channel {
    pub(super) sender: events::UnboundedSender<Event>,
    /// The weight of the records in the channel.
    pub(super) queued: Arc<AtomicUsize>,
}

/// A handle to one member, held by the engine.
#[derive(Debug)]
pub(super) struct Member {
    orders: mpsc::Sender<Order>,
    wakeup: Arc<Wakeup>,
    pub(super) membership: Arc<Membership>,
    thread: thread::JoinHandle<()>,
}

impl Member {
    /// Subscribes to the topic and starts the threads. A member that is dropped leaves the group
    /// without a commit.
    ///
    /// # Errors
    ///
    /// Returns [`KafkaError::Client`] or [`KafkaError::Request`].
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
        consumer
            .subscribe(&[&followed.topic])
            .map_err(|source| KafkaError::Request { what: "subscribing to a topic", source })?;

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
        // The thread ends only after `Close` or after a fatal error, which it has reported as an
        // event.
        if self.orders.send(order).is_err() {
            tracing::debug!("ignored an order to a poll thread that has ended");
        }
        self.wakeup.wake();
    }

    /// Tells the member to commit, leave the group and end.
    pub(super) fn close(self, commits: Vec<FinalCommit>) -> Closing {
        let (sender, receiver) = oneshot::channel();
        self.order(Order::Close(commits, sender));
        Closing { receiver, thread: self.thread }
    }
}

/// A member that is leaving the group.
#[must_use = "the member has left only when `wait` returns"]
#[derive(Debug)]
pub(super) struct Closing {
    receiver: oneshot::Receiver<Result<(), KafkaError>>,
    thread: thread::JoinHandle<()>,
}

impl Closing {
    /// Waits until the member has left.
    ///
    /// # Errors
    ///
    /// Returns [`KafkaError::Request`] if the last commit failed, and [`KafkaError::PollThread`] if
    /// the thread ended early or did not end by `deadline`.
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
