//! Which remote servers a message may make us connect to.
//!
//! Checking the name is not enough: `evil.example` may resolve to 127.0.0.1 or to a cloud's
//! metadata service. Addresses are therefore checked too, and checked again where the connection is
//! made (see `hosting::remote`).

use std::{
    collections::BTreeSet,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    path::PathBuf,
};

use crate::oauth::RemoteOauth;

/// One allowed remote host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteRule {
    host: HostPattern,
    port: Option<u16>,
    line: Option<usize>,
    /// Variables of the server's own environment that `${VAR}` may refer to.
    pub expand: BTreeSet<String>,
    /// Secrets that `${secret:name}` may refer to.
    pub secrets: BTreeSet<String>,
    /// The files of TLS connections to the host.
    pub tls: RemoteTls,
    /// The client that gets access tokens for requests to the host.
    pub oauth: Option<RemoteOauth>,
}

/// The files of TLS connections to a remote. Only the operator names them, in the policy file.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RemoteTls {
    /// The authorities of the remote's certificate, in place of the system's.
    pub authorities: Option<PathBuf>,
    /// Our client certificate, and its private key.
    pub pair: Option<(PathBuf, PathBuf)>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum HostPattern {
    Ip(IpAddr),
    Name(String),
    /// `*.example.com`: all names below the domain, but not the domain itself.
    Below(String),
}

/// The text is not a remote rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a remote rule; expected HOST, HOST:PORT, *.DOMAIN or [IPV6]:PORT")]
pub struct RemoteRuleError(String);

/// The kind of network an address belongs to, from harmless to harmful.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum AddressClass {
    /// Reachable from anywhere.
    Public,
    /// A private network (RFC 1918, unique local, carrier-grade NAT).
    Private,
    /// This machine.
    Loopback,
    /// Link-local, multicast, unspecified and reserved addresses, and the clouds' metadata services
    /// wherever they are.
    Special,
}

impl RemoteRule {
    /// Parses `host`, `host:port`, `*.domain`, `[v6]:port` or an address.
    ///
    /// # Errors
    ///
    /// Returns an error if the text is none of these.
    pub fn parse(text: &str) -> Result<Self, RemoteRuleError> {
        let error = || RemoteRuleError(text.to_owned());
        let text = text.trim();

        if let Ok(ip) = text.parse::<IpAddr>() {
            return Ok(Self::of_host(HostPattern::Ip(ip), None));
        }

        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) => (host, Some(port.parse().map_err(|_| error())?)),
            None => (text, None),
        };

        Ok(Self::of_host(HostPattern::parse(host).ok_or_else(error)?, port))
    }

    fn of_host(host: HostPattern, port: Option<u16>) -> Self {
        Self {
            host,
            port,
            line: None,
            expand: BTreeSet::new(),
            secrets: BTreeSet::new(),
            tls: RemoteTls::default(),
            oauth: None,
        }
    }

    /// Restricts the rule to one port.
    #[must_use]
    pub fn with_port(mut self, port: Option<u16>) -> Self {
        self.port = port.or(self.port);
        self
    }

    /// Lets configurations that this rule covers refer to these variables.
    #[must_use]
    pub fn expanding(self, expand: BTreeSet<String>) -> Self {
        Self { expand, ..self }
    }

    /// Lets configurations that this rule covers refer to these secrets.
    #[must_use]
    pub fn with_secrets(self, secrets: BTreeSet<String>) -> Self {
        Self { secrets, ..self }
    }

    /// Gives connections to the host these files.
    #[must_use]
    pub(super) fn with_tls(self, tls: RemoteTls) -> Self {
        Self { tls, ..self }
    }

    /// Lets this client get access tokens for requests to the host.
    #[must_use]
    pub(super) fn with_oauth(self, oauth: Option<RemoteOauth>) -> Self {
        Self { oauth, ..self }
    }

    /// Records the rule's line in the policy file.
    #[must_use]
    pub(super) fn at_line(self, line: usize) -> Self {
        Self { line: Some(line), ..self }
    }

    /// Returns the rule's line in the policy file; `None` if a flag defined it.
    pub fn line(&self) -> Option<usize> {
        self.line
    }

    /// Returns whether the rule covers one host at one port only.
    pub fn is_of_one_origin(&self) -> bool {
        self.port.is_some() && !matches!(self.host, HostPattern::Below(_))
    }

    /// Returns whether the rule applies to this host and port. `host` is written as in a URL.
    pub fn covers(&self, host: &str, port: u16) -> bool {
        let host = unbracketed(host).trim_end_matches('.').to_ascii_lowercase();
        let covers_host = match &self.host {
            HostPattern::Ip(ip) => {
                host.parse::<IpAddr>().is_ok_and(|other| canonical(other) == canonical(*ip))
            }
            HostPattern::Name(name) => *name == host,
            HostPattern::Below(domain) => host
                .strip_suffix(domain.as_str())
                .is_some_and(|below| below.len() > 1 && below.ends_with('.')),
        };

        covers_host && self.port.is_none_or(|own| own == port)
    }

    /// Returns whether a host that the rule covers may have this address.
    ///
    /// Private networks need a literal host name, since the owner of a wildcard domain can point
    /// any name anywhere. Loopback needs `localhost` or the address itself; special addresses
    /// always need the address itself.
    pub fn allows_address(&self, address: IpAddr) -> bool {
        match (&self.host, class_of(address)) {
            (HostPattern::Ip(ip), _) => canonical(*ip) == canonical(address),
            (_, AddressClass::Public) | (HostPattern::Name(_), AddressClass::Private) => true,
            (HostPattern::Name(name), AddressClass::Loopback) => name == "localhost",
            (HostPattern::Name(_), AddressClass::Special)
            | (
                HostPattern::Below(_),
                AddressClass::Private | AddressClass::Loopback | AddressClass::Special,
            ) => false,
        }
    }
}

impl HostPattern {
    fn parse(host: &str) -> Option<Self> {
        if let Ok(ip) = unbracketed(host).parse::<IpAddr>() {
            return Some(Self::Ip(ip));
        }

        let is_name = |name: &str| {
            let label = |label: &str| {
                !label.is_empty()
                    && label.chars().all(|c| c.is_ascii_alphanumeric() || matches!(c, '-' | '_'))
            };
            name.split('.').all(label)
        };

        let lower = host.to_ascii_lowercase();
        match lower.strip_prefix("*.") {
            Some(domain) if is_name(domain) => Some(Self::Below(domain.to_owned())),
            None if is_name(&lower) => Some(Self::Name(lower)),
            _ => None,
        }
    }
}

impl fmt::Display for RemoteRule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            HostPattern::Ip(IpAddr::V6(ip)) if self.port.is_some() => write!(f, "[{ip}]")?,
            HostPattern::Ip(ip) => write!(f, "{ip}")?,
            HostPattern::Name(name) => f.write_str(name)?,
            HostPattern::Below(domain) => write!(f, "*.{domain}")?,
        }
        self.port.map_or(Ok(()), |port| write!(f, ":{port}"))
    }
}

fn unbracketed(host: &str) -> &str {
    host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host)
}

/// Treats an IPv4-mapped IPv6 address as the IPv4 address it stands for.
fn canonical(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

/// Returns the kind of network an address belongs to.
pub fn class_of(address: IpAddr) -> AddressClass {
    match canonical(address) {
        IpAddr::V4(v4) => class_of_v4(v4),
        IpAddr::V6(v6) => class_of_v6(v6),
    }
}

fn class_of_v4(address: Ipv4Addr) -> AddressClass {
    // The metadata services of Azure and Alibaba are in otherwise ordinary ranges, and Oracle's is
    // in 192.0.0.0/24.
    if matches!(address.octets(), [168, 63, 129, 16] | [100, 100, 100, 200] | [192, 0, 0, _]) {
        return AddressClass::Special;
    }

    let [a, b, ..] = address.octets();
    match (a, b) {
        (127, _) => AddressClass::Loopback,
        (10, _) | (172, 16..=31) | (192, 168) | (100, 64..=127) | (198, 18 | 19) => {
            AddressClass::Private
        }
        (0 | 224.., _) | (169, 254) => AddressClass::Special,
        _ => AddressClass::Public,
    }
}

fn class_of_v6(address: Ipv6Addr) -> AddressClass {
    let segments = address.segments();
    match segments[0] {
        _ if address.is_loopback() => AddressClass::Loopback,
        // The AWS metadata service is in the unique local range.
        0xfd00 if segments[1] == 0x0ec2 => AddressClass::Special,
        0xfc00..=0xfdff => AddressClass::Private,
        // IPv4-compatible, NAT64 and 6to4 addresses are as harmful as the IPv4 address they embed.
        0 if segments[..6].iter().all(|segment| *segment == 0) => {
            class_of_embedded(segments[6], segments[7])
        }
        0x64 if segments[1] == 0xff9b => class_of_embedded(segments[6], segments[7]),
        0x2002 => class_of_embedded(segments[1], segments[2]),
        0xfe80..=0xfeff | 0xff00.. | 0 => AddressClass::Special,
        _ => AddressClass::Public,
    }
}

fn class_of_embedded(high: u16, low: u16) -> AddressClass {
    let [a, b] = high.to_be_bytes();
    let [c, d] = low.to_be_bytes();
    class_of_v4(Ipv4Addr::new(a, b, c, d))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rule(text: &str) -> RemoteRule {
        RemoteRule::parse(text).unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn rules_cover_hosts_and_ports() {
        let check = |text: &str, host: &str, port, expected| {
            assert_eq!(rule(text).covers(host, port), expected, "{text} on {host}:{port}");
        };
        check("mcp.example.com", "MCP.example.com", 443, true);
        check("mcp.example.com", "mcp.example.com.", 443, true);
        check("mcp.example.com:8443", "mcp.example.com", 443, false);
        check("mcp.example.com", "evil-mcp.example.com", 443, false);
        check("*.example.com", "a.b.example.com", 443, true);
        check("*.example.com", "example.com", 443, false);
        check("*.example.com", "badexample.com", 443, false);
        check("127.0.0.1:80", "127.0.0.1", 80, true);
        check("[::1]:80", "[::1]", 80, true);
        check("127.0.0.1", "[::ffff:127.0.0.1]", 80, true);
        for text in ["", "a b", "http://x", "*", "*.*.x", "host:port", "host:70000", "a..b"] {
            assert!(RemoteRule::parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn literal_rules_allow_more_addresses() {
        let check = |text: &str, address: &str, expected| {
            assert_eq!(rule(text).allows_address(ip(address)), expected, "{text} at {address}");
        };
        check("*.example.com", "93.184.216.34", true);
        check("*.example.com", "10.0.0.1", false);
        check("db.internal", "10.0.0.1", true);
        check("db.internal", "127.0.0.1", false);
        check("db.internal", "169.254.169.254", false);
        check("localhost", "127.0.0.1", true);
        check("localhost", "::1", true);
        check("localhost", "169.254.169.254", false);
        check("127.0.0.1", "127.0.0.1", true);
        check("127.0.0.1", "127.0.0.2", false);
        check("169.254.169.254", "169.254.169.254", true);
    }

    #[test]
    fn addresses_have_classes() {
        use AddressClass::*;
        let check =
            |address: &str, expected| assert_eq!(class_of(ip(address)), expected, "{address}");
        check("8.8.8.8", Public);
        check("2606:4700::1111", Public);
        check("172.31.255.255", Private);
        check("172.32.0.0", Public);
        check("100.64.0.1", Private);
        check("fd12::1", Private);
        check("127.1.2.3", Loopback);
        check("::1", Loopback);
        check("::ffff:127.0.0.1", Loopback);
        check("64:ff9b::7f00:1", Loopback);
        check("2002:7f00:1::", Loopback);
        check("0.0.0.0", Special);
        check("::", Special);
        check("169.254.169.254", Special);
        check("168.63.129.16", Special);
        check("168.63.129.17", Public);
        check("100.100.100.200", Special);
        check("::ffff:100.100.100.200", Special);
        check("64:ff9b::6464:64c8", Special);
        check("192.0.0.192", Special);
        check("192.0.1.1", Public);
        check("fe80::1", Special);
        check("fd00:ec2::254", Special);
        check("224.0.0.1", Special);
        check("255.255.255.255", Special);
    }

    proptest! {
        #[test]
        fn parsing_never_panics_and_display_reads_back(text in "[a-z0-9.*:\\[\\]-]{0,20}") {
            if let Ok(rule) = RemoteRule::parse(&text) {
                prop_assert_eq!(RemoteRule::parse(&rule.to_string()), Ok(rule));
            }
        }

        #[test]
        fn wildcards_reach_public_addresses_only(bytes in any::<[u8; 4]>()) {
            let address = IpAddr::from(bytes);
            prop_assert_eq!(rule("*.example.com").allows_address(address), class_of(address) == AddressClass::Public);
        }
    }
}
