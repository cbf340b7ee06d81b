//! The HTTP surface: `/mcp`, `/message`, and what every binary of the fleet has.

use std::sync::Arc;

use axum::{
    Router,
    middleware::{from_fn, from_fn_with_state},
    routing::post,
};
use fleet_ops::{http::Health, metrics::Metrics};
use rmcp::transport::{StreamableHttpServerConfig, StreamableHttpService};
use tokio_util::sync::CancellationToken;

use crate::{config::ServerConfig, gateway::Gateway};

mod body;
mod guard;
mod message;
mod sessions;

pub use guard::Origin;

/// The largest request body.
pub const MAX_BODY: usize = 4 * 1024 * 1024;

/// The whole router. Streams that are open when `stop` is cancelled are ended.
pub fn router(
    gateway: Gateway,
    config: &ServerConfig,
    health: Health,
    metrics: Metrics,
    stop: CancellationToken,
) -> Router {
    let guard = Arc::new(guard::Guard::new(config));
    let guarded = Router::new()
        .nest_service("/mcp", mcp_service(gateway.clone(), config, stop))
        .route("/message", post(message::handle).with_state(gateway))
        .layer(from_fn_with_state(body::BODY_TIME, body::read_body))
        .layer(from_fn_with_state(guard.clone(), guard::check))
        .layer(from_fn(guard::count));
    // Metrics say which tools are called how often. Health says nothing, and is asked by whatever name there is.
    let scrape = fleet_ops::http::scrape(metrics).layer(from_fn_with_state(guard, guard::check_scrape));
    guarded.merge(scrape).merge(fleet_ops::http::probes(health))
}

fn mcp_service(
    gateway: Gateway,
    config: &ServerConfig,
    stop: CancellationToken,
) -> StreamableHttpService<Gateway, sessions::Sessions> {
    // Host and Origin are checked by the guard, which stands before every route; rmcp checks them again.
    let mut settings = StreamableHttpServerConfig::default()
        .with_json_response(true)
        .with_legacy_session_mode(config.legacy_sessions)
        .with_max_request_body_bytes(MAX_BODY)
        .with_cancellation_token(stop)
        .with_allowed_origins(config.allowed_origins.iter().map(Origin::to_string))
        .enforce_origin_validation();
    settings = match guard::host_names(config) {
        Some(names) => settings.with_allowed_hosts(names),
        None => settings.disable_allowed_hosts(),
    };
    let factory = move || Ok::<_, std::io::Error>(gateway.clone());
    let sessions = sessions::Sessions::new(sessions::MAX_SESSIONS, config.policy.limits.longest_call());
    StreamableHttpService::new(factory, Arc::new(sessions), settings)
}
