//! Protects the secrets of this process from other processes of the same user.

/// Makes this process's memory and environment unreadable for other processes of the same user
/// (`/proc/<pid>/environ`, `/proc/<pid>/mem`, ptrace), and disables core dumps.
///
/// Call this first in `main` of every binary: a program that we start keeps whatever it could read
/// before. A process with `CAP_SYS_PTRACE`, such as one of root, can still read us.
pub fn forbid() {
    // This fails only for a value that the kernel does not know, and logging is not set up yet.
    _ = nix::sys::prctl::set_dumpable(false);
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_process_can_be_made_unreadable() {
        super::forbid();
        assert_eq!(nix::sys::prctl::get_dumpable(), Ok(false));
    }
}
