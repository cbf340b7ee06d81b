//! Tests of task state streams over HTTP and stdio, with a ledger that needs no Kafka.

use std::time::Duration;

use axum::{Router, body::Body, response::Response};
use fleet_access::Asker;
use fleet_hosting::Fleet;
use fleet_job::event::{JobEvent, JobState};
use fleet_jobs::{
    Jobs, Owners, Tasks,
    config::JobsConfig,
    testing::{take_up, task_job_id},
};
use fleet_kafka::{link::Link, settings::Settings};
use fleet_ledger::{Retention, StoreConfig};
use fleet_ops::http::Health;
use fleet_policy::{Policy, current::CurrentPolicy};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tokio::io::{AsyncBufReadExt as _, AsyncWriteExt as _, BufReader};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use super::router;
use crate::{
    ServerConfig,
    access::{AccessControl, AccessMode, AccessSource},
    gateway::Gateway,
    stdio,
};

/// The longest time to wait for anything.
const PATIENCE: Duration = Duration::from_secs(10);
const TASK: &str = "00112233445566778899aabbccddeeff";

/// A server whose jobs are reported by the test. Nothing listens at its brokers.
struct Server {
    jobs: Jobs,
    gateway: Gateway,
    router: Router,
    _stop: tokio_util::sync::DropGuard,
}

impl Server {
    async fn start() -> Self {
        let config = JobsConfig {
            approval_ttl: Duration::from_secs(60),
            brokers: "127.0.0.1:1".to_owned(),
            topic: "mcp-jobs".to_owned(),
            registry_topic: "mcp-servers".to_owned(),
            group: "mcp-workers".to_owned(),
            max_job_bytes: 1 << 20,
            ledger: StoreConfig::Memory,
            retention: Retention {
                max_age: Duration::from_secs(3600),
                max_jobs: 10,
                max_bytes: 1 << 20,
            },
            owners: Owners::new(None),
            task_tools: Vec::new(),
            task_ttl: Duration::from_secs(3600),
            task_poll_interval: Duration::from_secs(1),
        };

        let stop = CancellationToken::new();
        let settings = Settings { brokers: config.brokers.clone(), ..Settings::default() };
        let jobs = Jobs::start(&config, Link::new(settings).unwrap(), stop.clone()).await.unwrap();

        let fleet = Fleet::new(CurrentPolicy::new(Policy::default()));
        let gateway = Gateway::new(Vec::new(), fleet, Duration::ZERO, 0, None);
        let gateway = gateway.with_tasks(Tasks::new(jobs.clone(), &config));
        let metrics = fleet_ops::metrics::install();
        let (config, health) = (ServerConfig::default(), Health::new());
        let source = AccessSource { mode: AccessMode::Open, ..AccessSource::default() };
        let access = AccessControl::start(source, stop.clone()).unwrap();
        let router = router(
            gateway.clone(),
            &config,
            access,
            Some(jobs.clone()),
            health,
            metrics,
            stop.clone(),
        );
        Self { jobs, gateway, router: router.unwrap(), _stop: stop.drop_guard() }
    }

    /// Reports the next event of the task, which belongs to the owner of this credential.
    async fn report_event(&self, offset: i64, state: JobState, credential: Option<&str>) {
        let mut headers = http::HeaderMap::new();
        headers
            .extend(credential.map(|token| (http::header::AUTHORIZATION, token.parse().unwrap())));
        let caller = self.jobs.caller(Some(&headers), &Asker::local());
        let now = fleet_ops::clock::now();
        let event = JobEvent {
            owner: caller.owner.clone(),
            submitted_at: Some(now),
            result: (state == JobState::Succeeded)
                .then(|| json!({"content": [], "structuredContent": 7})),
            ..JobEvent::new(task_job_id(TASK, &caller), state, now)
        };

        take_up(&self.jobs, offset, event).await.unwrap();
    }

    async fn listen(
        &self,
        task_ids: Value,
        declares_tasks: bool,
        credential: Option<&str>,
    ) -> Response {
        let body = listen_request(task_ids, declares_tasks);
        let mut request = http::Request::post("/mcp")
            .header("host", "localhost")
            .header("content-type", "application/json")
            .header("accept", "application/json, text/event-stream")
            .header("mcp-protocol-version", "2026-07-28")
            .header("mcp-method", "subscriptions/listen");
        if let Some(token) = credential {
            request = request.header("authorization", token);
        }

        self.router
            .clone()
            .oneshot(request.body(Body::from(body.to_string())).unwrap())
            .await
            .unwrap()
    }
}

/// A request for changes of tools and these tasks.
fn listen_request(task_ids: Value, declares_tasks: bool) -> Value {
    let extensions =
        if declares_tasks { json!({"io.modelcontextprotocol/tasks": {}}) } else { json!({}) };
    let meta = json!({
        "io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientInfo": {"name": "test", "version": "1"},
        "io.modelcontextprotocol/clientCapabilities": {"extensions": extensions},
    });
    let notifications = json!({"toolsListChanged": true, "taskIds": task_ids});
    let params = json!({"_meta": meta, "notifications": notifications});
    json!({"jsonrpc": "2.0", "id": 5, "method": "subscriptions/listen", "params": params})
}

/// The next message on a stream.
async fn next_message(body: &mut Body) -> Value {
    loop {
        let frame = tokio::time::timeout(PATIENCE, body.frame()).await.expect("no message in time");
        let data = frame.expect("the stream has ended").unwrap().into_data().unwrap_or_default();
        let text = String::from_utf8(data.to_vec()).unwrap();
        let message =
            text.lines().filter_map(|line| line.strip_prefix("data:")).collect::<String>();
        if !message.trim().is_empty() {
            return serde_json::from_str(&message).unwrap();
        }
    }
}

#[tokio::test]
async fn a_stream_reports_the_tasks_that_it_requests() {
    let server = Server::start().await;
    server.report_event(0, JobState::Running, Some("Bearer mine")).await;

    let asked = json!([TASK, "no-task"]);
    let mut body = server.listen(asked.clone(), true, Some("Bearer mine")).await.into_body();
    let acknowledged = next_message(&mut body).await;
    let expected = json!({"toolsListChanged": true, "taskIds": [TASK]});
    assert_eq!(acknowledged["params"]["notifications"], expected, "{acknowledged}");

    let now = next_message(&mut body).await;
    assert_eq!(now["method"], "notifications/tasks");
    let params = &now["params"];
    assert_eq!((&params["taskId"], &params["status"]), (&json!(TASK), &json!("working")), "{now}");
    assert_eq!(params["_meta"]["io.modelcontextprotocol/subscriptionId"], 5, "{now}");

    server.report_event(1, JobState::Succeeded, Some("Bearer mine")).await;
    let end = next_message(&mut body).await;
    assert_eq!(end["params"]["status"], "completed", "{end}");
    assert_eq!(end["params"]["result"]["structuredContent"], 7, "{end}");

    let mut body = server.listen(asked, true, Some("Bearer another")).await.into_body();
    let acknowledged = next_message(&mut body).await;
    assert_eq!(
        acknowledged["params"]["notifications"],
        json!({"toolsListChanged": true}),
        "another owner's task must not be watched"
    );
}

#[tokio::test]
async fn a_client_without_tasks_learns_which_capability_is_missing() {
    let server = Server::start().await;
    let response = server.listen(json!([TASK]), false, None).await;
    assert_eq!(response.status(), 400);
    let answer: Value =
        serde_json::from_slice(&response.into_body().collect().await.unwrap().to_bytes()).unwrap();
    assert_eq!((&answer["id"], &answer["error"]["code"]), (&json!(5), &json!(-32021)), "{answer}");
    let required = &answer["error"]["data"]["requiredCapabilities"]["extensions"];
    assert_eq!(*required, json!({"io.modelcontextprotocol/tasks": {}}), "{answer}");
}

#[tokio::test]
async fn a_stream_over_stdio_reports_the_tasks_that_it_requests() {
    let server = Server::start().await;
    server.report_event(0, JobState::Running, None).await;
    let (mut client, input) = tokio::io::duplex(1 << 16);
    let (output, answers) = tokio::io::duplex(1 << 16);
    let stop = CancellationToken::new();
    let gateway = server.gateway.for_client(Asker::local());
    let serving = tokio::spawn(stdio::serve_client(gateway, input, output, stop.clone()));

    let mut lines = BufReader::new(answers).lines();
    let mut next = async || {
        let line =
            tokio::time::timeout(PATIENCE, lines.next_line()).await.expect("no line in time");
        serde_json::from_str::<Value>(&line.unwrap().expect("the stream has ended")).unwrap()
    };
    let refused = format!("{}\n", listen_request(json!([TASK]), false));
    client.write_all(refused.as_bytes()).await.unwrap();
    let answer = next().await;
    assert_eq!((&answer["id"], &answer["error"]["code"]), (&json!(5), &json!(-32021)), "{answer}");

    let listen = format!("{}\n", listen_request(json!([TASK, "no-task"]), true));
    client.write_all(listen.as_bytes()).await.unwrap();
    let acknowledged = next().await;
    let expected = json!({"toolsListChanged": true, "taskIds": [TASK]});
    assert_eq!(acknowledged["params"]["notifications"], expected, "{acknowledged}");
    let stream = &acknowledged["params"]["_meta"]["io.modelcontextprotocol/subscriptionId"];
    assert_eq!(*stream, 5, "{acknowledged}");

    let now = next().await;
    let found = (&now["method"], &now["params"]["status"]);
    assert_eq!(found, (&json!("notifications/tasks"), &json!("working")), "{now}");

    server.report_event(1, JobState::Succeeded, None).await;
    let end = next().await;
    assert_eq!(end["params"]["status"], "completed", "{end}");
    assert_eq!(end["params"]["result"]["structuredContent"], 7, "{end}");

    drop(client);
    tokio::time::timeout(PATIENCE, serving).await.expect("the end").unwrap().unwrap();
}
