//! The layer that authenticates every request before a route is chosen.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
    time::Duration,
};

use axum::{
    Json,
    extract::{ConnectInfo, Request, State},
    http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Uri, header},
    middleware::Next,
    response::{IntoResponse as _, Response},
};
use fleet_access::{
    Action, Asker, AuditRecord, AuthRefusal, AuthStatus, ClientCertificate, Context, Origin,
    Presented, Principal, Resource,
};
use fleet_job::trace::TraceContext;
use fleet_ops::tls::PeerCertificate;
use serde_json::json;

use super::{AccessControl, RefusalNote, metadata, streams::StreamCredentials};
use crate::{
    http::{MAX_BODY, body::drain_body},
    metrics::{ACCEPTED_REQUESTS, REFUSED_REQUESTS},
};

/// The query parameter in which RFC 6750 once allowed tokens.
const TOKEN_PARAMETER: &str = "access_token";
/// Headers by which proxies say that they pass on a request.
const FORWARDED: [HeaderName; 5] = [
    header::FORWARDED,
    header::VIA,
    HeaderName::from_static("x-forwarded-for"),
    HeaderName::from_static("x-forwarded-host"),
    HeaderName::from_static("x-real-ip"),
];
/// What API keys begin with.
const KEY_PREFIX: &str = "mf_";

/// Authenticates a request. Who asks goes with it as an [`Asker`] among the extensions, beside a
/// [`RefusalNote`]; a request whose credentials are refused is answered here.
pub(crate) async fn authenticate(
    State(access): State<AccessControl>,
    mut request: Request,
    next: Next,
) -> Response {
    let facts = request_facts(&request);
    let (from_loopback, peer) = (facts.is_from_loopback(), facts.peer);
    let identified = identify(&access, facts).await;
    match identified {
        Ok(principal) => {
            let via = principal.via.as_str();
            metrics::counter!(ACCEPTED_REQUESTS.name, "via" => via).increment(1);
            let credentials = StreamCredentials::of(&access, &request, from_loopback, &principal);
            let (uri, headers) = (request.uri(), request.headers());
            let metadata_url = metadata::url_for(&access, uri, headers);

            let note = RefusalNote::default();
            request.extensions_mut().insert(note.clone());
            let origin = origin_of(peer, request.headers());
            request.extensions_mut().insert(access.asker(principal, origin));
            let response = note.apply(next.run(request).await, metadata_url.as_deref());
            match credentials {
                Some(credentials) => credentials.limit_stream(response),
                None => response,
            }
        }
        Err(refusal) => {
            let fault = refusal.fault().as_str();
            metrics::counter!(REFUSED_REQUESTS.name, "fault" => fault).increment(1);
            tracing::debug!(fault, path = request.uri().path(), "refused a request");
            access.log.record_refusal(|time| AuditRecord {
                peer: peer.map(|peer| peer.to_string()),
                ..AuditRecord::of_refusal(time, &refusal)
            });
            let (parts, body) = request.into_parts();
            // A client that waits for `100 Continue` sends no body once it is refused.
            if !parts.headers.contains_key(header::EXPECT) {
                drain_body(body.into_data_stream(), MAX_BODY).await;
            }
            refuse(&access, &refusal, &parts.uri, &parts.headers)
        }
    }
}

/// Serves metrics to callers that may read them.
pub(crate) async fn check_metrics(request: Request, next: Next) -> Response {
    let decision = request
        .extensions()
        .get::<Asker>()
        .map(|asker| asker.check(Action::ReadMetrics, &Resource::default(), &Context::default()));
    match decision {
        Some(Ok(_)) => next.run(request).await,
        decision => {
            let decision = decision.and_then(Result::err);
            let message =
                decision.and_then(|decision| decision.message(Action::ReadMetrics.as_str()));
            (StatusCode::FORBIDDEN, format!("{}\n", message.unwrap_or_default())).into_response()
        }
    }
}

/// What authentication needs to know of a request.
struct RequestFacts<'a> {
    uri: &'a Uri,
    headers: &'a HeaderMap,
    certificate: Option<ClientCertificate>,
    /// The address at the other end of the connection.
    peer: Option<IpAddr>,
}

impl RequestFacts<'_> {
    /// Whether a program on this machine sends the request for itself. A proxy on this machine
    /// passes on what others send.
    fn is_from_loopback(&self) -> bool {
        self.peer.is_some_and(|peer| peer.is_loopback())
            && !FORWARDED.iter().any(|name| self.headers.contains_key(name))
    }
}

fn request_facts(request: &Request) -> RequestFacts<'_> {
    let peer = request.extensions().get::<ConnectInfo<SocketAddr>>();
    let peer = peer.map(|peer| peer.0.ip().to_canonical());
    let certificate = request.extensions().get::<PeerCertificate>().map(present_certificate);
    RequestFacts { uri: request.uri(), headers: request.headers(), certificate, peer }
}

fn origin_of(peer: Option<IpAddr>, headers: &HeaderMap) -> Origin {
    let trace = TraceContext::find(|name| headers.get(name)?.to_str().ok());
    Origin { peer, job_id: None, trace_id: trace.trace_id().map(str::to_owned) }
}

/// What a connection's client certificate says now.
pub(super) fn present_certificate(peer: &PeerCertificate) -> ClientCertificate {
    ClientCertificate {
        uris: peer.uris().to_vec(),
        dns_names: peer.dns_names().to_vec(),
        is_withdrawn: !peer.is_accepted(),
    }
}

async fn identify(
    access: &AccessControl,
    facts: RequestFacts<'_>,
) -> Result<Arc<Principal>, AuthRefusal> {
    if has_credentials_in_query(facts.uri) {
        return Err(AuthRefusal::in_query());
    }

    let values = facts.headers.get_all(header::AUTHORIZATION);
    let authorization: Vec<&[u8]> = values.iter().map(HeaderValue::as_bytes).collect();
    let presented = Presented {
        authorization: &authorization,
        certificate: facts.certificate.as_ref(),
        from_loopback: facts.is_from_loopback(),
    };
    access.identify(&presented).await
}

/// Whether a URL carries a token or a key.
fn has_credentials_in_query(uri: &Uri) -> bool {
    let Some(query) = uri.query() else { return false };
    url::form_urlencoded::parse(query.as_bytes())
        .any(|(name, value)| name == TOKEN_PARAMETER || value.starts_with(KEY_PREFIX))
}

/// The answer to a request whose credentials are refused, in the form of problem details, with the
/// challenge that tells a client where to get better ones.
fn refuse(
    access: &AccessControl,
    refusal: &AuthRefusal,
    uri: &Uri,
    headers: &HeaderMap,
) -> Response {
    let state = access.current();
    let (status, name, title) = match refusal.status() {
        AuthStatus::BadRequest => (
            StatusCode::BAD_REQUEST,
            "malformed-credentials",
            "The credentials of the request can't be read",
        ),
        AuthStatus::Unauthorized => {
            (StatusCode::UNAUTHORIZED, "unauthenticated", "The request needs valid credentials")
        }
        AuthStatus::Unavailable { .. } => (
            StatusCode::SERVICE_UNAVAILABLE,
            "no-issuer-keys",
            "The credentials can't be checked now",
        ),
    };

    let problem = json!({
        "type": format!("urn:mcp-fleet:problem:{name}"),
        "title": title,
        "status": status.as_u16(),
        "detail": refusal.fault().explain(),
        "code": refusal.code().as_str(),
    });
    let mut response = (status, Json(problem)).into_response();

    let metadata_url = metadata::url_for(access, uri, headers);
    let challenge = refusal.challenge(metadata_url.as_deref(), &state.scopes);
    let challenge = challenge.and_then(|text| HeaderValue::try_from(text.to_string()).ok());

    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/problem+json"));
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.extend(challenge.map(|challenge| (header::WWW_AUTHENTICATE, challenge)));
    if let AuthStatus::Unavailable { retry_after } = refusal.status() {
        headers.insert(header::RETRY_AFTER, whole_seconds(retry_after).into());
    }
    response
}

/// A time in whole seconds, rounded up, so that nobody comes back too early.
pub(super) fn whole_seconds(time: Duration) -> u64 {
    time.as_millis().div_ceil(1000).try_into().unwrap_or(u64::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_in_a_query_are_noticed() {
        for (uri, is_noticed) in [
            ("/mcp?access_token=x", true),
            ("/jobs?limit=1&access_token=", true),
            ("/jobs?key=mf_ci_abc", true),
            ("/jobs?key=%6Df_ci_abc", true),
            ("/jobs?limit=1", false),
            ("/jobs?mf_=1", false),
            ("/access_token", false),
        ] {
            assert_eq!(has_credentials_in_query(&uri.parse().unwrap()), is_noticed, "{uri}");
        }
    }

    #[test]
    fn a_wait_is_never_rounded_down() {
        for (ms, seconds) in [(0, 1), (1, 1), (1000, 1), (1001, 2), (10_000, 10)] {
            assert_eq!(whole_seconds(Duration::from_millis(ms)), seconds);
        }
    }
}
