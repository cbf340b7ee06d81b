//! The oracle for fair share (I8): while slots free up, a tenant with a job that could start is
//! passed over by at most two rounds of the other tenants.

use super::*;

/// The tenants, with their weights. The first one submits most of the jobs.
const TENANTS: [Tenant; 3] =
    [Tenant { number: 7, weight: 2 }, Tenant { number: 8, weight: 1 }, Tenant::UNNAMED];

/// The tenant of the job with this id.
pub(crate) fn tenant_of(id: u64) -> Tenant {
    match id % 8 {
        0 => TENANTS[2],
        1 => TENANTS[1],
        _ => TENANTS[0],
    }
}

impl<E: Subject> World<E> {
    /// Checks that the start of a job does not pass over a tenant once too often.
    pub(crate) fn check_fair_share(&mut self, worker: usize, started: Token) {
        let tenant = tenant_of(self.job(started).id).number;
        self.workers[worker].passed.remove(&tenant);

        let waiting = self.waiting_tenants(worker);
        let is_passed = |other: &Tenant| other.number != tenant && waiting.contains(&other.number);
        for other in TENANTS.into_iter().filter(is_passed) {
            let all: u32 = TENANTS.iter().map(|tenant| tenant.weight).sum();
            let round = all - other.weight;
            let starts = self.workers[worker].passed.entry(other.number).or_default();
            *starts += 1;
            ensure!(
                *starts <= 2 * round,
                "I8: tenant {} could start a job, and {starts} of others have started",
                other.number
            );
        }
    }

    /// Stops counting for tenants without a job that could start. Their next job starts a new count.
    pub(crate) fn forget_served_tenants(&mut self, worker: usize) {
        if !self.workers[worker].passed.is_empty() {
            let waiting = self.waiting_tenants(worker);
            self.workers[worker].passed.retain(|tenant, _| waiting.contains(tenant));
        }
    }

    /// The tenants that have a job which waits for a slot and their turn, and for nothing else.
    fn waiting_tenants(&self, worker: usize) -> BTreeSet<u64> {
        let startable = self.workers[worker].engine.startable();
        let has_room = |job: &&Job| {
            let mut limits = job.limits.iter().flatten();
            limits.all(|limit| self.running_under(worker, limit.group) < limit.max as usize)
        };
        let jobs = startable.into_iter().filter_map(|token| self.known_job(token));
        jobs.filter(has_room).map(|job| tenant_of(job.id).number).collect()
    }
}
