//! TLS of the port: both eras of the protocol, principals by client certificate, and everything
//! that can be rotated, rotated while calls are running.

use std::{
    fs,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Instant,
};

use fleet_ops::{
    errors::chain,
    tls::{ClientTls, ClientTlsFiles, FollowedClient, PairFiles, testing::Authority},
    watched::INTERVAL,
};
use parking_lot::RwLock;
use reqwest::{Client, Response};
use rmcp::{
    model::ProtocolVersion,
    service::serve_client_with_lifecycle,
    transport::{
        StreamableHttpClientTransport, streamable_http_client::StreamableHttpClientTransportConfig,
    },
};
use serde_json::{Value, json};

use crate::{
    access::{Keys, refused_start},
    clients::{exercise, legacy, modern},
    common::{PATIENCE, Server, command, eventually, tree},
};

/// The names of a server on this machine.
const NAMES: &str = "DNS:localhost,IP:127.0.0.1";

/// Administrators and readers by certificate.
const POLICY: &str = "
    [[certificate]]
    uri = 'spiffe://d/admin/*'
    roles = ['admin']

    [[certificate]]
    dns_name = '*.readers.example'

    [[rule]]
    name = 'administration'
    effect = 'allow'
    principals = ['role:admin']
    actions = ['servers.administer', 'metrics.read', 'tools.call']
";

/// The files of a server with TLS: copies that a test may replace.
struct Files {
    dir: tempfile::TempDir,
    authority: Authority,
    pair: PairFiles,
    authorities: PathBuf,
    revoked: PathBuf,
    policy: PathBuf,
}

impl Files {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::new(dir.path(), "first");
        let at = |name: &str| dir.path().join(name);
        let pair = PairFiles { certificate: at("server.pem"), key: at("server.key") };
        install(&pair, &authority.issue("server", NAMES));

        let (authorities, revoked, policy) = (at("authorities.pem"), at("crl.pem"), at("policy"));
        replace(&authorities, fs::read(authority.certificate()).unwrap());
        replace(&revoked, authority.revocation_list());
        replace(&policy, POLICY);
        Self { authority, pair, authorities, revoked, policy, dir }
    }

    /// The arguments of a server with these files.
    fn args(&self) -> Vec<&str> {
        let PairFiles { certificate, key } = &self.pair;
        let named = [
            ("--tls-certificate", certificate),
            ("--tls-key", key),
            ("--tls-client-ca", &self.authorities),
            ("--tls-crl", &self.revoked),
            ("--policy", &self.policy),
        ];
        named.into_iter().flat_map(|(name, path)| [name, path.to_str().unwrap()]).collect()
    }

    /// What a client needs that trusts the authority and has a certificate, or none.
    fn client(&self, pair: Option<&PairFiles>) -> ClientTlsFiles {
        ClientTlsFiles { authorities: Some(self.authority.certificate()), pair: pair.cloned() }
    }
}

/// Puts a file in the place of another, as a rename does.
fn replace(target: &Path, content: impl AsRef<[u8]>) {
    let temporary = target.with_extension("new");
    fs::write(&temporary, content).unwrap();
    fs::rename(&temporary, target).unwrap();
}

fn install(pair: &PairFiles, from: &PairFiles) {
    replace(&pair.certificate, fs::read(&from.certificate).unwrap());
    replace(&pair.key, fs::read(&from.key).unwrap());
}

fn build(tls: &ClientTls) -> reqwest::Result<Client> {
    tls.apply(Client::builder().no_proxy()).build()
}

fn client(files: &ClientTlsFiles) -> Client {
    build(&files.read().unwrap()).unwrap()
}

fn url(server: &Server, path: &str) -> String {
    format!("https://{}{path}", server.address)
}

async fn post(client: &Client, server: &Server, message: &Value) -> reqwest::Result<Response> {
    client.post(url(server, "/message")).json(message).send().await
}

fn list() -> Value {
    json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list"})
}

fn call(tool: &str, arguments: Value) -> Value {
    let params = json!({"name": tool, "arguments": arguments});
    json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": params})
}

/// The status of a list of tools; `None` if there was no answer.
async fn status(client: &Client, server: &Server) -> Option<u16> {
    post(client, server, &list()).await.ok().map(|response| response.status().as_u16())
}

#[tokio::test]
async fn clients_of_both_eras_are_served_over_tls() {
    let (tree, files) = (tree(), Files::new());
    let PairFiles { certificate, key } = &files.pair;
    let server = Server::start(&[
        "--root",
        tree.root.to_str().unwrap(),
        "--tls-certificate",
        certificate.to_str().unwrap(),
        "--tls-key",
        key.to_str().unwrap(),
    ])
    .await;
    let client = client(&files.client(None));

    for (mode, version) in
        [(legacy(), ProtocolVersion::V_2025_11_25), (modern(), ProtocolVersion::V_2026_07_28)]
    {
        let config = StreamableHttpClientTransportConfig::with_uri(url(&server, "/mcp"));
        let transport = StreamableHttpClientTransport::with_client(client.clone(), config);
        exercise(serve_client_with_lifecycle((), transport, mode).await.unwrap(), version).await;
    }

    let card = client.get(url(&server, "/mcp/server-card")).send().await.unwrap();
    let card: Value = card.json().await.unwrap();
    assert_eq!(card["remotes"][0]["url"], url(&server, "/mcp"));

    // A certificate that the client does not trust, a name that it lacks, and no TLS at all.
    let other = Authority::new(files.dir.path(), "other");
    let trusting = ClientTlsFiles { authorities: Some(other.certificate()), pair: None };
    assert_eq!(status(&build(&trusting.read().unwrap()).unwrap(), &server).await, None);
    let builder = Client::builder().no_proxy().resolve("other.example", server.address);
    let unnamed = files.client(None).read().unwrap().apply(builder).build().unwrap();
    let health = format!("https://other.example:{}/health", server.address.port());
    assert!(chain(&unnamed.get(health).send().await.unwrap_err()).contains("not valid for name"));
    assert!(server.http.get(server.url("/health")).send().await.is_err());
}

#[tokio::test]
async fn the_health_check_speaks_tls() {
    let files = Files::new();
    let mut args = files.args();
    args.extend(["--tls-client-auth", "required"]);
    for args in [files.args(), args] {
        let server = Server::start(&args).await;
        let port = server.address.port().to_string();
        let mut check = command(&args);
        check.args(["--healthcheck", "--port", &port]).stdout(std::process::Stdio::piped());
        let output = tokio::time::timeout(PATIENCE, check.output()).await.unwrap().unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert!(output.status.success(), "{text}");
        assert!(text.contains("ready") || text.contains("client certificate"), "{text}");
    }
}

#[tokio::test]
async fn settings_and_files_that_cannot_be_used_keep_the_server_from_starting() {
    let files = Files::new();
    let certificate = files.pair.certificate.to_str().unwrap();
    let log = refused_start(&["--tls-certificate", certificate]).await;
    assert!(log.contains("MCP_TLS_KEY_FILE") && log.contains("FLEET-SETTING"), "{log}");

    replace(&files.pair.key, fs::read(files.authority.issue("other", NAMES).key).unwrap());
    let log = refused_start(&files.args()).await;
    assert!(log.contains("FLEET-TLS-FILES") && log.contains("server.key"), "{log}");
}

#[tokio::test]
async fn a_certificate_is_a_principal_with_the_rights_of_its_name() {
    let files = Files::new();
    // Certificates alone tell callers apart, so the server starts beyond loopback.
    let mut args = files.args();
    args.extend(["--host", "0.0.0.0"]);
    let mut server = Server::start(&args).await;
    server.address.set_ip(std::net::Ipv4Addr::LOCALHOST.into());

    let issue =
        |file: &str, names: &str| client(&files.client(Some(&files.authority.issue(file, names))));
    let admin = issue("admin", "URI:spiffe://d/admin/a");
    let reader = issue("reader", "DNS:A.readers.example");
    let host = call("server_initialize", json!({"name": "x", "config": {"command": "false"}}));

    let answer: Value = post(&admin, &server, &host).await.unwrap().json().await.unwrap();
    assert_eq!(answer["result"]["isError"], true, "policy allows no program: {answer}");
    let answer: Value = post(&reader, &server, &host).await.unwrap().json().await.unwrap();
    assert_eq!(answer["error"]["data"]["reason"], "denied", "{answer}");
    assert_eq!(status(&reader, &server).await, Some(200));

    let metrics = admin.get(url(&server, "/metrics")).send().await.unwrap().text().await.unwrap();
    let accepted = "mcp_server_accepted_requests_total{via=\"certificate\"}";
    assert!(metrics.contains(accepted), "{metrics}");

    // Known to the authority, and to no table.
    let nobody = issue("nobody", "URI:spiffe://d/nobody");
    let refusal = post(&nobody, &server, &list()).await.unwrap();
    assert_eq!(refusal.status(), 401);
    let refusal: Value = refusal.json().await.unwrap();
    assert_eq!(refusal["code"], "FLEET-BAD-CREDENTIALS", "{refusal}");

    // Without a certificate, only what everybody may see.
    let bare = client(&files.client(None));
    assert_eq!(status(&bare, &server).await, Some(401));
    assert_eq!(bare.get(url(&server, "/health")).send().await.unwrap().status(), 200);

    let other = Authority::new(files.dir.path(), "other");
    let forged = other.issue("admin", "URI:spiffe://d/admin/a");
    assert_eq!(status(&client(&files.client(Some(&forged))), &server).await, None);
}

#[tokio::test]
async fn a_revoked_certificate_is_refused_on_open_connections_and_ends_their_streams() {
    let files = Files::new();
    let server = Server::start(&files.args()).await;
    let pair = files.authority.issue("admin", "URI:spiffe://d/admin/a");
    let other = files.authority.issue("kept", "URI:spiffe://d/admin/a");
    let [old, kept] = [&pair, &other].map(|pair| client(&files.client(Some(pair))));
    assert_eq!(status(&old, &server).await, Some(200));
    let mut stream = old.get(url(&server, "/sse")).send().await.unwrap();
    assert_eq!(stream.status(), 200);

    files.authority.revoke(&pair);
    replace(&files.revoked, files.authority.revocation_list());
    eventually("the certificate to be refused", async || {
        (status(&old, &server).await != Some(200)).then_some(())
    })
    .await;
    assert_eq!(status(&client(&files.client(Some(&pair))), &server).await, None);
    assert_eq!(status(&kept, &server).await, Some(200));

    let ended = async { while let Ok(Some(_)) = stream.chunk().await {} };
    tokio::time::timeout(PATIENCE, ended).await.expect("the stream goes on");
}

/// Calls that go on until they are stopped, and what has become of them.
struct Load {
    stop: Arc<AtomicBool>,
    calls: Arc<AtomicUsize>,
    tasks: Vec<tokio::task::JoinHandle<Vec<String>>>,
}

impl Load {
    /// Starts callers with a certificate, and others with a key.
    fn start(server: &Server, certified: FollowedClient, keyed: FollowedClient, key: Key) -> Self {
        let (stop, calls) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
        let url = url(server, "/message");
        let tasks = (0..8).map(|number| {
            let (stop, calls, url) = (stop.clone(), calls.clone(), url.clone());
            let client = if number % 2 == 0 { certified.clone() } else { keyed.clone() };
            let key = (number % 2 == 1).then(|| key.clone());
            tokio::spawn(async move {
                let mut failures = Vec::new();
                while !stop.load(Ordering::SeqCst) {
                    let request = client.current().post(&url);
                    let request = request.json(&call("file_list", json!({})));
                    let request = match &key {
                        Some(key) => request.bearer_auth(key.read().clone()),
                        None => request,
                    };
                    if let Err(failure) = succeed(request).await {
                        failures.push(failure);
                    }
                    calls.fetch_add(1, Ordering::SeqCst);
                }
                failures
            })
        });
        Self { tasks: tasks.collect(), stop, calls }
    }

    /// Waits until callers have followed their files, and a hundred calls have been made since.
    async fn settle(&self) {
        // Callers look at their files by the clock; nothing tells that they have done so.
        let since = Instant::now();
        let followed = INTERVAL * 4;
        let mut after = None;
        eventually("a hundred calls", async || {
            let calls = self.calls.load(Ordering::SeqCst);
            if since.elapsed() < followed {
                return None;
            }
            (calls >= *after.get_or_insert(calls) + 100).then_some(())
        })
        .await;
    }

    async fn finish(self) -> (usize, Vec<String>) {
        self.stop.store(true, Ordering::SeqCst);
        let mut failures = Vec::new();
        for task in self.tasks {
            failures.extend(task.await.unwrap());
        }
        (self.calls.load(Ordering::SeqCst), failures)
    }
}

type Key = Arc<RwLock<String>>;

async fn succeed(request: reqwest::RequestBuilder) -> Result<(), String> {
    let answer = async { request.send().await?.error_for_status()?.json::<Value>().await };
    let answer = answer.await.map_err(|error| chain(&error))?;
    match answer["result"]["isError"].as_bool() {
        None | Some(false) if answer["result"].is_object() => Ok(()),
        _ => Err(answer.to_string()),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn certificates_authorities_and_keys_are_rotated_without_a_failed_call() {
    let (tree, files, mut keys) = (tree(), Files::new(), Keys::new());
    let key = Arc::new(RwLock::new(keys.add("ci-1", "ci")));
    let keys_file = keys.path();
    let mut args = files.args();
    args.extend(["--root", tree.root.to_str().unwrap()]);
    args.extend(["--access-keys", keys_file.to_str().unwrap()]);
    let server = Server::start(&args).await;

    // What clients trust and present: copies that are replaced.
    let at = |name: &str| files.dir.path().join(name);
    let trusted = at("trusted.pem");
    let own = PairFiles { certificate: at("own.pem"), key: at("own.key") };
    replace(&trusted, fs::read(files.authority.certificate()).unwrap());
    install(&own, &files.authority.issue("own", "URI:spiffe://d/admin/own"));
    let named = |pair: Option<&PairFiles>| {
        let files = ClientTlsFiles { authorities: Some(trusted.clone()), pair: pair.cloned() };
        FollowedClient::new(move || files.clone(), build).unwrap()
    };
    let load = Load::start(&server, named(Some(&own)), named(None), key.clone());
    load.settle().await;

    // The authority is replaced: first both are trusted, then its certificates are used, and then
    // the old one goes.
    let second = Authority::new(files.dir.path(), "second");
    let both: Vec<u8> = [&files.authority, &second]
        .map(|authority| fs::read(authority.certificate()).unwrap())
        .concat();
    replace(&trusted, &both);
    replace(&files.revoked, files.authority.revocation_list() + &second.revocation_list());
    replace(&files.authorities, &both);
    load.settle().await;

    install(&files.pair, &second.issue("server", NAMES));
    install(&own, &second.issue("own", "URI:spiffe://d/admin/own"));
    load.settle().await;

    replace(&files.authorities, fs::read(second.certificate()).unwrap());
    replace(&trusted, fs::read(second.certificate()).unwrap());
    load.settle().await;

    // The server uses the new certificate, and takes none of the old authority.
    let old = files.authority.issue("old", "URI:spiffe://d/admin/old");
    let authorities = Some(second.certificate());
    let old = ClientTlsFiles { authorities: authorities.clone(), pair: Some(old) };
    assert_eq!(status(&client(&old), &server).await, None);
    let new = client(&ClientTlsFiles { authorities, pair: None });
    assert_eq!(status(&new, &server).await, Some(401));

    // Each key is accepted before it is used, and revoked when it is no longer used.
    for id in ["ci-2", "ci-3"] {
        let next = keys.add(id, "ci");
        eventually("the new key", async || {
            let request = new.post(url(&server, "/message")).json(&list());
            let answer = request.bearer_auth(&next).send().await.unwrap();
            (answer.status() == 200).then_some(())
        })
        .await;
        *key.write() = next;
        load.settle().await;
        keys.revoke(if id == "ci-2" { "ci-1" } else { "ci-2" });
        load.settle().await;
    }

    let (calls, failures) = load.finish().await;
    assert!(failures.is_empty(), "{} of {calls} calls failed: {failures:?}", failures.len());
    assert!(calls >= 500, "{calls}");
}

#[tokio::test]
async fn a_hosted_remote_is_reached_with_a_private_authority_and_a_certificate() {
    let (tree, files) = (tree(), Files::new());
    let mut args = files.args();
    args.extend(["--root", tree.root.to_str().unwrap(), "--tls-client-auth", "required"]);
    let remote = Server::start(&args).await;
    let own = files.authority.issue("gateway", "URI:spiffe://d/admin/gateway");

    let policy = files.dir.path().join("gateway.toml");
    let rule = |tls: &str| format!("[[remote]]\nhost = 'localhost'\n{tls}");
    let with_files = rule(&format!(
        "ca_file = {:?}\nclient_certificate_file = {:?}\nclient_key_file = {:?}",
        files.authority.certificate(),
        own.certificate,
        own.key
    ));
    replace(&policy, &with_files);
    let gateway = Server::start(&["--policy", policy.to_str().unwrap()]).await;

    let config = json!({"url": format!("https://localhost:{}/mcp", remote.address.port())});
    gateway.initialize("far", config.clone()).await;
    let found = gateway.call_ok("far__file_list", json!({})).await;
    assert!(found.to_string().contains("hello.txt"), "{found}");

    // A message can't name files, and without them the remote is not trusted.
    replace(&policy, rule(""));
    eventually("the remote to be refused", async || {
        gateway.call_raw("server_remove", json!({"name": "far"})).await;
        let answer = gateway
            .call_raw("server_initialize", json!({"name": "far", "config": config.clone()}))
            .await;
        (answer["error"].is_object() || answer["result"]["isError"] == json!(true)).then_some(())
    })
    .await;

    replace(&policy, &with_files);
    eventually("the remote to be reached", async || {
        let answer = gateway
            .call_raw("server_initialize", json!({"name": "far", "config": config.clone()}))
            .await;
        (answer["result"].is_object() && answer["result"]["isError"] != json!(true)).then_some(())
    })
    .await;
}
