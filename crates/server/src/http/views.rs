//! The addresses of views: `/mcp/<view>` is `/mcp` for somebody who sees what the view has.
//!
//! This layer only names the view to everything behind it. Whoever may not use a view is told what
//! everybody is told about a view that does not exist.

use axum::{
    extract::Request,
    http::{StatusCode, header},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use fleet_access::Asker;

/// The address of the endpoint.
const ENDPOINT: &str = "/mcp";

/// Serves a request for the address of a view in the view.
pub(super) async fn enter_view(mut request: Request, next: Next) -> Response {
    let Some(name) = view_in_path(request.uri().path()) else {
        return next.run(request).await;
    };

    let asker = request.extensions().get::<Asker>();
    let Some(entered) = asker.and_then(|asker| asker.enter_view(name)) else {
        let kind = [(header::CONTENT_TYPE, "text/plain")];
        let message = "there is no such view, or this caller may not use it\n";
        return (StatusCode::NOT_FOUND, kind, message).into_response();
    };
    request.extensions_mut().insert(entered);
    next.run(request).await
}

/// What stands below the address of the endpoint, which is the name of a view if there is one.
pub(crate) fn view_in_path(path: &str) -> Option<&str> {
    let below = path.strip_prefix(ENDPOINT)?.strip_prefix('/')?;
    (!below.is_empty()).then_some(below)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn views_are_below_the_endpoint() {
        for (path, expected) in [
            ("/mcp", None),
            ("/mcp/", None),
            ("/mcp/support", Some("support")),
            ("/mcp/support/", Some("support/")),
            ("/mcp/support/x", Some("support/x")),
            ("/mcp//support", Some("/support")),
            ("/mcpx/support", None),
            ("/message", None),
        ] {
            assert_eq!(view_in_path(path), expected, "{path}");
        }
    }
}
