//! `/proc`: the sandbox's own processes, without what shows or changes the host.

use std::{fs, io, path::Path};

use rustix::mount::MountFlags;

use super::{root::bind, walls::Own};

/// Parts of `/proc` that show or change the host.
const MASKED: &[&str] = &["kcore", "keys", "latency_stats", "timer_list", "sched_debug", "kmsg", "sysrq-trigger"];
const READ_ONLY: &[&str] = &["sys", "irq", "bus", "fs", "acpi", "scsi", "asound"];

pub(super) fn build_proc(root: &Path, own: &Own) -> io::Result<()> {
    let proc = root.join("proc");
    fs::create_dir(&proc)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    if own.processes {
        rustix::mount::mount("proc", &proc, "proc", flags, None)?;
    } else {
        rustix::mount::mount_bind_recursive("/proc", &proc)?;
    }
    for name in READ_ONLY {
        let target = proc.join(name);
        if target.exists() {
            bind(&target, &target, true)?;
        }
    }
    for name in MASKED {
        let target = proc.join(name);
        if target.exists() {
            rustix::mount::mount_bind("/dev/null", &target)?;
        }
    }
    Ok(())
}
