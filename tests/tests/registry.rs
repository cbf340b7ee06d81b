//! The shared registry: all replicas host the servers that one of them was told to host, even after
//! all have restarted.

#![expect(clippy::expect_used, reason = "a panic is the report of a test")]

use fleet_tests::{
    Env, bins,
    fleet::{ServerOptions, Standalone},
    http,
    kafka::{self, Cluster},
    on_every_broker,
    proxy::Network,
    topics, wait,
};
use serde_json::{Value, json};

on_every_broker!(
    all_replicas_host_what_one_of_them_hosts,
    secrets_and_unauthorized_records_are_rejected
);

/// Replicas with one registry that may start the file server, and their options.
struct Replicas {
    options: ServerOptions,
    topic: String,
    program: String,
}

impl Replicas {
    fn new(env: &Env, name: &str) -> Self {
        let topic = bins::unique(name);
        let jobs = format!("{topic}.jobs");
        topics::create(&env.brokers, &[(&jobs, 1), (&format!("{jobs}.events"), 1)]);
        let program = bins::bin("mcp-server").display().to_string();
        let variables = [
            ("KAFKA_BROKERS", env.brokers.as_str()),
            ("MCP_REGISTRY_TOPIC", &topic),
            ("KAFKA_TOPIC", &jobs),
            ("KAFKA_PROPERTY_MESSAGE_TIMEOUT_MS", "3000"),
            ("MCP_ALLOWED_ENV", "LOG_FORMAT,API_KEY"),
            ("MCP_SHARE_PLAIN", "LOG_FORMAT"),
            ("MCP_EXPAND_ENV", "API_KEY"),
            ("API_KEY", "hunter2"),
        ];
        let env = variables.map(|(name, value)| (name.to_owned(), value.to_owned())).to_vec();
        let allowed = vec![format!("{program} --stdio --root **")];
        Self { options: ServerOptions { allowed, env, ..ServerOptions::default() }, topic, program }
    }

    /// Starts a replica, and waits until it has read the registry.
    fn start(&self) -> Standalone {
        Standalone::start_with("registry", self.options.clone())
    }

    /// Starts a replica that connects to Kafka at another address, without waiting for the
    /// registry.
    fn launch_at(&self, brokers: &str) -> Standalone {
        let mut options = self.options.clone();
        options.env.push(("KAFKA_BROKERS".to_owned(), brokers.to_owned()));
        Standalone::launch_with("registry", options)
    }

    fn config(&self, replica: &Standalone, env: &Value) -> Value {
        let root = replica.directory.join("files");
        json!({"command": self.program, "args": ["--stdio", "--root", root], "env": env})
    }
}

fn initialize(replica: &Standalone, name: &str, config: &Value) -> Value {
    replica.service.call("server_initialize", &json!({"name": name, "config": config}))
}

fn succeeds(answer: &Value) {
    assert!(answer["error"].is_null() && answer["result"]["isError"] != json!(true), "{answer}");
}

/// Calls a tool of the hosted server.
fn read(replica: &Standalone, name: &str) -> Value {
    replica.service.call(&format!("{name}__file_read"), &json!({"path": "hello.txt"}))
}

fn is_listed(replica: &Standalone, name: &str) -> bool {
    let request = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list"});
    let (_, answer) = http::post(replica.service.address, "/message", &request).expect("a list");
    answer.to_string().contains(&format!("{name}__file_read"))
}

fn status(replica: &Standalone) -> String {
    replica.service.call("server_status", &json!({})).to_string()
}

fn all_replicas_host_what_one_of_them_hosts(env: &Env) {
    let replicas = Replicas::new(env, "registry");
    let (mut one, mut other) = (replicas.start(), replicas.start());
    let config = replicas.config(&one, &json!({"API_KEY": "${API_KEY}", "LOG_FORMAT": "json"}));
    succeeds(&initialize(&one, "files", &config));

    // The call succeeds at once, not only after a while.
    succeeds(&read(&other, "files"));
    succeeds(&read(&one, "files"));

    for replica in [&mut one, &mut other] {
        let status = replica.service.process.stop(wait::LONG);
        assert!(status.success(), "{status}");
    }

    // The files are those of the first replica, whose directory remains.
    let (again, third) = (replicas.start(), replicas.start());
    for replica in [&again, &third] {
        succeeds(&read(replica, "files"));
        assert!(is_listed(replica, "files"));
    }

    let removed = third.service.call("server_remove", &json!({"name": "files"}));
    succeeds(&removed);
    assert_eq!(removed["result"]["structuredContent"]["removed"], json!(true), "{removed}");
    assert!(!is_listed(&third, "files"));

    wait::poll_until("the removal on the other replica", wait::LONG, || {
        (!is_listed(&again, "files")).then_some(())
    });
    let unknown = read(&again, "files")["error"].clone();
    assert_eq!(
        (&unknown["code"], &unknown["data"]["reason"]),
        (&json!(-32602), &json!("unknown-server"))
    );

    let fresh = replicas.start();
    assert!(!is_listed(&fresh, "files") && read(&fresh, "files")["result"].is_null());
}

fn secrets_and_unauthorized_records_are_rejected(env: &Env) {
    let replicas = Replicas::new(env, "registry-secrets");
    let replica = replicas.start();
    let literal =
        initialize(&replica, "files", &replicas.config(&replica, &json!({"API_KEY": "hunter2"})));
    let output = literal.to_string();
    assert_eq!(literal["result"]["isError"], json!(true), "{output}");
    assert!(
        output.contains("env.API_KEY")
            && output.contains("${API_KEY}")
            && !output.contains("hunter2"),
        "{output}"
    );
    assert!(!is_listed(&replica, "files"), "nor is it hosted here alone");
    succeeds(&initialize(
        &replica,
        "files",
        &replicas.config(&replica, &json!({"API_KEY": "${API_KEY}"})),
    ));

    // A writer to the topic can neither start anything that the policy doesn't allow nor stop a
    // hosted server.
    let stranger = |name: &str, value: &str| {
        topics::produce(
            &env.brokers,
            &replicas.topic,
            vec![topics::Outgoing::value(value).key(name)],
        );
    };
    stranger(
        "evil",
        r#"{"config":{"command":"touch","args":["/tmp/x"]},"revision":"1","writtenAt":0}"#,
    );
    stranger("odd", "{");
    stranger("../x", "{}");
    for replica in [&replica, &replicas.start()] {
        wait::poll_until_ok("the refusals", wait::LONG, || {
            let status = status(replica);
            let refused =
                status.contains("refused") && status.contains("evil") && status.contains("odd");
            if refused { Ok(()) } else { Err(status) }
        });
        succeeds(&read(replica, "files"));
    }
    let written: String =
        topics::read(&env.brokers, &replicas.topic).iter().map(topics::Record::text).collect();
    assert!(written.contains("${API_KEY}") && !written.contains("hunter2"), "{written}");
}

/// Asserts an error that says that the call may succeed later, so that jobs wait.
fn assert_waits(answer: &Value) {
    let error = &answer["error"];
    let output = (&error["code"], &error["data"]["reason"]);
    assert_eq!(output, (&json!(-32603), &json!("server-unavailable")), "{answer}");
    assert!(error["data"]["retryAfterMs"].as_u64().is_some_and(|ms| ms > 0), "{answer}");
}

fn is_unknown(answer: &Value) {
    let error = &answer["error"];
    let output = (&error["code"], &error["data"]["reason"]);
    assert_eq!(output, (&json!(-32602), &json!("unknown-server")), "{answer}");
}

/// Submits a job; returns the status and the problem's `type`.
fn submit(replica: &Standalone) -> (u16, Value) {
    let job = json!({"jobId": bins::unique("job"), "tool": "server_list"});
    let (status, answer) = http::post(replica.service.address, "/jobs", &job).expect("an answer");
    (status, answer["type"].clone())
}

fn is_ready(replica: &Standalone) -> bool {
    http::get(replica.service.address, "/ready").expect("an answer").0 == 200
}

/// Apache Kafka only: the network fails between a server and a second listener of the broker.
#[test]
fn no_server_is_unknown_while_the_registry_is_unreachable() {
    if !kafka::available() {
        return;
    }

    let cluster = Cluster::start(1);
    let env = Env::of(&cluster);
    let replicas = Replicas::new(&env, "registry-away");
    let one = replicas.start();
    let config = replicas.config(&one, &json!({}));
    succeeds(&initialize(&one, "files", &config));

    // The replica starts while Kafka doesn't answer.
    cluster.network(Network::Refused);
    let other = replicas.launch_at(&cluster.proxied);
    assert_waits(&read(&other, "files"));
    assert_waits(&read(&other, "nobody"));
    assert_waits(&initialize(&other, "more", &config));
    assert!(!is_ready(&other));
    cluster.network(Network::Up);
    wait::poll_until("the registry to be read", wait::LONG, || is_ready(&other).then_some(()));
    succeeds(&read(&other, "files"));
    is_unknown(&read(&other, "nobody"));
    wait::poll_until_ok("a job to be taken", wait::LONG, || match submit(&other) {
        (202, _) => Ok(()),
        refused => Err(refused),
    });

    // Kafka becomes unreachable again. Hosted servers continue, but servers that other replicas may
    // have been told to host meanwhile are not known.
    cluster.network(Network::Refused);
    succeeds(&read(&other, "files"));
    let (refused, kind) = submit(&other);
    assert_eq!((refused, kind), (503, json!("urn:mcp-fleet:problem:kafka-unavailable")));
    assert!(is_ready(&other));
    assert_waits(&read(&other, "nobody"));
    let alone = initialize(&other, "more", &config);
    assert_waits(&alone);
    assert!(alone.to_string().contains("by this replica alone"), "{alone}");
    succeeds(&read(&other, "more"));
    assert!(status(&other).contains("\"unwritten\""), "{}", status(&other));
    assert_eq!(http::metric(other.service.address, "mcp_server_registry_unwritten"), Some(1.0));

    // Without another request, the other replicas learn of it, too.
    cluster.network(Network::Up);
    wait::poll_until_ok("the write to be repeated", wait::LONG, || {
        let status = status(&other);
        if status.contains("\"unwritten\"") { Err(status) } else { Ok(()) }
    });
    succeeds(&read(&one, "more"));
    succeeds(&initialize(&other, "more", &config));
}
