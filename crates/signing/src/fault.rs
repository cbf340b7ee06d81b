//! What is wrong with a signature.

use fleet_codes::{self as codes, Code};

/// Why a signature is not accepted. The text is fit for the caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
pub enum SignatureFault {
    /// There is none.
    #[error("there is no signature [{}]", self.code())]
    Missing,
    /// It can't be read.
    #[error("the job's signature can't be read [{}]", self.code())]
    Malformed,
    /// No key of this fleet has the id that it names.
    #[error(
        "the job's signature was made with a key that this server does not have; if keys are being \
         replaced, give every server the public key first [{}]",
        self.code()
    )]
    UnknownKey,
    /// The signature is not that of its text.
    #[error("the job's signature is wrong [{}]", self.code())]
    Forged,
    /// It was made for another topic.
    #[error("the job was signed for another jobs topic [{}]", self.code())]
    OtherTopic,
    /// It was made for another job.
    #[error("the signature is that of another job [{}]", self.code())]
    OtherJob,
    /// The record is not the one that was signed.
    #[error("the job's record was changed after it was signed [{}]", self.code())]
    OtherRecord,
    /// The call is not one of those that were signed.
    #[error("the call is not one of those that were signed with its job [{}]", self.code())]
    OtherCall,
}

impl SignatureFault {
    /// Every fault.
    pub const ALL: [Self; 8] = [
        Self::Missing,
        Self::Malformed,
        Self::UnknownKey,
        Self::Forged,
        Self::OtherTopic,
        Self::OtherJob,
        Self::OtherRecord,
        Self::OtherCall,
    ];

    /// The stable code of the error.
    pub fn code(self) -> Code {
        match self {
            Self::UnknownKey => codes::UNKNOWN_SIGNATURE,
            _ => codes::BAD_SIGNATURE,
        }
    }

    /// Whether the same signature may be accepted later: a server may not have read a new key yet.
    pub fn is_retryable(self) -> bool {
        self == Self::UnknownKey
    }

    /// The fault in a word, for the labels of metrics and for audit records.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Missing => "missing",
            Self::Malformed => "malformed",
            Self::UnknownKey => "unknown-key",
            Self::Forged => "forged",
            Self::OtherTopic => "other-topic",
            Self::OtherJob => "other-job",
            Self::OtherRecord => "other-record",
            Self::OtherCall => "other-call",
        }
    }
}
