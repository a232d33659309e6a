//! Files of the sandbox: paths, single files, directories; `archive` and `search` are beside this.
//!
//! Everything here is synchronous and acts with the rights of its thread, which `rights` makes those of the sandbox's
//! user. How a file is replaced and a tree unpacked is `wharf-files`'.

pub mod archive;
mod ignored;
pub mod rights;
pub mod search;
pub mod stream;

use std::{
    fs::{self, File, Metadata, OpenOptions},
    io,
    os::unix::{
        ffi::OsStrExt,
        fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    },
    path::{Path, PathBuf},
};

use rustix::fs::{AtFlags, CWD, RenameFlags};
pub use wharf_files::{Bounds, NewFile, Unpacked, Wanted};
use wharf_files::{ReplaceError, TreeError};
use wharf_protocol::{DirectoryListing, FileKind, FileStat, FileTime, Problem, ProblemKind};

const LONGEST_PATH: usize = 4096;
/// Entries of one listing.
const LONGEST_LISTING: usize = 100_000;

/// Why something could not be done with a file.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    #[error("the path must be absolute, the name of something, without NUL and at most {LONGEST_PATH} bytes long")]
    Path { path: String },
    #[error("there is no `{path}`", path = path.display())]
    NotFound { path: PathBuf },
    #[error("`{path}` exists already", path = path.display())]
    Exists { path: PathBuf },
    #[error("`{path}` is a directory", path = path.display())]
    IsDirectory { path: PathBuf },
    #[error("`{path}` is not a directory", path = path.display())]
    NotDirectory { path: PathBuf },
    #[error("`{path}` is not empty: say that it shall be removed with all that is in it", path = path.display())]
    NotEmpty { path: PathBuf },
    #[error("`{path}` is neither a file nor a directory", path = path.display())]
    Special { path: PathBuf },
    #[error("could not {action} `{path}`: {source}", path = path.display())]
    System { action: &'static str, path: PathBuf, source: io::Error },
    #[error("the archive is refused: {reason}")]
    Archive { reason: String },
    #[error("more than the allowed {limit} {what}")]
    TooLarge { limit: u64, what: &'static str },
    #[error("{field} is not valid: {reason}")]
    Pattern { field: &'static str, value: String, reason: String },
    #[error("the upload ended before its end")]
    Interrupted,
    #[error("could not act as the sandbox's user: {0}")]
    Rights(#[source] io::Error),
    #[error("could not write `{path}`: {source}", path = path.display())]
    Replace { path: PathBuf, source: ReplaceError },
}

impl From<FilesError> for Problem {
    fn from(error: FilesError) -> Self {
        let detail = error.to_string();
        match error {
            FilesError::Path { path } => Self::invalid("path", path, detail),
            FilesError::Pattern { field, value, .. } => Self::invalid(field, value, detail),
            FilesError::NotFound { .. } => Self::new(ProblemKind::NotFound, detail),
            FilesError::Exists { .. }
            | FilesError::IsDirectory { .. }
            | FilesError::NotDirectory { .. }
            | FilesError::NotEmpty { .. }
            | FilesError::Special { .. } => Self::new(ProblemKind::Conflict, detail),
            FilesError::System { .. } | FilesError::Rights(_) | FilesError::Replace { .. } => {
                Self::new(ProblemKind::OperatingSystem, detail)
            }
            FilesError::Archive { .. } | FilesError::Interrupted => Self::new(ProblemKind::InvalidRequest, detail),
            FilesError::TooLarge { .. } => Self::new(ProblemKind::TooLarge, detail),
        }
    }
}

impl FilesError {
    /// The operating system's error at `path`, told apart where a caller acts on it.
    pub(crate) fn system(action: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::NotFound => Self::NotFound { path },
            io::ErrorKind::AlreadyExists => Self::Exists { path },
            io::ErrorKind::IsADirectory => Self::IsDirectory { path },
            io::ErrorKind::NotADirectory => Self::NotDirectory { path },
            io::ErrorKind::DirectoryNotEmpty => Self::NotEmpty { path },
            _ => Self::System { action, path, source },
        }
    }

    /// Why `path` could not be written.
    pub(crate) fn replace(path: &Path, error: ReplaceError) -> Self {
        match error {
            ReplaceError::Special => Self::Special { path: path.to_owned() },
            ReplaceError::System(source) => Self::system("write", path, source),
            source => Self::Replace { path: path.to_owned(), source },
        }
    }
}

impl From<TreeError> for FilesError {
    fn from(error: TreeError) -> Self {
        match error {
            TreeError::Archive { reason } => Self::Archive { reason },
            TreeError::TooLarge { limit, what } => Self::TooLarge { limit, what },
            TreeError::System { action, path, source } => Self::system(action, &path, source),
            TreeError::Stream(_) => Self::Interrupted,
        }
    }
}

/// Checks a path of a request.
///
/// # Errors
///
/// [`FilesError::Path`] unless it is absolute, has no NUL and is no longer than the kernel takes.
pub fn checked_path(path: &str) -> Result<PathBuf, FilesError> {
    if path.starts_with('/') && !path.contains('\0') && path.len() <= LONGEST_PATH {
        Ok(PathBuf::from(path))
    } else {
        Err(FilesError::Path { path: path.to_owned() })
    }
}

/// Opens a regular file for reading; says how large it is.
///
/// # Errors
///
/// As the operating system says; [`FilesError::Special`] for what is no file, without waiting on it.
pub fn open(path: &Path) -> Result<(File, u64), FilesError> {
    let system = |source| FilesError::system("read", path, source);
    // Opening a FIFO must not wait for its other end.
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path).map_err(system)?;
    let metadata = file.metadata().map_err(system)?;
    if metadata.is_dir() {
        return Err(FilesError::IsDirectory { path: path.to_owned() });
    }
    if !metadata.is_file() {
        return Err(FilesError::Special { path: path.to_owned() });
    }
    Ok((file, metadata.len()))
}

/// Describes one path; a symlink itself, or with `follow` what it points to.
///
/// # Errors
///
/// As the operating system says.
pub fn stat(path: &Path, follow: bool) -> Result<FileStat, FilesError> {
    let metadata = if follow { fs::metadata(path) } else { fs::symlink_metadata(path) };
    let metadata = metadata.map_err(|source| FilesError::system("look at", path, source))?;
    Ok(described(path.display().to_string(), path, &metadata))
}

fn described(name: String, path: &Path, metadata: &Metadata) -> FileStat {
    let kind = metadata.file_type();
    let modified = FileTime { seconds: metadata.mtime(), nanoseconds: metadata.mtime_nsec() as u32 };
    FileStat {
        name,
        kind: if kind.is_file() {
            FileKind::File
        } else if kind.is_dir() {
            FileKind::Directory
        } else if kind.is_symlink() {
            FileKind::Symlink
        } else {
            debug_assert!(kind.is_fifo() || kind.is_socket() || kind.is_block_device() || kind.is_char_device());
            FileKind::Other
        },
        size: metadata.len(),
        mode: metadata.mode() & 0o7777,
        uid: metadata.uid(),
        gid: metadata.gid(),
        modified_at: modified.seconds as f64 + f64::from(modified.nanoseconds) / 1e9,
        modified: Some(modified),
        target: fs::read_link(path).ok().filter(|_| kind.is_symlink()).map(|target| target.display().to_string()),
    }
}

/// The entries of a directory by name; at most `LONGEST_LISTING`.
///
/// # Errors
///
/// As the operating system says.
pub fn list(path: &Path) -> Result<DirectoryListing, FilesError> {
    let system = |source| FilesError::system("list", path, source);
    let mut entries = Vec::new();
    let mut truncated = false;
    for entry in fs::read_dir(path).map_err(system)? {
        let entry = entry.map_err(system)?;
        if entries.len() == LONGEST_LISTING {
            truncated = true;
            break;
        }
        // What vanishes while it is listed is not there.
        if let Ok(metadata) = entry.metadata() {
            let name = entry.file_name().to_string_lossy().into_owned();
            entries.push(described(name, &entry.path(), &metadata));
        }
    }
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(DirectoryListing { path: path.display().to_string(), entries, truncated })
}

/// Makes a directory and its missing parents; an existing one is fine.
///
/// # Errors
///
/// As the operating system says; [`FilesError::NotDirectory`] if something else is there.
pub fn make_directory(path: &Path, mode: Option<u32>) -> Result<(), FilesError> {
    wharf_files::make_directories(path).map_err(|source| FilesError::system("make", path, source))?;
    if let Some(mode) = mode {
        fs::set_permissions(path, fs::Permissions::from_mode(mode & 0o7777))
            .map_err(|source| FilesError::system("change", path, source))?;
    }
    Ok(())
}

/// Moves a file or a directory, also to another file system.
///
/// # Errors
///
/// [`FilesError::Exists`] if something is at `to` and `overwrite` is not said; else as the operating system says. Then
/// nothing is at `to` that was not there before; between file systems `from` may have been removed in part.
pub fn rename(from: &Path, to: &Path, overwrite: bool) -> Result<(), FilesError> {
    let flags = if overwrite { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
    match rename_by(from, to, flags) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::XDEV) => move_by_copy(from, to, flags),
        Err(rustix::io::Errno::EXIST) => Err(FilesError::Exists { path: to.to_owned() }),
        Err(error) => Err(FilesError::system("move", from, error.into())),
    }
}

fn rename_by(from: &Path, to: &Path, flags: RenameFlags) -> rustix::io::Result<()> {
    match rustix::fs::renameat_with(CWD, from, CWD, to, flags) {
        // Not every file system knows the flag.
        Err(rustix::io::Errno::INVAL) if flags.contains(RenameFlags::NOREPLACE) => match fs::symlink_metadata(to) {
            Ok(_) => Err(rustix::io::Errno::EXIST),
            Err(_) => rustix::fs::renameat(CWD, from, CWD, to),
        },
        renamed => renamed,
    }
}

/// Copies beside `to` and renames once the copy is whole.
fn move_by_copy(from: &Path, to: &Path, flags: RenameFlags) -> Result<(), FilesError> {
    if flags.contains(RenameFlags::NOREPLACE) && fs::symlink_metadata(to).is_ok() {
        return Err(FilesError::Exists { path: to.to_owned() });
    }
    let metadata = fs::symlink_metadata(from).map_err(|source| FilesError::system("move", from, source))?;
    let temporary = to.with_file_name(wharf_files::random_name());
    let renamed = copy(from, &temporary, &metadata)
        .and_then(|()| rename_by(&temporary, to, flags).map_err(|error| FilesError::system("move", to, error.into())));
    if let Err(error) = renamed {
        // The first error is the one that matters.
        let _ = remove(&temporary, true);
        return Err(error);
    }
    remove(from, true)
}

fn copy(from: &Path, to: &Path, metadata: &Metadata) -> Result<(), FilesError> {
    let system = |source| FilesError::system("move", from, source);
    if metadata.is_symlink() {
        fs::read_link(from).and_then(|target| std::os::unix::fs::symlink(target, to)).map_err(system)?;
    } else if metadata.is_dir() {
        fs::create_dir(to).map_err(system)?;
        for entry in fs::read_dir(from).map_err(system)? {
            let entry = entry.map_err(system)?;
            copy(&entry.path(), &to.join(entry.file_name()), &entry.metadata().map_err(system)?)?;
        }
    } else if metadata.is_file() {
        let (mut source, _) = open(from)?;
        let mut target = OpenOptions::new().write(true).create_new(true).mode(0o600).open(to).map_err(system)?;
        io::copy(&mut source, &mut target).map_err(system)?;
    } else {
        return Err(FilesError::Special { path: from.to_owned() });
    }
    match std::os::unix::fs::lchown(to, Some(metadata.uid()), Some(metadata.gid())) {
        // As with mv(1): who may not give files away keeps them.
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
        given => given.map_err(system)?,
    }
    if !metadata.is_symlink() {
        fs::set_permissions(to, metadata.permissions()).map_err(system)?;
    }
    let modified = rustix::fs::Timespec { tv_sec: metadata.mtime(), tv_nsec: metadata.mtime_nsec() };
    let times = rustix::fs::Timestamps { last_access: modified, last_modification: modified };
    rustix::fs::utimensat(CWD, to, &times, AtFlags::SYMLINK_NOFOLLOW).map_err(|error| system(error.into()))
}

/// Removes a file, a symlink itself, or a directory; a directory that is not empty only if `recursive`.
///
/// # Errors
///
/// As the operating system says; [`FilesError::NotDirectory`] if the path ends as a directory's and something else is there,
/// also a link to one. `/` is never removed, nor what ends in `..`.
pub fn remove(path: &Path, recursive: bool) -> Result<(), FilesError> {
    let says_directory = path.as_os_str().as_bytes().ends_with(b"/") || path.as_os_str().as_bytes().ends_with(b"/.");
    // Without the end that would have the system follow a link.
    let named: PathBuf = path.components().collect();
    if named.file_name().is_none() {
        return Err(FilesError::Path { path: path.display().to_string() });
    }
    let path = named.as_path();
    let system = |source| FilesError::system("remove", path, source);
    let metadata = fs::symlink_metadata(path).map_err(system)?;
    if !metadata.is_dir() && says_directory {
        Err(FilesError::NotDirectory { path: path.to_owned() })
    } else if !metadata.is_dir() {
        fs::remove_file(path).map_err(system)
    } else if recursive {
        fs::remove_dir_all(path).map_err(system)
    } else {
        fs::remove_dir(path).map_err(system)
    }
}

#[cfg(test)]
mod tests;
