//! No archive, whatever its members are called, changes anything beside its destination or makes what runs as its owner;
//! and what was unpacked packs and unpacks again.
//!
//! A checksum in front of every member would keep random bytes out, so the input is a list of members, a line each: `KIND NAME
//! REST`, where KIND is `f` a file, `d` a directory, `s` a symlink, `h` a hard link, `c` a device, `p` a pipe, `L` a long name
//! for the next, `x` attributes of the next, `S` sparse, and REST is content or target. They are put into a tar with right
//! checksums, and into a zip. An input that begins with `raw` is taken as the bytes of an archive.
#![no_main]

use std::{
    fs,
    io::{Cursor, Write},
    os::unix::{ffi::OsStrExt, fs::MetadataExt},
    path::Path,
};

use libfuzzer_sys::fuzz_target;
use tar::{EntryType, Header};
use wharf_files::{Bounds, Root, pack, unpack};
use wharf_sandboxd::files::archive::{self, Unsafe};

const BOUNDS: Bounds = Bounds { bytes: 1 << 16, entries: 64 };

struct Member<'a> {
    kind: u8,
    name: &'a [u8],
    rest: &'a [u8],
}

fn members(input: &[u8]) -> impl Iterator<Item = Member<'_>> {
    input.split(|byte| *byte == b'\n').filter_map(|line| {
        let mut parts = line.splitn(3, |byte| *byte == b' ');
        let kind = *parts.next()?.first()?;
        Some(Member { kind, name: parts.next()?, rest: parts.next().unwrap_or_default() })
    })
}

fn tar_of(input: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for Member { kind, name, rest } in members(input) {
        let (kind, content, target) = match kind {
            b'd' => (EntryType::Directory, &b""[..], &b""[..]),
            b's' => (EntryType::Symlink, &b""[..], rest),
            b'h' => (EntryType::Link, &b""[..], rest),
            b'c' => (EntryType::Char, &b""[..], &b""[..]),
            b'p' => (EntryType::Fifo, &b""[..], &b""[..]),
            b'L' => (EntryType::GNULongName, rest, &b""[..]),
            b'x' => (EntryType::XHeader, rest, &b""[..]),
            b'S' => (EntryType::GNUSparse, rest, &b""[..]),
            _ => (EntryType::Regular, rest, &b""[..]),
        };
        let mut header = Header::new_gnu();
        let old = header.as_old_mut();
        let (name, target) = (&name[..name.len().min(100)], &target[..target.len().min(100)]);
        old.name[..name.len()].copy_from_slice(name);
        old.linkname[..target.len()].copy_from_slice(target);
        header.set_entry_type(kind);
        header.set_mode(0o7777);
        header.set_size(content.len() as u64);
        header.set_cksum();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(content);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

fn zip_of(input: &[u8]) -> Vec<u8> {
    let mut writer = zip::ZipWriter::new(Cursor::new(Vec::new()));
    for Member { kind, name, rest } in members(input) {
        let (name, options) = (String::from_utf8_lossy(name), zip::write::SimpleFileOptions::default());
        let added = match kind {
            b'd' => writer.add_directory(name, options.unix_permissions(0o7777)),
            b's' => writer.add_symlink(name, String::from_utf8_lossy(rest), options),
            _ => writer.start_file(name, options.unix_permissions(0o7777)),
        };
        if added.is_ok() && !matches!(kind, b'd' | b's') {
            let _ = writer.write_all(rest);
        }
    }
    writer.finish().map(Cursor::into_inner).unwrap_or_default()
}

/// How many entries there are; nothing of them runs as its owner.
fn checked(directory: &Path) -> usize {
    let mut count = 0;
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        count += 1;
        let metadata = entry.metadata().expect("just listed");
        assert!(metadata.is_symlink() || metadata.mode() & 0o6000 == 0, "{:?}", entry.path());
        assert!(!entry.file_name().as_bytes().starts_with(b".wharf-"), "nothing temporary is left");
        if metadata.is_dir() {
            count += checked(&entry.path());
        }
    }
    count
}

fuzz_target!(|input: &[u8]| {
    let shared = Path::new("/dev/shm");
    let root = tempfile::tempdir_in(if shared.is_dir() { shared } else { Path::new("/tmp") }).expect("a directory");
    let at = |name: &str| root.path().join(name);
    fs::write(at("outside"), "untouched").expect("a file");
    let before = fs::metadata(at("outside")).expect("just made");
    let (tar, zip) = match input.strip_prefix(b"raw") {
        Some(raw) => (raw.to_vec(), raw.to_vec()),
        None => (tar_of(input), zip_of(input)),
    };
    let unzipped =
        |policy| archive::unpack_zip(Cursor::new(&zip[..]), zip.len() as u64, &at("inside"), BOUNDS, policy).ok();
    let results = [unpack(&tar[..], &at("inside"), BOUNDS).ok(), unzipped(Unsafe::Skip), unzipped(Unsafe::Refuse)];
    for done in results.into_iter().flatten() {
        assert!(done.bytes <= BOUNDS.bytes && done.files <= BOUNDS.entries, "{done:?}");
    }
    let after = fs::metadata(at("outside")).expect("still there");
    assert_eq!(fs::read_to_string(at("outside")).expect("still there"), "untouched");
    assert_eq!((after.nlink(), after.mode(), after.mtime_nsec()), (1, before.mode(), before.mtime_nsec()));
    let mut names: Vec<_> = fs::read_dir(root.path()).expect("there").flatten().map(|it| it.file_name()).collect();
    names.retain(|name| name != "inside");
    assert_eq!(names, ["outside"]);
    let entries = checked(&at("inside"));
    if at("inside").is_dir() {
        let mut again = Vec::new();
        let packed = pack(&at("inside"), Root::Link, Path::new(""), &mut again).expect("it can be read");
        unpack(&again[..], &at("again"), Bounds::NONE).expect("what we packed unpacks");
        assert_eq!((checked(&at("again")), packed.skipped_count), (entries, 0));
    }
});
