//! Turns signals into a cancellation token. The holder decides what to drain and for how long.

use std::{io, thread, time::Duration};

use tokio::{
    signal::unix::{SignalKind, signal},
    sync::oneshot,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

/// The exit code after a second signal: 128 + SIGINT, as shells report it.
const EXIT_SECOND_SIGNAL: i32 = 130;
/// How long a log line may delay a shutdown: stderr may be a full pipe that nobody reads.
const LOG_PATIENCE: Duration = Duration::from_millis(200);

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
        // Before the log line, so that the process stops even if the line can't be written.
        cancelled.cancel();
        let announce = move || {
            tracing::info!(signal = name, "shutting down; a second signal exits immediately");
        };
        log_within_patience(announce).await;

        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        log_within_patience(|| {
            tracing::warn!("received a second signal; exiting before the drain has finished");
        })
        .await;
        std::process::exit(EXIT_SECOND_SIGNAL);
    });

    Ok(token)
}

/// Writes a log line and waits at most [`LOG_PATIENCE`] for it. A write to a full pipe blocks its
/// thread, so the line is written by a thread of its own.
async fn log_within_patience(write: impl FnOnce() + Send + 'static) {
    let (written, wait) = oneshot::channel::<()>();
    let line = move || {
        write();
        drop(written);
    };
    // If no thread can be started, the line is lost and the shutdown continues.
    if thread::Builder::new().name("last-words".to_owned()).spawn(line).is_ok() {
        _ = timeout(LOG_PATIENCE, wait).await;
    }
}
