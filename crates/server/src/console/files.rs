//! The static files, which are the same for everybody.

use axum::{
    extract::Path,
    http::{StatusCode, header},
    response::{IntoResponse as _, Response},
};
use fleet_console::assets;

/// How long browsers may keep a file. Its URL names its content, so it never changes.
const FOREVER: &str = "public, max-age=31536000, immutable";

/// `GET /console/static/{hash}/{name}`.
pub(super) async fn serve_file(Path((hash, name)): Path<(String, String)>) -> Response {
    match assets::find(&hash, &name) {
        Some(asset) => {
            let headers = [
                (header::CONTENT_TYPE, asset.media_type.to_owned()),
                (header::CACHE_CONTROL, FOREVER.to_owned()),
                (header::ETAG, format!("\"{}\"", asset.hash)),
            ];
            (headers, asset.bytes).into_response()
        }
        None => (StatusCode::NOT_FOUND, "there is no such file\n").into_response(),
    }
}
