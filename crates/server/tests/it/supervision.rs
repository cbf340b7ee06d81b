//! Children under limits, idle children, and children that are started and stopped very often.

use nix::sys::signal::Signal;
use serde_json::json;

use crate::common::{
    ANSWER_TEXT, Server, eventually, is_alive, legacy_server, patient, script, signal,
};

fn policy(dir: &std::path::Path, limits: &str, program: &str) -> String {
    let path = dir.join("policy.toml");
    std::fs::write(&path, format!("[[command]]\nargv = [{program:?}, \"**\"]\n{limits}\n"))
        .unwrap();
    path.to_str().unwrap().to_owned()
}

#[tokio::test]
async fn limits_apply_to_children_and_their_children_from_the_start() {
    let dir = tempfile::tempdir().unwrap();
    let on_call = format!(
        "text=\"$(ulimit -n),$(ulimit -d),$(ulimit -t),$(sh -c 'ulimit -n'),$1,$SECRET\"; {ANSWER_TEXT}"
    );
    let program = script(dir.path(), "server", &legacy_server("work", &on_call));
    let limits = "env = [\"SECRET\"]\n[[server]]\nname = \"x\"\nmax_open_files = 77\nmax_memory_mb = 100\nmax_cpu_seconds = 50";
    let server = Server::start(&["--policy", &policy(dir.path(), limits, &program)]).await;
    let config = json!({"command": program, "args": ["$(id) `id`"], "env": {"SECRET": "s"}});
    let pid = server.initialize("x", config.clone()).await["pid"].as_u64().unwrap();
    let text = server.call("x__work", json!({})).await["content"][0]["text"].clone();
    assert_eq!(text, format!("77,{},50,77,$(id) `id`,s", 100 * 1024));

    // The process is the program by now, and still the supervised one.
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap();
    assert_eq!(name.trim(), "server");

    // Other servers have their own limits.
    server.initialize("other", config).await;
    let text = server.call("other__work", json!({})).await["content"][0]["text"].clone();
    assert!(!text.as_str().unwrap().starts_with("77,"), "{text}");
}

#[tokio::test]
async fn a_child_that_exceeds_a_limit_is_ended_with_a_reason() {
    let dir = tempfile::tempdir().unwrap();
    let hog = "text=$(dd if=/dev/zero of=/dev/null bs=300M count=1 2>&1 | head -n 1 | tr -d '\"')";
    let greedy =
        script(dir.path(), "greedy", &legacy_server("work", &format!("{hog}; {ANSWER_TEXT}")));
    let limits = "[limits]\nmax_memory_mb = 64\nmax_cpu_seconds = 1";
    let server = Server::start(&["--policy", &policy(dir.path(), limits, &greedy)]).await;
    server.initialize("greedy", json!({"command": greedy})).await;
    let text = server.call("greedy__work", json!({})).await["content"][0]["text"].clone();
    assert!(text.as_str().unwrap().contains("memory exhausted"), "{text}");

    let busy = script(dir.path(), "busy", &legacy_server("work", "while :; do :; done"));
    let server = Server::start(&["--policy", &policy(dir.path(), limits, &busy)]).await;
    server.initialize("busy", json!({"command": busy})).await;
    let lost = server.call_raw("busy__work", json!({})).await;
    assert_eq!(lost["error"]["data"]["reason"], "connection-lost", "{lost}");

    let status = eventually("the death to be noticed", async || {
        let status = server.status("busy").await;
        (status["state"] == "failed").then_some(status)
    })
    .await;
    assert!(status["lastError"].as_str().unwrap().contains("SIGXCPU"), "{status}");
}

#[tokio::test]
async fn a_missing_program_is_an_error_of_the_launcher_too() {
    let dir = tempfile::tempdir().unwrap();
    let program = script(dir.path(), "server", "");
    std::fs::write(&program, "#!/no/such/interpreter\n").unwrap();
    let limits = "[limits]\nmax_open_files = 64";
    let server = Server::start(&["--policy", &policy(dir.path(), limits, &program)]).await;
    let (message, is_final) = server.initialize_error("x", json!({"command": program})).await;
    assert!(!is_final && message.contains("could not start the program"), "{message}");
    assert!(message.contains("status 127"), "{message}");
}

#[tokio::test]
async fn an_idle_child_is_stopped_until_it_is_called() {
    let dir = tempfile::tempdir().unwrap();
    let program = patient(dir.path(), "server");
    let limits = "[[server]]\nname = \"x\"\nidle_timeout_ms = 300";
    let server = Server::start(&["--policy", &policy(dir.path(), limits, &program)]).await;
    let pid = server.initialize("x", json!({"command": program})).await["pid"].as_u64().unwrap();
    let resting = async || {
        eventually("the child to rest", async || {
            (server.status("x").await["state"] == "idle").then_some(())
        })
        .await;
    };
    resting().await;
    eventually("its process to be gone", async || {
        (!is_alive(u32::try_from(pid).unwrap())).then_some(())
    })
    .await;
    let listed = server.request("tools/list", json!({})).await;
    assert!(listed["result"]["_meta"].is_null(), "an idle server causes no warning: {listed}");
    assert!(server.tool_names().await.contains(&"x__work".to_owned()));

    // A call starts the child, and is not interrupted however long it takes.
    let watched = async {
        eventually("the call to outlast the idle time", async || {
            let status = server.status("x").await;
            let long = status["uptimeMs"].as_u64().is_some_and(|uptime| uptime > 900);
            (long && status["callsInFlight"] == 1).then_some(())
        })
        .await;
        std::fs::write(dir.path().join("go"), "").unwrap();
    };
    let (answer, ()) = tokio::join!(server.call("x__work", json!({})), watched);
    assert_eq!(answer["content"][0]["text"], "done");
    resting().await;
    let status = server.status("x").await;
    assert_eq!((&status["restarts"], &status["lastError"]), (&json!(0), &json!(null)), "{status}");
}

#[tokio::test]
async fn children_notice_that_their_server_was_killed() {
    let dir = tempfile::tempdir().unwrap();
    let program = script(dir.path(), "server", &legacy_server("work", ANSWER_TEXT));
    let mut server = Server::start(&["--allow-command", &program]).await;
    let pid = server.initialize("x", json!({"command": program})).await["pid"].as_u64().unwrap();
    signal(server.process.id().unwrap(), Signal::SIGKILL);
    server.process.wait().await.unwrap();

    // The child notices the end of its standard input.
    eventually("the child to be gone", async || {
        (!is_alive(u32::try_from(pid).unwrap())).then_some(())
    })
    .await;
}

/// The number of open files of a process, and its resident memory in KiB.
async fn holdings(server: &Server, pid: u32) -> (f64, u64) {
    // The process itself reports this, because others can't inspect it.
    let files = server.metric("process_open_fds").await.unwrap();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    (files, resident.trim().trim_end_matches(" kB").parse().unwrap())
}

/// The number of children of a process, and how many of them are zombies.
fn children_of(pid: u32) -> (usize, usize) {
    let of = |entry: std::fs::DirEntry| {
        let stat = std::fs::read_to_string(entry.path().join("stat")).ok()?;
        let mut fields = stat.rsplit(')').next()?.split_whitespace();
        let state = fields.next()?.to_owned();
        (fields.next()?.parse::<u32>().ok()? == pid).then_some(state)
    };
    let states: Vec<String> =
        std::fs::read_dir("/proc").unwrap().flatten().filter_map(of).collect();
    (states.len(), states.iter().filter(|state| *state == "Z").count())
}

/// `MCP_TEST_CYCLES=1000` for more. The child answers from one process, so that a cycle is quick.
#[tokio::test]
async fn starting_and_stopping_children_leaves_nothing_behind() {
    let cycles: u32 = std::env::var("MCP_TEST_CYCLES").map_or(60, |count| count.parse().unwrap());
    let server =
        Server::start(&["--allow-command", &format!("'{}' --stdio", crate::common::binary())])
            .await;
    let pid = server.process.id().unwrap();
    let config = json!({"command": crate::common::binary(), "args": ["--stdio"]});
    let cycle = async |round: u32| {
        server.initialize("x", config.clone()).await;
        // In turns: removed, replaced by another one, and killed from outside.
        if round.is_multiple_of(3) {
            let status = server.status("x").await;
            signal(u32::try_from(status["pid"].as_u64().unwrap()).unwrap(), Signal::SIGKILL);
            eventually("the death to be noticed", async || {
                (server.status("x").await["state"] == "failed").then_some(())
            })
            .await;
        }
        server.call_ok("server_remove", json!({"name": "x"})).await;
    };

    // The first cycles fill pools and caches.
    for round in 0..cycles.div_ceil(10).max(10) {
        cycle(round).await;
    }

    let (files, memory) = holdings(&server, pid).await;
    for round in 0..cycles {
        cycle(round).await;
    }

    let settled = eventually("nothing to be left", async || {
        let (children, zombies) = children_of(pid);
        (children == 0 && holdings(&server, pid).await.0 <= files).then_some((children, zombies))
    })
    .await;
    let (files_after, memory_after) = holdings(&server, pid).await;
    println!(
        "{cycles} cycles: children and zombies {settled:?}, open files {files} -> {files_after}, \
         resident {memory} -> {memory_after} KiB"
    );

    // A leaked task with its buffers would be tens of KiB per cycle.
    let grown = memory_after.saturating_sub(memory);
    assert!(grown < 4096 + u64::from(cycles) * 4, "{memory} -> {memory_after} KiB");
}
