//! The HTTP endpoints that every binary has, `/health`, `/ready` and `/metrics`, and the code that
//! serves them.
//!
//! Being alive and being ready are different. A process that is not alive is restarted; a process
//! that is not ready keeps running but receives no work. A worker that waits for its server is
//! alive and not ready.

use std::{
    borrow::Cow,
    io::{self, Write as _},
    net::SocketAddr,
    path::Path,
    sync::Arc,
};

use axum::{
    Json, Router,
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header},
    middleware::from_fn_with_state,
    response::IntoResponse,
    routing::get,
};
use parking_lot::RwLock;
use serde_json::json;
use tokio::net::TcpListener;

use crate::metrics::Metrics;

pub mod guard;
mod health_check;
mod serve;

use guard::Guard;
pub use health_check::{check_health, health_exit_code};
pub use serve::{Serving, serve, serve_with};

/// Headers that carry a caller's credentials.
pub const CREDENTIALS: [HeaderName; 4] = [
    header::AUTHORIZATION,
    header::PROXY_AUTHORIZATION,
    header::COOKIE,
    HeaderName::from_static("x-api-key"),
];

/// The scheme of bearer tokens, as most clients spell it.
const BEARER: &[u8] = b"Bearer ";

/// Returns the bytes that identify a credential: its value, with `Bearer` in `Authorization` spelled
/// in one way, since schemes are the same in any case.
pub fn credential_bytes<'a>(name: &HeaderName, value: &'a HeaderValue) -> Cow<'a, [u8]> {
    let bytes = value.as_bytes();
    match bytes.split_at_checked(BEARER.len()) {
        Some((scheme, token))
            if *name == header::AUTHORIZATION
                && scheme != BEARER
                && scheme.eq_ignore_ascii_case(BEARER) =>
        {
            Cow::Owned([BEARER, token].concat())
        }
        _ => Cow::Borrowed(bytes),
    }
}

/// Returns how many bytes the body of a message is declared to have.
pub fn content_length(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// The health of this process. Cheap to clone; all clones share one state.
#[derive(Debug, Clone, Default)]
pub struct Health(Arc<RwLock<State>>);

#[derive(Debug, Clone, Default)]
enum State {
    #[default]
    Starting,
    Ready,
    NotReady(String),
    Failed(String),
}

impl Health {
    /// Creates a state that is alive but not ready, with the reason "starting".
    pub fn new() -> Self {
        Self::default()
    }

    /// Reports that the process can work. Has no effect after [`Health::set_failed`].
    pub fn set_ready(&self) {
        self.set(State::Ready);
    }

    /// Reports that the process cannot work now but may be able to later. Has no effect after
    /// [`Health::set_failed`].
    pub fn set_not_ready(&self, reason: impl Into<String>) {
        self.set(State::NotReady(reason.into()));
    }

    /// Reports that the process will never work again and should be restarted: `/health` returns
    /// 503 from now on.
    pub fn set_failed(&self, reason: impl Into<String>) {
        self.set(State::Failed(reason.into()));
    }

    /// Returns whether the process can work.
    ///
    /// # Errors
    ///
    /// Returns the reason why it cannot.
    pub fn ready(&self) -> Result<(), String> {
        match self.get() {
            State::Ready => Ok(()),
            State::Starting => Err("starting".to_owned()),
            State::NotReady(reason) | State::Failed(reason) => Err(reason),
        }
    }

    /// Returns whether the process is alive.
    ///
    /// # Errors
    ///
    /// Returns the reason why the process should be restarted.
    pub fn alive(&self) -> Result<(), String> {
        match self.get() {
            State::Failed(reason) => Err(reason),
            State::Starting | State::Ready | State::NotReady(_) => Ok(()),
        }
    }

    fn get(&self) -> State {
        self.0.read().clone()
    }

    fn set(&self, state: State) {
        let mut current = self.0.write();
        if !matches!(*current, State::Failed(_)) {
            *current = state;
        }
    }
}

/// Serves `GET /health`, `GET /ready` and `GET /metrics`. Merge the router into a larger one or
/// serve it alone.
pub fn router(health: Health, metrics: Metrics, guard: Arc<Guard>) -> Router {
    probes(health).merge(scrape(metrics, guard))
}

/// Serves `GET /health` and `GET /ready`. They reveal little, so they are not restricted to certain
/// host names.
pub fn probes(health: Health) -> Router {
    let alive = health.clone();
    Router::new()
        .route("/health", get(async move || probe_response("alive", alive.alive())))
        .route("/ready", get(async move || probe_response("ready", health.ready())))
}

/// Serves `GET /metrics` for the hosts of `guard` and for requests addressed by IP. Metrics reveal
/// which tools are called and how often.
pub fn scrape(metrics: Metrics, guard: Arc<Guard>) -> Router {
    let render = async move || {
        ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], metrics.render())
    };

    Router::new()
        .route("/metrics", get(render))
        .layer(from_fn_with_state(guard, guard::check_scrape))
}

/// Builds the response of a probe.
fn probe_response(status: &str, state: Result<(), String>) -> impl IntoResponse + use<> {
    let (code, body) = match state {
        Ok(()) => (StatusCode::OK, json!({ "status": status })),
        Err(reason) => (
            StatusCode::SERVICE_UNAVAILABLE,
            json!({ "status": format!("not {status}"), "reason": reason }),
        ),
    };
    (code, [(header::CACHE_CONTROL, "no-store")], Json(body))
}

/// Binds a listener and returns its address, which has the actual port if `addr` has port 0.
///
/// # Errors
///
/// Returns an error that names the address if it cannot be bound.
pub async fn bind(addr: SocketAddr) -> io::Result<(TcpListener, SocketAddr)> {
    let named = |error: io::Error| {
        io::Error::new(error.kind(), format!("could not listen on {addr}: {error}"))
    };
    let listener = TcpListener::bind(addr).await.map_err(named)?;
    let bound = listener.local_addr().map_err(named)?;
    Ok((listener, bound))
}

/// Writes `addr` to the file at `path`, so that the program that started this process on port 0
/// learns the port. The file appears atomically.
///
/// # Errors
///
/// Returns an error if the file cannot be written.
pub fn write_ready_file(path: &Path, addr: SocketAddr) -> io::Result<()> {
    let name = path
        .file_name()
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "the path has no file name"))?;

    let mut temporary = name.to_owned();
    temporary.push(format!(".{}.tmp", std::process::id()));
    let temporary = path.with_file_name(temporary);

    let mut file = std::fs::File::create(&temporary)?;
    writeln!(file, "{addr}")?;
    file.sync_all()?;
    std::fs::rename(&temporary, path)
}

#[cfg(test)]
mod tests {
    use axum::{body::Body, http::Request};
    use tower::ServiceExt as _;

    use super::*;

    async fn check(health: &Health, path: &str, code: u16, text: &str) {
        let request =
            Request::get(path).header(header::HOST, "localhost").body(Body::empty()).unwrap();
        let guard = Arc::new(Guard::new(&[], Vec::new()));
        let router = router(health.clone(), crate::metrics::install(), guard);
        let response = router.oneshot(request).await.unwrap();

        assert_eq!(response.status().as_u16(), code, "{path}");
        let body = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
        let body = String::from_utf8(body.to_vec()).unwrap();
        assert!(body.contains(text), "{path}: {body}");
    }

    #[test]
    fn a_bearer_token_is_one_credential_in_any_spelling() {
        let check = |name: HeaderName, value: &str, expected: &str| {
            let value = HeaderValue::try_from(value).unwrap();
            assert_eq!(credential_bytes(&name, &value), expected.as_bytes());
        };
        for spelling in ["Bearer x", "bearer x", "BEARER x"] {
            check(header::AUTHORIZATION, spelling, "Bearer x");
        }
        check(header::AUTHORIZATION, "basic x", "basic x");
        check(header::AUTHORIZATION, "bear", "bear");
        check(header::COOKIE, "bearer x", "bearer x");
    }

    #[tokio::test]
    async fn the_endpoints_report_the_state() {
        let health = Health::new();
        check(&health, "/health", 200, r#"{"status":"alive"}"#).await;
        check(&health, "/ready", 503, r#""reason":"starting""#).await;

        health.set_ready();
        check(&health, "/ready", 200, r#"{"status":"ready"}"#).await;

        health.set_not_ready("broker unreachable");
        check(&health, "/ready", 503, r#""reason":"broker unreachable""#).await;
        check(&health, "/health", 200, "alive").await;

        health.set_failed("poll thread died");
        health.set_ready();
        check(&health, "/ready", 503, "poll thread died").await;
        check(&health, "/health", 503, "poll thread died").await;

        crate::invariant::declare(&["T2"]);
        check(&health, "/metrics", 200, "fleet_invariant_violations_total").await;
    }

    #[tokio::test]
    async fn a_foreign_host_name_may_read_health_but_not_metrics() {
        for (path, host, code) in [
            ("/metrics", "10.1.2.3:8081", 200),
            ("/metrics", "worker.internal:8081", 200),
            ("/metrics", "evil.example", 403),
            ("/health", "evil.example", 200),
        ] {
            let guard = Arc::new(Guard::new(&["worker.internal".to_owned()], Vec::new()));
            let router = router(Health::new(), crate::metrics::install(), guard);
            let request =
                Request::get(path).header(header::HOST, host).body(Body::empty()).unwrap();
            assert_eq!(router.oneshot(request).await.unwrap().status(), code, "{path} for {host}");
        }
    }

    #[tokio::test]
    async fn the_error_names_an_address_in_use() {
        let (taken, addr) = bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        assert_ne!(addr.port(), 0);
        let error = bind(addr).await.unwrap_err();
        assert!(error.to_string().contains(&addr.to_string()), "{error}");
        drop(taken);
    }

    #[test]
    fn the_ready_file_holds_the_address() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ready");
        write_ready_file(&path, SocketAddr::from(([127, 0, 0, 1], 4711))).unwrap();
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "127.0.0.1:4711\n");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        assert!(write_ready_file(Path::new("/"), SocketAddr::from(([127, 0, 0, 1], 1))).is_err());
    }
}
