//! Streamable HTTP transports to remotes, over connections that [`fleet_egress`] checks against
//! policy.

mod events;
pub(crate) mod exchange;
mod messages;
pub(super) mod opening;
mod session;

use std::time::Duration;

use fleet_ops::tls::TlsError;
use fleet_policy::current::CurrentPolicy;
use rmcp::transport::{
    StreamableHttpClientTransport, streamable_http_client::StreamableHttpClientTransportConfig,
};
use tokio_util::sync::CancellationToken;

use self::{exchange::RemoteLink, session::SessionClient};
use super::{changes::News, launch::RemoteSpec};

/// How long to wait for an answer to `server/discover` before trying `initialize`; at most a third
/// of the limit for the whole start. rmcp's own limit is 10 s, after which it would fail instead.
const DISCOVER_PATIENCE: Duration = Duration::from_millis(9500);
/// The most concurrent calls of one remote.
const CONCURRENCY: usize = 256;

/// A transport to a remote, and what is known about its connection.
pub(super) struct RemoteTransport {
    /// The transport for rmcp.
    pub(super) transport: StreamableHttpClientTransport<SessionClient>,
    /// The client below the transport. The connection lasts until both are dropped.
    pub(super) client: SessionClient,
    /// Cancelled when the connection has become useless.
    pub(super) over: CancellationToken,
}

/// Creates the transport to the remote `server`, whose start may take as long as `limit`. Sends nothing yet.
/// New sessions are noted in `news`.
///
/// # Errors
///
/// As [`fleet_egress::client`].
pub(super) fn transport(
    server: &str,
    spec: &RemoteSpec,
    policy: CurrentPolicy,
    limit: Duration,
    news: News,
) -> Result<RemoteTransport, TlsError> {
    let headers = spec.headers.of_server(server, policy.clone());
    let config = StreamableHttpClientTransportConfig::with_uri(spec.url.as_str())
        .custom_headers(headers.present().iter().collect())
        .max_concurrent_requests(CONCURRENCY);
    let client = fleet_egress::client(&spec.url, policy)?;
    let link = RemoteLink::new(client, spec.url.clone(), headers, spec.secrets.clone());
    let (client, over) = SessionClient::new(link, DISCOVER_PATIENCE.min(limit / 3), news);
    let transport = StreamableHttpClientTransport::with_client(client.clone(), config);
    Ok(RemoteTransport { transport, client, over })
}
