//! What stands on the host where a sandbox must not make anything, for as long as one runs that has it mounted.

use std::{
    fs::File,
    io::{self, Write},
    os::{fd::OwnedFd, unix::fs::MetadataExt},
    path::Path,
};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags};

use super::Placeholder;

impl Placeholder {
    /// Whether there is something at its place.
    pub(in super::super) fn is_there(&self) -> bool {
        std::fs::symlink_metadata(self.source.join(&self.path)).is_ok()
    }
}

/// Makes those that are missing. They belong to whom the directory belongs to that they stand in.
///
/// # Errors
///
/// The kernel's, with the path.
pub(in super::super) fn set_placeholders(placeholders: &[Placeholder]) -> io::Result<()> {
    placeholders.iter().try_for_each(|placeholder| {
        set(placeholder).map_err(|error| {
            let path = placeholder.source.join(&placeholder.path);
            io::Error::new(error.kind(), format!("`{}`: {error}", path.display()))
        })
    })
}

fn set(placeholder: &Placeholder) -> io::Result<()> {
    let (parent, name) = parent_of(placeholder)?;
    let owner = File::from(parent.try_clone()?).metadata()?;
    match &placeholder.text {
        None => match rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755)) {
            Err(rustix::io::Errno::EXIST) => return Ok(()),
            made => made?,
        },
        Some(text) => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
            match rustix::fs::openat(&parent, name, flags, Mode::from_raw_mode(0o644)) {
                Err(rustix::io::Errno::EXIST) => return Ok(()),
                made => File::from(made?).write_all(text.as_bytes())?,
            }
        }
    }
    if rustix::process::geteuid().is_root() {
        let (uid, gid) = (rustix::fs::Uid::from_raw(owner.uid()), rustix::fs::Gid::from_raw(owner.gid()));
        rustix::fs::chownat(&parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    }
    Ok(())
}

/// Takes away those that are still what was made: a directory that is empty, a file with the same text.
pub(in super::super) fn remove_placeholders<'a>(placeholders: impl IntoIterator<Item = &'a Placeholder>) {
    for placeholder in placeholders {
        // It may be gone, or somebody has put something there: then it is theirs.
        let _ = remove(placeholder);
    }
}

fn remove(placeholder: &Placeholder) -> io::Result<()> {
    let (parent, name) = parent_of(placeholder)?;
    let Some(text) = &placeholder.text else {
        return Ok(rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR)?);
    };
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let file = File::from(rustix::fs::openat(&parent, name, flags, Mode::empty())?);
    let metadata = file.metadata()?;
    if metadata.is_file() && metadata.len() == text.len() as u64 && io::read_to_string(file)? == *text {
        rustix::fs::unlinkat(&parent, name, AtFlags::empty())?;
    }
    Ok(())
}

/// The directory of a placeholder, reached without a link: whoever is inside may have put one there.
fn parent_of(placeholder: &Placeholder) -> io::Result<(OwnedFd, &Path)> {
    let flags = OFlags::DIRECTORY | OFlags::CLOEXEC;
    let source = rustix::fs::openat2(CWD, &placeholder.source, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS)?;
    let name = placeholder.path.file_name().ok_or_else(|| io::Error::other("a placeholder has a name"))?;
    let parent = placeholder.path.parent().filter(|parent| !parent.as_os_str().is_empty());
    let parent = match parent {
        None => source,
        Some(parent) => {
            let within = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
            rustix::fs::openat2(&source, parent, flags, Mode::empty(), within)?
        }
    };
    Ok((parent, Path::new(name)))
}
