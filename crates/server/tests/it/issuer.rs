//! An issuer of access tokens that exists in tests only: it publishes its keys, and counts how often
//! they are read.

use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use aws_lc_rs::{
    encoding::{AsDer, Pkcs8V1Der, PublicKeyX509Der},
    rsa::{KeyPair, KeySize},
    signature::KeyPair as _,
};
use axum::{
    Json, Router,
    extract::State,
    http::StatusCode,
    response::{IntoResponse as _, Response},
    routing::get,
};
use base64::{
    Engine as _,
    prelude::{BASE64_STANDARD, BASE64_URL_SAFE_NO_PAD},
};
use jsonwebtoken::{Algorithm, EncodingKey, Header, jwk::Jwk};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio_util::sync::{CancellationToken, DropGuard};

/// What tokens for the tested server have as their audience.
pub(crate) const AUDIENCE: &str = "https://mcp.example.com/mcp";

/// A key that the issuer signs with.
pub(crate) struct SigningKey {
    id: &'static str,
    private: EncodingKey,
    jwk: Value,
    /// The public half, as everybody may have it.
    pub(crate) public_pem: String,
}

impl SigningKey {
    pub(crate) fn new(id: &'static str) -> Self {
        let pair = KeyPair::generate(KeySize::Rsa2048).unwrap();
        let private = AsDer::<Pkcs8V1Der<'_>>::as_der(&pair).unwrap();
        let private = EncodingKey::from_rsa_pem(pem("PRIVATE KEY", private.as_ref()).as_bytes());
        let public = AsDer::<PublicKeyX509Der<'_>>::as_der(pair.public_key()).unwrap();

        let private = private.unwrap();
        let jwk = Jwk::from_encoding_key(&private, Algorithm::RS256).unwrap();
        let mut jwk = serde_json::to_value(jwk).unwrap();
        jwk["kid"] = id.into();
        Self { id, private, jwk, public_pem: pem("PUBLIC KEY", public.as_ref()) }
    }

    pub(crate) fn sign(&self, claims: &Value) -> String {
        let mut header = Header::new(Algorithm::RS256);
        header.kid = Some(self.id.to_owned());
        jsonwebtoken::encode(&header, claims, &self.private).unwrap()
    }
}

/// Writes a key as PEM.
pub(crate) fn pem(label: &str, der: &[u8]) -> String {
    let text = BASE64_STANDARD.encode(der);
    let lines: Vec<_> = text.as_bytes().chunks(64).map(String::from_utf8_lossy).collect();
    format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", lines.join("\n"))
}

/// A token that nobody signed: with this header and these claims, and any signature.
pub(crate) fn assemble(header: &Value, claims: &Value, signature: &str) -> String {
    let part = |value: &Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}.{signature}", part(header), part(claims))
}

/// Seconds since the epoch.
pub(crate) fn seconds_from_now(seconds: i64) -> i64 {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    i64::try_from(now.as_secs()).unwrap() + seconds
}

/// A running issuer.
pub(crate) struct Issuer {
    pub(crate) url: String,
    published: Arc<Published>,
    _stop: DropGuard,
}

struct Published {
    url: String,
    /// The key set; while there is none, the issuer is down.
    keys: Mutex<Option<Value>>,
    reads: AtomicUsize,
}

impl Issuer {
    /// Starts an issuer with these keys; without any, it is down.
    pub(crate) async fn start(keys: &[&SigningKey]) -> Self {
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let (listener, address) = fleet_ops::http::bind(any).await.unwrap();
        let published = Arc::new(Published {
            url: format!("http://{address}"),
            keys: Mutex::default(),
            reads: AtomicUsize::new(0),
        });

        let router = Router::new()
            .route("/.well-known/openid-configuration", get(serve_metadata))
            .route("/keys", get(serve_keys))
            .with_state(published.clone());
        let stop = CancellationToken::new();
        tokio::spawn(fleet_ops::http::serve(listener, router, stop.clone()));

        let issuer = Self { url: published.url.clone(), published, _stop: stop.drop_guard() };
        if !keys.is_empty() {
            issuer.publish(keys);
        }
        issuer
    }

    pub(crate) fn publish(&self, keys: &[&SigningKey]) {
        let keys: Vec<_> = keys.iter().map(|key| &key.jwk).collect();
        *self.published.keys.lock() = Some(json!({ "keys": keys }));
    }

    pub(crate) fn go_down(&self) {
        *self.published.keys.lock() = None;
    }

    /// How often the keys were read, or asked for while the issuer was down.
    pub(crate) fn reads(&self) -> usize {
        self.published.reads.load(Ordering::SeqCst)
    }

    /// The claims of a token for the tested server, with these changes; `null` removes a claim.
    pub(crate) fn claims(&self, changes: Value) -> Value {
        let mut claims: BTreeMap<String, Value> = BTreeMap::from([
            ("iss".to_owned(), json!(self.url)),
            ("sub".to_owned(), json!("alice")),
            ("aud".to_owned(), json!(AUDIENCE)),
            ("exp".to_owned(), json!(seconds_from_now(600))),
        ]);
        for (name, value) in changes.as_object().unwrap() {
            match value {
                Value::Null => claims.remove(name),
                value => claims.insert(name.clone(), value.clone()),
            };
        }
        json!(claims)
    }

    /// A policy file that trusts this issuer.
    pub(crate) fn policy(&self, dir: &tempfile::TempDir) -> String {
        let path = dir.path().join("policy.toml");
        let text = format!("[[issuer]]\nurl = '{}'\naudiences = ['{AUDIENCE}']\n", self.url);
        std::fs::write(&path, text).unwrap();
        path.to_str().unwrap().to_owned()
    }
}

async fn serve_metadata(State(published): State<Arc<Published>>) -> Response {
    if published.keys.lock().is_none() {
        published.reads.fetch_add(1, Ordering::SeqCst);
        return StatusCode::SERVICE_UNAVAILABLE.into_response();
    }
    let (issuer, keys) = (&published.url, format!("{}/keys", published.url));
    Json(json!({ "issuer": issuer, "jwks_uri": keys })).into_response()
}

async fn serve_keys(State(published): State<Arc<Published>>) -> Response {
    published.reads.fetch_add(1, Ordering::SeqCst);
    // A read takes a while, so that requests meet one that is under way.
    tokio::time::sleep(Duration::from_millis(50)).await;
    let keys = published.keys.lock().clone();
    match keys {
        Some(keys) => Json(keys).into_response(),
        None => StatusCode::SERVICE_UNAVAILABLE.into_response(),
    }
}
