//! What the user mounts.

use std::{fs, io, os::fd::OwnedFd, path::Path};

use rustix::{fs::CWD, mount::OpenTreeFlags};
use wharf_protocol::MountSpec;

use super::below::{Below, attach};
use crate::local::sys;

/// Shows a directory that the user asked for. As root, its owner outside is root inside.
pub(super) fn show_mount(mount: &MountSpec, root: &Below, owner: Option<&OwnedFd>) -> io::Result<()> {
    let source = Path::new(&mount.source);
    let metadata = fs::metadata(source)?;
    let target = root.target(Path::new(&mount.target), metadata.is_dir())?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = rustix::mount::open_tree(CWD, source, flags)?;
    if let Some(owner) = owner {
        sys::map_ids(&tree, owner)?;
    }
    sys::harden_tree(&tree, mount.read_only)?;
    attach(&tree, target)
}
