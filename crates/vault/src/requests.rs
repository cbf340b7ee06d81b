//! The URL that a principal opens, and the forms that token endpoints are sent. How the client proves
//! who it is (a secret, a signed assertion) is added by whoever sends them.

use url::Url;

use crate::{
    authorization::{Begun, Exchange},
    credential::Registration,
};

/// The fields of a form.
pub type Form = Vec<(&'static str, String)>;

/// The grant of RFC 8693.
const TOKEN_EXCHANGE: &str = "urn:ietf:params:oauth:grant-type:token-exchange";
const ACCESS_TOKEN: &str = "urn:ietf:params:oauth:token-type:access_token";

/// Returns the URL at which a principal gives its consent.
pub fn consent_url(
    endpoint: &Url,
    registration: &Registration,
    (scopes, redirect_uri): (&[String], &str),
    begun: &Begun,
) -> Url {
    let mut url = endpoint.clone();
    url.set_fragment(None);
    {
        let mut query = url.query_pairs_mut();
        query
            .append_pair("response_type", "code")
            .append_pair("client_id", &registration.client_id)
            .append_pair("redirect_uri", redirect_uri)
            .append_pair("resource", registration.resource.as_str())
            .append_pair("state", &begun.state)
            .append_pair("code_challenge", &begun.challenge)
            .append_pair("code_challenge_method", "S256");
        if !scopes.is_empty() {
            query.append_pair("scope", &scopes.join(" "));
        }
    }
    url
}

/// Exchanges a code for tokens.
pub fn of_code(code: &str, exchange: &Exchange) -> Form {
    vec![
        ("grant_type", "authorization_code".to_owned()),
        ("code", code.to_owned()),
        ("redirect_uri", exchange.redirect_uri.clone()),
        ("code_verifier", exchange.verifier.clone()),
        ("resource", exchange.registration.resource.to_string()),
    ]
}

/// Refreshes a credential.
pub fn of_refresh(refresh_token: &str, registration: &Registration) -> Form {
    vec![
        ("grant_type", "refresh_token".to_owned()),
        ("refresh_token", refresh_token.to_owned()),
        ("resource", registration.resource.to_string()),
    ]
}

/// Exchanges the access token with which a principal has called us for one for the hosted server
/// (RFC 8693).
pub fn of_subject(access_token: &str, registration: &Registration, scopes: &[String]) -> Form {
    let mut form = vec![
        ("grant_type", TOKEN_EXCHANGE.to_owned()),
        ("subject_token", access_token.to_owned()),
        ("subject_token_type", ACCESS_TOKEN.to_owned()),
        ("requested_token_type", ACCESS_TOKEN.to_owned()),
        ("resource", registration.resource.to_string()),
    ];
    if !scopes.is_empty() {
        form.push(("scope", scopes.join(" ")));
    }
    form
}

/// Revokes a token (RFC 7009).
pub fn of_revocation((token, hint): (&str, &str)) -> Form {
    vec![("token", token.to_owned()), ("token_type_hint", hint.to_owned())]
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::Authorization;

    #[test]
    fn a_consent_url_has_what_the_flow_needs_and_no_verifier() {
        let registration = Registration {
            token_endpoint: "https://idp.example/token".parse().unwrap(),
            client_id: "fleet".to_owned(),
            resource: "https://crm.example/mcp".parse().unwrap(),
        };
        let scopes = ["crm".to_owned(), "mail".to_owned()];
        let redirect = "http://127.0.0.1:4000/callback";
        let (flow, begun) = Authorization::begin(
            registration.clone(),
            scopes.to_vec(),
            redirect.to_owned(),
            ([1; 32], [2; 32]),
            0,
        );
        let endpoint = "https://idp.example/authorize?tenant=a#x".parse().unwrap();
        let url = consent_url(&endpoint, &registration, (&scopes, redirect), &begun);

        let query: BTreeMap<_, _> = url.query_pairs().into_owned().collect();
        for (name, value) in [
            ("tenant", "a"),
            ("response_type", "code"),
            ("redirect_uri", redirect),
            ("scope", "crm mail"),
            ("state", &begun.state),
            ("code_challenge", &begun.challenge),
            ("code_challenge_method", "S256"),
            ("resource", "https://crm.example/mcp"),
        ] {
            assert_eq!(query.get(name).map(String::as_str), Some(value), "{name}");
        }

        let exchange = flow.finish(&begun.state, (None, None), 1).ok().unwrap();
        assert!(!url.as_str().contains(&exchange.verifier) && url.fragment().is_none());
        let form: BTreeMap<_, _> = of_code("the-code", &exchange).into_iter().collect();
        assert_eq!(form["code_verifier"], exchange.verifier);
        assert_eq!(form["redirect_uri"], redirect);
    }
}
