//! A file or directory that a configuration names: opened once, and checked by its descriptor.
//!
//! A name may refer to another file each time it is used. So it is used once, to open the file
//! without reading it. The file's location, type and content are then read through the descriptor.

use std::{
    fs::{File, OpenOptions},
    io::{self, Read},
    os::{fd::AsRawFd, unix::fs::OpenOptionsExt},
    path::{Path, PathBuf},
};

use fleet_ops::blocking::run_blocking;
use nix::fcntl::OFlag;

/// A named file or directory, and its location.
#[derive(Debug)]
pub(crate) struct NamedFile {
    /// The location. If the file can't be opened, the path as written: whether a file exists must
    /// not be revealed before policy has allowed its location.
    pub(crate) path: PathBuf,
    /// The file, opened without the right to read it.
    opened: io::Result<File>,
}

impl NamedFile {
    /// Opens what a path refers to. This has no effect on devices and named pipes.
    pub(crate) async fn open(path: PathBuf) -> Self {
        let open = move || match open_unread(&path).and_then(|file| Ok((locate(&file)?, file))) {
            Ok((path, file)) => Self { path, opened: Ok(file) },
            Err(error) => Self { path: path_as_written(&path), opened: Err(error) },
        };
        tokio::task::spawn_blocking(open).await.unwrap_or_else(|error| Self {
            path: PathBuf::from("/"),
            opened: Err(io::Error::other(error)),
        })
    }

    /// Returns why the file could not be opened.
    pub(crate) fn error(&self) -> Option<io::Error> {
        let error = self.opened.as_ref().err()?;
        Some(error.raw_os_error().map_or_else(|| error.kind().into(), io::Error::from_raw_os_error))
    }

    /// Reads the file if it is a regular file of at most `max` bytes.
    pub(crate) async fn read(self, max: u64) -> io::Result<String> {
        let file = self.opened?;
        run_blocking(move || read_regular(&file, max)).await
    }
}

fn open_unread(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).custom_flags(OFlag::O_PATH.bits()).open(path)
}

fn locate(file: &File) -> io::Result<PathBuf> {
    std::fs::read_link(descriptor_path(file))
}

fn descriptor_path(file: &File) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

fn read_regular(file: &File, max: u64) -> io::Result<String> {
    let unfit = || {
        let problem = format!("not a regular file of at most {max} bytes");
        io::Error::new(io::ErrorKind::InvalidInput, problem)
    };
    if !file.metadata()?.is_file() {
        return Err(unfit());
    }

    // Through the descriptor, so that it is the same file, whatever its name refers to now.
    let mut text = String::new();
    File::open(descriptor_path(file))?.take(max + 1).read_to_string(&mut text)?;
    if text.len() as u64 > max { Err(unfit()) } else { Ok(text) }
}

fn path_as_written(path: &Path) -> PathBuf {
    // `..` could lead back out of an allowed directory.
    if path.components().any(|part| part == std::path::Component::ParentDir) {
        return PathBuf::from("/");
    }
    std::path::absolute(path).unwrap_or_else(|_| path.to_owned())
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[tokio::test]
    async fn the_file_that_was_opened_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        std::fs::create_dir_all(base.join("in")).unwrap();
        std::fs::write(base.join("in/file"), "inside").unwrap();
        std::fs::write(base.join("out"), "outside").unwrap();
        let link = base.join("link");
        std::os::unix::fs::symlink("in/file", &link).unwrap();

        let named = NamedFile::open(link.clone()).await;
        assert_eq!(named.path, base.join("in/file"));
        // Swapping the link or the file afterwards has no effect.
        std::fs::remove_file(&link).unwrap();
        std::os::unix::fs::symlink("out", &link).unwrap();
        std::fs::rename(base.join("out"), base.join("in/file")).unwrap();
        assert_eq!(named.read(100).await.unwrap(), "inside");
    }

    #[tokio::test]
    async fn a_pipe_is_refused_and_not_waited_for() {
        let dir = tempfile::tempdir().unwrap();
        let pipe = dir.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        let read = async { NamedFile::open(pipe).await.read(100).await };
        let read = tokio::time::timeout(Duration::from_secs(30), read)
            .await
            .expect("it waits for a writer");
        assert!(read.unwrap_err().to_string().contains("not a regular file"));
    }

    #[tokio::test]
    async fn a_missing_file_has_the_path_as_written() {
        let missing = NamedFile::open("/nowhere/x".into()).await;
        assert_eq!(missing.path, Path::new("/nowhere/x"));
        assert_eq!(missing.error().unwrap().kind(), io::ErrorKind::NotFound);
        assert_eq!(NamedFile::open("/nowhere/../x".into()).await.path, Path::new("/"));
    }
}
