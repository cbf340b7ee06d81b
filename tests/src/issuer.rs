//! An authorization server for the hosted remote (`bin/fixture_remote.rs`): it issues tokens to one
//! client, and writes those that the remote is to accept into the remote's file.

use std::{
    fs,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpListener, TcpStream},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
};

use parking_lot::Mutex;

/// What every token begins with.
pub const TOKEN: &str = "issued-token";

/// A running authorization server. It lives as long as the process.
#[derive(Debug)]
pub struct TokenIssuer {
    /// Where it listens.
    pub address: SocketAddr,
    desk: Arc<Desk>,
}

#[derive(Debug)]
struct Desk {
    /// The file with the tokens that are accepted, one per line.
    accepted: PathBuf,
    /// The client's id and secret, as HTTP Basic has them.
    credentials: String,
    is_refusing: AtomicBool,
    issued: AtomicUsize,
    refused: AtomicUsize,
    /// Held while the file is written.
    writing: Mutex<()>,
}

impl TokenIssuer {
    /// Starts a server that issues tokens to the client with these credentials, in Base64, and
    /// writes them to the file `accepted`.
    pub fn start(accepted: PathBuf, credentials: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("its number");
        let desk = Arc::new(Desk {
            accepted,
            credentials: format!("Basic {credentials}"),
            is_refusing: AtomicBool::new(false),
            issued: AtomicUsize::new(0),
            refused: AtomicUsize::new(0),
            writing: Mutex::default(),
        });
        desk.accept("");

        let serving = Arc::clone(&desk);
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                // A client that breaks off ends only its own request.
                _ = serving.serve(&client);
            }
        });
        Self { address, desk }
    }

    /// Refuses the client, or accepts it again.
    pub fn refuse(&self, refuses: bool) {
        self.desk.is_refusing.store(refuses, Ordering::SeqCst);
    }

    /// Withdraws all tokens.
    pub fn withdraw(&self) {
        self.desk.accept("");
    }

    /// How many tokens were issued.
    pub fn issued(&self) -> usize {
        self.desk.issued.load(Ordering::SeqCst)
    }

    /// How often the client was refused.
    pub fn refused(&self) -> usize {
        self.desk.refused.load(Ordering::SeqCst)
    }
}

impl Desk {
    fn accept(&self, token: &str) {
        let _writing = self.writing.lock();
        let next = self.accepted.with_extension("next");
        fs::write(&next, format!("{token}\n")).expect("a file");
        fs::rename(&next, &self.accepted).expect("a file");
    }

    /// Answers one request.
    fn serve(&self, stream: &TcpStream) -> io::Result<()> {
        let mut reader = BufReader::new(stream);
        let (mut line, mut length, mut is_known) = (String::new(), 0, false);
        loop {
            line.clear();
            reader.read_line(&mut line)?;
            let Some((name, value)) = line.trim_end().split_once(": ") else {
                if line.starts_with("POST ") {
                    continue;
                }
                break;
            };
            match name.to_ascii_lowercase().as_str() {
                "content-length" => length = value.parse().unwrap_or_default(),
                "authorization" => is_known = value == self.credentials,
                _ => {}
            }
        }
        reader.read_exact(&mut vec![0; length])?;

        if self.is_refusing.load(Ordering::SeqCst) || !is_known {
            self.refused.fetch_add(1, Ordering::SeqCst);
            return respond(stream, "401 Unauthorized", r#"{"error":"invalid_client"}"#);
        }
        let token = format!("{TOKEN}-{}", self.issued.fetch_add(1, Ordering::SeqCst));
        self.accept(&token);
        let body =
            format!(r#"{{"access_token":"{token}","token_type":"Bearer","expires_in":3600}}"#);
        respond(stream, "200 OK", &body)
    }
}

fn respond(mut stream: &TcpStream, status: &str, body: &str) -> io::Result<()> {
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status}\r\ncontent-type: application/json\r\nconnection: close\r\n\
         content-length: {length}\r\n\r\n{body}"
    )
}
