//! Third-party MCP software from PyPI: servers and clients, at the versions that
//! `tests/python/requirements*.txt` pin.

use std::{
    path::{Path, PathBuf},
    process::Command,
};

use crate::{
    bins, cache,
    node::{fingerprint, skip},
};

/// A Python environment with the packages for the tests.
#[derive(Debug)]
pub struct Python {
    directory: PathBuf,
}

impl Python {
    /// The environment, created on first use; `None` if Python is neither available nor required.
    pub fn get() -> Option<Self> {
        Self::with("requirements.txt")
    }

    /// The environment with langchain-mcp-adapters, which needs an older `mcp` than the rest.
    pub fn langchain() -> Option<Self> {
        Self::with("requirements-langchain.txt")
    }

    /// The environment with schemathesis and openapi-spec-validator.
    pub fn schemathesis() -> Option<Self> {
        Self::with("requirements-schemathesis.txt")
    }

    /// The environment with Kafka clients and their codecs.
    pub fn kafka() -> Option<Self> {
        Self::with("requirements-kafka.txt")
    }

    /// The environment with mcp-authlab, which grades what a server does about authorization.
    pub fn authlab() -> Option<Self> {
        Self::with("requirements-authlab.txt")
    }

    /// The environment with kubernetes-validate and hadolint.
    pub fn manifests() -> Option<Self> {
        Self::with("requirements-manifests.txt")
    }

    /// The packages of hosted servers as files, so that `uvx` downloads nothing.
    pub fn wheels(&self) -> PathBuf {
        // The packages are of two generations of the SDK, which pip can't resolve together.
        let lists = ["requirements-hosted.txt", "requirements-hosted-sdk1.txt"]
            .map(|name| bins::repository().join("tests/python").join(name));
        let name: Vec<_> = lists.iter().map(|list| fingerprint(list)).collect();
        cache::once(&format!("wheels-{}", name.join("-")), |directory| {
            for list in &lists {
                let pip = [
                    "-m",
                    "pip",
                    "download",
                    "--quiet",
                    "--disable-pip-version-check",
                    "--no-deps",
                    "--require-hashes",
                ];
                let mut command = Command::new(self.interpreter());
                cache::run(command.args(pip).arg("--dest").arg(directory).arg("-r").arg(list));
            }
        })
    }

    fn with(requirements: &str) -> Option<Self> {
        if !cache::works(
            "python3",
            &["-c", "import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 11))"],
        ) {
            return skip("python3 (3.11 or newer, with venv)");
        }
        let requirements = bins::repository().join("tests/python").join(requirements);

        // The environment is renamed after its installation, which breaks its scripts, because they
        // contain the path of the interpreter. So use `python -m` and no scripts.
        let directory =
            cache::once(&format!("python-{}", fingerprint(&requirements)), |directory| {
                cache::run(Command::new("python3").args(["-m", "venv"]).arg(directory));
                let pip = [
                    "-m",
                    "pip",
                    "install",
                    "--quiet",
                    "--disable-pip-version-check",
                    "--no-deps",
                    "--require-hashes",
                    "-r",
                ];
                cache::run(Command::new(directory.join("bin/python")).args(pip).arg(&requirements));
            });
        Some(Self { directory })
    }

    /// The path of the interpreter.
    pub fn interpreter(&self) -> PathBuf {
        self.directory.join("bin/python")
    }

    /// A program of an installed package that is not a script.
    pub fn program(&self, name: &str) -> Command {
        Command::new(self.directory.join("bin").join(name))
    }

    /// A command that runs a script of `tests/python`.
    pub fn script(&self, name: &str) -> Command {
        let mut command = Command::new(self.interpreter());
        command.arg(Path::new("tests/python").join(name)).current_dir(bins::repository());
        command
    }
}
