//! Third-party MCP servers and the conformance suite from npm, at the versions that
//! `tests/node/package-lock.json` pins.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use crate::{bins, cache, is_set, loud};

/// The file of the server below `node_modules`, for `node` to run.
pub fn server_everything() -> Option<PathBuf> {
    Some(modules()?.join("@modelcontextprotocol/server-everything/dist/index.js"))
}

/// The official conformance suite, without arguments. It needs a newer Node than distributions
/// have, which comes from npm, too.
pub fn conformance() -> Option<Command> {
    let modules = modules()?;
    let node =
        ["x64", "arm64"].map(|machine| modules.join(format!("node-linux-{machine}/bin/node")));
    let Some(node) = node.iter().find(|node| node.is_file()) else {
        return skip("a Node for this machine among those of tests/node/package.json");
    };
    let mut command = Command::new(node);
    command.arg(modules.join("@modelcontextprotocol/conformance/dist/index.js"));
    Some(command)
}

/// A command that runs a script of `tests/node` with the modules.
pub fn script(name: &str) -> Option<Command> {
    let modules = modules()?;
    let mut command = Command::new("node");
    command.arg(bins::repository().join("tests/node").join(name)).arg(modules);
    Some(command)
}

/// A command that runs a script of `tests/node/kafka` with the Kafka client there.
pub fn kafka_script(name: &str) -> Option<Command> {
    let source = bins::repository().join("tests/node/kafka");
    let modules = install("kafka", &source)?;
    let mut command = Command::new("node");
    command.arg(source.join(name)).arg(modules);
    Some(command)
}

/// A command that walks the console at a URL, its argument, in Debian's Chromium.
pub fn console_walk() -> Option<Command> {
    if !cache::works("chromium", &["--version"]) {
        return skip("chromium");
    }
    let source = bins::repository().join("tests/node/console");
    let modules = install("console", &source)?;
    let mut command = Command::new("node");
    command.arg(source.join("walk.mjs")).arg(modules).arg("chromium");
    Some(command)
}

/// The directory in which `npx` finds the packages of `tests/node/package.json` without downloading
/// anything.
pub fn directory() -> Option<PathBuf> {
    modules()?.parent().map(PathBuf::from)
}

fn modules() -> Option<PathBuf> {
    install("node", &bins::repository().join("tests/node"))
}

/// Installs the packages that the lock file in `source` names, and returns their directory.
fn install(name: &str, source: &Path) -> Option<PathBuf> {
    if !cache::works("node", &["--version"]) || !cache::works("npm", &["--version"]) {
        return skip("node and npm (20 or newer)");
    }
    let entry = cache::once(
        &format!("{name}-{}", fingerprint(&source.join("package-lock.json"))),
        |directory| {
            for file in ["package.json", "package-lock.json"] {
                fs::copy(source.join(file), directory.join(file)).expect("a lock file");
            }
            let quiet = ["ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"];
            cache::run(Command::new("npm").args(quiet).current_dir(directory));
        },
    );
    Some(entry.join("node_modules"))
}

/// Warns that a test is skipped, or fails it if it is required.
pub(crate) fn skip<T>(missing: &str) -> Option<T> {
    let message = format!(
        "{missing} not found: a test with third-party programs is NOT RUN. scripts/setup-system --tests installs it."
    );
    assert!(!is_set("FLEET_REQUIRE_TOOLS"), "FLEET_REQUIRE_TOOLS is set, but {message}");
    loud(&message);
    None
}

/// A short name for the content of a file: FNV-1a, which is enough to distinguish versions of a
/// lock file.
pub(crate) fn fingerprint(path: &Path) -> String {
    let content = fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let hash = content.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    format!("{hash:016x}")
}
