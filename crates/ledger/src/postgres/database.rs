//! Connections to the database: a few for each kind of work, so that none can take the place of
//! another, and a limit of time for everything.

use std::time::Duration;

use deadpool_postgres::{
    Client, Hook, HookError, Manager, ManagerConfig, Object, Pool, PoolError, RecyclingMethod,
    Runtime,
};
use tokio_postgres::NoTls;

use super::{DatabaseUrl, tls::MakeTls};
use crate::{metrics, store::StoreError};

/// A kind of work that the database does for us.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Work {
    /// Applying records, and everything else that writes.
    Project,
    /// Reading one job.
    Find,
    /// Reading lists and counts, which may take long.
    List,
}

impl Work {
    /// Returns the name in metric labels.
    fn as_str(self) -> &'static str {
        match self {
            Self::Project => "project",
            Self::Find => "find",
            Self::List => "list",
        }
    }

    /// Returns the most connections for this kind of work.
    fn connections(self) -> usize {
        match self {
            // One applies what was read, one writes the rest.
            Self::Project => 2,
            Self::Find => 4,
            Self::List => 2,
        }
    }

    /// Returns how long one piece of work may take.
    pub(super) fn limit(self) -> Duration {
        Duration::from_secs(match self {
            Self::Project => 60,
            Self::Find => 5,
            Self::List => 20,
        })
    }

    /// Returns what connections for this kind of work begin with.
    fn settings(self) -> String {
        let timeout = self.limit().as_millis();
        match self {
            // Statements are bounded by their transaction.
            Self::Project => String::new(),
            Self::Find => format!("SET statement_timeout = {timeout}"),
            // The best index depends on the values that are looked for.
            Self::List => format!(
                "SET statement_timeout = {timeout}; SET plan_cache_mode = force_custom_plan"
            ),
        }
    }
}

/// How long to wait for a connection that is in use, and for a new one.
const WAIT: Duration = Duration::from_secs(5);
/// How long connecting may take: more than one address may have to be tried.
const CREATE: Duration = Duration::from_secs(12);

/// The connections of one process.
pub(super) struct Database {
    project: Pool,
    find: Pool,
    list: Pool,
}

impl Database {
    /// Prepares connections, which are opened when they are needed.
    pub(super) fn new(url: &DatabaseUrl) -> Self {
        Self {
            project: pool(url, Work::Project),
            find: pool(url, Work::Find),
            list: pool(url, Work::List),
        }
    }

    /// Lends a connection for a piece of work.
    pub(super) async fn lend(&self, work: Work) -> Result<Lent, StoreError> {
        let pool = match work {
            Work::Project => &self.project,
            Work::Find => &self.find,
            Work::List => &self.list,
        };
        match pool.get().await {
            Ok(client) => Ok(Lent { client, work }),
            Err(error) => {
                metrics::count_error(work.as_str());
                Err(match error {
                    PoolError::Backend(error)
                    | PoolError::PostCreateHook(HookError::Backend(error)) => error.into(),
                    PoolError::Timeout(_) => StoreError::Unanswered,
                    _ => StoreError::Worker,
                })
            }
        }
    }
}

fn pool(url: &DatabaseUrl, work: Work) -> Pool {
    let (config, recycling) =
        (url.config.clone(), ManagerConfig { recycling_method: RecyclingMethod::Fast });
    let manager = match url.tls.clone() {
        None => Manager::from_config(config, NoTls, recycling),
        Some(files) => Manager::from_config(config, MakeTls(files), recycling),
    };

    let settings = work.settings();
    let prepare = Hook::async_fn(move |client: &mut deadpool_postgres::ClientWrapper, _| {
        let settings = settings.clone();
        Box::pin(async move { client.batch_execute(&settings).await.map_err(HookError::Backend) })
    });

    let pool = Pool::builder(manager)
        .max_size(work.connections())
        .wait_timeout(Some(WAIT))
        .create_timeout(Some(CREATE))
        .runtime(Runtime::Tokio1)
        .post_create(prepare)
        .build();
    // Building fails only for timeouts without a runtime, and there is one.
    #[expect(clippy::expect_used, reason = "the runtime is named above")]
    pool.expect("a pool with a runtime")
}

/// A connection that is lent for one piece of work.
pub(super) struct Lent {
    pub(super) client: Client,
    work: Work,
}

impl Lent {
    /// Gives the connection back after the work, or closes it if its state is not known.
    pub(super) fn give_back<T>(
        self,
        done: Result<Result<T, StoreError>, tokio::time::error::Elapsed>,
    ) -> Result<T, StoreError> {
        let result = done.unwrap_or(Err(StoreError::Unanswered));
        if let Err(error) = &result {
            if !error.is_news() {
                metrics::count_error(self.work.as_str());
            }
            if error.is_unavailable() {
                // The database may have become a standby, or never answer here again.
                drop(Object::take(self.client));
            }
        }
        result
    }
}
