//! Tokens that an issuer made, and tokens that an attacker made.

use std::sync::LazyLock;

use base64::{Engine, prelude::BASE64_URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};

use super::{test_keys::TestKey, *};
use crate::{principals::PrincipalTable, refusal::AuthStatus};

const ISSUER: &str = "https://idp.example.com";
const RESOURCE: &str = "https://mcp.example.com/mcp";

static A: LazyLock<TestKey> = LazyLock::new(|| TestKey::rsa("a"));
static B: LazyLock<TestKey> = LazyLock::new(|| TestKey::rsa("b"));
static C: LazyLock<TestKey> = LazyLock::new(|| TestKey::ec("c"));

fn key_set(keys: &[&TestKey]) -> String {
    let keys: Vec<_> = keys.iter().map(|key| &key.jwk).collect();
    json!({"keys": keys}).to_string()
}

fn now() -> Timestamp {
    Timestamp::from_millis_clamped(1_795_000_000_000)
}

fn seconds_later(seconds: u64) -> Timestamp {
    now().plus(Duration::from_secs(seconds))
}

fn claims() -> Value {
    let expires = seconds_later(600).as_millis() / 1000;
    json!({"iss": ISSUER, "sub": "alice", "aud": RESOURCE, "exp": expires, "scope": "a b"})
}

fn with(name: &str, value: Value) -> Value {
    let mut claims = claims();
    claims[name] = value;
    claims
}

fn tokens_of(table: &str) -> Tokens {
    let table: IssuerTable = toml::from_str(&format!("url = '{ISSUER}'\n{table}")).unwrap();
    let issuer = IssuerConfig::new(table, Some(RESOURCE)).unwrap();
    Tokens::new(vec![issuer], Arc::default())
}

/// The fetch of keys that are found by the issuer's metadata.
fn discovery() -> FetchKeys {
    FetchKeys { issuer: ISSUER.to_owned(), source: KeySource::Discovery }
}

/// Tokens whose issuer publishes these keys.
fn tokens_with(keys: &[&TestKey]) -> Tokens {
    let tokens = tokens_of("");
    assert!(tokens.install_keys(&discovery(), &key_set(keys), now()).unwrap());
    tokens
}

fn fault_of(checked: &Authentication) -> Option<Fault> {
    match checked {
        Authentication::Verified(_) => None,
        Authentication::Refused(refusal) | Authentication::NeedsKeys { otherwise: refusal, .. } => {
            Some(refusal.fault())
        }
    }
}

/// A token with this header and these claims, and any signature.
fn assemble(header: &Value, claims: &Value, signature: &str) -> String {
    let part = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}.{signature}", part(header), part(claims))
}

#[test]
fn a_token_of_the_issuer_is_its_subject() {
    let tokens = tokens_with(&[&A, &C]);
    for key in [&*A, &*C] {
        let Authentication::Verified(principal) = tokens.check(&key.sign(&claims()), now()) else {
            panic!("{} was refused", key.id);
        };
        assert_eq!(principal.subject, "alice");
        assert_eq!(principal.scopes, ["a", "b"]);
        assert_eq!(principal.id(), crate::PrincipalId::of(ISSUER, "alice"));
    }
}

#[test]
fn a_refreshed_token_is_the_same_principal() {
    let tokens = tokens_with(&[&A, &B]);
    let refreshed = with("exp", json!(seconds_later(3600).as_millis() / 1000));
    let ids = [A.sign(&claims()), A.sign(&refreshed), B.sign(&refreshed)].map(|token| match tokens
        .check(&token, now())
    {
        Authentication::Verified(principal) => principal.id(),
        other => panic!("{other:?}"),
    });
    assert!(ids.iter().all(|id| *id == ids[0]));
}

#[test]
fn tokens_without_a_signature_are_refused() {
    let tokens = tokens_with(&[&A]);
    for alg in ["none", "None", "NONE", "", "RS257"] {
        for signature in ["", "AA"] {
            let token = assemble(&json!({"alg": alg, "kid": "a"}), &claims(), signature);
            assert_eq!(fault_of(&tokens.check(&token, now())), Some(Fault::Algorithm), "{alg}");
        }
    }
    // A claimed algorithm with no signature.
    let token = assemble(&json!({"alg": "RS256", "kid": "a"}), &claims(), "");
    assert_eq!(fault_of(&tokens.check(&token, now())), Some(Fault::Signature));
}

#[test]
fn a_public_key_is_no_secret_of_an_hmac() {
    let tokens = tokens_with(&[&A]);
    let modulus = A.jwk["n"].as_str().unwrap();
    let secrets = [
        A.public_pem.as_bytes().to_vec(),
        A.public_pem.trim().as_bytes().to_vec(),
        modulus.as_bytes().to_vec(),
        BASE64_URL_SAFE_NO_PAD.decode(modulus).unwrap(),
        A.jwk.to_string().into_bytes(),
    ];
    for secret in secrets {
        for algorithm in [Algorithm::HS256, Algorithm::HS384, Algorithm::HS512] {
            let mut header = Header::new(algorithm);
            header.kid = Some("a".to_owned());
            let key = EncodingKey::from_secret(&secret);
            let token = jsonwebtoken::encode(&header, &claims(), &key).unwrap();
            assert_eq!(fault_of(&tokens.check(&token, now())), Some(Fault::Algorithm));
        }
    }
}

#[test]
fn symmetric_keys_of_a_set_are_not_used() {
    let secret = BASE64_URL_SAFE_NO_PAD.encode([7; 32]);
    let oct = json!({"kty": "oct", "kid": "o", "alg": "HS256", "k": secret});
    let tokens = tokens_of("");
    let only = json!({"keys": [oct]}).to_string();
    let error = tokens.install_keys(&discovery(), &only, now()).unwrap_err();
    assert!(error.to_string().contains("none of the 1 keys"), "{error}");

    let both = json!({"keys": [oct, A.jwk]}).to_string();
    assert!(tokens.install_keys(&discovery(), &both, now()).unwrap());
    let mut header = Header::new(Algorithm::HS256);
    header.kid = Some("o".to_owned());
    let token =
        jsonwebtoken::encode(&header, &claims(), &EncodingKey::from_secret(&[7; 32])).unwrap();
    assert_eq!(fault_of(&tokens.check(&token, now())), Some(Fault::Algorithm));
}

#[test]
fn the_key_decides_on_the_algorithm() {
    let check = |table: &str, jwk_algorithm: Option<&str>, expected: Option<Fault>| {
        let tokens = tokens_of(table);
        let mut jwk = A.jwk.clone();
        match jwk_algorithm {
            Some(algorithm) => jwk["alg"] = algorithm.into(),
            None => drop(jwk.as_object_mut().unwrap().shift_remove("alg")),
        }
        tokens.install_keys(&discovery(), &json!({"keys": [jwk]}).to_string(), now()).unwrap();
        assert_eq!(fault_of(&tokens.check(&A.sign(&claims()), now())), expected);
    };

    check("", Some("RS256"), None);
    check("", None, None);
    check("", Some("PS256"), Some(Fault::Algorithm));
    check("algorithms = ['PS256']", None, Some(Fault::Algorithm));
    check("algorithms = ['PS256', 'RS256']", None, None);
}

#[test]
fn keys_that_are_not_for_signatures_are_not_used() {
    for (name, value) in [("use", json!("enc")), ("key_ops", json!(["encrypt"]))] {
        let mut jwk = A.jwk.clone();
        jwk[name] = value;
        // Whatever else a set holds does not spoil it.
        let odd = json!({"kty": "new", "kid": 5, "n": [1.5]});
        let set = json!({"keys": [jwk, B.jwk, odd, {}]}).to_string();
        let tokens = tokens_of("");
        tokens.install_keys(&discovery(), &set, now()).unwrap();

        let fault = fault_of(&tokens.check(&A.sign(&claims()), now()));
        assert_eq!(fault, Some(Fault::UnknownSigningKey), "{name}");
        assert_eq!(fault_of(&tokens.check(&B.sign(&claims()), now())), None);
    }
}

#[test]
fn changed_tokens_and_those_of_other_keys_are_refused() {
    let tokens = tokens_with(&[&A]);
    let token = A.sign(&claims());
    let (message, signature) = token.rsplit_once('.').unwrap();
    let (header, _) = message.split_once('.').unwrap();

    let admin = BASE64_URL_SAFE_NO_PAD.encode(with("sub", json!("root")).to_string());
    let forged = format!("{header}.{admin}.{signature}");
    assert_eq!(fault_of(&tokens.check(&forged, now())), Some(Fault::Signature));

    // Another key with the id of this one.
    let stolen_id = TestKey::rsa("a").sign(&claims());
    assert_eq!(fault_of(&tokens.check(&stolen_id, now())), Some(Fault::Signature));
}

#[test]
fn claims_are_checked() {
    let tokens = tokens_with(&[&A]);
    let check = |claims: &Value, expected| {
        assert_eq!(fault_of(&tokens.check(&A.sign(claims), now())), expected, "{claims}");
    };
    let second = |by: i64| json!(now().as_millis() / 1000 + by);

    check(&claims(), None);
    check(&with("aud", json!(["other", RESOURCE])), None);
    check(&with("aud", json!("https://mcp.example.com")), Some(Fault::Audience));
    check(&with("aud", json!([])), Some(Fault::Audience));
    check(&with("iss", json!("https://idp.example.com/")), Some(Fault::UnknownIssuer));
    check(&with("iss", json!([ISSUER])), Some(Fault::UnknownIssuer));
    check(&with("exp", second(-59)), None);
    check(&with("exp", second(-60)), Some(Fault::Expired));
    check(&with("nbf", second(60)), None);
    check(&with("nbf", second(61)), Some(Fault::NotYetValid));
    check(&with("sub", json!("")), Some(Fault::Subject));

    for (name, fault) in [
        ("iss", Fault::UnknownIssuer),
        ("aud", Fault::Audience),
        ("exp", Fault::Expired),
        ("sub", Fault::Subject),
    ] {
        let mut claims = claims();
        claims.as_object_mut().unwrap().shift_remove(name);
        check(&claims, Some(fault));
    }
}

#[test]
fn other_kinds_of_tokens_are_no_access_tokens() {
    let tokens = tokens_with(&[&A]);
    let sign = |change: &dyn Fn(&mut Header)| {
        let mut header = Header::new(Algorithm::RS256);
        header.kid = Some("a".to_owned());
        change(&mut header);
        jsonwebtoken::encode(&header, &claims(), &A.key).unwrap()
    };
    let typed = |typ: &str| sign(&|header| header.typ = Some(typ.to_owned()));

    for accepted in ["JWT", "at+jwt", "AT+JWT", "application/at+jwt"] {
        assert_eq!(fault_of(&tokens.check(&typed(accepted), now())), None, "{accepted}");
    }
    for refused in ["oauth-id-jag+jwt", "dpop+jwt", "logout+jwt", "secevent+jwt"] {
        let fault = fault_of(&tokens.check(&typed(refused), now()));
        assert_eq!(fault, Some(Fault::NotAnAccessToken), "{refused}");
    }

    let critical = assemble(&json!({"alg": "RS256", "kid": "a", "crit": ["b64"]}), &claims(), "AA");
    let not_json = format!("{}.e30.AA", BASE64_URL_SAFE_NO_PAD.encode("{"));
    for refused in [&*critical, &not_json, "a", "a.b", "..", "a.b.c.d", "e30.e30.AA"] {
        let fault = fault_of(&tokens.check(refused, now()));
        assert_eq!(fault, Some(Fault::NotAnAccessToken), "{refused}");
    }
}

#[test]
fn a_token_without_a_key_id_is_tried_with_the_keys_that_fit() {
    let tokens = tokens_with(&[&C, &B, &A]);
    let token = jsonwebtoken::encode(&Header::new(Algorithm::RS256), &claims(), &A.key).unwrap();
    assert_eq!(fault_of(&tokens.check(&token, now())), None);
}

#[test]
fn unknown_key_ids_cause_one_fetch_in_ten_seconds() {
    let tokens = tokens_with(&[&A]);
    let mut fetches = Vec::new();

    // 10,000 tokens with made-up key ids in 100 seconds. Each fetch ends at once.
    for number in 0..10_000_u64 {
        let at = now().plus(Duration::from_millis(number * 10));
        let header = json!({"alg": "RS256", "kid": format!("made-up-{number}")});
        let checked = tokens.check(&assemble(&header, &claims(), "AA"), at);
        assert_eq!(fault_of(&checked), Some(Fault::UnknownSigningKey));
        if let Authentication::NeedsKeys { fetch, .. } = checked {
            fetches.push(at);
            tokens.install_keys(&fetch, &key_set(&[&A]), at).unwrap();
        }
    }

    assert!(fetches.len() <= 10, "{} fetches", fetches.len());
    let spans = fetches.windows(2).map(|pair| pair[1].since(pair[0]));
    assert!(spans.min().unwrap() >= FETCH_INTERVAL);
    assert_eq!(tokens.cached(), 0, "tokens that were refused are remembered");
    assert_eq!(fault_of(&tokens.check(&A.sign(&claims()), now())), None);
}

#[test]
fn all_who_ask_during_a_fetch_share_it() {
    let tokens = tokens_with(&[&A]);
    let ask = |at| tokens.check(&B.sign(&claims()), at);

    let later = seconds_later(60);
    for _ in 0..3 {
        assert!(matches!(ask(later), Authentication::NeedsKeys { .. }));
    }
    tokens.install_keys(&discovery(), &key_set(&[&A, &B]), later).unwrap();
    assert_eq!(fault_of(&ask(later)), None);
}

#[test]
fn rotated_keys_replace_the_old_ones() {
    let tokens = tokens_with(&[&A]);
    let (old, new) = (A.sign(&claims()), B.sign(&claims()));
    assert_eq!(fault_of(&tokens.check(&old, now())), None);

    let later = seconds_later(60);
    let Authentication::NeedsKeys { fetch, .. } = tokens.check(&new, later) else {
        panic!("the new key is not asked for");
    };
    assert_eq!(fetch, discovery());
    assert!(tokens.install_keys(&discovery(), &key_set(&[&B]), later).unwrap());

    assert_eq!(fault_of(&tokens.check(&new, later)), None);
    // The old key is withdrawn, so a remembered token of it is no longer valid either.
    let fault = fault_of(&tokens.check(&old, later));
    assert_eq!(fault, Some(Fault::UnknownSigningKey));
}

#[test]
fn stale_keys_serve_while_the_issuer_is_away() {
    let tokens = tokens_with(&[&A]);
    let days_later = seconds_later(7 * 86_400);
    assert_eq!(tokens.refreshes_due(days_later).len(), 1);
    tokens.fetch_failed(&discovery(), days_later);

    let claims = with("exp", json!(seconds_later(8 * 86_400).as_millis() / 1000));
    assert_eq!(fault_of(&tokens.check(&A.sign(&claims), days_later)), None);

    // An answer that is no key set changes nothing either.
    for bad in ["", "<html>", "{}", r#"{"keys":[]}"#] {
        assert!(tokens.install_keys(&discovery(), bad, days_later).is_err(), "{bad}");
    }
    let again = with("jti", json!("2"));
    assert_eq!(fault_of(&tokens.check(&A.sign(&again), now())), None);
}

#[test]
fn without_keys_nobody_is_refused_for_good() {
    let tokens = tokens_of("");
    let token = A.sign(&claims());
    let Authentication::NeedsKeys { otherwise, .. } = tokens.check(&token, now()) else {
        panic!("the keys are not asked for");
    };
    assert!(matches!(otherwise.status(), AuthStatus::Unavailable { .. }));
    assert_eq!(otherwise.challenge(None, &[]), None);

    tokens.fetch_failed(&discovery(), now());
    let Authentication::Refused(refusal) = tokens.check(&token, seconds_later(3)) else {
        panic!("asked for the keys again");
    };
    let retry_after = Duration::from_secs(7);
    assert_eq!(refusal.status(), AuthStatus::Unavailable { retry_after });
    assert!(matches!(tokens.check(&token, seconds_later(10)), Authentication::NeedsKeys { .. }));
}

#[test]
fn a_fetch_that_never_ends_counts_as_lost() {
    let tokens = tokens_of("");
    assert_eq!(tokens.refreshes_due(now()).len(), 1);
    assert!(tokens.refreshes_due(seconds_later(9)).is_empty());
    assert_eq!(tokens.refreshes_due(seconds_later(10)).len(), 1);
}

#[test]
fn a_clock_that_is_set_back_stops_no_fetch() {
    let tokens = tokens_with(&[&A]);
    let unknown = B.sign(&claims());
    tokens.install_keys(&discovery(), &key_set(&[&A]), seconds_later(3600)).unwrap();
    let checked = tokens.check(&unknown, now());
    assert!(matches!(checked, Authentication::NeedsKeys { .. }));
    tokens.fetch_failed(&discovery(), seconds_later(1));
    assert_eq!(tokens.refreshes_due(seconds_later(20)).len(), 1);
}

#[test]
fn old_keys_are_read_again_before_anybody_misses_them() {
    let tokens = tokens_with(&[&A]);
    assert!(tokens.refreshes_due(seconds_later(299)).is_empty());
    assert_eq!(tokens.refreshes_due(seconds_later(300)).len(), 1);
    // The same keys again leave remembered tokens alone.
    assert!(!tokens.install_keys(&discovery(), &key_set(&[&A]), seconds_later(301)).unwrap());
    assert!(tokens.refreshes_due(seconds_later(302)).is_empty());
}

#[test]
fn a_remembered_token_ends_with_its_validity() {
    let tokens = tokens_with(&[&A]);
    let token = A.sign(&claims());
    assert_eq!(fault_of(&tokens.check(&token, now())), None);
    assert_eq!(tokens.cached(), 1);
    assert_eq!(fault_of(&tokens.check(&token, seconds_later(659))), None);
    assert_eq!(fault_of(&tokens.check(&token, seconds_later(660))), Some(Fault::Expired));
    assert_eq!(tokens.cached(), 0);
}

#[test]
fn many_subjects_are_remembered_in_bounded_memory() {
    let tokens = Tokens { cache: TokenCache::new(50), ..tokens_with(&[&C]) };
    for number in 0..200 {
        let token = C.sign(&with("sub", json!(format!("user-{number}"))));
        assert_eq!(fault_of(&tokens.check(&token, now())), None);
    }
    assert!(tokens.cached() <= 50, "{}", tokens.cached());
}

#[test]
fn keys_are_carried_over_when_the_configuration_changes() {
    let old = tokens_with(&[&A]);
    let same_place = tokens_of("audiences = ['other']");
    same_place.adopt_keys(&old);
    let fault = fault_of(&same_place.check(&A.sign(&claims()), now()));
    assert_eq!(fault, Some(Fault::Audience));

    let other_place = tokens_of("jwks_url = 'https://elsewhere'");
    other_place.adopt_keys(&old);
    let checked = other_place.check(&A.sign(&claims()), now());
    assert!(matches!(checked, Authentication::NeedsKeys { .. }));
}

#[test]
fn a_fetch_from_another_place_changes_nothing() {
    let tokens = tokens_of("jwks_url = 'https://idp.example.com/keys'");
    let token = A.sign(&claims());

    // This fetch began before the configuration changed.
    assert!(!tokens.install_keys(&discovery(), &key_set(&[&A]), now()).unwrap());
    tokens.fetch_failed(&discovery(), now());
    // Neither are there keys, nor did a fetch of them just end.
    let Authentication::NeedsKeys { fetch, .. } = tokens.check(&token, now()) else {
        panic!("the keys are not asked for");
    };

    assert!(tokens.install_keys(&fetch, &key_set(&[&B]), now()).unwrap());
    assert!(!tokens.install_keys(&discovery(), &key_set(&[&A]), now()).unwrap());
    assert!(tokens.install_keys(&discovery(), "{}", now()).is_ok());
    assert_eq!(fault_of(&tokens.check(&token, now())), Some(Fault::UnknownSigningKey));
    assert_eq!(fault_of(&tokens.check(&B.sign(&claims()), now())), None);
}

#[test]
fn the_policy_file_completes_the_principal() {
    let table = "subject = 'al*'\nissuer = 'https://idp.*'\nroles = ['agent']\ntenant = 't'";
    let table: PrincipalTable = toml::from_str(table).unwrap();
    let issuer: IssuerTable = toml::from_str(&format!("url = '{ISSUER}'")).unwrap();
    let issuer = IssuerConfig::new(issuer, Some(RESOURCE)).unwrap();
    let rules = PrincipalRules::new(vec![table]).unwrap();
    let tokens = Tokens::new(vec![issuer], Arc::new(rules));
    tokens.install_keys(&discovery(), &key_set(&[&A]), now()).unwrap();

    let Authentication::Verified(principal) = tokens.check(&A.sign(&claims()), now()) else {
        panic!("refused");
    };
    assert!(principal.has_role("agent"));
    assert_eq!(principal.tenant.as_deref(), Some("t"));
}
