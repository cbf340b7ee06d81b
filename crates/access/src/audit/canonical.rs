//! The digest of arguments as canonical JSON, so that the same arguments have the same digest.

use fleet_job::canonical::canonical_object;
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::hex;

/// The SHA-256 of arguments as canonical JSON, in hexadecimal.
pub fn digest_arguments(arguments: &Map<String, Value>) -> String {
    hex::encode(&Sha256::digest(canonical_object(arguments)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_order_of_members_and_white_space_do_not_matter() {
        let digest = |text: &str| digest_arguments(&serde_json::from_str(text).unwrap());
        assert_eq!(digest(r#"{"a":1,"b":2}"#), digest(r#"{ "b": 2, "a": 1 }"#));
        assert_ne!(digest(r#"{"a":1}"#), digest(r#"{"a":1.0}"#));
        // The digest of `{}`, which any other implementation must agree with.
        assert_eq!(
            digest("{}"),
            "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
        );
    }
}
