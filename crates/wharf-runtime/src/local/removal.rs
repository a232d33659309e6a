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
        match rename_to_nothing(from, name, top, &to) {
            Err(Errno::EXIST) => {}
            renamed => return Ok(renamed.map(|()| to)?),
        }
    }
}

/// Renames, unless something has the new name.
fn rename_to_nothing(from: &OwnedFd, name: &Path, to: &OwnedFd, new: &Path) -> rustix::io::Result<()> {
    match rustix::fs::renameat_with(from, name, to, new, RenameFlags::NOREPLACE) {
        // NFS and others know no such flag. Nobody else makes anything there meanwhile.
        Err(Errno::INVAL | Errno::NOSYS) => match rustix::fs::statat(to, new, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => Err(Errno::EXIST),
            Err(Errno::NOENT) => rustix::fs::renameat(from, name, to, new),
            Err(error) => Err(error),
        },
        renamed => renamed,
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

    #[test]
    fn a_file_system_without_a_flag_of_renames_is_cleared_too() {
        use seccompiler::{
            BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
        };
        let here = tempfile::tempdir().unwrap();
        let tree = here.path().join("tree");
        fs::create_dir_all(tree.join("a/b/c/d")).unwrap();
        fs::create_dir_all(tree.join("removed-1/e")).unwrap();
        let flags = SeccompCondition::new(4, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, 0).unwrap();
        let rules = [(libc::SYS_renameat2, vec![SeccompRule::new(vec![flags]).unwrap()])].into();
        let refuse = SeccompAction::Errno(libc::EINVAL.unsigned_abs());
        let arch = std::env::consts::ARCH.try_into().unwrap();
        let filter: BpfProgram =
            SeccompFilter::new(rules, SeccompAction::Allow, refuse, arch).unwrap().try_into().unwrap();
        let path = tree.clone();
        let removing = std::thread::spawn(move || {
            rustix::thread::set_no_new_privs(true).unwrap();
            seccompiler::apply_filter(&filter).unwrap();
            remove_tree(&path).unwrap();
        });
        removing.join().unwrap();
        assert!(!tree.exists());
    }
}
