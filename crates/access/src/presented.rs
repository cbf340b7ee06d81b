//! What a request presents as credentials, as plain data.

use crate::refusal::{AuthRefusal, Fault};

/// The longest value of an `Authorization` header that is looked at.
pub const MAX_AUTHORIZATION_BYTES: usize = 16 * 1024;

/// The credentials of one request. Whoever serves it takes them from the connection and the
/// headers; a token in the query is never among them.
#[derive(Debug, Clone, Copy, Default)]
pub struct Presented<'a> {
    /// The values of all `Authorization` headers, as they came. More than one is refused.
    pub authorization: &'a [&'a [u8]],
    /// The client certificate that TLS has verified.
    pub certificate: Option<&'a ClientCertificate>,
    /// Whether the connection comes from this machine. Behind a reverse proxy on this machine, every
    /// connection does.
    pub from_loopback: bool,
}

/// The names in a client certificate that TLS has verified against the configured authorities.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The URIs among its alternative names, such as a SPIFFE id.
    pub uris: Vec<String>,
    /// The DNS names among its alternative names.
    pub dns_names: Vec<String>,
    /// Whether it has expired, was revoked or has lost its authority since the connection began.
    pub is_withdrawn: bool,
}

impl<'a> Presented<'a> {
    /// Returns the bearer token of the request; `None` if there is no `Authorization` header.
    ///
    /// # Errors
    ///
    /// Returns a refusal if there are two headers, or one that is not `Bearer` and one token.
    pub(crate) fn bearer(&self) -> Result<Option<&'a str>, AuthRefusal> {
        let value = match self.authorization {
            [] => return Ok(None),
            [value] => *value,
            _ => return Err(AuthRefusal::malformed(Fault::SeveralHeaders)),
        };

        if value.len() > MAX_AUTHORIZATION_BYTES {
            return Err(AuthRefusal::malformed(Fault::TooLong));
        }
        let text = std::str::from_utf8(value)
            .map_err(|_| AuthRefusal::malformed(Fault::NotABearerToken))?;

        let (scheme, token) = text.trim().split_once(' ').unwrap_or((text.trim(), ""));
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(AuthRefusal::rejected(Fault::OtherScheme));
        }

        let token = token.trim_start_matches(' ');
        match is_token(token) {
            true => Ok(Some(token)),
            false => Err(AuthRefusal::malformed(Fault::NotABearerToken)),
        }
    }
}

/// Returns whether a text is a `b64token` (RFC 6750), the syntax of every bearer token.
fn is_token(text: &str) -> bool {
    let body = text.trim_end_matches('=');
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~+/".contains(&byte);
    !body.is_empty() && body.bytes().all(is_part)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(headers: &[&[u8]], expected: Result<Option<&str>, Fault>) {
        let presented = Presented { authorization: headers, ..Presented::default() };
        let bearer = presented.bearer().map_err(|refusal| refusal.fault());
        assert_eq!(bearer, expected, "{headers:?}");
    }

    #[test]
    fn the_scheme_is_read_in_any_case() {
        check(&[], Ok(None));
        for header in ["Bearer a.b-c", "bearer a.b-c", "BEARER   a.b-c", " Bearer a.b-c "] {
            check(&[header.as_bytes()], Ok(Some("a.b-c")));
        }
        check(&[b"Bearer abc=="], Ok(Some("abc==")));
    }

    #[test]
    fn everything_else_is_refused() {
        check(&[b"Bearer a", b"Bearer a"], Err(Fault::SeveralHeaders));
        check(&[b"Bearer a", b""], Err(Fault::SeveralHeaders));
        check(&[b"Basic abc"], Err(Fault::OtherScheme));
        check(&[b"DPoP abc"], Err(Fault::OtherScheme));
        check(&[b""], Err(Fault::OtherScheme));
        for bad in ["Bearer", "Bearer ", "Bearer a b", "Bearer a, Bearer b", "Bearer =", "Bearer é"]
        {
            check(&[bad.as_bytes()], Err(Fault::NotABearerToken));
        }
        check(&[b"Bearer \xff"], Err(Fault::NotABearerToken));
        check(&[&[b'a'; MAX_AUTHORIZATION_BYTES + 1]], Err(Fault::TooLong));
    }
}
