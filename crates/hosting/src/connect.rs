//! Establishes connections to hosted servers, over the transport and protocol revision that they
//! speak.
//!
//! The handshake tries the stateless protocol first and falls back to `initialize`. For a child it
//! is our own (`handshake`), for a remote it is rmcp's. Some children exit when they receive a
//! method that they don't know. So a child that exits without an answer is started once more for
//! `initialize` alone, as is one whose session does not work after it has refused
//! `server/discover`. A child is never started again only because it is slow.

use std::time::Duration;

use fleet_ops::{errors::chain, tls::TlsError};
use fleet_policy::current::CurrentPolicy;
use futures::future::BoxFuture;
use rmcp::{
    RoleClient,
    model::ProtocolVersion,
    service::{
        ClientLifecycleMode, RunningService, serve_client_with_lifecycle_and_ct,
        serve_directly_with_ct,
    },
    transport::Transport,
};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{
    attempt::Attempt,
    catalog::Catalog,
    changes::News,
    child::{self, ChildProcess},
    follow::{self, HostedClient},
    handshake::{Opening, drive::shake_hands},
    handshake_error::HandshakeError,
    launch::{ChildSpec, LaunchSpec, RemoteSpec},
    progress::{ProgressRoutes, ProgressTap},
    remote,
    sse_transport::SseTransport,
    stdio::StdioTransport,
    upstream::{ConnectError, SHOWN_STDERR, Upstream},
};

/// How long to wait for the exit status of a child whose pipe has closed.
const EXIT_WAIT: Duration = Duration::from_secs(2);
/// How many lines of a child's standard error a message shows.
const SHOWN_LINES: usize = 5;

/// Connects to one server.
pub(super) struct Connector<'a> {
    pub(super) server: &'a str,
    pub(super) policy: &'a CurrentPolicy,
    pub(super) attempt: &'a Attempt,
}

/// A failed attempt, and what may work instead.
struct FailedAttempt {
    error: ConnectError,
    fallback: Fallback,
}

/// What may work after a failed attempt.
#[derive(Debug, Clone, PartialEq)]
enum Fallback {
    None,
    /// A handshake with `initialize` alone.
    Initialize,
    /// The other transport, because nothing at the URL accepts `initialize`.
    OtherTransport,
    /// `initialize` in this revision, which the server lists.
    Revision(ProtocolVersion),
}

impl FailedAttempt {
    /// A failure for which there is no fallback.
    fn without_fallback(message: String) -> Self {
        Self { error: ConnectError::plain(message), fallback: Fallback::None }
    }

    fn without_client(error: &TlsError) -> Self {
        Self::without_fallback(chain(error))
    }

    /// The same failure of a server that has refused `notifications/initialized`.
    fn because_of(self, refusal: &str) -> Self {
        let message =
            format!("the handshake failed: it refused `notifications/initialized`: {refusal}");
        Self { error: ConnectError { message, ..self.error }, ..self }
    }
}

impl Connector<'_> {
    /// Connects to the server that `spec` describes.
    pub(super) async fn connect(&self, spec: &LaunchSpec) -> Result<Upstream, ConnectError> {
        let connected = match spec {
            LaunchSpec::Child(spec) => self.connect_child_of_any_revision(spec).await,
            LaunchSpec::Url(spec) => self.connect_url(spec).await,
            LaunchSpec::Remote(spec) => self.connect_remote_of_any_revision(spec).await,
            // A server of 2024 may never answer newer requests, so try the older handshake first.
            LaunchSpec::Sse(spec) => self.connect_sse_of_any_revision(spec).await,
        };
        connected.map_err(|failed| failed.error)
    }

    async fn connect_child_of_any_revision(
        &self,
        spec: &ChildSpec,
    ) -> Result<Upstream, FailedAttempt> {
        match self.connect_child(spec, Opening::DiscoverFirst).await {
            Err(FailedAttempt { error, fallback: Fallback::Initialize }) => {
                self.log_fallback(&error);
                self.connect_child(spec, Opening::InitializeOnly).await
            }
            result => result,
        }
    }

    async fn connect_remote_of_any_revision(
        &self,
        spec: &RemoteSpec,
    ) -> Result<Upstream, FailedAttempt> {
        let modern = ClientLifecycleMode::Auto {
            preferred_versions: vec![ProtocolVersion::LATEST],
            legacy_version: Some(ProtocolVersion::LATEST_WITH_INITIALIZE),
        };
        match self.connect_remote(spec, modern).await {
            // The transport itself asks for a revision that the server lists.
            Err(FailedAttempt {
                error,
                fallback: Fallback::Initialize | Fallback::Revision(_),
            }) => {
                self.log_fallback(&error);
                self.connect_remote(spec, ClientLifecycleMode::Initialize).await
            }
            result => result,
        }
    }

    /// Connects to a remote whose transport the configuration does not name.
    async fn connect_url(&self, spec: &RemoteSpec) -> Result<Upstream, FailedAttempt> {
        let first = match self.connect_remote_of_any_revision(spec).await {
            Err(FailedAttempt { error, fallback: Fallback::OtherTransport }) => error,
            result => return result,
        };

        self.log_fallback(&first);
        self.connect_sse_of_any_revision(spec).await.map_err(|FailedAttempt { error, fallback }| {
            let message = format!("{}; over HTTP+SSE: {}", first.message, error.message);
            FailedAttempt { error: ConnectError { message, ..error }, fallback }
        })
    }

    fn log_fallback(&self, error: &ConnectError) {
        tracing::debug!(server = self.server, %error, "the handshake failed; trying an older one");
    }

    async fn connect_child(
        &self,
        spec: &ChildSpec,
        opening: Opening,
    ) -> Result<Upstream, FailedAttempt> {
        let limits = self.policy.get().limits.of_server(self.server).process;
        let (child, (stdout, stdin)) =
            child::spawn_child(self.server, spec, &limits).map_err(|error| {
                let program = spec.program.display();
                FailedAttempt::without_fallback(format!("could not start `{program}`: {error}"))
            })?;
        self.attempt.set_child(child.stderr.clone());

        let news = News::default();
        let transport =
            StdioTransport::new(stdout, stdin, child.stdout.clone(), spec.secrets.clone());
        let client = PendingClient::of_child(
            self.server,
            transport,
            opening,
            self.attempt.clone(),
            news.clone(),
        );
        self.finish_handshake(client, Some(child), news).await
    }

    async fn connect_remote(
        &self,
        spec: &RemoteSpec,
        mode: ClientLifecycleMode,
    ) -> Result<Upstream, FailedAttempt> {
        let news = News::default();
        let limit = self.attempt.limit;
        let remote = remote::transport(self.server, spec, self.policy.clone(), limit, news.clone())
            .map_err(|error| FailedAttempt::without_client(&error))?;
        let client = HostedClient::new(news.clone());
        let client = PendingClient::new(
            self.server,
            remote.transport,
            (client, mode),
            self.attempt.clone(),
            news.clone(),
        );
        let finished = self.finish_handshake(client, None, news).await;
        let upstream = finished.map_err(|failed| match remote.client.refused_initialized() {
            Some(refusal) => failed.because_of(&refusal),
            None => failed,
        })?;

        // Only after the handshake: a transport that ends during it reports why, and `stop` would
        // hide that.
        let (stop, over) = (upstream.stop.clone(), remote.over);
        tokio::spawn(async move {
            // Cancelled when the transport ends, at the latest.
            over.cancelled().await;
            stop.cancel();
        });
        Ok(upstream)
    }

    /// Connects over HTTP+SSE. The server may list its revisions when it refuses ours.
    async fn connect_sse_of_any_revision(
        &self,
        spec: &RemoteSpec,
    ) -> Result<Upstream, FailedAttempt> {
        match self.connect_sse(spec, ProtocolVersion::LATEST_WITH_INITIALIZE).await {
            Err(FailedAttempt { error, fallback: Fallback::Revision(listed) }) => {
                self.log_fallback(&error);
                self.connect_sse(spec, listed).await
            }
            result => result,
        }
    }

    async fn connect_sse(
        &self,
        spec: &RemoteSpec,
        revision: ProtocolVersion,
    ) -> Result<Upstream, FailedAttempt> {
        let news = News::default();
        let client = fleet_egress::client(&spec.url, self.policy.clone())
            .map_err(|error| FailedAttempt::without_client(&error))?;
        let transport = SseTransport::new(self.server, spec, client, self.policy.clone());
        let client = HostedClient::new(news.clone()).in_revision(revision);
        let client = PendingClient::new(
            self.server,
            transport,
            (client, ClientLifecycleMode::Initialize),
            self.attempt.clone(),
            news.clone(),
        );

        let mut upstream = self.finish_handshake(client, None, news).await?;
        upstream.is_sse = true;
        Ok(upstream)
    }

    /// Does the handshake within the rest of the limit.
    async fn finish_handshake(
        &self,
        client: PendingClient,
        child: Option<ChildProcess>,
        news: News,
    ) -> Result<Upstream, FailedAttempt> {
        let stop = client.stop.clone();
        let progress = client.progress.clone();
        // If the caller gives up during the handshake, the child must not stay behind.
        let guard = child.as_ref().map(ChildProcess::stop_guard);

        let deadline = self.attempt.since + self.attempt.limit;
        let problem = match tokio::time::timeout_at(deadline.into(), client.handshake).await {
            Ok(Ok((service, catalog))) => {
                guard.map(DropGuard::disarm);
                return Ok(Upstream::new(service, catalog, news, child, stop, progress));
            }
            Ok(Err(error)) => HandshakeProblem::Failed(error),
            Err(_) => HandshakeProblem::TimedOut,
        };

        stop.cancel();
        Err(explain_failure(problem, child, self.attempt).await)
    }
}

/// Why a handshake was not finished.
enum HandshakeProblem {
    Failed(HandshakeError),
    TimedOut,
}

impl HandshakeProblem {
    /// Returns what may work instead.
    fn fallback(&self, is_child: bool) -> Fallback {
        match (self, is_child) {
            (Self::TimedOut, _) => Fallback::None,
            (
                Self::Failed(HandshakeError::Closed { answered: false } | HandshakeError::Mixed(_)),
                true,
            ) => Fallback::Initialize,
            // A child that has refused `server/discover` and exits later has other reasons.
            (Self::Failed(_), true) => Fallback::None,
            (Self::Failed(HandshakeError::OtherTransport(_)), false) => Fallback::OtherTransport,
            (Self::Failed(HandshakeError::OtherRevision { listed, .. }), false) => {
                Fallback::Revision(listed.clone())
            }
            (Self::Failed(_), false) => Fallback::Initialize,
        }
    }

    /// Returns whether the problem of a remote is that it can't be reached.
    fn is_unreachable(&self) -> bool {
        match self {
            Self::TimedOut => true,
            Self::Failed(error) => {
                matches!(error, HandshakeError::Closed { .. } | HandshakeError::Unreachable(_))
            }
        }
    }

    fn message(&self, attempt: &Attempt) -> String {
        match self {
            Self::TimedOut => {
                let awaited = attempt.awaited().map(|what| format!(": still waiting for {what}"));
                let limit = attempt.limit.as_millis();
                format!(
                    "the handshake was not finished within {limit} ms{}",
                    awaited.unwrap_or_default()
                )
            }
            Self::Failed(HandshakeError::Closed { .. }) => {
                "the connection was closed before the handshake was finished".to_owned()
            }
            Self::Failed(
                HandshakeError::Mixed(error)
                | HandshakeError::Unreachable(error)
                | HandshakeError::Unauthorized(error)
                | HandshakeError::OtherTransport(error)
                | HandshakeError::OtherRevision { message: error, .. }
                | HandshakeError::Other(error),
            ) => format!("the handshake failed: {error}"),
        }
    }
}

/// Ends the child of a failed attempt, and collects what is known about the cause.
async fn explain_failure(
    problem: HandshakeProblem,
    child: Option<ChildProcess>,
    attempt: &Attempt,
) -> FailedAttempt {
    let fallback = problem.fallback(child.is_some());
    let unreachable = child.is_none() && problem.is_unreachable();
    let unauthorized = matches!(problem, HandshakeProblem::Failed(HandshakeError::Unauthorized(_)));
    let mut message = problem.message(attempt);

    let mut stderr = None;
    if let Some(child) = child {
        let clues = end_child(&child, &problem).await;
        if let Some(status) = clues.status {
            message = format!("{message}: {status}");
        }
        if let Some(complaint) = child.stdout.complaint() {
            message = format!("{message}; {complaint}");
        }
        if let Some(tail) = clues.stderr {
            let lines: Vec<&str> = tail.lines().collect();
            let last = lines[lines.len().saturating_sub(SHOWN_LINES)..].join("\n");
            message = format!("{message}; standard error ends in {last:?}");
            stderr = Some(tail);
        }
    }

    let error = ConnectError { message, stderr, unreachable, unauthorized };
    FailedAttempt { error, fallback }
}

/// What a child leaves behind that helps to explain a failure.
struct Clues {
    status: Option<String>,
    stderr: Option<String>,
}

/// Ends a child after a failed handshake.
async fn end_child(child: &ChildProcess, problem: &HandshakeProblem) -> Clues {
    // A child that is ending gets time to report its exit status.
    let patience = match problem {
        HandshakeProblem::TimedOut => Duration::ZERO,
        HandshakeProblem::Failed(_) => EXIT_WAIT,
    };
    let exit = tokio::time::timeout(patience, child.wait_for_exit()).await;
    child.stop().await;

    // A child exits successfully when its pipes are closed here, which explains nothing.
    let was_closed = matches!(problem, HandshakeProblem::Failed(HandshakeError::Closed { .. }));
    let status = exit.ok().filter(|status| was_closed || status != child::ENDED_WELL);
    let stderr = Some(child.stderr.text(SHOWN_STDERR)).filter(|tail| !tail.is_empty());
    Clues { status, stderr }
}

type PendingHandshake =
    BoxFuture<'static, Result<(RunningService<RoleClient, HostedClient>, Catalog), HandshakeError>>;

/// A client whose handshake has not been done yet.
struct PendingClient {
    handshake: PendingHandshake,
    stop: CancellationToken,
    progress: ProgressRoutes,
}

impl PendingClient {
    /// A client of a child. Our own handshake runs before rmcp takes over.
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
            // Not every server can keep up a session that began with a request of the newer
            // revisions.
            let is_mixed = opening == Opening::DiscoverFirst && !follow::is_modern(&info);
            let failed = |text| match is_mixed {
                true => HandshakeError::Mixed(text),
                false => HandshakeError::Other(text),
            };
            Ok((service, catalog.map_err(failed)?))
        });
        Self { handshake, stop, progress }
    }

    /// A client of a remote, whose handshake is rmcp's, in this mode.
    fn new<T: Transport<RoleClient> + 'static>(
        server: &str,
        transport: T,
        (client, mode): (HostedClient, ClientLifecycleMode),
        attempt: Attempt,
        news: News,
    ) -> Self {
        let stop = CancellationToken::new();
        let progress = ProgressRoutes::default();
        let tapped = ProgressTap::new(transport, server, progress.clone(), news);
        let token = stop.clone();
        let server = server.to_owned();

        let handshake = Box::pin(async move {
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
