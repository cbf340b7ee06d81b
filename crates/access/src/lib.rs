//! Who asks, and what they may do.
//!
//! Pure: no IO, no clock, no randomness; the caller passes all of them in. A server uses this crate
//! in this order:
//!
//! 1. At start and whenever a file changes: [`AccessPolicy::parse`] reads the policy file,
//!    [`KeysFile::parse`] the keys file, and [`AccessPolicy::authenticator`] makes an
//!    [`Authenticator`] of both. After a reload, [`Tokens::adopt_keys`] and [`Limits::adopt`] carry
//!    on what the previous ones knew; [`CurrentRights::replace`] does so for limits.
//! 2. For each request: [`Authenticator::authenticate`] turns its credentials, as
//!    [`Presented`] has them, into a [`Principal`], a refusal, or the wish for an issuer's keys.
//! 3. For each operation: [`Asker::decide`] says whether the principal may do it by the rules in
//!    force, and [`Asker::admit`] whether it may do so now.
//! 4. [`Asker::check`], [`Asker::admit`] and [`Asker::begin_record`] hand what is refused and what is
//!    done to the [`AuditLog`], whose sink keeps it as an [`AuditRecord`].
//!
//! Nothing else in the fleet looks at a credential or decides about a right.

mod action;
mod asker;
mod audit;
mod authenticator;
mod certificates;
mod challenge;
mod file;
mod fleet_role;
mod hex;
mod keys;
mod limits;
mod pattern;
mod presented;
mod principal;
mod principals;
mod refusal;
mod resource;
mod rules;
mod tokens;
mod views;

pub use action::Action;
pub use asker::{Asker, CurrentRights, Origin, Rights};
pub use audit::{
    AuditGap, AuditLog, AuditOutcome, AuditPrincipal, AuditRecord, AuditResource, AuditSink,
    AuditTableError, AuditedValues, Keeping, OpenRecord, Redaction, canonical_json,
    digest_arguments, schema as audit_schema,
};
pub use authenticator::{Authenticator, WithoutCredentials};
pub use certificates::CertificateTableError;
pub use challenge::{Challenge, ChallengeError, RequiredScopes};
pub use file::{AccessPolicy, AccessPolicyError};
pub use fleet_role::{FleetRole, JobRights};
pub use keys::{KeyEntry, KeyIdError, KeysFile, KeysFileError, Pepper, check_key_id};
pub use limits::{
    AdmittedCall, LimitKey, LimitReached, LimitTableError, LimitedCall, Limiter, Limits, Rate,
    RetryAfter,
};
pub use presented::{ClientCertificate, MAX_AUTHORIZATION_BYTES, Presented};
pub use principal::{
    CERTIFICATES_ISSUER, KAFKA_ISSUER, KEYS_ISSUER, LOCAL_ISSUER, NoPrincipalId, OPEN_ISSUER,
    Principal, PrincipalId, PrincipalKind, Via,
};
pub use principals::PrincipalTableError;
pub use refusal::{AuthRefusal, AuthStatus, Fault};
pub use resource::{Annotations, Arguments, Context, JobOwner, Resource};
pub use rules::{
    Applies, ConditionError, Decision, Explanation, RuleEffect, RuleError, RuleMatch, RuleName,
    Rules, SelectorError,
};
pub use tokens::{
    Authentication, FETCH_INTERVAL, FetchKeys, IssuerTableError, JwksError, KeySource,
    REFRESH_INTERVAL, Tokens,
};
pub use views::{ShownTool, View, ViewError, Views, is_view_name};
