//! Ties the life of a child process to that of its parent.

use std::{os::unix::process::parent_id, time::Duration};

use nix::sys::signal::{Signal, raise};

/// How often a child checks that its parent still exists.
const WATCH: Duration = Duration::from_millis(500);

/// Starts a task that shuts this process down, in the usual way, when its parent has ended for
/// whatever reason. Without it, a killed `mcp-fleet dev` would leave its processes running.
///
/// `parent` is the parent's process id, as the parent knows it. A child cannot ask for it: if the
/// parent has been killed since it started the child, the child would watch the process that
/// adopted it.
///
/// # Panics
///
/// Panics outside a tokio runtime.
pub fn shut_down_with_parent(parent: u32) {
    tokio::spawn(async move {
        while parent_id() == parent {
            tokio::time::sleep(WATCH).await;
        }

        tracing::warn!("the parent process has ended; shutting down");
        // Whoever called `signal_token` drains now; otherwise the signal ends the process.
        if raise(Signal::SIGTERM).is_err() {
            std::process::exit(1);
        }
    });
}
