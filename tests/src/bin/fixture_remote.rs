//! The tool of `fixture_tools` over Streamable HTTP of revision 2025-11-25, with sessions that live
//! in this process: a restarted server has forgotten them.
//!
//! usage: `fixture_remote LEDGER READY FORGOTTEN REFUSE`
//!
//! It writes its address to the file `READY`. `FORGOTTEN` is how it refuses an unknown session, as
//! different servers do: `404`, `400-code` (a JSON-RPC error -32000, as the TypeScript SDK's
//! examples), `400`, `401`, `422` or `503` (text), `-32602` or `-32603` (a JSON-RPC error with
//! status 200). While the file `REFUSE` exists, it answers every
//! request with 401, as if a token had expired. If the file `REFUSE.tokens` exists, so it does to
//! requests without one of the tokens in its lines.

#![expect(clippy::expect_used, reason = "a panic is the report of a test")]

use std::{
    collections::HashSet,
    env, fs,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::PathBuf,
    process,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use fleet_tests::fixture::{self, CallLog};
use parking_lot::Mutex;
use serde_json::{Value, json};

const USAGE: &str = "usage: fixture_remote LEDGER READY FORGOTTEN REFUSE";

fn main() {
    let mut arguments = env::args().skip(1);
    let mut argument = || arguments.next().expect(USAGE);
    let (ledger, ready) = (PathBuf::from(argument()), PathBuf::from(argument()));
    let (forgotten, refuse) = (argument(), PathBuf::from(argument()));
    let server = Arc::new(Server {
        log: CallLog::open(&ledger),
        forgotten,
        tokens: refuse.with_extension("tokens"),
        refuse,
        sessions: Mutex::default(),
        made: AtomicU64::new(0),
    });

    let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("its number");
    fs::write(&ready, format!("{address}\n")).expect("the ready file");
    for client in listener.incoming().flatten() {
        let server = Arc::clone(&server);
        // A client that breaks off ends only its own connection.
        thread::spawn(move || server.serve(&client).ok());
    }
}

/// The state that all connections share.
struct Server {
    log: CallLog,
    /// How an unknown session is refused.
    forgotten: String,
    /// The file whose existence makes the server refuse credentials.
    refuse: PathBuf,
    /// The file with the tokens that are accepted; without it, none is needed.
    tokens: PathBuf,
    sessions: Mutex<HashSet<String>>,
    made: AtomicU64,
}

/// The parts of a request that matter here.
struct Request {
    method: String,
    session: Option<String>,
    authorization: String,
    body: Value,
}

/// An answer: status, body, and the session that it names.
struct Answer {
    status: u16,
    body: String,
    session: Option<String>,
}

impl Answer {
    fn text(status: u16, body: &str) -> Self {
        Self { status, body: body.to_owned(), session: None }
    }

    fn result(id: &Value, result: &Value) -> Self {
        Self::text(200, &json!({"jsonrpc": "2.0", "id": id, "result": result}).to_string())
    }

    fn error(status: u16, id: &Value, code: i64, message: &str) -> Self {
        let error = json!({"code": code, "message": message});
        Self::text(status, &json!({"jsonrpc": "2.0", "id": id, "error": error}).to_string())
    }
}

impl Server {
    /// Answers the requests of one connection, one after the other.
    fn serve(&self, stream: &TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let mut reader = BufReader::new(stream);
        while let Some(request) = read(&mut reader)? {
            write(stream, &self.answer(&request))?;
        }
        Ok(())
    }

    fn answer(&self, request: &Request) -> Answer {
        if self.refuse.exists() || !self.accepts(&request.authorization) {
            return Answer::text(401, "the token has expired");
        }
        if request.method != "POST" {
            return Answer::text(405, "there is no stream");
        }

        let (id, params) = (&request.body["id"], &request.body["params"]);
        match request.body["method"].as_str().unwrap_or_default() {
            "initialize" => Answer {
                session: Some(self.session()),
                ..Answer::result(id, &fixture::initialized(params))
            },
            _ if request.session.as_ref().is_none_or(|session| !self.knows(session)) => {
                self.refuse(id)
            }
            "notifications/cancelled" => {
                self.log.cancelled(&params["requestId"]);
                Answer::text(202, "")
            }
            "tools/list" => Answer::result(id, &fixture::tools()),
            "tools/call" => Answer::result(id, &fixture::work(id, params, &self.log, |_| {})),
            "ping" => Answer::result(id, &json!({})),
            _ if id.is_null() => Answer::text(202, ""),
            method => Answer::error(200, id, -32601, &format!("no method {method}")),
        }
    }

    /// Whether requests with this value of `Authorization` are taken.
    fn accepts(&self, authorization: &str) -> bool {
        let Ok(tokens) = fs::read_to_string(&self.tokens) else { return true };
        let token = authorization.strip_prefix("Bearer ").unwrap_or_default();
        tokens.lines().any(|accepted| !accepted.is_empty() && accepted == token)
    }

    fn session(&self) -> String {
        let id = format!("{}-{}", process::id(), self.made.fetch_add(1, Ordering::Relaxed));
        self.sessions.lock().insert(id.clone());
        id
    }

    fn knows(&self, session: &str) -> bool {
        self.sessions.lock().contains(session)
    }

    fn refuse(&self, id: &Value) -> Answer {
        match self.forgotten.as_str() {
            "400-code" => {
                Answer::error(400, id, -32000, "Bad Request: no valid session ID provided")
            }
            "-32602" => Answer::error(200, id, -32602, "Invalid session ID"),
            "-32603" => Answer::error(200, id, -32603, "Internal error: no such session"),
            status => Answer::text(status.parse().expect("a status"), "no such session"),
        }
    }
}

/// The next request; `None` when the client has closed the connection.
fn read(reader: &mut BufReader<&TcpStream>) -> io::Result<Option<Request>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }

    let method = line.split(' ').next().unwrap_or_default().to_owned();

    let (mut length, mut session, mut authorization) = (0, None, String::new());
    loop {
        line.clear();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.trim().parse().unwrap_or_default(),
            "mcp-session-id" => session = Some(value.trim().to_owned()),
            "authorization" => value.trim().clone_into(&mut authorization),
            _ => {}
        }
    }

    let mut body = vec![0; length];
    reader.read_exact(&mut body)?;
    let body = serde_json::from_slice(&body).unwrap_or_default();
    Ok(Some(Request { method, session, authorization, body }))
}

fn write(mut stream: &TcpStream, answer: &Answer) -> io::Result<()> {
    let kind = if answer.body.starts_with('{') { "application/json" } else { "text/plain" };
    let session = answer
        .session
        .as_ref()
        .map(|session| format!("mcp-session-id: {session}\r\n"))
        .unwrap_or_default();
    let (status, length, body) = (answer.status, answer.body.len(), &answer.body);
    let whole = format!(
        "HTTP/1.1 {status} -\r\ncontent-type: {kind}\r\n{session}content-length: {length}\r\n\r\n{body}"
    );
    stream.write_all(whole.as_bytes())
}
