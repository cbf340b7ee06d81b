//! Refused credentials: why, and how HTTP says so.

use std::time::Duration;

use fleet_codes::{self as codes, Code};

use crate::challenge::{Challenge, ChallengeError};

/// Why credentials were refused. The text is fit for the caller; it never holds the credentials.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthRefusal {
    status: AuthStatus,
    fault: Fault,
}

/// The HTTP status of a refusal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AuthStatus {
    /// 400: the credentials can't be read.
    BadRequest,
    /// 401: there are none, or they are not accepted.
    Unauthorized,
    /// 503: they can't be checked at the moment.
    Unavailable {
        /// When to try again.
        retry_after: Duration,
    },
}

/// What was wrong with credentials: a closed set, fit for a metric's label.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Fault {
    /// There are no credentials.
    Missing,
    /// There is more than one `Authorization` header.
    SeveralHeaders,
    /// The `Authorization` header is too long.
    TooLong,
    /// The scheme is not `Bearer`.
    OtherScheme,
    /// What follows `Bearer` is not one token.
    NotABearerToken,
    /// The credentials are in the query, where logs and histories keep them.
    InQuery,
    /// There is no such API key, or its secret is wrong.
    UnknownKey,
    /// The API key has expired.
    ExpiredKey,
    /// The API key was revoked.
    RevokedKey,
    /// The token is not a signed JSON Web Token that serves as an access token.
    NotAnAccessToken,
    /// No `[[issuer]]` has issued the token.
    UnknownIssuer,
    /// No key of the issuer has the token's key id.
    UnknownSigningKey,
    /// The token's algorithm is not allowed for the key.
    Algorithm,
    /// The signature is wrong.
    Signature,
    /// The token has no `exp`, or it has passed.
    Expired,
    /// The token is not valid yet.
    NotYetValid,
    /// The token is not meant for this server.
    Audience,
    /// The token names no subject.
    Subject,
    /// The token is bound to a key of its holder, which can't be verified here.
    BoundToken,
    /// No `[[certificate]]` covers a name of the client certificate.
    UnknownCertificate,
    /// The client certificate has expired, was revoked or has lost its authority since the
    /// connection began.
    WithdrawnCertificate,
    /// The issuer's keys have never been read.
    NoIssuerKeys,
}

impl AuthRefusal {
    /// The refusal of a request whose URL carries credentials.
    pub fn in_query() -> Self {
        Self::malformed(Fault::InQuery)
    }

    pub(crate) fn malformed(fault: Fault) -> Self {
        Self { status: AuthStatus::BadRequest, fault }
    }

    pub(crate) fn rejected(fault: Fault) -> Self {
        Self { status: AuthStatus::Unauthorized, fault }
    }

    pub(crate) fn unavailable(fault: Fault, retry_after: Duration) -> Self {
        Self { status: AuthStatus::Unavailable { retry_after }, fault }
    }

    /// The HTTP status.
    pub fn status(&self) -> AuthStatus {
        self.status
    }

    /// What was wrong.
    pub fn fault(&self) -> Fault {
        self.fault
    }

    /// The stable code of the error.
    pub fn code(&self) -> Code {
        match (self.status, self.fault) {
            (_, Fault::Missing) => codes::UNAUTHENTICATED,
            (AuthStatus::BadRequest, _) => codes::MALFORMED_CREDENTIALS,
            (AuthStatus::Unavailable { .. }, _) => codes::NO_ISSUER_KEYS,
            (AuthStatus::Unauthorized, _) => codes::BAD_CREDENTIALS,
        }
    }

    /// The value of `WWW-Authenticate`, which every 400 and 401 carries; a 503 is no verdict on the
    /// credentials and has none.
    ///
    /// `resource_metadata` is the URL of this server's RFC 9728 document, and `scopes` are those
    /// that a client should ask for at first.
    pub fn challenge(
        &self,
        resource_metadata: Option<&str>,
        scopes: &[String],
    ) -> Option<Challenge> {
        let error = match (self.status, self.fault) {
            (AuthStatus::Unavailable { .. }, _) => return None,
            (_, Fault::Missing) => None,
            (AuthStatus::BadRequest, _) => Some(ChallengeError::InvalidRequest),
            (AuthStatus::Unauthorized, _) => Some(ChallengeError::InvalidToken),
        };

        Some(Challenge {
            error,
            description: error.map(|_| self.fault.explain().to_owned()),
            scopes: scopes.to_vec(),
            resource_metadata: resource_metadata.map(str::to_owned),
        })
    }
}

impl std::fmt::Display for AuthRefusal {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} [{}]", self.fault.explain(), self.code())
    }
}

impl std::error::Error for AuthRefusal {}

impl Fault {
    /// The fault as a metric's label.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::SeveralHeaders => "several-headers",
            Self::TooLong => "too-long",
            Self::OtherScheme => "other-scheme",
            Self::NotABearerToken => "not-a-bearer-token",
            Self::InQuery => "in-query",
            Self::UnknownKey => "unknown-key",
            Self::ExpiredKey => "expired-key",
            Self::RevokedKey => "revoked-key",
            Self::NotAnAccessToken => "not-an-access-token",
            Self::UnknownIssuer => "unknown-issuer",
            Self::UnknownSigningKey => "unknown-signing-key",
            Self::Algorithm => "algorithm",
            Self::Signature => "signature",
            Self::Expired => "expired",
            Self::NotYetValid => "not-yet-valid",
            Self::Audience => "audience",
            Self::Subject => "subject",
            Self::BoundToken => "bound-token",
            Self::UnknownCertificate => "unknown-certificate",
            Self::WithdrawnCertificate => "withdrawn-certificate",
            Self::NoIssuerKeys => "no-issuer-keys",
        }
    }

    /// Says to the caller what was wrong and what was expected.
    pub fn explain(self) -> &'static str {
        match self {
            Self::Missing => {
                "the request carries no credentials; send an API key or an access token as \
                 `Authorization: Bearer ...`, or connect with a client certificate if the server \
                 accepts them"
            }
            Self::SeveralHeaders => {
                "the request has more than one Authorization header; send exactly one"
            }
            Self::TooLong => "the Authorization header is longer than 16 KiB",
            Self::OtherScheme => "the Authorization header does not use the Bearer scheme",
            Self::NotABearerToken => {
                "the Authorization header is not `Bearer` followed by one token"
            }
            Self::InQuery => {
                "the URL carries credentials, which logs would keep; send them in the Authorization \
                 header, and replace them if they are still valid"
            }
            Self::UnknownKey => "the API key is not valid here",
            Self::ExpiredKey => "the API key has expired",
            Self::RevokedKey => "the API key was revoked",
            Self::NotAnAccessToken => {
                "the token is neither an API key of this server nor a signed JWT access token"
            }
            Self::UnknownIssuer => {
                "the token was issued by an issuer that this server does not trust"
            }
            Self::UnknownSigningKey => {
                "the token was signed with a key that its issuer does not publish"
            }
            Self::Algorithm => "the token's algorithm is not allowed for the key that signed it",
            Self::Signature => "the token's signature is wrong",
            Self::Expired => "the token has expired or has no `exp`",
            Self::NotYetValid => "the token is not valid yet",
            Self::Audience => "the token was issued for another audience than this server",
            Self::Subject => "the token names no subject (`sub`)",
            Self::BoundToken => {
                "the token is bound to a key of its holder (`cnf`), which this server cannot verify"
            }
            Self::UnknownCertificate => {
                "no [[certificate]] covers a name of the client certificate"
            }
            Self::WithdrawnCertificate => {
                "the client certificate has expired, was revoked, or is of an authority that this \
                 server no longer trusts; connect again with another one"
            }
            Self::NoIssuerKeys => {
                "the keys of the token's issuer could not be read yet, so the token cannot be checked"
            }
        }
    }
}
