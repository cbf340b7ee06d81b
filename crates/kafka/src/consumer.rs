//! Consuming: one OS thread polls, another one commits, and both speak with the engine through
//! channels.
//!
//! What the threads meet becomes an [`Event`]; what the engine wants becomes an order. `poll` is
//! the first thread, `commits` the second, `context` what librdkafka calls back into on the first.
//!
//! Each topic has a member of the group of its own (`member`), with a client and threads of its
//! own. cooperative-sticky balances how many partitions a member has, whatever their topic: a
//! member that follows two topics can be given partitions of one of them only.
//!
//! All commits are synchronous, many partitions at a time, and no two at once: so they can't
//! overtake each other, and none is sent for a partition that has gone. (rdkafka 0.39 asks for no
//! answer to asynchronous ones, so nobody would learn what became of them.) They have a thread of
//! their own because the coordinator answers what comes over one connection in order: a commit that
//! follows a request to join waits until all members have joined, and polling would wait with it.
//! Orders name the generation of their assignment; those that come too late are dropped.
//!
//! After a gap in contact with the coordinator (`membership`) the thread that commits repeats what
//! stands committed until that is accepted, and commits nothing else before.

mod commits;
mod context;
mod ends;
mod identity;
mod member;
mod membership;
mod poll;
mod unreadable;
mod wakeup;
mod watch;

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use fleet_group::{FinalCommit, Partition, log::Start};
use fleet_job::record::RawRecord;
use tokio::sync::{mpsc as events, oneshot};

use crate::{error::KafkaError, settings::Settings};
pub use identity::LogIdentity;
use member::{Channel, Member};
pub use membership::GroupContact;
pub use unreadable::Stuck;

/// librdkafka's own default of `max.poll.interval.ms`.
const MAX_POLL_INTERVAL: &str = "300000";
/// What a revoke waits beyond the drain, for a busy machine.
const REPLY_MARGIN: Duration = Duration::from_secs(5);
/// How long leaving the group may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(20);

/// What a consumer is made from.
#[derive(Debug, Clone)]
pub struct ConsumerConfig {
    /// Brokers and properties.
    pub settings: Settings,
    /// The consumer group.
    pub group: String,
    /// The topics, each followed by a member of its own; a [`Partition`]'s topic is an index into
    /// them.
    pub topics: Vec<Followed>,
    /// How long a revoke waits for running jobs. Must be well below `max.poll.interval.ms`.
    pub drain: Duration,
}

/// A topic and the member of the group that follows it.
#[derive(Debug, Clone)]
pub struct Followed {
    /// The topic's name.
    pub topic: String,
    /// Tells the member apart from the other members of this process.
    pub role: Role,
}

/// What a member of the group is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    /// Follows the topic that carries the load.
    Main,
    /// Follows a topic of which few records are read ahead, so its fetch buffers are small. As a
    /// static member it is called `<group.instance.id>-<name>`.
    Side(&'static str),
}

impl ConsumerConfig {
    /// A drain holds up polling; one that is too long would cost the membership that it is meant to
    /// hand over.
    fn check_drain(&self) -> Result<(), KafkaError> {
        let name = "max.poll.interval.ms";
        let value = self
            .settings
            .properties
            .get(name)
            .cloned()
            .unwrap_or_else(|| MAX_POLL_INTERVAL.to_owned());
        let longest = value.parse().map(Duration::from_millis).unwrap_or(Duration::MAX);
        if self.drain + REPLY_MARGIN < longest {
            return Ok(());
        }
        let reason = format!(
            "it must be longer than MCP_DRAIN_TIMEOUT ({:?}) and {REPLY_MARGIN:?}",
            self.drain
        );
        Err(KafkaError::Property { name: name.to_owned(), value, reason })
    }
}

/// What a partition starts from.
#[derive(Debug, Clone)]
pub struct Assigned {
    /// Which.
    pub partition: Partition,
    /// The number of this assignment; orders have to name it.
    pub generation: u64,
    /// The log that it is a part of.
    pub log: LogIdentity,
    /// Where it is read from, and why.
    pub start: Start,
}

/// What has happened on the poll thread.
#[derive(Debug)]
pub enum Event {
    /// The group gave us partitions.
    Assigned(Vec<Assigned>),
    /// A record was read.
    Record(Partition, RawRecord),
    /// All that there is of a partition below this offset has been read.
    End(Partition, i64),
    /// The group wants partitions back. The poll thread waits for the commits, until the deadline.
    Revoking(Vec<Partition>, Instant, mpsc::SyncSender<Vec<FinalCommit>>),
    /// These partitions have another log than before: their topic was made again, or a log has lost
    /// its end. The poll thread waits for the answer, until the deadline, and commits nothing of
    /// it. Then they are assigned anew.
    LogReplaced(Vec<Partition>, Instant, mpsc::SyncSender<Vec<FinalCommit>>),
    /// Partitions were lost without notice: another worker may have them already.
    Lost(Vec<Partition>),
    /// A commit of this generation has ended; `true` when the broker has taken it.
    Committed(Partition, u64, bool),
    /// How far the partitions lag behind the end of their topic.
    Lag(Vec<(Partition, i64)>),
    /// What is in reach of the member that follows the topic of this number, every few seconds.
    Reach(u16, Reach),
    /// The topic of this number does not exist any more (`false`), or exists again.
    Topic(u16, bool),
    /// Partitions of the topic of this number can't be read on, or can again. The others go on.
    Unreadable(u16, Stuck),
    /// The consumer can't go on.
    Failed(KafkaError),
}

/// What librdkafka says is in reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reach {
    /// A broker.
    pub broker: bool,
    /// The group, which has said which partitions are ours, none among them.
    pub group: bool,
}

/// What has happened on the poll thread, in order.
#[derive(Debug)]
pub struct Events {
    receiver: events::UnboundedReceiver<Event>,
    /// The weight of the records in the channel. The poll thread waits when it is [`MAX_QUEUED`].
    queued: Arc<AtomicUsize>,
}

/// With records of so much weight handed over and not taken, polling waits for the other side.
const MAX_QUEUED: usize = 32 << 20;
/// How many records have that weight, however small they are. What follows them in the channel
/// waits for them: a revoke that stands behind tens of thousands of small records is heard when the
/// group has gone on without its last commit.
const MAX_QUEUED_RECORDS: usize = 512;

/// What a record counts in the channel: its bytes, and its share of the number that may be there.
fn weight(record: &RawRecord) -> usize {
    record.size() + MAX_QUEUED / MAX_QUEUED_RECORDS
}

impl Events {
    /// The next event; `None` when the poll thread has ended.
    pub async fn recv(&mut self) -> Option<Event> {
        let event = self.receiver.recv().await?;
        self.taken(&event);
        Some(event)
    }

    /// The next event, if there is one already.
    pub fn try_recv(&mut self) -> Option<Event> {
        let event = self.receiver.try_recv().ok()?;
        self.taken(&event);
        Some(event)
    }

    fn taken(&self, event: &Event) {
        if let Event::Record(_, record) = event {
            self.queued.fetch_sub(weight(record), Ordering::Relaxed);
        }
    }
}

/// What the engine wants of the poll thread.
#[derive(Debug)]
enum Order {
    Commit(FinalCommit),
    Pause(Partition, u64),
    Resume(Partition, u64),
    Close(Vec<FinalCommit>, oneshot::Sender<Result<(), KafkaError>>),
}

/// The engine's end of all members.
#[derive(Debug)]
pub struct Consumer {
    /// In the order of the topics.
    members: Vec<Member>,
}

impl Consumer {
    /// Joins the group with one member per topic. What all of them meet comes through the same
    /// [`Events`].
    ///
    /// # Errors
    /// [`KafkaError::Property`], [`KafkaError::Client`] or [`KafkaError::Request`].
    pub fn start(config: ConsumerConfig) -> Result<(Self, Events), KafkaError> {
        config.settings.check()?;
        config.check_drain()?;
        let (sender, receiver) = events::unbounded_channel();
        let channel = Channel { sender, queued: Arc::new(AtomicUsize::new(0)) };
        let queued = channel.queued.clone();

        let numbered = (0..).zip(&config.topics);
        let members =
            numbered.map(|(number, followed)| Member::start(&config, number, followed, &channel));
        // If one can't start, the others leave the group when they are dropped.
        let members = members.collect::<Result<_, _>>()?;

        Ok((Self { members }, Events { receiver, queued }))
    }

    /// Whether this process can still count on being in the group.
    pub fn contact(&self) -> GroupContact {
        GroupContact {
            members: self.members.iter().map(|member| member.membership.clone()).collect(),
        }
    }

    fn order(&self, partition: Partition, order: Order) {
        match self.members.get(usize::from(partition.topic)) {
            Some(member) => member.order(order),
            // Partitions come from the members in the first place.
            None => tracing::error!(?partition, "no member of the group follows this topic"),
        }
    }

    /// Commits without waiting; [`Event::Committed`] tells how it went, unless the partition has
    /// gone.
    pub fn commit(&self, commit: FinalCommit) {
        self.order(commit.partition, Order::Commit(commit));
    }

    /// Stops fetching a partition.
    pub fn pause(&self, partition: Partition, generation: u64) {
        self.order(partition, Order::Pause(partition, generation));
    }

    /// Fetches a partition again.
    pub fn resume(&self, partition: Partition, generation: u64) {
        self.order(partition, Order::Resume(partition, generation));
    }

    /// Commits `commits`, leaves the group with all members and ends their threads. Meanwhile
    /// [`Event::Revoking`] must still be answered.
    ///
    /// # Errors
    /// The first member's error, if any: [`KafkaError::Request`] when its last commit fails,
    /// [`KafkaError::PollThread`] when its thread has ended before or does not end in time. The
    /// group is left all the same, or will notice.
    pub async fn close(self, commits: Vec<FinalCommit>) -> Result<(), KafkaError> {
        let deadline = tokio::time::Instant::now() + CLOSE_TIMEOUT;
        let mut closing = Vec::new();
        for (number, member) in (0..).zip(self.members) {
            let of_member = commits.iter().filter(|commit| commit.partition.topic == number);
            closing.push(member.close(of_member.cloned().collect()));
        }

        let mut result = Ok(());
        for member in closing {
            let closed = member.wait(deadline).await;
            result = result.and(closed);
        }
        result
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_drain_that_would_cost_the_membership_is_refused() {
        let check = |drain, interval: Option<&str>| {
            let mut settings = Settings::new("b:1");
            let property =
                interval.map(|value| ("max.poll.interval.ms".to_owned(), value.to_owned()));
            settings.properties.extend(property);
            let drain = Duration::from_secs(drain);
            ConsumerConfig { settings, group: "g".into(), topics: Vec::new(), drain }.check_drain()
        };
        check(25, None).unwrap();
        check(25, Some("31000")).unwrap();
        for (drain, interval) in [(300, None), (25, Some("30000"))] {
            let message = check(drain, interval).unwrap_err().to_string();
            assert!(message.contains("MCP_DRAIN_TIMEOUT"), "{message}");
        }
    }
}
