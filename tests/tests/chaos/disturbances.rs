//! Carries out the schedule of a run: begins and ends disturbances, submits jobs, and records what
//! the audit has to know.

use super::*;

impl Chaos<'_> {
    /// Carries out the schedule, and returns once every job has ended and no disturbance is active.
    pub(super) fn play(&mut self, schedule: &Schedule) {
        let events = Topics::of(self.fleet.topic.clone()).events;
        let mut watch = Watch::new(&self.cluster.brokers, &events, 2);
        let mut jobs = Jobs::new(schedule.seed);
        self.submit(&mut jobs, schedule.submitted(0));
        let (begin, mut begun) = (Instant::now(), 0);
        let (mut ended, mut moved) = (0, Instant::now());
        while ended < schedule.jobs || begun < schedule.steps.len() || !self.active.is_empty() {
            let seen = watch.ended(LOOK);
            if seen > ended {
                (ended, moved) = (seen, Instant::now());
            }
            self.assert_moving(schedule, ended, moved);
            self.cancel_late(&watch.take_fresh());
            self.go_on();
            if let Some(Step { after, what }) = schedule.steps.get(begun).copied()
                && ended >= after
                && what.may_join(&self.active.iter().map(|active| active.what).collect::<Vec<_>>())
            {
                eprintln!("{:>6.1} s, {ended:>6} ended: {what}", begin.elapsed().as_secs_f64());
                self.keyring.rotate();
                self.begin(what);
                begun += 1;
                self.submit(&mut jobs, schedule.submitted(begun));
            }
        }
    }

    /// Requests the cancellation of some of the ended jobs.
    fn cancel_late(&mut self, ended: &[String]) {
        let number =
            |id: &str| id.strip_prefix('c').and_then(|number| number.parse::<usize>().ok());
        let chosen = |id: &&str| number(id).is_some_and(|number| number.is_multiple_of(CANCELLED));
        let ids: Vec<_> = ended.iter().map(String::as_str).filter(chosen).collect();
        if ids.is_empty() {
            return;
        }
        let records = ids.iter().map(|id| {
            let control = Control::cancel(*id, None, fleet::now(), Some("too late"));
            self.keyring.sign_control(&control)
        });
        let control = Topics::of(&*self.fleet.topic).control;
        topics::produce(&self.cluster.brokers, &control, records.collect());
        self.cancelled_late.extend(ids.into_iter().map(str::to_owned));
    }

    fn assert_moving(&self, schedule: &Schedule, ended: usize, moved: Instant) {
        if moved.elapsed() < STALLED || ended == schedule.jobs {
            return;
        }

        let account =
            Oracle::new(&self.fleet.topic, &self.fleet.submitted).read(&self.cluster.brokers);
        let open = self.fleet.submitted.iter().filter(|record| {
            let last = account.states.get(&(record.partition, record.offset));
            last.is_none_or(|event| !event.state.is_terminal())
        });
        let open: Vec<_> = open.map(|record| (record.partition, record.offset)).collect();
        let active: Vec<_> = self.active.iter().map(|active| active.what).collect();
        let some = &open[..open.len().min(20)];
        panic!(
            "nothing moves: {ended} ended, {} are open, such as {some:?}; {active:?}\n{schedule}",
            open.len()
        );
    }

    fn begin(&mut self, what: Disturbance) {
        let (began, mut leaving) = (now_ms(), Vec::new());
        let lost =
            what.workers().first().map_or(0.0, |worker| count_losses(&self.workers[*worker]));
        match what {
            Disturbance::KillWorker { worker } => {
                self.workers[worker].service.process.kill();
                self.record_loss(worker, now_ms());
                self.workers[worker] = self.launch(worker);
            }
            Disturbance::StopWorker { worker, .. }
            | Disturbance::WakeWithoutCoordinator { worker, .. } => {
                self.note(ZOMBIES);
                self.workers[worker].service.process.signal(Signal::SIGSTOP);
            }
            Disturbance::CutWorker { how, .. } => {
                self.note(ZOMBIES);
                self.cluster.network(how);
            }
            Disturbance::Storm { join, leave } => {
                let joined: Vec<_> = (0..join).map(|_| self.launch(0)).collect();
                for slot in 0..leave {
                    let fresh = self.launch(slot);
                    leaving.push(std::mem::replace(&mut self.workers[slot], fresh));
                }
                leaving.extend(joined);
                leaving.iter().for_each(|worker| worker.service.process.signal(Signal::SIGTERM));
            }
            Disturbance::KillServer { .. } => {
                self.gate.set(Network::Refused);
                self.fleet.server.take().expect("the server").process.kill();
            }
            Disturbance::KillBroker { broker, .. } => {
                self.broker_down_since = Some(now_ms());
                self.cluster.kill(broker);
            }
            Disturbance::KillHosted { .. } => {
                self.hosted.kill();
            }
            Disturbance::CutHosted { how, .. } => {
                self.hosted.network(how);
            }
            Disturbance::RefuseHosted { .. } => self.hosted.refuse(true),
        }
        let until = Instant::now() + Duration::from_millis(what.lasts_ms());
        let has_two_halves = matches!(what, Disturbance::WakeWithoutCoordinator { .. });
        let midway = has_two_halves.then(|| until - Duration::from_millis(WITHOUT_COORDINATOR_MS));
        self.active.push(Active {
            what,
            began,
            midway,
            until,
            recovering: false,
            lost,
            broker: None,
            leaving,
        });
    }

    /// Ends the disturbances that are due, and removes those from which the fleet has recovered.
    fn go_on(&mut self) {
        for mut active in std::mem::take(&mut self.active) {
            if active.midway.is_some_and(|at| Instant::now() >= at) {
                active.midway = None;
                self.wake_without_coordinator(&mut active);
            }
            if !active.recovering && Instant::now() >= active.until {
                self.end(&active);
                active.recovering = true;
                // The recovery starts now.
                active.until = Instant::now();
            }
            if active.recovering && self.has_recovered(&mut active) {
                self.recovered(active.what, active.began);
            } else {
                self.active.push(active);
            }
        }
    }

    /// Kills the coordinator and lets the worker go on. From now on, the killed broker is known.
    fn wake_without_coordinator(&mut self, active: &mut Active) {
        let worker = active.what.workers()[0];
        let broker = topics::coordinator(&self.cluster.brokers, &self.fleet.group);
        self.broker_down_since = Some(now_ms());
        self.cluster.kill(broker);
        active.broker = Some(broker);
        self.workers[worker].service.process.signal(Signal::SIGCONT);
    }

    fn end(&mut self, active: &Active) {
        match active.what {
            Disturbance::StopWorker { worker, .. } => {
                self.workers[worker].service.process.signal(Signal::SIGCONT);
            }
            Disturbance::CutWorker { .. } => self.cluster.network(Network::Up),
            Disturbance::KillServer { .. } => self.start_server(),
            Disturbance::KillBroker { broker, .. } => self.cluster.restart(broker),
            Disturbance::WakeWithoutCoordinator { .. } => {
                self.cluster.restart(active.broker.expect("the broker that was killed"));
            }
            Disturbance::KillHosted { forgotten, .. } => self.hosted.restart(forgotten),
            Disturbance::CutHosted { .. } => self.hosted.network(Network::Up),
            Disturbance::RefuseHosted { .. } => self.hosted.refuse(false),
            Disturbance::KillWorker { .. } | Disturbance::Storm { .. } => {}
        }
    }

    fn has_recovered(&mut self, active: &mut Active) -> bool {
        let since = active.until.elapsed();
        let recovered = match active.what {
            Disturbance::StopWorker { .. } | Disturbance::CutWorker { .. } => {
                self.is_member_again(active)
            }
            Disturbance::WakeWithoutCoordinator { .. } => {
                self.cluster.is_in_sync() && self.is_member_again(active)
            }
            Disturbance::KillBroker { .. } => self.cluster.is_in_sync(),
            Disturbance::Storm { .. } => {
                active.leaving.retain_mut(|worker| {
                    let process = &mut worker.service.process;
                    let runs = process.is_running();
                    assert!(
                        runs || process.wait(LOOK).success(),
                        "{} failed:\n{}",
                        worker.name,
                        process.log()
                    );
                    runs
                });
                active.leaving.is_empty()
            }
            Disturbance::KillWorker { .. }
            | Disturbance::KillServer { .. }
            | Disturbance::KillHosted { .. }
            | Disturbance::CutHosted { .. }
            | Disturbance::RefuseHosted { .. } => true,
        };

        assert!(recovered || since < STALLED, "no recovery from {} within {since:?}", active.what);
        recovered
    }

    /// Whether the worker of an ended disturbance is known to be in its group again.
    fn is_member_again(&self, active: &Active) -> bool {
        let since = active.until.elapsed();
        let worker = &self.workers[active.what.workers()[0]];
        let partitions = http::metric(worker.service.address, "fleet_partitions_assigned");
        let heard = since > KEPT || count_losses(worker) > active.lost;
        since > AWAKE && heard && partitions.is_some_and(|partitions| partitions > 0.0)
    }

    fn recovered(&mut self, what: Disturbance, began: i64) {
        self.cuts.extend(cut_by(what, began, now_ms()));
        match what {
            Disturbance::StopWorker { worker, .. } => self.record_loss(worker, began),
            Disturbance::WakeWithoutCoordinator { worker, .. } => {
                self.record_loss(worker, began);
                self.broker_down_since = None;
                self.outages.push((began, now_ms()));
            }
            Disturbance::CutWorker { .. } => self.record_loss(BEHIND_PROXY, began),
            Disturbance::KillBroker { .. } => {
                self.broker_down_since = None;
                self.outages.push((began, now_ms()));
                return;
            }
            _ => return,
        }

        let is_zombie = |active: &Active| {
            matches!(
                active.what,
                Disturbance::StopWorker { .. }
                    | Disturbance::CutWorker { .. }
                    | Disturbance::WakeWithoutCoordinator { .. }
            )
        };

        if !self.active.iter().any(is_zombie) {
            self.note(SETTLED);
        }
    }

    /// Records that a worker has stopped, or was unreachable since `began`. While a broker is down,
    /// commits may be delayed.
    fn record_loss(&mut self, worker: usize, began: i64) {
        let from = self.broker_down_since.unwrap_or(began).min(began) - COMMIT_MS;
        self.losses.push(Loss { worker: self.workers[worker].name.clone(), from, until: now_ms() });
    }

    fn note(&mut self, word: &str) {
        for notes in &mut self.notes {
            notes.write_all(format!("{word}\n").as_bytes()).expect("the ledger");
        }
    }
}

/// The cut that a disturbance from `from` to `until` was for calls.
fn cut_by(what: Disturbance, from: i64, until: i64) -> Option<Cut> {
    // One call is lost with its connection. The next attempt can follow within milliseconds, and is
    // lost in the queue of connections that nobody accepts any more: for its caller, the connection
    // was made, the request sent, and the connection reset.
    let in_its_last_moment = 2;
    let (lost_calls, only_remote) = match what {
        Disturbance::KillServer { .. } => (in_its_last_moment, false),
        // Another one when it refuses the old session without saying why.
        Disturbance::KillHosted { .. } => (in_its_last_moment + 1, true),
        Disturbance::CutHosted { .. } => (in_its_last_moment, true),
        _ => return None,
    };
    Some(Cut { from, until, lost_calls, only_remote })
}

/// How often a worker has lost its partitions without a revocation.
fn count_losses(worker: &Worker) -> f64 {
    http::metric(worker.service.address, "fleet_rebalances_total{kind=\"lost\"}")
        .unwrap_or_default()
}
