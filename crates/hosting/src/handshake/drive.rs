//! A handshake on a transport, which is rmcp's afterwards.

use std::time::{Duration, Instant};

use rmcp::{RoleClient, model::ServerPeerInfo, transport::Transport};

use super::{Handshake, Opening, Outcome};
use crate::{attempt::Attempt, follow::HostedClient};

/// Why a handshake came to nothing.
#[derive(Debug)]
pub(crate) enum Broken {
    /// The other side has closed the connection.
    Closed {
        /// Whether it had answered anything before that.
        answered: bool,
    },
    /// The other side has refused.
    Refused(String),
}

/// Makes the handshake. It takes as long as it takes: the caller keeps the limit.
///
/// # Errors
///
/// Where the server refuses, or closes the connection.
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
            // A pipe that can't be written to is one that has been closed.
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

/// Waits until then, or for ever.
async fn sleep_until(at: Option<Instant>) {
    match at {
        Some(at) => tokio::time::sleep_until(at.into()).await,
        None => std::future::pending().await,
    }
}
