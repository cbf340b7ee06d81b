//! Tests single cases, and random worlds in which processes start slowly, answer late, die and
//! hang.

use super::*;

const TIERS: [usize; 4] = [0, 1, 2, 2];
const BROKER: Role = 0;
const SERVER: Role = 1;
const WORKER: Role = 2;

fn at(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn orders(supervisor: &mut Supervisor) -> Vec<Order> {
    std::iter::from_fn(|| supervisor.poll()).collect()
}

/// A supervisor whose processes are all ready.
fn running() -> Supervisor {
    let mut supervisor = Supervisor::new(TIERS, 7);
    for role in 0..TIERS.len() {
        supervisor.handle(at(0), Input::Ready(role));
    }
    orders(&mut supervisor);
    supervisor
}

/// Lets `role` die at `now` and returns when it is restarted.
fn restart(supervisor: &mut Supervisor, role: Role, now: Duration) -> Duration {
    supervisor.handle(now, Input::Exited(role));
    assert_eq!(orders(supervisor), []);
    let due = supervisor.restarts_at(role).unwrap();
    supervisor.handle(due, Input::Tick);
    assert_eq!(orders(supervisor), [Order::Start(role)]);
    supervisor.handle(due, Input::Ready(role));
    due
}

#[test]
fn the_broker_starts_first_then_the_server_then_the_workers() {
    let mut supervisor = Supervisor::new(TIERS, 7);
    assert_eq!(orders(&mut supervisor), [Order::Start(BROKER)]);
    supervisor.handle(at(100), Input::Tick);
    assert_eq!(orders(&mut supervisor), [], "a slow start is not a failure");

    supervisor.handle(at(200), Input::Ready(BROKER));
    assert_eq!(orders(&mut supervisor), [Order::Start(SERVER)]);

    supervisor.handle(at(300), Input::Ready(SERVER));
    assert_eq!(orders(&mut supervisor), [Order::Start(WORKER), Order::Start(3)]);
}

#[test]
fn delays_grow_with_every_death_and_start_again_after_a_long_life() {
    let mut supervisor = running();
    let (mut now, mut last) = (at(1), Duration::ZERO);
    for _ in 0..7 {
        let due = restart(&mut supervisor, SERVER, now);
        assert!(
            due - now >= last / 2 && due - now <= RESTARTS.max,
            "{last:?}, then {:?}",
            due - now
        );
        last = due - now;
        now = due + WELL / 2;
    }

    assert!(last >= RESTARTS.max / 2, "{last:?}");

    let died = now + WELL;
    assert!(restart(&mut supervisor, SERVER, died) - died <= RESTARTS.base);
}

#[test]
fn a_process_that_served_for_a_while_restarts_at_once() {
    let mut supervisor = running();
    let mut now = at(40);
    for _ in 0..20 {
        let due = restart(&mut supervisor, SERVER, now);
        assert!(due - now <= RESTARTS.base, "{:?}", due - now);
        now = due + at(40);
    }
}

#[test]
fn a_silent_process_is_stopped_only_after_many_probes_and_much_time() {
    let mut supervisor = running();
    for probe in 0..u64::from(PROBES) {
        supervisor.handle(at(1 + probe), Input::Silent(SERVER));
    }
    assert_eq!(orders(&mut supervisor), [], "many probes in a short time");

    supervisor.handle(at(10), Input::Answered(SERVER));
    supervisor.handle(at(20), Input::Silent(SERVER));
    // The machine was suspended.
    supervisor.handle(at(10_000), Input::Silent(SERVER));
    assert_eq!(orders(&mut supervisor), [], "much time and two probes");

    for probe in 0..u64::from(PROBES) {
        supervisor.handle(at(10_001 + probe), Input::Silent(SERVER));
    }
    assert_eq!(orders(&mut supervisor), [Order::Terminate(SERVER)]);

    supervisor.handle(at(10_010) + STOP, Input::Tick);
    assert_eq!(orders(&mut supervisor), [Order::Kill(SERVER)]);

    supervisor.handle(at(20_000), Input::Tick);
    assert_eq!(orders(&mut supervisor), [], "no successor before the process has exited");
    restart(&mut supervisor, SERVER, at(20_001));
}

#[test]
fn workers_wait_for_the_server() {
    let mut supervisor = running();
    supervisor.handle(at(1), Input::Exited(SERVER));
    supervisor.handle(at(1), Input::Exited(WORKER));
    let due = supervisor.restarts_at(SERVER).unwrap();

    supervisor.handle(due.max(at(5)), Input::Tick);
    assert_eq!(orders(&mut supervisor), [Order::Start(SERVER)]);

    supervisor.handle(at(60), Input::Tick);
    assert_eq!(orders(&mut supervisor), []);

    supervisor.handle(at(90), Input::Ready(SERVER));
    assert_eq!(orders(&mut supervisor), [Order::Start(WORKER)]);
}

#[test]
fn everything_stops_in_reverse_order_and_nothing_restarts() {
    let mut supervisor = running();
    supervisor.handle(at(1), Input::Exited(3));

    supervisor.handle(at(2), Input::Stop);
    assert_eq!(orders(&mut supervisor), [Order::Terminate(WORKER)]);

    supervisor.handle(at(3), Input::Exited(WORKER));
    assert_eq!(orders(&mut supervisor), [Order::Terminate(SERVER)]);

    supervisor.handle(at(4), Input::Exited(SERVER));
    assert_eq!(orders(&mut supervisor), [Order::Terminate(BROKER)]);
    assert!(!supervisor.is_stopped());

    supervisor.handle(at(5), Input::Exited(BROKER));
    assert!(
        supervisor.is_stopped()
            && supervisor.poll().is_none()
            && supervisor.next_wakeup().is_none()
    );
}

// --- Random worlds ------------------------------------------------------------------------------

/// A SplitMix64 generator.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % sides
    }
}

/// A process of the world. Its events are delivered later.
#[derive(Clone, Copy, Default)]
struct Process {
    ready_since: Option<Duration>,
    /// Since when the process has not responded.
    hangs_since: Option<Duration>,
    is_told: bool,
}

impl Process {
    fn is_ready(&self) -> bool {
        self.ready_since.is_some()
    }
}

struct World {
    supervisor: Supervisor,
    processes: [Option<Process>; TIERS.len()],
    /// For each role, consecutive deaths of processes that had not served for long.
    early_deaths: [u32; TIERS.len()],
    now: Duration,
    is_stopping: bool,
}

impl World {
    fn new(seed: u64) -> Self {
        let supervisor = Supervisor::new(TIERS, seed);
        Self {
            supervisor,
            processes: Default::default(),
            early_deaths: Default::default(),
            now: Duration::ZERO,
            is_stopping: false,
        }
    }

    /// Carries out the supervisor's orders and checks that they are allowed.
    fn obey(&mut self) {
        while let Some(order) = self.supervisor.poll() {
            match order {
                Order::Start(role) => {
                    assert!(self.processes[role].is_none(), "a second process of role {role}");
                    assert!(!self.is_stopping, "a start after the stop");
                    let before = (0..TIERS.len()).filter(|other| TIERS[*other] < TIERS[role]);
                    let are_ready = before.into_iter().all(|other| {
                        self.processes[other].is_some_and(|process| process.is_ready())
                    });
                    assert!(are_ready, "role {role} starts before its dependencies");
                    self.processes[role] = Some(Process::default());
                }
                Order::Terminate(role) | Order::Kill(role) => {
                    let process = self.processes[role].as_mut().expect("a process to stop");
                    let hangs = process.hangs_since.is_some();
                    assert!(
                        self.is_stopping || process.is_told || hangs,
                        "a healthy process is stopped"
                    );
                    process.is_told = true;
                }
            }
        }
    }

    fn tell(&mut self, input: Input) {
        self.supervisor.handle(self.now, input);
        self.obey();
    }

    fn exit(&mut self, role: Role) {
        if let Some(process) = self.processes[role].take() {
            self.tell(Input::Exited(role));
            self.check_delay(role, process);
        }
    }

    /// Checks that the restart delay is short after a long service and grows with every early
    /// death.
    fn check_delay(&mut self, role: Role, died: Process) {
        let Some(due) = self.supervisor.restarts_at(role) else { return };
        let served = died.ready_since.map_or(Duration::ZERO, |since| self.now - since);
        // A process that was told to stop had not responded for long.
        let was_well = !died.is_told && served >= WELL;
        self.early_deaths[role] = if was_well { 0 } else { self.early_deaths[role] + 1 };

        let grown = |deaths: u32| RESTARTS.ceiling(deaths + 1);
        // The death of a healthy process counts too, as the first of a row.
        let (least, most) = match self.early_deaths[role] {
            0 => (RESTARTS.base / 2, RESTARTS.base),
            row => (grown(row - 1) / 2, grown(row)),
        };
        let delay = due - self.now;
        assert!(
            (least..=most).contains(&delay),
            "role {role}: {delay:?} after serving for {served:?}, early deaths {:?}",
            self.early_deaths
        );
    }

    /// Lets a random event happen to a random process.
    fn step(&mut self, dice: &mut Dice) {
        self.now += Duration::from_millis(dice.roll(20_000));
        if dice.roll(200) == 0 {
            self.now += at(3_600);
        }
        self.tell(Input::Tick);
        let role = usize::try_from(dice.roll(4)).unwrap();
        let Some(process) = &mut self.processes[role] else { return };
        match dice.roll(12) {
            0 => self.exit(role),
            1 if process.hangs_since.is_none() => process.hangs_since = Some(self.now),
            2 if process.is_told => self.exit(role),
            3..8 if !process.is_ready() && process.hangs_since.is_none() => {
                process.ready_since = Some(self.now);
                self.tell(Input::Ready(role));
            }
            _ if process.hangs_since.is_some() || dice.roll(10) == 0 => {
                self.tell(Input::Silent(role))
            }
            _ => self.tell(Input::Answered(role)),
        }
    }

    /// Runs without further faults: everything must come up, or stop.
    fn calm(&mut self) {
        for _ in 0..500 {
            self.now = self
                .supervisor
                .next_wakeup()
                .map_or(self.now + at(5), |wakeup| wakeup.max(self.now));
            self.tell(Input::Tick);
            for role in 0..TIERS.len() {
                match self.processes[role] {
                    Some(process) if process.is_told || process.hangs_since.is_some() => {
                        self.exit(role)
                    }
                    Some(process) if !process.is_ready() => {
                        self.processes[role] =
                            Some(Process { ready_since: Some(self.now), ..process });
                        self.tell(Input::Ready(role));
                    }
                    _ => {}
                }
            }
        }
    }
}

#[test]
fn the_rules_hold_in_every_world() {
    for seed in 0..500 {
        let (mut dice, mut world) = (Dice(seed), World::new(seed));
        world.obey();
        for _ in 0..400 {
            world.step(&mut dice);
        }
        world.calm();
        assert!(world.processes.iter().all(Option::is_some), "seed {seed}: {:?}", world.supervisor);

        world.is_stopping = true;
        world.tell(Input::Stop);
        world.calm();
        assert!(world.supervisor.is_stopped(), "seed {seed}: {:?}", world.supervisor);
        assert!(world.processes.iter().all(Option::is_none), "seed {seed}");
    }
}
