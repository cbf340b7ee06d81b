//! Notifies clients of changes: on a `subscriptions/listen` stream (from revision 2026-07-28 on),
//! or with notifications of a session.

use std::{
    collections::BTreeMap,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use fleet_access::{Action, Arguments, Resource};
use fleet_hosting::{
    Fleet,
    changes::{Change, Lists},
    fleet::Watched,
    notices::Notice,
};
use parking_lot::Mutex;
use rmcp::{
    RoleServer,
    model::{
        ClientCapabilities, CustomNotification, ErrorData, GetMeta as _,
        ResourceUpdatedNotificationParam, ServerNotification, SubscriptionFilter,
    },
    service::{Peer, SubscriptionContext, SubscriptionSink},
};
use tokio::sync::broadcast::{Receiver, error::RecvError};
use tokio_util::sync::CancellationToken;

use super::{Asking, Gateway, asking::resource_of, content::no_resource};

/// The most resources that one session or stream may subscribe to.
const MAX_WATCHED: usize = 1000;

/// The subscriptions of a session of the older protocol.
#[derive(Default)]
pub(super) struct Session {
    /// Whether the session is already being notified of changes.
    is_notified: AtomicBool,
    ended: CancellationToken,
    watched: Mutex<BTreeMap<String, Option<Watched>>>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.ended.cancel();
    }
}

impl Session {
    fn watches(&self, uri: &str) -> bool {
        self.watched.lock().contains_key(uri)
    }
}

impl Gateway {
    /// The part of a requested subscription that can be granted.
    pub(super) fn accept_filter(&self, requested: &SubscriptionFilter) -> SubscriptionFilter {
        let mut accepted = requested.clone();
        if let Some(uris) = &mut accepted.resource_subscriptions {
            uris.retain(|uri| self.has_resource(uri));
            uris.truncate(MAX_WATCHED);
        }
        accepted
    }

    /// Notifies a stream of changes until its client cancels it, the server stops, or a change of
    /// the policy ends the view that the stream was opened in.
    ///
    /// # Errors
    ///
    /// Returns the refusal if the client may not subscribe to one of the resources.
    pub(super) async fn stream_changes(
        &self,
        context: SubscriptionContext,
    ) -> Result<(), ErrorData> {
        let request = context.request_context();
        let asking = self.check(request, Action::UseSession, &Resource::default())?;
        let uris = || context.accepted().resource_subscriptions.iter().flatten();
        uris().try_for_each(|uri| self.check_subscription(&asking, uri))?;

        let mut changes = self.inner.fleet.changes();
        let watched: Vec<_> =
            uris().filter_map(|uri| self.inner.fleet.watch_resource(uri)).collect();
        let (sink, capabilities) = (context.sink().clone(), request.client_capabilities());

        let notify_of_changes = async {
            while let Some(change) = next_change(&mut changes).await {
                if !asking.asker().is_served() {
                    return;
                }
                let is_sent = match &change {
                    Change::Notice { server, extension, notice }
                        if declares(capabilities.as_ref(), extension)
                            && may_hear(&asking, server) =>
                    {
                        send_notice(&request.peer, notice, Some(&sink)).await.is_ok()
                    }
                    Change::Resource(uri) if !may_watch(&asking, &self.inner.fleet, uri) => true,
                    change => notify_stream(&sink, change).await.is_ok(),
                };
                if !is_sent {
                    return;
                }
            }
        };

        let notify_of_tasks = async {
            if self.stream_task_states(context.request_context()).await.is_ok() {
                // All watched tasks have ended, but the stream stays open.
                std::future::pending::<()>().await;
            }
        };

        tokio::select! {
            () = notify_of_changes => {}
            () = notify_of_tasks => {}
            () = context.cancelled() => {}
            // The server is stopping, so end the stream in order.
            () = self.inner.fleet.wait_for_closing() => {}
        }

        drop(watched);
        Ok(())
    }

    /// Checks that the caller may be told when a resource changes.
    ///
    /// # Errors
    ///
    /// Returns the refusal.
    pub(super) fn check_subscription(&self, asking: &Asking, uri: &str) -> Result<(), ErrorData> {
        let routes = self.inner.fleet.routes();
        let is_own = self.inner.providers.iter().any(|provider| provider.can_watch(uri));
        let (server, own) = match routes.resource(uri).filter(|_| !is_own) {
            Some((server, own)) => (Some(server), own),
            None => (None, uri),
        };
        let resource = resource_of(server, own);
        if !asking.has_uri(server, own) {
            asking.record_hidden(Action::SubscribeResource, &resource);
            return Err(no_resource(uri));
        }
        asking.check(Action::SubscribeResource, &resource)
    }

    /// Notifies a session of changes until it ends. Further calls for the same session do nothing.
    pub(super) fn start_session_notices(&self, peer: Peer<RoleServer>, asking: Asking) {
        if self.session.is_notified.swap(true, Ordering::Relaxed) {
            return;
        }

        let mut changes = self.inner.fleet.changes();
        // The end of the session drops its handler and `Session`, which ends the task.
        let (session, ended) = (Arc::downgrade(&self.session), self.session.ended.clone());
        let fleet = Arc::downgrade(&self.inner.fleet);
        tokio::spawn(async move {
            loop {
                let change = tokio::select! {
                    change = next_change(&mut changes) => change,
                    () = ended.cancelled() => return,
                };
                let (Some(change), Some(session)) = (change, session.upgrade()) else { return };
                if !asking.asker().is_served() {
                    return;
                }
                let is_allowed = match (&change, fleet.upgrade()) {
                    (Change::Notice { server, .. }, _) => may_hear(&asking, server),
                    (Change::Resource(uri), Some(fleet)) => may_watch(&asking, &fleet, uri),
                    _ => true,
                };
                if !is_allowed {
                    continue;
                }
                if peer.is_transport_closed()
                    || notify_session(&peer, &session, &change).await.is_err()
                {
                    return;
                }
            }
        });
    }

    pub(super) fn subscribe_session(&self, uri: String) -> Result<(), ErrorData> {
        if !self.has_resource(&uri) {
            return Err(no_resource(&uri));
        }
        let mut watched = self.session.watched.lock();
        if watched.len() >= MAX_WATCHED && !watched.contains_key(&uri) {
            let message = format!("a session may subscribe to at most {MAX_WATCHED} resources");
            return Err(ErrorData::invalid_params(message, None));
        }
        let watch = self.inner.fleet.watch_resource(&uri);
        watched.insert(uri, watch);
        Ok(())
    }

    pub(super) fn unsubscribe_session(&self, uri: &str) {
        let removed = self.session.watched.lock().remove(uri);
        drop(removed);
    }

    fn has_resource(&self, uri: &str) -> bool {
        let viewer = self.viewer.as_ref();
        let view = viewer.and_then(|viewer| viewer.view());
        let has = |server, own| {
            let has = view.as_ref().is_none_or(|view| view.has_resource(server, own));
            if let (false, Some(viewer)) = (has, viewer) {
                let hidden = resource_of(server, own);
                viewer.record_hidden(Action::SubscribeResource, &hidden, Arguments::None);
            }
            has
        };
        if self.inner.providers.iter().any(|provider| provider.can_watch(uri)) {
            return has(None, uri);
        }
        let routes = self.inner.fleet.routes();
        routes.resource(uri).is_some_and(|(server, own)| has(Some(server), own))
    }
}

/// The next change. A receiver that is too slow for every change learns that all lists may have
/// changed.
async fn next_change(changes: &mut Receiver<Change>) -> Option<Change> {
    match changes.recv().await {
        Ok(change) => Some(change),
        Err(RecvError::Lagged(_)) => Some(Change::Lists(Lists::ALL)),
        Err(RecvError::Closed) => None,
    }
}

/// Whether the caller gets the notifications of a server's extensions. It does if it may call their
/// methods.
fn may_hear(asking: &Asking, server: &str) -> bool {
    let server = Some(server);
    asking.sees(Action::CallExtension, &Resource { server, ..Resource::default() })
}

/// Whether the caller may still be told of changes of a resource.
fn may_watch(asking: &Asking, fleet: &Fleet, uri: &str) -> bool {
    let routes = fleet.routes();
    let resource = match routes.resource(uri) {
        Some((server, own)) => resource_of(Some(server), own),
        None => resource_of(None, uri),
    };
    asking.sees(Action::SubscribeResource, &resource)
}

/// Whether a client declares support for an extension.
fn declares(capabilities: Option<&ClientCapabilities>, extension: &str) -> bool {
    let declared = capabilities.map(|known| (&known.extensions, &known.experimental));
    declared.is_some_and(|(extensions, experimental)| {
        [extensions, experimental].into_iter().flatten().any(|known| known.contains_key(extension))
    })
}

/// Sends a notification of an extension to a stream or to a session.
async fn send_notice(
    peer: &Peer<RoleServer>,
    notice: &Notice,
    stream: Option<&SubscriptionSink>,
) -> Result<(), rmcp::service::ServiceError> {
    let custom = CustomNotification::new(notice.method.clone(), notice.params.clone());
    let mut notification = ServerNotification::CustomNotification(custom);
    if let Some(stream) = stream {
        notification.get_meta_mut().set_subscription_id(stream.id().clone());
    }
    peer.send_notification(notification).await
}

/// Notifies a stream of a change if the stream has subscribed to it.
async fn notify_stream(
    sink: &SubscriptionSink,
    change: &Change,
) -> Result<(), rmcp::service::SubscriptionSendError> {
    let accepted = sink.accepted();
    match change {
        Change::Lists(lists) => {
            if lists.tools && accepted.tools_list_changed == Some(true) {
                sink.notify_tool_list_changed().await?;
            }
            if lists.prompts && accepted.prompts_list_changed == Some(true) {
                sink.notify_prompt_list_changed().await?;
            }
            if lists.resources && accepted.resources_list_changed == Some(true) {
                sink.notify_resource_list_changed().await?;
            }
        }
        Change::Resource(uri) => {
            if accepted.resource_subscriptions.iter().flatten().any(|wanted| **wanted == **uri) {
                sink.notify_resource_updated(&**uri).await?;
            }
        }
        // Sent separately, to clients that declare the extension.
        Change::Notice { .. } => {}
    }

    Ok(())
}

/// Notifies a session of a changed list, or of a resource that the session has subscribed to.
async fn notify_session(
    peer: &Peer<RoleServer>,
    session: &Session,
    change: &Change,
) -> Result<(), rmcp::service::ServiceError> {
    match change {
        Change::Lists(lists) => {
            if lists.tools {
                peer.notify_tool_list_changed().await?;
            }
            if lists.prompts {
                peer.notify_prompt_list_changed().await?;
            }
            if lists.resources {
                peer.notify_resource_list_changed().await?;
            }
        }
        Change::Resource(uri) => {
            if session.watches(uri) {
                peer.notify_resource_updated(ResourceUpdatedNotificationParam::new(&**uri)).await?;
            }
        }
        Change::Notice { notice, .. } => send_notice(peer, notice, None).await?,
    }

    Ok(())
}
