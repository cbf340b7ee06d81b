//! The shell around the engine: tells it what happens, and carries out what it decides.
//!
//! Nothing in here waits but the one `select!` of [`event_loop`]: calls and writes come back as
//! [`Answer`]s. Events are handed to the producer from the loop, or by a task that it starts if the
//! end of a job takes more than one record. So the events of a job are written in the order in
//! which things happened.

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
mod pausing;
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
use fleet_job::pause::Pauses;
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

/// The worker's topics. A partition's topic is an index into them.
const TOPICS: [&str; 2] = ["jobs", "delayed"];
const JOBS: u16 = 0;
const DELAYED: u16 = 1;

/// What a shell is made from.
pub(crate) struct Parts {
    pub(crate) consumer: Consumer,
    pub(crate) producer: Arc<Producer>,
    pub(crate) client: McpClient,
    pub(crate) reporter: Reporter,
    pub(crate) health: Health,
    /// The cancel requests that are known already.
    pub(crate) cancel_requests: CancelRequests,
    /// The pauses in force.
    pub(crate) pauses: Pauses,
    /// How long the group waits for a silent member.
    pub(crate) session: Duration,
    /// For questions about other groups.
    pub(crate) settings: Settings,
}

/// A worker at work.
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
    cancel_requests: CancelRequests,
    pauses: Pauses,
    /// How many events about paused jobs were published since the gauges were last updated.
    published_pauses: usize,
    settled: RecentlySettled,
    uncommitted: Uncommitted,
    revokes: Vec<Revoke>,
    /// Whether this worker can count on its partitions.
    contact: GroupContact,
    /// The engine may have commands that it decided before contact was lost.
    has_old_commands: bool,
    /// How long the loop may stand still without missing that its partitions were taken away.
    patience: Duration,
    /// When the current turn of the loop began.
    turn_began: Instant,
    /// By when the worker has to stop, once it was told to.
    stop_by: Option<Instant>,
    /// What is unavailable: the MCP server, or something behind it.
    outages: Outages,
    readiness: Readiness,
    unreachable: Unreachable,
    /// Partitions that are paused because they are full of jobs that wait.
    stalled: BTreeSet<Partition>,
    /// Jobs that have waited and now run, which their events don't say yet.
    unpublished_runs: Vec<Token>,
    partitions: Vec<Partition>,
    /// The logs of these partitions.
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
            pauses,
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
            pauses,
            published_pauses: 0,
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

/// The name of a partition's topic, as metrics and log lines have it.
fn topic_of(partition: Partition) -> &'static str {
    TOPICS.get(usize::from(partition.topic)).copied().unwrap_or_default()
}
