//! The `mcpServers` configuration that desktop clients and editors use, in all the shapes they
//! write it.
//!
//! There is no standard for it, only a habit, so parsing is generous in spelling (several roots,
//! `type` or `transport`, several names for Streamable HTTP, `command` as a string or an array) and
//! strict in meaning: a type that makes no sense is an error that names the field's path. One entry
//! that can't be read does not hide the others. Unknown keys are kept and can be listed as
//! warnings. Nothing here reads a file or an environment: expansion takes a lookup function, and
//! configurations and `.env` files are parsed from text.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

pub mod dotenv;
mod entry;
pub mod expand;
mod fields;
pub mod roots;
mod shape;
pub mod text;

/// The root key that most programs write.
pub const ROOT: &str = "mcpServers";
/// The root key that VS Code writes.
pub const ROOT_VSCODE: &str = "servers";

/// A whole configuration: servers by name.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct McpServers {
    /// The servers, by the name they are to have.
    pub servers: BTreeMap<String, Result<ServerEntry, UnusableEntry>>,
    /// Keys beside the root key that mean nothing to us (`inputs`, for example).
    pub unknown: BTreeMap<String, Value>,
}

/// One server of a configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct ServerEntry {
    /// How the server is reached.
    pub transport: Transport,
    /// Keys of the entry that mean nothing to us (`autoApprove`, `timeout`, …).
    pub unknown: BTreeMap<String, Value>,
}

/// An entry that names no server to host: it is switched off, or can't be read.
#[derive(Debug, Clone, PartialEq)]
pub struct UnusableEntry {
    /// Why.
    pub error: ConfigError,
    /// The entry as it was written.
    pub value: Value,
}

/// How a server is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transport {
    /// A child process that speaks MCP on its standard input and output.
    Stdio(StdioServer),
    /// A server that speaks one of the two that follow; nothing says which.
    Url(RemoteServer),
    /// A server that speaks Streamable HTTP.
    Http(RemoteServer),
    /// A server that speaks the HTTP+SSE transport of 2024.
    Sse(RemoteServer),
}

/// A child process to start.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StdioServer {
    /// The program.
    pub command: String,
    /// Its arguments.
    pub args: Vec<String>,
    /// Environment variables for it. They win over those of `env_file`.
    pub env: BTreeMap<String, String>,
    /// A file of `NAME=value` lines with more environment variables.
    pub env_file: Option<String>,
    /// Its working directory.
    pub cwd: Option<String>,
}

/// A server to connect to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RemoteServer {
    /// Where it listens.
    pub url: String,
    /// Headers for every request to it.
    pub headers: BTreeMap<String, String>,
}

/// Why a configuration can't be read. Every variant names the place.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A field has a type that it may not have.
    #[error("`{path}` must be {expected}, not {found}")]
    WrongType {
        /// Where the field is.
        path: String,
        /// What it must be.
        expected: &'static str,
        /// What it is.
        found: &'static str,
    },
    /// A field that must be there is not.
    #[error("`{path}` is missing")]
    Missing {
        /// Where the field belongs.
        path: String,
    },
    /// A field that must not be empty is.
    #[error("`{path}` must not be empty")]
    Empty {
        /// Where the field is.
        path: String,
    },
    /// The value of `type` or `transport` names no transport.
    #[error("`{path}`: unknown transport `{name}`, use stdio, http or sse")]
    UnknownTransport {
        /// Where the field is.
        path: String,
        /// What it says.
        name: String,
    },
    /// Two fields contradict each other.
    #[error("`{path}`: `{first}` and `{second}` contradict each other")]
    Conflict {
        /// The object that has both.
        path: String,
        /// The one field.
        first: &'static str,
        /// The other field.
        second: &'static str,
    },
    /// An entry has neither `command` nor `url`, so nothing says how to reach the server.
    #[error("`{path}` needs `command` (a program to start) or `url` (a server to connect to)")]
    NoEndpoint {
        /// The entry.
        path: String,
    },
    /// The entry is switched off. Not an error of the person who wrote it, but there is no server
    /// to host.
    #[error("switched off by `{path}`")]
    Disabled {
        /// The field that says so.
        path: String,
    },
    /// A key in a place where every key has a meaning.
    #[error("`{path}` is unknown")]
    UnknownKey {
        /// Where the key is.
        path: String,
    },
    /// There is no object of servers.
    #[error("there is no `mcpServers` (or `servers`) object")]
    NoRoot,
    /// Servers stand in two places.
    #[error("both `{first}` and `{second}` hold servers; put all of them under `mcpServers`")]
    TwoRoots {
        /// The one key.
        first: &'static str,
        /// The other key.
        second: &'static str,
    },
    /// The servers are an array.
    #[error(
        "`{path}` is an array; write an object with the servers' names as keys: {{\"mcpServers\": {{\"NAME\": {{…}}}}}}"
    )]
    List {
        /// Where the array is.
        path: String,
    },
    /// The configuration is one server's entry.
    #[error(
        "this is the entry of one server, without a name; write {{\"mcpServers\": {{\"NAME\": {{…}}}}}}"
    )]
    OneEntry,
    /// The configuration is what belongs under the root.
    #[error(
        "there is no `mcpServers` object around the servers; write {{\"mcpServers\": {{\"{example}\": {{…}}, …}}}}"
    )]
    OnlyEntries {
        /// The first server's name.
        example: String,
    },
}

impl McpServers {
    /// Reads a configuration from JSON.
    ///
    /// # Errors
    ///
    /// If there are no servers, or they stand in two places. An entry that can't be read is an
    /// error in its own place.
    pub fn from_value(value: &Value) -> Result<Self, ConfigError> {
        let object = roots::object(value)?;
        let raw = roots::find(object)?;

        let read = |(name, value): (&String, &Value)| {
            let entry = ServerEntry::from_value(value, &format!("{}.{name}", raw.path));
            (name.clone(), entry.map_err(|error| UnusableEntry { error, value: value.clone() }))
        };
        let servers = raw.entries.iter().map(read).collect();

        let others = object.iter().filter(|(key, _)| *key != raw.key);
        let unknown = others.map(|(key, value)| (key.clone(), value.clone())).collect();
        Ok(Self { servers, unknown })
    }

    /// Why no server of the configuration can be read, if none can and one at least was meant to
    /// be.
    pub fn first_error_of_all(&self) -> Option<&ConfigError> {
        let is_good = |entry: &Result<_, UnusableEntry>| {
            entry
                .as_ref()
                .map_or_else(|entry| matches!(entry.error, ConfigError::Disabled { .. }), |_| true)
        };
        if self.servers.values().any(is_good) {
            return None;
        }
        self.servers.values().find_map(|entry| entry.as_ref().err()).map(|entry| &entry.error)
    }

    /// The configuration in its canonical spelling. Reading it again gives the same configuration.
    pub fn to_value(&self) -> Value {
        let mut object: Map<String, Value> = self.unknown.clone().into_iter().collect();
        let written = |entry: &Result<ServerEntry, UnusableEntry>| match entry {
            Ok(entry) => entry.to_value(),
            Err(entry) => entry.value.clone(),
        };
        let servers =
            self.servers.iter().map(|(name, entry)| (name.clone(), written(entry))).collect();
        object.insert(ROOT.to_owned(), Value::Object(servers));
        Value::Object(object)
    }

    /// One sentence for every key that is kept and means nothing to us.
    pub fn warnings(&self) -> Vec<String> {
        let roots = self.unknown.keys().map(|key| format!("`{key}` is unknown and has no effect"));
        let readable =
            self.servers.iter().filter_map(|(name, entry)| Some((name, entry.as_ref().ok()?)));
        let entries = readable.flat_map(|(name, entry)| entry.warnings(&format!("{ROOT}.{name}")));
        roots.chain(entries).collect()
    }
}

impl ServerEntry {
    /// The entry in its canonical spelling.
    pub fn to_value(&self) -> Value {
        let mut object: Map<String, Value> = self.unknown.clone().into_iter().collect();
        let mut put = |key: &str, value: Value| {
            object.insert(key.to_owned(), value);
        };
        if let Some(name) = self.transport.name() {
            put("type", name.into());
        }
        match &self.transport {
            Transport::Stdio(server) => {
                put("command", server.command.as_str().into());
                put("args", server.args.clone().into());
                if !server.env.is_empty() {
                    put("env", string_map(&server.env));
                }
                if let Some(env_file) = &server.env_file {
                    put("envFile", env_file.as_str().into());
                }
                if let Some(cwd) = &server.cwd {
                    put("cwd", cwd.as_str().into());
                }
            }
            Transport::Url(server) | Transport::Http(server) | Transport::Sse(server) => {
                put("url", server.url.as_str().into());
                if !server.headers.is_empty() {
                    put("headers", string_map(&server.headers));
                }
            }
        }
        Value::Object(object)
    }
}

impl Transport {
    /// The transport's name as it is written in `type`, if it is.
    pub fn name(&self) -> Option<&'static str> {
        match self {
            Self::Stdio(_) => Some("stdio"),
            Self::Url(_) => None,
            Self::Http(_) => Some("http"),
            Self::Sse(_) => Some("sse"),
        }
    }
}

fn string_map(map: &BTreeMap<String, String>) -> Value {
    Value::Object(map.iter().map(|(key, value)| (key.clone(), value.as_str().into())).collect())
}

impl Serialize for McpServers {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.to_value().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for McpServers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        Self::from_value(&value).map_err(serde::de::Error::custom)
    }
}

impl Serialize for ServerEntry {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.to_value().serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for ServerEntry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let value = Value::deserialize(deserializer)?;
        Self::from_value(&value, "config").map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests;
