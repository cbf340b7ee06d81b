//! Tests of the first keys in files: made once, by one of many, and finished after a crash.

use std::{collections::BTreeMap, os::unix::fs::PermissionsExt as _};

use super::*;

/// The files of a fleet's keys in a directory that does not exist yet.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join("access").join(name)
    }

    fn places(&self) -> [(&'static FirstKey, PathBuf); 3] {
        FIRST_KEYS.each_ref().map(|key| (key, self.path(&key.file_name())))
    }

    fn init(&self) -> Result<Vec<Step>, CliError> {
        let files = Files { keys: self.path("keys.toml"), pepper: None };
        let signing = SigningFiles::in_directory(&self.path(""));
        complete_files(&files, &self.places(), Some(&signing), PRIVATE).map(|(steps, _)| steps)
    }

    /// The files with their contents.
    fn contents(&self) -> BTreeMap<String, String> {
        let entries = std::fs::read_dir(self.path("")).unwrap().map(Result::unwrap);
        let read = |entry: std::fs::DirEntry| {
            let name = entry.file_name().into_string().unwrap();
            (name, std::fs::read_to_string(entry.path()).unwrap())
        };
        entries.map(read).collect()
    }

    /// Whether the keys file knows the secret of each key.
    fn check_secrets(&self) {
        let files = Files { keys: self.path("keys.toml"), pepper: None };
        let store = Store::open(&files).unwrap();
        let pepper = store.pepper_for_new_key().unwrap();
        for (key, path) in self.places() {
            let text = read_secret_file(&path).unwrap();
            let expected = KeyEntry::of_key(&text, &pepper, fleet_ops::clock::now()).unwrap();
            let entry = store.file.keys.iter().find(|entry| entry.id == key.id).unwrap();
            assert_eq!(entry.mac, expected.mac, "{}", key.id);
            assert_eq!(entry.roles, [key.role.as_str()]);
        }
    }
}

fn mode(path: &Path) -> u32 {
    std::fs::metadata(path).unwrap().permissions().mode() & 0o777
}

#[test]
fn the_first_start_makes_the_keys_and_the_next_changes_nothing() {
    let place = Place::new();
    assert_eq!(place.init().unwrap(), [Step::Made; 3]);
    place.check_secrets();

    let made = place.contents();
    let names: Vec<_> = made.keys().map(String::as_str).collect();
    let expected = [
        "keys.toml",
        "keys.toml.pepper",
        "metrics.key",
        "operator.key",
        "signing.key",
        "signing.pub",
        "worker.key",
    ];
    assert_eq!(names, expected, "no temporary file is left");
    for name in names {
        let expected = if name == "signing.pub" { 0o644 } else { 0o600 };
        assert_eq!(mode(&place.path(name)), expected, "{name}");
    }
    assert_eq!(mode(&place.path("")), 0o700);

    assert_eq!(place.init().unwrap(), [Step::Kept; 3]);
    assert_eq!(place.contents(), made);
}

#[test]
fn a_group_may_read_the_secrets_if_asked_for() {
    let dir = tempfile::tempdir().unwrap();
    let files = Files { keys: dir.path().join("access/keys.toml"), pepper: None };
    let places = FIRST_KEYS.each_ref().map(|key| (key, dir.path().join(key.id).join("key")));
    complete_files(&files, &places, None, GROUP_READABLE).unwrap();
    for (_, path) in &places {
        assert_eq!((mode(path), mode(path.parent().unwrap())), (0o640, 0o750));
    }
    for name in ["keys.toml", "keys.toml.pepper"] {
        assert_eq!(mode(&dir.path().join("access").join(name)), 0o600, "only the server reads it");
    }
}

#[test]
fn a_run_that_was_killed_is_finished_by_the_next() {
    let place = Place::new();
    place.init().unwrap();
    let made = place.contents();

    // The secrets were written, and the keys file was not.
    std::fs::remove_file(place.path("keys.toml")).unwrap();
    std::fs::write(place.path("keys.toml.1.tmp"), "half").unwrap();
    std::fs::remove_file(place.path("metrics.key")).unwrap();
    assert_eq!(place.init().unwrap(), [Step::Finished, Step::Finished, Step::Made]);
    place.check_secrets();
    for name in ["worker.key", "operator.key"] {
        assert_eq!(place.contents()[name], made[name], "{name}");
    }
}

#[test]
fn a_key_that_was_replaced_is_still_the_same_subjects() {
    let place = Place::new();
    place.init().unwrap();
    let files = Files { keys: place.path("keys.toml"), pepper: None };
    let mut store = Store::open(&files).unwrap();
    let pepper = store.pepper_for_new_key().unwrap();
    let (text, _) =
        KeyEntry::create("worker-2", &[1; 32], &pepper, fleet_ops::clock::now()).unwrap();
    store.file.keys.clear();
    store.save().unwrap();
    drop(store);
    std::fs::write(place.path("worker.key"), &text).unwrap();

    // The keys file was lost after the worker's key had been replaced.
    assert_eq!(place.init().unwrap(), [Step::Finished; 3]);
    let file = store::read(&files).unwrap();
    let worker = &file.keys[0];
    assert_eq!((worker.id.as_str(), worker.subject.as_deref()), ("worker-2", Some("worker")));
    assert_eq!(file.keys[1].subject, None);
    assert_eq!(place.init().unwrap(), [Step::Kept; 3]);
}

#[test]
fn a_temporary_file_of_a_killed_run_is_in_nobodys_way() {
    let place = Place::new();
    std::fs::create_dir(place.path("")).unwrap();
    for name in ["keys.toml", "keys.toml.pepper", "worker.key"] {
        let left = format!("{name}.{}.tmp", std::process::id());
        std::fs::write(place.path(&left), "half").unwrap();
    }
    place.init().unwrap();
    place.check_secrets();
    assert_eq!(place.contents().len(), 7);
}

#[test]
fn nothing_that_exists_is_replaced() {
    let place = Place::new();
    place.init().unwrap();

    // Somebody has taken the operator's secret elsewhere, and revoked the worker's key.
    std::fs::remove_file(place.path("operator.key")).unwrap();
    let files = Files { keys: place.path("keys.toml"), pepper: None };
    let mut store = Store::open(&files).unwrap();
    store.file.revoke("worker", fleet_ops::clock::now());
    store.save().unwrap();
    drop(store);
    let before = place.contents();
    let expected = [Step::Kept, Step::KeptWithoutSecret, Step::Kept];
    assert_eq!(place.init().unwrap(), expected);
    assert_eq!(place.contents(), before);

    // The files of two fleets must not be mixed up.
    let other = Place::new();
    std::fs::create_dir(other.path("")).unwrap();
    for text in ["mf_operator_x", &before["metrics.key"], ""] {
        std::fs::write(other.path("operator.key"), text).unwrap();
        let error = fleet_ops::errors::chain(&other.init().unwrap_err());
        assert!(error.contains("operator.key"), "{error}");
        assert!(text.is_empty() || !error.contains(text.trim()), "{error}");
        assert_eq!(other.contents()["operator.key"], text);
    }
}

#[test]
fn many_first_starts_at_once_make_one_set_of_keys() {
    let place = Place::new();
    let made: usize = std::thread::scope(|scope| {
        let start = || place.init().unwrap().iter().filter(|step| **step == Step::Made).count();
        let starts: Vec<_> = (0..8).map(|_| scope.spawn(start)).collect();
        starts.into_iter().map(|start| start.join().unwrap()).sum()
    });
    assert_eq!(made, 3);
    place.check_secrets();
    assert_eq!(place.contents().len(), 7);
}

#[test]
fn a_place_for_every_secret_is_needed() {
    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        init: Init,
    }
    let parse = |args: &[&str]| {
        let line = ["init"].iter().chain(args).copied();
        <Line as clap::Parser>::try_parse_from(line).map(|line| line.init)
    };

    let some = parse(&["--worker-key", "w", "--metrics-key", "m"]).unwrap();
    let error = some.secret_files().unwrap_err().to_string();
    assert!(error.contains("--operator-key"), "{error}");

    let files = parse(&["--out", "d", "--worker-key", "w"]).unwrap().secret_files().unwrap();
    let paths = files.each_ref().map(|(_, path)| path.to_str().unwrap());
    assert_eq!(paths, ["w", "d/operator.key", "d/metrics.key"]);
    assert!(parse(&["--out", "d", "--kubernetes-secret", "s"]).is_err());
}
