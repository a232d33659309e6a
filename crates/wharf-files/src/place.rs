//! Finding the directory and the name that a path means, by descriptor.

use std::{
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, Read, Seek, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{
            ffi::{OsStrExt, OsStringExt},
            fs::MetadataExt,
        },
    },
    path::{Component, Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, CWD, FileType, Mode, OFlags},
    io::Errno,
};

const COPY_BYTES: usize = 64 << 10;
/// As many links as the kernel follows.
const MOST_LINKS: usize = 40;
/// What a directory is opened for when only names in it are used.
const DIRECTORY: OFlags = OFlags::PATH.union(OFlags::DIRECTORY).union(OFlags::CLOEXEC);

/// A name in a directory.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) directory: OwnedFd,
    pub(crate) name: OsString,
}

impl Place {
    /// Where `path` leads. A link at its end is followed if `follow`, so that its target is meant and not the link, but
    /// for those of `/proc`.
    ///
    /// What was looked up stays what it is when somebody swaps a directory for a link meanwhile.
    pub(crate) fn of(path: &Path, parents: bool, follow: bool) -> io::Result<Self> {
        let (parent, name) = split(path)?;
        let directory =
            if parents { make_directories(&parent)? } else { rustix::fs::open(&parent, DIRECTORY, Mode::empty())? };
        let mut place = Self { directory, name };
        for _ in 0..MOST_LINKS {
            if !follow || place.kind()? != Some(FileType::Symlink) || place.is_of_processes()? {
                return Ok(place);
            }
            let target = rustix::fs::readlinkat(&place.directory, &place.name, Vec::new())?;
            let (parent, name) = split(Path::new(OsStr::from_bytes(target.as_bytes())))?;
            let directory = rustix::fs::openat(&place.directory, &parent, DIRECTORY, Mode::empty())?;
            place = Self { directory, name };
        }
        Err(Errno::LOOP.into())
    }

    /// Whether a link there is the kernel's own to something open: its text need not be the name of anything.
    fn is_of_processes(&self) -> io::Result<bool> {
        Ok(rustix::fs::fstatfs(&self.directory)?.f_type == rustix::fs::PROC_SUPER_MAGIC)
    }

    /// What is there; a link itself.
    pub(crate) fn kind(&self) -> io::Result<Option<FileType>> {
        match rustix::fs::statat(&self.directory, &self.name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => Ok(Some(FileType::from_raw_mode(stat.st_mode))),
            Err(Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// The directory and the name in it. What ends in `..` or has no name is a directory.
fn split(path: &Path) -> io::Result<(PathBuf, OsString)> {
    let Some(name) = path.file_name() else { return Err(Errno::ISDIR.into()) };
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    Ok((parent.to_owned(), name.to_owned()))
}

/// Makes a directory and its missing parents; an existing one is fine, a link to one too.
///
/// # Errors
///
/// As the operating system says; `ENOTDIR` if something else is there.
pub fn make_directories(path: &Path) -> io::Result<OwnedFd> {
    let start = if path.is_absolute() { "/" } else { "." };
    let mut at = rustix::fs::openat(CWD, start, DIRECTORY, Mode::empty())?;
    for component in path.components() {
        let name = match component {
            Component::Normal(name) => name,
            Component::ParentDir => OsStr::new(".."),
            Component::RootDir | Component::CurDir | Component::Prefix(_) => continue,
        };
        at = match rustix::fs::openat(&at, name, DIRECTORY, Mode::empty()) {
            Ok(directory) => directory,
            Err(Errno::NOENT) => {
                match rustix::fs::mkdirat(&at, name, Mode::from_raw_mode(0o777)) {
                    // Somebody else was first, or a link leads nowhere: opening tells which.
                    Ok(()) | Err(Errno::EXIST) => {}
                    Err(error) => return Err(error.into()),
                }
                rustix::fs::openat(&at, name, DIRECTORY, Mode::empty())?
            }
            Err(error) => return Err(error.into()),
        };
    }
    Ok(at)
}

/// A name that nobody can foresee, for what is not finished.
pub fn random_name() -> OsString {
    let mut random = [0; 8];
    getrandom::fill(&mut random).expect("the kernel gives random bytes on every Linux since 3.17");
    let mut name = b".wharf-".to_vec();
    name.extend(format!("{:016x}", u64::from_ne_bytes(random)).bytes());
    OsString::from_vec(name)
}

/// A file without a name on the disk of `directory`, gone when it is closed.
///
/// # Errors
///
/// As the operating system says.
pub fn spool(directory: &Path) -> io::Result<File> {
    let owner_only = Mode::from_raw_mode(0o600);
    let flags = OFlags::RDWR | OFlags::CLOEXEC;
    if let Ok(file) = rustix::fs::openat(CWD, directory, OFlags::TMPFILE | flags, owner_only) {
        return Ok(file.into());
    }
    // Not every file system has nameless files.
    let directory = rustix::fs::open(directory, DIRECTORY, Mode::empty())?;
    let name = random_name();
    let create = OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
    let file = rustix::fs::openat(&directory, &name, create | flags, owner_only)?;
    rustix::fs::unlinkat(&directory, &name, AtFlags::empty())?;
    Ok(file.into())
}

/// A file in `directory` that is gone with the process until [`give_name`] gives it a name.
pub(crate) fn nameless(directory: &OwnedFd, mode: Mode) -> Result<File, Errno> {
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    rustix::fs::openat(directory, ".", flags, mode).map(File::from)
}

pub(crate) fn named(directory: &OwnedFd, mode: Mode) -> Result<(File, OsString), Errno> {
    let name = random_name();
    let flags = OFlags::RDWR | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = rustix::fs::openat(directory, &name, flags, mode)?;
    Ok((file.into(), name))
}

/// Gives a nameless file of `directory` a name for the moment until it is renamed. Where the kernel gives it none, as without
/// `/proc` or behind some filter of system calls, a copy has the name, with its owner and its mode.
pub(crate) fn give_name(file: &File, directory: &OwnedFd) -> io::Result<(Option<File>, OsString)> {
    let name = random_name();
    // The kernel takes the descriptor itself from those with CAP_DAC_READ_SEARCH, and since 6.10 from whoever opened it.
    let linked = rustix::fs::linkat(file, "", directory, &name, AtFlags::EMPTY_PATH).or_else(|_| {
        let open = format!("/proc/self/fd/{}", file.as_raw_fd());
        rustix::fs::linkat(CWD, open, directory, &name, AtFlags::SYMLINK_FOLLOW)
    });
    if linked.is_ok() {
        return Ok((None, name));
    }
    let (copy, name) = named(directory, Mode::from_raw_mode(0o600))?;
    let copied = copy_all(file, &copy).and_then(|()| {
        let (theirs, ours) = (file.metadata()?, copy.metadata()?);
        if (theirs.uid(), theirs.gid()) != (ours.uid(), ours.gid()) {
            std::os::unix::fs::fchown(&copy, Some(theirs.uid()), Some(theirs.gid()))?;
        }
        copy.set_permissions(theirs.permissions())
    });
    match copied {
        Ok(()) => Ok((Some(copy), name)),
        Err(error) => {
            let _ = rustix::fs::unlinkat(directory, &name, AtFlags::empty());
            Err(error)
        }
    }
}

/// Copies from the beginning, wherever the two stand. Not every file that can be written can be written at a position.
pub(crate) fn copy_all(mut from: &File, mut to: &File) -> io::Result<()> {
    from.rewind()?;
    to.rewind()?;
    let mut buffer = vec![0; COPY_BYTES];
    loop {
        match from.read(&mut buffer)? {
            0 => return Ok(()),
            count => to.write_all(&buffer[..count])?,
        }
    }
}
