//! The fleet of one test: topics of its own, a server, workers, and the submitted records.

use std::{
    env, fs, mem,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use fleet_job::{control::Control, time::Timestamp, topics::Topics};
use serde_json::{Value, json};

use crate::{
    Env, Oracle, bins, http,
    oracle::Account,
    process::{self, Process},
    topics::{self, Outgoing, Record},
    wait,
};

const START: Duration = Duration::from_secs(60);
/// How long a worker may take to drain: `MCP_DRAIN_TIMEOUT` with a margin.
const STOP: Duration = Duration::from_secs(60);

/// The name of a file of 1 MiB in [`Fleet::files`].
pub const LARGE_FILE: &str = "large";

/// A running process of one of our binaries.
#[derive(Debug)]
pub struct Service {
    /// The operating system's process.
    pub process: Process,
    /// The address on which it listens.
    pub address: SocketAddr,
}

impl Service {
    /// Starts `command` with a ready file, and waits until it listens.
    fn start(name: &str, directory: &Path, mut command: Command) -> Self {
        let ready = directory.join(bins::unique("ready"));
        command
            .arg("--ready-file")
            .arg(&ready)
            .env("RUST_LOG", env::var("FLEET_TEST_LOG").as_deref().unwrap_or("info"));
        let mut process = Process::start(name, directory, command);
        let address = process.wait_until("the ready file", START, || {
            fs::read_to_string(&ready).ok()?.trim().parse().ok()
        });
        Self { process, address }
    }

    fn server(directory: &Path, options: &ServerOptions) -> Self {
        Self::launch_server(directory, options).ready()
    }

    /// Starts a server that need not become ready.
    fn launch_server(directory: &Path, options: &ServerOptions) -> Self {
        let mut command = Command::new(bins::bin("mcp-server"));
        command.env("PORT", options.port.to_string()).current_dir(directory);
        command.env_remove("KAFKA_BROKERS").env("MCP_ALLOWED_COMMANDS", options.allowed.join(";"));
        for root in &options.roots {
            command.arg("--root").arg(root);
        }
        command.args(&options.args).envs(options.env.iter().map(|(name, value)| (name, value)));
        Self::start("mcp-server", directory, command)
    }

    /// Calls a tool of a server; returns the whole JSON-RPC answer.
    pub fn call(&self, tool: &str, arguments: &Value) -> Value {
        let params = json!({"name": tool, "arguments": arguments});
        let request = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params});
        let (status, answer) =
            http::post(self.address, "/message", &request).expect("an answer of the server");
        assert_eq!(status, 200, "{answer}");
        answer
    }

    /// Waits until the service reports that it is ready.
    #[must_use]
    pub fn ready(mut self) -> Self {
        let address = self.address;
        self.process.wait_until("GET /ready", START, || {
            (http::get(address, "/ready").ok()?.0 == 200).then_some(())
        });
        self
    }
}

/// The options of a server.
#[derive(Clone, Debug, Default)]
pub struct ServerOptions {
    /// Directories for the `file_*` tools.
    pub roots: Vec<PathBuf>,
    /// Patterns of allowed command lines.
    pub allowed: Vec<String>,
    /// Additional environment.
    pub env: Vec<(String, String)>,
    /// A fixed port, for a server that comes back.
    pub port: u16,
    /// Additional arguments.
    pub args: Vec<String>,
}

/// The topics, server and workers of one test.
#[derive(Debug)]
pub struct Fleet<'e> {
    /// The broker.
    pub env: &'e Env,
    /// The jobs topic, from which the names of the other topics follow.
    pub topic: String,
    /// The consumer group.
    pub group: String,
    /// A directory of this test's own.
    pub directory: PathBuf,
    /// The number of partitions of the jobs topic.
    pub partitions: i32,
    /// The records submitted so far.
    pub submitted: Vec<Record>,
    /// The server's URL for workers.
    pub server_url: String,
    /// Additional environment for the server of [`Fleet::start_tool_server`].
    pub server_env: Vec<(String, String)>,
    /// Additional environment for the workers.
    pub worker_env: Vec<(String, String)>,
    /// The running workers.
    pub workers: Vec<Service>,
    /// The server, if it is running.
    pub server: Option<Service>,
}

impl<'e> Fleet<'e> {
    /// Creates the topics for the test `name`. Nothing runs yet.
    pub fn new(env: &'e Env, name: &str, partitions: i32) -> Self {
        let topic = bins::unique(name);
        let directory = bins::scratch(name);
        process::remove_at_exit(&directory);
        let (events, dlq) = (format!("{topic}.events"), format!("{topic}.dlq"));
        topics::create(&env.brokers, &[(&topic, partitions), (&events, 2), (&dlq, 1)]);
        Self {
            env,
            group: format!("{topic}-workers"),
            topic,
            directory,
            partitions,
            submitted: Vec::new(),
            server_url: String::new(),
            server_env: Vec::new(),
            worker_env: vec![
                ("MCP_RETRY_BASE".into(), "50ms".into()),
                ("MCP_RETRY_MAX".into(), "500ms".into()),
                // Each test decides which topics its fleet has.
                ("MCP_CREATE_TOPICS".into(), "false".into()),
                ("KAFKA_PROPERTY_SESSION_TIMEOUT_MS".into(), "6000".into()),
                ("KAFKA_PROPERTY_HEARTBEAT_INTERVAL_MS".into(), "1000".into()),
            ],
            workers: Vec::new(),
            server: None,
        }
    }

    /// Starts the server.
    pub fn start_server(&mut self, options: &ServerOptions) {
        let server = Service::server(&self.directory, options);
        self.server_url = format!("http://{}", server.address);
        self.server = Some(server);
    }

    /// Options of a server that knows this fleet's jobs.
    pub fn with_jobs(&self, mut options: ServerOptions) -> ServerOptions {
        let settings = [
            ("KAFKA_BROKERS", self.env.brokers.clone()),
            ("KAFKA_TOPIC", self.topic.clone()),
            ("MCP_REGISTRY_TOPIC", format!("{}.servers", self.topic)),
            ("MCP_CONSUMER_GROUP", self.group.clone()),
        ];
        options.env.extend(settings.map(|(name, value)| (name.to_owned(), value)));
        options
    }

    /// Starts another server that knows this fleet's jobs. The workers don't call it.
    pub fn start_replica(&self, options: ServerOptions) -> Service {
        self.launch_replica(options).ready()
    }

    /// The same, and returns as soon as the server listens.
    pub fn launch_replica(&self, options: ServerOptions) -> Service {
        Service::launch_server(&self.directory, &self.with_jobs(options))
    }

    /// Starts a server whose `file_*` tools read the directory of [`Fleet::files`].
    pub fn start_file_server(&mut self) {
        let options = ServerOptions { roots: vec![self.files()], ..ServerOptions::default() };
        self.start_server(&options);
    }

    /// Starts another server that accepts jobs and has the `file_*` tools. The workers call the
    /// first such server.
    pub fn start_job_server(&mut self) -> Service {
        let server = self
            .start_replica(ServerOptions { roots: vec![self.files()], ..ServerOptions::default() });
        if self.server_url.is_empty() {
            self.server_url = format!("http://{}", server.address);
        }
        server
    }

    /// Starts a server that hosts `program`, which is `bin/fixture_tools.rs`, as `chaos`: a tool
    /// that behaves as its arguments say and logs its calls in the ledger. A server that
    /// `remembers` answers the repeat of a successful call without calling the tool, which hides
    /// the workers' repeats from the ledger.
    pub fn start_tool_server(&mut self, program: &str, ledger: &Path, remembers: bool) {
        let command = format!("{program} {}", ledger.display());
        let window = if remembers { "10m" } else { "0" };
        let mut env = vec![("MCP_REPEAT_WINDOW".to_owned(), window.to_owned())];
        env.extend(self.server_env.iter().cloned());
        self.start_server(&ServerOptions {
            allowed: vec![command],
            env,
            ..ServerOptions::default()
        });
        let address = self.server.as_ref().expect("the server").address;
        let config = json!({"command": program, "args": [ledger]});
        let request = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params":
            {"name": "server_initialize", "arguments": {"name": "chaos", "config": config}}});
        let (status, answer) =
            http::post(address, "/message", &request).expect("an answer of the server");
        let hosted = status == 200 && answer["result"]["isError"].as_bool() != Some(true);
        assert!(hosted && answer["error"].is_null(), "the tool is not hosted: {answer}");
    }

    /// A directory with a few files: a text, an empty, a large and a binary file.
    pub fn files(&self) -> PathBuf {
        files(&self.directory)
    }

    /// Starts a worker and waits until it is ready.
    pub fn start_worker(&mut self) -> &mut Service {
        let worker = self.launch_worker().ready();
        self.workers.push(worker);
        self.workers.last_mut().expect("the one just added")
    }

    /// Starts a worker that need not become ready.
    pub fn launch_worker(&self) -> Service {
        self.launch_worker_with(&[])
    }

    /// The same with more environment, for this worker alone.
    pub fn launch_worker_with(&self, env: &[(&str, &str)]) -> Service {
        let mut command = Command::new(bins::bin("kafka-worker"));
        command
            .env("KAFKA_BROKERS", &self.env.brokers)
            .env("KAFKA_TOPIC", &self.topic)
            .env("MCP_CONSUMER_GROUP", &self.group)
            .env("MCP_SERVER_URL", &self.server_url)
            .env("PORT", "0")
            .envs(self.worker_env.iter().map(|(name, value)| (name, value)))
            .envs(env.iter().copied())
            .current_dir(&self.directory);
        Service::start("kafka-worker", &self.directory, command)
    }

    /// Sets an environment variable of the workers that are started from now on.
    pub fn worker_env(&mut self, name: &str, value: &str) {
        self.worker_env.push((name.to_owned(), value.to_owned()));
    }

    /// Writes records to the jobs topic, and returns them with their positions.
    pub fn submit(&mut self, records: Vec<Outgoing>) -> Vec<Record> {
        let placed = topics::produce(&self.env.brokers, &self.topic, records);
        self.submitted.extend(placed.iter().cloned());
        placed
    }

    /// Submits jobs with fifty keys for the tool of [`Fleet::start_tool_server`]. Their calls go on
    /// until the gate is open, so a worker that has them in flight can't have ended them before a
    /// disturbance.
    pub fn submit_held(&mut self, count: usize) -> Gate {
        let name = bins::unique("held");
        let gate = Gate(self.directory.join(&name));
        let jobs = (0..count).map(|n| {
            let arguments = json!({"until": gate.0, "key": format!("{}", n % 50)});
            let job = json!({"jobID": format!("{name}-{n}"), "jobType": "tool-call",
                "payload": {"server": "chaos", "tool": "work", "arguments": arguments}});
            Outgoing::value(job.to_string()).key(format!("{}", n % 50))
        });
        self.submit(jobs.collect());
        gate
    }

    /// Creates the control topic, which a test's fleet doesn't have by default.
    pub fn create_control_topic(&self) {
        topics::create(&self.env.brokers, &[(&Topics::of(&*self.topic).control, 1)]);
    }

    /// Creates the topic of pauses, which a test's fleet doesn't have by default.
    pub fn create_pauses_topic(&self) {
        topics::create(&self.env.brokers, &[(&Topics::of(&*self.topic).pauses, 1)]);
    }

    /// Requests the cancellation of all jobs with this id that have been submitted so far.
    pub fn cancel(&self, job_id: &str, reason: Option<&str>) {
        self.cancel_all(&[job_id], reason);
    }

    /// The same for several ids at once.
    pub fn cancel_all(&self, job_ids: &[&str], reason: Option<&str>) {
        let request = |job_id: &&str| {
            let control = Control::cancel(*job_id, None, now(), reason);
            Outgoing::value(control.to_bytes()).key(*job_id)
        };
        let records = job_ids.iter().map(request).collect();
        topics::produce(&self.env.brokers, &Topics::of(&*self.topic).control, records);
    }

    /// Waits until the gauge `name` of every worker is `value`.
    pub fn wait_for_gauge(&self, name: &str, value: usize) {
        for worker in &self.workers {
            wait::poll_until_ok(&format!("{name} = {value} of every worker"), wait::LONG, || {
                let is = http::metric(worker.address, name);
                if is == Some(value as f64) { Ok(()) } else { Err(is) }
            });
        }
    }

    /// Submits jobs with fifty keys that each read [`LARGE_FILE`], which takes long enough for a
    /// disturbance.
    pub fn submit_digests(&mut self, count: usize) {
        let jobs = (0..count).map(|n| {
            let job = json!({"jobID": format!("job-{n}-of-{count}"), "jobType": "tool-call",
                "payload": {"tool": "file_digest", "arguments": {"path": LARGE_FILE}}});
            Outgoing::value(job.to_string()).key(format!("{}", n % 50))
        });
        self.submit(jobs.collect());
    }

    /// Submits one job.
    pub fn submit_job(&mut self, envelope: &Value) -> Record {
        self.submit(vec![Outgoing::value(envelope.to_string())]).remove(0)
    }

    /// The number of submitted records that the group has not committed yet.
    pub fn uncommitted(&self) -> usize {
        let offsets =
            topics::committed(&self.env.brokers, &self.group, &self.topic, self.partitions);
        let committed: i64 = offsets.into_iter().flatten().sum();
        self.submitted.len().saturating_sub(usize::try_from(committed).unwrap_or_default())
    }

    /// Waits until all submitted records have ended.
    pub fn wait_for_all(&mut self) {
        let want = self.submitted.len();
        self.wait_for(want);
    }

    /// Waits until `want` records have ended.
    pub fn wait_for(&mut self, want: usize) {
        let (topic, submitted) = (self.topic.clone(), mem::take(&mut self.submitted));
        let oracle = Oracle::new(&topic, &submitted);
        let brokers = &self.env.brokers;
        wait::poll_until_ok(&format!("{want} jobs on {}", self.env.name), wait::LONG, || {
            let account = oracle.read(brokers);
            let ended = account.ended();
            let open = || {
                account
                    .states
                    .values()
                    .filter(|event| !event.state.is_terminal())
                    .take(3)
                    .collect::<Vec<_>>()
            };
            if ended >= want {
                Ok(())
            } else {
                Err(format!("{ended} of {want} have ended; not: {:#?}", open()))
            }
        });

        self.submitted = submitted;
    }

    /// Stops all workers, and panics with the log of a worker that doesn't end in order.
    pub fn stop_workers(&mut self) {
        for worker in &self.workers {
            worker.process.signal(nix::sys::signal::Signal::SIGTERM);
        }
        for mut worker in mem::take(&mut self.workers) {
            let status = worker.process.wait(STOP);
            assert!(status.success(), "a worker ended with {status}:\n{}", worker.process.log());
        }
    }

    /// Waits for all jobs, stops the workers, and lets the oracle check the run. Allows `repeats`.
    pub fn settle(&mut self, repeats: usize) -> Account {
        self.wait_for_all();
        self.stop_workers();
        let account =
            Oracle::new(&self.topic, &self.submitted).repeats(repeats).check(&self.env.brokers);
        self.assert_all_committed();
        account
    }

    /// Asserts that every partition is committed to its end, as after an orderly stop: past the
    /// last record that was submitted or returned from the delayed topic.
    pub fn assert_all_committed(&self) {
        let committed =
            topics::committed(&self.env.brokers, &self.group, &self.topic, self.partitions);
        let ends = topics::ends(&self.env.brokers, &self.topic, self.partitions);
        for (partition, (committed, end)) in (0..).zip(committed.into_iter().zip(ends)) {
            assert_eq!(
                committed.unwrap_or_default(),
                end,
                "the committed offset of partition {partition}"
            );
        }
    }
}

/// The current time.
pub fn now() -> Timestamp {
    let since = std::time::UNIX_EPOCH.elapsed().expect("a clock that is set");
    let ms = i64::try_from(since.as_millis()).expect("a time");
    Timestamp::from_millis(ms).expect("a time")
}

/// Holds back the jobs of [`Fleet::submit_held`].
#[derive(Debug)]
pub struct Gate(PathBuf);

impl Gate {
    /// Lets the jobs end.
    pub fn open(&self) {
        fs::write(&self.0, "").expect("the gate");
    }
}

/// A server without a fleet, for clients that talk to it directly.
#[derive(Debug)]
pub struct Standalone {
    /// The server.
    pub service: Service,
    /// A directory of this test's own.
    pub directory: PathBuf,
}

impl Standalone {
    /// Starts a server whose `file_*` tools read the harness's files.
    pub fn start(name: &str) -> Self {
        Self::start_with(name, ServerOptions::default())
    }

    /// The same with more options.
    pub fn start_with(name: &str, options: ServerOptions) -> Self {
        let Self { service, directory } = Self::launch_with(name, options);
        Self { service: service.ready(), directory }
    }

    /// The same for a server that need not become ready.
    pub fn launch_with(name: &str, mut options: ServerOptions) -> Self {
        let directory = bins::scratch(name);
        process::remove_at_exit(&directory);
        options.roots.push(files(&directory));
        Self { service: Service::launch_server(&directory, &options), directory }
    }
}

fn files(directory: &Path) -> PathBuf {
    let directory = directory.join("files");
    fs::create_dir_all(directory.join("below")).expect("a directory");
    fs::write(directory.join("hello.txt"), "hello, fleet\n").expect("a file");
    fs::write(directory.join("empty"), "").expect("a file");
    fs::write(directory.join(LARGE_FILE), vec![b'x'; 1 << 20]).expect("a file");
    fs::write(directory.join("below/binary"), [0, 159, 146, 150]).expect("a file");
    directory
}
