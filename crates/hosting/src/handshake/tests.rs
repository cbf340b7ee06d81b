//! The handshake with scripted servers: modern, legacy, silent, late, and broken ones.

use rmcp::model::{ClientCapabilities, ErrorCode, ErrorData, Implementation};
use serde_json::{Value, json};

use super::*;

const LIMIT: Duration = Duration::from_secs(30);
const PATIENCE: Duration = Duration::from_secs(10);
const MODERN: &str = "2026-07-28";
const LEGACY: &str = "2025-06-18";

/// A handshake and its clock.
struct Case {
    handshake: Handshake,
    now: Instant,
}

impl Case {
    fn new(opening: Opening) -> Self {
        let now = Instant::now();
        let client =
            ClientConfig::new(ClientCapabilities::default(), Implementation::new("test", "1"));
        Self { handshake: Handshake::new(client, opening, LIMIT, now), now }
    }

    /// Returns the methods of the messages to send now.
    fn sent(&mut self) -> Vec<String> {
        let messages = std::iter::from_fn(|| self.handshake.next_message());
        let values = messages.map(|message| serde_json::to_value(message).unwrap());
        values.map(|value| value["method"].as_str().unwrap_or("an answer").to_owned()).collect()
    }

    fn read(&mut self, message: Value) -> &mut Self {
        self.handshake.read(serde_json::from_value(message).unwrap(), self.now);
        self
    }

    fn wait(&mut self, time: Duration) -> &mut Self {
        self.now += time;
        self.handshake.pass_time(self.now);
        self
    }

    fn discovered(&mut self) -> &mut Self {
        self.read(json!({"jsonrpc": "2.0", "id": DISCOVER_ID, "result": {
            "resultType": "complete", "supportedVersions": [MODERN], "capabilities": {"tools": {}},
            "ttlMs": 0, "cacheScope": "private"}}))
    }

    fn initialized(&mut self) -> &mut Self {
        self.read(
            json!({"jsonrpc": "2.0", "id": INITIALIZE_ID, "result": {"protocolVersion": LEGACY,
            "capabilities": {"tools": {}}, "serverInfo": {"name": "s", "version": "1"}}}),
        )
    }

    fn refused(&mut self, id: Option<i64>) -> &mut Self {
        let error = ErrorData::new(ErrorCode::METHOD_NOT_FOUND, "no such method", None);
        let error = JsonRpcMessage::error(error, id.map(NumberOrString::Number));
        self.handshake.read(error, self.now);
        self
    }

    fn is_pending(&self) {
        assert_eq!(self.handshake.outcome(), Outcome::Pending);
    }

    fn agrees_on(&self, version: &str) {
        match self.handshake.outcome() {
            Outcome::Agreed(info) => assert_eq!(info.protocol_version.as_str(), version),
            other => panic!("{other:?}"),
        }
    }

    fn is_refused(&self, words: &[&str]) {
        match self.handshake.outcome() {
            Outcome::Refused(why) => {
                words.iter().for_each(|word| assert!(why.contains(word), "{why}"))
            }
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn a_modern_server_gets_one_request() {
    let mut case = Case::new(Opening::DiscoverFirst);
    assert_eq!(case.sent(), ["server/discover"]);
    case.is_pending();
    case.discovered().agrees_on(MODERN);
    assert!(case.sent().is_empty());
    assert_eq!(case.handshake.wake_at(), None);
}

#[test]
fn a_refusal_leads_to_initialize_at_once() {
    for id in [Some(DISCOVER_ID), None] {
        let mut case = Case::new(Opening::DiscoverFirst);
        case.sent();
        case.refused(id).is_pending();
        assert_eq!(case.sent(), ["initialize"]);
        assert!(case.handshake.was_answered());
        case.initialized().agrees_on(LEGACY);
        assert_eq!(case.sent(), ["notifications/initialized"]);
    }
}

#[test]
fn silence_leads_to_initialize_only() {
    let mut case = Case::new(Opening::DiscoverFirst);
    case.sent();
    case.wait(PATIENCE - Duration::from_millis(1)).is_pending();
    assert!(case.sent().is_empty());
    assert_eq!(case.handshake.wake_at(), Some(case.now + Duration::from_millis(1)));
    case.wait(Duration::from_millis(1));
    assert_eq!(case.sent(), ["initialize"]);

    // From here on only the caller's limit ends the handshake.
    assert_eq!(case.handshake.wake_at(), None);
    case.wait(LIMIT).is_pending();
    assert!(case.sent().is_empty() && !case.handshake.was_answered());
    case.initialized().agrees_on(LEGACY);
}

#[test]
fn a_late_answer_counts_but_a_session_takes_precedence() {
    let late = || {
        let mut case = Case::new(Opening::DiscoverFirst);
        case.wait(PATIENCE);
        assert_eq!(case.sent(), ["server/discover", "initialize"]);
        case.wait(PATIENCE);
        case
    };
    // A modern server refuses `initialize`, before or after its answer.
    late().discovered().refused(Some(INITIALIZE_ID)).agrees_on(MODERN);
    let mut case = late();
    case.refused(Some(INITIALIZE_ID)).is_pending();
    case.wait(LIMIT).is_pending();
    case.discovered().agrees_on(MODERN);
    // A server that supports both has made a session, which counts.
    let mut case = late();
    case.discovered().is_pending();
    case.initialized().agrees_on(LEGACY);
    late().initialized().discovered().agrees_on(LEGACY);
    // An answer to `initialize` is awaited no longer than the first answer.
    let mut case = late();
    case.discovered().wait(PATIENCE - Duration::from_millis(1)).is_pending();
    case.wait(Duration::from_millis(1)).agrees_on(MODERN);
    // A legacy server's refusal may come late, too.
    let mut case = late();
    case.refused(Some(DISCOVER_ID)).is_pending();
    case.initialized().agrees_on(LEGACY);
}

/// Refuses the revision of a request, and lists these.
fn unsupported(id: Option<i64>, listed: &[&str]) -> Value {
    let data = json!({"supported": listed, "requested": "2025-11-25"});
    json!({"jsonrpc": "2.0", "id": id, "error": {"code": -32022, "message": "no", "data": data}})
}

#[test]
fn a_refused_revision_is_replaced_by_one_from_the_list() {
    for id in [Some(INITIALIZE_ID), None] {
        let mut case = Case::new(Opening::InitializeOnly);
        case.sent();
        case.read(unsupported(id, &["2024-11-05", LEGACY, "2099-01-01"])).is_pending();
        assert!(case.handshake.was_answered());

        let again = serde_json::to_value(case.handshake.next_message()).unwrap();
        let revision = &again["params"]["protocolVersion"];
        assert_eq!((&again["id"], revision), (&json!(REVISED_ID), &json!(LEGACY)), "{again}");
        let result = json!({"protocolVersion": LEGACY, "capabilities": {}, "serverInfo": {"name": "s", "version": "1"}});
        case.read(json!({"jsonrpc": "2.0", "id": REVISED_ID, "result": result})).agrees_on(LEGACY);
    }

    // It is asked once more only, and only for a known revision.
    let mut case = Case::new(Opening::InitializeOnly);
    case.sent();
    case.read(unsupported(Some(INITIALIZE_ID), &[LEGACY])).is_pending();
    case.read(unsupported(Some(REVISED_ID), &["2024-11-05"])).is_refused(&["-32022"]);
    let mut case = Case::new(Opening::InitializeOnly);
    case.sent();
    case.read(unsupported(Some(INITIALIZE_ID), &["2099-01-01"])).is_refused(&["-32022"]);
}

#[test]
fn a_server_that_refuses_everything_ends_the_handshake() {
    let mut case = Case::new(Opening::DiscoverFirst);
    case.refused(Some(DISCOVER_ID)).refused(Some(INITIALIZE_ID));
    case.is_refused(&["server/discover", "initialize", "-32601", "no such method"]);
    let mut case = Case::new(Opening::InitializeOnly);
    assert_eq!(case.sent(), ["initialize"]);
    case.refused(None).is_refused(&["`initialize`"]);
}

#[test]
fn an_unreadable_answer_is_a_refusal() {
    let answer = |id: i64, result: Value| json!({"jsonrpc": "2.0", "id": id, "result": result});
    let mut case = Case::new(Opening::DiscoverFirst);
    case.sent();
    case.read(answer(DISCOVER_ID, json!({"odd": true})));
    assert_eq!(case.sent(), ["initialize"]);
    case.read(answer(
        INITIALIZE_ID,
        json!({"protocolVersion": LEGACY, "capabilities": {}, "odd": 1}),
    ));
    case.is_refused(&["can't be read", "serverInfo"]);
    // A revision that we do not speak.
    let mut case = Case::new(Opening::DiscoverFirst);
    case.sent();
    case.read(answer(
        DISCOVER_ID,
        json!({"resultType": "complete", "supportedVersions": ["2099-01-01"], "capabilities": {}, "ttlMs": 0,
            "cacheScope": "private"}),
    ));
    assert_eq!(case.sent(), ["initialize"]);
}

#[test]
fn unexpected_answers_change_nothing() {
    let mut case = Case::new(Opening::DiscoverFirst);
    case.sent();
    case.read(json!({"jsonrpc": "2.0", "id": 7, "method": "ping"}));
    assert_eq!(case.sent(), ["an answer"]);
    case.read(json!({"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": "info", "data": "x"}}));
    case.read(json!({"jsonrpc": "2.0", "id": 0, "result": {}}));
    case.refused(Some(0)).is_pending();
    assert!(case.sent().is_empty() && !case.handshake.was_answered());
    // The same id as text.
    case.read(json!({"jsonrpc": "2.0", "id": DISCOVER_ID.to_string(), "result": {
        "resultType": "complete", "supportedVersions": [MODERN], "capabilities": {}, "ttlMs": 0,
        "cacheScope": "private"}}));
    case.agrees_on(MODERN);
    // A second answer changes nothing either.
    case.refused(Some(DISCOVER_ID)).agrees_on(MODERN);
}

#[test]
fn a_request_during_the_handshake_is_answered() {
    let mut case = Case::new(Opening::InitializeOnly);
    assert_eq!(case.sent(), ["initialize"]);
    for (method, member) in
        [("roots/list", "/result/roots"), ("ping", "/result"), ("novel/ask", "/error/code")]
    {
        case.read(json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": {}}));
        let answer = serde_json::to_value(case.handshake.next_message()).unwrap();
        assert_eq!(answer["id"], 1, "{method}: {answer}");
        assert!(answer.pointer(member).is_some(), "{method}: {answer}");
    }
    case.initialized().agrees_on(LEGACY);
}
