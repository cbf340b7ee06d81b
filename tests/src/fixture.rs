//! The tool of the fixture servers: it behaves as its arguments say, and logs its calls.
//!
//! The log is the chaos test's source of truth about calls. Each line is written with one `write`,
//! so the order of lines is the order of events, without any clock. `boot` means that no call of an
//! earlier process goes on; `s` and `e` are the start and the end of a call, with job, attempt and
//! key; `c` means that a call was cancelled. A cancelled call goes on all the same, which is worse
//! for its callers and therefore better for a test.

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

/// The log of calls, and the calls by request id.
#[derive(Debug)]
pub struct CallLog {
    file: File,
    /// Job, attempt and key of every call, by the id of its request.
    calls: Mutex<HashMap<String, String>>,
}

impl CallLog {
    /// Opens the file at `path` for appending, and logs the start of a process.
    pub fn open(path: &Path) -> Self {
        let file = OpenOptions::new().create(true).append(true).open(path).expect("the ledger");
        let log = Self { file, calls: Mutex::default() };
        log.note("boot");
        log
    }

    /// Logs that the call of the request `id` was cancelled.
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

/// The tool list of the servers.
pub fn tools() -> Value {
    json!({"tools": [{"name": "work", "inputSchema": {"type": "object"}}]})
}

/// The servers' answer to `initialize`, with the revision that the client has requested.
pub fn initialized(params: &Value) -> Value {
    let info = json!({"name": "fixture-tools", "version": "1"});
    json!({"protocolVersion": params["protocolVersion"], "capabilities": {"tools": {}}, "serverInfo": info})
}

/// Takes `ms`, and until the file `until` exists. Fails the first `failures` attempts, or finally
/// if `final` is set. Reports `progress` to `notify` in so many steps, spread over `ms`. Returns
/// `echo`, as structured content and as an unknown member of its text.
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
        // This sleep is the tool's work, not a wait for something.
        thread::sleep(Duration::from_millis(ms));
    }
    if let Some(gate) = arguments["until"].as_str() {
        wait::poll_until("the gate", wait::LONG, || Path::new(gate).exists().then_some(()));
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
