//! Which environment variables a message may give to a child.
//!
//! Some variables make an innocent program run someone else's code (`LD_PRELOAD`, `NODE_OPTIONS`,
//! `BASH_ENV`) or change where it finds code and configuration (`PATH`, `HOME`, `NPM_CONFIG_…`). No
//! list of such names is ever complete, so a variable is allowed only if a rule lists it. The list
//! below guards only against wildcards that reach further than their author intended: a rule must
//! list these variables by their exact names.

use fleet_job::glob::Glob;

/// Variables, or prefixes if they end in `*`, that are known to decide what code a program runs.
const DANGEROUS: &[&str] = &[
    // The dynamic linker and libc.
    "LD_*",
    "DYLD_*",
    "GCONV_PATH",
    "GLIBC_TUNABLES",
    "LOCPATH",
    "NLSPATH",
    "HOSTALIASES",
    "RESOLV_HOST_CONF",
    "MALLOC_*",
    "GETCONF_DIR",
    "NIS_PATH",
    // Shells.
    "PATH",
    "HOME",
    "SHELL",
    "IFS",
    "ENV",
    "BASH_ENV",
    "BASH_FUNC_*",
    "BASHOPTS",
    "SHELLOPTS",
    "PS4",
    "PROMPT_COMMAND",
    "CDPATH",
    "GLOBIGNORE",
    "ZDOTDIR",
    "FPATH",
    "TMPDIR",
    "TMP",
    "TEMP",
    // Interpreters.
    "NODE_*",
    "PYTHON*",
    "PERL*",
    "RUBY*",
    "GEM_*",
    "BUNDLE_*",
    "LUA_*",
    "PHP*",
    "PHP_INI_SCAN_DIR",
    "JAVA_*",
    "_JAVA_OPTIONS",
    "JDK_*",
    "CLASSPATH",
    "DOTNET_*",
    "CORECLR_*",
    "COR_*",
    "ELECTRON_*",
    "DENO_*",
    "BUN_*",
    "R_PROFILE*",
    "JULIA_*",
    "ERL_*",
    "ELIXIR_*",
    "GOFLAGS",
    "GOPROXY",
    "GOPATH",
    "GOROOT",
    "GOENV",
    "GOTOOLCHAIN",
    "GOSUMDB",
    "CGO_*",
    // Package managers and build tools that fetch or run code.
    "NPM_*",
    "YARN_*",
    "PNPM_*",
    "COREPACK_*",
    "UV_*",
    "PIP_*",
    "PIPX_*",
    "POETRY_*",
    "CONDA_*",
    "VIRTUAL_ENV",
    "CARGO*",
    "RUSTC*",
    "RUSTFLAGS",
    "RUSTUP_*",
    "MAKEFLAGS",
    "MAVEN_*",
    "GRADLE_*",
    "CC",
    "CXX",
    "NIX_*",
    // Tools that start other tools.
    "GIT_*",
    "SSH_*",
    "EDITOR",
    "VISUAL",
    "PAGER",
    "MANPAGER",
    "LESS*",
    "BROWSER",
    "SUDO_*",
    "DOCKER_*",
    "KUBECONFIG",
    "XDG_*",
    "GTK_*",
    "QT_*",
    // Where traffic goes and which certificates are trusted.
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
    "SSL_CERT_*",
    "REQUESTS_CA_BUNDLE",
    "CURL_*",
    "OPENSSL_*",
    "SSLKEYLOGFILE",
    "AWS_CA_BUNDLE",
    "GRPC_PROXY*",
];

/// Returns whether a variable may decide what code a program runs, in which case a rule must list
/// it by its exact name.
pub fn is_dangerous(name: &str) -> bool {
    let name = name.to_ascii_uppercase();
    DANGEROUS.iter().any(|entry| match entry.strip_suffix('*') {
        Some(prefix) => name.starts_with(prefix),
        None => name == *entry,
    })
}

/// Returns the first entry of a rule that matches every variable.
pub fn every_variable(entries: &[String]) -> Option<&str> {
    let covers_all = |entry: &&str| entry.chars().all(|c| matches!(c, '*' | '?'));
    entries.iter().map(String::as_str).find(covers_all)
}

/// The environment variables that a rule lets a message set.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct EnvRule {
    exact: Vec<String>,
    globs: Vec<Glob>,
}

/// Why a variable may not be set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EnvRefusal {
    /// No entry of the rule matches the variable.
    NotListed,
    /// The variable is dangerous, and only wildcards match it.
    Dangerous,
}

impl EnvRule {
    /// Creates a rule from names and globs.
    pub fn new<'a>(entries: impl IntoIterator<Item = &'a str>) -> Self {
        let mut rule = Self::default();
        for entry in entries {
            let glob = Glob::new(entry);
            if glob.is_literal() {
                rule.exact.push(entry.to_owned());
            } else {
                rule.globs.push(glob);
            }
        }
        rule
    }

    /// Checks whether `name` may be set.
    ///
    /// # Errors
    ///
    /// Returns an error if it may not; the error says which kind of entry is missing.
    pub fn check(&self, name: &str) -> Result<(), EnvRefusal> {
        if self.exact.iter().any(|exact| exact == name) {
            return Ok(());
        }
        match (is_dangerous(name), self.globs.iter().any(|glob| glob.matches(name))) {
            (false, true) => Ok(()),
            (true, true) => Err(EnvRefusal::Dangerous),
            (_, false) => Err(EnvRefusal::NotListed),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dangerous_variables_need_their_exact_name() {
        let any = EnvRule::new(["*"]);
        for name in [
            "LD_PRELOAD",
            "ld_preload",
            "NODE_OPTIONS",
            "PYTHONPATH",
            "BASH_ENV",
            "PATH",
            "npm_config_registry",
        ] {
            assert_eq!(any.check(name), Err(EnvRefusal::Dangerous), "{name}");
            assert_eq!(EnvRule::new([name]).check(name), Ok(()), "{name}");
        }
        assert_eq!(any.check("API_TOKEN"), Ok(()));
        assert_eq!(EnvRule::new(["LOG_*"]).check("LOG_LEVEL"), Ok(()));
        assert_eq!(EnvRule::new(["LOG_*"]).check("API_TOKEN"), Err(EnvRefusal::NotListed));
        assert_eq!(EnvRule::new(["LD_*"]).check("LD_PRELOAD"), Err(EnvRefusal::Dangerous));
        assert_eq!(EnvRule::default().check("A"), Err(EnvRefusal::NotListed));
    }
}
