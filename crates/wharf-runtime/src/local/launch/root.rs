//! The new root: what of the host is shown in it, and what the sandbox has for itself.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{DirBuilderExt, PermissionsExt, chown, symlink},
    path::Path,
};

use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};

use super::{
    DISK, HOUSE, MEMORY_EVENTS,
    accounts::{make_homes, show_user},
    below::{Below, bind_at},
    dev::build_dev,
    ids::{Ids, Others, Owner},
    mounts::{open_source, show_mount},
    proc::build_proc,
    sysfs::build_sys,
    system::{OWN, System, build_system, show_packages},
    walls::{Failure, Own, Part},
};
use crate::local::{
    plan::{MOUNT_AT, Plan},
    sys,
};

/// Puts a new root together and makes it ours. Tells how the system in it is.
pub(super) fn build_root(plan: &Plan, ids: &Ids, own: &Own) -> Result<System, Failure> {
    let part = "private root";
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).part(part)?;
    let root = plan.directory.join("root");
    fs::create_dir_all(&root).part(part)?;
    tmpfs(&root, ids, 0o755, 16 << 20, 4096).part(part)?;
    rustix::process::chdir(&root).part(part)?;
    let system = Below::new(&root, Owner { uid: ids.root, gid: ids.root }).part(part)?;
    let shown = build_system(plan, ids, &system).part("system")?;
    let is_writable = matches!(shown, System::Writable { .. });
    build_private(&root, plan, ids, !is_writable).part(part)?;
    for name in ["tmp", "lib", "log", "cache"] {
        let target = root.join("var").join(name);
        // From the sandbox's life before; a link of then is not followed.
        if fs::symlink_metadata(&target).is_err() {
            fs::create_dir(&target).part(part)?;
            let mode = if name == "tmp" { 0o1777 } else { 0o755 };
            fs::set_permissions(&target, fs::Permissions::from_mode(mode)).part(part)?;
            chown(&target, Some(ids.root), Some(ids.root)).part(part)?;
        }
    }
    if fs::symlink_metadata(root.join("var/run")).is_err() {
        symlink("/run", root.join("var/run")).part(part)?;
    }
    show_packages(plan, ids, &system, is_writable).part("packages of the host")?;
    build_sys(plan).part("/sys")?;
    build_proc(&root, own).part("/proc")?;
    build_house(plan, &root, own.memory_events.as_deref(), is_writable)?;
    let below = Below::new(&root, ids.user).part(part)?;
    show_user(&plan.user, &below, ids.user, &plan.directory).part("user")?;
    make_homes(ids, &below).part("homes")?;
    if let Some(workspace) = &plan.workspace {
        if ids.others == Others::OfTheMachine {
            chown(workspace, Some(ids.user.uid), Some(ids.user.gid)).part("workspace")?;
        }
        let target = below.directory(&plan.working_dir).part("workspace")?;
        bind_at(workspace, target, false).part("workspace")?;
    }
    for (at, mount) in plan.mounts.iter().enumerate() {
        let source = open_source(&mount.spec.source, &plan.sources).part(format!("{MOUNT_AT}{}", mount.spec.target))?;
        show_mount(mount, &source, &below, ids.owners.get(at), ids.user, &plan.directory)?;
    }
    rustix::process::chdir(&root).part(part)?;
    rustix::process::pivot_root(".", ".").part(part)?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).part(part)?;
    rustix::process::chdir("/").part(part)?;
    Ok(shown)
}

pub(super) fn tmpfs(target: &Path, ids: &Ids, mode: u32, bytes: u64, files: u64) -> io::Result<()> {
    let options = format!("mode={mode:o},size={bytes},nr_inodes={files},uid={0},gid={0}", ids.root);
    let options = std::ffi::CString::new(options)?;
    Ok(rustix::mount::mount("tmpfs", target, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, options.as_c_str())?)
}

/// What a sandbox has for itself in memory.
const PRIVATE: &[(&str, u32)] = &[("tmp", 0o1777), ("run", 0o755), ("dev/shm", 0o1777)];
/// A file takes about a kilobyte of the kernel's memory, however small it is: all of them less than a part of what the
/// sandbox may have.
const MEMORY_FOR_EACH_FILE: u64 = 8192;

/// Makes the private directories in one file system, so that they are bounded together: when they are full there is no
/// space, and enough memory is left for those who see that.
fn build_private(root: &Path, plan: &Plan, ids: &Ids, with_homes: bool) -> io::Result<()> {
    build_dev(root, plan, ids)?;
    let private = root.join("private");
    fs::create_dir(&private)?;
    let bounds = &plan.bounds;
    let files = (bounds.memory_bytes / MEMORY_FOR_EACH_FILE).clamp(1024, 1_000_000);
    tmpfs(&private, ids, 0o755, bounds.private_bytes(), files)?;
    let homes = if with_homes { OWN } else { &[] };
    for (name, mode) in PRIVATE.iter().chain(homes) {
        let (source, target) = (private.join(name.replace('/', "-")), root.join(name));
        fs::create_dir(&source)?;
        fs::set_permissions(&source, fs::Permissions::from_mode(*mode))?;
        chown(&source, Some(ids.root), Some(ids.root))?;
        make_directory(&target)?;
        rustix::mount::mount_bind(&source, &target)?;
        sys::harden_mount(&target, false)?;
    }
    if let Some(bytes) = bounds.shm_bytes {
        tmpfs(&root.join("dev/shm"), ids, 0o1777, bytes, files)?;
    }
    // What is in it stays, by the mounts of its parts.
    rustix::mount::unmount(&private, UnmountFlags::DETACH)?;
    fs::remove_dir(&private)
}

/// Shows a file or a directory of the host, read-only; a symlink is made again, what is missing is left out.
pub(super) fn show(source: &Path, target: &Path) -> io::Result<()> {
    let Ok(metadata) = fs::symlink_metadata(source) else { return Ok(()) };
    if metadata.is_symlink() {
        return if target.is_symlink() { Ok(()) } else { symlink(fs::read_link(source)?, target) };
    }
    make_target(&metadata, target)?;
    bind(source, target, true)
}

pub(super) fn make_target(metadata: &fs::Metadata, target: &Path) -> io::Result<()> {
    if metadata.is_dir() { make_directory(target) } else { File::create(target).map(drop) }
}

pub(super) fn make_directory(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o755).create(path)
}

pub(super) fn bind(source: &Path, target: &Path, read_only: bool) -> io::Result<()> {
    rustix::mount::mount_bind_recursive(source, target)?;
    sys::harden_mount(target, read_only)
}

/// Brings sandboxd and the directory of its socket in.
fn build_house(plan: &Plan, root: &Path, memory_events: Option<&Path>, is_writable: bool) -> Result<(), Failure> {
    let house = root.join(HOUSE);
    let program = house.join("sandboxd");
    make_directory(&house).part("sandboxd")?;
    File::create(&program).part("sandboxd")?;
    bind(&plan.sandboxd, &program, true).part("sandboxd")?;
    if let Some(events) = memory_events {
        let target = house.join(MEMORY_EVENTS);
        File::create(&target).part("cgroup")?;
        bind(events, &target, true).part("cgroup")?;
    }
    if is_writable {
        // sandboxd counts what is in the layers.
        let counted = house.join(DISK);
        make_directory(&counted).part("writable system")?;
        bind(&plan.directory.join("system"), &counted, true).part("writable system")?;
    }
    Ok(())
}
