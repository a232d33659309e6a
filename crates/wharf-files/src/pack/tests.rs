use std::{
    fs,
    os::unix::{
        fs::{MetadataExt, PermissionsExt, symlink},
        net::UnixListener,
    },
    process::Command,
};

use super::*;
use crate::{Bounds, unpack};

fn packed(source: &Path, name: &str) -> (Vec<u8>, Packed) {
    let mut archive = Vec::new();
    let done = pack(source, Root::Link, Path::new(name), &mut archive).unwrap();
    (archive, done)
}

/// Kind, mode, time and content of everything below, as text.
fn tree(root: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(below) = pending.pop() {
        let path = root.join(&below);
        let metadata = fs::symlink_metadata(&path).unwrap();
        let what = if metadata.is_dir() {
            let entries = fs::read_dir(&path).unwrap().map(|entry| below.join(entry.unwrap().file_name()));
            pending.extend(entries);
            "directory".to_owned()
        } else if metadata.is_symlink() {
            format!("-> {}", fs::read_link(&path).unwrap().display())
        } else {
            String::from_utf8_lossy(&fs::read(&path).unwrap()).into_owned()
        };
        let (mode, links) = (metadata.mode() & 0o7777, if metadata.is_dir() { 0 } else { metadata.nlink() });
        let time = (metadata.mtime(), metadata.mtime_nsec());
        lines.push(format!("{}: {mode:o} {links} {time:?} {what}", below.display()));
    }
    lines.sort();
    lines
}

#[test]
fn a_tree_comes_out_as_it_went_in() {
    let directory = tempfile::tempdir().unwrap();
    let (from, to) = (directory.path().join("from"), directory.path().join("to"));
    let long = format!("{}/{}", "d".repeat(120), "f".repeat(200));
    fs::create_dir_all(from.join(&long).parent().unwrap()).unwrap();
    fs::create_dir_all(from.join("bin")).unwrap();
    fs::create_dir_all(from.join("locked/in")).unwrap();
    fs::write(from.join(&long), "long").unwrap();
    fs::write(from.join("bin/tool"), "#!/bin/sh\n").unwrap();
    fs::write(from.join("locked/in/file"), "x").unwrap();
    fs::write(from.join("empty"), "").unwrap();
    fs::write(from.join(OsStr::from_bytes(b"latin-\xe9")), "bytes").unwrap();
    fs::hard_link(from.join("bin/tool"), from.join("bin/same")).unwrap();
    symlink("/usr/bin/python3", from.join("bin/python")).unwrap();
    symlink("../empty", from.join("bin/up")).unwrap();
    symlink("t".repeat(300), from.join("dangling")).unwrap();
    for (name, mode) in [("bin/tool", 0o755), ("empty", 0o600), ("locked/in", 0o500), ("locked", 0o555)] {
        fs::set_permissions(from.join(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    let mut touch = Command::new("touch");
    touch.args(["-h", "-d", "2001-02-03 04:05:06.123456789", "empty", "bin", "dangling", "."]);
    assert!(touch.current_dir(&from).status().unwrap().success());
    let (archive, done) = packed(&from, "");
    assert_eq!(done.skipped, []);
    let unpacked = unpack(&archive[..], &to, Bounds::NONE).unwrap();
    assert_eq!((unpacked.files, unpacked.skipped_count), (5, 0));
    assert_eq!(tree(&to), tree(&from));
    // GNU tar reads it too.
    let other = directory.path().join("other");
    fs::create_dir(&other).unwrap();
    let file = directory.path().join("archive");
    fs::write(&file, &archive).unwrap();
    let read = Command::new("tar").arg("-xpf").arg(&file).arg("-C").arg(&other).status().unwrap();
    assert!(read.success());
    assert_eq!(tree(&other), tree(&from));
}

#[test]
fn long_names_and_targets_with_line_ends_come_out_as_they_went_in() {
    let directory = tempfile::tempdir().unwrap();
    let (from, to) = (directory.path().join("from"), directory.path().join("to"));
    let long = format!("{}\n\n30 path=elsewhere\n", "n".repeat(120));
    fs::create_dir_all(from.join(&long)).unwrap();
    fs::write(from.join(&long).join("file"), "x").unwrap();
    fs::hard_link(from.join(&long).join("file"), from.join("same")).unwrap();
    symlink(&long, from.join("link")).unwrap();
    let (archive, _) = packed(&from, "");
    unpack(&archive[..], &to, Bounds::NONE).unwrap();
    assert_eq!(tree(&to), tree(&from));
}

#[test]
fn special_files_and_what_cannot_be_read_are_named() {
    let directory = tempfile::tempdir().unwrap();
    let from = directory.path().join("from");
    fs::create_dir(&from).unwrap();
    fs::write(from.join("file"), "x").unwrap();
    let _socket = UnixListener::bind(from.join("socket")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, from.join("pipe"), Mode::from_raw_mode(0o600)).unwrap();
    let (archive, done) = packed(&from, "under");
    let named: Vec<_> = done.skipped.iter().map(|it| format!("{}: {}", it.path.display(), it.reason)).collect();
    assert_eq!(named, ["under/pipe: a named pipe", "under/socket: a socket"]);
    let to = directory.path().join("to");
    assert_eq!(unpack(&archive[..], &to, Bounds::NONE).unwrap().files, 1);
    assert_eq!(fs::read(to.join("under/file")).unwrap(), b"x");
    assert!(pack(&from.join("pipe"), Root::Link, Path::new("pipe"), Vec::new()).is_err());
    assert!(pack(&from.join("none"), Root::Link, Path::new("none"), Vec::new()).is_err());
}

#[test]
fn a_file_that_grows_while_it_is_read_does_not_break_the_archive() {
    /// Appends to the file with every piece that is written.
    struct Growing(Vec<u8>, PathBuf);
    impl Write for Growing {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.extend_from_slice(bytes);
            fs::OpenOptions::new().append(true).open(&self.1)?.write_all(&[b'+'; 1 << 20])?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let directory = tempfile::tempdir().unwrap();
    let (from, to) = (directory.path().join("from"), directory.path().join("to"));
    fs::create_dir(&from).unwrap();
    fs::write(from.join("grows"), vec![b'-'; 1 << 20]).unwrap();
    fs::write(from.join("next"), "next").unwrap();
    let mut archive = Growing(Vec::new(), from.join("grows"));
    assert_eq!(pack(&from, Root::Link, Path::new(""), &mut archive).unwrap().skipped, []);
    unpack(&archive.0[..], &to, Bounds::NONE).unwrap();
    assert_eq!(fs::read(to.join("grows")).unwrap(), vec![b'-'; 1 << 20]);
    assert_eq!(fs::read(to.join("next")).unwrap(), b"next");
}

#[test]
fn a_file_that_shrinks_while_it_is_read_is_named() {
    struct Shrinking(Vec<u8>, PathBuf);
    impl Write for Shrinking {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.extend_from_slice(bytes);
            fs::OpenOptions::new().write(true).open(&self.1)?.set_len(10)?;
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let directory = tempfile::tempdir().unwrap();
    let (from, to) = (directory.path().join("shrinks"), directory.path().join("to"));
    fs::write(&from, vec![b'-'; 4 << 20]).unwrap();
    let mut archive = Shrinking(Vec::new(), from.clone());
    let done = pack(&from, Root::Link, Path::new("shrinks"), &mut archive).unwrap();
    assert_eq!(done.skipped[0].reason, "it became shorter while it was copied");
    unpack(&archive.0[..], &to, Bounds::NONE).unwrap();
    assert_eq!(fs::metadata(to.join("shrinks")).unwrap().len(), 4 << 20);
}

#[test]
fn a_link_given_as_the_source_is_a_link_unless_its_target_is_asked_for() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::create_dir(at("target")).unwrap();
    fs::write(at("target/file"), "x").unwrap();
    symlink("target", at("link")).unwrap();
    let (archive, _) = packed(&at("link"), "copy");
    unpack(&archive[..], &at("to"), Bounds::NONE).unwrap();
    assert_eq!(fs::read_link(at("to/copy")).unwrap(), Path::new("target"));
    let mut archive = Vec::new();
    pack(&at("link"), Root::Target, Path::new("followed"), &mut archive).unwrap();
    unpack(&archive[..], &at("to"), Bounds::NONE).unwrap();
    assert_eq!(fs::read(at("to/followed/file")).unwrap(), b"x");
}

#[test]
fn a_time_before_1970_comes_along_to_its_nanosecond() {
    let directory = tempfile::tempdir().unwrap();
    let (from, to) = (directory.path().join("from"), directory.path().join("to"));
    fs::create_dir(&from).unwrap();
    for (name, seconds, nanoseconds) in [("half", -1, 500_000_000), ("whole", -315_532_800, 0), ("late", 1, 1)] {
        let file = fs::File::create(from.join(name)).unwrap();
        rustix::fs::futimens(&file, &crate::replace::times(seconds, nanoseconds)).unwrap();
    }
    let (archive, _) = packed(&from, "");
    unpack(&archive[..], &to, Bounds::NONE).unwrap();
    assert_eq!(tree(&to), tree(&from));
}
