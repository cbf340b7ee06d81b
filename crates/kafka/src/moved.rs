//! Questions for a broker that may just have handed over what is asked about.

use std::{
    thread,
    time::{Duration, Instant},
};

use rdkafka::error::{KafkaError as Native, RDKafkaErrorCode as Code};

/// How long to wait before the same question is asked again.
const PAUSE: Duration = Duration::from_millis(200);

/// Asks, and asks again for at most `timeout` if a partition or a group is moving to another
/// broker. `ask` gets the time that one answer may take. Blocks the thread.
///
/// # Errors
/// The last error of `ask`.
pub(crate) fn ask_where_it_went<T>(
    timeout: Duration,
    mut ask: impl FnMut(Duration) -> Result<T, Native>,
) -> Result<T, Native> {
    let deadline = Instant::now() + timeout;
    loop {
        match ask(timeout) {
            Err(error) if is_moving(&error) && Instant::now() + PAUSE < deadline => {
                thread::sleep(PAUSE)
            }
            answer => return answer,
        }
    }
}

/// Whether the broker says that another one is responsible, or that nobody is yet.
fn is_moving(error: &Native) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            Code::NotCoordinator
                | Code::CoordinatorNotAvailable
                | Code::CoordinatorLoadInProgress
                | Code::NotLeaderForPartition
                | Code::LeaderNotAvailable
                | Code::FencedLeaderEpoch
                | Code::UnknownLeaderEpoch
                | Code::ReplicaNotAvailable
        )
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(codes: &[Code], timeout: Duration, expected: Result<(), Code>) {
        let mut left = codes.iter();
        let answer = ask_where_it_went(timeout, |_| {
            left.next().map_or(Ok(()), |code| Err(Native::MetadataFetch(*code)))
        });

        assert_eq!(answer.map_err(|error| error.rdkafka_error_code().expect("a code")), expected);
    }

    #[test]
    fn what_moves_is_asked_again_and_a_refusal_is_final() {
        let long = Duration::from_secs(60);
        check(&[Code::NotCoordinator, Code::CoordinatorLoadInProgress], long, Ok(()));
        check(&[Code::NotLeaderForPartition], long, Ok(()));
        check(&[Code::GroupAuthorizationFailed], long, Err(Code::GroupAuthorizationFailed));
        check(&[Code::NotCoordinator], Duration::ZERO, Err(Code::NotCoordinator));
    }
}
