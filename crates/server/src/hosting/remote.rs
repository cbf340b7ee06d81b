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

use url::Host;

use super::launch::RemoteSpec;
use crate::policy::{Policy, Refusal, current::CurrentPolicy};

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How many calls may run at once on one remote server.
const CONCURRENCY: usize = 256;

/// The transport to a remote server. Nothing is sent yet.
///
/// # Errors
///
/// Where the TLS set-up fails.
pub fn transport(
    spec: &RemoteSpec,
    policy: CurrentPolicy,
) -> Result<StreamableHttpClientTransport<reqwest::Client>, reqwest::Error> {
    let port = spec.url.port_or_known_default().unwrap_or_default();
    let client = reqwest::Client::builder()
        .dns_resolver(Arc::new(CheckedResolver { policy, port }))
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .build()?;
    let config = StreamableHttpClientTransportConfig::with_uri(spec.url.as_str())
        .custom_headers(spec.headers.iter().cloned().collect())
        .max_concurrent_requests(CONCURRENCY);
    Ok(StreamableHttpClientTransport::with_client(client, config))
}

/// Resolves names to what policy allows.
struct CheckedResolver {
    policy: CurrentPolicy,
    port: u16,
}

impl Resolve for CheckedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let (policy, port) = (self.policy.clone(), self.port);
        Box::pin(async move {
            let found: Vec<SocketAddr> = tokio::net::lookup_host((name.as_str(), port)).await?.collect();
            let allowed = allowed(&policy.get(), name.as_str(), port, &found)?;
            Ok(Box::new(allowed.into_iter()) as Addrs)
        })
    }
}

/// Why policy does not let a server be reached at any of its addresses, where that is so. Only the answer at the moment of
/// a connection counts for that; this one is for what is connected already, and for people who ask beforehand.
pub async fn refusal(spec: &RemoteSpec, policy: &Policy) -> Option<Refusal> {
    let (Some(Host::Domain(name)), Some(port)) = (spec.url.host(), spec.url.port_or_known_default()) else {
        // An address was checked as the host.
        return None;
    };
    let lookup = tokio::time::timeout(CONNECT_TIMEOUT, tokio::net::lookup_host((name, port))).await;
    // What can't be resolved can't be reached, which is not for policy to say.
    let found: Vec<SocketAddr> = lookup.ok()?.ok()?.collect();
    allowed(policy, name, port, &found).err()
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
