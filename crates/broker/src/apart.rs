//! Splits a fetch into one fetch per partition. The engine fails the whole fetch if it cannot serve
//! one batch, and a file may contain such batches from before they were rejected (see
//! [`batches`](super::batches)).

use tansu_sans_io::{
    Body, ErrorCode, FetchRequest, FetchResponse,
    fetch_request::FetchTopic,
    fetch_response::{FetchableTopicResponse, PartitionData},
};

/// Returns one fetch per partition.
pub(super) fn split(fetch: &FetchRequest) -> Vec<FetchRequest> {
    let topics = fetch.topics.iter().flatten();
    let alone = |topic: &FetchTopic, partition| topic.clone().partitions(Some(vec![partition]));
    let each = topics.flat_map(|topic| {
        topic.partitions.iter().flatten().map(move |partition| alone(topic, partition.clone()))
    });
    each.map(|topic| fetch.clone().topics(Some(vec![topic]))).collect()
}

/// Returns the response to a fetch of one partition that cannot be served.
pub(super) fn unreadable(alone: &FetchRequest) -> Vec<FetchableTopicResponse> {
    let topics = alone.topics.iter().flatten();
    let answer = topics.map(|topic| {
        let partitions = topic.partitions.iter().flatten().map(|partition| {
            PartitionData::default()
                .partition_index(partition.partition)
                .error_code(ErrorCode::CorruptMessage.into())
                .high_watermark(-1)
                .last_stable_offset(Some(-1))
                .log_start_offset(Some(-1))
                .aborted_transactions(Some(Vec::new()))
                .preferred_read_replica(Some(-1))
                .records(None)
        });
        FetchableTopicResponse::default()
            .topic(topic.topic.clone())
            .topic_id(topic.topic_id)
            .partitions(Some(partitions.collect()))
    });
    answer.collect()
}

/// Joins the responses to single-partition fetches into the response to the whole fetch.
pub(super) fn join(answers: Vec<FetchableTopicResponse>) -> Body {
    let mut topics: Vec<FetchableTopicResponse> = Vec::new();
    for answer in answers {
        match topics.last_mut() {
            Some(last) if last.topic == answer.topic && last.topic_id == answer.topic_id => {
                last.partitions
                    .get_or_insert_default()
                    .extend(answer.partitions.into_iter().flatten());
            }
            _ => topics.push(answer),
        }
    }
    FetchResponse::default()
        .throttle_time_ms(Some(0))
        .error_code(Some(ErrorCode::None.into()))
        .session_id(Some(0))
        .node_endpoints(Some(Vec::new()))
        .responses(Some(topics))
        .into()
}

#[cfg(test)]
mod tests {
    use tansu_sans_io::fetch_request::FetchPartition;

    use super::*;

    #[test]
    fn every_partition_gets_its_own_response() {
        let partition = |number| FetchPartition::default().partition(number);
        let topic = |name: &str, partitions| {
            FetchTopic::default().topic(Some(name.to_owned())).partitions(Some(partitions))
        };
        let topics =
            vec![topic("a", vec![partition(0), partition(1)]), topic("b", vec![partition(0)])];
        let split = split(&FetchRequest::default().topics(Some(topics)));
        assert_eq!(split.len(), 3);

        let answers: Vec<_> = split.iter().flat_map(unreadable).collect();
        let Body::FetchResponse(joined) = join(answers) else { panic!("not a fetch") };
        let found = joined.responses.iter().flatten().map(|topic| {
            let partitions = topic.partitions.iter().flatten();
            (
                topic.topic.clone().unwrap(),
                partitions.map(|found| found.partition_index).collect::<Vec<_>>(),
            )
        });
        assert_eq!(
            found.collect::<Vec<_>>(),
            [("a".to_owned(), vec![0, 1]), ("b".to_owned(), vec![0])]
        );
    }
}
