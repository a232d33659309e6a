//! What the files of a sandbox take on disk, watched like a kubelet watches ephemeral storage: what exceeds its limit
//! ends.

use std::{
    collections::HashSet,
    ffi::CString,
    fs,
    os::{fd::OwnedFd, unix::fs::MetadataExt},
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::{
    fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, openat, statat},
    io::{self, Errno},
};
use tokio::time::Instant;

use crate::process::own::Counting;

/// Every entry counts at least this much: many empty files fill a disk too.
const SMALLEST: u64 = 4096;
/// The type of an overlay in `statfs`.
const OVERLAY: rustix::fs::FsWord = 0x794c_7630;
const INTERVAL: Duration = Duration::from_millis(250);
/// A directory of a million files is not walked all the time: the walks take at most one part in so many.
const SHARE: u32 = 10;
/// So long a walk may be spared when the file system has hardly less free space than before.
const LONGEST_PAUSE: Duration = Duration::from_secs(30);
/// Who renames directories while they are walked makes us begin again, so often.
const ATTEMPTS: usize = 3;

/// How much may come on top of what a sandbox has too much of already when it starts: what is started writes a little, such
/// as a history, and so does removing what is in a lower layer.
const ROOM_TO_CLEAN_UP: u64 = 16 << 20;

/// How much a sandbox may hold that starts with `held`. One that was over its limit has to be able to start, or nobody
/// could remove anything from it.
pub fn allowed(limit: u64, held: u64) -> u64 {
    if held > limit { held.saturating_add(ROOM_TO_CLEAN_UP.min(limit / 8)) } else { limit }
}

/// Returns the bytes found once they are more than [`allowed`]; dropping it ends the watch. What is removed may not come
/// back above `limit`.
///
/// Counts what lies below each of the directories on the same file system, a hard-linked file once, and files without a name
/// that a process still holds open there or in an overlay, whose upper layer is such a directory.
pub async fn exceeded(directories: Vec<PathBuf>, limit: u64, held: u64) -> u64 {
    let mut bound = allowed(limit, held);
    let mut known: Option<(Instant, u64, u64)> = None;
    loop {
        let free_at =
            |path: &PathBuf| rustix::fs::statvfs(path).map_or(0, |fs| fs.f_bavail.saturating_mul(fs.f_frsize));
        let free = directories.iter().map(free_at).fold(0, u64::saturating_add);
        let idle = known.is_some_and(|(at, used, before)| {
            at.elapsed() < LONGEST_PAUSE && before.saturating_sub(free) < bound.saturating_sub(used) / 2
        });
        let mut pause = INTERVAL;
        if !idle {
            let began = Instant::now();
            let walked = directories.clone();
            let used = tokio::task::spawn_blocking(move || used_bytes(&walked)).await.unwrap_or(0);
            if used > bound {
                return used;
            }
            bound = bound.min(allowed(limit, used));
            known = Some((Instant::now(), used, free));
            pause = pause.max(began.elapsed() * SHARE);
        }
        tokio::time::sleep(pause).await;
    }
}

/// What lies below the directories now.
pub fn used_bytes(directories: &[PathBuf]) -> u64 {
    let _counting = Counting::begin();
    let mut sum = Sum::default();
    for _ in 0..ATTEMPTS {
        sum = Sum::default();
        match directories.iter().try_for_each(|directory| sum.add_tree(directory)) {
            Ok(()) => break,
            Err(error) => tracing::debug!(%error, "the walk for disk usage begins again"),
        }
    }
    sum.add_unnamed();
    sum.bytes
}

#[derive(Debug, Default)]
struct Sum {
    bytes: u64,
    /// Of the directory that is being walked.
    device: u64,
    /// Of all that were walked.
    devices: HashSet<u64>,
    /// Files with several names, or none, that were counted: by device and number.
    seen: HashSet<(u64, u64)>,
}

/// A directory above the one that is being read.
struct Level {
    inode: u64,
    /// Directories in it that are still to be read.
    left: Vec<CString>,
}

impl Sum {
    /// Goes down and up by one name at a time: neither a depth beyond the longest path nor a symlink put in the way
    /// hides anything, and two descriptors are enough.
    fn add_tree(&mut self, directory: &Path) -> io::Result<()> {
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let mut current = openat(rustix::fs::CWD, directory, flags, Mode::empty())?;
        let stat = rustix::fs::fstat(&current)?;
        self.device = stat.st_dev;
        self.devices.insert(stat.st_dev);
        let mut levels = vec![Level { inode: stat.st_ino, left: self.add_directory(&current)? }];
        while let Some(level) = levels.last_mut() {
            if let Some(name) = level.left.pop() {
                let below = match openat(&current, &name, flags | OFlags::NOFOLLOW, Mode::empty()) {
                    Ok(below) => below,
                    // Removed or replaced since it was read.
                    Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::ACCESS) => continue,
                    Err(error) => return Err(error),
                };
                let stat = rustix::fs::fstat(&below)?;
                if stat.st_dev == self.device {
                    levels.push(Level { inode: stat.st_ino, left: self.add_directory(&below)? });
                    current = below;
                }
                continue;
            }
            levels.pop();
            if let Some(above) = levels.last() {
                current = openat(&current, "..", flags, Mode::empty())?;
                if rustix::fs::fstat(&current)?.st_ino != above.inode {
                    // It was moved while we were in it.
                    return Err(Errno::STALE);
                }
            }
        }
        Ok(())
    }

    /// Counts the entries of one directory; gives the directories among them.
    fn add_directory(&mut self, directory: &OwnedFd) -> io::Result<Vec<CString>> {
        let mut directories = Vec::new();
        for entry in Dir::read_from(directory)? {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"." || name == c".." {
                continue;
            }
            let Ok(stat) = statat(directory, name, AtFlags::SYMLINK_NOFOLLOW) else { continue };
            self.add(&stat);
            if FileType::from_raw_mode(stat.st_mode) == FileType::Directory {
                directories.push(name.to_owned());
            }
        }
        Ok(directories)
    }

    fn add(&mut self, stat: &Stat) {
        let is_directory = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
        if stat.st_dev == self.device
            && (is_directory || stat.st_nlink == 1 || self.seen.insert((stat.st_dev, stat.st_ino)))
        {
            self.bytes = self.bytes.saturating_add((stat.st_blocks.unsigned_abs() * 512).max(SMALLEST));
        }
    }

    /// Files that were removed while a process that we may look into has them open.
    fn add_unnamed(&mut self) {
        let Ok(processes) = fs::read_dir("/proc") else { return };
        for process in processes.flatten() {
            let is_process = process.file_name().to_str().is_some_and(|name| name.bytes().all(|b| b.is_ascii_digit()));
            let Some(files) = is_process.then(|| fs::read_dir(process.path().join("fd")).ok()).flatten() else {
                continue;
            };
            for entry in files.flatten() {
                let Ok(file) = fs::metadata(entry.path()) else { continue };
                let unnamed = file.is_file() && file.nlink() == 0;
                let is_ours = || self.devices.contains(&file.dev()) || is_in_overlay(&entry.path());
                if unnamed && is_ours() && self.seen.insert((file.dev(), file.ino())) {
                    self.bytes = self.bytes.saturating_add((file.blocks() * 512).max(SMALLEST));
                }
            }
        }
    }
}

fn is_in_overlay(path: &Path) -> bool {
    rustix::fs::statfs(path).is_ok_and(|fs| fs.f_type == OVERLAY)
}

#[cfg(test)]
mod tests {
    use std::{fs::File, os::unix::fs::symlink};

    use super::*;

    const MEGABYTE: usize = 1 << 20;

    /// Files without a name are counted by their file system, whosever of this process they are: these tests have one that
    /// no other test of this crate uses, and one at a time.
    static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

    fn directory() -> tempfile::TempDir {
        tempfile::tempdir_in("/dev/shm").expect("a file system in memory at /dev/shm")
    }

    #[test]
    fn files_links_and_what_was_removed_are_counted_once() {
        let _turn = TURN.blocking_lock();
        let home = directory();
        let below = home.path().join("a/b/c");
        fs::create_dir_all(&below).unwrap();
        fs::write(below.join("one"), vec![1; MEGABYTE]).unwrap();
        fs::hard_link(below.join("one"), home.path().join("same")).unwrap();
        symlink("/usr", home.path().join("outside")).unwrap();
        let unnamed = home.path().join("unnamed");
        fs::write(&unnamed, vec![2; MEGABYTE]).unwrap();
        let _open = File::open(&unnamed).unwrap();
        fs::remove_file(&unnamed).unwrap();
        let used = used_bytes(&[home.path().to_owned()]);
        let expected = 2 * MEGABYTE as u64;
        assert!((expected..expected + 16 * SMALLEST).contains(&used), "{used}");
    }

    #[test]
    fn several_directories_are_counted_together() {
        let _turn = TURN.blocking_lock();
        let homes = [directory(), directory()];
        for home in &homes {
            fs::write(home.path().join("file"), vec![1; MEGABYTE]).unwrap();
        }
        fs::hard_link(homes[0].path().join("file"), homes[1].path().join("same")).unwrap();
        let used = used_bytes(&homes.each_ref().map(|home| home.path().to_owned()));
        let expected = 2 * MEGABYTE as u64;
        assert!((expected..expected + 16 * SMALLEST).contains(&used), "{used}");
    }

    #[test]
    fn what_lies_deeper_than_the_longest_path_is_counted() {
        let _turn = TURN.blocking_lock();
        let home = directory();
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let mut current = openat(rustix::fs::CWD, home.path(), flags, Mode::empty()).unwrap();
        let name = "d".repeat(200);
        for _ in 0..50 {
            rustix::fs::mkdirat(&current, &name, Mode::RWXU).unwrap();
            current = openat(&current, &name, flags, Mode::empty()).unwrap();
        }
        let file = openat(&current, "deep", OFlags::CREATE | OFlags::WRONLY, Mode::RWXU).unwrap();
        std::io::Write::write_all(&mut File::from(file), &vec![1; MEGABYTE]).unwrap();
        let used = used_bytes(&[home.path().to_owned()]);
        assert!(used >= MEGABYTE as u64 + 50 * SMALLEST, "{used}");
    }

    #[tokio::test]
    async fn the_watch_tells_when_more_is_there_than_allowed() {
        let _turn = TURN.lock().await;
        let home = directory();
        for number in 0..3 {
            fs::write(home.path().join(number.to_string()), vec![1; MEGABYTE]).unwrap();
        }
        let used = exceeded(vec![home.path().to_owned()], 2 * MEGABYTE as u64, 0).await;
        assert!(used >= 3 * MEGABYTE as u64, "{used}");
    }

    #[test]
    fn what_starts_over_its_limit_may_be_cleaned_up_and_grow_no_further() {
        let mega = MEGABYTE as u64;
        for (held, expected) in [(0, 80 * mega), (80 * mega, 80 * mega), (90 * mega, 100 * mega)] {
            assert_eq!(allowed(80 * mega, held), expected, "{held}");
        }
        assert_eq!(allowed(u64::MAX, 0), u64::MAX);
    }
}
