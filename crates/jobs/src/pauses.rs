//! Pauses: listed, ordered and ended by those who may.
//!
//! Every request reads the topic anew: pauses are few, and so are requests about them. Workers follow
//! the topic and obey it.

use std::{
    ops::ControlFlow,
    time::{Duration, Instant},
};

use fleet_access::{Action, Arguments, Context, Decision, Resource};
use fleet_job::{
    pause::{MAX_PAUSES, Pause, PauseList, PauseRequest, PauseScope, Pauses},
    record::{Header, RawRecord},
    time::Timestamp,
    topics::Topics,
};
use fleet_kafka::{KafkaError, admin, producer::Outgoing, settings::Settings};
use fleet_ops::{blocking::run_blocking, clock};
use fleet_signing::HEADER;
use serde_json::{Map, Value};
use uuid::Uuid;

use super::{Caller, Jobs, JobsError, outcome_of, records::for_each_record};

/// How long a request to the brokers may take.
const TIMEOUT: Duration = Duration::from_secs(10);
/// How long reading the pauses may take.
const SCAN_LIMIT: Duration = Duration::from_secs(20);
/// The most pauses of one tenant's jobs, so that one tenant leaves room for the others.
const MAX_OF_TENANT: usize = 100;
/// The longest pause that ends by itself in `forMs`: a year.
const MAX_FOR_MS: u64 = 366 * 24 * 3_600_000;

/// The pause that is asked for at `now`.
fn new_pause(
    request: PauseRequest,
    by: Option<String>,
    now: Timestamp,
) -> Result<Pause, JobsError> {
    let until = match (request.until, request.for_ms) {
        (Some(_), Some(_)) => return Err(bad("`until` and `forMs` exclude each other")),
        (until, None) => until,
        (None, Some(ms @ 1..=MAX_FOR_MS)) => Some(now.plus(Duration::from_millis(ms))),
        (None, Some(_)) => return Err(bad(format!("`forMs` must be 1 to {MAX_FOR_MS}"))),
    };
    if until.is_some_and(|until| until <= now) {
        return Err(bad("`until` is over"));
    }

    let pause = Pause {
        id: Uuid::new_v4().to_string(),
        scope: request.scope,
        by,
        reason: request.reason,
        since: now,
        until,
        resumed_at: None,
        resumed_by: None,
    };
    pause.check().map_err(JobsError::BadPause)?;
    Ok(pause)
}

fn bad(why: impl Into<String>) -> JobsError {
    JobsError::BadPause(why.into())
}

impl Jobs {
    /// Returns the pauses in force that `caller` may end.
    ///
    /// # Errors
    ///
    /// Returns an error if the topic can't be read.
    pub async fn pauses(&self, caller: &Caller) -> Result<PauseList, JobsError> {
        let found = self.read_pauses().await?;
        let is_visible = |pause: &&Pause| may_pause(caller, &pause.scope);
        let mut pauses: Vec<_> = found.iter().filter(is_visible).cloned().collect();
        pauses.sort_by(|one, other| (one.since, &one.id).cmp(&(other.since, &other.id)));
        Ok(PauseList { pauses })
    }

    /// Pauses jobs.
    ///
    /// # Errors
    ///
    /// Returns an error if the request is invalid, the caller may not pause these jobs, there are
    /// too many pauses, or Kafka does not accept the record.
    pub async fn pause_jobs(
        &self,
        request: PauseRequest,
        caller: &Caller,
    ) -> Result<Pause, JobsError> {
        let pause = new_pause(request, shown_name(caller), clock::now())?;
        let decision = check_pause(caller, &pause.scope)?;
        self.check_room(&pause).await?;

        self.write_audited(&pause, caller, &decision).await?;
        Ok(pause)
    }

    /// Ends a pause: its jobs start.
    ///
    /// # Errors
    ///
    /// Returns [`JobsError::NoPause`], and an error if the caller may not end it or Kafka does not
    /// accept the record.
    pub async fn resume_jobs(&self, id: &str, caller: &Caller) -> Result<Pause, JobsError> {
        let found = self.read_pauses().await?;
        let pause = found.get(id).cloned().ok_or_else(|| JobsError::NoPause(id.to_owned()))?;
        let decision = check_pause(caller, &pause.scope)?;

        let resumed =
            Pause { resumed_at: Some(clock::now()), resumed_by: shown_name(caller), ..pause };
        self.write_audited(&resumed, caller, &decision).await?;
        Ok(resumed)
    }

    /// Refuses a pause for which there is no room.
    async fn check_room(&self, pause: &Pause) -> Result<(), JobsError> {
        let found = self.read_pauses().await?;
        if found.len() >= MAX_PAUSES {
            return Err(bad(format!("{MAX_PAUSES} pauses are in force; end some first")));
        }

        let tenant = &pause.scope.tenant;
        let of_tenant = found.iter().filter(|other| other.scope.tenant == *tenant).count();
        if tenant.is_some() && of_tenant >= MAX_OF_TENANT {
            return Err(bad(format!(
                "{MAX_OF_TENANT} pauses of this tenant are in force; end some first"
            )));
        }
        Ok(())
    }

    /// Writes a pause to its topic, and who has done what to the audit log.
    async fn write_audited(
        &self,
        pause: &Pause,
        caller: &Caller,
        decision: &Decision,
    ) -> Result<(), JobsError> {
        let said = said(pause);
        let tenant = tenant_of(&pause.scope);
        let resource = Resource { tenant: Some(tenant), ..Resource::default() };
        let arguments = Arguments::Known(&said);
        let record = caller.begin_record(Action::PauseJobs, &resource, decision, arguments).await?;

        let written = self.write_pause(pause, caller).await;
        record.end(outcome_of(&written), None);
        written
    }

    async fn write_pause(&self, pause: &Pause, caller: &Caller) -> Result<(), JobsError> {
        self.create_topic().await?;

        let value = pause.to_bytes();
        let record = Outgoing {
            topic: self.inner.topics.pauses.clone(),
            key: Some(pause.id.clone().into_bytes()),
            headers: self.sign_pause(&value, caller),
            value: Some(value),
            ..Outgoing::default()
        };
        self.inner.link.producer.send(&record).await?;
        Ok(())
    }

    /// Creates the topic of pauses if it is missing, as in a fleet that is older than pauses.
    async fn create_topic(&self) -> Result<(), JobsError> {
        let look = |settings: &Settings, topics: &Topics| match admin::partitions(
            settings,
            &topics.pauses,
            TIMEOUT,
        ) {
            Ok(_) => Ok(true),
            Err(KafkaError::NoTopic(_)) => Ok(false),
            Err(error) => Err(error.into()),
        };
        if self.ask_brokers(look).await? {
            return Ok(());
        }

        let spec = [admin::pauses_topic(&self.inner.topics, -1)];
        admin::create_topics(self.inner.link.follower.settings(), &spec).await?;
        Ok(())
    }

    /// Reads the pauses in force.
    async fn read_pauses(&self) -> Result<Pauses, JobsError> {
        let jobs = self.clone();
        let read = move |settings: &Settings, topics: &Topics| {
            let deadline = Instant::now() + SCAN_LIMIT;
            let mut pauses = Pauses::default();
            let is_whole = for_each_record(settings, &topics.pauses, deadline, |record| {
                if let Some(pause) = jobs.read_pause(&record) {
                    pauses.take(pause, clock::now());
                }
                Ok(ControlFlow::Continue(()))
            })?;
            match is_whole {
                true => Ok(pauses),
                false => Err(JobsError::NotReady("pauses could not be read in time".to_owned())),
            }
        };
        self.ask_brokers(read).await
    }

    /// Reads topics on a thread where that may block.
    async fn ask_brokers<T: Send + 'static>(
        &self,
        ask: impl FnOnce(&Settings, &Topics) -> Result<T, JobsError> + Send + 'static,
    ) -> Result<T, JobsError> {
        let permit = self.inner.searches.clone().acquire_owned().await;
        let settings = self.inner.link.follower.settings().clone();
        let topics = self.inner.topics.clone();
        run_blocking(move || {
            let _permit = permit;
            ask(&settings, &topics)
        })
        .await
    }

    /// Reads a record of the topic of pauses; `None` if workers don't obey it.
    fn read_pause(&self, record: &RawRecord) -> Option<Pause> {
        let value = record.value.as_deref()?;
        match self.inner.signing_keys() {
            Some(keys) => {
                let topic = &self.inner.topics.jobs;
                keys.verify_pause(topic, value, record.header(HEADER)).ok().flatten()
            }
            None => Pause::from_bytes(value),
        }
    }

    /// The headers of the record of a pause.
    fn sign_pause(&self, value: &[u8], caller: &Caller) -> Vec<Header> {
        let by = caller.is_verified().then(|| caller.principal().id().to_string());
        let keys = self.inner.signing_keys();
        let signature = keys.and_then(|keys| keys.sign_pause(&self.inner.topics.jobs, value, by));
        signature.map(|text| (HEADER.to_owned(), Some(text.into_bytes()))).into_iter().collect()
    }
}

/// What people read of somebody who pauses or resumes jobs.
fn shown_name(caller: &Caller) -> Option<String> {
    let name = caller.is_verified().then(|| caller.principal().display_name())?;
    Some(name.chars().filter(|c| !c.is_control()).take(256).collect())
}

/// What the audit log says of a pause, or of its end.
fn said(pause: &Pause) -> Map<String, Value> {
    let whole = serde_json::to_value(pause).ok();
    whole.and_then(|whole| whole.as_object().cloned()).unwrap_or_default()
}

/// The tenant within which the right to pause is needed. A pause that names no tenant is about
/// everybody's jobs, and takes the right for jobs without a tenant.
fn tenant_of(scope: &PauseScope) -> &str {
    scope.tenant.as_deref().unwrap_or_default()
}

fn check_pause(caller: &Caller, scope: &PauseScope) -> Result<Decision, JobsError> {
    let resource = Resource { tenant: Some(tenant_of(scope)), ..Resource::default() };
    caller.check(Action::PauseJobs, &resource, &Context::default())
}

fn may_pause(caller: &Caller, scope: &PauseScope) -> bool {
    let resource = Resource { tenant: Some(tenant_of(scope)), ..Resource::default() };
    caller.decide_with(Action::PauseJobs, &resource, &Context::default()).is_allowed()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use fleet_access::{AccessPolicy, Asker, CurrentRights, Principal, PrincipalKind, Via};

    use super::*;

    fn at(ms: i64) -> Timestamp {
        Timestamp::from_millis_clamped(ms)
    }

    #[test]
    fn a_pause_without_a_tenant_takes_the_right_for_all_tenants() {
        let check = |own: Option<&str>, tenants: &str, of: Option<&str>, expected: bool| {
            let rules = format!(
                "[[rule]]\nname = 'r'\neffect = 'allow'\nprincipals = ['anyone']\n\
                 actions = ['jobs.pause']\n{tenants}"
            );
            let rights = AccessPolicy::parse(&rules, None).unwrap().into_rights();
            let via = Via::Key { id: "k".to_owned() };
            let mut principal = Principal::new("keys", "ops", PrincipalKind::Person, via);
            principal.tenant = own.map(str::to_owned);
            let asker = Asker::new(Arc::new(principal), CurrentRights::new(rights));
            let caller = Caller::new(Some("ops".to_owned()), None, asker);

            let scope = PauseScope { tenant: of.map(str::to_owned), ..PauseScope::default() };
            assert_eq!(check_pause(&caller, &scope).is_ok(), expected, "{own:?} {tenants} {of:?}");
            assert_eq!(may_pause(&caller, &scope), expected);
        };

        check(Some("acme"), "", Some("acme"), true);
        check(Some("acme"), "", Some("other"), false);
        check(Some("acme"), "", None, false);
        check(Some("acme"), "tenants = ['acme']", None, false);
        check(Some("acme"), "tenants = ['*']", None, true);
        check(None, "", None, true);
    }

    #[test]
    fn a_request_has_bounds() {
        let read = |text: &str| {
            let request: PauseRequest = serde_json::from_str(text).map_err(|it| it.to_string())?;
            let pause = new_pause(request, Some("ada".to_owned()), at(1_000));
            pause.map_err(|error| error.to_string())
        };

        let pause = read(r#"{"scope": {"tool": "db__*"}, "reason": "r", "forMs": 500}"#).unwrap();
        assert_eq!((pause.until, pause.since), (Some(at(1_500)), at(1_000)));
        assert_eq!(pause.by.as_deref(), Some("ada"));
        assert!(read(r#"{"scope": {}, "reason": "r"}"#).unwrap().scope.is_everything());

        for (bad, why) in [
            (r#"{"reason": "r"}"#, "scope"),
            (r#"{"scope": {"tol": "x"}, "reason": "r"}"#, "tol"),
            (r#"{"scope": {}, "reason": ""}"#, "`reason`"),
            (r#"{"scope": {}, "reason": "r", "forMs": 0}"#, "`forMs`"),
            (r#"{"scope": {}, "reason": "r", "until": 1000}"#, "`until`"),
            (r#"{"scope": {}, "reason": "r", "until": 2000, "forMs": 1}"#, "exclude"),
        ] {
            let error = read(bad).unwrap_err();
            assert!(error.contains(why), "{bad}: {error}");
        }
    }
}
