//! The `mcpServers` configuration of desktop clients and editors, in all the forms that they use.
//!
//! The format is a convention rather than a standard, so parsing is lenient in spelling (several
//! root keys, `type` or `transport`, several names for Streamable HTTP, `command` as a string or an
//! array) and strict in meaning: a value of the wrong type is an error that names the path of its
//! field. An unreadable entry does not hide the others. Unknown keys are kept and can be listed as
//! warnings. Nothing here reads a file or the environment: expansion takes a lookup function, and
//! configurations and `.env` files are parsed from text.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

pub mod dotenv;
mod entry;
pub mod expand;
mod fields;
pub mod roots;
pub mod secrets;
mod shape;
pub mod text;

/// The root key that most programs use.
pub const ROOT: &str = "mcpServers";
/// The root key that VS Code uses.
pub const ROOT_VSCODE: &str = "servers";

/// A whole configuration.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct McpServers {
    /// The servers by name.
    pub servers: BTreeMap<String, Result<ServerEntry, UnusableEntry>>,
    /// Keys beside the root key that we do not use (such as `inputs`).
    pub unknown: BTreeMap<String, Value>,
}

/// One server of a configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct ServerEntry {
    /// How to reach the server.
    pub transport: Transport,
    /// Keys of the entry that we do not use (`autoApprove`, `timeout`, …).
    pub unknown: BTreeMap<String, Value>,
}

/// An entry without a server to host, because it is switched off or cannot be read.
#[derive(Debug, Clone, PartialEq)]
pub struct UnusableEntry {
    /// Why the entry is unusable.
    pub error: ConfigError,
    /// The entry as written.
    pub value: Value,
}

/// How to reach a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Transport {
    /// A child process that speaks MCP on its standard input and output.
    Stdio(StdioServer),
    /// A server that speaks either Streamable HTTP or HTTP+SSE; the entry does not say which.
    Url(RemoteServer),
    /// A server that speaks Streamable HTTP.
    Http(RemoteServer),
    /// A server that speaks the HTTP+SSE transport of 2024.
    Sse(RemoteServer),
}

/// A child process to start.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct StdioServer {
    /// The program to run.
    pub command: String,
    /// The arguments of the program.
    pub args: Vec<String>,
    /// Environment variables for the program. They override those of `env_file`.
    pub env: BTreeMap<String, String>,
    /// A file of `NAME=value` lines with more environment variables.
    pub env_file: Option<String>,
    /// The working directory of the program.
    pub cwd: Option<String>,
}

/// A server to connect to.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct RemoteServer {
    /// The address of the server.
    pub url: String,
    /// Headers for every request to the server.
    pub headers: BTreeMap<String, String>,
}

/// Why a configuration cannot be read. Every variant names the position.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A field has the wrong type.
    #[error("`{path}` must be {expected}, not {found}")]
    WrongType {
        /// The path of the field.
        path: String,
        /// The expected type.
        expected: &'static str,
        /// The type that was found.
        found: &'static str,
    },
    /// A required field is missing.
    #[error("`{path}` is missing")]
    Missing {
        /// The path of the field.
        path: String,
    },
    /// A required field is empty.
    #[error("`{path}` must not be empty")]
    Empty {
        /// The path of the field.
        path: String,
    },
    /// The value of `type` or `transport` is not a known transport.
    #[error("`{path}`: unknown transport `{name}`; expected stdio, http or sse")]
    UnknownTransport {
        /// The path of the field.
        path: String,
        /// The unknown name.
        name: String,
    },
    /// Two fields contradict each other.
    #[error("`{path}`: `{first}` and `{second}` contradict each other")]
    Conflict {
        /// The path of the object that has both fields.
        path: String,
        /// The name of one field.
        first: &'static str,
        /// The name of the other field.
        second: &'static str,
    },
    /// An entry has neither `command` nor `url`, so there is no way to reach the server.
    #[error("`{path}` needs `command` (a program to start) or `url` (a server to connect to)")]
    NoEndpoint {
        /// The path of the entry.
        path: String,
    },
    /// The entry is switched off. This is intended, but there is no server to host.
    #[error("switched off by `{path}`")]
    Disabled {
        /// The path of the field that switches it off.
        path: String,
    },
    /// An object in which every key has a meaning has an unknown key.
    #[error("`{path}` is unknown")]
    UnknownKey {
        /// The path of the key.
        path: String,
    },
    /// There is no object of servers.
    #[error("there is no `mcpServers` (or `servers`) object")]
    NoRoot,
    /// There are servers under two root keys.
    #[error("both `{first}` and `{second}` contain servers; put all of them under `mcpServers`")]
    TwoRoots {
        /// One of the keys.
        first: &'static str,
        /// The other key.
        second: &'static str,
    },
    /// The servers are an array.
    #[error(
        "`{path}` is an array; write an object with the servers' names as keys: {{\"mcpServers\": {{\"NAME\": {{…}}}}}}"
    )]
    List {
        /// The path of the array.
        path: String,
    },
    /// The configuration is the entry of a single server.
    #[error(
        "this is the entry of one server without its name; write {{\"mcpServers\": {{\"NAME\": {{…}}}}}}"
    )]
    OneEntry,
    /// The configuration lacks its root key.
    #[error(
        "there is no `mcpServers` object around the servers; write {{\"mcpServers\": {{\"{example}\": {{…}}, …}}}}"
    )]
    OnlyEntries {
        /// The name of the first server.
        example: String,
    },
}

impl McpServers {
    /// Reads a configuration from JSON.
    ///
    /// # Errors
    ///
    /// Returns an error if there are no servers or if they are under two root keys. An unreadable
    /// entry is an error in its own place.
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

    /// Returns the first error if no server of the configuration can be read. Servers that are
    /// switched off do not count.
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

    /// Returns the configuration in its canonical form. Reading it again gives the same
    /// configuration.
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

    /// Returns one sentence for each key that is kept but has no effect.
    pub fn warnings(&self) -> Vec<String> {
        let roots = self.unknown.keys().map(|key| format!("`{key}` is unknown and has no effect"));
        let readable =
            self.servers.iter().filter_map(|(name, entry)| Some((name, entry.as_ref().ok()?)));

        let entries = readable.flat_map(|(name, entry)| entry.warnings(&format!("{ROOT}.{name}")));

        roots.chain(entries).collect()
    }
}

impl ServerEntry {
    /// Returns the entry in its canonical form.
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
    /// Returns the name of the transport as written in `type`, if the entry needs a `type`.
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
