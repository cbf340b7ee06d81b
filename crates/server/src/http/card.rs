//! Public documents for clients that have not connected yet: the MCP server card at
//! `/mcp/server-card` (SEP-2127) describes how to reach this server, and the AI catalog at
//! `/.well-known/ai-catalog.json` refers to the card.
//!
//! Both are the same for all clients and name no tools, so web pages of any origin may read them.

use std::sync::Arc;

use axum::{
    Router,
    extract::{Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header},
    response::{IntoResponse, Response},
    routing::get,
};
use fleet_ops::{hex::hex, http::guard};
use rmcp::{ServerHandler as _, model::ProtocolVersion};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use url::Url;

use crate::gateway::{Gateway, own_info};

/// The path of the card, which MCP reserves below the URL of the endpoint.
pub(super) const CARD: &str = "/mcp/server-card";
/// The path of the catalog.
pub(super) const CATALOG: &str = "/.well-known/ai-catalog.json";

const CARD_TYPE: &str = "application/mcp-server-card+json";
const CATALOG_TYPE: &str = "application/ai-catalog+json";
const SCHEMA: &str = "https://static.modelcontextprotocol.io/schemas/v1/server-card.schema.json";
/// The server's name in reverse DNS notation, as cards and registries write names.
const NAME: &str = "io.mcp-fleet/mcp-fleet";
const DESCRIPTION: &str =
    "Its own tools and those of hosted MCP servers, called directly or as durable jobs.";
/// The headers that the extension requires on both documents, and on the response to a browser's
/// preflight request.
const PUBLIC_HEADERS: [(HeaderName, &str); 4] = [
    (header::ACCESS_CONTROL_ALLOW_ORIGIN, "*"),
    (header::ACCESS_CONTROL_ALLOW_METHODS, "GET"),
    (header::ACCESS_CONTROL_ALLOW_HEADERS, "Content-Type, If-None-Match"),
    (header::ACCESS_CONTROL_EXPOSE_HEADERS, "ETag"),
];

/// The data from which the documents are made.
struct CardSource {
    address: PublicAddress,
    versions: Vec<ProtocolVersion>,
}

/// The routes of both documents, which name `address`.
pub(super) fn router(gateway: &Gateway, address: PublicAddress) -> Router {
    let versions = gateway.supported_protocol_versions().into_owned();
    Router::new()
        .route(CARD, get(serve_card).options(answer_preflight))
        .route(CATALOG, get(serve_catalog).options(answer_preflight))
        .with_state(Arc::new(CardSource { address, versions }))
}

async fn serve_card(State(source): State<Arc<CardSource>>, request: Request) -> Response {
    let base = source.address.base_url(request.uri(), request.headers());
    respond_with(CARD_TYPE, &card(&base, &source.versions), request.headers())
}

async fn serve_catalog(State(source): State<Arc<CardSource>>, request: Request) -> Response {
    let base = source.address.base_url(request.uri(), request.headers());
    respond_with(CATALOG_TYPE, &catalog(&base), request.headers())
}

/// Answers a preflight request, which browsers send before a request with `If-None-Match`.
async fn answer_preflight() -> Response {
    with_public_headers(StatusCode::NO_CONTENT.into_response())
}

/// How clients reach this server, for documents and challenges.
#[derive(Debug, Clone, Default)]
pub(crate) struct PublicAddress {
    /// The configured URL; without one, the host of a request names the server.
    pub(crate) url: Option<Url>,
    /// Whether the port speaks TLS.
    pub(crate) is_tls: bool,
}

impl PublicAddress {
    /// Whether clients are known to reach the server over TLS.
    pub(crate) fn is_secure(&self) -> bool {
        self.is_tls || self.url.as_ref().is_some_and(|url| url.scheme() == "https")
    }

    /// The URL of the server for the client of a request, without a trailing slash. The guard has
    /// already checked the host of the request.
    pub(crate) fn base_url(&self, uri: &Uri, headers: &HeaderMap) -> String {
        if let Some(url) = &self.url {
            return url.as_str().trim_end_matches('/').to_owned();
        }
        let scheme = if self.is_tls { "https" } else { "http" };
        let host = guard::requested_host(uri, headers).unwrap_or("localhost");
        format!("{scheme}://{host}")
    }
}

fn card(base: &str, versions: &[ProtocolVersion]) -> Value {
    let info = own_info();
    let versions: Vec<&str> = versions.iter().map(ProtocolVersion::as_str).collect();
    json!({
        "$schema": SCHEMA,
        "name": NAME,
        "version": info.version,
        "title": info.title,
        "description": DESCRIPTION,
        "remotes": [{
            "type": "streamable-http",
            "url": format!("{base}/mcp"),
            "supportedProtocolVersions": versions,
        }],
    })
}

fn catalog(base: &str) -> Value {
    let url = Url::parse(base).ok();
    let publisher = url.as_ref().and_then(Url::domain).unwrap_or("localhost");
    json!({
        "specVersion": "1.0",
        "entries": [{
            "identifier": format!("urn:air:{publisher}:mcp:mcp-fleet"),
            "type": CARD_TYPE,
            "url": format!("{base}{CARD}"),
        }],
    })
}

/// Responds with a document that browsers may read and caches may store, or with 304 if the client
/// already has it.
fn respond_with(kind: &'static str, document: &Value, asked: &HeaderMap) -> Response {
    let body = document.to_string();
    let tag = format!("\"{}\"", hex(&Sha256::digest(body.as_bytes())[..16]));

    let mut response = if is_current(asked, &tag) {
        StatusCode::NOT_MODIFIED.into_response()
    } else {
        ([(header::CONTENT_TYPE, kind)], body).into_response()
    };

    let headers = response.headers_mut();
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=3600"));
    headers.extend(HeaderValue::try_from(tag).ok().map(|tag| (header::ETAG, tag)));
    with_public_headers(response)
}

/// Whether `If-None-Match` names the document's tag.
fn is_current(asked: &HeaderMap, tag: &str) -> bool {
    let tags = asked.get_all(header::IF_NONE_MATCH).iter().filter_map(|tags| tags.to_str().ok());
    tags.flat_map(|tags| tags.split(','))
        .map(|known| known.trim().trim_start_matches("W/"))
        .any(|known| known == tag || known == "*")
}

pub(crate) fn with_public_headers(mut response: Response) -> Response {
    let fixed = PUBLIC_HEADERS.map(|(name, value)| (name, HeaderValue::from_static(value)));
    response.headers_mut().extend(fixed);
    response
}

#[cfg(test)]
mod tests {
    use axum::{body::Body, middleware::from_fn_with_state};
    use fleet_hosting::Fleet;
    use fleet_ops::http::guard::Guard;
    use fleet_policy::{Policy, current::CurrentPolicy};
    use http_body_util::BodyExt as _;
    use tower::ServiceExt as _;

    use super::*;

    const VERSIONS: &[ProtocolVersion] = ProtocolVersion::KNOWN_VERSIONS;

    fn routes(public_url: Option<&str>) -> Router {
        let fleet = Fleet::new(CurrentPolicy::new(Policy::default()));
        let gateway = Gateway::new(Vec::new(), fleet, std::time::Duration::ZERO, 0, None);
        let guard = Arc::new(Guard::new(&[], Vec::new()));
        let url = public_url.map(|url| Url::parse(url).unwrap());
        router(&gateway, PublicAddress { url, is_tls: false })
            .layer(from_fn_with_state(guard, guard::check_host))
    }

    async fn ask(routes: Router, method: &str, path: &str, headers: &[(&str, &str)]) -> Response {
        let request = http::Request::builder().method(method).uri(path);
        let request =
            headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        routes.oneshot(request.body(Body::empty()).unwrap()).await.unwrap()
    }

    async fn json_of(response: Response) -> Value {
        serde_json::from_slice(&response.into_body().collect().await.unwrap().to_bytes()).unwrap()
    }

    #[tokio::test]
    async fn the_documents_name_the_servers_url() {
        for (public_url, expected) in [
            (None, "http://localhost:8080"),
            (Some("https://mcp.example.com"), "https://mcp.example.com"),
            (Some("https://example.com/tools/"), "https://example.com/tools"),
        ] {
            let host = [("host", "localhost:8080")];
            let catalog = json_of(ask(routes(public_url), "GET", CATALOG, &host).await).await;
            assert_eq!(catalog["entries"][0]["url"], format!("{expected}/mcp/server-card"));
            let card = json_of(ask(routes(public_url), "GET", CARD, &host).await).await;
            assert_eq!(card["remotes"][0]["url"], format!("{expected}/mcp"));
        }

        for (base, publisher) in
            [("https://mcp.example.com", "mcp.example.com"), ("http://[::1]:80", "localhost")]
        {
            let identifier = format!("urn:air:{publisher}:mcp:mcp-fleet");
            assert_eq!(catalog(base)["entries"][0]["identifier"], identifier);
        }
    }

    #[test]
    fn a_port_with_tls_is_named_as_such() {
        let headers = HeaderMap::from_iter([(header::HOST, HeaderValue::from_static("a:8443"))]);
        for (is_tls, expected) in [(true, "https://a:8443"), (false, "http://a:8443")] {
            let address = PublicAddress { url: None, is_tls };
            assert_eq!(address.base_url(&Uri::from_static("/mcp"), &headers), expected);
        }
    }

    #[test]
    fn the_card_matches_its_schema() {
        let card = card("http://localhost", VERSIONS);
        for (member, longest) in [("description", 100), ("title", 100), ("version", 255)] {
            assert!((1..=longest).contains(&card[member].as_str().unwrap().len()), "{member}");
        }
        assert_eq!(card["name"].as_str().unwrap().matches('/').count(), 1);
        let versions = card["remotes"][0]["supportedProtocolVersions"].as_array().unwrap();
        assert!(versions.contains(&json!("2026-07-28")) && versions.contains(&json!("2024-11-05")));
    }

    #[tokio::test]
    async fn pages_of_any_origin_may_read_the_documents_under_an_allowed_host() {
        for (path, kind) in [(CARD, CARD_TYPE), (CATALOG, CATALOG_TYPE)] {
            let headers = [("host", "localhost"), ("origin", "https://page.example")];
            let response = ask(routes(None), "GET", path, &headers).await;
            assert_eq!(response.status(), StatusCode::OK, "{path}");
            assert_eq!(response.headers()["content-type"], kind);
            assert_eq!(response.headers()["access-control-allow-origin"], "*");
            assert_eq!(response.headers()["cache-control"], "public, max-age=3600");

            let preflight = ask(routes(None), "OPTIONS", path, &headers).await;
            assert_eq!(preflight.status(), StatusCode::NO_CONTENT);
            assert_eq!(
                preflight.headers()["access-control-allow-headers"],
                "Content-Type, If-None-Match"
            );

            let foreign = ask(routes(None), "GET", path, &[("host", "evil.example")]).await;
            assert_eq!(foreign.status(), StatusCode::FORBIDDEN);
        }
    }

    #[tokio::test]
    async fn a_current_document_is_not_sent_again() {
        let get = async |tag: &str| {
            ask(routes(None), "GET", CARD, &[("host", "localhost"), ("if-none-match", tag)]).await
        };
        let first = get("\"x\"").await;
        assert_eq!(first.status(), StatusCode::OK);
        let tag = first.headers()["etag"].to_str().unwrap().to_owned();

        let again = get(&format!("\"x\", W/{tag}")).await;
        assert_eq!(
            (again.status(), &again.headers()["etag"]),
            (StatusCode::NOT_MODIFIED, &first.headers()["etag"])
        );
        assert_eq!(again.headers()["access-control-allow-origin"], "*");
    }
}
