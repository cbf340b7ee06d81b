//! Serving connections, each of them bounded in time and all of them in number.
//!
//! `axum::serve` takes any number of connections and waits for a request's header for ever, so that a client that opens
//! connections and says nothing can take them all. The protocol is HTTP/1.1: what the fleet's own clients speak, and
//! every proxy.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::ConnectInfo;
use axum::http::{Request, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

use crate::metrics::HTTP_BUSY;

/// How long open requests may take to finish after the shutdown signal, where the caller has no wish of its own.
pub const DEFAULT_GRACE: Duration = Duration::from_secs(10);

/// What is answered on a spare connection: a process that is crowded is neither dead nor in need of a restart.
const PROBES: [&str; 3] = ["/health", "/ready", "/metrics"];

/// How long to wait where the system has no more descriptors; without it the loop would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// The bounds of a listener.
#[derive(Debug, Clone, Copy)]
struct Limits {
    /// How many connections may be open. Who comes later gets a spare one.
    connections: usize,
    /// How many more there may be, for probes, and to tell everybody else to come back. Who comes later still waits in
    /// the accept queue.
    spare: usize,
    /// How long a new connection may take for the header of its first request.
    first_header: Duration,
    /// How long a connection may be idle between requests and take for the next header.
    next_header: Duration,
}

/// 768 connections leave a quarter of the usual limit of 1024 open files to everything else (hosted servers have three
/// pipes each), and are enough for dozens of workers. A first header comes at once from whoever means it. The later
/// ones have more time than clients keep idle connections (30 s for the fleet's own, 90 s for many others): if the server
/// closed them first, a request could be on its way just then, and would be lost.
const LIMITS: Limits = Limits {
    connections: 768,
    spare: 16,
    first_header: Duration::from_secs(15),
    next_header: Duration::from_secs(120),
};

/// Serves `router` until `shutdown` is cancelled and open requests are done, or [`DEFAULT_GRACE`] has passed.
///
/// # Errors
///
/// None today: what can't be accepted is logged and tried again.
pub async fn serve(listener: TcpListener, router: Router, shutdown: CancellationToken) -> io::Result<()> {
    serve_with_grace(listener, router, shutdown, DEFAULT_GRACE).await
}

/// Like [`serve`] with a bound of the caller's: requests still open `grace` after the signal are not waited for, and end
/// with the runtime. Without a bound one client that holds a stream open would hold the process.
///
/// # Errors
///
/// As [`serve`].
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
    limits: Limits,
    listener: TcpListener,
    router: Router,
    shutdown: CancellationToken,
    grace: Duration,
) {
    let seats = Seats::new(limits);
    let connections = TaskTracker::new();
    let accept = async {
        loop {
            let seat = seats.any().await;
            let (stream, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                // The client gave up before it was its turn.
                Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => continue,
                Err(error) => {
                    tracing::warn!(%error, "can't accept a connection");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let seat = seats.better(seat);
            connections.spawn(converse(limits, stream, peer, router.clone(), seat, shutdown.clone()));
        }
    };
    tokio::select! {
        () = accept => {}
        () = shutdown.cancelled() => {}
    }
    drop(listener);
    connections.close();
    if tokio::time::timeout(grace, connections.wait()).await.is_err() {
        tracing::warn!(?grace, "requests still open after the grace period are left behind");
    }
}

/// The right to have a connection open.
struct Seat {
    is_spare: bool,
    _permit: OwnedSemaphorePermit,
}

struct Seats {
    regular: Arc<Semaphore>,
    spare: Arc<Semaphore>,
    crowded: AtomicBool,
}

impl Seats {
    fn new(limits: Limits) -> Self {
        Self {
            regular: Arc::new(Semaphore::new(limits.connections)),
            spare: Arc::new(Semaphore::new(limits.spare)),
            crowded: AtomicBool::new(false),
        }
    }

    /// Waits for a seat of either sort. Both semaphores are never closed, so there is always one in the end.
    async fn any(&self) -> Option<Seat> {
        tokio::select! {
            biased;
            permit = self.regular.clone().acquire_owned() => {
                permit.ok().map(|permit| Seat { is_spare: false, _permit: permit })
            }
            permit = self.spare.clone().acquire_owned() => {
                permit.ok().map(|permit| Seat { is_spare: true, _permit: permit })
            }
        }
    }

    /// The seat, or a regular one that has become free since a spare one was taken.
    fn better(&self, seat: Option<Seat>) -> Option<Seat> {
        let seat = seat.map(|seat| match self.regular.clone().try_acquire_owned() {
            Ok(permit) if seat.is_spare => Seat { is_spare: false, _permit: permit },
            _ => seat,
        });
        let crowded = seat.as_ref().is_some_and(|seat| seat.is_spare);
        if crowded && !self.crowded.swap(crowded, Ordering::Relaxed) {
            tracing::warn!("too many HTTP connections: new ones are asked to come back later");
        } else {
            self.crowded.store(crowded, Ordering::Relaxed);
        }
        seat
    }
}

/// Serves one connection to its end.
async fn converse(
    limits: Limits,
    stream: TcpStream,
    peer: SocketAddr,
    router: Router,
    seat: Option<Seat>,
    shutdown: CancellationToken,
) {
    let is_spare = seat.as_ref().is_some_and(|seat| seat.is_spare);
    let asked = Arc::new(AtomicBool::new(false));
    let asking = asked.clone();
    let service = service_fn(move |request: Request<Incoming>| {
        asking.store(true, Ordering::Relaxed);
        let router = router.clone();
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(ConnectInfo(peer));
        async move {
            if is_spare && !PROBES.contains(&request.uri().path()) {
                return Ok::<_, Infallible>(busy());
            }
            router.oneshot(request).await
        }
    });
    let mut builder = http1::Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(limits.next_header).keep_alive(!is_spare);
    let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
    let mut first_header = pin!(tokio::time::sleep(limits.first_header));
    let (mut is_new, mut is_open) = (true, true);
    loop {
        tokio::select! {
            ended = connection.as_mut() => {
                if let Err(error) = ended {
                    tracing::trace!(%error, "a connection ended early");
                }
                return;
            }
            () = &mut first_header, if is_new => {
                is_new = false;
                if !asked.load(Ordering::Relaxed) {
                    return;
                }
            }
            () = shutdown.cancelled(), if is_open => {
                is_open = false;
                // Nobody waits for an answer here.
                if !asked.load(Ordering::Relaxed) {
                    return;
                }
                connection.as_mut().graceful_shutdown();
            }
        }
    }
}

fn busy() -> Response {
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
    /// Enough for a request on a busy machine.
    const MODEST: Duration = Duration::from_millis(500);

    async fn start(limits: Limits) -> (SocketAddr, JoinHandle<()>) {
        let (listener, addr) = bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let router =
            Router::new().route("/health", get(async || "fine")).route("/work", get(async || "done"));
        let server = tokio::spawn(serve_within(limits, listener, router, CancellationToken::new(), SHORT));
        (addr, server)
    }

    async fn send(client: &mut TcpStream, text: &str) {
        client.write_all(text.as_bytes()).await.unwrap();
    }

    /// What comes until the server closes the connection.
    async fn until_closed(client: &mut TcpStream) -> String {
        let mut answer = Vec::new();
        // A reset is a close too.
        _ = tokio::time::timeout(PATIENCE, client.read_to_end(&mut answer)).await.expect("never closed");
        String::from_utf8(answer).unwrap()
    }

    async fn until(client: &mut TcpStream, expected: &str) {
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
        let (addr, ..) = start(Limits { first_header: SHORT, ..LIMITS }).await;
        for text in ["", "GET / HT", "GET / HTTP/1.1\r\nhost: x\r\nslow: "] {
            let mut client = TcpStream::connect(addr).await.unwrap();
            send(&mut client, text).await;
            assert_eq!(until_closed(&mut client).await, "", "{text:?}");
        }
    }

    #[tokio::test]
    async fn who_has_asked_once_has_more_time() {
        let (addr, ..) = start(Limits { first_header: MODEST, ..LIMITS }).await;
        let mut client = TcpStream::connect(addr).await.unwrap();
        for _ in 0..2 {
            send(&mut client, WORK).await;
            until(&mut client, "done").await;
            // The bound of a first header passes, and nothing is to happen: there is no condition to wait for.
            tokio::time::sleep(MODEST + SHORT).await;
        }
        let (addr, ..) = start(Limits { next_header: MODEST, ..LIMITS }).await;
        let mut client = TcpStream::connect(addr).await.unwrap();
        send(&mut client, WORK).await;
        until(&mut client, "done").await;
        send(&mut client, "GET /work HTTP/1.1\r\nslow: ").await;
        until_closed(&mut client).await;
    }

    #[tokio::test]
    async fn there_are_only_so_many_connections() {
        let (addr, ..) = start(Limits { connections: 1, spare: 1, ..LIMITS }).await;
        // Connections are accepted in the order in which they are made.
        let mut first = TcpStream::connect(addr).await.unwrap();
        let mut second = TcpStream::connect(addr).await.unwrap();
        let mut third = TcpStream::connect(addr).await.unwrap();
        send(&mut second, WORK).await;
        let answer = until_closed(&mut second).await;
        assert!(answer.starts_with("HTTP/1.1 503") && answer.contains("retry-after: 1"), "{answer}");
        send(&mut third, "GET /health HTTP/1.1\r\nhost: x\r\n\r\n").await;
        let answer = until_closed(&mut third).await;
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("fine"), "{answer}");
        send(&mut first, WORK).await;
        until(&mut first, "done").await;
        drop(first);
        let deadline = tokio::time::Instant::now() + PATIENCE;
        loop {
            let mut client = TcpStream::connect(addr).await.unwrap();
            send(&mut client, "GET /work HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").await;
            if until_closed(&mut client).await.contains("done") {
                break;
            }
            assert!(tokio::time::Instant::now() < deadline, "the seat is not free again");
        }
    }

    #[tokio::test]
    async fn a_stream_that_never_ends_does_not_hold_the_process() {
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
    async fn connections_that_say_nothing_are_not_waited_for() {
        let (listener, addr) = bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let stop = CancellationToken::new();
        let router = Router::new().route("/work", get(async || "done"));
        let server = tokio::spawn(serve_within(LIMITS, listener, router, stop.clone(), 10 * PATIENCE));
        let mut silent = TcpStream::connect(addr).await.unwrap();
        let mut idle = TcpStream::connect(addr).await.unwrap();
        send(&mut idle, WORK).await;
        until(&mut idle, "done").await;
        stop.cancel();
        tokio::time::timeout(PATIENCE, server).await.expect("it waits for the grace period").unwrap();
        assert_eq!(until_closed(&mut silent).await, "");
        assert_eq!(until_closed(&mut idle).await, "");
    }
}
