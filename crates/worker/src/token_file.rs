//! The file of the token for the MCP server. It is followed, so that a key can be replaced without
//! a restart of the worker, which would cost a rebalance.
//!
//! A file that is missing or bad doesn't end the worker. The server then refuses its calls, and the
//! jobs wait until somebody puts it right.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use fleet_mcp_client::{McpClient, Secret};
use fleet_ops::{config::read_secret_file, errors::chain};
use tokio::time::MissedTickBehavior;

/// How often the file is read. Each time wakes two threads of an idle worker.
const INTERVAL: Duration = Duration::from_secs(5);

/// What the last look at the file found: the token, or what is wrong.
type Found = Result<String, String>;

/// Reads the token, and goes on doing so as long as the runtime runs: a worker that drains still
/// calls the server.
pub(crate) async fn follow(client: McpClient, path: PathBuf) {
    let mut last = None;
    take(&client, &path, &mut last).await;

    tokio::spawn(async move {
        let mut ticks = tokio::time::interval(INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            take(&client, &path, &mut last).await;
        }
    });
}

/// Reads the file, and uses its token from now on if it is another one than before. A file that
/// can't be used leaves the token before it in use.
async fn take(client: &McpClient, path: &Path, last: &mut Option<Found>) {
    let found = read(path).await;
    if last.as_ref() == Some(&found) {
        return;
    }

    let used = found.clone().and_then(|token| {
        client.replace_bearer_token(Some(Secret::from(token))).map_err(|error| chain(&error))
    });
    let file = path.display();
    match (used, &last) {
        (Ok(()), None) => tracing::info!(%file, "read the token for the MCP server"),
        (Ok(()), Some(_)) => tracing::info!(%file, "the token for the MCP server has changed"),
        (Err(error), None) => tracing::warn!(
            error,
            "calling the MCP server without a token until its file can be read; jobs wait if the \
             server refuses them"
        ),
        (Err(error), Some(_)) => tracing::warn!(
            error,
            "could not read the token for the MCP server again; the one before stays in use"
        ),
    }
    *last = Some(found);
}

async fn read(path: &Path) -> Found {
    let path = path.to_owned();
    match tokio::task::spawn_blocking(move || read_secret_file(&path)).await {
        Ok(found) => found.map_err(|error| chain(&error)),
        Err(error) => Err(error.to_string()),
    }
}
