//! Paths inside the sandbox while its root is still only a directory of the host: each is resolved within that root, so
//! that neither `..` nor an absolute link, as `/var/run` is one, leads to the host's own file of that name.

use std::{
    fs::File,
    io,
    os::fd::{AsFd, OwnedFd},
    path::{Component, Path},
};

use rustix::{
    fs::{AtFlags, Gid, Mode, OFlags, ResolveFlags, Uid},
    io::Errno,
    mount::{MoveMountFlags, OpenTreeFlags},
};

use super::ids::Owner;
use crate::local::sys;

/// The root that is being built.
#[derive(Debug)]
pub(super) struct Below {
    root: OwnedFd,
    /// To whom directories belong that are made on the way.
    owner: Owner,
}

impl Below {
    /// A root, and the user to whom what is made in it belongs, as seen from here.
    pub(super) fn new(root: &Path, owner: Owner) -> io::Result<Self> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self { root: rustix::fs::open(root, flags, Mode::empty())?, owner })
    }

    /// What is at a path inside; links lead nowhere but inside.
    pub(super) fn find(&self, inside: &Path) -> rustix::io::Result<OwnedFd> {
        let within = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        rustix::fs::openat2(&self.root, inside, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), within)
    }

    /// The directory at a path inside; it and its parents are made if they are missing.
    ///
    /// # Errors
    ///
    /// Also when something else is there, or a part of the path is a link that leads nowhere.
    pub(super) fn directory(&self, inside: &Path) -> io::Result<OwnedFd> {
        let mut found = self.find(Path::new("/"))?;
        let mut so_far = Path::new("/").to_owned();
        for part in inside.components() {
            let name = match part {
                Component::RootDir | Component::CurDir => continue,
                Component::Normal(name) => name,
                Component::ParentDir | Component::Prefix(_) => return Err(Errno::INVAL.into()),
            };
            so_far.push(name);
            found = match self.find(&so_far) {
                Err(Errno::NOENT) => {
                    rustix::fs::mkdirat(&found, name, Mode::from_raw_mode(0o755)).map_err(not_made)?;
                    self.give(&found, name)?;
                    self.find(&so_far)?
                }
                other => other?,
            };
        }
        if !File::from(found.try_clone()?).metadata()?.is_dir() {
            return Err(Errno::NOTDIR.into());
        }
        Ok(found)
    }

    /// What is at a path inside, if that belongs to the mount of its directory or is mounted there itself, as engines do with
    /// single files: a link in it, which somebody inside may have put there, does not lead to what the host shows elsewhere.
    ///
    /// # Errors
    ///
    /// [`Errno::LOOP`] if it does.
    pub(super) fn find_in_its_mount(&self, inside: &Path) -> rustix::io::Result<OwnedFd> {
        let (parent, name) = inside.parent().zip(inside.file_name()).ok_or(Errno::INVAL)?;
        let parent = self.find(parent)?;
        let within = ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_MAGICLINKS;
        let open = |within| {
            rustix::fs::openat2(&parent, Path::new(name), OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), within)
        };
        match open(within) {
            Err(Errno::XDEV) => open(ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS),
            found => found,
        }
    }

    /// The place at which something of this kind can be mounted; an empty file or a directory if nothing is there.
    pub(super) fn target(&self, inside: &Path, is_directory: bool) -> io::Result<OwnedFd> {
        if is_directory {
            return self.directory(inside);
        }
        match self.find(inside) {
            Err(Errno::NOENT) => {}
            found => return Ok(found?),
        }
        let (parent, name) = inside.parent().zip(inside.file_name()).ok_or(Errno::INVAL)?;
        let parent = self.directory(parent)?;
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        rustix::fs::openat(&parent, name, flags, Mode::from_raw_mode(0o644)).map_err(not_made)?;
        self.give(&parent, name)?;
        Ok(self.find(inside)?)
    }

    fn give(&self, parent: &OwnedFd, name: &std::ffi::OsStr) -> io::Result<()> {
        let (uid, gid) = (Uid::from_raw(self.owner.uid), Gid::from_raw(self.owner.gid));
        if rustix::process::geteuid() == uid {
            return Ok(());
        }
        Ok(rustix::fs::chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?)
    }
}

/// What cannot be made although it is not there.
fn not_made(error: Errno) -> io::Error {
    match error {
        Errno::EXIST => io::Error::other("a link in the way leads nowhere"),
        // In another mount, whose files have other owners inside, or which is read-only.
        Errno::OVERFLOW | Errno::ROFS => io::Error::other("it is not there, and has to be made on this machine first"),
        error => error.into(),
    }
}

/// Mounts a detached tree at a place.
pub(super) fn attach(tree: &OwnedFd, at: impl AsFd) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(rustix::mount::move_mount(tree, "", at, "", flags)?)
}

/// Shows a directory or a file of the host at a place, without its devices and set-user-id programs.
pub(super) fn bind_at(source: &Path, at: impl AsFd, read_only: bool) -> io::Result<()> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_RECURSIVE;
    let tree = rustix::mount::open_tree(rustix::fs::CWD, source, flags)?;
    sys::harden_tree(&tree, read_only)?;
    attach(&tree, at)
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{MetadataExt, symlink},
    };

    use super::*;

    #[test]
    fn links_lead_nowhere_but_inside() {
        let (root, host) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let owner = rustix::process::geteuid().as_raw();
        fs::create_dir(root.path().join("run")).unwrap();
        symlink("/run", root.path().join("absolute")).unwrap();
        symlink("../../../../run", root.path().join("climbing")).unwrap();
        symlink(host.path(), root.path().join("host")).unwrap();
        symlink("/nowhere", root.path().join("dangling")).unwrap();
        let below = Below::new(root.path(), Owner { uid: owner, gid: owner }).unwrap();
        below.directory(Path::new("/absolute/a/b")).unwrap();
        below.directory(Path::new("/climbing/c")).unwrap();
        below.target(Path::new("/absolute/d/file"), false).unwrap();
        for made in ["run/a/b", "run/c", "run/d/file"] {
            assert!(root.path().join(made).exists(), "{made}");
        }
        assert_eq!(root.path().join("run/a").metadata().unwrap().uid(), owner);
        for wrong in ["/host/x", "/dangling/x", "/dangling", "/../x", "/run/d/file/x"] {
            assert!(below.directory(Path::new(wrong)).is_err(), "{wrong}");
        }
        assert!(below.directory(Path::new("/run/d/file")).is_err(), "not a directory");
        assert!(below.target(Path::new("/dangling"), false).is_err());
        assert_eq!(fs::read_dir(host.path()).unwrap().count(), 0);
        assert!(!Path::new("/nowhere").exists());
    }
}
