//! Connections to remote servers, with policy at the place where the address is known.
//!
//! Checking a name beforehand is not enough: it may resolve to something else a moment later. So the resolver itself
//! drops the addresses that policy does not allow, redirects are not followed, and no proxy is used that would do the
//! resolving in our stead.

mod events;
pub(crate) mod exchange;
pub(super) mod messages;
pub(super) mod opening;
mod session;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use futures::future::BoxFuture;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use rmcp::transport::{
    StreamableHttpClientTransport, streamable_http_client::StreamableHttpClientTransportConfig,
};
use tokio_util::sync::CancellationToken;
use url::Host;

use self::{exchange::Line, session::SessionClient};
use super::{changes::News, launch::RemoteSpec};
use crate::policy::{Policy, Refusal, current::CurrentPolicy};

/// How long a connection may take to be made.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// For how long an answer to `server/discover` is waited for before `initialize` is tried; a third of the time for the whole
/// start, if that is less. rmcp has a limit of 10 s of its own, after which it would not take our word for it any more.
const DISCOVER_PATIENCE: Duration = Duration::from_millis(9500);
/// How many calls may run at once on one remote server.
const CONCURRENCY: usize = 256;

/// A client that connects to the host of `spec` where policy allows it, and nowhere else.
///
/// # Errors
///
/// Where the TLS set-up fails.
pub fn client(spec: &RemoteSpec, policy: CurrentPolicy) -> Result<reqwest::Client, reqwest::Error> {
    let port = spec.url.port_or_known_default().unwrap_or_default();
    checked(CheckedResolver { policy, port, lookup: Arc::new(SystemLookup) })
}

/// The transport to a remote server that may take as long as `limit` to start, and what is cancelled when it is of no use
/// any more. Nothing is sent yet. What a server offers in a new session is news.
///
/// # Errors
///
/// As [`client`].
pub(super) fn transport(
    spec: &RemoteSpec,
    policy: CurrentPolicy,
    limit: Duration,
    news: News,
) -> Result<(StreamableHttpClientTransport<SessionClient>, CancellationToken), reqwest::Error> {
    let config = StreamableHttpClientTransportConfig::with_uri(spec.url.as_str())
        .custom_headers(spec.headers.iter().cloned().collect())
        .max_concurrent_requests(CONCURRENCY);
    let line = Line::new(client(spec, policy)?, spec.url.clone());
    let (client, over) = SessionClient::new(line, DISCOVER_PATIENCE.min(limit / 3), news);
    Ok((StreamableHttpClientTransport::with_client(client, config), over))
}

/// An HTTP client that goes where the resolver says and nowhere else.
fn checked(resolver: CheckedResolver) -> Result<reqwest::Client, reqwest::Error> {
    reqwest::Client::builder()
        .dns_resolver(Arc::new(resolver))
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .connect_timeout(CONNECT_TIMEOUT)
        .tcp_nodelay(true)
        .build()
}

/// Where names are looked up: in the operating system, or in a test's own list.
trait Lookup: Send + Sync {
    fn lookup(&self, name: String, port: u16) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>>;
}

struct SystemLookup;

impl Lookup for SystemLookup {
    fn lookup(&self, name: String, port: u16) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> {
        Box::pin(async move { Ok(tokio::net::lookup_host((name, port)).await?.collect()) })
    }
}

/// Resolves names to what policy allows.
struct CheckedResolver {
    policy: CurrentPolicy,
    port: u16,
    lookup: Arc<dyn Lookup>,
}

impl Resolve for CheckedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let (policy, port) = (self.policy.clone(), self.port);
        let name = name.as_str().to_owned();
        let found = self.lookup.lookup(name.clone(), port);
        Box::pin(async move {
            let allowed = allowed_of(&policy.get(), &name, port, &found.await?)?;
            Ok(Box::new(allowed.into_iter()) as Addrs)
        })
    }
}

/// The addresses of a server as they are now; where its URL has an address, that one.
///
/// # Errors
///
/// Where its name can't be resolved.
pub async fn lookup(spec: &RemoteSpec) -> io::Result<Vec<SocketAddr>> {
    let port = spec.url.port_or_known_default().unwrap_or_default();
    match spec.url.host() {
        Some(Host::Domain(name)) => {
            let found = SystemLookup.lookup(name.to_owned(), port);
            tokio::time::timeout(CONNECT_TIMEOUT, found).await?
        }
        Some(Host::Ipv4(ip)) => Ok(vec![(ip, port).into()]),
        Some(Host::Ipv6(ip)) => Ok(vec![(ip, port).into()]),
        None => Ok(Vec::new()),
    }
}

/// Those addresses of a server that policy allows. Only the answer at the moment of a connection counts for that; this is
/// for what is connected already, and for people who ask beforehand.
///
/// # Errors
///
/// Where it allows none, why.
pub fn allowed(spec: &RemoteSpec, policy: &Policy, found: &[SocketAddr]) -> Result<Vec<SocketAddr>, Refusal> {
    let port = spec.url.port_or_known_default().unwrap_or_default();
    allowed_of(policy, spec.url.host_str().unwrap_or_default(), port, found)
}

fn allowed_of(
    policy: &Policy,
    host: &str,
    port: u16,
    found: &[SocketAddr],
) -> Result<Vec<SocketAddr>, Refusal> {
    let mut refusal = None;
    let mut allowed = Vec::new();
    for address in found {
        match policy.check_address(host, port, address.ip()) {
            Ok(_) => allowed.push(*address),
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
        assert_eq!(allowed_of(&policy, "a.example.com", 443, &[loopback, public]), Ok(vec![public]));
        assert!(matches!(
            allowed_of(&policy, "a.example.com", 443, &[loopback]),
            Err(Refusal::Address { .. })
        ));
    }

    /// Answers differently each time, as a name does whose owner means harm.
    struct Changing(std::sync::Mutex<Vec<&'static str>>);

    impl Lookup for Changing {
        fn lookup(&self, _: String, port: u16) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> {
            let next = self.0.lock().unwrap().remove(0);
            Box::pin(async move { Ok(vec![SocketAddr::new(next.parse().unwrap(), port)]) })
        }
    }

    #[tokio::test]
    async fn a_name_that_turns_into_a_forbidden_address_is_not_connected_to() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let policy =
            |host: &str| Policy { remotes: vec![RemoteRule::parse(host).unwrap()], ..Policy::default() };
        let current = CurrentPolicy::new(policy("rebind.example"));
        let addresses = ["127.0.0.1", "::1", "169.254.169.254", "::ffff:127.0.0.1", "0.0.0.0", "127.0.0.1"];
        let lookup = Arc::new(Changing(std::sync::Mutex::new(addresses.to_vec())));
        let client =
            checked(CheckedResolver { policy: current.clone(), port, lookup: lookup.clone() }).unwrap();
        let url = format!("http://rebind.example:{port}/mcp");
        for _ in 0..5 {
            let error = crate::error::chain(&client.get(&url).send().await.unwrap_err());
            assert!(error.contains("policy refuses to connect to `rebind.example`"), "{error}");
        }
        // The policy of the moment counts, without another client.
        current.replace(policy("other.example"));
        let error = crate::error::chain(&client.get(&url).send().await.unwrap_err());
        assert!(error.contains("no rule covers it"), "{error}");
        assert!(lookup.0.lock().unwrap().is_empty());
        // Nobody has been here.
        assert!(futures::FutureExt::now_or_never(listener.accept()).is_none());
    }
}
