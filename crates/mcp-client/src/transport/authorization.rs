//! What is sent as `Authorization`: a token of the settings, or access tokens that are fetched.

use std::sync::Arc;

use fleet_oauth::{
    AuthorizationServer, BoundedClient, Reach, TokenError, TokenSettings, TokenSource,
};
use fleet_ops::tls::{ClientTlsFiles, FollowedClient};
use http::header::WWW_AUTHENTICATE;
use http::{HeaderValue, StatusCode};
use parking_lot::RwLock;
use reqwest::Response;

use crate::classify::Broken;
use crate::config::{ClientConfig, ConfigError, OAuthClient, Secret, bearer_header};

/// Where the value of `Authorization` comes from. Clones share it.
#[derive(Debug, Clone)]
pub(super) enum Authorization {
    /// From the settings, if they have a token.
    Fixed(Arc<RwLock<Option<HeaderValue>>>),
    /// From an authorization server.
    Fetched(TokenSource),
}

/// What one request is sent with.
#[derive(Debug)]
pub(super) enum Credential {
    Fixed(Option<HeaderValue>),
    Fetched { token: Arc<str>, header: HeaderValue },
}

impl Authorization {
    pub(super) fn new(config: &ClientConfig) -> Result<Self, ConfigError> {
        if let Some(tokens) = token_source(config)? {
            return Ok(Self::Fetched(tokens));
        }
        let fixed = config.bearer_token.as_ref().map(bearer_header).transpose()?;
        Ok(Self::Fixed(Arc::new(RwLock::new(fixed))))
    }

    /// Uses another token of the settings, or none, from the next request on.
    pub(super) fn replace(&self, token: Option<&Secret>) -> Result<(), ConfigError> {
        let header = token.map(bearer_header).transpose()?;
        if let Self::Fixed(fixed) = self {
            *fixed.write() = header;
        }
        Ok(())
    }

    /// What a call is sent with.
    ///
    /// # Errors
    ///
    /// Returns an error if there is no access token. The call has not been sent then.
    pub(super) async fn for_call(&self) -> Result<Credential, Broken> {
        match self {
            Self::Fixed(fixed) => Ok(Credential::Fixed(fixed.read().clone())),
            Self::Fetched(tokens) => Credential::fetched(tokens.token().await),
        }
    }

    /// What a call is sent with after this was refused; `None` if there is nothing else.
    ///
    /// # Errors
    ///
    /// Returns an error if the access token can't be sent.
    pub(super) async fn after_refusal(
        &self,
        refused: &Credential,
    ) -> Result<Option<Credential>, Broken> {
        let (Self::Fetched(tokens), Credential::Fetched { token, .. }) = (self, refused) else {
            return Ok(None);
        };
        match tokens.token_after_refusal(token).await {
            Ok(other) => Credential::fetched(Ok(other)).map(Some),
            Err(error) => {
                tracing::debug!(%error, "the server refuses our access token");
                Ok(None)
            }
        }
    }

    /// What a message beside the calls is sent with; `None` if there is nothing now.
    pub(super) async fn for_side_message(&self) -> Option<HeaderValue> {
        self.for_call().await.ok()?.header()
    }
}

impl Credential {
    fn fetched(token: Result<Arc<str>, TokenError>) -> Result<Self, Broken> {
        let token = token.map_err(|error| Broken::NotSent(error.to_string()))?;
        let header = bearer_header(&(&*token).into()).map_err(|_| {
            Broken::NotSent("the access token can't be sent in a header".to_owned())
        })?;
        Ok(Self::Fetched { token, header })
    }

    /// The value of `Authorization`.
    pub(super) fn header(&self) -> Option<HeaderValue> {
        match self {
            Self::Fixed(header) => header.clone(),
            Self::Fetched { header, .. } => Some(header.clone()),
        }
    }

    /// Whether a response asks for another access token (RFC 6750, section 3).
    pub(super) fn is_refused_by(&self, response: &Response) -> bool {
        let is_bearer = |value: &HeaderValue| {
            value.as_bytes().get(..6).is_some_and(|scheme| scheme.eq_ignore_ascii_case(b"bearer"))
        };
        matches!(self, Self::Fetched { .. })
            && response.status() == StatusCode::UNAUTHORIZED
            && response.headers().get_all(WWW_AUTHENTICATE).iter().any(is_bearer)
    }
}

/// The source of access tokens for the server. All endpoints are replicas of one server, so the
/// first one stands for it.
fn token_source(config: &ClientConfig) -> Result<Option<TokenSource>, ConfigError> {
    let client = config.oauth.clone().filter(|_| config.bearer_token.is_none());
    let (Some(client), Some(resource)) = (client, config.endpoints.first().cloned()) else {
        return Ok(None);
    };

    let OAuthClient { credentials, issuer, ca } = client;
    let files = ClientTlsFiles { authorities: ca, pair: None };
    let limit = config.connect_timeout;
    // The certificate that proves the worker to the MCP server is not for the authorization server.
    let http = FollowedClient::new(
        move || files.clone(),
        move |tls| {
            let builder = tls.apply(reqwest::Client::builder()).connect_timeout(limit);
            builder.redirect(reqwest::redirect::Policy::none()).referer(false).build()
        },
    )?;

    let reach = match &issuer {
        Some(issuer) => Reach::configured(issuer, &resource),
        None => Reach::Anywhere,
    };
    let http = BoundedClient::new(move |_| http.current(), reach);
    let server = issuer.map_or(AuthorizationServer::Named, AuthorizationServer::Issuer);
    let settings = TokenSettings { server, resource: None };
    Ok(Some(TokenSource::new(resource, settings, credentials, http)))
}
