//! Fetching the keys of issuers.
//!
//! [`fleet_access::Tokens`] says when keys are needed; this module gets them, with one fetch per
//! issuer at a time that all requests share. An issuer that is away costs a request at most
//! [`FETCH_LIMIT`], and none within ten seconds after that; keys that are there stay in use.

use std::{
    collections::HashMap,
    sync::{Arc, OnceLock},
    time::Duration,
};

use fleet_access::{Authentication, FetchKeys, KeySource};
use fleet_ops::errors::chain;
use parking_lot::Mutex;
use reqwest::{Client, Url};
use serde::Deserialize;
use tokio::{sync::watch, time::MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use super::{AccessControl, AccessState};
use crate::metrics::ISSUER_KEY_READS;

/// How long it may take to get the keys of an issuer, with discovery. Shorter than the time between
/// two fetches, so that a slow issuer is never asked twice at once.
const FETCH_LIMIT: Duration = Duration::from_secs(5);
/// How long it may take to connect.
const CONNECT_LIMIT: Duration = Duration::from_secs(3);
/// The largest document of an issuer.
const MAX_DOCUMENT: usize = 1024 * 1024;
/// How often old keys are looked for.
const REFRESH_POLL: Duration = Duration::from_secs(15);

/// The fetches that are under way.
#[derive(Debug, Default)]
pub(super) struct Issuers {
    /// Made for the first fetch, since most servers need none.
    client: OnceLock<Client>,
    flights: Mutex<HashMap<FetchKeys, Landing>>,
}

/// Closes when the fetch has ended.
type Landing = watch::Receiver<()>;

/// What a request that needs keys has to do.
pub(super) enum Flight {
    /// Wait until this fetch has ended.
    Running(Landing),
    /// Nothing: another fetch has ended in between, and this is what comes of it.
    Needless(Authentication),
}

/// Why the keys could not be fetched.
#[derive(Debug, thiserror::Error)]
enum FetchError {
    #[error("could not build the HTTP client")]
    Client(#[source] reqwest::Error),
    #[error("no complete answer within {} s", FETCH_LIMIT.as_secs())]
    TooSlow,
    #[error("could not request {url}")]
    Request {
        url: String,
        #[source]
        error: reqwest::Error,
    },
    #[error("{url} answered with status {status}")]
    Status { url: String, status: u16 },
    #[error("the answer of {url} is larger than {MAX_DOCUMENT} bytes")]
    TooLarge { url: String },
    #[error("the answer of {url} is not text")]
    NotText { url: String },
    #[error("{url} is not the metadata of an issuer")]
    Metadata {
        url: String,
        #[source]
        error: serde_json::Error,
    },
    #[error(
        "{url} is the metadata of the issuer {found:?}; expected exactly the `url` of the table"
    )]
    OtherIssuer { url: String, found: String },
    #[error(
        "`jwks_uri` of the issuer, {0:?}, must begin with https:// (or http:// and a loopback host)"
    )]
    KeysUrl(String),
    #[error("could not read {path}")]
    File {
        path: String,
        #[source]
        error: std::io::Error,
    },
    #[error("the issuer's URL can't be used")]
    IssuerUrl(#[source] url::ParseError),
    #[error(
        "the issuer's metadata can be read only from https:// (or http:// and a loopback host); set \
         `jwks_url` or `jwks_file`"
    )]
    UnsafeIssuer,
}

/// What matters of an issuer's metadata (OpenID Connect Discovery, RFC 8414).
#[derive(Deserialize)]
struct IssuerMetadata {
    issuer: String,
    jwks_uri: String,
}

impl Issuers {
    fn client(&self) -> Result<Client, FetchError> {
        if let Some(client) = self.client.get() {
            return Ok(client.clone());
        }

        let client = Client::builder()
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .connect_timeout(CONNECT_LIMIT)
            .build()
            .map_err(FetchError::Client)?;
        Ok(self.client.get_or_init(|| client).clone())
    }
}

impl AccessControl {
    /// Joins the fetch of these keys that is under way, or starts one. `again` authenticates once
    /// more while no fetch can begin or end, since one may have ended after the request asked.
    pub(super) fn join_fetch(
        &self,
        state: &Arc<AccessState>,
        fetch: FetchKeys,
        again: impl FnOnce() -> Authentication,
    ) -> Flight {
        let mut flights = self.inner.issuers.flights.lock();
        if let Some(landing) = flights.get(&fetch) {
            return Flight::Running(landing.clone());
        }

        match again() {
            Authentication::NeedsKeys { .. } => {
                Flight::Running(self.start_fetch(&mut flights, state, fetch))
            }
            other => Flight::Needless(other),
        }
    }

    fn start_fetch(
        &self,
        flights: &mut HashMap<FetchKeys, Landing>,
        state: &Arc<AccessState>,
        fetch: FetchKeys,
    ) -> Landing {
        let (landed, landing) = watch::channel(());
        flights.insert(fetch.clone(), landing.clone());

        let (control, state) = (self.clone(), state.clone());
        tokio::spawn(async move {
            let keys = tokio::time::timeout(FETCH_LIMIT, control.fetch_keys(&fetch)).await;
            control.end_fetch(&state, &fetch, keys.unwrap_or(Err(FetchError::TooSlow)));
            drop(landed);
        });
        landing
    }

    /// Hands the keys over, and lets the next fetch begin.
    fn end_fetch(
        &self,
        state: &Arc<AccessState>,
        fetch: &FetchKeys,
        keys: Result<String, FetchError>,
    ) {
        let mut flights = self.inner.issuers.flights.lock();
        let now = fleet_ops::clock::now();

        // The files may have been read again since the fetch began.
        let current = self.current();
        let mut states = vec![state];
        if !Arc::ptr_eq(state, &current) {
            states.push(&current);
        }

        let issuer = &fetch.issuer;
        let mut failure = None;
        for tokens in states.iter().map(|state| state.authenticator.tokens()) {
            match &keys {
                Ok(keys) => match tokens.install_keys(fetch, keys, now) {
                    Ok(true) => tracing::info!(issuer, "the issuer's keys have changed"),
                    Ok(false) => {}
                    Err(error) => failure = Some(chain(&error)),
                },
                Err(error) => {
                    tokens.fetch_failed(fetch, now);
                    failure = Some(chain(error));
                }
            }
        }
        flights.remove(fetch);
        drop(flights);

        let outcome = if failure.is_none() { "ok" } else { "failed" };
        metrics::counter!(ISSUER_KEY_READS.name, "outcome" => outcome).increment(1);
        if let Some(error) = failure {
            tracing::warn!(
                issuer,
                error,
                code = fleet_codes::ISSUER_KEYS.as_str(),
                "could not read the issuer's keys; those that are known stay in use"
            );
        }
    }

    async fn fetch_keys(&self, fetch: &FetchKeys) -> Result<String, FetchError> {
        let issuers = &self.inner.issuers;
        match &fetch.source {
            KeySource::Discovery => {
                let client = issuers.client()?;
                let url = discover_keys(&client, &fetch.issuer).await?;
                get_text(&client, &url).await
            }
            KeySource::Url(url) => get_text(&issuers.client()?, url).await,
            KeySource::File(path) => {
                let text = tokio::fs::read_to_string(path).await;
                text.map_err(|error| FetchError::File { path: path.clone(), error })
            }
        }
    }

    /// Reads keys before somebody needs them, and again when they are old, until `stop` is
    /// cancelled.
    pub(super) async fn refresh_keys(self, stop: CancellationToken) {
        let mut ticks = tokio::time::interval(REFRESH_POLL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = stop.cancelled() => return,
            }

            let state = self.current();
            let mut flights = self.inner.issuers.flights.lock();
            for fetch in state.authenticator.tokens().refreshes_due(fleet_ops::clock::now()) {
                if !flights.contains_key(&fetch) {
                    self.start_fetch(&mut flights, &state, fetch);
                }
            }
        }
    }
}

/// Waits until a fetch has ended.
pub(super) async fn wait_until_landed(mut landing: Landing) {
    // Nothing is ever sent; the channel closes.
    while landing.changed().await.is_ok() {}
}

/// Finds the URL of an issuer's keys in its metadata.
async fn discover_keys(client: &Client, issuer: &str) -> Result<String, FetchError> {
    if !is_safe_url(issuer) {
        return Err(FetchError::UnsafeIssuer);
    }
    let [openid, oauth] = metadata_urls(issuer).map_err(FetchError::IssuerUrl)?;
    let (url, text) = match get_text(client, &openid).await {
        Ok(text) => (openid, text),
        Err(FetchError::Status { .. }) => {
            let text = get_text(client, &oauth).await?;
            (oauth, text)
        }
        Err(error) => return Err(error),
    };

    let metadata: IssuerMetadata = serde_json::from_str(&text)
        .map_err(|error| FetchError::Metadata { url: url.clone(), error })?;
    if metadata.issuer != issuer {
        return Err(FetchError::OtherIssuer { url, found: metadata.issuer });
    }
    match is_safe_url(&metadata.jwks_uri) {
        true => Ok(metadata.jwks_uri),
        false => Err(FetchError::KeysUrl(metadata.jwks_uri)),
    }
}

/// Where the metadata of an issuer may be: OpenID Connect appends to the issuer's path, and RFC 8414
/// inserts before it.
fn metadata_urls(issuer: &str) -> Result<[String; 2], url::ParseError> {
    let base = issuer.trim_end_matches('/');
    let mut inserted = Url::parse(base)?;
    let path = inserted.path().trim_end_matches('/').to_owned();
    inserted.set_path(&format!("/.well-known/oauth-authorization-server{path}"));
    Ok([format!("{base}/.well-known/openid-configuration"), inserted.into()])
}

/// Whether nobody on the way can change what is read from a URL.
fn is_safe_url(text: &str) -> bool {
    let Ok(url) = Url::parse(text) else { return false };
    let is_loopback = match url.host() {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    };
    url.scheme() == "https" || (url.scheme() == "http" && is_loopback)
}

/// Reads a document, up to [`MAX_DOCUMENT`] bytes.
async fn get_text(client: &Client, url: &str) -> Result<String, FetchError> {
    let failed = |error| FetchError::Request { url: url.to_owned(), error };
    let mut response = client.get(url).send().await.map_err(failed)?;
    if !response.status().is_success() {
        let status = response.status().as_u16();
        return Err(FetchError::Status { url: url.to_owned(), status });
    }

    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(failed)? {
        if body.len() + chunk.len() > MAX_DOCUMENT {
            return Err(FetchError::TooLarge { url: url.to_owned() });
        }
        body.extend_from_slice(&chunk);
    }
    String::from_utf8(body).map_err(|_| FetchError::NotText { url: url.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn metadata_is_looked_for_in_both_places() {
        let check = |issuer: &str, openid: &str, oauth: &str| {
            assert_eq!(metadata_urls(issuer).unwrap(), [openid, oauth]);
        };
        check(
            "https://idp.example",
            "https://idp.example/.well-known/openid-configuration",
            "https://idp.example/.well-known/oauth-authorization-server",
        );
        check(
            "https://idp.example/realms/a/",
            "https://idp.example/realms/a/.well-known/openid-configuration",
            "https://idp.example/.well-known/oauth-authorization-server/realms/a",
        );
    }

    #[test]
    fn keys_are_read_only_from_where_nobody_can_change_them() {
        for (url, is_safe) in [
            ("https://idp.example/keys", true),
            ("http://127.0.0.1:8080/keys", true),
            ("http://[::1]/keys", true),
            ("http://localhost/keys", true),
            ("http://idp.example/keys", false),
            ("http://localhost@idp.example/keys", false),
            ("file:///etc/passwd", false),
            ("keys", false),
        ] {
            assert_eq!(is_safe_url(url), is_safe, "{url}");
        }
    }
}
