//! Tests when an idle fetch is answered from memory, and what makes the broker query its storage.

use tansu_sans_io::{
    FetchResponse,
    fetch_request::FetchPartition,
    produce_request::{PartitionProduceData, TopicProduceData},
};

use super::*;

/// A fetch of these partitions and offsets, in this order.
fn fetch(partitions: &[(&str, i32, i64)]) -> Asked {
    let topics = partitions.iter().map(|(topic, partition, offset)| {
        let partition = FetchPartition::default().partition(*partition).fetch_offset(*offset);
        FetchTopic::default().topic(Some((*topic).to_owned())).partitions(Some(vec![partition]))
    });
    Asked::of(&FetchRequest::default().topics(Some(topics.collect())))
}

fn written(topic: &str, partition: i32) -> Written {
    let partition = PartitionProduceData::default().index(partition);
    let topic =
        TopicProduceData::default().name(topic.to_owned()).partition_data(Some(vec![partition]));
    Written::of(&ProduceRequest::default().topic_data(Some(vec![topic])))
}

/// A connection whose fetch of `asked` has just found nothing.
fn after_nothing(asked: Asked, writes: &Writes, at: Instant) -> LastFetch {
    let mut last = LastFetch::default();
    last.keep(asked, writes.count(), at, FetchResponse::default().into());
    last
}

const ASKED: [(&str, i32, i64); 3] = [("a", 0, 7), ("a", 1, 9), ("b", 0, 3)];

#[test]
fn the_order_of_the_partitions_makes_no_difference() {
    let (writes, now) = (Writes::default(), Instant::now());
    let last = after_nothing(fetch(&ASKED), &writes, now);
    for rotated in [[1, 2, 0], [2, 0, 1], [2, 1, 0]] {
        let again = fetch(&rotated.map(|n| ASKED[n]));
        assert!(last.found_nothing(&again, &writes, now).is_some(), "{rotated:?}");
    }
}

#[test]
fn a_different_fetch_queries_the_storage() {
    let (writes, now) = (Writes::default(), Instant::now());
    let last = after_nothing(fetch(&ASKED), &writes, now);
    let moved = [("a", 0, 8), ("a", 1, 9), ("b", 0, 3)];
    let more = [("a", 0, 7), ("a", 1, 9), ("b", 0, 3), ("b", 1, 0)];
    for other in [&moved[..], &more[..], &ASKED[1..]] {
        assert!(last.found_nothing(&fetch(other), &writes, now).is_none(), "{other:?}");
    }
    assert!(LastFetch::default().found_nothing(&fetch(&ASKED), &writes, now).is_none());
}

#[test]
fn a_write_is_found_by_the_fetches_of_its_partition_only() {
    let now = Instant::now();
    for (topic, partition, is_asked) in
        [("a", 1, true), ("b", 0, true), ("b", 1, false), ("c", 0, false)]
    {
        let mut writes = Writes::default();
        writes.note(&written("a", 0));
        let last = after_nothing(fetch(&ASKED), &writes, now);
        writes.note(&written(topic, partition));
        let quiet = last.found_nothing(&fetch(&ASKED), &writes, now).is_some();
        assert_eq!(quiet, !is_asked, "{topic} {partition}");
    }
}

#[test]
fn new_and_deleted_topics_affect_every_fetch() {
    let (mut writes, now) = (Writes::default(), Instant::now());
    writes.note(&written("a", 0));
    let last = after_nothing(fetch(&ASKED), &writes, now);
    writes.note_everywhere();
    assert!(last.found_nothing(&fetch(&ASKED), &writes, now).is_none());
}

#[test]
fn a_topic_without_a_name_matches_any_write() {
    let (mut writes, now) = (Writes::default(), Instant::now());
    let topic = FetchTopic::default().partitions(Some(vec![FetchPartition::default()]));
    let asked = || Asked::of(&FetchRequest::default().topics(Some(vec![topic.clone()])));
    let last = after_nothing(asked(), &writes, now);
    assert!(last.found_nothing(&asked(), &writes, now).is_some());
    writes.note(&written("c", 0));
    assert!(last.found_nothing(&asked(), &writes, now).is_none());
}

#[test]
fn an_empty_result_expires() {
    let (writes, now) = (Writes::default(), Instant::now());
    let last = after_nothing(fetch(&ASKED), &writes, now);
    assert!(last.found_nothing(&fetch(&ASKED), &writes, now + LONGEST_QUIET).is_none());
}
