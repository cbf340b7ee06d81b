//! The server's own operations of the REST interface: tools and hosted servers.
//!
//! They stand in the same table as those on jobs, from which router and OpenAPI document are made.

use fleet_access::Asker;
use fleet_jobs::rest::{Operation, Problem, ProblemKind};
use http::request::Parts;

use crate::gateway::{Asking, Gateway};

mod pins;
mod servers;
mod tools;

/// Returns the operations.
pub(crate) fn operations(gateway: &Gateway) -> Vec<Operation> {
    let mut operations = tools::operations(gateway);
    operations.extend(servers::operations(gateway));
    operations.extend(pins::operations(gateway));
    operations
}

/// Who asks.
struct Caller(Asking);

impl<S: Send + Sync> axum::extract::FromRequestParts<S> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Problem> {
        let asker = parts.extensions.get::<Asker>().ok_or_else(|| {
            // The layer in front of every route puts it there.
            Problem::new(ProblemKind::Internal, "nobody was authenticated for this request")
        })?;
        Ok(Self(Asking::by_rest(asker.clone())))
    }
}
