//! An MCP server over stdio whose one tool, `work`, behaves as its arguments say, and writes down that it was called.
//!
//! The ledger (`argv[1]`, append-only) is what the chaos test believes about calls: lines are written with one `write`
//! each, so their order in the file is the order of what happened, without any clock. `boot` says that nothing of what an
//! earlier process has begun goes on; `s` and `e` are the start and the end of a call, with job, attempt and key; `c` says
//! that a call was cancelled, which it goes on in spite of: what is worse for its callers is better for a test.

#![expect(clippy::expect_used, reason = "a panic is the report of a test")]

use std::{
    collections::HashMap,
    env,
    fs::{File, OpenOptions},
    io::{self, BufRead as _, Write as _},
    path::Path,
    sync::{Arc, Mutex, PoisonError},
    thread,
    time::Duration,
};

use serde_json::{Value, json};

fn main() {
    let path = env::args_os().nth(1).expect("usage: fixture_tools LEDGER");
    let file = OpenOptions::new().create(true).append(true).open(path).expect("the ledger");
    let ledger = Arc::new(Ledger { file, calls: Mutex::default() });
    ledger.note("boot");
    for line in io::stdin().lock().lines() {
        let Ok(request) = line.map_err(drop).and_then(|line| serde_json::from_str(&line).map_err(drop))
        else {
            continue;
        };
        let ledger = Arc::clone(&ledger);
        handle(request, ledger);
    }
}

/// Where calls are written down, and what goes by which id.
struct Ledger {
    file: File,
    /// Job, attempt and key of every call that was made.
    calls: Mutex<HashMap<String, String>>,
}

impl Ledger {
    fn note(&self, line: &str) {
        (&self.file).write_all(format!("{line}\n").as_bytes()).expect("the ledger");
    }

    fn began(&self, id: &Value, call: &str) {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).insert(id.to_string(), call.to_owned());
        self.note(&format!("s {call}"));
    }

    fn cancelled(&self, id: &Value) {
        let calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(call) = calls.get(&id.to_string()) {
            self.note(&format!("c {call}"));
        }
    }
}

fn handle(request: Value, ledger: Arc<Ledger>) {
    let params = request.get("params").cloned().unwrap_or_default();
    // Notifications need no answer.
    let Some(id) = request.get("id").cloned() else {
        if request["method"] == "notifications/cancelled" {
            ledger.cancelled(&params["requestId"]);
        }
        return;
    };
    match request["method"].as_str().unwrap_or_default() {
        "initialize" => {
            let version = &params["protocolVersion"];
            let info = json!({"name": "fixture-tools", "version": "1"});
            answer(
                &id,
                json!({"protocolVersion": version, "capabilities": {"tools": {}}, "serverInfo": info}),
            );
        }
        "ping" => answer(&id, json!({})),
        "tools/list" => {
            answer(&id, json!({"tools": [{"name": "work", "inputSchema": {"type": "object"}}]}));
        }
        "tools/call" => drop(thread::spawn(move || answer(&id, work(&id, &params, &ledger)))),
        method => {
            let error = json!({"code": -32601, "message": format!("no method {method}")});
            say(&json!({"jsonrpc": "2.0", "id": id, "error": error}));
        }
    }
}

/// Takes `ms`, and until the file `until` is there; fails the first `failures` attempts, or for good where `final` is set.
/// Tells of its `progress` in so many steps, spread over `ms`.
fn work(id: &Value, params: &Value, ledger: &Ledger) -> Value {
    let (meta, arguments) = (&params["_meta"], &params["arguments"]);
    let job = meta["io.mcp-fleet/jobId"].as_str().unwrap_or("-");
    let attempt = meta["io.mcp-fleet/attempt"].as_u64().unwrap_or_default();
    let key = arguments["key"].as_str().unwrap_or("-");
    let call = format!("{job} {attempt} {key}");
    ledger.began(id, &call);
    let steps = arguments["progress"].as_u64().unwrap_or_default();
    let token = meta.get("progressToken").filter(|_| steps > 0);
    let ms = arguments["ms"].as_u64().unwrap_or_default();
    for step in 1..=steps {
        thread::sleep(Duration::from_millis(ms) / u32::try_from(steps).expect("a small number"));
        if let Some(token) = token {
            let params = json!({"progressToken": token, "progress": step, "total": steps, "message": format!("step {step}")});
            say(&json!({"jsonrpc": "2.0", "method": "notifications/progress", "params": params}));
        }
    }
    if steps == 0 {
        // This is the tool's work and not a wait for something.
        thread::sleep(Duration::from_millis(ms));
    }
    if let Some(gate) = arguments["until"].as_str() {
        fleet_tests::wait::until("the gate", fleet_tests::wait::LONG, || {
            Path::new(gate).exists().then_some(())
        });
    }
    ledger.note(&format!("e {call}"));
    let is_final = arguments["final"].as_bool().unwrap_or_default();
    let fails = is_final || attempt <= arguments["failures"].as_u64().unwrap_or_default();
    let text = if fails { "as it was asked to, it fails" } else { "done" };
    json!({"content": [{"type": "text", "text": text}], "isError": fails,
        "_meta": {"io.mcp-fleet/final": is_final, "test/traceparent": meta["traceparent"]}})
}

fn answer(id: &Value, result: Value) {
    say(&json!({"jsonrpc": "2.0", "id": id, "result": result}));
}

fn say(message: &Value) {
    let mut out = io::stdout().lock();
    // Whoever asked may be gone, and then this process is about to end too.
    drop(out.write_all(format!("{message}\n").as_bytes()).and_then(|()| out.flush()));
}
