//! The jobs: the same for all contestants, computed from their number.

use serde_json::json;

/// The number of keys.
pub(crate) const KEYS: usize = 10_000;
/// The exponent of Zipf's law. With it, the most frequent key has 3.7 % of the jobs: as many as one
/// lane can process next to fifteen others, so that order by key costs something but doesn't
/// dominate.
const EXPONENT: f64 = 0.8;

/// The jobs of a topic.
#[derive(Debug, Clone)]
pub(crate) struct Workload {
    pub(crate) partitions: i32,
    /// Bytes of each job's arguments.
    pub(crate) bytes: usize,
    /// The cumulative weights of the keys.
    cumulative: Vec<f64>,
}

impl Workload {
    pub(crate) fn new(partitions: i32, bytes: usize) -> Self {
        let mut sum = 0.0;
        let weights = (1..=KEYS).map(|rank| {
            sum += (rank as f64).powf(-EXPONENT);
            sum
        });
        Self { partitions, bytes, cumulative: weights.collect() }
    }

    /// The rank of the key of job `n`, from 0.
    pub(crate) fn key(&self, n: u32) -> u32 {
        let all = self.cumulative.last().copied().unwrap_or_default();
        let at = unit(hash(u64::from(n))) * all;
        let rank = self.cumulative.partition_point(|sum| *sum <= at);
        u32::try_from(rank.min(KEYS - 1)).unwrap_or_default()
    }

    /// The partition of a key. The ranks are mixed first, so that no partition has all the frequent
    /// keys.
    pub(crate) fn partition(&self, key: u32) -> i32 {
        let partitions = u64::from(self.partitions.unsigned_abs().max(1));
        i32::try_from(hash(u64::from(key) ^ 0xF1EE7) % partitions).unwrap_or_default()
    }

    /// The arguments of job `n`, as JSON of about [`Workload::bytes`] bytes, with text that doesn't
    /// compress well.
    pub(crate) fn arguments(&self, n: u32) -> String {
        let head = format!(r#"{{"n":{n},"text":""#);
        let mut text = head;
        let mut seed = u64::from(n);
        while text.len() + 2 < self.bytes {
            seed = hash(seed);
            let more = format!("{seed:016x}");
            let room = self.bytes - 2 - text.len();
            text.push_str(&more[..room.min(more.len())]);
        }
        text.push_str(r#""}"#);
        text
    }

    /// The record's value: an envelope.
    pub(crate) fn envelope(&self, n: u32) -> String {
        let arguments = self.arguments(n);
        format!(
            r#"{{"jobID":"{}","jobType":"tool-call","payload":{{"tool":"work","arguments":{arguments}}}}}"#,
            job_id(n)
        )
    }

    /// The JSON-RPC request of a client without a job.
    pub(crate) fn request(&self, n: u32) -> String {
        let arguments = self.arguments(n);
        format!(
            r#"{{"jsonrpc":"2.0","id":{n},"method":"tools/call","params":{{"name":"work","arguments":{arguments}}}}}"#
        )
    }

    /// The number of each record, by partition and offset, for the first `jobs` jobs written in
    /// order.
    pub(crate) fn placed(&self, jobs: u32) -> Vec<Vec<u32>> {
        let mut placed = vec![Vec::new(); usize::try_from(self.partitions).unwrap_or_default()];
        for n in 0..jobs {
            if let Some(partition) =
                usize::try_from(self.partition(self.key(n))).ok().and_then(|p| placed.get_mut(p))
            {
                partition.push(n);
            }
        }
        placed
    }
}

/// The id of job `n`.
pub(crate) fn job_id(n: u32) -> String {
    format!("b-{n:09}")
}

/// The number in a job's id.
pub(crate) fn number_of(job_id: &[u8]) -> Option<u32> {
    std::str::from_utf8(job_id.strip_prefix(b"b-")?).ok()?.parse().ok()
}

/// The number of the job in a request's or an envelope's body.
pub(crate) fn number_in(body: &[u8]) -> Option<u32> {
    const MARK: &[u8] = br#""arguments":{"n":"#;
    let at = body.windows(MARK.len()).position(|window| window == MARK)? + MARK.len();
    let digits = body[at..].iter().take_while(|byte| byte.is_ascii_digit()).count();
    std::str::from_utf8(&body[at..at + digits]).ok()?.parse().ok()
}

/// A tool's JSON-RPC response to request `id`.
pub(crate) fn response(id: &str) -> String {
    format!(
        r#"{{"jsonrpc":"2.0","id":{id},"result":{}}}"#,
        json!({"resultType": "complete", "content": [{"type": "text", "text": "done"}]})
    )
}

/// SplitMix64.
pub(crate) fn hash(n: u64) -> u64 {
    let mut z = n.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// A number from 0 up to but excluding 1.
pub(crate) fn unit(random: u64) -> f64 {
    (random >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_follow_zipf_and_are_never_all_distinct() {
        let workload = Workload::new(12, 300);
        let mut counts = vec![0_u32; KEYS];
        let jobs = 200_000;
        (0..jobs).for_each(|n| counts[workload.key(n) as usize] += 1);
        let share = |rank: usize| f64::from(counts[rank]) / f64::from(jobs);
        assert!((0.035..0.040).contains(&share(0)), "{}", share(0));
        let ratio = share(0) / share(9);
        assert!((5.0..7.7).contains(&ratio), "10^0.8 is 6.3: {ratio}");
    }

    #[test]
    fn a_job_has_the_requested_size_and_is_found_in_both_forms() {
        for bytes in [300, 10_000] {
            let workload = Workload::new(12, bytes);
            for n in [0, 7, 999_999] {
                assert_eq!(workload.arguments(n).len(), bytes);
                let envelope: serde_json::Value =
                    serde_json::from_str(&workload.envelope(n)).unwrap();
                assert_eq!(envelope["payload"]["arguments"]["n"], n);
                assert_eq!(number_in(workload.envelope(n).as_bytes()), Some(n));
                assert_eq!(number_in(workload.request(n).as_bytes()), Some(n));
                assert_eq!(number_of(job_id(n).as_bytes()), Some(n));
            }
        }

        assert_eq!(number_in(b"{}"), None);
        let response: serde_json::Value = serde_json::from_str(&response("3")).unwrap();
        assert_eq!(response["id"], 3);
    }

    #[test]
    fn jobs_are_placed_according_to_their_keys() {
        let workload = Workload::new(3, 300);
        let placed = workload.placed(1000);
        assert_eq!(placed.iter().map(Vec::len).sum::<usize>(), 1000);
        for (partition, jobs) in placed.iter().enumerate() {
            assert!(jobs.is_sorted() && !jobs.is_empty());
            assert!(jobs.iter().all(|n| workload.partition(workload.key(*n)) == partition as i32));
        }
    }
}
