//! The paths of our binaries and of the harness's files.

use std::{
    env, fs,
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicU32, Ordering},
};

/// Overrides the directory of the binaries.
const OVERRIDE: &str = "FLEET_BIN_DIR";
const BUILD: &str = "cargo build -p mcp-server -p kafka-worker -p mcp-fleet -p mcp-fleet-broker";

/// The path of one of our binaries.
pub fn bin(name: &str) -> PathBuf {
    let directory = env::var_os(OVERRIDE).map_or_else(profile_directory, PathBuf::from);
    let path = directory.join(name);
    assert!(
        path.is_file(),
        "{} is not there. Build the binaries first: {BUILD}{}",
        path.display(),
        profile_flag(&directory)
    );
    path
}

/// What cargo has to be told to build into `directory`.
fn profile_flag(directory: &Path) -> &'static str {
    match directory.file_name().and_then(|name| name.to_str()) {
        Some("release") => " --release",
        Some("dist") => " --profile dist",
        _ => "",
    }
}

/// `target/debug`, `target/release` or `target/dist`: the test itself is in `deps` below it.
fn profile_directory() -> PathBuf {
    let test = env::current_exe().expect("the test's own path");
    let deps = test.parent().expect("the directory of the test");
    let profile =
        if deps.ends_with("deps") { deps.parent().expect("the profile's directory") } else { deps };
    profile.to_path_buf()
}

/// The cargo target directory.
pub fn target() -> PathBuf {
    profile_directory().parent().expect("the target directory").to_path_buf()
}

/// The root of the repository.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("tests/ is in the repository")
}

/// A new, empty directory below `target/fleet-tests`, which the next run may remove.
pub fn scratch(name: &str) -> PathBuf {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    let directory = target().join("fleet-tests").join(format!("{}-{count}-{name}", process::id()));
    // Process ids are reused, and an earlier run may have left a directory of the same name.
    drop(fs::remove_dir_all(&directory));
    fs::create_dir_all(&directory).expect("a scratch directory");
    directory.canonicalize().expect("the scratch directory's path")
}

/// A name that no other test, process or run uses.
pub fn unique(name: &str) -> String {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let since = std::time::UNIX_EPOCH.elapsed().unwrap_or_default().as_millis();
    format!("{name}-{since:x}-{}-{}", process::id(), COUNT.fetch_add(1, Ordering::Relaxed))
}
