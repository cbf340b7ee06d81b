//! The stub's log of calls: one entry per answered call, with times of the system clock.

use std::time::UNIX_EPOCH;

/// One call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Call {
    /// The number of the job.
    pub(crate) job: u32,
    /// The worker that made the call, if the path names it.
    pub(crate) worker: u32,
    /// When its body had arrived, in µs since 1970.
    pub(crate) begin: u64,
    /// When it was answered, in µs since 1970.
    pub(crate) end: u64,
}

/// The length of an encoded call.
const LENGTH: usize = 24;

/// The system time in µs since 1970. All processes of a machine share this clock, so their times
/// can be compared.
pub(crate) fn now() -> u64 {
    // A clock before 1970 would be visible in every figure.
    UNIX_EPOCH.elapsed().map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}

/// The bytes of a log.
pub(crate) fn encode(calls: &[Call]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(calls.len() * LENGTH);
    for call in calls {
        bytes.extend(call.job.to_le_bytes());
        bytes.extend(call.worker.to_le_bytes());
        bytes.extend(call.begin.to_le_bytes());
        bytes.extend(call.end.to_le_bytes());
    }
    bytes
}

/// Reads the bytes of [`encode`]. An incomplete entry at the end is left out.
pub(crate) fn decode(bytes: &[u8]) -> Vec<Call> {
    let (entries, _) = bytes.as_chunks::<LENGTH>();
    let decoded = entries.iter().map(|entry| {
        let (numbers, times) = entry.split_at(8);
        let (numbers, _) = numbers.as_chunks::<4>();
        let (times, _) = times.as_chunks::<8>();
        Call {
            job: u32::from_le_bytes(numbers[0]),
            worker: u32::from_le_bytes(numbers[1]),
            begin: u64::from_le_bytes(times[0]),
            end: u64::from_le_bytes(times[1]),
        }
    });

    decoded.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decoded_log_equals_the_encoded_one() {
        let calls = [
            Call { job: 1, worker: 2, begin: 3, end: u64::MAX },
            Call { job: u32::MAX, worker: 0, begin: 5, end: 6 },
        ];
        let mut bytes = encode(&calls);
        assert_eq!(decode(&bytes), calls);
        bytes.pop();
        assert_eq!(decode(&bytes), calls[..1]);
    }
}
