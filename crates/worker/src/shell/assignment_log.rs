//! What the log says of where a partition is read from.

use fleet_group::log::Finding;
use fleet_kafka::consumer::Assigned;

use super::topic_of;

/// Says where a partition is read from, and what follows from it. docs/offsets.md explains each.
pub(super) fn log_assignment(assigned: &Assigned) {
    let (topic, partition) = (topic_of(assigned.partition), assigned.partition.number);
    let from = assigned.start.progress.as_ref().map(|progress| progress.base);
    match &assigned.start.finding {
        Finding::Nothing | Finding::Own => tracing::info!(topic, partition, from, "assigned"),
        Finding::Bare => tracing::info!(
            topic,
            partition,
            from,
            "assigned; the committed offset carries no metadata of a worker, so somebody has set it, or a worker of \
             version 1 committed it: jobs from there on run, whether or not they ran before"
        ),
        Finding::Moved { from: before } => tracing::warn!(
            topic,
            partition,
            from,
            before,
            "assigned; somebody has moved the committed offset: jobs from there on run, whether or not they ran before, \
             and jobs below it do not"
        ),
        Finding::Unreadable(error) => tracing::warn!(
            topic,
            partition,
            from,
            %error,
            "assigned; the commit's metadata can't be read: jobs beyond the committed offset that have ended may run again"
        ),
        Finding::Mirrored => tracing::warn!(
            topic,
            partition,
            from,
            "assigned; the commit comes from another cluster, so its metadata is ignored: jobs beyond the committed \
             offset that have ended may run again"
        ),
        Finding::Remade => tracing::warn!(
            topic,
            partition,
            "assigned; the topic was deleted and made again since the last commit: reading it from its beginning"
        ),
        Finding::BeyondEnd { committed, end } => tracing::warn!(
            topic,
            partition,
            committed,
            end,
            "assigned; the log ends below the committed offset, so it has lost records, or the topic was made again, or \
             somebody has set that offset: reading it from its beginning"
        ),
    }
    let deleted = assigned.start.deleted;
    if deleted > 0 {
        tracing::error!(
            topic,
            partition,
            deleted,
            "records were deleted from the topic before their jobs had ended; see retention.ms and docs/offsets.md"
        );
    }
}
