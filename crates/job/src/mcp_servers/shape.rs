//! The JSON Schema of a configuration; parsing is by hand because serde can't name paths.
//!
//! The schema tells people how to write a configuration, so it has the usual spelling of each field
//! and not all that are read.

use std::collections::BTreeMap;

use schemars::{JsonSchema, Schema, SchemaGenerator};

use super::{McpServers, ServerEntry};

/// Servers to host, as desktop clients and editors configure them. Other programs' spellings are
/// read too.
#[derive(JsonSchema)]
#[schemars(rename = "McpServers")]
#[expect(dead_code, reason = "only its schema is used")]
struct ConfigShape {
    /// The servers, by the name they are to have. VS Code's `servers` is read too.
    #[serde(rename = "mcpServers")]
    servers: BTreeMap<String, ServerEntry>,
}

/// One server: `command` for a program to start, or `url` for a server to connect to.
#[derive(JsonSchema)]
#[schemars(rename = "ServerEntry", rename_all = "camelCase")]
#[expect(dead_code, reason = "only its schema is used")]
struct EntryShape {
    /// `stdio`, `http` (also `streamable-http`) or `sse`; without it, `command` means stdio and
    /// `url` means http, or sse if that is what the server speaks.
    #[serde(rename = "type")]
    kind: Option<String>,
    /// Another spelling of `type`.
    transport: Option<String>,
    /// The program to start.
    command: Option<String>,
    /// Its arguments.
    args: Option<Vec<String>>,
    /// Environment variables for it.
    env: Option<BTreeMap<String, String>>,
    /// A file of `NAME=value` lines with more environment variables; `env` wins.
    env_file: Option<String>,
    /// Its working directory.
    cwd: Option<String>,
    /// `true` keeps the server from being started; so does `enabled: false`.
    disabled: Option<bool>,
    /// Where a remote server listens.
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
