//! Remote servers with unusual answers. The worker's client reads them in the same way
//! (`fleet-wire`).

use std::{
    io::Write,
    sync::{Arc, Mutex},
};

use axum::{
    Router,
    body::Body,
    extract::Request,
    response::{IntoResponse, Response},
};
use http::{StatusCode, header};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::common::Server;

mod older_transport;

/// A request that a server has received.
pub(crate) struct Seen {
    path: String,
    host: String,
    is_post: bool,
    body: Value,
}

impl Seen {
    fn method(&self) -> &str {
        self.body["method"].as_str().unwrap_or_default()
    }

    fn result(&self, result: Value) -> Value {
        json!({"jsonrpc": "2.0", "id": self.body["id"], "result": result})
    }

    fn error(&self, error: Value) -> Value {
        json!({"jsonrpc": "2.0", "id": self.body["id"], "error": error})
    }

    /// The answer of a server of an older revision; none for a notification.
    fn plain(&self) -> Option<Value> {
        let info = json!({"name": "odd", "version": "1"});
        let tool = json!({"name": "work", "inputSchema": {"type": "object"}});
        Some(match self.method() {
            _ if self.body["id"].is_null() => return None,
            "initialize" => {
                let version = &self.body["params"]["protocolVersion"];
                let result = json!({"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": info});
                self.result(result)
            }
            "tools/list" => self.result(json!({ "tools": [tool] })),
            "tools/call" => self.result(json!({"content": [{"type": "text", "text": "done"}]})),
            _ => self.error(json!({"code": -32601, "message": "unknown method"})),
        })
    }
}

/// A server, and the methods that were called.
pub(crate) struct Remote {
    pub(crate) url: String,
    heard: Arc<Mutex<Vec<String>>>,
}

impl Remote {
    /// A server that answers with what `answer` returns, and leaves a request without an answer if
    /// that is `None`.
    async fn start(
        answer: impl Fn(&Seen) -> Option<Response> + Clone + Send + Sync + 'static,
    ) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/mcp", listener.local_addr().unwrap());
        let heard = Arc::new(Mutex::new(Vec::new()));
        let log = heard.clone();
        let app = Router::new().fallback(async move |request: Request| {
            let (parts, body) = request.into_parts();
            let body = axum::body::to_bytes(body, 1 << 20).await.unwrap();
            let seen = Seen {
                path: parts.uri.path().to_owned(),
                host: parts.headers["host"].to_str().unwrap().to_owned(),
                is_post: parts.method == http::Method::POST,
                body: serde_json::from_slice(&body).unwrap_or_default(),
            };
            log.lock().unwrap().push(seen.method().to_owned());
            match answer(&seen) {
                Some(response) => response,
                None => std::future::pending().await,
            }
        });

        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { url, heard }
    }

    /// The same, but only for POST requests.
    pub(crate) async fn posted(
        answer: impl Fn(&Seen) -> Response + Clone + Send + Sync + 'static,
    ) -> Self {
        Self::start(move |seen| {
            Some(if seen.is_post {
                answer(seen)
            } else {
                StatusCode::METHOD_NOT_ALLOWED.into_response()
            })
        })
        .await
    }

    pub(crate) fn count(&self, method: &str) -> usize {
        self.heard.lock().unwrap().iter().filter(|heard| *heard == method).count()
    }
}

async fn gateway() -> Server {
    Server::start(&["--allow-remote", "127.0.0.1"]).await
}

fn typed(kind: &'static str, body: impl Into<Body>) -> Response {
    ([(header::CONTENT_TYPE, kind)], body.into()).into_response()
}

pub(crate) fn plain(seen: &Seen) -> Response {
    seen.plain()
        .map_or(StatusCode::ACCEPTED.into_response(), |answer| axum::Json(answer).into_response())
}

fn gzip(text: &str) -> Response {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
    encoder.write_all(text.as_bytes()).unwrap();
    let headers = [(header::CONTENT_TYPE, "application/json"), (header::CONTENT_ENCODING, "gzip")];
    (headers, encoder.finish().unwrap()).into_response()
}

fn moved(status: StatusCode, to: &str) -> Response {
    (status, [(header::LOCATION, to)]).into_response()
}

/// A complete answer, written with a quirk.
fn oddly(quirk: &str, seen: &Seen) -> Response {
    match quirk {
        "moved" if seen.path != "/mcp/" => return moved(StatusCode::TEMPORARY_REDIRECT, "/mcp/"),
        "moved-absolute" if seen.path != "/other" => {
            return moved(StatusCode::PERMANENT_REDIRECT, &format!("http://{}/other", seen.host));
        }
        _ => {}
    }
    let Some(mut answer) = seen.plain() else {
        return match quirk {
            "accepted-text" => typed("text/plain", "Accepted"),
            "created" => StatusCode::CREATED.into_response(),
            "no-content" => StatusCode::NO_CONTENT.into_response(),
            _ => StatusCode::ACCEPTED.into_response(),
        };
    };
    let text = answer.to_string();
    match quirk {
        "upper" => typed("Application/JSON;Charset=UTF-8", text),
        "json-rpc" => typed("application/json-rpc; charset=utf-8", text),
        "no-type" => typed("", text),
        "text" => typed("text/plain", text),
        "bom" => typed("application/json", format!("\u{feff}{text}")),
        "array" => axum::Json(json!([answer])).into_response(),
        "error-null" if answer.get("result").is_some() => {
            answer["error"] = Value::Null;
            axum::Json(answer).into_response()
        }
        "id-as-text" => {
            answer["id"] = answer["id"].to_string().into();
            axum::Json(answer).into_response()
        }
        "gzip" => gzip(&text),
        "created" => (StatusCode::CREATED, axum::Json(answer)).into_response(),
        "no-blank-line" => typed("Text/Event-Stream", format!("event: message\ndata: {text}\n")),
        "event-array" => typed("text/event-stream", format!(": hello\n\ndata: [{text}]\n\n")),
        "no-version" => {
            if let Some(info) = answer["result"].get_mut("serverInfo") {
                *info = json!({"name": "odd"});
            }
            axum::Json(answer).into_response()
        }
        "nan" if seen.method() == "tools/call" => {
            let result =
                r#"{"content":[{"type":"text","text":"done"}],"structuredContent":{"v":NaN}}"#;
            raw(seen, result)
        }
        "result-in-500" if seen.method() == "tools/call" => {
            (StatusCode::INTERNAL_SERVER_ERROR, axum::Json(answer)).into_response()
        }
        "result-in-400" if seen.method() == "tools/call" => {
            (StatusCode::BAD_REQUEST, axum::Json(answer)).into_response()
        }
        "nested" => axum::Json(json!([[answer]])).into_response(),
        "in-a-string" => axum::Json(json!(text)).into_response(),
        "lines" => {
            let note = json!({"jsonrpc": "2.0", "method": "notifications/x"});
            typed("application/x-ndjson", format!("{note}\n{text}\n"))
        }
        "event-named" => typed("text/event-stream", format!("event: result\ndata: {text}\n\n")),
        "json-as-events" => typed("text/event-stream", text),
        "many-headers" => {
            let mut response = axum::Json(answer).into_response();
            for number in 0..150 {
                let name = header::HeaderName::try_from(format!("x-{number}")).unwrap();
                response.headers_mut().insert(name, header::HeaderValue::from_static("v"));
            }
            response
        }
        "surrogate" if seen.method() == "tools/call" => {
            raw(seen, r#"{"content":[{"type":"text","text":"done\ud83d"}]}"#)
        }
        _ => axum::Json(answer).into_response(),
    }
}

fn raw(seen: &Seen, result: &str) -> Response {
    let id = &seen.body["id"];
    typed("application/json", format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{result}}}"#))
}

#[tokio::test]
async fn a_refused_notification_is_what_the_caller_reads() {
    let remote = Remote::posted(|seen| match seen.plain() {
        Some(answer) => axum::Json(answer).into_response(),
        None => (StatusCode::INTERNAL_SERVER_ERROR, "boom").into_response(),
    })
    .await;

    let server = gateway().await;
    let (message, _) = server.initialize_error("x", json!({"url": remote.url})).await;

    assert!(
        message.contains("`notifications/initialized`")
            && message.contains("500")
            && message.contains("boom")
            && !message.contains("channel"),
        "{message}"
    );
}

#[tokio::test]
async fn answers_with_quirks_are_read() {
    let server = gateway().await;
    let check = async |quirk: &'static str| {
        let remote = Remote::posted(move |seen| oddly(quirk, seen)).await;
        server.initialize(quirk, json!({"type": "http", "url": remote.url})).await;
        let result = server.call(&format!("{quirk}__work"), json!({})).await;
        let text = result["content"][0]["text"].as_str().unwrap();
        assert!(text.starts_with("done"), "{quirk}: {result}");
        assert_eq!(
            remote.count("tools/call"),
            if quirk.starts_with("moved") { 2 } else { 1 },
            "{quirk}"
        );
    };
    let quirks = [
        "upper",
        "json-rpc",
        "no-type",
        "text",
        "bom",
        "array",
        "error-null",
        "id-as-text",
        "gzip",
        "created",
        "accepted-text",
        "no-content",
        "no-blank-line",
        "event-array",
        "no-version",
        "moved",
        "moved-absolute",
        "nan",
        "surrogate",
        "result-in-500",
        "result-in-400",
        "nested",
        "in-a-string",
        "lines",
        "event-named",
        "json-as-events",
        "many-headers",
    ];
    futures::future::join_all(quirks.map(check)).await;
}

/// The answer of a broken tool, and the part of it that the error has to quote.
const UNREADABLE: [(&str, &str); 4] = [
    (r#""error":"boom""#, "boom"),
    (r#""error":{"code":"E_FAIL","message":"boom"}"#, "E_FAIL"),
    (r#""error":{"code":-32000}"#, "-32000"),
    (r#""result":"boom""#, "boom"),
];

async fn ends_at_once(server: &Server, name: &str, quoted: &str) {
    let answer = server.call_raw(&format!("{name}__work"), json!({})).await;
    let error = &answer["error"];
    let data = (&error["code"], &error["data"]["reason"], &error["data"]["server"]);
    assert_eq!(data, (&json!(-32603), &json!("unreadable-answer"), &json!(name)), "{answer}");
    assert!(error["message"].as_str().unwrap().contains(quoted), "{answer}");
    let status = server.status(name).await;
    let standing = (&status["state"], &status["breaker"]["state"]);
    assert_eq!(standing, (&json!("running"), &json!("closed")), "{status}");
}

/// The tool has run and would give the same answer again.
#[tokio::test]
async fn an_unreadable_answer_ends_the_call_and_is_quoted() {
    let server = gateway().await;
    let deep = format!(r#""result":{}{}"#, "[".repeat(200), "]".repeat(200));
    let cases = UNREADABLE.iter().map(|(written, quoted)| ((*written).to_owned(), *quoted));
    let cases: Vec<_> = cases.chain([(deep, "recursion limit")]).collect();
    let check = async |number: usize, written: &str, quoted: &str, streamed: bool| {
        let name = format!("s{number}-{streamed}");
        let written = written.to_owned();
        let remote = Remote::posted(move |seen| {
            let message = format!(r#"{{"jsonrpc":"2.0","id":{},{written}}}"#, seen.body["id"]);
            match seen.method() {
                "tools/call" if streamed => {
                    typed("text/event-stream", format!("data: {message}\n\n"))
                }
                "tools/call" => typed("application/json", message),
                _ => plain(seen),
            }
        })
        .await;
        server.initialize(&name, json!({"url": remote.url})).await;
        ends_at_once(&server, &name, quoted).await;
        assert_eq!(remote.count("tools/call"), 1, "{name}");
    };
    let all = cases.iter().enumerate().flat_map(|(number, (written, quoted))| {
        [false, true].map(|streamed| check(number, written, quoted, streamed))
    });
    futures::future::join_all(all).await;
}

/// This holds for both forms of an answer, and for arguments, too.
#[tokio::test]
async fn the_answer_of_a_remote_tool_is_passed_on_verbatim() {
    const WRITTEN: &str = r#""content":[{"type":"text","text":"x","w":1.10},{"type":"video","url":"x"}],"structuredContent":{"v":[1e+400,12345678901234567890123,-0]}"#;
    let server = gateway().await;
    for streamed in [false, true] {
        let name = format!("written-{streamed}");
        let remote = Remote::posted(move |seen| {
            let message = format!(
                r#"{{"jsonrpc":"2.0","id":{},"result":{{{WRITTEN},"seen":{}}}}}"#,
                seen.body["id"], seen.body["params"]["arguments"]
            );
            match seen.method() {
                "tools/call" if streamed => {
                    typed("text/event-stream", format!("data: {message}\n\n"))
                }
                "tools/call" => typed("application/json", message),
                _ => plain(seen),
            }
        })
        .await;
        server.initialize(&name, json!({"url": remote.url})).await;
        let arguments: Value =
            serde_json::from_str(r#"{"z":1.10,"a":[1E400,0.00001,-0]}"#).unwrap();
        let answer = server.call_raw(&format!("{name}__work"), arguments).await.to_string();
        assert!(answer.contains(WRITTEN), "{answer}");
        assert!(answer.contains(r#""seen":{"z":1.10,"a":[1e+400,0.00001,-0]}"#), "{answer}");
    }
}

/// A body that comes whole in the place of an answer, its type, and what of it is quoted.
const ELSE: [(&str, &str, &str); 13] = [
    ("application/json", r#"{"jsonrpc":"2.0","id":ID,"resul"#, "resul"),
    ("application/json", r#"{"jsonrpc":"2.0","id":99999,"result":{}}"#, "not the answer"),
    ("application/json", r#"{"jsonrpc":"2.0","id":null,"result":{}}"#, "which request"),
    ("application/json", r#"{"jsonrpc":"2.0","result":{}}"#, "which request"),
    ("application/json", "", "not JSON"),
    ("application/json", "\u{1f}\u{8b}", "not JSON"),
    ("text/html", "<html>login</html>", "text/html"),
    ("text/plain", "Internal Server Error", "Internal Server Error"),
    ("text/event-stream", "event: message\ndata: {broken\n\n", "{broken"),
    ("text/event-stream", "event: error\ndata: overloaded\n\n", "overloaded"),
    ("text/event-stream", "data: {\"id\":99999,\"result\":{}}\n\n", "another request"),
    ("204", "", "204"),
    ("br", "x", "\"br\""),
];

#[tokio::test]
async fn whatever_comes_in_the_place_of_an_answer_ends_the_call() {
    let server = gateway().await;
    let check = async |number: usize, kind: &'static str, body: &'static str, quoted: &str| {
        let name = format!("e{number}");
        let remote = Remote::posted(move |seen| match (seen.method(), kind) {
            ("tools/call", "204") => StatusCode::NO_CONTENT.into_response(),
            ("tools/call", "br") => ([(header::CONTENT_ENCODING, "br")], body).into_response(),
            ("tools/call", _) => typed(kind, body.replace("ID", &seen.body["id"].to_string())),
            _ => plain(seen),
        })
        .await;
        server.initialize(&name, json!({"url": remote.url})).await;
        ends_at_once(&server, &name, quoted).await;
        assert_eq!(remote.count("tools/call"), 1, "{name}");
    };
    let all = ELSE
        .iter()
        .enumerate()
        .map(|(number, (kind, body, quoted))| check(number, kind, body, quoted));
    futures::future::join_all(all).await;
}

/// An error that names no request can only refer to the request whose response contains it.
#[tokio::test]
async fn an_error_without_an_id_ends_the_call() {
    let server = gateway().await;
    for (name, kind, frame) in
        [("json", "application/json", ""), ("stream", "text/event-stream", "data: ")]
    {
        let remote = Remote::posted(move |seen| match seen.method() {
            "tools/call" => {
                let error =
                    json!({"jsonrpc": "2.0", "id": null, "error": {"code": -32000, "message": "boom"}});
                typed(kind, format!("{frame}{error}\n\n"))
            }
            _ => plain(seen),
        })
        .await;
        server.initialize(name, json!({"url": remote.url})).await;
        let answer = server.call_raw(&format!("{name}__work"), json!({})).await;
        assert_eq!(answer["error"]["code"], -32000, "{answer}");
    }
}

/// The handshake timeout is short here, and so is the time for an answer to the first request.
#[tokio::test]
async fn an_unanswered_discover_is_followed_by_initialize() {
    let remote =
        Remote::start(|seen| (seen.method() != "server/discover").then(|| plain(seen))).await;
    let server =
        Server::start(&["--allow-remote", "127.0.0.1", "--handshake-timeout-ms", "6000"]).await;
    let hosted = server.initialize("silent", json!({"url": remote.url})).await;
    assert_eq!(hosted["protocolVersion"], "2025-11-25", "{hosted}");
    assert_eq!((remote.count("server/discover"), remote.count("initialize")), (1, 1));
}

/// The refusal of any revision but 2025-06-18.
fn refused_revision(seen: &Seen) -> Option<Value> {
    let is_refused = match seen.method() {
        "initialize" => seen.body["params"]["protocolVersion"] != "2025-06-18",
        method => method == "server/discover",
    };
    let data = json!({"supported": ["2024-11-05", "2025-06-18"], "requested": "?"});
    is_refused.then(|| seen.error(json!({"code": -32022, "message": "unsupported", "data": data})))
}

#[tokio::test]
async fn a_refused_revision_is_replaced_by_one_from_the_list() {
    let server = gateway().await;
    for streamed in [false, true] {
        let remote = Remote::posted(move |seen| match refused_revision(seen) {
            Some(refusal) if streamed => typed("text/event-stream", format!("data: {refusal}\n\n")),
            Some(refusal) => (StatusCode::BAD_REQUEST, axum::Json(refusal)).into_response(),
            None => plain(seen),
        })
        .await;
        let name = format!("old-{streamed}");
        let hosted = server.initialize(&name, json!({"url": remote.url})).await;
        assert_eq!(hosted["protocolVersion"], "2025-06-18", "{hosted}");
        assert_eq!((remote.count("server/discover"), remote.count("initialize")), (1, 2));
    }
}

/// A server of the newest revision whose results all contain an item of an unknown kind.
fn modern(seen: &Seen, as_events: bool) -> Response {
    let Seen { body, .. } = seen;
    let mut result = match seen.method() {
        _ if body["id"].is_null() => return StatusCode::ACCEPTED.into_response(),
        "server/discover" => {
            let capabilities = json!({"tools": {}, "prompts": {}, "resources": {}});
            json!({"supportedVersions": ["2026-07-28"], "capabilities": capabilities, "ttlMs": 0, "cacheScope": "private"})
        }
        "tools/list" => json!({"tools": [{"name": "work", "inputSchema": {"type": "object"}}]}),
        "prompts/list" => json!({"prompts": [{"name": "ask"}]}),
        "resources/list" => json!({"resources": [{"uri": "odd://1", "name": "one"}]}),
        "tools/call" => json!({ "content": odd_content() }),
        "prompts/get" => json!({ "messages": odd_messages() }),
        "resources/read" => json!({ "contents": odd_contents() }),
        _ => {
            return axum::Json(seen.error(json!({"code": -32601, "message": "unknown"})))
                .into_response();
        }
    };

    result["resultType"] = json!("complete");
    let answer = seen.result(result);
    match as_events {
        true => typed("text/event-stream", format!("data: {answer}\n\n")),
        false => axum::Json(answer).into_response(),
    }
}

fn odd_content() -> Value {
    json!([{"type": "text", "text": "fine"}, {"type": "video", "url": "x"}, {"type": "image", "data": "AAAA"}])
}

fn odd_messages() -> Value {
    let fine = json!({"role": "user", "content": {"type": "text", "text": "fine"}});
    json!([fine, {"role": "user", "content": {"type": "video", "url": "x"}}, fine])
}

fn odd_contents() -> Value {
    json!([{"uri": "odd://1", "stream": "x"}, {"uri": "odd://1", "text": "fine"}])
}

/// All items of a server of the newest revision arrive, in JSON answers and in events.
#[tokio::test]
async fn items_of_unknown_kinds_are_passed_on_from_the_newest_revision_too() {
    for as_events in [false, true] {
        let remote = Remote::posted(move |seen| modern(seen, as_events)).await;
        let server = gateway().await;
        let hosted = server.initialize("new", json!({"type": "http", "url": remote.url})).await;
        assert_eq!(hosted["protocolVersion"], "2026-07-28", "{hosted}");

        assert_eq!(server.call("new__work", json!({})).await["content"], odd_content());
        let prompt = server.request("prompts/get", json!({"name": "new__ask"})).await;
        assert_eq!(prompt["result"]["messages"], odd_messages(), "{prompt}");
        let read = server.request("resources/read", json!({"uri": "odd://1"})).await;
        assert_eq!(read["result"]["contents"], odd_contents(), "{read}");
        for answer in [prompt, read] {
            assert!(!answer.to_string().contains("io.mcp-fleet"), "{answer}");
        }
    }
}
