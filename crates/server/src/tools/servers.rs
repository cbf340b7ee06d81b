//! The `server_*` tools: host other MCP servers, and show their status.

use std::sync::Arc;

use fleet_access::Action;
use fleet_hosting::{registry::Shared, status::ServerStatus};
use rmcp::{RoleServer, service::RequestContext};

use crate::{
    gateway::asking_in,
    provider::ToolRight,
    toolkit::{ToolFailure, Toolkit},
};

pub mod initialize;
pub mod list;
pub mod remove;
pub mod status;

/// The toolkit of the `server_*` tools.
pub fn toolkit(shared: Arc<Shared>) -> Toolkit<Shared> {
    Toolkit::new(shared)
        .always_runs()
        .with(&initialize::SPEC, initialize::server_initialize)
        .with_right(&initialize::SPEC, ToolRight::OnServer(Action::AdministerServers))
        .with(&list::SPEC, list::server_list)
        .with(&status::SPEC, status::server_status)
        .with(&remove::SPEC, remove::server_remove)
        .with_right(&remove::SPEC, ToolRight::OnServer(Action::AdministerServers))
}

/// The hosted servers that the caller may know of.
fn visible_statuses(
    shared: &Shared,
    context: &RequestContext<RoleServer>,
) -> Result<Vec<ServerStatus>, ToolFailure> {
    let asking = asking_in(context).map_err(ToolFailure::refused)?;
    let routes = shared.fleet().routes();
    let mut statuses = shared.statuses();
    statuses.retain(|status| asking.sees_server(&status.name, &routes));
    Ok(statuses)
}
