//! A fleet whose connections are secured: calls over TLS with a private authority and client
//! certificates, and a Kafka that speaks TLS and asks for a password.

#![expect(clippy::expect_used, reason = "a panic is the report of a test")]

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Output},
    time::Duration,
};

use fleet_job::event::JobState;
use fleet_ops::tls::{PairFiles, testing::Authority};
use fleet_tests::{
    Env, Fleet, bins,
    fleet::{ServerOptions, Service, Standalone},
    http,
    kafka::{self, Cluster},
    rest, wait,
};
use serde_json::{Value, json};

const NAMES: &str = "DNS:localhost,IP:127.0.0.1";
const WORKER: &str = "URI:spiffe://fleet.example/worker";
/// The worker's metric of changes that it has applied to its connections.
const CLIENT_RELOADS: &str = "fleet_tls_reloads_total{files=\"client\",outcome=\"applied\"}";
/// The time within which a refused connection shows in a worker's readiness.
const SOON: Duration = Duration::from_secs(30);

/// Puts a file in the place of another, as a rename does.
fn replace(target: &Path, content: impl AsRef<[u8]>) {
    let temporary = target.with_extension("new");
    fs::write(&temporary, content).expect("a file");
    fs::rename(&temporary, target).expect("the file in its place");
}

fn install(pair: &PairFiles, from: &PairFiles) {
    replace(&pair.certificate, fs::read(&from.certificate).expect("a certificate"));
    replace(&pair.key, fs::read(&from.key).expect("a key"));
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a path in UTF-8")
}

/// Files that are replaced while a fleet uses them.
struct Files {
    server: PairFiles,
    worker: PairFiles,
    /// What both sides trust.
    trusted: PathBuf,
    policy: PathBuf,
}

impl Files {
    fn new(directory: &Path, authority: &Authority) -> Self {
        let at = |name: &str| directory.join(name);
        let pair = |name: &str| PairFiles {
            certificate: at(&format!("{name}.pem")),
            key: at(&format!("{name}.key")),
        };
        let files = Self {
            server: pair("server"),
            worker: pair("worker"),
            trusted: at("trusted.pem"),
            policy: at("policy.toml"),
        };

        install(&files.server, &authority.issue("server", NAMES));
        install(&files.worker, &authority.issue("worker", WORKER));
        replace(&files.trusted, fs::read(authority.certificate()).expect("a certificate"));
        let policy = "[[certificate]]\nuri = 'spiffe://fleet.example/*'\nroles = ['worker']\n\
                      [[rule]]\nname = 'workers run jobs'\neffect = 'allow'\n\
                      principals = ['role:worker']\nactions = ['tools.call']\n";
        replace(&files.policy, policy);
        files
    }

    fn server_env(&self) -> Vec<(String, String)> {
        let variables = [
            ("MCP_TLS_CERTIFICATE_FILE", &self.server.certificate),
            ("MCP_TLS_KEY_FILE", &self.server.key),
            ("MCP_TLS_CLIENT_CA_FILE", &self.trusted),
            ("MCP_POLICY_FILE", &self.policy),
        ];
        variables.map(|(name, path)| (name.to_owned(), text(path).to_owned())).to_vec()
    }

    fn worker_env(&self) -> [(&str, &str); 3] {
        [
            ("MCP_SERVER_CA_FILE", text(&self.trusted)),
            ("MCP_SERVER_CLIENT_CERTIFICATE_FILE", text(&self.worker.certificate)),
            ("MCP_SERVER_CLIENT_KEY_FILE", text(&self.worker.key)),
        ]
    }
}

fn read_file(id: &str) -> Value {
    json!({"jobID": id, "jobType": "tool-call",
        "payload": {"tool": "file_read", "arguments": {"path": "hello.txt"}}})
}

fn submit_reads(fleet: &mut Fleet<'_>, name: &str, count: usize) {
    for number in 0..count {
        fleet.submit_job(&read_file(&format!("{name}-{number}")));
    }
}

/// Waits until a server has applied this many changes of its files.
fn wait_for_reloads(server: &Service, count: usize) {
    wait::poll_until_ok(&format!("{count} changes of the server"), wait::LONG, || {
        let applied = server.process.log().matches("applied the changed TLS files").count();
        if applied >= count { Ok(()) } else { Err(applied) }
    });
}

#[test]
fn a_worker_with_a_certificate_runs_jobs_over_tls_while_everything_is_rotated() {
    let env = Env::embedded_broker(module_path!());
    let mut fleet = Fleet::new(&env, "tls", 2);
    let first = Authority::new(&fleet.directory, "first");
    let files = Files::new(&fleet.directory, &first);
    let options = ServerOptions { env: files.server_env(), ..ServerOptions::default() };
    let server = Standalone::launch_with("tls-server", options).service;
    fleet.server_url = format!("https://localhost:{}", server.address.port());

    // Without the authority, the server is not trusted; its job waits.
    submit_reads(&mut fleet, "waiting", 1);
    let mut untrusting = fleet.launch_worker();
    untrusting.process.says("invalid peer certificate", SOON);
    drop(untrusting);

    for (name, value) in files.worker_env() {
        fleet.worker_env(name, value);
    }
    fleet.start_worker();
    submit_reads(&mut fleet, "before", 30);
    fleet.wait_for_all();

    let second = Authority::new(&fleet.directory, "second");
    let certificate = |authority: &Authority| fs::read(authority.certificate()).expect("a file");
    let both = [certificate(&first), certificate(&second)].concat();
    let steps: [&dyn Fn(); 3] = [
        &|| replace(&files.trusted, &both),
        &|| {
            install(&files.server, &second.issue("server", NAMES));
            install(&files.worker, &second.issue("worker", WORKER));
        },
        &|| replace(&files.trusted, certificate(&second)),
    ];
    for (count, step) in (1..).zip(steps) {
        step();
        wait_for_reloads(&server, count);
        // The worker looks at its files when it calls.
        wait::poll_until("the worker's change", wait::LONG, || {
            submit_reads(&mut fleet, &bins::unique("during"), 10);
            fleet.wait_for_all();
            let applied = http::metric(fleet.workers[0].address, CLIENT_RELOADS)?;
            (applied >= count as f64).then_some(())
        });
    }
    submit_reads(&mut fleet, "after", 30);

    let account = fleet.settle(0);
    for event in account.states.values() {
        assert_eq!((event.state, event.attempts), (JobState::Succeeded, 1), "{event:?}");
    }
}

fn healthcheck(port: u16, env: &[(&str, &str)]) -> Output {
    let port = port.to_string();
    let mut command = Command::new(bins::bin("kafka-worker"));
    command.args(["--healthcheck", "--brokers", "b:1", "--server-url", "http://s"]);
    command.args(["--port", &port]).envs(env.iter().copied());
    command.output().expect("an answer of the worker")
}

#[test]
fn a_workers_own_port_speaks_tls() {
    let env = Env::embedded_broker(module_path!());
    let mut fleet = Fleet::new(&env, "tls-port", 1);
    fleet.start_file_server();
    let authority = Authority::new(&fleet.directory, "own");
    let PairFiles { certificate, key } = authority.issue("worker", NAMES);
    let tls = [("MCP_TLS_CERTIFICATE_FILE", text(&certificate)), ("MCP_TLS_KEY_FILE", text(&key))];
    let worker = fleet.launch_worker_with(&tls);

    let ready = wait::poll_until("the worker to be ready", wait::LONG, || {
        let output = healthcheck(worker.address.port(), &tls);
        let text = String::from_utf8(output.stdout).expect("text");
        (output.status.success() && text.contains("\"ready\"")).then_some(text)
    });
    assert!(!ready.contains("not ready"), "{ready}");
    assert!(!healthcheck(worker.address.port(), &[]).status.success(), "plain HTTP is refused");
    assert!(!matches!(http::get(worker.address, "/health"), Ok((200, _))));
}

#[test]
fn a_fleet_runs_jobs_over_tls_and_scram() {
    if !kafka::available() {
        return;
    }
    let cluster = Cluster::start_secured();
    let env = Env::of(&cluster);
    let secured = cluster.secured();
    let mut fleet = Fleet::new(&env, "secured", 3);
    fleet.create_control_topic();

    // The setting of the harness names the listener without TLS, and a flag goes before it.
    let args = ["--kafka-brokers".to_owned(), secured.brokers.clone()].to_vec();
    let options = ServerOptions {
        roots: vec![fleet.files()],
        args,
        env: secured.env(),
        ..ServerOptions::default()
    };
    let server = fleet.start_replica(options);
    fleet.server_url = format!("http://{}", server.address);

    for (wrong, words) in [
        (secured.env_with_wrong_password(), "uthenti"),
        (secured.env_with_other_authority(&fleet.directory), "certificate"),
    ] {
        let wrong: Vec<_> = wrong.iter().map(|(name, value)| (&**name, &**value)).collect();
        let mut worker = fleet.launch_worker_with(&wrong);
        worker.process.says(words, SOON);
    }

    for (name, value) in secured.env() {
        fleet.worker_env(&name, &value);
    }
    fleet.start_worker();
    submit_reads(&mut fleet, "read", 20);
    let job = json!({"jobID": "posted", "tool": "file_list"});
    rest::post(server.address, "/jobs", &job).expect(202);
    wait::poll_until("the posted job", wait::LONG, || {
        let job = rest::get(server.address, "/jobs/posted");
        (job.json()["state"] == "succeeded").then_some(())
    });
    fleet.wait_for_all();
    fleet.stop_workers();
    assert_eq!(rest::get(server.address, "/jobs/read-0").expect(200)["state"], "succeeded");
}
