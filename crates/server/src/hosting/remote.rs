//! Connections to remote servers, with policy at the place where the address is known.
//!
//! Checking a name beforehand is not enough: it may resolve to something else a moment later. So the resolver itself
//! drops the addresses that policy does not allow, redirects are not followed, and no proxy is used that would do the
//! resolving in our stead.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use rmcp::transport::{
    StreamableHttpClientTransport, streamable_http_client::StreamableHttpClientTransportConfig,
};

use super::launch::RemoteSpec;
use crate::policy::{Policy, Refusal};

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How many calls may run at once on one remote server.
const CONCURRENCY: usize = 256;

/// A client that connects to the host of `spec` where policy allows it, and nowhere else.
///
/// # Errors
///
/// Where the TLS set-up fails.
pub fn client(spec: &RemoteSpec, policy: Arc<Policy>) -> Result<reqwest::Client, reqwest::Error> {
    let port = spec.url.port_or_known_default().unwrap_or_default();
    reqwest::Client::builder()
        .dns_resolver(Arc::new(CheckedResolver { policy, port }))
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .build()
}

/// The transport to a remote server. Nothing is sent yet.
///
/// # Errors
///
/// As [`client`].
pub fn transport(
    spec: &RemoteSpec,
    policy: Arc<Policy>,
) -> Result<StreamableHttpClientTransport<reqwest::Client>, reqwest::Error> {
    let config = StreamableHttpClientTransportConfig::with_uri(spec.url.as_str())
        .custom_headers(spec.headers.iter().cloned().collect())
        .max_concurrent_requests(CONCURRENCY);
    Ok(StreamableHttpClientTransport::with_client(client(spec, policy)?, config))
}

/// Resolves names to what policy allows.
struct CheckedResolver {
    policy: Arc<Policy>,
    port: u16,
}

impl Resolve for CheckedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let (policy, port) = (self.policy.clone(), self.port);
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), port)).await?.collect();
            let allowed = allowed(&policy, name.as_str(), port, &found)?;
            Ok(Box::new(allowed.into_iter()) as Addrs)
        })
    }
}

/// Those addresses that policy allows; where it allows none, why.
fn allowed(policy: &Policy, host: &str, port: u16, found: &[SocketAddr]) -> Result<Vec<SocketAddr>, Refusal> {
    let mut refusal = None;
    let mut allowed = Vec::new();
    for address in found {
        match policy.check_address(host, port, address.ip()) {
            Ok(()) => allowed.push(*address),
            Err(error) => refusal = Some(error),
        }
    }
    match refusal {
        Some(refusal) if allowed.is_empty() => Err(refusal),
        _ => Ok(allowed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::remote::RemoteRule;

    #[test]
    fn only_allowed_addresses_are_used() {
        let rules = vec![RemoteRule::parse("*.example.com").unwrap()];
        let policy = Policy { remotes: rules, ..Policy::default() };
        let public: SocketAddr = "93.184.216.34:443".parse().unwrap();
        let loopback: SocketAddr = "127.0.0.1:443".parse().unwrap();
        assert_eq!(allowed(&policy, "a.example.com", 443, &[loopback, public]), Ok(vec![public]));
        assert!(matches!(allowed(&policy, "a.example.com", 443, &[loopback]), Err(Refusal::Address { .. })));
    }
}
