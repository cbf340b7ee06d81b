//! Whether this server records what its callers do, and where.

use std::path::PathBuf;

use fleet_access::{AuditLog, AuditOutcome, AuditRecord};
use fleet_audit::{Destinations, Recorder};
use fleet_hosting::secret_store::{SecretAudit, SecretUse, UnrecordedUse};
use fleet_job::topics::Topics;
use fleet_kafka::{admin::audit_topic, link::Link};
use futures::future::BoxFuture;

use crate::error::ServerError;

/// Whether callers' actions are recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub enum AuditMode {
    /// If callers are told apart and there is a place for records.
    #[default]
    Auto,
    /// Never.
    Off,
    /// Always.
    On,
    /// Always; what can't be recorded is not done.
    Required,
}

/// The settings of the audit log.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuditConfig {
    /// Whether callers' actions are recorded.
    pub mode: AuditMode,
    /// The file to which records are appended.
    pub file: Option<PathBuf>,
    /// The cluster with the topic of records.
    pub topic: Option<AuditTopic>,
}

/// The topic to which records are written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuditTopic {
    /// The brokers.
    pub brokers: String,
    /// The jobs topic to whose name the topic's belongs.
    pub jobs: String,
}

impl AuditConfig {
    /// Opens the log if there is to be one. `connect` makes a connection to the brokers.
    ///
    /// # Errors
    ///
    /// Returns an error if there is no place for records and must be, or it can't be opened.
    pub(crate) async fn open(
        &self,
        identifies_callers: bool,
        connect: impl FnOnce(&str) -> Result<Link, ServerError>,
    ) -> Result<Option<Audit>, ServerError> {
        let is_nowhere = self.file.is_none() && self.topic.is_none();
        match self.mode {
            AuditMode::Off => return Ok(None),
            AuditMode::Auto if !identifies_callers => return Ok(None),
            AuditMode::Auto if is_nowhere => {
                tracing::info!(
                    "nothing records what callers do; --audit-file (MCP_AUDIT_FILE) names a file"
                );
                return Ok(None);
            }
            AuditMode::On | AuditMode::Required if is_nowhere => {
                return Err(ServerError::AuditNowhere);
            }
            AuditMode::Auto | AuditMode::On | AuditMode::Required => {}
        }

        let topic = match &self.topic {
            Some(AuditTopic { brokers, jobs }) => {
                let spec = audit_topic(&Topics::of(jobs), -1);
                tracing::info!(topic = spec.name, "recording what callers do");
                Some((connect(brokers)?, spec))
            }
            None => None,
        };
        if let Some(file) = &self.file {
            tracing::info!(file = %file.display(), "recording what callers do");
        }

        let recorder = Destinations { file: self.file.clone(), topic }.open().await?;
        let log = recorder.log(self.mode == AuditMode::Required);
        Ok(Some(Audit { recorder, log }))
    }
}

/// An open audit log.
#[derive(Debug)]
pub(crate) struct Audit {
    /// Keeps the records.
    pub(crate) recorder: Recorder,
    /// Takes them.
    pub(crate) log: AuditLog,
}

/// Records each secret that a hosted server is given. If the log is required and can't take the
/// record, the server does not get the secret.
pub(crate) struct SecretUses(pub(crate) AuditLog);

impl SecretAudit for SecretUses {
    fn record<'a>(&'a self, used: SecretUse<'a>) -> BoxFuture<'a, Result<(), UnrecordedUse>> {
        let SecretUse { server, secret, .. } = used;
        Box::pin(async move {
            let make = |time| AuditRecord::of_secret_use(time, server, secret);
            let begun = self.0.begin(make).await;
            let record = begun.map_err(|gap| UnrecordedUse {
                secret: secret.to_owned(),
                reason: gap.to_string(),
            })?;
            record.end(AuditOutcome::Succeeded, None);
            Ok(())
        })
    }
}
