//! `/sys`: devices as the kernel tells of them, read-only, without what reaches into the host.

use std::{fs, io, path::Path};

use rustix::mount::MountFlags;
use wharf_protocol::NetworkMode;

use crate::local::{plan::Plan, sys};

/// Parts that show other processes' control groups, the firmware, or the inside of the kernel.
const MASKED: &[&str] = &[
    "fs/cgroup",
    "fs/bpf",
    "fs/pstore",
    "fs/selinux",
    "fs/fuse/connections",
    "firmware",
    "hypervisor",
    "kernel/btf",
    "kernel/config",
    "kernel/debug",
    "kernel/security",
    "kernel/tracing",
    "kernel/vmcoreinfo",
    "kernel/notes",
    "module",
    "power",
    "devices/virtual/powercap",
];

/// Mounts it in the new root, which is the working directory.
pub(super) fn build_sys(plan: &Plan) -> io::Result<()> {
    let target = Path::new("sys");
    fs::create_dir(target)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC | MountFlags::RDONLY;
    // A new one shows the interfaces of this network namespace; not everywhere may one be made.
    let is_new =
        plan.network == NetworkMode::None && rustix::mount::mount("sysfs", target, "sysfs", flags, None).is_ok();
    if !is_new {
        rustix::mount::mount_bind_recursive("/sys", target)?;
        sys::harden_mount(target, true)?;
    }
    for name in MASKED {
        let masked = target.join(name);
        if masked.is_dir() {
            rustix::mount::mount("tmpfs", &masked, "tmpfs", flags, Some(c"size=0,nr_inodes=1,mode=755"))?;
        } else if masked.exists() {
            rustix::mount::mount_bind("/dev/null", &masked)?;
        }
    }
    Ok(())
}
