//! No archive, whatever its members are called, changes anything beside its destination.
#![no_main]

use std::{io::Cursor, path::Path};

use libfuzzer_sys::fuzz_target;
use wharf_sandboxd::files::{
    Owner,
    archive::{self, Bounds, Unsafe},
};

fuzz_target!(|input: (bool, &[u8])| {
    let (skip, bytes) = input;
    let shared = Path::new("/dev/shm");
    let root = tempfile::tempdir_in(if shared.is_dir() { shared } else { Path::new("/tmp") }).expect("a directory");
    let (inside, outside) = (root.path().join("inside"), root.path().join("outside"));
    std::fs::write(&outside, "untouched").expect("a file");
    // Who runs the fuzzer owns what it unpacks.
    let metadata = std::fs::metadata(root.path()).expect("just made");
    let owner = Owner {
        uid: std::os::unix::fs::MetadataExt::uid(&metadata),
        gid: std::os::unix::fs::MetadataExt::gid(&metadata),
    };
    let bounds = Bounds { bytes: 1 << 16, entries: 64 };
    let policy = if skip { Unsafe::Skip } else { Unsafe::Refuse };
    let zip = archive::unpack_zip(Cursor::new(bytes), bytes.len() as u64, &inside, owner, bounds, policy);
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    let tar = runtime.block_on(archive::unpack_tar(Cursor::new(bytes), &inside, owner, bounds));
    for done in [zip, tar].into_iter().flatten() {
        assert!(done.bytes <= bounds.bytes && done.files <= bounds.entries, "{done:?}");
    }
    assert_eq!(std::fs::read_to_string(&outside).expect("still there"), "untouched");
    let mut names: Vec<_> = std::fs::read_dir(root.path()).expect("there").flatten().map(|it| it.file_name()).collect();
    names.sort();
    names.retain(|name| name != "inside");
    assert_eq!(names, ["outside"]);
});
