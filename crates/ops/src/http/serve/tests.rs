//! Limits on connections.

use axum::routing::get;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::task::JoinHandle;

use super::*;
use crate::http::bind;

const PATIENCE: Duration = Duration::from_secs(30);
const SHORT: Duration = Duration::from_millis(30);
/// Long enough for a request on a busy machine.
const MODEST: Duration = Duration::from_millis(500);

fn graceful(grace: Duration) -> Serving {
    Serving { grace, ..Serving::default() }
}

async fn start(limits: ConnectionLimits) -> (SocketAddr, JoinHandle<()>) {
    let (listener, addr) = bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
    let router =
        Router::new().route("/health", get(async || "fine")).route("/work", get(async || "done"));
    let server = tokio::spawn(serve_within(
        limits,
        graceful(SHORT),
        listener,
        router,
        CancellationToken::new(),
    ));
    (addr, server)
}

async fn send(client: &mut TcpStream, text: &str) {
    client.write_all(text.as_bytes()).await.unwrap();
}

/// Reads until the server closes the connection.
async fn read_until_closed(client: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    // A reset also counts as closing.
    _ = tokio::time::timeout(PATIENCE, client.read_to_end(&mut answer))
        .await
        .expect("never closed");
    String::from_utf8(answer).unwrap()
}

async fn read_until(client: &mut TcpStream, expected: &str) {
    let mut answer = Vec::new();
    while !String::from_utf8_lossy(&answer).contains(expected) {
        let mut chunk = [0; 1024];
        let read = tokio::time::timeout(PATIENCE, client.read(&mut chunk)).await.unwrap().unwrap();
        assert_ne!(read, 0, "closed before {expected:?}: {:?}", String::from_utf8_lossy(&answer));
        answer.extend_from_slice(&chunk[..read]);
    }
}

const WORK: &str = "GET /work HTTP/1.1\r\nhost: x\r\n\r\n";

#[tokio::test]
async fn slow_headers_end_a_connection() {
    let (addr, ..) = start(ConnectionLimits { first_header: SHORT, ..LIMITS }).await;
    for text in ["", "GET / HT", "GET / HTTP/1.1\r\nhost: x\r\nslow: "] {
        let mut client = TcpStream::connect(addr).await.unwrap();
        send(&mut client, text).await;
        assert_eq!(read_until_closed(&mut client).await, "", "{text:?}");
    }
}

#[tokio::test]
async fn later_headers_have_more_time() {
    let (addr, ..) = start(ConnectionLimits { first_header: MODEST, ..LIMITS }).await;
    let mut client = TcpStream::connect(addr).await.unwrap();
    for _ in 0..2 {
        send(&mut client, WORK).await;
        read_until(&mut client, "done").await;
        // Let the limit for the first header pass; nothing observable happens then, so there is
        // no condition to poll.
        tokio::time::sleep(MODEST + SHORT).await;
    }
    let (addr, ..) = start(ConnectionLimits { next_header: MODEST, ..LIMITS }).await;
    let mut client = TcpStream::connect(addr).await.unwrap();
    send(&mut client, WORK).await;
    read_until(&mut client, "done").await;
    send(&mut client, "GET /work HTTP/1.1\r\nslow: ").await;
    read_until_closed(&mut client).await;
}

const HEALTH: &str = "GET /health HTTP/1.1\r\nhost: x\r\n\r\n";

/// Opens a connection that holds a seat.
async fn seated(addr: SocketAddr) -> TcpStream {
    let mut client = TcpStream::connect(addr).await.unwrap();
    send(&mut client, WORK).await;
    read_until(&mut client, "done").await;
    client
}

#[tokio::test]
async fn the_number_of_connections_is_limited() {
    let (addr, ..) = start(ConnectionLimits { connections: 1, ..LIMITS }).await;
    let mut first = seated(addr).await;

    let mut second = TcpStream::connect(addr).await.unwrap();
    send(&mut second, WORK).await;
    let answer = read_until_closed(&mut second).await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("retry-after: 1"), "{answer}");

    let mut third = TcpStream::connect(addr).await.unwrap();
    send(&mut third, HEALTH).await;
    let answer = read_until_closed(&mut third).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("fine"), "{answer}");

    send(&mut first, WORK).await;
    read_until(&mut first, "done").await;
    drop(first);

    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut client = TcpStream::connect(addr).await.unwrap();
        send(&mut client, "GET /work HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
        if read_until_closed(&mut client).await.contains("done") {
            break;
        }
        assert!(Instant::now() < deadline, "the seat was not freed");
    }
}

#[tokio::test]
async fn silent_connections_do_not_block_others() {
    let patient =
        ConnectionLimits { first_header: 10 * PATIENCE, next_header: 10 * PATIENCE, ..LIMITS };
    let (addr, ..) = start(ConnectionLimits { connections: 4, waiting: 3, ..patient }).await;

    let mut silent = Vec::new();
    for n in 0..30 {
        let mut client = TcpStream::connect(addr).await.unwrap();
        send(&mut client, if n % 2 == 0 { "" } else { "GET /health HTTP/1.1\r\nslow: " }).await;
        silent.push(client);
    }

    for request in [HEALTH, WORK] {
        let mut client = TcpStream::connect(addr).await.unwrap();
        send(&mut client, request).await;
        read_until(&mut client, "HTTP/1.1 200").await;
    }
    assert_eq!(read_until_closed(&mut silent[0]).await, "");
}

#[tokio::test]
async fn open_connections_are_counted() {
    let recorder = metrics_exporter_prometheus::PrometheusBuilder::new().build_recorder();
    let (handle, _local) = (recorder.handle(), ::metrics::set_default_local_recorder(&recorder));
    let open = async |expected: &str| {
        let line = format!("{} {expected}\n", HTTP_CONNECTIONS.name);
        let counted = async {
            while !handle.render().contains(&line) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, counted)
            .await
            .unwrap_or_else(|_| panic!("{line}{}", handle.render()));
    };

    let (addr, ..) = start(LIMITS).await;
    let (first, silent) = (seated(addr).await, TcpStream::connect(addr).await.unwrap());
    open("2").await;
    drop(first);
    open("1").await;
    drop(silent);
    open("0").await;
}

#[tokio::test]
async fn one_address_does_not_take_all_seats() {
    let (addr, ..) = start(ConnectionLimits { connections: 2, per_peer: 1, ..LIMITS }).await;
    let _first = seated(addr).await;

    let mut second = TcpStream::connect(addr).await.unwrap();
    send(&mut second, WORK).await;
    assert!(read_until_closed(&mut second).await.starts_with("HTTP/1.1 503"));

    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind(SocketAddr::from(([127, 0, 0, 2], 0))).unwrap();
    let mut other = socket.connect(addr).await.unwrap();
    send(&mut other, WORK).await;
    read_until(&mut other, "done").await;
}

#[tokio::test]
async fn an_endless_stream_does_not_block_shutdown() {
    let (listener, addr) = bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
    let (stop, reached) = (CancellationToken::new(), CancellationToken::new());
    let handler = reached.clone();
    let hang = async move || {
        handler.cancel();
        std::future::pending::<()>().await;
    };
    let router = Router::new().route("/hang", get(hang));
    let server = tokio::spawn(serve_with(graceful(SHORT), listener, router, stop.clone()));

    let mut client = TcpStream::connect(addr).await.unwrap();
    send(&mut client, "GET /hang HTTP/1.1\r\nhost: x\r\n\r\n").await;
    reached.cancelled().await;

    stop.cancel();
    tokio::time::timeout(PATIENCE, server).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn shutdown_does_not_wait_for_silent_connections() {
    let (listener, addr) = bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
    let stop = CancellationToken::new();
    let router = Router::new().route("/work", get(async || "done"));
    let server =
        tokio::spawn(serve_within(LIMITS, graceful(10 * PATIENCE), listener, router, stop.clone()));

    let mut silent = TcpStream::connect(addr).await.unwrap();
    let mut idle = TcpStream::connect(addr).await.unwrap();
    send(&mut idle, WORK).await;
    read_until(&mut idle, "done").await;

    stop.cancel();
    tokio::time::timeout(PATIENCE, server)
        .await
        .expect("it waited for the whole grace period")
        .unwrap();
    assert_eq!(read_until_closed(&mut silent).await, "");
    assert_eq!(read_until_closed(&mut idle).await, "");
}
