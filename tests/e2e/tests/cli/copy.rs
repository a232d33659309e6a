//! `wharf cp`, by the rules of `docker cp`.

use std::{
    fs,
    io::Write,
    os::unix::{
        fs::{FileExt, MetadataExt, PermissionsExt, symlink},
        net::UnixListener,
    },
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};

use crate::Wharf;

const IN_PLACE_BYTES: usize = 64 << 20;

/// A sandbox `box`, and a directory here.
struct Copies {
    wharf: Wharf,
    here: tempfile::TempDir,
}

impl Copies {
    fn new() -> Self {
        let wharf = Wharf::new();
        wharf.check(&["create", "box"], 0, "box\n");
        Self { wharf, here: tempfile::tempdir().unwrap() }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.here.path().join(name)
    }

    /// `wharf cp` in the directory here.
    fn cp(&self, arguments: &[&str]) -> Output {
        let arguments = [&["cp"], arguments].concat();
        self.wharf.command(&arguments).current_dir(self.here.path()).output().unwrap()
    }

    #[track_caller]
    fn copy(&self, arguments: &[&str]) {
        let output = self.cp(arguments);
        assert_eq!(output.status.code(), Some(0), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    #[track_caller]
    fn refused(&self, arguments: &[&str], code: i32, said: &str) {
        let output = self.cp(arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {error}");
        assert!(error.contains(said), "{arguments:?}: {error}");
    }

    /// Waits until a part of a file in the directory here, named or not, was read or written.
    #[track_caller]
    fn wait_until_it_is_copying(&self, running: &mut Child) {
        let process = PathBuf::from(format!("/proc/{}", running.id()));
        let position = |fd: &str| {
            let info = fs::read_to_string(process.join("fdinfo").join(fd)).ok()?;
            info.lines().find_map(|line| line.strip_prefix("pos:"))?.trim().parse::<u64>().ok()
        };
        let is_here =
            |fd: &str| fs::read_link(process.join("fd").join(fd)).is_ok_and(|it| it.starts_with(self.here.path()));
        loop {
            let open = fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
            let open: Vec<_> = open.map(|fd| fd.file_name().to_string_lossy().into_owned()).collect();
            if open.iter().any(|fd| is_here(fd) && position(fd) > Some(0)) {
                break;
            }
            assert!(running.try_wait().unwrap().is_none(), "it was too fast to be cut");
            std::thread::yield_now();
        }
    }

    #[track_caller]
    fn inside(&self, script: &str) -> String {
        let output = self.wharf.run(&["exec", "box", "--", "sh", "-c", script]);
        assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    fn write(&self, name: &str, content: &str) -> PathBuf {
        let path = self.at(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }
}

/// Kind, mode, whole seconds of the time, and content of everything below, as text.
fn tree(root: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut pending = vec![PathBuf::new()];
    while let Some(below) = pending.pop() {
        let path = root.join(&below);
        let metadata = fs::symlink_metadata(&path).unwrap();
        let what = if metadata.is_dir() {
            pending.extend(fs::read_dir(&path).unwrap().map(|entry| below.join(entry.unwrap().file_name())));
            "directory".to_owned()
        } else if metadata.is_symlink() {
            format!("-> {}", fs::read_link(&path).unwrap().display())
        } else {
            format!("{} bytes", fs::read(&path).unwrap().len())
        };
        let time = (metadata.mtime(), metadata.mtime_nsec());
        lines.push(format!("{}: {:o} {time:?} {what}", below.display(), metadata.mode() & 0o7777));
    }
    lines.sort();
    lines
}

#[test]
fn modes_and_times_come_along_both_ways() {
    let copies = Copies::new();
    let tool = copies.write("tool", "#!/bin/sh\necho works\n");
    copies.write("dir/sub/file", "x");
    for (name, mode) in [("tool", 0o755), ("dir/sub", 0o700), ("dir/sub/file", 0o640), ("dir", 0o775)] {
        fs::set_permissions(copies.at(name), fs::Permissions::from_mode(mode)).unwrap();
    }
    let mut touch = Command::new("touch");
    touch.args(["-d", "2001-02-03 04:05:06.25", "tool", "dir/sub/file", "dir/sub", "dir"]);
    assert!(touch.current_dir(copies.here.path()).status().unwrap().success());
    copies.copy(&["tool", "box:"]);
    copies.copy(&["dir", "box:dir"]);
    assert_eq!(copies.inside("./tool"), "works");
    let seen = copies.inside("stat -c '%a %Y' tool dir dir/sub dir/sub/file; date -r tool +%N");
    let time = fs::metadata(&tool).unwrap().mtime();
    assert_eq!(seen, format!("755 {time}\n775 {time}\n700 {time}\n640 {time}\n250000000"));
    copies.copy(&["box:tool", "back"]);
    copies.copy(&["box:dir", "dir-back"]);
    let metadata = fs::metadata(copies.at("back")).unwrap();
    assert_eq!((metadata.mode() & 0o7777, metadata.mtime(), metadata.mtime_nsec()), (0o755, time, 250_000_000));
    assert_eq!(tree(&copies.at("dir-back")), tree(&copies.at("dir")));
}

#[test]
fn the_times_of_single_files_and_links_are_exact_also_before_1970() {
    let copies = Copies::new();
    for (name, date) in [("new", "2024-05-06 07:08:09.123456789"), ("old", "1960-01-02 03:04:05.000000001")] {
        let link = format!("{name}-link");
        copies.write(name, "x");
        symlink(name, copies.at(&link)).unwrap();
        let touched =
            Command::new("touch").args(["-h", "-d", date, name, &link]).current_dir(copies.here.path()).status();
        assert!(touched.unwrap().success());
        let time = |name: &str| {
            let metadata = fs::symlink_metadata(copies.at(name)).unwrap();
            (metadata.mtime(), metadata.mtime_nsec())
        };
        for name in [name, &link] {
            let (inside, back) = (format!("box:{name}"), format!("{name}-back"));
            copies.copy(&[name, &inside]);
            copies.copy(&[&inside, &back]);
            assert_eq!(time(&back), time(name), "{name}");
        }
    }
}

#[test]
fn what_comes_as_a_stream_and_is_no_whole_archive_is_told_as_what_it_is() {
    let copies = Copies::new();
    let stream = |content: &[u8]| {
        let mut command = copies.wharf.command(&["cp", "-", "box:there"]);
        let mut child = command.stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(content).unwrap();
        let output = child.wait_with_output().unwrap();
        (output.status.code(), String::from_utf8_lossy(&output.stderr).into_owned())
    };
    for (content, said) in [
        (&b""[..], "it is empty"),
        (b"hello\n", "it is no tar archive"),
        (b"\x1f\x8b\x08\0", "it is no tar archive but compressed by gzip: decompress it on the way"),
    ] {
        assert_eq!(stream(content), (Some(125), format!("error: the archive is refused: {said}\n")));
    }
    let mut command = copies.wharf.command(&["cp", "-", "box:there"]);
    let output = command.stdin(fs::File::open("/").unwrap()).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(error, "error: could not read standard input: Is a directory (os error 21)\n");
}

#[test]
fn the_table_of_docker_cp_holds_inwards() {
    let copies = Copies::new();
    copies.write("file", "file");
    copies.write("dir/in", "in");
    copies.inside("mkdir there; echo old > old");
    copies.copy(&["file", "box:fresh"]);
    copies.copy(&["file", "box:old"]);
    copies.copy(&["file", "box:there"]);
    copies.copy(&["dir", "box:made"]);
    copies.copy(&["dir", "box:there"]);
    copies.copy(&["dir/.", "box:there"]);
    assert_eq!(copies.inside("cat fresh old there/file made/in there/dir/in there/in"), "filefilefileininin");
    copies.refused(&["file", "box:nowhere/"], 125, "there is no such directory");
    copies.refused(&["dir", "box:old"], 125, "it is a file");
    assert_eq!(copies.inside("cat old; ls"), "filefresh\nmade\nold\nthere");
}

#[test]
fn the_table_of_docker_cp_holds_outwards() {
    let copies = Copies::new();
    copies.inside("printf file > file; mkdir dir; printf in > dir/in");
    fs::create_dir(copies.at("there")).unwrap();
    copies.write("old", "old");
    copies.copy(&["box:file", "fresh"]);
    copies.copy(&["box:file", "old"]);
    copies.copy(&["box:file", "there"]);
    copies.copy(&["box:dir", "made"]);
    copies.copy(&["box:dir", "there"]);
    copies.copy(&["box:dir/.", "there"]);
    for (path, content) in [
        ("fresh", "file"),
        ("old", "file"),
        ("there/file", "file"),
        ("made/in", "in"),
        ("there/dir/in", "in"),
        ("there/in", "in"),
    ] {
        assert_eq!(fs::read_to_string(copies.at(path)).unwrap(), content, "{path}");
    }
    copies.refused(&["box:file", "nowhere/"], 125, "there is no such directory");
    copies.refused(&["box:dir", "old"], 125, "it is a file");
    copies.refused(&["box:file", "/dev/full"], 125, "could not write `/dev/full`: No space left on device");
    copies.refused(&["box:none", "old"], 125, "none");
    assert_eq!(fs::read_to_string(copies.at("old")).unwrap(), "file");
}

#[test]
fn a_link_is_a_link_and_drags_nothing_along() {
    let copies = Copies::new();
    copies.write("secret/file", "of the host");
    symlink("secret", copies.at("link")).unwrap();
    symlink("/usr/bin/env", copies.at("absolute")).unwrap();
    copies.copy(&["link", "box:"]);
    copies.copy(&["absolute", "box:renamed"]);
    assert_eq!(copies.inside("readlink link; readlink renamed; ls"), "secret\n/usr/bin/env\nlink\nrenamed");
    copies.copy(&["-L", "link", "box:followed"]);
    copies.copy(&["link/", "box:slash"]);
    assert_eq!(copies.inside("cat followed/file slash/file"), "of the hostof the host");
    copies.inside("mkdir d; echo x > d/f; ln -s d to-d; ln -s d/f to-f; ln -s /nonexistent dangling");
    for (name, target) in [("to-d", "d"), ("to-f", "d/f"), ("dangling", "/nonexistent")] {
        copies.copy(&[&format!("box:{name}"), "out"]);
        assert_eq!(fs::read_link(copies.at("out")).unwrap(), Path::new(target));
    }
    copies.copy(&["-L", "box:to-d", "followed-d"]);
    copies.copy(&["-L", "box:to-f", "followed-f"]);
    assert_eq!(fs::read_to_string(copies.at("followed-d/f")).unwrap(), "x\n");
    assert_eq!(fs::read_to_string(copies.at("followed-f")).unwrap(), "x\n");
    // A link at the target stays, and its target is written.
    copies.write("real", "old");
    symlink("real", copies.at("to-real")).unwrap();
    copies.copy(&["box:d/f", "to-real"]);
    assert_eq!(fs::read_link(copies.at("to-real")).unwrap(), Path::new("real"));
    assert_eq!(fs::read_to_string(copies.at("real")).unwrap(), "x\n");
}

#[test]
fn what_stands_in_the_target_under_the_same_name_leads_no_copy_out_of_it() {
    let copies = Copies::new();
    let [secret, dir] = [copies.write("home/rc", "kept"), copies.at("dir")];
    fs::create_dir(&dir).unwrap();
    symlink(&secret, dir.join("file")).unwrap();
    symlink(copies.at("home"), dir.join("tree")).unwrap();
    rustix::fs::mkfifoat(rustix::fs::CWD, dir.join("pipe"), rustix::fs::Mode::from_raw_mode(0o600)).unwrap();
    copies.inside("echo new > file; echo new > pipe; mkdir tree; echo evil > tree/rc");
    for name in ["file", "pipe"] {
        copies.copy(&[&format!("box:{name}"), "dir"]);
        assert_eq!(fs::read_to_string(dir.join(name)).unwrap(), "new\n");
        assert!(fs::symlink_metadata(dir.join(name)).unwrap().is_file(), "{name}");
    }
    copies.refused(&["box:tree", "dir"], 125, "through a symlink");
    assert_eq!(fs::read_to_string(&secret).unwrap(), "kept");
    // The name that the caller gives is the caller's.
    symlink("home/rc", copies.at("named")).unwrap();
    copies.copy(&["box:file", "named"]);
    assert_eq!(fs::read_to_string(&secret).unwrap(), "new\n");
}

#[test]
fn a_copy_to_what_is_open_follows_on_what_is_there() {
    let copies = Copies::new();
    copies.inside("printf body > file");
    let cp = |target: &str| copies.wharf.command(&["cp", "box:file", target]);
    let log = fs::OpenOptions::new().create(true).append(true).open(copies.write("log", "old ")).unwrap();
    for target in ["/dev/stdout", "/dev/fd/1"] {
        assert!(cp(target).stdout(log.try_clone().unwrap()).status().unwrap().success(), "{target}");
    }
    assert_eq!(fs::read_to_string(copies.at("log")).unwrap(), "old bodybody");
    let piped = cp("/dev/stdout").output().unwrap();
    assert_eq!(String::from_utf8_lossy(&piped.stdout), "body");
}

#[test]
fn what_fails_leaves_the_old_file() {
    let copies = Copies::new();
    copies.write("keep", "kept");
    copies.refused(&["box:/dev/zero", "keep"], 125, "neither a file");
    copies.refused(&["box:/nonexistent", "keep"], 125, "/nonexistent");
    assert_eq!(fs::read_to_string(copies.at("keep")).unwrap(), "kept");
    // Cut in the middle, on both ways.
    copies.inside("head -c 200M /dev/zero > big; echo kept > keep");
    for arguments in [["box:big", "keep"], ["keep-big", "box:keep"]] {
        if arguments[0] == "keep-big" {
            let pipe = fs::File::create(copies.at("keep-big")).unwrap();
            pipe.set_len(4 << 30).unwrap();
        }
        let mut command = copies.wharf.command(&["cp", arguments[0], arguments[1]]);
        let mut running = command.current_dir(copies.here.path()).stderr(Stdio::null()).spawn().unwrap();
        copies.wait_until_it_is_copying(&mut running);
        running.kill().unwrap();
        running.wait().unwrap();
    }
    assert_eq!(names(copies.here.path()), ["keep", "keep-big"]);
    assert_eq!(copies.inside("ls -A | xargs"), "big keep");
    assert_eq!(fs::read_to_string(copies.at("keep")).unwrap(), "kept");
    assert_eq!(copies.inside("cat keep"), "kept");
    // The sandbox ends in the middle.
    let mut command = copies.wharf.command(&["cp", "box:big", "keep"]);
    let mut running = command.current_dir(copies.here.path()).stderr(Stdio::null()).spawn().unwrap();
    copies.wait_until_it_is_copying(&mut running);
    let record = fs::read(copies.wharf.state.path().join("sandboxes/box/record.json")).unwrap();
    let record: serde_json::Value = serde_json::from_slice(&record).unwrap();
    let init = Pid::from_raw(record["init"]["pid"].as_i64().unwrap() as i32).unwrap();
    kill_process(init, Signal::KILL).unwrap();
    assert_eq!(running.wait().unwrap().code(), Some(125));
    assert_eq!(fs::read_to_string(copies.at("keep")).unwrap(), "kept");
}

fn names(directory: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(directory).unwrap().map(|it| it.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

#[test]
fn a_signal_leaves_the_old_file_or_waits_for_the_new_one() {
    let copies = Copies::new();
    let old = vec![b'o'; IN_PLACE_BYTES];
    copies.inside(&format!("head -c 200M /dev/zero > big; head -c {IN_PLACE_BYTES} /dev/zero > new"));
    let start = |source: &str| {
        let mut command = copies.wharf.command(&["cp", source, "keep"]);
        command.current_dir(copies.here.path()).stderr(Stdio::null()).spawn().unwrap()
    };
    let send = |running: &Child, signal| kill_process(Pid::from_child(running), signal).unwrap();
    for (signal, code) in [(Signal::INT, 130), (Signal::TERM, 143), (Signal::HUP, 129)] {
        fs::write(copies.at("keep"), &old).unwrap();
        let mut running = start("box:big");
        copies.wait_until_it_is_copying(&mut running);
        send(&running, signal);
        assert_eq!(running.wait().unwrap().code(), Some(code));
        assert!(fs::read(copies.at("keep")).unwrap() == old, "{signal:?}");
        // With a second name it stays the file that it is, and so is written in place.
        fs::hard_link(copies.at("keep"), copies.at("other")).unwrap();
        let mut running = start("box:new");
        let other = fs::File::open(copies.at("other")).unwrap();
        let is_new = |offset: usize| {
            let mut byte = [1];
            other.read_exact_at(&mut byte, offset as u64).unwrap();
            byte == [0]
        };
        while running.try_wait().unwrap().is_none() && !is_new(0) {
            std::thread::yield_now();
        }
        send(&running, Signal::STOP);
        assert!(!is_new(IN_PLACE_BYTES - 1), "it was too fast to be stopped in the middle");
        send(&running, signal);
        send(&running, Signal::CONT);
        assert_eq!(running.wait().unwrap().code(), Some(0), "{signal:?}");
        assert!(fs::read(copies.at("other")).unwrap() == vec![0; IN_PLACE_BYTES], "{signal:?}");
        assert_eq!(names(copies.here.path()), ["keep", "other"]);
        fs::remove_file(copies.at("other")).unwrap();
    }
}

#[test]
fn a_signal_that_the_caller_ignores_does_not_end_a_copy() {
    let copies = Copies::new();
    copies.inside("head -c 100M /dev/zero > big");
    let wharf = copies.wharf.command(&["cp", "box:big", "new"]);
    let mut command = Command::new("sh");
    command.args(["-c", "trap '' HUP; exec \"$@\"", "sh"]).arg(wharf.get_program()).args(wharf.get_args());
    let variables = wharf.get_envs().filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned())));
    let mut running = command.envs(variables).current_dir(copies.here.path()).spawn().unwrap();
    copies.wait_until_it_is_copying(&mut running);
    kill_process(Pid::from_child(&running), Signal::HUP).unwrap();
    assert_eq!(running.wait().unwrap().code(), Some(0));
    assert_eq!(fs::metadata(copies.at("new")).unwrap().len(), 100 << 20);
}

#[test]
fn a_full_disk_here_leaves_the_old_file() {
    let copies = Copies::new();
    let small = copies.at("small");
    fs::create_dir(&small).unwrap();
    let mount = Command::new("mount").args(["-t", "tmpfs", "-o", "size=256k", "none"]).arg(&small).status().unwrap();
    assert!(mount.success(), "run the tests as root");
    fs::write(small.join("file"), "kept").unwrap();
    copies.inside("head -c 1M /dev/zero > big");
    let output = copies.cp(&["box:big", "small/file"]);
    let (kept, entries) = (fs::read_to_string(small.join("file")).unwrap(), fs::read_dir(&small).unwrap().count());
    assert!(Command::new("umount").arg("-l").arg(&small).status().unwrap().success());
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(125), "{error}");
    assert!(error.contains("No space left"), "{error}");
    assert_eq!((kept.as_str(), entries), ("kept", 1));
}

#[test]
fn special_files_are_left_out_named_and_make_an_exit_code_of_their_own() {
    let copies = Copies::new();
    copies.write("dir/file", "x");
    let _socket = UnixListener::bind(copies.at("dir/socket")).unwrap();
    assert!(Command::new("mkfifo").arg(copies.at("dir/pipe")).status().unwrap().success());
    copies.refused(&["dir", "box:dir"], 3, "not copied: `socket`: a socket");
    assert_eq!(copies.inside("cat dir/file; ls -A dir"), "xfile");
    copies.inside("mkfifo dir/pipe; python3 -c 'import socket; socket.socket(socket.AF_UNIX).bind(\"dir/sock\")'");
    copies.refused(&["box:dir", "out"], 3, "not copied: `pipe`: a named pipe");
    copies.refused(&["box:dir", "again"], 3, "not copied: `sock`: a socket");
    assert_eq!(fs::read_to_string(copies.at("out/file")).unwrap(), "x");
    assert_eq!(fs::read_dir(copies.at("out")).unwrap().count(), 1);
    copies.refused(&["dir/pipe", "box:"], 125, "a named pipe");
    copies.refused(&["box:dir/pipe", "p"], 125, "neither a file");
    let stream = copies.wharf.run(&["cp", "box:dir", "-"]);
    assert_eq!(stream.status.code(), Some(3));
}

#[test]
fn a_file_that_grows_does_not_break_the_tree() {
    let copies = Copies::new();
    copies.inside(
        "mkdir dir; echo next > dir/next; (while echo more; do :; done > dir/grows) >/dev/null 2>&1 & \
                   while ! [ -s dir/grows ]; do :; done",
    );
    // What runs on is the sandbox's, or ended with its exec: either way the tree is whole.
    copies.copy(&["box:dir", "out"]);
    assert_eq!(fs::read_to_string(copies.at("out/next")).unwrap(), "next\n");
}

/// What Python's `venv` and npm make, without asking any registry.
#[test]
fn a_virtual_environment_and_node_modules_are_copied_both_ways() {
    let copies = Copies::new();
    let python =
        Command::new("/usr/bin/python3").args(["-m", "venv", "--without-pip"]).arg(copies.at("tree/venv")).status();
    assert!(python.unwrap().success(), "/usr/bin/python3 with venv is needed: python3-venv");
    let program = copies.write("tree/node_modules/tool/bin/tool.js", "#!/usr/bin/env node\n");
    fs::set_permissions(program, fs::Permissions::from_mode(0o755)).unwrap();
    copies.write(&format!("tree/node_modules/@scope/{}/package.json", "long".repeat(50)), "{}");
    fs::create_dir(copies.at("tree/node_modules/.bin")).unwrap();
    symlink("../tool/bin/tool.js", copies.at("tree/node_modules/.bin/tool")).unwrap();
    symlink(copies.at("tree/node_modules/tool"), copies.at("tree/node_modules/linked")).unwrap();
    copies.copy(&["tree", "box:"]);
    assert_eq!(copies.inside("tree/venv/bin/python3 -c 'print(6*7)'"), "42");
    copies.copy(&["box:tree", "back"]);
    assert_eq!(tree(&copies.at("back")), tree(&copies.at("tree")));
    // What we packed ourselves unpacks.
    let packed = copies.wharf.command(&["cp", "box:tree", "-"]).output().unwrap();
    assert!(packed.status.success());
    fs::write(copies.at("packed"), packed.stdout).unwrap();
    let mut unpack = copies.wharf.command(&["cp", "-", "box:again"]);
    let unpacked = unpack.stdin(fs::File::open(copies.at("packed")).unwrap()).output().unwrap();
    assert!(unpacked.status.success(), "{}", String::from_utf8_lossy(&unpacked.stderr));
    assert_eq!(copies.inside("diff -r --no-dereference tree again && echo same"), "same");
}

#[test]
fn a_sandbox_cannot_write_outside_the_target_or_make_what_runs_as_its_owner() {
    let copies = Copies::new();
    copies.write("outside/kept", "kept");
    copies.inside("mkdir d; echo evil > d/program; chmod 6755 d/program; ln -s ../outside d/l; ln -s / d/root");
    copies.copy(&["box:d", "target"]);
    let mode = fs::metadata(copies.at("target/program")).unwrap().mode() & 0o7777;
    assert_eq!(mode, 0o755);
    copies.copy(&["box:d/program", "single"]);
    assert_eq!(fs::metadata(copies.at("single")).unwrap().mode() & 0o7777, 0o755);
    assert_eq!(fs::read_link(copies.at("target/l")).unwrap(), Path::new("../outside"));
    // The next copy would go through the link that this one left.
    copies.inside("rm d/l; mkdir d/l; echo evil > d/l/kept");
    copies.refused(&["box:d/.", "target"], 125, "through a symlink");
    assert_eq!(fs::read_to_string(copies.at("outside/kept")).unwrap(), "kept");
}

/// The refusal comes while the content is still being sent; what the server says has to arrive before the line is cut.
#[test]
fn a_refusal_is_told_whatever_is_still_on_its_way() {
    let copies = Copies::new();
    fs::write(copies.at("big"), vec![7; 30 << 20]).unwrap();
    for _ in 0..25 {
        copies.refused(&["big", "box:/proc/new"], 125, "there is no `/proc/new`");
    }
}

#[test]
fn wrong_usage_and_output_that_cannot_be_written_have_their_exit_codes() {
    let copies = Copies::new();
    copies.refused(&["a", "b"], 2, "one side must be in a sandbox");
    copies.refused(&["box:/tmp", "box:/var"], 2, "| wharf cp - B:DIRECTORY");
    for arguments in [
        ["exec", "-t", "box", "true"],
        ["exec", "--env==x", "box", "true"],
        ["run", "--mount=/nonexistent", "--", "true"],
        ["run", "--mount=/srv:/etc/x", "--", "true"],
        ["run", "--mount=/srv:/proc/1", "--", "true"],
        ["run", "--mount=/srv:/.wharf/x", "--", "true"],
        ["kill", "--signal=NOPE", "box", "id"],
    ] {
        let output = copies.wharf.run(&arguments);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {output:?}");
    }
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = copies.wharf.command(&["cp", "box:/tmp", "-"]).stdout(full).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(120), "{error}");
    assert!(error.contains("could not write to standard output: No space left"), "{error}");
    copies.write("file", "x");
    let refused = copies.cp(&["file", "box:/etc/hostname/x"]);
    assert!(!String::from_utf8_lossy(&refused.stderr).contains("hint"), "{refused:?}");
}
