//! Secrets in the files of a directory, as Kubernetes mounts Secrets and CSI drivers write them.
//!
//! There, a secret is a symbolic link to a file in another directory below, which is replaced as a
//! whole. So a link is followed, but not out of the directory: whoever may write one of the files
//! must not choose any other file of this machine. The file is opened once, and checked and read by
//! its descriptor.

use std::{io, path::PathBuf};

use fleet_ops::{
    blocking::run_blocking,
    config::{MAX_SECRET, without_last_line_break},
};
use futures::future::BoxFuture;

use super::{SecretSource, SecretValue, SourceError};
use crate::launch::named_file::NamedFile;

/// A directory with a file for each secret.
#[derive(Debug, Clone)]
pub struct SecretFiles {
    directory: PathBuf,
}

impl SecretFiles {
    /// Reads the secrets of this directory, which need not exist yet.
    pub fn new(directory: PathBuf) -> Self {
        Self { directory }
    }

    async fn read_file(&self, name: &str) -> Result<Option<SecretValue>, SourceError> {
        let directory = self.directory.clone();
        let directory = run_blocking(move || directory.canonicalize()).await;
        let directory = match directory {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            found => found?,
        };

        let file = NamedFile::open(directory.join(name)).await;
        match file.error() {
            Some(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Some(error) => return Err(error.into()),
            None => {}
        }
        if !file.path.starts_with(&directory) {
            return Err(SourceError::Outside);
        }

        let text = file.read(MAX_SECRET).await?;
        SecretValue::new(without_last_line_break(&text)).map(Some)
    }
}

impl SecretSource for SecretFiles {
    fn place(&self, name: &str) -> String {
        format!("the file `{}`", self.directory.join(name).display())
    }

    fn read<'a>(
        &'a self,
        name: &'a str,
    ) -> BoxFuture<'a, Result<Option<SecretValue>, SourceError>> {
        Box::pin(self.read_file(name))
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, os::unix::fs::symlink, path::Path};

    use super::*;

    /// Replaces the files as the kubelet does: a new directory, and a link that is renamed over the
    /// one before.
    fn mount(directory: &Path, version: &str, files: &[(&str, &str)]) {
        let versioned = directory.join(format!("..{version}"));
        fs::create_dir(&versioned).unwrap();
        for (name, text) in files {
            fs::write(versioned.join(name), text).unwrap();
        }
        symlink(format!("..{version}"), directory.join("..data_tmp")).unwrap();
        fs::rename(directory.join("..data_tmp"), directory.join("..data")).unwrap();
        for (name, _) in files {
            // The link is there since the first version.
            _ = symlink(format!("..data/{name}"), directory.join(name));
        }
    }

    async fn check(secrets: &SecretFiles, name: &str, expected: Result<Option<&str>, &str>) {
        let found = secrets.read_file(name).await;
        match (found, expected) {
            (Ok(found), Ok(expected)) => {
                assert_eq!(found.as_ref().map(SecretValue::expose), expected, "{name}");
            }
            (Err(error), Err(word)) => {
                let error = fleet_ops::errors::chain(&error);
                assert!(error.contains(word), "{name}: {error}");
            }
            (found, expected) => panic!("{name}: {:?}, {expected:?}", found.err()),
        }
    }

    #[tokio::test]
    async fn a_mounted_secret_is_read_as_it_is_now() {
        let directory = tempfile::tempdir().unwrap();
        // The directory itself may be a link.
        let link = directory.path().join("link");
        fs::create_dir(directory.path().join("mounted")).unwrap();
        symlink("mounted", &link).unwrap();
        let secrets = SecretFiles::new(link.clone());

        check(&secrets, "token", Ok(None)).await;
        mount(&link, "1", &[("token", "first\n"), ("other", "two words")]);
        check(&secrets, "token", Ok(Some("first"))).await;
        check(&secrets, "other", Ok(Some("two words"))).await;
        mount(&link, "2", &[("token", "second")]);
        fs::remove_dir_all(link.join("..1")).unwrap();
        check(&secrets, "token", Ok(Some("second"))).await;
        check(&secrets, "other", Ok(None)).await;

        let missing = SecretFiles::new(directory.path().join("later"));
        check(&missing, "token", Ok(None)).await;
    }

    #[tokio::test]
    async fn only_small_files_below_the_directory_are_read() {
        let directory = tempfile::tempdir().unwrap();
        let below = directory.path().join("secrets");
        fs::create_dir(&below).unwrap();
        fs::write(directory.path().join("outside"), "hunter2").unwrap();
        symlink("../outside", below.join("link")).unwrap();
        symlink("/etc/hostname", below.join("absolute")).unwrap();
        fs::create_dir(below.join("directory")).unwrap();
        fs::write(below.join("empty"), "\n").unwrap();
        fs::write(below.join("zero"), "a\0b").unwrap();
        fs::write(below.join("binary"), b"\xff\xfe").unwrap();
        let largest = "x".repeat(MAX_SECRET as usize);
        fs::write(below.join("largest"), &largest).unwrap();
        fs::write(below.join("large"), format!("{largest}x")).unwrap();

        let secrets = SecretFiles::new(below);
        check(&secrets, "link", Err("outside")).await;
        check(&secrets, "absolute", Err("outside")).await;
        check(&secrets, "directory", Err("not a regular file")).await;
        check(&secrets, "empty", Err("empty")).await;
        check(&secrets, "zero", Err("zero byte")).await;
        check(&secrets, "binary", Err("could not be read")).await;
        check(&secrets, "largest", Ok(Some(largest.as_str()))).await;
        check(&secrets, "large", Err("not a regular file of at most")).await;
    }
}
