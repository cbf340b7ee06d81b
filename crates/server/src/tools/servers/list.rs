//! `server_list`: lists the hosted servers.

use std::sync::Arc;

use fleet_hosting::registry::Shared;
use rmcp::{RoleServer, service::RequestContext};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::toolkit::{Effect, ToolFailure, ToolSpec};

/// The tool's entry in the tool list.
pub const SPEC: ToolSpec = ToolSpec {
    name: "server_list",
    title: "List hosted servers",
    description: "Lists the hosted MCP servers and their states. Use server_status for details.",
    effect: Effect::ReadOnly,
};

/// No arguments.
#[derive(Debug, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Args {}

/// The hosted servers.
#[derive(Debug, Serialize, JsonSchema)]
pub struct Servers {
    /// One entry per server.
    servers: Vec<Server>,
}

/// A hosted server.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Server {
    /// The name of the server.
    name: String,
    /// `starting`, `running`, `failed`, `idle` or `refused`.
    state: String,
    /// The number of its tools that are offered.
    tool_count: usize,
}

/// Lists the hosted servers.
///
/// # Errors
///
/// Never returns an error.
pub async fn server_list(
    shared: Arc<Shared>,
    context: RequestContext<RoleServer>,
    _args: Args,
) -> Result<Servers, ToolFailure> {
    let statuses = super::visible_statuses(&shared, &context)?;
    let servers = statuses.into_iter().map(|status| Server {
        name: status.name,
        state: status.state,
        tool_count: status.tool_count,
    });
    Ok(Servers { servers: servers.collect() })
}
