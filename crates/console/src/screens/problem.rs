//! Errors, and what their codes mean.

use askama::Template;
use fleet_codes::{Entry, TABLE};

use crate::{Page, parts::CodeLink, views::ProblemView};

/// The page of an error.
#[derive(Template)]
#[template(path = "problem.html")]
pub struct ProblemScreen {
    page: Page,
    problem: ProblemView,
    code: Option<CodeLink>,
    advice: Option<&'static str>,
    /// Where to go on.
    back: Option<String>,
}

impl ProblemScreen {
    /// The page of an error, from which `back` leads on.
    pub fn new(page: Page, problem: ProblemView, back: Option<String>) -> Self {
        let code = problem.code.as_deref();
        Self {
            code: code.and_then(CodeLink::new),
            advice: code.and_then(find_entry).map(|entry| entry.remedy),
            page,
            problem,
            back,
        }
    }
}

/// What a code means.
#[derive(Template)]
#[template(path = "code.html")]
pub struct CodeScreen {
    page: Page,
    entry: &'static Entry,
    jobs: String,
}

impl CodeScreen {
    /// The page about a code; `None` if there is no such code.
    pub fn new(page: Page, code: &str) -> Option<Self> {
        let entry = find_entry(code)?;
        let jobs = crate::links::jobs([("errorCode", entry.code.as_str())]);
        Some(Self { page, entry, jobs })
    }
}

fn find_entry(code: &str) -> Option<&'static Entry> {
    let mut entries = TABLE.iter().flat_map(|section| section.entries);
    entries.find(|entry| entry.code.as_str() == code)
}
