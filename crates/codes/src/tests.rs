//! Table, page and code agree.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
};

use super::*;

fn entries() -> impl Iterator<Item = &'static Entry> {
    TABLE.iter().flat_map(|section| section.entries)
}

/// All Rust sources below a directory.
fn sources(directory: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    let found = entries.map(|path| match path.is_dir() {
        true => sources(&path),
        false => vec![path],
    });
    found.flatten().filter(|path| path.extension().is_some_and(|kind| kind == "rs")).collect()
}

#[test]
fn codes_are_unique_and_well_formed() {
    let mut known = HashSet::new();

    for Entry { code, .. } in entries() {
        let words = code.as_str().strip_prefix("FLEET-");
        let is_word =
            |word: &str| !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_uppercase());
        assert!(words.is_some_and(|words| words.split('-').all(is_word)), "{code}");
        assert!(known.insert(code), "{code} has two entries");
    }
}

#[test]
fn entries_are_whole_sentences() {
    for Entry { code, meaning, cause, remedy } in entries() {
        for text in [meaning, cause, remedy] {
            let begins = text.starts_with(|first: char| {
                first.is_uppercase() || first == '`' || text.starts_with("mcp-")
            });
            assert!(begins && text.ends_with('.'), "{code}: {text}");
        }
    }
}

#[test]
fn codes_are_found_by_their_text() {
    assert_eq!(find("FLEET-TIMEOUT"), Some(TIMEOUT));
    assert_eq!(find("FLEET-NO-SUCH-CODE"), None);
}

#[test]
fn the_page_is_that_of_the_table() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/errors.md");
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, page()).unwrap();
    }
    assert!(
        fs::read_to_string(&path).unwrap_or_default() == page(),
        "docs/errors.md differs from the table: run UPDATE_DOCS=1 cargo test -p fleet-codes"
    );
}

#[test]
fn every_code_is_used() {
    let crates = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let others = fs::read_dir(crates).unwrap().map(|entry| entry.unwrap().path());
    let others = others.filter(|path| path.join("src").is_dir() && !path.ends_with("codes"));
    let text: String = others
        .flat_map(|path| sources(&path.join("src")))
        .map(|path| fs::read_to_string(path).unwrap())
        .collect();

    let used: HashSet<_> = text
        .split("codes::")
        .skip(1)
        .map(|rest| rest.split(|c: char| !c.is_ascii_uppercase() && c != '_').next().unwrap())
        .collect();
    let unused: Vec<_> = entries()
        .filter(|entry| {
            let name = entry.code.as_str().trim_start_matches("FLEET-").replace('-', "_");
            !used.contains(name.as_str())
        })
        .map(|entry| entry.code)
        .collect();
    assert!(unused.is_empty(), "no error has these codes: {unused:?}");
}
