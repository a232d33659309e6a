use std::{
    fs,
    os::unix::fs::{PermissionsExt, symlink},
    path::PathBuf,
    process::Command,
};

use super::*;

fn write(path: &Path, content: &[u8]) -> Result<(), ReplaceError> {
    let mut file = NewFile::create(path, Wanted::default())?;
    file.write_all(content)?;
    file.commit()
}

/// The entries of a directory: nothing of ours is left among them.
fn names(path: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(path).unwrap().map(|it| it.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// A file system of its own, of `size`; needs root, as CI has it.
struct Small(tempfile::TempDir);

impl Small {
    fn new(size: &str) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let options = format!("size={size}");
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", &options, "none"]).arg(directory.path()).status();
        assert!(mounted.unwrap().success(), "run the tests as root");
        Self(directory)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(self.0.path()).status();
    }
}

#[test]
fn a_file_is_replaced_with_its_mode_owner_and_attributes() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    fs::write(&path, "old").unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o6751)).unwrap();
    std::os::unix::fs::chown(&path, Some(4711), Some(4712)).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o6751)).unwrap();
    rustix::fs::setxattr(&path, "user.note", b"kept", XattrFlags::empty()).unwrap();
    write(&path, b"new").unwrap();
    let metadata = fs::metadata(&path).unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"new");
    assert_eq!((metadata.mode() & 0o7777, metadata.uid(), metadata.gid()), (0o6751, 4711, 4712));
    let mut value = [0; 4];
    assert_eq!(rustix::fs::getxattr(&path, "user.note", &mut value).unwrap(), 4);
    assert_eq!(&value, b"kept");
    assert_eq!(names(directory.path()), ["file"]);
}

#[test]
fn what_is_not_committed_changes_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let (old, new) = (directory.path().join("old"), directory.path().join("new"));
    fs::write(&old, "old").unwrap();
    for path in [&old, &new] {
        let mut file = NewFile::create(path, Wanted::default()).unwrap();
        file.write_all(b"half").unwrap();
    }
    assert_eq!(fs::read(&old).unwrap(), b"old");
    assert_eq!(names(directory.path()), ["old"]);
}

/// So that a killed process leaves nothing.
#[test]
fn what_is_not_committed_has_no_name() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    for old in [None, Some("old")] {
        if let Some(old) = old {
            fs::write(&path, old).unwrap();
        }
        let mut file = NewFile::create(&path, Wanted::default()).unwrap();
        file.write_all(b"new").unwrap();
        assert_eq!(names(directory.path()).len(), usize::from(old.is_some()));
        file.commit().unwrap();
        assert_eq!((fs::read(&path).unwrap(), names(directory.path())), (b"new".into(), vec!["file".to_owned()]));
        fs::remove_file(&path).unwrap();
    }
}

#[test]
fn what_cannot_be_given_a_name_is_copied() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    for old in [None, Some("old")] {
        if let Some(old) = old {
            fs::write(&path, old).unwrap();
            fs::set_permissions(&path, Permissions::from_mode(0o751)).unwrap();
        }
        let mut file = NewFile::create(&path, Wanted { fresh_mode: Some(0o751), ..Wanted::default() }).unwrap();
        // Of O_EXCL: the kernel gives it no name.
        file.content = tempfile::tempfile_in(directory.path()).unwrap();
        file.file().write_all(b"new").unwrap();
        std::os::unix::fs::fchown(file.file(), Some(4711), Some(4712)).unwrap();
        file.commit().unwrap();
        let metadata = fs::metadata(&path).unwrap();
        let (uid, gid) = if old.is_some() { (0, 0) } else { (4711, 4712) };
        assert_eq!((fs::read(&path).unwrap(), names(directory.path())), (b"new".into(), vec!["file".to_owned()]));
        assert_eq!((metadata.mode() & 0o7777, metadata.uid(), metadata.gid()), (0o751, uid, gid), "run as root");
        fs::remove_file(&path).unwrap();
    }
}

#[test]
fn where_every_file_has_a_name_nothing_is_left_either() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    for committed in [true, false] {
        let mut file = NewFile::create(&path, Wanted::default()).unwrap();
        let (content, name) = named(&file.target.directory, Mode::from_raw_mode(0o600)).unwrap();
        (file.content, file.temporary) = (content, Some(name));
        file.write_all(b"new").unwrap();
        assert_eq!(names(directory.path()).len(), if committed { 1 } else { 2 });
        if committed {
            file.commit().unwrap();
        } else {
            drop(file);
        }
        assert_eq!(names(directory.path()), ["file"]);
    }
}

#[test]
fn a_link_stays_and_its_target_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::create_dir(at("sub")).unwrap();
    fs::write(at("sub/file"), "old").unwrap();
    symlink("sub/../two", at("one")).unwrap();
    symlink(at("sub/file"), at("two")).unwrap();
    symlink("nowhere", at("dangling")).unwrap();
    symlink("loop", at("loop")).unwrap();
    write(&at("one"), b"new").unwrap();
    write(&at("dangling"), b"new").unwrap();
    assert_eq!((fs::read(at("sub/file")).unwrap(), fs::read(at("nowhere")).unwrap()), (b"new".into(), b"new".into()));
    assert!(fs::symlink_metadata(at("one")).unwrap().is_symlink());
    assert_eq!(write(&at("loop"), b"").unwrap_err().into_io().raw_os_error(), Some(libc::ELOOP));
    let itself = NewFile::create(&at("two"), Wanted { replace_special: true, ..Wanted::default() }).unwrap();
    itself.commit().unwrap();
    assert!(fs::symlink_metadata(at("two")).unwrap().is_file());
    assert_eq!(fs::read(at("sub/file")).unwrap(), b"new");
}

#[test]
fn another_name_of_the_file_sees_the_new_content() {
    let directory = tempfile::tempdir().unwrap();
    let (one, two) = (directory.path().join("one"), directory.path().join("two"));
    fs::write(&one, "a longer old content").unwrap();
    fs::hard_link(&one, &two).unwrap();
    write(&one, b"new").unwrap();
    assert_eq!(fs::read(&two).unwrap(), b"new");
    assert_eq!(names(directory.path()), ["one", "two"]);
}

#[test]
fn without_room_for_both_the_old_one_stays() {
    let small = Small::new("64k");
    fs::write(small.path("file"), vec![b'o'; 40_000]).unwrap();
    let error = write(&small.path("file"), &[b'n'; 40_000]).unwrap_err();
    assert_eq!(error.into_io().raw_os_error(), Some(libc::ENOSPC));
    assert_eq!(fs::read(small.path("file")).unwrap(), vec![b'o'; 40_000]);
    assert_eq!(names(small.0.path()), ["file"]);
}

#[test]
fn in_place_too_a_failure_leaves_the_old_content() {
    let small = Small::new("64k");
    fs::write(small.path("one"), vec![b'o'; 40_000]).unwrap();
    fs::hard_link(small.path("one"), small.path("two")).unwrap();
    // Nothing more can be made beside it: the content is collected elsewhere.
    fs::write(small.path("rest"), vec![b'r'; 16 << 10]).unwrap();
    let mut file = NewFile::create(&small.path("one"), Wanted::default()).unwrap();
    let small_spool = spool(&std::env::temp_dir()).unwrap();
    file.content = small_spool;
    file.write_all(&[b'n'; 100_000]).unwrap();
    let error = file.commit().unwrap_err();
    assert!(matches!(error, ReplaceError::InPlace { .. }), "{error}");
    assert_eq!(fs::read(small.path("two")).unwrap(), vec![b'o'; 40_000]);
}

#[test]
fn a_file_that_is_a_mount_is_written_in_place() {
    let directory = tempfile::tempdir().unwrap();
    let (outside, mount) = (directory.path().join("outside"), directory.path().join("mount"));
    fs::write(&outside, "a longer old content").unwrap();
    fs::write(&mount, "").unwrap();
    assert!(Command::new("mount").arg("--bind").arg(&outside).arg(&mount).status().unwrap().success(), "run as root");
    let written = write(&mount, b"new");
    let seen = fs::read(&mount).unwrap();
    assert!(Command::new("umount").arg("-l").arg(&mount).status().unwrap().success());
    written.unwrap();
    assert_eq!((seen, fs::read(&outside).unwrap()), (b"new".into(), b"new".into()));
    assert_eq!(names(directory.path()), ["mount", "outside"]);
}

#[test]
fn what_is_no_file_is_refused_without_waiting() {
    let directory = tempfile::tempdir().unwrap();
    let pipe = directory.path().join("pipe");
    rustix::fs::mkfifoat(rustix::fs::CWD, &pipe, Mode::from_raw_mode(0o600)).unwrap();
    assert!(matches!(write(&pipe, b""), Err(ReplaceError::Special)));
    let other = directory.path().join("other");
    rustix::fs::mkfifoat(rustix::fs::CWD, &other, Mode::from_raw_mode(0o600)).unwrap();
    NewFile::create(&other, Wanted { replace_special: true, ..Wanted::default() }).unwrap().commit().unwrap();
    assert!(fs::symlink_metadata(&other).unwrap().is_file());
    let code = |path: &Path| write(path, b"").unwrap_err().into_io().raw_os_error();
    assert_eq!(code(directory.path()), Some(libc::EISDIR));
    assert_eq!(code(&directory.path().join("..")), Some(libc::EISDIR));
    assert_eq!(code(&directory.path().join("none/file")), Some(libc::ENOENT));
    assert_eq!(code(&pipe.join("file")), Some(libc::ENOTDIR));
}

#[test]
fn a_descriptor_given_as_a_path_is_no_name_that_could_be_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("file");
    fs::write(&path, "old").unwrap();
    let open = File::open(&path).unwrap();
    let (read, _write) = io::pipe().unwrap();
    symlink(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&open)), directory.path().join("link"))
        .unwrap();
    let pipe = format!("/dev/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&read));
    for path in [&directory.path().join("link"), Path::new(&pipe)] {
        assert!(matches!(write(path, b"new"), Err(ReplaceError::Special)), "{}", path.display());
    }
    assert_eq!(fs::read(&path).unwrap(), b"old");
    assert_eq!(names(directory.path()), ["file", "link"]);
}

#[test]
fn a_mode_and_a_time_are_set_when_they_are_asked_for() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("deep/er/file");
    let modified = Some((1_600_000_000, 123_456_789));
    let wanted = Wanted { mode: Some(0o640), modified, parents: true, ..Wanted::default() };
    NewFile::create(&path, wanted).unwrap().commit().unwrap();
    let metadata = fs::metadata(&path).unwrap();
    assert_eq!(metadata.mode() & 0o7777, 0o640);
    assert_eq!((metadata.mtime(), metadata.mtime_nsec()), (1_600_000_000, 123_456_789));
}

#[test]
fn a_program_that_runs_is_replaced() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("program");
    fs::copy("/bin/sleep", &path).unwrap();
    let mut running = Command::new(&path).arg("1000").spawn().unwrap();
    // It is the program itself once the kernel says so.
    while fs::read_link(format!("/proc/{}/exe", running.id())).ok().as_deref() != Some(&path) {
        std::thread::yield_now();
    }
    let replaced = write(&path, b"new");
    running.kill().unwrap();
    running.wait().unwrap();
    replaced.unwrap();
    assert_eq!(fs::read(&path).unwrap(), b"new");
}

/// Does something as a user who is neither root nor the owner of anything.
fn as_nobody<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    use rustix::{
        process::{Gid, Uid},
        thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid},
    };
    let (uid, gid) = (Uid::from_raw(65_534), Gid::from_raw(65_534));
    // The kernel keeps ids for each thread, and this one ends.
    let on_a_thread = || {
        set_thread_groups(&[]).expect("run the tests as root");
        set_thread_res_gid(gid, gid, gid).unwrap();
        set_thread_res_uid(uid, uid, uid).unwrap();
        work()
    };
    std::thread::scope(|scope| scope.spawn(on_a_thread).join().unwrap())
}

#[test]
fn what_fails_while_it_is_written_in_place_is_put_back() {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), Permissions::from_mode(0o777)).unwrap();
    let (one, two) = (directory.path().join("one"), directory.path().join("two"));
    for (old, new) in [(&b"a longer old content"[..], &b"new"[..]), (b"old", b"a longer new content")] {
        fs::write(&one, old).unwrap();
        fs::set_permissions(&one, Permissions::from_mode(0o666)).unwrap();
        let _ = fs::hard_link(&one, &two);
        // Whoever may write a file may not change its mode, which comes behind the content.
        let wanted = Wanted { mode: Some(0o600), ..Wanted::default() };
        let error = as_nobody(|| {
            let mut file = NewFile::create(&one, wanted)?;
            file.write_all(new)?;
            file.commit()
        })
        .unwrap_err();
        assert!(matches!(error, ReplaceError::InPlace { .. }), "{error}");
        assert_eq!((fs::read(&one).unwrap(), fs::read(&two).unwrap()), (old.to_vec(), old.to_vec()));
        assert_eq!(names(directory.path()), ["one", "two"]);
    }
}

#[test]
fn a_file_that_may_not_be_written_is_not_replaced_either() {
    let directory = tempfile::tempdir().unwrap();
    fs::set_permissions(directory.path(), Permissions::from_mode(0o777)).unwrap();
    let path = directory.path().join("file");
    fs::write(&path, "of root").unwrap();
    let refused = as_nobody(|| write(&path, b"new")).unwrap_err();
    assert_eq!(refused.into_io().raw_os_error(), Some(libc::EACCES));
    assert_eq!(fs::read(&path).unwrap(), b"of root");
}
