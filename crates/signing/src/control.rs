//! Signed requests to cancel a job and signed pauses, which workers verify.

use fleet_job::{control::Control, pause::Pause};
use serde::{Deserialize, Serialize};

use crate::{
    fault::SignatureFault,
    keys::SigningKeys,
    merkle::Hash,
    proof::{digest_of, hash_text},
};

/// The `typ` of the signature of a request to cancel.
const TYPE: &str = "mcp-fleet-control";
/// The `typ` of the signature of a pause.
const PAUSE_TYPE: &str = "mcp-fleet-pause";

/// That a server of this fleet has written a record of the control topic, or of the topic of
/// pauses.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ControlClaims {
    /// The jobs topic.
    #[serde(rename = "aud")]
    topic: String,
    /// The SHA-256 of the record's value, which says whose jobs may be cancelled, or which jobs are
    /// paused.
    #[serde(with = "hash_text")]
    value: Hash,
    /// The id of the principal that asked for it; missing if it was not verified.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    by: Option<String>,
}

impl SigningKeys {
    /// Signs the record of a request. Returns the text of the header [`HEADER`](crate::HEADER);
    /// `None` if there is no private key.
    pub fn sign_control(&self, topic: &str, value: &[u8], by: Option<String>) -> Option<String> {
        self.sign_value(TYPE, topic, value, by)
    }

    /// Signs the record of a pause. Returns the text of the header [`HEADER`](crate::HEADER);
    /// `None` if there is no private key.
    pub fn sign_pause(&self, topic: &str, value: &[u8], by: Option<String>) -> Option<String> {
        self.sign_value(PAUSE_TYPE, topic, value, by)
    }

    /// Reads the record of a request that was signed. `None` if this version does not understand
    /// the request.
    ///
    /// # Errors
    ///
    /// Returns what is wrong with the signature.
    pub fn verify_control(
        &self,
        topic: &str,
        value: &[u8],
        signature: Option<&str>,
    ) -> Result<Option<Control>, SignatureFault> {
        self.verify_value(TYPE, topic, value, signature)?;
        Ok(Control::from_bytes(value))
    }

    /// Reads the record of a pause that was signed. `None` if this version does not understand the
    /// pause.
    ///
    /// # Errors
    ///
    /// Returns what is wrong with the signature.
    pub fn verify_pause(
        &self,
        topic: &str,
        value: &[u8],
        signature: Option<&str>,
    ) -> Result<Option<Pause>, SignatureFault> {
        self.verify_value(PAUSE_TYPE, topic, value, signature)?;
        Ok(Pause::from_bytes(value))
    }

    fn sign_value(
        &self,
        kind: &str,
        topic: &str,
        value: &[u8],
        by: Option<String>,
    ) -> Option<String> {
        let claims = ControlClaims { topic: topic.to_owned(), value: digest_of(value), by };
        self.sign(kind, &claims)
    }

    /// Checks that this value was signed for this topic, as this kind of record.
    fn verify_value(
        &self,
        kind: &str,
        topic: &str,
        value: &[u8],
        signature: Option<&str>,
    ) -> Result<(), SignatureFault> {
        let signature = signature.ok_or(SignatureFault::Missing)?;
        let claims: ControlClaims = self.verify(kind, signature)?;
        if claims.topic != topic {
            return Err(SignatureFault::OtherTopic);
        }
        if claims.value != digest_of(value) {
            return Err(SignatureFault::OtherRecord);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use fleet_job::{control::Scope, time::Timestamp};

    use super::*;
    use crate::keys::generate_key;

    #[test]
    fn only_what_was_signed_is_obeyed() {
        let new_keys = || SigningKeys::parse(generate_key().unwrap().as_bytes()).unwrap();
        let keys = new_keys();
        let now = Timestamp::from_millis_clamped(1_000);
        let control = Control::cancel("j", None, now, None).within(Some(Scope::of_owner(None)));
        let value = control.to_bytes();
        let signature = keys.sign_control("jobs", &value, None).unwrap();
        let verify =
            |topic: &str, value: &[u8]| keys.verify_control(topic, value, Some(&signature));

        assert_eq!(verify("jobs", &value), Ok(Some(control.clone())));
        assert_eq!(verify("others", &value), Err(SignatureFault::OtherTopic));
        let wider = control.within(None).to_bytes();
        assert_eq!(verify("jobs", &wider), Err(SignatureFault::OtherRecord));
        assert_eq!(keys.verify_control("jobs", &value, None), Err(SignatureFault::Missing));

        let foreign = new_keys().sign_control("jobs", &value, None);
        let verified = keys.verify_control("jobs", &value, foreign.as_deref());
        assert_eq!(verified, Err(SignatureFault::UnknownKey));
    }

    #[test]
    fn a_pause_is_obeyed_as_it_was_signed_and_no_other_record_passes_for_one() {
        let keys = SigningKeys::parse(generate_key().unwrap().as_bytes()).unwrap();
        let text = r#"{"id":"p","scope":{"tenant":"a"},"reason":"r","since":1}"#;
        let pause = Pause::from_bytes(text.as_bytes()).unwrap();
        let value = pause.to_bytes();
        let signature = keys.sign_pause("jobs", &value, None);
        let verify = |value: &[u8]| keys.verify_pause("jobs", value, signature.as_deref());
        assert_eq!(verify(&value), Ok(Some(pause.clone())));

        let wider = Pause { scope: Default::default(), ..pause }.to_bytes();
        assert_eq!(verify(&wider), Err(SignatureFault::OtherRecord));
        let as_control = keys.sign_control("jobs", &value, None);
        assert!(keys.verify_pause("jobs", &value, as_control.as_deref()).is_err());
        assert_eq!(keys.verify_pause("jobs", &value, None), Err(SignatureFault::Missing));
    }
}
