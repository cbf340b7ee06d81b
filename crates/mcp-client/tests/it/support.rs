//! Small servers that misbehave in one way each, and a client with short timeouts.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use axum::response::{IntoResponse, Response};
use fleet_job::outcome::{ErrorKind, Failure, FailureClass, Outcome};
use fleet_mcp_client::{ClientConfig, Era, McpClient, ToolCall};
use serde_json::{Map, Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

pub(crate) const LONG: Duration = Duration::from_secs(30);

pub(crate) fn client<U: AsRef<str>>(
    urls: impl IntoIterator<Item = U>,
    adjust: impl FnOnce(&mut ClientConfig),
) -> McpClient {
    let urls: Vec<String> = urls.into_iter().map(|url| url.as_ref().to_owned()).collect();
    let mut config = ClientConfig::new(ClientConfig::parse_urls(&urls.join(",")).unwrap());
    config.default_timeout = LONG;
    config.era = Era::Modern;
    adjust(&mut config);
    McpClient::new(config).unwrap()
}

pub(crate) async fn call(client: &McpClient) -> Outcome {
    client.call_tool(ToolCall::new("t", Map::new())).await
}

pub(crate) async fn failure(client: &McpClient) -> Failure {
    match call(client).await {
        Outcome::Failed(failure) => failure,
        Outcome::Succeeded(result) => panic!("succeeded with {result}"),
    }
}

pub(crate) async fn expect(client: &McpClient, class: FailureClass, kind: ErrorKind) -> Failure {
    let failure = failure(client).await;
    assert_eq!((failure.class, failure.error.kind), (class, kind), "{failure:?}");
    failure
}

pub(crate) async fn succeeds(client: &McpClient) -> Value {
    match call(client).await {
        Outcome::Succeeded(result) => result,
        Outcome::Failed(failure) => panic!("failed with {failure:?}"),
    }
}

/// Waits until `done`, and fails the test if that takes too long.
pub(crate) async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let wait = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(LONG, wait).await.unwrap_or_else(|_| panic!("{what} did not happen"));
}

/// The answer of a modern server to `server/discover`.
pub(crate) fn discovered(id: &Value) -> Value {
    json!({"jsonrpc": "2.0", "id": id, "result": {
        "resultType": "complete", "supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}},
        "ttlMs": 0, "cacheScope": "private"}})
}

pub(crate) fn result(id: &Value, result: Value) -> Value {
    json!({"jsonrpc": "2.0", "id": id, "result": result})
}

pub(crate) fn rpc_error(id: &Value, code: i64, message: &str) -> Value {
    json!({"jsonrpc": "2.0", "id": id, "error": {"code": code, "message": message}})
}

pub(crate) fn text(text: &str) -> Value {
    json!({"resultType": "complete", "content": [{"type": "text", "text": text}]})
}

pub(crate) type Boxed<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// A request as received by a test server.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) headers: http::HeaderMap,
    pub(crate) http_method: String,
    pub(crate) path: String,
    pub(crate) body: Value,
}

impl Seen {
    pub(crate) fn method(&self) -> &str {
        self.body["method"].as_str().unwrap_or_default()
    }

    pub(crate) fn id(&self) -> &Value {
        &self.body["id"]
    }
}

/// A server and the requests that it has received.
pub(crate) struct Server {
    pub(crate) url: String,
    seen: Arc<Mutex<Vec<Seen>>>,
}

impl Server {
    pub(crate) fn seen(&self) -> Vec<Seen> {
        self.seen.lock().unwrap().clone()
    }

    pub(crate) fn methods(&self) -> Vec<String> {
        self.seen().iter().map(|seen| seen.method().to_owned()).collect()
    }

    pub(crate) fn count(&self, method: &str) -> usize {
        self.methods().iter().filter(|found| *found == method).count()
    }
}

/// A server that answers each request with what `answer` returns.
pub(crate) async fn server<F>(answer: F) -> Server
where
    F: Fn(Seen) -> Response + Clone + Send + Sync + 'static,
{
    silent_server(move |seen| Some(answer(seen))).await
}

/// A server that answers with what `answer` returns, and not at all if that is `None`.
pub(crate) async fn silent_server<F>(answer: F) -> Server
where
    F: Fn(Seen) -> Option<Response> + Clone + Send + Sync + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let seen = Arc::new(Mutex::new(Vec::new()));
    let log = seen.clone();
    let handler = move |request: Request| {
        let (log, answer) = (log.clone(), answer.clone());
        async move {
            let (parts, body) = request.into_parts();
            let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
            let seen = Seen {
                headers: parts.headers,
                http_method: parts.method.to_string(),
                path: parts.uri.path().to_owned(),
                body: serde_json::from_slice(&body).unwrap_or_default(),
            };
            log.lock().unwrap().push(seen.clone());
            match answer(seen) {
                Some(response) => response,
                None => std::future::pending().await,
            }
        }
    };
    tokio::spawn(
        async move { axum::serve(listener, Router::new().fallback(handler)).await.unwrap() },
    );
    Server { url, seen }
}

/// A modern server that answers `server/discover` correctly and everything else with `answer`.
pub(crate) async fn modern<F>(answer: F) -> Server
where
    F: Fn(Seen) -> Response + Clone + Send + Sync + 'static,
{
    server(move |seen| match seen.method() {
        "server/discover" => axum::Json(discovered(seen.id())).into_response(),
        _ => answer(seen),
    })
    .await
}

/// Reads one HTTP request and returns its JSON body.
pub(crate) async fn read_request(stream: &mut TcpStream) -> Option<Value> {
    let mut bytes = Vec::new();
    loop {
        let mut chunk = [0; 4096];
        let count = stream.read(&mut chunk).await.ok().filter(|count| *count > 0)?;
        bytes.extend_from_slice(&chunk[..count]);
        let Some(end) = bytes.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
        let head = String::from_utf8_lossy(&bytes[..end]).to_ascii_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length:"));
        let length: usize = length.unwrap_or("0").trim().parse().unwrap();
        if bytes.len() >= end + 4 + length {
            return serde_json::from_slice(&bytes[end + 4..]).ok();
        }
    }
}

pub(crate) async fn write_json(stream: &mut TcpStream, body: &Value) {
    let body = body.to_string();
    let head = format!(
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await.unwrap();
    stream.write_all(body.as_bytes()).await.unwrap();
}

/// A bare TCP server that answers `server/discover` and passes the connection of any other request
/// to `behave`.
pub(crate) async fn raw<F>(behave: F) -> String
where
    F: Fn(TcpStream, Value) -> Boxed<()> + Send + Sync + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let behave = Arc::new(behave);
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            let behave = behave.clone();
            tokio::spawn(async move {
                while let Some(request) = read_request(&mut stream).await {
                    if request["method"] == "server/discover" {
                        write_json(&mut stream, &discovered(&request["id"])).await;
                    } else {
                        return behave(stream, request).await;
                    }
                }
            });
        }
    });
    url
}

/// An address on which no server listens.
pub(crate) async fn nobody() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    format!("http://{}", listener.local_addr().unwrap())
}
