//! Who may keep a connection open: seats for those who have asked something, and a waiting room for
//! those who have not.
//!
//! Nobody can tell a probe from anything else before its request has come. So every connection
//! waits in the room first, and none is kept out of it: when the room is full, the oldest
//! connection in it that has said nothing is closed. A connection gets a seat with its first
//! request, if one is free and its peer does not hold too many. Without a seat, only probes are
//! answered.

use std::{
    collections::{HashMap, VecDeque},
    net::{IpAddr, Ipv6Addr},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use parking_lot::{Mutex, MutexGuard};
use tokio_util::sync::CancellationToken;

/// All seats of a listener, and how many of them each peer holds.
#[derive(Debug)]
pub(super) struct Seats {
    total: usize,
    per_peer: usize,
    taken: Mutex<HashMap<IpAddr, usize>>,
    crowded: AtomicBool,
}

/// The right to keep a connection open. Given back when it is dropped.
#[derive(Debug)]
pub(super) struct Seat {
    seats: Arc<Seats>,
    peer: IpAddr,
}

impl Seats {
    pub(super) fn new(total: usize, per_peer: usize) -> Self {
        Self { total, per_peer, taken: Mutex::default(), crowded: AtomicBool::new(false) }
    }

    /// A seat for a peer, if there is one.
    pub(super) fn take(self: &Arc<Self>, peer: IpAddr) -> Option<Seat> {
        let peer = peer_network(peer);
        let mut taken = lock(&self.taken);
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
            tracing::warn!(%peer, "too many HTTP connections: new ones are asked to come back later");
        }
        free.then(|| Seat { seats: self.clone(), peer })
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut taken = lock(&self.seats.taken);
        if let Some(count) = taken.get_mut(&self.peer) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.peer);
            }
        }
    }
}

/// What counts as one peer: an IPv4 address, or the network of an IPv6 address, whose host part
/// anybody may choose.
fn peer_network(peer: IpAddr) -> IpAddr {
    match peer.to_canonical() {
        IpAddr::V6(address) => Ipv6Addr::from_bits(address.to_bits() & (u128::MAX << 64)).into(),
        address @ IpAddr::V4(_) => address,
    }
}

/// The connections without a seat.
#[derive(Debug)]
pub(super) struct WaitingRoom {
    places: usize,
    guests: Mutex<VecDeque<Arc<Guest>>>,
}

/// A connection that waits in the room.
#[derive(Debug, Default)]
pub(super) struct Guest {
    asked: AtomicBool,
    leave: CancellationToken,
}

impl WaitingRoom {
    pub(super) fn new(places: usize) -> Self {
        Self { places, guests: Mutex::default() }
    }

    /// Lets a connection in, and sends another one out if there is no place left.
    pub(super) fn enter(&self) -> Arc<Guest> {
        let guest = Arc::<Guest>::default();
        let mut guests = lock(&self.guests);
        if guests.len() >= self.places {
            evict_one(&mut guests);
        }
        guests.push_back(guest.clone());
        guest
    }

    /// Sends one connection out, because something else needs its descriptor.
    pub(super) fn make_room(&self) {
        evict_one(&mut lock(&self.guests));
    }

    /// A connection has left, or has got a seat.
    pub(super) fn remove(&self, guest: &Arc<Guest>) {
        lock(&self.guests).retain(|other| !Arc::ptr_eq(other, guest));
    }
}

impl Guest {
    /// Notes that its first request has come. Says whether it is the first.
    pub(super) fn mark_asked(&self) -> bool {
        !self.asked.swap(true, Ordering::Relaxed)
    }

    pub(super) fn has_asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }

    /// Waits until this connection has to go.
    pub(super) async fn evicted(&self) {
        self.leave.cancelled().await;
    }
}

/// The oldest that has said nothing; if all have, the oldest.
fn evict_one(guests: &mut VecDeque<Arc<Guest>>) {
    let silent = guests.iter().position(|guest| !guest.has_asked()).unwrap_or(0);
    if let Some(guest) = guests.remove(silent) {
        guest.leave.cancel();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_peer_has_a_bound_and_a_v6_network_is_one_peer() {
        let seats = Arc::new(Seats::new(3, 2));
        let take = |peer: &str| seats.take(peer.parse().unwrap());
        let held = [take("fd00::1"), take("fd00::2")];
        assert!(held.iter().all(Option::is_some));
        assert!(take("fd00::3").is_none(), "the network has its two");
        let other = take("10.0.0.1");
        assert!(other.is_some());
        assert!(take("10.0.0.2").is_none(), "all three are taken");
        drop(other);
        assert!(take("::ffff:10.0.0.2").is_some());
    }

    #[test]
    fn the_oldest_silent_connection_goes_first() {
        let room = WaitingRoom::new(2);
        let (asking, silent) = (room.enter(), room.enter());
        assert!(asking.mark_asked() && !asking.mark_asked());
        let third = room.enter();
        assert!(
            silent.leave.is_cancelled()
                && !asking.leave.is_cancelled()
                && !third.leave.is_cancelled()
        );
        third.mark_asked();
        room.enter();
        assert!(asking.leave.is_cancelled(), "if all have asked, the oldest goes");
    }
}
