//! Ends event streams whose credentials are no longer accepted.
//!
//! [`layer`](super::layer) authenticates a request before it is served. A stream can last for days
//! after that, so this module authenticates its credentials again every [`RECHECK`], and ends the
//! stream once they are refused. A client that has newer credentials opens another.
//!
//! A call that is running when its token expires was allowed to run, and a client can't hand in a
//! newer token for it. So the stream with a call's answer goes on then, and ends only if the
//! credentials are refused for another reason, such as a revoked key.

use std::{sync::Arc, time::Duration};

use axum::{
    body::Body,
    extract::Request,
    http::{HeaderName, HeaderValue, Method, header},
    response::Response,
};
use fleet_access::{AuthRefusal, AuthStatus, Fault, Presented, Principal, PrincipalId};
use fleet_ops::tls::PeerCertificate;
use futures::StreamExt as _;
use tokio::time::{Instant, MissedTickBehavior};

use super::{AccessControl, layer::present_certificate};

/// How often the credentials of a stream are authenticated again.
const RECHECK: Duration = Duration::from_secs(10);
const MCP_METHOD: HeaderName = HeaderName::from_static("mcp-method");
/// The one method whose answer is a stream without an end.
const LISTEN: &[u8] = b"subscriptions/listen";

/// The credentials of a request, to be authenticated again if its response is an event stream.
pub(super) struct StreamCredentials {
    access: AccessControl,
    authorization: Vec<HeaderValue>,
    certificate: Option<PeerCertificate>,
    from_loopback: bool,
    owner: PrincipalId,
    is_answer: bool,
}

impl StreamCredentials {
    /// The credentials that a request was accepted with; `None` if it needed none.
    pub(super) fn of(
        access: &AccessControl,
        request: &Request,
        from_loopback: bool,
        principal: &Arc<Principal>,
    ) -> Option<Self> {
        if !principal.is_verified() {
            return None;
        }

        let headers = request.headers();
        let listens = headers.get(MCP_METHOD).is_some_and(|method| method == LISTEN);
        Some(Self {
            access: access.clone(),
            authorization: headers.get_all(header::AUTHORIZATION).iter().cloned().collect(),
            certificate: request.extensions().get().cloned(),
            from_loopback,
            owner: principal.id(),
            is_answer: request.method() == Method::POST && !listens,
        })
    }

    /// Makes an event stream end once its credentials are refused. Other responses stay as they
    /// are.
    pub(super) fn limit_stream(self, response: Response) -> Response {
        let content_type = response.headers().get(header::CONTENT_TYPE);
        let is_stream =
            content_type.is_some_and(|kind| kind.as_bytes().starts_with(b"text/event-stream"));
        if !is_stream {
            return response;
        }

        let (parts, body) = response.into_parts();
        let events = body.into_data_stream().take_until(self.wait_for_refusal());
        Response::from_parts(parts, Body::from_stream(events))
    }

    async fn wait_for_refusal(self) {
        let mut checks = tokio::time::interval_at(Instant::now() + RECHECK, RECHECK);
        checks.set_missed_tick_behavior(MissedTickBehavior::Delay);

        loop {
            checks.tick().await;
            match self.identify().await {
                Ok(principal) if principal.id() == self.owner => {}
                Ok(_) => {
                    tracing::info!(
                        "ended an event stream, whose credentials now have another subject"
                    );
                    return;
                }
                Err(refusal) if ends_stream(refusal.status(), refusal.fault(), self.is_answer) => {
                    let fault = refusal.fault().as_str();
                    tracing::info!(fault, "ended an event stream with its credentials");
                    return;
                }
                Err(_) => {}
            }
        }
    }

    async fn identify(&self) -> Result<Arc<Principal>, AuthRefusal> {
        let authorization: Vec<&[u8]> =
            self.authorization.iter().map(HeaderValue::as_bytes).collect();
        let certificate = self.certificate.as_ref().map(present_certificate);
        let presented = Presented {
            authorization: &authorization,
            certificate: certificate.as_ref(),
            from_loopback: self.from_loopback,
        };
        self.access.identify(&presented).await
    }
}

/// Whether a stream ends with this refusal of its credentials. A 503 is no verdict on them.
fn ends_stream(status: AuthStatus, fault: Fault, is_answer: bool) -> bool {
    match status {
        AuthStatus::Unavailable { .. } => false,
        AuthStatus::BadRequest | AuthStatus::Unauthorized => !is_answer || !spares_calls(fault),
    }
}

/// Whether a call that was allowed to begin may end in spite of this fault. Certificates are
/// withdrawn by rotation, too, which must not cut calls off.
fn spares_calls(fault: Fault) -> bool {
    matches!(fault, Fault::Expired | Fault::ExpiredKey | Fault::WithdrawnCertificate)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_ends_with_its_credentials_but_a_running_call_not_with_their_expiry() {
        let unavailable = AuthStatus::Unavailable { retry_after: RECHECK };
        for (status, fault, ends, ends_answer) in [
            (AuthStatus::Unauthorized, Fault::RevokedKey, true, true),
            (AuthStatus::Unauthorized, Fault::UnknownKey, true, true),
            (AuthStatus::Unauthorized, Fault::WithdrawnCertificate, true, false),
            (AuthStatus::Unauthorized, Fault::UnknownIssuer, true, true),
            (AuthStatus::Unauthorized, Fault::UnknownSigningKey, true, true),
            (AuthStatus::Unauthorized, Fault::Expired, true, false),
            (AuthStatus::Unauthorized, Fault::ExpiredKey, true, false),
            (AuthStatus::BadRequest, Fault::TooLong, true, true),
            (unavailable, Fault::NoIssuerKeys, false, false),
        ] {
            assert_eq!(ends_stream(status, fault, false), ends, "{fault:?}");
            assert_eq!(ends_stream(status, fault, true), ends_answer, "{fault:?}");
        }
    }
}
