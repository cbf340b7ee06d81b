//! Signing in.

use askama::Template;

use crate::{Page, views::ProblemView};

/// The form to sign in.
#[derive(Template)]
#[template(path = "sign_in.html")]
pub struct SignInScreen {
    page: Page,
    /// The page to go on to.
    next: String,
    problem: Option<ProblemView>,
}

impl SignInScreen {
    /// The form, after a refusal if there is a problem.
    pub fn new(page: Page, next: String, problem: Option<ProblemView>) -> Self {
        Self { page, next, problem }
    }
}
