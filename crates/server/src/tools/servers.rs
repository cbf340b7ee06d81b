//! The `server_*` tools: hosting other MCP servers and seeing how they are.

use std::sync::Arc;

use fleet_hosting::registry::Shared;

use crate::toolkit::Toolkit;

pub mod initialize;
pub mod list;
pub mod remove;
pub mod status;

/// The tools over this fleet and the registry that it follows.
pub fn toolkit(shared: Arc<Shared>) -> Toolkit<Shared> {
    Toolkit::new(shared)
        .always_runs()
        .with(&initialize::SPEC, initialize::server_initialize)
        .with(&list::SPEC, list::server_list)
        .with(&status::SPEC, status::server_status)
        .with(&remove::SPEC, remove::server_remove)
}
