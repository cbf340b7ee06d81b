//! The Landlock domain of a child.
//!
//! Every child gets a domain of its own. A process in a domain can't trace processes outside it,
//! and so can't read the memory or environment of the server or of other children. A domain must
//! restrict something. If the kernel supports it, the domain blocks signals to processes outside,
//! which no child needs to send; otherwise it handles the right to move files between directories
//! and grants that right everywhere. Neither affects the child's files and connections, which are
//! limited only if policy says so. The kernel lets processes with some capabilities read other
//! processes regardless, so a child gives those up first (`privileges`).

use std::{path::Path, sync::Once};

use fleet_policy::confinement::Confinement;
use landlock::{
    ABI, Access, AccessFs, AccessNet, BitFlags, CompatLevel, Compatible, NetPort, Ruleset,
    RulesetAttr, RulesetCreated, RulesetCreatedAttr, RulesetError, Scope, path_beneath_rules,
};

/// The newest file access rights to restrict; the kernel ignores those that it does not know.
const FILES: ABI = ABI::V5;
/// What every program needs in order to run: libraries, name resolution and trusted certificates.
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
/// Devices that neither store nor reveal data.
const DEVICES: [&str; 5] = ["/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom"];

/// Puts this process, and whatever it executes or starts, into a domain of its own.
///
/// # Errors
///
/// Returns an error if the kernel refuses. Restrictions that the kernel does not support are
/// skipped without an error.
pub(super) fn enter(confinement: &Confinement, program: &Path) -> Result<(), RulesetError> {
    let mut ruleset = Ruleset::default();
    let can_scope = kernel_can(|strict| strict.scope(Scope::Signal));
    if can_scope {
        ruleset = ruleset.scope(Scope::Signal)?;
    }
    if confinement.limits_files() {
        ruleset = ruleset.handle_access(AccessFs::from_all(FILES))?;
    } else if !can_scope {
        ruleset = ruleset.handle_access(AccessFs::Refer)?;
    }
    if confinement.connect_ports.is_some() {
        ruleset = ruleset.handle_access(AccessNet::ConnectTcp)?.scope(Scope::AbstractUnixSocket)?;
    }

    let mut created = ruleset.create()?;
    if confinement.limits_files() {
        created = allow_files(created, confinement, program)?;
    } else if !can_scope {
        created = created.add_rules(path_beneath_rules(["/"], AccessFs::Refer))?;
    }

    for port in confinement.connect_ports.iter().flatten() {
        created = created.add_rule(NetPort::new(*port, AccessNet::ConnectTcp))?;
    }

    created.restrict_self().map(drop)
}

/// Grants access to the system files that every program needs and to those that policy lists.
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

/// Returns whether the kernel supports everything that `restrict` asks for. Restricts nothing.
fn kernel_can(restrict: impl FnOnce(Ruleset) -> Result<Ruleset, RulesetError>) -> bool {
    restrict(Ruleset::default().set_compatibility(CompatLevel::HardRequirement)).is_ok()
}

/// What the kernel can enforce.
#[derive(Debug, Clone, Copy)]
struct Support {
    /// A domain for each child.
    domains: bool,
    /// Limits on files.
    files: bool,
    /// Limits on outgoing connections.
    connections: bool,
}

impl Support {
    fn of_kernel() -> Self {
        let files = kernel_can(|strict| strict.handle_access(AccessFs::Refer));
        let domains = files || kernel_can(|strict| strict.scope(Scope::Signal));
        let connections = kernel_can(|strict| strict.handle_access(AccessNet::ConnectTcp));
        Self { domains, files, connections }
    }

    fn gaps(self, confinement: &Confinement) -> Vec<&'static str> {
        let mut gaps = Vec::new();
        if !self.domains {
            gaps.push(INSEPARABLE);
        }
        if confinement.limits_files() && !self.files {
            gaps.push(
                "read_files and write_files are not enforced: the kernel has no Landlock (needs Linux 5.19 or later)",
            );
        }
        if confinement.connect_ports.is_some() && !self.connections {
            gaps.push(
                "connect_ports is not enforced: the kernel's Landlock does not support it (needs Linux 6.7 or later)",
            );
        }
        gaps
    }
}

/// What follows if the kernel has no domains.
const INSEPARABLE: &str = "the kernel has no Landlock (needs Linux 5.19 or later): hosted servers can read each other's \
                           memory and environment, like any processes of one user";

/// Returns whether this kernel can put each child into a domain of its own.
pub fn is_available() -> bool {
    Support::of_kernel().domains
}

/// Logs, once for this process, if hosted servers can't be separated from each other.
pub fn warn_if_inseparable() {
    static WARNED: Once = Once::new();
    if !is_available() {
        WARNED.call_once(|| tracing::warn!("{INSEPARABLE}"));
    }
}

/// Logs which restrictions on a child are not enforced because the kernel does not support them, and
/// returns them in words for people.
pub fn warn_of_gaps(server: &str, confinement: &Confinement) -> Vec<&'static str> {
    warn_if_inseparable();
    let gaps = Support::of_kernel().gaps(confinement);
    for gap in gaps.iter().filter(|gap| **gap != INSEPARABLE) {
        tracing::warn!(server, "{gap}");
    }
    gaps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_restriction_that_the_kernel_does_not_know_is_named() {
        let none = Support { domains: false, files: false, connections: false };
        let all = Support { domains: true, files: true, connections: true };
        let open = Confinement::default();
        let strict = Confinement {
            read_files: Some(Vec::new()),
            connect_ports: Some(Vec::new()),
            ..Confinement::default()
        };
        assert_eq!(none.gaps(&open), [INSEPARABLE]);
        let gaps = none.gaps(&strict);
        let named = ["no Landlock", "read_files", "connect_ports"];
        assert!(gaps.len() == 3 && gaps.iter().zip(named).all(|(gap, named)| gap.contains(named)));
        assert!(all.gaps(&strict).is_empty());
    }
}
