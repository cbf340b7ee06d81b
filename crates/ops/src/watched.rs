//! Files that are followed while the process runs.
//!
//! They are polled rather than watched: Kubernetes updates a mounted file by swapping a symbolic
//! link two directories up, which a watch on the file doesn't see, and network file systems have no
//! watches. [`Watched`] decides without IO when files are to be read, and `follow` asks it at
//! every [`INTERVAL`].

use std::{
    io,
    os::unix::fs::MetadataExt as _,
    path::{Path, PathBuf},
    time::Duration,
};

use tokio::time::MissedTickBehavior;

/// The time between two looks at a file.
pub const INTERVAL: Duration = Duration::from_millis(500);

/// The metadata that distinguishes one version of a file from another. Links are followed, so a
/// swapped link is a new version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl Version {
    /// Reads the version of the file that is at `path` now.
    ///
    /// # Errors
    ///
    /// Returns the kind of the error if there is no such file, or its metadata can't be read.
    pub fn read(path: &Path) -> Result<Self, io::ErrorKind> {
        let metadata = std::fs::metadata(path).map_err(|error| error.kind())?;
        Ok(Self {
            device: metadata.dev(),
            inode: metadata.ino(),
            size: metadata.size(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        })
    }
}

/// One version of each file.
pub type Versions = Vec<Result<Version, io::ErrorKind>>;

/// Reads the versions of these files.
pub fn versions(files: &[PathBuf]) -> Versions {
    files.iter().map(|path| Version::read(path)).collect()
}

/// Which versions of the files were read, and with which outcome. Decides without IO when to read
/// them: call [`is_due`](Self::is_due) with every look at the files, and [`record`](Self::record)
/// after every reading.
#[derive(Debug)]
pub struct Watched {
    last: Versions,
    /// The versions that were read, and the outcome; nothing before the first reading.
    read: Option<(Versions, Outcome)>,
}

/// What became of reading the files.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// What the files say is in force.
    Applied,
    /// What the files say can't be used. Reading them once more would not change that.
    Invalid,
    /// A file could not be read. That may pass without another version of it, as after too many
    /// open files.
    Unread,
}

impl Watched {
    /// Starts with files that may have changed since they were read, so that they are read again
    /// once they rest.
    pub fn new(last: Versions) -> Self {
        Self { last, read: None }
    }

    /// Starts with files of which these versions, or later ones, are in force.
    pub fn applied(versions: Versions) -> Self {
        Self { last: versions.clone(), read: Some((versions, Outcome::Applied)) }
    }

    /// Returns whether the files are to be read now: `forced`, or because two looks in a row have
    /// seen versions that were not read.
    #[must_use]
    pub fn is_due(&mut self, seen: &Versions, forced: bool) -> bool {
        // A file that is written in place is briefly incomplete.
        let is_settled = *seen == self.last;
        self.last.clone_from(seen);

        let is_done = match &self.read {
            // The files may have changed since they were read at the start.
            None | Some((_, Outcome::Unread)) => false,
            Some((read, Outcome::Applied | Outcome::Invalid)) => read == seen,
        };
        forced || (is_settled && !is_done)
    }

    /// Returns whether these versions differ from those of the last look.
    pub fn has_changed(&self, seen: &Versions) -> bool {
        *seen != self.last
    }

    /// Takes in what became of reading these versions. Returns whether to report it: the first
    /// reading applies what the start has applied, and files that still can't be read were reported
    /// before.
    #[must_use]
    pub fn record(&mut self, seen: Versions, outcome: Outcome, forced: bool) -> bool {
        let is_new = match (&self.read, outcome) {
            (None, Outcome::Applied) => false,
            (Some((read, Outcome::Unread)), Outcome::Unread) => forced || *read != seen,
            _ => true,
        };
        self.read = Some((seen, outcome));
        is_new
    }
}

/// Calls `read` whenever one of `files` has changed, and `report` with each result that is news.
/// Never returns; `watched` says what was read before.
pub(crate) async fn follow<T, E>(
    files: &[PathBuf],
    mut watched: Watched,
    outcome: impl Fn(&Result<T, E>) -> Outcome,
    mut read: impl FnMut() -> Result<T, E>,
    report: impl Fn(&Result<T, E>),
) {
    let mut ticks = tokio::time::interval(INTERVAL);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);

    loop {
        ticks.tick().await;
        let seen = versions(files);
        if watched.is_due(&seen, false) {
            let result = read();
            if watched.record(seen, outcome(&result), false) {
                report(&result);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_way_to_change_a_file_makes_a_new_version() {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name);
        // Kubernetes mounts a ConfigMap like this: the file is a link through a link that is
        // swapped.
        for (version, text) in [("v1", "a"), ("v2", "b")] {
            std::fs::create_dir(at(version)).unwrap();
            std::fs::write(at(version).join("policy.toml"), text).unwrap();
        }
        let link = |target: &str, name: &str| std::os::unix::fs::symlink(target, at(name)).unwrap();
        link("v1", "..data");
        link("..data/policy.toml", "policy.toml");
        let file = at("policy.toml");
        let first = Version::read(&file).unwrap();
        assert_eq!(Version::read(&file), Ok(first));
        link("v2", "..data_tmp");
        std::fs::rename(at("..data_tmp"), at("..data")).unwrap();
        let second = Version::read(&file).unwrap();
        assert_ne!(second, first);
        std::fs::write(&file, "longer").unwrap();
        assert_ne!(Version::read(&file), Ok(second));
        std::fs::remove_file(&file).unwrap();
        assert_eq!(Version::read(&file), Err(io::ErrorKind::NotFound));
    }

    #[test]
    fn files_that_could_not_be_read_are_tried_again_and_reported_once() {
        use Outcome::{Applied, Invalid, Unread};

        let file = tempfile::NamedTempFile::new().unwrap();
        let present = vec![Version::read(file.path())];
        let missing = vec![Err(io::ErrorKind::NotFound)];
        let mut watched = Watched::new(present.clone());
        // A look at the files that are there; if it leads to a reading, its outcome and whether that
        // is reported.
        let mut look = |seen: &Versions, forced, read: Option<(Outcome, bool)>| {
            assert_eq!(watched.is_due(seen, forced), read.is_some(), "{seen:?} {read:?}");
            if let Some((outcome, is_reported)) = read {
                assert_eq!(watched.record(seen.clone(), outcome, forced), is_reported, "{read:?}");
            }
        };

        look(&present, false, Some((Applied, false)));
        look(&present, false, None);
        look(&present, true, Some((Applied, true)));

        look(&missing, false, None);
        look(&missing, false, Some((Unread, true)));
        look(&missing, false, Some((Unread, false)));
        look(&missing, true, Some((Unread, true)));

        // The metadata can be read, and the file can't.
        look(&present, false, None);
        look(&present, false, Some((Unread, true)));
        look(&present, false, Some((Unread, false)));
        look(&present, false, Some((Applied, true)));
        look(&present, false, None);

        look(&present, true, Some((Unread, true)));
        look(&present, false, Some((Invalid, true)));
        look(&present, false, None);
    }

    #[test]
    fn files_that_are_in_force_are_read_when_they_change() {
        let (first, second) =
            (vec![Err(io::ErrorKind::NotFound)], vec![Err(io::ErrorKind::IsADirectory)]);
        let mut watched = Watched::applied(first.clone());
        assert!(!watched.is_due(&first, false));
        assert!(!watched.is_due(&second, false), "they may still be changing");
        assert!(watched.is_due(&second, false));
        assert!(watched.record(second.clone(), Outcome::Applied, false));
        assert!(!watched.is_due(&second, false));
    }
}
