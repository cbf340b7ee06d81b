//! The stable codes of errors that people can act on.
//!
//! A code names one problem for good: it stands in the error's text, in events, in problem
//! documents and in the log, and `docs/errors.md` has a section for each. The page is generated
//! from [`TABLE`]; a code that has been released is never given another meaning.

mod table;

use std::fmt;

pub use table::*;

/// The code of an error, such as `FLEET-KAFKA-UNREACHABLE`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Code(&'static str);

/// What people need to know about a code.
#[derive(Debug, Clone, Copy)]
pub struct Entry {
    /// The code.
    pub code: Code,
    /// What has happened.
    pub meaning: &'static str,
    /// Why it happens.
    pub cause: &'static str,
    /// What to do about it.
    pub remedy: &'static str,
}

/// A part of the table: the codes of one area.
#[derive(Debug, Clone, Copy)]
pub struct Section {
    /// The area, as a heading.
    pub title: &'static str,
    /// Its codes, in the order of the page.
    pub entries: &'static [Entry],
}

impl Code {
    /// The code as it is written everywhere.
    pub const fn as_str(self) -> &'static str {
        self.0
    }
}

impl fmt::Display for Code {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0)
    }
}

/// The code that is written like this, if there is one.
pub fn find(text: &str) -> Option<Code> {
    let mut codes = TABLE.iter().flat_map(|section| section.entries).map(|entry| entry.code);
    codes.find(|code| code.as_str() == text)
}

/// The page about all codes, in Markdown.
pub fn page() -> String {
    let mut page = String::from(
        "# Error codes\n\n\
         Errors that you can act on carry a code that stays the same whatever the wording: in the \
         text of the error, as `errorCode` in job events, as `code` in problem documents and in \
         the `data` of JSON-RPC errors, and in the log.\n\n\
         This page is generated from `crates/codes/src/table.rs`.\n",
    );
    for section in TABLE {
        page.push_str(&format!("\n## {}\n", section.title));
        for Entry { code, meaning, cause, remedy } in section.entries {
            page.push_str(&format!(
                "\n### {code}\n\n{meaning}\n\n- **Cause:** {cause}\n- **Remedy:** {remedy}\n"
            ));
        }
    }
    page
}

#[cfg(test)]
mod tests;
