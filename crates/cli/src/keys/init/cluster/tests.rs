//! Tests of the Secret, with an API that answers as a cluster does.

use std::sync::Arc;

use axum::{
    Json, Router,
    extract::{Path as UrlPath, State},
    http::HeaderMap,
    response::{IntoResponse as _, Response},
    routing::get,
};
use fleet_access::KeyEntry;
use fleet_signing::SigningKeys;
use parking_lot::Mutex;

use super::*;

/// A Secret of the stub.
#[derive(Debug, Default)]
struct Stored {
    version: u64,
    data: BTreeMap<String, String>,
    patches: usize,
    /// How many patches are still refused because somebody else was quicker.
    conflicts: usize,
}

type Shared = Arc<Mutex<Stored>>;

/// An API with the Secret `keys` in the namespace `fleet`, and a service account for it.
struct Stub {
    secret: Shared,
    url: Url,
    account: tempfile::TempDir,
}

impl Stub {
    async fn start() -> Self {
        let secret = Shared::default();
        let route = get(read_secret).patch(patch_secret);
        let app = Router::new()
            .route("/api/v1/namespaces/fleet/secrets/{name}", route)
            .with_state(Arc::clone(&secret));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap()).parse().unwrap();
        tokio::spawn(async move { axum::serve(listener, app).await });

        let account = tempfile::tempdir().unwrap();
        for (name, text) in [("token", "t0ken\n"), ("namespace", "fleet"), ("ca.crt", "")] {
            std::fs::write(account.path().join(name), text).unwrap();
        }
        Self { secret, url, account }
    }

    fn cluster(&self) -> Cluster {
        Cluster::with_account(self.url.clone(), self.account.path()).unwrap()
    }

    async fn complete(&self, name: &str) -> Result<Vec<Step>, CliError> {
        let steps = self.cluster().complete_secret(name).await?;
        Ok(steps.0.into_iter().map(|(_, step)| step).collect())
    }

    /// The fields of the Secret as a pod sees them.
    fn fields(&self) -> Fields {
        decode_fields("keys", self.secret.lock().data.clone()).unwrap()
    }
}

fn as_secret(stored: &Stored) -> Value {
    json!({"metadata": {"resourceVersion": stored.version.to_string()}, "data": stored.data})
}

fn refusal(status: u16, message: &str) -> Response {
    let status = StatusCode::from_u16(status).unwrap();
    (status, Json(json!({"kind": "Status", "message": message}))).into_response()
}

fn check(headers: &HeaderMap, name: &str) -> Option<Response> {
    if headers.get("authorization").is_none_or(|value| value != "Bearer t0ken") {
        return Some(refusal(401, "Unauthorized"));
    }
    match name {
        "keys" => None,
        "forbidden" => Some(refusal(403, "secrets \"forbidden\" is forbidden")),
        _ => Some(refusal(404, "not found")),
    }
}

async fn read_secret(
    State(secret): State<Shared>,
    UrlPath(name): UrlPath<String>,
    headers: HeaderMap,
) -> Response {
    let refused = check(&headers, &name);
    refused.unwrap_or_else(|| Json(as_secret(&secret.lock())).into_response())
}

async fn patch_secret(
    State(secret): State<Shared>,
    UrlPath(name): UrlPath<String>,
    headers: HeaderMap,
    body: String,
) -> Response {
    if let Some(refused) = check(&headers, &name) {
        return refused;
    }
    assert_eq!(headers["content-type"], "application/merge-patch+json");
    let patch: Value = serde_json::from_str(&body).unwrap();

    let mut stored = secret.lock();
    if stored.conflicts > 0 {
        stored.conflicts -= 1;
        stored.version += 1;
    }
    let seen = patch["metadata"]["resourceVersion"].as_str();
    if seen != Some(stored.version.to_string().as_str()) {
        return refusal(409, "the object has been modified");
    }
    for (field, value) in patch["data"].as_object().unwrap() {
        stored.data.insert(field.clone(), value.as_str().unwrap().to_owned());
    }
    stored.version += 1;
    stored.patches += 1;
    Json(as_secret(&stored)).into_response()
}

/// Whether the keys file in the Secret knows the secret of each key.
fn check_secrets(fields: &Fields) {
    let file = KeysFile::parse(&fields[KEYS]).unwrap();
    let pepper = Pepper::parse(&fields[PEPPER]).unwrap();
    assert_eq!(file.pepper, None, "the pepper has a field of its own");
    for key in &FIRST_KEYS {
        let text = &fields[&key.file_name()];
        assert_eq!(text.trim(), text, "a line break would become part of a header");
        let expected = KeyEntry::of_key(text, &pepper, fleet_ops::clock::now()).unwrap();
        let entry = file.keys.iter().find(|entry| entry.id == key.id).unwrap();
        assert_eq!((&entry.mac, entry.kind), (&expected.mac, key.kind), "{}", key.id);
    }
}

#[tokio::test]
async fn an_empty_secret_gets_the_keys_once() {
    let stub = Stub::start().await;
    assert_eq!(stub.complete("keys").await.unwrap(), [Step::Made; 3]);
    let made = stub.fields();
    assert_eq!(made.len(), 7);
    check_secrets(&made);
    let keys = SigningKeys::parse(made[signing::PRIVATE_KEY].as_bytes()).unwrap();
    assert!(keys.can_sign());
    assert_eq!(keys.public_pem(), made[signing::PUBLIC_KEYS]);

    assert_eq!(stub.complete("keys").await.unwrap(), [Step::Kept; 3]);
    assert_eq!((stub.fields(), stub.secret.lock().patches), (made, 1));
}

#[tokio::test]
async fn whoever_comes_second_keeps_what_the_first_has_made() {
    let stub = Stub::start().await;
    stub.secret.lock().conflicts = 2;
    let (one, two) = tokio::join!(stub.complete("keys"), stub.complete("keys"));
    let made = |steps: &Vec<Step>| steps.iter().filter(|step| **step == Step::Made).count();
    assert_eq!(made(&one.unwrap()) + made(&two.unwrap()), 3);
    assert_eq!(stub.secret.lock().patches, 1);
    check_secrets(&stub.fields());
}

#[tokio::test]
async fn a_field_that_was_lost_is_not_made_up() {
    let stub = Stub::start().await;
    stub.complete("keys").await.unwrap();
    let lose = |field: &str| stub.secret.lock().data.remove(field).unwrap();

    lose("operator.key");
    let expected = [Step::Kept, Step::KeptWithoutSecret, Step::Kept];
    assert_eq!(stub.complete("keys").await.unwrap(), expected);

    // Without the keys file, the secrets that are there are still those of the keys.
    lose(KEYS);
    let expected = [Step::Finished, Step::Made, Step::Finished];
    assert_eq!(stub.complete("keys").await.unwrap(), expected);
    check_secrets(&stub.fields());

    let file = KeysFile::parse(&stub.fields()[KEYS]).unwrap();
    let one = KeysFile { keys: file.keys[..1].to_vec(), ..file };
    stub.secret.lock().data.insert(KEYS.to_owned(), BASE64_STANDARD.encode(one.to_toml()));
    lose(PEPPER);
    let error = stub.complete("keys").await.unwrap_err().to_string();
    assert!(error.contains("keys.toml.pepper") && error.contains("missing"), "{error}");
}

#[tokio::test]
async fn refusals_say_what_to_do() {
    let stub = Stub::start().await;
    let check = async |name: &str, expected: &str| {
        let error = stub.complete(name).await.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    check("forbidden", "verbs get and patch").await;
    check("other", "apply the manifest").await;
    std::fs::write(stub.account.path().join("token"), "stale").unwrap();
    check("keys", "Unauthorized").await;
}

#[test]
fn the_api_is_reached_by_address() {
    for (host, expected) in [
        ("10.0.0.1", "https://10.0.0.1/"),
        ("fd00::1", "https://[fd00::1]/"),
        ("kubernetes.default.svc", "https://kubernetes.default.svc/"),
    ] {
        assert_eq!(api_url(host, "443").unwrap().as_str(), expected);
    }
    assert_eq!(api_url("10.0.0.1", "x"), None);
}
