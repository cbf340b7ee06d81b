//! Remote servers that close connections which they had left open.

use std::net::SocketAddr;

use serde_json::json;
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::{TcpListener, TcpStream},
};

use crate::{
    common::Server,
    odd_remotes::{Remote, plain},
};

/// Reads one request: its head, and its body as long as the head says.
async fn read_request(from: &mut TcpStream) -> Option<Vec<u8>> {
    let mut request = Vec::new();
    loop {
        if from.read_buf(&mut request).await.ok()? == 0 {
            return None;
        }
        let text = String::from_utf8_lossy(&request);
        let Some((head, body)) = text.split_once("\r\n\r\n") else { continue };
        let length = head
            .to_lowercase()
            .lines()
            .find_map(|line| line.strip_prefix("content-length:")?.trim().parse::<usize>().ok());
        if body.len() >= length.unwrap_or(0) {
            return Some(request);
        }
    }
}

/// Answers one request of a connection as `to` does, without saying that the connection ends, and
/// closes it when the next request comes.
async fn carry_one(mut near: TcpStream, to: SocketAddr) -> Option<()> {
    let request = read_request(&mut near).await?;
    let line = request.iter().position(|byte| *byte == b'\n')? + 1;
    let mut far = TcpStream::connect(to).await.ok()?;
    let asked = [&request[..line], b"connection: close\r\n", &request[line..]].concat();
    far.write_all(&asked).await.ok()?;

    let mut answer = Vec::new();
    far.read_to_end(&mut answer).await.ok()?;
    let answer = String::from_utf8(answer).ok()?.replacen("connection: close\r\n", "", 1);
    near.write_all(answer.as_bytes()).await.ok()?;
    near.readable().await.ok()
}

/// A line to a server on which every connection carries one request.
async fn closing_line(to: SocketAddr) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((near, _)) = listener.accept().await {
            tokio::spawn(carry_one(near, to));
        }
    });
    address
}

#[tokio::test]
async fn a_remote_that_closes_connections_unannounced_is_hosted_and_called() {
    let remote = Remote::posted(plain).await;
    let to = remote.url.trim_start_matches("http://").trim_end_matches("/mcp");
    let line = closing_line(to.parse().unwrap()).await;

    let server = Server::start(&["--allow-remote", "127.0.0.1"]).await;
    server.initialize("x", json!({"url": format!("http://{line}/mcp")})).await;
    for _ in 0..5 {
        let result = server.call("x__work", json!({})).await;
        assert_eq!(result["content"][0]["text"], "done", "{result}");
    }
    assert_eq!(remote.count("tools/call"), 5, "no call ran twice");
    assert_eq!(remote.count("notifications/initialized"), 1);
}
