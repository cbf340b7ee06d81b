//! One connection to a hosted server, from its handshake to its end.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use fleet_codes::{self as codes, Code};
use fleet_policy::current::CurrentPolicy;
use parking_lot::RwLock;
use rmcp::{
    RoleClient,
    model::{ProtocolVersion, ServerCapabilities, ServerPeerInfo},
    service::{Peer, RunningService},
};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::{
    attempt::Attempt,
    catalog::Catalog,
    changes::{Lists, News, Unseen},
    child::ChildProcess,
    connect::Connector,
    follow::{self, HostedClient},
    launch::LaunchSpec,
    notices::DropReason,
    outage::OutageReason,
    progress::ProgressRoutes,
    secrets::Secrets,
};

/// The longest part of a child's standard error that errors show, in bytes.
pub const SHOWN_STDERR: usize = 4 * 1024;
/// How long a child whose pipe has closed may take to end by itself before it is ended.
const OWN_EXIT_WAIT: Duration = Duration::from_millis(200);

/// A connection to a server that has finished its handshake.
pub struct Upstream {
    /// Sends requests to the server.
    pub peer: Peer<RoleClient>,
    /// What the server says about itself.
    pub info: Arc<ServerPeerInfo>,
    /// The server's process, if it is a child.
    pub child: Option<ChildProcess>,
    /// Whether the server is a remote that is reached over HTTP+SSE.
    pub is_sse: bool,
    /// Routes progress notifications to the calls that wait for them.
    pub progress: ProgressRoutes,
    /// When the handshake was finished.
    pub since: Instant,
    catalog: RwLock<Catalog>,
    news: News,
    pub(super) stop: CancellationToken,
    ended: watch::Receiver<Option<String>>,
}

/// Why the connection to a server could not be established.
#[derive(Debug, Clone, thiserror::Error)]
#[error("{message} [{code}]", code = self.code())]
pub struct ConnectError {
    /// What went wrong, with everything that is known about the cause.
    pub message: String,
    /// The end of the child's standard error.
    pub stderr: Option<String>,
    /// Whether the server is a remote that can't be reached, so that the configuration may be
    /// right.
    pub unreachable: bool,
    /// Whether the server is a remote that refuses our credentials.
    pub unauthorized: bool,
}

impl ConnectError {
    /// An error without any further details.
    pub(super) fn plain(message: String) -> Self {
        Self { message, stderr: None, unreachable: false, unauthorized: false }
    }

    /// Returns the stable code of the error.
    pub fn code(&self) -> Code {
        match (self.unauthorized, self.unreachable) {
            (true, _) => codes::UPSTREAM_UNAUTHORIZED,
            (false, true) => codes::SERVER_UNAVAILABLE,
            (false, false) => codes::SERVER_START,
        }
    }

    /// Returns the outage if the server is a remote and nothing else is wrong.
    pub(super) fn outage_reason(&self) -> Option<OutageReason> {
        match (self.unauthorized, self.unreachable) {
            (true, _) => Some(OutageReason::Unauthorized),
            (false, true) => Some(OutageReason::Unavailable),
            (false, false) => None,
        }
    }

    /// Hides secrets in the message.
    pub(super) fn hiding(self, secrets: &Secrets) -> Self {
        Self { message: secrets.hide_in_message(&self.message), ..self }
    }
}

impl Upstream {
    /// Starts or connects to a server, does the handshake, and reads what the server offers, all
    /// within the limit of `attempt`, which is kept up to date on what is waited for.
    ///
    /// # Errors
    ///
    /// Returns an error if any of this fails. Then nothing is left running.
    pub async fn connect(
        server: &str,
        spec: &LaunchSpec,
        policy: &CurrentPolicy,
        attempt: &Attempt,
    ) -> Result<Self, ConnectError> {
        Connector { server, policy, attempt }.connect(spec).await
    }

    /// Takes over a connection whose handshake is finished, and watches it until it ends.
    pub(super) fn new(
        service: RunningService<RoleClient, HostedClient>,
        catalog: Catalog,
        news: News,
        child: Option<ChildProcess>,
        stop: CancellationToken,
        progress: ProgressRoutes,
    ) -> Self {
        let peer = service.peer().clone();
        let info = peer.peer_info().unwrap_or_else(|| {
            Arc::new(ServerPeerInfo::new(ProtocolVersion::LATEST, ServerCapabilities::default()))
        });
        if let Some(child) = &child {
            child.stdout.set_handshake_done();
        }

        let (end, ended) = watch::channel(None);
        let watched = child.clone();
        tokio::spawn(async move {
            let reason = wait_for_end(service, watched).await;
            // Nobody may be listening.
            _ = end.send(Some(reason));
        });

        Self {
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

    /// Returns what the server offers, under its own names.
    pub fn catalog(&self) -> Catalog {
        self.catalog.read().clone()
    }

    /// Reads changed lists again.
    pub(super) async fn refresh_lists(&self, server: &str, lists: Lists) -> Result<(), String> {
        let catalog = self.catalog().read_again(server, &self.peer, &self.info, lists).await?;
        *self.catalog.write() = catalog;
        Ok(())
    }

    /// Logs that a notification was dropped, once for each reason.
    pub(super) fn log_dropped_notice(&self, server: &str, dropped: &DropReason) {
        self.news.log_dropped_notice(server, dropped);
    }

    /// Waits until the server reports a change, and returns all changes so far.
    pub(super) async fn next_news(&self) -> Unseen {
        self.news.next().await
    }

    /// Follows the server's changes until the connection ends, including those of the `wanted`
    /// resources.
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
                // If the sender is gone, so is the connection.
                _ = ended.wait_for(Option::is_some) => {}
            }
        });
    }

    /// Waits until the connection has ended, and returns the reason.
    pub async fn wait_for_end(&self) -> String {
        let mut ended = self.ended.clone();
        match ended.wait_for(Option::is_some).await {
            Ok(reason) => reason.clone().unwrap_or_default(),
            Err(_) => "the connection has ended".to_owned(),
        }
    }

    /// Returns whether the connection has ended.
    pub fn is_ended(&self) -> bool {
        self.ended.borrow().is_some() || self.peer.is_transport_closed()
    }

    /// Ends the connection, and the child if there is one, and waits for the end.
    pub async fn stop(&self) {
        self.stop.cancel();
        self.wait_for_end().await;
    }
}

/// Waits until a connection has ended, ends its child, and returns the reason.
async fn wait_for_end(
    service: RunningService<RoleClient, HostedClient>,
    child: Option<ChildProcess>,
) -> String {
    let reason = match service.waiting().await {
        Ok(_) => "the connection was closed".to_owned(),
        Err(error) => format!("the connection was lost: {error}"),
    };
    let Some(child) = child else { return reason };

    let broken = child.stdout.broken();
    // A child that is ending gets time to report its exit status.
    let exit = tokio::time::timeout(OWN_EXIT_WAIT, child.wait_for_exit()).await;
    // Without its pipes the child is useless, so end it in any case.
    child.stop().await;

    let status = exit
        .unwrap_or_else(|_| "the process closed its standard output, so it was ended".to_owned());
    broken.map_or(status, |broken| format!("{broken}, so it was ended"))
}
