//! The Landlock domain of a child.
//!
//! Every child gets a domain of its own. A process in a domain can't trace, and so can't read
//! memory and environment of, a process outside of it: not the server's and not those of other
//! children. A domain must restrict something. Where the kernel can, it is signals to processes
//! outside, which no child has a use for; else it is the right to move files between directories,
//! which is given back for everything. (The kernel lets `CAP_PERFMON` and `CAP_SYS_ADMIN` read all
//! the same, so this is for servers that do not run as an almighty root.) Both leave the child's
//! files and connections alone, which are limited only where the policy says so.

use std::{path::Path, sync::Once};

use fleet_policy::confinement::Confinement;
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, NetPort, Ruleset,
    RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError, Scope, path_beneath_rules,
};

/// The newest rights on files that are limited; the kernel takes of them what it knows.
const FILES: ABI = ABI::V5;
/// What programs need to run at all: libraries, how names are resolved, who is trusted.
const SYSTEM: [&str; 21] = [
    "/usr",
    "/bin",
    "/sbin",
    "/lib",
    "/lib32",
    "/lib64",
    "/proc",
    "/etc/alternatives",
    "/etc/ca-certificates",
    "/etc/gai.conf",
    "/etc/group",
    "/etc/host.conf",
    "/etc/hosts",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/etc/nsswitch.conf",
    "/etc/passwd",
    "/etc/pki",
    "/etc/resolv.conf",
    "/etc/ssl",
    "/sys/fs/cgroup",
];
/// Devices that hold nothing.
const DEVICES: [&str; 5] = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"];

/// Puts this process, and whatever it becomes and starts, into a domain of its own.
///
/// # Errors
///
/// Returns an error if the kernel refuses. What the kernel does not know is left out without an
/// error.
pub(super) fn enter(confinement: &Confinement, program: &Path) -> Result<(), RulesetError> {
    let mut ruleset = Ruleset::default();
    let scopes = kernel_can(|strict| strict.scope(Scope::Signal));
    if scopes {
        ruleset = ruleset.scope(Scope::Signal)?;
    }
    if confinement.limits_files() {
        ruleset = ruleset.handle_access(AccessFs::from_all(FILES))?;
    } else if !scopes {
        ruleset = ruleset.handle_access(AccessFs::Refer)?;
    }
    if confinement.connect_ports.is_some() {
        ruleset = ruleset.handle_access(AccessNet::ConnectTcp)?.scope(Scope::AbstractUnixSocket)?;
    }

    let mut created = ruleset.create()?;
    if confinement.limits_files() {
        created = allow_files(created, confinement, program)?;
    } else if !scopes {
        created = created.add_rules(path_beneath_rules(["/"], AccessFs::Refer))?;
    }
    for port in confinement.connect_ports.iter().flatten() {
        created = created.add_rule(NetPort::new(*port, AccessNet::ConnectTcp))?;
    }
    created.restrict_self().map(drop)
}

fn allow_files(
    ruleset: RulesetCreated,
    confinement: &Confinement,
    program: &Path,
) -> Result<RulesetCreated, RulesetError> {
    let read = AccessFs::from_read(FILES);
    let use_device: BitFlags<AccessFs> = AccessFs::ReadFile | AccessFs::WriteFile;
    let readable = confinement.read_files.iter().flatten();
    let writable = confinement.write_files.iter().flatten();

    ruleset
        .add_rules(path_beneath_rules(SYSTEM, read))?
        .add_rules(path_beneath_rules(DEVICES, use_device))?
        .add_rules(path_beneath_rules([program], read))?
        .add_rules(path_beneath_rules(readable, read))?
        .add_rules(path_beneath_rules(writable, AccessFs::from_all(FILES)))
}

/// Whether the kernel knows all that is asked for here. Restricts nothing.
fn kernel_can(ask: impl FnOnce(Ruleset) -> Result<Ruleset, RulesetError>) -> bool {
    ask(Ruleset::default().set_compatibility(CompatLevel::HardRequirement)).is_ok()
}

/// Whether children of this kernel get a domain of their own.
pub fn is_available() -> bool {
    kernel_can(|strict| strict.scope(Scope::Signal))
        || kernel_can(|strict| strict.handle_access(AccessFs::Refer))
}

/// Logs what a child will share or may use although it should not, because the kernel can't prevent
/// it.
pub fn warn_of_gaps(server: &str, confinement: &Confinement) {
    static TOLD: Once = Once::new();
    if !is_available() {
        TOLD.call_once(|| {
            tracing::warn!(
                "the kernel has no Landlock (Linux 5.19 or later): hosted servers can read each other's memory and \
                 environment, as other processes of one user can"
            );
        });
    }

    if confinement.limits_files() && !kernel_can(|strict| strict.handle_access(AccessFs::Refer)) {
        tracing::warn!(
            server,
            "read_files and write_files are not enforced: the kernel has no Landlock"
        );
    }
    if confinement.connect_ports.is_some()
        && !kernel_can(|strict| strict.handle_access(AccessNet::ConnectTcp))
    {
        tracing::warn!(
            server,
            "connect_ports is not enforced: it takes Landlock of Linux 6.7 or later"
        );
    }
}
