//! Where the policy comes from: a file, and flags that add to it. Read at the start, and again when
//! the file changes.

use std::{
    path::{Path, PathBuf},
    time::Duration,
};

use fleet_policy::{
    CommandRule, Policy, PolicyError,
    argv::{ArgvPattern, split_list},
    env::every_variable,
    remote::RemoteRule,
};

use crate::{args::Args, error::ServerError};

/// Everything that the policy is made from.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PolicySource {
    file: Option<PathBuf>,
    commands: Vec<String>,
    dirs: Vec<PathBuf>,
    env: Vec<String>,
    remotes: Vec<String>,
    expand: Vec<String>,
    handshake_timeout: Option<Duration>,
}

impl PolicySource {
    /// What the flags name.
    pub fn from_args(args: &Args) -> Self {
        let owned = |list: &[String]| non_empty(list).map(str::to_owned).collect();
        Self {
            file: args.policy_file.clone(),
            commands: args.allow_commands.clone(),
            dirs: args
                .allow_dirs
                .iter()
                .filter(|dir| !dir.as_os_str().is_empty())
                .cloned()
                .collect(),
            env: owned(&args.allow_env),
            remotes: owned(&args.allow_remotes),
            expand: owned(&args.expand_env),
            handshake_timeout: args.handshake_timeout_ms.map(Duration::from_millis),
        }
    }

    /// A policy file alone.
    pub fn from_file(path: &Path) -> Self {
        Self { file: Some(path.to_owned()), ..Self::default() }
    }

    /// The policy file, where there is one.
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// The policy file's rules, and those of the flags after them.
    ///
    /// # Errors
    ///
    /// Where the file can't be read or holds no policy, or a flag holds no rule.
    pub fn load(&self) -> Result<Policy, ServerError> {
        let mut policy = match &self.file {
            Some(path) => {
                let text = std::fs::read_to_string(path)
                    .map_err(|error| PolicyError::Read { path: path.clone(), error })?;
                Policy::from_toml(&text)?
            }
            None => Policy::default(),
        };
        for rule in &mut policy.commands {
            // What does not exist yet stays as it is written.
            rule.cwd.resolve(|path| path.canonicalize().ok());
            rule.env_files.resolve(|path| path.canonicalize().ok());
        }
        if let Some(entry) = every_variable(&self.env) {
            return Err(PolicyError::EveryVariable { entry: entry.to_owned(), line: None }.into());
        }
        let dirs = (self.dirs.iter())
            .map(|dir| {
                dir.canonicalize().map_err(|error| ServerError::Dir { path: dir.clone(), error })
            })
            .collect::<Result<Vec<_>, _>>()?;
        let lines = self.commands.iter().flat_map(|list| split_list(list)).map(str::trim);
        for line in lines.filter(|line| !line.is_empty()) {
            let argv = ArgvPattern::parse(line).map_err(|error| PolicyError::Pattern {
                pattern: line.to_owned(),
                line: None,
                error,
            })?;
            let expand = self.expand.iter().cloned().collect();
            policy
                .commands
                .push(CommandRule { expand, ..CommandRule::simple(argv, &dirs, &self.env) });
        }
        for remote in &self.remotes {
            let rule = RemoteRule::parse(remote)
                .map_err(|error| PolicyError::Remote { line: None, error })?;
            policy.remotes.push(rule.expanding(self.expand.iter().cloned().collect()));
        }
        if let Some(timeout) = self.handshake_timeout {
            policy.limits.handshake_timeout = timeout;
        }
        Ok(policy)
    }
}

/// The entries of a list that say something; an empty variable is an empty list.
pub(crate) fn non_empty(list: &[String]) -> impl Iterator<Item = &str> {
    list.iter().map(|text| text.trim()).filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_do_not_allow_every_variable() {
        for (entry, is_allowed) in
            [("*", false), ("**", false), ("?*", false), ("LOG_*", true), ("A", true)]
        {
            let source = PolicySource { env: vec![entry.to_owned()], ..PolicySource::default() };
            assert_eq!(source.load().is_ok(), is_allowed, "{entry}");
        }
    }
}
