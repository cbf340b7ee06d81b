//! Tests of the table of outcomes, layer by layer.

use std::time::UNIX_EPOCH;

use fleet_job::outcome::FailureClass::{self, Held, Permanent, Retry, Unavailable};
use fleet_job::outcome::WaitReason::{
    RateLimited, ServerBusy, ServerUnavailable, UpstreamUnauthorized,
};
use serde_json::json;

use super::*;

const AT: &str = "http://a/mcp";

fn now() -> SystemTime {
    // Sun, 06 Nov 1994 08:49:37 GMT
    UNIX_EPOCH + Duration::from_secs(784_111_777)
}

#[test]
fn transport_failures() {
    let check = |what: Broken, class: FailureClass, kind: ErrorKind, text: &str| {
        let failure = classify_broken(&what, AT);
        assert_eq!((failure.class, failure.error.kind), (class, kind), "{what:?}");
        assert!(failure.error.message.contains(text), "{}", failure.error.message);
        assert!(failure.error.message.contains(AT), "{}", failure.error.message);
    };
    check(Broken::NotSent("refused".into()), Unavailable, ErrorKind::Connect, "refused");
    check(Broken::Lost("reset".into()), Retry, ErrorKind::ConnectionLost, "reset");
    check(Broken::TimedOut(Duration::from_secs(2)), Retry, ErrorKind::Timeout, "2000 ms");
    check(Broken::TooLarge(8), Permanent, ErrorKind::Protocol, "8 bytes");
    check(Broken::Unreadable("y".into()), Permanent, ErrorKind::Protocol, "y");
    check(Broken::ContentType("text/html".into()), Permanent, ErrorKind::Protocol, "text/html");
    check(Broken::Unanswered, Permanent, ErrorKind::Protocol, "without answering");
}

#[test]
fn http_statuses() {
    let check = |statuses: &[u16], class: FailureClass, kind: ErrorKind| {
        for &status in statuses {
            let head = Head { status, text: "why".into(), ..Head::default() };
            let failure = classify_http(&head, None, now(), AT);
            assert_eq!((failure.class, failure.error.kind), (class, kind), "{status}");
            assert_eq!(failure.error.code, Some(i64::from(status)));
            assert_eq!(failure.retry_after, None);
        }
    };
    check(&[401, 403, 407], Unavailable, ErrorKind::Unauthorized);
    check(&[301, 302, 307, 308], Unavailable, ErrorKind::Http);
    check(&[429], Held(RateLimited), ErrorKind::Http);
    check(&[408, 421, 425, 500, 501, 502, 503, 504, 520, 529], Retry, ErrorKind::Http);
    check(&[400, 402, 404, 405, 406, 410, 413, 414, 415, 422, 431], Permanent, ErrorKind::Http);
}

#[test]
fn json_rpc_errors() {
    let check = |status: u16, code: i64, class: FailureClass| {
        let error =
            RpcError { code, message: "why".into(), data: Some(json!({"d": 1})), addressed: true };
        let failure = match status {
            200 => classify_rpc(&error, AT),
            _ => classify_http(&Head { status, ..Head::default() }, Some(&error), now(), AT),
        };
        assert_eq!(failure.class, class, "{status} {code}");
        if !matches!(status, 401 | 403) {
            assert_eq!(failure.error.kind, ErrorKind::JsonRpc);
            assert_eq!(failure.error.code, Some(code));
            assert_eq!(failure.error.data, Some(json!({"d": 1})));
            assert!(failure.error.message.contains("why"));
        }
    };
    for code in [-32700, -32600, -32601, -32602, -32020, -32021, -32022] {
        check(200, code, Permanent);
        check(400, code, Permanent);
        check(404, code, Permanent);
        check(500, code, Permanent);
    }
    for code in [-32603, -32000, -32001, -32099, 1, -1, 500] {
        check(200, code, Retry);
        check(500, code, Retry);
        check(503, code, Retry);
        check(400, code, Permanent);
    }
    check(503, -32602, Retry);
    check(429, -32600, Held(RateLimited));
    check(401, -32603, Unavailable);
    check(403, -32600, Unavailable);
}

#[test]
fn a_reason_takes_precedence_over_code_and_status() {
    let check = |status: u16, reason: &str, class: FailureClass| {
        let data = json!({"reason": reason, "server": "db", "retryAfterMs": 1500});
        let error =
            RpcError { code: -32603, message: "why".into(), data: Some(data), addressed: true };
        let failure = match status {
            200 => classify_rpc(&error, AT),
            _ => classify_http(&Head { status, ..Head::default() }, Some(&error), now(), AT),
        };
        assert_eq!(failure.class, class, "{status} {reason}");
        assert!(class == Unavailable || failure.error.code == Some(-32603), "{status} {reason}");
        if let Held(_) = class {
            assert_eq!(failure.server.as_deref(), Some("db"));
            assert_eq!(failure.retry_after, Some(Duration::from_millis(1500)));
            assert!(gives_reason(&failure.error));
        }
    };
    for status in [200, 401, 403, 429, 500, 503] {
        check(status, "server-unavailable", Held(ServerUnavailable));
        check(status, "server-busy", Held(ServerBusy));
        check(status, "upstream-unauthorized", Held(UpstreamUnauthorized));
        check(status, "rate-limited", Held(RateLimited));
        check(status, "denied", Permanent);
        check(status, "approval-required", Permanent);
    }
    for reason in ["connection-lost", "timeout", "protocol", "unavailable", "unauthorized"] {
        check(200, reason, Retry);
        check(403, reason, Unavailable);
    }
}

#[test]
fn a_server_that_asks_for_a_delay_is_full_but_available() {
    let check = |status: u16, retry_after: Option<&str>, class: FailureClass| {
        let head = Head { status, retry_after: retry_after.map(str::to_owned), ..Head::default() };
        let failure = classify_http(&head, None, now(), AT);
        assert_eq!((failure.class, failure.server), (class, None), "{status} {retry_after:?}");
    };
    check(503, Some("7"), Held(ServerBusy));
    check(503, None, Retry);
    check(429, Some("7"), Held(RateLimited));
    check(429, None, Held(RateLimited));
    for status in [500, 502, 504] {
        check(status, Some("7"), Retry);
    }
}

#[test]
fn a_question_is_a_result_if_somebody_can_be_asked() {
    let question =
        json!({"resultType": "input_required", "inputRequests": {}, "requestState": "s"});
    assert_eq!(classify_result(question.clone(), true, AT), Outcome::Succeeded(question.clone()));
    assert!(
        matches!(classify_result(question, false, AT), Outcome::Failed(failure) if failure.class == Permanent)
    );
    let task = json!({"resultType": "task", "taskId": "t"});
    assert!(
        matches!(classify_result(task, true, AT), Outcome::Failed(failure) if failure.class == Permanent)
    );
}

#[test]
fn tool_results() {
    let check = |result: Value, expected: Option<(FailureClass, ErrorKind, &str)>| match (
        classify_result(result.clone(), false, AT),
        expected,
    ) {
        (Outcome::Succeeded(value), None) => assert_eq!(value, result),
        (Outcome::Failed(failure), Some((class, kind, text))) => {
            assert_eq!((failure.class, failure.error.kind), (class, kind), "{result}");
            assert!(failure.error.message.contains(text), "{}", failure.error.message);
            assert_eq!(failure.error.data.is_some(), kind == ErrorKind::Tool);
        }
        (outcome, expected) => panic!("{result}: {outcome:?} instead of {expected:?}"),
    };
    check(json!({"content": []}), None);
    check(json!({"content": [], "resultType": "complete", "isError": false}), None);
    check(json!({"isError": "true"}), None);
    let error = |meta: Value| json!({"isError": true, "_meta": meta, "content": [{"type": "image"}, {"type": "text", "text": "no\n disk"}]});
    check(error(json!({})), Some((Retry, ErrorKind::Tool, "no disk")));
    check(error(json!({FINAL: true})), Some((Permanent, ErrorKind::Tool, "no disk")));
    check(error(json!({FINAL: false})), Some((Retry, ErrorKind::Tool, "no disk")));
    check(error(json!({FINAL: "true"})), Some((Retry, ErrorKind::Tool, "no disk")));
    check(json!({"isError": true}), Some((Retry, ErrorKind::Tool, "without a message")));
    check(
        json!({"resultType": "input_required"}),
        Some((Permanent, ErrorKind::Protocol, "asks for input")),
    );
    check(
        json!({"resultType": "task", "taskId": "1"}),
        Some((Permanent, ErrorKind::Protocol, "task")),
    );
    check(
        json!({"resultType": "new"}),
        Some((Permanent, ErrorKind::Protocol, "unknown type \"new\"")),
    );
    check(json!({"resultType": 1}), Some((Permanent, ErrorKind::Protocol, "unknown type")));
}

#[test]
fn quotes_are_bounded() {
    assert_eq!(quote(" a\r\n\tb\u{0} c "), "a b c");
    assert_eq!(quote(&"é".repeat(10_000)).chars().count(), MAX_QUOTE + 1);
    assert_eq!(quote(&" ".repeat(10_000_000)), "");
}

#[test]
fn a_call_with_an_unreadable_answer_is_not_repeated() {
    let data = json!({"reason": UNREADABLE_ANSWER, "server": "s"});
    let error = RpcError {
        code: -32603,
        message: "not JSON".to_owned(),
        data: Some(data),
        addressed: true,
    };
    let failure = classify_rpc(&error, AT);
    assert_eq!((failure.class, failure.error.kind), (Permanent, ErrorKind::Protocol));
    assert_eq!(failure.error.code, Some(-32603));
}

#[test]
fn a_requested_delay_is_kept() {
    let head = Head { status: 503, retry_after: Some("7".into()), ..Head::default() };
    assert_eq!(classify_http(&head, None, now(), AT).retry_after, Some(Duration::from_secs(7)));
}
