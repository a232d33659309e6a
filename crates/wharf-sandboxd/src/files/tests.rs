use std::{io::Cursor, sync::atomic::AtomicBool};

use wharf_protocol::SearchRequest;

use super::{
    archive::{Bounds, Compression, Unsafe, pack_tar, pack_zip, unpack_tar, unpack_zip},
    search::search,
    *,
};

const BOUNDS: Bounds = Bounds { bytes: 1 << 20, entries: 100 };

fn owner() -> Owner {
    Owner { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() }
}

fn write(path: &Path, text: &str) {
    let mut file = NewFile::create(path, None, true, owner()).unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file.commit().unwrap();
}

#[test]
fn a_file_is_replaced_in_one_step_and_keeps_its_mode() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("deep/er/file");
    write(&path, "one");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o751)).unwrap();
    let link = dir.path().join("link");
    std::os::unix::fs::symlink(&path, &link).unwrap();
    write(&link, "two");
    assert_eq!(fs::read_to_string(&path).unwrap(), "two");
    assert_eq!(fs::metadata(&path).unwrap().mode() & 0o777, 0o751);
    drop(NewFile::create(&path, None, false, owner()).unwrap());
    assert_eq!(fs::read_to_string(&path).unwrap(), "two");
    assert_eq!(list(path.parent().unwrap()).unwrap().entries.len(), 1, "nothing temporary is left");
}

#[test]
fn bad_paths_are_refused() {
    for path in ["", "relative", "/a\0b", &format!("/{}", "x".repeat(5000))] {
        assert!(matches!(checked_path(path), Err(FilesError::Path { .. })));
    }
    assert!(matches!(remove(Path::new("/"), true), Err(FilesError::Path { .. })));
    assert!(matches!(open(Path::new("/nonexistent")), Err(FilesError::NotFound { .. })));
    assert!(matches!(open(Path::new("/dev/null")), Err(FilesError::Special { .. })));
}

#[test]
fn a_move_does_not_replace_unless_told_to() {
    let dir = tempfile::tempdir().unwrap();
    let (a, b) = (dir.path().join("a"), dir.path().join("b"));
    write(&a, "a");
    write(&b, "b");
    assert!(matches!(rename(&a, &b, false), Err(FilesError::Exists { .. })));
    rename(&a, &b, true).unwrap();
    assert_eq!(fs::read_to_string(&b).unwrap(), "a");
}

#[test]
fn removing_never_follows_a_symlink() {
    let dir = tempfile::tempdir().unwrap();
    let (inside, outside) = (dir.path().join("inside"), dir.path().join("outside"));
    write(&outside.join("kept"), "x");
    fs::create_dir(&inside).unwrap();
    std::os::unix::fs::symlink(&outside, inside.join("link")).unwrap();
    assert!(matches!(remove(&inside, false), Err(FilesError::NotEmpty { .. })));
    remove(&inside, true).unwrap();
    assert!(outside.join("kept").exists());
}

#[tokio::test]
async fn a_directory_survives_tar_and_zip() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("from");
    write(&from.join("a.txt"), "alpha");
    write(&from.join("sub/b.txt"), "beta");
    fs::set_permissions(from.join("a.txt"), fs::Permissions::from_mode(0o755)).unwrap();
    std::os::unix::fs::symlink("a.txt", from.join("link")).unwrap();
    std::os::unix::fs::symlink("/nonexistent", from.join("sub/dangling")).unwrap();

    let (near, mut far) = tokio::io::duplex(1000);
    fs::remove_file(from.join("sub/dangling")).unwrap();
    let tar = dir.path().join("tar");
    let (packed, unpacked) = tokio::join!(pack_tar(&from, near), unpack_tar(&mut far, &tar, owner(), BOUNDS));
    packed.unwrap();
    assert_eq!(unpacked.unwrap().files, 2);
    assert_eq!(fs::read_to_string(dir.path().join("tar/sub/b.txt")).unwrap(), "beta");
    assert_eq!(fs::read_link(dir.path().join("tar/link")).unwrap(), Path::new("a.txt"));
    assert_eq!(fs::metadata(dir.path().join("tar/a.txt")).unwrap().mode() & 0o777, 0o755);

    let mut zipped = Vec::new();
    pack_zip(&from, &mut zipped, Compression::Deflated).unwrap();
    let size = zipped.len() as u64;
    let done = unpack_zip(Cursor::new(zipped), size, &dir.path().join("zip"), owner(), BOUNDS, Unsafe::Refuse).unwrap();
    assert_eq!(done.files, 3);
    assert_eq!(fs::read_to_string(dir.path().join("zip/link")).unwrap(), "alpha");
}

async fn tar_of(members: &[(&str, tokio_tar::EntryType, &str)]) -> Vec<u8> {
    let mut builder = tokio_tar::Builder::new(Vec::new());
    for (name, kind, content) in members {
        let mut header = tokio_tar::Header::new_gnu();
        // Written by hand: the library refuses hostile names itself.
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(*kind);
        header.set_mode(0o644);
        if matches!(kind, tokio_tar::EntryType::Symlink | tokio_tar::EntryType::Link) {
            header.as_mut_bytes()[157..157 + content.len()].copy_from_slice(content.as_bytes());
            header.set_size(0);
            header.set_cksum();
            builder.append(&header, tokio::io::empty()).await.unwrap();
        } else {
            header.set_size(content.len() as u64);
            header.set_cksum();
            builder.append(&header, content.as_bytes()).await.unwrap();
        }
    }
    builder.into_inner().await.unwrap()
}

#[tokio::test]
async fn a_hostile_tar_writes_nothing_outside() {
    use tokio_tar::EntryType::{Char, Fifo, Link, Regular, Symlink};
    for members in [
        vec![("../evil", Regular, "x")],
        vec![("/tmp/wharf-evil", Regular, "x")],
        vec![("a/../../evil", Regular, "x")],
        vec![("link", Symlink, "..")],
        vec![("link", Symlink, "/etc")],
        vec![("sub/link", Symlink, "../../out")],
        vec![("hard", Link, "/etc/passwd")],
        vec![("hard", Link, "../secret")],
        vec![("device", Char, "")],
        vec![("pipe", Fifo, "")],
    ] {
        let dir = tempfile::tempdir().unwrap();
        let inside = dir.path().join("inside");
        write(&dir.path().join("secret"), "s");
        let archive = tar_of(&members).await;
        let refused = unpack_tar(&archive[..], &inside, owner(), BOUNDS).await;
        assert!(matches!(refused, Err(FilesError::Archive { .. })), "{members:?}: {refused:?}");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 2, "{members:?}");
    }
    assert!(!Path::new("/tmp/wharf-evil").exists());
}

#[tokio::test]
async fn a_member_is_not_written_through_a_symlink_that_was_there() {
    use tokio_tar::EntryType::Regular;
    let dir = tempfile::tempdir().unwrap();
    let (inside, outside) = (dir.path().join("inside"), dir.path().join("outside"));
    fs::create_dir(&inside).unwrap();
    fs::create_dir(&outside).unwrap();
    std::os::unix::fs::symlink(&outside, inside.join("dir")).unwrap();
    let archive = tar_of(&[("dir/evil", Regular, "x")]).await;
    assert!(unpack_tar(&archive[..], &inside, owner(), BOUNDS).await.is_err());
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
}

#[tokio::test]
async fn an_archive_is_bounded_in_bytes_and_entries() {
    use tokio_tar::EntryType::Regular;
    let dir = tempfile::tempdir().unwrap();
    let many: Vec<(String, _, &str)> = (0..101).map(|n| (format!("f{n}"), Regular, "")).collect();
    let many: Vec<_> = many.iter().map(|(name, kind, text)| (name.as_str(), *kind, *text)).collect();
    let refused = unpack_tar(&tar_of(&many).await[..], dir.path(), owner(), BOUNDS).await;
    assert!(matches!(refused, Err(FilesError::TooLarge { limit: 100, .. })));

    let mut bomb = zip::ZipWriter::new(Cursor::new(Vec::new()));
    bomb.start_file("zeros", zip::write::SimpleFileOptions::default()).unwrap();
    bomb.write_all(&vec![0; 4 << 20]).unwrap();
    let bomb = bomb.finish().unwrap();
    let refused = unpack_zip(bomb, 4000, dir.path(), owner(), BOUNDS, Unsafe::Refuse);
    assert!(matches!(refused, Err(FilesError::TooLarge { .. })));
}

#[test]
fn a_zip_member_that_leads_out_is_refused_or_passed_over() {
    let mut writer = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for name in ["../evil", "good"] {
        writer.start_file(name, zip::write::SimpleFileOptions::default()).unwrap();
    }
    let bytes = writer.finish().unwrap().into_inner();
    let dir = tempfile::tempdir().unwrap();
    let unpack = |policy| unpack_zip(Cursor::new(bytes.clone()), 100, &dir.path().join("in"), owner(), BOUNDS, policy);
    assert!(matches!(unpack(Unsafe::Refuse), Err(FilesError::Archive { .. })));
    assert_eq!(unpack(Unsafe::Skip).unwrap().files, 1);
    assert!(!dir.path().join("evil").exists());
}

#[test]
fn files_are_found_by_name_and_lines_by_content() {
    let dir = tempfile::tempdir().unwrap();
    write(&dir.path().join("a.rs"), "fn main() {}\n// TODO\n");
    write(&dir.path().join("sub/b.rs"), "todo\n");
    write(&dir.path().join("sub/c.txt"), "TODO\n");
    write(&dir.path().join(".gitignore"), "ignored\n");
    write(&dir.path().join("ignored"), "TODO\n");
    let request = |glob: Option<&str>, pattern: Option<&str>| SearchRequest {
        path: dir.path().display().to_string(),
        glob: glob.map(Into::into),
        pattern: pattern.map(Into::into),
        case_insensitive: true,
        all: false,
        limit: None,
    };
    let found = |request| {
        let result = search(&request, &AtomicBool::new(false)).unwrap();
        let short = |path: &str| Path::new(path).strip_prefix(dir.path()).unwrap().display().to_string();
        result.matches.iter().map(|found| (short(&found.path), found.line)).collect::<Vec<_>>()
    };
    assert_eq!(found(request(Some("**/*.rs"), None)), [("a.rs".into(), None), ("sub/b.rs".into(), None)]);
    assert_eq!(
        found(request(None, Some("todo"))),
        [("a.rs".into(), Some(2)), ("sub/b.rs".into(), Some(1)), ("sub/c.txt".into(), Some(1))]
    );
    let limited = SearchRequest { limit: Some(1), ..request(None, Some("todo")) };
    assert!(search(&limited, &AtomicBool::new(false)).unwrap().truncated);
    let bad = search(&request(None, Some("(")), &AtomicBool::new(false));
    assert!(matches!(bad, Err(FilesError::Pattern { field: "pattern", .. })));
}
