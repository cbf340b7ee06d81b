//! The loop between the engine and the world: feeds it what happens, carries out what it decides.
//!
//! Nothing in here waits but the one `select!`: calls and writes come back as [`Done`]. Events are
//! handed to the producer from this loop, or by a task that it starts where a job's end takes more
//! than one record, so the events of a job are written in the order in which things happened.

mod admit;
mod attempts;
mod cancel;
mod contact;
mod ends;
mod held;
mod leaving;
mod logs;
mod producers;
mod settled;
mod uncommitted;
mod waits;
mod write;

use std::{
    collections::{BTreeSet, HashMap},
    panic::AssertUnwindSafe,
    sync::Arc,
    time::{Duration, Instant},
};

use fleet_engine::{BreakerState, Command, Engine, Input, Token};
use fleet_group::Partition;
use fleet_job::envelope::JobType;
use fleet_kafka::{
    KafkaError,
    consumer::{Consumer, Event, Events, GroupContact, LogIdentity},
    producer::{Outgoing, Producer},
    settings::Settings,
};
use fleet_mcp_client::McpClient;
use fleet_ops::{http::Health, invariant};
use futures::FutureExt as _;
use held::{Clock, Done, Jobs, Revoke};
use metrics::{counter, gauge};
use producers::Producers;
use settled::Window;
use tokio::{sync::mpsc, task::AbortHandle};
use tokio_util::sync::CancellationToken;
use uncommitted::Uncommitted;
use waits::OutOfReach;

use crate::{
    config::Args,
    control::{Feed, Requests},
    execute::AttemptNews,
    limits::JobLimits,
    metrics as names,
    outages::Outages,
    readiness::{Obstacle, Readiness},
    report::Reporter,
};

/// The worker's topics, by the numbers that partitions carry.
const TOPICS: [&str; 2] = ["jobs", "delayed"];
const JOBS: u16 = 0;
const DELAYED: u16 = 1;
/// How often gauges are brought up to date, unless the session is so short that it must be more
/// often: the loop turns at least as often.
const GAUGES: Duration = Duration::from_secs(2);
/// How much of what has happened is taken before timers and signals are looked at again.
const AT_ONCE: usize = 64;
/// What a worker is made of.
pub(crate) struct Parts {
    pub(crate) consumer: Consumer,
    pub(crate) producer: Arc<Producer>,
    pub(crate) client: McpClient,
    pub(crate) reporter: Reporter,
    pub(crate) health: Health,
    /// What is known already of cancelled jobs.
    pub(crate) requests: Requests,
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
    jobs: Jobs,
    /// Which jobs are not wanted any more.
    requests: Requests,
    settled: Window,
    uncommitted: Uncommitted,
    revokes: Vec<Revoke>,
    /// Whether this worker can still count on its partitions.
    contact: GroupContact,
    /// The engine may have commands from before contact was lost.
    has_old_commands: bool,
    /// The loop may stand still for so long without having missed that partitions were taken away.
    patience: Duration,
    /// When the loop has begun its present turn.
    turned: Instant,
    /// Set when the worker is to stop: the time by which it has.
    stop_by: Option<Instant>,
    /// What is away while our server answers, or that it is away itself.
    outages: Outages,
    readiness: Readiness,
    out_of_reach: OutOfReach,
    /// Partitions that are paused because jobs in them wait for what is away.
    stalled: BTreeSet<Partition>,
    /// Jobs that have waited and were started, of which it is not said yet that they run.
    quiet: Vec<Token>,
    partitions: Vec<Partition>,
    /// The logs that the partitions are parts of.
    logs: HashMap<Partition, LogIdentity>,
    done: mpsc::UnboundedSender<Done>,
    inbox: Option<mpsc::UnboundedReceiver<Done>>,
}

impl Shell {
    pub(crate) fn new(args: Args, parts: Parts) -> Self {
        let Parts { consumer, producer, client, reporter, health, requests, session, settings } =
            parts;
        let (done, inbox) = mpsc::unbounded_channel();
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
            jobs: Jobs::default(),
            requests,
            settled: Window::default(),
            uncommitted: Uncommitted::default(),
            revokes: Vec::new(),
            contact,
            has_old_commands: false,
            patience: session / 3,
            turned: Instant::now(),
            stop_by: None,
            outages: Outages::default(),
            readiness: Readiness::joining(),
            out_of_reach: OutOfReach::default(),
            stalled: BTreeSet::new(),
            quiet: Vec::new(),
            partitions: Vec::new(),
            logs: HashMap::new(),
            args,
            done,
            inbox: Some(inbox),
        }
    }

    /// Works until `shutdown`, then drains, commits and leaves the group.
    pub(crate) async fn run(
        mut self,
        mut events: Events,
        mut control: Feed,
        shutdown: CancellationToken,
    ) -> Result<(), KafkaError> {
        // Taken once, here: nothing else reads it.
        let Some(mut inbox) = self.inbox.take() else { return Ok(()) };
        self.show_readiness();
        let mut gauges = tokio::time::interval(GAUGES.min(self.patience / 2));
        let alarm = tokio::time::sleep(Duration::ZERO);
        tokio::pin!(alarm);
        loop {
            if self.is_out_of_contact() {
                self.regain_contact(&mut events, &shutdown).await?;
            }
            self.turned = Instant::now();
            self.carry_out();
            self.settle_revokes();
            if self.is_stopped() {
                break;
            }
            if self.is_out_of_contact() {
                continue;
            }
            let wake = self.wake_at().map(tokio::time::Instant::from_std);
            if let Some(wake) = wake.filter(|wake| *wake != alarm.deadline()) {
                alarm.as_mut().reset(wake);
            }
            tokio::select! {
                Some(done) = inbox.recv() => self.done(done),
                event = events.recv() => match event {
                    Some(event) => self.event(event)?,
                    None => return Err(KafkaError::PollThread("it has ended")),
                },
                control = control.next() => self.cancel(control),
                () = alarm.as_mut(), if wake.is_some() => self.feed(Input::Tick),
                _ = gauges.tick() => self.gauges(),
                () = shutdown.cancelled(), if self.stop_by.is_none() => self.stop(),
            }
            self.catch_up(&mut inbox, &mut events)?;
        }
        self.close(events).await
    }

    /// Takes what has happened meanwhile without asking for each whether anything else has, which
    /// costs more than most of what happens. Not too much of it: timers and signals wait as long.
    fn catch_up(
        &mut self,
        inbox: &mut mpsc::UnboundedReceiver<Done>,
        events: &mut Events,
    ) -> Result<(), KafkaError> {
        for _ in 0..AT_ONCE {
            let (done, event) = (inbox.try_recv().ok(), events.try_recv());
            if done.is_none() && event.is_none() {
                break;
            }
            done.into_iter().for_each(|done| self.done(done));
            event.map_or(Ok(()), |event| self.event(event))?;
            self.carry_out();
        }
        Ok(())
    }

    /// Whether the worker is to stop, and nothing more is to be waited for.
    fn is_stopped(&self) -> bool {
        self.stop_by
            .is_some_and(|by| Instant::now() >= by || self.engine.is_drained(&self.partitions))
    }

    fn feed(&mut self, input: Input<'_>) {
        self.engine.handle(self.clock.now(), input);
    }

    fn wake_at(&self) -> Option<Instant> {
        let engine = self.engine.next_wakeup().map(|at| self.clock.instant(at));
        let revokes = self.revokes.iter().map(|revoke| revoke.deadline);
        revokes.chain(engine).chain(self.stop_by).min()
    }

    // --- What happens ---------------------------------------------------------------------------

    fn event(&mut self, event: Event) -> Result<(), KafkaError> {
        match event {
            Event::Assigned(assigned) => {
                counter!(names::REBALANCES.name, "kind" => "assigned").increment(1);
                if assigned.iter().any(|one| one.partition.topic == JOBS) {
                    self.clear_obstacle(Obstacle::NoGroup);
                }
                assigned.into_iter().for_each(|one| self.assigned(one));
            }
            Event::Record(partition, record) => self.record(partition, record),
            Event::End(partition, offset) => self.feed(Input::End(partition, offset)),
            Event::Revoking(partitions, deadline, reply) => {
                counter!(names::REBALANCES.name, "kind" => "revoked").increment(1);
                self.feed(Input::Draining(&partitions));
                self.revokes.push(Revoke { partitions, deadline, reply });
            }
            Event::LogReplaced(partitions, deadline, reply) => {
                self.log_replaced(partitions, deadline, reply)
            }
            Event::Lost(partitions) => {
                counter!(names::REBALANCES.name, "kind" => "lost").increment(1);
                if partitions.iter().any(|partition| partition.topic == JOBS) {
                    self.set_obstacle(
                        Obstacle::NoGroup,
                        "the consumer group has taken all partitions away",
                    );
                }
                tracing::warn!(?partitions, "lost: their jobs will run elsewhere");
                self.partitions.retain(|partition| !partitions.contains(partition));
                self.gone(&partitions);
                self.feed(Input::Lost(&partitions));
                // A member loses all of its partitions together, so nothing about that topic is
                // still ours to say.
                if let Some(lost) = partitions.first() {
                    self.producers.forget(lost.topic);
                }
            }
            Event::Committed(partition, generation, ok) => {
                counter!(names::COMMITS.name, "ok" => if ok { "true" } else { "false" })
                    .increment(1);
                self.uncommitted.answered(partition, ok);
                self.feed(Input::Committed { partition, generation, ok });
            }
            Event::Lag(lags) => {
                // What librdkafka knows may be older than the last rebalance.
                for (partition, lag) in lags {
                    if self.partitions.contains(&partition) {
                        self.lag(partition, lag);
                    }
                }
            }
            Event::Reach(topic, reach) => self.reaches(topic, reach),
            Event::Unreadable(topic, stuck) => self.unreadable(topic, stuck),
            Event::Failed(error) => return Err(error),
        }
        Ok(())
    }

    fn done(&mut self, done: Done) {
        match done {
            Done::News(token, AttemptNews::Progress(progress)) => self.progressed(token, progress),
            Done::News(token, AttemptNews::Holds(bytes)) => self.holds(token, bytes),
            Done::Attempt { token, outcome, done, took } => {
                self.attempted(token, outcome, done, took)
            }
            Done::NotMade(token, done) => self.not_made(token, done),
            Done::Written(token, state, event) => {
                if let Some(held) = self.jobs.get(&token) {
                    let kind = held
                        .envelope
                        .as_ref()
                        .map_or("unknown", |e| JobType::as_str(e.work.job_type()));
                    counter!(names::SETTLED.name, "state" => state.as_str(), "type" => kind)
                        .increment(1);
                    tracing::debug!(job_id = held.job_id, state = state.as_str(), "settled");
                }
                self.written(token, Some(event));
            }
            Done::Undelivered(token, state, event, error) => {
                self.undelivered(token, state, event, error)
            }
            Done::WrittenAgain(token) => self.written(token, None),
            Done::PassedOn(token) => {
                counter!(names::PASSED_ON.name, "topic" => topic_of(token.partition)).increment(1);
                self.written(token, None);
            }
            Done::LeftToItsGroup(token, group) => {
                counter!(names::PASSED_OVER.name).increment(1);
                let partition = token.partition.number;
                tracing::info!(
                    group,
                    partition,
                    offset = token.offset,
                    "a delayed job is left to its group"
                );
                self.written(token, None);
            }
            Done::NotDeferred(token) => self.feed(Input::NotDeferred(token)),
            Done::NotWritten(token, unwritten) => {
                // Of a job that is no longer ours this says nothing about Kafka: such writes are
                // called off.
                let Some(held) = self.jobs.get_mut(&token) else { return };
                held.unwritten = unwritten;
                self.set_obstacle(
                    Obstacle::WritesFail,
                    "Kafka does not take the ends of jobs; nothing is lost, they are written again",
                );
                self.feed(Input::WriteFailed(token));
            }
            Done::Probed(ok) => self.feed(Input::Probed(ok)),
        }
    }

    /// A record is settled: by this event, by another record, or as it was before.
    fn written(&mut self, token: Token, event: Option<Arc<Outgoing>>) {
        self.clear_obstacle(Obstacle::WritesFail);
        let now = Instant::now();
        if let Some(held) = self.jobs.get(&token) {
            // What is known with its end stays so.
            if held.end.is_none() {
                self.settled.add(now, held.identity, event);
            }
            if self.partitions.contains(&token.partition) {
                self.uncommitted.settled(token.partition, now);
            }
        }
        self.feed(Input::Written(token));
    }

    // --- What the engine wants ------------------------------------------------------------------

    /// The next command that may be carried out. Asks each time whether it is still ours to do so:
    /// the process can be stopped between any two.
    fn next_command(&mut self) -> Option<Command> {
        if self.is_out_of_contact() {
            self.has_old_commands = true;
            return None;
        }
        if std::mem::take(&mut self.has_old_commands) {
            self.feed(Input::ContactRegained);
        }
        self.engine.poll()
    }

    fn carry_out(&mut self) {
        while let Some(command) = self.next_command() {
            match command {
                // Decided before the partition was taken away, and not carried out yet.
                Command::Start(token, _)
                | Command::Settle(token, ..)
                | Command::Retrying(token, ..)
                    if self.engine.token(token.partition, token.offset) != Some(token) => {}
                Command::Start(token, attempt) => self.start(token, attempt),
                Command::Settle(token, terminal, attempts) => {
                    self.settle(token, terminal, attempts)
                }
                Command::Retrying(token, attempts, at) => {
                    let now = self.clock.now();
                    let held = self.jobs.get(&token);
                    self.announce(
                        held.map(|held| self.reporter.waiting(&held.subject(), now, attempts, at)),
                    );
                }
                Command::Forget(token) => {
                    if let Some(task) = self.jobs.remove(&token).and_then(|held| held.task) {
                        task.abort();
                    }
                }
                Command::Abort(token) => self.abort(token),
                Command::Commit(commit) => {
                    self.uncommitted.sent(commit.partition);
                    self.consumer.commit(commit);
                }
                Command::Pause(partition, generation) => self.consumer.pause(partition, generation),
                Command::Resume(partition, generation) => {
                    self.consumer.resume(partition, generation)
                }
                Command::LogReset(partition) => {
                    tracing::error!(
                        topic = topic_of(partition),
                        partition = partition.number,
                        "the log begins below the committed offset: its records were lost, or its topic was made again"
                    );
                }
                Command::Probe => {
                    let client = self.client.clone();
                    let probe = async move { Done::Probed(client.probe().await.is_ok()) };
                    self.spawn(probe, || Done::Probed(false));
                }
                Command::Violation(name, token) => {
                    invariant::violated(name, format_args!("{token:?}"))
                }
            }
        }
        self.watch_breaker();
    }

    /// Writes an event that nothing waits for: the terminal one will tell the rest. Where the
    /// process was stopped since it was made up, it may be out of date, and would be the last word
    /// about a job that another worker has ended.
    fn announce(&self, event: Option<Outgoing>) {
        let Some(event) = event.filter(|_| !self.is_out_of_contact()) else { return };
        let missing = |error: KafkaError| {
            counter!(names::WRITE_FAILURES.name, "kind" => "event").increment(1);
            tracing::warn!(%error, "could not publish a job event");
        };
        let later = move |result: Result<_, _>| result.map(drop).unwrap_or_else(missing);
        self.producers.of_jobs().enqueue_then(&event, later).unwrap_or_else(missing);
    }

    /// Runs `work` as a task whose answer comes back to the loop, also where it panics: the engine
    /// waits for it.
    fn spawn(
        &self,
        work: impl Future<Output = Done> + Send + 'static,
        after_panic: impl FnOnce() -> Done + Send + 'static,
    ) -> AbortHandle {
        let done = self.done.clone();
        // The runtime moves a task several times, and a call is kilobytes.
        let work = Box::pin(work);
        let task = tokio::spawn(async move {
            // Nothing that the work has touched is used after a panic.
            let answer = AssertUnwindSafe(work).catch_unwind().await;
            give(&done, answer.unwrap_or_else(|_| after_panic()));
        });
        task.abort_handle()
    }

    fn gauges(&mut self) {
        let status = self.engine.status();
        gauge!(names::IN_FLIGHT.name).set(status.in_flight as f64);
        // Where commands wait to be carried out, the two can't agree yet.
        if status.buffered != self.jobs.len() && !self.is_out_of_contact() {
            let (engine, shell) = (status.buffered, self.jobs.len());
            invariant::violated(
                "I3",
                format_args!("{engine} jobs in the engine's hands, {shell} in the shell's"),
            );
        }
        gauge!(names::BUFFERED.name).set(status.buffered as f64);
        gauge!(names::PARKED.name).set(status.parked as f64);
        let oldest = self.jobs.oldest(JOBS).map_or(Duration::ZERO, |at| self.clock.now().since(at));
        gauge!(names::OLDEST.name).set(oldest.as_secs_f64());
        let uncommitted = self.uncommitted.since().map_or(Duration::ZERO, |since| since.elapsed());
        gauge!(names::COMMIT_AGE.name).set(uncommitted.as_secs_f64());
        gauge!(names::BUFFERED_BYTES.name).set(status.buffered_bytes as f64);
        gauge!(names::PARTITIONS.name).set(status.partitions.len() as f64);
        gauge!(names::BREAKER.name).set(if status.breaker == BreakerState::Closed {
            0.0
        } else {
            1.0
        });
        self.tell_what_runs();
        self.watch_outages(&status);
    }
}

/// Which of the worker's topics a partition is of.
fn topic_of(partition: Partition) -> &'static str {
    TOPICS.get(usize::from(partition.topic)).copied().unwrap_or_default()
}

fn give(done: &mpsc::UnboundedSender<Done>, what: Done) {
    // The shell outlives its tasks but at the very end, when nothing is waited for.
    if done.send(what).is_err() {
        tracing::debug!("a task ended after its worker");
    }
}
