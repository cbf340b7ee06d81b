//! The `mcpServers` configuration that desktop clients and editors use, in all the shapes they write it.
//!
//! There is no standard for it, only a habit, so parsing is generous in spelling (two roots, `type` or `transport`,
//! several names for Streamable HTTP) and strict in types: a wrong type is an error that names the field's path.
//! Unknown keys are kept and can be listed as warnings. Nothing here reads a file or an environment: expansion takes
//! a lookup function, and `.env` files are parsed from text.

use std::collections::BTreeMap;

use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::{Map, Value};

pub mod dotenv;
pub mod expand;
mod fields;

use fields::{Fields, kind_of};

/// The root key that most programs write.
pub const ROOT: &str = "mcpServers";
/// The root key that VS Code writes.
pub const ROOT_VSCODE: &str = "servers";

/// A whole configuration: servers by name.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct McpServers {
    /// The servers, by the name they are to have.
    pub servers: BTreeMap<String, ServerEntry>,
    /// Keys beside the root key that mean nothing to us (`inputs`, for example).
    pub unknown: BTreeMap<String, Value>,
}

/// One server of a configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct ServerEntry {
    /// How the server is reached.
    pub transport: Transport,
    /// Keys of the entry that mean nothing to us (`disabled`, `autoApprove`, …).
    pub unknown: BTreeMap<String, Value>,
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
    /// There is neither `mcpServers` nor `servers`.
    #[error("there is no `mcpServers` (or `servers`) object")]
    NoRoot,
}

impl McpServers {
    /// Reads a configuration from JSON.
    ///
    /// # Errors
    ///
    /// Where a root, a required field or a type is wrong; the error names the place.
    pub fn from_value(value: &Value) -> Result<Self, ConfigError> {
        let Value::Object(object) = value else {
            return Err(ConfigError::WrongType {
                path: "the configuration".to_owned(),
                expected: "an object",
                found: kind_of(value),
            });
        };
        let root = match (object.contains_key(ROOT), object.contains_key(ROOT_VSCODE)) {
            (true, true) => {
                return Err(ConfigError::Conflict {
                    path: "the configuration".to_owned(),
                    first: ROOT,
                    second: ROOT_VSCODE,
                });
            }
            (true, false) => ROOT,
            (false, true) => ROOT_VSCODE,
            (false, false) => return Err(ConfigError::NoRoot),
        };
        let mut servers = BTreeMap::new();
        let mut unknown = BTreeMap::new();
        for (key, value) in object {
            if key != root {
                unknown.insert(key.clone(), value.clone());
                continue;
            }
            let Value::Object(entries) = value else {
                return Err(ConfigError::WrongType {
                    path: root.to_owned(),
                    expected: "an object",
                    found: kind_of(value),
                });
            };
            for (name, entry) in entries {
                let path = format!("{root}.{name}");
                servers.insert(name.clone(), ServerEntry::from_value(entry, &path)?);
            }
        }
        Ok(Self { servers, unknown })
    }

    /// The configuration in its canonical spelling. Reading it again gives the same configuration.
    pub fn to_value(&self) -> Value {
        let mut object: Map<String, Value> = self.unknown.clone().into_iter().collect();
        let servers = self.servers.iter().map(|(name, entry)| (name.clone(), entry.to_value())).collect();
        object.insert(ROOT.to_owned(), Value::Object(servers));
        Value::Object(object)
    }

    /// One sentence for every key that is kept and means nothing to us.
    pub fn warnings(&self) -> Vec<String> {
        let roots = self.unknown.keys().cloned();
        let entries = self
            .servers
            .iter()
            .flat_map(|(name, entry)| entry.unknown.keys().map(move |key| format!("{ROOT}.{name}.{key}")));
        roots.chain(entries).map(|path| format!("`{path}` is unknown and has no effect")).collect()
    }
}

impl ServerEntry {
    /// Reads one entry. `path` is where it stands, for errors.
    ///
    /// # Errors
    ///
    /// Where a required field is missing, a type is wrong, or fields contradict each other.
    pub fn from_value(value: &Value, path: &str) -> Result<Self, ConfigError> {
        let mut fields = Fields::new(value, path)?;
        let named = named_transport(&mut fields)?;
        let command = fields.string("command")?;
        let url = fields.string("url")?;
        let kind = match (named, &command, &url) {
            (_, Some(_), Some(_)) => return Err(fields.conflict("command", "url")),
            (Some(TransportKind::Stdio), None, Some(_)) => return Err(fields.conflict("type", "url")),
            (Some(TransportKind::Url | TransportKind::Http | TransportKind::Sse), Some(_), None) => {
                return Err(fields.conflict("type", "command"));
            }
            (Some(kind), _, _) => kind,
            (None, Some(_), None) => TransportKind::Stdio,
            (None, None, Some(_)) => TransportKind::Url,
            (None, None, None) => return Err(ConfigError::NoEndpoint { path: path.to_owned() }),
        };
        let transport = match kind {
            TransportKind::Stdio => Transport::Stdio(StdioServer {
                command: fields.required("command", command)?,
                args: fields.strings("args")?,
                env: fields.string_map("env")?,
                env_file: fields.string("envFile")?,
                cwd: fields.string("cwd")?,
            }),
            TransportKind::Url => Transport::Url(remote(&mut fields, url)?),
            TransportKind::Http => Transport::Http(remote(&mut fields, url)?),
            TransportKind::Sse => Transport::Sse(remote(&mut fields, url)?),
        };
        Ok(Self { transport, unknown: fields.rest() })
    }

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

#[derive(Clone, Copy, PartialEq, Eq)]
enum TransportKind {
    Stdio,
    Url,
    Http,
    Sse,
}

/// What `type` or `transport` says. Clients write Streamable HTTP in several ways, so case, `-` and `_` are ignored.
fn named_transport(fields: &mut Fields<'_>) -> Result<Option<TransportKind>, ConfigError> {
    let mut named = None;
    for key in ["type", "transport"] {
        let Some(name) = fields.string(key)? else { continue };
        let plain: String =
            name.chars().filter(|c| !matches!(c, '-' | '_')).map(|c| c.to_ascii_lowercase()).collect();
        let kind = match plain.as_str() {
            "stdio" => TransportKind::Stdio,
            "http" | "streamablehttp" => TransportKind::Http,
            "sse" => TransportKind::Sse,
            _ => return Err(ConfigError::UnknownTransport { path: fields.place(key), name }),
        };
        if named.is_some_and(|earlier| earlier != kind) {
            return Err(fields.conflict("type", "transport"));
        }
        named = Some(kind);
    }
    Ok(named)
}

fn remote(fields: &mut Fields<'_>, url: Option<String>) -> Result<RemoteServer, ConfigError> {
    Ok(RemoteServer { url: fields.required("url", url)?, headers: fields.string_map("headers")? })
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

/// What the JSON Schema of a configuration is derived from; parsing is by hand because serde can't name paths.
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
    /// `stdio`, `http` (also `streamable-http`) or `sse`; without it, `command` means stdio and `url` means http, or sse if
    /// that is what the server speaks.
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

#[cfg(test)]
mod tests;
