//! A PostgreSQL of a test's own: a cluster in a temporary directory, on a Unix socket, of an
//! unprivileged user. It ends with the process that started it, however that ends.

#![expect(clippy::expect_used, reason = "a panic in a test is its report")]

use std::{
    env, fs,
    io::Write as _,
    net::TcpListener,
    os::unix::fs::{MetadataExt as _, PermissionsExt as _, chown},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::atomic::{AtomicU32, Ordering},
    thread,
    time::{Duration, Instant},
};

use fleet_ops::tls::PairFiles;

/// Where Debian and its kin keep the programs, by version.
const INSTALLED: &str = "/usr/lib/postgresql";
/// How long starting or creating a database may take on a busy machine.
const START: Duration = Duration::from_secs(60);
/// The superuser, and the password where one is asked for.
const USER: &str = "fleet";
/// The usual port, which is a part of the socket's name.
const PORT: u16 = 5432;
/// The options of servers that need not survive a power failure.
const QUICK: &str = "-c fsync=off -c full_page_writes=off";
/// The password of [`Cluster::with_password`], which must show up nowhere.
pub const PASSWORD: &str = "hunter2/hunter2";

/// Runs the server until it is told to end, or until our end of the pipe is closed; then it removes
/// everything.
const SUPERVISE: &str = r#"
    "$1/postgres" -D "$2/data" -k "$2" -c listen_addresses= $3 >>"$2/log" 2>&1 &
    read -r _
    is_told=$?
    kill -QUIT $! 2>/dev/null
    wait $!
    [ $is_told = 0 ] || rm -rf "$2"
"#;

/// A running PostgreSQL.
#[derive(Debug)]
pub struct Cluster {
    programs: PathBuf,
    directory: PathBuf,
    password: Option<&'static str>,
    port: u16,
    options: String,
    /// Who runs the server, unless it was killed.
    supervisor: Option<Child>,
}

impl Cluster {
    /// Starts a cluster that trusts everybody. Returns `None` if PostgreSQL is not installed.
    ///
    /// # Panics
    ///
    /// Panics if PostgreSQL can't be started, or is missing although `FLEET_REQUIRE_TOOLS` is set.
    pub fn start() -> Option<Self> {
        Self::start_with(None, QUICK)
    }

    /// The same with a password ([`PASSWORD`]).
    ///
    /// # Panics
    ///
    /// As [`Cluster::start`].
    pub fn with_password() -> Option<Self> {
        Self::start_with(Some(PASSWORD), QUICK)
    }

    /// Starts a cluster that can also be reached on loopback ([`Cluster::tls_url`]), by TLS with this
    /// certificate and not otherwise.
    ///
    /// # Panics
    ///
    /// As [`Cluster::start`].
    pub fn with_tls(pair: &PairFiles) -> Option<Self> {
        let mut cluster = Self::prepare(None, QUICK)?;
        let free = TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr());
        cluster.port = free.expect("a free port").port();

        let certificate = cluster.take_file(&pair.certificate, "server.pem");
        let key = cluster.take_file(&pair.key, "server.key");
        let access = "local all all trust\nhostssl all all 127.0.0.1/32 trust\n";
        fs::write(cluster.directory.join("data/pg_hba.conf"), access).expect("the access file");
        cluster.options.push_str(&format!(
            " -c ssl=on -c ssl_cert_file={certificate} -c ssl_key_file={key} \
             -c listen_addresses=127.0.0.1 -c port={}",
            cluster.port
        ));
        cluster.run();
        Some(cluster)
    }

    /// Copies a file to where the server may read it, and returns its path.
    fn take_file(&self, file: &Path, name: &str) -> String {
        let taken = self.directory.join(name);
        fs::copy(file, &taken).expect("a file for PostgreSQL");
        fs::set_permissions(&taken, fs::Permissions::from_mode(0o600)).expect("its permissions");
        if is_root() {
            chown(&taken, Some(NOBODY), Some(NOBODY)).expect("its owner");
        }
        taken.display().to_string()
    }

    /// Starts a cluster with these options of the server.
    ///
    /// # Panics
    ///
    /// As [`Cluster::start`].
    pub fn start_with(password: Option<&'static str>, options: &str) -> Option<Self> {
        let mut cluster = Self::prepare(password, options)?;
        cluster.run();
        Some(cluster)
    }

    /// Makes a cluster without starting it.
    fn prepare(password: Option<&'static str>, options: &str) -> Option<Self> {
        let Some(programs) = find_programs() else {
            let is_required = env::var_os("FLEET_REQUIRE_TOOLS").is_some_and(|set| !set.is_empty());
            assert!(!is_required, "FLEET_REQUIRE_TOOLS is set, but there is no PostgreSQL");
            return None;
        };

        let directory = make_directory();
        let options = options.to_owned();
        let cluster = Self { programs, directory, password, port: PORT, options, supervisor: None };
        cluster.initialize();
        Some(cluster)
    }

    fn initialize(&self) {
        let mut initdb = unprivileged(&self.directory);
        initdb.arg(self.programs.join("initdb")).arg("-D").arg(self.directory.join("data"));
        initdb.args(["--no-sync", "--encoding=UTF8", "--locale=C", "-U", USER]);
        match self.password {
            None => initdb.arg("--auth=trust"),
            Some(password) => {
                let file = self.directory.join("password");
                fs::write(&file, password).expect("the file of the password");
                initdb.arg("--auth=scram-sha-256").arg("--pwfile").arg(file)
            }
        };
        let output = initdb.output().expect("initdb");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    /// Starts the server, again after [`Cluster::kill`].
    ///
    /// # Panics
    ///
    /// Panics if it does not answer in time.
    pub fn run(&mut self) {
        let mut supervisor = unprivileged(&self.directory);
        supervisor.args(["sh", "-c", SUPERVISE, "sh"]).arg(&self.programs).arg(&self.directory);
        supervisor.arg(&self.options).stdin(Stdio::piped()).stdout(Stdio::null());
        self.supervisor = Some(supervisor.spawn().expect("the supervisor of PostgreSQL"));
        self.wait_until_it_answers();
    }

    /// Waits until the server answers.
    ///
    /// # Panics
    ///
    /// Panics if it does not in time.
    pub fn wait_until_it_answers(&self) {
        let deadline = Instant::now() + START;
        while !self.psql("postgres", "SELECT 1").0 {
            let log = fs::read_to_string(self.directory.join("log")).unwrap_or_default();
            assert!(Instant::now() < deadline, "PostgreSQL does not answer:\n{log}");
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// Kills the server with all its processes, as a crash does.
    ///
    /// # Panics
    ///
    /// Panics if there is none.
    pub fn kill(&mut self) {
        // The processes of the connections end when they notice that the first process is gone.
        self.signal("KILL");
        let mut supervisor = self.supervisor.take().expect("a running server");
        let pipe = supervisor.stdin.as_mut().expect("the supervisor's pipe");
        pipe.write_all(b"\n").expect("the supervisor's pipe");
        supervisor.wait().expect("the supervisor");
        let socket = format!(".s.PGSQL.{}", self.port);
        for file in ["data/postmaster.pid", &socket, &format!("{socket}.lock")] {
            _ = fs::remove_file(self.directory.join(file));
        }
    }

    /// Sends the server's first process a signal.
    ///
    /// # Panics
    ///
    /// Panics if there is none.
    pub fn signal(&self, signal: &str) {
        let file = fs::read_to_string(self.directory.join("data/postmaster.pid"));
        let pid = file.expect("the server's id").lines().next().unwrap_or_default().to_owned();
        let status = Command::new("kill").args(["-s", signal, &pid]).status().expect("kill");
        assert!(status.success(), "kill -s {signal} {pid}: {status}");
    }

    /// Creates an empty database and returns its URL.
    ///
    /// # Panics
    ///
    /// Panics if the server refuses.
    pub fn create_database(&self) -> String {
        let name = unique_name();
        self.query("postgres", &format!("CREATE DATABASE {name}"));
        self.url(&name)
    }

    /// Creates an empty schema, which takes a fraction of the time, and returns a URL with it.
    ///
    /// # Panics
    ///
    /// Panics if the server refuses.
    pub fn create_schema(&self) -> String {
        let name = unique_name();
        self.query("postgres", &format!("CREATE SCHEMA {name}"));
        format!("{}?options=-csearch_path={name}", self.url("postgres"))
    }

    /// A URL of the server's address on loopback under this name, to which parameters can be added.
    pub fn tls_url(&self, host: &str) -> String {
        format!("postgres://{USER}@{host}:{}/postgres", self.port)
    }

    fn url(&self, database: &str) -> String {
        let host = self.directory.display().to_string().replace('/', "%2F");
        let password = self
            .password
            .map_or_else(String::new, |password| format!(":{}", password.replace('/', "%2F")));
        format!("postgres://{USER}{password}@{host}:{}/{database}", self.port)
    }

    /// Runs a statement in the database of this URL and returns what it says, without a header.
    ///
    /// # Panics
    ///
    /// Panics if it fails.
    pub fn query(&self, url: &str, sql: &str) -> String {
        let database = url.rsplit('/').next().unwrap_or_default();
        let (is_done, said) = self.psql(database, sql);
        assert!(is_done, "{sql}: {said}");
        said.trim().to_owned()
    }

    fn psql(&self, database: &str, sql: &str) -> (bool, String) {
        let mut psql = Command::new(self.programs.join("psql"));
        psql.arg("-h").arg(&self.directory).args(["-p", &self.port.to_string()]);
        psql.args(["-U", USER, "-d", database, "-XAtqc", sql]);
        psql.env("PGPASSWORD", self.password.unwrap_or_default()).env("PGCONNECT_TIMEOUT", "5");
        let output = psql.output().expect("psql");
        let said = [output.stdout, output.stderr].concat();
        (output.status.success(), String::from_utf8_lossy(&said).into_owned())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        match &mut self.supervisor {
            Some(supervisor) => {
                drop(supervisor.stdin.take());
                _ = supervisor.wait();
            }
            None => _ = fs::remove_dir_all(&self.directory),
        }
    }
}

fn unique_name() -> String {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    format!("test_{}_{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed))
}

/// The programs of the newest version.
fn find_programs() -> Option<PathBuf> {
    let versions = fs::read_dir(INSTALLED).ok()?.filter_map(|version| {
        let path = version.ok()?.path();
        let number: u32 = path.file_name()?.to_str()?.parse().ok()?;
        let programs = path.join("bin");
        programs.join("initdb").exists().then_some((number, programs))
    });
    versions.max().map(|(_, programs)| programs)
}

/// A directory of the unprivileged user, with a short name: the path of a socket is limited.
fn make_directory() -> PathBuf {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let name = format!("fleet-pg-{}-{number}", std::process::id());
    let directory = env::temp_dir().join(name);
    _ = fs::remove_dir_all(&directory);
    fs::create_dir(&directory).expect("a directory for PostgreSQL");
    if is_root() {
        chown(&directory, Some(NOBODY), Some(NOBODY)).expect("the directory's owner");
    }
    directory
}

/// The user that runs PostgreSQL where we are root, which it refuses to be.
const NOBODY: u32 = 65_534;

fn is_root() -> bool {
    fs::metadata("/proc/self").is_ok_and(|process| process.uid() == 0)
}

/// A command of an unprivileged user, whose program is still to be added.
fn unprivileged(directory: &Path) -> Command {
    let mut command = match is_root() {
        false => Command::new("env"),
        true => {
            let mut command = Command::new("setpriv");
            command.args(["--reuid", &NOBODY.to_string(), "--regid", &NOBODY.to_string()]);
            command.args(["--clear-groups", "--"]);
            command
        }
    };
    command.current_dir(directory);
    command
}
