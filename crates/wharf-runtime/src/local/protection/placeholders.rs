//! What stands on the host where a sandbox must not make anything, for as long as one runs that has it mounted.

use std::{
    fs::{File, Metadata},
    io::{self, Write},
    os::{fd::OwnedFd, unix::fs::MetadataExt},
    path::Path,
};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags};

use super::{Content, EVERYTHING, GITIGNORE, Placeholder};

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
    let made = match &placeholder.content {
        Content::EmptyDirectory => make_directory(&parent, name),
        Content::IgnoredDirectory => make_directory(&parent, name).and_then(|()| {
            let directory = open(&parent, name, OFlags::DIRECTORY)?;
            make_file(&directory, Path::new(GITIGNORE), EVERYTHING)?;
            give(&directory, Path::new(GITIGNORE), &owner)
        }),
        Content::File(text) => make_file(&parent, name, text),
    };
    match made {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made.and_then(|()| give(&parent, name, &owner)),
    }
}

fn make_directory(parent: &OwnedFd, name: &Path) -> io::Result<()> {
    Ok(rustix::fs::mkdirat(parent, name, Mode::from_raw_mode(0o755))?)
}

fn make_file(parent: &OwnedFd, name: &Path, text: &str) -> io::Result<()> {
    let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW;
    File::from(rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(0o644))?).write_all(text.as_bytes())
}

fn give(parent: &OwnedFd, name: &Path, owner: &Metadata) -> io::Result<()> {
    if rustix::process::geteuid().is_root() {
        let (uid, gid) = (rustix::fs::Uid::from_raw(owner.uid()), rustix::fs::Gid::from_raw(owner.gid()));
        rustix::fs::chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    }
    Ok(())
}

fn open(parent: &OwnedFd, name: &Path, flags: OFlags) -> io::Result<OwnedFd> {
    let flags = flags | OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    Ok(rustix::fs::openat(parent, name, flags, Mode::empty())?)
}

/// Takes away those that are still what was made: a directory with nothing of anybody else's, a file with the same text.
pub(in super::super) fn remove_placeholders<'a>(placeholders: impl IntoIterator<Item = &'a Placeholder>) {
    for placeholder in placeholders {
        // It may be gone, or somebody has put something there: then it is theirs.
        let _ = remove(placeholder);
    }
}

fn remove(placeholder: &Placeholder) -> io::Result<()> {
    let (parent, name) = parent_of(placeholder)?;
    match &placeholder.content {
        Content::File(text) => return remove_file(&parent, name, text),
        Content::IgnoredDirectory => {
            let directory = open(&parent, name, OFlags::DIRECTORY)?;
            // What somebody has put beside it is theirs, and not to be ignored.
            let _ = remove_file(&directory, Path::new(GITIGNORE), EVERYTHING);
        }
        Content::EmptyDirectory => {}
    }
    Ok(rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR)?)
}

fn remove_file(parent: &OwnedFd, name: &Path, text: &str) -> io::Result<()> {
    let file = File::from(open(parent, name, OFlags::empty())?);
    let metadata = file.metadata()?;
    if metadata.is_file() && metadata.len() == text.len() as u64 && io::read_to_string(file)? == text {
        rustix::fs::unlinkat(parent, name, AtFlags::empty())?;
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
