//! One connection to a hosted server: handshake, tools, calls, end.
//!
//! The handshake tries the stateless protocol first and falls back to `initialize`. Some servers end themselves when
//! they hear a method that they do not know, so the fallback makes a new connection.

use std::{
    collections::BTreeSet,
    io,
    sync::{Arc, PoisonError, RwLock},
    time::{Duration, Instant},
};

use rmcp::{
    RoleClient,
    model::{ProtocolVersion, ServerPeerInfo},
    service::{
        ClientInitializeError, ClientLifecycleMode, Peer, RunningService, serve_client_with_lifecycle_and_ct,
    },
    transport::{
        DynamicTransportError, Transport, async_rw::AsyncRwTransport,
        streamable_http_client::StreamableHttpError,
    },
};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    catalog::Catalog,
    changes::{Lists, News, Unseen},
    child::{self, ChildProcess},
    follow::{self, HostedClient},
    launch::LaunchSpec,
    progress::{ProgressRoutes, ProgressTap},
    remote,
    sse::SseTransport,
    stdout::MAX_LINE,
};
use crate::{error::chain, policy::current::CurrentPolicy};

/// How much of a child's standard error is shown in errors.
pub const SHOWN_STDERR: usize = 4 * 1024;
/// How long to wait for the exit status of a child whose pipe has closed.
const EXIT_WAIT: Duration = Duration::from_secs(2);
/// A server that has done its handshake.
pub struct Upstream {
    /// Where requests go.
    pub peer: Peer<RoleClient>,
    /// What it said about itself.
    pub info: Arc<ServerPeerInfo>,
    /// Its process, where it is a child.
    pub child: Option<ChildProcess>,
    /// Who waits for which progress.
    pub progress: ProgressRoutes,
    /// When its handshake was done.
    pub since: Instant,
    catalog: RwLock<Catalog>,
    news: News,
    stop: CancellationToken,
    ended: watch::Receiver<Option<String>>,
}

/// Why a server could not be connected to.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message}")]
pub struct ConnectError {
    /// What went wrong, with all that is known about why.
    pub message: String,
    /// The end of the child's standard error.
    pub stderr: Option<String>,
}

impl Upstream {
    /// Starts or connects to a server, does the handshake and asks for its tools, all within `timeout`.
    ///
    /// # Errors
    ///
    /// Where any of this fails. Nothing is left behind then.
    pub async fn connect(
        server: &str,
        spec: &LaunchSpec,
        policy: &CurrentPolicy,
        timeout: Duration,
    ) -> Result<Self, ConnectError> {
        let deadline = tokio::time::Instant::now() + timeout;
        let modern = ClientLifecycleMode::Auto {
            preferred_versions: vec![ProtocolVersion::LATEST],
            legacy_version: Some(ProtocolVersion::LATEST_WITH_INITIALIZE),
        };
        match attempt(server, spec, policy, modern, deadline, timeout).await {
            Ok(upstream) => Ok(upstream),
            // There is no time for another attempt.
            Err(Failed { error, timed_out: true }) => Err(error),
            Err(Failed { error: first, timed_out: false }) => {
                tracing::debug!(server, error = %first, "handshake failed, trying the older protocol");
                let legacy = ClientLifecycleMode::Initialize;
                attempt(server, spec, policy, legacy, deadline, timeout).await.map_err(|failed| failed.error)
            }
        }
    }

    /// What it offers, under its own names.
    pub fn catalog(&self) -> Catalog {
        self.catalog.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads lists anew that have changed.
    pub(super) async fn refresh(&self, server: &str, lists: Lists) -> Result<(), String> {
        let catalog = self.catalog().read_again(server, &self.peer, &self.info, lists).await?;
        *self.catalog.write().unwrap_or_else(PoisonError::into_inner) = catalog;
        Ok(())
    }

    /// What it says has changed, once there is something.
    pub(super) async fn news(&self) -> Unseen {
        self.news.next().await
    }

    /// Hears of its changes for as long as it is there, among them those of the resources that are `wanted`.
    pub(super) fn follow(&self, server: &str, wanted: watch::Receiver<BTreeSet<String>>) {
        let following = follow::follow(
            server.to_owned(),
            self.peer.clone(),
            self.info.clone(),
            self.news.clone(),
            wanted,
        );
        let mut ended = self.ended.clone();
        tokio::spawn(async move {
            tokio::select! {
                () = following => {}
                // Where the sender is gone, so is the connection.
                _ = ended.wait_for(Option::is_some) => {}
            }
        });
    }

    /// Why the connection ended, once it has.
    pub async fn ended(&self) -> String {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            Err(_) => "the connection is gone".to_owned(),
        }
    }

    /// Whether the connection has ended.
    pub fn is_ended(&self) -> bool {
        self.ended.borrow().is_some() || self.peer.is_transport_closed()
    }

    /// Ends the connection, and the child where there is one, and waits for it.
    pub async fn stop(&self) {
        self.stop.cancel();
        self.ended().await;
    }
}

struct Failed {
    error: ConnectError,
    timed_out: bool,
}

fn plain(message: String) -> ConnectError {
    ConnectError { message, stderr: None }
}

async fn attempt(
    server: &str,
    spec: &LaunchSpec,
    policy: &CurrentPolicy,
    mode: ClientLifecycleMode,
    deadline: tokio::time::Instant,
    timeout: Duration,
) -> Result<Upstream, Failed> {
    let early = |message| Failed { error: plain(message), timed_out: false };
    let news = News::default();
    let (client, child) = match spec {
        LaunchSpec::Child(spec) => {
            let limits = policy.get().limits.of_server(server).process;
            let started = child::spawn(server, spec, &limits);
            let (child, (stdout, stdin)) = started.map_err(|error| {
                early(format!("`{}` could not be started: {error}", spec.program.display()))
            })?;
            let transport = AsyncRwTransport::new_client(stdout, stdin).with_max_line_length(MAX_LINE);
            (Client::new(server, transport, mode, news.clone()), Some(child))
        }
        LaunchSpec::Remote(spec) => {
            let transport = remote::transport(spec, policy.clone()).map_err(|error| early(chain(&error)))?;
            (Client::new(server, transport, mode, news.clone()), None)
        }
        LaunchSpec::Sse(spec) => {
            let client = remote::client(spec, policy.clone()).map_err(|error| early(chain(&error)))?;
            // A server of 2024 may not answer at all to what came later, so the older handshake comes first.
            let transport = SseTransport::new(spec, client);
            (Client::new(server, transport, ClientLifecycleMode::Initialize, news.clone()), None)
        }
    };
    let stop = client.stop.clone();
    let progress = client.progress.clone();
    // Where the caller gives up in the middle, the child must not stay behind.
    let guard = child.as_ref().map(ChildProcess::stop_guard);
    let problem = match tokio::time::timeout_at(deadline, client.handshake).await {
        Ok(Ok((service, catalog))) => {
            guard.map(DropGuard::disarm);
            return Ok(finish(service, catalog, news, child, stop, progress));
        }
        Ok(Err(error)) => Problem::Failed(error),
        Err(_) => Problem::TimedOut,
    };
    stop.cancel();
    Err(explain(problem, child, timeout).await)
}

enum Problem {
    Failed(HandshakeError),
    TimedOut,
}

/// The error with all that is known about why, after the child is gone.
async fn explain(problem: Problem, child: Option<ChildProcess>, timeout: Duration) -> Failed {
    let timed_out = matches!(problem, Problem::TimedOut);
    let mut message = match problem {
        Problem::TimedOut => format!("the handshake was not done within {} ms", timeout.as_millis()),
        Problem::Failed(HandshakeError::Closed) => {
            "the connection was closed before the handshake was done".to_owned()
        }
        Problem::Failed(HandshakeError::Other(error)) => format!("the handshake failed: {error}"),
    };
    let mut stderr = None;
    if let Some(child) = child {
        // A child that is on its way out gets the chance to say with which status.
        let exit =
            tokio::time::timeout(if timed_out { Duration::ZERO } else { EXIT_WAIT }, child.exited()).await;
        if let Ok(status) = exit {
            message = format!("{message}: {status}");
        }
        child.stop().await;
        if let Some(complaint) = child.stdout.complaint() {
            message = format!("{message}; {complaint}");
        }
        let tail = child.stderr.text(SHOWN_STDERR);
        if !tail.is_empty() {
            let last: Vec<&str> = tail.lines().rev().take(5).collect();
            let last: Vec<&str> = last.into_iter().rev().collect();
            message = format!("{message}; standard error ends in {:?}", last.join("\n"));
            stderr = Some(tail);
        }
    }
    Failed { error: ConnectError { message, stderr }, timed_out }
}

fn finish(
    service: RunningService<RoleClient, HostedClient>,
    catalog: Catalog,
    news: News,
    child: Option<ChildProcess>,
    stop: CancellationToken,
    progress: ProgressRoutes,
) -> Upstream {
    let peer = service.peer().clone();
    let info = peer.peer_info().unwrap_or_else(|| {
        Arc::new(ServerPeerInfo::new(ProtocolVersion::LATEST, rmcp::model::ServerCapabilities::default()))
    });
    if let Some(child) = &child {
        child.stdout.handshake_done();
    }
    let (end, ended) = watch::channel(None);
    let watched = child.clone();
    tokio::spawn(async move {
        let reason = match service.waiting().await {
            Ok(_) => "the connection was closed".to_owned(),
            Err(error) => format!("the connection was lost: {error}"),
        };
        let reason = match watched {
            Some(child) => {
                let broken = child.stdout.broken();
                // Without its pipes the child is of no use, whether it knows or not.
                child.stop().await;
                let status = child.exited().await;
                broken.map_or(status.clone(), |broken| format!("{broken}; {status}"))
            }
            None => reason,
        };
        // Nobody needs to be listening any more.
        _ = end.send(Some(reason));
    });
    Upstream {
        peer,
        info,
        child,
        progress,
        since: Instant::now(),
        catalog: RwLock::new(catalog),
        news,
        stop,
        ended,
    }
}

enum HandshakeError {
    Closed,
    Other(String),
}

type Handshake = futures::future::BoxFuture<
    'static,
    Result<(RunningService<RoleClient, HostedClient>, Catalog), HandshakeError>,
>;

/// A client that has not done its handshake yet.
struct Client {
    handshake: Handshake,
    stop: CancellationToken,
    progress: ProgressRoutes,
}

impl Client {
    fn new<T: Transport<RoleClient> + 'static>(
        server: &str,
        transport: T,
        mode: ClientLifecycleMode,
        news: News,
    ) -> Self {
        let stop = CancellationToken::new();
        let progress = ProgressRoutes::default();
        let tapped = ProgressTap::new(transport, progress.clone());
        let token = stop.clone();
        let server = server.to_owned();
        let handshake = Box::pin(async move {
            let client = HostedClient::new(news);
            let service = serve_client_with_lifecycle_and_ct(client, tapped, mode, token).await?;
            let catalog = match service.peer().peer_info() {
                Some(info) => {
                    Catalog::read(&server, service.peer(), &info).await.map_err(HandshakeError::Other)?
                }
                None => Catalog::default(),
            };
            Ok((service, catalog))
        });
        Self { handshake, stop, progress }
    }
}

impl From<ClientInitializeError> for HandshakeError {
    fn from(error: ClientInitializeError) -> Self {
        match error {
            ClientInitializeError::ConnectionClosed(_) => Self::Closed,
            ClientInitializeError::TransportError { error, context } => {
                let broken_pipe = |error: &io::Error| error.kind() == io::ErrorKind::BrokenPipe;
                if error.error.downcast_ref().is_some_and(broken_pipe) {
                    return Self::Closed;
                }
                Self::Other(format!("{context}: {}", transport_error(&error)))
            }
            ClientInitializeError::JsonRpcError(error) => {
                Self::Other(format!("it answered with error {}: {}", error.code.0, error.message))
            }
            ClientInitializeError::LegacyFallbackFailed { fallback, .. } => Self::from(*fallback),
            other => Self::Other(chain(&other)),
        }
    }
}

/// What a transport says went wrong. rmcp puts the whole type of the transport into its own text, and leaves out why
/// an HTTP request failed.
pub(crate) fn transport_error(error: &DynamicTransportError) -> String {
    match error.error.downcast_ref() {
        Some(StreamableHttpError::<reqwest::Error>::Client(error)) => {
            let text = chain(error);
            // The query may hold a key.
            match error.url().and_then(|url| Some((url, url.query()?))) {
                Some((url, query)) => text.replace(url.as_str(), &url.as_str().replace(query, "…")),
                None => text,
            }
        }
        _ => chain(error.error.as_ref()),
    }
}
