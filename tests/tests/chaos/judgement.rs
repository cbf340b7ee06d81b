//! Judges a run once all jobs have ended.

use super::*;

impl Chaos<'_> {
    pub(super) fn judge(&mut self) -> Report {
        let mut wrong = Vec::new();
        for worker in &self.workers {
            let violations =
                http::metric(worker.service.address, "fleet_invariant_violations_total");
            if violations != Some(0.0) {
                wrong.push(format!("{}: {violations:?} violations of invariants", worker.name));
            }
        }

        if self.keyring.used < 2 {
            wrong.push("the key that signs jobs was never replaced".to_owned());
        }
        self.cluster.wait_until_in_sync();
        for worker in self.workers.drain(..) {
            self.fleet.workers.push(worker.service);
        }

        self.fleet.stop_workers();
        self.fleet.assert_all_committed();
        let oracle = Oracle::new(&self.fleet.topic, &self.fleet.submitted).repeats(usize::MAX);
        let account = self.first_ends_stand(&oracle);
        wrong.extend(oracle.judge(&account));
        wrong.extend(self.asked(&account));
        let audit = Audit {
            account: &account,
            plans: &self.plans,
            ledger: &Ledger::read(&self.ledger).with(Ledger::read(&self.hosted.ledger)),
            losses: std::mem::take(&mut self.losses),
            outages: std::mem::take(&mut self.outages),
            witnesses: &self.witnesses,
            cuts: std::mem::take(&mut self.cuts),
            cancelled_late: &self.cancelled_late,
            in_flight: self.in_flight,
        };

        let mut report = audit.report();
        report.wrong.extend(wrong);
        report
    }

    /// Reads the topics once the server has restated every end that is followed by another event,
    /// or has had time to.
    fn first_ends_stand(&self, oracle: &Oracle<'_>) -> Account {
        let begin = Instant::now();
        loop {
            let account = oracle.read(&self.cluster.brokers);
            let stands = |(place, events): (&(i32, i64), &Vec<Arc<JobEvent>>)| {
                oracle::ends(events).next() == account.last.get(place)
            };
            if account.events.iter().all(stands) || begin.elapsed() > STALLED {
                return account;
            }
            std::thread::sleep(LOOK);
        }
    }

    /// The differences between the server's answers and the topics, for some jobs, and for all jobs
    /// with events after their end.
    fn asked(&self, account: &Account) -> Vec<String> {
        let server = self.fleet.server.as_ref().expect("the server");
        let first = |events: &Vec<Arc<JobEvent>>| oracle::ends(events).next().cloned();
        let is_plain = |events: &Vec<Arc<JobEvent>>| {
            events.iter().position(|event| event.state.is_terminal()) == Some(events.len() - 1)
        };
        let odd = account.events.values().filter(|events| !is_plain(events));
        let some = account.events.values().take(ASKED);
        let ends: BTreeMap<_, _> =
            odd.chain(some).filter_map(first).map(|end| (end.job_id.clone(), end)).collect();

        let differs = |(id, end): (&String, &Arc<JobEvent>)| {
            let path = format!("/jobs/{}", id.replace('/', "%2F"));
            let (status, body) = http::get(server.address, &path).expect("an answer of the server");
            let job: Value = serde_json::from_str(&body).unwrap_or_default();
            let output = job["state"].as_str().unwrap_or_default();
            (status != 200 || output != end.state.as_str()).then(|| {
                format!("{id}: ended as {}; the server says {status} {body}", end.state.as_str())
            })
        };
        ends.iter().filter_map(differs).collect()
    }
}
