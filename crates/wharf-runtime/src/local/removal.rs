//! Removes a directory of a sandbox, whatever was made in it: directories that nobody may enter, and trees that are deeper
//! than a program may have files open.

use std::{
    fs, io,
    os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, CWD, FileType, Mode, OFlags, RenameFlags},
    io::Errno,
};

/// Removes a directory and all that is in it; nothing if it is not there. Links are removed and never followed.
///
/// What a directory holds is first moved up, to the top, so that no depth is too great: whoever is killed in between leaves
/// a tree that the next one removes likewise.
///
/// # Errors
///
/// The kernel's.
pub(super) fn remove_tree(path: &Path) -> io::Result<()> {
    let top = match open_directory(CWD, path) {
        Err(Errno::NOENT) => return Ok(()),
        top => top?,
    };
    let mut moved = 0_u64;
    let mut left = directories_in(&top)?;
    while let Some(name) = left.pop() {
        let directory = open_directory(top.as_fd(), &name)?;
        for below in directories_in(&directory)? {
            let to = move_up(&directory, &below, &top, &mut moved)?;
            left.push(to);
        }
        rustix::fs::unlinkat(&top, &name, AtFlags::REMOVEDIR)?;
    }
    fs::remove_dir(path)
}

/// Moves a directory to the top, by a name that nothing has there.
fn move_up(from: &OwnedFd, name: &Path, top: &OwnedFd, moved: &mut u64) -> io::Result<PathBuf> {
    // Its entry `..` changes, for which its owner needs the right to write.
    drop(open_directory(from.as_fd(), name)?);
    loop {
        *moved += 1;
        let to = PathBuf::from(format!("removed-{moved}"));
        match rustix::fs::renameat_with(from, name, top, &to, RenameFlags::NOREPLACE) {
            Err(Errno::EXIST) => {}
            renamed => return Ok(renamed.map(|()| to)?),
        }
    }
}

/// Opens a directory, and lets its owner do with it what is needed.
fn open_directory(parent: BorrowedFd<'_>, name: &Path) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let held = rustix::fs::openat(parent, name, flags, Mode::empty())?;
    let path = format!("/proc/self/fd/{}", held.as_raw_fd());
    // Only then: it may be somebody else's, and in order.
    let is_open = Mode::from_raw_mode(rustix::fs::fstat(&held)?.st_mode).contains(Mode::RWXU);
    if !is_open {
        rustix::fs::chmod(&path, Mode::RWXU)?;
    }
    rustix::fs::open(&path, OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())
}

/// The directories in a directory, once all else in it is removed.
fn directories_in(directory: &OwnedFd) -> io::Result<Vec<PathBuf>> {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt};
    let mut found = Vec::new();
    for entry in rustix::fs::Dir::read_from(directory)? {
        let entry = entry?;
        let name = Path::new(OsStr::from_bytes(entry.file_name().to_bytes()));
        if [".", ".."].map(Path::new).contains(&name) {
            continue;
        }
        let kind = match entry.file_type() {
            FileType::Unknown => {
                FileType::from_raw_mode(rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)?.st_mode)
            }
            kind => kind,
        };
        if kind == FileType::Directory {
            found.push(name.to_owned());
        } else {
            rustix::fs::unlinkat(directory, name, AtFlags::empty())?;
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    #[test]
    fn whatever_was_made_in_it_goes_and_nothing_outside() {
        let here = tempfile::tempdir().unwrap();
        let (tree, outside) = (here.path().join("tree"), here.path().join("outside"));
        fs::create_dir_all(tree.join("a/b/c")).unwrap();
        fs::create_dir(&outside).unwrap();
        fs::write(outside.join("file"), "").unwrap();
        fs::write(tree.join("removed-1"), "").unwrap();
        fs::create_dir(tree.join("removed-2")).unwrap();
        fs::write(tree.join("a/b/c/file"), "").unwrap();
        for link in ["link", "a/link", "a/b/c/link"] {
            symlink(&outside, tree.join(link)).unwrap();
        }
        fs::set_permissions(tree.join("a/b"), fs::Permissions::from_mode(0o0)).unwrap();
        remove_tree(&tree).unwrap();
        assert!(!tree.exists() && outside.join("file").exists());
        remove_tree(&tree).unwrap();
        symlink(&outside, &tree).unwrap();
        assert!(remove_tree(&tree).is_err());
        assert!(outside.join("file").exists());
    }
}
