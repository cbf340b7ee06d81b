//! Signals become one cancellation token; what is drained, and for how long, is up to whoever holds
//! it.

use std::io;

use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

/// The exit code of a process that was told twice: 128 + SIGINT, as shells report it.
const EXIT_SECOND_SIGNAL: i32 = 130;

/// A token that is cancelled at the first SIGTERM or SIGINT.
///
/// A second signal ends the process at once with code 130: whoever asks twice does not want to wait
/// for the drain. Both handlers are in place when this returns. May be called more than once; each
/// token follows the same signals.
///
/// # Errors
///
/// If the operating system refuses the signal handlers.
///
/// # Panics
///
/// Outside a tokio runtime.
pub fn signal_token() -> io::Result<CancellationToken> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let token = CancellationToken::new();
    let cancelled = token.clone();
    tokio::spawn(async move {
        let name =
            tokio::select! { _ = terminate.recv() => "SIGTERM", _ = interrupt.recv() => "SIGINT" };
        tracing::info!(signal = name, "shutting down; a second signal exits at once");
        cancelled.cancel();
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        tracing::warn!("second signal: exiting without finishing the drain");
        std::process::exit(EXIT_SECOND_SIGNAL);
    });
    Ok(token)
}
