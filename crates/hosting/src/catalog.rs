//! What a hosted server offers: its tools, prompts, resources and templates of resources, all pages
//! of them.

use std::{
    collections::{BTreeMap, HashSet},
    sync::Arc,
    time::{Duration, Instant},
};

use rmcp::{
    RoleClient,
    model::{
        ErrorCode, PaginatedRequestParams, Prompt, Resource, ResourceTemplate, ServerPeerInfo,
        ServerResult, Tool,
    },
    service::{Peer, PeerRequestOptions, ServiceError},
};

use super::{
    attempt::Attempt,
    changes::Lists,
    extensions::Declared,
    handshake_error::describe_service_error,
    inbound::raw_result,
    listed::{HiddenTool, Listed, MAX_ITEMS, Page},
};

/// How many bytes a list may take as JSON, all pages together. It is kept for as long as the server
/// is hosted, and is part of every answer to the front end's list, which is one page. Real servers
/// need some tens of kilobytes.
const MAX_BYTES: usize = 4 * 1024 * 1024;
/// How long a list that a running server can do without may take to be read anew.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a server offers, under its own names.
#[derive(Debug, Clone, Default)]
pub struct Catalog {
    /// Its tools.
    pub tools: Arc<Vec<Tool>>,
    /// Its prompts.
    pub prompts: Arc<Vec<Prompt>>,
    /// Its resources.
    pub resources: Arc<Vec<Resource>>,
    /// Its templates of resources.
    pub templates: Arc<Vec<ResourceTemplate>>,
    /// What it lists and can't be offered, by the method of the list.
    pub hidden: BTreeMap<&'static str, Vec<HiddenTool>>,
    /// What it declares beside them.
    pub declared: Declared,
}

impl Catalog {
    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.tools.is_empty()
            && self.prompts.is_empty()
            && self.resources.is_empty()
            && self.templates.is_empty()
    }

    /// Asks a server for all that it says it has, within the limit of `attempt`, which learns what
    /// is waited for.
    ///
    /// # Errors
    ///
    /// If the tools can't be read. Other lists that can't be read, or are not answered in time, are
    /// left empty with a warning: a server that can be called is worth more than one that is
    /// refused.
    pub(super) async fn read(
        server: &str,
        peer: &Peer<RoleClient>,
        info: &ServerPeerInfo,
        attempt: &Attempt,
    ) -> Result<Self, String> {
        let mut catalog = Self { declared: Declared::of(&info.capabilities), ..Self::default() };
        attempt.set_awaited(Tool::AWAITED);
        catalog.read_tools(server, peer, info).await?;
        attempt.set_awaited("its lists of prompts and resources");
        catalog
            .read_optional(server, peer, info, Lists::ALL, attempt.patience_with_options())
            .await;
        Ok(catalog)
    }

    /// The same with only these lists read anew.
    ///
    /// # Errors
    ///
    /// If the tools are among them and can't be read.
    pub(super) async fn read_again(
        mut self,
        server: &str,
        peer: &Peer<RoleClient>,
        info: &ServerPeerInfo,
        lists: Lists,
    ) -> Result<Self, String> {
        if lists.tools {
            self.read_tools(server, peer, info).await?;
        }
        self.read_optional(server, peer, info, lists, PATIENCE).await;
        Ok(self)
    }

    async fn read_tools(
        &mut self,
        server: &str,
        peer: &Peer<RoleClient>,
        info: &ServerPeerInfo,
    ) -> Result<(), String> {
        if info.capabilities.tools.is_some() {
            let found = read_list(server, peer, None).await?;
            self.tools = self.keep_items(found);
        }
        Ok(())
    }

    /// Reads prompts and resources side by side, so that a list that is not answered delays none
    /// that is.
    async fn read_optional(
        &mut self,
        server: &str,
        peer: &Peer<RoleClient>,
        info: &ServerPeerInfo,
        lists: Lists,
        patience: Duration,
    ) {
        let has = &info.capabilities;
        let wants_prompts = lists.prompts && has.prompts.is_some();
        let wants_resources = lists.resources && has.resources.is_some();

        let (prompts, resources, templates) = tokio::join!(
            read_optional_list(server, peer, wants_prompts, patience),
            read_optional_list(server, peer, wants_resources, patience),
            read_optional_list(server, peer, wants_resources, patience),
        );
        if let Some(found) = prompts {
            self.prompts = self.keep_items(found);
        }
        if let Some(found) = resources {
            self.resources = self.keep_items(found);
        }
        if let Some(found) = templates {
            self.templates = self.keep_items(found);
        }
    }

    /// Notes what of a list can't be offered; the rest.
    fn keep_items<T: Listed>(&mut self, found: Found<T>) -> Arc<Vec<T>> {
        self.hidden.insert(T::METHOD, found.hidden);
        Arc::new(found.items)
    }
}

/// Reads a list that a server can do without; `None` if that is not wanted, or can't be done.
async fn read_optional_list<T: Listed>(
    server: &str,
    peer: &Peer<RoleClient>,
    is_wanted: bool,
    patience: Duration,
) -> Option<Found<T>> {
    if !is_wanted {
        return None;
    }
    read_list(server, peer, Some(patience))
        .await
        .inspect_err(|error| {
            tracing::warn!(
                server,
                error,
                "a list of a hosted server can't be read; it stays as it was"
            );
        })
        .ok()
}

/// All that was found in a list.
struct Found<T> {
    items: Vec<T>,
    hidden: Vec<HiddenTool>,
}

impl<T> Default for Found<T> {
    fn default() -> Self {
        Self { items: Vec::new(), hidden: Vec::new() }
    }
}

/// All pages of a list.
async fn read_list<T: Listed>(
    server: &str,
    peer: &Peer<RoleClient>,
    patience: Option<Duration>,
) -> Result<Found<T>, String> {
    let method = T::METHOD;
    let deadline = patience.map(|patience| Instant::now() + patience);
    let mut list = Pages::default();
    loop {
        let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
        let result = match request_page::<T>(peer, list.cursor.take(), left).await {
            Ok(result) => result,
            // A capability stands for several methods, of which a server need not have all.
            Err(ServiceError::McpError(error)) if error.code == ErrorCode::METHOD_NOT_FOUND => {
                return Ok(list.found);
            }
            Err(ServiceError::McpError(error)) if list.pages > 0 => {
                let error = error.message;
                tracing::warn!(server, method, %error, "a list of a hosted server ends early: its next page is refused");
                return Ok(list.found);
            }
            Err(ServiceError::Timeout { .. }) => {
                return Err(format!("{method}: it was not answered in time"));
            }
            Err(error) => return Err(format!("{method}: {}", describe_service_error(&error))),
        };

        let page =
            Page::read(raw_result(result)).map_err(|problem| format!("{method}: {problem}"))?;
        for remark in &page.remarks {
            tracing::warn!(
                server,
                method,
                remark,
                "a list of a hosted server has something odd in it"
            );
        }
        match list.add_page(page).map_err(|problem| format!("{method}: {problem}"))? {
            Next::Page => {}
            Next::End => return Ok(list.found),
            Next::Circle => {
                let items = list.found.items.len();
                tracing::warn!(
                    server,
                    method,
                    items,
                    "a list of a hosted server goes in a circle: it ends here"
                );
                return Ok(list.found);
            }
        }
    }
}

/// Asks for a page, past rmcp's cache, which may hold what was there before a change.
async fn request_page<T: Listed>(
    peer: &Peer<RoleClient>,
    cursor: Option<String>,
    patience: Option<Duration>,
) -> Result<ServerResult, ServiceError> {
    let request = T::request(PaginatedRequestParams::default().with_cursor(cursor));
    let mut options = PeerRequestOptions::no_options();
    options.timeout = patience;
    peer.send_request_with_option(request, options).await?.await_response().await
}

/// The pages of a list, as far as they were read.
struct Pages<T> {
    found: Found<T>,
    pages: usize,
    bytes: usize,
    cursor: Option<String>,
    cursors: HashSet<String>,
    /// The items as JSON, to see whether a page brings anything new.
    seen: HashSet<String>,
}

/// What comes after a page.
#[derive(Debug, PartialEq)]
enum Next {
    /// Another page.
    Page,
    /// Nothing.
    End,
    /// What was there already.
    Circle,
}

impl<T> Default for Pages<T> {
    fn default() -> Self {
        Self {
            found: Found::default(),
            pages: 0,
            bytes: 0,
            cursor: None,
            cursors: HashSet::new(),
            seen: HashSet::new(),
        }
    }
}

impl<T: Listed> Pages<T> {
    /// Takes in a page.
    ///
    /// # Errors
    ///
    /// If the list is too long.
    fn add_page(&mut self, page: Page<T>) -> Result<Next, String> {
        self.pages += 1;
        let is_first = self.pages == 1;
        let mut brings_news = false;
        for item in page.items {
            let json = serde_json::to_string(&item).map_err(|error| error.to_string())?;
            self.bytes = self.bytes.saturating_add(json.len());
            if self.bytes > MAX_BYTES {
                return Err(format!("the list takes more than {MAX_BYTES} bytes"));
            }
            let is_new = self.seen.insert(json);
            brings_news |= is_new;
            // What a page has twice is the server's mistake; what another page had is a circle.
            if is_new || is_first {
                self.found.items.push(item);
            }
        }
        for hidden in page.hidden {
            if is_first || !self.found.hidden.contains(&hidden) {
                brings_news = true;
                self.found.hidden.push(hidden);
            }
        }
        if self.found.items.len() + self.found.hidden.len() > MAX_ITEMS {
            return Err(format!("no end after {MAX_ITEMS} items"));
        }

        let Some(cursor) = page.next else { return Ok(Next::End) };
        if !brings_news || !self.cursors.insert(cursor.clone()) {
            return Ok(Next::Circle);
        }
        self.cursor = Some(cursor);
        Ok(Next::Page)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// What comes after each of these pages of tools, until the list ends, and the names of the
    /// tools.
    fn read(pages: &[Value]) -> (Vec<Next>, Vec<String>) {
        let mut list = Pages::<Tool>::default();
        let mut after = Vec::new();
        for page in pages {
            let page = Page::read(page.as_object().unwrap().clone()).unwrap();
            after.push(list.add_page(page).unwrap());
        }
        let names = list.found.items.iter().map(|tool| tool.name.to_string()).collect();
        (after, names)
    }

    fn page(names: &[&str], next: Value) -> Value {
        let tools: Vec<Value> = names.iter().map(|name| json!({"name": name})).collect();
        json!({"tools": tools, "nextCursor": next})
    }

    #[test]
    fn a_list_ends_when_it_goes_in_a_circle() {
        let check = |pages: &[Value], last: Next, names: &[&str]| {
            let (after, found) = read(pages);
            assert_eq!(
                (after.last(), found),
                (Some(&last), names.iter().map(ToString::to_string).collect())
            );
            assert!(after[..after.len() - 1].iter().all(|next| *next == Next::Page), "{after:?}");
        };
        let same = page(&["a", "b"], json!("8"));
        check(&[same.clone(), same.clone()], Next::Circle, &["a", "b"]);
        // Another cursor each time, and nothing new.
        check(&[same.clone(), page(&["b"], json!("9"))], Next::Circle, &["a", "b"]);
        check(&[same.clone(), page(&[], json!("9"))], Next::Circle, &["a", "b"]);
        check(&[page(&[], json!("9"))], Next::Circle, &[]);
        // Two cursors in turn, with something new each time.
        let turns = [same.clone(), page(&["c"], json!("9")), page(&["d"], json!("8"))];
        check(&turns, Next::Circle, &["a", "b", "c", "d"]);
        check(&[page(&["a"], json!(""))], Next::End, &["a"]);
        check(&[page(&["a"], json!(2)), page(&["b"], Value::Null)], Next::End, &["a", "b"]);
        // What one page has twice is shown as the server's mistake.
        check(&[page(&["a", "a"], Value::Null)], Next::End, &["a", "a"]);
    }

    #[test]
    fn a_list_without_end_is_refused() {
        let mut list = Pages::<Tool>::default();
        let problem = (0..).find_map(|n| {
            let page = page(&[&format!("t{n}")], json!(n.to_string()));
            list.add_page(Page::read(page.as_object().unwrap().clone()).unwrap()).err()
        });
        assert_eq!(problem.as_deref(), Some("no end after 10000 items"));
    }
}
