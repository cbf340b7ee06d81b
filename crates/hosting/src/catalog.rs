//! The catalog of a hosted server: all pages of its tools, prompts, resources and resource
//! templates.

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

/// The most bytes of JSON in a list, over all its pages. A list is kept for as long as the server
/// is hosted, and is part of every answer to the front end's list, which has one page. Real servers
/// need some tens of kilobytes.
const MAX_BYTES: usize = 4 * 1024 * 1024;
/// How long it may take to read an optional list of a running server again.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a server offers, under its own names.
#[derive(Debug, Clone, Default)]
pub struct Catalog {
    /// The tools.
    pub tools: Arc<Vec<Tool>>,
    /// The prompts.
    pub prompts: Arc<Vec<Prompt>>,
    /// The resources.
    pub resources: Arc<Vec<Resource>>,
    /// The resource templates.
    pub templates: Arc<Vec<ResourceTemplate>>,
    /// The listed items that can't be offered, by the method of the list.
    pub hidden: BTreeMap<&'static str, Vec<HiddenTool>>,
    /// The extensions that the server declares.
    pub declared: Declared,
}

impl Catalog {
    /// Returns whether all lists are empty.
    pub fn is_empty(&self) -> bool {
        self.tools.is_empty()
            && self.prompts.is_empty()
            && self.resources.is_empty()
            && self.templates.is_empty()
    }

    /// Reads all lists that a server declares, within the limit of `attempt`, which is kept up to
    /// date on what is waited for.
    ///
    /// # Errors
    ///
    /// Returns an error if the tools can't be read. Other lists that can't be read, or not in time,
    /// stay empty, with a warning, because a server whose tools can be called is useful.
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

    /// Reads only these lists again.
    ///
    /// # Errors
    ///
    /// Returns an error if the tools are among them and can't be read.
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

    /// Reads prompts and resources concurrently, so that a list that is not answered delays no
    /// other.
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

    /// Keeps the hidden items of a list, and returns the others.
    fn keep_items<T: Listed>(&mut self, found: Found<T>) -> Arc<Vec<T>> {
        self.hidden.insert(T::METHOD, found.hidden);
        Arc::new(found.items)
    }
}

/// Reads an optional list. Returns `None` if it is not wanted or can't be read.
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
                "could not read a list of a hosted server; keeping its previous content"
            );
        })
        .ok()
}

/// The content of a list.
struct Found<T> {
    items: Vec<T>,
    hidden: Vec<HiddenTool>,
}

impl<T> Default for Found<T> {
    fn default() -> Self {
        Self { items: Vec::new(), hidden: Vec::new() }
    }
}

/// Reads all pages of a list.
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
            // A capability covers several methods, and a server need not support all of them.
            Err(ServiceError::McpError(error)) if error.code == ErrorCode::METHOD_NOT_FOUND => {
                return Ok(list.found);
            }
            Err(ServiceError::McpError(error)) if list.pages > 0 => {
                let error = error.message;
                tracing::warn!(
                    server,
                    method,
                    %error,
                    "a hosted server refused the next page of a list; using the pages before it"
                );
                return Ok(list.found);
            }
            Err(ServiceError::Timeout { .. }) => {
                return Err(format!("{method} was not answered in time"));
            }
            Err(error) => return Err(format!("{method}: {}", describe_service_error(&error))),
        };

        let page =
            Page::read(raw_result(result)).map_err(|problem| format!("{method}: {problem}"))?;
        for remark in &page.remarks {
            tracing::warn!(server, method, remark, "a list of a hosted server is partly invalid");
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
                    "the pages of a hosted server's list repeat; using the items so far"
                );
                return Ok(list.found);
            }
        }
    }
}

/// Requests a page. Bypasses rmcp's cache, which may be outdated.
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

/// The pages of a list that were read so far.
struct Pages<T> {
    found: Found<T>,
    pages: usize,
    bytes: usize,
    cursor: Option<String>,
    cursors: HashSet<String>,
    /// The items as JSON, to tell whether a page has new ones.
    seen: HashSet<String>,
    /// The same for hidden items.
    seen_hidden: HashSet<HiddenTool>,
}

/// What follows a page.
#[derive(Debug, PartialEq)]
enum Next {
    /// Another page.
    Page,
    /// The end of the list.
    End,
    /// Pages that repeat earlier ones.
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
            seen_hidden: HashSet::new(),
        }
    }
}

impl<T: Listed> Pages<T> {
    /// Adds a page.
    ///
    /// # Errors
    ///
    /// Returns an error if the list is too long.
    fn add_page(&mut self, page: Page<T>) -> Result<Next, String> {
        self.pages += 1;
        let is_first = self.pages == 1;
        let mut has_new_items = false;

        for item in page.items {
            let json = serde_json::to_string(&item).map_err(|error| error.to_string())?;
            self.add_bytes(json.len())?;
            let is_new = self.seen.insert(json);
            has_new_items |= is_new;
            // Duplicates in the first page are the server's mistake and are shown; duplicates of
            // earlier pages mean that the pages repeat.
            if is_new || is_first {
                self.found.items.push(item);
            }
        }
        for hidden in page.hidden {
            self.add_bytes(hidden.name.len() + hidden.reason.len())?;
            let is_new = self.seen_hidden.insert(hidden.clone());
            has_new_items |= is_new || is_first;
            if is_new || is_first {
                self.found.hidden.push(hidden);
            }
        }
        if self.found.items.len() + self.found.hidden.len() > MAX_ITEMS {
            return Err(format!("the list has more than {MAX_ITEMS} items"));
        }

        let Some(cursor) = page.next else { return Ok(Next::End) };
        if !has_new_items || !self.cursors.insert(cursor.clone()) {
            return Ok(Next::Circle);
        }
        self.cursor = Some(cursor);
        Ok(Next::Page)
    }

    fn add_bytes(&mut self, bytes: usize) -> Result<(), String> {
        self.bytes = self.bytes.saturating_add(bytes);
        match self.bytes > MAX_BYTES {
            true => Err(format!("the list is larger than {MAX_BYTES} bytes")),
            false => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    /// Returns what follows each of these pages of tools, and the names of the tools.
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
    fn a_list_ends_when_its_pages_repeat() {
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
        // Duplicates in one page are shown.
        check(&[page(&["a", "a"], Value::Null)], Next::End, &["a", "a"]);
    }

    #[test]
    fn an_endless_list_is_refused() {
        let mut list = Pages::<Tool>::default();
        let problem = (0..).find_map(|n| {
            let page = page(&[&format!("t{n}")], json!(n.to_string()));
            list.add_page(Page::read(page.as_object().unwrap().clone()).unwrap()).err()
        });
        assert_eq!(problem.as_deref(), Some("the list has more than 10000 items"));
    }
    /// Pages of hidden items could go on for as long as each has a new one.
    #[test]
    fn hidden_items_count_as_bytes_too() {
        let mut list = Pages::<Tool>::default();
        let mut pages = 0;
        let problem = loop {
            let odd = |n: usize| json!({"name": format!("odd {n}"), "inputSchema": "x".repeat(50)});
            let tools: Vec<Value> = (0..9_000).chain([9_000 + pages]).map(odd).collect();
            let page = json!({"tools": tools, "nextCursor": pages});
            let page = Page::read(page.as_object().unwrap().clone()).unwrap();
            match list.add_page(page) {
                Ok(next) => assert_eq!((next, pages < 10), (Next::Page, true)),
                Err(problem) => break problem,
            }
            pages += 1;
        };
        assert_eq!(problem, "the list is larger than 4194304 bytes");
    }
}
