//! The root file system of an image, built by the script of the Dockerfiles and entered with
//! chroot: it has everything that the program needs to start.

use std::{
    collections::BTreeMap,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _},
    path::Path,
    process::{Command, Output},
};

use fleet_tests::{bins, cache, loud};

#[test]
fn a_program_runs_in_its_image_which_has_nothing_else() {
    let root = bins::scratch("image");
    let mut script = Command::new(bins::repository().join("scripts/image-root"));
    script.arg(&root).arg(bins::bin("kafka-worker"));
    let is_root = is_root();
    if is_root {
        // Only root can give it to another user.
        script.args(["--", "/var/lib/mcp-fleet"]);
    }
    cache::run(&mut script);
    assert!(
        root.join("etc/ssl/certs/ca-certificates.crt").metadata().expect("certificates").len()
            > 10_000
    );
    let size = |path: &Path| path.metadata().expect("a program").len();
    assert!(
        size(&root.join("usr/local/bin/kafka-worker")) < size(&bins::bin("kafka-worker")),
        "it is there with its symbols"
    );
    assert_eq!(root.join("tmp").metadata().expect("/tmp").permissions().mode() & 0o7777, 0o1777);

    for shell in ["bin/sh", "bin/bash", "usr/bin/sh"] {
        assert!(!root.join(shell).exists(), "{shell}");
    }
    if !is_root {
        loud("not root: whether a program runs in its image is NOT TRIED");
        return;
    }
    let run = |argument| run_inside(&root, &["/usr/local/bin/kafka-worker", argument]);
    let version = run("--version");
    let said = String::from_utf8_lossy(&version.stdout).into_owned();
    assert_eq!(said.trim(), concat!("kafka-worker ", env!("CARGO_PKG_VERSION")), "{version:?}");

    // Verify that the test can fail: without one of its libraries, the program doesn't start.
    let library = find(&root, "libm.so.6").expect("a library");
    std::fs::remove_file(library).expect("a library");
    assert!(!run("--version").status.success());
}

/// The service `keys` of docker-compose.yml. Empty volumes take the owner and the mode of the image's
/// directories, so the image's user can write there.
#[test]
fn the_image_of_mcp_fleet_makes_keys_as_its_user() {
    if !is_root() {
        loud("not root: whether the image of mcp-fleet makes keys is NOT TRIED");
        return;
    }
    let root = bins::scratch("image-keys");
    let dockerfile = super::file("Dockerfile.cli").replace("\\\n", " ");
    let (_, rest) = dockerfile.split_once("target/dist/mcp-fleet -- ").expect("directories");
    let directories: Vec<_> =
        rest.split("&&").next().unwrap_or_default().split_whitespace().collect();
    let mut script = Command::new(bins::repository().join("scripts/image-root"));
    script.arg(&root).arg(bins::bin("mcp-fleet")).arg("--").args(&directories);
    cache::run(&mut script);

    let inside = |path: &str| root.join(path.trim_start_matches('/'));
    let files = || -> BTreeMap<String, (u32, u32, String)> {
        let entries = directories.iter().flat_map(|directory| {
            let entries = inside(directory).read_dir().expect("a directory");
            entries.map(|entry| entry.expect("an entry").path())
        });
        entries
            .map(|path| {
                let metadata = path.metadata().expect("a file");
                let name = path.strip_prefix(&root).expect("a path inside").display().to_string();
                let text = std::fs::read_to_string(&path).expect("text");
                (name, (metadata.uid(), metadata.mode() & 0o777, text))
            })
            .collect()
    };
    assert_eq!(files().len(), 0, "there is a key in the image");

    let keys = "/etc/mcp-fleet/keys";
    let [worker, operator, metrics] =
        ["worker", "operator", "metrics"].map(|id| format!("{keys}/{id}/key"));
    let arguments = [
        "/usr/local/bin/mcp-fleet",
        "keys",
        "init",
        "--keys=/etc/mcp-fleet/access/keys.toml",
        "--group-readable",
        "--worker-key",
        &worker,
        "--operator-key",
        &operator,
        "--metrics-key",
        &metrics,
    ];
    let init = || {
        let output = run_inside(&root, &arguments);
        assert!(output.status.success(), "{output:?}");
    };
    init();
    let made = files();
    let owners: Vec<_> =
        made.iter().map(|(name, (user, mode, _))| (&**name, *user, *mode)).collect();
    assert_eq!(
        owners,
        [
            ("etc/mcp-fleet/access/keys.toml", 65532, 0o600),
            ("etc/mcp-fleet/access/keys.toml.pepper", 65532, 0o600),
            ("etc/mcp-fleet/keys/metrics/key", 65532, 0o640),
            ("etc/mcp-fleet/keys/operator/key", 65532, 0o640),
            ("etc/mcp-fleet/keys/worker/key", 65532, 0o640),
        ]
    );
    init();
    assert_eq!(files(), made, "a second start");
}

fn is_root() -> bool {
    Command::new("id").arg("-u").output().expect("id").stdout == b"0\n"
}

/// Runs a command of an image as the image's user.
fn run_inside(root: &Path, command: &[&str]) -> Output {
    let mut chroot = Command::new("chroot");
    chroot.arg("--userspec=65532:65532").arg(root).args(command);
    chroot.output().expect("chroot")
}

fn find(directory: &Path, name: &str) -> Option<std::path::PathBuf> {
    let entries = std::fs::read_dir(directory).ok()?.filter_map(Result::ok);
    let mut paths: Vec<_> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths.into_iter().find_map(|path| match path.is_dir() {
        true => find(&path, name),
        false => path.ends_with(name).then_some(path),
    })
}
