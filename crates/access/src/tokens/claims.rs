//! The claims of a token whose signature was verified.

use fleet_job::time::Timestamp;
use serde_json::{Map, Value};

use super::config::IssuerConfig;
use crate::{
    principal::{Principal, PrincipalKind, Via},
    refusal::Fault,
};

/// Claims that say something about the token and nothing about the principal.
const ABOUT_THE_TOKEN: [&str; 8] = ["iss", "sub", "aud", "exp", "nbf", "iat", "jti", "nonce"];

/// Checks that a token is valid now and meant for this server. Returns when it stops being valid.
pub(super) fn check_claims(
    claims: &Map<String, Value>,
    issuer: &IssuerConfig,
    now: Timestamp,
) -> Result<Timestamp, Fault> {
    let expires = read_time(claims, "exp")?.ok_or(Fault::Expired)?.plus(issuer.leeway);
    if expires <= now {
        return Err(Fault::Expired);
    }

    let begins = read_time(claims, "nbf").map_err(|_| Fault::NotYetValid)?;
    if begins.is_some_and(|begins| begins > now.plus(issuer.leeway)) {
        return Err(Fault::NotYetValid);
    }

    let is_ours = |audience: &Value| {
        audience.as_str().is_some_and(|text| issuer.audiences.iter().any(|own| own == text))
    };
    let is_for_us = match claims.get("aud") {
        Some(Value::Array(audiences)) => audiences.iter().any(is_ours),
        Some(audience) => is_ours(audience),
        None => false,
    };
    if !is_for_us {
        return Err(Fault::Audience);
    }

    match claims.contains_key("cnf") {
        true => Err(Fault::BoundToken),
        false => Ok(expires),
    }
}

/// Reads a claim in seconds since the epoch, which may have a fraction.
fn read_time(claims: &Map<String, Value>, name: &str) -> Result<Option<Timestamp>, Fault> {
    let Some(value) = claims.get(name) else {
        return Ok(None);
    };
    let seconds = value.as_f64().filter(|seconds| seconds.is_finite()).ok_or(Fault::Expired)?;
    // A float becomes the nearest integer there is, so what is too large ends at the limit.
    Ok(Some(Timestamp::from_millis_clamped((seconds * 1000.0) as i64)))
}

/// Makes a principal of a token's claims.
pub(super) fn read_principal(
    mut claims: Map<String, Value>,
    issuer: &IssuerConfig,
) -> Result<Principal, Fault> {
    let subject = claims.get("sub").and_then(Value::as_str).filter(|subject| !subject.is_empty());
    let subject = subject.ok_or(Fault::Subject)?.to_owned();

    let kind = read_kind(&claims, issuer, &subject);
    let mut principal = Principal::new(issuer.url.clone(), subject, kind, Via::Token);

    let text_of = |name: &String| find(&claims, name).and_then(Value::as_str).map(str::to_owned);
    principal.tenant = issuer.tenant_claim.as_ref().and_then(text_of);
    principal.name = issuer.name_claims.iter().find_map(text_of);
    principal.add_roles(words(&claims, &issuer.roles_claims, false));
    principal.add_scopes(words(&claims, &issuer.scopes_claims, true));

    claims.retain(|name, _| !ABOUT_THE_TOKEN.contains(&name.as_str()));
    principal.attributes = claims;
    Ok(principal)
}

fn read_kind(claims: &Map<String, Value>, issuer: &IssuerConfig, subject: &str) -> PrincipalKind {
    let claimed = issuer.kind_claim.as_ref().and_then(|name| find(claims, name)?.as_str());
    let claimed = claimed.and_then(PrincipalKind::parse);
    // Nobody who has a token is anonymous.
    if let Some(kind) = claimed.filter(|kind| *kind != PrincipalKind::Anonymous).or(issuer.kind) {
        return kind;
    }

    // The token of a client that acts for itself has the client as its subject (RFC 9068).
    let client = ["client_id", "azp"].iter().find_map(|name| claims.get(*name)?.as_str());
    match client == Some(subject) {
        true => PrincipalKind::Service,
        false => PrincipalKind::Person,
    }
}

/// Finds a claim by its name, or by a path of names with dots.
fn find<'a>(claims: &'a Map<String, Value>, name: &str) -> Option<&'a Value> {
    if let Some(value) = claims.get(name) {
        return Some(value);
    }
    let (first, rest) = name.split_once('.')?;
    find(claims.get(first)?.as_object()?, rest)
}

/// The texts in some claims: lists, or texts, which are lists with blanks between the words if
/// `split`.
fn words(claims: &Map<String, Value>, names: &[String], split: bool) -> Vec<String> {
    let mut words = Vec::new();
    for value in names.iter().filter_map(|name| find(claims, name)) {
        match value {
            Value::String(text) if split => {
                words.extend(text.split_ascii_whitespace().map(str::to_owned));
            }
            Value::String(text) => words.push(text.clone()),
            Value::Array(values) => {
                words.extend(values.iter().filter_map(Value::as_str).map(str::to_owned));
            }
            _ => {}
        }
    }
    words
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config(extra: &str) -> IssuerConfig {
        let table = toml::from_str(&format!("url = 'https://idp'\n{extra}")).unwrap();
        IssuerConfig::new(table, Some("https://me")).unwrap()
    }

    fn object(value: Value) -> Map<String, Value> {
        value.as_object().unwrap().clone()
    }

    #[test]
    fn claims_become_a_principal() {
        let config = config(
            "roles_claims = ['realm_access.roles', 'roles']\ntenant_claim = 'https://x/tenant'",
        );
        let claims = object(json!({
            "sub": "u1", "iss": "https://idp", "exp": 1, "email": "a@b", "name": "Ada",
            "realm_access": {"roles": ["agent"]}, "roles": "on call", "scope": "b a",
            "https://x/tenant": "t", "groups": ["g"],
        }));

        let principal = read_principal(claims, &config).unwrap();
        assert_eq!(principal.name.as_deref(), Some("Ada"));
        assert_eq!(principal.tenant.as_deref(), Some("t"));
        assert_eq!(principal.roles, ["agent", "on call"]);
        assert_eq!(principal.scopes, ["a", "b"]);
        assert_eq!(principal.kind, PrincipalKind::Person);
        assert_eq!(principal.attributes["groups"], json!(["g"]));
        assert!(!principal.attributes.contains_key("exp"));
    }

    #[test]
    fn roles_come_from_claims_only_where_configured() {
        let claims = object(json!({"sub": "u", "roles": ["admin"]}));
        assert!(read_principal(claims, &config("")).unwrap().roles.is_empty());
    }

    #[test]
    fn a_client_that_acts_for_itself_is_a_service() {
        let check = |extra: &str, claims: Value, expected| {
            let principal = read_principal(object(claims), &config(extra)).unwrap();
            assert_eq!(principal.kind, expected);
        };
        check("", json!({"sub": "c", "client_id": "c"}), PrincipalKind::Service);
        check("", json!({"sub": "u", "azp": "c"}), PrincipalKind::Person);
        check("kind = 'node'", json!({"sub": "u"}), PrincipalKind::Node);
        let claim = "kind_claim = 'k'";
        check(claim, json!({"sub": "u", "k": "node"}), PrincipalKind::Node);
        check(claim, json!({"sub": "u", "k": "anonymous"}), PrincipalKind::Person);
    }

    #[test]
    fn times_have_a_leeway() {
        let now = Timestamp::from_millis_clamped(1_000_000_000);
        let check = |claims: Value, expected: Result<i64, Fault>| {
            let mut claims = object(claims);
            claims.insert("aud".to_owned(), json!(["x", "https://me"]));
            let until = check_claims(&claims, &config(""), now);
            assert_eq!(until.map(Timestamp::as_millis), expected, "{claims:?}");
        };

        check(json!({"exp": 1_000_001}), Ok(1_000_061_000));
        check(json!({"exp": 999_941}), Ok(1_000_001_000));
        check(json!({"exp": 999_940}), Err(Fault::Expired));
        check(json!({"exp": 1e99}), Ok(Timestamp::MAX.as_millis()));
        check(json!({"exp": 1_000_001.5}), Ok(1_000_061_500));
        for bad in [json!("2000000000"), json!(null), json!(-1), json!([1])] {
            check(json!({"exp": bad}), Err(Fault::Expired));
        }
        check(json!({}), Err(Fault::Expired));

        check(json!({"exp": 2e6, "nbf": 1_000_060}), Ok(2_000_060_000));
        check(json!({"exp": 2e6, "nbf": 1_000_061}), Err(Fault::NotYetValid));
        check(json!({"exp": 2e6, "nbf": "0"}), Err(Fault::NotYetValid));
        check(json!({"exp": 2e6, "cnf": {"jkt": "x"}}), Err(Fault::BoundToken));
    }

    #[test]
    fn the_audience_must_be_ours() {
        let now = Timestamp::from_millis_clamped(0);
        let check = |audience: Value, expected| {
            let claims = object(json!({"exp": 1, "aud": audience}));
            assert_eq!(check_claims(&claims, &config(""), now).is_ok(), expected, "{audience}");
        };
        check(json!("https://me"), true);
        check(json!(["other", "https://me"]), true);
        for bad in [json!("https://me/"), json!("https://m"), json!([]), json!(null), json!(["x"])]
        {
            check(bad, false);
        }
    }
}
