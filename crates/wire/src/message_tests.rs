//! Tests of answers in every form, and of messages that are not answers.

use proptest::prelude::*;
use serde_json::json;

use super::*;

fn result(value: Value) -> Reply {
    let Value::Object(result) = value else { panic!("not an object") };
    Reply::Result(result)
}

fn error(code: i64, message: &str) -> Reply {
    Reply::Error(RpcError { code, message: message.to_owned(), data: None })
}

fn seven() -> Option<Id> {
    Some(Id::Number(7))
}

#[test]
fn answers_are_read_in_every_form() {
    let check = |text: &[u8], expected: Reply| {
        assert_eq!(
            read(text),
            [Message::Reply(seven(), expected)],
            "{}",
            String::from_utf8_lossy(text)
        );
    };
    check(br#"{"jsonrpc":"2.0","id":7,"result":{"a":1}}"#, result(json!({"a": 1})));
    check(b"\xef\xbb\xbf{\"id\":7,\"result\":{}}", result(json!({})));
    check(br#"[{"id":7,"result":{}}]"#, result(json!({})));
    check(br#"{"id":7,"result":{},"error":null}"#, result(json!({})));
    check(br#"{"id":7.0,"result":{},"extra":1}"#, result(json!({})));
    check(br#"{"id":7,"result":{"v":NaN}}"#, result(json!({"v": null})));
    check(br#"{"id":7,"result":{"t":"\ud83d"}}"#, result(json!({"t": "\u{fffd}"})));
    check(b"{\"id\":7,\"result\":{\"t\":\"caf\xe9\"}}", result(json!({"t": "caf\u{fffd}"})));
    check(br#"{"id":7,"error":{"code":-32602,"message":"m"}}"#, error(-32602, "m"));
    check(br#"{"id":7,"error":{"code":-32000.0,"message":"m"},"result":null}"#, error(-32000, "m"));
}

#[test]
fn unreadable_answers_name_their_request() {
    let check = |text: &str, id: Option<Id>, why: &str, cut: bool| {
        let [Message::Reply(found, Reply::Unreadable(unreadable))] = &read(text.as_bytes())[..]
        else {
            panic!("{text}: {:?}", read(text.as_bytes()));
        };
        assert_eq!((found, unreadable.cut), (&id, cut), "{text}");
        assert!(unreadable.why.contains(why), "{text}: {}", unreadable.why);
    };
    check(r#"{"id":7,"result":"done"}"#, seven(), "its result is not an object: \"done\"", false);
    check(r#"{"id":7,"error":"boom"}"#, seven(), "its error has no code: \"boom\"", false);
    check(r#"{"id":7,"error":{"code":"E","message":"boom"}}"#, seven(), "boom", false);
    check(r#"{"id":7,"error":{"code":-1}}"#, seven(), "no message: {\"code\":-1}", false);
    check(r#"{"jsonrpc":"2.0","id":7}"#, seven(), "neither a result nor an error", false);
    check(r#"{"result":3}"#, None, "not an object", false);
    check(r#"{"id":7,"result":{"t":"cut"#, seven(), "it is not JSON: EOF", true);

    let deep = format!(r#"{{"id":7,"result":{{"d":{}{}}}}}"#, "[".repeat(200), "]".repeat(200));
    check(&deep, seven(), "recursion limit", false);
}

#[test]
fn other_messages_are_not_answers() {
    let noise = |text: &str| {
        assert!(matches!(read(text.as_bytes())[..], [Message::Noise(_)]), "{text}");
    };
    for text in
        ["", "ready", "[INFO] ready> {}", "[]", "{not json}", "3", r#"{"level":"info","id":7}"#]
    {
        noise(text);
    }

    let request = json!({"id": "p", "method": "ping"});
    assert_eq!(
        read(request.to_string().as_bytes()),
        [Message::Request("ping".to_owned(), request)]
    );

    let two = read(br#"[{"method":"a"},{"id":7,"result":{}}]"#);
    assert!(matches!(&two[..], [Message::Notification(..), Message::Reply(..)]), "{two:?}");

    let nameless = read(br#"{"id":null,"error":{"code":-32603,"message":"boom"}}"#);
    assert_eq!(nameless, [Message::Reply(None, error(-32603, "boom"))]);
}

/// Otherwise a line of numbers would need many times its size in memory.
#[test]
fn elements_that_are_not_messages_count_once() {
    let found = read(format!("[{}3]", "1,".repeat(100_000)).as_bytes());
    assert!(matches!(found[..], [Message::Noise(_)]), "{}", found.len());
}

/// Each string within a string has room for as many brackets again, and the stack is limited.
#[test]
fn strings_within_strings_are_searched_a_few_times() {
    let mut text = r#"{"jsonrpc":"2.0","id":7,"result":{}}"#.to_owned();
    for depth in 0..12 {
        let found = read(text.as_bytes());
        let is_found = matches!(found[..], [Message::Reply(..) | Message::Quoted(..)]);
        assert_eq!(is_found, depth <= MAX_STRINGS, "{depth}: {found:?}");
        let string = Value::from(text).to_string();
        text = format!("{}{string}{}", "[".repeat(100), "]".repeat(100));
    }
}

#[test]
fn ids_compare_as_numbers_and_text() {
    assert!(Id::Number(7).is_number(7) && Id::Text("7".to_owned()).is_number(7));
    assert!(!Id::Number(8).is_number(7) && !Id::Text("x".to_owned()).is_number(7));
}

#[test]
fn long_answers_are_identified_by_their_ends() {
    let head = br#"{"jsonrpc":"2.0","id":7,"result":{"content":[{"type":"image","data":"AAAA"#;
    assert_eq!(id_of_long(head, b"AAAA"), seven());
    assert_eq!(
        id_of_long(b"{\"result\":{\"data\":\"AAA", br#"AA"},"jsonrpc":"2.0","id":7}"#),
        seven()
    );
    assert_eq!(id_of_long(b"xxxxxxxx", b"xxxx"), None);
    assert_eq!(id_of_long(br#"{"id":7,"method":"sampling/createMessage","params":"#, b"}"), None);
}

proptest! {
    #[test]
    fn anything_can_be_read(bytes in any::<Vec<u8>>()) {
        prop_assert!(!read(&bytes).is_empty());
    }
}

#[test]
fn an_answer_is_recognized_by_its_id() {
    let check = |id: &Id, text: &str, expected: Option<Answer>| {
        let found = read(text.as_bytes()).remove(0).answer_to(id);
        assert_eq!(found.ok(), expected, "{text}");
    };
    let seven = Id::Number(7);
    let error = |addressed| {
        let error = RpcError { code: -32000, message: "m".to_owned(), data: None };
        Some(Answer::Error { error, addressed })
    };
    check(&seven, r#"{"id":"7","result":{}}"#, Some(Answer::Result(Map::new())));
    check(&seven, r#"{"id":7,"error":{"code":-32000,"message":"m"}}"#, error(true));
    check(&seven, r#"{"id":null,"error":{"code":-32000,"message":"m"}}"#, error(false));
    check(&seven, r#"{"id":8,"error":{"code":-32000,"message":"m"}}"#, None);
    check(&seven, r#"{"id":8,"result":"x"}"#, None);
    check(&seven, r#"{"method":"ping","id":7}"#, None);
    check(&Id::Text("a".to_owned()), r#"{"id":"a","result":{}}"#, Some(Answer::Result(Map::new())));

    let unreadable = "its result is not an object: \"x\"".to_owned();
    check(&seven, r#"{"id":7,"result":"x"}"#, Some(Answer::Unreadable(unreadable.clone())));
    check(&seven, r#"{"result":"x"}"#, Some(Answer::Malformed(unreadable)));
    let cut = read(br#"{"id":7,"result":{"a":[[1"#).remove(0).answer_to(&seven);
    assert!(matches!(cut, Ok(Answer::Unreadable(_))), "{cut:?}");
    check(&seven, "<html>", Some(Answer::Malformed("it is not JSON".to_owned())));
}

#[test]
fn a_certain_answer_takes_precedence_over_a_possible_one() {
    let text = br#"[3,{"method":"a"},{"id":7,"result":{}}]"#;
    assert_eq!(answer_in(text, &Id::Number(7)), Some(Answer::Result(Map::new())));
    assert!(matches!(answer_in(b"[3]", &Id::Number(7)), Some(Answer::Malformed(_))));
    assert_eq!(answer_in(br#"{"id":8,"result":{}}"#, &Id::Number(7)), None);
}

#[test]
fn a_text_that_breaks_off_is_recognized() {
    for cut in ["", " \n", "{", r#"{"id":7,"result":{"t":"}"#, "\u{feff}[{}"] {
        assert!(is_cut(cut.as_bytes()), "{cut}");
    }
    for whole in [r#"{"id":7,"result":{}}"#, "[]", "overloaded", "{'id': 7, 'result': '{'}"] {
        assert!(!is_cut(whole.as_bytes()), "{whole}");
    }
}

#[test]
fn an_answer_can_name_two_requests() {
    let ids = ids_in(br#"{"jsonrpc":"2.0","id":7,"result":{"id":3},"id":99}"#);
    assert_eq!(ids, [Id::Number(7), Id::Number(99)]);
}
