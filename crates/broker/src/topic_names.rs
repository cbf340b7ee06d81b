//! Names of topics are checked here, since the engine takes any.

use fleet_job::topics::is_valid_name;
use tansu_sans_io::{CreateTopicsRequest, ErrorCode, create_topics_response::CreatableTopicResult};

/// Takes the topics out of `request` whose names Kafka does not allow, and returns what their
/// creator is told.
pub(super) fn refuse_invalid(request: &mut CreateTopicsRequest) -> Vec<CreatableTopicResult> {
    let topics = request.topics.take().unwrap_or_default();
    let (valid, invalid): (Vec<_>, Vec<_>) =
        topics.into_iter().partition(|topic| is_valid_name(&topic.name));
    request.topics = Some(valid);

    let refused = invalid.into_iter().map(|topic| {
        CreatableTopicResult::default()
            .name(topic.name)
            .topic_id(Some([0; 16]))
            .error_code(ErrorCode::InvalidTopicException.into())
            .error_message(Some("not a name that Kafka allows for a topic".to_owned()))
            .configs(Some(Vec::new()))
    });
    refused.collect()
}

#[cfg(test)]
mod tests {
    use tansu_sans_io::create_topics_request::CreatableTopic;

    use super::*;

    #[test]
    fn only_valid_names_reach_the_engine() {
        let topics =
            ["good", "bad/name", ".."].map(|name| CreatableTopic::default().name(name.into()));
        let mut request = CreateTopicsRequest::default().topics(Some(topics.into()));

        let refused = refuse_invalid(&mut request);
        let names: Vec<_> = refused.iter().map(|topic| topic.name.as_str()).collect();
        assert_eq!(names, ["bad/name", ".."]);
        assert!(refused.iter().all(|topic| topic.error_code == 17));
        assert_eq!(request.topics.unwrap_or_default().len(), 1);
    }
}
