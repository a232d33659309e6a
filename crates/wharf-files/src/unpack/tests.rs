use std::{
    fs,
    os::unix::fs::{MetadataExt, symlink},
};

use tar::{Builder, EntryType::*, Header};

use super::*;

const BOUNDS: Bounds = Bounds { bytes: 1 << 20, entries: 100 };

/// An archive with right checksums of whatever members; the library's own way refuses hostile names.
fn tar_of(members: &[(&str, EntryType, &str)]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (name, kind, content) in members {
        let mut header = Header::new_gnu();
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(*kind);
        header.set_mode(0o6755);
        let content = if matches!(kind, Symlink | Link) {
            header.as_old_mut().linkname[..content.len()].copy_from_slice(content.as_bytes());
            ""
        } else {
            content
        };
        header.set_size(content.len() as u64);
        header.set_cksum();
        builder.append(&header, content.as_bytes()).unwrap();
    }
    builder.into_inner().unwrap()
}

fn names(path: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(path).unwrap().map(|it| it.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn a_hostile_archive_writes_nothing_outside() {
    for members in [
        vec![("../evil", Regular, "x")],
        vec![("/tmp/wharf-evil", Regular, "x")],
        vec![("a/../../evil", Regular, "x")],
        vec![("link", Symlink, ".."), ("link/evil", Regular, "x")],
        vec![("link", Symlink, "/tmp"), ("link/wharf-evil", Regular, "x")],
        vec![("link", Symlink, "/tmp"), ("link/wharf-evil/sub", Directory, "")],
        vec![("a", Symlink, "b"), ("b", Symlink, ".."), ("a/evil", Regular, "x")],
        vec![("d", Directory, ""), ("d/l", Symlink, "../.."), ("d/l/evil", Symlink, "x")],
        vec![("hard", Link, "/etc/passwd")],
        vec![("hard", Link, "../secret")],
        vec![("link", Symlink, ".."), ("hard", Link, "link/secret")],
        vec![("link", Symlink, ".."), ("link/hard", Link, "x")],
    ] {
        let directory = tempfile::tempdir().unwrap();
        let inside = directory.path().join("inside");
        fs::write(directory.path().join("secret"), "s").unwrap();
        let refused = unpack(&tar_of(&members)[..], &inside, BOUNDS);
        assert!(matches!(refused, Err(TreeError::Archive { .. })), "{members:?}: {refused:?}");
        assert_eq!(names(directory.path()), ["inside", "secret"], "{members:?}");
        assert_eq!(fs::metadata(directory.path().join("secret")).unwrap().nlink(), 1, "{members:?}");
    }
    assert!(!Path::new("/tmp/wharf-evil").exists());
}

#[test]
fn a_link_is_replaced_and_not_written_through() {
    let directory = tempfile::tempdir().unwrap();
    let (inside, outside) = (directory.path().join("inside"), directory.path().join("outside"));
    fs::create_dir(&inside).unwrap();
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("kept"), "kept").unwrap();
    symlink(outside.join("kept"), inside.join("file")).unwrap();
    symlink(&outside, inside.join("dir")).unwrap();
    unpack(&tar_of(&[("file", Regular, "new")])[..], &inside, BOUNDS).unwrap();
    assert_eq!(fs::read(inside.join("file")).unwrap(), b"new");
    for member in [("dir/evil", Regular, "x"), ("dir", Directory, "")] {
        let refused = unpack(&tar_of(&[member])[..], &inside, BOUNDS).unwrap_err();
        assert!(refused.to_string().contains("through a symlink"), "{refused}");
    }
    assert_eq!(names(&outside), ["kept"]);
    assert_eq!(fs::read(outside.join("kept")).unwrap(), b"kept");
}

#[test]
fn links_are_made_as_they_are_and_never_followed() {
    let directory = tempfile::tempdir().unwrap();
    let members = [("python", Symlink, "/usr/bin/python3"), ("up", Symlink, "../.."), ("file", Regular, "x")];
    unpack(&tar_of(&members)[..], directory.path(), BOUNDS).unwrap();
    unpack(&tar_of(&[("again", Link, "file"), ("again", Link, "file")])[..], directory.path(), BOUNDS).unwrap();
    assert_eq!(fs::read_link(directory.path().join("python")).unwrap(), Path::new("/usr/bin/python3"));
    assert_eq!(fs::read_link(directory.path().join("up")).unwrap(), Path::new("../.."));
    assert_eq!(fs::metadata(directory.path().join("file")).unwrap().nlink(), 2);
    assert_eq!(names(directory.path()), ["again", "file", "python", "up"]);
}

#[test]
fn devices_and_pipes_are_left_out_and_named() {
    let directory = tempfile::tempdir().unwrap();
    let members = [("device", Char, ""), ("block", Block, ""), ("pipe", Fifo, ""), ("odd", EntryType::new(b'Z'), "zz")];
    let members: Vec<_> = members.into_iter().chain([("file", Regular, "x")]).collect();
    let done = unpack(&tar_of(&members)[..], directory.path(), BOUNDS).unwrap();
    assert_eq!(names(directory.path()), ["file"]);
    let left_out: Vec<_> = done.skipped.iter().map(|skipped| skipped.path.display().to_string()).collect();
    assert_eq!((left_out, done.skipped_count), (["device", "block", "pipe", "odd"].map(String::from).into(), 4));
}

#[test]
fn a_sparse_file_comes_out_whole_or_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let sparse = fs::File::create(directory.path().join("sparse")).unwrap();
    sparse.set_len(300_000).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&sparse, b"data", 200_000).unwrap();
    for (form, whole) in [
        (&["--format=gnu"][..], true),
        (&["--format=posix", "--sparse-version=1.0"], false),
        (&["--format=posix", "--sparse-version=0.1"], false),
        (&["--format=posix", "--sparse-version=0.0"], false),
    ] {
        let mut tar = std::process::Command::new("tar");
        tar.arg("-S").args(form).args(["-c", "sparse"]).current_dir(directory.path());
        let archive = tar.output().unwrap().stdout;
        let to = directory.path().join(form.concat());
        let done = unpack(&archive[..], &to, BOUNDS).unwrap();
        if whole {
            assert_eq!(fs::read(to.join("sparse")).unwrap(), fs::read(directory.path().join("sparse")).unwrap());
        } else {
            assert_eq!((done.files, done.skipped_count, done.skipped[0].path.as_path()), (0, 1, Path::new("sparse")));
            assert!(done.skipped[0].reason.contains("sparse") && names(&to).is_empty(), "{form:?}: {done:?}");
        }
    }
}

#[test]
fn nothing_that_is_unpacked_runs_as_its_owner() {
    let directory = tempfile::tempdir().unwrap();
    unpack(&tar_of(&[("program", Regular, "x"), ("dir", Directory, "")])[..], directory.path(), BOUNDS).unwrap();
    let mode = |name: &str| fs::metadata(directory.path().join(name)).unwrap().mode() & 0o7777;
    assert_eq!((mode("program"), mode("dir")), (0o755, 0o755));
}

#[test]
fn a_stream_that_breaks_leaves_the_old_file_and_no_half_of_a_new_one() {
    struct Broken<'a>(&'a [u8]);
    impl Read for Broken<'_> {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            match self.0.read(buffer) {
                Ok(0) => Err(io::ErrorKind::ConnectionReset.into()),
                read => read,
            }
        }
    }
    let directory = tempfile::tempdir().unwrap();
    fs::write(directory.path().join("old"), "old").unwrap();
    for name in ["old", "new"] {
        let archive = tar_of(&[("whole", Regular, "x"), (name, Regular, &"n".repeat(3000))]);
        let refused = unpack(Broken(&archive[..3072]), directory.path(), BOUNDS);
        assert!(matches!(refused, Err(TreeError::Stream(_))), "{refused:?}");
        // The same without an error of the stream: it only ends.
        let refused = unpack(&archive[..3072], directory.path(), BOUNDS);
        assert!(matches!(refused, Err(TreeError::Archive { .. })), "{refused:?}");
        assert_eq!(names(directory.path()), ["old", "whole"]);
        assert_eq!(fs::read(directory.path().join("old")).unwrap(), b"old");
    }
}

#[test]
fn an_archive_is_bounded_in_bytes_entries_and_the_length_of_names() {
    let directory = tempfile::tempdir().unwrap();
    let many: Vec<_> = (0..101).map(|number| format!("f{number}")).collect();
    let many: Vec<_> = many.iter().map(|name| (name.as_str(), Regular, "")).collect();
    let refused = unpack(&tar_of(&many)[..], directory.path(), BOUNDS);
    assert!(matches!(refused, Err(TreeError::TooLarge { limit: 100, .. })), "{refused:?}");
    let long = "x".repeat((1 << 20) + 1);
    let refused = unpack(&tar_of(&[("long", Regular, &long)])[..], directory.path(), BOUNDS);
    assert!(matches!(refused, Err(TreeError::TooLarge { limit: 1_048_576, .. })), "{refused:?}");
    for kind in [GNULongName, GNULongLink, XHeader] {
        let endless = "x".repeat(3 << 20);
        let refused = unpack(&tar_of(&[("name", kind, &endless), ("f", Regular, "")])[..], directory.path(), BOUNDS);
        assert!(refused.unwrap_err().to_string().contains("2097152 bytes"), "{kind:?}");
    }
}

#[test]
fn times_are_read_as_the_extended_header_writes_them() {
    for (text, expected) in [
        ("1600000000.123456789", Some((1_600_000_000, 123_456_789))),
        ("1600000000.5", Some((1_600_000_000, 500_000_000))),
        ("1600000000.1234567891", Some((1_600_000_000, 123_456_789))),
        ("1600000000", Some((1_600_000_000, 0))),
        ("-5.5", Some((-6, 500_000_000))),
        ("-5", Some((-5, 0))),
        ("-0.25", Some((-1, 750_000_000))),
        ("1.-5", None),
        ("", None),
        ("soon", None),
    ] {
        assert_eq!(parse_time(text), expected, "{text}");
    }
}

/// So that a killed process leaves no half of it; small ones are made where they belong, which is faster.
#[test]
fn a_large_member_has_no_name_until_it_is_whole() {
    let directory = tempfile::tempdir().unwrap();
    let count = || fs::read_dir(directory.path()).unwrap().count();
    let path = Path::new("large");
    for old in [None, Some("old")] {
        if let Some(old) = old {
            fs::write(directory.path().join(path), old).unwrap();
        }
        let mut tree = crate::Tree::below(directory.path(), Bounds::NONE).unwrap();
        let mut member = tree.file(path, 1 << 20).unwrap();
        member.write_all(b"new").unwrap();
        assert_eq!(count(), usize::from(old.is_some()));
        tree.finish_file(path, member, 0o640, Some((1_600_000_000, 0))).unwrap();
        let metadata = fs::metadata(directory.path().join(path)).unwrap();
        assert_eq!(fs::read(directory.path().join(path)).unwrap(), b"new");
        assert_eq!((metadata.mode() & 0o7777, metadata.mtime(), count()), (0o640, 1_600_000_000, 1));
        fs::remove_file(directory.path().join(path)).unwrap();
    }
}

#[test]
fn of_what_is_left_out_a_thousand_are_named_and_all_are_counted() {
    let names: Vec<_> = (0..1001).map(|number| number.to_string()).collect();
    let members: Vec<_> = names.iter().map(|name| (name.as_str(), Fifo, "")).collect();
    let directory = tempfile::tempdir().unwrap();
    let bounds = Bounds { entries: 2000, ..BOUNDS };
    let unpacked = unpack(&tar_of(&members)[..], directory.path(), bounds).unwrap();
    assert_eq!((unpacked.skipped.len(), unpacked.skipped_count), (1000, 1001));
}

#[test]
fn an_archive_that_ends_between_two_members_was_cut_short() {
    let whole = tar_of(&[("one", Regular, "1"), ("two", Regular, "2")]);
    let directory = tempfile::tempdir().unwrap();
    for length in [1024, 2048] {
        let refused = unpack(&whole[..length], directory.path(), BOUNDS).unwrap_err();
        assert!(refused.to_string().contains("cut short"), "{length}: {refused}");
    }
    assert_eq!(names(directory.path()), ["one", "two"], "what came is whole");
    // Some writers end with one empty block.
    unpack(&whole[..2048 + 512], directory.path(), BOUNDS).unwrap();
    unpack(&whole[2048..], directory.path(), BOUNDS).unwrap();
}

#[test]
fn what_is_no_tar_is_told_as_what_it_is() {
    let directory = tempfile::tempdir().unwrap();
    let inside = directory.path().join("inside");
    for (content, told) in [
        (&b""[..], "it is empty"),
        (b"\x1f\x8b\x08 and so on", "it is no tar archive but compressed by gzip: decompress it on the way"),
        (b"PK\x03\x04", "it is no tar archive but compressed by zip: decompress it on the way"),
    ] {
        assert_eq!(unpack(content, &inside, BOUNDS).unwrap_err().to_string(), told);
        assert!(!inside.exists(), "{told}");
    }
    for content in [b"hello\n".to_vec(), vec![0xf3; 2000], b"x".repeat(2000)] {
        assert_eq!(unpack(&content[..], &inside, BOUNDS).unwrap_err().to_string(), "it is no tar archive");
    }
}

#[test]
fn a_directory_of_an_archive_of_the_old_form_is_one() {
    let directory = tempfile::tempdir().unwrap();
    unpack(&tar_of(&[("d/", EntryType::new(0), ""), ("d/file", EntryType::new(0), "x")])[..], directory.path(), BOUNDS)
        .unwrap();
    assert_eq!(fs::read(directory.path().join("d/file")).unwrap(), b"x");
}
