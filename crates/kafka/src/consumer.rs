//! Consuming as members of a consumer group.
//!
//! One OS thread polls and another one commits. What they learn becomes an [`Event`] for the
//! engine; what the engine wants becomes an order for them. `poll` is the first thread, `commits`
//! the second; `context` and `rebalance` are called by librdkafka on the first.
//!
//! Each topic has its own member of the group (`member`), with its own client and threads. The
//! assignor cooperative-sticky balances the number of partitions per member without regard to their
//! topic, so a member that followed two topics might get partitions of only one.
//!
//! All commits are synchronous, cover many partitions at once, and never run concurrently. So
//! commits cannot overtake each other, and none is sent for a partition that was given up. (rdkafka
//! 0.39 does not request answers to asynchronous commits, so their outcome would be unknown.)
//! Commits have their own thread because the coordinator answers the requests on one connection in
//! order: a commit behind a request to join waits until all members have joined, and polling would
//! wait with it. Orders name the generation of their assignment; outdated orders are dropped.
//!
//! After a gap in contact with the coordinator (`membership`), the commit thread repeats the last
//! successful commit until the coordinator accepts it, and commits nothing else before that.

mod commits;
mod context;
mod ends;
mod identity;
mod member;
mod membership;
mod poll;
mod rebalance;
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

use crate::{
    error::KafkaError,
    settings::{Role, Settings},
};
pub use identity::LogIdentity;
use member::{Channel, Member};
pub use membership::GroupContact;
pub use unreadable::Stuck;

/// librdkafka's own default of `max.poll.interval.ms`.
const MAX_POLL_INTERVAL: &str = "300000";
/// How much longer than the drain a revoke waits for the engine, in case the machine is busy.
const REPLY_MARGIN: Duration = Duration::from_secs(5);
/// How long leaving the group may take.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(20);

/// The settings of a consumer.
#[derive(Debug, Clone)]
pub struct ConsumerConfig {
    /// Brokers and librdkafka properties.
    pub settings: Settings,
    /// The consumer group.
    pub group: String,
    /// The topics, each followed by its own member. The topic of a [`Partition`] is an index into
    /// this list.
    pub topics: Vec<Followed>,
    /// How long a revoke waits for running jobs. Must be well below `max.poll.interval.ms`.
    pub drain: Duration,
}

/// A topic and the member of the group that follows it.
#[derive(Debug, Clone)]
pub struct Followed {
    /// The topic's name.
    pub topic: String,
    /// The member's role, which tells it apart from the other members of this process.
    pub role: Role,
}

impl ConsumerConfig {
    /// Refuses a drain that is so long that it would cost the membership: polling stops while jobs
    /// drain.
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
            "it must be longer than MCP_DRAIN_TIMEOUT ({:?}) plus {REPLY_MARGIN:?}",
            self.drain
        );
        Err(KafkaError::Property { name: name.to_owned(), value, reason })
    }
}

/// A newly assigned partition.
#[derive(Debug, Clone)]
pub struct Assigned {
    /// The partition.
    pub partition: Partition,
    /// The generation of this assignment, which orders must name.
    pub generation: u64,
    /// The log that the partition belongs to.
    pub log: LogIdentity,
    /// Where reading starts, and why.
    pub start: Start,
}

/// Something that happened on the poll thread or the commit thread.
#[derive(Debug)]
pub enum Event {
    /// The group assigned partitions to us.
    Assigned(Vec<Assigned>),
    /// A record was read.
    Record(Partition, RawRecord),
    /// Everything below this offset of a partition has been read.
    End(Partition, i64),
    /// The group revokes partitions. The poll thread waits for their last commits until the
    /// deadline.
    Revoking(Vec<Partition>, Instant, mpsc::SyncSender<Vec<FinalCommit>>),
    /// The log of these partitions was replaced: their topic was created again, or the log was
    /// truncated. The poll thread waits for an answer until the deadline, commits none of it, and
    /// then assigns the partitions anew.
    LogReplaced(Vec<Partition>, Instant, mpsc::SyncSender<Vec<FinalCommit>>),
    /// Partitions were lost without notice; another worker may already own them.
    Lost(Vec<Partition>),
    /// A commit of this generation has ended; `true` if the broker accepted it.
    Committed(Partition, u64, bool),
    /// How far the group lags behind the end of each partition.
    Lag(Vec<(Partition, i64)>),
    /// What the member for this topic can reach; sent every few seconds.
    Reach(u16, Reach),
    /// The topic of this number no longer exists (`false`), or exists again (`true`).
    Topic(u16, bool),
    /// The set of partitions of this topic that cannot be read has changed. The others are not
    /// affected.
    Unreadable(u16, Stuck),
    /// The consumer has failed and ended.
    Failed(KafkaError),
}

/// What a member can reach, according to librdkafka.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reach {
    /// Whether a broker is connected.
    pub broker: bool,
    /// Whether the member has joined the group and knows its partitions, possibly none.
    pub group: bool,
}

/// The stream of events from all members.
#[derive(Debug)]
pub struct Events {
    receiver: events::UnboundedReceiver<Event>,
    /// The weight of the records in the channel. The poll threads pause at [`MAX_QUEUED`].
    queued: Arc<AtomicUsize>,
}

/// The weight of queued records at which polling pauses until the engine has caught up.
const MAX_QUEUED: usize = 32 << 20;
/// The number of records that reaches [`MAX_QUEUED`] however small they are. Events wait in the
/// channel behind records: a revoke behind tens of thousands of small records would be handled only
/// after the group had gone on without the last commit.
const MAX_QUEUED_RECORDS: usize = 512;

/// Returns the weight of a record in the channel: its bytes plus its share of the record limit.
fn weight(record: &RawRecord) -> usize {
    record.size() + MAX_QUEUED / MAX_QUEUED_RECORDS
}

impl Events {
    /// Waits for the next event; `None` once all poll threads have ended.
    pub async fn recv(&mut self) -> Option<Event> {
        let event = self.receiver.recv().await?;
        self.release_weight(&event);
        Some(event)
    }

    /// Returns the next event if there is one already.
    pub fn try_recv(&mut self) -> Option<Event> {
        let event = self.receiver.try_recv().ok()?;
        self.release_weight(&event);
        Some(event)
    }

    fn release_weight(&self, event: &Event) {
        if let Event::Record(_, record) = event {
            self.queued.fetch_sub(weight(record), Ordering::Relaxed);
        }
    }
}

/// An order of the engine to a poll thread.
#[derive(Debug)]
enum Order {
    Commit(FinalCommit),
    Pause(Partition, u64),
    Resume(Partition, u64),
    Close(Vec<FinalCommit>, oneshot::Sender<Result<(), KafkaError>>),
}

/// A handle to all members, held by the engine.
#[derive(Debug)]
pub struct Consumer {
    /// One member per topic, in the order of the topics.
    members: Vec<Member>,
}

impl Consumer {
    /// Joins the group with one member per topic. The events of all members arrive in one stream.
    ///
    /// # Errors
    ///
    /// Returns [`KafkaError::Property`], [`KafkaError::Client`] or [`KafkaError::Request`].
    pub fn start(config: ConsumerConfig) -> Result<(Self, Events), KafkaError> {
        config.settings.check()?;
        config.check_drain()?;
        let (sender, receiver) = events::unbounded_channel();
        let channel = Channel { sender, queued: Arc::new(AtomicUsize::new(0)) };
        let queued = channel.queued.clone();

        let numbered = (0..).zip(&config.topics);
        let members =
            numbered.map(|(number, followed)| Member::start(&config, number, followed, &channel));
        // If one cannot start, the others are dropped and leave the group.
        let members = members.collect::<Result<_, _>>()?;

        Ok((Self { members }, Events { receiver, queued }))
    }

    /// Returns a view of whether this process can still count on being in the group.
    pub fn contact(&self) -> GroupContact {
        GroupContact {
            members: self.members.iter().map(|member| member.membership.clone()).collect(),
        }
    }

    fn order(&self, partition: Partition, order: Order) {
        match self.members.get(usize::from(partition.topic)) {
            Some(member) => member.order(order),
            // All partitions come from the members.
            None => {
                tracing::error!(?partition, "no group member follows this topic; ignoring an order")
            }
        }
    }

    /// Orders a commit. [`Event::Committed`] reports its outcome, unless the partition is given up
    /// before.
    pub fn commit(&self, commit: FinalCommit) {
        self.order(commit.partition, Order::Commit(commit));
    }

    /// Stops fetching a partition.
    pub fn pause(&self, partition: Partition, generation: u64) {
        self.order(partition, Order::Pause(partition, generation));
    }

    /// Resumes fetching a partition.
    pub fn resume(&self, partition: Partition, generation: u64) {
        self.order(partition, Order::Resume(partition, generation));
    }

    /// Makes these commits, leaves the group with all members and ends their threads. Keep
    /// answering [`Event::Revoking`] in the meantime.
    ///
    /// # Errors
    ///
    /// Returns the first member's error, if any: [`KafkaError::Request`] if its last commit failed,
    /// or [`KafkaError::PollThread`] if its thread ended early or did not end in time. In either
    /// case the group notices that the member has left.
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
