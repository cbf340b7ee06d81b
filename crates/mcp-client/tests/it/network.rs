//! What the network can do to a call, tested with real sockets. Each test asks: may the tool have
//! run?

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::support::{
    call, client, expect, failure, nobody, raw, result, succeeds, text, until, write_json,
};
use fleet_job::outcome::ErrorKind;
use fleet_job::outcome::FailureClass::{Permanent, Retry, Unavailable};
use fleet_mcp_client::ToolCall;
use serde_json::{Map, Value};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

#[tokio::test]
async fn a_refused_connection() {
    let url = nobody().await;
    let failure = expect(&client([&url], |_| {}), Unavailable, ErrorKind::Connect).await;
    assert!(failure.error.message.contains(&url), "{failure:?}");
}

#[tokio::test]
async fn an_unknown_host() {
    let client = client(&["http://mcp-fleet.invalid:8080".to_owned()], |config| {
        // A resolver that cannot reach its servers may take longer than a test should.
        config.connect_timeout = Duration::from_millis(500);
    });
    expect(&client, Unavailable, ErrorKind::Connect).await;
}

#[tokio::test]
async fn tls_fails() {
    // The server speaks plain HTTP and answers accordingly.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            drop(stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await);
        }
    });
    expect(&client(&[url], |_| {}), Unavailable, ErrorKind::Connect).await;
}

#[tokio::test]
async fn a_connection_that_is_never_established() {
    // The kernel accepts the connection, but the TLS handshake is never answered.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}", listener.local_addr().unwrap());
    let short = Duration::from_millis(50);
    let by_connect = client([&url], |config| config.connect_timeout = short);
    expect(&by_connect, Unavailable, ErrorKind::Connect).await;
    let by_handshake = client([&url], |config| config.handshake_timeout = short);
    expect(&by_handshake, Unavailable, ErrorKind::Connect).await;
    let by_deadline = client(&[url], |config| config.default_timeout = short);
    expect(&by_deadline, Unavailable, ErrorKind::Connect).await;
}

#[tokio::test]
async fn a_connection_closed_after_the_request() {
    let url = raw(|stream, _| Box::pin(async { drop(stream) })).await;
    expect(&client(&[url], |_| {}), Retry, ErrorKind::ConnectionLost).await;
}

#[tokio::test]
async fn a_connection_closed_before_the_request() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { while listener.accept().await.is_ok() {} });
    // It is a race whether the request was sent before the close was noticed, but in either case it
    // is not the job's fault.
    let failure = failure(&client(&[url], |_| {})).await;
    assert_ne!(failure.class, Permanent, "{failure:?}");
}

#[tokio::test]
async fn a_connection_reset_in_the_body() {
    let url = raw(|mut stream, _| {
        Box::pin(async move {
            let head =
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 100\r\n\r\n{\"json";
            stream.write_all(head.as_bytes()).await.unwrap();
            stream.set_zero_linger().unwrap();
        })
    })
    .await;
    expect(&client(&[url], |_| {}), Retry, ErrorKind::ConnectionLost).await;
}

#[tokio::test]
async fn a_stream_that_ends_before_the_answer() {
    let url = raw(|mut stream, _| {
        Box::pin(async move {
            let body = "data: {\"method\":\"notifications/message\",\"params\":{}}\n\n";
            let head =
                "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\n";
            stream.write_all(format!("{head}{body}").as_bytes()).await.unwrap();
        })
    })
    .await;
    expect(&client(&[url], |_| {}), Retry, ErrorKind::ConnectionLost).await;
}

#[tokio::test]
async fn no_answer() {
    let url = raw(|mut stream, _| {
        Box::pin(async move {
            // Until the client closes.
            drop(stream.read(&mut [0]).await);
        })
    })
    .await;
    let client = client(&[url], |_| {});
    let mut call = ToolCall::new("t", Map::new());
    call.timeout = Some(Duration::from_millis(300));
    let fleet_job::outcome::Outcome::Failed(failure) = client.call_tool(call).await else {
        panic!("succeeded")
    };
    assert_eq!((failure.class, failure.error.kind), (Retry, ErrorKind::Timeout), "{failure:?}");
}

#[tokio::test]
async fn an_endpoint_that_hangs_in_the_handshake() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let client = client(&[url], |config| config.handshake_timeout = Duration::from_millis(100));
    let start = Instant::now();
    let calls: Vec<_> = (0..50)
        .map(|_| {
            let client = client.clone();
            tokio::spawn(async move { failure(&client).await })
        })
        .collect();
    for call in calls {
        let failure = call.await.unwrap();
        assert_eq!((failure.class, failure.error.kind), (Retry, ErrorKind::Timeout), "{failure:?}");
    }
    assert!(start.elapsed() < Duration::from_secs(3), "the calls waited one after another");
}

#[tokio::test]
async fn not_http() {
    let url = raw(|mut stream, _| {
        Box::pin(async move { stream.write_all(b"220 mail.example ESMTP\r\n").await.unwrap() })
    })
    .await;
    expect(&client(&[url], |_| {}), Retry, ErrorKind::ConnectionLost).await;
}

#[tokio::test]
async fn a_slow_answer_is_accepted() {
    let url = raw(|mut stream, request| {
        Box::pin(async move {
            let body = result(&request["id"], text("slow")).to_string();
            let head = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            );
            for byte in head.bytes() {
                stream.write_all(&[byte]).await.unwrap();
                stream.flush().await.unwrap();
                tokio::task::yield_now().await;
            }
        })
    })
    .await;
    assert_eq!(succeeds(&client(&[url], |_| {})).await["content"][0]["text"], "slow");
}

/// Sends `head` and then 100 MiB, and counts the bytes sent before the client closed.
async fn flood(head: &'static str) -> (String, Arc<AtomicUsize>) {
    let written = Arc::new(AtomicUsize::new(0));
    let count = written.clone();
    let url = raw(move |mut stream, _| {
        let count = count.clone();
        Box::pin(async move {
            stream.write_all(head.as_bytes()).await.unwrap();
            let chunk = vec![b'x'; 1 << 16];
            while count.load(Ordering::SeqCst) < 100 << 20 && stream.write_all(&chunk).await.is_ok()
            {
                count.fetch_add(chunk.len(), Ordering::SeqCst);
            }
        })
    })
    .await;
    (url, written)
}

#[tokio::test]
async fn too_much() {
    for head in [
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 104857600\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\n\r\n",
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nconnection: close\r\n\r\ndata: ",
    ] {
        let (url, written) = flood(head).await;
        let client = client(&[url], |config| config.max_response_bytes = 1 << 20);
        let failure = expect(&client, Permanent, ErrorKind::Protocol).await;
        assert!(failure.error.message.contains("1048576 bytes"), "{failure:?}");
        assert!(written.load(Ordering::SeqCst) < 50 << 20, "the whole body was read");
    }
}

#[tokio::test]
async fn a_very_large_error_page() {
    let (url, written) =
        flood("HTTP/1.1 500 Oops\r\ncontent-type: text/plain\r\nconnection: close\r\n\r\n").await;
    let failure = expect(&client(&[url], |_| {}), Retry, ErrorKind::Http).await;
    assert!(failure.error.message.len() < 2000);
    assert!(written.load(Ordering::SeqCst) < 50 << 20, "the whole body was read");
}

#[tokio::test]
async fn dropping_the_call_closes_the_connection() {
    let state = Arc::new(AtomicUsize::new(0));
    let server = state.clone();
    let url = raw(move |mut stream, _| {
        let state = server.clone();
        Box::pin(async move {
            state.store(1, Ordering::SeqCst);
            assert_eq!(stream.read(&mut [0]).await.unwrap_or(0), 0);
            state.store(2, Ordering::SeqCst);
        })
    })
    .await;
    let client = client(&[url], |_| {});
    let running = tokio::spawn(async move { call(&client).await });
    until("the call", || state.load(Ordering::SeqCst) == 1).await;
    running.abort();
    until("the close", || state.load(Ordering::SeqCst) == 2).await;
}

#[tokio::test]
async fn connections_are_reused() {
    let connections = Arc::new(AtomicUsize::new(0));
    let count = connections.clone();
    let url = raw(move |mut stream, first| {
        count.fetch_add(1, Ordering::SeqCst);
        Box::pin(async move {
            let mut request: Option<Value> = Some(first);
            while let Some(found) = request {
                write_json(&mut stream, &result(&found["id"], text("ok"))).await;
                request = crate::support::read_request(&mut stream).await;
            }
        })
    })
    .await;
    let client = client(&[url], |_| {});
    for _ in 0..10 {
        succeeds(&client).await;
    }
    assert_eq!(connections.load(Ordering::SeqCst), 1);
}
