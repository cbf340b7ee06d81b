//! Keeps the secrets of this process from other processes of the same user.

/// Makes the memory and the environment of this process unreadable for other processes of the same
/// user (`/proc/<pid>/environ`, `/proc/<pid>/mem`, ptrace), and turns core dumps off.
///
/// To be called first in `main` of every binary: what a program that we start could read until
/// then, it keeps. A process with `CAP_SYS_PTRACE`, root's for example, can read us all the same.
pub fn forbid() {
    // Fails only for a value that the kernel does not know, and nobody could be told: logs are not
    // set up yet.
    _ = nix::sys::prctl::set_dumpable(false);
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_process_can_be_closed_to_others() {
        super::forbid();
        assert_eq!(nix::sys::prctl::get_dumpable(), Ok(false));
    }
}
