//! Records of the registry: JSON by server name.

use fleet_job::{
    mcp_servers::{ConfigError, ServerEntry},
    time::Timestamp,
    tool_name::{self, NameError},
};
use schemars::{JsonSchema, Schema, schema_for};
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The largest record that is read or written, in bytes.
pub const MAX_BYTES: usize = 256 * 1024;

/// A server to host.
#[derive(Debug, Clone, PartialEq)]
pub struct Record {
    /// The server's name.
    pub name: String,
    /// How to start or reach the server, with variables unexpanded.
    pub entry: ServerEntry,
    /// Different for every record ever written.
    pub revision: String,
    /// When the record was written.
    pub written_at: Timestamp,
}

/// How to start or reach a hosted server. Secrets are references such as `${VAR}`, never plain
/// text.
#[derive(Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
#[schemars(rename = "HostedServer")]
struct Wire {
    /// The server's configuration, as in `mcpServers`.
    #[schemars(with = "ServerEntry")]
    config: Value,
    /// Different for every record ever written.
    revision: String,
    /// When the record was written.
    written_at: Timestamp,
}

/// Returns the schema of a record's value.
pub fn schema() -> Schema {
    schema_for!(Wire)
}

/// Why a record is invalid.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// The name is invalid.
    #[error(transparent)]
    Name(#[from] NameError),
    /// The record is too large.
    #[error("the record has more than {MAX_BYTES} bytes")]
    TooLarge,
    /// The record is not JSON of the expected shape.
    #[error("the record can't be read")]
    Json(#[from] serde_json::Error),
    /// The configuration is invalid.
    #[error("the record's configuration can't be read")]
    Config(#[from] ConfigError),
}

impl Record {
    /// Creates a record. Unknown keys of the configuration are left out.
    pub fn new(name: &str, entry: &ServerEntry) -> Self {
        let entry = ServerEntry { transport: entry.transport.clone(), unknown: Default::default() };
        let revision = uuid::Uuid::new_v4().simple().to_string();
        Self { name: name.to_owned(), entry, revision, written_at: fleet_ops::clock::now() }
    }

    /// Encodes the record's value.
    ///
    /// # Errors
    ///
    /// Returns an error if the record is too large.
    pub fn encode(&self) -> Result<Vec<u8>, RecordError> {
        let wire = Wire {
            config: self.entry.to_value(),
            revision: self.revision.clone(),
            written_at: self.written_at,
        };
        let value = serde_json::to_vec(&wire)?;
        if value.len() > MAX_BYTES { Err(RecordError::TooLarge) } else { Ok(value) }
    }

    /// Decodes the value of the record of a name.
    ///
    /// # Errors
    ///
    /// Returns an error if the name or the value is invalid.
    pub fn decode(name: &str, value: &[u8]) -> Result<Self, RecordError> {
        tool_name::check_server(name)?;
        if value.len() > MAX_BYTES {
            return Err(RecordError::TooLarge);
        }
        let wire: Wire = serde_json::from_slice(value)?;
        let entry = ServerEntry::from_value(&wire.config, "config")?;
        Ok(Self {
            name: name.to_owned(),
            entry,
            revision: wire.revision,
            written_at: wire.written_at,
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn entry(config: Value) -> ServerEntry {
        ServerEntry::from_value(&config, "config").unwrap()
    }

    #[test]
    fn records_are_read_as_they_were_written() {
        for config in [
            json!({"command": "node", "args": ["x.js"], "env": {"TOKEN": "${TOKEN}"}, "envFile": "a/.env", "cwd": "/"}),
            json!({"url": "https://mcp.example.com/mcp", "headers": {"Authorization": "Bearer ${TOKEN:-}"}}),
            json!({"type": "sse", "url": "https://mcp.example.com/sse"}),
        ] {
            let record = Record::new("db", &entry(config));
            assert_eq!(Record::decode("db", &record.encode().unwrap()).unwrap(), record);
        }
        let record = Record::new("db", &entry(json!({"command": "x", "apiKey": "secret"})));
        let text = String::from_utf8(record.encode().unwrap()).unwrap();
        assert!(
            text.contains("${") || !text.contains("secret"),
            "unknown keys are not written: {text}"
        );
    }

    #[test]
    fn invalid_records_are_refused() {
        let check = |name: &str, value: &str, word: &str| {
            let error =
                fleet_ops::errors::chain(&Record::decode(name, value.as_bytes()).unwrap_err());
            assert!(error.contains(word), "{value}: {error}");
        };
        let good =
            r#"{"config":{"command":"x"},"revision":"1","writtenAt":"2026-01-01T00:00:00Z"}"#;
        Record::decode("good", good.as_bytes()).unwrap();
        check("a__b", good, "__");
        check("s", "", "can't be read");
        check("s", "[]", "can't be read");
        check("s", r#"{"config":{},"revision":"1","writtenAt":0}"#, "config");
        check("s", &" ".repeat(MAX_BYTES + 1), "more than");
    }
}
