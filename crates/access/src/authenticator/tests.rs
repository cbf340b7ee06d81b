//! Credentials of all kinds, and requests without any.

use serde_json::json;

use super::*;
use crate::{
    file::AccessPolicy,
    keys::{KeyEntry, KeysFile, Pepper},
    presented::ClientCertificate,
    principal::{PrincipalId, PrincipalKind, Via},
    refusal::AuthStatus,
    tokens::{FetchKeys, KeySource, test_keys::TestKey},
};

const POLICY: &str = "
[[issuer]]
url = 'https://idp'

[[certificate]]
uri = 'spiffe://d/*'
roles = ['worker']

[[principal]]
issuer = 'keys'
subject = 'ci'
roles = ['agent']
";

fn now() -> Timestamp {
    Timestamp::from_millis_clamped(1_795_000_000_000)
}

/// An authenticator of the policy and of one key, and the key.
fn configured(without: WithoutCredentials) -> (Authenticator, String) {
    let pepper = Pepper::new([1; 32]);
    let (key, mut entry) = KeyEntry::create("ci-1", &[2; 32], &pepper, now()).unwrap();
    entry.subject = Some("ci".to_owned());
    let keys = KeysFile { pepper: Some(pepper), keys: vec![entry] };

    let policy = AccessPolicy::parse(POLICY, Some("https://me")).unwrap();
    (policy.authenticator(&keys, None, without).unwrap(), key)
}

fn unconfigured(without: WithoutCredentials) -> Authenticator {
    let policy = AccessPolicy::parse("", None).unwrap();
    policy.authenticator(&KeysFile::default(), None, without).unwrap()
}

fn headers<'a>(values: &'a [&'a [u8]]) -> Presented<'a> {
    Presented { authorization: values, ..Presented::default() }
}

fn check(authenticator: &Authenticator, presented: &Presented<'_>, expected: Result<&str, Fault>) {
    let found = match authenticator.authenticate(presented, now()) {
        Authentication::Verified(principal) => Ok(principal.subject.clone()),
        Authentication::Refused(refusal) => Err(refusal.fault()),
        Authentication::NeedsKeys { otherwise, .. } => Err(otherwise.fault()),
    };
    assert_eq!(found, expected.map(str::to_owned), "{presented:?}");
}

#[test]
fn a_key_is_its_subject_however_the_scheme_is_spelled() {
    let (authenticator, key) = configured(WithoutCredentials::Refused);
    for scheme in ["Bearer", "bearer", "BEARER"] {
        let header = format!("{scheme} {key}");
        let Authentication::Verified(principal) =
            authenticator.authenticate(&headers(&[header.as_bytes()]), now())
        else {
            panic!("{scheme} was refused");
        };
        assert_eq!(principal.id(), PrincipalId::of("keys", "ci"));
        assert_eq!(principal.via, Via::Key { id: "ci-1".to_owned() });
        assert_eq!(principal.roles, ["agent"]);
    }
}

#[test]
fn a_second_authorization_is_refused() {
    let (authenticator, key) = configured(WithoutCredentials::Refused);
    let header = format!("Bearer {key}");
    for other in [header.as_str(), "Bearer x", ""] {
        let values = [header.as_bytes(), other.as_bytes()];
        check(&authenticator, &headers(&values), Err(Fault::SeveralHeaders));
    }
}

#[test]
fn a_token_goes_before_a_certificate() {
    let (authenticator, key) = configured(WithoutCredentials::Refused);
    let certificate = ClientCertificate {
        uris: vec!["spiffe://d/worker".to_owned()],
        ..ClientCertificate::default()
    };
    let header = format!("Bearer {key}");
    let check = |values: &[&[u8]], expected| {
        let presented = Presented { certificate: Some(&certificate), ..headers(values) };
        check(&authenticator, &presented, expected);
    };

    check(&[], Ok("spiffe://d/worker"));
    check(&[header.as_bytes()], Ok("ci"));
    // Bad credentials are not passed over in favour of good ones.
    check(&[b"Bearer mf_ci-1_x"], Err(Fault::UnknownKey));
    check(&[b"Basic abc"], Err(Fault::OtherScheme));
}

#[test]
fn certificate_tables_alone_open_nothing() {
    let certificates = |without| {
        let policy = AccessPolicy::parse("[[certificate]]\nuri = 'spiffe://d/*'", None).unwrap();
        policy.authenticator(&KeysFile::default(), None, without).unwrap()
    };

    let authenticator = certificates(WithoutCredentials::LocalIfLoopback);
    assert!(authenticator.is_unconfigured() && authenticator.has_certificates());
    let local = Presented { from_loopback: true, ..Presented::default() };
    check(&authenticator, &local, Err(Fault::Missing));
    check(&unconfigured(WithoutCredentials::LocalIfLoopback), &local, Ok("local"));
}

#[test]
fn a_withdrawn_certificate_is_refused_unless_a_token_goes_before_it() {
    let (authenticator, key) = configured(WithoutCredentials::Anonymous);
    let certificate = ClientCertificate {
        uris: vec!["spiffe://d/worker".to_owned()],
        is_withdrawn: true,
        ..ClientCertificate::default()
    };
    let header = format!("Bearer {key}");
    let check = |values: &[&[u8]], expected| {
        let presented = Presented { certificate: Some(&certificate), ..headers(values) };
        check(&authenticator, &presented, expected);
    };

    check(&[], Err(Fault::WithdrawnCertificate));
    check(&[header.as_bytes()], Ok("ci"));
}

#[test]
fn certificates_that_nobody_configured_are_refused() {
    let (authenticator, _) = configured(WithoutCredentials::Anonymous);
    let certificate = ClientCertificate {
        uris: vec!["spiffe://other/worker".to_owned()],
        ..ClientCertificate::default()
    };
    let presented = Presented { certificate: Some(&certificate), ..Presented::default() };
    check(&authenticator, &presented, Err(Fault::UnknownCertificate));
}

#[test]
fn requests_without_credentials_get_what_is_configured() {
    use WithoutCredentials::{Anonymous, LocalBesideCredentials, LocalIfLoopback, Refused};

    let check = |authenticator: &Authenticator, from_loopback, expected| {
        let presented = Presented { from_loopback, ..Presented::default() };
        check(authenticator, &presented, expected);
    };
    let missing = Err(Fault::Missing);

    check(&unconfigured(Refused), true, missing);
    check(&unconfigured(LocalIfLoopback), true, Ok("local"));
    check(&unconfigured(LocalIfLoopback), false, missing);
    check(&unconfigured(Anonymous), false, Ok("anonymous"));

    // Whoever has configured a source wants to know who asks.
    check(&configured(LocalIfLoopback).0, true, missing);
    check(&configured(Refused).0, true, missing);
    check(&configured(Anonymous).0, true, Ok("anonymous"));

    for beside in [unconfigured(LocalBesideCredentials), configured(LocalBesideCredentials).0] {
        check(&beside, true, Ok("local"));
        check(&beside, false, missing);
    }
}

#[test]
fn who_brings_credentials_is_not_served_as_the_local_principal() {
    let (authenticator, key) = configured(WithoutCredentials::LocalBesideCredentials);
    let header = format!("Bearer {key}");
    let check = |header: &str, expected| {
        let values = [header.as_bytes()];
        let presented = Presented { from_loopback: true, ..headers(&values) };
        check(&authenticator, &presented, expected);
    };
    check(&header, Ok("ci"));
    check(&header[..header.len() - 1], Err(Fault::UnknownKey));
}

#[test]
fn an_empty_keys_file_lets_nobody_in() {
    let empty = unconfigured(WithoutCredentials::Refused);
    check(&empty, &headers(&[b"Bearer mf_a_b"]), Err(Fault::UnknownKey));
    check(&empty, &headers(&[b"Bearer a.b.c"]), Err(Fault::NotAnAccessToken));
    check(&empty, &headers(&[]), Err(Fault::Missing));
}

#[test]
fn credentials_that_nobody_can_verify_do_no_harm_to_an_open_server() {
    let open = unconfigured(WithoutCredentials::Anonymous);
    check(&open, &headers(&[b"Bearer whatever"]), Ok("anonymous"));
    // With a source, bad credentials are refused although none would do.
    let (configured, _) = configured(WithoutCredentials::Anonymous);
    check(&configured, &headers(&[b"Bearer whatever"]), Err(Fault::NotAnAccessToken));
}

#[test]
fn access_tokens_need_the_keys_of_their_issuer() {
    let (authenticator, _) = configured(WithoutCredentials::Refused);
    let key = TestKey::ec("k");
    let expires = now().as_millis() / 1000 + 60;
    let token = key.sign(&json!({
        "iss": "https://idp", "sub": "alice", "aud": "https://me", "exp": expires,
    }));
    let header = format!("Bearer {token}");
    let values = [header.as_bytes()];
    check(&authenticator, &headers(&values), Err(Fault::NoIssuerKeys));

    let set = json!({"keys": [key.jwk]}).to_string();
    let fetch = FetchKeys { issuer: "https://idp".to_owned(), source: KeySource::Discovery };
    authenticator.tokens().install_keys(&fetch, &set, now()).unwrap();
    check(&authenticator, &headers(&values), Ok("alice"));
}

#[test]
fn refusals_say_how_to_come_back() {
    let (authenticator, _) = configured(WithoutCredentials::Refused);
    let refusal = |values: &[&[u8]]| match authenticator.authenticate(&headers(values), now()) {
        Authentication::Refused(refusal) => refusal,
        other => panic!("{other:?}"),
    };
    let scopes = ["a".to_owned(), "b".to_owned()];
    let challenge = |refusal: &AuthRefusal| {
        refusal.challenge(Some("https://me/meta"), &scopes).unwrap().to_string()
    };

    let none = refusal(&[]);
    assert_eq!(none.status(), AuthStatus::Unauthorized);
    assert_eq!(none.code(), fleet_codes::UNAUTHENTICATED);
    assert_eq!(challenge(&none), r#"Bearer scope="a b", resource_metadata="https://me/meta""#);

    let bad = refusal(&[b"Bearer mf_ci-1_x"]);
    assert_eq!(bad.status(), AuthStatus::Unauthorized);
    assert!(challenge(&bad).starts_with(r#"Bearer error="invalid_token", error_description="#));
    assert!(!bad.to_string().contains("mf_ci-1_x"));

    let malformed = refusal(&[b"Bearer a b"]);
    assert_eq!(malformed.status(), AuthStatus::BadRequest);
    assert_eq!(malformed.code(), fleet_codes::MALFORMED_CREDENTIALS);
    assert!(challenge(&malformed).starts_with(r#"Bearer error="invalid_request""#));
}

#[test]
fn ten_thousand_made_up_keys_leave_nothing_behind() {
    let (authenticator, _) = configured(WithoutCredentials::Refused);
    for number in 0..10_000 {
        let header = format!("Bearer mf_made-up-{number}_secret{number}");
        check(&authenticator, &headers(&[header.as_bytes()]), Err(Fault::UnknownKey));
    }
    assert_eq!(authenticator.tokens().cached(), 0);
}

#[test]
fn the_local_principal_is_a_person_and_the_anonymous_is_not() {
    assert_eq!(Principal::local().kind, PrincipalKind::Person);
    assert_eq!(Principal::anonymous().kind, PrincipalKind::Anonymous);
    assert_ne!(Principal::local().id(), Principal::anonymous().id());
}
