//! Certificates that change while they are in use.

use std::{fs, net::SocketAddr, path::Path, time::Duration};

use axum::{Extension, Router, routing::get};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use reqwest::Client;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{testing::Authority, *};
use crate::http::{Serving, bind, serve_with};

const PATIENCE: Duration = Duration::from_secs(30);
const NAMES: &str = "DNS:localhost,IP:127.0.0.1";

/// A listener whose one route tells the names of the client's certificate, and whether it is still
/// accepted.
struct Listener {
    url: String,
    address: SocketAddr,
    tls: Tls,
    _stop: DropGuard,
}

impl Listener {
    async fn start(files: TlsFiles) -> Self {
        let stop = CancellationToken::new();
        let tls = Tls::start(files, stop.clone()).unwrap();
        let (listener, address) = bind(SocketAddr::from(([127, 0, 0, 1], 0))).await.unwrap();
        let show = async |certificate: Option<Extension<PeerCertificate>>| match certificate {
            Some(Extension(peer)) => {
                format!("{:?} {:?} {}", peer.uris(), peer.dns_names(), peer.is_accepted())
            }
            None => "nobody".to_owned(),
        };
        let router = Router::new().route("/", get(show));
        let serving = Serving { tls: Some(tls.clone()), ..Serving::default() };
        tokio::spawn(serve_with(serving, listener, router, stop.clone()));
        Self { url: format!("https://{address}/"), address, tls, _stop: stop.drop_guard() }
    }

    /// What a client with these files is told, on a connection of its own.
    async fn ask(&self, files: ClientTlsFiles) -> Result<String, String> {
        ask(&client(&files), &self.url).await
    }
}

fn client(files: &ClientTlsFiles) -> Client {
    files.read().unwrap().apply(Client::builder().no_proxy()).build().unwrap()
}

async fn ask(client: &Client, url: &str) -> Result<String, String> {
    let answer = async { client.get(url).send().await?.error_for_status()?.text().await };
    answer.await.map_err(|error| crate::errors::chain(&error))
}

fn trusting(authority: &Authority, pair: Option<&PairFiles>) -> ClientTlsFiles {
    ClientTlsFiles { authorities: Some(authority.certificate()), pair: pair.cloned() }
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

async fn eventually(what: &str, mut check: impl AsyncFnMut() -> bool) {
    let waiting = async {
        while !check().await {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting).await.unwrap_or_else(|_| panic!("not in time: {what}"));
}

/// Whether files were read again with this outcome.
fn was_reloaded(metrics: &PrometheusHandle, files: &str, outcome: &str) -> bool {
    let line = format!("fleet_tls_reloads_total{{files=\"{files}\",outcome=\"{outcome}\"}} 1");
    metrics.render().contains(&line)
}

#[tokio::test]
async fn a_pair_that_cannot_be_used_keeps_the_one_before() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let (metrics, _local) = (recorder.handle(), ::metrics::set_default_local_recorder(&recorder));
    let reloads = |outcome: &str| was_reloaded(&metrics, "listener", outcome);

    let dir = tempfile::tempdir().unwrap();
    let [old, new] = ["old", "new"].map(|name| Authority::new(dir.path(), name));
    let pair = old.issue("server", NAMES);
    let listener = Listener::start(TlsFiles { pair: pair.clone(), clients: None }).await;
    assert_eq!(listener.ask(trusting(&old, None)).await.unwrap(), "nobody");

    // Half of a rotation: the key is not that of the certificate.
    let other = new.issue("server", NAMES);
    replace(&pair.certificate, fs::read(&other.certificate).unwrap());
    eventually("the bad pair to be read", async || reloads("invalid")).await;
    assert_eq!(listener.ask(trusting(&old, None)).await.unwrap(), "nobody");
    assert!(listener.ask(trusting(&new, None)).await.is_err());

    replace(&pair.key, fs::read(&other.key).unwrap());
    eventually("the new pair", async || reloads("applied")).await;
    assert_eq!(listener.ask(trusting(&new, None)).await.unwrap(), "nobody");
    assert!(listener.ask(trusting(&old, None)).await.is_err());
}

#[tokio::test]
async fn client_certificates_are_verified_again_when_authorities_and_lists_change() {
    let dir = tempfile::tempdir().unwrap();
    let [own, other] = ["own", "other"].map(|name| Authority::new(dir.path(), name));
    let [authorities, revoked] = ["authorities", "revoked"].map(|name| dir.path().join(name));
    fs::copy(own.certificate(), &authorities).unwrap();
    replace(&revoked, own.revocation_list());
    let clients = ClientFiles {
        authorities: authorities.clone(),
        revoked: Some(revoked.clone()),
        is_required: false,
    };
    let pair = own.issue("server", NAMES);
    let listener = Listener::start(TlsFiles { pair, clients: Some(clients) }).await;

    let worker = own.issue("worker", "URI:spiffe://d/worker,DNS:w.example.org");
    let names = r#"["spiffe://d/worker"] ["w.example.org"]"#;
    let worker_client = client(&trusting(&own, Some(&worker)));
    let told = async || ask(&worker_client, &listener.url).await;
    assert_eq!(told().await.unwrap(), format!("{names} true"));
    assert_eq!(listener.ask(trusting(&own, None)).await.unwrap(), "nobody");
    let stranger = other.issue("worker", "URI:spiffe://d/worker");
    assert!(listener.ask(trusting(&own, Some(&stranger))).await.is_err());

    // The open connection is told, too, and is the last one with this certificate.
    own.revoke(&worker);
    replace(&revoked, own.revocation_list());
    eventually("the list", async || told().await != Ok(format!("{names} true"))).await;
    assert!(listener.ask(trusting(&own, Some(&worker))).await.is_err());
    let second = own.issue("worker-2", "URI:spiffe://d/worker");
    assert!(listener.ask(trusting(&own, Some(&second))).await.unwrap().ends_with("true"));

    // Both authorities during a rotation; each needs its list.
    let both = [&own, &other].map(|authority| fs::read(authority.certificate()).unwrap()).concat();
    let generation = listener.tls.state().generation;
    replace(&authorities, both);
    replace(&revoked, own.revocation_list() + &other.revocation_list());
    eventually("both authorities", async || listener.tls.state().generation > generation).await;
    eventually("both lists", async || listener.ask(trusting(&own, Some(&stranger))).await.is_ok())
        .await;
    assert!(listener.ask(trusting(&own, Some(&second))).await.is_ok());

    replace(&authorities, fs::read(other.certificate()).unwrap());
    eventually("the first authority to go", async || {
        listener.ask(trusting(&own, Some(&second))).await.is_err()
    })
    .await;
}

#[tokio::test]
async fn a_required_certificate_is_required_by_the_handshake() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new(dir.path(), "own");
    let clients =
        ClientFiles { authorities: authority.certificate(), revoked: None, is_required: true };
    let pair = authority.issue("server", NAMES);
    let listener = Listener::start(TlsFiles { pair, clients: Some(clients) }).await;

    assert!(listener.ask(trusting(&authority, None)).await.is_err());
    let own = authority.issue("client", "DNS:a.example.org");
    assert!(listener.ask(trusting(&authority, Some(&own))).await.is_ok());

    let check = move || crate::http::check_health(listener.address, true);
    let alive = tokio::task::spawn_blocking(check).await.unwrap().unwrap();
    assert!(alive.contains("client certificate"), "{alive}");
}

#[tokio::test]
async fn a_required_certificate_that_was_revoked_is_refused_on_an_open_connection() {
    let dir = tempfile::tempdir().unwrap();
    let own = Authority::new(dir.path(), "own");
    let revoked = dir.path().join("revoked");
    replace(&revoked, own.revocation_list());
    let clients = ClientFiles {
        authorities: own.certificate(),
        revoked: Some(revoked.clone()),
        is_required: true,
    };
    let pair = own.issue("server", NAMES);
    let listener = Listener::start(TlsFiles { pair, clients: Some(clients) }).await;

    let worker = own.issue("worker", "DNS:w.example.org");
    let client = client(&trusting(&own, Some(&worker)));
    assert!(ask(&client, &listener.url).await.unwrap().ends_with("true"));

    let generation = listener.tls.state().generation;
    own.revoke(&worker);
    replace(&revoked, own.revocation_list());
    eventually("the list", async || listener.tls.state().generation > generation).await;
    let refused = client.get(&listener.url).send().await.unwrap();
    assert_eq!(refused.status(), 403, "no route saw the request");
}

#[tokio::test]
async fn a_list_of_a_foreign_authority_does_not_shut_out_all_clients() {
    let dir = tempfile::tempdir().unwrap();
    let [own, other] = ["own", "other"].map(|name| Authority::new(dir.path(), name));
    let revoked = dir.path().join("revoked");
    let clients = ClientFiles {
        authorities: own.certificate(),
        revoked: Some(revoked.clone()),
        is_required: false,
    };
    let files = TlsFiles { pair: own.issue("server", NAMES), clients: Some(clients) };
    replace(&revoked, other.revocation_list());
    let error = Tls::start(files.clone(), CancellationToken::new()).unwrap_err().to_string();
    assert!(error.contains("none of the revocation lists in"), "{error}");

    let recorder = PrometheusBuilder::new().build_recorder();
    let (metrics, _local) = (recorder.handle(), ::metrics::set_default_local_recorder(&recorder));
    replace(&revoked, own.revocation_list());
    let listener = Listener::start(files).await;
    let worker = own.issue("worker", "DNS:w.example.org");
    replace(&revoked, other.revocation_list());
    eventually("the foreign list", async || was_reloaded(&metrics, "listener", "invalid")).await;
    assert!(listener.ask(trusting(&own, Some(&worker))).await.unwrap().ends_with("true"));
}

#[tokio::test]
async fn a_client_is_built_again_when_its_files_change() {
    let recorder = PrometheusBuilder::new().build_recorder();
    let (metrics, _local) = (recorder.handle(), ::metrics::set_default_local_recorder(&recorder));

    let dir = tempfile::tempdir().unwrap();
    let [old, new] = ["old", "new"].map(|name| Authority::new(dir.path(), name));
    let pair = old.issue("server", NAMES);
    let listener = Listener::start(TlsFiles { pair: pair.clone(), clients: None }).await;

    let trusted = dir.path().join("trusted");
    fs::copy(old.certificate(), &trusted).unwrap();
    let files = ClientTlsFiles { authorities: Some(trusted.clone()), pair: None };
    let build = |tls: &ClientTls| tls.apply(Client::builder().no_proxy()).build();
    let followed = FollowedClient::new(move || files.clone(), build).unwrap();
    assert!(ask(&followed.current(), &listener.url).await.is_ok());

    install(&pair, &new.issue("server", NAMES));
    eventually("the new certificate", async || listener.ask(trusting(&new, None)).await.is_ok())
        .await;
    replace(&trusted, "no certificate");
    eventually("the bad file to be read", async || {
        drop(followed.current());
        was_reloaded(&metrics, "client", "invalid")
    })
    .await;
    replace(&trusted, fs::read(new.certificate()).unwrap());
    eventually("the new authority", async || ask(&followed.current(), &listener.url).await.is_ok())
        .await;
}

#[tokio::test]
async fn unfinished_handshakes_and_plain_http_block_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new(dir.path(), "own");
    let pair = authority.issue("server", NAMES);
    let listener = Listener::start(TlsFiles { pair, clients: None }).await;

    let mut silent = Vec::new();
    // More than the waiting room has places.
    for _ in 0..200 {
        let mut stream = tokio::net::TcpStream::connect(listener.address).await.unwrap();
        // The beginning of a ClientHello.
        stream.write_all(&[22, 3, 1]).await.unwrap();
        silent.push(stream);
    }
    assert!(listener.ask(trusting(&authority, None)).await.is_ok());
    let mut answer = Vec::new();
    let closed = silent[0].read_to_end(&mut answer);
    // A reset also counts as closing.
    drop(tokio::time::timeout(PATIENCE, closed).await.expect("the first is evicted"));
    assert!(answer.is_empty());

    let mut plain = tokio::net::TcpStream::connect(listener.address).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    let closed = plain.read_to_end(&mut answer);
    drop(tokio::time::timeout(PATIENCE, closed).await.expect("plain HTTP is refused"));
    assert!(!String::from_utf8_lossy(&answer).contains("HTTP/1.1 200"));
    assert!(listener.ask(trusting(&authority, None)).await.is_ok());
}

#[tokio::test]
async fn the_error_names_the_file_and_never_what_is_in_it() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new(dir.path(), "own");
    let good = authority.issue("server", NAMES);
    let key = fs::read_to_string(&good.key).unwrap();
    let secret = key.lines().nth(1).unwrap();

    let bad = dir.path().join("bad.pem");
    let stop = CancellationToken::new();
    let check = |text: &str, expected: &str| {
        fs::write(&bad, text).unwrap();
        let pair = PairFiles { key: bad.clone(), ..good.clone() };
        let error = Tls::start(TlsFiles { pair, clients: None }, stop.clone()).unwrap_err();
        let error = crate::errors::chain(&error);
        assert!(error.contains("bad.pem") && error.contains(expected), "{error}");
        assert!(error.contains("FLEET-TLS-FILES") && !error.contains(secret), "{error}");
    };
    check("", "has no unencrypted private key");
    check(&key.replace("PRIVATE", "ENCRYPTED PRIVATE"), "has no unencrypted private key");
    check(&key.replace("-----END", "-----"), "has no unencrypted private key");
    check(&format!("-----BEGIN {secret}\n{key}"), "private key");
    check(&key.replace(secret, "AAAA"), "can't be used with the certificate");

    let authorities = dir.path().join("empty.pem");
    fs::write(&authorities, "").unwrap();
    let clients = ClientFiles {
        authorities: authority.certificate(),
        revoked: Some(authorities.clone()),
        is_required: false,
    };
    let files = TlsFiles { pair: good, clients: Some(clients) };
    let error = Tls::start(files, stop).unwrap_err().to_string();
    assert!(error.contains("empty.pem has no revocation list"), "{error}");
    let missing = ClientTlsFiles { authorities: Some(dir.path().join("none")), pair: None };
    assert!(missing.read().unwrap_err().to_string().starts_with("could not read"));
}
