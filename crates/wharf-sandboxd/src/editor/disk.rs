//! Reading and replacing whole files, with the errors that Python would show.

use std::fs::OpenOptions;
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use wharf_files::{NewFile, ReplaceError, Wanted};

use super::python::repr_str;

/// At most `max_bytes` + 1 bytes of the file, so that the caller sees that there is more.
///
/// A pipe or a device without data does not block: it is read like an empty file.
///
/// # Errors
///
/// Those of opening and reading; a directory is [`io::ErrorKind::IsADirectory`].
pub(crate) fn read(path: &Path, max_bytes: u64) -> io::Result<Vec<u8>> {
    let file = OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
    let mut bytes = Vec::new();
    match file.take(max_bytes.saturating_add(1)).read_to_end(&mut bytes) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(bytes),
        result => result.map(|_| bytes),
    }
}

/// Replaces the content of an existing file, or creates it. Links are followed; mode, owner and hard links stay.
///
/// A reader sees the old content or the new one, and so does everybody if this fails: see [`NewFile`]. A device or a pipe
/// is written to, as nothing of it can be lost; one without a reader is not waited for.
///
/// # Errors
///
/// Those of the operating system; the old content is there.
pub(crate) fn replace(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = match NewFile::create(path, Wanted::default()) {
        Ok(file) => file,
        Err(ReplaceError::Special) => {
            let mut special = OpenOptions::new().write(true).custom_flags(libc::O_NONBLOCK).open(path)?;
            return special.write_all(content);
        }
        Err(error) => return Err(error.into_io()),
    };
    file.write_all(content)?;
    file.commit().map_err(ReplaceError::into_io)
}

/// `str(OSError)`: `[Errno 2] No such file or directory: '/x'`; without the path where Python has none.
pub(crate) fn python_error(error: &io::Error, path: Option<&Path>) -> String {
    let Some(code) = error.raw_os_error() else {
        return match error.kind() {
            io::ErrorKind::InvalidInput => "embedded null byte".to_owned(),
            _ => error.to_string(),
        };
    };
    let path = path.map(|path| format!(": {}", repr_str(&String::from_utf8_lossy(path.as_os_str().as_bytes()))));
    format!("[Errno {code}] {}{}", error_text(error, code), path.unwrap_or_default())
}

/// The C library's texts differ between glibc and musl; the wire has those of glibc.
fn error_text(error: &io::Error, code: i32) -> String {
    let known = match code {
        libc::EPERM => "Operation not permitted",
        libc::ENOENT => "No such file or directory",
        libc::EIO => "Input/output error",
        libc::EACCES => "Permission denied",
        libc::EBUSY => "Device or resource busy",
        libc::EEXIST => "File exists",
        libc::ENOTDIR => "Not a directory",
        libc::EISDIR => "Is a directory",
        libc::EINVAL => "Invalid argument",
        libc::ETXTBSY => "Text file busy",
        libc::EFBIG => "File too large",
        libc::ENOSPC => "No space left on device",
        libc::EROFS => "Read-only file system",
        libc::ENAMETOOLONG => "File name too long",
        libc::ELOOP => "Too many levels of symbolic links",
        libc::EDQUOT => "Disk quota exceeded",
        _ => {
            let text = error.to_string();
            return text.split(" (os error").next().unwrap_or_default().to_owned();
        }
    };
    known.to_owned()
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use std::path::PathBuf;

    use super::*;

    fn file(mode: u32) -> (tempfile::TempDir, PathBuf) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("f");
        fs::write(&path, "old").unwrap();
        fs::set_permissions(&path, Permissions::from_mode(mode)).unwrap();
        (directory, path)
    }

    #[test]
    fn replacing_keeps_mode_and_leaves_nothing_behind() {
        let (directory, path) = file(0o751);
        replace(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::metadata(&path).unwrap().mode() & 0o7777, 0o751);
        assert_eq!(fs::read_dir(directory.path()).unwrap().count(), 1);
    }

    #[test]
    fn replacing_follows_symlinks_and_keeps_hard_links() {
        let (directory, path) = file(0o644);
        let (soft, hard) = (directory.path().join("soft"), directory.path().join("hard"));
        symlink(&path, &soft).unwrap();
        replace(&soft, b"one").unwrap();
        assert!(fs::symlink_metadata(&soft).unwrap().is_symlink());
        fs::hard_link(&path, &hard).unwrap();
        replace(&path, b"two").unwrap();
        assert_eq!(fs::read(&hard).unwrap(), b"two");
    }

    #[test]
    fn a_pipe_without_a_writer_reads_as_empty() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("pipe");
        rustix::fs::mkfifoat(rustix::fs::CWD, &path, rustix::fs::Mode::from_raw_mode(0o600)).unwrap();
        assert_eq!(read(&path, 10).unwrap(), b"");
    }

    #[test]
    fn errors_read_like_those_of_python() {
        let missing = Path::new("/nonexistent/it's");
        let error = read(missing, 1).unwrap_err();
        assert_eq!(python_error(&error, Some(missing)), r#"[Errno 2] No such file or directory: "/nonexistent/it's""#);
        assert_eq!(python_error(&read(Path::new("a\0b"), 1).unwrap_err(), None), "embedded null byte");
    }
}
