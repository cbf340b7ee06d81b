//! Runs a handshake on a transport, which rmcp takes over afterwards.

use std::time::{Duration, Instant};

use rmcp::{RoleClient, model::ServerPeerInfo, transport::Transport};

use super::{Handshake, Opening, Outcome};
use crate::{attempt::Attempt, follow::HostedClient};

/// Why a handshake failed.
#[derive(Debug)]
pub(crate) enum Broken {
    /// The server closed the connection.
    Closed {
        /// Whether it had answered anything before.
        answered: bool,
    },
    /// The server refused, for this reason.
    Refused(String),
}

/// Does the handshake. The caller enforces the limit.
///
/// # Errors
///
/// Returns an error if the server refuses or closes the connection.
pub(crate) async fn shake_hands<T: Transport<RoleClient>>(
    transport: &mut T,
    client: &HostedClient,
    opening: Opening,
    limit: Duration,
    attempt: &Attempt,
) -> Result<ServerPeerInfo, Broken> {
    use rmcp::ClientHandler as _;

    let mut handshake = Handshake::new(client.get_info(), opening, limit, Instant::now());
    loop {
        while let Some(message) = handshake.next_message() {
            // Writing fails only if the pipe has been closed.
            if transport.send(message).await.is_err() {
                return Err(Broken::Closed { answered: handshake.was_answered() });
            }
        }

        match handshake.outcome() {
            Outcome::Agreed(info) => return Ok(*info),
            Outcome::Refused(reason) => return Err(Broken::Refused(reason)),
            Outcome::Pending => attempt.set_awaited(handshake.awaited()),
        }

        tokio::select! {
            message = transport.receive() => match message {
                Some(message) => handshake.read(message, Instant::now()),
                None => return Err(Broken::Closed { answered: handshake.was_answered() }),
            },
            () = sleep_until(handshake.wake_at()) => handshake.pass_time(Instant::now()),
        }
    }
}

/// Waits until `at`, or for ever.
async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
