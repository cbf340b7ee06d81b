//! Requests of protocol extensions, which are forwarded to the hosted server that declares the
//! extension.

use fleet_access::{Action, Resource};
use fleet_hosting::{
    apps,
    extensions::Owner,
    forward,
    routes::{Routes, split_named},
};
use fleet_job::size::clipped;
use rmcp::{
    RoleServer,
    model::{
        ClientRequest, CustomRequest, CustomResult, ErrorCode, ErrorData, SKILLS_EXTENSION_ID,
        ServerResult,
    },
    service::RequestContext,
};
use serde_json::{Value, json};

use super::{
    Asking, Gateway, MAX_NAME,
    asking::{end_record, resource_of},
    content::no_resource,
    is_modern,
};

/// Methods of every protocol revision. rmcp passes a request whose parameters it can't read to the
/// handler for unknown methods.
const KNOWN_METHODS: [&str; 11] = [
    "tools/list",
    "tools/call",
    "prompts/list",
    "prompts/get",
    "resources/list",
    "resources/read",
    "resources/templates/list",
    "completion/complete",
    "skills/list",
    "skills/get",
    "resources/directory/read",
];
/// Methods of revisions before 2026-07-28 only.
const OLD_METHODS: [&str; 5] =
    ["initialize", "ping", "logging/setLevel", "resources/subscribe", "resources/unsubscribe"];
/// Methods of revisions from 2026-07-28 on only.
const NEW_METHODS: [&str; 5] =
    ["server/discover", "subscriptions/listen", "tasks/get", "tasks/update", "tasks/cancel"];

impl Gateway {
    /// Forwards a request whose method rmcp does not know to the hosted server that declares its
    /// extension.
    ///
    /// # Errors
    ///
    /// Returns an error if rmcp knows the method but can't read the parameters, or if it is not
    /// clear which server is meant.
    pub(super) async fn forward_custom_request(
        &self,
        request: CustomRequest,
        context: RequestContext<RoleServer>,
    ) -> Result<CustomResult, ErrorData> {
        let of_revision = if is_modern(&context) { &NEW_METHODS[..] } else { &OLD_METHODS[..] };
        let of_other = if is_modern(&context) { &OLD_METHODS[..] } else { &NEW_METHODS[..] };
        let method = request.method.as_str();
        if KNOWN_METHODS.contains(&method) || of_revision.contains(&method) {
            return Err(ErrorData::invalid_params(
                format!("the parameters of {method} are invalid"),
                None,
            ));
        }
        if of_other.contains(&method) {
            return Err(unknown_method(method, ""));
        }

        let routes = self.inner.fleet.routes();
        let asking = self.asked_by(&context)?;
        let in_view = |server: &str| asking.has_server(server);
        let server = match routes.extensions().owner_of_method(method, in_view) {
            Owner::One(server) => server.to_owned(),
            Owner::Several(servers) => {
                return Err(ambiguous_method(method, servers, &asking, &routes));
            }
            Owner::Nobody => {
                let hidden = routes.extensions().owner_of_method(method, |_| true);
                record_hidden_owner(&asking, &hidden, method);
                return Err(unknown_method(method, "; no hosted server declares its extension"));
            }
        };
        drop(routes);
        let called =
            Resource { server: Some(&server), method: Some(method), ..Resource::default() };
        let arguments = request.params.as_ref().and_then(Value::as_object);
        let record = asking.begin(Action::CallExtension, &called, arguments).await?;

        let mut params = request.params;
        params.iter_mut().for_each(|params| apps::restore_in_value(&server, params));

        let request = ClientRequest::CustomRequest(CustomRequest::new(request.method, params));
        let result = forward::forward(&self.inner.fleet, &server, request, &context).await;
        let result =
            result.map(|result| CustomResult::new(forward::read_custom_result(&server, result)));
        end_record(record, result)
    }

    /// Forwards a request of the skills extension to the server that the URI in it names, or else
    /// to the one that declares the extension.
    pub(super) async fn forward_skills_request(
        &self,
        mut request: ClientRequest,
        context: &RequestContext<RoleServer>,
    ) -> Result<(String, ServerResult), ErrorData> {
        let mut uri = match &mut request {
            ClientRequest::GetSkillRequest(request) => Some(&mut request.params.uri),
            ClientRequest::ReadResourceDirectoryRequest(request) => Some(&mut request.params.uri),
            _ => None,
        };
        if let Some(uri) = &mut uri
            && let Some((server, own)) = split_named(uri)
        {
            let asking = self.asked_by(context)?;
            if !asking.has_uri(Some(server), own) {
                asking.record_hidden(Action::ReadResource, &resource_of(Some(server), own));
                return Err(no_resource(uri));
            }
            let (server, own) = (server.to_owned(), own.to_owned());
            let resource = resource_of(Some(&server), &own);
            let record = asking.begin(Action::ReadResource, &resource, None).await?;
            **uri = own;
            let result = forward::forward(&self.inner.fleet, &server, request, context).await;
            return end_record(record, result.map(|result| (server, result)));
        }

        let routes = self.inner.fleet.routes();
        let asking = self.asked_by(context)?;
        let in_view = |server: &str| asking.has_server(server);
        let server = match routes.extensions().owner(SKILLS_EXTENSION_ID, in_view) {
            Owner::One(server) => server.to_owned(),
            Owner::Several(servers) => {
                return Err(ambiguous_method(request.method(), servers, &asking, &routes));
            }
            Owner::Nobody => {
                let hidden = routes.extensions().owner(SKILLS_EXTENSION_ID, |_| true);
                record_hidden_owner(&asking, &hidden, request.method());
                return Err(unknown_method(
                    request.method(),
                    "; no hosted server declares the skills extension",
                ));
            }
        };
        drop(routes);
        // The list of a server's skills has no URI.
        let whole = Resource { server: Some(&server), ..Resource::default() };
        if let Some(uri) = uri.as_deref()
            && !asking.has_uri(Some(&server), uri)
        {
            asking.record_hidden(Action::ReadResource, &resource_of(Some(&server), uri));
            return Err(no_resource(uri));
        }
        let resource = uri.map_or(whole, |uri| resource_of(Some(&server), uri));
        let record = asking.begin(Action::ReadResource, &resource, None).await?;

        let result = forward::forward(&self.inner.fleet, &server, request, context).await;
        end_record(record, result.map(|result| (server, result)))
    }
}

/// Records that a method is refused as unknown although a server outside of the caller's view has
/// it.
fn record_hidden_owner(asking: &Asking, owner: &Owner<'_>, method: &str) {
    let server = match owner {
        Owner::One(server) => Some(*server),
        Owner::Several(_) => None,
        Owner::Nobody => return,
    };
    let called = Resource { server, method: Some(method), ..Resource::default() };
    asking.record_hidden(Action::CallExtension, &called);
}

fn unknown_method(method: &str, why: &str) -> ErrorData {
    let message = format!("unknown method `{}`{why}", clipped(method, MAX_NAME));
    ErrorData::new(ErrorCode::METHOD_NOT_FOUND, message, None)
}

/// The error for a method whose extension several hosted servers declare. It names those that the
/// caller may know of.
fn ambiguous_method(
    method: &str,
    mut servers: Vec<&str>,
    asking: &Asking,
    routes: &Routes,
) -> ErrorData {
    servers.retain(|name| asking.sees_server(name, routes));
    let method = clipped(method, MAX_NAME);
    let message = format!(
        "cannot forward method `{method}`: several hosted servers declare its extension: {}",
        servers.join(", ")
    );
    let data = json!({
        "reason": "ambiguous-extension",
        "code": fleet_codes::AMBIGUOUS_EXTENSION.as_str(),
        "method": method,
        "servers": servers,
    });
    ErrorData::new(ErrorCode::METHOD_NOT_FOUND, message, Some(data))
}
