//! The new root: what of the host is shown in it, and what the sandbox has for itself.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{DirBuilderExt, PermissionsExt, chown, symlink},
    path::Path,
};

use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags};

use super::{
    HOUSE, MEMORY_EVENTS,
    accounts::show_user,
    below::{Below, bind_at},
    dev::build_dev,
    ids::Ids,
    mounts::show_mount,
    proc::build_proc,
    walls::{Failure, Own, Part},
};
use crate::local::{plan::Plan, sys};

/// Directories of the host that a sandbox sees, read-only.
const SHOWN: &[&str] = &["usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32", "etc", "opt", "nix", "srv", "snap"];

/// Puts a new root together and makes it ours.
pub(super) fn build_root(plan: &Plan, ids: &Ids, own: &Own) -> Result<(), Failure> {
    let part = "private root";
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).part(part)?;
    let root = plan.directory.join("root");
    fs::create_dir_all(&root).part(part)?;
    tmpfs(&root, ids, 0o755, 16 << 20, 4096).part(part)?;
    for name in SHOWN {
        show(&Path::new("/").join(name), &root.join(name)).part(format!("/{name}"))?;
    }
    build_private(&root, plan, ids).part(part)?;
    for name in ["tmp", "lib", "log", "cache"] {
        let target = root.join("var").join(name);
        fs::DirBuilder::new().mode(if name == "tmp" { 0o1777 } else { 0o755 }).create(&target).part(part)?;
        chown(&target, Some(ids.root), Some(ids.root)).part(part)?;
    }
    symlink("/run", root.join("var/run")).part(part)?;
    let packages = Path::new("/var/lib/dpkg");
    if packages.is_dir() {
        show(packages, &root.join("var/lib/dpkg")).part("/var/lib/dpkg")?;
    }
    build_proc(&root, own).part("/proc")?;
    build_house(plan, &root, own.memory_events.as_deref())?;
    let below = Below::new(&root, ids.user).part(part)?;
    show_user(&plan.user, &below, ids.user, &plan.directory).part("user")?;
    if let Some(workspace) = &plan.workspace {
        if ids.has_range {
            chown(workspace, Some(ids.user.uid), Some(ids.user.gid)).part("workspace")?;
        }
        let target = below.directory(&plan.working_dir).part("workspace")?;
        bind_at(workspace, target, false).part("workspace")?;
    }
    for (at, mount) in plan.mounts.iter().enumerate() {
        show_mount(mount, &below, ids.owners.get(at), ids.user, &plan.directory)
            .part(format!("mount of {}", mount.spec.source))?;
    }
    rustix::process::chdir(&root).part(part)?;
    rustix::process::pivot_root(".", ".").part(part)?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).part(part)?;
    rustix::process::chdir("/").part(part)
}

pub(super) fn tmpfs(target: &Path, ids: &Ids, mode: u32, bytes: u64, files: u64) -> io::Result<()> {
    let options = format!("mode={mode:o},size={bytes},nr_inodes={files},uid={0},gid={0}", ids.root);
    let options = std::ffi::CString::new(options)?;
    Ok(rustix::mount::mount("tmpfs", target, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, options.as_c_str())?)
}

/// What a sandbox has for itself in memory.
const PRIVATE: &[(&str, u32)] =
    &[("tmp", 0o1777), ("home", 0o755), ("root", 0o700), ("run", 0o755), ("var", 0o755), ("dev/shm", 0o1777)];
/// A file takes about a kilobyte of the kernel's memory, however small it is: all of them less than a part of what the
/// sandbox may have.
const MEMORY_FOR_EACH_FILE: u64 = 8192;

/// Makes the private directories in one file system, so that they are bounded together: when they are full there is no
/// space, and enough memory is left for those who see that.
fn build_private(root: &Path, plan: &Plan, ids: &Ids) -> io::Result<()> {
    build_dev(root, ids)?;
    let private = root.join("private");
    fs::create_dir(&private)?;
    let bounds = &plan.bounds;
    let files = (bounds.memory_bytes / MEMORY_FOR_EACH_FILE).clamp(1024, 1_000_000);
    tmpfs(&private, ids, 0o755, bounds.private_bytes(), files)?;
    for (name, mode) in PRIVATE {
        let (source, target) = (private.join(name.replace('/', "-")), root.join(name));
        fs::create_dir(&source)?;
        fs::set_permissions(&source, fs::Permissions::from_mode(*mode))?;
        chown(&source, Some(ids.root), Some(ids.root))?;
        fs::create_dir(&target)?;
        rustix::mount::mount_bind(&source, &target)?;
        sys::harden_mount(&target, false)?;
    }
    // What is in it stays, by the mounts of its parts.
    rustix::mount::unmount(&private, UnmountFlags::DETACH)?;
    fs::remove_dir(&private)
}

/// Shows a file or a directory of the host, read-only; a symlink is made again, what is missing is left out.
fn show(source: &Path, target: &Path) -> io::Result<()> {
    let Ok(metadata) = fs::symlink_metadata(source) else { return Ok(()) };
    if metadata.is_symlink() {
        return symlink(fs::read_link(source)?, target);
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
fn build_house(plan: &Plan, root: &Path, memory_events: Option<&Path>) -> Result<(), Failure> {
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
    Ok(())
}
