//! What sandboxd makes of itself before anything else, whatever it was started with.

use std::sync::OnceLock;

use rustix::{
    process::{Resource, Rlimit, Signal},
    thread::{CapabilitySet, CapabilitySets},
};

use super::{door, memory};

/// Gives this process what it needs to do its work: no blocked signals, all the descriptors that it may have, the usual
/// umask, and a place late in the kernel's list of whom to kill for memory.
///
/// Must be called before any thread is started.
pub fn settle() {
    door::unblock_signals();
    hear_of_children();
    rustix::process::umask(door::UMASK);
    let files = rustix::process::getrlimit(Resource::Nofile);
    // A soft limit up to the hard one is never refused.
    let _ = rustix::process::setrlimit(Resource::Nofile, Rlimit { current: files.maximum, maximum: files.maximum });
    door::close_on_exec();
    memory::leave_room_above_us();
    set_aside_what_counts();
}

/// What we were given as ambient capabilities: to look into directories and processes that even root may not look into.
static COUNTING: OnceLock<CapabilitySet> = OnceLock::new();

/// Keeps what we were given to count with from all that we do but [`Counting`], and from what we start.
fn set_aside_what_counts() {
    let given = [CapabilitySet::DAC_READ_SEARCH, CapabilitySet::SYS_PTRACE];
    let is_given = |capability: &CapabilitySet| rustix::thread::capability_is_in_ambient_set(*capability) == Ok(true);
    let given = given.into_iter().filter(is_given).fold(CapabilitySet::empty(), CapabilitySet::union);
    if given.is_empty() {
        return;
    }
    let set_aside = || {
        rustix::thread::clear_ambient_capability_set()?;
        let CapabilitySets { effective, permitted, inheritable } = rustix::thread::capabilities(None)?;
        let sets = CapabilitySets { effective: effective - given, permitted, inheritable: inheritable - given };
        rustix::thread::set_capabilities(None, sets)
    };
    // A process may always give up what it has.
    if set_aside().is_ok() {
        let _ = COUNTING.set(given);
    }
}

/// While it is there, this thread sees what there is to be counted, whoever keeps it from others.
#[derive(Debug)]
pub struct Counting(());

impl Counting {
    pub fn begin() -> Self {
        // Without, what may be seen is counted.
        let _ = Self::set(|effective, given| effective | given);
        Self(())
    }

    fn set(change: impl FnOnce(CapabilitySet, CapabilitySet) -> CapabilitySet) -> rustix::io::Result<()> {
        let Some(given) = COUNTING.get() else { return Ok(()) };
        let sets = rustix::thread::capabilities(None)?;
        rustix::thread::set_capabilities(
            None,
            CapabilitySets { effective: change(sets.effective, *given & sets.permitted), ..sets },
        )
    }
}

impl Drop for Counting {
    fn drop(&mut self) {
        // A process may always give up what it has.
        let _ = Self::set(|effective, given| effective - given);
    }
}

/// Ignored SIGCHLD would take every child's end from us.
#[allow(unsafe_code, reason = "a signal's disposition")]
fn hear_of_children() {
    // SAFETY: there is one thread, and no handler is set.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_DFL) };
}

/// Whether this signal is ignored, as a shell does for what it starts with `&`.
pub fn is_ignored(signal: Signal) -> bool {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let set = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let set = set.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).unwrap_or(0);
    set >> (signal.as_raw() - 1) & 1 == 1
}

/// Takes a secret out of our environment: also where `/proc/PID/environ` shows what we were started with.
///
/// Must be called before any thread is started.
#[allow(unsafe_code, reason = "the block of variables that the kernel shows")]
pub fn take_secret(name: &str) -> Option<String> {
    let value = std::env::var(name).ok();
    let prefix = [name.as_bytes(), b"="].concat();
    unsafe extern "C" {
        static environ: *const *mut libc::c_char;
    }
    // SAFETY: there is one thread, so nobody changes the array or its texts; it ends in a null pointer, each text in NUL,
    // and a text's bytes up to there may be written.
    unsafe {
        let mut at = environ;
        while !at.is_null() && !(*at).is_null() {
            let text = *at;
            let length = libc::strlen(text);
            let bytes = std::slice::from_raw_parts_mut(text.cast::<u8>(), length);
            if bytes.starts_with(&prefix) {
                // `NAME=` stays, so that what looks for the variable finds it until it is removed below.
                bytes[prefix.len()..].fill(0);
            }
            at = at.add(1);
        }
        std::env::remove_var(name);
    }
    value
}
