//! What tests of remotes that need credentials share: a directory of secrets, a server that logs as
//! much as it can, and a remote that serves whoever presents a token that it accepts.

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
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::mpsc};

use crate::common::{Server, command, eventually};

/// What every value of a secret in these tests begins with.
pub(crate) const VALUE: &str = "hunter2";
/// A directory of secrets as the kubelet mounts it.
pub(crate) struct Mounted {
    pub(crate) directory: PathBuf,
    version: AtomicUsize,
}

impl Mounted {
    pub(crate) fn new(directory: PathBuf) -> Self {
        fs::create_dir(&directory).unwrap();
        Self { directory, version: AtomicUsize::new(0) }
    }

    /// Replaces all files at once.
    pub(crate) fn set(&self, files: &[(&str, &str)]) {
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
pub(crate) struct Logged {
    pub(crate) server: Server,
    directory: PathBuf,
}

impl Logged {
    /// Starts a server with this policy that logs as much as it can.
    pub(crate) async fn start(directory: &Path, secrets: &Mounted, policy: &str) -> Self {
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

    pub(crate) fn read(&self, file: &str) -> String {
        fs::read_to_string(self.directory.join(file)).unwrap()
    }

    /// Asserts that no value of a secret is in what the server has written and says of itself.
    pub(crate) async fn check_nothing_is_shown(&self) {
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
    pub(crate) async fn check_uses(&self, expected: &[(&str, &str, usize)]) {
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

pub(crate) fn text_of(result: &Value) -> &str {
    result["content"][0]["text"].as_str().unwrap_or_default()
}

/// A remote of both transports that serves whoever presents a token that it accepts.
pub(crate) struct Guarded {
    pub(crate) address: std::net::SocketAddr,
    pub(crate) state: Arc<Guard>,
}

#[derive(Default)]
pub(crate) struct Guard {
    accepted: Mutex<BTreeSet<String>>,
    /// The tokens that calls came with.
    used: Mutex<BTreeSet<String>>,
    pub(crate) handshakes: AtomicUsize,
    stream: Mutex<Option<mpsc::UnboundedSender<String>>>,
    /// The authorization server that it names.
    authority: Mutex<Option<String>>,
    refuses_all: AtomicBool,
}

impl Guarded {
    pub(crate) async fn start() -> Self {
        let state = Arc::new(Guard::default());
        let app = Router::new().fallback(answer_guarded).with_state(state.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { address, state }
    }

    pub(crate) fn accept(&self, tokens: &[&str]) {
        let tokens = tokens.iter().map(|token| format!("Bearer {token}"));
        *self.state.accepted.lock().unwrap() = tokens.collect();
    }

    /// Refuses all tokens, or no more than before.
    pub(crate) fn refuse_all(&self, refuses: bool) {
        self.state.refuses_all.store(refuses, Ordering::SeqCst);
    }

    /// Names an authorization server.
    pub(crate) fn publish(&self, authority: &str) {
        *self.state.authority.lock().unwrap() = Some(authority.to_owned());
    }

    pub(crate) fn used(&self, token: &str) -> bool {
        self.state.used.lock().unwrap().contains(&format!("Bearer {token}"))
    }
}

async fn answer_guarded(State(guard): State<Arc<Guard>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    if parts.uri.path().starts_with("/.well-known/oauth-protected-resource") {
        let authority = guard.authority.lock().unwrap().clone();
        let Some(authority) = authority else { return StatusCode::NOT_FOUND.into_response() };
        let host = parts.headers[header::HOST].to_str().unwrap();
        let resource = format!("http://{host}/mcp");
        let metadata = json!({"resource": resource, "authorization_servers": [authority]});
        return axum::Json(metadata).into_response();
    }

    let token = parts.headers.get(header::AUTHORIZATION).map(|value| value.to_str().unwrap());
    let token = token.unwrap_or_default().to_owned();
    let is_accepted = guard.accepted.lock().unwrap().contains(&token);
    if !is_accepted || guard.refuses_all.load(Ordering::SeqCst) {
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
