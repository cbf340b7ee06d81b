//! The files about access: API keys, their pepper, and the policy file. They are read at the start
//! and whenever one of them changes.
//!
//! They are polled like the policy of hosted servers, for the reasons that [`fleet_ops::watched`]
//! gives. A revoked key is refused after two polls, within two seconds.

use std::{
    io,
    path::{Path, PathBuf},
    sync::Arc,
};

use fleet_access::{AccessPolicy, JobRights, KeysFile, Pepper, Rights, WithoutCredentials};
use fleet_ops::{
    errors::chain,
    tls::TlsFiles,
    watched::{INTERVAL, Outcome, Watched, versions},
};
use fleet_policy::PolicyError;
use fleet_signing::SigningKeys;
use tokio::{
    signal::unix::{Signal, SignalKind, signal},
    time::MissedTickBehavior,
};
use tokio_util::sync::CancellationToken;

use super::{AccessControl, AccessSource, AccessState, metadata};
use crate::{config::ServerConfig, error::ServerError, metrics::ACCESS_RELOADS};

impl AccessSource {
    /// The files that are read.
    fn files(&self) -> Vec<PathBuf> {
        let pepper = self.pepper_file();
        let (signing, public) = (self.signing_keys.clone(), self.signing_public_keys.clone());
        [self.keys.clone(), pepper, self.policy.clone(), signing, public]
            .into_iter()
            .flatten()
            .collect()
    }

    /// The file of the pepper: the configured one, or the one beside the keys file.
    fn pepper_file(&self) -> Option<PathBuf> {
        self.pepper.clone().or_else(|| self.keys.as_deref().map(default_pepper_file))
    }
}

/// The file beside a keys file in which its pepper is kept.
fn default_pepper_file(keys: &Path) -> PathBuf {
    let mut name = keys.as_os_str().to_owned();
    name.push(".pepper");
    name.into()
}

/// Warns of secret files that the `file_*` tools let every caller read: those about access, the
/// private key of the port, and the secrets of hosted servers.
pub(crate) fn warn_of_readable_secrets(config: &ServerConfig) {
    let roots = &config.roots;
    let directory = config.secrets_dir.iter().filter(|directory| is_below(directory, roots));
    for directory in directory {
        tracing::warn!(
            directory = %directory.display(),
            "a --root contains the secrets of hosted servers, so that every caller can read them \
             with file_read; keep them outside of all roots, and replace them"
        );
    }

    for file in readable_secrets(&config.access, config.tls.as_ref(), roots) {
        tracing::warn!(
            file = %file.display(),
            "a --root contains a file of the API keys or the private key of TLS, so that every \
             caller can read it with file_read; keep it outside of all roots, and replace the keys \
             and their pepper (those that `mcp-fleet keys init` has written beside it, too), or the \
             certificate and its key"
        );
    }
}

/// Warns of children that may read the files of all secrets, whichever their rule lists.
pub(crate) fn warn_of_shared_secrets(config: &ServerConfig) {
    let Some(directory) = &config.secrets_dir else { return };
    let unlimited = config.policy.commands.iter().find(|rule| !rule.confinement.limits_files());
    if let Some(rule) = unlimited {
        tracing::warn!(
            directory = %directory.display(),
            command = %rule.argv,
            "a [[command]] has neither `read_files` nor `write_files`, so its children may read every \
             file of the secrets directory; limit their files, or keep secrets in MCP_SECRET_… \
             variables, which children can't read"
        );
    }
}

/// The keys file, its pepper and the private key of the port, as far as they are below a root.
fn readable_secrets(
    source: &AccessSource,
    tls: Option<&TlsFiles>,
    roots: &[PathBuf],
) -> Vec<PathBuf> {
    let tls_key = tls.map(|tls| tls.pair.key.clone());
    let signing = source.signing_keys.clone();
    let secrets = [source.keys.clone(), source.pepper_file(), tls_key, signing];
    let secrets = secrets.into_iter().flatten();
    secrets.filter(|path| is_below(path, roots)).collect()
}

/// Returns whether a file or directory is below one of these directories, once links are followed.
fn is_below(path: &Path, directories: &[PathBuf]) -> bool {
    let Ok(path) = path.canonicalize() else { return false };
    let directories = directories.iter().filter_map(|directory| directory.canonicalize().ok());
    directories.into_iter().any(|directory| path.starts_with(directory))
}

/// What the files say.
pub(super) struct Files {
    pub(super) state: AccessState,
    pub(super) rights: Rights,
    pub(super) signing: Option<SigningKeys>,
}

/// Reads all files.
pub(super) fn read_files(
    source: &AccessSource,
    without: WithoutCredentials,
) -> Result<Files, ServerError> {
    let resource = source.public_url.as_ref().map(|url| metadata::resource_of(url.as_str()));
    let mut policy = match &source.policy {
        Some(path) => read_policy(path, resource.as_deref())?,
        None => AccessPolicy::parse("", None)?,
    };
    let signing = read_signing_keys(source)?;
    if signing.is_some() {
        policy.rules = policy.rules.with_job_rights(JobRights::OfSubmitters);
    }

    let (path, keys) = match &source.keys {
        Some(path) => (path.clone(), read_keys(path)?),
        None => (PathBuf::new(), KeysFile::default()),
    };
    // The pepper in the keys file goes before any other.
    let pepper = match keys.pepper {
        Some(_) => None,
        None => read_pepper(source)?,
    };

    let authenticator = policy
        .authenticator(&keys, pepper.as_ref(), without)
        .map_err(|error| ServerError::Keys { path, error })?;
    let scopes = policy.rules.scopes();
    let state = AccessState { scopes, authenticator };
    Ok(Files { state, rights: policy.into_rights(), signing })
}

/// Reads the keys that sign jobs, and those whose signatures are accepted; `None` if there are no
/// such files.
pub(crate) fn read_signing_keys(source: &AccessSource) -> Result<Option<SigningKeys>, ServerError> {
    let read = |path: &PathBuf| {
        let text = read_file(path)?;
        SigningKeys::parse(text.as_bytes())
            .map_err(|error| ServerError::SigningKeys { path: path.clone(), error })
    };
    let keys = source.signing_keys.as_ref().map(read).transpose()?;
    if let (Some(path), Some(keys)) = (&source.signing_keys, &keys)
        && !keys.can_sign()
    {
        return Err(ServerError::NoSigningKey { path: path.clone() });
    }
    let public = source.signing_public_keys.as_ref().map(read).transpose()?;
    Ok(match (keys, public) {
        (Some(keys), Some(public)) => Some(keys.and_verifiers_of(public)),
        (keys, public) => keys.or(public),
    })
}

fn read_policy(path: &Path, resource: Option<&str>) -> Result<AccessPolicy, ServerError> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| PolicyError::Read { path: path.to_owned(), error })?;
    Ok(AccessPolicy::parse(&text, resource)?)
}

/// Checks what a policy file says about access, without a server that listens. Returns the rights of
/// principals.
pub(crate) fn read_rights(path: &Path) -> Result<Rights, ServerError> {
    // The server's public URL is a flag, so an issuer without audiences may be sound.
    let policy = read_policy(path, Some("the server's public URL"))?;
    Ok(policy.into_rights())
}

fn read_keys(path: &Path) -> Result<KeysFile, ServerError> {
    let text = read_file(path)?;
    KeysFile::parse(&text).map_err(|error| ServerError::Keys { path: path.to_owned(), error })
}

fn read_pepper(source: &AccessSource) -> Result<Option<Pepper>, ServerError> {
    let Some(path) = source.pepper_file() else { return Ok(None) };
    let text = match read_file(&path) {
        // Only a file that was asked for must exist.
        Err(ServerError::AccessFile { error, .. })
            if source.pepper.is_none() && error.kind() == io::ErrorKind::NotFound =>
        {
            return Ok(None);
        }
        text => text?,
    };
    Pepper::parse(&text).map(Some).ok_or(ServerError::Pepper { path })
}

fn read_file(path: &Path) -> Result<String, ServerError> {
    std::fs::read_to_string(path)
        .map_err(|error| ServerError::AccessFile { path: path.to_owned(), error })
}

/// Follows the files, if there are any, until `stop` is cancelled.
pub(super) fn follow(control: &AccessControl, stop: CancellationToken) -> Result<(), ServerError> {
    let files = control.inner.source.files();
    if files.is_empty() {
        return Ok(());
    }

    let hangup = signal(SignalKind::hangup()).map_err(ServerError::Signals)?;
    let control = control.clone();
    tokio::spawn(async move {
        tokio::select! {
            () = stop.cancelled() => {}
            () = watch_files(&control, &files, hangup) => {}
        }
    });
    Ok(())
}

async fn watch_files(control: &AccessControl, files: &[PathBuf], mut hangup: Signal) {
    let mut watched = Watched::new(versions(files));
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);

    loop {
        let forced = tokio::select! {
            _ = hangup.recv() => true,
            _ = ticks.tick() => false,
        };

        let seen = versions(files);
        if watched.is_due(&seen, forced) {
            let result = reload(control);
            if watched.record(seen, outcome_of(&result), forced) {
                report(&result);
            }
        }
    }
}

fn outcome_of(result: &Result<usize, ServerError>) -> Outcome {
    match result {
        Ok(_) => Outcome::Applied,
        Err(ServerError::AccessFile { .. } | ServerError::Policy(PolicyError::Read { .. })) => {
            Outcome::Unread
        }
        Err(_) => Outcome::Invalid,
    }
}

/// Reads the files again, and returns the number of rules. If a file can't be used, the state stays
/// as it is.
fn reload(control: &AccessControl) -> Result<usize, ServerError> {
    let inner = &control.inner;
    let previous = control.current();

    let Files { state, rights, signing } = read_files(&inner.source, inner.without)?;
    // Remembered tokens are verified again, since the rules about principals may have changed.
    state.authenticator.tokens().adopt_keys(previous.authenticator.tokens());
    let count = rights.rules.len();
    *inner.state.write() = Arc::new(state);
    let has_other_views = inner.rights.get().views != rights.views;
    inner.rights.replace(rights);
    if has_other_views && let Some(notify) = inner.on_other_views.get() {
        notify.0();
    }
    inner.signing.replace(signing);
    Ok(count)
}

fn report(result: &Result<usize, ServerError>) {
    match result {
        Ok(rules) => {
            metrics::counter!(ACCESS_RELOADS.name, "outcome" => "applied").increment(1);
            tracing::info!(rules, "applied the changed files about access");
        }
        Err(error) => {
            metrics::counter!(ACCESS_RELOADS.name, "outcome" => "invalid").increment(1);
            tracing::error!(
                error = chain(error),
                "could not read the files about access; the previous state stays in force"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use fleet_ops::tls::PairFiles;

    use super::*;

    #[test]
    fn the_pepper_is_beside_the_keys_unless_told_otherwise() {
        let beside =
            AccessSource { keys: Some("/etc/keys.toml".into()), ..AccessSource::default() };
        assert_eq!(beside.pepper_file(), Some("/etc/keys.toml.pepper".into()));
        let apart = AccessSource { pepper: Some("/run/pepper".into()), ..beside };
        assert_eq!(apart.pepper_file(), Some("/run/pepper".into()));
        assert_eq!(AccessSource::default().pepper_file(), None);
    }

    #[test]
    fn secrets_below_a_root_are_found_through_links_and_others_are_not() {
        let dir = tempfile::tempdir().unwrap();
        let [root, apart] = ["root", "apart"].map(|name| dir.path().join(name));
        std::fs::create_dir(&root).unwrap();
        std::fs::create_dir(&apart).unwrap();
        let write = |path: PathBuf| {
            std::fs::write(&path, "").unwrap();
            path
        };

        let keys = write(apart.join("keys.toml"));
        let pepper = write(apart.join("keys.toml.pepper"));
        let source = AccessSource { keys: Some(keys.clone()), ..AccessSource::default() };
        let check = |source: &AccessSource, root: &Path, expected: &[&PathBuf]| {
            let found = readable_secrets(source, None, &[root.to_owned()]);
            assert_eq!(found.iter().collect::<Vec<_>>(), expected, "{}", root.display());
        };
        check(&source, &root, &[]);
        check(&source, &apart, &[&keys, &pepper]);
        check(&source, dir.path(), &[&keys, &pepper]);
        check(&AccessSource::default(), dir.path(), &[]);

        let (link, real) = (apart.join("link"), write(root.join("pepper")));
        std::os::unix::fs::symlink(real, &link).unwrap();
        check(&AccessSource { pepper: Some(link.clone()), ..source }, &root, &[&link]);

        let pair = PairFiles { certificate: keys, key: link.clone() };
        let tls = TlsFiles { pair, clients: None };
        let found = readable_secrets(&AccessSource::default(), Some(&tls), &[root]);
        assert_eq!(found, [link], "a certificate is no secret");
    }
}
