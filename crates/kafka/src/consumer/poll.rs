//! The poll thread: polls and carries out orders. It never waits for jobs, so slow ones never cost
//! the membership, and not for commits before the last ones either.

use std::{
    sync::{Arc, atomic::Ordering, mpsc},
    thread,
    time::{Duration, Instant},
};

use fleet_group::{FinalCommit, Partition};
use rdkafka::{
    Message as _,
    consumer::{BaseConsumer, Consumer as _},
    error::{KafkaError as Native, KafkaResult},
};
use tokio::sync::oneshot;

use super::{
    Event, MAX_QUEUED, Order,
    commits::CommitThread,
    context::{Context, LAST_COMMIT_PAUSE, LAST_COMMIT_TRIES},
    watch::WatchThread,
    weight,
};
use crate::{convert, error::KafkaError};

/// How long a poll waits while the group is being left.
const POLL: Duration = Duration::from_millis(20);
const QUEUED_PAUSE: Duration = Duration::from_millis(2);

pub(super) struct PollThread {
    consumer: Arc<BaseConsumer<Context>>,
    inbox: mpsc::Receiver<Order>,
    commits: CommitThread,
    watch: WatchThread,
}

impl PollThread {
    pub(super) fn new(
        consumer: Arc<BaseConsumer<Context>>,
        inbox: mpsc::Receiver<Order>,
        commits: CommitThread,
        watch: WatchThread,
    ) -> Self {
        Self { consumer, inbox, commits, watch }
    }

    pub(super) fn run(self) {
        let context = self.consumer.context().clone();
        context.wakeup.wakes_this_thread();
        let idle = context.membership.longest_park();
        loop {
            context.membership.turned();
            let anew = context.begin_what_was_remade(&self.consumer);
            context.make_sure_of_ends(&self.consumer);
            let is_drained = match anew.and_then(|()| self.poll()) {
                Ok(is_drained) => is_drained,
                Err(error) => return context.emit(Event::Failed(error)),
            };
            loop {
                match self.inbox.try_recv() {
                    Ok(Order::Close(last, done)) => return self.close(last, done),
                    Ok(Order::Commit(commit)) => {
                        if let Err(error) = self.commits.commit(commit) {
                            return context.emit(Event::Failed(error));
                        }
                    }
                    Ok(Order::Pause(partition, generation)) => {
                        self.set_paused(partition, generation, true)
                    }
                    Ok(Order::Resume(partition, generation)) => {
                        self.set_paused(partition, generation, false)
                    }
                    Err(mpsc::TryRecvError::Empty) => break,
                    // The engine is gone without a close: it panicked. Leave, commit nothing.
                    Err(mpsc::TryRecvError::Disconnected) => return,
                }
            }
            if is_drained {
                thread::park_timeout(idle);
            }
        }
    }

    /// Takes one thing that librdkafka has for us; whether there was none. What comes later, and
    /// every order, wakes the thread. (A poll that waits could be woken by librdkafka only, and
    /// spins through the last millisecond of its wait.)
    fn poll(&self) -> Result<bool, KafkaError> {
        let context = self.consumer.context();
        if context.channel.queued.load(Ordering::Relaxed) >= MAX_QUEUED {
            thread::sleep(QUEUED_PAUSE);
            return Ok(false);
        }
        context.called_back.store(false, Ordering::Relaxed);
        match self.consumer.poll(Duration::ZERO) {
            Some(Ok(message)) => {
                if let Some(partition) = context.partition(message.topic(), message.partition()) {
                    if let Some(last) = context.went_back(partition, message.offset()) {
                        drop(message);
                        context.begin_what_went_back(&self.consumer, partition, last)?;
                        return Ok(false);
                    }
                    context.has_read.store(true, Ordering::Relaxed);
                    context.membership.delivered(partition, message.offset());
                    context.known_ends().read(partition, message.offset());
                    let record = convert::to_record(&message);
                    context.channel.queued.fetch_add(weight(&record), Ordering::Relaxed);
                    context.emit(Event::Record(partition, record));
                }
            }
            Some(Err(source @ Native::MessageConsumptionFatal(_))) => {
                return Err(KafkaError::Request { what: "consuming", source });
            }
            Some(Err(Native::PartitionEOF(number))) => context.reached_end(number),
            // The partition shows in the next statistics.
            Some(Err(Native::MessageConsumption(code))) if context.unreadable().met(code) => {
                tracing::debug!(%code, "a partition could not be read on");
            }
            // librdkafka mends everything else by itself and says so in its log.
            Some(Err(error)) => tracing::warn!(%error, "consuming goes on after an error"),
            // `None` also stands for what ended in a callback, and more may be behind it, for which
            // nobody wakes us.
            None => return Ok(!context.called_back.load(Ordering::Relaxed)),
        }
        Ok(false)
    }

    fn set_paused(&self, partition: Partition, generation: u64, paused: bool) {
        let context = self.consumer.context();
        if !context.membership.owns(partition, generation) {
            return;
        }
        context.unreadable().set_paused(partition, paused);
        if paused {
            context.known_ends().paused(partition);
        }
        let list = context.positions([partition]);
        let result = if paused { self.consumer.pause(&list) } else { self.consumer.resume(&list) };
        if let Err(error) = result {
            tracing::warn!(%error, ?partition, paused, "fetching could not be paused or resumed");
        }
    }

    fn close(mut self, commits: Vec<FinalCommit>, done: oneshot::Sender<Result<(), KafkaError>>) {
        // What it still has to commit is older than what comes now.
        self.commits.finish();
        self.watch.finish();
        while !self.commits.is_finished() || !self.watch.is_finished() {
            // Records are read again by the next owner.
            drop(self.consumer.poll(POLL));
        }
        let result = self.commit_last(commits);
        let consumer = self.consumer;
        consumer.context().closing.store(true, Ordering::Relaxed);
        consumer.unsubscribe();
        let outcome =
            result.map_err(|source| KafkaError::Request { what: "the last commit", source });
        // Dropping the consumer leaves the group, which must have happened before we say that we
        // are done.
        drop(consumer);
        if done.send(outcome).is_err() {
            tracing::debug!("nobody waits for the consumer to close");
        }
    }

    /// The last commit of all. When several workers stop at once their group rebalances, and the
    /// coordinator refuses commits until we have joined its new generation, which takes polling.
    /// Partitions that go meanwhile are committed as they go.
    fn commit_last(&self, commits: Vec<FinalCommit>) -> KafkaResult<()> {
        let context = self.consumer.context();
        let mut open = commits;
        for attempt in 1.. {
            open = context.membership.still_owned(open);
            match context.commit_each(&self.consumer, &mut open) {
                Ok(()) => break,
                Err(error) if attempt >= LAST_COMMIT_TRIES => return Err(error),
                Err(error) => tracing::info!(%error, attempt, "the last commit is tried again"),
            }
            let until = Instant::now() + LAST_COMMIT_PAUSE;
            while Instant::now() < until {
                drop(self.consumer.poll(until.saturating_duration_since(Instant::now())));
            }
        }
        Ok(())
    }
}
