//! Access tokens: those of an issuer, those of attackers, and an issuer that changes its keys or is
//! away.

use std::{sync::LazyLock, time::Instant};

use futures::future::join_all;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use reqwest::StatusCode;
use serde_json::{Value, json};

use crate::{
    access::list_tools,
    common::{Server, eventually},
    issuer::{Issuer, SigningKey, assemble, seconds_from_now},
};

static A: LazyLock<SigningKey> = LazyLock::new(|| SigningKey::new("a"));
static B: LazyLock<SigningKey> = LazyLock::new(|| SigningKey::new("b"));

/// A server that trusts one issuer.
struct Trusting {
    server: Server,
    issuer: Issuer,
    _dir: tempfile::TempDir,
}

impl Trusting {
    async fn start(keys: &[&SigningKey], args: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let issuer = Issuer::start(keys).await;
        let policy = issuer.policy(&dir);
        let server = Server::start(&[&["--policy", policy.as_str()], args].concat()).await;
        Self { server, issuer, _dir: dir }
    }

    async fn status(&self, token: &str) -> StatusCode {
        list_tools(&self.server, &[&format!("Bearer {token}")]).await.status()
    }

    /// Expects that a token is refused with 401 and these words.
    async fn expect_refused(&self, token: &str, reason: &str) {
        let response = list_tools(&self.server, &[&format!("Bearer {token}")]).await;
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED, "{reason}");
        let challenge = response.headers()["www-authenticate"].to_str().unwrap().to_owned();
        assert!(challenge.contains("error=\"invalid_token\""), "{challenge}");
        assert!(challenge.contains("resource_metadata=\"http://"), "{challenge}");
        let problem: Value = response.json().await.unwrap();
        assert!(problem["detail"].as_str().unwrap().contains(reason), "{problem}");
    }

    fn token(&self, key: &SigningKey, changes: Value) -> String {
        key.sign(&self.issuer.claims(changes))
    }
}

#[tokio::test]
async fn a_token_of_the_issuer_is_accepted_and_attacks_are_not() {
    let fleet = Trusting::start(&[&A], &[]).await;
    let good = fleet.token(&A, json!({}));
    assert_eq!(fleet.status(&good).await, StatusCode::OK);

    let claims = fleet.issuer.claims(json!({}));
    for alg in ["none", "None", "NONE"] {
        let token = assemble(&json!({"alg": alg, "kid": "a"}), &claims, "");
        fleet.expect_refused(&token, "algorithm").await;
    }

    // The public key as the secret of a symmetric algorithm.
    let mut header = Header::new(Algorithm::HS256);
    header.kid = Some("a".to_owned());
    let secret = EncodingKey::from_secret(A.public_pem.as_bytes());
    let confused = jsonwebtoken::encode(&header, &claims, &secret).unwrap();
    fleet.expect_refused(&confused, "algorithm").await;

    let (head, signature) = good.rsplit_once('.').unwrap();
    let (header, _) = head.split_once('.').unwrap();
    let other = fleet.token(&A, json!({"sub": "mallory"}));
    let body = other.split('.').nth(1).unwrap();
    fleet.expect_refused(&format!("{header}.{body}.{signature}"), "signature").await;
    fleet.expect_refused("abc", "neither an API key").await;

    for (changes, reason) in [
        (json!({"aud": "https://other.example.com"}), "audience"),
        (json!({"aud": ["https://mcp.example.com"]}), "audience"),
        (json!({"aud": null}), "audience"),
        (json!({"iss": "https://evil.example.com"}), "issuer"),
        (json!({"iss": null}), "issuer"),
        (json!({"exp": seconds_from_now(-120)}), "expired"),
        (json!({"exp": null}), "expired"),
        (json!({"nbf": seconds_from_now(120)}), "not valid yet"),
        (json!({"sub": null}), "subject"),
    ] {
        fleet.expect_refused(&fleet.token(&A, changes.clone()), reason).await;
    }

    // Clocks may differ by a minute.
    let skewed = json!({"exp": seconds_from_now(-30), "nbf": seconds_from_now(30)});
    assert_eq!(fleet.status(&fleet.token(&A, skewed)).await, StatusCode::OK);
}

#[tokio::test]
async fn a_flood_of_unknown_keys_reads_the_keys_once_in_ten_seconds() {
    let fleet = Trusting::start(&[&A], &[]).await;
    assert_eq!(fleet.status(&fleet.token(&A, json!({}))).await, StatusCode::OK);
    let started = Instant::now();
    let before = fleet.issuer.reads();

    let unknown = (0..300).map(|n| fleet.token(&B, json!({"jti": n.to_string()})));
    let tokens: Vec<_> = unknown.collect();
    for chunk in tokens.chunks(50) {
        let refused = join_all(chunk.iter().map(|token| fleet.status(token))).await;
        assert!(refused.iter().all(|status| *status == StatusCode::UNAUTHORIZED), "{refused:?}");
    }

    let reads = fleet.issuer.reads() - before;
    let allowed = 1 + usize::try_from(started.elapsed().as_secs() / 10).unwrap();
    assert!(reads <= allowed, "{reads} reads in {:?}", started.elapsed());
}

#[tokio::test]
async fn rotated_keys_are_found_and_old_ones_forgotten() {
    let fleet = Trusting::start(&[&A], &[]).await;
    let (old, new) = (fleet.token(&A, json!({})), fleet.token(&B, json!({})));
    assert_eq!(fleet.status(&old).await, StatusCode::OK);
    assert_eq!(fleet.status(&new).await, StatusCode::UNAUTHORIZED);

    fleet.issuer.publish(&[&B]);
    eventually("the new key to be found", async || {
        (fleet.status(&new).await == StatusCode::OK).then_some(())
    })
    .await;
    // A token that was remembered is verified anew.
    assert_eq!(fleet.status(&old).await, StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn an_issuer_that_is_away_stops_nobody_whose_key_is_known() {
    let fleet = Trusting::start(&[&A], &[]).await;
    assert_eq!(fleet.status(&fleet.token(&A, json!({}))).await, StatusCode::OK);

    fleet.issuer.go_down();
    let before = fleet.issuer.reads();
    eventually("the keys to be asked for in vain", async || {
        // An unknown key makes the server look, once the last look is ten seconds ago.
        let unknown = fleet.token(&B, json!({}));
        assert_eq!(fleet.status(&unknown).await, StatusCode::UNAUTHORIZED);
        (fleet.issuer.reads() > before).then_some(())
    })
    .await;
    let fresh = fleet.token(&A, json!({"jti": "another"}));
    assert_eq!(fleet.status(&fresh).await, StatusCode::OK);
}

#[tokio::test]
async fn without_any_keys_the_answer_is_to_come_back() {
    let fleet = Trusting::start(&[], &[]).await;
    let token = fleet.token(&A, json!({}));

    let response = list_tools(&fleet.server, &[&format!("Bearer {token}")]).await;
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(response.headers().get("www-authenticate").is_none(), "it is no verdict");
    let wait: u64 = response.headers()["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=10).contains(&wait), "{wait}");
    let problem: Value = response.json().await.unwrap();
    assert_eq!(problem["code"], "FLEET-NO-ISSUER-KEYS");

    fleet.issuer.publish(&[&A]);
    eventually("the keys to be read", async || {
        (fleet.status(&token).await == StatusCode::OK).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_new_policy_file_brings_new_issuers() {
    let fleet = Trusting::start(&[&A], &[]).await;
    let other = Issuer::start(&[&B]).await;
    let token = B.sign(&other.claims(json!({})));
    fleet.expect_refused(&token, "issuer").await;

    let policy = other.policy(&fleet._dir);
    eventually("the new issuer to be trusted", async || {
        (fleet.status(&token).await == StatusCode::OK).then_some(())
    })
    .await;
    let old = fleet.token(&A, json!({}));
    fleet.expect_refused(&old, "issuer").await;

    // Without issuers, nobody is served; the server doesn't open by that.
    std::fs::write(policy, "").unwrap();
    eventually("the issuer to be forgotten", async || {
        (fleet.status(&token).await == StatusCode::UNAUTHORIZED).then_some(())
    })
    .await;
    assert_eq!(list_tools(&fleet.server, &[]).await.status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test]
async fn clients_are_told_where_tokens_come_from() {
    for (args, base) in [
        (&["--public-url", "https://mcp.example.com/tools/"][..], "https://mcp.example.com/tools"),
        (&[], ""),
    ] {
        let fleet = Trusting::start(&[&A], args).await;
        let own = fleet.server.url("");
        let base = if base.is_empty() { own.as_str() } else { base };

        for path in
            ["/.well-known/oauth-protected-resource/mcp", "/.well-known/oauth-protected-resource"]
        {
            let response = fleet.server.http.get(fleet.server.url(path)).send().await.unwrap();
            assert_eq!(response.status(), StatusCode::OK, "{path}");
            assert_eq!(response.headers()["access-control-allow-origin"], "*");
            let document: Value = response.json().await.unwrap();
            assert_eq!(document["resource"], format!("{base}/mcp"));
            assert_eq!(document["authorization_servers"], json!([fleet.issuer.url]));
            assert_eq!(document["bearer_methods_supported"], json!(["header"]));
        }

        let response = list_tools(&fleet.server, &[]).await;
        assert_eq!(response.status(), StatusCode::UNAUTHORIZED);
        let expected =
            format!("Bearer resource_metadata=\"{base}/.well-known/oauth-protected-resource/mcp\"");
        assert_eq!(response.headers()["www-authenticate"], expected);
    }
}

#[tokio::test]
async fn a_token_with_too_few_scopes_is_told_which_ones_it_needs() {
    let dir = tempfile::tempdir().unwrap();
    let issuer = Issuer::start(&[&A]).await;
    let policy = issuer.policy(&dir);
    let rule = "\n[[rule]]\nname='admin'\neffect='allow'\nprincipals=['anyone']\n\
                actions=['servers.administer']\nscopes=['fleet:read', 'fleet:admin']\n";
    let text = std::fs::read_to_string(&policy).unwrap() + rule;
    std::fs::write(&policy, text).unwrap();
    let server = Server::start(&["--policy", &policy]).await;

    let body = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call",
        "params": {"name": "server_remove", "arguments": {"name": "x"}}});
    let call = async |scope: &str| {
        let token = A.sign(&issuer.claims(json!({ "scope": scope })));
        let request = server.http.post(server.url("/message")).bearer_auth(token);
        request.json(&body).send().await.unwrap()
    };

    let refused = call("fleet:read").await;
    assert_eq!(refused.status(), StatusCode::FORBIDDEN);
    let challenge = refused.headers()["www-authenticate"].to_str().unwrap().to_owned();
    for part in [
        "error=\"insufficient_scope\"",
        "scope=\"fleet:read fleet:admin\"",
        "resource_metadata=\"http://",
    ] {
        assert!(challenge.contains(part), "{challenge}");
    }
    let answer: Value = refused.json().await.unwrap();
    let data = &answer["error"]["data"];
    assert_eq!(data["code"], "FLEET-INSUFFICIENT-SCOPE", "{answer}");
    assert_eq!(data["scopes"], json!(["fleet:read", "fleet:admin"]), "{answer}");

    let served = call("fleet:read fleet:admin").await;
    assert_eq!(served.status(), StatusCode::OK);
    let answer: Value = served.json().await.unwrap();
    assert!(answer["result"].is_object(), "{answer}");
}
