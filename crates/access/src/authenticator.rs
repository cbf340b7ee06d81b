//! Authentication: from the credentials of a request to a principal.

use std::sync::Arc;

use fleet_job::time::Timestamp;

use crate::{
    certificates::CertificateRules,
    keys::KeyTable,
    presented::{ClientCertificate, Presented},
    principal::Principal,
    refusal::{AuthRefusal, Fault},
    tokens::{Authentication, Tokens},
};

/// What a request without credentials gets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum WithoutCredentials {
    /// Nothing: it is refused.
    #[default]
    Refused,
    /// The local principal, if it comes from this machine. For servers that listen on loopback and
    /// have nothing configured.
    LocalIfLoopback,
    /// The same, although credentials are configured: whoever brings some is who they say. For
    /// servers that listen on loopback.
    LocalBesideCredentials,
    /// The anonymous principal, from wherever it comes.
    Anonymous,
}

/// Verifies credentials of all kinds, without IO.
///
/// A bearer token that has the form of an API key is one, and any other is an access token. A token
/// goes before a client certificate, since it is the more specific of the two; credentials that are
/// refused are never passed over in favour of others.
#[derive(Debug)]
pub struct Authenticator {
    keys: KeyTable,
    tokens: Tokens,
    certificates: CertificateRules,
    without: WithoutCredentials,
    local: Arc<Principal>,
    anonymous: Arc<Principal>,
}

impl Authenticator {
    /// An authenticator of these sources.
    pub(crate) fn new(
        keys: KeyTable,
        tokens: Tokens,
        certificates: CertificateRules,
        without: WithoutCredentials,
    ) -> Self {
        Self {
            keys,
            tokens,
            certificates,
            without,
            local: Arc::new(Principal::local()),
            anonymous: Arc::new(Principal::anonymous()),
        }
    }

    /// Returns whether neither keys nor issuers are configured. A server that does not verify
    /// client certificates either can't tell anybody from anybody else, and must not listen beyond
    /// loopback unless it was told to.
    pub fn is_unconfigured(&self) -> bool {
        self.keys.is_empty() && self.tokens.is_empty()
    }

    /// Returns whether there are `[[certificate]]` tables.
    pub fn has_certificates(&self) -> bool {
        !self.certificates.is_empty()
    }

    /// Returns whether nothing says that callers are to be told apart.
    fn wants_nobody_identified(&self) -> bool {
        self.is_unconfigured() && !self.has_certificates()
    }

    /// The access tokens, whose keys the caller fetches.
    pub fn tokens(&self) -> &Tokens {
        &self.tokens
    }

    /// Says who asks.
    pub fn authenticate(&self, presented: &Presented<'_>, now: Timestamp) -> Authentication {
        // Without any source there is nothing to verify credentials with; a server that serves
        // those without any then serves those who bring some, too.
        if self.wants_nobody_identified() && self.without != WithoutCredentials::Refused {
            return self.without_credentials(presented);
        }

        match presented.bearer() {
            Err(refusal) => Authentication::Refused(refusal),
            Ok(Some(token)) => self.check_token(token, now),
            Ok(None) => match presented.certificate {
                Some(certificate) if self.has_certificates() => self.check_certificate(certificate),
                _ => self.without_credentials(presented),
            },
        }
    }

    fn check_certificate(&self, certificate: &ClientCertificate) -> Authentication {
        if certificate.is_withdrawn {
            return Authentication::Refused(AuthRefusal::rejected(Fault::WithdrawnCertificate));
        }
        match self.certificates.principal(certificate) {
            Some(principal) => Authentication::Verified(Arc::new(principal)),
            None => Authentication::Refused(AuthRefusal::rejected(Fault::UnknownCertificate)),
        }
    }

    fn check_token(&self, token: &str, now: Timestamp) -> Authentication {
        match self.keys.check(token, now) {
            Some(Ok(principal)) => Authentication::Verified(principal),
            Some(Err(fault)) => Authentication::Refused(AuthRefusal::rejected(fault)),
            None if self.tokens.is_empty() => {
                Authentication::Refused(AuthRefusal::rejected(Fault::NotAnAccessToken))
            }
            None => self.tokens.check(token, now),
        }
    }

    fn without_credentials(&self, presented: &Presented<'_>) -> Authentication {
        match self.without {
            WithoutCredentials::Anonymous => Authentication::Verified(Arc::clone(&self.anonymous)),
            // Whoever has configured a source wants to know who asks, on this machine too.
            WithoutCredentials::LocalIfLoopback
                if presented.from_loopback && self.wants_nobody_identified() =>
            {
                Authentication::Verified(Arc::clone(&self.local))
            }
            WithoutCredentials::LocalBesideCredentials if presented.from_loopback => {
                Authentication::Verified(Arc::clone(&self.local))
            }
            WithoutCredentials::LocalIfLoopback
            | WithoutCredentials::LocalBesideCredentials
            | WithoutCredentials::Refused => {
                Authentication::Refused(AuthRefusal::rejected(Fault::Missing))
            }
        }
    }
}

#[cfg(test)]
mod tests;
