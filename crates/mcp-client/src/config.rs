//! The client's settings: endpoints, authentication and limits.

use std::borrow::Cow;
use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use fleet_codes as codes;
use fleet_oauth::CredentialsReader;
use fleet_ops::tls::{ClientTlsFiles, TlsError};
use http::header::{ACCEPT, AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE, HOST, TRANSFER_ENCODING};
use http::{HeaderMap, HeaderName, HeaderValue};
use url::Url;

/// The default path of an MCP endpoint.
const DEFAULT_PATH: &str = "/mcp";

/// The settings of an [`McpClient`](crate::McpClient). Start from [`ClientConfig::new`].
#[derive(Clone)]
pub struct ClientConfig {
    /// The MCP endpoints, which must be replicas of one server.
    pub endpoints: Vec<Url>,
    /// The time limit for connecting, including TLS.
    pub connect_timeout: Duration,
    /// The time limit for finding out which protocol an endpoint speaks, and for a probe.
    pub handshake_timeout: Duration,
    /// The time limit for calls that do not set their own.
    pub default_timeout: Duration,
    /// A token that is sent as `Authorization: Bearer …`. It can be
    /// [replaced](crate::McpClient::replace_bearer_token) while the client is in use.
    pub bearer_token: Option<Secret>,
    /// The OAuth client as which access tokens are fetched, if there is no bearer token.
    pub oauth: Option<OAuthClient>,
    /// Headers for every request. The protocol's own headers cannot be set here.
    pub headers: Vec<(String, Secret)>,
    /// The size limit for an answer: a JSON body, or one event of a stream.
    pub max_response_bytes: usize,
    /// How many idle connections per endpoint are kept.
    pub pool_max_idle_per_host: usize,
    /// How long an idle connection is kept. This is shorter than the timeouts of load balancers and
    /// servers, so that we are the side that closes it: a request on a connection that the other
    /// side has just closed counts as lost.
    pub pool_idle_timeout: Duration,
    /// The files of private authorities and of a client certificate. They are followed: requests
    /// that begin after a change use the changed files.
    pub tls: ClientTlsFiles,
    /// The revisions of the protocol to use.
    pub era: Era,
    /// The name reported to servers, in `User-Agent` and in the protocol's client information.
    pub client_name: String,
    /// The version reported to servers.
    pub client_version: String,
}

/// A client of the authorization server of an MCP server.
#[derive(Debug, Clone)]
pub struct OAuthClient {
    /// The client's id and what proves it.
    pub credentials: CredentialsReader,
    /// The authorization server. Without it, the MCP server decides who is given the credentials.
    pub issuer: Option<Url>,
    /// The authorities of the authorization server's certificate (PEM), in place of the system's.
    pub ca: Option<PathBuf>,
}

/// The two families of MCP revisions.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Era {
    /// Asks each endpoint, starting with the modern era, and remembers the answer.
    #[default]
    Auto,
    /// Revision 2026-07-28: stateless, without a handshake.
    Modern,
    /// Revisions up to 2025-11-25, with `initialize` and sessions.
    Legacy,
}

/// A value that is never shown, neither in `Debug` output nor in errors.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(String);

impl Secret {
    /// Wraps a value.
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// Returns the value itself.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("***")
    }
}

impl From<String> for Secret {
    fn from(value: String) -> Self {
        Self(value)
    }
}

impl From<&str> for Secret {
    fn from(value: &str) -> Self {
        Self(value.to_owned())
    }
}

/// Why settings are invalid. Secrets are not repeated.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// There are no endpoints.
    #[error(
        "no endpoint is configured; expected a URL such as http://mcp-server:8080, or several, separated by commas [{code}]",
        code = codes::SERVER_URL
    )]
    NoEndpoint,
    /// An endpoint is not a URL.
    #[error("{url:?} is not a URL [{code}]", code = codes::SERVER_URL)]
    NotAUrl {
        /// The invalid text.
        url: String,
        /// What is wrong with it.
        #[source]
        source: url::ParseError,
    },
    /// An endpoint is a URL that cannot be called.
    #[error(
        "{url} cannot be called; expected http:// or https:// and a host [{code}]",
        code = codes::SERVER_URL
    )]
    NotHttp {
        /// The URL without user name and password.
        url: String,
    },
    /// TLS is configured for a server that is called without it.
    #[error(
        "{url} is called in clear text, so MCP_SERVER_CA_FILE and the client certificate would have \
         no effect; use https://, or remove them [{code}]",
        code = codes::SERVER_URL
    )]
    TlsWithoutHttps {
        /// The URL without user name and password.
        url: String,
    },
    /// The name or value of a header is not valid in HTTP.
    #[error("header {name:?} is not valid in HTTP [{code}]", code = codes::SERVER_URL)]
    BadHeader {
        /// The name of the header.
        name: String,
    },
    /// A header is set by the protocol itself.
    #[error(
        "header {name:?} is set by the client and cannot be configured [{code}]",
        code = codes::SERVER_URL
    )]
    ReservedHeader {
        /// The name of the header.
        name: String,
    },
    /// The HTTP client could not be created, for example because no root certificates were found,
    /// or a file of TLS can't be used.
    #[error(transparent)]
    Tls(#[from] TlsError),
}

impl ClientConfig {
    /// Creates settings with defaults for these endpoints.
    pub fn new(endpoints: Vec<Url>) -> Self {
        Self {
            endpoints,
            connect_timeout: Duration::from_secs(5),
            handshake_timeout: Duration::from_secs(10),
            default_timeout: Duration::from_secs(60),
            bearer_token: None,
            oauth: None,
            headers: Vec::new(),
            max_response_bytes: 8 << 20,
            pool_max_idle_per_host: 64,
            pool_idle_timeout: Duration::from_secs(30),
            tls: ClientTlsFiles::default(),
            era: Era::Auto,
            client_name: "mcp-fleet".to_owned(),
            client_version: env!("CARGO_PKG_VERSION").to_owned(),
        }
    }

    /// Parses endpoints such as `http://a:8080, http://b:8080/mcp`. The path defaults to `/mcp`,
    /// and the scheme of `localhost` and of what begins with a host and a port to `http`. Repeated
    /// endpoints are dropped.
    ///
    /// # Errors
    ///
    /// Returns an error if an entry is not an HTTP URL or there are no entries.
    pub fn parse_urls(text: &str) -> Result<Vec<Url>, ConfigError> {
        let mut endpoints = Vec::new();
        for entry in text.split(',').map(str::trim).filter(|entry| !entry.is_empty()) {
            let spelled = spell_out(entry);
            let mut url = Url::parse(&spelled).map_err(|source| ConfigError::NotAUrl {
                // Without a scheme, a password could be anywhere before the last `@`.
                url: entry.rsplit_once('@').map_or(entry, |(_, rest)| rest).to_owned(),
                source,
            })?;

            if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none_or(str::is_empty)
            {
                return Err(ConfigError::NotHttp { url: label(&url) });
            }

            if matches!(url.path(), "" | "/") {
                url.set_path(DEFAULT_PATH);
            }

            url.set_fragment(None);

            if !endpoints.contains(&url) {
                endpoints.push(url);
            }
        }

        if endpoints.is_empty() { Err(ConfigError::NoEndpoint) } else { Ok(endpoints) }
    }

    /// Returns the headers for every request.
    pub(crate) fn header_map(&self) -> Result<HeaderMap, ConfigError> {
        let mut map = HeaderMap::new();
        for (name, value) in &self.headers {
            let bad = || ConfigError::BadHeader { name: name.clone() };
            let header = HeaderName::from_bytes(name.as_bytes()).map_err(|_| bad())?;

            let reserved = [ACCEPT, CONTENT_TYPE, CONTENT_LENGTH, TRANSFER_ENCODING, HOST]
                .contains(&header)
                || header.as_str().starts_with("mcp-")
                || (header == AUTHORIZATION
                    && (self.bearer_token.is_some() || self.oauth.is_some()));

            if reserved {
                return Err(ConfigError::ReservedHeader { name: name.clone() });
            }

            map.insert(header, secret_value(value.expose()).ok_or_else(bad)?);
        }

        Ok(map)
    }
}

/// Adds the scheme to an endpoint such as `localhost:8080` or `mcp-server:8080/mcp`. A scheme
/// without `//`, and a password, look like a host and a port, too; they are left as they are.
fn spell_out(entry: &str) -> Cow<'_, str> {
    let authority = entry.split(['/', '?', '#']).next().unwrap_or_default();
    let has_port = authority.rsplit_once(':').is_some_and(|(host, port)| {
        !host.is_empty() && !port.is_empty() && port.bytes().all(|byte| byte.is_ascii_digit())
    });
    let is_plain = !entry.contains(['@', ' ']) && !entry.contains("://");
    if is_plain && (has_port || authority == "localhost") {
        return Cow::Owned(format!("http://{entry}"));
    }
    Cow::Borrowed(entry)
}

/// Returns the value of `Authorization` with this token.
pub(crate) fn bearer_header(token: &Secret) -> Result<HeaderValue, ConfigError> {
    let value = secret_value(&format!("Bearer {}", token.expose()));
    value.ok_or_else(|| ConfigError::BadHeader { name: AUTHORIZATION.to_string() })
}

fn secret_value(value: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(value).ok()?;
    value.set_sensitive(true);
    Some(value)
}

/// Returns a URL as it may be shown: without user name, password, query and fragment.
pub(crate) fn label(url: &Url) -> String {
    if url.cannot_be_a_base() {
        // `user:password@host` without a scheme is parsed as a URL of the scheme `user`.
        return format!("{}:…", url.scheme());
    }

    let port = url.port().map(|port| format!(":{port}")).unwrap_or_default();
    format!("{}://{}{port}{}", url.scheme(), url.host_str().unwrap_or_default(), url.path())
}

impl fmt::Debug for ClientConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let endpoints: Vec<String> = self.endpoints.iter().map(label).collect();
        f.debug_struct("ClientConfig")
            .field("endpoints", &endpoints)
            .field("connect_timeout", &self.connect_timeout)
            .field("handshake_timeout", &self.handshake_timeout)
            .field("default_timeout", &self.default_timeout)
            .field("bearer_token", &self.bearer_token)
            .field("headers", &self.headers)
            .field("max_response_bytes", &self.max_response_bytes)
            .field("pool_max_idle_per_host", &self.pool_max_idle_per_host)
            .field("pool_idle_timeout", &self.pool_idle_timeout)
            .field("tls", &self.tls)
            .field("era", &self.era)
            .field("client_name", &self.client_name)
            .field("client_version", &self.client_version)
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_are_parsed() {
        let check = |text: &str, expected: &[&str]| {
            let urls = ClientConfig::parse_urls(text).unwrap();
            assert_eq!(urls.iter().map(Url::as_str).collect::<Vec<_>>(), expected, "{text}");
        };
        check("http://a:8080", &["http://a:8080/mcp"]);
        check("http://a:8080/, http://b:8080/mcp,", &["http://a:8080/mcp", "http://b:8080/mcp"]);
        check("https://a/x/y?z=1#f", &["https://a/x/y?z=1"]);
        check("http://a, http://a/mcp", &["http://a/mcp"]);
        check("http://[::1]:1/", &["http://[::1]:1/mcp"]);
        check("localhost:8080, localhost", &["http://localhost:8080/mcp", "http://localhost/mcp"]);
        check("mcp-server:80/x", &["http://mcp-server/x"]);
        check("[::1]:1, 127.0.0.1:2", &["http://[::1]:1/mcp", "http://127.0.0.1:2/mcp"]);
    }

    #[test]
    fn urls_are_refused_without_showing_secrets() {
        let check = |text: &str, expected: &str| {
            let error = ClientConfig::parse_urls(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
            assert!(!error.contains("hunter2"), "{error}");
        };
        check("", "no endpoint");
        check(" , ", "no endpoint");
        check("a:b:c", "cannot be called");
        check("files", "is not a URL");
        check("u:5@h", "cannot be called");
        check("localhost:99999", "is not a URL");
        check("not a url", "is not a URL");
        check("u:hunter2@h:99999999/x y", "");
        check("http://u:hunter2@h:99999999", "is not a URL");
        check("ftp://u:hunter2@h/x", "ftp://h/x cannot be called");
        check("unix:/tmp/x", "cannot be called");
    }

    #[test]
    fn secrets_do_not_appear_in_debug_output_and_errors() {
        let mut config =
            ClientConfig::new(ClientConfig::parse_urls("http://u:hunter2@a/?k=hunter2").unwrap());
        config.bearer_token = Some("hunter2".into());
        config.headers = vec![("x-api-key".to_owned(), "hunter2".into())];
        assert!(
            !format!("{config:?} {:?}", config.header_map().unwrap()).contains("hunter2"),
            "{config:?}"
        );

        for (name, value) in
            [("x-bad", "hunter2\n"), ("bad name", "hunter2"), ("Mcp-Method", "hunter2")]
        {
            config.headers = vec![(name.to_owned(), value.into())];
            let error = config.header_map().unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
            assert!(!format!("{error:?} {error}").contains("hunter2"), "{error}");
        }

        config.headers = vec![("authorization".to_owned(), "x".into())];
        assert!(matches!(config.header_map(), Err(ConfigError::ReservedHeader { .. })));

        let error = bearer_header(&"hunter2\r\n".into()).unwrap_err();
        assert!(!format!("{error:?} {error}").contains("hunter2"), "{error}");
        let header = bearer_header(&"hunter2".into()).unwrap();
        assert!(!format!("{header:?}").contains("hunter2"), "{header:?}");
    }
}
