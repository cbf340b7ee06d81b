//! The Secret of Kubernetes that holds the keys of a fleet, through the API of the cluster that this
//! pod runs in.
//!
//! The pod's service account needs `get` and `patch` of this one Secret, and nothing else. Keys,
//! pepper and secrets are written in one request, which the cluster refuses if somebody else has
//! changed the Secret since it was read. So any number of pods may do this at once.

use std::{collections::BTreeMap, net::IpAddr, path::Path, time::Duration};

use base64::{Engine as _, prelude::BASE64_STANDARD};
use fleet_access::{KeysFile, Pepper};
use fleet_ops::config::read_secret_file;
use fleet_retry::{Backoff, Retry};
use http::header;
use reqwest::{Certificate, Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::time::{Instant, sleep};
use url::Url;

use super::{FIRST_KEYS, FirstKey, Step, signing};
use crate::{error::CliError, keys::store, output};

/// Where a pod finds its service account.
const ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// The fields of the Secret that the server reads. The names are those of files.
const KEYS: &str = "keys.toml";
const PEPPER: &str = "keys.toml.pepper";
/// How long to go on while the API doesn't answer, or others change the Secret.
const PATIENCE: Duration = Duration::from_secs(60);
const ANSWER: Duration = Duration::from_secs(10);
const PAUSES: Backoff = Backoff { base: Duration::from_millis(200), max: Duration::from_secs(5) };

/// The API of a cluster, as a service account of it.
#[derive(Debug)]
pub(super) struct Cluster {
    http: reqwest::Client,
    /// The URL of the Secrets of the namespace.
    secrets: Url,
    token: String,
}

/// Why a request to the API failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ClusterError {
    /// This process is not in a pod, or the pod has no service account.
    #[error(
        "KUBERNETES_SERVICE_HOST and KUBERNETES_SERVICE_PORT are not those of a cluster; \
         --kubernetes-secret works inside of a pod only"
    )]
    NotInAPod,
    /// The API is not reached, or not yet.
    #[error("could not reach the API of the cluster at {url}")]
    Unreached {
        url: String,
        #[source]
        error: reqwest::Error,
    },
    /// The Secret does not exist.
    #[error("there is no Secret {name} in this namespace; apply the manifest that has it first")]
    NoSecret { name: String },
    /// The pod may not do it.
    #[error(
        "the cluster refuses access to the Secret {name} ({status}): {message}; the service account \
         needs a Role with the verbs get and patch for this Secret"
    )]
    Refused { name: String, status: StatusCode, message: String },
    /// Somebody else has changed the Secret in the meantime.
    #[error("the Secret {name} was changed by others all the time")]
    Conflict { name: String },
    /// Anything else.
    #[error("the API of the cluster answered {status}: {message}")]
    Failed { status: StatusCode, message: String },
    /// The HTTP client or its certificates.
    #[error("could not set up the HTTP client")]
    Client(#[source] reqwest::Error),
    /// A field of the Secret is not what it should be.
    #[error("the field {field} of the Secret {name} can't be used: {why}")]
    Field { name: String, field: String, why: String },
}

impl ClusterError {
    /// Returns whether the same may succeed soon.
    fn is_passing(&self) -> bool {
        match self {
            Self::Unreached { .. } | Self::Conflict { .. } => true,
            Self::Failed { status, .. } => {
                status.is_server_error() || *status == StatusCode::TOO_MANY_REQUESTS
            }
            _ => false,
        }
    }
}

/// A Secret, as far as it matters here.
#[derive(Debug, Deserialize)]
struct Secret {
    metadata: Metadata,
    #[serde(default)]
    data: Option<BTreeMap<String, String>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Metadata {
    resource_version: String,
}

/// The texts in a Secret.
type Fields = BTreeMap<String, String>;

/// What was done about each key, and about the one that signs jobs.
type Steps = (Vec<(&'static FirstKey, Step)>, Step);

impl Cluster {
    /// The cluster and the service account of the pod that this process runs in.
    pub(super) fn of_this_pod() -> Result<Self, CliError> {
        let variable = |name| std::env::var(name).map_err(|_| ClusterError::NotInAPod);
        let host = variable("KUBERNETES_SERVICE_HOST")?;
        let port = variable("KUBERNETES_SERVICE_PORT")?;
        let url = api_url(&host, &port).ok_or(ClusterError::NotInAPod)?;
        Self::with_account(url, Path::new(ACCOUNT))
    }

    /// The API at `url`, with the service account whose files are in `account`.
    fn with_account(url: Url, account: &Path) -> Result<Self, CliError> {
        let read = |name| {
            let path = account.join(name);
            std::fs::read(&path)
                .map_err(|error| store::failed("could not read the service account", &path, error))
        };
        let certificates =
            Certificate::from_pem_bundle(&read("ca.crt")?).map_err(ClusterError::Client)?;
        let namespace = read_secret_file(&account.join("namespace"))?;
        let token = read_secret_file(&account.join("token"))?;

        // A proxy that the environment names is for the world outside of the cluster.
        let http = reqwest::Client::builder()
            .user_agent(concat!("mcp-fleet/", env!("CARGO_PKG_VERSION")))
            .tls_certs_only(certificates)
            .no_proxy()
            .timeout(ANSWER)
            .redirect(reqwest::redirect::Policy::none())
            .build()
            .map_err(ClusterError::Client)?;

        let mut url = url;
        // This fails only for URLs without a host.
        if let Ok(mut path) = url.path_segments_mut() {
            path.extend(["api", "v1", "namespaces", namespace.as_str(), "secrets"]);
        }
        Ok(Self { http, secrets: url, token })
    }

    /// Makes the keys that the Secret does not have, and returns what was done about each.
    pub(super) async fn complete_secret(&self, name: &str) -> Result<Steps, CliError> {
        let (end, mut retry) = (Instant::now() + PATIENCE, Retry::new(PAUSES, rand::random()));
        loop {
            match self.complete_once(name).await {
                Err(CliError::Cluster(error)) if error.is_passing() && Instant::now() < end => {
                    let error = fleet_ops::errors::chain(&error);
                    output::note(&format!("{error}; trying again"));
                    sleep(retry.failed()).await;
                }
                done => return done,
            }
        }
    }

    async fn complete_once(&self, name: &str) -> Result<Steps, CliError> {
        let secret = self.request(name, None).await?;
        let found = decode_fields(name, secret.data.unwrap_or_default())?;

        let (steps, changed) = complete_fields(name, &found)?;
        if changed.is_empty() {
            return Ok(steps);
        }

        let data: BTreeMap<_, _> =
            changed.iter().map(|(name, text)| (name, BASE64_STANDARD.encode(text))).collect();
        let version = secret.metadata.resource_version;
        let patch = json!({"metadata": {"resourceVersion": version}, "data": data});
        self.request(name, Some(patch)).await?;
        Ok(steps)
    }

    /// Reads the Secret, or changes it by a JSON merge patch.
    async fn request(&self, name: &str, patch: Option<Value>) -> Result<Secret, CliError> {
        let mut url = self.secrets.clone();
        if let Ok(mut path) = url.path_segments_mut() {
            path.push(name);
        }

        let request = match patch {
            None => self.http.request(Method::GET, url),
            Some(patch) => self
                .http
                .request(Method::PATCH, url)
                .body(patch.to_string())
                .header(header::CONTENT_TYPE, "application/merge-patch+json"),
        };
        let unreached = |error: reqwest::Error| ClusterError::Unreached {
            url: self.secrets.origin().ascii_serialization(),
            error: error.without_url(),
        };
        let response = request.bearer_auth(&self.token).send().await.map_err(unreached)?;
        let status = response.status();
        let body = response.bytes().await.map_err(unreached)?;

        if status.is_success() {
            return serde_json::from_slice(&body).map_err(|error| {
                let message = format!("the answer is not a Secret: {error}");
                ClusterError::Failed { status, message }.into()
            });
        }

        let message = serde_json::from_slice::<Value>(&body).ok();
        let message = message.and_then(|body| Some(body.get("message")?.as_str()?.to_owned()));
        let (name, message) = (name.to_owned(), message.unwrap_or_default());
        Err(match status {
            StatusCode::NOT_FOUND => ClusterError::NoSecret { name },
            StatusCode::CONFLICT => ClusterError::Conflict { name },
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                ClusterError::Refused { name, status, message }
            }
            _ => ClusterError::Failed { status, message },
        }
        .into())
    }
}

fn api_url(host: &str, port: &str) -> Option<Url> {
    let host = match host.parse::<IpAddr>() {
        Ok(IpAddr::V6(address)) => format!("[{address}]"),
        _ => host.to_owned(),
    };
    Url::parse(&format!("https://{host}:{port}")).ok()
}

fn decode_fields(name: &str, data: BTreeMap<String, String>) -> Result<Fields, ClusterError> {
    let decode = |(field, value): (String, String)| {
        let bytes = BASE64_STANDARD.decode(value).ok();
        match bytes.and_then(|bytes| String::from_utf8(bytes).ok()) {
            Some(text) => Ok((field, text)),
            None => {
                let why = "it is not text".to_owned();
                Err(ClusterError::Field { name: name.to_owned(), field, why })
            }
        }
    };
    let ours = |field: &str| {
        [KEYS, PEPPER, signing::PRIVATE_KEY, signing::PUBLIC_KEYS].contains(&field)
            || FIRST_KEYS.iter().any(|key| key.file_name() == field)
    };
    // Fields that others have added stay as they are.
    data.into_iter().filter(|(field, _)| ours(field)).map(decode).collect()
}

/// Makes the keys that the fields don't have. Returns what was done about each, and the fields that
/// are to be written.
fn complete_fields(name: &str, found: &Fields) -> Result<(Steps, Fields), CliError> {
    let mut changed = Fields::new();
    let steps = complete_keys(name, found, &mut changed)?;

    let text_of = |field: &str| found.get(field).map(String::as_str);
    let (key, public) = (text_of(signing::PRIVATE_KEY), text_of(signing::PUBLIC_KEYS));
    let signed = signing::complete(key, public).map_err(|why| {
        let (name, field) = (name.to_owned(), signing::PRIVATE_KEY.to_owned());
        ClusterError::Field { name, field, why }
    })?;
    changed.extend(signed.key.map(|text| (signing::PRIVATE_KEY.to_owned(), text)));
    changed.extend(signed.public.map(|text| (signing::PUBLIC_KEYS.to_owned(), text)));
    Ok(((steps, signed.step), changed))
}

/// Makes the API keys that the fields don't have.
fn complete_keys(
    name: &str,
    found: &Fields,
    changed: &mut Fields,
) -> Result<Vec<(&'static FirstKey, Step)>, CliError> {
    let now = fleet_ops::clock::now();
    let mut file = KeysFile::parse(found.get(KEYS).map_or("", String::as_str))?;
    let secret_of = |key: &FirstKey| found.get(&key.file_name()).map(|text| text.trim());

    if FIRST_KEYS.iter().all(|key| key.is_in(&file)) {
        return Ok(FIRST_KEYS.iter().map(|key| (key, FirstKey::kept(secret_of(key)))).collect());
    }

    let (pepper, is_new) = find_pepper(name, &file, found)?;
    let mut steps = Vec::new();
    for key in &FIRST_KEYS {
        if key.is_in(&file) {
            steps.push((key, FirstKey::kept(secret_of(key))));
            continue;
        }

        let field = key.file_name();
        let place = format!("the field {field} of the Secret {name}");
        let (entry, step, text) = key.make(&pepper, secret_of(key), &place, now)?;
        changed.extend(text.map(|text| (field, text)));
        file.keys.push(entry);
        steps.push((key, step));
    }

    let text = file.to_toml();
    // No server would read a file with two keys of one id.
    KeysFile::parse(&text)?;
    changed.insert(KEYS.to_owned(), text);
    if is_new {
        changed.insert(PEPPER.to_owned(), pepper.reveal());
    }
    Ok(steps)
}

/// The pepper of the keys, and whether it is a new one.
fn find_pepper(
    name: &str,
    file: &KeysFile,
    found: &Fields,
) -> Result<(Pepper, bool), ClusterError> {
    if let Some(pepper) = &file.pepper {
        return Ok((pepper.clone(), false));
    }

    let unusable = |why: &str| {
        let (name, field) = (name.to_owned(), PEPPER.to_owned());
        ClusterError::Field { name, field, why: why.to_owned() }
    };
    match found.get(PEPPER) {
        Some(text) => {
            let pepper = Pepper::parse(text);
            let pepper = pepper.ok_or_else(|| unusable("it is not 64 hexadecimal digits"))?;
            Ok((pepper, false))
        }
        None if file.keys.is_empty() => Ok((Pepper::new(rand::random()), true)),
        // With another pepper, the server would refuse the keys that are there.
        None => Err(unusable("it is missing, and the keys were made with it")),
    }
}

#[cfg(test)]
mod tests;
