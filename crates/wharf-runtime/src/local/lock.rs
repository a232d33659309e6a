//! Who may change a sandbox: one program at a time.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use rustix::fs::FlockOperation;

/// How often a lock that somebody holds is tried again.
const INTERVAL: Duration = Duration::from_millis(5);

/// Held while a sandbox is made, started, stopped or removed. The kernel gives it back however its holder ends.
#[derive(Debug)]
pub(super) struct Lock {
    path: PathBuf,
    /// Dropped after the file is gone: whoever waits for it makes the file anew.
    file: File,
}

impl Lock {
    /// Takes the lock, which another may hold for `patience`; `None` if that one still has it.
    ///
    /// # Errors
    ///
    /// When the file cannot be made or locked.
    pub(super) fn take(path: &Path, patience: Duration) -> io::Result<Option<Self>> {
        let deadline = Instant::now() + patience;
        loop {
            let file = File::options().create(true).write(true).truncate(false).mode(0o600).open(path)?;
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {
                    if let Some(lock) = Self::of_locked(file, path) {
                        return Ok(Some(lock));
                    }
                }
                Err(rustix::io::Errno::WOULDBLOCK) if Instant::now() >= deadline => return Ok(None),
                Err(rustix::io::Errno::WOULDBLOCK) => std::thread::sleep(INTERVAL),
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The lock for another process: nobody else has it until both have given it back.
    pub(super) fn share(&self) -> io::Result<File> {
        self.file.try_clone()
    }

    /// The lock that a locked file is; `None` if whoever held it before has removed the file since it was opened: another
    /// one is the lock then.
    fn of_locked(file: File, path: &Path) -> Option<Self> {
        is_at(&file, path).then(|| Self { path: path.to_owned(), file })
    }
}

fn is_at(file: &File, path: &Path) -> bool {
    let id = |metadata: &fs::Metadata| (metadata.dev(), metadata.ino());
    matches!((&file.metadata(), &fs::metadata(path)), (Ok(held), Ok(there)) if id(held) == id(there))
}

impl Drop for Lock {
    fn drop(&mut self) {
        // A file that stays is as good a lock.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    #[test]
    fn one_holds_it_and_a_free_one_leaves_no_file() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("box");
        let held = Lock::take(&path, Duration::ZERO).unwrap().unwrap();
        assert!(Lock::take(&path, Duration::ZERO).unwrap().is_none());
        drop(held);
        assert!(!path.exists());
        // Left by a holder that was killed.
        fs::write(&path, "").unwrap();
        drop(Lock::take(&path, Duration::ZERO).unwrap().unwrap());
        assert!(!path.exists());
    }

    #[test]
    fn a_file_that_was_removed_meanwhile_is_no_lock() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("box");
        let opened = File::create(&path).unwrap();
        fs::remove_file(&path).unwrap();
        assert!(Lock::of_locked(opened.try_clone().unwrap(), &path).is_none());
        let held = Lock::take(&path, Duration::ZERO).unwrap();
        assert!(Lock::of_locked(opened, &path).is_none() && held.is_some());
    }

    #[test]
    fn many_that_wait_have_it_one_after_another() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("box");
        let inside = AtomicU32::new(0);
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        let lock = Lock::take(&path, Duration::from_secs(60)).unwrap().unwrap();
                        assert_eq!(inside.fetch_add(1, Ordering::SeqCst), 0);
                        std::thread::yield_now();
                        assert_eq!(inside.fetch_sub(1, Ordering::SeqCst), 1);
                        drop(lock);
                    }
                });
            }
        });
    }
}
