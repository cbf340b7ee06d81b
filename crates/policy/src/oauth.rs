//! How the server proves to remotes who it is: as an OAuth client of an authorization server.
//!
//! Only the operator names an authorization server, in the policy file. A configuration in a message
//! can't, so it never decides who is asked for a token or which client asks.

use std::path::PathBuf;

use fleet_job::mcp_servers::expand::is_secret_name;
use serde::Deserialize;
use url::{Host, Url};

/// The OAuth client that gets access tokens for the remotes of a rule.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RemoteOauth {
    /// Who issues the tokens.
    pub server: TokenServer,
    /// The client's id there.
    pub client_id: String,
    /// How the client proves that.
    pub proof: ProofRef,
    /// The scopes to ask for.
    pub scopes: Vec<String>,
    /// What the tokens are for (RFC 8707); the URL of the remote if nothing is set.
    pub resource: Option<Url>,
    /// The same, as some authorization servers call it.
    pub audience: Option<String>,
    /// The authorities of the authorization server's certificate, in place of the system's.
    pub authorities: Option<PathBuf>,
}

/// Where tokens come from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenServer {
    /// The issuer that the remote names in its metadata (RFC 9728), and no other one.
    Issuer(Url),
    /// The token endpoint itself.
    Endpoint(Url),
}

impl TokenServer {
    /// Returns the URL of the issuer or of its token endpoint.
    pub fn url(&self) -> &Url {
        match self {
            Self::Issuer(url) | Self::Endpoint(url) => url,
        }
    }
}

/// The name of the secret with which a client proves who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ProofRef {
    /// The secret is one that the authorization server knows as well.
    ClientSecret(String),
    /// The secret is a private key as PEM (RFC 7523).
    PrivateKey {
        /// The name of the secret.
        name: String,
        /// The algorithm that the key signs with.
        algorithm: KeyAlgorithm,
    },
}

impl ProofRef {
    /// Returns the name of the secret.
    pub fn secret(&self) -> &str {
        match self {
            Self::ClientSecret(name) | Self::PrivateKey { name, .. } => name,
        }
    }
}

/// The algorithm of a client's private key, as RFC 7518 writes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Deserialize)]
pub enum KeyAlgorithm {
    /// ECDSA with P-256.
    #[default]
    #[serde(rename = "ES256")]
    Es256,
    /// ECDSA with P-384.
    #[serde(rename = "ES384")]
    Es384,
    /// RSA.
    #[serde(rename = "RS256")]
    Rs256,
}

/// What is wrong with an `oauth` table.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RemoteOauthError {
    /// Neither or both of two keys are set.
    #[error("expected either `{0}` or `{1}`")]
    Either(&'static str, &'static str),
    /// A URL is not one to which secrets may be sent.
    #[error(
        "`{key}`: {url:?} is not an https URL without user name, password and fragment (http is for this machine only)"
    )]
    Url {
        /// The key.
        key: &'static str,
        /// The URL as written.
        url: String,
    },
    /// A key does not refer to a secret.
    #[error(
        "`{0}` must refer to a secret, as in \"${{secret:crm-client}}\"; the policy file holds no secrets"
    )]
    NoReference(&'static str),
    /// A scope is none.
    #[error("`scopes`: {0:?} is not a scope; expected visible characters without `\"` and `\\`")]
    Scope(String),
    /// A key has no text.
    #[error("`{0}` is empty")]
    Empty(&'static str),
    /// An algorithm is set where there is no key.
    #[error("`algorithm` is for a `private_key`")]
    Algorithm,
    /// The rule covers more than one origin.
    #[error(
        "`oauth` needs one host name or address and a `port`, since a token is for one server only and would be sent to all that the rule covers"
    )]
    ManyOrigins,
    /// A path is relative.
    #[error("`ca_file`: {0:?} is not an absolute path")]
    RelativePath(PathBuf),
}

/// The table as it is written.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RemoteOauthFile {
    issuer: Option<String>,
    token_url: Option<String>,
    client_id: String,
    client_secret: Option<String>,
    private_key: Option<String>,
    algorithm: Option<KeyAlgorithm>,
    #[serde(default)]
    scopes: Vec<String>,
    resource: Option<String>,
    audience: Option<String>,
    ca_file: Option<PathBuf>,
}

impl RemoteOauthFile {
    /// Checks the table.
    pub(super) fn read(self) -> Result<RemoteOauth, RemoteOauthError> {
        let server = match (&self.issuer, &self.token_url) {
            (Some(url), None) => TokenServer::Issuer(secure_url("issuer", url)?),
            (None, Some(url)) => TokenServer::Endpoint(secure_url("token_url", url)?),
            _ => return Err(RemoteOauthError::Either("issuer", "token_url")),
        };

        let proof = match (&self.client_secret, &self.private_key) {
            (Some(_), None) if self.algorithm.is_some() => return Err(RemoteOauthError::Algorithm),
            (Some(text), None) => ProofRef::ClientSecret(secret_name("client_secret", text)?),
            (None, Some(text)) => ProofRef::PrivateKey {
                name: secret_name("private_key", text)?,
                algorithm: self.algorithm.unwrap_or_default(),
            },
            _ => return Err(RemoteOauthError::Either("client_secret", "private_key")),
        };

        if self.client_id.is_empty() {
            return Err(RemoteOauthError::Empty("client_id"));
        }
        if self.audience.as_deref() == Some("") {
            return Err(RemoteOauthError::Empty("audience"));
        }
        if let Some(scope) = self.scopes.iter().find(|scope| !is_scope(scope)) {
            return Err(RemoteOauthError::Scope(scope.clone()));
        }
        if let Some(path) = self.ca_file.as_ref().filter(|path| path.is_relative()) {
            return Err(RemoteOauthError::RelativePath(path.clone()));
        }

        let resource =
            self.resource.as_deref().map(|url| secure_url("resource", url)).transpose()?;
        Ok(RemoteOauth {
            server,
            client_id: self.client_id,
            proof,
            scopes: self.scopes,
            resource,
            audience: self.audience,
            authorities: self.ca_file,
        })
    }
}

/// Returns whether a bearer token may be sent to this URL: over TLS, or within this machine.
pub fn keeps_secrets(url: &Url) -> bool {
    let is_loopback = match url.host() {
        Some(Host::Domain(name)) => name == "localhost",
        Some(Host::Ipv4(address)) => address.is_loopback(),
        Some(Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    };
    url.scheme() == "https" || (url.scheme() == "http" && is_loopback)
}

fn secure_url(key: &'static str, text: &str) -> Result<Url, RemoteOauthError> {
    let is_plain = |url: &Url| {
        url.username().is_empty() && url.password().is_none() && url.fragment().is_none()
    };
    let parsed = Url::parse(text).ok().filter(|url| keeps_secrets(url) && is_plain(url));
    parsed.ok_or_else(|| RemoteOauthError::Url { key, url: text.to_owned() })
}

/// Returns the name in a text that is nothing but a reference to a secret.
fn secret_name(key: &'static str, text: &str) -> Result<String, RemoteOauthError> {
    let name = text.strip_prefix("${secret:").and_then(|rest| rest.strip_suffix('}'));
    let name = name.filter(|name| is_secret_name(name)).map(str::to_owned);
    name.ok_or(RemoteOauthError::NoReference(key))
}

/// RFC 6749, section 3.3.
fn is_scope(text: &str) -> bool {
    let is_allowed = |c: char| c.is_ascii_graphic() && !matches!(c, '"' | '\\');
    !text.is_empty() && text.chars().all(is_allowed)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Policy;

    fn read(table: &str) -> Result<RemoteOauth, String> {
        let text = format!("[[remote]]\nhost = 'mcp.example'\nport = 443\n[remote.oauth]\n{table}");
        let policy = Policy::from_toml(&text).map_err(|error| {
            let cause = std::error::Error::source(&error).map(ToString::to_string);
            format!("{error}: {}", cause.unwrap_or_default())
        })?;
        Ok(policy.remotes[0].oauth.clone().unwrap())
    }

    #[test]
    fn a_table_names_a_client_and_its_secret() {
        let oauth = read(
            "issuer = 'https://idp.example/realm'\nclient_id = 'fleet'\n\
             client_secret = '${secret:crm-client}'\nscopes = ['crm.read', 'api://x/.default']",
        )
        .unwrap();
        assert_eq!(oauth.server.url().as_str(), "https://idp.example/realm");
        assert_eq!(oauth.proof, ProofRef::ClientSecret("crm-client".to_owned()));
        assert_eq!(oauth.scopes.len(), 2);

        let oauth = read(
            "token_url = 'http://127.0.0.1:9/token'\nclient_id = 'fleet'\naudience = 'crm'\n\
             private_key = '${secret:key}'\nalgorithm = 'RS256'\nresource = 'https://crm.example/'",
        )
        .unwrap();
        let algorithm = KeyAlgorithm::Rs256;
        assert_eq!(oauth.proof, ProofRef::PrivateKey { name: "key".to_owned(), algorithm });
        assert!(matches!(oauth.server, TokenServer::Endpoint(_)) && oauth.resource.is_some());
    }

    #[test]
    fn a_table_that_could_reveal_a_secret_is_refused() {
        let server = "issuer = 'https://idp.example'";
        let proof = "client_secret = '${secret:s}'";
        let id = "client_id = 'fleet'";
        let check = |lines: &[&str], expected: &str| {
            let error = read(&lines.join("\n")).unwrap_err();
            assert!(error.contains(expected), "{lines:?}: {error}");
        };
        check(&[server, id], "`client_secret` or `private_key`");
        check(&[id, proof], "`issuer` or `token_url`");
        check(&[server, "token_url = 'https://a/'", id, proof], "`issuer` or `token_url`");
        for url in ["http://idp.example", "https://u:p@idp.example", "ftp://idp.example", "idp"] {
            check(&[&format!("issuer = '{url}'"), id, proof], "is not an https URL");
        }
        for secret in ["hunter2", "${KEY}", "Bearer ${secret:s}", "${secret:../s}", "${secret:}"] {
            check(&[server, id, &format!("client_secret = '{secret}'")], "must refer to a secret");
        }
        check(&[server, proof, "client_id = ''"], "`client_id` is empty");
        check(&[server, id, proof, "scopes = ['a b']"], "is not a scope");
        check(&[server, id, proof, "algorithm = 'ES256'"], "is for a `private_key`");
        check(&[server, id, proof, "ca_file = 'ca'"], "not an absolute path");
        check(&[server, id, proof, "password = 'x'"], "unknown field");
    }
    /// Any server of the domain, or at another port, would get the token of one of them.
    #[test]
    fn a_token_is_for_one_origin() {
        let check = |rule: &str, is_allowed: bool| {
            let text = format!(
                "[[remote]]\n{rule}\n[remote.oauth]\nissuer = 'https://idp.example'\n\
                 client_id = 'fleet'\nclient_secret = '${{secret:s}}'\naudience = 'crm'\n"
            );
            let checked = Policy::from_toml(&text);
            let refusal = checked.as_ref().err().and_then(std::error::Error::source);
            let is_refused = refusal.is_some_and(|error| error.to_string().contains("a `port`"));
            assert!(
                checked.is_ok() == is_allowed && is_refused != is_allowed,
                "{rule}: {checked:?}"
            );
        };
        check("host = 'mcp.example'", false);
        check("host = '10.0.0.1'", false);
        check("host = '*.mcp.example'", false);
        check("host = '*.mcp.example'\nport = 443", false);
        check("host = 'mcp.example'\nport = 443", true);
        check("host = 'mcp.example:8443'", true);
        check("host = '[::1]:8443'", true);
    }
}
