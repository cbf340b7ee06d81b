//! Tests of the command `keys`: what it writes, to whom the files belong, and what it refuses.

use std::path::Path;

use clap::Parser;

use super::*;

#[derive(Parser)]
struct Line {
    #[command(subcommand)]
    command: Command,
}

fn files(dir: &Path) -> Files {
    Files { keys: dir.join("keys.toml"), pepper: None }
}

fn keys(dir: &Path, args: &[&str]) -> Result<ExitCode, CliError> {
    let path = dir.join("keys.toml");
    let line = ["keys"].iter().chain(args).copied().chain(["--keys", path.to_str().unwrap()]);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(run(Line::try_parse_from(line).unwrap().command))
}

fn mode(path: &Path) -> u32 {
    use std::os::unix::fs::PermissionsExt as _;
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn keys_are_made_listed_and_revoked() {
    let dir = tempfile::tempdir().unwrap();
    keys(dir.path(), &["create", "ci", "--role", "worker", "--expires", "90d", "--json"]).unwrap();
    keys(dir.path(), &["create", "ci-2", "--subject", "ci", "--name", "Pipeline"]).unwrap();
    keys(dir.path(), &["revoke", "ci"]).unwrap();
    keys(dir.path(), &["list"]).unwrap();

    let file = store::read(&files(dir.path())).unwrap();
    let now = fleet_ops::clock::now();
    let states: Vec<_> = file.keys.iter().map(|entry| KeyState::of(entry, now)).collect();
    assert_eq!(states, [KeyState::Revoked, KeyState::Valid]);
    assert_eq!(file.pepper, None, "the pepper is in its own file");

    let described = describe(&file.keys[0], now);
    assert_eq!((&described["subject"], &described["state"]), (&json!("ci"), &json!("revoked")));
    assert_eq!(described["roles"], json!(["worker"]));
    assert!(!described.to_string().contains(&file.keys[0].mac));
    let table = table(&file, now);
    assert!(table.lines().count() == 3 && table.contains("Pipeline"), "{table}");

    assert_eq!(mode(&dir.path().join("keys.toml")), 0o600);
    assert_eq!(mode(&dir.path().join("keys.toml.pepper")), 0o600);
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "no temporary file is left");
}

#[test]
fn mistakes_change_nothing_and_say_what_to_do() {
    let dir = tempfile::tempdir().unwrap();
    let check = |args: &[&str], expected: &str| {
        let error = fleet_ops::errors::chain(&keys(dir.path(), args).unwrap_err());
        assert!(error.contains(expected), "{error}");
    };

    check(&["list"], "could not read the keys file");
    check(&["revoke", "ci"], "there is no key `ci`");
    check(&["create", "ci", "--expires", "2001-01-01T00:00:00Z"], "--expires is in the past");
    assert!(!dir.path().join("keys.toml").exists());

    keys(dir.path(), &["create", "ci"]).unwrap();
    let before = std::fs::read_to_string(dir.path().join("keys.toml")).unwrap();
    check(&["create", "ci"], "ids are never used twice");
    std::fs::remove_file(dir.path().join("keys.toml.pepper")).unwrap();
    check(&["create", "other"], "could not read the pepper");
    std::fs::write(dir.path().join("keys.toml.pepper"), "short").unwrap();
    check(&["create", "other"], "64 hexadecimal digits");
    assert_eq!(std::fs::read_to_string(dir.path().join("keys.toml")).unwrap(), before);

    std::fs::write(dir.path().join("keys.toml"), "[[keys]]").unwrap();
    check(&["revoke", "ci"], "invalid keys file");

    for bad in [&["keys", "create", "A"][..], &["keys", "create", "a", "--kind", "anonymous"]] {
        assert!(Line::try_parse_from(bad).is_err(), "{bad:?}");
    }
}

#[test]
fn a_keys_file_keeps_its_permissions_and_links_to_it_stay() {
    use std::os::unix::fs::PermissionsExt as _;

    let dir = tempfile::tempdir().unwrap();
    keys(dir.path(), &["create", "a"]).unwrap();
    let (path, real) = (dir.path().join("keys.toml"), dir.path().join("real.toml"));
    std::fs::rename(&path, &real).unwrap();
    std::fs::set_permissions(&real, std::fs::Permissions::from_mode(0o640)).unwrap();
    std::os::unix::fs::symlink(&real, &path).unwrap();

    keys(dir.path(), &["create", "b"]).unwrap();
    assert!(path.is_symlink());
    assert_eq!(mode(&real), 0o640);
    assert_eq!(store::read(&files(dir.path())).unwrap().keys.len(), 2);
}

#[test]
fn a_key_can_replace_the_one_in_a_file() {
    use std::os::unix::fs::PermissionsExt as _;

    let dir = tempfile::tempdir().unwrap();
    let secret = dir.path().join("worker.key");
    let create = |id: &str| {
        let out = secret.to_str().unwrap();
        keys(dir.path(), &["create", id, "--subject", "worker", "--out", out]).unwrap();
        std::fs::read_to_string(&secret).unwrap()
    };

    let first = create("worker");
    assert!(first.starts_with("mf_worker_") && first.trim() == first, "{first}");
    assert_eq!(mode(&secret), 0o600);
    std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(0o640)).unwrap();
    assert!(create("worker-2").starts_with("mf_worker-2_"));
    assert_eq!(mode(&secret), 0o640, "whoever could read the file still can");

    let missing = dir.path().join("missing/worker.key");
    let error = keys(dir.path(), &["create", "x", "--out", missing.to_str().unwrap()]).unwrap_err();
    assert!(error.to_string().contains("revoke the new key"), "{error}");
}

#[test]
fn files_that_root_changes_stay_readable_to_their_server() {
    use std::os::unix::fs::{MetadataExt as _, chown};

    // Only root can give a file away.
    let dir = tempfile::tempdir().unwrap();
    if std::fs::metadata(dir.path()).unwrap().uid() != 0 {
        return;
    }

    chown(dir.path(), Some(65532), Some(65533)).unwrap();
    keys(dir.path(), &["create", "a"]).unwrap();
    let [path, pepper] = ["keys.toml", "keys.toml.pepper"].map(|name| dir.path().join(name));
    let owner = |path: &Path| {
        let found = std::fs::metadata(path).unwrap();
        (found.uid(), found.gid())
    };
    assert_eq!([owner(&path), owner(&pepper)], [(65532, 65533); 2], "new files");

    // An existing file keeps its owner, even if another user owns the directory.
    chown(&path, Some(65531), Some(65530)).unwrap();
    keys(dir.path(), &["revoke", "a"]).unwrap();
    assert_eq!((owner(&path), mode(&path)), ((65531, 65530), 0o600));
}

#[test]
fn the_examples_are_valid_command_lines() {
    let mut checked = 0;
    for examples in [CREATE_EXAMPLES, LIST_EXAMPLES, REVOKE_EXAMPLES, init::EXAMPLES] {
        for line in examples.lines() {
            let Some((_, line)) = line.split_once("mcp-fleet keys ") else { continue };
            let words = line.trim_end_matches(')').split(' ');
            let parsed = Line::try_parse_from(["keys"].into_iter().chain(words));
            assert!(parsed.is_ok(), "{line}");
            checked += 1;
        }
    }
    assert_eq!(checked, 11);
}
