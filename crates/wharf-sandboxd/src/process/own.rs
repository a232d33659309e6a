//! What sandboxd makes of itself before anything else, whatever it was started with.

use rustix::process::{Resource, Rlimit, Signal};

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
