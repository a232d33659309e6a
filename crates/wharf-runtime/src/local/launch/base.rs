//! What lies under the layers of an ordinary user's sandboxes.
//!
//! Files of the host's root belong to nobody in a user namespace of somebody else, and the kernel lets nobody change what is
//! nobody's, nor make anything beside it. So there is a base between the two: the same directories again, as those of root
//! inside, and of settings the files too. It depends on nothing but the host, and all sandboxes of a user share it.
//! Programs can be removed then, and others put in their place; not changed in place, nor linked, which dpkg does before it
//! replaces a file: so it has one of them copied first.

use std::{
    fs, io,
    os::unix::fs::{MetadataExt, PermissionsExt, lchown, symlink},
    path::{Path, PathBuf},
};

use rustix::fs::{AtFlags, CWD, Timespec, Timestamps};

use super::{
    ids::{Owner, enter_with_others},
    system::{SETTINGS, hidden_text, is_replaced},
    walls::{Failure, Part},
};
use crate::local::{plan::BasePlan, ranges::IDS, removal::remove_tree};

/// A larger file is no setting.
const LARGEST: u64 = 64 << 20;
/// What packages have on the host, of which no file is changed but by putting another in its place.
const REPLACED_ONLY: &str = "info";

/// In the base of settings: what dpkg runs before it unpacks anything, and the setting that says so.
const BEFORE_DPKG: [(&str, &str, u32); 2] = [
    ("dpkg/own-replaced", include_str!("own-replaced.sh"), 0o755),
    ("dpkg/dpkg.cfg.d/own-replaced", "pre-invoke=/etc/dpkg/own-replaced $PPID\n", 0o644),
];

/// Something of the host, as it is seen before the ids change.
struct Entry {
    path: PathBuf,
    metadata: fs::Metadata,
}

/// Makes a base, whole or not at all.
pub(super) fn make_base(plan: &BasePlan) -> Result<(), Failure> {
    let part = "base of the system";
    let entries = entries_of(plan).part(part)?;
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let caller = Owner { uid, gid };
    let user = if plan.for_root { Owner::default() } else { caller };
    enter_with_others(plan.subordinate, user).part("user namespace")?;
    let unfinished = plan.target.with_extension("new");
    remove_tree(&unfinished).part(part)?;
    for entry in &entries {
        let target = below(&unfinished, plan, entry).part(part)?;
        copy(plan, entry, &target, |uid, gid| inside(Owner { uid, gid }, caller, user)).part(part)?;
    }
    if plan.layer == SETTINGS && unfinished.join("dpkg/dpkg.cfg.d").is_dir() {
        for (name, text, mode) in BEFORE_DPKG {
            write_as_root(&unfinished.join(name), text, mode).part(part)?;
        }
    }
    // What is in it comes first: each entry changes the time of its directory, and some may not be written.
    for entry in entries.iter().rev().filter(|entry| entry.metadata.is_dir()) {
        let target = below(&unfinished, plan, entry).part(part)?;
        finish(&target, &entry.metadata).part(part)?;
    }
    fs::rename(&unfinished, &plan.target).part(part)
}

fn write_as_root(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    fs::write(path, text)?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
    lchown(path, Some(0), Some(0))
}

fn below(base: &Path, plan: &BasePlan, entry: &Entry) -> io::Result<PathBuf> {
    let relative = entry.path.strip_prefix(&plan.source).map_err(io::Error::other)?;
    Ok(if relative.as_os_str().is_empty() { base.to_owned() } else { base.join(relative) })
}

/// All that the base will have, directories before what is in them.
fn entries_of(plan: &BasePlan) -> io::Result<Vec<Entry>> {
    let mut found = vec![Entry { path: plan.source.clone(), metadata: fs::metadata(&plan.source)? }];
    let mut at = 0;
    while let Some(Entry { path, metadata }) = found.get(at) {
        at += 1;
        // What may not be read is as little to be seen inside.
        let Some(entries) = metadata.is_dir().then(|| fs::read_dir(path)).and_then(Result::ok) else { continue };
        let has_files = plan.with_files && !path.ends_with(REPLACED_ONLY);
        let entries: Vec<Entry> = entries
            .flatten()
            .filter(|entry| has_files || entry.file_type().is_ok_and(|kind| kind.is_dir()))
            .filter_map(|entry| Some(Entry { metadata: entry.metadata().ok()?, path: entry.path() }))
            .collect();
        found.extend(entries);
    }
    Ok(found)
}

/// Whose something of the host's is inside: whoever has the same number, and root what has none.
fn inside(outside: Owner, caller: Owner, user: Owner) -> Owner {
    let id = |outside: u32, caller: u32, user: u32| match outside {
        outside if outside == caller => user,
        outside if outside < IDS && outside != user => outside,
        _ => 0,
    };
    Owner { uid: id(outside.uid, caller.uid, user.uid), gid: id(outside.gid, caller.gid, user.gid) }
}

fn copy(plan: &BasePlan, entry: &Entry, target: &Path, owner: impl Fn(u32, u32) -> Owner) -> io::Result<()> {
    let Entry { path, metadata } = entry;
    let relative = path.strip_prefix(&plan.source).map_err(io::Error::other)?;
    let kind = metadata.file_type();
    if kind.is_dir() {
        fs::create_dir(target)?;
    } else if kind.is_symlink() {
        symlink(fs::read_link(path)?, target)?;
    } else if kind.is_file() && is_replaced(&plan.layer, relative) {
        fs::write(target, hidden_text(&plan.layer, relative))?;
    } else if kind.is_file() && metadata.len() <= LARGEST {
        match fs::copy(path, target) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => return Ok(()),
            copied => copied?,
        };
    } else {
        return Ok(());
    }
    let Owner { uid, gid } = owner(metadata.uid(), metadata.gid());
    lchown(target, Some(uid), Some(gid))?;
    if kind.is_file() { finish(target, metadata) } else { Ok(()) }
}

/// Gives a file or a directory the mode and the times of the host's.
fn finish(target: &Path, metadata: &fs::Metadata) -> io::Result<()> {
    let kept = if metadata.is_dir() { 0o7777 } else { 0o777 };
    fs::set_permissions(target, fs::Permissions::from_mode(metadata.mode() & kept))?;
    let time = |seconds, nanoseconds| Timespec { tv_sec: seconds, tv_nsec: nanoseconds };
    let times = Timestamps {
        last_access: time(metadata.atime(), metadata.atime_nsec()),
        last_modification: time(metadata.mtime(), metadata.mtime_nsec()),
    };
    Ok(rustix::fs::utimensat(CWD, target, &times, AtFlags::SYMLINK_NOFOLLOW)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_the_hosts_roots_is_root_inside_and_what_is_the_callers_the_users() {
        let owner = |uid, gid| Owner { uid, gid };
        let (caller, ann, root) = (owner(1000, 100), owner(1000, 100), Owner::default());
        assert_eq!(inside(owner(0, 0), caller, ann), root);
        assert_eq!(inside(owner(33, 50), caller, ann), owner(33, 50));
        assert_eq!(inside(caller, caller, ann), ann);
        assert_eq!(inside(caller, caller, root), root);
        assert_eq!(inside(owner(70_000, 70_000), caller, ann), root);
        // Or what is somebody else's outside would be the user's inside.
        assert_eq!(inside(owner(2000, 0), caller, owner(2000, 100)), root);
    }
}
