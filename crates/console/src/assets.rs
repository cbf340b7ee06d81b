//! The static files, which are compiled in.

/// A static file.
#[derive(Debug, Clone, Copy)]
pub struct Asset {
    /// The file's name.
    pub name: &'static str,
    /// Its media type.
    pub media_type: &'static str,
    /// A part of its SHA-256, which is part of its URL: a file never changes under its URL.
    pub hash: &'static str,
    /// Its content.
    pub bytes: &'static [u8],
}

include!(concat!(env!("OUT_DIR"), "/assets.rs"));

impl Asset {
    /// The path of the file's URL.
    pub fn path(&self) -> String {
        format!("/console/static/{}/{}", self.hash, self.name)
    }
}

/// Returns the file at a URL; `None` for unknown files and other versions.
pub fn find(hash: &str, name: &str) -> Option<&'static Asset> {
    ASSETS.iter().find(|asset| asset.name == name && asset.hash == hash)
}

/// Returns whether htmx is compiled in. If it is not, pages don't update by themselves.
pub fn has_htmx() -> bool {
    ASSETS.iter().any(|asset| asset.name == "htmx.js")
}

/// The URLs of the files that a page refers to.
#[derive(Debug, Clone)]
pub(crate) struct AssetUrls {
    pub(crate) style: String,
    pub(crate) icon: String,
    /// The scripts, in the order in which they run.
    pub(crate) scripts: Vec<String>,
}

impl AssetUrls {
    pub(crate) fn new() -> Self {
        let of = |name: &str| ASSETS.iter().find(|asset| asset.name == name).map(Asset::path);
        Self {
            style: of("console.css").unwrap_or_default(),
            icon: of("icon.svg").unwrap_or_default(),
            scripts: ["htmx.js", "hx-sse.js", "console.js"].into_iter().filter_map(of).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_found_under_the_url_that_pages_have_and_under_no_other() {
        for asset in ASSETS {
            assert_eq!(asset.hash.len(), 16);
            assert!(find(asset.hash, asset.name).is_some());
            assert!(find("0000000000000000", asset.name).is_none());
        }
        assert!(find(ASSETS[0].hash, "../Cargo.toml").is_none());
        assert!(AssetUrls::new().scripts.last().unwrap().ends_with("/console.js"));
    }
}
