//! Which files and outgoing connections a `[[command]]` leaves to its children.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

/// Which parts of the machine a child may use. If a list is absent, the child may use whatever the
/// server's own user may use.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Confinement {
    /// Files and directories (including everything below them) that the child may read and execute.
    pub read_files: Option<Vec<PathBuf>>,
    /// Files and directories that the child may read, execute and modify.
    pub write_files: Option<Vec<PathBuf>>,
    /// TCP ports that the child may connect to.
    pub connect_ports: Option<Vec<u16>>,
}

impl Confinement {
    /// Returns whether file access is limited: either list limits both reading and writing.
    pub fn limits_files(&self) -> bool {
        self.read_files.is_some() || self.write_files.is_some()
    }

    /// Returns the first path that is not absolute, with the key that holds it.
    pub(super) fn relative_path(&self) -> Option<(&'static str, &Path)> {
        let lists = [("read_files", &self.read_files), ("write_files", &self.write_files)];
        let mut paths = lists
            .into_iter()
            .flat_map(|(key, list)| list.iter().flatten().map(move |path| (key, path.as_path())));
        paths.find(|(_, path)| !path.is_absolute())
    }
}

#[cfg(test)]
mod tests {
    use crate::Policy;

    #[test]
    fn a_rule_may_limit_files_and_ports() {
        let text = "[[command]]\nargv = [\"a\"]\nread_files = [\"/srv\"]\nconnect_ports = [443]";
        let policy = Policy::from_toml(text).unwrap();
        let confinement = &policy.commands[0].confinement;
        assert!(confinement.limits_files());
        assert_eq!(confinement.write_files, None);
        assert_eq!(confinement.connect_ports.as_deref(), Some(&[443][..]));

        let error = Policy::from_toml("\n[[command]]\nargv = [\"a\"]\nwrite_files = [\"srv\"]")
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "`write_files` in line 3 of the policy file: \"srv\" is not an absolute path \
             [FLEET-POLICY-FILE]"
        );
    }
}
