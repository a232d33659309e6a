//! What the user mounts, and what covers paths in it that the host would run.

use std::{
    fs::{self, File},
    io::{self, Write},
    os::{
        fd::OwnedFd,
        unix::fs::{PermissionsExt, fchown},
    },
    path::Path,
};

use rustix::{
    fs::{CWD, Mode, OFlags, ResolveFlags},
    mount::{MoveMountFlags, OpenTreeFlags},
};

use super::{
    below::{Below, attach},
    ids::Owner,
};
use crate::local::{
    protection::{Cover, PlannedMount, With},
    sys,
};

/// Shows a directory that the user asked for. As root, its owner outside is the sandbox's user inside. A text that covers a file passes
/// through `directory`.
pub(super) fn show_mount(
    mount: &PlannedMount,
    root: &Below,
    namespace: Option<&OwnedFd>,
    owner: Owner,
    directory: &Path,
) -> io::Result<()> {
    let source = Path::new(&mount.spec.source);
    let metadata = fs::metadata(source)?;
    let target = root.target(Path::new(&mount.spec.target), metadata.is_dir())?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = rustix::mount::open_tree(CWD, source, flags)?;
    if let Some(namespace) = namespace {
        sys::map_ids(&tree, namespace)?;
    }
    sys::harden_tree(&tree, mount.spec.read_only)?;
    attach(&tree, target)?;
    for cover in &mount.covers {
        cover_path(&tree, cover, owner, directory)
            .map_err(|error| io::Error::new(error.kind(), format!("`{}` in it: {error}", cover.path.display())))?;
    }
    Ok(())
}

/// Covers one path below a mount.
fn cover_path(mount: &OwnedFd, cover: &Cover, owner: Owner, directory: &Path) -> io::Result<()> {
    // Another sandbox with the same mount may put a link in the way: none is followed.
    let (flags, within) =
        (OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS);
    let path = rustix::fs::openat2(mount, &cover.path, flags, Mode::empty(), within)?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let file = directory.join("shown");
    let shown = match &cover.with {
        With::Itself | With::ReadOnly => rustix::mount::open_tree(&path, "", flags | OpenTreeFlags::AT_EMPTY_PATH)?,
        With::Text(text) => {
            write_text(&file, text, owner)?;
            rustix::mount::open_tree(CWD, &file, flags)?
        }
    };
    sys::harden_tree(&shown, !matches!(cover.with, With::Itself))?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(&shown, "", &path, "", flags)?;
    if matches!(cover.with, With::Text(_)) {
        // The mount keeps it; the kernel mounts no file without a name.
        fs::remove_file(&file)?;
    }
    Ok(())
}

/// Writes a file that a mount will show.
fn write_text(path: &Path, text: &str, owner: Owner) -> io::Result<()> {
    let mut file = File::options().write(true).create_new(true).open(path)?;
    file.write_all(text.as_bytes())?;
    file.set_permissions(fs::Permissions::from_mode(0o644))?;
    if rustix::process::geteuid().is_root() {
        fchown(&file, Some(owner.uid), Some(owner.gid))?;
    }
    Ok(())
}
