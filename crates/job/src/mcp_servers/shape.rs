//! The JSON Schema of a configuration. Parsing is written by hand because serde cannot name paths.
//!
//! The schema tells people how to write a configuration, so it contains only the usual form of each
//! field.

use std::collections::BTreeMap;

use schemars::{JsonSchema, Schema, SchemaGenerator};

use super::{McpServers, ServerEntry};

/// Servers to host, as desktop clients and editors configure them. The forms of other programs are
/// also accepted.
#[derive(JsonSchema)]
#[schemars(rename = "McpServers")]
#[expect(dead_code, reason = "only the schema of this type is used")]
struct ConfigShape {
    /// The servers by name. VS Code's key `servers` is also accepted.
    #[serde(rename = "mcpServers")]
    servers: BTreeMap<String, ServerEntry>,
}

/// One server: `command` for a program to start, or `url` for a server to connect to.
#[derive(JsonSchema)]
#[schemars(rename = "ServerEntry", rename_all = "camelCase")]
#[expect(dead_code, reason = "only the schema of this type is used")]
struct EntryShape {
    /// `stdio`, `http` (also `streamable-http`) or `sse`. If it is absent, `command` implies stdio,
    /// and `url` implies http, or sse if that is what the server speaks.
    #[serde(rename = "type")]
    kind: Option<String>,
    /// An alternative to `type`.
    transport: Option<String>,
    /// The program to start.
    command: Option<String>,
    /// The arguments of the program.
    args: Option<Vec<String>>,
    /// Environment variables for the program.
    env: Option<BTreeMap<String, String>>,
    /// A file of `NAME=value` lines with more environment variables; `env` overrides them.
    env_file: Option<String>,
    /// The working directory of the program.
    cwd: Option<String>,
    /// `true` switches the server off, as does `enabled: false`.
    disabled: Option<bool>,
    /// The address of a remote server.
    url: Option<String>,
    /// Headers for every request to a remote server.
    headers: Option<BTreeMap<String, String>>,
}

impl JsonSchema for McpServers {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        ConfigShape::schema_name()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        ConfigShape::json_schema(generator)
    }
}

impl JsonSchema for ServerEntry {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        EntryShape::schema_name()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        EntryShape::json_schema(generator)
    }
}
