//! The tool that the fixture servers offer: it behaves as its arguments say, and writes down that
//! it was called.
//!
//! The ledger is what the chaos test believes about calls: lines are written with one `write` each,
//! so their order in the file is the order of what happened, without any clock. `boot` says that
//! nothing of what an earlier process has begun goes on; `s` and `e` are the start and the end of a
//! call, with job, attempt and key; `c` says that a call was cancelled, which it goes on in spite
//! of: what is worse for its callers is better for a test.

use std::{
    collections::HashMap,
    fs::{File, OpenOptions},
    io::Write as _,
    path::Path,
    thread,
    time::Duration,
};

use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::wait;

/// Where calls are written down, and what goes by which id.
#[derive(Debug)]
pub struct CallLog {
    file: File,
    /// Job, attempt and key of every call that was made, by the id of its request.
    calls: Mutex<HashMap<String, String>>,
}

impl CallLog {
    /// Opens the file at `path` for appending, and says in it that a process has started.
    pub fn open(path: &Path) -> Self {
        let file = OpenOptions::new().create(true).append(true).open(path).expect("the ledger");
        let log = Self { file, calls: Mutex::default() };
        log.note("boot");
        log
    }

    /// Writes down that the call of the request `id` was cancelled.
    pub fn cancelled(&self, id: &Value) {
        let calls = self.calls.lock();
        if let Some(call) = calls.get(&id.to_string()) {
            self.note(&format!("c {call}"));
        }
    }

    fn began(&self, id: &Value, call: &str) {
        self.calls.lock().insert(id.to_string(), call.to_owned());
        self.note(&format!("s {call}"));
    }

    fn note(&self, line: &str) {
        (&self.file).write_all(format!("{line}\n").as_bytes()).expect("the ledger");
    }
}

/// What the servers say of the tool in their lists.
pub fn tools() -> Value {
    json!({"tools": [{"name": "work", "inputSchema": {"type": "object"}}]})
}

/// What the servers answer to `initialize`: the revision that the client has asked for.
pub fn initialized(params: &Value) -> Value {
    let info = json!({"name": "fixture-tools", "version": "1"});
    json!({"protocolVersion": params["protocolVersion"], "capabilities": {"tools": {}}, "serverInfo": info})
}

/// Takes `ms`, and until the file `until` is there; fails the first `failures` attempts, or for
/// good where `final` is set. Tells of its `progress` to `notify` in so many steps, spread over
/// `ms`. Gives `echo` back, as structured content and as an unknown member of its text.
pub fn work(id: &Value, params: &Value, log: &CallLog, notify: impl Fn(&Value)) -> Value {
    let (meta, arguments) = (&params["_meta"], &params["arguments"]);
    let job = meta["io.mcp-fleet/jobId"].as_str().unwrap_or("-");
    let attempt = meta["io.mcp-fleet/attempt"].as_u64().unwrap_or_default();
    let key = arguments["key"].as_str().unwrap_or("-");
    let call = format!("{job} {attempt} {key}");
    log.began(id, &call);

    let steps = arguments["progress"].as_u64().unwrap_or_default();
    let token = meta.get("progressToken").filter(|_| steps > 0);
    let ms = arguments["ms"].as_u64().unwrap_or_default();
    for step in 1..=steps {
        thread::sleep(Duration::from_millis(ms) / u32::try_from(steps).expect("a small number"));
        if let Some(token) = token {
            let params = json!({"progressToken": token, "progress": step, "total": steps,
                "message": format!("step {step}")});
            notify(
                &json!({"jsonrpc": "2.0", "method": "notifications/progress", "params": params}),
            );
        }
    }
    if steps == 0 {
        // This is the tool's work and not a wait for something.
        thread::sleep(Duration::from_millis(ms));
    }
    if let Some(gate) = arguments["until"].as_str() {
        wait::until("the gate", wait::LONG, || Path::new(gate).exists().then_some(()));
    }

    log.note(&format!("e {call}"));
    let is_final = arguments["final"].as_bool().unwrap_or_default();
    let fails = is_final || attempt <= arguments["failures"].as_u64().unwrap_or_default();
    let text = if fails { "as it was asked to, it fails" } else { "done" };
    let mut result = json!({"content": [{"type": "text", "text": text}], "isError": fails,
        "_meta": {"io.mcp-fleet/final": is_final, "test/traceparent": meta["traceparent"]}});
    if let Some(echo) = arguments.get("echo") {
        result["content"][0]["echo"] = echo.clone();
        result["structuredContent"] = json!({ "echo": echo });
    }
    result
}
