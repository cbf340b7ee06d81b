//! The console: screens as HTML, made from views of the REST interface.
//!
//! Pure: no IO, no state, no clock. The server fetches what a screen shows from its own REST
//! interface, with the rights of the visitor, and serves what is made here under strict headers.
//!
//! Every text from outside reaches a page through a template of askama, which escapes it. The only
//! other way into a page is `markdown`, which escapes raw HTML and limits links. No template has
//! an inline script, an event handler or a `style` attribute, since the pages' policy allows none.

pub mod assets;
pub mod content;
pub mod links;
pub mod screens;
pub mod views;

mod format;
mod jobs_filter;
mod markdown;
mod page;
mod parts;

pub use jobs_filter::JobsFilter;
pub use page::{Notice, Page, Rights, Section, Visitor};
