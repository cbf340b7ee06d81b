//! `server_status`: how hosted servers are.

use std::sync::Arc;

use fleet_hosting::{registry::Shared, status::ServerStatus};
use rmcp::{RoleServer, service::RequestContext};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::toolkit::{Effect, ToolFailure, ToolSpec};

/// The tool's place in the list.
pub const SPEC: ToolSpec = ToolSpec {
    name: "server_status",
    title: "Status of hosted servers",
    description: "Says how the hosted MCP servers are: state, protocol version, process, uptime, tools, last error and \
                  the end of standard error.",
    effect: Effect::ReadOnly,
};

/// Which servers.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Args {
    /// The server; without it, all of them.
    #[serde(default)]
    name: Option<String>,
}

/// How the servers are.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Statuses {
    /// One entry for each.
    servers: Vec<ServerStatus>,
}

/// The tool.
///
/// # Errors
///
/// Where no server of this name is hosted.
pub async fn server_status(
    shared: Arc<Shared>,
    _context: RequestContext<RoleServer>,
    args: Args,
) -> Result<Statuses, ToolFailure> {
    let mut servers = shared.statuses();
    if let Some(name) = args.name {
        servers.retain(|status| status.name == name);
        if servers.is_empty() {
            return Err(ToolFailure::permanent(format!("no server {name:?} is hosted")));
        }
    }
    Ok(Statuses { servers })
}
