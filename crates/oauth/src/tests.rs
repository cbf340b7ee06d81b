//! Tests of whole requests for tokens, with servers in memory.

use std::collections::BTreeMap;

use http::{Request, Response, StatusCode};
use parking_lot::Mutex;
use rmcp::transport::auth::OAuthHttpClientFuture;

use super::*;
use crate::fetch::SendRequest;

const REMOTE: &str = "https://remote.example/mcp";
const ISSUER: &str = "https://idp.example/realm";
const RESOURCE_METADATA: &str = "https://remote.example/.well-known/oauth-protected-resource/mcp";
const ISSUER_METADATA: &str = "https://idp.example/.well-known/oauth-authorization-server/realm";

/// Servers in memory: their answers by URL, and the requests that they got.
#[derive(Clone, Default)]
struct Servers(Arc<Mutex<State>>);

#[derive(Default)]
struct State {
    answers: BTreeMap<String, (u16, Value)>,
    posts: Vec<(String, String)>,
}

impl Servers {
    fn answer(&self, url: &str, status: u16, body: Value) {
        self.0.lock().answers.insert(url.to_owned(), (status, body));
    }

    /// The URLs that something was posted to, and the forms.
    fn posts(&self) -> Vec<(String, String)> {
        self.0.lock().posts.clone()
    }

    /// A remote that names the issuer, and the issuer.
    fn start() -> Self {
        let servers = Self::default();
        let named = json!({"resource": REMOTE, "authorization_servers": [ISSUER]});
        servers.answer(RESOURCE_METADATA, 200, named);
        servers.answer(ISSUER_METADATA, 200, metadata("https://idp.example/token"));
        servers.answer("https://idp.example/token", 200, token("t"));
        servers
    }

    fn source(&self, server: AuthorizationServer, proof: Proof) -> TokenSource {
        let url = |text: &str| Url::parse(text).unwrap();
        let reach = match &server {
            AuthorizationServer::Named => Reach::Anywhere,
            AuthorizationServer::Issuer(issuer) | AuthorizationServer::TokenEndpoint(issuer) => {
                Reach::configured(issuer, &url(REMOTE))
            }
        };
        let credentials = CredentialsReader::new(move || {
            let (client_id, proof) = ("fleet".to_owned(), proof.clone());
            Ok(ClientCredentials { client_id, proof, scopes: Vec::new() })
        });
        let settings = TokenSettings { server, resource: None };
        let http = BoundedClient::through(self.clone(), reach);
        TokenSource::new(url(REMOTE), settings, credentials, http)
    }

    fn source_of_issuer(&self) -> TokenSource {
        let issuer = AuthorizationServer::Issuer(Url::parse(ISSUER).unwrap());
        self.source(issuer, Proof::Secret("hunter2".to_owned()))
    }
}

impl SendRequest for Servers {
    fn send(&self, request: Request<Vec<u8>>) -> OAuthHttpClientFuture<'_> {
        let url = request.uri().to_string();
        let mut state = self.0.lock();
        if request.method() == http::Method::POST {
            let form = String::from_utf8(request.body().clone()).unwrap();
            state.posts.push((url.clone(), form));
        }
        let (status, body) = state.answers.get(&url).cloned().unwrap_or((404, Value::Null));
        let status = StatusCode::from_u16(status).unwrap();
        let answer = Response::builder().status(status).body(body.to_string().into_bytes());
        Box::pin(async move { Ok(answer?) })
    }
}

fn metadata(token_endpoint: &str) -> Value {
    json!({
        "issuer": ISSUER,
        "authorization_endpoint": "https://idp.example/authorize",
        "token_endpoint": token_endpoint,
    })
}

fn token(text: &str) -> Value {
    json!({"access_token": text, "token_type": "Bearer", "expires_in": 60})
}

#[tokio::test]
async fn a_remote_that_names_the_issuer_gets_a_token_of_it() {
    let servers = Servers::start();
    assert_eq!(&*servers.source_of_issuer().token().await.unwrap(), "t");
    assert_eq!(servers.posts()[0].0, "https://idp.example/token");
}

/// The remote serves a document that claims to be the issuer's, where no rule says whose it is.
#[tokio::test]
async fn a_remote_cannot_have_the_secret_sent_to_itself_in_the_issuers_name() {
    for steal in ["https://remote.example/steal", "https://evil.example/steal"] {
        let servers = Servers::start();
        let forged = "https://remote.example/x/.well-known/y";
        let named = json!({"resource": REMOTE, "authorization_servers": [forged]});
        servers.answer(RESOURCE_METADATA, 200, named);
        servers.answer(forged, 200, metadata(steal));
        servers.answer(steal, 200, token("stolen"));

        _ = servers.source_of_issuer().token().await;
        let posted_to: Vec<_> = servers.posts().into_iter().map(|(url, _)| url).collect();
        assert!(posted_to.iter().all(|url| url == "https://idp.example/token"), "{posted_to:?}");
    }
}

#[tokio::test]
async fn metadata_of_another_issuer_is_not_used() {
    let servers = Servers::start();
    let mut other = metadata("https://idp.example/other");
    other["issuer"] = json!("https://idp.example/other-realm");
    servers.answer(ISSUER_METADATA, 200, other);
    servers.source_of_issuer().token().await.unwrap_err();
    assert_eq!(servers.posts(), []);
}

/// Whatever it quotes, and however.
#[tokio::test]
async fn an_error_has_nothing_of_an_answer_but_status_and_a_known_code() {
    let error = |code: &str| json!({"error": code, "error_description": "for Zmxl:hunter2"});
    let odd = json!({"access_token": ["Zmxl:hunter2"], "token_type": "hunter2"});
    for (status, answer, expected) in [
        (401, error("invalid_client"), "answered 401: invalid_client"),
        (400, error("hunter2"), "answered 400"),
        (500, json!("hunter2"), "answered 500"),
        (200, odd, "is not a token response"),
        (200, json!("hunter2"), "is not a token response"),
    ] {
        let servers = Servers::start();
        servers.answer("https://idp.example/token", status, answer);
        let error = servers.source_of_issuer().token().await.unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        for quoted in ["hunter2", "Zmxl", "description"] {
            assert!(!error.contains(quoted), "{error}");
        }
    }
}

/// A source whose token ends soon.
fn source_before_an_end(servers: &Servers) -> TokenSource {
    let source = servers.source_of_issuer();
    let now = Instant::now();
    let asked = now.checked_sub(Duration::from_secs(55)).unwrap();
    source.0.held.lock().take(&token("old"), asked, now).unwrap();
    source
}

#[tokio::test]
async fn a_token_that_ends_soon_is_used_while_another_is_fetched() {
    let servers = Servers::start();
    let source = source_before_an_end(&servers);
    assert_eq!(&*source.token().await.unwrap(), "old", "no call waits");
    let deadline = Instant::now() + Duration::from_secs(10);
    while &*source.token().await.unwrap() != "t" {
        assert!(Instant::now() < deadline, "no token was fetched");
        tokio::task::yield_now().await;
    }
    assert_eq!(servers.posts().len(), 1);
}

#[tokio::test]
async fn no_call_fails_while_a_token_is_good() {
    let servers = Servers::start();
    servers.answer("https://idp.example/token", 503, Value::Null);
    let source = source_before_an_end(&servers);
    let fetching = Arc::clone(&source.0);
    let fetch = async { fetching.fetch_once(None).await };
    assert_eq!(&*fetch.await.unwrap(), "old", "nor the one that asked");
    for _ in 0..20 {
        assert_eq!(&*source.token().await.unwrap(), "old");
    }
    assert_eq!(servers.posts().len(), 1);
}

/// Whoever holds the client's secret back, or the audit log.
#[tokio::test(start_paused = true)]
async fn reading_the_secret_counts_as_a_part_of_the_request() {
    let servers = Servers::start();
    let (release, blocked) = std::sync::mpsc::channel::<()>();
    let blocked = Mutex::new(blocked);
    let credentials = CredentialsReader::new(move || {
        _ = blocked.lock().recv();
        Err("it was released".to_owned())
    });
    let url = |text: &str| Url::parse(text).unwrap();
    let reach = Reach::configured(&url(ISSUER), &url(REMOTE));
    let http = BoundedClient::through(servers, reach);
    let source = TokenSource::new(url(REMOTE), TokenSettings::default(), credentials, http);

    let asking = tokio::spawn(async move { source.token().await });
    // A blocking thread keeps paused time from going on by itself.
    for _ in 0..=FETCH_LIMIT.as_secs() {
        tokio::task::yield_now().await;
        tokio::time::advance(Duration::from_secs(1)).await;
    }
    let error = asking.await.unwrap().unwrap_err().to_string();
    assert!(error.contains("not done within"), "{error}");
    drop(release);
}
