//! What the user mounts, and what covers paths in it that the host would run.

use std::{
    collections::BTreeMap,
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
    io::Errno,
    mount::{MoveMountFlags, OpenTreeFlags},
};

use super::{
    below::{Below, attach},
    ids::Owner,
    walls::{Failure, Part as _},
};
use crate::local::{
    object::Object,
    plan::MOUNT_AT,
    protection::{Cover, PlannedMount, With},
    sys,
};

/// Opens the source of a mount, if it is still what the mount was planned for.
pub(super) fn open_source(source: &str, known: &BTreeMap<String, Object>) -> io::Result<File> {
    // Had it no link when the sandbox was made, one has been put there by what runs in it, or in another.
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let file = File::from(rustix::fs::openat2(CWD, source, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)?);
    let found = Object::opened(&file)?;
    if known.get(source).is_some_and(|known| known.is(found)) {
        return Ok(file);
    }
    Err(io::Error::other("something else was put in its place meanwhile"))
}

/// Shows a directory that the user asked for. As root, its owner outside is the sandbox's user inside. A text that covers a file passes
/// through `directory`.
pub(super) fn show_mount(
    mount: &PlannedMount,
    source: &File,
    root: &Below,
    namespace: Option<&OwnedFd>,
    owner: Owner,
    directory: &Path,
) -> Result<(), Failure> {
    let (of, at) = (format!("mount of {}", mount.spec.source), format!("{MOUNT_AT}{}", mount.spec.target));
    let metadata = source.metadata().part(&at)?;
    let target = root.target(Path::new(&mount.spec.target), metadata.is_dir()).part(&at)?;
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = rustix::mount::open_tree(source, "", flags | OpenTreeFlags::AT_EMPTY_PATH).part(&of)?;
    if let Some(namespace) = namespace {
        sys::map_ids(&tree, namespace).part(&of)?;
    }
    sys::harden_tree(&tree, mount.spec.read_only).part(&of)?;
    attach(&tree, target).part(&at)?;
    for cover in &mount.covers {
        cover_path(&tree, cover, owner, directory)
            .map_err(|error| io::Error::new(error.kind(), format!("`{}` in it: {error}", cover.path.display())))
            .part(&at)?;
    }
    Ok(())
}

/// Covers one path below a mount.
fn cover_path(mount: &OwnedFd, cover: &Cover, owner: Owner, directory: &Path) -> io::Result<()> {
    // Another sandbox with the same mount may put a link in the way: none is followed.
    let (flags, within) =
        (OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC, ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS);
    let path = match rustix::fs::openat2(mount, &cover.path, flags, Mode::empty(), within) {
        // It is on a file system that the mount does not show.
        Err(Errno::NOENT) if cover.with == With::Nothing => return Ok(()),
        path => path?,
    };
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let (file, empty) = (directory.join("shown"), directory.join("empty"));
    let shown = match &cover.with {
        With::Itself | With::ReadOnly => rustix::mount::open_tree(&path, "", flags | OpenTreeFlags::AT_EMPTY_PATH)?,
        With::Text(text) => {
            write_text(&file, text, owner)?;
            rustix::mount::open_tree(CWD, &file, flags)?
        }
        With::Nothing => {
            fs::DirBuilder::new().recursive(true).create(&empty)?;
            rustix::mount::open_tree(CWD, &empty, flags)?
        }
    };
    sys::harden_tree(&shown, !matches!(cover.with, With::Itself))?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(&shown, "", &path, "", flags)?;
    // The mount keeps it; the kernel mounts nothing without a name.
    match cover.with {
        With::Text(_) => fs::remove_file(&file),
        With::Nothing => fs::remove_dir(&empty),
        With::Itself | With::ReadOnly => Ok(()),
    }
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

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn what_was_put_in_the_place_of_a_source_meanwhile_is_not_opened() {
        let directory = tempfile::tempdir().unwrap();
        let place = fs::canonicalize(directory.path()).unwrap();
        let at = |name: &str| place.join(name).display().to_string();
        for name in ["outer", "outer/inner", "other"] {
            fs::create_dir(at(name)).unwrap();
        }
        let known: BTreeMap<String, Object> = [at("outer"), at("outer/inner")]
            .into_iter()
            .map(|source| (source.clone(), Object::at(Path::new(&source)).unwrap()))
            .collect();
        open_source(&at("outer/inner"), &known).unwrap();
        assert!(open_source(&at("other"), &known).is_err(), "it was never planned");
        // The same directory, by way of a link.
        fs::rename(at("outer"), at("aside")).unwrap();
        symlink("aside", at("outer")).unwrap();
        let through_a_link = open_source(&at("outer/inner"), &known).unwrap_err();
        assert_eq!(through_a_link.raw_os_error(), Some(Errno::LOOP.raw_os_error()));
        fs::remove_file(at("outer")).unwrap();
        fs::create_dir_all(at("outer/inner")).unwrap();
        assert!(open_source(&at("outer/inner"), &known).is_err(), "another directory");
    }
}
