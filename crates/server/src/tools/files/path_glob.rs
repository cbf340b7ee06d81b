//! Globs over relative paths: `*` and `?` stay within one name, `**` spans directories.

use fleet_job::glob::Glob;

/// A compiled path glob. A pattern without `/` applies to the last name only, so `*.rs` matches
/// Rust files at any depth.
pub(super) struct PathGlob {
    parts: Vec<Part>,
}

enum Part {
    Name(Glob),
    AnyDirectories,
}

impl PathGlob {
    pub(super) fn new(pattern: &str) -> Self {
        let mut parts = Vec::new();
        if !pattern.contains('/') {
            parts.push(Part::AnyDirectories);
        }
        parts.extend(pattern.split('/').filter(|part| !part.is_empty()).map(|part| match part {
            "**" => Part::AnyDirectories,
            part => Part::Name(Glob::new(part)),
        }));
        Self { parts }
    }

    pub(super) fn matches(&self, path: &str) -> bool {
        let names: Vec<&str> = path.split('/').collect();
        // `reachable[i]` is true if the parts so far can match the first `i` names.
        let mut reachable = vec![false; names.len() + 1];
        reachable[0] = true;

        for part in &self.parts {
            let mut next = vec![false; names.len() + 1];
            for at in 0..=names.len() {
                next[at] = match part {
                    Part::AnyDirectories => reachable[at] || (at > 0 && next[at - 1]),
                    Part::Name(glob) => at > 0 && reachable[at - 1] && glob.matches(names[at - 1]),
                };
            }
            reachable = next;
        }

        reachable[names.len()]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn single_stars_stay_within_one_directory() {
        let check = |pattern: &str, path: &str, expected| {
            assert_eq!(PathGlob::new(pattern).matches(path), expected, "{pattern} on {path}");
        };
        check("*.rs", "a.rs", true);
        check("*.rs", "src/a.rs", true);
        check("src/*.rs", "src/a.rs", true);
        check("src/*.rs", "src/deep/a.rs", false);
        check("src/**/*.rs", "src/a.rs", true);
        check("src/**/*.rs", "src/deep/er/a.rs", true);
        check("src/**", "src/deep/er/a.rs", true);
        check("src/**", "other/a.rs", false);
        check("/src/*.rs", "src/a.rs", true);
        check("**", "a", true);
    }
}
