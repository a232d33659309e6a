//! The sandbox's user as the system's files name it, and its home.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::{PermissionsExt, fchown},
    },
    path::Path,
};

use rustix::{
    fs::{AtFlags, Gid, Mode, Uid},
    io::Errno,
};

use super::{
    below::{Below, bind_at},
    ids::{Ids, Owner},
};
use crate::local::{
    ranges::IDS,
    users::{SandboxUser, group_with, homes_in, passwd, passwd_with},
};

/// The longest of the system's files that is read.
const LONGEST: u64 = 16 << 20;

/// Gives the user an entry in `/etc/passwd` and `/etc/group` and a home. Where these files are the host's, others are shown
/// instead, which pass through `directory`.
pub(super) fn show_user(user: &SandboxUser, root: &Below, owner: Owner, directory: &Path) -> io::Result<()> {
    if user.uid == 0 {
        return Ok(());
    }
    change(root, Path::new("/etc/passwd"), directory, |text| passwd_with(text, user))?;
    change(root, Path::new("/etc/group"), directory, |text| group_with(text, user))?;
    let home = root.directory(&user.home)?;
    // What an ended sandbox has left there stays as it is, but a home that is not the user's is none.
    if rustix::process::geteuid().as_raw() != owner.uid {
        let home = File::open(format!("/proc/self/fd/{}", home.as_raw_fd()))?;
        fchown(&home, Some(owner.uid), Some(owner.gid))?;
    }
    Ok(())
}

/// Gives each user whom the machine knows a home like the one that it has there, but empty: what is there stays.
pub(super) fn make_homes(ids: &Ids, root: &Below) -> io::Result<()> {
    if !ids.has_others() {
        return Ok(());
    }
    let home = root.directory(Path::new("/home"))?;
    for (name, uid, gid) in homes_in(&passwd()) {
        if uid >= IDS || gid >= IDS {
            continue;
        }
        let (uid, gid) = (Uid::from_raw(ids.root + uid), Gid::from_raw(ids.root + gid));
        match rustix::fs::mkdirat(&home, &name, Mode::from_raw_mode(0o755)) {
            Err(Errno::EXIST) => continue,
            made => made?,
        }
        rustix::fs::chownat(&home, &name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    }
    Ok(())
}

/// Changes one of the system's files; nothing if `changed` says that it is right.
fn change(root: &Below, inside: &Path, directory: &Path, changed: impl Fn(&str) -> Option<String>) -> io::Result<()> {
    let there = match root.find_in_its_mount(inside) {
        Err(Errno::NOENT) => return Ok(()),
        Err(Errno::LOOP) => {
            return Err(io::Error::other(format!("`{}` is a link that leads elsewhere", inside.display())));
        }
        there => there?,
    };
    let path = format!("/proc/self/fd/{}", there.as_raw_fd());
    // Somebody inside may have put a pipe or a device there.
    if !fs::metadata(&path)?.is_file() {
        return Err(io::Error::other(format!("`{}` is not a file", inside.display())));
    }
    let mut text = Vec::new();
    File::open(&path)?.take(LONGEST).read_to_end(&mut text)?;
    let Some(changed) = changed(&String::from_utf8_lossy(&text)) else { return Ok(()) };
    match File::options().write(true).open(&path) {
        Ok(mut file) => {
            file.rewind()?;
            file.write_all(changed.as_bytes())?;
            file.set_len(changed.len() as u64)
        }
        // It is the host's, or would be its owner's to change.
        Err(error) if matches!(error.kind(), io::ErrorKind::ReadOnlyFilesystem | io::ErrorKind::PermissionDenied) => {
            show_text(&changed, &there, directory)
        }
        Err(error) => Err(error),
    }
}

fn show_text(text: &str, at: &OwnedFd, directory: &Path) -> io::Result<()> {
    let path = directory.join("shown");
    fs::write(&path, text)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644))?;
    bind_at(&path, at, true)?;
    // The mount keeps it.
    fs::remove_file(&path)
}
