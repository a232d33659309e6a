//! The working directory of a server that was started with OpenHands' command line: section 1.4 of the specification.
//!
//! It and all that is in it belongs to the agent's user, and its group may write. Links are not followed. Left alone: what
//! is root's and has other names, which may be names outside, where the kernel lets anybody make those.

use std::{
    fs, io,
    os::fd::OwnedFd,
    path::{Path, PathBuf},
};

use anyhow::Context;
use rustix::{
    fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, ResolveFlags, Stat, Uid},
    io::Errno,
};

use crate::process::users::{self, User};

const DIRECTORY: OFlags = OFlags::RDONLY.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// Makes `path` if it is missing, and the user's if sandboxd is root and the user is not. What cannot be given to it, as on
/// a read-only mount, is passed over.
pub(super) fn prepare(path: &Path, user: &User, group: Option<&str>) -> anyhow::Result<()> {
    let new = !path.is_dir();
    wharf_files::make_directories(path)?;
    if !rustix::process::geteuid().is_root() || user.uid == 0 || path == Path::new("/") {
        return Ok(());
    }
    let gid = match group {
        None => 0,
        Some(group) => users::find_group(group)
            .with_context(|| format!("SANDBOX_GROUP_ID must be a group of this image or a number, not `{group}`"))?,
    };
    let root = rustix::fs::open(path, DIRECTORY, Mode::empty()).map_err(io::Error::from)?;
    let mut giver =
        Giver { uid: Uid::from_raw(user.uid), gid: Gid::from_raw(gid), linked: links_are_protected(), kept: 0 };
    giver.give_below(&root);
    let mode = rustix::fs::fstat(&root).map_err(io::Error::from)?.st_mode;
    let mode = if new { 0o775 } else { (mode | 0o060) & 0o7777 };
    if rustix::fs::fchmod(&root, Mode::from_raw_mode(mode)).is_err() {
        giver.kept += 1;
    }
    if giver.kept > 0 {
        tracing::warn!(
            count = giver.kept,
            user = user.name,
            "files in the working directory could not be made the user's"
        );
    }
    Ok(())
}

/// Whether nobody can give a name to what it may not write.
fn links_are_protected() -> bool {
    fs::read_to_string("/proc/sys/fs/protected_hardlinks").is_ok_and(|text| text.trim() == "1")
}

struct Giver {
    uid: Uid,
    gid: Gid,
    /// Whether a file with several names may be given away.
    linked: bool,
    kept: u64,
}

impl Giver {
    fn give_below(&mut self, root: &OwnedFd) {
        if let Ok(stat) = rustix::fs::fstat(root) {
            self.give(root, &stat);
        }
        let mut pending = vec![PathBuf::from(".")];
        while let Some(below) = pending.pop() {
            let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
            let opened = rustix::fs::openat2(root, &below, DIRECTORY, Mode::empty(), beneath);
            let Ok((directory, entries)) = opened.and_then(|at| Ok((Dir::read_from(&at)?, at))).map(|(a, b)| (b, a))
            else {
                self.kept += 1;
                continue;
            };
            for entry in entries.filter_map(Result::ok) {
                let name = entry.file_name();
                if matches!(name.to_bytes(), b"." | b"..") {
                    continue;
                }
                match self.give_entry(&directory, name) {
                    Ok(true) => {
                        let name: &std::ffi::OsStr = std::os::unix::ffi::OsStrExt::from_bytes(name.to_bytes());
                        pending.push(below.join(name));
                    }
                    Ok(false) | Err(Errno::NOENT) => {}
                    Err(_) => self.kept += 1,
                }
            }
        }
    }

    /// Says whether it is a directory.
    fn give_entry(&mut self, directory: &OwnedFd, name: &std::ffi::CStr) -> Result<bool, Errno> {
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(directory, name, flags, Mode::empty())?;
        let stat = rustix::fs::fstat(&file)?;
        self.give(&file, &stat);
        Ok(FileType::from_raw_mode(stat.st_mode) == FileType::Directory)
    }

    fn give(&mut self, file: &OwnedFd, stat: &Stat) {
        let theirs = (stat.st_uid, stat.st_gid) == (self.uid.as_raw(), self.gid.as_raw());
        let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if theirs || (stat.st_nlink > 1 && !is_directory && stat.st_uid == 0 && !self.linked) {
            return;
        }
        if rustix::fs::chownat(file, c"", Some(self.uid), Some(self.gid), AtFlags::EMPTY_PATH).is_err() {
            self.kept += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};

    use super::*;

    fn agent() -> User {
        let name = "agent".to_owned();
        User { name, uid: 54_321, gid: 54_321, groups: vec![], home: "/".into(), shell: "/bin/sh".into() }
    }

    #[test]
    fn an_existing_directory_and_what_is_in_it_becomes_the_users() {
        let directory = tempfile::tempdir().unwrap();
        let (at, outside) = (directory.path().join("workspace"), directory.path().join("outside"));
        fs::create_dir_all(at.join("sub/deep")).unwrap();
        fs::write(at.join("sub/deep/file"), "").unwrap();
        fs::write(&outside, "").unwrap();
        symlink(&outside, at.join("link")).unwrap();
        symlink(directory.path(), at.join("up")).unwrap();
        fs::set_permissions(&at, fs::Permissions::from_mode(0o755)).unwrap();
        prepare(&at, &agent(), None).unwrap();
        let owner = |path: &Path| {
            let metadata = fs::symlink_metadata(path).unwrap();
            (metadata.uid(), metadata.gid())
        };
        for path in ["", "sub", "sub/deep/file", "link", "up"] {
            assert_eq!(owner(&at.join(path)), (54_321, 0), "{path}");
        }
        assert_eq!(fs::metadata(&at).unwrap().mode() & 0o7777, 0o775);
        assert_eq!((owner(&outside), owner(directory.path())), ((0, 0), (0, 0)), "links are not followed");
    }

    #[test]
    fn a_new_directory_is_made_with_the_group_that_was_asked_for() {
        let directory = tempfile::tempdir().unwrap();
        let at = directory.path().join("new/workspace");
        prepare(&at, &agent(), Some("4242")).unwrap();
        let metadata = fs::metadata(&at).unwrap();
        assert_eq!((metadata.uid(), metadata.gid(), metadata.mode() & 0o7777), (54_321, 4242, 0o775));
        let refused = prepare(&at, &agent(), Some("no such group")).unwrap_err();
        assert!(refused.to_string().contains("SANDBOX_GROUP_ID"), "{refused}");
    }
}
