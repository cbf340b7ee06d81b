//! Outgoing HTTP connections, checked against policy at the point where the address is known.
//!
//! Checking a name beforehand is not enough, because it may resolve to another address a moment
//! later. The resolver itself therefore drops the addresses that policy does not allow. Redirects
//! are not followed, and no proxy is used, since a proxy would resolve names on its own.

use std::{io, net::SocketAddr, path::PathBuf, sync::Arc, time::Duration};

use fleet_ops::tls::{ClientTls, ClientTlsFiles, FollowedClient, PairFiles, TlsError};
use fleet_policy::{Policy, Refusal, current::CurrentPolicy, remote::RemoteRule};
use futures::future::BoxFuture;
use reqwest::dns::{Addrs, Name, Resolve, Resolving};
use url::{Host, Url};

/// The timeout for name resolution and, separately, for connecting.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// The most headers of an answer. Gateways add dozens.
const MAX_HEADERS: usize = 1000;

/// Returns a client for the host of `url`. It connects only to addresses that policy allows at the
/// time of the connection, and follows the TLS files that policy names for the host.
///
/// # Errors
///
/// Returns an error if TLS cannot be set up, or a file of it can't be used.
pub fn client(url: &Url, policy: CurrentPolicy) -> Result<FollowedClient, TlsError> {
    let (host, port) = (url.host_str().unwrap_or_default().to_owned(), port(url));
    let current = policy.clone();
    let files = move || tls_files(&current.get(), &host, port);

    let resolver = Arc::new(CheckedResolver { policy, port, lookup: Arc::new(SystemLookup) });
    FollowedClient::new(files, move |tls| build(resolver.clone(), tls))
}

/// Returns a client for the host of a URL that the operator has named, such as that of an
/// authorization server. It connects to the addresses that a rule for this host alone allows.
///
/// # Errors
///
/// As [`client`].
pub fn client_of_named(
    url: &Url,
    authorities: Option<PathBuf>,
) -> Result<FollowedClient, TlsError> {
    let host = match url.host() {
        Some(Host::Ipv6(address)) => address.to_string(),
        _ => url.host_str().unwrap_or_default().to_owned(),
    };
    let mut rule = RemoteRule::parse(&host).ok();
    if let Some(rule) = &mut rule {
        rule.tls.authorities = authorities;
    }
    // Without a rule, nothing is allowed.
    let policy = Policy { remotes: rule.into_iter().collect(), ..Policy::default() };
    client(url, CurrentPolicy::new(policy))
}

/// The files that the first rule about a host names.
fn tls_files(policy: &Policy, host: &str, port: u16) -> ClientTlsFiles {
    let Ok(rule) = policy.check_remote(host, port) else { return ClientTlsFiles::default() };
    let pair = rule.tls.pair.clone();
    ClientTlsFiles {
        authorities: rule.tls.authorities.clone(),
        pair: pair.map(|(certificate, key)| PairFiles { certificate, key }),
    }
}

/// Resolves the host of `url`. If the host is an address, that address is the result.
///
/// # Errors
///
/// Returns an error if the name cannot be resolved within ten seconds.
pub async fn lookup(url: &Url) -> io::Result<Vec<SocketAddr>> {
    let port = port(url);
    match url.host() {
        Some(Host::Domain(name)) => {
            let found = SystemLookup.resolve_name(name.to_owned(), port);
            tokio::time::timeout(CONNECT_TIMEOUT, found).await?
        }
        Some(Host::Ipv4(ip)) => Ok(vec![(ip, port).into()]),
        Some(Host::Ipv6(ip)) => Ok(vec![(ip, port).into()]),
        None => Ok(Vec::new()),
    }
}

/// Returns the addresses among `found` that policy allows for `url`.
///
/// New connections don't need this, since [`client`] decides when it connects. It serves existing
/// connections and dry runs.
///
/// # Errors
///
/// Returns the reason if policy allows none of the addresses.
pub fn allowed(
    url: &Url,
    policy: &Policy,
    found: &[SocketAddr],
) -> Result<Vec<SocketAddr>, Refusal> {
    allowed_of(policy, url.host_str().unwrap_or_default(), port(url), found)
}

fn port(url: &Url) -> u16 {
    url.port_or_known_default().unwrap_or_default()
}

/// Builds a client that resolves every name through `resolver`.
fn build(resolver: Arc<CheckedResolver>, tls: &ClientTls) -> reqwest::Result<reqwest::Client> {
    tls.apply(reqwest::Client::builder())
        .dns_resolver(resolver)
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .connect_timeout(CONNECT_TIMEOUT)
        .http1_max_headers(MAX_HEADERS)
        .tcp_nodelay(true)
        .build()
}

/// Resolves names. Tests replace the operating system's resolver.
trait Lookup: Send + Sync {
    fn resolve_name(
        &self,
        name: String,
        port: u16,
    ) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>>;
}

struct SystemLookup;

impl Lookup for SystemLookup {
    fn resolve_name(
        &self,
        name: String,
        port: u16,
    ) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> {
        Box::pin(async move { Ok(tokio::net::lookup_host((name, port)).await?.collect()) })
    }
}

/// Resolves names and drops the addresses that policy does not allow.
struct CheckedResolver {
    policy: CurrentPolicy,
    port: u16,
    lookup: Arc<dyn Lookup>,
}

impl Resolve for CheckedResolver {
    fn resolve(&self, name: Name) -> Resolving {
        let (policy, port) = (self.policy.clone(), self.port);
        let name = name.as_str().to_owned();
        let found = self.lookup.resolve_name(name.clone(), port);

        Box::pin(async move {
            let allowed = allowed_of(&policy.get(), &name, port, &found.await?)?;
            Ok(Box::new(allowed.into_iter()) as Addrs)
        })
    }
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
    use fleet_ops::errors::chain;

    use super::*;

    #[test]
    fn only_allowed_addresses_are_used() {
        let rules = vec![RemoteRule::parse("*.example.com").unwrap()];
        let policy = Policy { remotes: rules, ..Policy::default() };
        let public: SocketAddr = "93.184.216.34:443".parse().unwrap();
        let loopback: SocketAddr = "127.0.0.1:443".parse().unwrap();
        assert_eq!(
            allowed_of(&policy, "a.example.com", 443, &[loopback, public]),
            Ok(vec![public])
        );
        assert!(matches!(
            allowed_of(&policy, "a.example.com", 443, &[loopback]),
            Err(Refusal::Address { .. })
        ));
    }

    #[test]
    fn the_first_rule_about_a_host_names_its_files() {
        let policy = Policy::from_toml(
            "[[remote]]\nhost = 'a.example'\nca_file = '/ca'\n\
             client_certificate_file = '/c'\nclient_key_file = '/k'\n\
             [[remote]]\nhost = '*.example'",
        )
        .unwrap();
        let pair = PairFiles { certificate: "/c".into(), key: "/k".into() };
        let expected = ClientTlsFiles { authorities: Some("/ca".into()), pair: Some(pair) };
        assert_eq!(tls_files(&policy, "a.example", 443), expected);
        for other in ["b.example", "other"] {
            assert_eq!(tls_files(&policy, other, 443), ClientTlsFiles::default());
        }
    }

    /// Returns a different address each time, like a malicious name server.
    struct Changing(std::sync::Mutex<Vec<&'static str>>);

    impl Lookup for Changing {
        fn resolve_name(
            &self,
            _: String,
            port: u16,
        ) -> BoxFuture<'static, io::Result<Vec<SocketAddr>>> {
            let next = self.0.lock().unwrap().remove(0);
            Box::pin(async move { Ok(vec![SocketAddr::new(next.parse().unwrap(), port)]) })
        }
    }

    #[tokio::test]
    async fn a_named_host_may_be_on_this_machine() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let url: Url = format!("http://localhost:{port}/token").parse().unwrap();
        let client = client_of_named(&url, None).unwrap().current();
        let sent = tokio::spawn(client.get(url).send());
        listener.accept().await.unwrap();
        sent.abort();
    }

    #[tokio::test]
    async fn a_rebound_name_never_reaches_a_forbidden_address() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let policy = |host: &str| Policy {
            remotes: vec![RemoteRule::parse(host).unwrap()],
            ..Policy::default()
        };
        let current = CurrentPolicy::new(policy("rebind.example"));
        let addresses =
            ["127.0.0.1", "::1", "169.254.169.254", "::ffff:127.0.0.1", "0.0.0.0", "127.0.0.1"];
        let lookup = Arc::new(Changing(std::sync::Mutex::new(addresses.to_vec())));
        let resolver = CheckedResolver { policy: current.clone(), port, lookup: lookup.clone() };
        let client = build(Arc::new(resolver), &ClientTls::default()).unwrap();

        let url = format!("http://rebind.example:{port}/mcp");
        for _ in 0..5 {
            let error = chain(&client.get(&url).send().await.unwrap_err());
            assert!(error.contains("policy refuses to connect to `rebind.example`"), "{error}");
        }

        // A policy change applies without a new client.
        current.replace(policy("other.example"));
        let error = chain(&client.get(&url).send().await.unwrap_err());
        assert!(error.contains("no rule covers it"), "{error}");
        assert!(lookup.0.lock().unwrap().is_empty());
        // No connection was attempted.
        assert!(futures::FutureExt::now_or_never(listener.accept()).is_none());
    }
}
