//! Limits of calls: their number, their duration, and no calls to a server that doesn't answer.

use std::net::SocketAddr;

use serde_json::json;
use tokio::net::{TcpListener, TcpStream};

use crate::common::{ANSWER_TEXT, Server, eventually, legacy_server, patient, script, tree};

/// A proxy for a server that can be blocked while its address stays the same.
struct Line {
    address: SocketAddr,
    to: SocketAddr,
    task: Option<tokio::task::JoinHandle<()>>,
}

impl Line {
    async fn new(to: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut line = Self { address: listener.local_addr().unwrap(), to, task: None };
        line.carry(listener);
        line
    }

    fn carry(&mut self, listener: TcpListener) {
        let to = self.to;
        self.task = Some(tokio::spawn(async move {
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((mut near, _)) = listener.accept().await {
                connections.spawn(async move {
                    let mut far = TcpStream::connect(to).await.unwrap();
                    // It doesn't matter which side closed the connection.
                    _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                });
            }
        }));
    }

    /// Cuts all connections and refuses new ones.
    async fn cut(&mut self) {
        let task = self.task.take().unwrap();
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
    }

    async fn mend(&mut self) {
        let listener =
            eventually("the port to be free", async || TcpListener::bind(self.address).await.ok())
                .await;
        self.carry(listener);
    }
}

#[tokio::test]
async fn a_breaker_counts_lost_calls_but_not_errors() {
    let tree = tree();
    let upstream = Server::start(&["--root", tree.root.to_str().unwrap()]).await;
    let mut line = Line::new(upstream.address).await;
    let dir = tempfile::tempdir().unwrap();
    let policy = dir.path().join("policy.toml");
    let text =
        "[limits]\nbreaker_failures = 3\nbreaker_wait_ms = 300\n[[remote]]\nhost = \"127.0.0.1\"\n";
    std::fs::write(&policy, text).unwrap();
    let server = Server::start(&["--policy", policy.to_str().unwrap()]).await;
    server.initialize("up", json!({"url": format!("http://{}/mcp", line.address)})).await;

    // Error results and JSON-RPC errors are answers, so any number of them doesn't count.
    for _ in 0..5 {
        server.call_error("up__file_read", json!({"path": "nope"})).await;
        let error = server.call_raw("up__file_read", json!({"path": 7})).await;
        assert!(error["error"]["data"]["reason"].is_null(), "{error}");
    }
    let status = server.status("up").await;
    assert_eq!(status["breaker"], json!({"state": "closed", "failures": 0}), "{status}");

    line.cut().await;
    let hello = json!({"path": "hello.txt"});
    let open = eventually("the breaker to open", async || {
        let answer = server.call_raw("up__file_read", hello.clone()).await;
        // The first calls find nobody listening; later calls are not even tried.
        let message = answer["error"]["message"].as_str().unwrap().to_owned();
        message.contains("calls in a row").then_some(answer)
    })
    .await;
    assert!(open["error"]["data"]["retryAfterMs"].as_u64().unwrap() <= 300, "{open}");

    let status = server.status("up").await;
    assert_ne!(status["breaker"]["state"], "closed", "{status}");
    let listed = server.request("tools/list", json!({})).await;
    let warning = &listed["result"]["_meta"]["io.mcp-fleet/unavailable"][0];
    assert!(warning["reason"].as_str().unwrap().contains("not answered"), "{listed}");
    assert_eq!(
        server.metric("mcp_server_hosted_breaker_changes_total{to=\"open\"}").await,
        Some(1.0)
    );
    assert!(
        server.metric("mcp_server_hosted_calls_turned_away_total{reason=\"breaker-open\"}").await
            >= Some(1.0)
    );

    line.mend().await;
    eventually("a probe to find it again", async || {
        server.call_raw("up__file_read", hello.clone()).await["result"].is_object().then_some(())
    })
    .await;
    assert_eq!(server.status("up").await["breaker"]["state"], "closed");
    assert_eq!(server.metric("mcp_server_hosted_calls_in_flight").await, Some(0.0));
}

#[tokio::test]
async fn calls_wait_for_their_turn_for_a_limited_time() {
    let dir = tempfile::tempdir().unwrap();
    let program = patient(dir.path(), "server");
    let policy = dir.path().join("policy.toml");
    let text = format!(
        "[[server]]\nname = \"one*\"\nmax_concurrency = 1\nmax_queued = 1\nqueue_timeout_ms = 1000\n[[server]]\n\
         name = \"*\"\n[[server.tool]]\nname = \"w?rk\"\ncall_timeout_ms = 100\n[[command]]\nargv = [{program:?}]\n\
         [[command]]\nargv = [\"/**\"]\n"
    );

    // The rule for `*` comes after the one for `one*`, which sets no timeout.
    std::fs::write(&policy, text).unwrap();
    let server = Server::start(&["--policy", policy.to_str().unwrap()]).await;
    server.initialize("short", json!({"command": program})).await;
    let late = server.call_raw("short__work", json!({})).await;
    assert_eq!(late["error"]["data"]["reason"], "timeout", "{late}");
    assert!(late["error"]["message"].as_str().unwrap().contains("within 100 ms"), "{late}");

    let text = std::fs::read_to_string(&policy)
        .unwrap()
        .replace("call_timeout_ms = 100", "max_concurrency = 9");
    std::fs::write(&policy, text).unwrap();
    eventually("the new policy to hold", async || {
        server
            .metric("mcp_server_policy_reloads_total{outcome=\"applied\"}")
            .await
            .filter(|n| *n >= 1.0)
    })
    .await;
    server.initialize("one", json!({"command": program})).await;
    std::fs::remove_file(dir.path().join("begun")).unwrap();
    let rest = async {
        let begun = dir.path().join("begun");
        eventually("the first call to begin", async || begun.exists().then_some(())).await;
        let third = async {
            eventually("the second call to wait", async || {
                let status = server.status("one").await;
                (status["callsWaiting"] == 1 && status["callsInFlight"] == 1).then_some(())
            })
            .await;
            server.call_raw("one__work", json!({})).await
        };
        let (second, third) = tokio::join!(server.call_raw("one__work", json!({})), third);
        let message = |answer: &serde_json::Value| {
            assert_eq!(answer["error"]["code"], -32603, "{answer}");
            assert_eq!(answer["error"]["data"]["reason"], "server-busy", "{answer}");
            assert!(answer["error"]["data"]["retryAfterMs"].is_u64(), "{answer}");
            answer["error"]["message"].as_str().unwrap().to_owned()
        };
        assert!(message(&second).contains("none ended within 1000 ms"));
        assert!(message(&third).contains("the queue is full"));
        std::fs::write(dir.path().join("go"), "").unwrap();
    };

    let (first, ()) = tokio::join!(server.call("one__work", json!({})), rest);
    assert_eq!(first["content"][0]["text"], "done");
    server.call("one__work", json!({})).await;
}

#[tokio::test]
async fn a_child_that_dies_at_every_call_opens_the_breaker() {
    let dir = tempfile::tempdir().unwrap();
    let body = legacy_server("work", &format!("exit 9; {ANSWER_TEXT}"));
    let program = script(dir.path(), "server", &body);
    let policy = dir.path().join("policy.toml");
    let text = format!(
        "[limits]\nbreaker_failures = 2\nbreaker_wait_ms = 60000\nbreaker_max_wait_ms = 60000\n[[command]]\nargv = [{program:?}]\n"
    );
    std::fs::write(&policy, text).unwrap();
    let server = Server::start(&["--policy", policy.to_str().unwrap()]).await;
    server.initialize("x", json!({"command": program})).await;
    let opened = eventually("the breaker to open", async || {
        let answer = server.call_raw("x__work", json!({})).await;
        let message = answer["error"]["message"].as_str().unwrap().to_owned();
        message.contains("in a row").then_some(answer)
    })
    .await;
    assert!(opened["error"]["data"]["retryAfterMs"].as_u64().unwrap() > 1000, "{opened}");

    // Another server under the same name starts without this history.
    let other =
        script(dir.path(), "server", &legacy_server("work", &format!("text=hi; {ANSWER_TEXT}")));
    server.initialize("x", json!({"command": other})).await;
    assert_eq!(server.call("x__work", json!({})).await["content"][0]["text"], "hi");
}
