//! The root file system of an image, built by the script of the Dockerfiles and entered with
//! chroot: it has everything that the program needs to start.

use std::{os::unix::fs::PermissionsExt as _, process::Command};

use fleet_tests::{bins, cache, loud};

#[test]
fn a_program_runs_in_its_image_which_has_nothing_else() {
    let root = bins::scratch("image");
    let mut script = Command::new(bins::repository().join("scripts/image-root"));
    script.arg(&root).arg(bins::bin("kafka-worker"));
    let user = Command::new("id").arg("-u").output().expect("id").stdout;
    let is_root = user == b"0\n";
    if is_root {
        // Only root can give it to another user.
        script.args(["--", "/var/lib/mcp-fleet"]);
    }
    cache::run(&mut script);
    assert!(
        root.join("etc/ssl/certs/ca-certificates.crt").metadata().expect("certificates").len()
            > 10_000
    );
    let size = |path: &std::path::Path| path.metadata().expect("a program").len();
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
    let run = |argument: &str| {
        let mut command = Command::new("chroot");
        command
            .arg("--userspec=65532:65532")
            .arg(&root)
            .args(["/usr/local/bin/kafka-worker", argument]);
        command.output().expect("chroot")
    };
    let version = run("--version");
    let said = String::from_utf8_lossy(&version.stdout).into_owned();
    assert_eq!(said.trim(), concat!("kafka-worker ", env!("CARGO_PKG_VERSION")), "{version:?}");

    // Verify that the test can fail: without one of its libraries, the program doesn't start.
    let library = find(&root, "libm.so.6").expect("a library");
    std::fs::remove_file(library).expect("a library");
    assert!(!run("--version").status.success());
}

fn find(directory: &std::path::Path, name: &str) -> Option<std::path::PathBuf> {
    let entries = std::fs::read_dir(directory).ok()?.filter_map(Result::ok);
    let mut paths: Vec<_> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths.into_iter().find_map(|path| match path.is_dir() {
        true => find(&path, name),
        false => path.ends_with(name).then_some(path),
    })
}
