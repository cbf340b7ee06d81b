//! Remotes for which policy gets access tokens: the tokens are shared, replaced before they end and
//! when they are withdrawn, and never shown; without any, calls wait.

use std::{
    fs,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use aws_lc_rs::{
    rand::SystemRandom,
    signature::{ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair},
};
use axum::{
    Json, Router,
    extract::{Request, State},
    response::{IntoResponse, Response},
};
use base64::{Engine as _, prelude::BASE64_STANDARD};
use http::{HeaderMap, StatusCode, header};
use jsonwebtoken::{Algorithm, DecodingKey, EncodingKey, Validation, jwk::Jwk};
use serde_json::{Value, json};
use tokio::net::TcpListener;

use crate::{
    common::{command, eventually},
    guarded::{Guarded, Logged, Mounted, VALUE, text_of},
    issuer::pem,
};

/// How often tokens are withdrawn under load.
const ROTATIONS: usize = 5;
/// The secret of the client.
const SECRET: &str = "hunter2-client";

/// An authorization server whose tokens a remote accepts.
struct Authority {
    url: String,
    state: Arc<Desk>,
}

/// What the authorization server knows.
struct Desk {
    url: String,
    remote: Guarded,
    secret: Mutex<String>,
    /// The client's public key, if it proves itself with a key.
    key: Mutex<Option<DecodingKey>>,
    lifetime: AtomicUsize,
    /// How long it takes to answer, in milliseconds.
    delay: AtomicUsize,
    is_refusing: AtomicBool,
    issued: AtomicUsize,
    refused: AtomicUsize,
    /// The form of the last request.
    form: Mutex<String>,
}

impl Authority {
    async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let state = Arc::new(Desk {
            url: url.clone(),
            remote: Guarded::start().await,
            secret: Mutex::new(SECRET.to_owned()),
            key: Mutex::default(),
            lifetime: AtomicUsize::new(3600),
            // A request takes a while, so that others meet one that is under way.
            delay: AtomicUsize::new(20),
            is_refusing: AtomicBool::new(false),
            issued: AtomicUsize::new(0),
            refused: AtomicUsize::new(0),
            form: Mutex::default(),
        });
        state.remote.publish(&url);
        let app = Router::new().fallback(answer_client).with_state(state.clone());
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { url, state }
    }

    fn remote(&self) -> &Guarded {
        &self.state.remote
    }

    fn issued(&self) -> usize {
        self.state.issued.load(Ordering::SeqCst)
    }

    fn refused(&self) -> usize {
        self.state.refused.load(Ordering::SeqCst)
    }

    fn refuse(&self, refuses: bool) {
        self.state.is_refusing.store(refuses, Ordering::SeqCst);
    }

    /// Withdraws all tokens.
    fn withdraw(&self) {
        self.remote().accept(&[]);
    }

    /// A policy that gets tokens here.
    fn policy(&self, server: &str) -> String {
        format!(
            "[[remote]]\nhost = '{}'\n[remote.oauth]\n{server}\nclient_id = 'fleet'\n\
             client_secret = '${{secret:client}}'\nscopes = ['crm']\naudience = 'the crm'\n",
            self.remote().address
        )
    }

    fn policy_of_endpoint(&self) -> String {
        self.policy(&format!("token_url = '{}/token'", self.url))
    }

    fn config(&self, transport: &str, path: &str) -> Value {
        json!({"type": transport, "url": format!("http://{}{path}?key=x", self.remote().address)})
    }
}

async fn answer_client(State(desk): State<Arc<Desk>>, request: Request) -> Response {
    let (parts, body) = request.into_parts();
    if parts.uri.path() != "/token" {
        let metadata = json!({
            "issuer": desk.url,
            "authorization_endpoint": format!("{}/authorize", desk.url),
            "token_endpoint": format!("{}/token", desk.url),
            "token_endpoint_auth_methods_supported": ["client_secret_basic", "private_key_jwt"],
        });
        return Json(metadata).into_response();
    }

    let form = axum::body::to_bytes(body, 1 << 20).await.unwrap();
    *desk.form.lock().unwrap() = String::from_utf8(form.to_vec()).unwrap();
    let delay = desk.delay.load(Ordering::SeqCst);
    tokio::time::sleep(Duration::from_millis(delay as u64)).await;

    let (presented, is_known) = desk.identify(&parts.headers);
    if desk.is_refusing.load(Ordering::SeqCst) || !is_known {
        desk.refused.fetch_add(1, Ordering::SeqCst);
        // As careless servers do.
        let error =
            json!({"error": "invalid_client", "error_description": format!("not {presented}")});
        return (StatusCode::UNAUTHORIZED, Json(error)).into_response();
    }

    let token = format!("{VALUE}-token-{}", desk.issued.fetch_add(1, Ordering::SeqCst));
    desk.remote.accept(&[&token]);
    let lifetime = desk.lifetime.load(Ordering::SeqCst);
    let answer = json!({"access_token": token, "token_type": "Bearer", "expires_in": lifetime});
    Json(answer).into_response()
}

impl Desk {
    /// Returns what a client proves itself with, and whether that is right.
    fn identify(&self, headers: &HeaderMap) -> (String, bool) {
        if let Some(key) = &*self.key.lock().unwrap() {
            let form = self.form.lock().unwrap().clone();
            let mut fields = url::form_urlencoded::parse(form.as_bytes());
            let assertion = fields.find(|(name, _)| name == "client_assertion").unwrap().1;
            return (assertion.to_string(), self.is_asserted(&assertion, key));
        }

        let presented = headers[header::AUTHORIZATION].to_str().unwrap();
        let presented = BASE64_STANDARD.decode(presented.strip_prefix("Basic ").unwrap()).unwrap();
        let presented = String::from_utf8(presented).unwrap();
        let is_known = presented == format!("fleet:{}", self.secret.lock().unwrap());
        (presented, is_known)
    }

    /// Returns whether the client `fleet` has signed an assertion for us.
    fn is_asserted(&self, assertion: &str, key: &DecodingKey) -> bool {
        let mut validation = Validation::new(Algorithm::ES256);
        validation.set_audience(&[self.url.clone(), format!("{}/token", self.url)]);
        let claims = jsonwebtoken::decode::<Value>(assertion, key, &validation);
        claims.is_ok_and(|token| token.claims["sub"] == "fleet" && token.claims["iss"] == "fleet")
    }
}

/// Withdraws the tokens of a remote of this transport while it is called.
async fn withdraw_under_load(transport: &str, path: &str) {
    let dir = tempfile::tempdir().unwrap();
    let secrets = Mounted::new(dir.path().join("secrets"));
    secrets.set(&[("client", SECRET)]);
    let authority = Authority::start().await;
    let logged = Logged::start(dir.path(), &secrets, &authority.policy_of_endpoint()).await;
    let config = authority.config(transport, path);
    logged.server.initialize("r", config.clone()).await;
    assert_eq!(authority.issued(), 1, "one token serves the whole handshake");
    let form = authority.state.form.lock().unwrap().clone();
    for field in ["grant_type=client_credentials", "scope=crm", "audience=the+crm"] {
        assert!(form.contains(field), "{form}");
    }
    let path = path.replace('/', "%2F");
    assert!(form.contains(&format!("{path}&")) && !form.contains("key"), "{form}");
    let handshakes = authority.remote().state.handshakes.load(Ordering::Relaxed);

    let is_over = AtomicBool::new(false);
    let calls = [const { AtomicUsize::new(0) }; 8];
    let load = async |calls: &AtomicUsize| {
        while !is_over.load(Ordering::Relaxed) {
            let answer = logged.server.call_raw("r__work", json!({})).await;
            assert_eq!(text_of(&answer["result"]), "done", "{answer}");
            calls.fetch_add(1, Ordering::Relaxed);
        }
    };
    let rotations = async {
        for _ in 0..ROTATIONS {
            authority.withdraw();
            // No call lives through two of them.
            let before: Vec<_> = calls.iter().map(|calls| calls.load(Ordering::Relaxed)).collect();
            eventually("calls with the new token", async || {
                let mut pairs = calls.iter().zip(&before);
                pairs
                    .all(|(calls, before)| calls.load(Ordering::Relaxed) > before + 1)
                    .then_some(())
            })
            .await;
        }
        is_over.store(true, Ordering::Relaxed);
    };
    tokio::join!(futures::future::join_all(calls.iter().map(load)), rotations);
    assert_eq!(authority.issued(), 1 + ROTATIONS, "one request for all calls");

    // It is the same connection.
    logged.server.initialize("r", config).await;
    let status = logged.server.status("r").await;
    assert_eq!(status["accessToken"]["state"], "valid", "{status}");
    assert_eq!(authority.remote().state.handshakes.load(Ordering::Relaxed), handshakes);
    logged.check_uses(&[("r", "client", 1)]).await;
    logged.check_nothing_is_shown().await;
}

#[tokio::test]
async fn the_access_tokens_of_a_remote_are_replaced_under_load_without_a_failed_call() {
    withdraw_under_load("http", "/mcp").await;
}

#[tokio::test]
async fn those_of_a_remote_of_the_older_transport_are_replaced_under_load_too() {
    withdraw_under_load("sse", "/sse").await;
}

#[tokio::test]
async fn a_token_is_replaced_before_its_end() {
    let dir = tempfile::tempdir().unwrap();
    let secrets = Mounted::new(dir.path().join("secrets"));
    secrets.set(&[("client", SECRET)]);
    let authority = Authority::start().await;
    authority.state.lifetime.store(6, Ordering::SeqCst);
    let logged = Logged::start(dir.path(), &secrets, &authority.policy_of_endpoint()).await;
    logged.server.initialize("r", authority.config("http", "/mcp")).await;

    eventually("another token", async || {
        let answer = logged.server.call_raw("r__work", json!({})).await;
        assert_eq!(text_of(&answer["result"]), "done", "{answer}");
        (authority.issued() > 1).then_some(())
    })
    .await;
}

#[tokio::test]
async fn an_authorization_server_that_refuses_is_an_outage_of_the_remote() {
    let dir = tempfile::tempdir().unwrap();
    let secrets = Mounted::new(dir.path().join("secrets"));
    secrets.set(&[("client", SECRET)]);
    let authority = Authority::start().await;
    let logged = Logged::start(dir.path(), &secrets, &authority.policy_of_endpoint()).await;
    let server = &logged.server;
    let check_outage = |answer: &Value| {
        assert_eq!(answer["error"]["data"]["reason"], "upstream-unauthorized", "{answer}");
        assert!(!answer.to_string().contains(VALUE), "{answer}");
    };

    // It refuses from the beginning.
    authority.refuse(true);
    let older = json!({"name": "older", "config": authority.config("sse", "/sse")});
    check_outage(&server.call_raw("server_initialize", older).await);
    let arguments = json!({"name": "r", "config": authority.config("http", "/mcp")});
    let answer = server.call_raw("server_initialize", arguments.clone()).await;
    check_outage(&answer);
    let message = answer["error"]["message"].as_str().unwrap();
    assert!(message.contains("FLEET-NO-ACCESS-TOKEN"), "{message}");
    assert!(message.contains("answered 401: invalid_client"), "{message}");
    assert!(!message.contains("fleet:"), "the description of the error: {message}");
    let status = server.status("r").await;
    assert_eq!(status["accessToken"]["state"], "failed", "{status}");
    authority.refuse(false);
    eventually("the start", async || {
        let answer = server.call_raw("server_initialize", arguments.clone()).await;
        (answer["error"].is_null() && answer["result"]["isError"] != true).then_some(())
    })
    .await;
    server.call_ok("r__work", json!({})).await;

    // It refuses later. While many calls ask, it is asked now and then.
    authority.refuse(true);
    authority.withdraw();
    let before = authority.refused();
    for _ in 0..200 {
        check_outage(&server.call_raw("r__work", json!({})).await);
    }
    assert!(authority.refused() - before < 10, "{}", authority.refused() - before);
    let status = server.status("r").await;
    assert_eq!(status["state"], "failed", "{status}");

    // A client that was given a new secret.
    *authority.state.secret.lock().unwrap() = "hunter2-new".to_owned();
    authority.refuse(false);
    secrets.set(&[("client", "hunter2-new")]);
    eventually("the next token", async || {
        let answer = server.call_raw("r__work", json!({})).await;
        (text_of(&answer["result"]) == "done").then_some(())
    })
    .await;
    logged.check_nothing_is_shown().await;
}

#[tokio::test]
async fn a_remote_that_refuses_new_tokens_is_not_asked_with_many() {
    let dir = tempfile::tempdir().unwrap();
    let secrets = Mounted::new(dir.path().join("secrets"));
    secrets.set(&[("client", SECRET)]);
    let authority = Authority::start().await;
    let logged = Logged::start(dir.path(), &secrets, &authority.policy_of_endpoint()).await;
    logged.server.initialize("r", authority.config("http", "/mcp")).await;

    authority.remote().refuse_all(true);
    for _ in 0..50 {
        let answer = logged.server.call_raw("r__work", json!({})).await;
        assert_eq!(answer["error"]["data"]["reason"], "upstream-unauthorized", "{answer}");
    }
    assert!(authority.issued() <= 4, "{}", authority.issued());
    authority.remote().refuse_all(false);
    eventually("the remote", async || {
        let answer = logged.server.call_raw("r__work", json!({})).await;
        (text_of(&answer["result"]) == "done").then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_remote_names_the_configured_issuer_or_gets_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let secrets = Mounted::new(dir.path().join("secrets"));
    secrets.set(&[("client", SECRET)]);
    let (authority, other) = (Authority::start().await, Authority::start().await);
    let policy = authority.policy(&format!("issuer = '{}'", authority.url));
    let logged = Logged::start(dir.path(), &secrets, &policy).await;

    // A remote that names another authorization server does not bring the secret there.
    authority.remote().publish(&other.url);
    let arguments = json!({"name": "r", "config": authority.config("http", "/mcp")});
    let answer = logged.server.call_raw("server_initialize", arguments).await;
    assert_eq!(answer["error"]["data"]["reason"], "upstream-unauthorized", "{answer}");
    assert_eq!((other.issued(), other.refused()), (0, 0), "{answer}");

    authority.remote().publish(&authority.url);
    eventually("the start", async || {
        let config = authority.config("http", "/mcp");
        let arguments = json!({"name": "r", "config": config});
        let answer = logged.server.call_raw("server_initialize", arguments).await;
        answer["error"].is_null().then_some(())
    })
    .await;
    logged.server.call_ok("r__work", json!({})).await;
    assert_eq!(authority.issued(), 1);
}

#[tokio::test]
async fn another_policy_changes_the_client_of_a_connected_remote() {
    let dir = tempfile::tempdir().unwrap();
    let secrets = Mounted::new(dir.path().join("secrets"));
    secrets.set(&[("client", "hunter2-wrong"), ("right", SECRET)]);
    let authority = Authority::start().await;
    *authority.state.secret.lock().unwrap() = "hunter2-wrong".to_owned();
    let policy = authority.policy_of_endpoint();
    let logged = Logged::start(dir.path(), &secrets, &policy).await;
    logged.server.initialize("r", authority.config("http", "/mcp")).await;
    let handshakes = authority.remote().state.handshakes.load(Ordering::Relaxed);

    SECRET.clone_into(&mut authority.state.secret.lock().unwrap());
    authority.withdraw();
    let policy = policy.replace("secret:client", "secret:right");
    fs::write(dir.path().join("policy.toml"), policy).unwrap();
    eventually("the right client", async || {
        let answer = logged.server.call_raw("r__work", json!({})).await;
        (text_of(&answer["result"]) == "done").then_some(())
    })
    .await;
    assert_eq!(authority.remote().state.handshakes.load(Ordering::Relaxed), handshakes);
    logged.check_uses(&[("r", "client", 1), ("r", "right", 1)]).await;
    logged.check_nothing_is_shown().await;
}

/// The limit of a call is for the remote, and not for the authorization server.
#[tokio::test]
async fn waiting_for_a_token_is_no_time_of_the_remote() {
    let dir = tempfile::tempdir().unwrap();
    let secrets = Mounted::new(dir.path().join("secrets"));
    secrets.set(&[("client", SECRET)]);
    let authority = Authority::start().await;
    // The shortest time that a token is used.
    authority.state.lifetime.store(5, Ordering::SeqCst);
    let policy = format!("[limits]\ncall_timeout_ms = 1000\n{}", authority.policy_of_endpoint());
    let logged = Logged::start(dir.path(), &secrets, &policy).await;
    logged.server.initialize("r", authority.config("http", "/mcp")).await;

    authority.state.delay.store(2_000, Ordering::SeqCst);
    eventually("the end of the token", async || {
        let status = logged.server.status("r").await;
        (status["accessToken"]["state"] != "valid").then_some(())
    })
    .await;
    let before = authority.issued();
    let answer = logged.server.call_raw("r__work", json!({})).await;
    assert_eq!(text_of(&answer["result"]), "done", "{answer}");
    assert!(authority.issued() > before, "the call has waited for a token");
}

#[tokio::test]
async fn a_dry_run_names_the_authorization_server_and_a_missing_secret() {
    let dir = tempfile::tempdir().unwrap();
    let policy = "[[remote]]\nhost = '127.0.0.1:9'\n[remote.oauth]\nissuer = 'https://idp.example/a'\n\
                  client_id = 'fleet'\nclient_secret = '${secret:client}'\n";
    let config = json!({"mcpServers": {"crm": {"url": "http://127.0.0.1:9/mcp"}}});
    let path = |name: &str, text: &str| {
        let path = dir.path().join(name);
        fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let (policy, config) = (path("policy.toml", policy), path("mcp.json", &config.to_string()));
    let mut command = command(&["policy", "check", &policy, &config]);
    let output = command.output().await.unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    assert!(text.contains("access tokens: https://idp.example/a"), "{text}");
    assert!(text.contains("warning: no access token: there is no secret `client`"), "{text}");
}

#[tokio::test]
async fn a_configuration_neither_replaces_a_token_nor_takes_it_elsewhere() {
    let dir = tempfile::tempdir().unwrap();
    let secrets = Mounted::new(dir.path().join("secrets"));
    secrets.set(&[("client", SECRET)]);
    let authority = Authority::start().await;
    let address = authority.remote().address.to_string();
    let policy = authority.policy_of_endpoint().replace(&address, "mcp.example:443");
    let logged = Logged::start(dir.path(), &secrets, &policy).await;
    let refused = async |config: Value, code: &str, named: &str| {
        let (message, is_final) = logged.server.initialize_error("x", config.clone()).await;
        assert!(is_final && message.contains(code), "{config}: {message}");
        assert!(message.contains(named) && !message.contains(VALUE), "{config}: {message}");
    };

    let https = "https://mcp.example/mcp";
    let own = json!({"url": https, "headers": {"authorization": "Bearer mine"}});
    refused(own, "FLEET-SERVER-CONFIG", "\"authorization\"").await;
    let plain = json!({"url": "http://mcp.example:443/mcp"});
    refused(plain, "FLEET-SERVER-CONFIG", "must be https").await;
    // The client's secret is not one that configurations may use.
    let taken = json!({"url": https, "headers": {"X-Key": "${secret:client}"}});
    refused(taken, "FLEET-POLICY-SECRET", "`client`").await;
    assert_eq!((authority.issued(), authority.refused()), (0, 0));
}

/// A client that proves itself with a key gets tokens from an issuer and from a token endpoint.
#[tokio::test]
async fn a_private_key_proves_the_client() {
    let algorithm = &ECDSA_P256_SHA256_FIXED_SIGNING;
    let private = EcdsaKeyPair::generate_pkcs8(algorithm, &SystemRandom::new()).unwrap();
    let public =
        Jwk::from_encoding_key(&EncodingKey::from_ec_der(private.as_ref()), Algorithm::ES256);
    let public = DecodingKey::from_jwk(&public.unwrap()).unwrap();

    for key in ["issuer", "token_url"] {
        let dir = tempfile::tempdir().unwrap();
        let secrets = Mounted::new(dir.path().join("secrets"));
        secrets.set(&[("client", &pem("PRIVATE KEY", private.as_ref()))]);
        let authority = Authority::start().await;
        *authority.state.key.lock().unwrap() = Some(public.clone());
        let path = if key == "issuer" { "" } else { "/token" };
        let policy = authority.policy(&format!("{key} = '{}{path}'", authority.url));
        let policy = policy.replace("client_secret", "private_key");
        let logged = Logged::start(dir.path(), &secrets, &policy).await;
        logged.server.initialize("r", authority.config("http", "/mcp")).await;
        logged.server.call_ok("r__work", json!({})).await;
        assert_eq!((authority.issued(), authority.refused()), (1, 0), "{key}");
        logged.check_nothing_is_shown().await;
    }
}
