//! Downloads that are kept in `target/fleet-cache`: jars, node modules, Python environments.
//!
//! If several test processes need the same entry at once, one installs it, and the others wait on a
//! file lock. An entry appears by a rename, so it is never incomplete.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use crate::bins;

/// The directory of the entry `name`, installed by `install` if it is missing.
pub fn once(name: &str, install: impl FnOnce(&Path)) -> PathBuf {
    let cache = bins::target().join("fleet-cache");
    fs::create_dir_all(&cache).expect("target/fleet-cache");
    let entry = cache.join(name);
    if entry.is_dir() {
        return entry;
    }

    let lock = File::create(cache.join(format!("{name}.lock"))).expect("a lock file");
    lock.lock().expect("the lock of the cache");
    if !entry.is_dir() {
        crate::loud(&format!("installing {name} into {} (once)", cache.display()));
        let partial = cache.join(format!("{name}.partial"));
        drop(fs::remove_dir_all(&partial));
        fs::create_dir_all(&partial).expect("a directory in the cache");
        install(&partial);
        fs::rename(&partial, &entry).expect("the finished entry");
    }

    entry
}

/// Runs a command of an installation, and shows its output if it fails.
pub fn run(command: &mut Command) {
    let output =
        command.output().unwrap_or_else(|error| panic!("{command:?} did not start: {error}"));
    assert!(
        output.status.success(),
        "{command:?} failed with {}\n{}\n{}",
        output.status,
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Whether `program` runs with these arguments, such as `--version`.
pub fn works(program: &str, args: &[&str]) -> bool {
    let ran = Command::new(program).args(args).output();
    ran.is_ok_and(|output| output.status.success())
}
