//! The system calls that need `unsafe`.

use std::{
    ffi::CString,
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
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
