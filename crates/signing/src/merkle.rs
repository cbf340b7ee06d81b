//! A Merkle tree over the calls of a job (RFC 9162, section 2.1), so that one call of ten thousand
//! can be shown to be among those that were signed with fourteen hashes.

use sha2::{Digest as _, Sha256};

/// A SHA-256.
pub(crate) type Hash = [u8; 32];

/// The most hashes of a path: a job has at most 10,000 calls.
pub(crate) const MAX_PATH: usize = 14;

/// Begins what a leaf's hash is made of, so that no leaf is ever an inner node.
const LEAF: [u8; 1] = [0];
/// Begins what an inner node's hash is made of.
const NODE: [u8; 1] = [1];

/// The hash of a leaf with this content.
pub(crate) fn leaf(content: &[u8]) -> Hash {
    let mut hasher = Sha256::new();
    hasher.update(LEAF);
    hasher.update(content);
    hasher.finalize().into()
}

fn node(left: &Hash, right: &Hash) -> Hash {
    let mut hasher = Sha256::new();
    hasher.update(NODE);
    hasher.update(left);
    hasher.update(right);
    hasher.finalize().into()
}

/// A tree with all its levels.
///
/// A level with an odd number of nodes hands its last one up unchanged, which is the same tree as
/// that of the RFC.
#[derive(Debug)]
pub(crate) struct Tree {
    /// The leaves, their parents, and so on up to the root.
    levels: Vec<Vec<Hash>>,
}

impl Tree {
    /// The tree of these leaves.
    pub(crate) fn new(leaves: Vec<Hash>) -> Self {
        let mut levels = vec![leaves];
        while let Some(level) = levels.last().filter(|level| level.len() > 1) {
            let above = level.chunks(2).map(|pair| match pair {
                [left, right] => node(left, right),
                pair => pair[0],
            });
            levels.push(above.collect());
        }
        Self { levels }
    }

    /// The hash of the whole; that of nothing, if there are no leaves.
    pub(crate) fn root(&self) -> Hash {
        let root = self.levels.last().and_then(|level| level.first());
        root.copied().unwrap_or_else(|| Sha256::digest([]).into())
    }

    /// The hashes that lead from a leaf to the root.
    pub(crate) fn path(&self, index: usize) -> Vec<Hash> {
        let mut index = index;
        let mut path = Vec::new();
        for level in &self.levels {
            path.extend(level.get(index ^ 1));
            index /= 2;
        }
        path
    }
}

/// Returns whether `leaf` is number `index` of `count` leaves below `root`, as `path` shows.
pub(crate) fn verify(leaf: Hash, index: usize, count: usize, path: &[Hash], root: &Hash) -> bool {
    if index >= count {
        return false;
    }

    let (mut hash, mut index, mut last) = (leaf, index, count - 1);
    let mut path = path.iter();
    while last > 0 {
        // The last node of a level with an odd number of nodes has no sibling.
        if index % 2 == 1 || index < last {
            let Some(sibling) = path.next() else { return false };
            hash = if index % 2 == 1 { node(sibling, &hash) } else { node(&hash, sibling) };
        }
        index /= 2;
        last /= 2;
    }
    path.next().is_none() && hash == *root
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn leaves(count: usize) -> Vec<Hash> {
        (0..count).map(|index| leaf(&index.to_be_bytes())).collect()
    }

    fn hex(hash: &Hash) -> String {
        hash.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[test]
    fn the_tree_is_that_of_the_rfc() {
        // The tests of Certificate Transparency's reference implementation: the root of nothing, of
        // one empty leaf, and of the first three of its inputs.
        assert_eq!(
            hex(&Tree::new(Vec::new()).root()),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
        assert_eq!(
            hex(&Tree::new(vec![leaf(&[])]).root()),
            "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"
        );
        let three = [&[][..], &[0], &[0x10]].map(leaf).to_vec();
        assert_eq!(
            hex(&Tree::new(three).root()),
            "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77"
        );
    }

    #[test]
    fn every_leaf_of_every_small_tree_is_shown() {
        for count in 1..40 {
            let tree = Tree::new(leaves(count));
            for (index, leaf) in leaves(count).into_iter().enumerate() {
                let path = tree.path(index);
                assert!(verify(leaf, index, count, &path, &tree.root()), "{index} of {count}");
            }
        }
        assert_eq!(Tree::new(leaves(10_000)).path(0).len(), MAX_PATH);
    }

    proptest! {
        #[test]
        fn nothing_else_is_shown(
            count in 1_usize..200,
            index in 0_usize..200,
            other in 0_usize..200,
            drop in any::<bool>(),
        ) {
            let index = index % count;
            let tree = Tree::new(leaves(count));
            let (root, path) = (tree.root(), tree.path(index));
            let own = leaves(count)[index];

            prop_assert!(verify(own, index, count, &path, &root));
            if other != index {
                prop_assert!(!verify(own, other, count, &path, &root));
                prop_assert!(!verify(leaf(&other.to_be_bytes()), index, count, &path, &root));
            }

            let mut changed = path.clone();
            match (drop, changed.is_empty()) {
                (true, false) => { changed.pop(); }
                _ => changed.push(own),
            }
            prop_assert!(!verify(own, index, count, &changed, &root));
            prop_assert!(!verify(own, index, count, &path, &own) || count == 1);
        }
    }
}
