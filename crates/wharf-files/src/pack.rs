//! A tree as a tar stream.

use std::{
    collections::HashMap,
    ffi::{OsStr, OsString},
    fs::File,
    io::{self, Read, Write},
    os::{fd::OwnedFd, unix::ffi::OsStrExt},
    path::{Path, PathBuf},
};

use rustix::{
    fs::{AtFlags, Dir, FileType, Mode, OFlags, ResolveFlags, Stat},
    io::Errno,
};
use tar::{EntryType, Header};

use crate::Skipped;

const COPY_BYTES: usize = 256 << 10;
const BLOCK: usize = 512;
/// Names of what was left out; of more than these only the number is kept.
const MOST_SKIPPED: usize = 1000;
/// Files with several names that are remembered; the names of more are packed as files of their own.
const MOST_LINKED: usize = 1_000_000;

/// What a link given as the source means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Root {
    /// Itself.
    Link,
    /// What it points to.
    Target,
}

/// What was packed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Packed {
    pub entries: u64,
    /// The first thousand that were left out.
    pub skipped: Vec<Skipped>,
    /// How many were left out.
    pub skipped_count: u64,
}

/// Writes a file, a link, or a directory with all that is below it, as a tar stream under `name`; an empty `name` is a
/// directory itself, so that its content goes wherever the archive is unpacked.
///
/// Links below it stay links. Sockets, pipes, devices and what cannot be read are left out and named. Of a file that
/// grows meanwhile the size that it had is packed; one that shrinks is filled up with zeros and named.
///
/// # Errors
///
/// If `source` itself cannot be read, before anything is written; later only if `out` fails.
pub fn pack(source: &Path, root: Root, name: &Path, out: impl Write) -> io::Result<Packed> {
    let follow = if root == Root::Target { OFlags::empty() } else { OFlags::NOFOLLOW };
    let handle = rustix::fs::open(source, OFlags::PATH | OFlags::CLOEXEC | follow, Mode::empty())?;
    let stat = rustix::fs::fstat(&handle)?;
    let mut packer = Packer {
        out: io::BufWriter::with_capacity(COPY_BYTES, out),
        linked: HashMap::new(),
        buffer: vec![0; COPY_BYTES],
        done: Packed::default(),
    };
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => {
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC | follow;
            let directory = rustix::fs::open(source, flags, Mode::empty())?;
            packer.tree(&directory, name)?;
        }
        FileType::Symlink => {
            let target = rustix::fs::readlinkat(&handle, c"", Vec::new())?;
            packer.header(name, &stat, Kind::Symlink(OsStr::from_bytes(target.as_bytes())))?;
        }
        FileType::RegularFile => {
            let (file, stat) = open_file(rustix::fs::CWD, source, follow)?;
            packer.file(name, file, &stat)?;
        }
        other => return Err(io::Error::other(format!("it is {}", described(other)))),
    }
    packer.out.write_all(&[0; 2 * BLOCK])?;
    packer.out.flush()?;
    Ok(packer.done)
}

enum Kind<'a> {
    Directory,
    File { size: u64 },
    Symlink(&'a OsStr),
    HardLink(&'a OsStr),
}

struct Packer<W: Write> {
    out: io::BufWriter<W>,
    /// Under which name a file with several names was packed.
    linked: HashMap<(u64, u64), PathBuf>,
    buffer: Vec<u8>,
    done: Packed,
}

impl<W: Write> Packer<W> {
    /// A directory comes right before its files, and after them its directories: who unpacks is done with one when the
    /// next begins.
    fn tree(&mut self, root: &OwnedFd, name: &Path) -> io::Result<()> {
        let mut pending = vec![PathBuf::new()];
        while let Some(below) = pending.pop() {
            let directory = match open_directory(root, &below) {
                Ok(directory) => directory,
                Err(Errno::NOENT) => continue,
                Err(error) => {
                    self.skip(&name.join(&below), io::Error::from(error).to_string());
                    continue;
                }
            };
            let shown = match name.join(&below) {
                itself if itself.as_os_str().is_empty() => PathBuf::from("."),
                shown => shown,
            };
            self.header(&shown, &rustix::fs::fstat(&directory)?, Kind::Directory)?;
            let entries = match entries_of(&directory) {
                Ok(entries) => entries,
                Err(error) => {
                    self.skip(&shown, io::Error::from(error).to_string());
                    continue;
                }
            };
            let first = pending.len();
            for entry in entries {
                let path = below.join(&entry);
                if self.entry(&directory, &entry, &name.join(&path))? {
                    pending.push(path);
                }
            }
            pending[first..].reverse();
        }
        Ok(())
    }

    /// Packs one entry; says whether it is a directory, whose content comes later.
    fn entry(&mut self, directory: &OwnedFd, entry: &OsStr, name: &Path) -> io::Result<bool> {
        let stat = match rustix::fs::statat(directory, entry, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(stat) => stat,
            // What vanishes meanwhile is not there.
            Err(Errno::NOENT) => return Ok(false),
            Err(error) => {
                self.skip(name, io::Error::from(error).to_string());
                return Ok(false);
            }
        };
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => return Ok(true),
            FileType::Symlink => match rustix::fs::readlinkat(directory, entry, Vec::new()) {
                Ok(target) => self.header(name, &stat, Kind::Symlink(OsStr::from_bytes(target.as_bytes())))?,
                Err(Errno::NOENT) => {}
                Err(error) => self.skip(name, io::Error::from(error).to_string()),
            },
            FileType::RegularFile => {
                let key = (stat.st_dev, stat.st_ino);
                if stat.st_nlink > 1
                    && let Some(first) = self.linked.get(&key).cloned()
                {
                    self.header(name, &stat, Kind::HardLink(first.as_os_str()))?;
                    return Ok(false);
                }
                // Nothing is to be read of it.
                if stat.st_size == 0 {
                    self.header(name, &stat, Kind::File { size: 0 })?;
                } else {
                    match open_file(directory, Path::new(entry), OFlags::NOFOLLOW) {
                        Ok((file, stat)) => self.file(name, file, &stat)?,
                        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
                        Err(error) => {
                            self.skip(name, error.to_string());
                            return Ok(false);
                        }
                    }
                }
                if stat.st_nlink > 1 && self.linked.len() < MOST_LINKED {
                    self.linked.insert(key, name.to_owned());
                }
            }
            other => self.skip(name, described(other)),
        }
        Ok(false)
    }

    fn file(&mut self, name: &Path, mut file: File, stat: &Stat) -> io::Result<()> {
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        self.header(name, stat, Kind::File { size })?;
        let mut left = size;
        let mut failure = None;
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(usize::MAX).min(self.buffer.len());
            let count = match file.read(&mut self.buffer[..most]) {
                Ok(0) => {
                    failure = Some("it became shorter while it was copied".to_owned());
                    break;
                }
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    failure = Some(format!("not all of it could be read: {error}"));
                    break;
                }
            };
            self.out.write_all(&self.buffer[..count])?;
            left -= count as u64;
        }
        if let Some(reason) = failure {
            self.skip(name, reason);
            io::copy(&mut io::repeat(0).take(left), &mut self.out)?;
        }
        self.pad(size)
    }

    fn header(&mut self, name: &Path, stat: &Stat, kind: Kind<'_>) -> io::Result<()> {
        self.done.entries += 1;
        let mut bytes = name.as_os_str().as_bytes().to_vec();
        let (entry_type, target, size) = match kind {
            Kind::Directory => {
                bytes.push(b'/');
                (EntryType::Directory, OsStr::new(""), 0)
            }
            Kind::File { size } => (EntryType::Regular, OsStr::new(""), size),
            Kind::Symlink(target) => (EntryType::Symlink, target, 0),
            Kind::HardLink(target) => (EntryType::Link, target, 0),
        };
        let target = target.as_bytes();
        let mut header = Header::new_gnu();
        let old = header.as_old_mut();
        // A member of its own holds any byte. Many readers take a line end for the end of an extended header's record.
        if bytes.len() <= old.name.len() {
            old.name[..bytes.len()].copy_from_slice(&bytes);
        } else {
            self.before(EntryType::GNULongName, "././@LongLink", &[&bytes, &b"\0"[..]].concat())?;
        }
        if target.len() <= old.linkname.len() {
            old.linkname[..target.len()].copy_from_slice(target);
        } else {
            self.before(EntryType::GNULongLink, "././@LongLink", &[target, b"\0"].concat())?;
        }
        let seconds = u64::try_from(stat.st_mtime).unwrap_or(0);
        if stat.st_mtime_nsec != 0 || stat.st_mtime < 0 {
            let time = record("mtime", &decimal(stat.st_mtime, stat.st_mtime_nsec as u32));
            self.before(EntryType::XHeader, "pax/ext", time.as_bytes())?;
        }
        header.set_entry_type(entry_type);
        header.set_mode(stat.st_mode & 0o7777);
        header.set_uid(stat.st_uid.into());
        header.set_gid(stat.st_gid.into());
        header.set_mtime(seconds);
        header.set_size(size);
        header.set_cksum();
        self.out.write_all(header.as_bytes())
    }

    /// A member that says more of the next one than its header has room for.
    fn before(&mut self, entry_type: EntryType, name: &str, content: &[u8]) -> io::Result<()> {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(entry_type);
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        header.set_cksum();
        self.out.write_all(header.as_bytes())?;
        self.out.write_all(content)?;
        self.pad(content.len() as u64)
    }

    fn pad(&mut self, size: u64) -> io::Result<()> {
        let over = (size % BLOCK as u64) as usize;
        if over == 0 { Ok(()) } else { self.out.write_all(&[0; BLOCK][over..]) }
    }

    fn skip(&mut self, path: &Path, reason: impl Into<String>) {
        self.done.skipped_count += 1;
        if self.done.skipped.len() < MOST_SKIPPED {
            self.done.skipped.push(Skipped { path: path.to_owned(), reason: reason.into() });
        }
    }
}

/// A time as extended headers have it.
fn decimal(seconds: i64, nanoseconds: u32) -> String {
    match (seconds, nanoseconds) {
        (..0, 1..) => format!("-{}.{:09}", -(seconds + 1), 1_000_000_000 - nanoseconds),
        _ => format!("{seconds}.{nanoseconds:09}"),
    }
}

/// `LENGTH KEY=VALUE` and a line end, where the length counts itself.
fn record(key: &str, value: &str) -> String {
    let rest = key.len() + value.len() + 3;
    let mut length = rest;
    while rest + length.to_string().len() != length {
        length = rest + length.to_string().len();
    }
    format!("{length} {key}={value}\n")
}

fn described(kind: FileType) -> &'static str {
    match kind {
        FileType::Socket => "a socket",
        FileType::Fifo => "a named pipe",
        FileType::CharacterDevice | FileType::BlockDevice => "a device",
        _ => "of an unknown kind",
    }
}

/// Opens a regular file; whatever else has taken its place is not waited for.
fn open_file(at: impl std::os::fd::AsFd, path: &Path, follow: OFlags) -> io::Result<(File, Stat)> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC | follow;
    let file = File::from(rustix::fs::openat(at, path, flags, Mode::empty())?);
    let stat = rustix::fs::fstat(&file)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => Ok((file, stat)),
        _ => Err(io::Error::other("it is no file any more")),
    }
}

fn open_directory(root: &OwnedFd, below: &Path) -> Result<OwnedFd, Errno> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let path = if below.as_os_str().is_empty() { Path::new(".") } else { below };
    let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    loop {
        match rustix::fs::openat2(root, path, flags, Mode::empty(), beneath) {
            // Somebody renamed something meanwhile.
            Err(Errno::AGAIN) => {}
            opened => return opened,
        }
    }
}

/// Names by order, so that the same directory always gives the same archive.
fn entries_of(directory: &OwnedFd) -> Result<Vec<OsString>, Errno> {
    let mut names = Vec::new();
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(OsStr::from_bytes(name).to_owned());
        }
    }
    names.sort_unstable();
    Ok(names)
}

#[cfg(test)]
mod tests;
