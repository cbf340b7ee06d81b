//! The poll thread: polls librdkafka and carries out orders. It waits neither for jobs nor for
//! commits, except before partitions are given up, so slow jobs never cost the membership.

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
    context::Context,
    rebalance::{LAST_COMMIT_PAUSE, LAST_COMMIT_TRIES},
    watch::WatchThread,
    weight,
};
use crate::{convert, error::KafkaError};

/// The timeout of a poll while the member waits for the other threads to end.
const POLL: Duration = Duration::from_millis(20);
/// The pause when the channel to the engine is full.
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

    /// Polls and carries out orders until the member is closed or fails.
    pub(super) fn run(self) {
        let context = self.consumer.context().clone();
        context.wakeup.register_current_thread();
        let idle = context.membership.longest_park();

        loop {
            context.membership.note_turn();
            let anew = context.restart_if_recreated(&self.consumer);
            context.verify_ends(&self.consumer);
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
                    // The engine panicked: it is gone without an order to close. Leave without a
                    // commit.
                    Err(mpsc::TryRecvError::Disconnected) => return,
                }
            }

            if is_drained {
                thread::park_timeout(idle);
            }
        }
    }

    /// Takes one message or callback from librdkafka. Returns whether there was none, so that the
    /// thread may sleep: later messages and every order wake it. (A poll with a timeout could be
    /// woken by librdkafka only, and it spins through the last millisecond.)
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
                    if let Some(last) = context.note_read_offset(partition, message.offset()) {
                        drop(message);
                        context.restart_after_rewind(&self.consumer, partition, last)?;
                        return Ok(false);
                    }
                    context.has_read.store(true, Ordering::Relaxed);
                    context.membership.note_delivered(partition, message.offset());
                    context.known_ends().note_read(partition, message.offset());
                    let record = convert::to_record(&message);
                    context.channel.queued.fetch_add(weight(&record), Ordering::Relaxed);
                    context.emit(Event::Record(partition, record));
                }
            }
            Some(Err(source @ Native::MessageConsumptionFatal(_))) => {
                return Err(KafkaError::Request { what: "consuming", source });
            }
            Some(Err(Native::PartitionEOF(number))) => context.handle_end(number),
            // The next statistics show which partition this is.
            Some(Err(Native::MessageConsumption(code)))
                if context.unreadable().note_failure(code) =>
            {
                tracing::debug!(%code, "a partition could not be read");
            }
            // librdkafka recovers from all other errors.
            Some(Err(error)) => {
                tracing::warn!(%error, "an error while consuming; librdkafka retries")
            }
            // A poll that ran only a callback also returns `None`. More may be queued behind it,
            // for which no wakeup comes.
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
            context.known_ends().note_paused(partition);
        }

        let list = context.partition_list([partition]);
        let result = if paused { self.consumer.pause(&list) } else { self.consumer.resume(&list) };

        if let Err(error) = result {
            tracing::warn!(%error, ?partition, paused, "could not pause or resume fetching");
        }
    }

    /// Waits for the other threads, makes the last commit and leaves the group.
    fn close(mut self, commits: Vec<FinalCommit>, done: oneshot::Sender<Result<(), KafkaError>>) {
        // Pending commits of the commit thread are older than `commits` and must be made first.
        self.commits.finish();
        self.watch.finish();
        while !self.commits.is_finished() || !self.watch.is_finished() {
            // The next owner reads these records again.
            drop(self.consumer.poll(POLL));
        }

        let result = self.commit_last(commits);

        let consumer = self.consumer;
        consumer.context().closing.store(true, Ordering::Relaxed);
        consumer.unsubscribe();

        let outcome =
            result.map_err(|source| KafkaError::Request { what: "the last commit", source });
        // Dropping the consumer leaves the group, which must happen before the close is reported.
        drop(consumer);
        if done.send(outcome).is_err() {
            tracing::debug!("the consumer closed, but nobody waits for that any more");
        }
    }

    /// Makes the last commit before leaving. If several workers stop at once, their group
    /// rebalances, and the coordinator refuses commits until we have joined the new generation, for
    /// which we must keep polling. Partitions that are revoked during that are committed by the
    /// rebalance callback.
    fn commit_last(&self, commits: Vec<FinalCommit>) -> KafkaResult<()> {
        let context = self.consumer.context();
        let mut open = commits;
        for attempt in 1.. {
            open = context.membership.retain_owned(open);
            match context.commit_each(&self.consumer, &mut open) {
                Ok(()) => break,
                Err(error) if attempt >= LAST_COMMIT_TRIES => return Err(error),
                Err(error) => {
                    tracing::info!(%error, attempt, "the last commit failed; trying again")
                }
            }

            let until = Instant::now() + LAST_COMMIT_PAUSE;
            while Instant::now() < until {
                drop(self.consumer.poll(until.saturating_duration_since(Instant::now())));
            }
        }
        Ok(())
    }
}
