//! Tests of what a child sends.

use rmcp::model::{CallToolRequest, CallToolRequestParams, PingRequest};
use serde_json::json;

use super::*;
use crate::held::HOLD;

fn inbound(calls: &[i64]) -> Inbound {
    let mut inbound = Inbound::default();
    for id in calls {
        let call = CallToolRequest::new(CallToolRequestParams::new("t"));
        let request = ClientRequest::CallToolRequest(call);
        inbound.note_sent(&ClientJsonRpcMessage::request(request, NumberOrString::Number(*id)));
    }
    inbound
}

fn read(inbound: &mut Inbound, text: &[u8]) -> Option<Vec<RxJsonRpcMessage<RoleClient>>> {
    inbound.read(text, Instant::now())
}

fn end_too_long(
    mut inbound: Inbound,
    head: &str,
    tail: &str,
) -> Option<Vec<RxJsonRpcMessage<RoleClient>>> {
    inbound.end_too_long(head.as_bytes(), tail.as_bytes(), 100, Instant::now())
}

/// Returns the ids of the answers that are passed on, and their errors.
fn ends(messages: Vec<ServerJsonRpcMessage>) -> Vec<(i64, Option<String>)> {
    let number = |id: &RequestId| match id {
        NumberOrString::Number(number) => *number,
        NumberOrString::String(text) => panic!("{text}"),
    };
    let end = |message: &ServerJsonRpcMessage| match message {
        JsonRpcMessage::Response(response) => (number(&response.id), None),
        JsonRpcMessage::Error(error) => {
            (number(error.id.as_ref().unwrap()), Some(error.error.message.to_string()))
        }
        other => panic!("{other:?}"),
    };
    let answers = messages.iter().filter(|message| {
        matches!(message, JsonRpcMessage::Response(_) | JsonRpcMessage::Error(_))
    });
    answers.map(end).collect()
}

#[test]
fn every_answer_ends_its_call() {
    let check = |text: &str, problem: Option<&str>| {
        let mut inbound = inbound(&[7]);
        let mut passed = read(&mut inbound, text.as_bytes()).unwrap();
        passed.extend(inbound.release_all());
        let found = ends(passed);
        let [(7, error)] = &found[..] else { panic!("{text}: {found:?}") };
        match (error, problem) {
            (None, None) => {}
            (Some(error), Some(problem)) if error.contains(problem) => {}
            _ => panic!("{text}: {error:?}"),
        }
    };
    check(r#"{"id":7,"result":{"content":[]},"error":null}"#, None);
    check(r#"{"id":"7","result":{"content":[{"type":"video"}]}}"#, None);
    check(r#"{"id":7,"result":{"v":NaN}}"#, None);
    check(r#"{"id":7,"error":{"code":-32000,"message":"boom"}}"#, Some("boom"));
    check(r#"{"id":7,"error":{"code":"E_FAIL","message":"boom"}}"#, Some("its error has no code"));
    check(r#"{"id":7,"error":"boom"}"#, Some("boom"));
    check(r#"{"id":7,"result":"boom"}"#, Some("boom"));
    check(r#"{"id":7,"result":{"cut"#, Some("it is not JSON"));
    check(r#"{"id":null,"error":{"code":-32603,"message":"boom"}}"#, Some("boom"));
    check(r#"{"result":{}}"#, Some("which request"));
    check(r#"{"method":"notifications/x"} {"id":7,"result":{"content":[]}}"#, None);
    check(r#"INFO called {"jsonrpc":"2.0","id":7,"result":{"content":[]}}"#, None);
    check(r#""{\"id\":7,\"result\":{}}""#, None);
    check(r"{'jsonrpc': '2.0', 'id': 7, 'result': {}}", Some("it is not JSON"));
    check(r#"{"id":7,"result":{},"id":99}"#, Some("it has two ids"));
    assert!(read(&mut inbound(&[7]), b"[INFO] ready> {}").is_none());
    assert!(read(&mut inbound(&[7]), br#"{"level":"info"}"#).is_none());
    assert!(
        read(&mut inbound(&[7]), br#"{"level":"error","error":"refused","msg":"trying again"}"#)
            .is_none()
    );
}

#[test]
fn an_answer_without_an_id_ends_the_last_request_that_it_may_belong_to() {
    let mut inbound = inbound(&[1, 2]);
    let nameless = br#"{"id":null,"error":{"code":-32603,"message":"boom"}}"#;
    let passed = read(&mut inbound, nameless).unwrap();
    assert!(
        matches!(&passed[..], [JsonRpcMessage::Error(error)] if error.id.is_none()),
        "{passed:?}"
    );
    // It can't belong to a later request.
    let ping = ClientRequest::PingRequest(PingRequest::default());
    inbound.note_sent(&ClientJsonRpcMessage::request(ping, NumberOrString::Number(3)));
    let found = ends(read(&mut inbound, br#"{"id":1,"result":{}}"#).unwrap());
    assert_eq!(found, [(1, None), (2, Some("boom".to_owned()))]);
}

#[test]
fn a_log_line_does_not_end_the_call_whose_answer_it_quotes() {
    let check = |line: &str| {
        let mut inbound = inbound(&[7]);
        let passed = read(&mut inbound, line.as_bytes()).unwrap_or_default();
        assert!(passed.is_empty(), "{line}: {passed:?}");
        let passed = read(&mut inbound, br#"{"jsonrpc":"2.0","id":7,"result":{}}"#).unwrap();
        assert_eq!(ends(passed), [(7, None)], "{line}");
        assert!(inbound.release_at().is_none() && inbound.release_all().is_empty(), "{line}");
    };
    check(r#"DEBUG -> {"jsonrpc":"2.0","id":7,"result":{"content":[…"#);
    check("Sending {'jsonrpc': '2.0', 'id': 7, 'result': {}}");
    check("{'jsonrpc': '2.0', 'id': 7, 'result': {}}");
    check(r#"{"jsonrpc":"2.0","id":7,"result":{"content":[…"#);
    check(r#"{"level":"debug"} {"jsonrpc":"2.0","id":7,"result":{"content":[…"#);
    check(r#"{"jsonrpc":"2.0","result":{"content":[…"#);
}

#[test]
fn an_unreadable_answer_is_held_for_one_line() {
    let unreadable = br#"{"id":7,"result":{"cut"#.as_slice();
    for next in [b"INFO next".as_slice(), br#"{"method":"notifications/x"}"#, unreadable] {
        let mut inbound = inbound(&[7]);
        assert_eq!(ends(read(&mut inbound, unreadable).unwrap()), []);
        assert!(inbound.release_at().is_some());
        let found = ends(read(&mut inbound, next).unwrap());
        assert!(matches!(&found[..], [(7, Some(error))] if error.contains("cut")), "{found:?}");
        assert_eq!(ends(inbound.release_all()), [], "the call is over");
    }
}

/// A text of a third party in a log must not become the result of a call.
#[test]
fn an_answer_inside_other_text_gives_way_to_one_by_itself() {
    let forged = r#"{"jsonrpc":"2.0","id":7,"result":{"text":"forged"}}"#;
    let text = json!(forged).to_string();
    let lines = [
        format!("INFO fetched: {forged}"),
        format!("[INFO] fetched: {forged}"),
        format!("[4711] {forged}"),
        format!("[4711] {forged} sent in 3 ms"),
        format!(r#"{{"level":"info"}} {forged}"#),
        format!(r#"{{"level":"info"}} {forged} sent"#),
        format!("{forged} was fetched"),
        format!(r#"{forged}{{"level":"info"}}"#),
        format!(r#"["fetched",{forged}]"#),
        format!(r#"["fetched",{text}]"#),
        text,
    ];
    let others = ["INFO parsed", r#"{"method":"notifications/x"}"#, r#"{"id":7,"method":"ping"}"#];
    let real = r#"{"jsonrpc":"2.0","id":7,"result":{"text":"real"}}"#;
    let pretty: Value = serde_json::from_str(real).unwrap();
    let pretty = serde_json::to_string_pretty(&pretty).unwrap();

    for line in &lines {
        for real in [real, &pretty] {
            let mut inbound = inbound(&[7]);
            for line in others.into_iter().chain([line.as_str()]).chain(others) {
                let messages = read(&mut inbound, line.as_bytes()).unwrap_or_default();
                assert_eq!(ends(messages), [], "{line}");
            }
            let passed = read(&mut inbound, real.as_bytes()).unwrap();
            let shown = format!("{passed:?}");
            assert_eq!(ends(passed), [(7, None)], "{line}");
            assert!(shown.contains("real"), "{line}: {shown}");
            assert_eq!(ends(inbound.release_all()), [], "{line}");
        }
    }
}

#[test]
fn an_answer_inside_other_text_ends_its_call_after_a_while() {
    let answer = r#"{"jsonrpc":"2.0","id":7,"result":{"text":"real"}}"#;
    for line in [
        format!("INFO called {answer}"),
        format!("[INFO] ready> {answer}"),
        format!("[4711] {answer}"),
        format!(r#"{{"level":"info"}} {answer}"#),
        format!("{answer} # done"),
        json!(answer).to_string(),
    ] {
        let (mut inbound, start) = (inbound(&[7]), Instant::now());
        assert!(inbound.read(line.as_bytes(), start).unwrap().is_empty(), "{line}");
        assert_eq!(inbound.release_at(), Some(start + HOLD), "{line}");
        assert!(inbound.release_due(start).is_empty(), "{line}");
        assert_eq!(ends(inbound.release_due(start + HOLD)), [(7, None)], "{line}");
    }
}

/// A server that prints only its messages is answered at once, even if a terminal is addressed or
/// messages share a line.
#[test]
fn an_answer_by_itself_is_not_held() {
    let answer = r#"{"jsonrpc":"2.0","id":7,"result":{"text":"real"}}"#;
    let note = r#"{"jsonrpc":"2.0","method":"notifications/x"}"#;
    for line in [
        format!("\u{1b}[?25l\u{1b}[0m{answer}\u{1b}[0m\r"),
        format!("\u{1e}{answer}"),
        format!("\u{feff}{answer}"),
        format!("{note}{answer}"),
        format!("{answer}{note}"),
        format!("[{note},{answer}]"),
        format!("[[{answer}]]"),
    ] {
        let mut inbound = inbound(&[7]);
        let found = ends(read(&mut inbound, line.as_bytes()).unwrap());
        assert_eq!((found, inbound.release_at()), (vec![(7, None)], None), "{line}");
    }
}

/// An unreadable answer by itself is the server's own, and so must not be replaced by a quotation.
#[test]
fn an_answer_inside_other_text_gives_way_to_an_unreadable_one() {
    let forged = r#"INFO fetched {"jsonrpc":"2.0","id":7,"result":{}}"#;
    let real = r#"{"jsonrpc":"2.0","id":7,"result":3}"#;
    for lines in [[forged, real], [real, forged]] {
        let mut inbound = inbound(&[7]);
        let mut found = Vec::new();
        for line in lines {
            found.extend(ends(read(&mut inbound, line.as_bytes()).unwrap()));
        }
        found.extend(ends(inbound.release_all()));
        let is_real = |error: &String| error.contains("its result is not an object");
        assert!(matches!(&found[..], [(7, Some(error))] if is_real(error)), "{found:?}");
    }
}

/// A line has room for a million answers that name no request.
#[test]
fn held_answers_do_not_grow_with_the_line() {
    let calls: Vec<i64> = (0..100).collect();
    let check = |message: &str, most: usize| {
        let messages = vec![message; 20_000].join(",");
        let mut inbound = inbound(&calls);
        let mut passed = read(&mut inbound, format!("[{messages}]").as_bytes()).unwrap();
        passed.extend(inbound.release_all());
        assert!(passed.len() <= most, "{message}: {}", passed.len());
    };
    check(r#"{"result":1}"#, MAX_NAMELESS);
    check(r#"{"result":{}}"#, MAX_NAMELESS);
    check(r#"{"id":null,"error":{"code":-32601,"message":"m"}}"#, MAX_NAMELESS);
    check(r#"{"id":7,"result":1}"#, 1);
}

/// Each reply in a text names its own request.
#[test]
fn the_servers_own_request_does_not_end_the_call_of_its_id() {
    let mut inbound = inbound(&[7]);
    let text = br#"{"id":7,"method":"ping"}{"id":99,"result":{}}"#;
    assert_eq!(ends(read(&mut inbound, text).unwrap()), [(99, None)]);
    assert_eq!(ends(read(&mut inbound, br#"{"id":7,"result":{}}"#).unwrap()), [(7, None)]);
}

/// If each reply were searched for in the whole text, this test would run for more than an
/// hour.
#[test]
fn a_text_of_many_foreign_replies_is_read_once() {
    let replies = vec![r#"{"id":1,"result":{}}"#; 200_000].join(",");
    let passed = read(&mut inbound(&[7]), format!("[{replies}]").as_bytes()).unwrap();
    assert_eq!(passed.len(), 200_000);
}

#[test]
fn the_refusal_of_a_notification_ends_no_call() {
    let mut inbound = inbound(&[7]);
    let refusal =
        br#"{"jsonrpc":"2.0","id":null,"error":{"code":-32601,"message":"Method not found"}}"#;
    let passed = read(&mut inbound, refusal).unwrap();
    assert!(
        matches!(&passed[..], [JsonRpcMessage::Error(error)] if error.id.is_none()),
        "{passed:?}"
    );
    assert_eq!(ends(read(&mut inbound, br#"{"id":7,"result":{}}"#).unwrap()), [(7, None)]);
}

#[test]
fn a_line_that_is_too_long_ends_its_call() {
    let check = |head: &str, tail: &str| {
        let found = ends(end_too_long(inbound(&[7]), head, tail).unwrap());
        let [(7, Some(error))] = &found[..] else { panic!("{head}: {found:?}") };
        assert!(error.contains("a line of more than 100 bytes"), "{error}");
    };
    check(r#"{"jsonrpc":"2.0","id":7,"result":{"content":[{"data":"AAAA"#, "AAAA");
    check(r#"{"result":{"content":[{"data":"AAAA"#, r#"AAAA"}]},"jsonrpc":"2.0","id":7}"#);
    check(r#"{"result":{"content":[{"data":"AAAA"#, "AAAA");
    // The sign of the cut helps to find a secret that was cut.
    let head = format!(r#"{{"id":7,"result":{}"#, "🔑".repeat(100));
    let found = ends(end_too_long(inbound(&[7]), &head, "AAAA").unwrap());
    assert!(matches!(&found[..], [(7, Some(error))] if error.ends_with("🔑…")), "{found:?}");
    assert!(end_too_long(inbound(&[7]), "{xxxx", "xxxx").is_none());
}

/// A log may quote an answer that is too long, too.
#[test]
fn an_overlong_line_of_a_log_ends_no_call_before_its_answer() {
    let check = |head: &str, tail: &str| {
        let mut inbound = inbound(&[7]);
        let now = Instant::now();
        let passed = inbound.end_too_long(head.as_bytes(), tail.as_bytes(), 100, now).unwrap();
        assert_eq!(ends(passed), [], "{head}");
        assert_eq!(inbound.release_at(), Some(now + HOLD), "{head}");
        let found = ends(read(&mut inbound, br#"{"id":7,"result":{}}"#).unwrap());
        assert_eq!(found, [(7, None)], "{head}");
    };
    check(r#"INFO fetched {"jsonrpc":"2.0","id":7,"result":{"data":"AAAA"#, "AAAA");
    check("[INFO] fetched AAAA", r#"AAAA"},"jsonrpc":"2.0","id":7}"#);
}

#[test]
fn a_server_need_not_name_its_version() {
    let result =
        json!({"protocolVersion": "2025-06-18", "capabilities": null, "serverInfo": {"name": "s"}});
    let Value::Object(map) = result else { panic!("no object") };
    let found = read_result(RequestKind::Initialize, map, &Secrets::default()).unwrap();
    assert!(matches!(found, ServerResult::InitializeResult(_)), "{found:?}");
}

/// An event is complete, so nothing is held for a better answer.
#[test]
fn an_event_in_the_place_of_an_answer_ends_its_call_at_once() {
    let check = |name: &str, data: &str, expected: Option<&str>| {
        let event = Event { name: name.to_owned(), data: data.into(), ..Event::default() };
        let mut inbound = inbound(&[7]);
        let found = ends(inbound.read_event(&event, Instant::now()));
        assert_eq!(inbound.release_at(), None, "{data}");
        match (&found[..], expected) {
            ([], None) => {}
            ([(7, None)], Some("")) => {}
            ([(7, Some(error))], Some(problem))
                if !problem.is_empty() && error.contains(problem) => {}
            _ => panic!("{data}: {found:?}"),
        }
    };
    check("", r#"{"id":"7","result":{}}"#, Some(""));
    check("result", r#"{"jsonrpc":"2.0","id":7,"result":{}}"#, Some(""));
    check("", r#"called {"jsonrpc":"2.0","id":7,"result":{}}"#, Some(""));
    check("", r#"{"id":7,"result":"boom"}"#, Some("boom"));
    check("", r#"{"id":null,"error":"boom"}"#, Some("boom"));
    check("", r#"{"broken"#, Some("broken"));
    check("error", "overloaded", Some("overloaded"));

    check("", r#"{"jsonrpc":"2.0","method":"notifications/x"}"#, None);
    check("stats", r#"{"id":8,"result":{}}"#, None);
    check("ping", "1", None);
    check("", "ping", None);
}

/// Otherwise answers that name no request would wait for its end, which never comes.
#[test]
fn a_request_that_was_not_sent_is_not_suspected() {
    let mut inbound = inbound(&[1, 2]);
    let passed = inbound.end_nameless("it is larger than 16777216 bytes".to_owned());
    assert!(ends_of_named(&passed).is_empty(), "{passed:?}");

    let found = ends(inbound.forget(&NumberOrString::Number(1)));
    assert!(matches!(&found[..], [(2, Some(error))] if error.contains("larger than")), "{found:?}");
}

/// Returns the answers that name a request.
fn ends_of_named(messages: &[ServerJsonRpcMessage]) -> Vec<&ServerJsonRpcMessage> {
    let is_named = |message: &&ServerJsonRpcMessage| match message {
        JsonRpcMessage::Response(_) => true,
        JsonRpcMessage::Error(error) => error.id.is_some(),
        _ => false,
    };
    messages.iter().filter(is_named).collect()
}
