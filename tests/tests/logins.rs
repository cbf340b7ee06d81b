//! Callers with access tokens of a local authorization server: a scanner that grades what the
//! server does about authorization, clients of others that log in, and a worker that is a client
//! itself.

#![expect(clippy::expect_used, reason = "a panic is the report of a test")]

use std::{fs, net::SocketAddr, path::Path, process::Command};

use fleet_job::event::JobState;
use fleet_ops::tls::{PairFiles, testing::Authority};
use fleet_tests::{
    Env, Fleet,
    fleet::{ServerOptions, Service, Standalone},
    process::Process,
    python::Python,
    rest, wait,
};
use serde_json::json;

/// The client that gets tokens for itself.
const WORKER: [&str; 2] = ["worker", "the-workers-secret"];

/// An authorization server.
struct Issuer {
    _process: Process,
    url: String,
}

impl Issuer {
    fn start(python: &Python, directory: &Path) -> Self {
        let ready = directory.join("issuer");
        let mut command = python.script("authorization_server.py");
        command.arg(&ready).args(WORKER);
        let mut process = Process::start("issuer", directory, command);
        let url = process.wait_until("the URL", wait::LONG, || {
            fs::read_to_string(&ready).ok()?.strip_suffix('\n').map(str::to_owned)
        });
        Self { _process: process, url }
    }

    /// A token of the worker's for this resource.
    fn token(&self, resource: &str) -> String {
        let address: SocketAddr =
            self.url.trim_start_matches("http://").parse().expect("an address");
        let form = [("content-type", "application/x-www-form-urlencoded")];
        let [id, secret] = WORKER;
        let body = format!(
            "grant_type=client_credentials&client_id={id}&client_secret={secret}&resource={resource}"
        );
        let answer = rest::request(address, "POST", "/token", &form, body.as_bytes()).expect(200);
        answer["access_token"].as_str().expect("a token").to_owned()
    }
}

/// Everybody sees `file_list`, and may call it for one directory or with a scope. The worker may
/// call all tools.
fn rules(issuer: &Issuer, audience: &str) -> String {
    format!(
        "[access]
        default = 'deny'

        [[issuer]]
        url = '{}'
        audiences = ['{audience}']

        [[rule]]
        name = 'servers'
        effect = 'allow'
        principals = ['anyone']
        actions = ['tools.call']
        tools = ['server_list']

        [[rule]]
        name = 'public files'
        effect = 'allow'
        principals = ['anyone']
        actions = ['tools.call']
        tools = ['file_list']
        when = \"has(args.path) && args.path == 'public'\"

        [[rule]]
        name = 'files'
        effect = 'allow'
        principals = ['anyone']
        actions = ['tools.call']
        tools = ['file_list']
        scopes = ['files']

        [[rule]]
        name = 'jobs'
        effect = 'allow'
        principals = ['subject:worker']
        actions = ['tools.call']
        ",
        issuer.url
    )
}

/// A server that takes the tokens of an issuer for its own URL.
struct Protected {
    server: Standalone,
    url: String,
}

impl Protected {
    fn start(name: &str, issuer: &Issuer, directory: &Path, tls: Option<&PairFiles>) -> Self {
        let policy = directory.join(format!("{name}.toml"));
        // Its port is not known before it listens.
        fs::write(&policy, rules(issuer, "http://not.yet/mcp")).expect("a policy file");
        let text = |path: &Path| path.to_str().expect("a path in UTF-8").to_owned();
        let mut env = vec![("MCP_POLICY_FILE".to_owned(), text(&policy))];
        if let Some(PairFiles { certificate, key }) = tls {
            env.push(("MCP_TLS_CERTIFICATE_FILE".to_owned(), text(certificate)));
            env.push(("MCP_TLS_KEY_FILE".to_owned(), text(key)));
        }

        let options = ServerOptions { env, ..ServerOptions::default() };
        let mut server = Standalone::launch_with(name, options);
        let scheme = if tls.is_some() { "https" } else { "http" };
        let url = format!("{scheme}://{}/mcp", server.service.address);
        fs::write(&policy, rules(issuer, &url)).expect("a policy file");
        server.service.process.says("applied the changed files about access", wait::LONG);
        Self { server, url }
    }
}

/// Runs a program to its end; returns what it wrote.
fn run(name: &str, directory: &Path, command: Command) -> String {
    let mut process = Process::start(name, directory, command);
    let status = process.wait(wait::LONG);
    let output = process.log();
    assert!(status.success(), "{name}: {status}\n{output}");
    output
}

#[test]
fn a_scanner_of_authorization_gives_the_best_grade() {
    let (Some(python), Some(scanner)) = (Python::get(), Python::authlab()) else { return };
    let directory = fleet_tests::bins::scratch("authlab");
    fleet_tests::process::remove_at_exit(&directory);
    let issuer = Issuer::start(&python, &directory);
    let pair = Authority::new(&directory, "own").issue("server", "IP:127.0.0.1");
    let protected = Protected::start("authlab-server", &issuer, &directory, Some(&pair));

    let scan = |name: &str, arguments: &[&str]| {
        let mut command = Command::new(scanner.interpreter());
        command.args(["-m", "mcp_authlab", name, "--insecure", "--no-color"]).args(arguments);
        command.arg(&protected.url).env("HOME", &directory).env_remove("XDG_CONFIG_HOME");
        run(name, &directory, command)
    };
    scan("login", &["--no-browser"]);
    let report = scan("scan", &["--tool", "file_list", "--verbose", "--fail-under", "A"]);
    assert!(report.contains("grade A") && report.contains("0 fail"), "{report}");
    assert!(report.contains("0 warn") && report.contains("0 skipped"), "{report}");
}

#[test]
fn clients_of_others_log_in_and_call() {
    let Some(python) = Python::get() else { return };
    let directory = fleet_tests::bins::scratch("logins");
    fleet_tests::process::remove_at_exit(&directory);
    let issuer = Issuer::start(&python, &directory);
    let protected = Protected::start("logins-server", &issuer, &directory, None);

    let mut command = python.script("login.py");
    command.args([&protected.url, "server_list"]);
    let output = run("login", &directory, command);
    for client in ["mcp called server_list", "fastmcp called server_list"] {
        assert!(output.contains(client), "{output}");
    }

    // A token for somebody else is refused.
    let address = protected.server.service.address;
    let with = |resource: &str| {
        let token = format!("Bearer {}", issuer.token(resource));
        let body = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list"});
        rest::post_with(address, "/message", &[("authorization", &token)], &body).status
    };
    assert_eq!((with(&protected.url), with("http://other.example/mcp")), (200, 401));
}

#[test]
fn a_worker_gets_tokens_of_its_own() {
    let Some(python) = Python::get() else { return };
    let env = Env::embedded_broker(module_path!());
    let mut fleet = Fleet::new(&env, "worker-oauth", 2);
    let issuer = Issuer::start(&python, &fleet.directory);
    let protected = Protected::start("worker-oauth-server", &issuer, &fleet.directory, None);
    fleet.server_url.clone_from(&protected.url);

    let secret = fleet.directory.join("secret");
    fs::write(&secret, "another-secret\n").expect("a file");
    fleet.worker_env("MCP_OAUTH_CLIENT_ID", WORKER[0]);
    fleet.worker_env("MCP_OAUTH_ISSUER", &issuer.url);
    fleet.worker_env("MCP_OAUTH_CLIENT_SECRET_FILE", secret.to_str().expect("a path"));
    for number in 0..20 {
        fleet.submit_job(&json!({"jobID": format!("list-{number}"), "jobType": "tool-call",
            "payload": {"tool": "file_list", "arguments": {}}}));
    }

    // The authorization server refuses the client: jobs wait, and no attempt is spent.
    let mut worker: Service = fleet.launch_worker();
    worker.process.says("FLEET-NO-ACCESS-TOKEN", wait::LONG);
    // The file is read for each token.
    fs::write(&secret, WORKER[1]).expect("a file");
    fleet.workers.push(worker);

    let account = fleet.settle(0);
    for event in account.states.values() {
        assert_eq!((event.state, event.attempts), (JobState::Succeeded, 1), "{event:?}");
    }
}
