//! Follows a path step by step, without looking at anything outside the roots.
//!
//! `canonicalize` would follow a symlink anywhere and reveal whether its target exists. Here, each
//! step is checked by name before the file system is asked about it, so that the answer for a path
//! outside the roots is the same whether it exists or not.

use std::{
    collections::VecDeque,
    ffi::OsString,
    io,
    path::{Component, Path, PathBuf},
};

use nix::errno::Errno;

/// The most symlinks in one path, as in Linux.
const MAX_LINKS: usize = 40;

/// Why a path could not be followed.
#[derive(Debug)]
pub(super) enum Stop {
    /// It leaves the roots.
    Outside,
    /// The file system reports an error below a root.
    Failed(io::Error),
}

/// Resolves an absolute path, following all symlinks, to a place below a root and not below an
/// excluded directory. Both must be resolved already.
pub(super) fn follow_path(
    path: &Path,
    roots: &[PathBuf],
    excluded: &[PathBuf],
) -> Result<PathBuf, Stop> {
    let mut pending: VecDeque<OsString> = path_parts(path);
    let mut current = PathBuf::from("/");
    let mut links = 0;
    while let Some(part) = pending.pop_front() {
        if part == ".." {
            current.pop();
            continue;
        }

        let next = current.join(&part);
        if !roots.iter().any(|root| next.starts_with(root)) {
            // The directories above a root are not secret, because the root's own path names them.
            if roots.iter().any(|root| root.starts_with(&next)) {
                current = next;
                continue;
            }
            return Err(Stop::Outside);
        }
        if excluded.iter().any(|directory| next.starts_with(directory)) {
            return Err(Stop::Outside);
        }

        let kind = next.symlink_metadata().map_err(Stop::Failed)?.file_type();
        if kind.is_symlink() {
            links += 1;
            if links > MAX_LINKS {
                return Err(Stop::Failed(Errno::ELOOP.into()));
            }
            let target = next.read_link().map_err(Stop::Failed)?;
            if target.is_absolute() {
                current = PathBuf::from("/");
            }
            let mut rest = path_parts(&target);
            rest.append(&mut pending);
            pending = rest;
        } else if kind.is_dir() || pending.is_empty() {
            current = next;
        } else {
            return Err(Stop::Failed(Errno::ENOTDIR.into()));
        }
    }

    if roots.iter().any(|root| current.starts_with(root)) {
        Ok(current)
    } else {
        Err(Stop::Outside)
    }
}

/// The names in a path, including `..`.
fn path_parts(path: &Path) -> VecDeque<OsString> {
    let part = |component: Component<'_>| match component {
        Component::Normal(name) => Some(name.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::CurDir | Component::RootDir | Component::Prefix(_) => None,
    };
    path.components().filter_map(part).collect()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn paths_resolve_within_the_roots_only() {
        let dir = tempfile::tempdir().unwrap();
        let base = dir.path().canonicalize().unwrap();
        let root = base.join("root");
        std::fs::create_dir_all(root.join("sub")).unwrap();
        std::fs::write(root.join("file"), "").unwrap();
        std::fs::write(base.join("there"), "").unwrap();
        for (target, name) in [
            ("sub", "relative"),
            ("../../root/file", "sub/around"),
            ("../there", "out-there"),
            ("../missing", "out-missing"),
            ("..", "up"),
            ("loop", "loop"),
            ("missing", "dangling"),
        ] {
            symlink(target, root.join(name)).unwrap();
        }

        symlink(root.join("file"), root.join("absolute")).unwrap();
        symlink(base.join("there"), root.join("absolute-out")).unwrap();
        std::fs::create_dir(root.join("secret")).unwrap();
        std::fs::write(root.join("secret/key"), "").unwrap();
        symlink("secret/key", root.join("to-secret")).unwrap();
        // This link leads out of the root and back in.
        symlink(&root, base.join("back")).unwrap();
        symlink("../back/file", root.join("there-and-back")).unwrap();

        let roots = [root.clone()];
        let check = |path: &str, expected: &str| {
            let got = match follow_path(&root.join(path), &roots, &[root.join("secret")]) {
                Ok(path) => path.strip_prefix(&root).unwrap().to_str().unwrap().to_owned(),
                Err(Stop::Outside) => "outside".to_owned(),
                Err(Stop::Failed(error)) => {
                    format!("{:?}", Errno::from_raw(error.raw_os_error().unwrap()))
                }
            };
            assert_eq!(got, expected, "{path}");
        };

        check("", "");
        check("./sub/../file", "file");
        check("../root/file", "file");
        check("relative/around", "file");
        check("absolute", "file");
        check("missing", "ENOENT");
        check("dangling", "ENOENT");
        check("file/x", "ENOTDIR");
        check("file/..", "ENOTDIR");
        check("loop", "ELOOP");
        for outside in [
            "secret",
            "secret/key",
            "secret/missing",
            "sub/../secret/key",
            "to-secret",
            "out-there",
            "out-missing",
            "absolute-out",
            "up",
            "up/there",
            "up/missing",
            "up/there/x",
            "up/..",
            "../there",
            "../missing",
            "there-and-back",
        ] {
            check(outside, "outside");
        }
    }
}
