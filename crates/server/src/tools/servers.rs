//! The `server_*` tools: host other MCP servers, and show their status.

use std::sync::Arc;

use fleet_access::Action;
use fleet_hosting::{
    Fleet,
    registry::Shared,
    routes::Routes,
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
        // A view has what its clients may call, and administrators look elsewhere.
        if !asking.administers(&status.name) || asking.asker().view_name().is_some() {
            status.tools.retain_mut(|tool| show_tool(asking, tool, &routes));
            status.tool_count = status.tools.len();
            status.hide_diagnostics();
        }
        if asking.asker().view_name().is_some() {
            count_in_view(asking, status, &routes);
        }
    }
    statuses
}

/// Counts of a server's prompts and resources those that the caller sees.
fn count_in_view(asking: &Asking, status: &mut ServerStatus, routes: &Routes) {
    let ServerStatus { name, prompt_count, resource_count, .. } = status;
    let prompts = routes.prompts().filter(|route| route.server == *name);
    *prompt_count = prompts.filter(|route| asking.sees_prompt(route)).count();
    let resources = routes.resources().filter(|route| route.server == *name);
    let templates = routes.templates().filter(|route| route.server == *name);
    *resource_count = resources.filter(|route| asking.sees_resource(route)).count()
        + templates.filter(|route| asking.sees_template(route)).count();
}

/// Gives a tool the name and description that the caller sees. Returns whether the caller may use
/// the tool.
fn show_tool(asking: &Asking, tool: &mut OfferedTool, routes: &Routes) -> bool {
    let route = routes.tool(&tool.exposed_as).filter(|route| asking.sees_tool(route));
    let Some(seen) = route.and_then(|route| asking.tool_in_view(route)) else { return false };
    tool.exposed_as = seen.name.into_owned();
    tool.description = seen.description.map(Into::into);
    true
}
