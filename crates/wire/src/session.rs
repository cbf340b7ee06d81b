//! Whether a server still knows our session, and what to do if it does not.
//!
//! Before revision 2026-07-28, a server may issue a session id, which every later request carries.
//! A server that restarts forgets its sessions. By the specification it then answers 404; in
//! practice it answers 400, 401, 422 or 503, as plain text or as a JSON-RPC error with any code. So
//! no single status identifies a lost session. [`Keeper`] applies the same rules to all of them:
//!
//! 1. If the server's transport **turned away** a request before anything looked at its content,
//!    make a new handshake and send the request again in the new session. The request cannot have
//!    run. Turned away means: a 4xx status that does not name another cause, or a JSON-RPC error
//!    that does not name the request's id.
//! 2. **Any other error** may concern the request itself (such as bad arguments), so check the
//!    session first: send a `ping` in it. If the ping is answered, the session is alive, and the
//!    error stands. If the ping is rejected too, the session is lost, and a new handshake follows.
//!    Send the request again only if it cannot have run: either the ping met the same JSON-RPC
//!    error, which therefore does not concern the request, or the error says that the request is
//!    invalid (-32600, -32602).
//! 3. -32601, any result, 429, and statuses that name another cause **say nothing** about the
//!    session.
//! 4. A request is sent again only **once**. Whatever the second answer is, it counts. If a new
//!    session did not lift a refusal, refusals are no longer taken as proof of a lost session: from
//!    then on, rule 2 applies to everything.
//! 5. All requests that were refused in one session share **one** handshake and its failure.
//!
//! The keeper holds no session and does no IO. The caller has one keeper per server, a lock around
//! it that is never held across an await, and a second, asynchronous lock: the *turn*. Call the
//! methods in this order:
//!
//! - [`Keeper::issue`] after every successful handshake. Each request of that session carries the
//!   [`Lease`].
//! - [`Keeper::doubt`] when a request was rejected. If it returns `None`, the rejection is the
//!   answer.
//! - Otherwise wait for the turn, and ask [`Keeper::next`] what to do. Report a ping with
//!   [`Keeper::pinged`], and a handshake with [`Keeper::renewed`] or [`Keeper::not_renewed`]; each
//!   returns the next step.
//!
//! The caller may drop the future that holds the turn at any time; whoever has the turn next starts
//! over.

/// The request is malformed, so it has not run.
const INVALID_REQUEST: i64 = -32600;
/// The parameters are invalid, so the request has not run.
const INVALID_PARAMS: i64 = -32602;
/// The server failed internally. The request may have run.
const INTERNAL_ERROR: i64 = -32603;
/// The method is unknown. A server that answers this knows the session.
const METHOD_NOT_FOUND: i64 = -32601;

/// A token for a session, carried by its requests.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lease(u64);

/// An answer other than a result, as far as it matters for the session of the request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rejection {
    /// The HTTP status.
    pub status: u16,
    /// The code of the JSON-RPC error in the body, if any.
    pub code: Option<i64>,
    /// Whether that error names the id of the request, as the errors of request handlers do.
    pub addressed: bool,
}

/// What a rejection suggests about the session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Suspicion {
    /// The transport turned the request away.
    TurnedAway,
    /// Something failed the request, possibly the lack of a session.
    Unclear,
    /// The session has nothing to do with the rejection.
    No,
}

impl Rejection {
    fn suspicion(&self) -> Suspicion {
        match (self.status, self.code) {
            // Parse error, unknown method, and errors of revisions without sessions.
            (_, Some(-32700 | METHOD_NOT_FOUND | -32022..=-32020)) => Suspicion::No,
            // Another cause is named: payment, method, media type, time, length, size, host,
            // upgrade, rate.
            (402 | 405..=408 | 411 | 413..=415 | 417 | 421 | 425 | 426 | 429 | 431 | 451, _) => {
                Suspicion::No
            }
            // An internal error may have any cause, so even one that names no request is checked
            // with a ping before the session is given up.
            (200..=299 | 400..=599, Some(INTERNAL_ERROR)) => Suspicion::Unclear,
            (_, Some(_)) if self.addressed => Suspicion::Unclear,
            (200..=299 | 400..=599, Some(_)) | (400..=499, None) => Suspicion::TurnedAway,
            // Not from the server itself: a proxy may answer for a server that has accepted the
            // request.
            (500..=599, None) => Suspicion::Unclear,
            _ => Suspicion::No,
        }
    }

    /// Returns whether both are the same JSON-RPC error.
    fn same_error(&self, other: &Self) -> bool {
        self.code.is_some() && self.code == other.code && self.status == other.status
    }
}

/// The outcome of a ping in the session in question.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pinged {
    /// The ping was answered with a result.
    Answered,
    /// The ping was rejected.
    Rejected(Rejection),
    /// The connection failed, or no answer came in time.
    Unanswered,
}

/// What to do about a rejected request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use]
pub enum Step {
    /// Do nothing: the rejection is the answer.
    Stand,
    /// Send the request again in the current session.
    Resend,
    /// Send a ping in the session of the request.
    Ping,
    /// Make a new handshake.
    Renew,
    /// Give up: the failure of the last handshake is the answer.
    Failed,
}

/// A rejected request whose session may be lost.
#[derive(Debug)]
pub struct Doubt {
    lease: Lease,
    rejection: Rejection,
    turned_away: bool,
    /// The number of inquiries that had begun when the request was rejected.
    begun: u64,
    /// The number of inquiries that had found something by then.
    ended: u64,
    /// The rejection of a ping in the same session.
    ping: Option<Rejection>,
}

impl Doubt {
    /// Returns whether the request cannot have run, given the evidence that its session is lost.
    fn may_resend(&self, evidence: Option<Rejection>) -> bool {
        self.turned_away
            || matches!(self.rejection.code, Some(INVALID_REQUEST | INVALID_PARAMS))
            || evidence.is_some_and(|evidence| evidence.same_error(&self.rejection))
    }

    /// Returns the evidence that the session is lost.
    fn evidence(&self) -> Rejection {
        self.ping.unwrap_or(self.rejection)
    }
}

/// The finding of an inquiry that ended without a new session.
#[derive(Debug, Clone, Copy)]
enum Finding {
    /// The session is alive.
    Alive,
    /// The session is lost, and the handshake failed.
    NoHandshake(Rejection),
}

/// Decides what to do about rejected requests; see the documentation of the module.
#[derive(Debug, Default)]
pub struct Keeper {
    sessions: u64,
    /// The number of inquiries that have begun.
    begun: u64,
    /// The number of inquiries that have found something without making a new session.
    ended: u64,
    /// The number (by beginning) and the finding of the last of those in this session.
    found: Option<(u64, Finding)>,
    /// The evidence that the previous session was lost.
    lost_by: Option<Rejection>,
    /// Set when a new session did not lift a refusal, so that refusals prove nothing any more.
    wary: bool,
}

impl Keeper {
    /// Records a successful handshake, whose session is current from now on.
    pub fn issue(&mut self) -> Lease {
        self.sessions += 1;
        self.found = None;
        self.lost_by = None;
        self.current()
    }

    /// Returns the current session.
    pub fn current(&self) -> Lease {
        Lease(self.sessions)
    }

    /// Records that a request of the session `lease` was rejected. `resent` tells whether it was
    /// sent for the second time. Returns `None` if the rejection is the answer.
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

    /// Decides what to do about the request. The caller must have the turn.
    pub fn next(&mut self, doubt: &Doubt) -> Step {
        if doubt.lease != self.current() {
            return if doubt.may_resend(self.lost_by) { Step::Resend } else { Step::Stand };
        }

        let asks_first = !doubt.turned_away || self.wary;
        match self.found {
            // The handshake failed after the rejection, whenever the handshake began.
            Some((_, Finding::NoHandshake(evidence))) if self.ended > doubt.ended => {
                return if doubt.may_resend(Some(evidence)) { Step::Failed } else { Step::Stand };
            }
            // A ping from before the rejection does not explain the rejection.
            Some((number, Finding::Alive)) if number > doubt.begun && asks_first => {
                return Step::Stand;
            }
            _ => {}
        }

        self.begun += 1;
        if asks_first { Step::Ping } else { Step::Renew }
    }

    /// Records the outcome of a ping.
    pub fn pinged(&mut self, doubt: &mut Doubt, pinged: Pinged) -> Step {
        let lost = match pinged {
            Pinged::Rejected(rejection) if rejection.suspicion() != Suspicion::No => rejection,
            // A server that does not support pings has answered nevertheless.
            Pinged::Answered | Pinged::Rejected(Rejection { code: Some(METHOD_NOT_FOUND), .. }) => {
                self.conclude(Finding::Alive);
                return Step::Stand;
            }
            Pinged::Rejected(_) | Pinged::Unanswered => return Step::Stand,
        };

        doubt.ping = Some(lost);
        Step::Renew
    }

    /// Records that the new handshake succeeded and its session was issued.
    pub fn renewed(&mut self, doubt: &Doubt) -> Step {
        self.lost_by = Some(doubt.evidence());
        if doubt.may_resend(self.lost_by) { Step::Resend } else { Step::Stand }
    }

    /// Records that the new handshake failed. Requests that were rejected before it share the
    /// failure.
    pub fn not_renewed(&mut self, doubt: &Doubt) -> Step {
        self.conclude(Finding::NoHandshake(doubt.evidence()));
        if doubt.may_resend(Some(doubt.evidence())) { Step::Failed } else { Step::Stand }
    }

    /// Records the finding of the current inquiry.
    fn conclude(&mut self, finding: Finding) {
        self.ended += 1;
        self.found = Some((self.begun, finding));
    }
}

#[cfg(test)]
#[path = "session_tests.rs"]
mod tests;
