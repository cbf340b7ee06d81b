//! Decides which connections may stay open. Connections that have sent a request get a seat; all
//! others wait in a waiting room.
//!
//! Whether a connection is a probe is unknown until its first request arrives. Every new connection
//! therefore enters the waiting room. If the room is full, a connection in it that has not sent a
//! request is closed: the oldest one of the peer with the most of them, so that a flood from one
//! address closes its own connections. With its first request, a connection gets a seat if one is free and
//! its peer does not hold too many. Without a seat, only probes are answered.

use std::{
    collections::{HashMap, VecDeque},
    net::{IpAddr, Ipv6Addr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

/// All seats of a listener, and how many of them each peer holds.
#[derive(Debug)]
pub(super) struct Seats {
    total: usize,
    per_peer: usize,
    taken: Mutex<HashMap<IpAddr, usize>>,
    crowded: AtomicBool,
}

/// The right to keep a connection open, returned when dropped.
#[derive(Debug)]
pub(super) struct Seat {
    seats: Arc<Seats>,
    peer: IpAddr,
}

impl Seats {
    pub(super) fn new(total: usize, per_peer: usize) -> Self {
        Self { total, per_peer, taken: Mutex::default(), crowded: AtomicBool::new(false) }
    }

    /// Returns a seat for a peer if one is free.
    pub(super) fn take(self: &Arc<Self>, peer: IpAddr) -> Option<Seat> {
        let peer = peer_network(peer);
        let mut taken = self.taken.lock();
        let all: usize = taken.values().sum();
        let own = taken.get(&peer).copied().unwrap_or_default();
        let free = all < self.total && own < self.per_peer;
        if free {
            taken.insert(peer, own + 1);
        }
        drop(taken);

        if free {
            self.crowded.store(false, Ordering::Relaxed);
        } else if !self.crowded.swap(true, Ordering::Relaxed) {
            tracing::warn!(%peer, "too many HTTP connections; answering new ones with 503");
        }

        free.then(|| Seat { seats: self.clone(), peer })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = self.seats.taken.lock();
        if let Some(count) = taken.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.peer);
            }
        }
    }
}

/// Returns what counts as one peer: an IPv4 address, or the /64 network of an IPv6 address, since a
/// client may choose the rest of it freely.
fn peer_network(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)).into(),
        address @ IpAddr::V4(_) => address,
    }
}

/// Connections without a seat.
#[derive(Debug)]
pub(super) struct WaitingRoom {
    places: usize,
    guests: Mutex<VecDeque<Arc<Guest>>>,
}

/// A connection in the waiting room.
#[derive(Debug)]
pub(super) struct Guest {
    peer: IpAddr,
    asked: AtomicBool,
    leave: CancellationToken,
}

impl WaitingRoom {
    pub(super) fn new(places: usize) -> Self {
        Self { places, guests: Mutex::default() }
    }

    /// Admits a connection and evicts another one if the room is full.
    pub(super) fn enter(&self, peer: IpAddr) -> Arc<Guest> {
        let guest = Arc::new(Guest {
            peer: peer_network(peer),
            asked: AtomicBool::new(false),
            leave: CancellationToken::new(),
        });
        let mut guests = self.guests.lock();
        if guests.len() >= self.places {
            evict_one(&mut guests);
        }
        guests.push_back(guest.clone());
        guest
    }

    /// Evicts one connection, because something else needs its file descriptor.
    pub(super) fn make_room(&self) {
        evict_one(&mut self.guests.lock());
    }

    /// Removes a connection that has ended or got a seat.
    pub(super) fn remove(&self, guest: &Arc<Guest>) {
        self.guests.lock().retain(|other| !Arc::ptr_eq(other, guest));
    }
}

impl Guest {
    /// Records a request. Returns whether it is the connection's first.
    pub(super) fn mark_asked(&self) -> bool {
        !self.asked.swap(true, Ordering::Relaxed)
    }

    pub(super) fn has_asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }

    /// Waits until this connection is evicted.
    pub(super) async fn evicted(&self) {
        self.leave.cancelled().await;
    }
}

/// Evicts the oldest silent connection of the peer that has the most of them, or the oldest
/// connection of all if every one has sent a request.
fn evict_one(guests: &mut VecDeque<Arc<Guest>>) {
    let mut silent = HashMap::<IpAddr, usize>::new();
    for guest in guests.iter().filter(|guest| !guest.has_asked()) {
        *silent.entry(guest.peer).or_default() += 1;
    }

    let most = silent.values().max();
    let oldest =
        guests.iter().position(|guest| !guest.has_asked() && silent.get(&guest.peer) == most);
    if let Some(guest) = guests.remove(oldest.unwrap_or(0)) {
        guest.leave.cancel();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seats_per_peer_are_limited_and_a_v6_network_is_one_peer() {
        let seats = Arc::new(Seats::new(3, 2));
        let take = |peer: &str| seats.take(peer.parse().unwrap());
        let held = [take("fd00::1"), take("fd00::2")];
        assert!(held.iter().all(Option::is_some));
        assert!(take("fd00::3").is_none(), "the network holds its two seats");
        let other = take("10.0.0.1");
        assert!(other.is_some());
        assert!(take("10.0.0.2").is_none(), "all three seats are taken");
        drop(other);
        assert!(take("::ffff:10.0.0.2").is_some());
    }

    #[test]
    fn the_oldest_silent_connection_is_evicted_first() {
        let room = WaitingRoom::new(2);
        let enter = || room.enter(IpAddr::from([10, 0, 0, 1]));
        let (asking, silent) = (enter(), enter());
        assert!(asking.mark_asked() && !asking.mark_asked());
        let third = enter();
        assert!(
            silent.leave.is_cancelled()
                && !asking.leave.is_cancelled()
                && !third.leave.is_cancelled()
        );
        third.mark_asked();
        enter();
        assert!(asking.leave.is_cancelled(), "if all have sent a request, the oldest is evicted");
    }

    #[test]
    fn a_flood_from_one_peer_evicts_its_own_connections() {
        let room = WaitingRoom::new(4);
        let enter = |last| room.enter(IpAddr::from([10, 0, 0, last]));
        let genuine = enter(1);
        let flood: Vec<_> = (0..50).map(|_| enter(2)).collect();
        assert!(!genuine.leave.is_cancelled(), "another peer has more silent connections");
        let open = flood.iter().filter(|guest| !guest.leave.is_cancelled()).count();
        assert_eq!(open, 3);
    }
}
