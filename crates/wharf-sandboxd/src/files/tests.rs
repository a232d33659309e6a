use std::{
    ffi::OsStr,
    io::{Cursor, Write},
    sync::atomic::AtomicBool,
};

use wharf_protocol::SearchRequest;

use super::{
    archive::{Compression, Unsafe, pack_zip, unpack_zip},
    search::search,
    *,
};

const BOUNDS: Bounds = Bounds { bytes: 1 << 20, entries: 100 };

fn write(path: &Path, text: &str) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

#[test]
fn bad_paths_are_refused() {
    for path in ["", "relative", "/a\0b", &format!("/{}", "x".repeat(5000))] {
        assert!(matches!(checked_path(path), Err(FilesError::Path { .. })));
    }
    for path in ["/", "/.", "/nonexistent/..", "/nonexistent/../..", "/nonexistent/a/.."] {
        assert!(matches!(remove(Path::new(path), true), Err(FilesError::Path { .. })), "{path}");
    }
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
    for end in ["/", "/.", "/./"] {
        let path = format!("{}{end}", inside.join("link").display());
        assert!(remove(Path::new(&path), true).is_err(), "{path}");
        assert!(outside.join("kept").exists() && inside.join("link").is_symlink(), "{path}");
    }
    assert!(matches!(remove(&inside, false), Err(FilesError::NotEmpty { .. })));
    remove(&inside, true).unwrap();
    assert!(outside.join("kept").exists());
    remove(Path::new(&format!("{}/", outside.display())), true).unwrap();
    assert!(!outside.exists());
}

#[test]
fn a_directory_survives_zip() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("from");
    write(&from.join("a.txt"), "alpha");
    write(&from.join("sub/b.txt"), "beta");
    fs::set_permissions(from.join("a.txt"), fs::Permissions::from_mode(0o755)).unwrap();
    std::os::unix::fs::symlink("a.txt", from.join("link")).unwrap();
    std::os::unix::fs::symlink("/nonexistent", from.join("sub/dangling")).unwrap();
    let mut zipped = Vec::new();
    pack_zip(&from, &mut zipped, Compression::Deflated).unwrap();
    let size = zipped.len() as u64;
    let done = unpack_zip(Cursor::new(zipped), size, &dir.path().join("zip"), BOUNDS, Unsafe::Refuse).unwrap();
    assert_eq!(done.files, 3);
    assert_eq!(fs::read_to_string(dir.path().join("zip/link")).unwrap(), "alpha");
    assert_eq!(fs::metadata(dir.path().join("zip/a.txt")).unwrap().mode() & 0o777, 0o755);
}

#[test]
fn names_that_are_no_text_are_told_apart_in_a_zip() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("from");
    for name in [&b"a\xff"[..], b"a\xfe", b"a%FF", "\u{fffd}".as_bytes()] {
        write(&from.join(OsStr::from_bytes(name)), "x");
    }
    let mut zipped = Vec::new();
    pack_zip(&from, &mut zipped, Compression::Deflated).unwrap();
    let size = zipped.len() as u64;
    let to = dir.path().join("to");
    unpack_zip(Cursor::new(zipped), size, &to, BOUNDS, Unsafe::Refuse).unwrap();
    let listed = list(&to).unwrap().entries.into_iter().map(|entry| entry.name);
    assert_eq!(listed.collect::<Vec<_>>(), ["a%FE", "a%FF", "a%FF_", "\u{fffd}"]);
}

#[test]
fn a_zip_bomb_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let mut bomb = zip::ZipWriter::new(Cursor::new(Vec::new()));
    bomb.start_file("zeros", zip::write::SimpleFileOptions::default()).unwrap();
    bomb.write_all(&vec![0; 4 << 20]).unwrap();
    let bomb = bomb.finish().unwrap();
    let refused = unpack_zip(bomb, 4000, dir.path(), BOUNDS, Unsafe::Refuse);
    assert!(matches!(refused, Err(FilesError::TooLarge { .. })));
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "no half of a file is left");
}

#[test]
fn a_zip_unpacks_to_no_more_than_a_multiple_of_itself() {
    let dir = tempfile::tempdir().unwrap();
    let mut bomb = zip::ZipWriter::new(Cursor::new(Vec::new()));
    bomb.start_file("zeros", zip::write::SimpleFileOptions::default()).unwrap();
    for _ in 0..65 {
        bomb.write_all(&vec![0; 1 << 20]).unwrap();
    }
    let bomb = bomb.finish().unwrap();
    let refused = unpack_zip(bomb, 1000, dir.path(), Bounds::NONE, Unsafe::Refuse).unwrap_err();
    assert!(matches!(refused, FilesError::TooLarge { limit, .. } if limit == (64 << 20) + 1_000_000), "{refused}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

#[test]
fn a_long_listing_is_cut_and_says_so() {
    let dir = tempfile::tempdir_in("/dev/shm").unwrap();
    for number in 0..=100_000 {
        fs::File::create(dir.path().join(number.to_string())).unwrap();
    }
    let listing = list(dir.path()).unwrap();
    assert_eq!((listing.entries.len(), listing.truncated), (100_000, true));
}

#[test]
fn the_index_of_a_zip_is_read_as_far_as_it_may_be_unpacked() {
    let (mut index, members) = (Vec::new(), 2_000_u16);
    for number in 0..members {
        index.extend_from_slice(b"PK\x01\x02");
        index.extend_from_slice(&[0; 24]);
        index.extend_from_slice(&[200, 0]);
        index.extend_from_slice(&[0; 16]);
        index.extend_from_slice(format!("{number:0>200}").as_bytes());
    }
    let size = u32::try_from(index.len()).unwrap().to_le_bytes();
    index.extend_from_slice(b"PK\x05\x06\0\0\0\0");
    index.extend_from_slice(&members.to_le_bytes());
    index.extend_from_slice(&members.to_le_bytes());
    index.extend_from_slice(&size);
    index.extend_from_slice(&[0; 6]);
    let dir = tempfile::tempdir().unwrap();
    let packed_bytes = index.len() as u64;
    let refused = unpack_zip(Cursor::new(index), packed_bytes, dir.path(), BOUNDS, Unsafe::Refuse).unwrap_err();
    assert!(matches!(refused, FilesError::TooLarge { limit: 100, .. }), "{refused}");
}

#[test]
fn a_move_between_file_systems_is_whole_or_changes_nothing() {
    let shared = Path::new("/dev/shm");
    let (near, far) = (tempfile::tempdir().unwrap(), tempfile::tempdir_in(shared).unwrap());
    let device = |path: &Path| fs::metadata(path).unwrap().dev();
    assert_ne!(device(near.path()), device(far.path()), "/dev/shm is a file system of its own");
    let from = near.path().join("tree");
    write(&from.join("sub/file"), "new");
    std::os::unix::fs::symlink("sub/file", from.join("link")).unwrap();
    let to = far.path().join("tree");
    write(&to, "old");
    // A pipe cannot be copied: the copy ends half-way.
    rustix::fs::mkfifoat(CWD, from.join("zz"), rustix::fs::Mode::from_raw_mode(0o600)).unwrap();
    assert!(matches!(rename(&from, &to, true), Err(FilesError::Special { .. })));
    assert_eq!(fs::read_to_string(&to).unwrap(), "old");
    assert_eq!(fs::read_dir(far.path()).unwrap().count(), 1, "nothing temporary is left");
    fs::remove_file(from.join("zz")).unwrap();
    assert!(matches!(rename(&from, &to, false), Err(FilesError::Exists { .. })));
    fs::remove_file(&to).unwrap();
    rename(&from, &to, false).unwrap();
    assert_eq!(fs::read_to_string(to.join("link")).unwrap(), "new");
    assert!(!from.exists());
}

#[test]
fn an_endless_line_and_many_matches_are_searched_in_bounded_memory() {
    let dir = tempfile::tempdir().unwrap();
    let long = fs::File::create(dir.path().join("long")).unwrap();
    let mut long = io::BufWriter::new(long);
    for _ in 0..40 {
        long.write_all(&vec![b'x'; 1 << 20]).unwrap();
    }
    drop(long);
    write(&dir.path().join("short"), "xxx\n");
    let all = |pattern: &str, limit| SearchRequest {
        path: dir.path().display().to_string(),
        glob: None,
        pattern: Some(pattern.into()),
        case_insensitive: false,
        all: true,
        limit,
    };
    let result = search(&all("^xxx$", None), &AtomicBool::new(false)).unwrap();
    assert_eq!((result.matches.len(), result.unsearched, result.truncated), (1, 1, false));
    fs::remove_file(dir.path().join("long")).unwrap();
    write(&dir.path().join("many"), &format!("{}\n", "y".repeat(999)).repeat(40_000));
    let result = search(&all("y", Some(100_000)), &AtomicBool::new(false)).unwrap();
    assert!(result.truncated && result.matches.len() < 17_000, "{}", result.matches.len());
    write(&dir.path().join("many"), &"y\n".repeat(100_001));
    let result = search(&all("y", Some(100_000)), &AtomicBool::new(false)).unwrap();
    assert_eq!((result.matches.len(), result.truncated), (100_000, true));
    let refused = search(&all("y", Some(100_001)), &AtomicBool::new(false)).unwrap_err();
    assert!(matches!(refused, FilesError::Pattern { field: "limit", .. }), "{refused}");
    let refused = search(&all("(x{1000}){1000}", None), &AtomicBool::new(false)).unwrap_err();
    assert!(matches!(refused, FilesError::Pattern { field: "pattern", .. }), "{refused}");
}

#[test]
fn a_zip_member_that_leads_out_is_refused_or_passed_over() {
    let mut writer = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for name in ["../evil", "good"] {
        writer.start_file(name, zip::write::SimpleFileOptions::default()).unwrap();
    }
    let bytes = writer.finish().unwrap().into_inner();
    let dir = tempfile::tempdir().unwrap();
    let unpack = |policy| unpack_zip(Cursor::new(bytes.clone()), 100, &dir.path().join("in"), BOUNDS, policy);
    assert!(matches!(unpack(Unsafe::Refuse), Err(FilesError::Archive { .. })));
    assert_eq!(unpack(Unsafe::Skip).unwrap().files, 1);
    assert!(!dir.path().join("evil").exists());
}

fn names_below(root: &Path) -> Vec<String> {
    let request = SearchRequest {
        path: root.display().to_string(),
        glob: None,
        pattern: None,
        case_insensitive: false,
        all: false,
        limit: None,
    };
    let found = search(&request, &AtomicBool::new(false)).unwrap().matches;
    found.iter().map(|it| Path::new(&it.path).strip_prefix(root).unwrap().display().to_string()).collect()
}

#[test]
fn what_is_ignored_is_what_git_and_ripgrep_ignore() {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("repository/below");
    for name in [
        "a.log",
        "keep.log",
        "build/x",
        "src/build",
        "src/deep/a.tmp",
        "src/deep/b.tmp",
        "src/top",
        "top",
        "excluded",
        "inner/a.log",
        "inner/excluded",
        "both",
        "outermost",
        ".hidden",
        "dot/.env",
        "café.o",
    ] {
        write(&root.join(name), "");
    }
    write(&dir.path().join(".gitignore"), "outermost\n");
    write(&dir.path().join("repository/.git/info/exclude"), "excluded\n");
    write(&dir.path().join("repository/.gitignore"), "*.log\n!keep.log\n# note\n\n/below/top\n");
    write(&root.join(".gitignore"), "build/\n*.tmp\nboth\n*.o\n");
    write(&root.join(".ignore"), "!both\n");
    write(&root.join("src/.gitignore"), "!b.tmp\n");
    // Another repository: nothing of the outer one's holds in it.
    write(&root.join("inner/.git/HEAD"), "");
    let expected =
        ["both", "inner/a.log", "inner/excluded", "keep.log", "outermost", "src/build", "src/deep/b.tmp", "src/top"];
    assert_eq!(names_below(&root), expected);
}

#[test]
fn lists_of_what_is_ignored_are_read_within_bounds() {
    let dir = tempfile::tempdir().unwrap();
    write(&dir.path().join("pipe/a"), "");
    rustix::fs::mkfifoat(CWD, dir.path().join("pipe/.gitignore"), rustix::fs::Mode::from_raw_mode(0o600)).unwrap();
    write(&dir.path().join("device/b"), "");
    std::os::unix::fs::symlink("/dev/zero", dir.path().join("device/.ignore")).unwrap();
    write(&dir.path().join("sparse/c"), "");
    fs::File::create(dir.path().join("sparse/.ignore")).unwrap().set_len(1 << 40).unwrap();
    write(&dir.path().join("many/d"), "");
    write(&dir.path().join("many/.ignore"), &"**/x*[a-z]y**\n".repeat(70_000));
    assert_eq!(names_below(dir.path()), ["device/b", "many/d", "pipe/a", "sparse/c"]);
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
