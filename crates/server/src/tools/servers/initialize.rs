//! `server_initialize`: hosts another MCP server.

use std::{
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use fleet_hosting::{
    fleet::InitError,
    registry::{Shared, presence::ShareError},
    status::{OfferedTool, ServerInfo, ServerStatus},
    upstream::ConnectError,
};
use fleet_job::mcp_servers::{ConfigError, ServerEntry};
use fleet_ops::errors::chain;
use rmcp::{RoleServer, model::ProgressNotificationParam, service::RequestContext};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::{
    gateway::{Asking, asking_in},
    toolkit::{Effect, ToolFailure, ToolSpec},
};

/// The tool's entry in the tool list.
pub const SPEC: ToolSpec = ToolSpec {
    name: "server_initialize",
    title: "Host an MCP server",
    description: "Starts or connects to another MCP server and offers its tools here as \
                  `<name>__<tool>`. `config` is one entry of an `mcpServers` object. Repeating \
                  the call with the same configuration changes nothing; with another \
                  configuration, the new server replaces the old one once it answers. If `config` \
                  has `disabled: true` or `enabled: false`, nothing is started or changed. The \
                  policy decides what may be started.",
    effect: Effect::IdempotentChange,
};

/// How often the caller is notified of the progress of a start.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// The server to host.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Args {
    /// The name of the server: letters, digits, `_` and `-`.
    #[schemars(length(min = 1, max = 40))]
    name: String,
    /// How to start or reach the server, as in an `mcpServers` object.
    #[schemars(with = "ServerEntry")]
    config: Value,
}

/// The server that is hosted now.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Initialized {
    /// The name of the server.
    name: String,
    /// True if the configuration disables the server, so that nothing was started.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    disabled: bool,
    /// The server's description of itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    server_info: Option<ServerInfo>,
    /// The revision of MCP in use with the server.
    #[serde(skip_serializing_if = "Option::is_none")]
    protocol_version: Option<String>,
    /// `stdio`, `http` or `sse`.
    #[serde(skip_serializing_if = "Option::is_none")]
    transport: Option<String>,
    /// The process id, for child processes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<u32>,
    /// The tools that the server offers.
    tools: Vec<OfferedTool>,
    /// Oddities in the configuration that don't prevent hosting.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

/// Hosts a server.
///
/// # Errors
///
/// Returns an error if the configuration is invalid, the policy refuses it, the server fails to
/// start or to complete its handshake, or the other replicas can't be informed.
pub async fn server_initialize(
    shared: Arc<Shared>,
    context: RequestContext<RoleServer>,
    args: Args,
) -> Result<Initialized, ToolFailure> {
    let entry = match ServerEntry::from_value(&args.config, "config") {
        Ok(entry) => entry,
        Err(error @ ConfigError::Disabled { .. }) => {
            return Ok(report_disabled(&shared, args.name, &error));
        }
        Err(error) => {
            return Err(ToolFailure::permanent(format!(
                "invalid configuration: {error} [{}]",
                fleet_codes::SERVER_CONFIG
            )));
        }
    };

    let warnings = entry.warnings("config");
    let hosted = shared.initialize(&args.name, &entry);
    let status = wait_with_progress(&shared, &args.name, &context, hosted).await;
    let status = status.map_err(|error| failure_of(&args.name, &error))?;
    let asking = asking_in(&context).map_err(ToolFailure::refused)?;
    let status = match asking.asker().view_name() {
        Some(_) => status_in_view(&asking, &shared, status)?,
        None => status,
    };

    Ok(Initialized {
        name: status.name,
        disabled: false,
        server_info: status.server_info,
        protocol_version: status.protocol_version,
        transport: status.transport,
        pid: status.pid,
        tools: status.tools,
        warnings,
    })
}

/// What a client of a view may know of a server that it has just hosted.
fn status_in_view(
    asking: &Asking,
    shared: &Shared,
    status: ServerStatus,
) -> Result<ServerStatus, ToolFailure> {
    let name = status.name.clone();
    let seen = super::statuses_for(asking, shared.fleet(), vec![status]);
    let hidden = || ToolFailure::permanent(format!("server {name:?} is hosted, but not seen here"));
    seen.into_iter().next().ok_or_else(hidden)
}

/// The answer to a configuration that disables its server. A server that is already hosted stays,
/// because only `server_remove` removes a server.
fn report_disabled(shared: &Shared, name: String, error: &ConfigError) -> Initialized {
    let warning = if shared.fleet().is_hosted(&name) {
        format!(
            "{error}: nothing was started; {name:?}, which is already hosted, keeps running; \
             remove it with server_remove"
        )
    } else {
        format!("{error}: nothing was started")
    };
    Initialized {
        name,
        disabled: true,
        server_info: None,
        protocol_version: None,
        transport: None,
        pid: None,
        tools: Vec::new(),
        warnings: vec![warning],
    }
}

/// Waits for a server to be hosted, and sends progress notifications to the caller meanwhile.
async fn wait_with_progress<T>(
    shared: &Shared,
    name: &str,
    context: &RequestContext<RoleServer>,
    hosted: impl Future<Output = T>,
) -> T {
    let mut hosted = pin!(hosted);
    let Some(token) = context.meta.get_progress_token() else { return hosted.await };

    let begun = Instant::now();
    loop {
        tokio::select! {
            done = &mut hosted => return done,
            () = tokio::time::sleep(PROGRESS_INTERVAL) => {}
        }

        let Some(attempt) = shared.fleet().current_attempt(name) else { continue };
        let (seconds, limit) = (begun.elapsed().as_secs(), attempt.limit.as_secs());
        let mut progress = ProgressNotificationParam::new(token.clone(), seconds as f64);
        progress = progress.with_message(attempt.describe());
        if seconds < limit {
            progress = progress.with_total(limit as f64);
        }
        // A caller that has left only misses progress.
        _ = context.peer.notify_progress(progress).await;
    }
}

fn failure_of(name: &str, error: &ShareError) -> ToolFailure {
    let what = match error {
        ShareError::Unwritten { .. } => "hosted by this replica alone",
        ShareError::Superseded => "no longer hosted",
        ShareError::Init(_) | ShareError::NotShareable(_) | ShareError::Registry(_) => "not hosted",
    };
    let message = format!("server {name:?} is {what}: {}", chain(error));
    if let Some(outage) = error.outage() {
        return ToolFailure::outage(message, name, outage);
    }

    let failure = if error.is_permanent() {
        ToolFailure::permanent(message)
    } else {
        ToolFailure::transient(message)
    };
    match error {
        ShareError::Init(InitError::Connect(ConnectError { stderr: Some(tail), .. })) => {
            failure.with_details(json!({ "server": name, "stderrTail": tail }))
        }
        _ => failure,
    }
}
