//! The `WWW-Authenticate` header of a resource server (RFC 6750, RFC 9728).

use std::fmt;

/// What a client needs to know to come back with better credentials. Its `Display` is the value of
/// the header.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Challenge {
    /// What was wrong; `None` if the request had no credentials at all.
    pub error: Option<ChallengeError>,
    /// The same in words.
    pub description: Option<String>,
    /// All scopes that the request needs.
    pub scopes: Vec<String>,
    /// The URL of the server's protected resource metadata.
    pub resource_metadata: Option<String>,
}

/// All scopes that a refused request needs. It is an extension of the response, from which the layer
/// that knows the URL of the metadata makes a [`Challenge`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RequiredScopes(pub Vec<String>);

/// The error codes of RFC 6750.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChallengeError {
    /// The request is malformed.
    InvalidRequest,
    /// The token is not accepted.
    InvalidToken,
    /// The token lacks scopes.
    InsufficientScope,
}

impl ChallengeError {
    /// The code as it stands in the header.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::InvalidRequest => "invalid_request",
            Self::InvalidToken => "invalid_token",
            Self::InsufficientScope => "insufficient_scope",
        }
    }
}

impl Challenge {
    /// The challenge to a token that lacks scopes. It names all of them at once.
    pub fn of_scopes(scopes: Vec<String>, resource_metadata: Option<&str>) -> Self {
        Self {
            error: Some(ChallengeError::InsufficientScope),
            description: Some(format!("needs the scopes {}", scopes.join(" "))),
            scopes,
            resource_metadata: resource_metadata.map(str::to_owned),
        }
    }
}

impl fmt::Display for Challenge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let scopes = (!self.scopes.is_empty()).then(|| self.scopes.join(" "));
        let parameters = [
            ("error", self.error.map(ChallengeError::as_str)),
            ("error_description", self.description.as_deref()),
            ("scope", scopes.as_deref()),
            ("resource_metadata", self.resource_metadata.as_deref()),
        ];

        f.write_str("Bearer")?;
        let mut separator = " ";
        for (name, value) in parameters {
            if let Some(value) = value {
                write!(f, "{separator}{name}=\"{}\"", Quoted(value))?;
                separator = ", ";
            }
        }
        Ok(())
    }
}

/// A text as the inside of a quoted string. What a header can't hold becomes `?`.
struct Quoted<'a>(&'a str);

impl fmt::Display for Quoted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '"' | '\\' => write!(f, "\\{c}")?,
                ' '..='~' => write!(f, "{c}")?,
                _ => f.write_str("?")?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_header_names_what_is_known() {
        assert_eq!(Challenge::default().to_string(), "Bearer");

        let full = Challenge {
            error: Some(ChallengeError::InsufficientScope),
            description: Some("needs \"a\"".to_owned()),
            scopes: vec!["a".to_owned(), "b".to_owned()],
            resource_metadata: Some("https://x/.well-known/oauth-protected-resource".to_owned()),
        };
        assert_eq!(
            full.to_string(),
            r#"Bearer error="insufficient_scope", error_description="needs \"a\"", scope="a b", resource_metadata="https://x/.well-known/oauth-protected-resource""#
        );
    }

    #[test]
    fn nothing_breaks_out_of_the_header() {
        let challenge = Challenge {
            description: Some("a\r\nSet-Cookie: x\\\u{e9}".to_owned()),
            ..Challenge::default()
        };
        assert_eq!(challenge.to_string(), r#"Bearer error_description="a??Set-Cookie: x\\?""#);
    }
}
