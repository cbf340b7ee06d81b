//! The JSON Schemas of the contract, made from the types. `schemas/` holds them for people and
//! other languages; a test fails when the two differ.

use schemars::{Schema, schema_for};

use crate::{control::Control, event::JobEvent, mcp_servers::McpServers, wire::WireEnvelope};

/// Every schema with the name of its file below `schemas/`.
pub fn all() -> [(&'static str, Schema); 4] {
    [
        ("envelope.schema.json", schema_for!(WireEnvelope)),
        ("event.schema.json", schema_for!(JobEvent)),
        ("control.schema.json", schema_for!(Control)),
        ("mcp-servers.schema.json", schema_for!(McpServers)),
    ]
}
