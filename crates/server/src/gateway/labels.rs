//! Which tools have a metric of their own. Callers name tools, so there is an end to it.

use std::{collections::HashSet, sync::Arc};

use parking_lot::Mutex;

/// How many tools are told apart.
const MOST: usize = 200;
/// The label of all others, as OpenTelemetry names what does not fit into a set.
const OTHER: &str = "_OTHER";

/// The tools that were called so far, and exist.
#[derive(Debug, Default)]
pub(super) struct Labels(Mutex<HashSet<Arc<str>>>);

impl Labels {
    /// What a call of `tool` is counted under.
    pub(super) fn of(&self, tool: &str, exists: impl FnOnce() -> bool) -> Arc<str> {
        let known = || self.0.lock();
        if let Some(label) = known().get(tool) {
            return label.clone();
        }
        // Asked without the lock: it has locks of its own.
        let exists = exists();
        let mut known = known();
        if !exists || known.len() >= MOST {
            return OTHER.into();
        }
        let label: Arc<str> = tool.into();
        known.insert(label.clone());
        label
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_bounded_and_only_of_tools_that_exist() {
        let labels = Labels::default();
        assert_eq!(&*labels.of("nonsense", || false), OTHER);
        for number in 0..MOST {
            let tool = format!("tool-{number}");
            assert_eq!(*labels.of(&tool, || true), *tool);
        }
        assert_eq!(&*labels.of("one-more", || true), OTHER);
        assert_eq!(&*labels.of("tool-0", || panic!("it is known")), "tool-0");
    }
}
