//! Requests and answers in both eras. Pure.

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use fleet_wire::{Answer, Id};
use http::{HeaderMap, HeaderName, HeaderValue};
use serde::{Serialize, Serializer, ser::SerializeMap as _};
use serde_json::{Map, Value, json};

/// The revision of the modern era.
pub(crate) const MODERN: &str = "2026-07-28";
/// The revision that the legacy handshake asks for.
pub(crate) const LEGACY: &str = fleet_wire::revision::LEGACY[0];

/// The header for the revision of the request.
pub(crate) const PROTOCOL_VERSION: HeaderName = HeaderName::from_static("mcp-protocol-version");
/// The header for the legacy session.
pub(crate) const SESSION_ID: HeaderName = HeaderName::from_static("mcp-session-id");
const METHOD: HeaderName = HeaderName::from_static("mcp-method");
const NAME: HeaderName = HeaderName::from_static("mcp-name");

const META_VERSION: &str = "io.modelcontextprotocol/protocolVersion";
const META_CLIENT: &str = "io.modelcontextprotocol/clientInfo";
const META_CAPABILITIES: &str = "io.modelcontextprotocol/clientCapabilities";
const META_PROGRESS: &str = "progressToken";

/// The JSON-RPC error code for headers that contradict the body.
pub(crate) const HEADER_MISMATCH: i64 = -32020;
/// The JSON-RPC error code for a required capability that was not declared.
pub(crate) const MISSING_CAPABILITY: i64 = -32021;
/// The JSON-RPC error code for an unsupported revision.
pub(crate) const UNSUPPORTED_VERSION: i64 = fleet_wire::revision::UNSUPPORTED;

/// The extension that lets a server answer a call with a task. It is never declared, because this
/// client does not support tasks.
const TASKS: &str = "io.modelcontextprotocol/tasks";

/// The initial capacity of a serialized request, which suffices for most requests.
const USUAL_BYTES: usize = 1024;

/// The channel for the progress of a call. New progress replaces progress that was not read yet.
pub type News = tokio::sync::watch::Sender<Option<Progress>>;

/// What a tool may ask the caller for, and the answers so far. Only the modern era has such rounds;
/// in the legacy era this is ignored.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Input {
    /// The capabilities that the caller declared.
    pub client_capabilities: Map<String, Value>,
    /// The answers to the tool's questions of the previous round (`inputResponses`).
    pub responses: Map<String, Value>,
    /// The tool's opaque state from the previous round (`requestState`).
    pub request_state: Option<String>,
}

impl Input {
    /// Returns the declared capabilities without tasks.
    fn capabilities(&self) -> Map<String, Value> {
        let mut capabilities = self.client_capabilities.clone();
        if let Some(extensions) = capabilities.get_mut("extensions").and_then(Value::as_object_mut)
        {
            extensions.remove(TASKS);
        }
        capabilities
    }
}

/// A request that is independent of the era.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: &'static str,
    /// The parameters without `_meta`.
    pub(crate) params: Map<String, Value>,
    /// The caller's keys of `_meta`.
    pub(crate) meta: Map<String, Value>,
    /// Whether to ask the server for progress.
    pub(crate) wants_progress: bool,
    /// What the tool may ask for, and the answers so far; used in the modern era only.
    pub(crate) input: Option<Input>,
    /// The `Mcp-Param-*` headers; used in the modern era only.
    pub(crate) param_headers: HeaderMap,
}

impl Request {
    pub(crate) fn new(method: &'static str, params: Map<String, Value>) -> Self {
        Self {
            method,
            params,
            meta: Map::new(),
            wants_progress: false,
            input: None,
            param_headers: HeaderMap::new(),
        }
    }

    /// Serializes the request for the modern era.
    pub(crate) fn modern_body(&self, id: u64, client: &Value) -> Vec<u8> {
        let capabilities = self.input.as_ref().map(Input::capabilities).unwrap_or_default();
        let mut meta = vec![
            (META_VERSION, Part::Text(MODERN)),
            (META_CLIENT, Part::Value(client)),
            (META_CAPABILITIES, Part::Map(&capabilities)),
        ];

        let mut params = Vec::new();
        if let Some(input) = &self.input {
            if !input.responses.is_empty() {
                params.push(("inputResponses", Part::Map(&input.responses)));
            }
            if let Some(state) = &input.request_state {
                params.push(("requestState", Part::Text(state)));
            }
        }

        self.add_progress(id, &mut meta);
        self.body(id, params, meta)
    }

    /// Serializes the request for the legacy era.
    pub(crate) fn legacy_body(&self, id: u64) -> Vec<u8> {
        let mut meta = Vec::new();
        self.add_progress(id, &mut meta);
        self.body(id, Vec::new(), meta)
    }

    fn add_progress(&self, id: u64, meta: &mut Vec<(&'static str, Part<'_>)>) {
        if self.wants_progress {
            meta.push((META_PROGRESS, Part::Number(id)));
        }
    }

    fn body<'a>(
        &'a self,
        id: u64,
        mut params: Vec<(&'static str, Part<'a>)>,
        meta: Vec<(&'static str, Part<'a>)>,
    ) -> Vec<u8> {
        if !(self.meta.is_empty() && meta.is_empty()) {
            params.push(("_meta", Part::Merged(Merged { base: &self.meta, own: meta })));
        }

        let body = Body {
            jsonrpc: "2.0",
            id,
            method: self.method,
            params: Merged { base: &self.params, own: params },
        };

        let mut bytes = Vec::with_capacity(USUAL_BYTES);
        // Maps with string keys always serialize.
        if serde_json::to_writer(&mut bytes, &body).is_err() {
            bytes.clear();
        }
        bytes
    }

    /// Returns the headers by which proxies can route modern requests without reading the body.
    pub(crate) fn modern_headers(&self) -> HeaderMap {
        let mut headers = self.param_headers.clone();
        headers.insert(PROTOCOL_VERSION, HeaderValue::from_static(MODERN));
        headers.insert(METHOD, HeaderValue::from_static(self.method));
        if self.method == "tools/call"
            && let Some(Ok(name)) =
                self.params.get("name").and_then(Value::as_str).map(header_value)
        {
            headers.insert(NAME, name);
        }
        headers
    }
}

/// A serializable request. It borrows its parts, since arguments can be large.
#[derive(Serialize)]
struct Body<'a> {
    jsonrpc: &'static str,
    id: u64,
    method: &'static str,
    params: Merged<'a>,
}

/// The caller's members combined with our own, which take precedence.
struct Merged<'a> {
    base: &'a Map<String, Value>,
    own: Vec<(&'static str, Part<'a>)>,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Part<'a> {
    Text(&'a str),
    Number(u64),
    Value(&'a Value),
    Map(&'a Map<String, Value>),
    Merged(Merged<'a>),
}

impl Serialize for Merged<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let theirs =
            self.base.iter().filter(|(name, _)| self.own.iter().all(|(own, _)| own != name));
        let mut map = serializer.serialize_map(None)?;
        theirs.into_iter().try_for_each(|(name, value)| map.serialize_entry(name, value))?;
        self.own.iter().try_for_each(|(name, value)| map.serialize_entry(name, value))?;
        map.end()
    }
}

/// Serializes a notification.
pub(crate) fn notification(method: &str, params: Option<Value>) -> Vec<u8> {
    let mut body = json!({"jsonrpc": "2.0", "method": method});
    if let (Some(params), Some(object)) = (params, body.as_object_mut()) {
        object.insert("params".to_owned(), params);
    }
    body.to_string().into_bytes()
}

/// Serializes the answer to a request of the server, of which only `ping` is supported.
pub(crate) fn answer_to_server(method: &str, id: &Value) -> Vec<u8> {
    let body = if method == "ping" {
        json!({"jsonrpc": "2.0", "id": id, "result": {}})
    } else {
        json!({"jsonrpc": "2.0", "id": id, "error": {"code": -32601, "message": "not supported by this client"}})
    };
    body.to_string().into_bytes()
}

/// Encodes a value for `Mcp-Name` and `Mcp-Param-*`: unchanged if HTTP allows it, and otherwise in
/// Base64.
pub(crate) fn header_value(value: &str) -> Result<HeaderValue, http::header::InvalidHeaderValue> {
    let blank = |c: Option<char>| matches!(c, Some(' ' | '\t'));
    let wrap = blank(value.chars().next())
        || blank(value.chars().next_back())
        || !value.chars().all(|c| (' '..='~').contains(&c))
        || (value.starts_with("=?base64?") && value.ends_with("?="));
    if wrap {
        HeaderValue::from_str(&format!("=?base64?{}?=", BASE64_STANDARD.encode(value)))
    } else {
        HeaderValue::from_str(value)
    }
}

/// A JSON-RPC error.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RpcError {
    pub(crate) code: i64,
    pub(crate) message: String,
    pub(crate) data: Option<Value>,
    /// Whether the error names the request's id.
    pub(crate) addressed: bool,
}

/// The meaning of one message from the server for a request.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Message {
    /// The result of the request.
    Result(Value),
    /// The request failed with this error.
    Error(RpcError),
    /// Progress of the request.
    Progress(Progress),
    /// A request from the server.
    Request { method: String, id: Value },
    /// The answer to another request.
    Foreign,
    /// A notification of no interest.
    Other,
    /// Something that is not JSON-RPC, or an answer that does not name its request.
    Malformed(String),
    /// The answer to this request, in a form that cannot be read.
    Unreadable(String),
}

/// The progress that a tool has reported.
#[derive(Debug, Clone, PartialEq)]
pub struct Progress {
    /// Increases with every notification.
    pub progress: f64,
    /// The final value of `progress`, if the tool knows it.
    pub total: Option<f64>,
    /// The tool's description of its progress, for people.
    pub message: Option<String>,
}

/// Reads the messages that arrived in answer to request `id`.
pub(crate) fn read(bytes: &[u8], id: u64) -> Vec<Message> {
    fleet_wire::read(bytes).into_iter().map(|message| interpret(message, id)).collect()
}

/// Interprets one message with regard to request `id`.
fn interpret(message: fleet_wire::Message, id: u64) -> Message {
    // Ids count up from 0 and never get near this limit.
    let own = Id::Number(i64::try_from(id).unwrap_or(i64::MAX));
    match message.answer_to(&own) {
        Ok(Answer::Result(result)) => Message::Result(result.into()),
        Ok(Answer::Error { error: fleet_wire::RpcError { code, message, data }, addressed }) => {
            Message::Error(RpcError { code, message, data, addressed })
        }
        Ok(Answer::Unreadable(why)) => Message::Unreadable(why),
        Ok(Answer::Malformed(why)) => Message::Malformed(why),
        Err(fleet_wire::Message::Request(method, message)) => {
            Message::Request { method, id: message.get("id").cloned().unwrap_or_default() }
        }
        Err(fleet_wire::Message::Notification(method, message))
            if method == "notifications/progress" =>
        {
            read_progress(message.get("params"), id)
        }
        Err(fleet_wire::Message::Reply(..) | fleet_wire::Message::Quoted(..)) => Message::Foreign,
        Err(_) => Message::Other,
    }
}

fn is_id(found: &Value, id: u64) -> bool {
    found.as_u64() == Some(id) || found.as_str().is_some_and(|text| text == id.to_string())
}

/// Interprets a progress notification.
fn read_progress(params: Option<&Value>, id: u64) -> Message {
    let get = |key: &str| params.and_then(|params| params.get(key));
    match get("progress").and_then(Value::as_f64) {
        Some(progress) if get(META_PROGRESS).is_some_and(|token| is_id(token, id)) => {
            Message::Progress(Progress {
                progress,
                total: get("total").and_then(Value::as_f64),
                message: get("message").and_then(Value::as_str).map(str::to_owned),
            })
        }
        _ => Message::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(name: &str) -> Request {
        let params = json!({"name": name, "arguments": {"a": 1}});
        let mut request = Request::new("tools/call", params.as_object().unwrap().clone());
        request.meta.insert("io.mcp-fleet/jobId".to_owned(), "job-1".into());
        request.meta.insert(META_VERSION.to_owned(), "forged".into());
        request.wants_progress = true;
        request
    }

    #[test]
    fn modern_requests_carry_their_context() {
        let body: Value =
            serde_json::from_slice(&call("t").modern_body(7, &json!({"name": "x"}))).unwrap();
        assert_eq!(
            body,
            json!({"jsonrpc": "2.0", "id": 7, "method": "tools/call", "params": {
            "name": "t", "arguments": {"a": 1}, "_meta": {
                "io.mcp-fleet/jobId": "job-1",
                META_VERSION: MODERN, META_CLIENT: {"name": "x"}, META_CAPABILITIES: {}, META_PROGRESS: 7,
            }}})
        );

        let headers = call("t").modern_headers();
        assert_eq!(headers["mcp-protocol-version"], MODERN);
        assert_eq!(headers["mcp-method"], "tools/call");
        assert_eq!(headers["mcp-name"], "t");
    }

    #[test]
    fn capabilities_and_answers_are_sent_in_the_modern_era() {
        let object = |value: Value| value.as_object().unwrap().clone();
        let mut request = call("t");
        request.input = Some(Input {
            client_capabilities: object(
                json!({"elicitation": {}, "extensions": {TASKS: {}, "x/y": {"a": 1}}}),
            ),
            responses: object(json!({"name": {"action": "accept"}})),
            request_state: Some("state".to_owned()),
        });

        let body: Value = serde_json::from_slice(&request.modern_body(7, &json!({}))).unwrap();
        let params = &body["params"];
        let declared = json!({"elicitation": {}, "extensions": {"x/y": {"a": 1}}});
        assert_eq!(params["_meta"][META_CAPABILITIES], declared, "this client follows no tasks");
        assert_eq!(params["inputResponses"], json!({"name": {"action": "accept"}}));
        assert_eq!(params["requestState"], "state");

        let legacy: Value = serde_json::from_slice(&request.legacy_body(7)).unwrap();
        assert!(
            legacy["params"].get("inputResponses").is_none()
                && legacy["params"].get("requestState").is_none()
        );

        request.input = Some(Input::default());
        let first: Value = serde_json::from_slice(&request.modern_body(7, &json!({}))).unwrap();
        assert!(
            first["params"].get("inputResponses").is_none()
                && first["params"].get("requestState").is_none()
        );
    }

    #[test]
    fn legacy_requests_have_no_meta_unless_asked() {
        let body: Value =
            serde_json::from_slice(&Request::new("ping", Map::new()).legacy_body(1)).unwrap();
        assert_eq!(body, json!({"jsonrpc": "2.0", "id": 1, "method": "ping", "params": {}}));
    }

    #[test]
    fn header_values_are_encoded_if_http_requires_it() {
        let check = |value: &str, expected: &str| {
            assert_eq!(header_value(value).unwrap(), expected, "{value:?}")
        };
        check("", "");
        check("files__file_read", "files__file_read");
        check("a b", "a b");
        check(" a", "=?base64?IGE=?=");
        check("a\t", "=?base64?YQk=?=");
        check("é", "=?base64?w6k=?=");
        check("a\nb", "=?base64?YQpi?=");
        check("=?base64?YQ==?=", "=?base64?PT9iYXNlNjQ/WVE9PT89?=");
    }

    #[test]
    fn messages_are_read() {
        let check = |text: &str, expected: Message| {
            assert_eq!(read(text.as_bytes(), 7), [expected], "{text}")
        };
        let error = |code: i64, message: &str, data: Option<Value>| {
            let addressed = code != -32700;
            Message::Error(RpcError { code, message: message.to_owned(), data, addressed })
        };

        check(r#"{"jsonrpc":"2.0","id":7,"result":{"a":1}}"#, Message::Result(json!({"a": 1})));
        check(r#"{"id":"7","result":{}}"#, Message::Result(json!({})));

        let unreadable = |why: &str| Message::Unreadable(why.to_owned());
        let malformed = |why: &str| Message::Malformed(why.to_owned());
        check(r#"{"id":8,"result":{}}"#, Message::Foreign);
        check(r#"{"id":7,"result":{},"error":null}"#, Message::Result(json!({})));
        check(r#"[{"id":7,"result":{}}]"#, Message::Result(json!({})));
        check(r#"{"id":7,"result":3}"#, unreadable("its result is not an object: 3"));
        check(r#"{"id":7,"error":{"code":-32602,"message":"m"}}"#, error(-32602, "m", None));
        check(
            r#"{"id":null,"error":{"code":-32700,"message":"","data":1}}"#,
            error(-32700, "", Some(json!(1))),
        );
        check(r#"{"id":8,"error":{"code":-32603}}"#, Message::Foreign);
        check(
            r#"{"id":7,"error":{"code":"x"}}"#,
            unreadable("its error has no code: {\"code\":\"x\"}"),
        );
        check(
            r#"{"jsonrpc":"2.0","id":7}"#,
            unreadable("it is neither a result nor an error: {\"jsonrpc\":\"2.0\",\"id\":7}"),
        );
        check("[]", malformed("it is not a JSON object"));
        check("garbage", malformed("it is not JSON"));
        assert!(matches!(read(br#"{"id":7,"result":{"a"#, 7)[..], [Message::Unreadable(_)]));

        let numbers = r#"{"a":[1e+400,12345678901234567890123,1.10,-0,0.00001],"z":{"y":1,"b":2}}"#;
        let text = format!(r#"{{"id":7,"result":{numbers}}}"#);
        let [Message::Result(found)] = &read(text.as_bytes(), 7)[..] else { panic!("{text}") };
        assert_eq!(found.to_string(), numbers, "numbers keep their spelling");

        check(
            r#"{"id":"p","method":"ping"}"#,
            Message::Request { method: "ping".into(), id: json!("p") },
        );
        check(r#"{"method":"notifications/message","params":{}}"#, Message::Other);
        check(
            r#"{"method":"notifications/progress","params":{"progressToken":7,"progress":1,"total":2}}"#,
            Message::Progress(Progress { progress: 1.0, total: Some(2.0), message: None }),
        );
        check(
            r#"{"method":"notifications/progress","params":{"progressToken":9,"progress":1}}"#,
            Message::Other,
        );
    }
}
