//! Work that blocks, away from the threads that must not wait.

use std::io;

use tokio::task::JoinError;

/// The work panicked, or the runtime is shutting down.
#[derive(Debug, thiserror::Error)]
#[error(transparent)]
pub struct WorkLost(#[from] JoinError);

impl From<WorkLost> for io::Error {
    fn from(error: WorkLost) -> Self {
        Self::other(error)
    }
}

/// Runs `work` on a thread that may block.
///
/// # Errors
/// Those of `work`, and [`WorkLost`].
pub async fn run_blocking<T, E>(
    work: impl FnOnce() -> Result<T, E> + Send + 'static,
) -> Result<T, E>
where
    T: Send + 'static,
    E: From<WorkLost> + Send + 'static,
{
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(WorkLost(error).into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_the_work_ends_with_is_the_answer_also_if_it_panics() {
        let done = run_blocking(|| Ok::<_, io::Error>(7)).await;
        assert_eq!(done.unwrap(), 7);
        let refused = run_blocking(|| Err::<(), _>(io::Error::other("refused"))).await;
        assert_eq!(refused.unwrap_err().to_string(), "refused");
        let lost = run_blocking(|| -> io::Result<()> { panic!("a bug") }).await;
        assert!(lost.unwrap_err().to_string().contains("a bug"));
    }
}
