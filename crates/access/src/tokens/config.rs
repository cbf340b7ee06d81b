//! The `[[issuer]]` tables: whose tokens are accepted, and what their claims mean.

use std::time::Duration;

use fleet_codes as codes;
use jsonwebtoken::Algorithm;
use serde::Deserialize;

use super::{KeySource, jwks::PUBLIC_KEY_ALGORITHMS};
use crate::principal::PrincipalKind;

const DEFAULT_LEEWAY_SECONDS: u64 = 60;
const MAX_LEEWAY_SECONDS: u64 = 300;

/// An `[[issuer]]` of the policy file.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct IssuerTable {
    /// The issuer's URL, exactly as the `iss` of its tokens has it.
    pub url: String,
    /// Who the tokens must be meant for: one of these in `aud`. The server's own URL if there are
    /// none; an empty list is an error.
    pub audiences: Option<Vec<String>>,
    /// Where the issuer's key set is; found by the issuer's metadata if neither is given.
    pub jwks_url: Option<String>,
    /// A file with the key set.
    pub jwks_file: Option<String>,
    /// The algorithms that tokens may be signed with; all with public keys if there are none.
    pub algorithms: Option<Vec<String>>,
    /// The claims whose values are the principal's roles. None by default: an issuer decides on
    /// roles only where the file says so. A dot leads into an object, as in `realm_access.roles`.
    #[serde(default)]
    pub roles_claims: Vec<String>,
    /// The claims that hold the scopes.
    pub scopes_claims: Option<Vec<String>>,
    /// The claim that names the tenant.
    pub tenant_claim: Option<String>,
    /// The claims that may hold a name for people, the best one first.
    pub name_claims: Option<Vec<String>>,
    /// The claim that says what sort of subject it is: `person`, `service` or `node`.
    pub kind_claim: Option<String>,
    /// What sort of subject it is without such a claim. By default, a token whose subject is its
    /// client is a service's, and every other one a person's.
    pub kind: Option<PrincipalKind>,
    /// How far the clocks of the issuer and of this server may be apart.
    pub leeway_seconds: Option<u64>,
}

/// Why an `[[issuer]]` can't be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IssuerTableError {
    /// The URL is not one that an issuer can have.
    #[error(
        "`url` of the [[issuer]] {url:?} is not an issuer's URL; expected exactly what `iss` of its \
         tokens has, such as https://idp.example.com/realms/a [{code}]",
        code = codes::POLICY_FILE
    )]
    Url {
        /// The value.
        url: String,
    },
    /// Two tables have one URL.
    #[error("two [[issuer]] have the url {url:?}; make them one [{code}]", code = codes::POLICY_FILE)]
    SameUrl {
        /// The value.
        url: String,
    },
    /// There is no audience.
    #[error(
        "the [[issuer]] {url:?} has no audience, so every token of the issuer would be accepted; \
         list in `audiences` what `aud` of the tokens for this server has, or set the server's \
         public URL [{code}]",
        code = codes::POLICY_FILE
    )]
    NoAudience {
        /// The issuer.
        url: String,
    },
    /// There are two places for the keys.
    #[error(
        "the [[issuer]] {url:?} has both `jwks_url` and `jwks_file`; remove one [{code}]",
        code = codes::POLICY_FILE
    )]
    TwoSources {
        /// The issuer.
        url: String,
    },
    /// The place of the keys could be changed on the way.
    #[error(
        "`jwks_url` of the [[issuer]] {url:?} must begin with https:// (or http:// and a loopback \
         address) [{code}]",
        code = codes::POLICY_FILE
    )]
    JwksUrl {
        /// The issuer.
        url: String,
    },
    /// An algorithm is unknown or symmetric.
    #[error(
        "`algorithms` of the [[issuer]] {url:?}: {algorithm:?} is not a signature with a public \
         key; use some of RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384 and EdDSA [{code}]",
        code = codes::POLICY_FILE
    )]
    Algorithm {
        /// The issuer.
        url: String,
        /// The value.
        algorithm: String,
    },
    /// The leeway is too long.
    #[error(
        "`leeway_seconds` of the [[issuer]] {url:?} is more than {MAX_LEEWAY_SECONDS}; set the \
         clocks instead [{code}]",
        code = codes::POLICY_FILE
    )]
    Leeway {
        /// The issuer.
        url: String,
    },
    /// The subject's kind can't be that.
    #[error(
        "`kind` of the [[issuer]] {url:?} can't be anonymous; use person, service or node [{code}]",
        code = codes::POLICY_FILE
    )]
    Kind {
        /// The issuer.
        url: String,
    },
}

/// An issuer whose table is sound.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct IssuerConfig {
    pub(crate) url: String,
    pub(crate) source: KeySource,
    /// Never empty.
    pub(crate) audiences: Vec<String>,
    /// Never empty, and without symmetric ones.
    pub(crate) algorithms: Vec<Algorithm>,
    pub(crate) leeway: Duration,
    pub(crate) roles_claims: Vec<String>,
    pub(crate) scopes_claims: Vec<String>,
    pub(crate) tenant_claim: Option<String>,
    pub(crate) name_claims: Vec<String>,
    pub(crate) kind_claim: Option<String>,
    pub(crate) kind: Option<PrincipalKind>,
}

impl IssuerConfig {
    /// Checks a table. `resource` is the server's own URL, the audience of a table without one.
    pub(crate) fn new(
        table: IssuerTable,
        resource: Option<&str>,
    ) -> Result<Self, IssuerTableError> {
        let url = table.url;
        let is_url = ["https://", "http://"]
            .iter()
            .any(|scheme| url.strip_prefix(scheme).is_some_and(|rest| !rest.is_empty()));
        if !is_url || url.contains(|c: char| c.is_whitespace() || c.is_control()) {
            return Err(IssuerTableError::Url { url });
        }

        let audiences = match table.audiences {
            Some(audiences) => audiences,
            None => resource.map(str::to_owned).into_iter().collect(),
        };
        if audiences.is_empty() || audiences.iter().any(String::is_empty) {
            return Err(IssuerTableError::NoAudience { url });
        }

        let source = match (table.jwks_url, table.jwks_file) {
            (Some(_), Some(_)) => return Err(IssuerTableError::TwoSources { url }),
            (Some(at), None) if !is_safe(&at) => return Err(IssuerTableError::JwksUrl { url }),
            (Some(at), None) => KeySource::Url(at),
            (None, Some(file)) => KeySource::File(file),
            (None, None) => KeySource::Discovery,
        };

        let algorithms = read_algorithms(table.algorithms)
            .map_err(|algorithm| IssuerTableError::Algorithm { url: url.clone(), algorithm })?;

        let leeway = table.leeway_seconds.unwrap_or(DEFAULT_LEEWAY_SECONDS);
        if leeway > MAX_LEEWAY_SECONDS {
            return Err(IssuerTableError::Leeway { url });
        }
        if table.kind == Some(PrincipalKind::Anonymous) {
            return Err(IssuerTableError::Kind { url });
        }

        let or_default = |own: Option<Vec<String>>, default: &[&str]| {
            own.unwrap_or_else(|| default.iter().map(|&name| name.to_owned()).collect())
        };
        Ok(Self {
            url,
            source,
            audiences,
            algorithms,
            leeway: Duration::from_secs(leeway),
            roles_claims: table.roles_claims,
            scopes_claims: or_default(table.scopes_claims, &["scope", "scp"]),
            tenant_claim: table.tenant_claim,
            name_claims: or_default(table.name_claims, &["name", "preferred_username", "email"]),
            kind_claim: table.kind_claim,
            kind: table.kind,
        })
    }
}

/// Returns whether nobody on the way can exchange what is at a URL.
fn is_safe(url: &str) -> bool {
    let is_loopback = |rest: &str| {
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        let host = rest[..end].rsplit_once(':').map_or(&rest[..end], |(host, _)| host);
        ["127.0.0.1", "localhost", "[::1]"].contains(&host)
    };
    url.starts_with("https://") || url.strip_prefix("http://").is_some_and(is_loopback)
}

/// Reads the names of algorithms; the error is one that is not allowed.
fn read_algorithms(names: Option<Vec<String>>) -> Result<Vec<Algorithm>, String> {
    let Some(names) = names.filter(|names| !names.is_empty()) else {
        return Ok(PUBLIC_KEY_ALGORITHMS.to_vec());
    };
    let read = names.into_iter().map(|name| {
        let known = name.parse().ok().filter(|known| PUBLIC_KEY_ALGORITHMS.contains(known));
        known.ok_or(name)
    });
    read.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(extra: &str, expected: Result<KeySource, &str>) {
        let text = format!("url = 'https://idp'\n{extra}");
        let table: IssuerTable = toml::from_str(&text).unwrap();
        let config = IssuerConfig::new(table, Some("https://me"));
        match (config, expected) {
            (Ok(config), Ok(source)) => assert_eq!(config.source, source, "{extra}"),
            (Err(error), Err(text)) => assert!(error.to_string().contains(text), "{error}"),
            (config, _) => panic!("{extra}: {config:?}"),
        }
    }

    #[test]
    fn tables_are_checked() {
        check("", Ok(KeySource::Discovery));
        check("jwks_url = 'https://a'", Ok(KeySource::Url("https://a".to_owned())));
        check("jwks_file = '/a'", Ok(KeySource::File("/a".to_owned())));
        let loopback = "http://localhost:1/a";
        check(&format!("jwks_url = '{loopback}'"), Ok(KeySource::Url(loopback.to_owned())));

        check("jwks_url = 'http://a'", Err("https://"));
        check("jwks_url = 'http://localhost.evil.example/a'", Err("https://"));
        check("jwks_url = 'http://localhost@evil.example/a'", Err("https://"));
        check("jwks_url = 'https://a'\njwks_file = '/a'", Err("both"));
        check("audiences = []", Err("no audience"));
        check("audiences = ['']", Err("no audience"));
        for symmetric in ["HS256", "none", "RS257"] {
            check(&format!("algorithms = ['{symmetric}']"), Err(symmetric));
        }
        check("leeway_seconds = 301", Err("`leeway_seconds`"));
        check("kind = 'anonymous'", Err("`kind`"));
    }

    #[test]
    fn an_audience_is_always_required() {
        let table = |url: &str| toml::from_str(&format!("url = '{url}'")).unwrap();
        let config = IssuerConfig::new(table("https://idp"), Some("https://me")).unwrap();
        assert_eq!(config.audiences, ["https://me"]);

        let url = "https://idp".to_owned();
        let none = IssuerConfig::new(table(&url), None);
        assert_eq!(none, Err(IssuerTableError::NoAudience { url }));
        for bad in ["idp", "https://", "https://a b"] {
            let error = IssuerConfig::new(table(bad), Some("https://me"));
            assert_eq!(error, Err(IssuerTableError::Url { url: bad.to_owned() }));
        }
    }
}
