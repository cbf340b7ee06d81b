//! Reading the entry of one server in the forms of the programs that entries are copied from.

use serde_json::{Map, Value};

use super::{
    ConfigError, RemoteServer, ServerEntry, StdioServer, Transport,
    fields::{Fields, wrong_type},
};

/// Keys for the address of a remote server: the usual one, Windsurf's and Gemini's.
const URL_KEYS: [&str; 3] = ["url", "serverUrl", "httpUrl"];
/// Keys by which programs limit the tools that they offer. We offer all tools of a server.
const TOOL_FILTERS: [&str; 8] = [
    "disabledTools",
    "enabledTools",
    "excludeTools",
    "includeTools",
    "excludedTools",
    "includedTools",
    "allowedTools",
    "tools",
];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Stdio,
    Http,
    Sse,
    /// `url` without a type, or `remote` (OpenCode, Copilot): whichever of the two the server
    /// speaks.
    Remote,
}

/// Returns whether a value is probably the entry of a server and not an object of entries.
pub(super) fn looks_like_entry(value: &Value) -> bool {
    let keys = URL_KEYS.into_iter().chain(["command"]);
    value.as_object().is_some_and(|object| {
        keys.into_iter()
            .any(|key| matches!(object.get(key), Some(Value::String(_) | Value::Array(_))))
    })
}

impl ServerEntry {
    /// Reads one entry. `path` is the entry's position for errors.
    ///
    /// # Errors
    ///
    /// Returns [`ConfigError::Disabled`] if the entry is switched off, whatever else is in it.
    /// Otherwise returns an error if a required field is missing, a type is wrong, or fields
    /// contradict each other.
    pub fn from_value(value: &Value, path: &str) -> Result<Self, ConfigError> {
        let mut fields = Fields::new(value, path)?;
        check_enabled(&mut fields)?;

        let named = read_named_transport(&mut fields)?;
        let mut program = read_program(&mut fields)?;
        let remote = read_remote_url(&mut fields)?;
        let kind = match (named, &program, &remote) {
            (_, Some(_), Some(_)) => return Err(fields.conflict("command", "url")),
            (Some(Kind::Stdio), None, Some(_)) => return Err(fields.conflict("type", "url")),
            (Some(Kind::Http | Kind::Sse | Kind::Remote), Some(_), None) => {
                return Err(fields.conflict("type", "command"));
            }
            (Some(kind), _, _) => kind,
            (None, Some(_), None) => Kind::Stdio,
            (None, None, Some(_)) => Kind::Remote,
            (None, None, None) => return Err(fields.no_endpoint()),
        };

        let transport = match kind {
            Kind::Stdio => {
                read_surroundings(&mut fields, program.as_mut())?;
                Transport::Stdio(fields.required("command", program)?)
            }
            Kind::Http => Transport::Http(read_remote_server(&mut fields, remote)?),
            Kind::Remote => Transport::Url(read_remote_server(&mut fields, remote)?),
            Kind::Sse => Transport::Sse(read_remote_server(&mut fields, remote)?),
        };
        Ok(Self { transport, unknown: fields.rest() })
    }

    /// Returns one sentence for each key that is kept but has no effect. `path` is the entry's
    /// position.
    pub fn warnings(&self, path: &str) -> Vec<String> {
        let of_key = |(key, value): (&String, &Value)| {
            if TOOL_FILTERS.contains(&&**key) && *value != serde_json::json!(["*"]) {
                format!("`{path}.{key}` has no effect: all tools of the server are offered")
            } else {
                format!("`{path}.{key}` is unknown and has no effect")
            }
        };

        let mut warnings: Vec<_> = self.unknown.iter().map(of_key).collect();

        if let Transport::Stdio(server) = &self.transport
            && let Some((program, _)) = server.command.split_once(' ')
            && server.args.is_empty()
            && !program.contains(['/', '\\'])
        {
            warnings.push(format!(
                "`{path}.command` is treated as the name of one program, including its spaces; put arguments into `args`"
            ));
        }

        warnings
    }
}

/// Refuses an entry with `disabled: true` or `enabled: false`.
fn check_enabled(fields: &mut Fields<'_>) -> Result<(), ConfigError> {
    let disabled = fields.boolean("disabled")?;
    let enabled = fields.boolean("enabled")?;
    let key = match (disabled, enabled) {
        (Some(true), Some(true)) | (Some(false), Some(false)) => {
            return Err(fields.conflict("disabled", "enabled"));
        }
        (Some(true), _) => "disabled",
        (_, Some(false)) => "enabled",
        _ => return Ok(()),
    };
    Err(ConfigError::Disabled { path: fields.path_of(key) })
}

/// Returns the transport that `type` or `transport` names. Programs spell Streamable HTTP in
/// several ways, so case, `-` and `_` are ignored.
fn read_named_transport(fields: &mut Fields<'_>) -> Result<Option<Kind>, ConfigError> {
    let mut named = None;
    for key in ["type", "transport"] {
        let Some(name) = fields.string(key)? else { continue };

        let plain: String = name
            .chars()
            .filter(|c| !matches!(c, '-' | '_'))
            .map(|c| c.to_ascii_lowercase())
            .collect();

        let kind = match plain.as_str() {
            "stdio" | "local" => Kind::Stdio,
            "http" | "streamablehttp" => Kind::Http,
            "sse" => Kind::Sse,
            "remote" => Kind::Remote,
            _ => return Err(ConfigError::UnknownTransport { path: fields.path_of(key), name }),
        };

        if named.is_some_and(|earlier| earlier != kind) {
            return Err(fields.conflict("type", "transport"));
        }
        named = Some(kind);
    }
    Ok(named)
}

/// Returns the program and its arguments. `command` may be a string, an array (OpenCode), or an
/// object (Zed, until 2025).
fn read_program(fields: &mut Fields<'_>) -> Result<Option<StdioServer>, ConfigError> {
    let mut server = match fields.take("command") {
        None => return Ok(None),
        Some(Value::String(command)) if command.is_empty() => {
            fields.note_empty("command");
            return Ok(None);
        }
        Some(Value::String(command)) => StdioServer { command, ..StdioServer::default() },
        Some(Value::Array(words)) => read_command_array(&fields.path_of("command"), words)?,
        Some(Value::Object(object)) => read_command_object(&fields.path_of("command"), object)?,
        Some(other) => return Err(wrong_type(fields.path_of("command"), "a string", &other)),
    };

    server.args.extend(fields.texts("args")?);
    Ok(Some(server))
}

fn read_command_array(path: &str, words: Vec<Value>) -> Result<StdioServer, ConfigError> {
    let mut words = super::fields::texts(path, words)?.into_iter();
    let command = words.next().filter(|command| !command.is_empty());
    let command = command.ok_or_else(|| ConfigError::Empty { path: path.to_owned() })?;
    Ok(StdioServer { command, args: words.collect(), ..StdioServer::default() })
}

fn read_command_object(path: &str, object: Map<String, Value>) -> Result<StdioServer, ConfigError> {
    let object = Value::Object(object);
    let mut fields = Fields::new(&object, path)?;
    let command = fields.string("path")?;

    let server = StdioServer {
        command: fields.required("path", command)?,
        args: fields.texts("args")?,
        env: fields.text_map(&["env"])?,
        ..StdioServer::default()
    };

    match fields.rest().into_keys().next() {
        None => Ok(server),
        Some(key) => Err(ConfigError::UnknownKey { path: format!("{path}.{key}") }),
    }
}

/// Reads the environment, the file of variables and the working directory of a program.
fn read_surroundings(
    fields: &mut Fields<'_>,
    server: Option<&mut StdioServer>,
) -> Result<(), ConfigError> {
    let Some(server) = server else { return Ok(()) };
    server.env.extend(fields.text_map(&["env", "environment"])?);
    server.env_file = fields.string("envFile")?;
    server.cwd = fields.string("cwd")?;
    Ok(())
}

/// Returns the address of the server. It may be under several keys if they agree.
fn read_remote_url(fields: &mut Fields<'_>) -> Result<Option<String>, ConfigError> {
    let mut found: Option<(&'static str, String)> = None;
    for key in URL_KEYS {
        let Some(url) = fields.string(key)? else { continue };
        match &found {
            Some((first, other)) if *other != url => return Err(fields.conflict(first, key)),
            _ => found = Some((key, url)),
        }
    }
    Ok(found.map(|(_, url)| url))
}

fn read_remote_server(
    fields: &mut Fields<'_>,
    url: Option<String>,
) -> Result<RemoteServer, ConfigError> {
    Ok(RemoteServer {
        url: fields.required("url", url)?,
        headers: fields.text_map(&["headers", "http_headers"])?,
    })
}
