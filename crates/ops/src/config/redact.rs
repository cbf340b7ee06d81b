//! Redaction of secrets in what we show. When in doubt, a value is hidden: a hidden endpoint costs
//! a question, a leaked password an incident.

use std::borrow::Cow;

const HIDDEN: &str = "***";

/// Parts of a name that mark it as secret, at any position.
const SECRET_PARTS: [&str; 7] =
    ["password", "passwd", "passphrase", "secret", "token", "credential", "authorization"];

/// Settings that may be URLs of databases, whose passwords nobody may have percent-encoded.
const DATABASES: [&str; 2] = ["mcp.ledger", "mcp.shared"];

/// Everything under `sasl.` is hidden except these names, which people need when a login fails.
const SHOWN_SASL: [&str; 2] = ["sasl.mechanism", "sasl.mechanisms"];

/// Returns whether a setting with this name holds a secret. Understands environment variables
/// (`KAFKA_PROPERTY_SASL_PASSWORD`), librdkafka properties (`sasl.password`) and header names
/// (`X-Api-Key`).
pub fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase().replace(['_', '-'], ".");
    let name = name.strip_prefix("kafka.property.").unwrap_or(&name);

    if SHOWN_SASL.contains(&name) {
        return false;
    }

    DATABASES.contains(&name)
        || SECRET_PARTS.iter().any(|part| name.contains(part))
        || name.starts_with("sasl.")
        || name.starts_with("ssl.key.")
        || name.split('.').any(|segment| segment.ends_with("key") || segment == "cookie")
}

/// Returns the value in a form that may be shown: hidden if the name is secret, and with user and
/// password removed from URLs.
pub fn redact<'a>(name: &str, value: &'a str) -> Cow<'a, str> {
    if is_secret(name) {
        return Cow::Borrowed(HIDDEN);
    }

    if !value.contains("://") || !value.contains('@') {
        return Cow::Borrowed(value);
    }
    let urls: Vec<Cow<'_, str>> = value.split(',').map(strip_userinfo).collect();
    Cow::Owned(urls.join(","))
}

fn strip_userinfo(url: &str) -> Cow<'_, str> {
    let Some((scheme, rest)) = url.split_once("://") else { return Cow::Borrowed(url) };
    let authority = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    match rest[..authority].rfind('@') {
        Some(at) => Cow::Owned(format!("{scheme}://{HIDDEN}@{}", &rest[at + 1..])),
        None => Cow::Borrowed(url),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn secrets_are_known_by_name() {
        let check = |name: &str, secret: bool| assert_eq!(is_secret(name), secret, "{name}");
        check("KAFKA_PROPERTY_SASL_PASSWORD", true);
        check("KAFKA_PROPERTY_SASL_USERNAME", true);
        check("sasl.oauthbearer.client.secret", true);
        check("ssl.key.location", true);
        check("ssl.keystore.password", true);
        check("MCP_SERVER_TOKEN", true);
        check("X-Api-Key", true);
        check("MCP_LEDGER", true);
        check("MCP_LEDGER_MAX_AGE", false);
        check("Authorization", true);
        check("OPENAI_APIKEY", true);
        check("sasl.mechanism", false);
        check("KAFKA_PROPERTY_SASL_MECHANISMS", false);
        check("ssl.ca.location", false);
        check("security.protocol", false);
        check("KAFKA_BROKERS", false);
        check("PORT", false);
    }

    #[test]
    fn values_are_hidden_or_stripped() {
        let check =
            |name: &str, value: &str, expected: &str| assert_eq!(redact(name, value), expected);
        check("MCP_TOKEN", "abc", "***");
        check("PORT", "8080", "8080");
        check("MCP_SERVER_URL", "http://a:8080/mcp", "http://a:8080/mcp");
        check(
            "MCP_SERVER_URL",
            "http://u:p@a:8080/mcp, https://x@b/c@d",
            "http://***@a:8080/mcp, https://***@b/c@d",
        );
    }
}
