//! What a hosted server offers: its tools, prompts, resources and templates of resources, all pages of them.

use std::sync::Arc;

use rmcp::{
    RoleClient,
    model::{
        ClientRequest, ErrorCode, ListPromptsRequest, ListResourceTemplatesRequest, ListResourcesRequest,
        ListToolsRequest, PaginatedRequestParams, Prompt, Resource, ResourceTemplate, ServerPeerInfo,
        ServerResult, Tool,
    },
    service::{Peer, ServiceError},
};
use serde::Serialize;

use super::changes::Lists;
use crate::error::chain;

/// A list that is longer than this is not a server's but an attack.
const MAX_ITEMS: usize = 10_000;
/// How many bytes a list may take as JSON, all pages together. It is kept for as long as the server is hosted, and is part
/// of every answer to the front end's list, which is one page. Real servers need some tens of kilobytes.
const MAX_BYTES: usize = 4 * 1024 * 1024;

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
}

impl Catalog {
    /// Whether there is nothing in it.
    pub fn is_empty(&self) -> bool {
        self.tools.is_empty()
            && self.prompts.is_empty()
            && self.resources.is_empty()
            && self.templates.is_empty()
    }

    /// Asks a server for all that it says it has.
    ///
    /// # Errors
    ///
    /// Where the tools can't be read. Other lists that can't be read are left empty, with a warning: a server that can be
    /// called is worth more than one that is refused.
    pub(super) async fn read(
        server: &str,
        peer: &Peer<RoleClient>,
        info: &ServerPeerInfo,
    ) -> Result<Self, String> {
        Self::default().read_again(server, peer, info, Lists::ALL).await
    }

    /// The same with only these lists read anew.
    ///
    /// # Errors
    ///
    /// Where the tools are among them and can't be read.
    pub(super) async fn read_again(
        mut self,
        server: &str,
        peer: &Peer<RoleClient>,
        info: &ServerPeerInfo,
        lists: Lists,
    ) -> Result<Self, String> {
        let has = &info.capabilities;
        if lists.tools && has.tools.is_some() {
            self.tools = Arc::new(pages::<Tool>(peer).await?);
        }
        if lists.prompts && has.prompts.is_some() {
            self.prompts = or_nothing(server, pages(peer).await);
        }
        if lists.resources && has.resources.is_some() {
            self.resources = or_nothing(server, pages(peer).await);
            self.templates = or_nothing(server, pages(peer).await);
        }
        Ok(self)
    }
}

fn or_nothing<T>(server: &str, list: Result<Vec<T>, String>) -> Arc<Vec<T>> {
    let list = list.unwrap_or_else(|error| {
        tracing::warn!(server, %error, "a hosted server has a list that can't be read");
        Vec::new()
    });
    Arc::new(list)
}

/// One kind of list.
trait Listed: Serialize + Sized {
    const METHOD: &str;

    fn request(params: PaginatedRequestParams) -> ClientRequest;
    fn page(result: ServerResult) -> Option<(Vec<Self>, Option<String>)>;
}

macro_rules! listed {
    ($item:ty, $method:literal, $request:ident, $result:ident, $field:ident) => {
        impl Listed for $item {
            const METHOD: &str = $method;

            fn request(params: PaginatedRequestParams) -> ClientRequest {
                ClientRequest::$request($request::with_param(params))
            }

            fn page(result: ServerResult) -> Option<(Vec<Self>, Option<String>)> {
                match result {
                    ServerResult::$result(page) => Some((page.$field, page.next_cursor)),
                    _ => None,
                }
            }
        }
    };
}

listed!(Tool, "tools/list", ListToolsRequest, ListToolsResult, tools);
listed!(Prompt, "prompts/list", ListPromptsRequest, ListPromptsResult, prompts);
listed!(Resource, "resources/list", ListResourcesRequest, ListResourcesResult, resources);
listed!(
    ResourceTemplate,
    "resources/templates/list",
    ListResourceTemplatesRequest,
    ListResourceTemplatesResult,
    resource_templates
);

/// All pages of a list. Asked for past rmcp's cache, which may hold what was there before a change.
async fn pages<T: Listed>(peer: &Peer<RoleClient>) -> Result<Vec<T>, String> {
    let method = T::METHOD;
    let mut items = Vec::new();
    let mut bytes = 0_usize;
    let mut cursor = None;
    loop {
        let params = PaginatedRequestParams::default().with_cursor(cursor.take());
        let result = match peer.send_request(T::request(params)).await {
            Ok(result) => result,
            // A capability stands for several methods, of which a server need not have all.
            Err(ServiceError::McpError(error)) if error.code == ErrorCode::METHOD_NOT_FOUND => {
                return Ok(items);
            }
            Err(error) => return Err(format!("{method}: {}", chain(&error))),
        };
        let Some((page, next)) = T::page(result) else {
            return Err(format!("{method}: the answer is no such list"));
        };
        let empty = page.is_empty();
        bytes = bytes.saturating_add(serde_json::to_vec(&page).map_or(usize::MAX, |json| json.len()));
        if bytes > MAX_BYTES {
            return Err(format!("{method}: the list takes more than {MAX_BYTES} bytes"));
        }
        items.extend(page);
        cursor = next;
        if cursor.is_none() {
            return Ok(items);
        }
        if items.len() > MAX_ITEMS || empty {
            return Err(format!("{method}: no end after {} items", items.len()));
        }
    }
}
