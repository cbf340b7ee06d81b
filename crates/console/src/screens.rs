//! The screens. Each is a struct of what it shows, and becomes HTML by `to_string()`.

mod approvals;
mod bulk;
mod job;
mod jobs;
mod letters;
mod overview;
mod problem;
mod servers;
mod sign_in;
mod tools;

pub use approvals::ApprovalsScreen;
pub use bulk::{BulkKind, BulkProgress, BulkScreen};
pub use job::{EditScreen, JobScreen};
pub use jobs::JobsScreen;
pub use letters::{LetterScreen, LettersFilter, LettersScreen, PurgeScreen, ReplayScreen};
pub use overview::{Overview, OverviewScreen};
pub use problem::{CodeScreen, ProblemScreen};
pub use servers::{ChecksScreen, ServerScreen, ServersScreen};
pub use sign_in::SignInScreen;
pub use tools::{CallOutcome, ToolScreen, ToolsScreen};
