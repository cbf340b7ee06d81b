//! The results of micro-benchmarks, read from criterion's files.

use std::{
    fs,
    path::{Path, PathBuf},
};

use serde::Serialize;
use serde_json::Value;

/// One micro-benchmark.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(crate) struct Micro {
    /// Criterion's id: group, function, parameter.
    pub(crate) id: String,
    /// The mean time per element (event, record or bytes, as the benchmark counts them), in ns.
    pub(crate) ns: f64,
    /// The bounds of its 95 % confidence interval.
    pub(crate) low: f64,
    pub(crate) high: f64,
    /// The number of samples.
    pub(crate) samples: usize,
}

/// All results below `directory`, by id.
pub(crate) fn read(directory: &Path) -> Vec<Micro> {
    let mut found = Vec::new();
    walk(directory, &mut found);
    found.sort_by_key(|one: &Micro| natural(&one.id));
    found
}

fn walk(directory: &Path, found: &mut Vec<Micro>) {
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let path: PathBuf = entry.path();
        if path.ends_with("new") {
            found.extend(read_benchmark(&path));
        } else if path.is_dir() {
            walk(&path, found);
        }
    }
}

fn read_benchmark(directory: &Path) -> Option<Micro> {
    let read =
        |name: &str| serde_json::from_slice::<Value>(&fs::read(directory.join(name)).ok()?).ok();
    parse(&read("benchmark.json")?, &read("estimates.json")?, &read("sample.json")?)
}

fn parse(benchmark: &Value, estimates: &Value, sample: &Value) -> Option<Micro> {
    // Times per byte can't be compared, but times per record can.
    let elements = benchmark.pointer("/throughput/Elements").and_then(Value::as_f64).unwrap_or(1.0);
    let mean = estimates.get("mean")?;
    let get = |pointer: &str| Some(mean.pointer(pointer)?.as_f64()? / elements);
    Some(Micro {
        id: benchmark.get("full_id")?.as_str()?.to_owned(),
        ns: get("/point_estimate")?,
        low: get("/confidence_interval/lower_bound")?,
        high: get("/confidence_interval/upper_bound")?,
        samples: sample.get("times")?.as_array()?.len(),
    })
}

/// A sort key for an id, in which 9 comes before 10.
fn natural(id: &str) -> Vec<(String, u64)> {
    id.split('/')
        .map(|part| {
            (part.trim_end_matches(|c: char| c.is_ascii_digit()).to_owned(), trailing(part))
        })
        .collect()
}

/// The number at the end of a name; 0 if there is none.
pub(crate) fn trailing(part: &str) -> u64 {
    let digits = part.trim_start_matches(|c: char| !c.is_ascii_digit());
    digits.parse().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_benchmark_is_parsed_by_its_elements() {
        let benchmark = json!({"full_id": "in flight/key/1000", "throughput": {"Elements": 4}});
        let estimates = json!({"mean": {"point_estimate": 800.0,
            "confidence_interval": {"lower_bound": 400.0, "upper_bound": 1200.0}}});
        let sample = json!({"times": [1.0, 2.0, 3.0]});
        let expected = Micro {
            id: "in flight/key/1000".to_owned(),
            ns: 200.0,
            low: 100.0,
            high: 300.0,
            samples: 3,
        };

        assert_eq!(parse(&benchmark, &estimates, &sample), Some(expected));
        assert_eq!(parse(&json!({}), &estimates, &sample), None);
    }

    #[test]
    fn names_are_sorted_by_their_numbers() {
        let mut ids = ["a/1000", "a/10", "a/9", "b"];
        ids.sort_by_key(|id| natural(id));
        assert_eq!(ids, ["a/9", "a/10", "a/1000", "b"]);
    }
}
