//! Finds out where an authorization server gives tokens.
//!
//! The MCP server is asked which authorization server it uses. If the operator has configured an
//! issuer, the MCP server may do no more than name it: what is then believed about the issuer comes
//! from the issuer's own URLs (RFC 8414), never from a document that the MCP server serves.

use http::StatusCode;
use rmcp::transport::auth::{AuthorizationManager, AuthorizationMetadata};
use url::Url;

use crate::{describe, fetch::BoundedClient};

/// The longest text of another server's that an error quotes, in characters.
const SHOWN: usize = 200;

/// Returns the metadata of the authorization server that the MCP server names, whichever it is.
pub(crate) async fn metadata_of_named(
    manager: &AuthorizationManager,
) -> Result<AuthorizationMetadata, String> {
    let found = manager.resolve_metadata().await.map_err(|error| describe(&error))?;
    if found.source.is_discovered() {
        Ok(found.metadata)
    } else {
        Err("the MCP server names no authorization server".to_owned())
    }
}

/// Returns the metadata of `issuer`, if that is the authorization server that the MCP server names.
pub(crate) async fn metadata_of_issuer(
    manager: &AuthorizationManager,
    issuer: &Url,
    http: &BoundedClient,
) -> Result<AuthorizationMetadata, String> {
    let named = metadata_of_named(manager).await?.issuer.unwrap_or_default();
    if !is_same_issuer(&named, issuer) {
        let named: String = named.chars().take(SHOWN).collect();
        return Err(format!("the MCP server names the issuer {named:?}, not {issuer}"));
    }

    let mut problem = format!("{issuer} publishes no metadata");
    for url in metadata_urls(issuer) {
        let answer =
            http.get(&url).await.map_err(|error| format!("could not get {url}: {error}"))?;
        if answer.status() != StatusCode::OK {
            continue;
        }
        match serde_json::from_slice::<AuthorizationMetadata>(answer.body()) {
            Ok(found) if is_same_issuer(found.issuer.as_deref().unwrap_or_default(), issuer) => {
                return Ok(found);
            }
            Ok(_) => problem = format!("the metadata at {url} is that of another issuer"),
            Err(_) => problem = format!("the document at {url} is not metadata of an issuer"),
        }
    }
    Err(problem)
}

/// Returns where an issuer may publish its metadata (RFC 8414, section 3, and OpenID Connect
/// Discovery, section 4).
fn metadata_urls(issuer: &Url) -> Vec<Url> {
    let path = issuer.path().trim_end_matches('/');
    let mut paths = vec![
        format!("/.well-known/oauth-authorization-server{path}"),
        format!("/.well-known/openid-configuration{path}"),
    ];
    if !path.is_empty() {
        paths.push(format!("{path}/.well-known/openid-configuration"));
    }

    let at = |path: String| {
        let mut url = issuer.clone();
        url.set_query(None);
        url.set_fragment(None);
        url.set_path(&path);
        url
    };
    paths.into_iter().map(at).collect()
}

fn is_same_issuer(named: &str, issuer: &Url) -> bool {
    named.trim_end_matches('/') == issuer.as_str().trim_end_matches('/')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_is_at_the_issuers_own_urls() {
        let check = |issuer: &str, expected: &[&str]| {
            let urls = metadata_urls(&Url::parse(issuer).unwrap());
            let urls: Vec<_> = urls.iter().map(Url::as_str).collect();
            assert_eq!(urls, expected, "{issuer}");
        };
        for issuer in ["https://idp.example", "https://idp.example/"] {
            check(
                issuer,
                &[
                    "https://idp.example/.well-known/oauth-authorization-server",
                    "https://idp.example/.well-known/openid-configuration",
                ],
            );
        }
        check(
            "https://idp.example/realms/a/?x=y",
            &[
                "https://idp.example/.well-known/oauth-authorization-server/realms/a",
                "https://idp.example/.well-known/openid-configuration/realms/a",
                "https://idp.example/realms/a/.well-known/openid-configuration",
            ],
        );
    }
}
