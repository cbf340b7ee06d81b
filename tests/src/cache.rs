//! What is downloaded once and kept in `target/fleet-cache`: jars, node modules, a Python
//! environment.
//!
//! Several test processes may want the same thing at once: one installs, the others wait on a file
//! lock. An entry appears by a rename, so it is whole or not there.

use std::{
    fs::{self, File},
    path::{Path, PathBuf},
    process::Command,
};

use crate::bins;

/// The directory of the entry `name`, installed by `install` if it is not there yet.
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

/// Runs a command of an installation and shows what it said if it fails.
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

/// Whether `program --version` (or whatever `args` are) runs.
pub fn works(program: &str, args: &[&str]) -> bool {
    let ran = Command::new(program).args(args).output();
    ran.is_ok_and(|output| output.status.success())
}
