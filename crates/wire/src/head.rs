//! The head of an HTTP response: the type of its body, when to retry, and where to go instead.

use std::time::{Duration, SystemTime};

use url::Url;

/// The longest delay that a server may ask for by `Retry-After`.
pub const MAX_RETRY_AFTER: Duration = Duration::from_secs(24 * 3600);

/// The media type of a body, as far as it matters here.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Media {
    /// A JSON type.
    Json,
    /// A stream of server-sent events.
    EventStream,
    /// Another type, or none (empty). The body may be JSON nevertheless.
    Other(String),
}

impl Media {
    /// Parses a `Content-Type`.
    #[must_use]
    pub fn of(content_type: Option<&str>) -> Self {
        let name = content_type.unwrap_or_default().split(';').next().unwrap_or_default();
        let name = name.trim().to_ascii_lowercase();
        match name.as_str() {
            "application/json"
            | "application/json-rpc"
            | "application/jsonrequest"
            | "text/json" => Self::Json,
            "text/event-stream" => Self::EventStream,
            other if other.ends_with("+json") => Self::Json,
            _ => Self::Other(name),
        }
    }

    /// Returns whether the body is a page for people, which is of no use in an error message.
    #[must_use]
    pub fn is_page(&self) -> bool {
        matches!(self, Self::Other(name) if name.ends_with("html"))
    }
}

/// Parses a `Retry-After` in either of its forms: seconds, or a date that is compared with `now`.
#[must_use]
pub fn retry_after(text: &str, now: SystemTime) -> Option<Duration> {
    let text = text.trim();
    let delay = if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        text.parse().map_or(MAX_RETRY_AFTER, Duration::from_secs)
    } else {
        // A date in the past means that a retry may happen at once.
        httpdate::parse_http_date(text).ok()?.duration_since(now).unwrap_or_default()
    };
    Some(delay.min(MAX_RETRY_AFTER))
}

/// Returns the URL to which a request may be sent again unchanged: the target of a 307 or 308 with
/// the same scheme, host and port. A redirect to another origin is never followed, since the user
/// has not allowed that origin and it must not receive our credentials.
#[must_use]
pub fn moved(status: u16, from: &Url, location: Option<&str>) -> Option<Url> {
    if !matches!(status, 307 | 308) {
        return None;
    }

    let to = from.join(location?.trim()).ok()?;
    let is_same_user = to.username() == from.username() && to.password() == from.password();
    // A relative location keeps user name and password, an absolute one drops them.
    let is_anonymous = to.username().is_empty() && to.password().is_none();
    let is_same_origin = to.origin() == from.origin() && to != *from;

    (is_same_origin && (is_same_user || is_anonymous)).then_some(to)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn media_types_are_parsed_regardless_of_case_and_parameters() {
        let check =
            |text: Option<&str>, expected: Media| assert_eq!(Media::of(text), expected, "{text:?}");

        check(Some("application/json"), Media::Json);
        check(Some("Application/JSON;Charset=UTF-8"), Media::Json);
        check(Some("application/json-rpc; charset=utf-8"), Media::Json);
        check(Some("application/problem+json"), Media::Json);
        check(Some("Text/Event-Stream"), Media::EventStream);
        check(Some("text/html; charset=utf-8"), Media::Other("text/html".to_owned()));
        check(None, Media::Other(String::new()));
        assert!(Media::of(Some("TEXT/HTML")).is_page() && !Media::of(None).is_page());
    }

    #[test]
    fn delays_are_parsed_in_both_forms() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        let check = |text: &str, expected: Option<u64>| {
            assert_eq!(retry_after(text, now), expected.map(Duration::from_secs), "{text}");
        };

        check("120", Some(120));
        check(" 0 ", Some(0));
        check("Sun, 06 Nov 1994 08:50:37 GMT", Some(60));
        check("Sunday, 06-Nov-94 08:50:37 GMT", Some(60));
        check("Sun Nov  6 08:50:37 1994", Some(60));
        check("Sun, 06 Nov 1994 08:00:00 GMT", Some(0));
        check("99999999999999999999999", Some(24 * 3600));
        check("Sun, 31 Dec 2400 00:00:00 GMT", Some(24 * 3600));
        check("-1", None);
        check("1.5", None);
        check("soon", None);
        check("", None);
    }

    #[test]
    fn only_redirects_within_the_origin_are_followed() {
        let from = Url::parse("https://mcp.example.com/mcp?key=1").unwrap();
        let check = |status: u16, location: &str, expected: Option<&str>| {
            let to = moved(status, &from, Some(location));
            assert_eq!(to.as_ref().map(Url::as_str), expected, "{status} {location}");
        };

        check(307, "/mcp/", Some("https://mcp.example.com/mcp/"));
        check(308, "https://mcp.example.com:443/mcp/", Some("https://mcp.example.com/mcp/"));
        check(308, "/mcp?key=1", None);
        check(302, "/mcp/", None);
        check(200, "/mcp/", None);

        for foreign in [
            "http://mcp.example.com/mcp/",
            "https://mcp.example.com:8443/mcp/",
            "//169.254.169.254/",
            "https://u:p@mcp.example.com/mcp/",
            "https://other.example.com/mcp/",
        ] {
            check(307, foreign, None);
        }

        assert_eq!(moved(307, &from, None), None);
    }
}
