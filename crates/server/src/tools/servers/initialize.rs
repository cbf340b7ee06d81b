//! `server_initialize`: hosts another MCP server.

use std::{
    pin::pin,
    sync::Arc,
    time::{Duration, Instant},
};

use fleet_hosting::{
    fleet::InitError,
    registry::{Shared, presence::ShareError},
    status::{OfferedTool, ServerInfo},
    upstream::ConnectError,
};
use fleet_job::mcp_servers::{ConfigError, ServerEntry};
use fleet_ops::errors::chain;
use rmcp::{RoleServer, model::ProgressNotificationParam, service::RequestContext};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::toolkit::{Effect, ToolFailure, ToolSpec};

/// The tool's place in the list.
pub const SPEC: ToolSpec = ToolSpec {
    name: "server_initialize",
    title: "Host an MCP server",
    description: "Starts or connects to another MCP server and offers its tools here as `<name>__<tool>`. `config` is \
                  one entry of an `mcpServers` object. Doing it again with the same configuration changes nothing; \
                  with another one, the server is replaced once the new one answers. With `disabled: true` or \
                  `enabled: false` in it nothing is started or changed. Policy decides what may be started.",
    effect: Effect::IdempotentChange,
};

/// How often the caller is told how far the start has come, if it takes longer than this.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(1);

/// What to host.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Args {
    /// The name to host it under: letters, digits, `_` and `-`.
    #[schemars(length(min = 1, max = 40))]
    name: String,
    /// How to start or reach it, as in an `mcpServers` object.
    #[schemars(with = "ServerEntry")]
    config: Value,
}

/// What is hosted now.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Initialized {
    /// Its name.
    name: String,
    /// Set where the configuration switches the server off, so that nothing was started.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    disabled: bool,
    /// What it says about itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    server_info: Option<ServerInfo>,
    /// The revision of MCP that is spoken with it.
    #[serde(skip_serializing_if = "Option::is_none")]
    protocol_version: Option<String>,
    /// `stdio`, `http` or `sse`.
    #[serde(skip_serializing_if = "Option::is_none")]
    transport: Option<String>,
    /// Its process, for child processes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<u32>,
    /// Its tools.
    tools: Vec<OfferedTool>,
    /// What was strange about the configuration, and did not matter.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    warnings: Vec<String>,
}

/// The tool.
///
/// # Errors
///
/// Where the configuration is wrong, policy refuses it, the server does not do its handshake, or
/// the other replicas can't be told.
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

/// The answer to a configuration that switches its server off. A server that is hosted already
/// stays: who removes a server says so.
fn report_disabled(shared: &Shared, name: String, error: &ConfigError) -> Initialized {
    let warning = if shared.fleet().is_hosted(&name) {
        format!(
            "{error}: nothing was started; {name:?}, which is hosted already, is left as it is (server_remove ends it)"
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

/// Waits for a server to be hosted, and tells the caller meanwhile how far that has come.
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

        let Some(attempt) = shared.fleet().attempt(name) else { continue };
        let (seconds, limit) = (begun.elapsed().as_secs(), attempt.limit.as_secs());
        let mut progress = ProgressNotificationParam::new(token.clone(), seconds as f64);
        progress = progress.with_message(attempt.describe());
        if seconds < limit {
            progress = progress.with_total(limit as f64);
        }
        // A caller that does not listen any more loses nothing but progress.
        _ = context.peer.notify_progress(progress).await;
    }
}

fn failure_of(name: &str, error: &ShareError) -> ToolFailure {
    let what = match error {
        ShareError::Unwritten { .. } => "hosted by this replica alone",
        ShareError::Superseded => "not hosted any more",
        ShareError::Init(_) | ShareError::NotShareable(_) | ShareError::Registry(_) => "not hosted",
    };
    let message = format!("server {name:?} is {what}: {}", chain(error));
    if let Some(retry_after) = error.retry_after() {
        return ToolFailure::unavailable(message, name, retry_after);
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
