//! Embeds the static files of the console: its own, and htmx if set-up has installed it.
//!
//! `scripts/setup-console` installs htmx from npm by a lock file. Without it, the console has plain
//! links and forms.

use std::{
    env,
    fmt::Write as _,
    fs, io,
    path::{Path, PathBuf},
};

use sha2::{Digest as _, Sha256};

/// Our own files.
const OWN: [(&str, &str); 3] = [
    ("console.css", "text/css; charset=utf-8"),
    ("console.js", "text/javascript; charset=utf-8"),
    ("icon.svg", "image/svg+xml"),
];
/// The files of others, and where npm puts them.
const THIRD_PARTY: [(&str, &str); 2] = [
    ("htmx.js", "node_modules/htmx.org/dist/htmx.min.js"),
    ("hx-sse.js", "node_modules/htmx.org/dist/ext/hx-sse.min.js"),
];
/// How many digits of a file's digest are in its URL.
const DIGITS: usize = 16;

fn main() -> io::Result<()> {
    // The directory changes when its files do, and when npm adds one.
    println!("cargo::rerun-if-changed=web");
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default()).join("web");
    let out = PathBuf::from(env::var_os("OUT_DIR").unwrap_or_default());

    let mut table = String::from("pub(crate) const ASSETS: &[Asset] = &[\n");
    for (name, media_type) in OWN {
        add_asset(&mut table, name, media_type, &root.join(name))?;
    }

    // All of them or none: the extension is nothing without htmx.
    let has_all = THIRD_PARTY.iter().all(|(_, path)| root.join(path).is_file());
    for (name, path) in THIRD_PARTY.iter().filter(|_| has_all) {
        add_asset(&mut table, name, "text/javascript; charset=utf-8", &root.join(path))?;
    }
    table.push_str("];\n");

    fs::write(out.join("assets.rs"), table)
}

/// Adds a file to the table, with a part of its digest.
fn add_asset(table: &mut String, name: &str, media_type: &str, path: &Path) -> io::Result<()> {
    let digest = Sha256::digest(fs::read(path)?);
    let mut hash: String = String::new();
    for byte in digest.iter().take(DIGITS / 2) {
        write!(hash, "{byte:02x}").map_err(io::Error::other)?;
    }

    let asset = format!(
        "    Asset {{ name: {name:?}, media_type: {media_type:?}, hash: {hash:?}, \
         bytes: include_bytes!({path:?}) }},\n"
    );
    table.push_str(&asset);
    Ok(())
}
