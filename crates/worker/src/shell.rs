//! The loop between the engine and the world: feeds it what happens, carries out what it decides.
//!
//! Nothing in here waits but the one `select!`: calls and writes come back as [`Answer`]. Events are
//! handed to the producer from this loop, or by a task that it starts where a job's end takes more
//! than one record, so the events of a job are written in the order in which things happened.

mod admission;
mod answers;
mod assignment_log;
mod attempts;
mod cancelling;
mod clock;
mod closing;
mod commands;
mod contact;
mod end_writes;
mod event_loop;
mod gauges;
mod group;
mod held_job;
mod held_record;
mod job_table;
mod producers;
mod reachability;
mod recently_settled;
mod settling;
mod unavailability;
mod uncommitted;
mod write_state;

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use answers::Answer;
use clock::Clock;
use fleet_engine::{Engine, Input, Token};
use fleet_group::Partition;
use fleet_kafka::{
    consumer::{Consumer, GroupContact, LogIdentity},
    producer::Producer,
    settings::Settings,
};
use fleet_mcp_client::McpClient;
use fleet_ops::http::Health;
use group::Revoke;
use job_table::JobTable;
use producers::Producers;
use reachability::Unreachable;
use recently_settled::RecentlySettled;
use tokio::sync::mpsc;
use uncommitted::Uncommitted;

use crate::{
    cancel_requests::CancelRequests, config::Args, limits::JobLimits, outages::Outages,
    readiness::Readiness, report::Reporter,
};

/// The worker's topics, by the numbers that partitions carry.
const TOPICS: [&str; 2] = ["jobs", "delayed"];
const JOBS: u16 = 0;
const DELAYED: u16 = 1;

/// What a worker is made of.
pub(crate) struct Parts {
    pub(crate) consumer: Consumer,
    pub(crate) producer: Arc<Producer>,
    pub(crate) client: McpClient,
    pub(crate) reporter: Reporter,
    pub(crate) health: Health,
    /// What is known already of cancelled jobs.
    pub(crate) cancel_requests: CancelRequests,
    /// How long the group waits for a member that is not heard of.
    pub(crate) session: Duration,
    /// To ask about other groups.
    pub(crate) settings: Settings,
}

/// One worker at work.
pub(crate) struct Shell {
    args: Args,
    engine: Engine,
    consumer: Consumer,
    producers: Producers,
    client: McpClient,
    reporter: Reporter,
    settings: Settings,
    health: Health,
    clock: Clock,
    limits: JobLimits,
    jobs: JobTable,
    /// Which jobs are not wanted any more.
    cancel_requests: CancelRequests,
    settled: RecentlySettled,
    uncommitted: Uncommitted,
    revokes: Vec<Revoke>,
    /// Whether this worker can still count on its partitions.
    contact: GroupContact,
    /// The engine may have commands from before contact was lost.
    has_old_commands: bool,
    /// The loop may stand still for so long without having missed that partitions were taken away.
    patience: Duration,
    /// When the loop has begun its present turn.
    turn_began: Instant,
    /// Set when the worker is to stop: the time by which it has.
    stop_by: Option<Instant>,
    /// What is away while our server answers, or that it is away itself.
    outages: Outages,
    readiness: Readiness,
    unreachable: Unreachable,
    /// Partitions that are paused because jobs in them wait for what is away.
    stalled: BTreeSet<Partition>,
    /// Jobs that have waited and were started, of which it is not said yet that they run.
    unpublished_runs: Vec<Token>,
    partitions: Vec<Partition>,
    /// The logs that the partitions are parts of.
    logs: HashMap<Partition, LogIdentity>,
    answers: mpsc::UnboundedSender<Answer>,
    inbox: Option<mpsc::UnboundedReceiver<Answer>>,
}

impl Shell {
    pub(crate) fn new(args: Args, parts: Parts) -> Self {
        let Parts {
            consumer,
            producer,
            client,
            reporter,
            health,
            cancel_requests,
            session,
            settings,
        } = parts;
        let (answers, inbox) = mpsc::unbounded_channel();
        let engine = Engine::new(args.engine(rand::random(), reporter.tiers.is_some()));
        let contact = consumer.contact();
        Self {
            engine,
            consumer,
            producers: Producers::new(producer),
            client,
            reporter,
            settings,
            health,
            clock: Clock::new(),
            limits: args.limits(),
            jobs: JobTable::default(),
            cancel_requests,
            settled: RecentlySettled::default(),
            uncommitted: Uncommitted::default(),
            revokes: Vec::new(),
            contact,
            has_old_commands: false,
            patience: session / 3,
            turn_began: Instant::now(),
            stop_by: None,
            outages: Outages::default(),
            readiness: Readiness::joining(),
            unreachable: Unreachable::default(),
            stalled: BTreeSet::new(),
            unpublished_runs: Vec::new(),
            partitions: Vec::new(),
            logs: HashMap::new(),
            args,
            answers,
            inbox: Some(inbox),
        }
    }

    fn feed_engine(&mut self, input: Input<'_>) {
        self.engine.handle(self.clock.now(), input);
    }
}

/// Which of the worker's topics a partition is of.
fn topic_of(partition: Partition) -> &'static str {
    TOPICS.get(usize::from(partition.topic)).copied().unwrap_or_default()
}
