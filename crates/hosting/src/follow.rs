//! Follows the changes of a hosted server, using its protocol revision.
//!
//! Servers of older revisions send notifications by themselves, and for resources after
//! `resources/subscribe`. From 2026-07-28 on there is one request, `subscriptions/listen`, whose
//! stream contains the requested notifications; a change of what is wanted needs a new request.

#![expect(
    deprecated,
    reason = "clients and servers of older revisions still ask for what newer ones have not"
)]

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use rmcp::{
    ClientHandler, RoleClient,
    model::{
        ClientCapabilities, ClientConfig, ClientRequest, ErrorCode, Implementation, JsonObject,
        ProtocolVersion, ResourceUpdatedNotificationParam, ServerNotification, ServerPeerInfo,
        SubscribeRequest, SubscribeRequestParams, SubscriptionFilter, UnsubscribeRequest,
        UnsubscribeRequestParams,
    },
    service::{NotificationContext, Peer, ServiceError, SubscriptionEnd},
};
use serde_json::json;
use tokio::sync::watch;

use super::{
    changes::{Lists, News},
    extensions::APPS_EXTENSION_ID,
};

/// The media type of an app's page.
const APP_PAGE: &str = "text/html;profile=mcp-app";
/// How long to wait before renewing a subscription that has ended.
const RETRY_WAIT: Duration = Duration::from_secs(5);

/// Our side as a client of a hosted server. It declares a name and support for app pages; other
/// capabilities of callers are sent with their requests.
#[derive(Debug, Clone)]
pub(crate) struct HostedClient {
    news: News,
    /// The revision for `initialize`; the newest revision has no handshake.
    revision: ProtocolVersion,
}

impl HostedClient {
    /// Creates a client that notes changes in `news`.
    pub(super) fn new(news: News) -> Self {
        Self { news, revision: ProtocolVersion::LATEST_WITH_INITIALIZE }
    }

    /// Sends `initialize` in another revision.
    pub(super) fn in_revision(self, revision: ProtocolVersion) -> Self {
        Self { revision, ..self }
    }
}

impl ClientHandler for HostedClient {
    fn get_info(&self) -> ClientConfig {
        let own = Implementation::new("mcp-fleet", env!("CARGO_PKG_VERSION"));
        // Servers offer pages only to clients that declare support, and most read this only once,
        // in the handshake.
        let apps = JsonObject::from_iter([("mimeTypes".to_owned(), json!([APP_PAGE]))]);
        let mut capabilities = ClientCapabilities::default();
        capabilities.extensions = Some(BTreeMap::from([(APPS_EXTENSION_ID.to_owned(), apps)]));
        let mut config = ClientConfig::new(capabilities, own);
        config.protocol_version = self.revision.clone();
        config
    }

    async fn on_tool_list_changed(&self, _context: NotificationContext<RoleClient>) {
        self.news.note_lists(|lists| lists.tools = true);
    }

    async fn on_prompt_list_changed(&self, _context: NotificationContext<RoleClient>) {
        self.news.note_lists(|lists| lists.prompts = true);
    }

    async fn on_resource_list_changed(&self, _context: NotificationContext<RoleClient>) {
        self.news.note_lists(|lists| lists.resources = true);
    }

    async fn on_resource_updated(
        &self,
        params: ResourceUpdatedNotificationParam,
        _context: NotificationContext<RoleClient>,
    ) {
        self.news.note_resource(params.uri);
    }
}

/// The first revision of the protocol without sessions. Revisions are dates, which compare as text.
pub const MODERN: ProtocolVersion = ProtocolVersion::V_2026_07_28;

/// Returns whether a server speaks a revision without sessions.
pub(crate) fn is_modern(info: &ServerPeerInfo) -> bool {
    info.protocol_version.as_str() >= MODERN.as_str()
}

/// Follows the changes of a server, and keeps its subscriptions equal to the `wanted` resources,
/// until the connection or `wanted` ends.
pub(super) async fn follow_changes(
    server: String,
    peer: Peer<RoleClient>,
    info: std::sync::Arc<ServerPeerInfo>,
    news: News,
    wanted: watch::Receiver<BTreeSet<String>>,
) {
    if is_modern(&info) {
        listen_for_changes(&server, &peer, &info, &news, wanted).await;
    } else if info
        .capabilities
        .resources
        .as_ref()
        .is_some_and(|resources| resources.subscribe == Some(true))
    {
        subscribe_to_resources(&server, &peer, &news, wanted).await;
    }
}

/// Listens for changes with `subscriptions/listen`.
async fn listen_for_changes(
    server: &str,
    peer: &Peer<RoleClient>,
    info: &ServerPeerInfo,
    news: &News,
    mut wanted: watch::Receiver<BTreeSet<String>>,
) {
    while !peer.is_transport_closed() {
        let filter = subscription_filter(info, &wanted.borrow_and_update());
        if filter == SubscriptionFilter::default() {
            if wanted.changed().await.is_err() {
                return;
            }
            continue;
        }

        let mut subscription = match peer.listen(filter).await {
            Ok(subscription) => subscription,
            Err(ServiceError::McpError(error)) if error.code == ErrorCode::METHOD_NOT_FOUND => {
                return;
            }
            Err(error) => {
                tracing::debug!(server, %error, "could not subscribe to changes of a hosted server");
                tokio::time::sleep(RETRY_WAIT).await;
                continue;
            }
        };

        // Changes before the subscription were missed.
        news.note_lists(|lists| *lists = Lists::ALL);
        loop {
            tokio::select! {
                next = subscription.next() => match next {
                    Ok(Some(notification)) => note_change(news, notification),
                    Ok(None) | Err(_) => break,
                },
                changed = wanted.changed() => {
                    // If the connection is lost, so is the subscription.
                    _ = subscription.cancel().await;
                    if changed.is_err() {
                        return;
                    }
                    break;
                }
            }
        }

        if !matches!(subscription.end(), Some(SubscriptionEnd::Cancelled)) {
            tokio::time::sleep(RETRY_WAIT).await;
        }
    }
}

fn subscription_filter(info: &ServerPeerInfo, wanted: &BTreeSet<String>) -> SubscriptionFilter {
    let has = &info.capabilities;
    let on = |flag: Option<Option<bool>>| flag.flatten().filter(|on| *on);
    let mut filter = SubscriptionFilter::new();
    filter.tools_list_changed = on(has.tools.as_ref().map(|tools| tools.list_changed));
    filter.prompts_list_changed = on(has.prompts.as_ref().map(|prompts| prompts.list_changed));
    filter.resources_list_changed =
        on(has.resources.as_ref().map(|resources| resources.list_changed));
    let can_watch =
        has.resources.as_ref().is_some_and(|resources| resources.subscribe == Some(true));
    filter.resource_subscriptions =
        (can_watch && !wanted.is_empty()).then(|| wanted.iter().cloned().collect());
    filter
}

fn note_change(news: &News, notification: ServerNotification) {
    match notification {
        ServerNotification::ToolListChangedNotification(_) => {
            news.note_lists(|lists| lists.tools = true)
        }
        ServerNotification::PromptListChangedNotification(_) => {
            news.note_lists(|lists| lists.prompts = true)
        }
        ServerNotification::ResourceListChangedNotification(_) => {
            news.note_lists(|lists| lists.resources = true)
        }
        ServerNotification::ResourceUpdatedNotification(update) => {
            news.note_resource(update.params.uri)
        }
        _ => {}
    }
}

/// Subscribes to resources with `resources/subscribe`. Lists of older revisions need no
/// subscription. A new session has no subscriptions, so all of them are made again.
async fn subscribe_to_resources(
    server: &str,
    peer: &Peer<RoleClient>,
    news: &News,
    mut wanted: watch::Receiver<BTreeSet<String>>,
) {
    let mut renewals = news.renewals();
    let mut subscribed = BTreeSet::new();
    loop {
        let now = wanted.borrow_and_update().clone();
        let added = now.difference(&subscribed).map(|uri| {
            ClientRequest::SubscribeRequest(SubscribeRequest::new(SubscribeRequestParams::new(uri)))
        });
        let removed = subscribed.difference(&now).map(|uri| {
            ClientRequest::UnsubscribeRequest(UnsubscribeRequest::new(
                UnsubscribeRequestParams::new(uri),
            ))
        });
        for request in added.chain(removed).collect::<Vec<_>>() {
            if let Err(error) = peer.send_request(request).await {
                tracing::debug!(
                    server,
                    %error,
                    "could not change a subscription to a resource of a hosted server"
                );
            }
        }
        subscribed = now;

        tokio::select! {
            changed = wanted.changed() => {
                if changed.is_err() {
                    return;
                }
            }
            // `news` holds the sender.
            _ = renewals.changed() => {
                // Changes between the sessions were missed.
                std::mem::take(&mut subscribed).into_iter().for_each(|uri| news.note_resource(uri));
            }
        }
    }
}
