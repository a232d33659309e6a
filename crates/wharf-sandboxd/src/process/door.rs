//! The door through which a child leaves: what it has of sandboxd is stated here, and nothing else passes.
//!
//! | what | a child has |
//! |---|---|
//! | descriptors | 0, 1, 2, its user's own, and those that its [`Spawn`](super::spawn::Spawn) names |
//! | signals | all as the system has them, none ignored or blocked |
//! | session, terminal | a session of its own, on the terminal that its `Spawn` names, or on none |
//! | directory, environment | those of its `Spawn`, and `LANG` |
//! | umask | 022 |
//! | priority | of an ordinary process: niceness 0 where we may raise it, no real-time policy, no class of I/O |
//! | soft limits | the hard ones; but 65536 descriptors, 8 MiB of stack and no core files, if the hard ones are not lower |
//! | memory score | 300 above ours: the kernel kills it before us |
//! | user | that of its `Spawn` |
//!
//! Passed on as they are, since they are walls or the machine's: hard limits, capabilities of root, `no_new_privs`, filters
//! of system calls, namespaces, control groups, processors.

use std::{
    io,
    os::fd::{AsFd, BorrowedFd, RawFd},
    os::unix::process::CommandExt,
};

use rustix::{
    fs::{Mode, OFlags},
    io::FdFlags,
    process::{Resource, Rlimit},
};

use super::{
    mark::{Keeper, Mark},
    memory,
    users::User,
};

pub(super) const UMASK: Mode = Mode::from_raw_mode(0o022);
const DESCRIPTORS: u64 = 65_536;
const STACK_BYTES: u64 = 8 << 20;
const RESOURCES: [Resource; 16] = [
    Resource::Cpu,
    Resource::Fsize,
    Resource::Data,
    Resource::Stack,
    Resource::Core,
    Resource::Rss,
    Resource::Nproc,
    Resource::Nofile,
    Resource::Memlock,
    Resource::As,
    Resource::Locks,
    Resource::Sigpending,
    Resource::Msgqueue,
    Resource::Nice,
    Resource::Rtprio,
    Resource::Rttime,
];

/// What one child takes along.
#[derive(Debug)]
pub(super) struct Passing<'a> {
    pub(super) mark: Mark,
    /// Whether standard input is a terminal that becomes the controlling one.
    pub(super) terminal: bool,
    /// Descriptors that stay open beside the standard ones.
    pub(super) kept: Vec<RawFd>,
    pub(super) user: &'a User,
}

/// Ids as numbers, made ready before the fork: nothing may be allocated after it.
struct Ids {
    uid: rustix::process::Uid,
    gid: rustix::process::Gid,
    groups: Vec<rustix::process::Gid>,
}

impl Ids {
    /// `None` if the child stays what we are.
    fn of(user: &User) -> Option<Self> {
        let changes = rustix::process::geteuid().is_root() && user.uid != 0;
        changes.then(|| Self {
            uid: rustix::process::Uid::from_raw(user.uid),
            gid: rustix::process::Gid::from_raw(user.gid),
            groups: user.groups.iter().map(|gid| rustix::process::Gid::from_raw(*gid)).collect(),
        })
    }
}

/// Makes `command` go through the door.
#[allow(unsafe_code, reason = "work between fork and exec")]
pub(super) fn prepare(command: &mut std::process::Command, passing: Passing<'_>) {
    let Passing { mark, terminal, kept, user } = passing;
    let identity = Ids::of(user);
    let score = memory::score_of_children().to_string();
    let keeper = Keeper::new();
    let go_through = move || -> io::Result<()> {
        rustix::process::setsid()?;
        reset_signals();
        rustix::process::umask(UMASK);
        reset_priority();
        for resource in RESOURCES {
            if resource != mark.resource() {
                reset_limit(resource);
            }
        }
        // Where the kernel keeps no such limit, a tree is found by its parents and sessions alone.
        let _ = mark.mark_this_process();
        if terminal {
            rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
        }
        if let Ok(file) = rustix::fs::open(c"/proc/self/oom_score_adj", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
        {
            // Not every place allows it, and nothing depends on it.
            let _ = rustix::io::write(file, score.as_bytes());
        }
        close_on_exec();
        for file in &kept {
            // SAFETY: the parent holds these files open until the spawn has returned.
            let file = unsafe { BorrowedFd::borrow_raw(*file) };
            rustix::io::fcntl_setfd(file.as_fd(), FdFlags::empty())?;
        }
        // Before the user changes: where new privileges are allowed, only root may. What becomes of a tree where nobody
        // may is told in `mark`.
        let _ = keeper.watch_this_process();
        if let Some(ids) = &identity {
            give_streams(ids.uid);
            rustix::thread::set_thread_groups(&ids.groups)?;
            rustix::thread::set_thread_res_gid(ids.gid, ids.gid, ids.gid)?;
            rustix::thread::set_thread_res_uid(ids.uid, ids.uid, ids.uid)?;
        }
        Ok(())
    };
    // SAFETY: only system calls are made, on values made ready before the fork; nothing allocates or takes a lock.
    unsafe { command.pre_exec(go_through) };
}

/// Lets the user open `/dev/stdin` and the like again: pipes and a terminal belong to whom made them, and `/dev/null` to all.
fn give_streams(uid: rustix::process::Uid) {
    for stream in [rustix::stdio::stdin(), rustix::stdio::stdout(), rustix::stdio::stderr()] {
        let is_pipe = rustix::fs::fstat(stream)
            .is_ok_and(|found| rustix::fs::FileType::from_raw_mode(found.st_mode) == rustix::fs::FileType::Fifo);
        if is_pipe || rustix::termios::isatty(stream) {
            // Without it the program still has what it needs.
            let _ = rustix::fs::fchown(stream, Some(uid), None);
        }
    }
}

/// No signal is ignored or blocked. The kernel's own call is made: libc keeps two of the signals to itself.
#[allow(unsafe_code, reason = "a system call without a safe wrapper")]
fn reset_signals() {
    // SIG_DFL, no flags, nothing blocked: zeros in whatever order an architecture has them.
    let default = [0_u64; 8];
    for signal in 1..=64 {
        // SAFETY: the kernel reads a `struct sigaction` of at most 64 bytes, and stores no old one. That SIGKILL and
        // SIGSTOP cannot be set is as it should be.
        unsafe { libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), std::ptr::null::<u64>(), 8) };
    }
    unblock_signals();
}

/// No signal is blocked in this thread.
#[allow(unsafe_code, reason = "a system call without a safe wrapper")]
pub(super) fn unblock_signals() {
    let none = 0_u64;
    // SAFETY: the kernel reads the 8 bytes of a signal set, and stores no old one.
    unsafe {
        libc::syscall(
            libc::SYS_rt_sigprocmask,
            libc::SIG_SETMASK,
            std::ptr::from_ref(&none),
            std::ptr::null::<u64>(),
            8,
        )
    };
}

/// An ordinary process's priority, as far as we may raise it.
#[allow(unsafe_code, reason = "system calls without a safe wrapper")]
fn reset_priority() {
    let parameters = libc::sched_param { sched_priority: 0 };
    // SAFETY: the structure is as the kernel reads it; the other call takes numbers alone. They are the raw calls:
    // some libcs refuse the wrapper.
    unsafe {
        libc::syscall(libc::SYS_sched_setscheduler, 0, libc::SCHED_OTHER, std::ptr::from_ref(&parameters));
        const THIS_PROCESS: libc::c_int = 1;
        libc::syscall(libc::SYS_ioprio_set, THIS_PROCESS, 0, 0);
    }
    let _ = rustix::process::setpriority_process(None, 0);
}

fn reset_limit(resource: Resource) {
    let maximum = rustix::process::getrlimit(resource).maximum;
    let at_most = |most: u64| Some(maximum.unwrap_or(u64::MAX).min(most));
    let current = match resource {
        Resource::Core => Some(0),
        Resource::Nofile => at_most(DESCRIPTORS),
        Resource::Stack => at_most(STACK_BYTES),
        _ => maximum,
    };
    // A soft limit at or below the hard one is never refused.
    let _ = rustix::process::setrlimit(resource, Rlimit { current, maximum });
}

/// Closes all descriptors but the standard ones once another program is executed. Those that we open ourselves are closed
/// so anyway; these are the ones that we were started with.
#[allow(unsafe_code, reason = "a system call without a safe wrapper")]
pub(super) fn close_on_exec() {
    // SAFETY: no descriptor is closed, only its flag is set.
    let done =
        unsafe { libc::syscall(libc::SYS_close_range, 3_u32, u32::MAX, libc::CLOSE_RANGE_CLOEXEC as libc::c_uint) };
    if done == 0 {
        return;
    }
    // Before Linux 5.11.
    let most = rustix::process::getrlimit(Resource::Nofile).current.unwrap_or(DESCRIPTORS).min(1 << 20);
    for number in 3..most as RawFd {
        // SAFETY: a number that is no descriptor is refused; on others only the flag is set.
        unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
}
