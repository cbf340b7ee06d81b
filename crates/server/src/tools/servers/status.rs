//! `server_status`: the status of hosted servers.

use std::sync::Arc;

use fleet_hosting::{registry::Shared, status::ServerStatus};
use rmcp::{RoleServer, service::RequestContext};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::toolkit::{Effect, ToolFailure, ToolSpec};

/// The tool's entry in the tool list.
pub const SPEC: ToolSpec = ToolSpec {
    name: "server_status",
    title: "Get the status of hosted servers",
    description: "Returns the status of hosted MCP servers: state, protocol version, process, \
                  uptime, tools, last error and the end of standard error.",
    effect: Effect::ReadOnly,
};

/// The servers to look up.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Args {
    /// The name of the server; all servers by default.
    #[serde(default)]
    name: Option<String>,
}

/// The statuses of servers.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Statuses {
    /// One entry per server.
    servers: Vec<ServerStatus>,
}

/// Returns the status of one or all hosted servers.
///
/// # Errors
///
/// Returns an error if no server of this name is hosted.
pub async fn server_status(
    shared: Arc<Shared>,
    context: RequestContext<RoleServer>,
    args: Args,
) -> Result<Statuses, ToolFailure> {
    let mut servers = super::visible_statuses(&shared, &context)?;
    if let Some(name) = args.name {
        servers.retain(|status| status.name == name);
        if servers.is_empty() {
            return Err(ToolFailure::permanent(format!("no server {name:?} is hosted")));
        }
    }
    Ok(Statuses { servers })
}
