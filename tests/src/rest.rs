//! A client of the server's HTTP API that gives tests every status, header and event.

use std::{
    collections::BTreeMap,
    io::{self, BufRead as _, BufReader, Read as _, Write as _},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use serde_json::Value;

/// Longer than any wait that a request can ask for.
const TIMEOUT: Duration = Duration::from_secs(90);
/// How long a read of a stream may block before the deadline is checked.
const TICK: Duration = Duration::from_millis(100);

/// An HTTP response.
#[derive(Debug, Clone)]
pub struct Answer {
    /// The status.
    pub status: u16,
    /// The headers, their names in lower case.
    pub headers: BTreeMap<String, String>,
    /// The raw body.
    pub text: String,
}

impl Answer {
    /// The body as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.text).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }

    /// The value of a header; empty if it is missing.
    pub fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("", String::as_str)
    }

    /// Expects this status; returns the body.
    pub fn expect(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{self:?}");
        self.json()
    }

    /// Expects a problem of this status and kind; returns its `detail`.
    pub fn problem(&self, status: u16, kind: &str) -> String {
        let problem = self.expect(status);
        assert_eq!(self.header("content-type"), "application/problem+json", "{self:?}");
        assert_eq!(problem["type"], format!("urn:mcp-fleet:problem:{kind}"), "{self:?}");
        assert_eq!(problem["status"], status, "{self:?}");
        assert!(problem["title"].is_string(), "{self:?}");
        problem["detail"].as_str().expect("a detail").to_owned()
    }
}

/// Sends a request and reads the whole answer.
pub fn request(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> Answer {
    let mut stream = send(address, method, path, headers, body).expect("a connection");
    let (status, headers) = head(&mut stream).expect("an answer");
    let mut bytes = Vec::new();
    if headers.get("transfer-encoding").is_some_and(|how| how == "chunked") {
        while let Some(chunk) = chunk(&mut stream).expect("a chunk") {
            bytes.extend(chunk);
        }
    } else {
        stream.read_to_end(&mut bytes).expect("the body");
    }
    Answer { status, headers, text: String::from_utf8_lossy(&bytes).into_owned() }
}

/// Sends `GET`.
pub fn get(address: SocketAddr, path: &str) -> Answer {
    request(address, "GET", path, &[], b"")
}

/// Sends `DELETE`.
pub fn delete(address: SocketAddr, path: &str) -> Answer {
    request(address, "DELETE", path, &[], b"")
}

/// Sends `POST` with JSON.
pub fn post(address: SocketAddr, path: &str, body: &Value) -> Answer {
    post_with(address, path, &[], body)
}

/// Sends `POST` with JSON and additional headers.
pub fn post_with(
    address: SocketAddr,
    path: &str,
    headers: &[(&str, &str)],
    body: &Value,
) -> Answer {
    let headers = [&[("content-type", "application/json")], headers].concat();
    request(address, "POST", path, &headers, body.to_string().as_bytes())
}

/// One event of a stream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Event {
    /// The last id that was sent with or before this event.
    pub id: String,
    /// Its name.
    pub event: String,
    /// Its data.
    pub data: String,
}

impl Event {
    /// The data as JSON.
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.data).unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }
}

/// An open stream of events.
#[derive(Debug)]
pub struct Events {
    stream: BufReader<TcpStream>,
    /// The headers of the response.
    pub headers: BTreeMap<String, String>,
    unread: String,
    /// The last id that was sent.
    pub last_id: String,
}

impl Events {
    /// Opens a stream; returns the response as an error if it is not a stream.
    pub fn open(address: SocketAddr, path: &str, headers: &[(&str, &str)]) -> Result<Self, Answer> {
        let mut stream = send(address, "GET", path, headers, b"").expect("a connection");
        let (status, headers) = head(&mut stream).expect("an answer");
        if status != 200 {
            let mut text = String::new();
            stream.read_to_string(&mut text).expect("the body");
            return Err(Answer { status, headers, text });
        }
        assert_eq!(headers["content-type"], "text/event-stream");
        stream.get_ref().set_read_timeout(Some(TICK)).expect("a timeout");
        Ok(Self { stream, headers, unread: String::new(), last_id: String::new() })
    }

    /// The next event; `None` if the stream has ended.
    pub fn next(&mut self, deadline: Duration) -> Option<Event> {
        let end = Instant::now() + deadline;
        loop {
            while let Some((block, rest)) = self.unread.split_once("\n\n") {
                let (block, rest) = (block.to_owned(), rest.to_owned());
                self.unread = rest;
                if let Some(event) = self.read_block(&block) {
                    return Some(event);
                }
            }
            if !self.fill(end)? {
                panic!("no event in {} s; unread: {:?}", deadline.as_secs(), self.unread);
            }
        }
    }

    /// Waits for the stream's position, which the server sends at once.
    #[must_use]
    pub fn placed(mut self, deadline: Duration) -> Self {
        let end = Instant::now() + deadline;
        while self.last_id.is_empty() {
            if let Some((block, rest)) = self.unread.split_once("\n\n") {
                let (block, rest) = (block.to_owned(), rest.to_owned());
                self.unread = rest;
                assert_eq!(self.read_block(&block), None, "the place comes first");
            } else {
                assert!(self.fill(end).expect("an open stream"), "no place: {:?}", self.unread);
            }
        }
        self
    }

    fn read_block(&mut self, block: &str) -> Option<Event> {
        let mut event = Event::default();
        for line in block.lines() {
            let (field, value) = line.split_once(':').unwrap_or((line, ""));
            let value = value.strip_prefix(' ').unwrap_or(value);
            match field {
                "id" => self.last_id = value.to_owned(),
                "event" => event.event = value.to_owned(),
                "data" => event.data.push_str(value),
                _ => {}
            }
        }

        event.id.clone_from(&self.last_id);
        (!event.data.is_empty()).then_some(event)
    }

    /// Reads more data. `None` if the stream has ended, `false` if no data arrived in time.
    fn fill(&mut self, end: Instant) -> Option<bool> {
        loop {
            // The rest of a chunk arrives soon after its beginning.
            match self.stream.fill_buf() {
                Ok(_) => break,
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                    ) =>
                {
                    if Instant::now() >= end {
                        return Some(false);
                    }
                }
                Err(error) => panic!("the stream broke: {error}"),
            }
        }

        self.stream.get_ref().set_read_timeout(Some(TIMEOUT)).expect("a timeout");
        let read = chunk(&mut self.stream).expect("a chunk");
        self.stream.get_ref().set_read_timeout(Some(TICK)).expect("a timeout");
        self.unread.push_str(&String::from_utf8(read?).expect("whole characters"));
        Some(true)
    }
}

fn send(
    address: SocketAddr,
    method: &str,
    path: &str,
    headers: &[(&str, &str)],
    body: &[u8],
) -> io::Result<BufReader<TcpStream>> {
    let mut stream = TcpStream::connect_timeout(&address, TIMEOUT)?;
    stream.set_read_timeout(Some(TIMEOUT))?;
    let mut head = format!("{method} {path} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n");
    for (name, value) in headers {
        head.push_str(&format!("{name}: {value}\r\n"));
    }
    if method == "POST" || !body.is_empty() {
        head.push_str(&format!("content-length: {}\r\n", body.len()));
    }

    head.push_str("\r\n");
    stream.write_all(&[head.as_bytes(), body].concat())?;
    Ok(BufReader::new(stream))
}

fn head(stream: &mut BufReader<TcpStream>) -> io::Result<(u16, BTreeMap<String, String>)> {
    let mut line = String::new();
    stream.read_line(&mut line)?;
    let status = line.split(' ').nth(1).and_then(|code| code.parse().ok());
    let status = status.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, line.clone()))?;
    let mut headers = BTreeMap::new();
    loop {
        line.clear();
        stream.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }

    Ok((status, headers))
}

/// The next chunk of a chunked body; `None` at its end.
fn chunk(stream: &mut BufReader<TcpStream>) -> io::Result<Option<Vec<u8>>> {
    let mut line = String::new();
    stream.read_line(&mut line)?;
    let size = usize::from_str_radix(line.trim(), 16).unwrap_or_default();
    if size == 0 {
        return Ok(None);
    }
    let mut chunk = vec![0; size + 2];
    stream.read_exact(&mut chunk)?;
    chunk.truncate(size);
    Ok(Some(chunk))
}
