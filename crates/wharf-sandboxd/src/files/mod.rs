//! Files of the sandbox: paths, single files, directories; `archive` and `search` are beside this.
//!
//! Everything here is synchronous and does no more than its caller may: sandboxd stands inside the sandbox, so the walls
//! are around both. What must not happen is that a hostile archive or a racing symlink makes sandboxd, which may be
//! root there, write where the caller did not say.

pub mod archive;
pub mod search;

use std::{
    fs::{self, File, Metadata, OpenOptions},
    io::{self, Write},
    os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown},
    path::{Component, Path, PathBuf},
    time::SystemTime,
};

use rustix::fs::{CWD, RenameFlags};
use wharf_protocol::{DirectoryListing, FileKind, FileStat, Problem, ProblemKind};

use crate::core::random_hex;

const LONGEST_PATH: usize = 4096;
/// Entries of one listing.
const LONGEST_LISTING: usize = 100_000;

/// Why something could not be done with a file.
#[derive(Debug, thiserror::Error)]
pub enum FilesError {
    #[error("the path must be absolute, without NUL and at most {LONGEST_PATH} bytes long")]
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
            FilesError::System { .. } => Self::new(ProblemKind::OperatingSystem, detail),
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
}

/// Whom new files belong to, when sandboxd may give them away.
#[derive(Debug, Clone, Copy)]
pub struct Owner {
    pub uid: u32,
    pub gid: u32,
}

impl Owner {
    fn give(self, file: &File) -> io::Result<()> {
        if rustix::process::geteuid().is_root() && self.uid != 0 {
            std::os::unix::fs::fchown(file, Some(self.uid), Some(self.gid))?;
        }
        Ok(())
    }

    fn give_path(self, path: &Path) -> io::Result<()> {
        if rustix::process::geteuid().is_root() && self.uid != 0 {
            chown(path, Some(self.uid), Some(self.gid))?;
        }
        Ok(())
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

/// A file being written: beside its final place, and put there in one step by [`NewFile::commit`]. Dropped without
/// that, nothing is left.
#[derive(Debug)]
pub struct NewFile {
    file: File,
    temporary: PathBuf,
    target: PathBuf,
    committed: bool,
}

impl NewFile {
    /// Begins to write `path`. An existing file keeps its mode and owner, a symlink is followed to its file.
    ///
    /// # Errors
    ///
    /// As the operating system says; [`FilesError::IsDirectory`] and [`FilesError::Special`] for what is no file.
    pub fn create(path: &Path, mode: Option<u32>, parents: bool, owner: Owner) -> Result<Self, FilesError> {
        let target = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let existing = match fs::metadata(&target) {
            Ok(metadata) if metadata.is_dir() => return Err(FilesError::IsDirectory { path: path.to_owned() }),
            Ok(metadata) if !metadata.is_file() => return Err(FilesError::Special { path: path.to_owned() }),
            Ok(metadata) => Some(metadata),
            Err(_) => None,
        };
        let directory = target.parent().unwrap_or(Path::new("/"));
        if parents {
            make_directories(directory, owner)?;
        }
        let temporary = directory.join(format!(".wharf-{}", random_hex(8)));
        let system = |source| FilesError::system("write", path, source);
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary).map_err(system)?;
        let new = Self { file, temporary, target, committed: false };
        new.dress(mode, existing.as_ref(), owner).map_err(system)?;
        Ok(new)
    }

    fn dress(&self, mode: Option<u32>, existing: Option<&Metadata>, owner: Owner) -> io::Result<()> {
        match existing {
            Some(old) => {
                let ours = self.file.metadata()?;
                if (old.uid(), old.gid()) != (ours.uid(), ours.gid()) {
                    std::os::unix::fs::fchown(&self.file, Some(old.uid()), Some(old.gid()))?;
                }
            }
            None => owner.give(&self.file)?,
        }
        let mode = mode.or(existing.map(|old| old.mode())).unwrap_or(0o644) & 0o7777;
        self.file.set_permissions(fs::Permissions::from_mode(mode))
    }

    /// Puts the file in its place, replacing what was there.
    ///
    /// # Errors
    ///
    /// As the operating system says; then the old file stays as it was.
    pub fn commit(mut self) -> Result<(), FilesError> {
        self.file
            .flush()
            .and_then(|()| fs::rename(&self.temporary, &self.target))
            .map_err(|source| FilesError::system("write", &self.target, source))?;
        self.committed = true;
        Ok(())
    }
}

impl Write for NewFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        if !self.committed {
            // Nobody can do more about a file that cannot be removed.
            let _ = fs::remove_file(&self.temporary);
        }
    }
}

/// Describes one path; a symlink itself, not what it points to.
///
/// # Errors
///
/// As the operating system says.
pub fn stat(path: &Path) -> Result<FileStat, FilesError> {
    let metadata = fs::symlink_metadata(path).map_err(|source| FilesError::system("look at", path, source))?;
    Ok(described(path.display().to_string(), path, &metadata))
}

fn described(name: String, path: &Path, metadata: &Metadata) -> FileStat {
    let kind = metadata.file_type();
    let modified = metadata.modified().ok().and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
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
        modified_at: modified.map_or(0.0, |since| since.as_secs_f64()),
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
pub fn make_directory(path: &Path, mode: Option<u32>, owner: Owner) -> Result<(), FilesError> {
    make_directories(path, owner)?;
    if let Some(mode) = mode {
        fs::set_permissions(path, fs::Permissions::from_mode(mode & 0o7777))
            .map_err(|source| FilesError::system("change", path, source))?;
    }
    Ok(())
}

fn make_directories(path: &Path, owner: Owner) -> Result<(), FilesError> {
    let mut made = PathBuf::new();
    for component in path.components() {
        made.push(component);
        match fs::create_dir(&made) {
            Ok(()) => owner.give_path(&made).map_err(|source| FilesError::system("give away", &made, source))?,
            Err(error) if made.is_dir() => drop(error),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                return Err(FilesError::NotDirectory { path: made });
            }
            Err(source) => return Err(FilesError::system("make", &made, source)),
        }
    }
    Ok(())
}

/// Moves a file or a directory, also to another file system.
///
/// # Errors
///
/// [`FilesError::Exists`] if something is at `to` and `overwrite` is not said; else as the operating system says. Between
/// file systems a failure may leave both.
pub fn rename(from: &Path, to: &Path, overwrite: bool) -> Result<(), FilesError> {
    let flags = if overwrite { RenameFlags::empty() } else { RenameFlags::NOREPLACE };
    match rustix::fs::renameat_with(CWD, from, CWD, to, flags) {
        Ok(()) => Ok(()),
        Err(rustix::io::Errno::XDEV) => move_by_copy(from, to, overwrite),
        // Not every file system knows the flag.
        Err(rustix::io::Errno::INVAL) if !overwrite && fs::symlink_metadata(to).is_err() => {
            fs::rename(from, to).map_err(|source| FilesError::system("move", from, source))
        }
        Err(rustix::io::Errno::EXIST) => Err(FilesError::Exists { path: to.to_owned() }),
        Err(error) => Err(FilesError::system("move", from, error.into())),
    }
}

fn move_by_copy(from: &Path, to: &Path, overwrite: bool) -> Result<(), FilesError> {
    if !overwrite && fs::symlink_metadata(to).is_ok() {
        return Err(FilesError::Exists { path: to.to_owned() });
    }
    let metadata = fs::symlink_metadata(from).map_err(|source| FilesError::system("move", from, source))?;
    copy(from, to, &metadata).map_err(|source| FilesError::system("move", to, source))?;
    remove(from, true)
}

fn copy(from: &Path, to: &Path, metadata: &Metadata) -> io::Result<()> {
    if metadata.is_symlink() {
        std::os::unix::fs::symlink(fs::read_link(from)?, to)?;
    } else if metadata.is_dir() {
        fs::create_dir_all(to)?;
        for entry in fs::read_dir(from)? {
            let entry = entry?;
            copy(&entry.path(), &to.join(entry.file_name()), &entry.metadata()?)?;
        }
        fs::set_permissions(to, metadata.permissions())?;
    } else {
        fs::copy(from, to)?;
    }
    if rustix::process::geteuid().is_root() {
        std::os::unix::fs::lchown(to, Some(metadata.uid()), Some(metadata.gid()))?;
    }
    Ok(())
}

/// Removes a file, a symlink itself, or a directory; a directory that is not empty only if `recursive`.
///
/// # Errors
///
/// As the operating system says. `/` is never removed.
pub fn remove(path: &Path, recursive: bool) -> Result<(), FilesError> {
    if path.components().all(|component| matches!(component, Component::RootDir | Component::CurDir)) {
        return Err(FilesError::Path { path: path.display().to_string() });
    }
    let system = |source| FilesError::system("remove", path, source);
    let metadata = fs::symlink_metadata(path).map_err(system)?;
    if !metadata.is_dir() {
        fs::remove_file(path).map_err(system)
    } else if recursive {
        fs::remove_dir_all(path).map_err(system)
    } else {
        fs::remove_dir(path).map_err(system)
    }
}

#[cfg(test)]
mod tests;
