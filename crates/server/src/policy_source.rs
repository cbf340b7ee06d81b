//! The sources of the policy: a file, and flags that add to it. They are read at the start, and
//! again when the file changes.

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

use crate::error::ServerError;

/// The policy file and the flags that a policy is built from.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct PolicySource {
    pub(crate) file: Option<PathBuf>,
    pub(crate) commands: Vec<String>,
    pub(crate) dirs: Vec<PathBuf>,
    pub(crate) env: Vec<String>,
    pub(crate) remotes: Vec<String>,
    pub(crate) expand: Vec<String>,
    pub(crate) handshake_timeout: Option<Duration>,
}

impl PolicySource {
    /// Creates the source for a policy file without flags.
    pub fn from_file(path: &Path) -> Self {
        Self { file: Some(path.to_owned()), ..Self::default() }
    }

    /// Returns the policy file, if there is one.
    pub fn file(&self) -> Option<&Path> {
        self.file.as_deref()
    }

    /// Reads the rules of the policy file, and appends those of the flags.
    ///
    /// # Errors
    ///
    /// Returns an error if the file can't be read or is not a valid policy, or if a flag is not a
    /// valid rule.
    pub fn load(&self) -> Result<Policy, ServerError> {
        let mut policy = self.read_file()?;
        policy.commands.extend(self.command_rules()?);

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

    /// The policy of the file alone; the default policy if there is no file.
    fn read_file(&self) -> Result<Policy, PolicyError> {
        let Some(path) = &self.file else { return Ok(Policy::default()) };
        let text = std::fs::read_to_string(path)
            .map_err(|error| PolicyError::Read { path: path.clone(), error })?;
        let mut policy = Policy::from_toml(&text)?;

        for rule in &mut policy.commands {
            // A path that doesn't exist yet stays as written.
            rule.cwd.resolve(|path| path.canonicalize().ok());
            rule.env_files.resolve(|path| path.canonicalize().ok());
        }
        Ok(policy)
    }

    /// The rules for the commands that the flags allow.
    fn command_rules(&self) -> Result<Vec<CommandRule>, ServerError> {
        if let Some(entry) = every_variable(&self.env) {
            return Err(PolicyError::EveryVariable { entry: entry.to_owned(), line: None }.into());
        }

        let dirs = (self.dirs.iter())
            .map(|dir| {
                dir.canonicalize().map_err(|error| ServerError::Dir { path: dir.clone(), error })
            })
            .collect::<Result<Vec<_>, _>>()?;

        let lines = self.commands.iter().flat_map(|list| split_list(list)).map(str::trim);
        lines
            .filter(|line| !line.is_empty())
            .map(|line| {
                let argv = ArgvPattern::parse(line).map_err(|error| PolicyError::Pattern {
                    pattern: line.to_owned(),
                    line: None,
                    error,
                })?;
                let expand = self.expand.iter().cloned().collect();
                Ok(CommandRule { expand, ..CommandRule::simple(argv, &dirs, &self.env) })
            })
            .collect()
    }
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
