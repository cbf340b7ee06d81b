//! The `server_*` tools: host other MCP servers, and show their status.

use std::sync::Arc;

use fleet_access::Action;
use fleet_hosting::{
    Fleet,
    registry::Shared,
    status::{OfferedTool, ServerStatus},
};
use rmcp::{RoleServer, service::RequestContext};

use crate::{
    gateway::{Asking, asking_in},
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
    Ok(statuses_for(&asking, shared.fleet(), shared.statuses()))
}

/// What somebody may know of these servers. Without the right to administer a server, that is only
/// its state and the tools that the caller may use.
pub(crate) fn statuses_for(
    asking: &Asking,
    fleet: &Fleet,
    mut statuses: Vec<ServerStatus>,
) -> Vec<ServerStatus> {
    let routes = fleet.routes();
    statuses.retain(|status| asking.sees_server(&status.name, &routes));
    for status in &mut statuses {
        if !asking.administers(&status.name) {
            let usable = |tool: &OfferedTool| {
                routes.tool(&tool.exposed_as).is_some_and(|route| asking.sees_tool(route))
            };
            status.tools.retain(usable);
            status.tool_count = status.tools.len();
            status.hide_diagnostics();
        }
    }
    statuses
}
