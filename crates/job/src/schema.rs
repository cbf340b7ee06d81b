//! The JSON Schemas of the contract, generated from the types. `schemas/` has copies of them for
//! people and for other languages; a test fails if a copy is outdated.

use schemars::{Schema, schema_for};

use crate::{
    control::Control, event::JobEvent, mcp_servers::McpServers, pause::Pause, wire::WireEnvelope,
};

/// Returns all schemas with the names of their files in `schemas/`.
pub fn all() -> [(&'static str, Schema); 5] {
    [
        ("envelope.schema.json", schema_for!(WireEnvelope)),
        ("event.schema.json", schema_for!(JobEvent)),
        ("control.schema.json", schema_for!(Control)),
        ("pause.schema.json", schema_for!(Pause)),
        ("mcp-servers.schema.json", schema_for!(McpServers)),
    ]
}
