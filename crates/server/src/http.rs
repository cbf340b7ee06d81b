//! The HTTP surface: `/mcp` and the views below it, `/sse` and `/message`, `/jobs` and `/events`, the server card and the
//! AI catalog, and the health and metrics endpoints that all binaries of the fleet have.

use std::sync::Arc;

use axum::{
    Router,
    extract::Request,
    http::{Method, StatusCode},
    middleware::{Next, from_fn, from_fn_with_state},
    response::Response,
    routing::{get, post},
};
use fleet_hosting::registry::record;
use fleet_job::topics::DEFAULT_REGISTRY_TOPIC;
use fleet_jobs::{
    Jobs,
    rest::{self, RegistryTopic},
};
use fleet_ops::{
    http::{
        Health,
        guard::{self, Guard},
    },
    metrics::Metrics,
};
use rmcp::transport::{StreamableHttpServerConfig, StreamableHttpService};
use tokio_util::sync::CancellationToken;

use crate::{
    access::{AccessControl, layer, metadata},
    config::ServerConfig,
    console::{self, Console},
    error::ServerError,
    gateway::Gateway,
};

pub(crate) mod body;
pub(crate) mod card;
mod message;
mod mirrored;
mod observe;
mod odd_content;
mod sessionless;
mod sessions;
mod sse;
mod task_name;
pub(crate) mod task_streams;
pub(crate) mod views;
#[cfg(test)]
mod watched_tasks_tests;

/// MCP over Streamable HTTP, with or without sessions.
type McpService = StreamableHttpService<Gateway, sessions::Sessions>;

/// The largest request body, in bytes.
pub const MAX_BODY: usize = 4 * 1024 * 1024;

/// Builds the server's router. Cancelling `stop` ends open streams.
///
/// # Errors
///
/// Returns an error if the console can't start.
pub fn router(
    gateway: Gateway,
    config: &ServerConfig,
    access: AccessControl,
    jobs: Option<Jobs>,
    health: Health,
    metrics: Metrics,
    stop: CancellationToken,
) -> Result<Router, ServerError> {
    // What a client reads before it has credentials.
    let public = card::router(&gateway, access.address()).merge(metadata::router(access.clone()));
    let guard = Arc::new(Guard::new(&config.allowed_hosts, config.allowed_origins.clone()));
    let streams = sse::Streams::new(gateway.clone(), stop.clone());
    let posted = message::Receiver { gateway: gateway.clone(), streams: streams.clone() };
    let watched = task_streams::TaskStreams::new(gateway.clone());
    let more = crate::rest::operations(&gateway);

    let stateless = mcp_service(gateway.clone(), config, false, stop.clone());
    let mcp = match config.legacy_sessions {
        true => Router::new()
            .nest_service("/mcp", mcp_service(gateway, config, true, stop.clone()))
            .layer(from_fn_with_state(stateless, sessionless::serve_without_session)),
        false => Router::new().nest_service("/mcp", stateless),
    };

    let mcp = mcp.layer(from_fn(acknowledge_deletion)).layer(from_fn(task_name::fill_in_name));
    let mcp = mcp.layer(from_fn_with_state(watched, task_streams::watch_tasks));
    let mcp = mcp.layer(from_fn(sessions::serve_for_asker)).layer(from_fn(views::enter_view));

    let served = mcp
        .route("/sse", get(sse::open_stream).with_state(streams))
        .route("/message", post(message::handle_message).with_state(posted))
        .layer(from_fn(odd_content::restore_items))
        .layer(from_fn(mirrored::check_headers))
        .merge(rest::router(jobs, &registry_topic(config), more, stop))
        .layer(from_fn_with_state(body::BODY_TIME, body::read_body));
    let console = match &config.console {
        Some(console) => Some(Console::new(console, served.clone(), access.clone())?),
        None => None,
    };

    // Nothing but the guard, which reads no credentials, comes before authentication.
    let mut guarded = served.layer(from_fn_with_state(access.clone(), layer::authenticate));
    if let Some(console) = console {
        guarded = guarded.merge(console.router()).layer(from_fn(console::redirect_browsers));
    }
    let guarded = guarded
        .layer(from_fn_with_state(guard.clone(), guard::check))
        .merge(public.layer(from_fn_with_state(guard.clone(), guard::check_host)))
        .layer(from_fn(observe::mark_credentials))
        .layer(from_fn(rest::translate_errors))
        .layer(from_fn(observe::measure_request));

    // Metrics reveal which tools are called how often, so the guard checks requests for them.
    // Health probes reveal nothing and may come under any host name.
    let scrape = fleet_ops::http::scrape(metrics, guard)
        .layer(from_fn(layer::check_metrics))
        .layer(from_fn_with_state(access, layer::authenticate));
    Ok(guarded.merge(scrape).merge(fleet_ops::http::probes(health)))
}

/// Answers the deletion of a session with 204 instead of rmcp's 202, because the official Python
/// client logs a warning for any other status than 200 and 204.
async fn acknowledge_deletion(request: Request, next: Next) -> Response {
    let is_deletion = request.method() == Method::DELETE;
    let mut response = next.run(request).await;
    if is_deletion && response.status() == StatusCode::ACCEPTED {
        *response.status_mut() = StatusCode::NO_CONTENT;
    }
    response
}

fn mcp_service(
    gateway: Gateway,
    config: &ServerConfig,
    legacy_sessions: bool,
    stop: CancellationToken,
) -> McpService {
    // The guard checks Host and Origin in front of every route. rmcp checks only the Host again,
    // because it doesn't know that pages of this server may send requests.
    let longest_call = config.policy.limits.longest_call();
    let sessions = sessions::Sessions::new(
        gateway.clone(),
        sessions::MAX_SESSIONS,
        longest_call,
        stop.clone(),
    );

    let mut settings = StreamableHttpServerConfig::default()
        .with_json_response(true)
        .with_legacy_session_mode(legacy_sessions)
        .with_max_request_body_bytes(MAX_BODY)
        .with_cancellation_token(stop);
    settings.session_store = Some(Arc::new(sessions.clone()));
    settings = match guard::host_names(&config.allowed_hosts) {
        Some(names) => settings.with_allowed_hosts(names),
        None => settings.disable_allowed_hosts(),
    };

    let factory =
        move || Ok::<_, std::io::Error>(gateway.for_session_of(sessions::current_asker()));
    StreamableHttpService::new(factory, Arc::new(sessions), settings)
}

/// The configured registry topic, for the documents of the REST interface.
fn registry_topic(config: &ServerConfig) -> RegistryTopic {
    let name =
        config.registry.as_ref().map_or(DEFAULT_REGISTRY_TOPIC, |registry| registry.topic.as_str());
    RegistryTopic { name: name.to_owned(), schema: record::schema() }
}

#[cfg(test)]
mod tests {
    use std::{path::Path, time::Duration};

    use fleet_hosting::Fleet;
    use fleet_job::topics::Topics;
    use fleet_policy::{Policy, current::CurrentPolicy};

    use super::*;

    #[test]
    fn the_documents_match_the_code() {
        let directory = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../schemas"));
        let registry = registry_topic(&ServerConfig::default());
        let fleet = Fleet::new(CurrentPolicy::new(Policy::default()));
        let gateway = Gateway::new(Vec::new(), fleet, Duration::ZERO, 0, None);
        let more = crate::rest::operations(&gateway);
        for (name, expected) in rest::documents(&Topics::default(), &registry, &more) {
            let path = directory.join(name);
            if std::env::var_os("UPDATE_SCHEMAS").is_some() {
                std::fs::write(&path, &expected).unwrap();
            }
            let found = std::fs::read_to_string(&path).unwrap_or_default();
            assert!(
                found == expected,
                "schemas/{name} differs from the code: \
                 run UPDATE_SCHEMAS=1 cargo test -p mcp-server --lib documents"
            );
        }
    }
}
