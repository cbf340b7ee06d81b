//! Retrying requests about a partition or group that is moving to another broker.

use std::{
    thread,
    time::{Duration, Instant},
};

use rdkafka::error::{KafkaError as Native, RDKafkaErrorCode as Code};

/// The pause between two tries.
const PAUSE: Duration = Duration::from_millis(200);

/// Makes a request, and repeats it for at most `timeout` while the partition or group is moving to
/// another broker. `ask` gets the timeout for one try. Blocks the thread.
///
/// # Errors
///
/// Returns the last error of `ask`.
pub(crate) fn retry_while_moving<T>(
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

/// Returns whether a broker says that another one is responsible, or that none is yet.
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
        let answer = retry_while_moving(timeout, |_| {
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
