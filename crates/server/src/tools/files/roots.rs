//! Confinement: which path a caller means, and whether it lies below a root.
//!
//! A path is followed step by step, `..` and symlinks included, and never to anything outside of
//! the roots; what was opened is compared with what was found. Whether something exists outside of
//! the roots is not told.

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
    /// The roots as they were written, so that absolute paths may be written so too.
    written: Vec<PathBuf>,
    max_read: u64,
}

/// A root that can't be one.
#[derive(Debug, thiserror::Error)]
#[error("files root {}", path.display())]
pub struct RootError {
    /// The root.
    pub path: PathBuf,
    /// Why it can't be one.
    #[source]
    pub error: io::Error,
}

/// A path that lies below a root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Confined {
    /// The resolved path.
    pub path: PathBuf,
    /// The root it lies below.
    pub root: PathBuf,
}

impl Confined {
    /// The path as it is shown: relative to its root, `.` for the root itself.
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
    /// Files below these roots, of which at most `max_read` bytes are read at once.
    ///
    /// # Errors
    ///
    /// Where a root is no directory or can't be resolved.
    pub fn new(roots: &[PathBuf], max_read: u64) -> Result<Self, RootError> {
        let resolve = |path: &PathBuf| {
            let error = |error| RootError { path: path.clone(), error };
            let root = path.canonicalize().map_err(error)?;
            if root.is_dir() { Ok(root) } else { Err(error(io::ErrorKind::NotADirectory.into())) }
        };
        let written = roots.iter().filter_map(|root| std::path::absolute(root).ok()).collect();
        Ok(Self { roots: roots.iter().map(resolve).collect::<Result<_, _>>()?, written, max_read })
    }

    /// How many bytes are read at once at most.
    pub fn max_read(&self) -> u64 {
        self.max_read
    }

    /// The roots, resolved.
    pub fn roots(&self) -> &[PathBuf] {
        &self.roots
    }

    /// Resolves a path that a caller wrote. A relative one is looked for in each root in turn.
    ///
    /// # Errors
    ///
    /// Where it lies outside of the roots or does not exist.
    pub fn resolve(&self, wanted: &str) -> Result<Confined, ToolFailure> {
        if wanted.contains('\0') {
            return Err(ToolFailure::permanent("a path can't contain a zero byte"));
        }
        let mut problem = None;
        for base in &self.roots {
            // An absolute path replaces the base.
            let candidate = self.as_resolved(base.join(wanted));
            let plain = normalize_lexically(&candidate);
            if !self.roots.iter().any(|root| plain.starts_with(root)) {
                continue;
            }
            match follow_path(&candidate, &self.roots) {
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
            None => ToolFailure::permanent(format!("`{wanted}` is outside of the allowed roots")),
        })
    }

    /// Opens a regular file, and makes sure that what was opened is what was resolved.
    ///
    /// # Errors
    ///
    /// Where it lies outside of the roots, does not exist, is no regular file, or was swapped in
    /// between.
    pub fn open(&self, wanted: &str) -> Result<(Confined, File, Metadata), ToolFailure> {
        let confined = self.resolve(wanted)?;
        let failure = |error: io::Error| io_failure(wanted, &error);
        let changed = || ToolFailure::transient(format!("`{wanted}` changed while it was opened"));
        // Opening a device can do things, so look first.
        let seen = confined.path.symlink_metadata().map_err(failure)?;
        ensure_regular(wanted, seen.file_type())?;
        let file = match open_as_is(&confined.path) {
            // It was no symlink a moment ago.
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

    /// An absolute path that begins with a root as it was written, with the root as it is resolved.
    fn as_resolved(&self, path: PathBuf) -> PathBuf {
        let mut both = self.written.iter().zip(&self.roots);
        both.find_map(|(written, root)| path.strip_prefix(written).ok().map(|rest| root.join(rest)))
            .unwrap_or(path)
    }
}

/// Opens what is there now, for reading. A named pipe that took a file's place does not make this
/// wait for a writer, and a symlink is not followed.
fn open_as_is(path: &Path) -> io::Result<File> {
    let flags = OFlag::O_NONBLOCK | OFlag::O_NOFOLLOW;
    OpenOptions::new().read(true).custom_flags(flags.bits()).open(path)
}

/// Whether an open file is the one at a path, as far as the system can say. Unlike a second look at
/// the path this can't be deceived by a directory that is swapped twice.
fn is_at(file: &File, path: &Path) -> bool {
    match std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd())) {
        Ok(place) => place == path,
        // Not every system has this place to look.
        Err(_) => true,
    }
}

fn ensure_regular(wanted: &str, kind: FileType) -> Result<(), ToolFailure> {
    let what = match kind {
        kind if kind.is_file() => return Ok(()),
        kind if kind.is_dir() => "a directory",
        kind if kind.is_fifo() => "a named pipe, no regular file",
        kind if kind.is_socket() => "a socket, no regular file",
        kind if kind.is_char_device() || kind.is_block_device() => "a device, no regular file",
        _ => "no regular file",
    };
    Err(ToolFailure::permanent(format!("`{wanted}` is {what}")))
}

/// The failure for an error of the file system. What is not there or not readable now is the
/// caller's fault; other errors may pass.
pub fn io_failure(wanted: &str, error: &io::Error) -> ToolFailure {
    let errno = error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw);
    match errno {
        Errno::ENOENT => ToolFailure::permanent(format!("`{wanted}` does not exist")),
        Errno::ENXIO | Errno::ENODEV => {
            ToolFailure::permanent(format!("`{wanted}` is no regular file"))
        }
        Errno::EACCES | Errno::EPERM | Errno::ENOTDIR | Errno::ELOOP | Errno::ENAMETOOLONG => {
            ToolFailure::permanent(format!("`{wanted}`: {error}"))
        }
        _ => ToolFailure::transient(format!("`{wanted}`: {error}")),
    }
}

/// The path with `.` and `..` removed by text alone, so that existence outside of the roots need
/// not be asked for.
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
    fn what_took_a_files_place_is_not_waited_for_and_not_followed() {
        let dir = tempfile::tempdir().unwrap();
        let (pipe, link) = (dir.path().join("pipe"), dir.path().join("link"));
        nix::unistd::mkfifo(&pipe, Mode::S_IRWXU).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", &link).unwrap();
        assert_eq!(open_as_is(&link).unwrap_err().raw_os_error(), Some(Errno::ELOOP as i32));
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || sender.send(open_as_is(&pipe).and_then(|file| file.metadata())));
        let opened =
            receiver.recv_timeout(Duration::from_secs(30)).expect("it must not wait for a writer");
        let failure = ensure_regular("x", opened.unwrap().file_type()).unwrap_err();
        assert_eq!(failure, ToolFailure::permanent("`x` is a named pipe, no regular file"));
    }

    #[test]
    fn an_open_file_is_where_it_was_opened() {
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
    fn a_root_may_be_named_as_it_was_written() {
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
