//! The tool names in metric labels. Callers choose tool names, so the number of labels is bounded.

use std::{collections::HashSet, sync::Arc};

use parking_lot::Mutex;

/// The most tools that have a label of their own.
const MAX_LABELS: usize = 200;
/// The label of all other tools, as OpenTelemetry names values outside a known set.
const OTHER: &str = "_OTHER";

/// The existing tools that have been called so far.
#[derive(Debug, Default)]
pub(super) struct Labels(Mutex<HashSet<Arc<str>>>);

impl Labels {
    /// The label for a call of `tool`.
    pub(super) fn of(&self, tool: &str, exists: impl FnOnce() -> bool) -> Arc<str> {
        let known = || self.0.lock();
        if let Some(label) = known().get(tool) {
            return label.clone();
        }

        // Called without holding the lock, because it takes locks of its own.
        let exists = exists();

        let mut known = known();
        if !exists || known.len() >= MAX_LABELS {
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
    fn labels_are_bounded_and_name_only_existing_tools() {
        let labels = Labels::default();
        assert_eq!(&*labels.of("nonsense", || false), OTHER);
        for number in 0..MAX_LABELS {
            let tool = format!("tool-{number}");
            assert_eq!(*labels.of(&tool, || true), *tool);
        }
        assert_eq!(&*labels.of("one-more", || true), OTHER);
        assert_eq!(&*labels.of("tool-0", || panic!("it is known")), "tool-0");
    }
}
