//! Shows the progress of a call on a terminal.

use std::time::Duration;

use fleet_mcp_client::{News, Progress};
use indicatif::ProgressBar;
use tokio::sync::watch;

use crate::{dlq::text::shorten, jobs::render::describe_progress};

/// The maximum length of a progress message.
const MAX_PROGRESS: usize = 100;
/// How often the sign of life moves.
const BEAT: Duration = Duration::from_millis(120);

/// Makes a call named `what`, whose progress `call` reports to the channel that it gets. Nothing is
/// shown unless standard error is a terminal.
pub(crate) async fn with_progress<T, F: Future<Output = T>>(
    what: &str,
    call: impl FnOnce(News) -> F,
) -> T {
    let (news, mut heard) = watch::channel(None::<Progress>);
    let spinner = ProgressBar::new_spinner().with_message(what.to_owned());
    spinner.enable_steady_tick(BEAT);

    let call = call(news);
    tokio::pin!(call);
    let called = loop {
        tokio::select! {
            called = &mut call => break called,
            Ok(()) = heard.changed() => {
                if let Some(progress) = heard.borrow_and_update().as_ref() {
                    spinner.set_message(shorten(&describe(what, progress), MAX_PROGRESS));
                }
            }
        }
    };
    spinner.finish_and_clear();
    called
}

fn describe(what: &str, progress: &Progress) -> String {
    let Progress { progress, total, message } = progress.clone();
    let progress = fleet_job::event::Progress { progress, total, message };
    format!("{what}: {}", describe_progress(&progress))
}
