//! Serves HTTP connections with limits on their number and duration.
//!
//! `axum::serve` accepts any number of connections and waits indefinitely for a request's header,
//! so a client could exhaust the process with silent connections. [`seats`] decides which
//! connections may stay open. The protocol is HTTP/1.1, which the fleet's own clients and all
//! proxies speak.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::{HeaderValue, Request, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

use crate::metrics::{Counted, HTTP_BUSY, HTTP_CONNECTIONS};

mod seats;

use seats::{Guest, Seat, Seats, WaitingRoom};

/// How long open requests may take to finish after the shutdown signal, unless the caller chooses a
/// time.
pub const DEFAULT_GRACE: Duration = Duration::from_secs(10);

/// Paths that are served even without a seat: a crowded process is neither dead nor in need of a
/// restart.
const PROBES: [&str; 3] = ["/health", "/ready", "/metrics"];

/// How long to wait after a failed accept, for example when the system is out of file descriptors;
/// without a pause, the loop would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// The connection limits of a listener.
#[derive(Debug, Clone, Copy)]
struct ConnectionLimits {
    /// The number of connections that may stay open for requests. Others get a response only to a
    /// probe, or 503.
    connections: usize,
    /// The number of these connections that one peer may have.
    per_peer: usize,
    /// The number of further connections that may be open, either before their first request or
    /// without a seat. When the room is full, the oldest silent connection is closed.
    waiting: usize,
    /// How long a new connection may take to send the header of its first request.
    first_header: Duration,
    /// How long a connection may be idle between requests, including the time to send the next
    /// header.
    next_header: Duration,
}

/// 768 connections and 96 waiting ones leave a sixth of the usual limit of 1024 open files to
/// everything else (each hosted server has three pipes). They suffice for dozens of workers, even
/// if two thirds of the connections come from one address. A genuine client sends its first header
/// at once. Later headers get more time than clients keep idle connections (30 s for the fleet's
/// own clients, 90 s for many others): if the server closed such a connection first, it could lose
/// a request that is on its way.
const LIMITS: ConnectionLimits = ConnectionLimits {
    connections: 768,
    per_peer: 512,
    waiting: 96,
    first_header: Duration::from_secs(15),
    next_header: Duration::from_secs(120),
};

/// Serves `router` until `shutdown` is cancelled and then until open requests have finished, but no
/// longer than [`DEFAULT_GRACE`].
///
/// # Errors
///
/// Currently none: a failed accept is logged and retried.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    shutdown: CancellationToken,
) -> io::Result<()> {
    serve_with_grace(listener, router, shutdown, DEFAULT_GRACE).await
}

/// Like [`serve`], with the caller's grace period: requests still open `grace` after the signal are
/// abandoned and end with the runtime. Without a limit, a client that holds a stream open would
/// keep the process from ending.
///
/// # Errors
///
/// The same as [`serve`].
pub async fn serve_with_grace(
    listener: TcpListener,
    router: Router,
    shutdown: CancellationToken,
    grace: Duration,
) -> io::Result<()> {
    serve_within(LIMITS, listener, router, shutdown, grace).await;
    Ok(())
}

async fn serve_within(
    limits: ConnectionLimits,
    listener: TcpListener,
    router: Router,
    shutdown: CancellationToken,
    grace: Duration,
) {
    let shared = Arc::new(Connections {
        limits,
        router,
        seats: Arc::new(Seats::new(limits.connections, limits.per_peer)),
        room: WaitingRoom::new(limits.waiting),
        shutdown: shutdown.clone(),
    });

    let connections = TaskTracker::new();

    let accept = async {
        loop {
            match listener.accept().await {
                Ok((stream, peer)) => {
                    let (guest, counted) = (shared.room.enter(), Counted::new(&HTTP_CONNECTIONS));
                    let served = shared.clone().serve_connection(stream, peer, guest);
                    connections.spawn(async move {
                        served.await;
                        drop(counted);
                    });
                }
                // The client gave up before its connection was accepted.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    tracing::warn!(%error, "could not accept an HTTP connection; trying again shortly");
                    shared.room.make_room();
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            }
        }
    };

    tokio::select! {
        () = accept => {}
        () = shutdown.cancelled() => {}
    }

    drop(listener);
    connections.close();
    if tokio::time::timeout(grace, connections.wait()).await.is_err() {
        tracing::warn!(
            ?grace,
            "abandoning HTTP requests that are still open after the grace period"
        );
    }
}

/// The state that all connections of a listener share.
struct Connections {
    limits: ConnectionLimits,
    router: Router,
    seats: Arc<Seats>,
    room: WaitingRoom,
    shutdown: CancellationToken,
}

impl Connections {
    /// Serves one connection until it ends, then frees its place.
    async fn serve_connection(
        self: Arc<Self>,
        stream: TcpStream,
        peer: SocketAddr,
        guest: Arc<Guest>,
    ) {
        self.serve_requests(stream, peer, &guest).await;
        self.room.remove(&guest);
    }

    async fn serve_requests(
        self: &Arc<Self>,
        stream: TcpStream,
        peer: SocketAddr,
        guest: &Arc<Guest>,
    ) {
        let seat: Arc<OnceLock<Seat>> = Arc::default();
        let service = service_fn(|request: Request<Incoming>| {
            if guest.mark_asked()
                && let Some(taken) = self.seats.take(peer.ip())
            {
                self.room.remove(guest);
                _ = seat.set(taken);
            }

            let (router, is_seated) = (self.router.clone(), seat.get().is_some());
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(ConnectInfo(peer));
            async move { Ok::<_, Infallible>(respond(router, request, is_seated).await) }
        });

        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(self.limits.next_header);
        let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
        let mut first_header = pin!(tokio::time::sleep(self.limits.first_header));
        let (mut is_new, mut is_open) = (true, true);
        loop {
            tokio::select! {
                ended = connection.as_mut() => {
                    if let Err(error) = ended {
                        tracing::trace!(%error, "a connection ended early");
                    }
                    return;
                }
                () = guest.evicted() => return,
                () = &mut first_header, if is_new => {
                    is_new = false;
                    // Without a seat, a connection gets only a short time.
                    if seat.get().is_none() {
                        return;
                    }
                }
                () = self.shutdown.cancelled(), if is_open => {
                    is_open = false;
                    // Nobody waits for a response on this connection.
                    if !guest.has_asked() {
                        return;
                    }
                    connection.as_mut().graceful_shutdown();
                }
            }
        }
    }
}

/// Returns the response to a request. Without a seat, only probes are answered, and the connection
/// is closed.
async fn respond(router: Router, request: Request<Body>, is_seated: bool) -> Response {
    if !is_seated && !PROBES.contains(&request.uri().path()) {
        return busy_response();
    }

    let mut response = router.oneshot(request).await.unwrap_or_else(|never| match never {});
    if !is_seated {
        response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

fn busy_response() -> Response {
    ::metrics::counter!(HTTP_BUSY.name).increment(1);
    let headers = [(header::RETRY_AFTER, "1"), (header::CONNECTION, "close")];
    (StatusCode::SERVICE_UNAVAILABLE, headers, "too many connections\n").into_response()
}

#[cfg(test)]
mod tests {
    use axum::routing::get;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::task::JoinHandle;

    use super::*;
    use crate::http::bind;

    const PATIENCE: Duration = Duration::from_secs(30);
    const SHORT: Duration = Duration::from_millis(30);
    /// Long enough for a request on a busy machine.
    const MODEST: Duration = Duration::from_millis(500);

    async fn start(limits: ConnectionLimits) -> (SocketAddr, JoinHandle<()>) {
        let (listener, addr) = bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let router = Router::new()
            .route("/health", get(async || "fine"))
            .route("/work", get(async || "done"));
        let server =
            tokio::spawn(serve_within(limits, listener, router, CancellationToken::new(), SHORT));
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
            let read =
                tokio::time::timeout(PATIENCE, client.read(&mut chunk)).await.unwrap().unwrap();
            assert_ne!(
                read,
                0,
                "closed before {expected:?}: {:?}",
                String::from_utf8_lossy(&answer)
            );
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
        assert!(
            answer.starts_with("HTTP/1.1 503") && answer.contains("retry-after: 1"),
            "{answer}"
        );

        let mut third = TcpStream::connect(addr).await.unwrap();
        send(&mut third, HEALTH).await;
        let answer = read_until_closed(&mut third).await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("fine"), "{answer}");

        send(&mut first, WORK).await;
        read_until(&mut first, "done").await;
        drop(first);

        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let mut client = TcpStream::connect(addr).await.unwrap();
            send(&mut client, "GET /work HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
            if read_until_closed(&mut client).await.contains("done") {
                break;
            }
            assert!(tokio::time::Instant::now() < deadline, "the seat was not freed");
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
        let (handle, _local) =
            (recorder.handle(), ::metrics::set_default_local_recorder(&recorder));
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
        let server = tokio::spawn(serve_with_grace(listener, router, stop.clone(), SHORT));

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
            tokio::spawn(serve_within(LIMITS, listener, router, stop.clone(), 10 * PATIENCE));

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
}
