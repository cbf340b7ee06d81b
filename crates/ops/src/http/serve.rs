//! Serves HTTP connections with limits on their number and duration.
//!
//! `axum::serve` accepts any number of connections and waits indefinitely for a request's header,
//! so a client could exhaust the process with silent connections. [`seats`] decides which
//! connections may stay open. The protocol is HTTP/1.1, which the fleet's own clients and all
//! proxies speak, over TLS if the listener has a certificate. A handshake is part of the wait for
//! the first request: it has the same time, and its connection can be evicted like any silent one.

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
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt as _;

use crate::metrics::{Counted, HTTP_BUSY, HTTP_CONNECTIONS};
use crate::tls::{PeerCertificate, Secured, Tls};

mod seats;

use seats::{Guest, Seat, Seats, WaitingRoom};

/// How long open requests may take to finish after the shutdown signal, unless the caller chooses a
/// time.
const DEFAULT_GRACE: Duration = Duration::from_secs(10);

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
    /// How long a new connection may take to send the header of its first request, including the
    /// TLS handshake.
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

/// How to serve a listener.
#[derive(Debug, Clone)]
pub struct Serving {
    /// How long open requests may take to finish after the shutdown signal.
    pub grace: Duration,
    /// The listener's TLS; none by default.
    pub tls: Option<Tls>,
}

impl Default for Serving {
    fn default() -> Self {
        Self { grace: DEFAULT_GRACE, tls: None }
    }
}

/// Serves `router` over plain HTTP until `shutdown` is cancelled and then until open requests have
/// finished, but no longer than ten seconds.
///
/// # Errors
///
/// Currently none: a failed accept is logged and retried.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    shutdown: CancellationToken,
) -> io::Result<()> {
    serve_with(Serving::default(), listener, router, shutdown).await
}

/// Like [`serve`], with the caller's settings: requests still open when the grace period has passed
/// after the signal are abandoned and end with the runtime. Without a limit, a client that holds a
/// stream open would keep the process from ending.
///
/// # Errors
///
/// The same as [`serve`].
pub async fn serve_with(
    serving: Serving,
    listener: TcpListener,
    router: Router,
    shutdown: CancellationToken,
) -> io::Result<()> {
    serve_within(LIMITS, serving, listener, router, shutdown).await;
    Ok(())
}

async fn serve_within(
    limits: ConnectionLimits,
    serving: Serving,
    listener: TcpListener,
    router: Router,
    shutdown: CancellationToken,
) {
    let Serving { grace, tls } = serving;
    let shared = Arc::new(Connections {
        limits,
        tls,
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
                    let (guest, counted) =
                        (shared.room.enter(peer.ip()), Counted::new(&HTTP_CONNECTIONS));
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
    tls: Option<Tls>,
    router: Router,
    seats: Arc<Seats>,
    room: WaitingRoom,
    shutdown: CancellationToken,
}

/// What is known of a connection's client.
struct Client {
    address: SocketAddr,
    certificate: Option<PeerCertificate>,
}

impl Connections {
    /// Serves one connection until it ends, then frees its place.
    async fn serve_connection(
        self: Arc<Self>,
        stream: TcpStream,
        peer: SocketAddr,
        guest: Arc<Guest>,
    ) {
        let deadline = Instant::now() + self.limits.first_header;
        match &self.tls {
            None => {
                let client = Client { address: peer, certificate: None };
                self.serve_requests(stream, client, &guest, deadline).await;
            }
            Some(tls) => {
                if let Some(secured) = self.shake_hands(tls, stream, &guest, deadline).await {
                    let Secured { stream, certificate } = secured;
                    let client = Client { address: peer, certificate };
                    self.serve_requests(stream, client, &guest, deadline).await;
                }
            }
        }
        self.room.remove(&guest);
    }

    /// Performs the TLS handshake of a connection; `None` if it fails, takes too long, or the
    /// connection has to go.
    async fn shake_hands(
        &self,
        tls: &Tls,
        stream: TcpStream,
        guest: &Guest,
        deadline: Instant,
    ) -> Option<Secured> {
        tokio::select! {
            accepted = tls.accept(stream) => match accepted {
                Ok(secured) => Some(secured),
                Err(error) => {
                    tracing::debug!(%error, "a TLS handshake failed");
                    None
                }
            },
            () = guest.evicted() => None,
            () = sleep_until(deadline) => None,
            () = self.shutdown.cancelled() => None,
        }
    }

    /// Serves the requests of a connection, the first of which must begin before `deadline`.
    async fn serve_requests(
        self: &Arc<Self>,
        stream: impl AsyncRead + AsyncWrite + Send + Unpin,
        client: Client,
        guest: &Arc<Guest>,
        deadline: Instant,
    ) {
        let Client { address, certificate } = client;
        let seat: Arc<OnceLock<Seat>> = Arc::default();
        let service = service_fn(|request: Request<Incoming>| {
            if guest.mark_asked()
                && let Some(taken) = self.seats.take(address.ip())
            {
                self.room.remove(guest);
                _ = seat.set(taken);
            }

            let (router, is_seated) = (self.router.clone(), seat.get().is_some());
            let mut request = request.map(Body::new);
            request.extensions_mut().insert(ConnectInfo(address));
            let certificate = certificate.clone();
            if let Some(certificate) = &certificate {
                request.extensions_mut().insert(certificate.clone());
            }
            async move {
                if certificate.as_ref().is_some_and(PeerCertificate::is_refused) {
                    return Ok::<_, Infallible>(refused_certificate_response());
                }

                let mut response = respond(router, request, is_seated).await;
                // A client that has a newer certificate shows it on another connection.
                if certificate.is_some_and(|certificate| !certificate.is_accepted()) {
                    close_after(&mut response);
                }
                Ok(response)
            }
        });

        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(self.limits.next_header);
        let mut connection = pin!(builder.serve_connection(TokioIo::new(stream), service));
        let mut first_header = pin!(sleep_until(deadline));
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
        close_after(&mut response);
    }
    response
}

/// Makes a response the last one of its connection.
fn close_after(response: &mut Response) {
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
}

fn busy_response() -> Response {
    ::metrics::counter!(HTTP_BUSY.name).increment(1);
    let headers = [(header::RETRY_AFTER, "1"), (header::CONNECTION, "close")];
    (StatusCode::SERVICE_UNAVAILABLE, headers, "too many connections\n").into_response()
}

/// The response on a connection whose certificate was withdrawn after the handshake, which would
/// fail by now.
fn refused_certificate_response() -> Response {
    let text = "the client certificate has expired or was revoked\n";
    (StatusCode::FORBIDDEN, [(header::CONNECTION, "close")], text).into_response()
}

#[cfg(test)]
mod tests;
