//! Turns signals into a cancellation token. The holder decides what to drain and for how long.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The exit code after a second signal: 128 + SIGINT, as shells report it.
const EXIT_SECOND_SIGNAL: i32 = 130;

/// Returns a token that is cancelled at the first SIGTERM or SIGINT.
///
/// A second signal exits at once with code 130, since a user who asks twice does not want to wait
/// for the drain. Both handlers are installed when this function returns. It may be called more
/// than once; all tokens follow the same signals.
///
/// # Errors
///
/// Returns an error if the operating system rejects the signal handlers.
///
/// # Panics
///
/// Panics outside a tokio runtime.
pub fn signal_token() -> io::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;

    let token = CancellationToken::new();

    let cancelled = token.clone();
    tokio::spawn(async move {
        let name =
            tokio::select! { _ = terminate.recv() => "SIGTERM", _ = interrupt.recv() => "SIGINT" };
        tracing::info!(signal = name, "shutting down; a second signal exits immediately");
        cancelled.cancel();

        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        tracing::warn!("received a second signal; exiting before the drain has finished");
        std::process::exit(EXIT_SECOND_SIGNAL);
    });

    Ok(token)
}
