//! Confinement: which path a caller means, and whether it lies below a root.
//!
//! A path is resolved completely (`..` and symlinks) before it is compared with the roots, and what was opened is
//! compared with what was resolved. Whether something exists outside of the roots is not told.

use std::{
    fs::{File, Metadata},
    io,
    os::unix::fs::MetadataExt,
    path::{Component, Path, PathBuf},
};

use nix::errno::Errno;

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
    pub fn shown(&self) -> String {
        shown(&self.path, &self.root)
    }
}

/// `path` relative to `root` as text; `.` for the root itself.
pub fn shown(path: &Path, root: &Path) -> String {
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
            let candidate = base.join(wanted);
            let plain = lexical(&candidate);
            if !self.roots.iter().chain(&self.written).any(|root| plain.starts_with(root)) {
                continue;
            }
            match candidate.canonicalize() {
                Ok(path) => match self.roots.iter().find(|root| path.starts_with(root)) {
                    Some(root) => return Ok(Confined { path, root: root.clone() }),
                    None => continue,
                },
                Err(error) => _ = problem.get_or_insert(error),
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
    /// Where it lies outside of the roots, does not exist, is no regular file, or was swapped in between.
    pub fn open(&self, wanted: &str) -> Result<(Confined, File, Metadata), ToolFailure> {
        let confined = self.resolve(wanted)?;
        let failure = |error: io::Error| io_failure(wanted, &error);
        // Opening a named pipe or a device can block or do things, so look first.
        let seen = confined.path.symlink_metadata().map_err(failure)?;
        if !seen.is_file() {
            let what = if seen.is_dir() { "a directory" } else { "no regular file" };
            return Err(ToolFailure::permanent(format!("`{wanted}` is {what}")));
        }
        let file = File::open(&confined.path).map_err(failure)?;
        let opened = file.metadata().map_err(failure)?;
        if (opened.dev(), opened.ino()) != (seen.dev(), seen.ino()) || self.resolve(wanted)? != confined {
            return Err(ToolFailure::transient(format!("`{wanted}` changed while it was opened")));
        }
        Ok((confined, file, opened))
    }
}

/// The failure for an error of the file system. What is not there or not readable now is the caller's fault; other
/// errors may pass.
pub fn io_failure(wanted: &str, error: &io::Error) -> ToolFailure {
    let errno = error.raw_os_error().map_or(Errno::UnknownErrno, Errno::from_raw);
    match errno {
        Errno::ENOENT => ToolFailure::permanent(format!("`{wanted}` does not exist")),
        Errno::EACCES | Errno::EPERM | Errno::ENOTDIR | Errno::ELOOP | Errno::ENAMETOOLONG => {
            ToolFailure::permanent(format!("`{wanted}`: {error}"))
        }
        _ => ToolFailure::transient(format!("`{wanted}`: {error}")),
    }
}

/// The path with `.` and `..` removed by text alone, so that existence outside of the roots need not be asked for.
fn lexical(path: &Path) -> PathBuf {
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
