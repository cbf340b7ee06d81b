//! What must not be shown. Errs on the side of hiding: a hidden endpoint costs a question, a shown
//! password an incident.

use std::borrow::Cow;

const HIDDEN: &str = "***";

/// Parts of a name that make it secret wherever they stand.
const SECRET_PARTS: [&str; 7] =
    ["password", "passwd", "passphrase", "secret", "token", "credential", "authorization"];

/// Under `sasl.` everything is hidden but these, which people need to see when a login fails.
const SHOWN_SASL: [&str; 2] = ["sasl.mechanism", "sasl.mechanisms"];

/// Whether a setting of this name holds something that must not be shown. Understands environment
/// variables (`KAFKA_PROPERTY_SASL_PASSWORD`), librdkafka properties (`sasl.password`) and header
/// names (`X-Api-Key`).
pub fn is_secret(name: &str) -> bool {
    let name = name.to_ascii_lowercase().replace(['_', '-'], ".");
    let name = name.strip_prefix("kafka.property.").unwrap_or(&name);
    if SHOWN_SASL.contains(&name) {
        return false;
    }
    SECRET_PARTS.iter().any(|part| name.contains(part))
        || name.starts_with("sasl.")
        || name.starts_with("ssl.key.")
        || name.split('.').any(|segment| segment.ends_with("key") || segment == "cookie")
}

/// The value as it may be shown: hidden if the name is secret, without user and password if it
/// holds URLs.
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
