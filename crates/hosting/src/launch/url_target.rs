//! Turns the configuration of a remote into one that may be connected to.

use fleet_job::mcp_servers::RemoteServer;
use fleet_policy::{Policy, Refusal, remote::RemoteRule};
use http::{HeaderName, HeaderValue};
use url::{Host, Url};

use super::{Environment, LaunchError, RemoteSpec, RuleRef, pick_error};
use crate::secrets::Secrets;

/// Resolves a remote under the first rule that allows all of it.
pub(super) fn resolve_remote<'a>(
    server: &RemoteServer,
    policy: &'a Policy,
) -> Result<(RemoteSpec, &'a RemoteRule), LaunchError> {
    let is_plain = !server.url.contains("${");
    if is_plain {
        parse_url(&server.url)?;
    }

    let mut error = None;
    for rule in &policy.remotes {
        match resolve_under(rule, server, policy) {
            Ok(Some(spec)) => return Ok((spec, rule)),
            Ok(None) => {}
            Err(other) => error = Some(pick_error(error, other)),
        }
    }
    Err(error.unwrap_or_else(|| Refusal::Remote { target: shown_target(&server.url) }.into()))
}

/// Resolves a remote under one rule. Returns `None` if the rule does not cover its host.
fn resolve_under(
    rule: &RemoteRule,
    written: &RemoteServer,
    policy: &Policy,
) -> Result<Option<RemoteSpec>, LaunchError> {
    let environment = Environment::new(&rule.expand);
    let lookup = |name: &str| environment.look_up(name);
    let url = parse_url(&written.expand_url(&lookup)?)?;
    let (Some(host), Some(port)) = (url.host(), url.port_or_known_default()) else {
        return Err(LaunchError::Url);
    };
    let host_text = match host {
        Host::Domain(name) => name.to_owned(),
        Host::Ipv4(ip) => ip.to_string(),
        Host::Ipv6(ip) => ip.to_string(),
    };

    if !rule.covers(&host_text, port) {
        return Ok(None);
    }

    // An address is not resolved, so the check at connect time does not cover it.
    let address = match host {
        Host::Domain(_) => None,
        Host::Ipv4(ip) => Some(ip.into()),
        Host::Ipv6(ip) => Some(ip.into()),
    };
    if let Some(address) = address {
        policy
            .check_address(&host_text, port, address)
            .map_err(|_| Refusal::Remote { target: shown_target(&written.url) })?;
    }

    let server = written.expand(&lookup)?;
    let headers = server.headers.iter().map(parse_header).collect::<Result<_, _>>()?;
    let secrets = Secrets::new(environment.used.into_inner());
    Ok(Some(RemoteSpec { url, headers, secrets }))
}

fn parse_url(text: &str) -> Result<Url, LaunchError> {
    let url = Url::parse(text).map_err(|_| LaunchError::Url)?;
    let is_plain = url.username().is_empty() && url.password().is_none();
    let is_http = matches!(url.scheme(), "http" | "https");
    if is_plain && is_http && url.has_host() { Ok(url) } else { Err(LaunchError::Url) }
}

/// Returns host and port of a URL as a refusal may show them, with variables unexpanded.
fn shown_target(written: &str) -> String {
    if let Ok(url) = Url::parse(written)
        && let (Some(host), Some(port)) = (url.host_str(), url.port_or_known_default())
        && !written.contains("${")
    {
        return format!("{host}:{port}");
    }

    let rest = written.split_once("://").map_or(written, |(_, rest)| rest);
    rest.split_inclusive(['/', '?', '#'])
        .next()
        .unwrap_or_default()
        .trim_end_matches(['/', '?', '#'])
        .to_owned()
}

fn parse_header(
    (name, value): (&String, &String),
) -> Result<(HeaderName, HeaderValue), LaunchError> {
    let parsed = (HeaderName::try_from(name), HeaderValue::try_from(value));
    let (Ok(parsed_name), Ok(mut parsed_value)) = parsed else {
        return Err(LaunchError::Header(name.clone()));
    };
    if is_transports_own(&parsed_name) {
        return Err(LaunchError::OwnHeader(name.clone()));
    }
    parsed_value.set_sensitive(true);
    Ok((parsed_name, parsed_value))
}

/// Returns whether a header belongs to the transport: those for routing, framing, content and the
/// protocol. `Host` could name a virtual host that policy does not cover, framing headers could
/// smuggle a second request, and the HTTP client sets hop-by-hop and content headers.
fn is_transports_own(name: &HeaderName) -> bool {
    use http::header;
    let own = [
        header::HOST,
        header::CONTENT_LENGTH,
        header::CONTENT_TYPE,
        header::CONTENT_ENCODING,
        header::ACCEPT,
        header::ACCEPT_ENCODING,
        header::TRANSFER_ENCODING,
        header::CONNECTION,
        header::UPGRADE,
        header::TE,
        header::TRAILER,
        header::EXPECT,
        header::PROXY_AUTHENTICATE,
        header::PROXY_AUTHORIZATION,
    ];
    let hop_by_hop = ["keep-alive", "proxy-connection", "http2-settings", "last-event-id"];
    own.contains(name) || hop_by_hop.contains(&name.as_str()) || name.as_str().starts_with("mcp-")
}

/// Returns a reference to the rule, by which people find it in the policy file.
pub(super) fn rule_ref(rule: &RemoteRule, policy: &Policy) -> RuleRef {
    let number = policy.remotes.iter().position(|other| std::ptr::eq(other, rule));
    let (number, line, covers) = (number.unwrap_or_default() + 1, rule.line(), rule.to_string());
    RuleRef { table: "remote", number, line, covers }
}

#[cfg(test)]
mod tests {
    use fleet_job::mcp_servers::{ServerEntry, Transport};

    use super::*;

    fn check(name: &str, allowed: bool) {
        let rules = vec![RemoteRule::parse("mcp.example.com").unwrap()];
        let policy = Policy { remotes: rules, ..Policy::default() };
        let config =
            serde_json::json!({"url": "https://mcp.example.com/mcp", "headers": {name: "x"}});
        let Transport::Url(server) = ServerEntry::from_value(&config, "config").unwrap().transport
        else {
            panic!("no remote server");
        };
        match resolve_remote(&server, &policy) {
            Ok(_) => assert!(allowed, "{name}"),
            Err(LaunchError::OwnHeader(refused)) => assert!(!allowed && refused == name, "{name}"),
            Err(other) => panic!("{name}: {other}"),
        }
    }

    #[test]
    fn reserved_headers_are_refused() {
        for name in [
            "Host",
            "content-length",
            "Transfer-Encoding",
            "Connection",
            "Mcp-Session-Id",
            "MCP-Protocol-Version",
            "Keep-Alive",
            "Proxy-Connection",
            "Proxy-Authorization",
            "Upgrade",
            "TE",
            "Trailer",
            "Expect",
            "Content-Type",
            "Content-Encoding",
            "Accept-Encoding",
            "Accept",
        ] {
            check(name, false);
        }
        check("Authorization", true);
        check("X-Mcp-Key", true);
    }

    #[test]
    fn a_refusal_shows_the_url_as_written() {
        for (written, shown) in [
            ("http://${HOST}:${PORT}/mcp?x=1", "${HOST}:${PORT}"),
            ("https://example.com/mcp", "example.com:443"),
            ("https://example.com?key=${KEY}", "example.com"),
            ("${URL}", "${URL}"),
        ] {
            assert_eq!(shown_target(written), shown, "{written}");
        }
    }
}
