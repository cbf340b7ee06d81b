//! One connection to a hosted server: handshake, tools, calls, end.
//!
//! The handshake tries the stateless protocol first and falls back to `initialize`. For a child it
//! is ours (`handshake`), for a remote server it is rmcp's. Some children end themselves when they
//! hear a method that they do not know, so one that ends without an answer is started once more for
//! `initialize` alone, as is one whose session does not work after it has refused
//! `server/discover`; none is started again because it is slow.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use fleet_codes::{self as codes, Code};
use fleet_ops::errors::chain;
use fleet_policy::current::CurrentPolicy;
use parking_lot::RwLock;
use rmcp::{
    RoleClient,
    model::{ProtocolVersion, ServerPeerInfo},
    service::{
        ClientLifecycleMode, Peer, RunningService, serve_client_with_lifecycle_and_ct,
        serve_directly_with_ct,
    },
    transport::Transport,
};
use tokio::sync::watch;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    attempt::Attempt,
    catalog::Catalog,
    changes::{Lists, News, Unseen},
    child::{self, ChildProcess},
    follow::{self, HostedClient},
    handshake::{Opening, drive::shake_hands},
    handshake_error::HandshakeError,
    launch::{ChildSpec, LaunchSpec, RemoteSpec},
    notices::DropReason,
    outage::OutageReason,
    progress::{ProgressRoutes, ProgressTap},
    remote,
    secrets::Secrets,
    sse_transport::SseTransport,
    stdio::StdioTransport,
};

/// How much of a child's standard error is shown in errors.
pub const SHOWN_STDERR: usize = 4 * 1024;
/// How long to wait for the exit status of a child whose pipe has closed.
const EXIT_WAIT: Duration = Duration::from_secs(2);
/// How long a child whose pipe has closed may take to end by itself before it is ended.
const OWN_EXIT_WAIT: Duration = Duration::from_millis(200);

/// A server that has done its handshake.
pub struct Upstream {
    /// Where requests go.
    pub peer: Peer<RoleClient>,
    /// What it said about itself.
    pub info: Arc<ServerPeerInfo>,
    /// Its process, where it is a child.
    pub child: Option<ChildProcess>,
    /// Whether it is a remote server that is reached over HTTP+SSE.
    pub is_sse: bool,
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
#[error("{message} [{code}]", code = self.code())]
pub struct ConnectError {
    /// What went wrong, with all that is known about why.
    pub message: String,
    /// The end of the child's standard error.
    pub stderr: Option<String>,
    /// Whether it is a remote server that can't be reached, so that nothing is wrong with what was
    /// asked for.
    pub unreachable: bool,
    /// Whether it is a remote server that refuses our credentials.
    pub unauthorized: bool,
}

impl ConnectError {
    /// The stable code of the error.
    pub fn code(&self) -> Code {
        match (self.unauthorized, self.unreachable) {
            (true, _) => codes::UPSTREAM_UNAUTHORIZED,
            (false, true) => codes::SERVER_UNAVAILABLE,
            (false, false) => codes::SERVER_START,
        }
    }

    /// Why the server is away, if it is a remote one and that is all that is wrong.
    pub(super) fn outage_reason(&self) -> Option<OutageReason> {
        match (self.unauthorized, self.unreachable) {
            (true, _) => Some(OutageReason::Unauthorized),
            (false, true) => Some(OutageReason::Unavailable),
            (false, false) => None,
        }
    }

    /// The same without these.
    pub(super) fn hiding(self, secrets: &Secrets) -> Self {
        Self { message: secrets.hide(self.message).into_owned(), ..self }
    }
}

impl Upstream {
    /// Starts or connects to a server, does the handshake and asks for its tools, all within the
    /// limit of `attempt`, which learns how far that has come.
    ///
    /// # Errors
    ///
    /// Where any of this fails. Nothing is left behind then.
    pub async fn connect(
        server: &str,
        spec: &LaunchSpec,
        policy: &CurrentPolicy,
        attempt: &Attempt,
    ) -> Result<Self, ConnectError> {
        let start = Connector { server, policy, attempt };
        let connected = match spec {
            LaunchSpec::Child(spec) => start.child_of_any_revision(spec).await,
            LaunchSpec::Url(spec) => start.url(spec).await,
            LaunchSpec::Remote(spec) => start.remote_of_any_revision(spec).await,
            // A server of 2024 may not answer at all to what came later, so the older handshake
            // comes first.
            LaunchSpec::Sse(spec) => start.sse(spec).await,
        };
        connected.map_err(|failed| failed.error)
    }

    /// What it offers, under its own names.
    pub fn catalog(&self) -> Catalog {
        self.catalog.read().clone()
    }

    /// Reads lists anew that have changed.
    pub(super) async fn refresh_lists(&self, server: &str, lists: Lists) -> Result<(), String> {
        let catalog = self.catalog().read_again(server, &self.peer, &self.info, lists).await?;
        *self.catalog.write() = catalog;
        Ok(())
    }

    /// Notes that a notification is not passed on.
    pub(super) fn log_dropped_notice(&self, server: &str, dropped: &DropReason) {
        self.news.log_dropped_notice(server, dropped);
    }

    /// What it says has changed, once there is something.
    pub(super) async fn next_news(&self) -> Unseen {
        self.news.next().await
    }

    /// Hears of its changes for as long as it is there, among them those of the resources that are
    /// `wanted`.
    pub(super) fn follow_changes(&self, server: &str, wanted: watch::Receiver<BTreeSet<String>>) {
        let following = follow::follow_changes(
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
    pub async fn wait_for_end(&self) -> String {
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
        self.wait_for_end().await;
    }
}

struct FailedAttempt {
    error: ConnectError,
    fallback: Fallback,
}

/// What may do better than what has failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fallback {
    None,
    /// `initialize` alone.
    Initialize,
    /// The other transport: nothing is there that takes `initialize`.
    OtherTransport,
}

fn plain(message: String) -> ConnectError {
    ConnectError { message, stderr: None, unreachable: false, unauthorized: false }
}

/// What starts a server, and what is started.
struct Connector<'a> {
    server: &'a str,
    policy: &'a CurrentPolicy,
    attempt: &'a Attempt,
}

impl Connector<'_> {
    async fn child_of_any_revision(&self, spec: &ChildSpec) -> Result<Upstream, FailedAttempt> {
        match self.child(spec, Opening::DiscoverFirst).await {
            Err(FailedAttempt { error, fallback: Fallback::Initialize }) => {
                self.note_fallback(&error);
                self.child(spec, Opening::InitializeOnly).await
            }
            result => result,
        }
    }

    async fn remote_of_any_revision(&self, spec: &RemoteSpec) -> Result<Upstream, FailedAttempt> {
        let modern = ClientLifecycleMode::Auto {
            preferred_versions: vec![ProtocolVersion::LATEST],
            legacy_version: Some(ProtocolVersion::LATEST_WITH_INITIALIZE),
        };
        match self.remote(spec, modern).await {
            Err(FailedAttempt { error, fallback: Fallback::Initialize }) => {
                self.note_fallback(&error);
                self.remote(spec, ClientLifecycleMode::Initialize).await
            }
            result => result,
        }
    }

    /// A server of which nothing says how it is reached.
    async fn url(&self, spec: &RemoteSpec) -> Result<Upstream, FailedAttempt> {
        let first = match self.remote_of_any_revision(spec).await {
            Err(FailedAttempt { error, fallback: Fallback::OtherTransport }) => error,
            result => return result,
        };
        self.note_fallback(&first);
        self.sse(spec).await.map_err(|FailedAttempt { error, fallback }| {
            let message = format!("{}; over HTTP+SSE: {}", first.message, error.message);
            FailedAttempt { error: ConnectError { message, ..error }, fallback }
        })
    }

    fn note_fallback(&self, error: &ConnectError) {
        tracing::debug!(server = self.server, %error, "the handshake failed; trying an older way");
    }

    async fn child(&self, spec: &ChildSpec, opening: Opening) -> Result<Upstream, FailedAttempt> {
        let limits = self.policy.get().limits.of_server(self.server).process;
        let (child, (stdout, stdin)) =
            child::spawn_child(self.server, spec, &limits).map_err(|error| FailedAttempt {
                error: plain(format!("`{}` could not be started: {error}", spec.program.display())),
                fallback: Fallback::None,
            })?;
        self.attempt.set_child(child.stderr.clone());

        let news = News::default();
        let transport =
            StdioTransport::new(stdout, stdin, child.stdout.clone(), spec.secrets.clone());
        let client =
            Client::of_child(self.server, transport, opening, self.attempt.clone(), news.clone());
        self.finish(client, Some(child), news).await
    }

    async fn remote(
        &self,
        spec: &RemoteSpec,
        mode: ClientLifecycleMode,
    ) -> Result<Upstream, FailedAttempt> {
        let news = News::default();
        let limit = self.attempt.limit;
        let (transport, over) = remote::transport(spec, self.policy.clone(), limit, news.clone())
            .map_err(|error| no_client(&error))?;
        let client = Client::new(self.server, transport, mode, self.attempt.clone(), news.clone());
        let upstream = self.finish(client, None, news).await?;

        // Not before the handshake is done: a transport that ends during it says why, and `stop`
        // would come first.
        let stop = upstream.stop.clone();
        tokio::spawn(async move {
            // Cancelled at the end of the transport at the latest.
            over.cancelled().await;
            stop.cancel();
        });
        Ok(upstream)
    }

    async fn sse(&self, spec: &RemoteSpec) -> Result<Upstream, FailedAttempt> {
        let news = News::default();
        let client = fleet_egress::client(&spec.url, self.policy.clone())
            .map_err(|error| no_client(&error))?;
        let transport = SseTransport::new(spec, client);
        let mode = ClientLifecycleMode::Initialize;
        let client = Client::new(self.server, transport, mode, self.attempt.clone(), news.clone());
        let mut upstream = self.finish(client, None, news).await?;
        upstream.is_sse = true;
        Ok(upstream)
    }

    /// Does the handshake within what is left of the limit.
    async fn finish(
        &self,
        client: Client,
        child: Option<ChildProcess>,
        news: News,
    ) -> Result<Upstream, FailedAttempt> {
        let stop = client.stop.clone();
        let progress = client.progress.clone();
        // Where the caller gives up in the middle, the child must not stay behind.
        let guard = child.as_ref().map(ChildProcess::stop_guard);
        let deadline = self.attempt.since + self.attempt.limit;
        let problem = match tokio::time::timeout_at(deadline.into(), client.handshake).await {
            Ok(Ok((service, catalog))) => {
                guard.map(DropGuard::disarm);
                return Ok(finish(service, catalog, news, child, stop, progress));
            }
            Ok(Err(error)) => HandshakeProblem::Failed(error),
            Err(_) => HandshakeProblem::TimedOut,
        };
        stop.cancel();
        Err(explain(problem, child, self.attempt).await)
    }
}

fn no_client(error: &reqwest::Error) -> FailedAttempt {
    FailedAttempt { error: plain(chain(error)), fallback: Fallback::None }
}

enum HandshakeProblem {
    Failed(HandshakeError),
    TimedOut,
}

/// The error with all that is known about why, after the child is gone.
async fn explain(
    problem: HandshakeProblem,
    child: Option<ChildProcess>,
    attempt: &Attempt,
) -> FailedAttempt {
    let timed_out = matches!(problem, HandshakeProblem::TimedOut);
    let fallback = match (&problem, &child) {
        (HandshakeProblem::TimedOut, _) => Fallback::None,
        (
            HandshakeProblem::Failed(
                HandshakeError::Closed { answered: false } | HandshakeError::Mixed(_),
            ),
            Some(_),
        ) => Fallback::Initialize,
        // One that has refused the question and dies later does so for reasons of its own.
        (HandshakeProblem::Failed(_), Some(_)) => Fallback::None,
        (HandshakeProblem::Failed(HandshakeError::OtherTransport(_)), None) => {
            Fallback::OtherTransport
        }
        (HandshakeProblem::Failed(_), None) => Fallback::Initialize,
    };
    let unreachable = child.is_none()
        && match &problem {
            HandshakeProblem::TimedOut => true,
            HandshakeProblem::Failed(error) => {
                matches!(error, HandshakeError::Closed { .. } | HandshakeError::Unreachable(_))
            }
        };
    let unauthorized = matches!(problem, HandshakeProblem::Failed(HandshakeError::Unauthorized(_)));
    let was_closed = matches!(problem, HandshakeProblem::Failed(HandshakeError::Closed { .. }));
    let mut message = match problem {
        HandshakeProblem::TimedOut => {
            let awaited = attempt.awaited().map(|what| format!(": still waiting for {what}"));
            let limit = attempt.limit.as_millis();
            format!("the handshake was not done within {limit} ms{}", awaited.unwrap_or_default())
        }
        HandshakeProblem::Failed(HandshakeError::Closed { .. }) => {
            "the connection was closed before the handshake was done".to_owned()
        }
        HandshakeProblem::Failed(
            HandshakeError::Mixed(error)
            | HandshakeError::Unreachable(error)
            | HandshakeError::Unauthorized(error)
            | HandshakeError::OtherTransport(error)
            | HandshakeError::Other(error),
        ) => {
            format!("the handshake failed: {error}")
        }
    };
    let mut stderr = None;
    if let Some(child) = child {
        // A child that is on its way out gets the chance to say with which status.
        let exit = tokio::time::timeout(
            if timed_out { Duration::ZERO } else { EXIT_WAIT },
            child.wait_for_exit(),
        )
        .await;
        // A child whose pipes are closed here ends well, which says nothing.
        if let Ok(status) = exit
            && (was_closed || status != child::ENDED_WELL)
        {
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
    FailedAttempt { error: ConnectError { message, stderr, unreachable, unauthorized }, fallback }
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
        Arc::new(ServerPeerInfo::new(
            ProtocolVersion::LATEST,
            rmcp::model::ServerCapabilities::default(),
        ))
    });
    if let Some(child) = &child {
        child.stdout.set_handshake_done();
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
                // A child that is on its way out gets the chance to say with which status.
                let exit = tokio::time::timeout(OWN_EXIT_WAIT, child.wait_for_exit()).await;
                // Without its pipes the child is of no use, whether it knows or not.
                child.stop().await;
                let status = exit.unwrap_or_else(|_| {
                    "its standard output was closed, and it was ended".to_owned()
                });
                broken.map_or(status.clone(), |broken| format!("{broken}; it was ended"))
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
        is_sse: false,
        progress,
        since: Instant::now(),
        catalog: RwLock::new(catalog),
        news,
        stop,
        ended,
    }
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
    /// A client of a child, which is asked by our own handshake before rmcp takes over.
    fn of_child<T: Transport<RoleClient> + 'static>(
        server: &str,
        mut transport: T,
        opening: Opening,
        attempt: Attempt,
        news: News,
    ) -> Self {
        let stop = CancellationToken::new();
        let progress = ProgressRoutes::default();
        let (token, routes) = (stop.clone(), progress.clone());
        let server = server.to_owned();
        let handshake = Box::pin(async move {
            let client = HostedClient::new(news.clone());
            let info =
                shake_hands(&mut transport, &client, opening, attempt.limit, &attempt).await?;

            let tapped = ProgressTap::new(transport, &server, routes, news);
            let service = serve_directly_with_ct(client, tapped, Some(info.clone()), token);
            let catalog = Catalog::read(&server, service.peer(), &info, &attempt).await;
            // A session that began with a question of the other era is not one that every server
            // can keep up.
            let mixed = opening == Opening::DiscoverFirst && !follow::is_modern(&info);
            let failed = |text| {
                if mixed { HandshakeError::Mixed(text) } else { HandshakeError::Other(text) }
            };
            Ok((service, catalog.map_err(failed)?))
        });
        Self { handshake, stop, progress }
    }

    fn new<T: Transport<RoleClient> + 'static>(
        server: &str,
        transport: T,
        mode: ClientLifecycleMode,
        attempt: Attempt,
        news: News,
    ) -> Self {
        let stop = CancellationToken::new();
        let progress = ProgressRoutes::default();
        let tapped = ProgressTap::new(transport, server, progress.clone(), news.clone());
        let token = stop.clone();
        let server = server.to_owned();
        let handshake = Box::pin(async move {
            let client = HostedClient::new(news);
            let service = serve_client_with_lifecycle_and_ct(client, tapped, mode, token).await?;
            let catalog = match service.peer().peer_info() {
                Some(info) => {
                    let catalog = Catalog::read(&server, service.peer(), &info, &attempt).await;
                    catalog.map_err(HandshakeError::Other)?
                }
                None => Catalog::default(),
            };
            Ok((service, catalog))
        });
        Self { handshake, stop, progress }
    }
}
