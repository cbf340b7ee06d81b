//! The token that is held, and what to do next. Pure: time is passed in.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::Value;

/// How long a token is used whose response does not say when it ends.
const UNKNOWN_LIFETIME: Duration = Duration::from_secs(300);
/// The longest time before its end at which a token is replaced; a short one is replaced after nine
/// tenths.
const MARGIN: Duration = Duration::from_secs(30);
/// The shortest time that a token is used, whatever its response says.
const SHORTEST: Duration = Duration::from_secs(5);
/// How long a failure is the answer to everybody. The time doubles with each failure in a row.
const FAILURE: Duration = Duration::from_secs(1);
/// How often that time doubles.
const DOUBLINGS: u32 = 3;
/// A token that is refused within this time of being fetched, and was never accepted, is no reason
/// to fetch another.
const NEW: Duration = Duration::from_secs(5);
/// How many tokens may be replaced in a row because a server refused them, and the time after which
/// one more may be. A server that accepts a token for some requests and refuses it for others would
/// have us ask for tokens without end.
const REPLACEMENTS: u32 = 8;
const PER_REPLACEMENT: Duration = Duration::from_secs(15);
/// The longest token that is sent in a header, in bytes.
const MAX_TOKEN: usize = 8 * 1024;

/// What is known of tokens.
#[derive(Debug, Default)]
pub(crate) struct Held {
    token: Option<Token>,
    failure: Option<Failure>,
    /// When all replacements of refused tokens are made good.
    replaced_until: Option<Instant>,
}

/// What is known of the token, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TokenStanding {
    /// There is none, and none has been asked for.
    None,
    /// There is one that ends after this time.
    Valid(Duration),
    /// There is none, for this reason.
    Failed(Arc<str>),
}

#[derive(Debug)]
struct Token {
    text: Arc<str>,
    fetched: Instant,
    /// When to fetch another.
    fresh_until: Instant,
    ends: Instant,
    /// Whether a server has taken a request with it.
    is_accepted: bool,
}

/// There was no token to be had.
#[derive(Debug)]
struct Failure {
    reason: Arc<str>,
    at: Instant,
    /// The number of failures in a row, this one included.
    count: u32,
}

impl Failure {
    /// Returns whether this is still the answer to everybody.
    fn is_recent(&self, now: Instant) -> bool {
        let doublings = (self.count - 1).min(DOUBLINGS);
        now.duration_since(self.at) < FAILURE * 2_u32.pow(doublings)
    }
}

/// What to do about a token.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Next {
    /// Send this one.
    Use(Arc<str>),
    /// Send this one, which ends soon, and fetch another meanwhile.
    Renew(Arc<str>),
    /// Fetch one.
    Fetch,
    /// There was none a moment ago.
    Failed(Arc<str>),
    /// Even a new one is refused, or too many were.
    Refused,
}

impl Held {
    /// What to do for a call that needs a token, in place of a refused one if there was one.
    pub(crate) fn next(&self, refused: Option<&str>, now: Instant) -> Next {
        let is_refused = |token: &&Token| refused == Some(&*token.text);
        if let Some(token) = self.token.as_ref().filter(is_refused) {
            let is_new = !token.is_accepted && now.duration_since(token.fetched) < NEW;
            if is_new || !self.may_replace(now) {
                return Next::Refused;
            }
        }

        let token = self.token.as_ref().filter(|token| !is_refused(token) && now < token.ends);
        let is_failing = self.failure.as_ref().filter(|failure| failure.is_recent(now));
        match (token, is_failing) {
            (Some(token), _) if now < token.fresh_until => Next::Use(Arc::clone(&token.text)),
            // It could not be replaced in time, and is good to its end.
            (Some(token), Some(_)) => Next::Use(Arc::clone(&token.text)),
            (Some(token), None) => Next::Renew(Arc::clone(&token.text)),
            (None, Some(failure)) => Next::Failed(Arc::clone(&failure.reason)),
            (None, None) => Next::Fetch,
        }
    }

    /// Returns whether one more refused token may be replaced.
    fn may_replace(&self, now: Instant) -> bool {
        let owed = self.replaced_until.map(|until| until.saturating_duration_since(now));
        owed.unwrap_or_default() <= PER_REPLACEMENT * (REPLACEMENTS - 1)
    }

    /// Notes that a token is being fetched, in place of a refused one if there was one.
    pub(crate) fn note_fetch(&mut self, refused: Option<&str>, now: Instant) {
        let is_replacement =
            refused.is_some() && self.token.as_ref().map(|token| &*token.text) == refused;
        if is_replacement {
            let owed_from = self.replaced_until.map_or(now, |until| until.max(now));
            self.replaced_until = Some(owed_from + PER_REPLACEMENT);
        }
    }

    /// Takes in the response of an authorization server (RFC 6749, section 5.1) to a request of the
    /// time `asked`, which came at `now`, and returns its token.
    pub(crate) fn take(
        &mut self,
        response: &Value,
        asked: Instant,
        now: Instant,
    ) -> Result<Arc<str>, Arc<str>> {
        let text = bearer_token(response).map_err(|problem| self.fail(problem, now))?;

        let lifetime =
            response["expires_in"].as_u64().map_or(UNKNOWN_LIFETIME, Duration::from_secs);
        let lifetime = lifetime.max(SHORTEST);
        let fresh = (lifetime - MARGIN.min(lifetime / 10)).max(SHORTEST);
        let after = |time| asked.checked_add(time).unwrap_or(asked + UNKNOWN_LIFETIME);

        let text: Arc<str> = text.into();
        self.token = Some(Token {
            text: Arc::clone(&text),
            fetched: now,
            fresh_until: after(fresh),
            ends: after(lifetime),
            is_accepted: false,
        });
        self.failure = None;
        Ok(text)
    }

    /// Takes in a failure, and returns its reason. A token that is still good stays.
    pub(crate) fn fail(&mut self, reason: &str, now: Instant) -> Arc<str> {
        let reason: Arc<str> = reason.into();
        let before = self.failure.as_ref().map_or(0, |failure| failure.count);
        let count = before.saturating_add(1);
        self.failure = Some(Failure { reason: Arc::clone(&reason), at: now, count });
        reason
    }

    /// Notes that a server has taken a request with this token. If it refuses the token later, the
    /// token was withdrawn, and another one is fetched at once.
    pub(crate) fn note_accepted(&mut self, accepted: &str) {
        if let Some(token) = self.token.as_mut().filter(|token| *token.text == *accepted) {
            token.is_accepted = true;
        }
    }

    /// What is known of the token.
    pub(crate) fn standing(&self, now: Instant) -> TokenStanding {
        let left = self.token.as_ref().map(|token| token.ends.saturating_duration_since(now));
        match (left.filter(|left| !left.is_zero()), &self.failure) {
            (Some(left), _) => TokenStanding::Valid(left),
            (None, Some(failure)) => TokenStanding::Failed(Arc::clone(&failure.reason)),
            (None, None) => TokenStanding::None,
        }
    }
}

/// Returns the token in a response, if it can be sent as `Authorization: Bearer` (RFC 6750).
fn bearer_token(response: &Value) -> Result<&str, &'static str> {
    let text = response["access_token"].as_str().unwrap_or_default();
    let is_bearer = |kind: &str| kind.eq_ignore_ascii_case("bearer");
    if text.is_empty() {
        Err("the response has no access token")
    } else if !response["token_type"].as_str().is_some_and(is_bearer) {
        Err("the access token is not a bearer token")
    } else if text.len() > MAX_TOKEN {
        Err("the access token is too long to be sent in a header")
    } else if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        Err("the access token can't be sent in a header")
    } else {
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A response with a token of this lifetime.
    fn issued(token: &str, lifetime: Value) -> Value {
        json!({"access_token": token, "token_type": "Bearer", "expires_in": lifetime})
    }

    /// Takes in a response at once.
    fn take(held: &mut Held, token: &str, lifetime: u64, now: Instant) {
        held.take(&issued(token, json!(lifetime)), now, now).unwrap();
    }

    fn at(start: Instant, ms: u64) -> Instant {
        start + Duration::from_millis(ms)
    }

    #[test]
    fn a_token_is_used_until_shortly_before_its_end() {
        let start = Instant::now();
        for (lifetime, fresh_ms) in [
            (json!(3600), 3_570_000),
            (json!(60), 54_000),
            (json!(null), 270_000),
            (json!(0), 5_000),
        ] {
            let mut held = Held::default();
            assert_eq!(held.next(None, start), Next::Fetch);
            let response = issued("t", lifetime.clone());
            assert_eq!(held.take(&response, start, at(start, 1)).as_deref(), Ok("t"));
            assert_eq!(held.next(None, at(start, fresh_ms - 1)), Next::Use("t".into()));
            let is_renewed = lifetime != json!(0);
            let expected = if is_renewed { Next::Renew("t".into()) } else { Next::Fetch };
            assert_eq!(held.next(None, at(start, fresh_ms)), expected, "{lifetime}");
        }
        let mut held = Held::default();
        take(&mut held, "t", u64::MAX, start);
        assert_eq!(held.next(None, at(start, 1)), Next::Use("t".into()));
    }

    #[test]
    fn a_refused_token_is_replaced_once() {
        let start = Instant::now();
        let mut held = Held::default();
        take(&mut held, "new", 3600, start);
        assert_eq!(held.next(Some("old"), at(start, 1)), Next::Use("new".into()));
        assert_eq!(held.next(Some("new"), at(start, 4_999)), Next::Refused);
        assert_eq!(held.next(Some("new"), at(start, 5_000)), Next::Fetch);
    }

    #[test]
    fn a_token_that_was_accepted_may_be_replaced_at_once() {
        let start = Instant::now();
        let mut held = Held::default();
        take(&mut held, "first", 3600, start);
        held.note_accepted("first");
        assert_eq!(held.next(Some("first"), at(start, 1)), Next::Fetch);
        take(&mut held, "second", 3600, at(start, 2));
        held.note_accepted("first");
        assert_eq!(held.next(Some("second"), at(start, 3)), Next::Refused);
    }

    #[test]
    fn failures_in_a_row_are_the_answer_for_longer() {
        let start = Instant::now();
        let mut held = Held::default();
        let mut now = 0;
        for wait in [1_000, 2_000, 4_000, 8_000, 8_000] {
            held.fail("away", at(start, now));
            now += wait;
            assert_eq!(held.next(None, at(start, now - 1)), Next::Failed("away".into()));
            assert_eq!(held.next(None, at(start, now)), Next::Fetch);
        }
        assert_eq!(held.standing(at(start, now)), TokenStanding::Failed("away".into()));

        take(&mut held, "t", 60, at(start, now));
        let left = TokenStanding::Valid(Duration::from_secs(59));
        assert_eq!(held.standing(at(start, now + 1_000)), left);
        held.fail("away", at(start, now + 61_000));
        assert_eq!(held.next(None, at(start, now + 62_000)), Next::Fetch, "counted anew");
    }

    #[test]
    fn a_failure_is_the_answer_to_all_for_a_second() {
        let start = Instant::now();
        let mut held = Held::default();
        held.fail("away", start);
        assert_eq!(held.next(None, at(start, 999)), Next::Failed("away".into()));
        assert_eq!(held.next(None, at(start, 1_000)), Next::Fetch);
        let response = json!({"token_type": "bearer"});
        let reason = held.take(&response, at(start, 1_000), at(start, 1_001)).unwrap_err();
        assert!(reason.contains("no access token"), "{reason}");
        assert!(matches!(held.next(None, at(start, 1_002)), Next::Failed(_)));
    }

    #[test]
    fn a_token_that_cannot_be_replaced_is_used_to_its_end() {
        let start = Instant::now();
        let mut held = Held::default();
        take(&mut held, "t", 60, start);
        assert_eq!(held.next(None, at(start, 55_000)), Next::Renew("t".into()));
        held.fail("away", at(start, 55_000));
        assert_eq!(held.next(None, at(start, 55_500)), Next::Use("t".into()));
        assert_eq!(held.next(None, at(start, 56_000)), Next::Renew("t".into()));
        held.fail("away", at(start, 59_900));
        assert_eq!(held.next(None, at(start, 60_000)), Next::Failed("away".into()));
        // Nor is it used once it has been refused.
        assert_eq!(held.next(Some("t"), at(start, 59_950)), Next::Failed("away".into()));
    }
    /// A server takes every token for some requests and refuses it for others.
    #[test]
    fn refused_tokens_are_replaced_at_a_bounded_rate() {
        let start = Instant::now();
        let mut held = Held::default();
        take(&mut held, "token", 3600, start);
        let (mut replacements, seconds) = (0, 600);
        for ms in (0..seconds * 1_000).step_by(100) {
            let now = at(start, ms);
            held.note_accepted("token");
            if held.next(Some("token"), now) == Next::Fetch {
                held.note_fetch(Some("token"), now);
                take(&mut held, "token", 3600, now);
                replacements += 1;
            }
        }
        let in_time = u32::try_from(seconds / PER_REPLACEMENT.as_secs()).unwrap();
        assert!((in_time..=in_time + REPLACEMENTS).contains(&replacements), "{replacements}");
        // Those who bring an earlier one get the present one.
        assert_eq!(held.next(Some("other"), at(start, 600_000)), Next::Use("token".into()));
        held.note_fetch(Some("other"), at(start, 600_000));
        assert!(held.may_replace(at(start, 620_000)), "that is no replacement");
    }

    /// An authorization server that takes its time does not make a new token an old one.
    #[test]
    fn a_token_is_new_from_when_it_came() {
        let start = Instant::now();
        let mut held = Held::default();
        held.take(&issued("t", json!(60)), start, at(start, 10_000)).unwrap();
        assert_eq!(held.next(Some("t"), at(start, 10_001)), Next::Refused);
        assert_eq!(
            held.standing(at(start, 59_999)),
            TokenStanding::Valid(Duration::from_millis(1))
        );
    }

    #[test]
    fn a_token_must_be_one_that_can_be_sent() {
        let start = Instant::now();
        let check = |token: &str, kind: Value, is_taken: bool| {
            let response = json!({"access_token": token, "token_type": kind});
            let taken = Held::default().take(&response, start, start);
            assert_eq!(taken.is_ok(), is_taken, "{kind} {}", token.len());
        };
        check("t", json!("bearer"), true);
        check("t", json!("BEARER"), true);
        check("t", json!("DPoP"), false);
        check("t", json!(null), false);
        check("", json!("Bearer"), false);
        check("a b", json!("Bearer"), false);
        check("a\nb", json!("Bearer"), false);
        check("ä", json!("Bearer"), false);
        check(&"t".repeat(MAX_TOKEN), json!("Bearer"), true);
        check(&"t".repeat(MAX_TOKEN + 1), json!("Bearer"), false);
    }
}
