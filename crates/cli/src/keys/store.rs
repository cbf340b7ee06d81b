//! The files of keys: read, and written so that a server never sees half of one.

use std::{
    fs::{File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, fchown},
    path::{Path, PathBuf},
};

use fleet_access::{KeysFile, Pepper};

use super::Files;
use crate::error::CliError;

/// The mode of private files: only the owner reads and writes.
pub(super) const PRIVATE: u32 = 0o600;

/// A keys file that is being changed. Two commands can't change the same one at once.
#[derive(Debug)]
pub(super) struct Store {
    pub(super) file: KeysFile,
    pub(super) path: PathBuf,
    pepper: PathBuf,
    /// Locked until this is dropped.
    _directory: File,
}

impl Store {
    /// Reads the keys file to change it; a file that is missing is empty.
    pub(super) fn open(files: &Files) -> Result<Self, CliError> {
        // A link stays a link to the changed file.
        let path = files.keys.canonicalize().unwrap_or_else(|_| files.keys.clone());
        let directory = directory_of(&path);
        let lock = File::open(directory).and_then(|file| file.lock().map(|()| file));
        let lock =
            lock.map_err(|error| failed("could not lock the directory", directory, error))?;

        let file = match read_keys(&path) {
            Err(CliError::File { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                KeysFile::default()
            }
            file => file?,
        };
        let pepper = files.pepper.clone().unwrap_or_else(|| pepper_beside(&files.keys));
        Ok(Self { file, path, pepper, _directory: lock })
    }

    /// The pepper of the keys. The first key makes it.
    pub(super) fn pepper_for_new_key(&self) -> Result<Pepper, CliError> {
        if let Some(pepper) = &self.file.pepper {
            return Ok(pepper.clone());
        }

        match std::fs::read_to_string(&self.pepper) {
            Ok(text) => Pepper::parse(&text).ok_or_else(|| {
                CliError::Usage(format!(
                    "{} is not a pepper, which is 64 hexadecimal digits [{}]",
                    self.pepper.display(),
                    fleet_codes::KEYS_FILE
                ))
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound && self.file.keys.is_empty() => {
                self.make_pepper()
            }
            // With another pepper, the server would refuse the keys that are there.
            Err(error) => Err(failed("could not read the pepper of the keys", &self.pepper, error)),
        }
    }

    fn make_pepper(&self) -> Result<Pepper, CliError> {
        let pepper = Pepper::new(rand::random());
        let text = format!("{}\n", pepper.reveal());
        write_atomically(&self.pepper, text.as_bytes(), PRIVATE)
            .map_err(|error| failed("could not write the pepper", &self.pepper, error))?;
        Ok(pepper)
    }

    /// Writes the keys file. A file that exists keeps its owner and its permissions.
    pub(super) fn save(&self) -> Result<(), CliError> {
        let text = self.file.to_toml();
        // No server would read a file with two keys of one id.
        KeysFile::parse(&text)?;
        write_atomically(&self.path, text.as_bytes(), PRIVATE)
            .map_err(|error| failed("could not write the keys file", &self.path, error))
    }
}

/// Reads the keys file without changing it.
pub(super) fn read(files: &Files) -> Result<KeysFile, CliError> {
    read_keys(&files.keys)
}

fn read_keys(path: &Path) -> Result<KeysFile, CliError> {
    let text = std::fs::read_to_string(path)
        .map_err(|error| failed("could not read the keys file", path, error))?;
    Ok(KeysFile::parse(&text)?)
}

/// Where a server looks for the pepper of a keys file.
fn pepper_beside(keys: &Path) -> PathBuf {
    let mut name = keys.as_os_str().to_owned();
    name.push(".pepper");
    name.into()
}

pub(super) fn directory_of(path: &Path) -> &Path {
    path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// Writes a file beside its place and moves it there once it is on the disk. `mode` is that of a
/// new file. The caller holds the lock.
///
/// Root changes files that a server reads as another user. The replacement therefore keeps the owner
/// and the mode of the file, and a new file belongs to the owner of its directory.
pub(super) fn write_atomically(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let replaced = match std::fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => None,
        found => Some(found?),
    };
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(format!(".{}.tmp", std::process::id()));
    let temporary = PathBuf::from(temporary);

    let write = || {
        // One that was killed may have left it, and in a container it has always the same id.
        match std::fs::remove_file(&temporary) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let mut file =
            OpenOptions::new().write(true).create_new(true).mode(PRIVATE).open(&temporary)?;
        match &replaced {
            Some(replaced) => keep_owner(&file, replaced)?,
            None => take_owner_of_directory(&file, path)?,
        }
        let mode = replaced.as_ref().map_or(mode, |found| found.permissions().mode() & 0o777);
        file.set_permissions(std::fs::Permissions::from_mode(mode))?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)?;
        File::open(directory_of(path))?.sync_all()
    };
    write().inspect_err(|_| _ = std::fs::remove_file(&temporary))
}

/// Gives a file to the owner and the group of the file that it replaces. Fails if that is not
/// allowed, because the server might not be able to read the replacement.
fn keep_owner(file: &File, replaced: &std::fs::Metadata) -> io::Result<()> {
    let (user, group) = (replaced.uid(), replaced.gid());
    let own = file.metadata()?;
    if (own.uid(), own.gid()) == (user, group) {
        return Ok(());
    }

    fchown(file, Some(user), Some(group)).map_err(|error| {
        let text = format!(
            "the file belongs to user {user} and group {group}, and its replacement could not be \
             given to them; run the command as root or as that user: {error}"
        );
        io::Error::new(error.kind(), text)
    })
}

/// Gives a new file to the owner of its directory. A caller who may not do so keeps the file.
fn take_owner_of_directory(file: &File, path: &Path) -> io::Result<()> {
    let (own, directory) = (file.metadata()?, std::fs::metadata(directory_of(path))?);
    if own.uid() == directory.uid() {
        return Ok(());
    }

    match fchown(file, Some(directory.uid()), Some(directory.gid())) {
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => Ok(()),
        given => given,
    }
}

pub(super) fn failed(what: &'static str, path: &Path, source: io::Error) -> CliError {
    CliError::File { what, path: path.to_owned(), source }
}
