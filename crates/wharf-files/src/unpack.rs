//! A tar stream as a tree.

use std::{
    cell::Cell,
    ffi::OsStr,
    io::{self, BufRead, BufReader, Read, Write},
    os::unix::ffi::OsStrExt,
    path::{Path, PathBuf},
    rc::Rc,
};

use tar::{Archive, EntryType};

use crate::{Bounds, Tree, TreeError, Unpacked, relative};

const COPY_BYTES: usize = 256 << 10;
/// Names and attributes of one member, and padding between two: they are held in memory.
const MOST_BETWEEN_MEMBERS: u64 = 2 << 20;

/// Unpacks a tar stream below `destination`, which is made if it is missing. Modes (permission bits alone) and times are
/// the archive's, the owner is the caller. Links stay links and are never followed; special files are left out and
/// named in the result.
///
/// The stream is read up to the archive's end, not to its own. One without that end was cut short: where a pipe breaks between
/// two members, nothing else tells.
///
/// # Errors
///
/// [`TreeError::Archive`] for what is no tar, is not whole or leads out, [`TreeError::TooLarge`] beyond the bounds,
/// [`TreeError::Stream`] if reading fails. Members before that are left, each one whole.
pub fn unpack(stream: impl Read, destination: &Path, bounds: Bounds) -> Result<Unpacked, TreeError> {
    unpack_under(stream, destination, Path::new(""), bounds)
}

/// As [`unpack`], with every member below `name` in `destination`: what stands there under that name is part of the tree, and
/// a link there is not followed.
///
/// # Errors
///
/// As [`unpack`].
pub fn unpack_under(
    stream: impl Read,
    destination: &Path,
    under: &Path,
    bounds: Bounds,
) -> Result<Unpacked, TreeError> {
    let below = |name: &Path| relative(name).map(|path| under.join(path)).ok_or_else(|| leads_out(name));
    let budget = Rc::new(Cell::new(u64::MAX));
    let failure = Rc::new(Cell::new(None));
    let has_ended = Rc::new(Cell::new(false));
    let source = Source { inner: stream, failure: failure.clone() };
    let broken = |error: io::Error| match failure.take() {
        Some(source) => TreeError::Stream(source),
        None => TreeError::Archive { reason: error.to_string() },
    };
    let mut inner = BufReader::with_capacity(COPY_BYTES, source);
    if let Some(reason) = other_than_tar(inner.fill_buf().map_err(broken)?) {
        return Err(TreeError::Archive { reason });
    }
    let reader = Budgeted { inner, left: budget.clone(), has_ended: has_ended.clone() };
    let mut tree = Tree::below(destination, bounds)?;
    let mut is_first = true;
    let mut archive = Archive::new(reader);
    let mut entries = archive.entries().map_err(broken)?;
    let mut buffer = vec![0; COPY_BYTES];
    loop {
        budget.set(MOST_BETWEEN_MEMBERS);
        let Some(entry) = entries.next() else { break };
        let mut entry = entry.map_err(|error| match broken(error) {
            // What the library found in the place of a header would tell nobody more.
            TreeError::Archive { .. } if is_first && budget.get() > 0 => {
                TreeError::Archive { reason: "it is no tar archive".to_owned() }
            }
            error => error,
        })?;
        is_first = false;
        budget.set(u64::MAX);
        tree.count_entry()?;
        let name = entry.path().map_err(broken)?.into_owned();
        let path = below(&name)?;
        let mode = entry.header().mode().map_err(broken)?;
        let Extended { modified, sparse_name } = extended(&mut entry).map_err(broken)?;
        if let Some(name) = sparse_name {
            // Its content begins with a map of itself, which the library would take for content.
            tree.skip(
                &name,
                "a sparse file in the form of POSIX archives: pack it with --format=gnu or without --sparse",
            );
            while entry.read(&mut buffer).map_err(broken)? > 0 {}
            continue;
        }
        match entry.header().entry_type() {
            EntryType::Directory => tree.directory(&path, Some(mode), modified)?,
            // In archives of the old form only the name says so.
            EntryType::Regular if name.as_os_str().as_bytes().ends_with(b"/") => {
                tree.directory(&path, Some(mode), modified)?;
            }
            EntryType::Symlink => tree.symlink(&path, &target_of(&entry)?, modified)?,
            EntryType::Link => {
                let target = below(&target_of(&entry)?)?;
                tree.hard_link(&path, &target)?;
            }
            EntryType::Regular | EntryType::Continuous | EntryType::GNUSparse => {
                let mut file = tree.file(&path, entry.size())?;
                let mut missing = entry.size();
                loop {
                    let count = entry.read(&mut buffer).map_err(broken)?;
                    if count == 0 {
                        break;
                    }
                    tree.count_bytes(count)?;
                    missing = missing.saturating_sub(count as u64);
                    file.write_all(&buffer[..count]).map_err(|source| TreeError::System {
                        action: "unpack",
                        path: destination.join(&path),
                        source,
                    })?;
                }
                // The library takes the end of the stream for the end of the file.
                if missing > 0 {
                    return Err(TreeError::Archive {
                        reason: format!("it ends in the middle of `{}`", name.display()),
                    });
                }
                tree.finish_file(&path, file, mode, modified)?;
            }
            // Said of the whole archive; what concerns one member the reader has taken in already.
            EntryType::XGlobalHeader => {}
            EntryType::Fifo => tree.skip(&path, "a named pipe"),
            EntryType::Char | EntryType::Block => tree.skip(&path, "a device"),
            other => {
                tree.skip(&path, format!("of the unknown kind `{}`", char::from(other.as_byte()).escape_default()))
            }
        }
        // What is left of it does not count as being between members.
        while entry.read(&mut buffer).map_err(broken)? > 0 {}
    }
    if has_ended.get() {
        let reason = "it was cut short: what ends an archive does not follow its last member".to_owned();
        return Err(TreeError::Archive { reason });
    }
    tree.finish()
}

/// What a stream that begins so is, if it is plainly no tar.
fn other_than_tar(beginning: &[u8]) -> Option<String> {
    const COMPRESSED: [(&[u8], &str); 5] = [
        (b"\x1f\x8b", "gzip"),
        (b"\xfd7zXZ\0", "xz"),
        (b"\x28\xb5\x2f\xfd", "zstd"),
        (b"BZh", "bzip2"),
        (b"PK\x03\x04", "zip"),
    ];
    if beginning.is_empty() {
        return Some("it is empty".to_owned());
    }
    let (_, name) = COMPRESSED.iter().find(|(magic, _)| beginning.starts_with(magic))?;
    Some(format!("it is no tar archive but compressed by {name}: decompress it on the way"))
}

fn target_of<R: Read>(entry: &tar::Entry<'_, R>) -> Result<PathBuf, TreeError> {
    let target = entry.link_name().map_err(|error| TreeError::Archive { reason: error.to_string() })?;
    Ok(target.ok_or_else(|| TreeError::Archive { reason: "a link has no target".to_owned() })?.into_owned())
}

fn leads_out(name: &Path) -> TreeError {
    TreeError::Archive { reason: format!("the member `{}` leads out of the destination", name.display()) }
}

/// What the extended header of a member says.
struct Extended {
    /// Seconds and nanoseconds since 1970; the extended header knows parts of a second.
    modified: Option<(i64, u32)>,
    /// The name of a file that is packed with its holes left out.
    sparse_name: Option<PathBuf>,
}

fn extended<R: Read>(entry: &mut tar::Entry<'_, R>) -> io::Result<Extended> {
    let mut modified = i64::try_from(entry.header().mtime()?).ok().map(|seconds| (seconds, 0));
    let (mut is_sparse, mut sparse_name) = (false, None);
    for extension in entry.pax_extensions()?.into_iter().flatten() {
        let extension = extension?;
        match extension.key_bytes() {
            b"mtime" => modified = extension.value().ok().and_then(parse_time).or(modified),
            b"GNU.sparse.name" => sparse_name = Some(PathBuf::from(OsStr::from_bytes(extension.value_bytes()))),
            key => is_sparse |= key.starts_with(b"GNU.sparse."),
        }
    }
    if is_sparse && sparse_name.is_none() {
        sparse_name = Some(entry.path()?.into_owned());
    }
    Ok(Extended { modified, sparse_name })
}

fn parse_time(text: &str) -> Option<(i64, u32)> {
    let (seconds, fraction) = text.split_once('.').unwrap_or((text, ""));
    if !fraction.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let digits: String = fraction.chars().chain(std::iter::repeat('0')).take(9).collect();
    let (seconds, nanoseconds) = (seconds.parse::<i64>().ok()?, digits.parse::<u32>().ok()?);
    // Before 1970 the fraction counts the other way.
    match (text.starts_with('-'), nanoseconds) {
        (true, 1..) => Some((seconds.checked_sub(1)?, 1_000_000_000 - nanoseconds)),
        _ => Some((seconds, nanoseconds)),
    }
}

/// Remembers that it was the stream that failed, and not the archive.
struct Source<R> {
    inner: R,
    failure: Rc<Cell<Option<io::Error>>>,
}

impl<R: Read> Read for Source<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.inner.read(buffer).map_err(|error| {
            let shown = io::Error::new(error.kind(), error.to_string());
            self.failure.set(Some(error));
            shown
        })
    }
}

/// Fails once more than `left` is read, and remembers that there was no more.
struct Budgeted<R> {
    inner: R,
    left: Rc<Cell<u64>>,
    has_ended: Rc<Cell<bool>>,
}

impl<R: Read> Read for Budgeted<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = self.left.get();
        if left == 0 {
            return Err(io::Error::other(format!(
                "names and attributes of one member take more than {MOST_BETWEEN_MEMBERS} bytes"
            )));
        }
        let most = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let count = self.inner.read(&mut buffer[..most])?;
        self.has_ended.set(count == 0 && most > 0);
        if left != u64::MAX {
            self.left.set(left - count as u64);
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests;
