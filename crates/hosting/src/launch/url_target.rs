//! Turns the configuration of a remote into one that may be connected to.

use fleet_job::mcp_servers::{RemoteServer, expand::secrets_in};
use fleet_policy::{
    Policy, Refusal,
    oauth::{TokenServer, keeps_secrets},
    remote::RemoteRule,
};
use http::{HeaderName, HeaderValue, header::AUTHORIZATION};
use url::{Host, Url};

use super::{Environment, LaunchError, RemoteSpec, RuleRef, pick_error, read_secrets, to_hide};
use crate::{remote_headers::RemoteHeaders, secret_store::SecretStore, secrets::Secrets};

/// Resolves a remote under the first rule that allows all of it. If a rule gets access tokens for
/// the host, it alone decides: no configuration may choose another one and present credentials of
/// its own, or none.
pub(super) async fn resolve_remote<'a>(
    server: &RemoteServer,
    policy: &'a Policy,
    store: &SecretStore,
) -> Result<(RemoteSpec, &'a RemoteRule), LaunchError> {
    let is_plain = !server.url.contains("${");
    if is_plain {
        parse_url(&server.url)?;
    }

    let mut error = None;
    for rule in &policy.remotes {
        match resolve_under(rule, server, policy, store).await {
            Ok(Some(spec)) => return resolve_as_decided((spec, rule), server, policy, store).await,
            Ok(None) => {}
            Err(decided) if decided.is_about_tokens() => return Err(decided),
            Err(other) => error = Some(pick_error(error, other)),
        }
    }
    Err(error.unwrap_or_else(|| Refusal::Remote { target: shown_target(&server.url) }.into()))
}

/// Returns a remote as a rule allows it, or as the rule that gets access tokens for its host does.
/// Only here is the host known: that rule may allow fewer references than others.
async fn resolve_as_decided<'a>(
    (spec, rule): (RemoteSpec, &'a RemoteRule),
    server: &RemoteServer,
    policy: &'a Policy,
    store: &SecretStore,
) -> Result<(RemoteSpec, &'a RemoteRule), LaunchError> {
    let (host, port) = host_and_port(&spec.url)?;
    let gets_tokens = |rule: &&RemoteRule| rule.oauth.is_some() && rule.covers(&host, port);
    let Some(deciding) = policy.remotes.iter().find(gets_tokens) else { return Ok((spec, rule)) };
    if std::ptr::eq(deciding, rule) {
        return Ok((spec, rule));
    }

    let decided = resolve_under(deciding, server, policy, store).await?;
    let refusal = || Refusal::Remote { target: shown_target(&server.url) }.into();
    decided.map(|spec| (spec, deciding)).ok_or_else(refusal)
}

/// Resolves a remote under one rule. Returns `None` if the rule does not cover its host.
async fn resolve_under(
    rule: &RemoteRule,
    written: &RemoteServer,
    policy: &Policy,
    store: &SecretStore,
) -> Result<Option<RemoteSpec>, LaunchError> {
    let in_url = secrets_in([written.url.as_str()]);
    let values = read_secrets(&in_url, &rule.secrets, rule, store).await?;
    let (url, variables) = {
        let environment = Environment::new(&rule.expand, values.clone());
        let url = parse_url(&written.expand_url(&|reference| environment.look_up(reference))?)?;
        (url, environment.into_used().0)
    };
    if !covers(rule, &url, written, policy)? {
        return Ok(None);
    }

    check_token_target(rule, &url, written)?;

    let mut hidden = variables;
    hidden.extend(to_hide(&values));
    let in_headers = secrets_in(written.headers.values().map(String::as_str));
    let values = read_secrets(&in_headers, &rule.secrets, rule, store).await?;
    let variables = {
        let environment = Environment::new(&rule.expand, values.clone());
        // Only to find the first error, and which variables are used.
        written.expand_headers(&|reference| environment.look_up(reference))?;
        environment.into_used().0
    };
    hidden.extend(variables.clone());
    hidden.extend(to_hide(&values));

    let tokens = rule.oauth.as_ref().map(|oauth| store.remote_tokens(oauth, &url));
    if let Some(tokens) = &tokens {
        tokens.hide(&hidden);
    }
    let secrets = Secrets::new(hidden);
    let headers = RemoteHeaders::new(
        written.headers.clone(),
        variables,
        values,
        (store.clone(), tokens),
        secrets.clone(),
    )?;
    let of_client = rule.oauth.as_ref().map(|oauth| oauth.proof.secret().to_owned());
    let used = in_url.union(&in_headers).cloned().chain(of_client).collect();
    Ok(Some(RemoteSpec { url, headers, secrets, used }))
}

/// Checks that an access token may be sent to a remote, if the rule gets any for it.
fn check_token_target(
    rule: &RemoteRule,
    url: &Url,
    written: &RemoteServer,
) -> Result<(), LaunchError> {
    let Some(oauth) = &rule.oauth else { return Ok(()) };
    if !keeps_secrets(url) {
        return Err(LaunchError::ClearText);
    }
    let is_token = |name: &&String| name.eq_ignore_ascii_case(AUTHORIZATION.as_str());
    if let Some(name) = written.headers.keys().find(is_token) {
        return Err(LaunchError::TokenHeader(name.clone()));
    }

    // Otherwise the authorization server learns the whole path, as the resource that a token is for,
    // and requests for the remote's metadata have it.
    let tells_path = oauth.resource.is_none() || matches!(oauth.server, TokenServer::Issuer(_));
    if tells_path && !has_path_as_written(&written.url, url) {
        Err(LaunchError::HiddenPath)
    } else {
        Ok(())
    }
}

/// Returns whether no part of a URL's path comes from a reference.
fn has_path_as_written(written: &str, url: &Url) -> bool {
    if !written.contains("${") {
        return true;
    }
    let written = written.split(['?', '#']).next().unwrap_or_default();
    let Some((_, rest)) = written.split_once("://") else { return false };
    let path = rest.find('/').map_or("", |start| &rest[start..]);
    if path.contains("${") {
        return false;
    }

    // A reference before the path may bring a part of the path.
    let mut as_written = url.clone();
    as_written.set_path(path);
    as_written.path() == url.path()
}

/// Returns whether a rule covers the host of a URL.
fn covers(
    rule: &RemoteRule,
    url: &Url,
    written: &RemoteServer,
    policy: &Policy,
) -> Result<bool, LaunchError> {
    let (host_text, port) = host_and_port(url)?;
    if !rule.covers(&host_text, port) {
        return Ok(false);
    }

    // An address is not resolved, so the check at connect time does not cover it.
    let address = match url.host() {
        Some(Host::Ipv4(ip)) => ip.into(),
        Some(Host::Ipv6(ip)) => ip.into(),
        Some(Host::Domain(_)) | None => return Ok(true),
    };
    match policy.check_address(&host_text, port, address) {
        Ok(_) => Ok(true),
        Err(_) => Err(Refusal::Remote { target: shown_target(&written.url) }.into()),
    }
}

/// Returns the host of a URL as rules compare it, and the port.
fn host_and_port(url: &Url) -> Result<(String, u16), LaunchError> {
    let (Some(host), Some(port)) = (url.host(), url.port_or_known_default()) else {
        return Err(LaunchError::Url);
    };
    let host = match host {
        Host::Domain(name) => name.to_owned(),
        Host::Ipv4(ip) => ip.to_string(),
        Host::Ipv6(ip) => ip.to_string(),
    };
    Ok((host, port))
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

/// Parses a header that may be configured.
pub(crate) fn parse_header(
    name: &str,
    value: &str,
) -> Result<(HeaderName, HeaderValue), LaunchError> {
    let parsed = (HeaderName::try_from(name), HeaderValue::try_from(value));
    let (Ok(parsed_name), Ok(mut parsed_value)) = parsed else {
        return Err(LaunchError::Header(name.to_owned()));
    };
    if is_transports_own(&parsed_name) {
        return Err(LaunchError::OwnHeader(name.to_owned()));
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

    async fn check(name: &str, allowed: bool) {
        let rules = vec![RemoteRule::parse("mcp.example.com").unwrap()];
        let policy = Policy { remotes: rules, ..Policy::default() };
        let config =
            serde_json::json!({"url": "https://mcp.example.com/mcp", "headers": {name: "x"}});
        let Transport::Url(server) = ServerEntry::from_value(&config, "config").unwrap().transport
        else {
            panic!("no remote server");
        };
        match resolve_remote(&server, &policy, &SecretStore::default()).await {
            Ok(_) => assert!(allowed, "{name}"),
            Err(LaunchError::OwnHeader(refused)) => assert!(!allowed && refused == name, "{name}"),
            Err(other) => panic!("{name}: {other}"),
        }
    }

    #[tokio::test]
    async fn reserved_headers_are_refused() {
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
            check(name, false).await;
        }
        check("Authorization", true).await;
        check("X-Mcp-Key", true).await;
    }

    /// Resolves a configuration under a policy. Returns the number of the rule that allows it.
    async fn rule_of(policy: &str, config: serde_json::Value) -> Result<usize, LaunchError> {
        let policy = Policy::from_toml(policy).unwrap();
        let Transport::Url(server) = ServerEntry::from_value(&config, "config").unwrap().transport
        else {
            panic!("no remote server");
        };
        let store = SecretStore::default();
        let (spec, rule) = resolve_remote(&server, &policy, &store).await?;
        assert_eq!(spec.oauth(), rule.oauth);
        Ok(policy.remotes.iter().position(|other| std::ptr::eq(other, rule)).unwrap() + 1)
    }

    /// Whatever else allows the host, before or after it.
    #[tokio::test]
    async fn a_configuration_cannot_leave_the_rule_that_gets_tokens() {
        let with_tokens = "[[remote]]\nhost = 'mcp.example'\nport = 443\n[remote.oauth]\n\
            issuer = 'https://idp.example'\nclient_id = 'fleet'\nclient_secret = '${secret:c}'\n";
        let wide = "[[remote]]\nhost = '*.example'\nexpand = ['PATH']\n";
        let exact = "[[remote]]\nhost = 'mcp.example'\nexpand = ['PATH']\n";
        let other = serde_json::json!({"url": "https://other.example/mcp"});
        let plain = serde_json::json!({"url": "https://mcp.example/mcp"});
        let own = serde_json::json!({
            "url": "https://mcp.example/mcp", "headers": {"Authorization": "Bearer mine"}
        });
        let clear = serde_json::json!({"url": "http://mcp.example:443/mcp"});
        let expanded = serde_json::json!({"url": "https://mcp.example/mcp?x=${PATH}"});
        for (policy, number) in [
            (format!("{with_tokens}{wide}"), 1),
            (format!("{with_tokens}{exact}"), 1),
            (format!("{wide}{with_tokens}"), 2),
            (format!("{exact}{with_tokens}{wide}"), 2),
        ] {
            assert_eq!(rule_of(&policy, plain.clone()).await.ok(), Some(number), "{policy}");
            let refusals = [own.clone(), clear.clone(), expanded.clone()];
            for config in refusals {
                let error = rule_of(&policy, config.clone()).await.err();
                let is_refusal = error.as_ref().is_some_and(LaunchError::is_refusal);
                assert!(is_refusal, "{policy}: {config}: {error:?}");
            }
            if policy.contains("'*") {
                assert!(rule_of(&policy, other.clone()).await.is_ok(), "{policy}");
            }
        }
    }

    /// The path of a remote would be the resource that its token is for.
    #[tokio::test]
    async fn the_authorization_server_does_not_learn_a_secret_path() {
        let policy = |server: &str| {
            format!(
                "[[remote]]\nhost = 'mcp.example'\nport = 443\nexpand = ['CARGO_PKG_NAME']\n\
                 [remote.oauth]\n{server}\nclient_id = 'fleet'\nclient_secret = '${{secret:c}}'\n"
            )
        };
        let endpoint = "token_url = 'https://idp.example/token'";
        let issuer = "issuer = 'https://idp.example'";
        let resource = "\nresource = 'https://mcp.example/mcp'";
        let check = async |server: &str, url: &str, is_allowed: bool| {
            let checked = rule_of(&policy(server), serde_json::json!({ "url": url })).await;
            let is_hidden_path = matches!(checked, Err(LaunchError::HiddenPath));
            assert!(
                checked.is_ok() == is_allowed && is_hidden_path != is_allowed,
                "{server} {url}"
            );
        };

        let in_path = "https://mcp.example/${CARGO_PKG_NAME}/mcp";
        check(endpoint, in_path, false).await;
        check(&format!("{issuer}{resource}"), in_path, false).await;
        check(&format!("{endpoint}{resource}"), in_path, true).await;
        for server in [endpoint, issuer] {
            check(server, "https://mcp.example/mcp?key=${CARGO_PKG_NAME}", true).await;
        }
    }

    #[test]
    fn a_path_is_as_written_if_no_reference_brings_a_part_of_it() {
        let check = |written: &str, url: &str, expected: bool| {
            let url = Url::parse(url).unwrap();
            assert_eq!(has_path_as_written(written, &url), expected, "{written}");
        };
        check("https://a/mcp", "https://a/mcp", true);
        check("https://${HOST}/mcp", "https://a/mcp", true);
        check("https://${HOST}", "https://a/", true);
        check("https://${HOST}:${PORT}/mcp?k=${KEY}", "https://a:1/mcp?k=x", true);
        check("https://${HOST}/mcp", "https://a/key/mcp", false);
        check("https://${HOST}", "https://a/key", false);
        check("https://a/${KEY}", "https://a/key", false);
        check("https://a/${KEY:-?}", "https://a/key", false);
        check("${URL}", "https://a/mcp", false);
        check("${SCHEME}://a/mcp", "https://a/mcp", true);
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
