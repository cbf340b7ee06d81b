//! The fleet of `dev`: carries out the supervisor's decisions and informs the user.

use std::{
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::PathBuf,
    time::{Duration, Instant},
};

use fleet_job::topics::Topics;
use fleet_kafka::{admin, settings::Settings};
use nix::sys::signal::Signal;
use tokio::{sync::mpsc, task::JoinSet};
use tokio_util::sync::CancellationToken;

use super::{
    role::{self, Handle, Probe, Report},
    supervisor::{Input, Order, Role, Supervisor},
};
use crate::{
    broker, connection,
    error::CliError,
    output,
    servers::Condition,
    stack::{self, HostedByStack, StackConfig},
    supervise,
    wait_notice::WaitNotice,
};

/// How long to wait before retrying a startup task.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// What the process of a role does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Duty {
    Broker,
    Server,
    Worker(usize),
}

impl Duty {
    fn tier(self) -> usize {
        match self {
            Self::Broker => 0,
            Self::Server => 1,
            Self::Worker(_) => 2,
        }
    }

    fn name(self) -> String {
        match self {
            Self::Broker => "broker".to_owned(),
            Self::Server => "mcp-server".to_owned(),
            Self::Worker(number) => format!("kafka-worker-{number}"),
        }
    }

    fn probe(self) -> Probe {
        match self {
            Self::Broker => Probe::Kafka,
            Self::Server | Self::Worker(_) => Probe::Http,
        }
    }
}

/// A startup task that has finished.
#[derive(Debug)]
enum FinishedTask {
    /// The topics exist.
    Topics,
    /// The files are hosted, or the user's own servers have started or failed.
    Hosted(Vec<(String, Condition)>),
    /// All workers have joined the consumer group.
    Group,
}

/// How far the startup has come.
#[derive(Debug, Default)]
struct StartupState {
    has_topics: bool,
    /// What is hosted, once that is known.
    hosted: Option<Vec<(String, Condition)>>,
    waits_for_group: bool,
    is_up: bool,
}

/// A role and its current process.
#[derive(Debug)]
struct Member {
    duty: Duty,
    handle: Option<Handle>,
    /// The address that its process listens on.
    address: Option<SocketAddr>,
    has_run: bool,
}

/// All processes of `dev`.
#[derive(Debug)]
pub(super) struct Fleet {
    config: StackConfig,
    policy: PathBuf,
    broker_dir: PathBuf,
    brokers: String,
    /// The server's port, if the user chose one.
    named_port: Option<u16>,
    members: Vec<Member>,
    supervisor: Supervisor,
    begin: Instant,
    startup: StartupState,
    reports: mpsc::UnboundedSender<(Role, Report)>,
    inbox: mpsc::UnboundedReceiver<(Role, Report)>,
    chores: JoinSet<FinishedTask>,
    /// Why everything stops, unless the user asked for it.
    failure: Option<CliError>,
}

impl Fleet {
    /// Creates a fleet without starting anything. The embedded broker, if used, keeps its data in
    /// `broker_dir`.
    pub(super) fn new(config: StackConfig, broker_dir: PathBuf) -> Result<Self, CliError> {
        check_ports(&config)?;
        if config.brokers.is_none() {
            // Later, it would be tried again and again.
            broker::find()?;
        }
        let file = |what, path, source| CliError::File { what, path, source };
        std::fs::create_dir_all(&config.run_dir).map_err(|source| {
            file("could not create the directory", config.run_dir.clone(), source)
        })?;
        supervise::set_logs_aside(&config.run_dir).map_err(|source| {
            file("could not set aside the logs in", config.run_dir.clone(), source)
        })?;
        config.make_keys()?;
        let policy = stack::write_policy(&config)?;

        let broker = config.brokers.is_none().then_some(Duty::Broker);
        let workers = (1..=config.workers).map(Duty::Worker);
        let duties: Vec<_> = broker.into_iter().chain([Duty::Server]).chain(workers).collect();
        let supervisor = Supervisor::new(
            duties.iter().map(|duty| duty.tier()),
            uuid::Uuid::new_v4().as_u64_pair().0,
        );
        let members = duties.into_iter().map(|duty| Member {
            duty,
            handle: None,
            address: None,
            has_run: false,
        });

        let (reports, inbox) = mpsc::unbounded_channel();
        Ok(Self {
            policy,
            broker_dir,
            brokers: config.brokers.clone().unwrap_or_default(),
            named_port: Some(config.server_port).filter(|port| *port != 0),
            members: members.collect(),
            supervisor,
            begin: Instant::now(),
            startup: StartupState::default(),
            reports,
            inbox,
            chores: JoinSet::new(),
            failure: None,
            config,
        })
    }

    /// Runs everything until `stop` is cancelled, then stops it in order.
    pub(super) async fn run(mut self, stop: CancellationToken) -> Result<(), CliError> {
        if self.config.brokers.is_some() {
            let settings = connection::settings(&self.brokers)?;
            let _notice = WaitNotice::for_kafka(&settings);
            tokio::select! {
                made = create_topics(&settings, &self.config) => made?,
                () = stop.cancelled() => return Ok(()),
            }
            self.startup.has_topics = true;
        }

        let mut is_stopping = false;
        loop {
            while let Some(order) = self.supervisor.poll() {
                self.carry_out(order);
            }

            if self.supervisor.is_stopped() {
                return self.failure.map_or(Ok(()), Err);
            }

            let wakeup = self.supervisor.next_wakeup().map(|at| self.begin + at);

            tokio::select! {
                Some((role, report)) = self.inbox.recv() => self.handle_report(role, report),
                Some(done) = self.chores.join_next() => self.finish_task(done.ok()),
                () = sleep_until(wakeup) => self.inform_supervisor(Input::Tick),
                () = stop.cancelled(), if !is_stopping => {
                    is_stopping = true;
                    output::line("stopping the workers (which drain), then the server, then the broker …");
                    self.stop();
                }
            }
        }
    }

    fn inform_supervisor(&mut self, input: Input) {
        self.supervisor.handle(self.begin.elapsed(), input);
    }

    fn stop(&mut self) {
        self.chores.abort_all();
        self.inform_supervisor(Input::Stop);
    }

    // --- Orders ---------------------------------------------------------------------------------

    fn carry_out(&mut self, order: Order) {
        match order {
            Order::Start(role) => self.start(role),
            Order::Terminate(role) => self.signal(role, Signal::SIGTERM),
            Order::Kill(role) => {
                output::line(&format!(
                    "{} does not stop; killing it",
                    self.members[role].duty.name()
                ));
                self.signal(role, Signal::SIGKILL);
            }
        }
    }

    fn signal(&self, role: Role, signal: Signal) {
        if let Some(handle) = &self.members[role].handle {
            handle.signal(signal);
        }
    }

    fn start(&mut self, role: Role) {
        let duty = self.members[role].duty;
        let process = match duty {
            Duty::Broker => {
                broker::start(&self.config.run_dir, &self.broker_dir, self.config.broker_port)
            }
            Duty::Server => {
                let port = self.config.server_port;
                stack::start_server(&self.config, &self.brokers, &self.policy, port)
            }
            Duty::Worker(number) => {
                let port = self.worker_port(number);
                stack::start_worker(&self.config, &self.brokers, &self.server_url(), number, port)
            }
        };

        match process {
            Ok(process) => {
                let handle = role::spawn_owner(role, process, duty.probe(), self.reports.clone());
                let member = &mut self.members[role];
                if std::mem::replace(&mut member.has_run, true) {
                    output::line(&format!("{} restarted (pid {})", duty.name(), handle.pid));
                }
                member.handle = Some(handle);
            }
            Err(error) => self.handle_exit(role, &fleet_ops::errors::chain(&error)),
        }
    }

    /// Returns the port of a worker: the ports after the server's, which are 8081, 8082, … by
    /// default. 0 means any free port.
    fn worker_port(&self, number: usize) -> u16 {
        let port =
            u16::try_from(number).ok().and_then(|number| self.named_port?.checked_add(number));
        port.filter(|port| TcpListener::bind((Ipv4Addr::LOCALHOST, *port)).is_ok())
            .unwrap_or_default()
    }

    // --- Reports --------------------------------------------------------------------------------

    fn handle_report(&mut self, role: Role, report: Report) {
        match report {
            Report::Listens(address) => self.handle_listening(role, address),
            Report::Probed(true) => self.inform_supervisor(Input::Answered(role)),
            Report::Probed(false) => {
                tracing::warn!(
                    role = self.members[role].duty.name(),
                    "a process did not answer its health probe"
                );
                self.inform_supervisor(Input::Silent(role));
            }
            Report::Exited(how, by_itself) => {
                self.members[role].handle = None;
                // A process that fails on its first start would fail again.
                if by_itself && !self.startup.is_up && self.failure.is_none() {
                    let name = self.members[role].duty.name();
                    let log = supervise::tail(&self.config.run_dir.join(format!("{name}.log")));
                    self.failure = Some(CliError::EarlyEnd { name, log });
                    self.stop();
                }
                self.handle_exit(role, &how);
            }
        }
    }

    /// Handles the end of a role's process.
    fn handle_exit(&mut self, role: Role, how: &str) {
        self.inform_supervisor(Input::Exited(role));
        if let Some(at) = self.supervisor.restarts_at(role) {
            let delay = at.saturating_sub(self.begin.elapsed());
            let name = self.members[role].duty.name();
            output::line(&format!("{name} {how}; restarting it in {delay:.1?}"));
        }
    }

    /// Handles a process that has started to listen. Its successors will use the same address.
    fn handle_listening(&mut self, role: Role, address: SocketAddr) {
        self.members[role].address = Some(address);
        match self.members[role].duty {
            Duty::Broker => {
                self.config.broker_port = address.port();
                self.brokers = address.to_string();
                if !self.startup.has_topics {
                    // Nothing else starts before the topics exist.
                    return self.create_topics();
                }
            }
            Duty::Server => {
                self.config.server_port = address.port();
                if self.startup.hosted.is_none() {
                    self.host_servers();
                }
            }
            Duty::Worker(_) => {}
        }

        self.inform_supervisor(Input::Ready(role));
        self.wait_for_group();
    }

    fn finish_task(&mut self, done: Option<FinishedTask>) {
        match done {
            Some(FinishedTask::Topics) => {
                self.startup.has_topics = true;
                self.inform_supervisor(Input::Ready(0));
            }
            Some(FinishedTask::Hosted(hosted)) => {
                self.startup.hosted = Some(hosted);
                self.wait_for_group();
            }
            Some(FinishedTask::Group) => {
                self.startup.is_up = true;
                self.print_summary();
            }
            // The task was aborted because everything stops.
            None => {}
        }
    }

    // --- Startup tasks --------------------------------------------------------------------------

    fn create_topics(&mut self) {
        let Ok(settings) = connection::settings(&self.brokers) else { return };
        let config = self.config.clone();
        self.chores.spawn(async move {
            while let Err(error) = create_topics(&settings, &config).await {
                let error = fleet_ops::errors::chain(&error);
                tracing::warn!(error, "could not create the topics; retrying");
                tokio::time::sleep(RETRY_PAUSE).await;
            }
            FinishedTask::Topics
        });
    }

    /// Hosts the files, or waits for the servers that the mcp-server hosts by itself.
    fn host_servers(&mut self) {
        let (url, config) = (self.server_url(), self.config.clone());
        self.chores.spawn(async move {
            loop {
                let hosted = match &config.hosts {
                    HostedByStack::Files => {
                        stack::host_files(&url, &config).await.map(|()| Vec::new())
                    }
                    HostedByStack::Servers { entries, .. } => {
                        stack::wait_for_servers(&url, entries).await
                    }
                };
                match hosted {
                    Ok(hosted) => return FinishedTask::Hosted(hosted),
                    Err(error) => {
                        let error = fleet_ops::errors::chain(&error);
                        tracing::warn!(error, "could not host the servers; retrying");
                    }
                }
                tokio::time::sleep(RETRY_PAUSE).await;
            }
        });
    }

    fn wait_for_group(&mut self) {
        let is_there = self.members.iter().all(|member| member.address.is_some());
        if !is_there || self.startup.hosted.is_none() || self.startup.waits_for_group {
            return;
        }

        let Ok(settings) = connection::settings(&self.brokers) else { return };

        self.startup.waits_for_group = true;
        let (group, workers) = (self.config.group.clone(), self.config.workers);
        self.chores.spawn(async move {
            stack::wait_for_group(&settings, &group, workers).await;
            FinishedTask::Group
        });
    }

    // --- Messages -------------------------------------------------------------------------------

    fn server_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.config.server_port)
    }

    fn print_summary(&self) {
        let url = self.server_url();
        output::line(&format!("console     {url}/console"));
        output::line(&format!("url         {url}"));
        for (name, condition) in self.startup.hosted.iter().flatten() {
            output::line(&super::advice::describe_hosted(name, condition));
        }
        for member in &self.members {
            let pid = member.handle.as_ref().map_or(0, |handle| handle.pid);
            match member.duty {
                Duty::Broker => output::line(&format!("broker      {} (pid {pid})", self.brokers)),
                Duty::Server => output::line(&format!("mcp-server  {url}/mcp (pid {pid})")),
                Duty::Worker(_) => {
                    let address =
                        member.address.map_or_else(String::new, |address| address.to_string());
                    output::line(&format!(
                        "worker      {address} {} (pid {pid})",
                        member.duty.name()
                    ));
                }
            }
        }

        output::line(&format!("jobs        {url}/jobs"));
        output::line(&format!("keys        {}", self.config.keys_dir.display()));
        output::line(&format!("logs        {}", self.config.run_dir.display()));
        output::line(
            "Each process serves /ready (whether it can work, or why not) and /metrics at its address.",
        );
        let operator_key = self.config.operator_key();
        let tool = match &self.config.hosts {
            HostedByStack::Files => Some("files__file_list"),
            HostedByStack::Servers { .. } => None,
        };
        super::advice::print(&self.brokers, &url, &operator_key, &self.config.topic, tool);
    }
}

async fn create_topics(settings: &Settings, config: &StackConfig) -> Result<(), CliError> {
    let topics = Topics::of(config.topic.clone());
    let replication = if config.brokers.is_none() { 1 } else { -1 };
    admin::create_topics(settings, &admin::fleet_topics(&topics, config.partitions, replication))
        .await?;
    Ok(())
}

/// Checks that the ports that `dev` needs are free. The processes themselves would suggest flags
/// that `dev` does not have.
fn check_ports(config: &StackConfig) -> Result<(), CliError> {
    let broker_port = config.brokers.is_none().then_some((config.broker_port, "--broker-port"));
    for (port, flag) in broker_port.into_iter().chain([(config.server_port, "--server-port")]) {
        TcpListener::bind((Ipv4Addr::LOCALHOST, port)).map_err(|error| {
            CliError::Usage(format!(
                "could not listen on 127.0.0.1:{port}: {error}; choose another port with {flag}"
            ))
        })?;
    }
    Ok(())
}

/// Sleeps until `at`; without a time, forever.
async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
