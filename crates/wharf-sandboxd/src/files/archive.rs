//! Directories as streams: tar and zip, out and in.
//!
//! Going in, every member is opened beneath the destination without following any symlink (`openat2`), so neither names
//! with `..`, nor absolute ones, nor links made by an earlier member or by a racing process lead out.

use std::{
    fs::{self, File},
    io::{self, Read, Seek, Write},
    os::fd::{AsFd, OwnedFd},
    path::{Component, Path, PathBuf},
};

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite};
use tokio_tar::{Archive, Builder, EntryType};

use super::{FilesError, Owner};

/// An archive may unpack to so many times its own size, beyond a first allowance: a zip bomb is a million times larger.
const LARGEST_RATIO: u64 = 1000;
const RATIO_ALLOWANCE: u64 = 64 << 20;
const COPY_BYTES: usize = 64 << 10;

/// What an archive may unpack to.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    pub bytes: u64,
    pub entries: u64,
}

/// What was unpacked.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Unpacked {
    pub files: u64,
    pub bytes: u64,
}

/// What happens with a member whose name leads out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unsafe {
    /// The archive is refused; members before it are left.
    Refuse,
    /// It is passed over, as Python's `zipfile` users expect.
    Skip,
}

/// Unpacks below one directory.
struct Unpacker {
    root: OwnedFd,
    shown: PathBuf,
    owner: Owner,
    bounds: Bounds,
    entries: u64,
    done: Unpacked,
}

impl Unpacker {
    fn new(destination: &Path, owner: Owner, bounds: Bounds) -> Result<Self, FilesError> {
        super::make_directory(destination, None, owner)?;
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let root = rustix::fs::openat(CWD, destination, flags, Mode::empty())
            .map_err(|error| FilesError::system("open", destination, error.into()))?;
        Ok(Self { root, shown: destination.to_owned(), owner, bounds, entries: 0, done: Unpacked::default() })
    }

    fn count_entry(&mut self) -> Result<(), FilesError> {
        self.entries += 1;
        if self.entries > self.bounds.entries {
            return Err(FilesError::TooLarge { limit: self.bounds.entries, what: "entries in an archive" });
        }
        Ok(())
    }

    fn count_bytes(&mut self, bytes: usize) -> Result<(), FilesError> {
        self.done.bytes += bytes as u64;
        if self.done.bytes > self.bounds.bytes {
            return Err(FilesError::TooLarge { limit: self.bounds.bytes, what: "bytes unpacked from an archive" });
        }
        Ok(())
    }

    fn error(&self, name: &Path, error: rustix::io::Errno) -> FilesError {
        let shown = self.shown.join(name);
        match error {
            rustix::io::Errno::LOOP | rustix::io::Errno::XDEV => {
                FilesError::Archive { reason: format!("`{}` would be written through a symlink", shown.display()) }
            }
            error => FilesError::system("unpack", &shown, error.into()),
        }
    }

    fn open(&self, at: &OwnedFd, name: &Path, flags: OFlags, mode: Mode) -> rustix::io::Result<OwnedFd> {
        let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
        rustix::fs::openat2(at, name, flags | OFlags::CLOEXEC, mode, beneath)
    }

    /// Opens the directory that a member stands in, making what is missing.
    fn directory(&self, path: &Path) -> Result<OwnedFd, FilesError> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY;
        let wrong = |error| self.error(path, error);
        let mut at = self.root.try_clone().map_err(|source| FilesError::system("unpack", &self.shown, source))?;
        for name in path.components() {
            let name = Path::new(name.as_os_str());
            match rustix::fs::mkdirat(&at, name, Mode::from_raw_mode(0o755)) {
                Ok(()) => {
                    at = self.open(&at, name, flags, Mode::empty()).map_err(wrong)?;
                    self.owner
                        .give(&File::from(
                            at.try_clone().map_err(|source| FilesError::system("unpack", &self.shown, source))?,
                        ))
                        .map_err(|source| FilesError::system("give away", &self.shown.join(path), source))?;
                }
                Err(rustix::io::Errno::EXIST) => at = self.open(&at, name, flags, Mode::empty()).map_err(wrong)?,
                Err(error) => return Err(wrong(error)),
            }
        }
        Ok(at)
    }

    /// Makes an empty file in place of whatever file or link is there.
    fn file(&mut self, path: &Path, mode: u32) -> Result<File, FilesError> {
        let (parent, name) = self.place(path)?;
        let wrong = |error| self.error(path, error);
        match rustix::fs::unlinkat(&parent, &name, AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => {}
            Err(error) => return Err(wrong(error)),
        }
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW;
        // The permission bits only: an archive does not bring set-user-id programs.
        let file = self.open(&parent, &name, flags, Mode::from_raw_mode(mode & 0o777)).map_err(wrong)?;
        let file = File::from(file);
        self.owner.give(&file).map_err(|source| FilesError::system("give away", &self.shown.join(path), source))?;
        self.done.files += 1;
        Ok(file)
    }

    fn place(&self, path: &Path) -> Result<(OwnedFd, PathBuf), FilesError> {
        let name = path
            .file_name()
            .map(PathBuf::from)
            .ok_or_else(|| FilesError::Archive { reason: format!("a member is named `{}`", path.display()) })?;
        Ok((self.directory(path.parent().unwrap_or(Path::new("")))?, name))
    }

    fn symlink(&self, path: &Path, target: &Path) -> Result<(), FilesError> {
        let depth = path.components().count().saturating_sub(1);
        if !stays_beneath(target, depth) {
            let reason = format!("the symlink `{}` leads out, to `{}`", path.display(), target.display());
            return Err(FilesError::Archive { reason });
        }
        let (parent, name) = self.place(path)?;
        match rustix::fs::unlinkat(&parent, &name, AtFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::NOENT) => {}
            Err(error) => return Err(self.error(path, error)),
        }
        rustix::fs::symlinkat(target, &parent, &name).map_err(|error| self.error(path, error))
    }

    fn hard_link(&self, path: &Path, target: &Path) -> Result<(), FilesError> {
        let (from, from_name) = self.place(target)?;
        let (to, to_name) = self.place(path)?;
        rustix::fs::linkat(&from, &from_name, &to, &to_name, AtFlags::empty()).map_err(|error| self.error(path, error))
    }
}

/// Whether a link's target, seen from `depth` directories down, stays where it is unpacked.
fn stays_beneath(target: &Path, depth: usize) -> bool {
    let mut depth = depth;
    for component in target.components() {
        match component {
            Component::Normal(_) => depth += 1,
            Component::CurDir => {}
            Component::ParentDir if depth > 0 => depth -= 1,
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return false,
        }
    }
    true
}

/// A member's name as a path below the destination; `None` if it leads out.
fn relative(name: &Path) -> Option<PathBuf> {
    let mut path = PathBuf::new();
    for component in name.components() {
        match component {
            Component::Normal(name) => path.push(name),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(path)
}

fn leads_out(name: &Path) -> FilesError {
    FilesError::Archive { reason: format!("the member `{}` leads out of the destination", name.display()) }
}

/// Unpacks a tar stream below `destination`.
///
/// # Errors
///
/// [`FilesError::Archive`] for what is no tar or is hostile, [`FilesError::TooLarge`] beyond the bounds. Members before the
/// refused one are left.
///
/// # Cancel safety
///
/// A dropped call leaves the members so far, the last one perhaps short.
pub async fn unpack_tar(
    stream: impl AsyncRead + Unpin + Send,
    destination: &Path,
    owner: Owner,
    bounds: Bounds,
) -> Result<Unpacked, FilesError> {
    let broken = |error: io::Error| FilesError::Archive { reason: error.to_string() };
    let mut unpacker = Unpacker::new(destination, owner, bounds)?;
    let mut archive = Archive::new(stream);
    let mut entries = archive.entries().map_err(broken)?;
    let mut buffer = vec![0; COPY_BYTES];
    while let Some(entry) = futures_util::StreamExt::next(&mut entries).await {
        let mut entry = entry.map_err(broken)?;
        unpacker.count_entry()?;
        let name = entry.path().map_err(broken)?.into_owned();
        let path = relative(&name).ok_or_else(|| leads_out(&name))?;
        let mode = entry.header().mode().map_err(broken)?;
        let link = || -> Result<PathBuf, FilesError> {
            let target = entry.link_name().map_err(broken)?;
            Ok(target.ok_or_else(|| FilesError::Archive { reason: "a link has no target".to_owned() })?.into_owned())
        };
        match entry.header().entry_type() {
            EntryType::Directory => drop(unpacker.directory(&path)?),
            EntryType::Symlink => unpacker.symlink(&path, &link()?)?,
            EntryType::Link => {
                let target = link()?;
                let target = relative(&target).ok_or_else(|| leads_out(&target))?;
                unpacker.hard_link(&path, &target)?;
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let file = unpacker.file(&path, mode)?;
                let mut file = tokio::fs::File::from_std(file);
                loop {
                    let count = entry.read(&mut buffer).await.map_err(broken)?;
                    if count == 0 {
                        break;
                    }
                    unpacker.count_bytes(count)?;
                    tokio::io::AsyncWriteExt::write_all(&mut file, &buffer[..count])
                        .await
                        .map_err(|source| FilesError::system("unpack", &destination.join(&path), source))?;
                }
                tokio::io::AsyncWriteExt::flush(&mut file)
                    .await
                    .map_err(|source| FilesError::system("unpack", &destination.join(&path), source))?;
            }
            // Names and attributes of the next member, which the reader has taken in already.
            EntryType::XHeader | EntryType::XGlobalHeader | EntryType::GNULongName | EntryType::GNULongLink => {}
            other => {
                let reason = format!("`{}` is a special file (type {:?})", name.display(), char::from(other.as_byte()));
                return Err(FilesError::Archive { reason });
            }
        }
    }
    Ok(unpacker.done)
}

/// Unpacks a zip file below `destination`.
///
/// # Errors
///
/// As [`unpack_tar`].
pub fn unpack_zip(
    file: impl Read + Seek,
    packed_bytes: u64,
    destination: &Path,
    owner: Owner,
    bounds: Bounds,
    policy: Unsafe,
) -> Result<Unpacked, FilesError> {
    let broken = |error: zip::result::ZipError| FilesError::Archive { reason: error.to_string() };
    let ratio_limit = RATIO_ALLOWANCE.saturating_add(packed_bytes.saturating_mul(LARGEST_RATIO));
    let mut unpacker = Unpacker::new(destination, owner, Bounds { bytes: bounds.bytes.min(ratio_limit), ..bounds })?;
    let mut archive = zip::ZipArchive::new(file).map_err(broken)?;
    let mut buffer = vec![0; COPY_BYTES];
    for index in 0..archive.len() {
        let mut member = archive.by_index(index).map_err(broken)?;
        unpacker.count_entry()?;
        let name = PathBuf::from(member.name().map_err(broken)?.into_owned());
        let Some(path) = relative(&name).filter(|path| !path.as_os_str().is_empty()) else {
            match policy {
                Unsafe::Refuse => return Err(leads_out(&name)),
                Unsafe::Skip => continue,
            }
        };
        let mode = member.unix_mode();
        if member.is_dir() {
            unpacker.directory(&path)?;
            continue;
        }
        if mode.is_some_and(|mode| !matches!(mode & 0o170_000, 0 | 0o100_000)) {
            match policy {
                Unsafe::Refuse => {
                    let reason = format!("`{}` is neither a file nor a directory", name.display());
                    return Err(FilesError::Archive { reason });
                }
                Unsafe::Skip => continue,
            }
        }
        let mode = match policy {
            Unsafe::Refuse => mode.filter(|mode| mode & 0o777 != 0).unwrap_or(0o644),
            // Python's `extractall` restores no permissions.
            Unsafe::Skip => 0o644,
        };
        let mut target = unpacker.file(&path, mode)?;
        loop {
            let count = member
                .read(&mut buffer)
                .map_err(|error| FilesError::Archive { reason: format!("`{}`: {error}", name.display()) })?;
            if count == 0 {
                break;
            }
            unpacker.count_bytes(count)?;
            target
                .write_all(&buffer[..count])
                .map_err(|source| FilesError::system("unpack", &destination.join(&path), source))?;
        }
    }
    Ok(unpacker.done)
}

/// Writes a file, or all that is below a directory, as a tar stream. Symlinks stay symlinks; sockets and devices are left
/// out.
///
/// # Errors
///
/// As the operating system says; a stream that has begun is then cut short.
pub async fn pack_tar(path: &Path, out: impl AsyncWrite + Unpin + Send + 'static) -> Result<(), FilesError> {
    let system = |source| FilesError::system("pack", path, source);
    let metadata = fs::metadata(path).map_err(system)?;
    let mut builder = Builder::new(out);
    builder.follow_symlinks(false);
    if metadata.is_dir() {
        let mut pending = vec![(path.to_owned(), PathBuf::new())];
        while let Some((directory, name)) = pending.pop() {
            for entry in sorted_entries(&directory).map_err(system)? {
                let Ok(kind) = entry.file_type() else { continue };
                let name = name.join(entry.file_name());
                if kind.is_dir() {
                    builder.append_dir(&name, entry.path()).await.map_err(system)?;
                    pending.push((entry.path(), name));
                } else if kind.is_file() || kind.is_symlink() {
                    match builder.append_path_with_name(entry.path(), &name).await {
                        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                        done => done.map_err(system)?,
                    }
                }
            }
        }
    } else {
        let (file, _) = super::open(path)?;
        let name = path.file_name().unwrap_or_default();
        builder.append_file(name, &mut tokio::fs::File::from_std(file)).await.map_err(system)?;
    }
    builder.into_inner().await.map(drop).map_err(system)
}

/// What is in a directory, by name, so that the same directory always gives the same archive.
fn sorted_entries(directory: &Path) -> io::Result<Vec<fs::DirEntry>> {
    let mut entries: Vec<fs::DirEntry> = fs::read_dir(directory)?.collect::<Result<_, _>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    Ok(entries)
}

/// How a zip is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    Stored,
    Deflated,
}

/// Writes a file, or all files below a directory, as a zip stream: symlinked files as what they point to, symlinked
/// directories and dangling symlinks left out.
///
/// # Errors
///
/// As [`pack_tar`].
pub fn pack_zip(path: &Path, out: impl Write, compression: Compression) -> Result<(), FilesError> {
    let system = |source| FilesError::system("pack", path, source);
    let broken = |error: zip::result::ZipError| FilesError::system("pack", path, io::Error::other(error));
    let metadata = fs::metadata(path).map_err(system)?;
    let mut writer = zip::ZipWriter::new_stream(out);
    let method = match compression {
        Compression::Stored => zip::CompressionMethod::Stored,
        Compression::Deflated => zip::CompressionMethod::Deflated,
    };
    let mut add = |file: &Path, name: &Path| -> Result<(), FilesError> {
        let Ok((mut content, size)) = super::open(file) else { return Ok(()) };
        let mode = content.metadata().map_or(0o644, |metadata| std::os::unix::fs::MetadataExt::mode(&metadata) & 0o777);
        let options = zip::write::SimpleFileOptions::default()
            .compression_method(method)
            .unix_permissions(mode)
            .large_file(size >= u64::from(u32::MAX));
        writer.start_file(name.to_string_lossy(), options).map_err(broken)?;
        io::copy(&mut content, &mut writer).map(drop).map_err(system)
    };
    if metadata.is_dir() {
        let mut pending = vec![(path.to_owned(), PathBuf::new())];
        while let Some((directory, name)) = pending.pop() {
            for entry in sorted_entries(&directory).map_err(system)? {
                let Ok(kind) = entry.file_type() else { continue };
                let name = name.join(entry.file_name());
                if kind.is_dir() {
                    pending.push((entry.path(), name));
                } else {
                    add(&entry.path(), &name)?;
                }
            }
        }
    } else {
        add(path, Path::new(path.file_name().unwrap_or_default()))?;
    }
    writer.finish().map_err(broken)?.into_inner().flush().map_err(system)
}

/// A file without a name on the disk of `directory`, gone when it is closed.
///
/// # Errors
///
/// As the operating system says.
pub fn spool(directory: &Path) -> io::Result<File> {
    let unnamed = rustix::fs::openat(
        CWD,
        directory,
        OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC,
        Mode::from_raw_mode(0o600),
    );
    match unnamed {
        Ok(file) => Ok(file.into()),
        // Not every file system has nameless files.
        Err(_) => {
            let path = directory.join(format!(".wharf-{}", crate::core::random_hex(8)));
            let file = File::options().read(true).write(true).create_new(true).open(&path)?;
            fs::remove_file(path)?;
            file.as_fd().try_clone_to_owned().map(File::from)
        }
    }
}
