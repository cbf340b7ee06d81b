//! Takes rights from a child that it must not have, however privileged the server is.
//!
//! Landlock domains and undumpable processes keep processes of one user apart, but certain
//! capabilities override both. A server that runs as root has these capabilities, so a child gives
//! them up before its program runs. Inherited files are closed for the same reason: they may give
//! access to secrets.

use std::{fs, io, os::fd::RawFd};

use rustix::{
    io::Errno,
    thread::{
        CapabilitySet, CapabilitySets, capabilities, capability_is_in_bounding_set,
        clear_ambient_capability_set, remove_capability_from_bounding_set, set_capabilities,
        set_no_new_privs,
    },
};

/// Capabilities that let a process read the memory of others, or that of the kernel.
const READS_OTHERS: CapabilitySet = CapabilitySet::SYS_PTRACE
    .union(CapabilitySet::SYS_ADMIN)
    .union(CapabilitySet::PERFMON)
    .union(CapabilitySet::BPF)
    .union(CapabilitySet::CHECKPOINT_RESTORE)
    .union(CapabilitySet::SYS_RAWIO)
    .union(CapabilitySet::SYS_MODULE);

/// Gives up the capabilities to read other processes, in every set, and the ways to regain them.
///
/// # Errors
///
/// Returns an error if the kernel refuses. The program must not run then.
pub(super) fn drop_dangerous() -> io::Result<()> {
    // With this flag, executing a program never adds capabilities, whoever owns its file.
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

/// Closes all files except the three standard ones.
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
        // Fails for the directory that was listed, which is closed already.
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
