//! `server_list`: which servers are hosted.

use std::sync::Arc;

use fleet_hosting::registry::Shared;
use rmcp::{RoleServer, service::RequestContext};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::toolkit::{Effect, ToolFailure, ToolSpec};

/// The tool's place in the list.
pub const SPEC: ToolSpec = ToolSpec {
    name: "server_list",
    title: "List hosted servers",
    description: "Lists the hosted MCP servers with their state. `server_status` says more.",
    effect: Effect::ReadOnly,
};

/// Nothing.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Args {}

/// The hosted servers.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Servers {
    /// One entry for each.
    servers: Vec<Server>,
}

/// One hosted server.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Server {
    /// Its name.
    name: String,
    /// `starting`, `running`, `failed`, `idle` or `refused`.
    state: String,
    /// How many tools of it are offered.
    tool_count: usize,
}

/// The tool.
///
/// # Errors
///
/// Never.
pub async fn server_list(
    shared: Arc<Shared>,
    _context: RequestContext<RoleServer>,
    _args: Args,
) -> Result<Servers, ToolFailure> {
    let servers = shared.statuses().into_iter().map(|status| Server {
        name: status.name,
        state: status.state,
        tool_count: status.tool_count,
    });
    Ok(Servers { servers: servers.collect() })
}
