//! The protected resource metadata of RFC 9728: which issuers' tokens this server takes.
//!
//! Clients look below `/mcp` first, where RFC 9728 puts the metadata of `<url>/mcp`, and then at the
//! root; both places have the same document, and neither has one if no issuers are configured. The
//! address of a view is a resource of its own. Its metadata are public and don't tell whether there
//! is such a view.

use axum::{
    Json, Router,
    extract::{Request, State},
    http::{HeaderMap, HeaderValue, StatusCode, Uri, header},
    response::{IntoResponse as _, Response},
    routing::get,
};
use fleet_access::is_view_name;
use serde_json::{Value, json};

use super::{AccessControl, AccessState, PortSecurity};
use crate::http::{
    card::{PublicAddress, with_public_headers},
    views::view_in_path,
};

/// The path of the metadata of `<url>/mcp`.
pub(crate) const METADATA: &str = "/.well-known/oauth-protected-resource/mcp";
/// The paths of the metadata of views.
const VIEW_METADATA: &str = "/.well-known/oauth-protected-resource/mcp/{view}";
/// The path at which clients look next.
pub(crate) const ROOT_METADATA: &str = "/.well-known/oauth-protected-resource";

impl AccessControl {
    /// How clients reach this server.
    pub(crate) fn address(&self) -> PublicAddress {
        let source = &self.inner.source;
        PublicAddress { url: source.public_url.clone(), is_tls: source.port != PortSecurity::Plain }
    }
}

/// The identifier of this server as a protected resource: the URL that MCP clients connect to, and
/// by default the audience of tokens.
pub(super) fn resource_of(base: &str) -> String {
    format!("{}/mcp", base.trim_end_matches('/'))
}

/// The routes of the metadata.
pub(crate) fn router(access: AccessControl) -> Router {
    Router::new()
        .route(METADATA, get(serve_metadata).options(answer_preflight))
        .route(VIEW_METADATA, get(serve_metadata).options(answer_preflight))
        .route(ROOT_METADATA, get(serve_metadata).options(answer_preflight))
        .with_state(access)
}

/// The URL of the metadata, for challenges; `None` if there is none.
pub(super) fn url_for(access: &AccessControl, uri: &Uri, headers: &HeaderMap) -> Option<String> {
    let has_issuers = !access.current().authenticator.tokens().is_empty();
    has_issuers.then(|| {
        let base = access.address().base_url(uri, headers);
        match view_in_path(uri.path()).filter(|name| is_view_name(name)) {
            Some(view) => format!("{base}{METADATA}/{view}"),
            None => format!("{base}{METADATA}"),
        }
    })
}

async fn serve_metadata(State(access): State<AccessControl>, request: Request) -> Response {
    let state = access.current();
    if state.authenticator.tokens().is_empty() {
        return (StatusCode::NOT_FOUND, "this server takes no access tokens\n").into_response();
    }

    let base = access.address().base_url(request.uri(), request.headers());
    let resource = match request.uri().path().strip_prefix(METADATA) {
        Some(below) if !below.is_empty() => {
            let view = below.trim_start_matches('/');
            if !is_view_name(view) {
                return (StatusCode::NOT_FOUND, "this can't be the name of a view\n")
                    .into_response();
            }
            format!("{}/{view}", resource_of(&base))
        }
        _ => resource_of(&base),
    };
    let mut response = Json(document(&state, &resource)).into_response();
    response
        .headers_mut()
        .insert(header::CACHE_CONTROL, HeaderValue::from_static("public, max-age=300"));
    with_public_headers(response)
}

/// Answers a preflight request, which some clients in browsers send.
async fn answer_preflight() -> Response {
    with_public_headers(StatusCode::NO_CONTENT.into_response())
}

fn document(state: &AccessState, resource: &str) -> Value {
    let issuers: Vec<&str> = state.authenticator.tokens().issuers().collect();
    let mut document = json!({
        "resource": resource,
        "authorization_servers": issuers,
        "bearer_methods_supported": ["header"],
        "resource_name": "mcp-fleet",
    });
    if !state.scopes.is_empty() {
        document["scopes_supported"] = json!(state.scopes);
    }
    document
}
