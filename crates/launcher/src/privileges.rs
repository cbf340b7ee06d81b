//! What a child must not have of the server's rights, however privileged the server is.
//!
//! A Landlock domain and a closed memory keep processes of one user apart, but the kernel lets a
//! process with certain capabilities pass both. The root user of a machine has them all, so a child
//! of such a server gives them up before its program runs. Open files of whoever started the server
//! are closed for the same reason: they may lead to secrets.

use std::{fs, io, os::fd::RawFd};

use rustix::{
    io::Errno,
    thread::{
        CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set,
        clear_ambient_capability_set, remove_capability_from_bounding_set, set_capabilities,
        set_no_new_privs,
    },
};

/// With these a process reads the memory of others, or that of the kernel, past all other checks.
const READS_OTHERS: CapabilitySet = CapabilitySet::SYS_PTRACE
    .union(CapabilitySet::SYS_ADMIN)
    .union(CapabilitySet::PERFMON)
    .union(CapabilitySet::BPF)
    .union(CapabilitySet::CHECKPOINT_RESTORE)
    .union(CapabilitySet::SYS_RAWIO)
    .union(CapabilitySet::SYS_MODULE);

/// Gives up the capabilities that read other processes, in every set, and the way to get them back.
///
/// # Errors
///
/// Returns an error if the kernel refuses. The program must not run then.
pub(super) fn drop_dangerous() -> io::Result<()> {
    // With this flag, a program has no capability that this process has not, whoever owns the file
    // and whatever the bounding set allows.
    set_no_new_privs(true)?;

    let held = capabilities(None)?;
    if held.effective.contains(CapabilitySet::SETPCAP) {
        for capability in READS_OTHERS.iter() {
            remove_from_bounding_set(capability)?;
        }
    }

    if (held.permitted | held.inheritable).intersects(READS_OTHERS) {
        clear_ambient_capability_set()?;
        set_capabilities(None, without_dangerous(held))?;
    }
    Ok(())
}

fn without_dangerous(held: CapabilitySets) -> CapabilitySets {
    CapabilitySets {
        effective: held.effective - READS_OTHERS,
        permitted: held.permitted - READS_OTHERS,
        inheritable: held.inheritable - READS_OTHERS,
    }
}

/// Removes a capability from the bounding set. Older kernels don't know the newer capabilities.
fn remove_from_bounding_set(capability: CapabilitySet) -> io::Result<()> {
    match capability_is_in_bounding_set(capability) {
        Ok(true) => Ok(remove_capability_from_bounding_set(capability)?),
        Ok(false) | Err(Errno::INVAL) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Closes every file but the three standard ones.
///
/// Call this before the process opens anything that it needs.
///
/// # Errors
///
/// Returns an error if the open files can't be listed.
pub(super) fn close_inherited_files() -> io::Result<()> {
    let mut open: Vec<RawFd> = Vec::new();
    for entry in fs::read_dir("/proc/self/fd")? {
        open.extend(entry?.file_name().to_str().and_then(|name| name.parse::<RawFd>().ok()));
    }

    for file in open.into_iter().filter(|file| *file > 2) {
        // The list had a file of its own, which is closed already.
        _ = nix::unistd::close(file);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_reads_other_processes_is_kept() {
        let all = CapabilitySet::all();
        let held = CapabilitySets { effective: all, permitted: all, inheritable: all };

        let kept = without_dangerous(held);
        for set in [kept.effective, kept.permitted, kept.inheritable] {
            assert!(!set.intersects(READS_OTHERS), "{set:?}");
            assert!(set.contains(CapabilitySet::DAC_OVERRIDE | CapabilitySet::SETUID), "{set:?}");
        }
    }
}
