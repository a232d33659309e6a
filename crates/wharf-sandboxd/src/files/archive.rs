//! Directories as zip files, out and in; tar is `wharf-files`'.

use std::{
    cell::Cell,
    collections::HashSet,
    fs,
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::{Path, PathBuf},
    rc::Rc,
};

use wharf_files::{Bounds, Tree, Unpacked, relative};

use super::FilesError;

/// An archive may unpack to so many times its own size, beyond a first allowance: a zip bomb is a million times larger.
const LARGEST_RATIO: u64 = 1000;
const RATIO_ALLOWANCE: u64 = 64 << 20;
const COPY_BYTES: usize = 64 << 10;
/// What of a file is read to find its index, beside one comment of the longest kind.
const INDEX_ALLOWANCE: u64 = 256 << 10;
/// What one entry takes in the index, read twice: its record and a name of usual length.
const ENTRY_BYTES: u64 = 512;

/// What happens with a member whose name leads out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unsafe {
    /// The archive is refused; members before it are left.
    Refuse,
    /// It is passed over, as Python's `zipfile` users expect.
    Skip,
}

fn leads_out(name: &Path) -> FilesError {
    FilesError::Archive { reason: format!("the member `{}` leads out of the destination", name.display()) }
}

/// Unpacks a zip file below `destination`.
///
/// # Errors
///
/// [`FilesError::Archive`] for what is no zip or is hostile, [`FilesError::TooLarge`] beyond the bounds. Members before the
/// refused one are left, each one whole.
pub fn unpack_zip(
    file: impl Read + Seek,
    packed_bytes: u64,
    destination: &Path,
    bounds: Bounds,
    policy: Unsafe,
) -> Result<Unpacked, FilesError> {
    let broken = |error: zip::result::ZipError| FilesError::Archive { reason: error.to_string() };
    let ratio_limit = RATIO_ALLOWANCE.saturating_add(packed_bytes.saturating_mul(LARGEST_RATIO));
    let index_bytes = INDEX_ALLOWANCE.saturating_add(bounds.entries.saturating_mul(ENTRY_BYTES));
    let index = Rc::new(Cell::new(Some(index_bytes)));
    let mut archive =
        zip::ZipArchive::new(Bounded { inner: file, left: index.clone() }).map_err(|error| match error {
            _ if index.get() == Some(0) => {
                FilesError::TooLarge { limit: bounds.entries, what: "entries in an archive" }
            }
            error => broken(error),
        })?;
    index.set(None);
    let mut tree = Tree::below(destination, Bounds { bytes: bounds.bytes.min(ratio_limit), ..bounds })?;
    let mut buffer = vec![0; COPY_BYTES];
    for index in 0..archive.len() {
        let mut member = archive.by_index(index).map_err(broken)?;
        tree.count_entry()?;
        let name = PathBuf::from(member.name().map_err(broken)?.into_owned());
        let Some(path) = relative(&name).filter(|path| !path.as_os_str().is_empty()) else {
            match policy {
                Unsafe::Refuse => return Err(leads_out(&name)),
                Unsafe::Skip => continue,
            }
        };
        let mode = member.unix_mode();
        if member.is_dir() {
            tree.directory(&path, None, None)?;
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
        let mut target = tree.file(&path, member.size())?;
        loop {
            let count = member
                .read(&mut buffer)
                .map_err(|error| FilesError::Archive { reason: format!("`{}`: {error}", name.display()) })?;
            if count == 0 {
                break;
            }
            tree.count_bytes(count)?;
            target
                .write_all(&buffer[..count])
                .map_err(|source| FilesError::system("unpack", &destination.join(&path), source))?;
        }
        tree.finish_file(&path, target, mode, None)?;
    }
    Ok(tree.finish()?)
}

/// Fails once more than `left` was read; without it nothing is counted. The library reads the whole index before it says how
/// many entries there are.
struct Bounded<R> {
    inner: R,
    left: Rc<Cell<Option<u64>>>,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(left) = self.left.get() else { return self.inner.read(buffer) };
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        if most == 0 && !buffer.is_empty() {
            return Err(io::Error::other("the index is too long"));
        }
        let count = self.inner.read(&mut buffer[..most])?;
        self.left.set(Some(left - count as u64));
        Ok(count)
    }
}

impl<R: Seek> Seek for Bounded<R> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.inner.seek(to)
    }
}

/// What is in a directory, by name, so that the same directory always gives the same archive.
fn sorted_entries(directory: &Path) -> io::Result<Vec<fs::DirEntry>> {
    let mut entries: Vec<fs::DirEntry> = fs::read_dir(directory)?.collect::<Result<_, _>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    Ok(entries)
}

/// A zip's names are text, and no two are the same: bytes that are no text stand there by their numbers.
fn text_name(name: &[u8], taken: &mut HashSet<String>) -> String {
    let mut text = String::new();
    for chunk in name.utf8_chunks() {
        text.push_str(chunk.valid());
        text.extend(chunk.invalid().iter().map(|byte| format!("%{byte:02X}")));
    }
    while !taken.insert(text.clone()) {
        text.push('_');
    }
    text
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
/// As the operating system says; a stream that has begun is then cut short.
pub fn pack_zip(path: &Path, out: impl Write, compression: Compression) -> Result<(), FilesError> {
    let system = |source| FilesError::system("pack", path, source);
    let broken = |error: zip::result::ZipError| FilesError::system("pack", path, io::Error::other(error));
    let metadata = fs::metadata(path).map_err(system)?;
    let mut writer = zip::ZipWriter::new_stream(out);
    let method = match compression {
        Compression::Stored => zip::CompressionMethod::Stored,
        Compression::Deflated => zip::CompressionMethod::Deflated,
    };
    let mut names = HashSet::new();
    let mut add = |file: &Path, name: &Path| -> Result<(), FilesError> {
        let Ok((mut content, size)) = super::open(file) else { return Ok(()) };
        let mode = content.metadata().map_or(0o644, |metadata| metadata.mode() & 0o777);
        let options = zip::write::SimpleFileOptions::default()
            .compression_method(method)
            .unix_permissions(mode)
            .large_file(size >= u64::from(u32::MAX));
        writer.start_file(text_name(name.as_os_str().as_bytes(), &mut names), options).map_err(broken)?;
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
