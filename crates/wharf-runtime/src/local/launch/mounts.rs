//! What the user mounts.

use std::{fs, io, os::fd::OwnedFd, path::Path};

use rustix::{
    fs::CWD,
    mount::{MoveMountFlags, OpenTreeFlags},
};
use wharf_protocol::MountSpec;

use super::root::{below, make_directory, make_target};
use crate::local::sys;

/// Shows a directory that the user asked for. As root, its owner outside is root inside.
pub(super) fn show_mount(mount: &MountSpec, root: &Path, owner: Option<&OwnedFd>) -> io::Result<()> {
    let source = Path::new(&mount.source);
    let metadata = fs::metadata(source)?;
    let target = below(root, Path::new(&mount.target))?;
    if let Some(parent) = target.parent() {
        make_directory(parent)?;
    }
    if !target.exists() {
        make_target(&metadata, &target)?;
    }
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = rustix::mount::open_tree(CWD, source, flags)?;
    if let Some(owner) = owner {
        sys::map_ids(&tree, owner)?;
    }
    rustix::mount::move_mount(&tree, "", CWD, &target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    sys::harden_mount(&target, mount.read_only)
}
