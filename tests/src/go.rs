//! Tools that are written in Go, built once, at pinned versions.

use std::{path::PathBuf, process::Command};

use crate::{
    bins, cache,
    node::{fingerprint, skip},
};

/// The newest version that Go 1.24 builds.
const KUSTOMIZE: &str = "v5.8.1";

/// `kustomize`, which renders `k8s/` as `kubectl apply -k` does.
pub fn kustomize() -> Option<PathBuf> {
    tool(&format!("kustomize-{KUSTOMIZE}"), "kustomize", |command| {
        command.args(["install", &format!("sigs.k8s.io/kustomize/kustomize/v5@{KUSTOMIZE}")]);
    })
}

/// The loader of `docker compose` as a program (`tests/go/compose`): it validates a file as the
/// original does, fills in variables, and prints the result.
pub fn compose() -> Option<PathBuf> {
    build_own("compose")
}

/// Builds the program in `tests/go/NAME`.
fn build_own(name: &str) -> Option<PathBuf> {
    let source = bins::repository().join("tests/go").join(name);
    let (program, sums) =
        (fingerprint(&source.join("main.go")), fingerprint(&source.join("go.sum")));
    tool(&format!("{name}-{program}-{sums}"), name, |command| {
        command.current_dir(&source).args(["build", "-mod=readonly", "-o"]);
    })
}

/// The Kafka client franz-go as a program (`tests/go/codecs`).
pub fn codecs() -> Option<PathBuf> {
    build_own("codecs")
}

/// Builds `program` into the cache's `entry`, by a `go` command that `build` completes.
fn tool(entry: &str, program: &str, build: impl FnOnce(&mut Command)) -> Option<PathBuf> {
    if version().is_none_or(|version| version < (1, 24)) {
        return skip("go (1.24 or newer)");
    }

    let entry = cache::once(entry, |directory| {
        let mut command = Command::new("go");
        // A workspace in a directory above must not affect the build.
        command.env("GOBIN", directory).env("GOWORK", "off").env("GOFLAGS", "-buildvcs=false");
        build(&mut command);
        if command.get_args().any(|argument| argument == "-o") {
            command.arg(directory.join(program)).arg(".");
        }
        cache::run(&mut command);
    });

    Some(entry.join(program))
}

/// The major and minor version of the installed Go.
fn version() -> Option<(u32, u32)> {
    let output = Command::new("go").args(["env", "GOVERSION"]).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let mut numbers = text.trim().strip_prefix("go")?.split('.').map(str::parse);
    Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
}
