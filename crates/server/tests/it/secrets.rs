//! `${secret:name}` in configurations: a rule must list it, its value is in nothing that anybody
//! reads, and a new value is used without a call that fails.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    os::unix::fs::symlink,
    path::{Path, PathBuf},
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
};

use axum::{
    Router,
    body::Body,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use http::{Method, StatusCode, header};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::mpsc};

use crate::common::{
    ANSWER_TEXT, Server, command, eventually, is_alive, legacy_server, script, signal,
};

/// What every value of a secret in these tests begins with.
const VALUE: &str = "hunter2";
/// How often a secret is rotated under load.
const ROTATIONS: usize = 5;

/// A directory of secrets as the kubelet mounts it.
struct Mounted {
    directory: PathBuf,
    version: AtomicUsize,
}

impl Mounted {
    fn new(directory: PathBuf) -> Self {
        fs::create_dir(&directory).unwrap();
        Self { directory, version: AtomicUsize::new(0) }
    }

    /// Replaces all files at once.
    fn set(&self, files: &[(&str, &str)]) {
        let version = self.version.fetch_add(1, Ordering::Relaxed);
        let versioned = self.directory.join(format!("..{version}"));
        fs::create_dir(&versioned).unwrap();
        for (name, text) in files {
            fs::write(versioned.join(name), text).unwrap();
        }

        symlink(format!("..{version}"), self.directory.join("..data_tmp")).unwrap();
        fs::rename(self.directory.join("..data_tmp"), self.directory.join("..data")).unwrap();
        for (name, _) in files {
            let link = self.directory.join(name);
            if !link.exists() {
                symlink(format!("..data/{name}"), link).unwrap();
            }
        }
    }
}

/// A server, its log and its audit log.
struct Logged {
    server: Server,
    directory: PathBuf,
}

impl Logged {
    /// Starts a server with this policy that logs as much as it can.
    async fn start(directory: &Path, secrets: &Mounted, policy: &str) -> Self {
        fs::write(directory.join("policy.toml"), policy).unwrap();
        let path = |name: &str| directory.join(name).to_str().unwrap().to_owned();
        let (policy, audit) = (path("policy.toml"), path("audit.jsonl"));
        let mut command = command(&["--policy", &policy, "--audit", "on", "--audit-file", &audit]);
        command.arg("--secrets-dir").arg(&secrets.directory);
        command.stderr(fs::File::create(directory.join("log")).unwrap());
        let env = [("RUST_LOG", "debug"), ("MCP_SECRET_FROM_ENV", "hunter2-environment")];
        let server = Server::start_command(command, &env).await;
        Self { server, directory: directory.to_owned() }
    }

    fn read(&self, file: &str) -> String {
        fs::read_to_string(self.directory.join(file)).unwrap()
    }

    /// Asserts that no value of a secret is in what the server has written and says of itself.
    async fn check_nothing_is_shown(&self) {
        let status = self.server.call_ok("server_status", json!({})).await.to_string();
        let list = self.server.call_ok("server_list", json!({})).await.to_string();
        let metrics = self.server.http.get(self.server.url("/metrics")).send().await.unwrap();
        let metrics = metrics.text().await.unwrap();
        let written = [self.read("log"), self.read("audit.jsonl")];
        for text in written.iter().chain([&status, &list, &metrics]) {
            assert!(!text.contains(VALUE), "{text}");
        }
    }

    /// Waits until the audit log has so many uses of each secret, and returns no more than that.
    async fn check_uses(&self, expected: &[(&str, &str, usize)]) {
        let expected: BTreeMap<(String, String), usize> = (expected.iter())
            .map(|(server, secret, count)| ((server.to_string(), secret.to_string()), *count))
            .collect();
        eventually("the audit records", async || {
            let mut found = BTreeMap::new();
            for line in self.read("audit.jsonl").lines() {
                let record: Value = serde_json::from_str(line).ok()?;
                if record["action"] == "secrets.use" {
                    assert_eq!(record["outcome"], "succeeded", "{record}");
                    let text = |field: &str| record["resource"][field].as_str().unwrap().to_owned();
                    *found.entry((text("server"), text("secret"))).or_default() += 1;
                }
            }
            (found == expected).then_some(())
        })
        .await;
    }
}

fn text_of(result: &Value) -> &str {
    result["content"][0]["text"].as_str().unwrap_or_default()
}

#[tokio::test]
async fn a_child_gets_a_secret_and_its_new_value_at_the_next_start() {
    let dir = tempfile::tempdir().unwrap();
    let secrets = Mounted::new(dir.path().join("secrets"));
    secrets.set(&[("db.password", "hunter2-first\n")]);
    let answer = format!("echo \"got $KEY\" >&2; text=\"$KEY $OTHER\"; {ANSWER_TEXT}");
    let program = script(dir.path(), "server", &legacy_server("work", &answer));
    let policy = format!(
        "[[command]]\nargv = [{program:?}]\nenv = ['KEY', 'OTHER']\n\
         secrets = ['db.password', 'from-env']\n"
    );
    let logged = Logged::start(dir.path(), &secrets, &policy).await;
    let server = &logged.server;

    let config = json!({
        "command": program,
        "env": {"KEY": "${secret:db.password}", "OTHER": "${secret:from-env}"},
    });
    server.initialize("db", config.clone()).await;
    let called = async || text_of(&server.call("db__work", json!({})).await).to_owned();
    assert_eq!(called().await, "hunter2-first hunter2-environment");
    logged.check_uses(&[("db", "db.password", 1), ("db", "from-env", 1)]).await;

    secrets.set(&[("db.password", "hunter2-second")]);
    assert_eq!(called().await, "hunter2-first hunter2-environment", "it runs on");
    let pid = server.status("db").await["pid"].as_u64().unwrap();
    let pid = u32::try_from(pid).unwrap();
    signal(pid, Signal::SIGKILL);
    eventually("the end of the child", async || (!is_alive(pid)).then_some(())).await;
    eventually("the new value", async || {
        let answer = server.call_raw("db__work", json!({})).await;
        (text_of(&answer["result"]) == "hunter2-second hunter2-environment").then_some(())
    })
    .await;

    // The same configuration again replaces a child whose secret has changed.
    secrets.set(&[("db.password", "hunter2-third")]);
    server.initialize("db", config).await;
    assert_eq!(called().await, "hunter2-third hunter2-environment");
    logged.check_uses(&[("db", "db.password", 3), ("db", "from-env", 3)]).await;
    logged.check_nothing_is_shown().await;
}

#[tokio::test]
async fn a_secret_that_is_not_listed_is_refused_by_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let secrets = Mounted::new(dir.path().join("secrets"));
    secrets.set(&[("listed", "hunter2-listed"), ("other", "hunter2-other"), ("empty", "\n")]);
    fs::write(dir.path().join("outside"), "hunter2-outside").unwrap();
    symlink("../outside", secrets.directory.join("link")).unwrap();
    let loud = script(dir.path(), "loud", "echo \"key $KEY\" >&2; exit 3");
    let policy = format!(
        "[[command]]\nargv = [{loud:?}]\nenv = ['KEY']\nexpand = ['other']\n\
         secrets = ['listed', 'missing', 'empty', 'link']\n\
         [[remote]]\nhost = 'localhost'\nport = 1\nsecrets = ['listed']\n"
    );
    let logged = Logged::start(dir.path(), &secrets, &policy).await;
    let refused = async |config: Value, code: &str, named: &str| {
        let (message, is_final) = logged.server.initialize_error("x", config.clone()).await;
        assert!(is_final && message.contains(code), "{config}: {message}");
        assert!(message.contains(named) && !message.contains(VALUE), "{config}: {message}");
    };

    let child = |text: &str| json!({"command": loud, "env": {"KEY": text}});
    let remote = |text: &str| json!({"url": "http://localhost:1/", "headers": {"X-Key": text}});
    for config in [
        child("${secret:other}"),
        child("${secret:listed}${secret:other}"),
        remote("Bearer ${secret:other}"),
        json!({"url": "http://localhost:1/?key=${secret:other}"}),
        json!({"type": "sse", "url": "http://localhost:1/", "headers": {"A": "${secret:other}"}}),
    ] {
        refused(config, "FLEET-POLICY-SECRET", "`other`").await;
    }
    for (text, named) in [
        ("${secret:missing}", "MCP_SECRET_MISSING"),
        ("${secret:empty}", "empty"),
        ("${secret:link}", "outside the directory of secrets"),
        ("${secret:../outside}", "secret:../outside"),
        ("${secret:..data}", "secret:..data"),
        ("${secret:listed:-hunter}", "secret:listed:-hunter"),
    ] {
        refused(child(text), "FLEET-SERVER-CONFIG", named).await;
    }

    // What a child writes shows the name.
    let config = json!({"name": "x", "config": child("${secret:listed}")});
    let answer = logged.server.call_raw("server_initialize", config).await.to_string();
    assert!(answer.contains("key ${secret:listed}") && !answer.contains(VALUE), "{answer}");
    logged.check_uses(&[("x", "listed", 1)]).await;
    logged.check_nothing_is_shown().await;
}

/// A remote of both transports that serves whoever presents a token that it accepts.
struct Guarded {
    address: std::net::SocketAddr,
    state: Arc<Guard>,
}

#[derive(Default)]
struct Guard {
    accepted: Mutex<BTreeSet<String>>,
    /// The tokens that calls came with.
    used: Mutex<BTreeSet<String>>,
    handshakes: AtomicUsize,
    stream: Mutex<Option<mpsc::UnboundedSender<String>>>,
}

impl Guarded {
    async fn start() -> Self {
        let state = Arc::new(Guard::default());
        let app = Router::new().fallback(answer_guarded).with_state(state.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { address, state }
    }

    fn accept(&self, tokens: &[&str]) {
        let tokens = tokens.iter().map(|token| format!("Bearer {token}"));
        *self.state.accepted.lock().unwrap() = tokens.collect();
    }

    fn used(&self, token: &str) -> bool {
        self.state.used.lock().unwrap().contains(&format!("Bearer {token}"))
    }
}

async fn answer_guarded(State(guard): State<Arc<Guard>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    let token = parts.headers.get(header::AUTHORIZATION).map(|value| value.to_str().unwrap());
    let token = token.unwrap_or_default().to_owned();
    if !guard.accepted.lock().unwrap().contains(&token) {
        // As careless servers do.
        return (StatusCode::UNAUTHORIZED, format!("no such credential: {token}")).into_response();
    }
    if parts.method == Method::GET && parts.uri.path() == "/sse" {
        return open_stream(&guard);
    }
    if parts.method != Method::POST {
        return StatusCode::METHOD_NOT_ALLOWED.into_response();
    }

    let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
    let message: Value = serde_json::from_slice(&body).unwrap();
    if message["method"] == "tools/call" {
        guard.used.lock().unwrap().insert(token);
    }
    let Some(answer) = guard.answer(&message) else { return StatusCode::ACCEPTED.into_response() };
    if parts.uri.path() == "/message" {
        let stream = guard.stream.lock().unwrap().clone().unwrap();
        stream.send(format!("data: {answer}\n\n")).unwrap();
        return StatusCode::ACCEPTED.into_response();
    }
    axum::Json(answer).into_response()
}

fn open_stream(guard: &Guard) -> Response {
    let (sender, receiver) = mpsc::unbounded_channel();
    sender.send("event: endpoint\ndata: /message\n\n".to_owned()).unwrap();
    *guard.stream.lock().unwrap() = Some(sender);
    let events = futures::stream::unfold(receiver, async |mut receiver| {
        let event = receiver.recv().await?;
        Some((Ok::<_, std::convert::Infallible>(event), receiver))
    });
    let media = [(header::CONTENT_TYPE, "text/event-stream")];
    (media, Body::from_stream(events)).into_response()
}

impl Guard {
    fn answer(&self, message: &Value) -> Option<Value> {
        let id = message.get("id")?;
        let result = match message["method"].as_str()? {
            "initialize" => {
                self.handshakes.fetch_add(1, Ordering::Relaxed);
                let version = &message["params"]["protocolVersion"];
                let info = json!({"name": "guarded", "version": "1"});
                json!({"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": info})
            }
            "tools/list" => {
                json!({"tools": [{"name": "work", "inputSchema": {"type": "object"}}]})
            }
            "tools/call" => json!({"content": [{"type": "text", "text": "done"}]}),
            _ => {
                let error = json!({"code": -32601, "message": "unknown method"});
                return Some(json!({"jsonrpc": "2.0", "id": id, "error": error}));
            }
        };
        Some(json!({"jsonrpc": "2.0", "id": id, "result": result}))
    }
}

/// Rotates the token of a remote of this transport while it is called.
async fn rotate_under_load(transport: &str, path: &str) {
    let dir = tempfile::tempdir().unwrap();
    let secrets = Mounted::new(dir.path().join("secrets"));
    let token = |number: usize| format!("hunter2-{number}");
    secrets.set(&[("token", &token(0))]);
    let remote = Guarded::start().await;
    remote.accept(&[&token(0)]);

    let policy = "[[remote]]\nhost = '127.0.0.1'\nsecrets = ['token']\n";
    let logged = Logged::start(dir.path(), &secrets, policy).await;
    let url = format!("http://{}{path}", remote.address);
    let headers = json!({"Authorization": "Bearer ${secret:token}"});
    let config = json!({"type": transport, "url": url, "headers": headers});
    logged.server.initialize("r", config.clone()).await;
    let handshakes = remote.state.handshakes.load(Ordering::Relaxed);

    let is_over = AtomicBool::new(false);
    let call = async || {
        let answer = logged.server.call_raw("r__work", json!({})).await;
        assert_eq!(text_of(&answer["result"]), "done", "{answer}");
    };
    let load = async || {
        let mut calls = 0;
        while !is_over.load(Ordering::Relaxed) {
            call().await;
            calls += 1;
        }
        calls
    };
    let rotations = async {
        for number in 1..=ROTATIONS {
            let (old, new) = (token(number - 1), token(number));
            remote.accept(&[&old, &new]);
            secrets.set(&[("token", &new)]);
            // Of the old one's refusals, nobody notices anything.
            if number % 2 == 1 {
                remote.accept(&[&new]);
            }
            eventually("the new token", async || remote.used(&new).then_some(())).await;
            remote.accept(&[&new]);
        }
        is_over.store(true, Ordering::Relaxed);
    };
    let (calls, ()) = tokio::join!(futures::future::join_all((0..8).map(|_| load())), rotations);
    assert!(calls.iter().all(|calls| *calls > 0), "{calls:?}");

    // It is the same connection.
    logged.server.initialize("r", config).await;
    let status = logged.server.status("r").await;
    assert_eq!(status["restarts"].as_u64().unwrap_or_default(), 0, "{status}");
    assert_eq!(remote.state.handshakes.load(Ordering::Relaxed), handshakes);
    logged.check_uses(&[("r", "token", 1 + ROTATIONS)]).await;

    // A remote that accepts nothing shows no credential, and calls go on once the secret is right.
    remote.accept(&[]);
    let answer = logged.server.call_raw("r__work", json!({})).await;
    assert!(answer["error"].is_object(), "{answer}");
    assert!(!answer.to_string().contains(VALUE), "{answer}");
    remote.accept(&["hunter2-last"]);
    secrets.set(&[("token", "hunter2-last")]);
    eventually("the last token", async || {
        let answer = logged.server.call_raw("r__work", json!({})).await;
        assert!(!answer.to_string().contains(VALUE), "{answer}");
        (text_of(&answer["result"]) == "done").then_some(())
    })
    .await;
    logged.check_nothing_is_shown().await;
}

#[tokio::test]
async fn the_token_of_a_remote_is_rotated_under_load_without_a_failed_call() {
    rotate_under_load("http", "/mcp").await;
}

#[tokio::test]
async fn the_token_of_a_remote_of_the_older_transport_is_rotated_under_load_too() {
    rotate_under_load("sse", "/sse").await;
}
