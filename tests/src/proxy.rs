//! A network that can fail: a TCP proxy that forwards connections, refuses them, or silently
//! swallows all data.
//!
//! There is one in front of each broker's second listener, for workers that are to be cut off, and
//! one in front of the server, like the readiness gate of a load balancer. In front of several
//! servers, it is a balancer of connections.

use std::{
    collections::VecDeque,
    io::{Read as _, Write as _},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::Arc,
    thread::{self, JoinHandle},
    time::Duration,
};

use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::wait;

const BUFFER: usize = 64 << 10;
/// How long another process may use the port of a refusing proxy before the proxy listens again.
const REBIND: Duration = Duration::from_secs(30);

/// The state of the network.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// Forwards connections.
    Up,
    /// Closes existing connections, and refuses new ones.
    Refused,
    /// Accepts data and delivers nothing. When it is up again, it has forgotten earlier
    /// connections, like a restarted firewall: data that they have swallowed is never delivered.
    Silent,
    /// Stopped permanently.
    Gone,
}

/// A TCP proxy in front of one or several upstreams. Dropping it closes it and its connections.
#[derive(Debug)]
pub struct Proxy {
    /// The address on which it listens.
    pub address: SocketAddr,
    shared: Arc<Shared>,
    listener: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    network: Network,
    /// The upstreams; the first gets the next connection.
    upstreams: VecDeque<SocketAddr>,
    listening: bool,
    /// Counts the failures. A connection forwards only as long as this number is the one under
    /// which it was made.
    epoch: u64,
    open: Vec<Arc<Connection>>,
}

#[derive(Debug)]
struct Connection {
    client: TcpStream,
    server: TcpStream,
    epoch: u64,
}

impl Connection {
    fn close(&self) {
        // Either side may have closed it already.
        self.client.shutdown(Shutdown::Both).ok();
        self.server.shutdown(Shutdown::Both).ok();
    }
}

impl Proxy {
    /// Listens on a free port. Without an upstream, connections are closed immediately.
    pub fn start(upstream: Option<SocketAddr>) -> Self {
        Self::balance(upstream)
    }

    /// The same, in front of several upstreams, which get new connections in turn.
    pub fn balance(upstreams: impl IntoIterator<Item = SocketAddr>) -> Self {
        let upstreams = upstreams.into_iter().collect();
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("its number");
        let state =
            State { network: Network::Up, upstreams, listening: true, epoch: 0, open: Vec::new() };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let theirs = Arc::clone(&shared);
        let listener = thread::spawn(move || theirs.listen(address, listener));
        Self { address, shared, listener: Some(listener) }
    }

    /// Sends new connections to this upstream from now on.
    pub fn forward_to(&self, upstream: SocketAddr) {
        self.shared.lock().upstreams = VecDeque::from([upstream]);
    }

    /// Changes the state of the network, and returns once the change is effective.
    pub fn set(&self, network: Network) {
        let mut state = self.shared.lock();
        state.network = network;
        state.epoch += 1;
        if network != Network::Silent {
            // This includes connections from before a silence.
            state.open.drain(..).for_each(|connection| connection.close());
        }

        self.shared.changed.notify_all();
        if state.listening {
            // This wakes the pending `accept`.
            drop(TcpStream::connect(self.address));
        }

        let want = !matches!(network, Network::Refused | Network::Gone);
        while state.listening != want {
            self.shared.changed.wait(&mut state);
        }
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.set(Network::Gone);
        if let Some(listener) = self.listener.take() {
            drop(listener.join());
        }
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock()
    }

    /// Waits until `holds`, and returns the state.
    fn wait(&self, holds: impl Fn(&State) -> bool) -> MutexGuard<'_, State> {
        let mut state = self.lock();
        self.changed.wait_while(&mut state, |state| !holds(state));
        state
    }

    fn listen(self: &Arc<Self>, address: SocketAddr, first: TcpListener) {
        let mut listener = Some(first);
        loop {
            let network = self.lock().network;
            match (network, listener.take()) {
                (Network::Up | Network::Silent, Some(listening)) => {
                    if let Ok((client, _)) = listening.accept() {
                        self.connect(client);
                    }
                    listener = Some(listening);
                }
                (Network::Up | Network::Silent, None) => {
                    let bind = || TcpListener::bind(address);
                    listener = Some(wait::poll_until_ok("the proxy's port", REBIND, bind));
                    self.lock().listening = true;
                    self.changed.notify_all();
                }
                (Network::Refused | Network::Gone, listening) => {
                    drop(listening);
                    self.lock().listening = false;
                    self.changed.notify_all();
                    if network == Network::Gone {
                        return;
                    }
                    drop(self.wait(|state| state.network != Network::Refused));
                }
            }
        }
    }

    /// Connects a client to an upstream, if the network allows it. During a silence, the client has
    /// no counterpart.
    fn connect(self: &Arc<Self>, client: TcpStream) {
        let (network, upstream, epoch) = {
            let mut state = self.lock();
            let upstream = state.upstreams.pop_front();
            state.upstreams.extend(upstream);
            (state.network, upstream, state.epoch)
        };

        let server = match network {
            Network::Up => upstream.and_then(|upstream| TcpStream::connect(upstream).ok()),
            // Keep the connection open without an upstream, so that the client gets no data: its
            // own other end will do.
            Network::Silent => client.try_clone().ok(),
            Network::Refused | Network::Gone => None,
        };

        let Some(server) = server else { return };
        client.set_nodelay(true).ok();
        server.set_nodelay(true).ok();
        let connection = Arc::new(Connection { client, server, epoch });
        let mut state = self.lock();
        let silent = state.network == Network::Silent;
        state.open.retain(|open| silent || Arc::strong_count(open) > 1);
        state.open.push(Arc::clone(&connection));
        drop(state);
        if network == Network::Up {
            for back in [false, true] {
                let (shared, connection) = (Arc::clone(self), Arc::clone(&connection));
                thread::spawn(move || shared.pump(&connection, back));
            }
        }
    }

    fn pump(&self, connection: &Connection, back: bool) {
        let (mut from, mut to) = if back {
            (&connection.server, &connection.client)
        } else {
            (&connection.client, &connection.server)
        };
        let mut buffer = vec![0; BUFFER];
        while let Ok(read @ 1..) = from.read(&mut buffer) {
            let state = self.wait(|state| state.network != Network::Silent);
            if state.epoch != connection.epoch {
                break;
            }
            drop(state);
            if to.write_all(&buffer[..read]).is_err() {
                break;
            }
        }

        connection.close();
    }
}

#[cfg(test)]
mod tests {
    use std::io::{self, ErrorKind};

    use super::*;

    const SOON: Duration = Duration::from_millis(200);

    /// A server that echoes every byte.
    fn echo() -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free port");
        let address = listener.local_addr().expect("its number");
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                thread::spawn(move || io::copy(&mut &client, &mut &client));
            }
        });
        address
    }

    fn ask(mut stream: &TcpStream) -> io::Result<u8> {
        let mut byte = [7];
        stream.set_read_timeout(Some(SOON))?;
        stream.write_all(&byte)?;
        byte = [0];
        stream.read_exact(&mut byte)?;
        Ok(byte[0])
    }

    fn kind(result: io::Result<u8>) -> ErrorKind {
        result.expect_err("an answer through a network that is down").kind()
    }

    #[test]
    fn the_proxy_forwards_refuses_and_recovers() {
        let proxy = Proxy::start(Some(echo()));
        let before = TcpStream::connect(proxy.address).expect("a connection");
        assert_eq!(ask(&before).expect("an answer"), 7);
        proxy.set(Network::Refused);
        assert_ne!(kind(ask(&before)), ErrorKind::WouldBlock, "the connection should be closed");

        let refused = TcpStream::connect(proxy.address).expect_err("a refusal");
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
        proxy.set(Network::Up);
        assert_eq!(
            ask(&TcpStream::connect(proxy.address).expect("a connection")).expect("an answer"),
            7
        );
    }

    #[test]
    fn data_swallowed_in_a_silence_is_never_delivered() {
        let proxy = Proxy::start(Some(echo()));
        let before = TcpStream::connect(proxy.address).expect("a connection");
        assert_eq!(ask(&before).expect("an answer"), 7);
        proxy.set(Network::Silent);
        let during = TcpStream::connect(proxy.address).expect("a connection");
        for stream in [&before, &during] {
            assert_eq!(kind(ask(stream)), ErrorKind::WouldBlock, "no data arrives");
        }
        proxy.set(Network::Up);
        for stream in [&before, &during] {
            assert_ne!(kind(ask(stream)), ErrorKind::WouldBlock, "the connection should be closed");
        }
        assert_eq!(
            ask(&TcpStream::connect(proxy.address).expect("a connection")).expect("an answer"),
            7
        );
    }
}
