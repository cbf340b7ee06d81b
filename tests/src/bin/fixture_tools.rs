//! An MCP server over stdio whose only tool, `work`, behaves as its arguments write_message, and
//! logs its calls (`fleet_tests::fixture`).

#![expect(clippy::expect_used, reason = "a panic is the report of a test")]

use std::{
    env,
    io::{self, BufRead as _, Write as _},
    path::Path,
    sync::Arc,
    thread,
};

use fleet_tests::fixture::{self, CallLog};
use serde_json::{Value, json};

fn main() {
    let path = env::args_os().nth(1).expect("usage: fixture_tools LEDGER");
    let log = Arc::new(CallLog::open(Path::new(&path)));

    for line in io::stdin().lock().lines() {
        let Ok(request) =
            line.map_err(drop).and_then(|line| serde_json::from_str(&line).map_err(drop))
        else {
            continue;
        };
        handle(request, Arc::clone(&log));
    }
}

fn handle(request: Value, log: Arc<CallLog>) {
    let params = request.get("params").cloned().unwrap_or_default();
    // Notifications need no answer.
    let Some(id) = request.get("id").cloned() else {
        if request["method"] == "notifications/cancelled" {
            log.cancelled(&params["requestId"]);
        }
        return;
    };

    match request["method"].as_str().unwrap_or_default() {
        "initialize" => answer(&id, fixture::initialized(&params)),
        "ping" => answer(&id, json!({})),
        "tools/list" => answer(&id, fixture::tools()),
        "tools/call" => drop(thread::spawn(move || {
            answer(&id, fixture::work(&id, &params, &log, write_message))
        })),
        method => {
            let error = json!({"code": -32601, "message": format!("no method {method}")});
            write_message(&json!({"jsonrpc": "2.0", "id": id, "error": error}));
        }
    }
}

fn answer(id: &Value, result: Value) {
    write_message(&json!({"jsonrpc": "2.0", "id": id, "result": result}));
}

fn write_message(message: &Value) {
    let mut out = io::stdout().lock();
    // If the client has left, this process is about to end, too.
    drop(out.write_all(format!("{message}\n").as_bytes()).and_then(|()| out.flush()));
}
