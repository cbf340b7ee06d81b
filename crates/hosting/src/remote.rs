//! Transports to remote servers, over connections that [`fleet_egress`] checks against policy.

mod events;
pub(crate) mod exchange;
pub(super) mod messages;
pub(super) mod opening;
mod session;

use std::time::Duration;

use fleet_policy::current::CurrentPolicy;
use rmcp::transport::{
    StreamableHttpClientTransport, streamable_http_client::StreamableHttpClientTransportConfig,
};
use tokio_util::sync::CancellationToken;

use self::{exchange::RemoteLink, session::SessionClient};
use super::{changes::News, launch::RemoteSpec};

/// For how long an answer to `server/discover` is waited for before `initialize` is tried; a third
/// of the time for the whole start, if that is less. rmcp has a limit of 10 s of its own, after
/// which it would not take our word for it any more.
const DISCOVER_PATIENCE: Duration = Duration::from_millis(9500);
/// How many calls may run at once on one remote server.
const CONCURRENCY: usize = 256;

/// The transport to a remote server that may take as long as `limit` to start, and what is
/// cancelled when it is of no use any more. Nothing is sent yet. What a server offers in a new
/// session is news.
///
/// # Errors
///
/// As [`fleet_egress::client`].
pub(super) fn transport(
    spec: &RemoteSpec,
    policy: CurrentPolicy,
    limit: Duration,
    news: News,
) -> Result<(StreamableHttpClientTransport<SessionClient>, CancellationToken), reqwest::Error> {
    let config = StreamableHttpClientTransportConfig::with_uri(spec.url.as_str())
        .custom_headers(spec.headers.iter().cloned().collect())
        .max_concurrent_requests(CONCURRENCY);
    let client = fleet_egress::client(&spec.url, policy)?;
    let link = RemoteLink::new(client, spec.url.clone(), spec.secrets.clone());
    let (client, over) = SessionClient::new(link, DISCOVER_PATIENCE.min(limit / 3), news);
    Ok((StreamableHttpClientTransport::with_client(client, config), over))
}
