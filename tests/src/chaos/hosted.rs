//! The remote server that the fleet's server hosts in a chaos run, and its disturbances: it is
//! killed, comes back without its sessions, is cut off, and refuses credentials.

use std::{
    fmt, fs,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use crate::{
    bins,
    process::Process,
    proxy::{Network, Proxy},
};

const START: Duration = Duration::from_secs(30);

/// How a server refuses a session that it has forgotten. Each variant is the behaviour of a real
/// server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Forgotten {
    /// 404, as the specification requires.
    NotFound,
    /// 400 with JSON-RPC error -32000.
    BadRequestWithCode,
    /// 400 with text.
    BadRequest,
    /// 401 with text.
    Unauthorized,
    /// 422 with text.
    Unprocessable,
    /// 503 with text.
    Unavailable,
    /// 200 with JSON-RPC error -32602.
    InvalidParams,
    /// 200 with JSON-RPC error -32603.
    InternalError,
}

impl Forgotten {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::NotFound,
        Self::BadRequestWithCode,
        Self::BadRequest,
        Self::Unauthorized,
        Self::Unprocessable,
        Self::Unavailable,
        Self::InvalidParams,
        Self::InternalError,
    ];

    fn argument(self) -> &'static str {
        match self {
            Self::NotFound => "404",
            Self::BadRequestWithCode => "400-code",
            Self::BadRequest => "400",
            Self::Unauthorized => "401",
            Self::Unprocessable => "422",
            Self::Unavailable => "503",
            Self::InvalidParams => "-32602",
            Self::InternalError => "-32603",
        }
    }
}

impl fmt::Display for Forgotten {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.argument())
    }
}

/// The remote server, behind a network of its own.
#[derive(Debug)]
pub struct Hosted {
    program: PathBuf,
    directory: PathBuf,
    /// The ledger in which its tool logs its calls.
    pub ledger: PathBuf,
    network: Proxy,
    process: Option<Process>,
}

impl Hosted {
    /// Starts `program` (`bin/fixture_remote.rs`) below `directory`.
    pub fn start(program: &str, directory: &Path) -> Self {
        let ledger = directory.join("remote-ledger");
        let (program, directory) = (PathBuf::from(program), directory.to_path_buf());
        let mut hosted =
            Self { program, directory, ledger, network: Proxy::start(None), process: None };
        hosted.restart(Forgotten::NotFound);
        hosted
    }

    /// The URL for the fleet's server, which stays the same when the process is replaced.
    pub fn url(&self) -> String {
        format!("http://{}/mcp", self.network.address)
    }

    /// Restarts the server, without its sessions.
    pub fn restart(&mut self, forgotten: Forgotten) {
        let ready = self.directory.join(bins::unique("remote-ready"));
        let mut command = Command::new(&self.program);
        command.arg(&self.ledger).arg(&ready).arg(forgotten.argument()).arg(self.refusing());
        let mut process = Process::start("fixture-remote", &self.directory, command);
        let address = process.wait_until("the ready file", START, || {
            fs::read_to_string(&ready).ok()?.trim().parse().ok()
        });

        self.process = Some(process);
        self.network.forward_to(address);
        self.network.set(Network::Up);
    }

    /// Kills the server with SIGKILL. Nothing listens until it is restarted.
    pub fn kill(&mut self) {
        self.network.set(Network::Refused);
        self.process = None;
    }

    /// Changes the state of the network in front of the server.
    pub fn network(&self, network: Network) {
        self.network.set(network);
    }

    /// Makes the server refuse all credentials, or accept them again.
    pub fn refuse(&self, refuses: bool) {
        let file = self.refusing();
        let changed = if refuses { fs::write(file, "") } else { fs::remove_file(file) };
        changed.expect("the file by which credentials are refused");
    }

    /// The file with the tokens that the server accepts, one per line. If it does not exist, no token
    /// is needed.
    pub fn tokens(&self) -> PathBuf {
        self.refusing().with_extension("tokens")
    }

    fn refusing(&self) -> PathBuf {
        self.directory.join("remote-refuses")
    }
}
