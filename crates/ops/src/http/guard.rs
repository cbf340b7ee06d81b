//! Checks that a request is addressed to an allowed host and comes from an allowed origin, before
//! anything else in it is read.
//!
//! A web page that a person on this machine visits can send requests to `localhost`, either under
//! its own name (DNS rebinding) or across origins. Browsers reveal this in `Host` and `Origin`, so
//! both are checked by default.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, StatusCode, Uri, header, uri::Authority};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use url::Url;

const LOOPBACK: [&str; 3] = ["localhost", "127.0.0.1", "::1"];

/// An origin from which browsers may send requests.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Origin {
    scheme: String,
    host: String,
    port: u16,
}

impl Origin {
    /// Parses an origin. Returns `None` if the text is not one, such as `null`.
    pub fn parse(text: &str) -> Option<Self> {
        let url = Url::parse(text).ok()?;
        let bare = url.path() == "/"
            && url.query().is_none()
            && url.fragment().is_none()
            && url.username().is_empty();
        if !bare || text.ends_with('/') {
            return None;
        }

        Some(Self {
            scheme: url.scheme().to_owned(),
            host: url.host_str()?.to_ascii_lowercase(),
            port: url.port_or_known_default()?,
        })
    }

    /// Returns whether this is the origin of pages served by this server under the name in the
    /// request.
    fn is_of(&self, host: &str, port: Option<u16>) -> bool {
        let default = match self.scheme.as_str() {
            "http" => 80,
            "https" => 443,
            _ => return false,
        };

        let own = self
            .host
            .strip_prefix('[')
            .and_then(|host| host.strip_suffix(']'))
            .unwrap_or(&self.host);

        own == host && self.port == port.unwrap_or(default)
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}://{}:{}", self.scheme, self.host, self.port)
    }
}

/// Returns the allowed hosts, including loopback; `None` if every host is allowed.
pub fn host_names(allowed: &[String]) -> Option<Vec<String>> {
    if allowed.iter().any(|host| host == "*") {
        return None;
    }
    let own = allowed.iter().cloned();
    Some(LOOPBACK.iter().map(ToString::to_string).chain(own).collect())
}

/// The hosts and origins that a listener accepts.
#[derive(Debug, Clone)]
pub struct Guard {
    hosts: Option<Vec<(String, Option<u16>)>>,
    origins: Vec<Origin>,
}

impl Guard {
    /// Creates a guard that accepts requests for loopback and `hosts` (`*` for any host), and from
    /// `origins`.
    pub fn new(hosts: &[String], origins: Vec<Origin>) -> Self {
        let hosts =
            host_names(hosts).map(|names| names.iter().map(|name| split_host(name)).collect());
        Self { hosts, origins }
    }

    fn allows(&self, uri: &Uri, headers: &HeaderMap, check: Check) -> Result<(), &'static str> {
        let mut requested = None;

        if let Some(hosts) = &self.hosts {
            let (host, port) =
                split_host(requested_host(uri, headers).ok_or("a Host header is required")?);
            let covers = |(name, name_port): &(String, Option<u16>)| {
                *name == host && (name_port.is_none() || *name_port == port)
            };

            let is_address = check == Check::Scrape && host.parse::<IpAddr>().is_ok();
            if !is_address && !hosts.iter().any(covers) {
                return Err("the Host is not allowed (see --allowed-hosts, MCP_ALLOWED_HOSTS)");
            }
            requested = Some((host, port));
        }

        let origin = headers.get(header::ORIGIN).filter(|_| check != Check::HostOnly);
        let Some(origin) = origin else { return Ok(()) };
        let origin = origin.to_str().ok().and_then(Origin::parse);

        match origin {
            Some(origin) if self.origins.contains(&origin) => Ok(()),
            // If every Host is allowed, the requested name says nothing about whose page this is.
            Some(origin) if requested.is_some_and(|(host, port)| origin.is_of(&host, port)) => {
                Ok(())
            }
            _ => Err("the Origin is not allowed (see --allowed-origins, MCP_ALLOWED_ORIGINS)"),
        }
    }
}

/// Which parts of a request are checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Check {
    /// The host and the origin.
    Full,
    /// The host and the origin, but any IP address is accepted as host.
    Scrape,
    /// The host only.
    HostOnly,
}

/// Returns the host that a request is addressed to, with its port if there is one.
pub fn requested_host<'a>(uri: &'a Uri, headers: &'a HeaderMap) -> Option<&'a str> {
    let named = headers.get(header::HOST).and_then(|host| host.to_str().ok());
    uri.authority().map(Authority::as_str).or(named)
}

/// Returns whether a request has an `Origin`, and it is the one of pages that this server serves
/// under the name in the request.
pub fn is_same_origin(uri: &Uri, headers: &HeaderMap) -> bool {
    let origin =
        headers.get(header::ORIGIN).and_then(|origin| Origin::parse(origin.to_str().ok()?));
    let requested = requested_host(uri, headers).map(split_host);
    match (origin, requested) {
        (Some(origin), Some((host, port))) => origin.is_of(&host, port),
        _ => false,
    }
}

/// Splits `host`, `host:port`, `[v6]:port` or a bare IPv6 address, in lower case.
fn split_host(text: &str) -> (String, Option<u16>) {
    let text = text.to_ascii_lowercase();
    if text.parse::<IpAddr>().is_ok() {
        return (text, None);
    }

    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if port.parse::<u16>().is_ok() => (host, port.parse().ok()),
        _ => (text.as_str(), None),
    };

    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    (host.to_owned(), port)
}

/// Rejects requests with a disallowed host or origin.
pub async fn check(State(guard): State<Arc<Guard>>, request: Request, next: Next) -> Response {
    guard.pass(request, next, Check::Full).await
}

/// Like [`check`], but accepts any IP address as `Host`, for `/metrics`: scrapers request each
/// replica by its address, whereas a DNS-rebinding page always uses a name.
pub async fn check_scrape(
    State(guard): State<Arc<Guard>>,
    request: Request,
    next: Next,
) -> Response {
    guard.pass(request, next, Check::Scrape).await
}

/// Like [`check`] but without the origin, for public documents that pages of every origin may read.
pub async fn check_host(State(guard): State<Arc<Guard>>, request: Request, next: Next) -> Response {
    guard.pass(request, next, Check::HostOnly).await
}

impl Guard {
    async fn pass(&self, request: Request, next: Next, check: Check) -> Response {
        if let Some(name) = repeated_header(request.headers()) {
            tracing::warn!(%name, "rejected an HTTP request with a repeated header");
            let problem = format!("Bad request: more than one `{name}` header; send only one\n");
            return (StatusCode::BAD_REQUEST, problem).into_response();
        }

        if let Err(problem) = self.allows(request.uri(), request.headers(), check) {
            tracing::warn!(problem, "rejected an HTTP request");
            return (StatusCode::FORBIDDEN, format!("Forbidden: {problem}\n")).into_response();
        }

        next.run(request).await
    }
}

/// Returns a header that decides about access and that the request repeats. A proxy in front of us
/// may have decided by the other value.
fn repeated_header(headers: &HeaderMap) -> Option<HeaderName> {
    [header::HOST, header::ORIGIN].into_iter().find(|name| headers.get_all(name).iter().count() > 1)
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::body::Body;
    use axum::http::HeaderValue;
    use axum::middleware::from_fn_with_state;
    use axum::routing::get;
    use tower::ServiceExt as _;

    use super::*;

    fn guard(hosts: &[&str], origins: &[&str]) -> Guard {
        let hosts: Vec<_> = hosts.iter().map(ToString::to_string).collect();
        Guard::new(&hosts, origins.iter().map(|origin| Origin::parse(origin).unwrap()).collect())
    }

    fn check(
        guard: &Guard,
        host: Option<&'static str>,
        origin: Option<&'static str>,
        expected: bool,
    ) {
        let mut headers = HeaderMap::new();
        headers.extend(host.map(|host| (header::HOST, HeaderValue::from_static(host))));
        headers.extend(origin.map(|origin| (header::ORIGIN, HeaderValue::from_static(origin))));
        let allowed = guard.allows(&Uri::from_static("/mcp"), &headers, Check::Full);
        assert_eq!(allowed.is_ok(), expected, "{host:?} {origin:?}: {allowed:?}");
    }

    #[test]
    fn hosts_are_checked() {
        let default = guard(&[], &[]);

        for host in ["localhost", "LOCALHOST:8080", "127.0.0.1:1", "[::1]:80", "[::1]"] {
            check(&default, Some(host), None, true);
        }
        for host in ["evil.example", "localhost.evil.example", "127.0.0.1.evil:80", ""] {
            check(&default, Some(host), None, false);
        }

        check(&default, None, None, false);

        let own = guard(&["mcp.internal", "mcp.example.com:8443"], &[]);
        check(&own, Some("mcp.internal:8080"), None, true);
        check(&own, Some("mcp.example.com:8443"), None, true);
        check(&own, Some("mcp.example.com"), None, false);

        check(&guard(&["*"], &[]), Some("anything"), None, true);
    }

    #[tokio::test]
    async fn a_repeated_host_or_origin_is_rejected() {
        let guard = Arc::new(guard(&[], &[]));
        let router = Router::new()
            .route(
                "/mcp",
                get(async || "in").layer(from_fn_with_state(guard.clone(), super::check)),
            )
            .route("/metrics", get(async || "in").layer(from_fn_with_state(guard, check_scrape)));
        for path in ["/mcp", "/metrics"] {
            for (headers, status) in [
                (&[("host", "localhost")][..], 200),
                (&[("host", "localhost"), ("host", "evil.example")], 400),
                (
                    &[
                        ("host", "localhost"),
                        ("origin", "http://localhost"),
                        ("origin", "http://e"),
                    ],
                    400,
                ),
            ] {
                let request = headers.iter().fold(Request::get(path), |request, (name, value)| {
                    request.header(*name, *value)
                });
                let answer =
                    router.clone().oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
                assert_eq!(answer.status(), status, "{path} {headers:?}");
            }
        }
    }

    #[test]
    fn scrapers_may_use_addresses_but_web_pages_are_rejected() {
        let scrape = |host: &'static str, origin: Option<&'static str>| {
            let mut headers = HeaderMap::new();
            headers.insert(header::HOST, HeaderValue::from_static(host));
            headers.extend(origin.map(|origin| (header::ORIGIN, HeaderValue::from_static(origin))));
            let uri = Uri::from_static("/metrics");
            guard(&["mcp.internal"], &[]).allows(&uri, &headers, Check::Scrape).is_ok()
        };
        for host in ["10.1.2.3:8080", "[fd00::1]:8080", "localhost:8080", "mcp.internal"] {
            assert!(scrape(host, None), "{host}");
        }
        for host in ["evil.example", "10.1.2.3.evil.example", "1.2.3"] {
            assert!(!scrape(host, None), "{host}");
        }
        assert!(!scrape("10.1.2.3:8080", Some("https://evil.example")));
    }

    #[test]
    fn origins_are_checked() {
        let default = guard(&[], &[]);
        for origin in
            ["http://localhost:3000", "https://evil.example", "ftp://localhost", "null", "x"]
        {
            check(&default, Some("localhost"), Some(origin), false);
        }
        for (host, origin) in [
            ("localhost", "http://localhost"),
            ("127.0.0.1:8080", "http://127.0.0.1:8080"),
            ("[::1]:8080", "http://[::1]:8080"),
        ] {
            check(&default, Some(host), Some(origin), true);
        }

        check(&default, Some("127.0.0.1:8080"), Some("http://localhost:8080"), false);
        // DNS rebinding makes host and origin of a foreign page equal.
        check(&guard(&["*"], &[]), Some("evil.example"), Some("http://evil.example"), false);

        let own = guard(&[], &["https://app.example.com", "http://localhost:3000"]);
        check(&own, Some("localhost"), Some("https://app.example.com"), true);
        check(&own, Some("localhost"), Some("https://APP.example.com:443"), true);
        check(&own, Some("localhost"), Some("http://localhost:3000"), true);
        check(&own, Some("localhost"), Some("http://localhost:3001"), false);
        check(&own, Some("localhost"), Some("http://app.example.com"), false);
    }
}
