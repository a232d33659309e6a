//! The system calls that need `unsafe`.

use std::{
    ffi::CString,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
    path::Path,
};

use rustix::{process::Pid, thread::UnshareFlags};

/// What `fork` gave: we are the child, or the child's number.
pub(super) enum Forked {
    Child,
    Parent(Pid),
}

/// Forks this process.
///
/// # Errors
///
/// The kernel's; also when this process has more than one thread, since a child of that must not go on.
#[allow(unsafe_code, reason = "fork")]
pub(super) fn fork() -> io::Result<Forked> {
    let threads = std::fs::read_dir("/proc/self/task").map_or(1, |tasks| tasks.count());
    if threads != 1 {
        return Err(io::Error::other("a process with threads cannot fork and go on"));
    }
    // SAFETY: there is one thread, so the child has all locks in a known state.
    match unsafe { libc::fork() } {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Forked::Child),
        pid => Pid::from_raw(pid).map(Forked::Parent).ok_or_else(|| io::Error::other("fork gave no process id")),
    }
}

/// Has this process, a child of `parent`, killed once that one has ended: whoever would end it may not come to it.
pub(super) fn end_with_parent(parent: Pid) -> io::Result<()> {
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    // It may have ended before.
    match rustix::process::getppid() {
        Some(now) if now == parent => Ok(()),
        _ => Err(io::Error::other("the launcher has ended")),
    }
}

/// Leaves the namespaces named by `flags` for new ones.
#[allow(unsafe_code, reason = "new namespaces")]
pub(super) fn unshare(flags: UnshareFlags) -> io::Result<()> {
    // SAFETY: no file table is unshared, so every descriptor stays valid.
    match unsafe { rustix::thread::unshare_unsafe(flags) } {
        // user_namespaces(7): not about a disk.
        Err(rustix::io::Errno::NOSPC) => {
            Err(io::Error::other("a limit on namespaces is reached: see /proc/sys/user/max_*_namespaces"))
        }
        unshared => Ok(unshared?),
    }
}

const MOUNT_ATTR_RDONLY: u64 = 1;
const MOUNT_ATTR_NOSUID: u64 = 2;
const MOUNT_ATTR_NODEV: u64 = 4;
const MOUNT_ATTR_IDMAP: u64 = 0x0010_0000;
const AT_RECURSIVE: libc::c_uint = 0x8000;
const AT_EMPTY_PATH: libc::c_uint = 0x1000;

/// `struct mount_attr` of linux/mount.h.
#[repr(C)]
#[derive(Default)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns: u64,
}

#[allow(unsafe_code, reason = "a system call without a wrapper")]
fn mount_setattr(at: BorrowedFd<'_>, path: &Path, flags: libc::c_uint, attributes: &MountAttr) -> io::Result<()> {
    use std::os::unix::ffi::OsStrExt;
    let path = CString::new(path.as_os_str().as_bytes())?;
    // SAFETY: the path ends in NUL and the structure has the size that is given; both outlive the call.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            at.as_raw_fd(),
            path.as_ptr(),
            flags,
            std::ptr::from_ref(attributes),
            size_of::<MountAttr>(),
        )
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Makes a mount and all below it unable to carry set-user-id programs and devices, and read-only if asked.
pub(super) fn harden_mount(path: &Path, read_only: bool) -> io::Result<()> {
    let set = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | if read_only { MOUNT_ATTR_RDONLY } else { 0 };
    mount_setattr(rustix::fs::CWD, path, AT_RECURSIVE, &MountAttr { set, ..MountAttr::default() })
}

/// The same for a detached mount, or what a descriptor names.
pub(super) fn harden_tree(mount: &OwnedFd, read_only: bool) -> io::Result<()> {
    let set = MOUNT_ATTR_NOSUID | MOUNT_ATTR_NODEV | if read_only { MOUNT_ATTR_RDONLY } else { 0 };
    let flags = AT_RECURSIVE | AT_EMPTY_PATH;
    mount_setattr(mount.as_fd(), Path::new(""), flags, &MountAttr { set, ..MountAttr::default() })
}

/// Makes a detached mount show files with the ids of the user namespace.
pub(super) fn map_ids(mount: &OwnedFd, user_namespace: &OwnedFd) -> io::Result<()> {
    let userns = user_namespace.as_raw_fd().unsigned_abs().into();
    let attributes = MountAttr { set: MOUNT_ATTR_IDMAP, userns, ..MountAttr::default() };
    mount_setattr(mount.as_fd(), Path::new(""), AT_EMPTY_PATH, &attributes)
}

/// Brings the loopback interface of this network namespace up.
#[allow(unsafe_code, reason = "an ioctl on an interface")]
pub(super) fn loopback_up() -> io::Result<()> {
    let socket = rustix::net::socket(rustix::net::AddressFamily::INET, rustix::net::SocketType::DGRAM, None)?;
    // SAFETY: a structure of integers and bytes is valid as zeros.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = from.cast_signed();
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: the request is an `ifreq` with a name that ends in NUL, as SIOCSIFFLAGS takes it.
    let done = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &request) };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Closes every descriptor from `first` on.
#[allow(unsafe_code, reason = "closes descriptors by number")]
pub(super) fn close_from(first: RawFd) -> io::Result<()> {
    // SAFETY: called before anything is opened: no value of ours owns one of these numbers.
    let done = unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) };
    if done == 0 {
        return Ok(());
    }
    // A kernel or a filter without the call.
    for number in open_from(first)? {
        // SAFETY: as above; that of the directory itself is closed already, and closing it again does nothing.
        unsafe { libc::close(number) };
    }
    Ok(())
}

/// Closes every descriptor from `first` on when another program is executed.
#[allow(unsafe_code, reason = "names descriptors by number")]
pub(super) fn close_on_exec_from(first: RawFd) -> io::Result<()> {
    // SAFETY: nothing is closed, only marked.
    let done = unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC) };
    if done == 0 {
        return Ok(());
    }
    for number in open_from(first)? {
        // SAFETY: the kernel checks the number.
        unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) };
    }
    Ok(())
}

fn open_from(first: RawFd) -> io::Result<Vec<RawFd>> {
    let entries = std::fs::read_dir("/proc/self/fd")?;
    let numbers = entries.flatten().filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    Ok(numbers.filter(|number| *number >= first).collect())
}

/// Gives every signal its default action, and blocks none.
#[allow(unsafe_code, reason = "actions of signals")]
pub(super) fn reset_signals() -> io::Result<()> {
    const LAST_SIGNAL: libc::c_int = 64;
    // The kernel's own structure, and call: libc keeps two of the signals for itself.
    let default = [0_u64; 4];
    for signal in 1..=LAST_SIGNAL {
        // SAFETY: zeros stand for the default action without flags; it refers to no code of ours. The two signals that take none
        // are refused, which changes nothing.
        unsafe {
            let unwanted = std::ptr::null_mut::<u64>();
            libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), unwanted, size_of::<u64>());
        }
    }
    // SAFETY: an empty set is valid, and outlives the call; there is one thread.
    let done = unsafe {
        let mut none = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut())
    };
    if done == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// The scheduling of a fresh process. What only root may take back stays for others: it can but be lower.
#[allow(unsafe_code, reason = "system calls without a wrapper")]
pub(super) fn reset_scheduling() -> io::Result<()> {
    const IOPRIO_WHO_PROCESS: libc::c_int = 1;
    // Not every caller may raise it again.
    let _ = rustix::process::setpriority_process(None, 0);
    // SAFETY: plain numbers, and a structure that outlives the call.
    unsafe {
        let parameters: libc::sched_param = std::mem::zeroed();
        libc::sched_setscheduler(0, libc::SCHED_OTHER, &raw const parameters);
        libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, 0);
        libc::prctl(libc::PR_SET_THP_DISABLE, 0, 0, 0, 0);
    }
    // Higher than ours only if somebody wanted that; lower would put the sandbox before the machine's own programs.
    match std::fs::write("/proc/self/oom_score_adj", "0") {
        Err(error) if error.kind() != io::ErrorKind::PermissionDenied && error.kind() != io::ErrorKind::NotFound => {
            Err(error)
        }
        _ => Ok(()),
    }
}

/// Joins a session keyring of its own: the caller's may hold tickets and keys.
#[allow(unsafe_code, reason = "a system call without a wrapper")]
pub(super) fn leave_keyring() -> io::Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: without a name the call takes no pointer.
    let joined = unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, 0) };
    if joined == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The personality of a fresh process: with addresses at random, and as this machine is.
#[allow(unsafe_code, reason = "a system call without a wrapper")]
pub(super) fn reset_personality() -> io::Result<()> {
    // SAFETY: a plain number.
    if unsafe { libc::personality(0) } == -1 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Does something with the right to mount and no other: as a user to whom no file belongs.
pub(super) fn as_nobody<T>(work: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
    use rustix::thread::{CapabilitySet, capabilities, set_capabilities};
    const NOBODY: u32 = 65_534;
    let before = capabilities(None)?;
    let groups = rustix::process::getgroups()?;
    rustix::thread::set_thread_groups(&[])?;
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    set_file_ids(NOBODY, NOBODY)?;
    let few = rustix::thread::CapabilitySets { effective: CapabilitySet::SYS_ADMIN, ..before };
    let done = set_capabilities(None, few).map_err(io::Error::from).and_then(|()| work());
    // First the capabilities: they are needed for the rest.
    set_capabilities(None, before)?;
    set_file_ids(uid, gid)?;
    set_capabilities(None, before)?;
    rustix::thread::set_thread_groups(&groups)?;
    done
}

/// Sets as whom this process opens files.
#[allow(unsafe_code, reason = "system calls without a wrapper")]
fn set_file_ids(uid: u32, gid: u32) -> io::Result<()> {
    // SAFETY: plain numbers. Each tells the value before; asked for one that nobody has, it changes nothing.
    let done = unsafe {
        libc::setfsgid(gid);
        libc::setfsuid(uid);
        (libc::setfsuid(u32::MAX), libc::setfsgid(u32::MAX))
    };
    if done == (uid.cast_signed(), gid.cast_signed()) { Ok(()) } else { Err(io::Error::other("file ids were refused")) }
}
