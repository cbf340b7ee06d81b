//! Fast hashing for maps whose keys nobody outside can choose, or whose keys are hashes already.
//!
//! Every event looks records and partitions up several times, and the standard library's SipHash
//! would be a good part of the cost. Partitions and offsets are numbered by the broker. Ordering
//! keys and limits are hashes of what producers choose, so their maps are seeded: a producer that
//! could guess which keys share a bucket could make that bucket slow.

use std::hash::{BuildHasher, Hasher};

/// A map from numbers.
pub(crate) type FastMap<K, V> = std::collections::HashMap<K, V, Seed>;

/// The value that hashers start with.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Seed(u64);

impl Seed {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed)
    }
}

impl BuildHasher for Seed {
    type Hasher = Folding;

    fn build_hasher(&self) -> Folding {
        Folding(self.0)
    }
}

/// Multiplies each number by an odd constant and folds the upper half of the product into the lower
/// one, as wyhash and foldhash do, so that every bit of the result depends on every bit of the
/// number.
#[derive(Debug)]
pub(crate) struct Folding(u64);

impl Hasher for Folding {
    fn write_u64(&mut self, number: u64) {
        let product = u128::from(self.0 ^ number ^ 0x243F_6A88_85A3_08D3) * 0x9E37_79B9_7F4A_7C15;
        self.0 = (product >> 64) as u64 ^ product as u64;
    }

    fn write_i64(&mut self, number: i64) {
        self.write_u64(number.cast_unsigned());
    }

    fn write(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(8) {
            let mut number = [0; 8];
            number[..chunk.len()].copy_from_slice(chunk);
            self.write_u64(u64::from_le_bytes(number));
        }
    }

    fn finish(&self) -> u64 {
        self.0
    }
}
