//! Which endpoint gets the next request. Pure: the time is passed in.
//!
//! The endpoint with the fewest requests in flight is chosen, in turns among equals. An endpoint
//! that could not be reached or refused us is set aside for a period that doubles with each
//! failure; afterwards, a single request may try it. Setting an endpoint aside only changes the
//! order: if all endpoints are aside, the one that would return first is tried, so the client never
//! reports an outage that it has not just observed.

use std::time::{Duration, Instant};

use fleet_retry::{Backoff, Random};

/// How long an endpoint is set aside.
const ASIDE: Backoff = Backoff { base: Duration::from_millis(500), max: Duration::from_secs(30) };

/// The states of all endpoints, by index.
#[derive(Debug)]
pub(crate) struct Balancer {
    seats: Vec<Seat>,
    turn: usize,
    random: Random,
}

#[derive(Debug, Clone, Default)]
struct Seat {
    in_flight: usize,
    failures: u32,
    aside_until: Option<Instant>,
}

impl Balancer {
    /// Creates a balancer. `seed` is for the jitter of the periods for which endpoints are set
    /// aside.
    pub(crate) fn new(endpoints: usize, seed: u64) -> Self {
        Self { seats: vec![Seat::default(); endpoints], turn: 0, random: Random::new(seed) }
    }

    /// Chooses an endpoint for the next request, except those in `tried`. Returns `None` if all
    /// have been tried. The request counts as in flight until [`Balancer::release`].
    pub(crate) fn pick(&mut self, now: Instant, tried: &[usize]) -> Option<usize> {
        let count = self.seats.len();
        let order = (0..count)
            .map(|step| (self.turn + step) % count)
            .filter(|index| !tried.contains(index));

        let chosen = order.min_by_key(|&index| {
            let seat = &self.seats[index];
            (seat.aside_until.filter(|until| *until > now), seat.in_flight)
        })?;

        self.turn = (chosen + 1) % count;

        let seat = &mut self.seats[chosen];
        seat.in_flight += 1;
        if seat.aside_until.is_some_and(|until| until <= now) {
            // This request tries the endpoint. Others stay away until it returns.
            seat.aside_until = Some(now + ASIDE.spread(seat.failures, &mut self.random));
        }

        Some(chosen)
    }

    /// Records that a request to the endpoint is over, however it ended.
    pub(crate) fn release(&mut self, index: usize) {
        self.seats[index].in_flight = self.seats[index].in_flight.saturating_sub(1);
    }

    /// Records that the endpoint answered.
    pub(crate) fn answered(&mut self, index: usize) {
        self.seats[index].failures = 0;
        self.seats[index].aside_until = None;
    }

    /// Sets the endpoint aside because it cannot accept requests now. `wish` is the delay that it
    /// asked for, if any.
    pub(crate) fn put_aside(&mut self, index: usize, now: Instant, wish: Option<Duration>) {
        let seat = &mut self.seats[index];
        // Requests that were in flight together fail together, which counts as one failure.
        if seat.aside_until.is_none_or(|until| until <= now) || wish.is_some() {
            seat.failures = seat.failures.saturating_add(1);
        }

        let pause = match wish {
            Some(wish) => wish.min(ASIDE.max),
            None => ASIDE.spread(seat.failures, &mut self.random),
        };
        seat.aside_until = Some(seat.aside_until.unwrap_or(now).max(now + pause));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn requests_go_to_the_endpoint_with_the_fewest() {
        let now = Instant::now();
        let mut balancer = Balancer::new(3, 7);
        let picks: Vec<_> = (0..6).map(|_| balancer.pick(now, &[]).unwrap()).collect();
        assert_eq!(picks, [0, 1, 2, 0, 1, 2]);

        balancer.release(1);
        balancer.release(1);
        assert_eq!(balancer.pick(now, &[]), Some(1));
        assert_eq!(balancer.pick(now, &[]), Some(1));
        assert_eq!(balancer.pick(now, &[0, 1]), Some(2));
        assert_eq!(balancer.pick(now, &[0, 1, 2]), None);
        assert_eq!(Balancer::new(0, 7).pick(now, &[]), None);
    }

    #[test]
    fn a_failing_endpoint_is_set_aside_and_tried_by_one_request() {
        let now = Instant::now();
        let mut balancer = Balancer::new(2, 7);
        balancer.put_aside(0, now, None);
        assert_eq!(balancer.pick(now, &[]), Some(1));
        assert_eq!(balancer.pick(now, &[]), Some(1), "although it has more in flight");

        let later = now + SECOND;
        assert_eq!(balancer.pick(later, &[]), Some(0), "one request tries it");
        assert_eq!(balancer.pick(later, &[]), Some(1), "the next one does not");

        balancer.answered(0);
        balancer.release(0);
        assert_eq!(balancer.pick(later, &[]), Some(0));
    }

    #[test]
    fn if_all_are_aside_the_one_that_returns_first_is_tried() {
        let now = Instant::now();
        let mut balancer = Balancer::new(2, 7);
        balancer.put_aside(0, now, Some(10 * SECOND));
        balancer.put_aside(1, now, Some(5 * SECOND));
        assert_eq!(balancer.pick(now, &[]), Some(1));
        assert_eq!(balancer.pick(now, &[1]), Some(0));
    }

    #[test]
    fn simultaneous_failures_count_once() {
        let now = Instant::now();
        let mut balancer = Balancer::new(1, 7);
        for _ in 0..100 {
            balancer.put_aside(0, now, None);
        }
        assert_eq!(balancer.seats[0].failures, 1);

        balancer.put_aside(0, now + SECOND, None);
        assert_eq!(balancer.seats[0].failures, 2);
    }
}
