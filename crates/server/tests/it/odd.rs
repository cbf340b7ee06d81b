//! Hosted servers with odd answers: readable parts are passed on, and unreadable ones are reported
//! at once.

use serde_json::json;

use crate::{
    common::{ANSWER_TEXT, Server, eventually, legacy_server, script},
    sessions,
};

/// A shell fragment that answers a call with `answer`, in which `%s` stands for the id.
fn answers(kind: &str, answer: &str) -> String {
    format!("*'\"{kind}\"'*) printf '{answer}\\n' \"$id\" ;;\n")
}

#[tokio::test]
async fn an_unreadable_answer_ends_its_call_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let result = |content: &str| {
        format!(r#"{{"jsonrpc":"2.0","id":%s,"result":{{"content":[{content}]}}}}"#)
    };
    let cases = [
        answers("errnull", r#"{"jsonrpc":"2.0","id":%s,"result":{"content":[]},"error":null}"#),
        answers("nan", r#"{"jsonrpc":"2.0","id":%s,"result":{"content":[],"structuredContent":{"v":NaN}}}"#),
        answers("latin1", &result(r#"{"type":"text","text":"caf\351"}"#)),
        answers("surrogate", &result(r#"{"type":"text","text":"cut \\ud83d"}"#)),
        answers("video", &result(r#"{"type":"text","text":"fine"},{"type":"video","url":"x"}"#)),
        answers("errstr", r#"{"jsonrpc":"2.0","id":%s,"error":"boom"}"#),
        answers("errcode", r#"{"jsonrpc":"2.0","id":%s,"error":{"code":"E_FAIL","message":"boom"}}"#),
        answers(
            "huge",
            r#"{"jsonrpc":"2.0","id":%s,"result":{"content":[{"type":"text","text":"x","w":1.10}],"structuredContent":{"v":1e400},"z":-0}}"#,
        ),
        answers(
            "glued",
            r#"{"jsonrpc":"2.0","method":"notifications/message","params":{"level":"info","data":"x"}}{"jsonrpc":"2.0","id":%s,"result":{"content":[]}}"#,
        ),
        answers("pretty", r#"{\n  "jsonrpc": "2.0",\n  "id": %s,\n  "result": {\n    "content": []\n  }\n}"#),
        answers("logged", r#"2026-11-27 INFO called {"jsonrpc":"2.0","id":%s,"result":{"content":[]}}"#),
        // Debug lines on stdout, before the answer that they quote.
        format!(
            "*'\"quoted\"'*) {}; {}; {}; printf '{}\\n' \"$id\" ;;\n",
            r#"printf 'DEBUG -> {"jsonrpc":"2.0","id":%s,"result":{"content":[...\n' "$id""#,
            r#"printf 'Sending {\047id\047: %s, \047jsonrpc\047: \0472.0\047, \047result\047: {}}\n' "$id""#,
            r#"printf '{\047jsonrpc\047: \0472.0\047, \047id\047: %s, \047result\047: {}}\n' "$id""#,
            result(""),
        ),
        answers("python", r"{\047jsonrpc\047: \0472.0\047, \047id\047: %s, \047result\047: {}}"),
        answers("bare", r#"{"jsonrpc":"2.0","id":%s,"result":"done"}"#),
        answers("nobody", r#"{"jsonrpc":"2.0","id":null,"error":{"code":-32603,"message":"boom"}}"#),
        concat!(
            "*'\"long\"'*) printf '{\"jsonrpc\":\"2.0\",\"id\":%s,\"result\":{\"content\":[\"' \"$id\";",
            " head -c 17000000 /dev/zero | tr '\\0' A; printf '\"]}}\\n' ;;\n"
        )
        .to_owned(),
    ];
    let body = legacy_server("work", &format!("case \"$line\" in\n{}esac", cases.concat()));
    let program = script(dir.path(), "server", &body);
    let server = Server::start(&["--allow-command", &program]).await;
    server.initialize("x", json!({"command": program})).await;

    let call = async |kind: &str| server.call_raw("x__work", json!({"kind": kind})).await;
    let text = |text: &str| json!([{"type": "text", "text": text}]);
    let read = [
        ("errnull", json!([])),
        ("nan", json!([])),
        ("glued", json!([])),
        ("pretty", json!([])),
        ("logged", json!([])),
        ("quoted", json!([])),
        ("latin1", text("caf\u{fffd}")),
        ("surrogate", text("cut \u{fffd}")),
        ("video", json!([{"type": "text", "text": "fine"}, {"type": "video", "url": "x"}])),
    ];
    for (kind, content) in read {
        let answer = call(kind).await;
        assert_eq!(answer["result"]["content"], content, "{kind}: {answer}");
    }
    let huge = call("huge").await["result"].take().to_string();
    for part in [
        r#""content":[{"type":"text","text":"x","w":1.10}]"#,
        r#""structuredContent":{"v":1e+400}"#,
        r#""z":-0"#,
    ] {
        assert!(huge.contains(part), "{huge} lacks {part}");
    }
    let session = sessions::initialize(&server).await;
    let params = json!({"name": "x__work", "arguments": {"kind": "video"}});
    let request = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params});
    let (_, _, events) = sessions::post(&server, Some(&session), request).await;
    assert!(events.contains(r#"{"type":"video","url":"x"}"#), "{events}");
    assert!(!events.contains("io.mcp-fleet"), "{events}");

    let unreadable = [
        ("errstr", "its error has no code: \"boom\""),
        ("errcode", "\"E_FAIL\""),
        ("bare", "its result is not an object: \"done\""),
        ("python", "it is not JSON"),
        ("long", "it is a line of more than 16777216 bytes: {\"jsonrpc\""),
    ];
    for (kind, problem) in unreadable {
        let error = call(kind).await["error"].take();
        let message = error["message"].as_str().unwrap_or_default();
        assert!(message.contains(problem) && message.len() < 500, "{kind}: {error}");
        let expected = json!({
            "reason": "unreadable-answer",
            "code": "FLEET-UNREADABLE-ANSWER",
            "server": "x",
        });
        assert_eq!(error["data"], expected, "{kind}");
    }
    assert_eq!(call("nobody").await["error"]["message"], "boom");
    assert_eq!(server.status("x").await["restarts"], 0);
}

#[tokio::test]
async fn only_the_odd_items_of_a_list_are_lost() {
    let dir = tempfile::tempdir().unwrap();
    let work = r#"{"name":"work","inputSchema":{"type":"object"}}"#;
    let tools = [
        work,
        r#"{"name":"bare"}"#,
        r#"{"name":"bool","inputSchema":true}"#,
        r#"{"description":"no name"}"#,
        r#"{"name":"icons","inputSchema":{"type":"object"},"icons":[{"url":"x.png"}]}"#,
        r#"{"name":"ns/do it","inputSchema":{"type":"object"}}"#,
        r#"{"name":"größe","inputSchema":{"type":"object"}}"#,
    ];

    // The pages of the list form a circle, requests for prompts get no answer, and the server
    // doesn't name its version.
    let body = legacy_server("work", &format!("text=done; {ANSWER_TEXT}"))
        .replace(&format!("[{work}]"), &format!("[{}],\"nextCursor\":\"8\"", tools.join(",")))
        .replace(r#""capabilities":{"tools":{}}"#, r#""capabilities":{"tools":{},"prompts":{}}"#)
        .replace(r#","version":"1""#, "");
    let program = script(dir.path(), "server", &body);
    let server =
        Server::start(&["--allow-command", &program, "--handshake-timeout-ms", "6000"]).await;
    let hosted = server.initialize("q", json!({"command": program})).await;

    let mut names = server.tool_names().await;
    names.retain(|name| name.starts_with("q__"));
    let odd = ["q__gr__e_", "q__ns_do_it_"];
    let odd =
        odd.map(|start| names.iter().find(|name| name.starts_with(start)).expect(start).clone());
    let mut expected = vec!["q__work".to_owned(), "q__bare".to_owned(), "q__icons".to_owned()];
    expected.extend(odd.clone());
    expected.sort();
    assert_eq!(names, expected, "{hosted}");

    let hidden = server.status("q").await["hiddenTools"].take();
    let reasons: Vec<_> =
        hidden.as_array().unwrap().iter().map(|tool| (&tool["name"], &tool["reason"])).collect();
    let bool = json!("its inputSchema is not a JSON object: true");
    let nameless = json!("it has no name: {\"description\":\"no name\"}");
    assert_eq!(
        reasons,
        [(&json!("bool"), &bool), (&json!("(without a name)"), &nameless)],
        "{hidden}"
    );

    // A job with a server and a tool, or an older worker, uses the tool's own name.
    for name in ["q__ns/do it", "q__größe", &odd[0], &odd[1]] {
        let answer = server.call_raw(name, json!({})).await;
        assert_eq!(answer["result"]["content"][0]["text"], "done", "{name}: {answer}");
    }
}

/// The known items of a list stay if the list can't be read again.
#[tokio::test]
async fn a_list_stays_if_it_can_not_be_read_again() {
    let dir = tempfile::tempdir().unwrap();
    let prompts = concat!(
        "*'\"prompts/list\"'*) if [ -n \"$changed\" ]; then",
        " printf '{\"jsonrpc\":\"2.0\",\"id\":%s,\"error\":{\"code\":-32603,\"message\":\"busy\"}}\\n' \"$id\"; else",
        " printf '{\"jsonrpc\":\"2.0\",\"id\":%s,\"result\":{\"prompts\":[{\"name\":\"p\"}]}}\\n' \"$id\"; fi ;;\n"
    );
    let says = |what: &str| {
        format!(
            "printf '{{\"jsonrpc\":\"2.0\",\"method\":\"notifications/{what}/list_changed\"}}\\n'"
        )
    };

    // The tools change afterwards, which shows that the prompts were requested.
    let change =
        format!("changed=yes; {}; {}; text=done; {ANSWER_TEXT}", says("prompts"), says("tools"));
    let body = legacy_server("work", &change)
        .replace(r#""name":"work""#, r#""name":"work'"$changed"'""#)
        .replace(
            r#""capabilities":{"tools":{}}"#,
            r#""capabilities":{"tools":{"listChanged":true},"prompts":{"listChanged":true}}"#,
        )
        .replace("    *'\"tools/call\"'*)", &format!("    {prompts}    *'\"tools/call\"'*)"));
    let program = script(dir.path(), "server", &body);
    let server = Server::start(&["--allow-command", &program]).await;
    server.initialize("q", json!({"command": program})).await;
    let prompts = async || server.request("prompts/list", json!({})).await.to_string();
    assert!(prompts().await.contains("q__p"));

    server.call_raw("q__work", json!({})).await;
    eventually("the tools to change", async || {
        server.tool_names().await.iter().any(|name| name == "q__workyes").then_some(())
    })
    .await;
    assert!(prompts().await.contains("q__p"), "the list of prompts is empty");
}
