//! `mcp-fleet keys init`: the keys that a fleet needs to work at all, made at its first start.
//!
//! It may run at every start, and several times at once: what is there is left as it is. A secret is
//! written before the entry of its key, so a run that is killed in between leaves a key that the
//! next run finishes, and never an entry whose secret is lost.

use std::{
    fs::DirBuilder,
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    process::ExitCode,
};

use fleet_access::{FleetRole, KeyEntry, KeysFile, Pepper, PrincipalKind};
use fleet_job::time::Timestamp;
use fleet_ops::config::{SecretFileError, read_secret_file};
use serde_json::json;

use self::signing::SigningFiles;
use super::{
    Files,
    store::{self, PRIVATE, Store},
};
use crate::{error::CliError, output};

mod cluster;
mod signing;

pub(crate) use cluster::ClusterError;

/// The mode of a secret's file that the group may read, too.
const GROUP_READABLE: u32 = 0o640;

pub(super) const EXAMPLES: &str = "Examples:
  Make the keys of a fleet, one file for each; a second run changes nothing:
    mcp-fleet keys init --keys access/keys.toml --out access

  Use them:
    mcp-server --access-keys access/keys.toml --signing-key access/signing.key
    kafka-worker --server-token-file access/worker.key --signing-public-keys access/signing.pub
    mcp-fleet jobs list --token-file access/operator.key

  In a pod of Kubernetes, keep everything in a Secret that exists and may be empty:
    mcp-fleet keys init --kubernetes-secret mcp-fleet-keys";

#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub(crate) struct Init {
    #[command(flatten)]
    files: Files,

    /// The directory for the secrets: worker.key, operator.key and metrics.key, and for the key that
    /// signs jobs: signing.key, and signing.pub for workers
    #[arg(help_heading = "Files", long, value_name = "DIR")]
    out: Option<PathBuf>,

    /// The file for the worker's secret, in place of the one in --out
    #[arg(help_heading = "Files", long, value_name = "FILE")]
    worker_key: Option<PathBuf>,

    /// The file for the operator's secret, in place of the one in --out
    #[arg(help_heading = "Files", long, value_name = "FILE")]
    operator_key: Option<PathBuf>,

    /// The file for the secret of those who collect metrics, in place of the one in --out
    #[arg(help_heading = "Files", long, value_name = "FILE")]
    metrics_key: Option<PathBuf>,

    /// The file for the key that signs jobs, in place of the one in --out
    #[arg(help_heading = "Files", long, value_name = "FILE", requires = "signing_public_keys")]
    signing_key: Option<PathBuf>,

    /// The file for its public key, in place of the one in --out
    #[arg(help_heading = "Files", long, value_name = "FILE", requires = "signing_key")]
    signing_public_keys: Option<PathBuf>,

    /// Let the group of new secret files read them, for programs that run as another user
    #[arg(help_heading = "Files", long)]
    group_readable: bool,

    /// Keep keys, pepper and secrets in this Secret of the pod's namespace, and in no file
    #[arg(
        help_heading = "Kubernetes",
        long,
        value_name = "NAME",
        conflicts_with_all = [
            "out", "worker_key", "operator_key", "metrics_key", "signing_key", "group_readable"
        ]
    )]
    kubernetes_secret: Option<String>,

    /// Print one JSON object per key, without its secret
    #[arg(help_heading = "Output", long)]
    json: bool,
}

/// A key that a fleet needs.
#[derive(Debug, PartialEq, Eq)]
struct FirstKey {
    id: &'static str,
    kind: PrincipalKind,
    name: &'static str,
    role: FleetRole,
}

static FIRST_KEYS: [FirstKey; 3] = [
    FirstKey { id: "worker", kind: PrincipalKind::Node, name: "Workers", role: FleetRole::Worker },
    FirstKey {
        id: "operator",
        kind: PrincipalKind::Person,
        name: "Operator",
        role: FleetRole::Operator,
    },
    FirstKey {
        id: "metrics",
        kind: PrincipalKind::Service,
        name: "Metrics",
        role: FleetRole::Metrics,
    },
];

/// What became of one of the keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    /// The key exists and stays as it is.
    Kept,
    /// The same, and its secret is not where it would be now.
    KeptWithoutSecret,
    /// Its secret exists and its entry did not, as after a run that was killed.
    Finished,
    /// It is new.
    Made,
}

impl FirstKey {
    /// The name of the secret's file, and of its field in a Secret of Kubernetes.
    fn file_name(&self) -> String {
        format!("{}.key", self.id)
    }

    /// Whether the keys file has the key, or one that has replaced it.
    fn is_in(&self, file: &KeysFile) -> bool {
        let mut entries = file.keys.iter();
        entries.any(|entry| entry.subject.as_deref().unwrap_or(&entry.id) == self.id)
    }

    /// Whether a key with this id may be this one, or one that has replaced it, such as `worker-2`.
    fn may_have_id(&self, id: &str) -> bool {
        id.strip_prefix(self.id).is_some_and(|rest| rest.is_empty() || rest.starts_with('-'))
    }

    /// What is done about a key that the keys file has.
    fn kept(secret: Option<&str>) -> Step {
        secret.map_or(Step::KeptWithoutSecret, |_| Step::Kept)
    }

    /// Makes the entry of a key that the keys file does not have. `secret` is the key's text if it
    /// exists already, at `place`. Returns the text of a new key, too.
    fn make(
        &self,
        pepper: &Pepper,
        secret: Option<&str>,
        place: &str,
        now: Timestamp,
    ) -> Result<(KeyEntry, Step, Option<String>), CliError> {
        let (entry, step, text) = match secret {
            Some(text) => {
                let entry = KeyEntry::of_key(text, pepper, now);
                let entry = entry.filter(|entry| self.may_have_id(&entry.id)).ok_or_else(|| {
                    CliError::Usage(format!(
                        "{place} holds something else than the key `{}`, which the keys file does \
                         not know either; move it away to have a new key made",
                        self.id
                    ))
                })?;
                (entry, Step::Finished, None)
            }
            None => {
                let (text, entry) = KeyEntry::create(self.id, &rand::random(), pepper, now)
                    .map_err(|error| CliError::Usage(error.to_string()))?;
                (entry, Step::Made, Some(text))
            }
        };

        let entry = KeyEntry {
            subject: (entry.id != self.id).then(|| self.id.to_owned()),
            kind: self.kind,
            name: Some(self.name.to_owned()),
            roles: vec![self.role.as_str().to_owned()],
            ..entry
        };
        Ok((entry, step, text))
    }

    fn report(&self, step: Step, place: &str, json: bool) {
        let (id, role) = (self.id, self.role.as_str());
        if json {
            let is_made = step == Step::Made;
            output::json(&json!({"id": id, "role": role, "secretIn": place, "made": is_made}));
            return;
        }

        output::line(&match step {
            Step::Kept => format!("key {id} exists; its secret is in {place}"),
            Step::KeptWithoutSecret => format!(
                "key {id} exists, but its secret is not in {place} and can't be shown again; if it \
                 is lost, make another with `mcp-fleet keys create {id}-2 --subject {id} --role {role}`"
            ),
            Step::Finished => format!("key {id} is complete again; its secret is in {place}"),
            Step::Made => format!("made key {id} with the role {role}; its secret is in {place}"),
        });
    }
}

impl Init {
    /// The files for the secrets of the keys.
    fn secret_files(&self) -> Result<[(&'static FirstKey, PathBuf); 3], CliError> {
        let place = |key: &'static FirstKey| {
            let own = match key.role {
                FleetRole::Worker => &self.worker_key,
                FleetRole::Operator => &self.operator_key,
                FleetRole::Metrics => &self.metrics_key,
            };
            let in_out = || self.out.as_ref().map(|directory| directory.join(key.file_name()));
            let path = own.clone().or_else(in_out).ok_or_else(|| {
                CliError::Usage(format!(
                    "there is no file for the secret of the key `{0}`; pass --out DIR, or \
                     --{0}-key FILE",
                    key.id
                ))
            })?;
            Ok::<_, CliError>((key, path))
        };
        let [worker, operator, metrics] = &FIRST_KEYS;
        Ok([place(worker)?, place(operator)?, place(metrics)?])
    }
}

impl Init {
    /// The files for the key that signs jobs; `None` if no place for them is named.
    fn signing_files(&self) -> Option<SigningFiles> {
        match (&self.signing_key, &self.signing_public_keys) {
            (Some(key), Some(public)) => {
                Some(SigningFiles { key: key.clone(), public: public.clone() })
            }
            _ => self.out.as_deref().map(SigningFiles::in_directory),
        }
    }
}

fn report_signing(step: Step, key: &str, public: &str, json: bool) {
    if json {
        let is_made = step == Step::Made;
        output::json(
            &json!({"id": "signing", "secretIn": key, "publicIn": public, "made": is_made}),
        );
        return;
    }
    let what = match step {
        Step::Made => "made the key that signs jobs",
        Step::Finished => "completed the public keys of the key that signs jobs",
        Step::Kept | Step::KeptWithoutSecret => "the key that signs jobs exists",
    };
    output::line(&format!("{what}; it is in {key}, and its public half, for workers, in {public}"));
}

pub(super) async fn run(args: &Init) -> Result<ExitCode, CliError> {
    if let Some(name) = &args.kubernetes_secret {
        let field = |field: &str| format!("the field {field} of the Secret {name}");
        let (steps, signing) = cluster::Cluster::of_this_pod()?.complete_secret(name).await?;
        for (key, step) in steps {
            key.report(step, &field(&key.file_name()), args.json);
        }
        let (key, public) = (field(signing::PRIVATE_KEY), field(signing::PUBLIC_KEYS));
        report_signing(signing, &key, &public, args.json);
        return Ok(ExitCode::SUCCESS);
    }

    let (places, signing) = (args.secret_files()?, args.signing_files());
    let mode = if args.group_readable { GROUP_READABLE } else { PRIVATE };
    let (steps, signed) = complete_files(&args.files, &places, signing.as_ref(), mode)?;
    for ((key, path), step) in places.iter().zip(steps) {
        key.report(step, &path.display().to_string(), args.json);
    }
    if let (Some(files), Some(step)) = (&signing, signed) {
        let (key, public) = (files.key.display(), files.public.display());
        report_signing(step, &key.to_string(), &public.to_string(), args.json);
    }
    Ok(ExitCode::SUCCESS)
}

/// Makes the keys of a fleet, with their digests in `keys` and their secrets in `out`, as far as
/// they don't exist.
#[cfg(feature = "fleet")]
pub(crate) fn make_first_keys(keys: &Path, out: &Path) -> Result<(), CliError> {
    let files = Files { keys: keys.to_owned(), pepper: None };
    let places = FIRST_KEYS.each_ref().map(|key| (key, out.join(key.file_name())));
    let signing = SigningFiles::in_directory(out);
    complete_files(&files, &places, Some(&signing), PRIVATE).map(drop)
}

/// Makes the keys whose entries are missing, and returns what was done about each, and about the one
/// that signs jobs.
fn complete_files(
    files: &Files,
    places: &[(&'static FirstKey, PathBuf)],
    signing: Option<&SigningFiles>,
    mode: u32,
) -> Result<(Vec<Step>, Option<Step>), CliError> {
    let signed = signing.iter().flat_map(|files| [&files.key, &files.public]);
    for path in places.iter().map(|(_, path)| path).chain([&files.keys]).chain(signed) {
        prepare_directory_of(path, mode)?;
    }

    let now = fleet_ops::clock::now();
    let mut store = Store::open(files)?;
    let known = store.file.keys.len();

    let mut steps = Vec::new();
    for (key, path) in places {
        let secret = read_if_there(path)?;
        if key.is_in(&store.file) {
            steps.push(FirstKey::kept(secret.as_deref()));
            continue;
        }

        let pepper = store.pepper_for_new_key()?;
        let place = path.display().to_string();
        let (entry, step, text) = key.make(&pepper, secret.as_deref(), &place, now)?;
        if let Some(text) = text {
            // Without a line break, since the file may become a field of a Secret.
            store::write_atomically(path, text.as_bytes(), mode)
                .map_err(|error| store::failed("could not write the key", path, error))?;
        }
        store.file.keys.push(entry);
        steps.push(step);
    }

    if store.file.keys.len() > known {
        store.save()?;
    }
    // The store is locked, so nobody else makes another key meanwhile.
    let signed = signing.map(SigningFiles::complete).transpose()?;
    Ok((steps, signed))
}

fn read_if_there(path: &Path) -> Result<Option<String>, CliError> {
    match read_secret_file(path) {
        Err(SecretFileError::Read { error, .. }) if error.kind() == io::ErrorKind::NotFound => {
            Ok(None)
        }
        secret => Ok(Some(secret?)),
    }
}

/// Makes the directory of a file, for the owner alone unless the group may read the file, too.
fn prepare_directory_of(path: &Path, mode: u32) -> Result<(), CliError> {
    let directory = store::directory_of(path);
    let mode = if mode == GROUP_READABLE { 0o750 } else { 0o700 };
    let made = DirBuilder::new().recursive(true).mode(mode).create(directory);
    made.map_err(|error| store::failed("could not create the directory", directory, error))
}

#[cfg(test)]
mod tests;
