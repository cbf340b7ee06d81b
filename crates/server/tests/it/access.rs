//! Who is served: API keys, the rule at the start, and credentials that are refused.

use std::path::PathBuf;

use fleet_access::{KeyEntry, KeysFile, Pepper};
use fleet_job::time::Timestamp;
use reqwest::{Response, StatusCode};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncReadExt as _, AsyncWriteExt as _},
    net::TcpStream,
};

use crate::common::{PATIENCE, Server, command, eventually, tree};

/// A rule that allows everything to every caller.
const ALLOW_ALL: &str = "
    [[rule]]
    name = 'all'
    effect = 'allow'
    principals = ['anyone']
    actions = ['*']
";

/// A keys file with its pepper, and a policy file.
pub(crate) struct Keys {
    dir: tempfile::TempDir,
    file: KeysFile,
    pepper: Pepper,
}

impl Keys {
    pub(crate) fn new() -> Self {
        let pepper = Pepper::new([7; 32]);
        let keys = Self { dir: tempfile::tempdir().unwrap(), file: KeysFile::default(), pepper };
        std::fs::write(keys.dir.path().join("keys.toml.pepper"), keys.pepper.reveal()).unwrap();
        keys.save();
        keys.set_policy(ALLOW_ALL);
        keys
    }

    /// Replaces the policy file, which lets everybody with a key do everything at first.
    pub(crate) fn set_policy(&self, text: &str) {
        std::fs::write(self.dir.path().join("policy.toml"), text).unwrap();
    }

    /// The arguments of a server that uses both files.
    pub(crate) fn args(&self) -> [String; 4] {
        let policy = self.dir.path().join("policy.toml");
        ["--access-keys", self.path().to_str().unwrap(), "--policy", policy.to_str().unwrap()]
            .map(str::to_owned)
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("keys.toml")
    }

    /// Adds a key of a subject; returns its text.
    pub(crate) fn add(&mut self, id: &str, subject: &str) -> String {
        self.add_until(id, subject, None)
    }

    /// Adds a key of a subject that expires; returns its text.
    pub(crate) fn add_until(
        &mut self,
        id: &str,
        subject: &str,
        expires: Option<Timestamp>,
    ) -> String {
        let secret = [1 + u8::try_from(self.file.keys.len()).unwrap(); 32];
        let (key, entry) = KeyEntry::create(id, &secret, &self.pepper, Timestamp::MIN).unwrap();
        self.file.keys.push(KeyEntry { subject: Some(subject.to_owned()), expires, ..entry });
        self.save();
        key
    }

    /// Changes the entry of a key.
    pub(crate) fn change(&mut self, id: &str, change: impl FnOnce(&mut KeyEntry)) {
        change(self.file.keys.iter_mut().find(|entry| entry.id == id).unwrap());
        self.save();
    }

    pub(crate) fn revoke(&mut self, id: &str) {
        assert!(self.file.revoke(id, Timestamp::MIN));
        self.save();
    }

    fn save(&self) {
        std::fs::write(self.path(), self.file.to_toml()).unwrap();
    }

    pub(crate) async fn start_server(&self) -> Server {
        self.start_server_with(&[]).await
    }

    pub(crate) async fn start_server_with(&self, more: &[&str]) -> Server {
        let args = self.args();
        let args: Vec<_> = args.iter().map(String::as_str).chain(more.iter().copied()).collect();
        Server::start(&args).await
    }
}

/// Lists tools through `/message`, with these values of `Authorization`.
pub(crate) async fn list_tools(server: &Server, authorization: &[&str]) -> Response {
    let body = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list"});
    let request = server.http.post(server.url("/message")).json(&body);
    let request = authorization
        .iter()
        .fold(request, |request, value| request.header("authorization", *value));
    request.send().await.unwrap()
}

/// Expects a refusal with this status and these words in its challenge; returns the problem.
async fn expect_refusal(response: Response, status: u16, challenge: &str) -> Value {
    assert_eq!(response.status().as_u16(), status);
    let header = response.headers()["www-authenticate"].to_str().unwrap().to_owned();
    assert!(header.starts_with("Bearer") && header.contains(challenge), "{header}");
    assert_eq!(response.headers()["content-type"], "application/problem+json");
    let problem: Value = response.json().await.unwrap();
    assert_eq!(problem["status"], status);
    problem
}

#[tokio::test]
async fn a_key_is_accepted_and_everything_else_is_challenged() {
    let mut keys = Keys::new();
    let key = keys.add("ci", "ci");
    let server = keys.start_server().await;

    for spelling in ["Bearer", "bearer", "BEARER"] {
        let response = list_tools(&server, &[&format!("{spelling} {key}")]).await;
        assert_eq!(response.status(), StatusCode::OK, "{spelling}");
    }

    let bare = expect_refusal(list_tools(&server, &[]).await, 401, "Bearer").await;
    assert_eq!(bare["code"], "FLEET-UNAUTHENTICATED");
    let wrong = format!("Bearer {}A", &key[..key.len() - 1]);
    for credentials in [wrong.as_str(), "Bearer mf_nobody_AAAA", "Bearer abc", "Basic abc"] {
        let response = list_tools(&server, &[credentials]).await;
        let problem = expect_refusal(response, 401, "error=\"invalid_token\"").await;
        assert_eq!(problem["code"], "FLEET-BAD-CREDENTIALS", "{credentials}");
        assert!(!problem.to_string().contains("AAAA"));
    }

    // Two headers could mean two callers to two readers.
    let bearer = format!("Bearer {key}");
    let response = list_tools(&server, &[&bearer, &bearer]).await;
    let problem = expect_refusal(response, 400, "error=\"invalid_request\"").await;
    assert_eq!(problem["code"], "FLEET-MALFORMED-CREDENTIALS");
}

#[tokio::test]
async fn every_path_needs_a_key_but_probes_and_public_documents() {
    let mut keys = Keys::new();
    let key = keys.add("ci", "ci");
    let server = keys.start_server().await;
    let get = async |path: &str| server.http.get(server.url(path)).send().await.unwrap().status();

    for path in ["/health", "/ready", "/mcp/server-card", "/.well-known/ai-catalog.json"] {
        assert_eq!(get(path).await, StatusCode::OK, "{path}");
    }
    for path in ["/mcp", "/sse", "/jobs", "/jobs/x", "/events", "/openapi.json", "/metrics", "/x"] {
        assert_eq!(get(path).await, StatusCode::UNAUTHORIZED, "{path}");
    }
    // Without issuers there are no tokens, and no metadata about them.
    assert_eq!(get("/.well-known/oauth-protected-resource").await, StatusCode::NOT_FOUND);

    let metrics = server.http.get(server.url("/metrics")).bearer_auth(&key).send().await.unwrap();
    let text = metrics.text().await.unwrap();
    assert!(text.contains("mcp_server_refused_requests_total{fault=\"missing\"} 8"), "{text}");
    assert!(text.contains("mcp_server_accepted_requests_total{via=\"key\"} 1"), "{text}");
}

#[tokio::test]
async fn a_key_in_a_url_is_refused_even_beside_a_header() {
    let mut keys = Keys::new();
    let key = keys.add("ci", "ci");
    let server = keys.start_server().await;

    for query in [format!("access_token={key}"), format!("x={key}"), "access_token=x".to_owned()] {
        let url = server.url(&format!("/openapi.json?{query}"));
        let response = server.http.get(url).bearer_auth(&key).send().await.unwrap();
        let problem = expect_refusal(response, 400, "error=\"invalid_request\"").await;
        assert!(problem["detail"].as_str().unwrap().contains("URL"), "{problem}");
        assert!(!problem.to_string().contains(&key));
    }
}

#[tokio::test]
async fn a_revoked_key_is_refused_soon_and_a_new_one_accepted() {
    let mut keys = Keys::new();
    let (first, kept) = (keys.add("first", "a"), keys.add("kept", "b"));
    let server = keys.start_server().await;
    let status = async |key: &str| list_tools(&server, &[&format!("Bearer {key}")]).await.status();
    assert_eq!(status(&first).await, StatusCode::OK);

    let second = keys.add("second", "a");
    keys.revoke("first");
    let changed = std::time::Instant::now();
    eventually("the key to be refused", async || {
        (status(&first).await == StatusCode::UNAUTHORIZED).then_some(())
    })
    .await;
    assert!(changed.elapsed().as_secs() < 10, "{:?}", changed.elapsed());
    assert_eq!(status(&second).await, StatusCode::OK);
    assert_eq!(status(&kept).await, StatusCode::OK);

    let response = list_tools(&server, &[&format!("Bearer {first}")]).await;
    let problem = expect_refusal(response, 401, "revoked").await;
    assert_eq!(problem["detail"], "the API key was revoked");
}

#[tokio::test]
async fn a_principal_is_one_caller_with_all_of_its_keys() {
    let tree = tree();
    let mut keys = Keys::new();
    let [first, second, other] =
        [("a-1", "a"), ("a-2", "a"), ("b", "b")].map(|(id, subject)| keys.add(id, subject));
    let server = keys.start_server_with(&["--root", tree.root.to_str().unwrap()]).await;

    // The result of a job's call is remembered for its caller alone.
    let is_repeated = async |authorization: String| {
        let meta = json!({"io.mcp-fleet/jobId": "j", "io.mcp-fleet/idempotencyKey": "k"});
        let params =
            json!({"name": "file_read", "arguments": {"path": "hello.txt"}, "_meta": meta});
        let body = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params});
        let request = server.http.post(server.url("/message")).json(&body);
        let response = request.header("authorization", authorization).send().await.unwrap();
        let answer: Value = response.json().await.unwrap();
        assert!(answer["result"].is_object(), "{answer}");
        answer["result"]["_meta"]["io.mcp-fleet/repeated"] == json!(true)
    };
    assert!(!is_repeated(format!("Bearer {first}")).await);
    assert!(is_repeated(format!("bearer {first}")).await);
    assert!(is_repeated(format!("Bearer {second}")).await);
    assert!(!is_repeated(format!("Bearer {other}")).await);
}

#[tokio::test]
async fn a_bad_keys_file_keeps_the_keys_before() {
    let mut keys = Keys::new();
    let key = keys.add("ci", "ci");
    let server = keys.start_server().await;
    let status = async |key: &str| list_tools(&server, &[&format!("Bearer {key}")]).await.status();

    std::fs::write(keys.path(), "[[key]]\nid = 'ci'").unwrap();
    let reloads = "mcp_server_access_reloads_total{outcome=\"invalid\"} 1";
    eventually("the bad file to be read", async || {
        let metrics = server.http.get(server.url("/metrics")).bearer_auth(&key).send().await;
        metrics.unwrap().text().await.unwrap().contains(reloads).then_some(())
    })
    .await;
    assert_eq!(status(&key).await, StatusCode::OK);

    // An empty file is a valid one: it closes the server, and does not open it.
    std::fs::write(keys.path(), "").unwrap();
    eventually("the key to be refused", async || {
        (status(&key).await == StatusCode::UNAUTHORIZED).then_some(())
    })
    .await;
    assert_eq!(list_tools(&server, &[]).await.status(), StatusCode::UNAUTHORIZED);
}

/// A client that is still sending would see a lost connection, and try again, if the server closed
/// the connection before it has read the body.
#[tokio::test]
async fn a_large_request_with_a_wrong_key_is_refused_and_not_cut_off() {
    let mut keys = Keys::new();
    keys.add("ci", "ci");
    let server = keys.start_server().await;
    let body = "x".repeat(3 * 1024 * 1024);

    // A client that waits for `100 Continue` is refused at once, before it sends the body. The
    // others are several, because a connection that is closed early is not always lost.
    let mut exchanges = vec![("", body.as_str()); 10];
    exchanges.push(("expect: 100-continue\r\n", ""));
    for (expect, sent) in exchanges {
        let head = format!(
            "POST /message HTTP/1.1\r\nhost: {}\r\nauthorization: Bearer mf_ci_AAAA\r\n\
             content-type: application/json\r\ncontent-length: {}\r\nconnection: close\r\n\
             {expect}\r\n",
            server.address,
            body.len()
        );
        let exchange = async {
            let mut client = TcpStream::connect(server.address).await.unwrap();
            client.write_all(head.as_bytes()).await.unwrap();
            client.write_all(sent.as_bytes()).await.unwrap();
            let mut answer = String::new();
            client.read_to_string(&mut answer).await.unwrap();
            answer
        };
        let answer = tokio::time::timeout(PATIENCE, exchange).await.expect("an answer");
        assert!(answer.starts_with("HTTP/1.1 401"), "{expect}: {answer}");
        assert!(answer.contains("FLEET-BAD-CREDENTIALS"), "{expect}: {answer}");
    }
}

/// Starts a server that is to refuse; returns what it writes.
pub(crate) async fn refused_start(args: &[&str]) -> String {
    let mut command = command(args);
    command.args(["--port", "0"]).stdout(std::process::Stdio::piped());
    command.stderr(std::process::Stdio::piped());
    let output = tokio::time::timeout(PATIENCE, command.output()).await.unwrap().unwrap();
    assert!(!output.status.success());
    let texts = [output.stdout, output.stderr].concat();
    String::from_utf8(texts).unwrap()
}

#[tokio::test]
async fn a_server_that_others_reach_does_not_start_without_an_authenticator() {
    for args in [&["--host", "0.0.0.0"][..], &["--host", "::"], &["--access", "required"]] {
        let log = refused_start(args).await;
        assert!(log.contains("FLEET-NO-AUTHENTICATOR"), "{log}");
        for remedy in ["mcp-fleet keys create", "--access-keys", "[[issuer]]", "MCP_ACCESS=open"] {
            assert!(log.contains(remedy), "{remedy}: {log}");
        }
    }

    let empty = Keys::new();
    let log = refused_start(&["--access-keys", empty.path().to_str().unwrap()]).await;
    assert!(log.contains("FLEET-NO-AUTHENTICATOR"), "{log}");

    // Nobody can present a certificate to a port without TLS, so these tables tell nobody apart.
    let policy = empty.dir.path().join("policy.toml");
    std::fs::write(&policy, "[[certificate]]\nuri = 'spiffe://d/*'").unwrap();
    for host in ["127.0.0.1", "0.0.0.0"] {
        let log = refused_start(&["--host", host, "--policy", policy.to_str().unwrap()]).await;
        assert!(log.contains("FLEET-NO-AUTHENTICATOR") && log.contains("[[certificate]]"), "{log}");
    }

    let mut keys = Keys::new();
    keys.add("ci", "ci");
    std::fs::write(keys.dir.path().join("keys.toml.pepper"), "").unwrap();
    let log = refused_start(&["--access-keys", keys.path().to_str().unwrap()]).await;
    assert!(log.contains("64 hexadecimal digits"), "{log}");
    std::fs::remove_file(keys.dir.path().join("keys.toml.pepper")).unwrap();
    let log = refused_start(&["--access-keys", keys.path().to_str().unwrap()]).await;
    assert!(log.contains("has no `pepper`"), "{log}");
    let log = refused_start(&["--access-keys", "/nonexistent/keys.toml"]).await;
    assert!(log.contains("/nonexistent/keys.toml") && log.contains("FLEET-KEYS-FILE"), "{log}");
}

#[tokio::test]
async fn an_open_server_serves_everybody_and_counts_every_request() {
    let env = [("MCP_ACCESS", "open")];
    let mut server = Server::start_with(&["--host", "0.0.0.0"], &env).await;
    server.address.set_ip(std::net::Ipv4Addr::LOCALHOST.into());

    assert_eq!(list_tools(&server, &[]).await.status(), StatusCode::OK);
    assert_eq!(list_tools(&server, &["Bearer whatever"]).await.status(), StatusCode::OK);
    let count = server.metric("mcp_server_accepted_requests_total{via=\"open\"}").await;
    assert_eq!(count, Some(3.0), "the request for metrics is one, too");
}

#[tokio::test]
async fn a_local_server_knows_who_brings_a_key_and_serves_this_machine_without() {
    let mut keys = Keys::new();
    let key = format!("Bearer {}", keys.add("ci", "ci"));
    let server = keys.start_server_with(&["--access", "local"]).await;

    assert_eq!(list_tools(&server, &[]).await.status(), StatusCode::OK);
    assert_eq!(list_tools(&server, &[&key]).await.status(), StatusCode::OK);
    for via in ["loopback", "key"] {
        let series = format!("mcp_server_accepted_requests_total{{via=\"{via}\"}}");
        assert!(server.metric(&series).await >= Some(1.0), "{via}");
    }

    // Bad credentials are not passed over.
    assert_eq!(list_tools(&server, &["Bearer mf_ci_x"]).await.status(), StatusCode::UNAUTHORIZED);
    keys.revoke("ci");
    eventually("the revoked key to be refused", async || {
        let status = list_tools(&server, &[&key]).await.status();
        (status == StatusCode::UNAUTHORIZED).then_some(())
    })
    .await;
    assert_eq!(list_tools(&server, &[]).await.status(), StatusCode::OK);
}

#[tokio::test]
async fn a_local_server_does_not_start_where_others_reach_it() {
    let mut keys = Keys::new();
    keys.add("ci", "ci");
    let path = keys.path();
    let args = ["--access", "local", "--access-keys", path.to_str().unwrap(), "--host", "0.0.0.0"];
    let log = refused_start(&args).await;
    assert!(log.contains("FLEET-NO-AUTHENTICATOR") && log.contains("127.0.0.1"), "{log}");
}

#[tokio::test]
async fn loopback_needs_nothing() {
    let server = Server::start(&[]).await;
    assert_eq!(list_tools(&server, &[]).await.status(), StatusCode::OK);
    let count = server.metric("mcp_server_accepted_requests_total{via=\"loopback\"}").await;
    assert_eq!(count, Some(2.0));
}
