//! What `servers add` is to host. Pure.

use fleet_job::{
    mcp_servers::{ConfigError, McpServers, text},
    tool_name::{self, NameError},
};
use serde_json::{Map, Value, json};
use url::Url;

/// Programs that run another program, which is named after their options.
const RUNNERS: [&str; 12] = [
    "uvx", "uv", "npx", "bunx", "bun", "pnpm", "pipx", "node", "python", "python3", "deno",
    "docker",
];
/// Words between a runner and what it runs.
const VERBS: [&str; 7] = ["run", "exec", "dlx", "tool", "x", "start", "serve"];
/// Labels of host names that say nothing about the server.
const COMMON_LABELS: [&str; 4] = ["www", "mcp", "api", "localhost"];

/// A server to host.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct WantedServer {
    pub(crate) name: String,
    /// The entry of an `mcpServers` object.
    pub(crate) config: Value,
}

/// Why nothing can be hosted.
#[derive(Debug, thiserror::Error)]
pub(crate) enum SourceError {
    #[error("`{file}`")]
    Text {
        file: String,
        #[source]
        source: text::TextError,
    },
    #[error("`{file}`: {source} [{code}]", code = fleet_codes::SERVER_CONFIG)]
    Config { file: String, source: ConfigError },
    #[error(
        "`{file}` has no server `{name}`; it has {} [{code}]",
        known.join(", "),
        code = fleet_codes::SERVER_CONFIG
    )]
    NotInFile { file: String, name: String, known: Vec<String> },
    #[error("{source}; choose another name with --name")]
    Name { source: NameError },
}

/// Settings of a server that is not from a file.
#[derive(Debug, Clone, Default)]
pub(crate) struct Extras {
    pub(crate) env: Vec<(String, String)>,
    pub(crate) cwd: Option<String>,
    pub(crate) headers: Vec<(String, String)>,
}

/// Returns whether a word is a URL rather than a file: it begins with a scheme or is a host and a
/// port.
pub(crate) fn parse_url(word: &str) -> Option<Url> {
    let is_web = |url: &Url| matches!(url.scheme(), "http" | "https") && url.has_host();
    let host_and_port = word.split('/').next().unwrap_or_default().rsplit_once(':');
    let has_port = host_and_port.is_some_and(|(host, port)| {
        !host.is_empty() && !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit())
    });
    let spelled = if has_port { format!("http://{word}") } else { word.to_owned() };
    Url::parse(&spelled).ok().filter(is_web)
}

/// Returns the servers of a file: all that are not switched off, or those in `only`.
pub(crate) fn from_file(
    file: &str,
    content: &[u8],
    only: &[String],
) -> Result<Vec<WantedServer>, SourceError> {
    let value = text::parse(content);
    let value = value.map_err(|source| SourceError::Text { file: file.to_owned(), source })?;
    let bad = |source| SourceError::Config { file: file.to_owned(), source };
    let servers = McpServers::from_value(&value).map_err(bad)?.servers;

    if let Some(name) = only.iter().find(|name| !servers.contains_key(*name)) {
        return Err(SourceError::NotInFile {
            file: file.to_owned(),
            name: name.clone(),
            known: servers.into_keys().collect(),
        });
    }

    let mut wanted = Vec::new();
    for (name, entry) in servers {
        if !only.is_empty() && !only.contains(&name) {
            continue;
        }
        match entry {
            Ok(entry) => wanted.push(WantedServer { name, config: entry.to_value() }),
            Err(unusable) => match unusable.error {
                // Nobody asked for this one.
                ConfigError::Disabled { .. } if only.is_empty() => {}
                error => return Err(bad(error)),
            },
        }
    }
    Ok(wanted)
}

/// Returns the server at a URL.
pub(crate) fn from_url(
    url: &Url,
    name: Option<&str>,
    extras: &Extras,
) -> Result<WantedServer, SourceError> {
    let mut config = json!({"url": url.as_str()});
    if !extras.headers.is_empty() {
        config["headers"] = Value::Object(object(&extras.headers));
    }
    named(name, || name_of_url(url), config)
}

/// Returns the server that a command starts. There is at least one word.
pub(crate) fn from_command(
    words: &[String],
    name: Option<&str>,
    extras: &Extras,
) -> Result<WantedServer, SourceError> {
    let (command, args) = words.split_first().map_or(("", &[][..]), |(first, rest)| (first, rest));
    let mut config = json!({"command": command, "args": args});
    if !extras.env.is_empty() {
        config["env"] = Value::Object(object(&extras.env));
    }
    if let Some(cwd) = &extras.cwd {
        config["cwd"] = cwd.as_str().into();
    }
    named(name, || name_of_command(words), config)
}

fn object(pairs: &[(String, String)]) -> Map<String, Value> {
    pairs.iter().map(|(name, value)| (name.clone(), value.as_str().into())).collect()
}

fn named(
    given: Option<&str>,
    derived: impl FnOnce() -> String,
    config: Value,
) -> Result<WantedServer, SourceError> {
    let name = given.map_or_else(derived, str::to_owned);
    tool_name::check_server(&name).map_err(|source| SourceError::Name { source })?;
    Ok(WantedServer { name, config })
}

/// Returns a name for the server at a URL: the first part of its host that says something.
fn name_of_url(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    let is_address =
        host.starts_with('[') || host.split('.').all(|part| part.parse::<u8>().is_ok());
    let label = host.split('.').find(|label| !COMMON_LABELS.contains(label));
    match (label, url.port()) {
        (Some(label), _) if !is_address => plain_name(label),
        (_, Some(port)) => format!("port-{port}"),
        (_, None) => "remote".to_owned(),
    }
}

/// Returns a name for the server that a command starts: that of the package or script.
fn name_of_command(words: &[String]) -> String {
    let base = |word: &str| word.rsplit(['/', '\\']).next().unwrap_or(word).to_owned();
    let program = words.first().map(|word| base(word)).unwrap_or_default();
    let is_runner = RUNNERS.contains(&program.as_str());
    let run = words.iter().skip(1).find(|word| {
        !word.starts_with('-') && !VERBS.contains(&word.as_str()) && !word.contains('=')
    });

    let named = run.filter(|_| is_runner).map_or(program, |word| base(word));
    // Without a version, and without the extension of a script.
    let named = named.split('@').next().unwrap_or_default();
    let named = named.split(':').next().unwrap_or_default();
    let stem = named.rsplit_once('.').filter(|(stem, _)| !stem.is_empty());
    plain_name(stem.map_or(named, |(stem, _)| stem))
}

/// Returns the nearest name that a hosted server can have.
fn plain_name(text: &str) -> String {
    let is_plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_');
    let plain = text.chars().map(|c| if is_plain(c) { c } else { '-' });
    let mut name: String = plain.take(tool_name::MAX_SERVER).collect();
    while name.contains("__") {
        name = name.replace("__", "_");
    }
    name.trim_matches('-').to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(words: &str) -> Result<WantedServer, SourceError> {
        let words: Vec<_> = words.split(' ').map(str::to_owned).collect();
        from_command(&words, None, &Extras::default())
    }

    #[test]
    fn a_command_names_its_server() {
        for (words, name) in [
            ("uvx mcp-server-time", "mcp-server-time"),
            ("uvx my-server@1.2 --flag", "my-server"),
            ("npx -y @modelcontextprotocol/server-everything", "server-everything"),
            ("uv run weather.py", "weather"),
            ("/opt/bin/my__server --x", "my_server"),
            ("docker run -i --rm ghcr.io/acme/db:latest", "db"),
        ] {
            let wanted = command(words).unwrap();
            assert_eq!(wanted.name, name, "{words}");
        }
        let config = command("uvx a b").unwrap().config;
        assert_eq!(config, json!({"command": "uvx", "args": ["a", "b"]}));
        let error = command("python3 server.py").unwrap_err().to_string();
        assert!(error.contains("--name") && error.contains("reserved"), "{error}");
        assert!(command("uvx @").is_err());
    }

    #[test]
    fn a_url_names_its_server_and_a_file_is_no_url() {
        for (word, url, name) in [
            ("https://mcp.example.com/mcp", "https://mcp.example.com/mcp", "example"),
            ("localhost:9000/mcp", "http://localhost:9000/mcp", "port-9000"),
            ("http://127.0.0.1:9/", "http://127.0.0.1:9/", "port-9"),
            ("http://[::1]:9/", "http://[::1]:9/", "port-9"),
        ] {
            let parsed = parse_url(word).unwrap();
            let wanted = from_url(&parsed, None, &Extras::default()).unwrap();
            assert_eq!((wanted.name.as_str(), &wanted.config), (name, &json!({"url": url})));
        }
        for file in ["mcp.json", "./a/mcp.json", "-", "c:/x", "a:b", "file:///x"] {
            assert_eq!(parse_url(file), None, "{file}");
        }
    }

    #[test]
    fn settings_go_into_the_entry() {
        let pair = |name: &str, value: &str| vec![(name.to_owned(), value.to_owned())];
        let extras =
            Extras { env: pair("A", "1"), cwd: Some("/x".into()), headers: pair("H", "v") };
        let words = ["a".to_owned()];
        let child = from_command(&words, Some("n"), &extras).unwrap();
        let expected = json!({"command": "a", "args": [], "env": {"A": "1"}, "cwd": "/x"});
        assert_eq!((child.name.as_str(), child.config), ("n", expected));
        let url = Url::parse("http://a").unwrap();
        let remote = from_url(&url, Some("n"), &extras).unwrap();
        assert_eq!(remote.config, json!({"url": "http://a/", "headers": {"H": "v"}}));
    }

    #[test]
    fn a_file_has_several_servers() {
        let file = br#"{"mcpServers": {
            "a": {"command": "x"}, "off": {"command": "y", "disabled": true}, // a comment
            "b": {"url": "https://b"},
        }}"#;
        let names = |only: &[&str]| {
            let only: Vec<_> = only.iter().map(|name| (*name).to_owned()).collect();
            let wanted = from_file("mcp.json", file, &only).map_err(|error| error.to_string());
            wanted.map(|wanted| wanted.into_iter().map(|server| server.name).collect::<Vec<_>>())
        };
        assert_eq!(names(&[]).unwrap(), ["a", "b"]);
        assert_eq!(names(&["b"]).unwrap(), ["b"]);
        assert!(names(&["off"]).unwrap_err().contains("switched off"));
        assert!(names(&["c"]).unwrap_err().contains("no server `c`; it has a, b, off"));
        assert!(from_file("x", b"[", &[]).is_err() && from_file("x", b"{}", &[]).is_err());
    }
}
