//! Starts the real binary on a free port with private data, and sends requests to it.

use std::{
    net::SocketAddr,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use serde_json::{Value, json};
use tokio::process::{Child, Command};

/// The longest time to wait for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A running server that is killed when dropped.
pub(crate) struct Server {
    pub(crate) process: Child,
    pub(crate) address: SocketAddr,
    pub(crate) http: reqwest::Client,
    _home: tempfile::TempDir,
}

/// The binary under test.
pub(crate) fn binary() -> &'static str {
    env!("CARGO_BIN_EXE_mcp-server")
}

/// Waits until `check` returns a value.
pub(crate) async fn eventually<T>(what: &str, mut check: impl AsyncFnMut() -> Option<T>) -> T {
    let start = Instant::now();
    loop {
        if let Some(value) = check().await {
            return value;
        }
        assert!(start.elapsed() < PATIENCE, "not in time: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// A command that runs the binary without any setting from this environment.
pub(crate) fn command(args: &[&str]) -> Command {
    quiet(Command::new(binary()), args)
}

/// Like [`command`], but as an ordinary user even if the tests run as root, which may inspect every
/// process.
pub(crate) fn ordinary_command(args: &[&str]) -> Command {
    if std::fs::metadata("/proc/self").unwrap().uid() != 0 {
        return command(args);
    }
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups", binary()]);
    quiet(command, args)
}

/// Takes what the binary would listen to out of the environment of `command`.
pub(crate) fn quiet(mut command: Command, args: &[&str]) -> Command {
    for (name, _) in std::env::vars() {
        if name.starts_with("MCP_")
            || name.starts_with("KAFKA_")
            || matches!(name.as_str(), "PORT" | "LOG_LEVEL" | "LOG_FORMAT")
        {
            command.env_remove(name);
        }
    }
    command.args(args).env("RUST_LOG", "warn,rmcp=off").kill_on_drop(true);
    command
}

impl Server {
    pub(crate) async fn start(args: &[&str]) -> Self {
        Self::start_with(args, &[]).await
    }

    pub(crate) async fn start_with(args: &[&str], env: &[(&str, &str)]) -> Self {
        Self::start_command(command(args), env).await
    }

    pub(crate) async fn start_command(mut command: Command, env: &[(&str, &str)]) -> Self {
        let home = tempfile::tempdir().unwrap();
        open_to_all(home.path());
        let ready = home.path().join("ready");
        let mut process = command
            .args(["--port", "0", "--ready-file"])
            .arg(&ready)
            .envs(env.iter().copied())
            .spawn()
            .unwrap();
        let start = Instant::now();
        let address = loop {
            if let Ok(text) = std::fs::read_to_string(&ready) {
                break text.trim().parse().unwrap();
            }
            if let Some(status) = process.try_wait().unwrap() {
                panic!("the server ended at once: {status}");
            }
            assert!(start.elapsed() < PATIENCE, "the server did not listen in time");
            tokio::time::sleep(Duration::from_millis(10)).await;
        };

        let http = reqwest::Client::builder().no_proxy().build().unwrap();
        Self { process, address, http, _home: home }
    }

    pub(crate) fn url(&self, path: &str) -> String {
        format!("http://{}{path}", self.address)
    }

    /// Posts a body to `/message`; returns the status and the body of the response.
    pub(crate) async fn post(&self, body: impl Into<reqwest::Body>) -> (u16, Value) {
        let request = self
            .http
            .post(self.url("/message"))
            .header("content-type", "application/json")
            .body(body);
        let response = request.send().await.unwrap();
        let status = response.status().as_u16();
        let text = response.text().await.unwrap();
        (status, serde_json::from_str(&text).unwrap_or(Value::String(text)))
    }

    /// Sends one JSON-RPC request through `/message`.
    pub(crate) async fn request(&self, method: &str, params: Value) -> Value {
        let body = json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params });
        let (status, answer) = self.post(body.to_string()).await;
        assert_eq!(status, 200, "{answer}");
        answer
    }

    /// Calls a tool; returns the whole JSON-RPC answer.
    pub(crate) async fn call_raw(&self, tool: &str, arguments: Value) -> Value {
        self.request("tools/call", json!({ "name": tool, "arguments": arguments })).await
    }

    /// Calls a tool, and expects a result.
    pub(crate) async fn call(&self, tool: &str, arguments: Value) -> Value {
        let answer = self.call_raw(tool, arguments).await;
        assert!(answer["result"].is_object(), "{answer}");
        answer["result"].clone()
    }

    /// Calls a tool, and expects success; returns the structured content.
    pub(crate) async fn call_ok(&self, tool: &str, arguments: Value) -> Value {
        let result = self.call(tool, arguments).await;
        assert_ne!(result["isError"], json!(true), "{result}");
        result["structuredContent"].clone()
    }

    /// Calls a tool, and expects a failure; returns the message, and whether the failure is final.
    pub(crate) async fn call_error(&self, tool: &str, arguments: Value) -> (String, bool) {
        let result = self.call(tool, arguments).await;
        assert_eq!(result["isError"], json!(true), "{result}");
        let is_final = result["_meta"]["io.mcp-fleet/final"] == json!(true);
        (result["content"][0]["text"].as_str().unwrap().to_owned(), is_final)
    }

    pub(crate) async fn initialize(&self, name: &str, config: Value) -> Value {
        self.call_ok("server_initialize", json!({ "name": name, "config": config })).await
    }

    pub(crate) async fn initialize_error(&self, name: &str, config: Value) -> (String, bool) {
        self.call_error("server_initialize", json!({ "name": name, "config": config })).await
    }

    pub(crate) async fn tool_names(&self) -> Vec<String> {
        let answer = self.request("tools/list", json!({})).await;
        let tools = answer["result"]["tools"].as_array().unwrap();
        tools.iter().map(|tool| tool["name"].as_str().unwrap().to_owned()).collect()
    }

    pub(crate) async fn status(&self, name: &str) -> Value {
        self.call_ok("server_status", json!({ "name": name })).await["servers"][0].clone()
    }

    /// The value of a metric, by the name and labels that a scrape shows.
    pub(crate) async fn metric(&self, series: &str) -> Option<f64> {
        let text = self.http.get(self.url("/metrics")).send().await.unwrap().text().await.unwrap();
        text.lines().find_map(|line| line.strip_prefix(series))?.trim().parse().ok()
    }

    /// Stops the server as an orchestrator does, and waits for its exit.
    pub(crate) async fn terminate(mut self) -> std::process::ExitStatus {
        signal(self.process.id().unwrap(), nix::sys::signal::Signal::SIGTERM);
        tokio::time::timeout(PATIENCE, self.process.wait())
            .await
            .expect("the server did not end")
            .unwrap()
    }
}

pub(crate) fn signal(pid: u32, signal: nix::sys::signal::Signal) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(i32::try_from(pid).unwrap()), signal)
        .unwrap();
}

/// Whether a process exists and is not a zombie.
pub(crate) fn is_alive(pid: u32) -> bool {
    let Ok(stat) = std::fs::read_to_string(format!("/proc/{pid}/stat")) else { return false };
    let state = stat.rsplit(')').next().and_then(|rest| rest.trim().chars().next());
    !matches!(state, None | Some('Z' | 'X'))
}

/// Whether a process exists, even as a zombie.
pub(crate) fn exists(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// Opens a directory to all users, because the tests run programs as another user.
pub(crate) fn open_to_all(dir: &Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o777)).unwrap();
}

/// A directory with a few files.
pub(crate) struct Tree {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) root: PathBuf,
}

pub(crate) fn tree() -> Tree {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().canonicalize().unwrap().join("root");
    std::fs::create_dir_all(root.join("sub/deep")).unwrap();
    std::fs::write(root.join("hello.txt"), "hello\nwörld\n").unwrap();
    std::fs::write(root.join("binary.bin"), [0xff, 0xfe, 0, 1]).unwrap();
    std::fs::write(root.join("sub/a.rs"), "fn a() {}\n").unwrap();
    std::fs::write(root.join("sub/deep/b.rs"), "fn b() {}\n").unwrap();
    std::fs::write(root.join("big.txt"), "x".repeat(3000)).unwrap();
    std::fs::write(dir.path().join("secret.txt"), "secret").unwrap();
    std::os::unix::fs::symlink(dir.path().join("secret.txt"), root.join("escape")).unwrap();
    std::os::unix::fs::symlink(dir.path(), root.join("up")).unwrap();
    std::os::unix::fs::symlink(root.join("hello.txt"), root.join("inside")).unwrap();
    Tree { dir, root }
}

/// Writes a scripted MCP server: an executable shell script.
pub(crate) fn script(dir: &Path, name: &str, body: &str) -> String {
    use std::os::unix::fs::PermissionsExt;
    let path = dir.join(name);
    std::fs::write(&path, format!("#!/bin/sh\n{body}\n")).unwrap();
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
    path.to_str().unwrap().to_owned()
}

/// The body of a scripted server of the older protocol with one tool, `tool`. Every line other than
/// handshake and list is answered by `on_call`, a shell fragment in which `$id` is the request's
/// id.
pub(crate) fn legacy_server(tool: &str, on_call: &str) -> String {
    format!(
        r#"while read -r line; do
  id=$(printf '%s' "$line" | sed -n 's/.*"id":\([0-9]*\).*/\1/p')
  case "$line" in
    *'"server/discover"'*) printf '{{"jsonrpc":"2.0","id":%s,"error":{{"code":-32601,"message":"no"}}}}\n' "$id" ;;
    *'"initialize"'*) printf '{{"jsonrpc":"2.0","id":%s,"result":{{"protocolVersion":"2025-06-18","capabilities":{{"tools":{{}}}},"serverInfo":{{"name":"scripted","version":"1"}}}}}}\n' "$id" ;;
    *'"tools/list"'*) printf '{{"jsonrpc":"2.0","id":%s,"result":{{"tools":[{{"name":"{tool}","inputSchema":{{"type":"object"}}}}]}}}}\n' "$id" ;;
    *'"tools/call"'*) {on_call} ;;
  esac
done"#
    )
}

/// The body of a scripted server of 2026-07-28 with one tool, `tool`, that refuses `initialize` and
/// answers calls with `on_call`, as [`legacy_server`] does.
pub(crate) fn modern_server(tool: &str, on_call: &str) -> String {
    let body = legacy_server(tool, on_call);
    let discover = r#"*'"server/discover"'*) printf '{"jsonrpc":"2.0","id":%s,"result":{"resultType":"complete","supportedVersions":["2026-07-28"],"capabilities":{"tools":{}},"ttlMs":0,"cacheScope":"private"}}\n' "$id" ;;"#;
    let initialize = r#"*'"initialize"'*) printf '{"jsonrpc":"2.0","id":%s,"error":{"code":-32601,"message":"no"}}\n' "$id" ;;"#;
    let lines = body.lines().map(|line| match line.trim_start() {
        line if line.starts_with("*'\"server/discover\"'*)") => discover.to_owned(),
        line if line.starts_with("*'\"initialize\"'*)") => initialize.to_owned(),
        line if line.starts_with("*'\"tools/list\"'*)") => line.replace(
            r#""result":{"#,
            r#""result":{"resultType":"complete","ttlMs":0,"cacheScope":"private","#,
        ),
        line => line.to_owned(),
    });
    lines.collect::<Vec<_>>().join("\n")
}

/// A shell fragment that answers a call with a text; `$text` of the shell is the text.
pub(crate) const ANSWER_TEXT: &str = r#"printf '{"jsonrpc":"2.0","id":%s,"result":{"content":[{"type":"text","text":"%s"}]}}\n' "$id" "$text""#;

/// A scripted server whose calls write the file `begun` and answer once the file `go` exists, both
/// next to the script.
pub(crate) fn patient(dir: &Path, name: &str) -> String {
    let wait = "d=$(dirname \"$0\"); touch \"$d/begun\"; while [ ! -e \"$d/go\" ]; do sleep 0.05; done; text=done";
    script(dir, name, &legacy_server("work", &format!("{wait}; {ANSWER_TEXT}")))
}
