//! Log lines about where a partition is read from, and what follows from that. docs/offsets.md
//! explains each of them.

use fleet_group::log::Finding;
use fleet_kafka::consumer::Assigned;

use super::topic_of;

pub(super) fn log_assignment(assigned: &Assigned) {
    let (topic, partition) = (topic_of(assigned.partition), assigned.partition.number);
    let from = assigned.start.progress.as_ref().map(|progress| progress.base);

    match &assigned.start.finding {
        Finding::Nothing | Finding::Own => tracing::info!(topic, partition, from, "assigned"),
        Finding::Bare => tracing::info!(
            topic,
            partition,
            from,
            "assigned; the committed offset carries no metadata of a worker: it was set by hand, or \
             committed by version 1. Jobs from this offset on will run, even if they have run before"
        ),
        Finding::Moved { from: before } => tracing::warn!(
            topic,
            partition,
            from,
            before,
            "assigned; somebody has moved the committed offset. Jobs from this offset on will run, \
             even if they have run before; jobs below it will not"
        ),
        Finding::Unreadable(error) => tracing::warn!(
            topic,
            partition,
            from,
            %error,
            "assigned; the commit's metadata can't be read. Finished jobs beyond the committed \
             offset may run again"
        ),
        Finding::Mirrored => tracing::warn!(
            topic,
            partition,
            from,
            "assigned; the commit comes from another cluster, so its metadata is ignored. Finished \
             jobs beyond the committed offset may run again"
        ),
        Finding::Remade => tracing::warn!(
            topic,
            partition,
            "assigned; the topic was deleted and made again since the last commit. Reading from the \
             beginning"
        ),
        Finding::BeyondEnd { committed, end } => tracing::warn!(
            topic,
            partition,
            committed,
            end,
            "assigned; the log ends below the committed offset: it has lost records, the topic was \
             made again, or the offset was set by hand. Reading from the beginning"
        ),
    }

    let deleted = assigned.start.deleted;
    if deleted > 0 {
        tracing::error!(
            topic,
            partition,
            deleted,
            "records were deleted from the topic before their jobs had ended; see retention.ms and \
             docs/offsets.md"
        );
    }
}
