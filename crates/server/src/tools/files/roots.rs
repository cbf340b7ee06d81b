//! Confinement: resolves a caller's path, and makes sure that it lies below a root.
//!
//! A path is followed step by step, including `..` and symlinks, and never to anything outside the
//! roots. The opened file is compared with the resolved one. Errors don't reveal whether something
//! exists outside the roots.

use std::{
    fs::{File, FileType, Metadata, OpenOptions},
    io,
    os::{
        fd::AsRawFd,
        unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt},
    },
    path::{Component, Path, PathBuf},
};

use nix::{errno::Errno, fcntl::OFlag};

use super::walk::{Stop, follow_path};

use crate::toolkit::ToolFailure;

/// The roots and limits of the toolkit.
#[derive(Debug)]
pub struct Files {
    roots: Vec<PathBuf>,
    /// The roots as configured, so that absolute paths may begin with them.
    written: Vec<PathBuf>,
    /// Directories whose content is not there for callers, resolved.
    excluded: Vec<PathBuf>,
    max_read: u64,
}

/// A root that is not a usable directory.
#[derive(Debug, thiserror::Error)]
#[error("--root or --exclude: {} is not a usable directory", path.display())]
pub struct RootError {
    /// The configured root.
    pub path: PathBuf,
    /// Why it can't be used.
    #[source]
    pub error: io::Error,
}

/// A path that lies below a root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Confined {
    /// The resolved path.
    pub path: PathBuf,
    /// The root above it.
    pub root: PathBuf,
}

impl Confined {
    /// The path relative to its root; `.` for the root itself.
    pub fn relative_path(&self) -> String {
        relative_text(&self.path, &self.root)
    }
}

/// `path` relative to `root` as text; `.` for the root itself.
pub fn relative_text(path: &Path, root: &Path) -> String {
    match path.strip_prefix(root) {
        Ok(relative) if relative.as_os_str().is_empty() => ".".to_owned(),
        Ok(relative) => relative.to_string_lossy().into_owned(),
        Err(_) => path.to_string_lossy().into_owned(),
    }
}

impl Files {
    /// Creates the access to files below these roots, with at most `max_read` bytes per read.
    ///
    /// # Errors
    ///
    /// Returns an error if a root is not a directory or can't be resolved.
    pub fn new(roots: &[PathBuf], max_read: u64) -> Result<Self, RootError> {
        let resolve = |path: &PathBuf| {
            let error = |error| RootError { path: path.clone(), error };
            let root = path.canonicalize().map_err(error)?;
            if root.is_dir() { Ok(root) } else { Err(error(io::ErrorKind::NotADirectory.into())) }
        };
        let written = roots.iter().filter_map(|root| std::path::absolute(root).ok()).collect();
        let roots = roots.iter().map(resolve).collect::<Result<_, _>>()?;
        Ok(Self { roots, written, excluded: Vec::new(), max_read })
    }

    /// The same without the content of these directories.
    ///
    /// # Errors
    ///
    /// Returns an error if a directory can't be resolved.
    pub fn without(self, excluded: &[PathBuf]) -> Result<Self, RootError> {
        let resolve = |path: &PathBuf| {
            let error = |error| RootError { path: path.clone(), error };
            path.canonicalize().map_err(error)
        };
        Ok(Self { excluded: excluded.iter().map(resolve).collect::<Result<_, _>>()?, ..self })
    }

    /// Whether a resolved path is that of an excluded directory, or below one.
    pub(super) fn excludes(&self, path: &Path) -> bool {
        self.excluded.iter().any(|directory| path.starts_with(directory))
    }

    /// The most bytes that one read returns.
    pub fn max_read(&self) -> u64 {
        self.max_read
    }

    /// The roots, resolved.
    pub fn roots(&self) -> &[PathBuf] {
        &self.roots
    }

    /// Resolves a caller's path. A relative path is tried in each root in turn.
    ///
    /// # Errors
    ///
    /// Returns an error if the path lies outside the roots or doesn't exist.
    pub fn resolve(&self, wanted: &str) -> Result<Confined, ToolFailure> {
        if wanted.contains('\0') {
            return Err(ToolFailure::permanent("a path must not contain a zero byte"));
        }

        let mut problem = None;
        for base in &self.roots {
            // An absolute path replaces the base.
            let candidate = self.as_resolved(base.join(wanted));
            let plain = normalize_lexically(&candidate);
            if !self.roots.iter().any(|root| plain.starts_with(root)) {
                continue;
            }
            match follow_path(&candidate, &self.roots, &self.excluded) {
                Ok(path) => match self.roots.iter().find(|root| path.starts_with(root)) {
                    Some(root) => return Ok(Confined { path, root: root.clone() }),
                    None => continue,
                },
                Err(Stop::Outside) => continue,
                Err(Stop::Failed(error)) => _ = problem.get_or_insert(error),
            }
        }

        Err(match problem {
            Some(error) => io_failure(wanted, &error),
            None => ToolFailure::permanent(format!("`{wanted}` is outside the allowed roots")),
        })
    }

    /// Opens a regular file, and makes sure that the opened file is the resolved one.
    ///
    /// # Errors
    ///
    /// Returns an error if the file lies outside the roots, doesn't exist, is not a regular file,
    /// or was replaced in between.
    pub fn open(&self, wanted: &str) -> Result<(Confined, File, Metadata), ToolFailure> {
        let confined = self.resolve(wanted)?;
        let failure = |error: io::Error| io_failure(wanted, &error);
        let changed =
            || ToolFailure::transient(format!("`{wanted}` changed while it was being opened"));

        // Opening a device can have side effects, so check the type first.
        let seen = confined.path.symlink_metadata().map_err(failure)?;
        ensure_regular(wanted, seen.file_type())?;

        let file = match open_as_is(&confined.path) {
            // It was not a symlink when it was checked.
            Err(error) if error.raw_os_error() == Some(Errno::ELOOP as i32) => {
                return Err(changed());
            }
            opened => opened.map_err(failure)?,
        };

        let opened = file.metadata().map_err(failure)?;
        ensure_regular(wanted, opened.file_type())?;
        let same = (opened.dev(), opened.ino()) == (seen.dev(), seen.ino());
        if !same || !is_at(&file, &confined.path) || self.resolve(wanted)? != confined {
            return Err(changed());
        }
        Ok((confined, file, opened))
    }

    /// Replaces a configured root at the beginning of an absolute path by the resolved root.
    fn as_resolved(&self, path: PathBuf) -> PathBuf {
        let mut both = self.written.iter().zip(&self.roots);
        both.find_map(|(written, root)| path.strip_prefix(written).ok().map(|rest| root.join(rest)))
            .unwrap_or(path)
    }
}

/// Opens the file that is at the path now, for reading. If a named pipe has taken a file's place,
/// opening doesn't wait for a writer; a symlink is not followed.
fn open_as_is(path: &Path) -> io::Result<File> {
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW;
    OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)
}

/// Whether an open file is the one at a path, as far as the system can tell. Unlike a second lookup
/// of the path, this can't be deceived by a directory that is swapped twice.
fn is_at(file: &File, path: &Path) -> bool {
    match std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())) {
        Ok(place) => place == path,
        // Not every system has /proc/self/fd.
        Err(_) => true,
    }
}

fn ensure_regular(wanted: &str, kind: FileType) -> Result<(), ToolFailure> {
    let what = match kind {
        kind if kind.is_file() => return Ok(()),
        kind if kind.is_dir() => "a directory",
        kind if kind.is_fifo() => "a named pipe, not a regular file",
        kind if kind.is_socket() => "a socket, not a regular file",
        kind if kind.is_char_device() || kind.is_block_device() => "a device, not a regular file",
        _ => "not a regular file",
    };
    Err(ToolFailure::permanent(format!("`{wanted}` is {what}")))
}

/// The failure for an error of the file system. Missing and unreadable files are the caller's
/// fault; other errors may be temporary.
pub fn io_failure(wanted: &str, error: &io::Error) -> ToolFailure {
    let errno = error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw);
    match errno {
        Errno::ENOENT => ToolFailure::permanent(format!("`{wanted}` does not exist")),
        Errno::ENXIO | Errno::ENODEV => {
            ToolFailure::permanent(format!("`{wanted}` is not a regular file"))
        }
        Errno::EACCES | Errno::EPERM | Errno::ENOTDIR | Errno::ELOOP | Errno::ENAMETOOLONG => {
            ToolFailure::permanent(format!("`{wanted}`: {error}"))
        }
        _ => ToolFailure::transient(format!("`{wanted}`: {error}")),
    }
}

/// Removes `.` and `..` from the path without asking the file system, which would reveal whether
/// something exists outside the roots.
fn normalize_lexically(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for component in path.components() {
        match component {
            Component::CurDir => {}
            Component::ParentDir => _ = out.pop(),
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc, time::Duration};

    use nix::sys::stat::Mode;

    use super::*;

    #[test]
    fn a_pipe_or_link_in_a_files_place_is_not_waited_for_or_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (pipe, link) = (dir.path().join("pipe"), dir.path().join("link"));
        nix::unistd::mkfifo(&pipe, Mode::S_IRWXU).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", &link).unwrap();
        assert_eq!(open_as_is(&link).unwrap_err().raw_os_error(), Some(Errno::ELOOP as i32));
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || sender.send(open_as_is(&pipe).and_then(|file| file.metadata())));
        let opened =
            receiver.recv_timeout(Duration::from_secs(30)).expect("opening waits for a writer");
        let failure = ensure_regular("x", opened.unwrap().file_type()).unwrap_err();
        assert_eq!(failure, ToolFailure::permanent("`x` is a named pipe, not a regular file"));
    }

    #[test]
    fn an_open_file_is_no_longer_at_its_path_once_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        let path = base.join("a");
        std::fs::write(&path, "").unwrap();
        let file = open_as_is(&path).unwrap();
        assert!(is_at(&file, &path));
        std::fs::rename(&path, base.join("b")).unwrap();
        std::fs::write(&path, "").unwrap();
        assert!(!is_at(&file, &path) || !Path::new("/proc/self/fd").exists());
    }

    #[test]
    fn an_absolute_path_may_begin_with_the_configured_root() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        std::fs::create_dir(base.join("real")).unwrap();
        std::fs::write(base.join("real/file"), "").unwrap();
        std::os::unix::fs::symlink("real", base.join("link")).unwrap();
        let files = Files::new(&[base.join("link")], 1).unwrap();
        for path in ["file", "real/file", "link/file"] {
            let wanted = if path == "file" {
                path.to_owned()
            } else {
                base.join(path).display().to_string()
            };
            assert_eq!(files.resolve(&wanted).unwrap().path, base.join("real/file"), "{wanted}");
        }
    }
}
