//! The server's own operations by REST: tools, hosted servers, and what policy says of others.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use crate::common::{ANSWER_TEXT, Server, legacy_server, script};

/// Sends a request; returns the status and the answer.
async fn send(
    server: &Server,
    method: Method,
    path: &str,
    body: Option<Value>,
) -> (StatusCode, Value) {
    let request = server.http.request(method, server.url(path));
    let request = match &body {
        Some(body) => request.json(body),
        None => request,
    };
    let response = request.send().await.unwrap();
    (response.status(), response.json().await.unwrap())
}

async fn expect(server: &Server, method: Method, path: &str, body: Option<Value>) -> Value {
    let (status, answer) = send(server, method, path, body).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    answer
}

async fn get(server: &Server, path: &str) -> Value {
    expect(server, Method::GET, path, None).await
}

#[tokio::test]
async fn servers_are_checked_hosted_restarted_and_removed() {
    let dir = tempfile::tempdir().unwrap();
    let a = script(dir.path(), "a", &legacy_server("work", ANSWER_TEXT));
    let server = Server::start(&["--allow-command", &a]).await;

    let config = json!({"mcpServers": {"a": {"command": a}, "x": {"command": "/bin/sh"}}});
    let report = expect(&server, Method::POST, "/server-checks", Some(config)).await;
    let [first, second] = report["servers"].as_array().unwrap().as_slice() else {
        panic!("{report}");
    };
    assert_eq!(
        (&first["verdict"], &first["rule"]["table"]),
        (&json!("allowed"), &json!("command"))
    );
    assert_eq!(second["verdict"], "refused", "{second}");
    assert!(second["reason"].as_str().unwrap().contains("FLEET-POLICY-COMMAND"), "{second}");
    assert_eq!(get(&server, "/servers").await, json!({"servers": []}), "nothing was started");

    let refused = json!({"name": "x", "config": {"command": "/bin/sh"}});
    let (status, problem) = send(&server, Method::POST, "/servers", Some(refused)).await;
    assert_eq!(
        (status, &problem["code"]),
        (StatusCode::UNPROCESSABLE_ENTITY, &json!("FLEET-SERVER-CONFIG"))
    );
    assert!(problem["detail"].as_str().unwrap().contains("FLEET-POLICY-COMMAND"), "{problem}");

    let hosted = json!({"name": "a", "config": {"command": a}});
    let hosted = expect(&server, Method::POST, "/servers", Some(hosted)).await;
    assert_eq!((&hosted["name"], &hosted["state"]), (&json!("a"), &json!("running")), "{hosted}");
    assert_eq!(get(&server, "/servers/a").await["tools"][0]["exposedAs"], "a__work");

    let restarted = expect(&server, Method::POST, "/servers/a/restarts", None).await;
    assert_ne!(restarted["pid"], hosted["pid"], "{restarted}");
    assert_eq!((&restarted["state"], &restarted["restarts"]), (&json!("running"), &json!(1)));

    for (method, path) in
        [(Method::GET, "/servers/nobody"), (Method::POST, "/servers/nobody/restarts")]
    {
        let (status, problem) = send(&server, method, path, None).await;
        assert_eq!(status, StatusCode::NOT_FOUND, "{problem}");
        assert_eq!(problem["code"], "FLEET-UNKNOWN-SERVER", "{problem}");
    }

    for removed in [true, false] {
        let answer = expect(&server, Method::DELETE, "/servers/a", None).await;
        assert_eq!(answer, json!({"name": "a", "removed": removed}));
    }
    assert_eq!(get(&server, "/servers").await, json!({"servers": []}));
}

#[tokio::test]
async fn tools_tell_how_their_calls_have_gone() {
    let dir = tempfile::tempdir().unwrap();
    let a = script(dir.path(), "a", &legacy_server("work", ANSWER_TEXT));
    let server = Server::start(&["--allow-command", &a]).await;
    server.initialize("a", json!({"command": a})).await;

    let own = get(&server, "/tools").await;
    let names: Vec<_> = own["tools"]
        .as_array()
        .unwrap()
        .iter()
        .map(|tool| tool["name"].as_str().unwrap())
        .collect();
    assert!(names.contains(&"server_list") && names.contains(&"a__work"), "{names:?}");
    assert_eq!(own["complete"], true);

    server.call("a__work", json!({"text": "hello"})).await;
    let listed = get(&server, "/tools?server=a").await;
    let [work] = listed["tools"].as_array().unwrap().as_slice() else { panic!("{listed}") };
    assert_eq!((&work["server"], &work["tool"]), (&json!("a"), &json!("work")), "{work}");
    assert_eq!((&work["calls"]["calls"], &work["calls"]["errorShare"]), (&json!(1), &json!(0.0)));
    assert!(work.get("inputSchema").is_none(), "{work}");

    let shown = get(&server, "/tools/a__work").await;
    assert_eq!(shown["inputSchema"]["type"], "object", "{shown}");
    assert_eq!(shown["calls"]["calls"], 1);
    let (status, problem) = send(&server, Method::GET, "/tools/nothing", None).await;
    assert_eq!((status, &problem["code"]), (StatusCode::NOT_FOUND, &json!("FLEET-NO-SUCH-TOOL")));
    let (status, problem) = send(&server, Method::GET, "/tools?sever=a", None).await;
    assert_eq!((status, &problem["parameter"]), (StatusCode::BAD_REQUEST, &json!("sever")));
}
