//! Popular servers from npm and PyPI, hosted as their own documentation configures them: each is
//! listed and called. All of them are pinned, and need neither an account nor a network.

#![expect(clippy::expect_used, reason = "a panic is the report of a test")]

use std::{
    env, fs,
    path::PathBuf,
    process::Command,
    sync::Mutex,
    thread,
    time::{Duration, Instant},
};

use fleet_tests::{
    bins, cache,
    fleet::{ServerOptions, Standalone},
    http, node,
    python::Python,
};
use serde_json::{Value, json};

/// The number of servers that start at once.
const AT_ONCE: usize = 4;

/// How long hosting and calling all of them may take.
const LIMIT: Duration = Duration::from_secs(180);

/// Enough time for cold starts of `npx` and `uvx` on a busy machine.
const HANDSHAKE_MS: &str = "80000";

/// A server, one call, and a part of the expected answer.
struct Popular {
    name: &'static str,
    config: Value,
    tool: &'static str,
    arguments: Value,
    expected: String,
}

#[test]
fn popular_servers_are_hosted_as_documented() {
    let (Some(modules), Some(python)) = (node::directory(), Python::get()) else { return };
    let workspace = Workspace::new(modules, &python);
    let upstream = Standalone::start("popular-upstream");
    let gateway = workspace.gateway();
    let servers = Mutex::new(popular(&workspace, &upstream));

    let begun = Instant::now();
    let failures: Vec<String> = thread::scope(|scope| {
        let lanes: Vec<_> = (0..AT_ONCE)
            .map(|_| {
                scope.spawn(|| {
                    let next = || servers.lock().expect("no lane has failed").pop();
                    std::iter::from_fn(next)
                        .filter_map(|server| host_and_call(&gateway, &server).err())
                        .collect()
                })
            })
            .collect();
        lanes
            .into_iter()
            .flat_map(|lane| lane.join().unwrap_or_else(|_| vec!["a lane failed".into()]))
            .collect()
    });

    let elapsed = begun.elapsed();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(elapsed <= LIMIT, "hosting and calling the servers took {elapsed:?}");
}

/// Hosts the server, finds the tool in the list, and calls it.
fn host_and_call(gateway: &Standalone, server: &Popular) -> Result<(), String> {
    let Popular { name, config, tool, arguments, expected } = server;
    let hosted =
        gateway.service.call("server_initialize", &json!({"name": name, "config": config}));
    if !hosted["error"].is_null() || hosted["result"]["isError"] == json!(true) {
        return Err(format!("{name} is not hosted: {hosted}"));
    }

    let list = json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list"});
    let (_, list) = http::post(gateway.service.address, "/message", &list)
        .map_err(|error| error.to_string())?;
    let offered = format!("{name}__{tool}");
    let tools = list["result"]["tools"].as_array().into_iter().flatten();
    if !tools.clone().any(|tool| tool["name"] == json!(offered)) {
        let names: Vec<_> = tools.map(|tool| &tool["name"]).collect();
        return Err(format!("{offered} is not among {names:?}"));
    }

    let answer = gateway.service.call(&offered, arguments);
    let output = answer["result"]["content"].to_string();
    if answer["result"]["isError"] == json!(true) || !output.contains(expected.as_str()) {
        return Err(format!("{offered} answered without {expected:?}: {answer}"));
    }
    Ok(())
}

/// The servers' files and programs.
struct Workspace {
    directory: PathBuf,
    modules: PathBuf,
    wheels: PathBuf,
    programs: PathBuf,
}

impl Workspace {
    fn new(modules: PathBuf, python: &Python) -> Self {
        let directory = bins::scratch("popular");
        fleet_tests::process::remove_at_exit(&directory);
        fs::write(directory.join("hello.txt"), "hello, fleet\n").expect("a file");
        let repository = directory.join("repository");
        cache::run(
            Command::new("git")
                .args(["init", "--quiet", "--initial-branch=harbour"])
                .arg(&repository),
        );
        let programs =
            python.interpreter().parent().expect("an interpreter is in a directory").to_owned();
        Self { directory, modules, wheels: python.wheels(), programs }
    }

    fn gateway(&self) -> Standalone {
        let mut path = self.programs.clone().into_os_string();
        path.push(":");
        path.push(env::var_os("PATH").unwrap_or_default());
        let path = path.into_string().expect("a PATH of UTF-8");
        let uv = ["OFFLINE", "FIND_LINKS", "CACHE_DIR", "PYTHON_DOWNLOADS", "TOOL_DIR"]
            .map(|name| format!("UV_{name}"));
        let allowed = format!("{},MEMORY_FILE_PATH,DB_URL,MCP_REMOTE_CONFIG_DIR", uv.join(","));
        let variables = [
            ("PATH", path),
            ("MCP_ALLOWED_ENV", allowed),
            ("MCP_ALLOWED_DIRS", self.modules.display().to_string()),
            ("MCP_HANDSHAKE_TIMEOUT_MS", HANDSHAKE_MS.to_owned()),
        ];
        let env = variables.map(|(name, value)| (name.to_owned(), value)).to_vec();
        let allowed = vec!["npx **".to_owned(), "uvx **".to_owned()];
        Standalone::start_with(
            "popular",
            ServerOptions { allowed, env, ..ServerOptions::default() },
        )
    }

    fn path(&self, name: &str) -> String {
        self.directory.join(name).display().to_string()
    }

    /// `npx -y PACKAGE ...`, with an installed package.
    fn npx(&self, package: &str, args: &[&str], env: &Value) -> Value {
        let args: Vec<_> = ["-y", package].into_iter().chain(args.iter().copied()).collect();
        json!({"command": "npx", "args": args, "cwd": self.modules, "env": env})
    }

    /// `uvx PACKAGE ...`, with packages from a directory.
    fn uvx(&self, args: &[&str], more: &[(&str, String)]) -> Value {
        let mut env = json!({
            "UV_OFFLINE": "1",
            "UV_FIND_LINKS": self.wheels,
            "UV_CACHE_DIR": self.path("uv-cache"),
            "UV_TOOL_DIR": self.path("uv-tools"),
            "UV_PYTHON_DOWNLOADS": "never",
        });
        for (name, value) in more {
            env[name] = json!(value);
        }
        json!({"command": "uvx", "args": args, "env": env})
    }
}

/// Six by `npx`, seven by `uvx`.
fn popular(workspace: &Workspace, upstream: &Standalone) -> Vec<Popular> {
    let address = upstream.service.address;
    let (remote, health) = (format!("http://{address}/mcp"), format!("http://{address}/health"));
    let repository = workspace.path("repository");
    let tree = workspace.directory.display().to_string();
    let npx = |package: &str, args: &[&str]| workspace.npx(package, args, &json!({}));
    let thought = json!({"thought": "count the ships", "thoughtNumber": 1, "totalThoughts": 1, "nextThoughtNeeded": false});
    let entity =
        json!({"name": "Rotterdam", "entityType": "harbour", "observations": ["It is large."]});
    let hours = json!({"source_timezone": "UTC", "time": "12:00", "target_timezone": "Asia/Tokyo"});
    [
        (
            "filesystem",
            npx("@modelcontextprotocol/server-filesystem", &[&tree]),
            ("read_text_file", json!({"path": workspace.path("hello.txt")}), "hello, fleet"),
        ),
        (
            "memory",
            workspace.npx(
                "@modelcontextprotocol/server-memory",
                &[],
                &json!({"MEMORY_FILE_PATH": workspace.path("memory.jsonl")}),
            ),
            ("create_entities", json!({"entities": [entity]}), "Rotterdam"),
        ),
        (
            "thinking",
            npx("@modelcontextprotocol/server-sequential-thinking", &[]),
            ("sequentialthinking", thought, "thoughtHistoryLength"),
        ),
        (
            "everything",
            npx("@modelcontextprotocol/server-everything", &[]),
            ("get-sum", json!({"a": 4700, "b": 11}), "4711"),
        ),
        (
            "git-of-node",
            npx("@cyanheads/git-mcp-server", &[]),
            ("git_status", json!({"path": repository}), "harbour"),
        ),
        (
            "bridge",
            workspace.npx(
                "mcp-remote",
                &[&remote],
                &json!({"MCP_REMOTE_CONFIG_DIR": workspace.path("mcp-remote")}),
            ),
            ("file_read", json!({"path": "hello.txt"}), "hello, fleet"),
        ),
        ("time", workspace.uvx(&["mcp-server-time"], &[]), ("convert_time", hours, "Asia/Tokyo")),
        (
            "fetch",
            workspace.uvx(&["mcp-server-fetch", "--ignore-robots-txt", "--allow-private-ips"], &[]),
            ("fetch", json!({"url": health}), &health),
        ),
        (
            "git",
            workspace.uvx(&["mcp-server-git", "--repository", &repository], &[]),
            ("git_status", json!({"repo_path": repository}), "harbour"),
        ),
        (
            "sqlite",
            workspace.uvx(
                &["--with", "mcp<2", "mcp-server-sqlite", "--db-path", &workspace.path("ships.db")],
                &[],
            ),
            ("write_query", json!({"query": "CREATE TABLE ships (name TEXT)"}), "affected_rows"),
        ),
        (
            "calculator",
            workspace.uvx(&["--with", "mcp<2", "mcp-server-calculator"], &[]),
            ("calculate", json!({"expression": "4700 + 11"}), "4711"),
        ),
        (
            "excel",
            workspace.uvx(&["excel-mcp-server", "stdio"], &[]),
            ("create_workbook", json!({"path": workspace.path("ships.xlsx")}), "ships.xlsx"),
        ),
        (
            "alchemy",
            workspace.uvx(
                &["mcp-alchemy"],
                &[("DB_URL", format!("sqlite:///{}", workspace.path("alchemy.db")))],
            ),
            ("execute_query", json!({"query": "SELECT 4700 + 11 AS ships"}), "4711"),
        ),
    ]
    .map(|(name, config, (tool, arguments, expected))| Popular {
        name,
        config,
        tool,
        arguments,
        expected: expected.to_owned(),
    })
    .into()
}
