//! The `server_*` tools: host other MCP servers, and show their status.

use std::sync::Arc;

use fleet_hosting::registry::Shared;

use crate::toolkit::Toolkit;

pub mod initialize;
pub mod list;
pub mod remove;
pub mod status;

/// The toolkit of the `server_*` tools.
pub fn toolkit(shared: Arc<Shared>) -> Toolkit<Shared> {
    Toolkit::new(shared)
        .always_runs()
        .with(&initialize::SPEC, initialize::server_initialize)
        .with(&list::SPEC, list::server_list)
        .with(&status::SPEC, status::server_status)
        .with(&remove::SPEC, remove::server_remove)
}
