//! Whether a server still knows our session, and what to do if it does not.
//!
//! Before 2026-07-28 a server may hand out a session id, which every later request carries. A
//! server that restarts forgets its sessions. The specification has it answer 404 then; in the
//! field it is 400, 401, 422 or 503, as plain text or as a JSON-RPC error with any code. So no
//! single status can be the sign. [`Keeper`] applies one rule to all:
//!
//! 1. A request that the server **turned away** in its transport, before anything looked at what
//!    was asked, leads to a new handshake, and is sent again in the new session. It can't have run.
//!    Turned away means: a 4xx status that does not name another cause, or a JSON-RPC error that
//!    does not name the request's id.
//! 2. Any **other error** may be about the request (bad arguments), so the session is asked about
//!    first: a `ping` is sent in it. If the ping is answered, the session stands, and so does the
//!    error. If the ping is rejected as well, the session is lost and a new handshake follows. The
//!    request is sent again only if it can't have run: the ping met the same JSON-RPC error, which
//!    therefore is not about the request, or the error says that the request is not acceptable
//!    (-32600, -32602).
//! 3. -32601, a result of any kind, 429, and statuses that name another cause are **no sign** at
//!    all.
//! 4. A request is sent again **once**. What it meets then is its answer. A refusal that a new
//!    session did not lift is not taken for a lost session so easily any more: from then on rule 2
//!    applies to everything.
//! 5. All requests that were refused in one session share **one** handshake, and its failure.
//!
//! The keeper holds no session and does no IO. The caller keeps one keeper per server, a lock
//! around it that is never held across an await, and a second, asynchronous lock: the *turn*. In
//! this order:
//!
//! - [`Keeper::issue`] after every handshake that succeeded. The [`Lease`] goes with each request
//!   of that session.
//! - [`Keeper::doubt`] when a request was rejected. `None`: the rejection is the answer.
//! - Otherwise wait for the turn, and ask [`Keeper::next`] what to do. Report a ping with
//!   [`Keeper::pinged`], a handshake with [`Keeper::renewed`] or [`Keeper::not_renewed`]; each says
//!   what is next.
//!
//! A caller may drop the future that holds the turn at any moment: whoever has the turn next starts
//! over.

/// The request is malformed: it has not run.
const INVALID_REQUEST: i64 = -32600;
/// The parameters are not acceptable: the request has not run.
const INVALID_PARAMS: i64 = -32602;
/// Something went wrong inside the server.
const INTERNAL_ERROR: i64 = -32603;
/// The method is unknown. A server that says so knows the session.
const METHOD_NOT_FOUND: i64 = -32601;

/// A session, as its requests name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease(u64);

/// An answer that is no result, as far as it bears on the session of the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rejection {
    /// The HTTP status.
    pub status: u16,
    /// The code of the JSON-RPC error in the body, if there is one.
    pub code: Option<i64>,
    /// Whether that error names the id of the request, as errors of whatever carries requests out
    /// do.
    pub addressed: bool,
}

/// What a rejection says about the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Suspicion {
    /// The transport turned the request away.
    TurnedAway,
    /// Something failed the request. It may have been for want of a session.
    Unclear,
    /// The session has nothing to do with it.
    No,
}

impl Rejection {
    fn suspicion(&self) -> Suspicion {
        match (self.status, self.code) {
            // Parse error, unknown method; and what only revisions without sessions know.
            (_, Some(-32700 | METHOD_NOT_FOUND | -32022..=-32020)) => Suspicion::No,
            // Payment, method, media type, time, length, size, host, upgrade, rate: another cause
            // is named.
            (402 | 405..=408 | 411 | 413..=415 | 417 | 421 | 425 | 426 | 429 | 431 | 451, _) => {
                Suspicion::No
            }
            // An internal error may be any failure, so even one that is about no request is looked
            // into before a session is given up.
            (200..=299 | 400..=599, Some(INTERNAL_ERROR)) => Suspicion::Unclear,
            (_, Some(_)) if self.addressed => Suspicion::Unclear,
            (200..=299 | 400..=599, Some(_)) | (400..=499, None) => Suspicion::TurnedAway,
            // Without a word from the server itself: a proxy may speak for one that has taken the
            // request.
            (500..=599, None) => Suspicion::Unclear,
            _ => Suspicion::No,
        }
    }

    /// Whether both are the same error of JSON-RPC.
    fn same_error(&self, other: &Self) -> bool {
        self.code.is_some() && self.code == other.code && self.status == other.status
    }
}

/// What became of a ping in the session in question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pinged {
    /// There was a result.
    Answered,
    /// There was none.
    Rejected(Rejection),
    /// The connection failed, or the answer did not come in time.
    Unanswered,
}

/// What to do about a rejected request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Step {
    /// Nothing: the rejection is the answer.
    Stand,
    /// Send the request again, in the session that is current now.
    Resend,
    /// Send a ping in the session of the request.
    Ping,
    /// Make a new handshake.
    Renew,
    /// Nothing can be done: the answer is the failure of the last handshake.
    Failed,
}

/// A rejected request whose session may be lost.
#[derive(Debug)]
pub struct Doubt {
    lease: Lease,
    rejection: Rejection,
    turned_away: bool,
    /// How many inquiries had begun when the request was rejected.
    begun: u64,
    /// How many of them had found something.
    ended: u64,
    /// What a ping in the same session met.
    ping: Option<Rejection>,
}

impl Doubt {
    /// Whether the request can't have run, given what showed that its session is lost.
    fn may_resend(&self, evidence: Option<Rejection>) -> bool {
        self.turned_away
            || matches!(self.rejection.code, Some(INVALID_REQUEST | INVALID_PARAMS))
            || evidence.is_some_and(|evidence| evidence.same_error(&self.rejection))
    }

    /// What shows that the session is lost.
    fn evidence(&self) -> Rejection {
        self.ping.unwrap_or(self.rejection)
    }
}

/// What an inquiry found that ended without a new session.
#[derive(Debug, Clone, Copy)]
enum Finding {
    /// The session stands.
    Alive,
    /// It is lost, and the handshake failed.
    NoHandshake(Rejection),
}

/// See the module's documentation.
#[derive(Debug, Default)]
pub struct Keeper {
    sessions: u64,
    /// How many inquiries have begun.
    begun: u64,
    /// How many have found something without making a new session.
    ended: u64,
    /// What the last of them found in this session, and its number among those that have begun.
    found: Option<(u64, Finding)>,
    /// What showed that the session before this one was lost.
    lost_by: Option<Rejection>,
    /// A new session did not lift a refusal, so refusals alone prove nothing.
    wary: bool,
}

impl Keeper {
    /// A handshake has succeeded: its session is current from now on.
    pub fn issue(&mut self) -> Lease {
        self.sessions += 1;
        self.found = None;
        self.lost_by = None;
        self.current()
    }

    /// The current session.
    pub fn current(&self) -> Lease {
        Lease(self.sessions)
    }

    /// A request of the session `lease` was rejected; `resent` if it was sent for the second time.
    ///
    /// `None` if the rejection is the answer.
    pub fn doubt(&mut self, lease: Lease, rejection: Rejection, resent: bool) -> Option<Doubt> {
        let suspicion = rejection.suspicion();
        if resent {
            self.wary |= suspicion == Suspicion::TurnedAway;
            return None;
        }
        let turned_away = match suspicion {
            Suspicion::TurnedAway => true,
            Suspicion::Unclear => false,
            Suspicion::No => return None,
        };
        Some(Doubt {
            lease,
            rejection,
            turned_away,
            begun: self.begun,
            ended: self.ended,
            ping: None,
        })
    }

    /// The caller has the turn: what to do about the request.
    pub fn next(&mut self, doubt: &Doubt) -> Step {
        if doubt.lease != self.current() {
            return if doubt.may_resend(self.lost_by) { Step::Resend } else { Step::Stand };
        }
        let asks_first = !doubt.turned_away || self.wary;
        match self.found {
            // The handshake failed after the rejection, whenever it began.
            Some((_, Finding::NoHandshake(evidence))) if self.ended > doubt.ended => {
                return if doubt.may_resend(Some(evidence)) { Step::Failed } else { Step::Stand };
            }
            // A ping from before the rejection does not tell why it was.
            Some((number, Finding::Alive)) if number > doubt.begun && asks_first => {
                return Step::Stand;
            }
            _ => {}
        }
        self.begun += 1;
        if asks_first { Step::Ping } else { Step::Renew }
    }

    /// What became of the ping.
    pub fn pinged(&mut self, doubt: &mut Doubt, pinged: Pinged) -> Step {
        let lost = match pinged {
            Pinged::Rejected(rejection) if rejection.suspicion() != Suspicion::No => rejection,
            // A server that does not know pings answers them nevertheless.
            Pinged::Answered | Pinged::Rejected(Rejection { code: Some(METHOD_NOT_FOUND), .. }) => {
                self.conclude(Finding::Alive);
                return Step::Stand;
            }
            Pinged::Rejected(_) | Pinged::Unanswered => return Step::Stand,
        };
        doubt.ping = Some(lost);
        Step::Renew
    }

    /// The new handshake succeeded, and its session was issued.
    pub fn renewed(&mut self, doubt: &Doubt) -> Step {
        self.lost_by = Some(doubt.evidence());
        if doubt.may_resend(self.lost_by) { Step::Resend } else { Step::Stand }
    }

    /// The new handshake failed. Requests that were rejected before share the failure.
    pub fn not_renewed(&mut self, doubt: &Doubt) -> Step {
        self.conclude(Finding::NoHandshake(doubt.evidence()));
        if doubt.may_resend(Some(doubt.evidence())) { Step::Failed } else { Step::Stand }
    }

    fn conclude(&mut self, finding: Finding) {
        self.ended += 1;
        self.found = Some((self.begun, finding));
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
