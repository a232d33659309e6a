//! Writing a file so that it is complete or has changed nothing.
//!
//! ```text
//!             beside the target                            only the target can be written
//!   create ─▶ nameless file ─▶ write … ─▶ commit ─▶ name, rename ──────(EBUSY, EXDEV)──────▶ in place:
//!                                 │                                                     back up, reserve, copy,
//!                                 ▼ dropped, or the process killed: gone                put back if that fails
//! ```
//!
//! A file is replaced by a rename. Where a rename would change more than the content (a hard link's other names, an
//! owner that we may not give) or cannot be done (a directory that may not be written, a file that is a mount), the
//! content is collected first and copied into the old file: with its room reserved and the old content kept, so that a
//! failure in the middle puts back what was there.
//!
//! Content that replaces content is on the disk (`fdatasync`) before the old is gone. A new file is not waited for:
//! there is nothing to lose. Only a process that is killed outright in the middle of writing in place, or a machine that
//! loses power there, leaves half a file; who handles a signal waits for it ([`crate::finish_writes`]). Where the file
//! system has no nameless files, a killed process also leaves `.wharf-` and 16 digits.

use std::{
    ffi::{OsStr, OsString},
    fs::{File, Metadata, Permissions},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::{
        ffi::OsStrExt,
        fs::{MetadataExt, PermissionsExt},
    },
    path::Path,
};

use rustix::{
    fs::{AtFlags, FallocateFlags, FileType, Mode, OFlags, Timespec, Timestamps, XattrFlags},
    io::Errno,
};

use crate::{
    place::{Place, copy_all, give_name, named, nameless, spool},
    unfinished::Unfinished,
};

/// What a file shall be like.
#[derive(Debug, Clone, Copy, Default)]
pub struct Wanted {
    /// Permission bits; `None`: those of the file that is replaced, else [`Wanted::fresh_mode`].
    pub mode: Option<u32>,
    /// Permission bits of a file that was not there; `None`: 0666 less the umask.
    pub fresh_mode: Option<u32>,
    /// When it was modified, in seconds since 1970, rounded down, and nanoseconds.
    pub modified: Option<(i64, u32)>,
    /// Whether missing directories are made.
    pub parents: bool,
    /// Whether a link, a pipe or the like at the path's end is replaced itself. Otherwise a link stays, and its target is
    /// replaced.
    pub replace_special: bool,
}

/// Why a file could not be written. The old one is as it was, unless [`ReplaceError::Torn`] says otherwise.
#[derive(Debug, thiserror::Error)]
pub enum ReplaceError {
    /// A pipe, a socket or a device is at the path, or a link of `/proc` to something open, such as `/dev/stdout`.
    #[error("it is neither a file nor a directory")]
    Special,
    #[error("it cannot be replaced by another file ({reason}), and writing it in place failed: {source}")]
    InPlace { reason: String, source: io::Error },
    /// Writing in place failed, and so did putting the old content back.
    #[error("writing it in place failed ({source}), and so did putting the old content back ({restoring})")]
    Torn { source: io::Error, restoring: io::Error },
    #[error("{0}")]
    System(#[from] io::Error),
}

impl ReplaceError {
    /// The operating system's own error.
    pub fn into_io(self) -> io::Error {
        match self {
            Self::Special => Errno::INVAL.into(),
            Self::InPlace { source, .. } | Self::Torn { source, .. } | Self::System(source) => source,
        }
    }
}

impl From<Errno> for ReplaceError {
    fn from(error: Errno) -> Self {
        Self::System(error.into())
    }
}

/// A file being written. Dropped before [`NewFile::commit`], it leaves nothing behind and has changed nothing.
#[derive(Debug)]
pub struct NewFile {
    content: File,
    target: Place,
    /// The content's name in the target's directory; `None` if it has none or is in its place.
    temporary: Option<OsString>,
    existing: Option<Metadata>,
    /// Why the old file has to stay the file that it is.
    stays: Option<String>,
    wanted: Wanted,
    _unfinished: Unfinished,
}

impl NewFile {
    /// Begins to write `path`.
    ///
    /// # Errors
    ///
    /// As the operating system says: an existing file must be writable for the caller, not only its directory.
    /// [`ReplaceError::Special`] for what is no file, without waiting on it.
    pub fn create(path: &Path, wanted: Wanted) -> Result<Self, ReplaceError> {
        let target = Place::of(path, wanted.parents, !wanted.replace_special)?;
        let existing = match target.kind()? {
            None => None,
            Some(FileType::Directory) => return Err(Errno::ISDIR.into()),
            Some(FileType::RegularFile) => writable(&target)?,
            Some(_) if wanted.replace_special => None,
            Some(_) => return Err(ReplaceError::Special),
        };
        let mut stays = existing.as_ref().filter(|old| old.nlink() > 1).map(|_| "it has other names".to_owned());
        // Nobody but the owner reads what is not finished, unless a new file shall have what the umask leaves.
        let umask_decides = existing.is_none() && wanted.mode.or(wanted.fresh_mode).is_none();
        let mode = Mode::from_raw_mode(if umask_decides { 0o666 } else { 0o600 });
        let made = nameless(&target.directory, mode).map(|file| (file, None));
        // Not every file system has nameless files.
        let made = made.or_else(|_| named(&target.directory, mode).map(|(file, name)| (file, Some(name))));
        let (content, temporary) = match made {
            Ok(made) => made,
            Err(error) if existing.is_some() => {
                stays.get_or_insert_with(|| format!("no file can be made beside it: {}", io::Error::from(error)));
                (spool(&std::env::temp_dir())?, None)
            }
            Err(error) => return Err(error.into()),
        };
        Ok(Self { content, target, temporary, existing, stays, wanted, _unfinished: Unfinished::begin() })
    }

    /// The file that is being written, for its owner to be changed; it counts only for one that was not there before.
    pub fn file(&self) -> &File {
        &self.content
    }

    /// Whether another file is replaced.
    pub fn replaces(&self) -> bool {
        self.existing.is_some()
    }

    /// Puts the file in its place.
    ///
    /// # Errors
    ///
    /// As the operating system says.
    pub fn commit(mut self) -> Result<(), ReplaceError> {
        if self.stays.is_none()
            && let Err(error) = self.dress()
        {
            if self.existing.is_none() {
                return Err(error.into());
            }
            self.stays = Some(format!("its owner, mode or attributes cannot be kept: {error}"));
        }
        if self.stays.is_some() {
            return self.write_in_place();
        }
        if self.existing.is_some() {
            rustix::fs::fdatasync(&self.content)?;
        }
        if self.temporary.is_none() {
            let (copy, name) = give_name(&self.content, &self.target.directory)?;
            self.temporary = Some(name);
            if let Some(copy) = copy {
                self.content = copy;
                self.dress()?;
                if self.existing.is_some() {
                    rustix::fs::fdatasync(&self.content)?;
                }
            }
        }
        let directory = &self.target.directory;
        let temporary = self.temporary.as_deref().expect("it was given a name");
        match rustix::fs::renameat(directory, temporary, directory, &self.target.name) {
            Ok(()) => {
                self.temporary = None;
                Ok(())
            }
            Err(error @ (Errno::BUSY | Errno::XDEV | Errno::PERM | Errno::ACCESS)) if self.existing.is_some() => {
                self.stays = Some(io::Error::from(error).to_string());
                self.write_in_place()
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Gives the new file what the old one has but its content.
    fn dress(&self) -> io::Result<()> {
        let wanted = &self.wanted;
        let mode = match &self.existing {
            None => wanted.mode.or(wanted.fresh_mode),
            Some(old) => {
                let ours = self.content.metadata()?;
                if (old.uid(), old.gid()) != (ours.uid(), ours.gid()) {
                    std::os::unix::fs::fchown(&self.content, Some(old.uid()), Some(old.gid()))?;
                }
                let from = open_existing(&self.target, OFlags::RDONLY).or_else(|error| match error {
                    // Without attributes that we could read there are none to keep.
                    Errno::ACCESS => open_existing(&self.target, OFlags::WRONLY),
                    error => Err(error),
                });
                match from {
                    Ok(from) => copy_attributes(&from, &self.content)?,
                    // A running program.
                    Err(Errno::TXTBSY) => {}
                    Err(error) => return Err(error.into()),
                }
                Some(wanted.mode.unwrap_or(old.mode()))
            }
        };
        // Last: changing the owner takes bits away.
        if let Some(mode) = mode {
            self.content.set_permissions(Permissions::from_mode(mode & 0o7777))?;
        }
        set_modified(&self.content, wanted.modified)
    }

    fn write_in_place(mut self) -> Result<(), ReplaceError> {
        let reason = self.stays.take().unwrap_or_default();
        let failed = |source| ReplaceError::InPlace { reason: reason.clone(), source };
        let target = open_existing(&self.target, OFlags::RDWR).map_err(|error| failed(error.into()))?;
        let length = self.content.seek(SeekFrom::End(0))?;
        let old_length = target.metadata()?.len();
        let backup = spool(&std::env::temp_dir()).map_err(failed)?;
        copy_all(&target, &backup).map_err(failed)?;
        if length > 0
            && let Err(error @ (Errno::NOSPC | Errno::DQUOT | Errno::FBIG)) =
                rustix::fs::fallocate(&target, FallocateFlags::KEEP_SIZE, 0, length)
        {
            // What was reserved beyond the end goes again.
            let _ = target.set_len(old_length);
            return Err(failed(error.into()));
        }
        let written = copy_all(&self.content, &target)
            .and_then(|()| target.set_len(length))
            .and_then(|()| {
                self.wanted.mode.map_or(Ok(()), |mode| target.set_permissions(Permissions::from_mode(mode & 0o7777)))
            })
            .and_then(|()| set_modified(&target, self.wanted.modified))
            .and_then(|()| target.sync_data());
        let Err(source) = written else { return Ok(()) };
        match copy_all(&backup, &target).and_then(|()| target.set_len(old_length)) {
            Ok(()) => Err(failed(source)),
            Err(restoring) => Err(ReplaceError::Torn { source, restoring }),
        }
    }
}

impl Write for NewFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.content.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.content.flush()
    }
}

/// What has been written so far.
impl Read for NewFile {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.content.read(buffer)
    }
}

impl Seek for NewFile {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.content.seek(to)
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if let Some(temporary) = &self.temporary {
            // Nobody can do more about a file that cannot be removed.
            let _ = rustix::fs::unlinkat(&self.target.directory, temporary, AtFlags::empty());
        }
    }
}

/// The file at `target`, if the caller may write it. A rename asks for no such right, so it is asked for here.
fn writable(target: &Place) -> Result<Option<Metadata>, ReplaceError> {
    let file = match open_existing(target, OFlags::WRONLY) {
        // It runs: nobody may write it, but who could may replace it. The kernel looks at the rights first.
        Err(Errno::TXTBSY) => open_existing(target, OFlags::PATH)?,
        Err(Errno::NOENT) => return Ok(None),
        opened => opened?,
    };
    let metadata = file.metadata()?;
    if metadata.is_file() { Ok(Some(metadata)) } else { Err(ReplaceError::Special) }
}

fn open_existing(target: &Place, access: OFlags) -> Result<File, Errno> {
    let flags = access | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::openat(&target.directory, &target.name, flags, Mode::empty()).map(File::from)
}

fn set_modified(file: &File, modified: Option<(i64, u32)>) -> io::Result<()> {
    let Some((seconds, nanoseconds)) = modified else { return Ok(()) };
    rustix::fs::futimens(file, &times(seconds, nanoseconds))?;
    Ok(())
}

/// Modified at that time, and read now.
pub(crate) fn times(seconds: i64, nanoseconds: u32) -> Timestamps {
    Timestamps {
        last_access: Timespec { tv_sec: 0, tv_nsec: rustix::fs::UTIME_NOW },
        last_modification: Timespec { tv_sec: seconds, tv_nsec: nanoseconds.into() },
    }
}

/// Extended attributes and access lists. File capabilities go, as with every write.
fn copy_attributes(from: &File, to: &File) -> io::Result<()> {
    let names = match attribute(|buffer| rustix::fs::flistxattr(from, buffer)) {
        Ok(names) => names,
        Err(Errno::OPNOTSUPP) => return Ok(()),
        Err(error) => return Err(error.into()),
    };
    for name in names.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
        let security = name.starts_with(b"security.");
        if name == b"security.capability" {
            continue;
        }
        let name = OsStr::from_bytes(name);
        let value = match attribute(|buffer| rustix::fs::fgetxattr(from, name, buffer)) {
            Ok(value) => value,
            Err(Errno::NODATA) => continue,
            Err(error) => return Err(error.into()),
        };
        match rustix::fs::fsetxattr(to, name, &value, XattrFlags::empty()) {
            Ok(()) => {}
            // A label that the system gives every file here by itself.
            Err(_) if security => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// A list or value of unknown size: the kernel bounds both at 64 KiB.
fn attribute(read: impl Fn(&mut [u8]) -> Result<usize, Errno>) -> Result<Vec<u8>, Errno> {
    let mut buffer = vec![0; 256];
    loop {
        match read(&mut buffer) {
            Err(Errno::RANGE) if buffer.len() < 64 << 10 => buffer = vec![0; 64 << 10],
            Err(error) => return Err(error),
            Ok(length) => {
                buffer.truncate(length);
                return Ok(buffer);
            }
        }
    }
}

#[cfg(test)]
mod tests;
