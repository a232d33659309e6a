//! What is left when a program is killed at any moment, and what is said of it.

use std::{
    fs,
    io::{BufRead, BufReader, Read},
    os::unix::fs::{MetadataExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use super::Wharf;

/// How many moments of a command's life it is killed at.
const MOMENTS: u32 = 12;
const DEADLINE: Duration = Duration::from_secs(20);

/// What of this machine's state there is no event for.
#[track_caller]
fn eventually<T>(what: &str, mut look: impl FnMut() -> Option<T>) -> T {
    let started = Instant::now();
    loop {
        if let Some(seen) = look() {
            return seen;
        }
        assert!(started.elapsed() < DEADLINE, "{what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

impl Wharf {
    fn program(&self, name: &str) -> PathBuf {
        self.programs.as_ref().unwrap().path().join(name)
    }

    /// The processes that execute one of our own programs, in whatever namespaces.
    fn processes(&self) -> Vec<String> {
        let id = |path: &Path| fs::metadata(path).map(|file| (file.dev(), file.ino())).ok();
        let ours = ["wharf", "wharf-sandboxd"].map(|name| id(&self.program(name)));
        let runs = |process: &fs::DirEntry| {
            let program = id(&process.path().join("exe"));
            program.is_some() && ours.contains(&program)
        };
        let named = |process: fs::DirEntry| fs::read_to_string(process.path().join("cmdline")).unwrap_or_default();
        fs::read_dir("/proc").unwrap().flatten().filter(runs).map(named).collect()
    }

    fn record(&self, name: &str) -> Option<serde_json::Value> {
        let text = fs::read(self.state.path().join("sandboxes").join(name).join("record.json")).ok()?;
        serde_json::from_slice(&text).ok()
    }

    fn files(&self) -> Vec<PathBuf> {
        let directories = ["sandboxes", "r", "locks"].map(|name| self.state.path().join(name));
        directories
            .iter()
            .filter_map(|path| fs::read_dir(path).ok())
            .flatten()
            .flatten()
            .map(|file| file.path())
            .collect()
    }

    fn status(&self, name: &str) -> Option<String> {
        let listed = self.run(&["-o", "json", "ls"]);
        let listed: Vec<serde_json::Value> = serde_json::from_slice(&listed.stdout).unwrap();
        let found = listed.iter().find(|sandbox| sandbox["name"] == name)?;
        Some(
            [&found["status"], &found["reason"]]
                .map(|text| text.as_str().unwrap_or_default())
                .join(" ")
                .trim()
                .to_owned(),
        )
    }

    /// A sandboxd that never listens, so that whoever starts it waits.
    fn with_a_sandboxd_that_hangs(&self, sleeps: &str) {
        let program = self.program("wharf-sandboxd");
        fs::remove_file(&program).unwrap();
        fs::write(&program, format!("#!/bin/sh\nexec sleep {sleeps}\n")).unwrap();
        fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    }
}

fn is_sleeping(seconds: &str) -> bool {
    let argv = format!("sleep\0{seconds}\0").into_bytes();
    let sleeps = |process: fs::DirEntry| fs::read(process.path().join("cmdline")).is_ok_and(|found| found == argv);
    fs::read_dir("/proc").unwrap().flatten().any(sleeps)
}

/// Kills `command` at many moments of its life; `check` looks at what is left each time.
fn kill_at_many_moments(wharf: &Wharf, command: &[&str], prepare: impl Fn(), check: impl Fn(&str)) {
    prepare();
    let started = Instant::now();
    assert!(wharf.run(command).status.success(), "{command:?}");
    let whole = started.elapsed();
    wharf.run(&["rm", "victim"]);
    for moment in 0..MOMENTS {
        prepare();
        let mut child = wharf.command(command).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        // A moment to kill it at, not one to wait for.
        std::thread::sleep(whole * moment / MOMENTS);
        let _ = child.kill();
        child.wait().unwrap();
        check(&format!("{command:?} killed after {moment} of {MOMENTS} parts"));
    }
}

#[track_caller]
fn leaves_nothing_unusable(wharf: &Wharf, when: &str) {
    if wharf.status("victim").as_deref() == Some("ready") {
        let used = wharf.run(&["exec", "victim", "--", "true"]);
        assert!(used.status.success(), "{when}: ready and unusable: {}", String::from_utf8_lossy(&used.stderr));
    }
    let collected = wharf.run(&["gc"]);
    assert!(collected.status.success(), "{when}: {}", String::from_utf8_lossy(&collected.stderr));
    match wharf.status("victim").as_deref() {
        // Whoever was killed had done its work.
        Some("ready") => wharf.check(&["exec", "victim", "--", "true"], 0, ""),
        Some("suspended") => wharf.check(&["resume", "victim"], 0, "victim\n"),
        Some(stopped) => {
            assert!(stopped.starts_with("stopped the `wharf` that was"), "{when}: {stopped}");
            wharf.check(&["resume", "victim"], 0, "victim\n");
        }
        None => {}
    }
    wharf.run(&["rm", "victim"]);
    eventually(&format!("{when}: processes are left"), || wharf.processes().is_empty().then_some(()));
    assert_eq!(wharf.files(), Vec::<PathBuf>::new(), "{when}");
}

#[test]
fn a_sandbox_that_has_filled_the_disk_of_its_state_can_be_stopped_and_removed() {
    let wharf = Wharf::new();
    let mount = ["-t", "tmpfs", "-o", "size=6m,mode=700", "none"];
    assert!(Command::new("mount").args(mount).arg(wharf.state.path()).status().unwrap().success(), "run as root");
    let steps: [&[&str]; 7] = [
        &["create", "a"],
        &["exec", "a", "--", "sh", "-c", "cat /dev/zero >file; true"],
        &["suspend", "a"],
        &["ls"],
        &["rm", "a"],
        &["ls", "-o", "json"],
        &["run", "--", "true"],
    ];
    let outputs = steps.map(|step| wharf.run(step));
    wharf.run(&["rm", "--all"]);
    assert!(Command::new("umount").arg("-l").arg(wharf.state.path()).status().unwrap().success());
    let codes = outputs.each_ref().map(|output| output.status.code().unwrap());
    assert_eq!(codes, [0, 0, 125, 0, 0, 0, 0], "{outputs:?}");
    let texts = outputs.map(|output| String::from_utf8_lossy(&output.stdout).into_owned());
    assert!(texts[3].contains("its processes have ended") && texts[5] == "[]\n", "{texts:?}");
}

#[test]
fn a_creator_that_is_killed_at_any_moment_leaves_nothing_unusable() {
    for wharf in [Wharf::with_programs_of_its_own(), Wharf::as_ordinary_user()] {
        kill_at_many_moments(&wharf, &["create", "victim"], || {}, |when| leaves_nothing_unusable(&wharf, when));
    }
}

#[test]
fn whoever_is_killed_while_it_stops_or_starts_a_sandbox_leaves_it_whole() {
    for wharf in [Wharf::with_programs_of_its_own(), Wharf::as_ordinary_user()] {
        let make = || {
            wharf.check(&["create", "victim"], 0, "victim\n");
            wharf.check(&["exec", "victim", "--", "sh", "-c", "echo kept > file"], 0, "");
        };
        let kept = |when: &str| {
            let file = wharf.state.path().join("sandboxes/victim/workspace/file");
            assert_eq!(fs::read_to_string(file).unwrap_or_default(), "kept\n", "{when}");
            leaves_nothing_unusable(&wharf, when);
        };
        kill_at_many_moments(&wharf, &["suspend", "victim"], make, kept);
        let suspended = || {
            make();
            wharf.check(&["suspend", "victim"], 0, "victim\n");
        };
        kill_at_many_moments(&wharf, &["resume", "victim"], suspended, kept);
    }
}

/// A create that has started everything and waits; with the pids of its launcher and of the sandbox's first process.
fn half_made(wharf: &Wharf) -> Child {
    let child = wharf.command(&["create", "half"]).stderr(Stdio::piped()).spawn().unwrap();
    eventually("the record names the processes", || {
        wharf.record("half").filter(|record| record["init"]["pid"].is_i64()).map(drop)
    });
    child
}

#[test]
fn what_is_being_made_is_named_and_nobodys_garbage() {
    let sleeps = format!("8{}", std::process::id());
    let wharf = Wharf::with_programs_of_its_own();
    wharf.with_a_sandboxd_that_hangs(&sleeps);
    let mut child = half_made(&wharf);
    eventually("it starts", || is_sleeping(&sleeps).then_some(()));
    assert_eq!(wharf.status("half").as_deref(), Some("starting"));
    wharf.check(&["gc"], 0, "");
    let refused = wharf.run(&["exec", "half", "--", "true"]);
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(told.contains("is not running: it is starting"), "{told}");
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(wharf.status("half").as_deref(), Some("stopped the `wharf` that was making it was killed"));
    // What a `wharf` that was killed has left of a name that it had just taken.
    fs::write(wharf.state.path().join("locks/gone"), "").unwrap();
    wharf.check(&["gc"], 0, "half\n");
    assert!(!is_sleeping(&sleeps));
    assert_eq!(wharf.files(), Vec::<PathBuf>::new());
}

#[test]
fn without_control_groups_too_gc_ends_what_a_killed_creator_has_started() {
    let sleeps = format!("9{}", std::process::id());
    let wharf = Wharf::as_ordinary_user();
    wharf.with_a_sandboxd_that_hangs(&sleeps);
    let mut child = half_made(&wharf);
    eventually("it starts", || is_sleeping(&sleeps).then_some(()));
    child.kill().unwrap();
    child.wait().unwrap();
    wharf.check(&["gc"], 0, "half\n");
    assert!(!is_sleeping(&sleeps));
    eventually("the launcher is gone", || wharf.processes().is_empty().then_some(()));
}

#[test]
fn a_blank_sandboxd_ends_with_its_maker() {
    let directory = tempfile::tempdir().unwrap();
    let secret = directory.path().join("secret");
    fs::write(&secret, "0123456789abcdef0123456789abcdef").unwrap();
    let (ours, theirs) = (directory.path().join("s.sock"), directory.path().join("maker"));
    // A shell gives it the descriptor.
    rustix::fs::mkfifoat(rustix::fs::CWD, &theirs, rustix::fs::Mode::from_raw_mode(0o600)).unwrap();
    let script = format!(
        "exec {} serve --listen unix:{} --bind-secret-file {} --maker-fd 7 7<{}",
        wharf_e2e::program("wharf-sandboxd").display(),
        ours.display(),
        secret.display(),
        theirs.display()
    );
    let mut child = std::process::Command::new("sh").args(["-c", &script]).stderr(Stdio::piped()).spawn().unwrap();
    let maker = fs::File::options().write(true).open(&theirs).unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("listening on") {
        line.clear();
        assert_ne!(log.read_line(&mut line).unwrap(), 0);
    }
    assert!(child.try_wait().unwrap().is_none());
    drop(maker);
    assert!(eventually("it ends", || child.try_wait().unwrap()).success());
    let mut rest = String::new();
    log.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("has gone before binding it"), "{rest}");
}

#[test]
fn nothing_inside_can_lead_the_client_to_another_socket() {
    for wharf in [Wharf::with_programs_of_its_own(), Wharf::as_ordinary_user()] {
        // As where somebody has installed it for themselves.
        let user = fs::metadata(wharf.state.path()).unwrap().uid();
        std::os::unix::fs::chown(wharf.program("wharf-sandboxd"), Some(user), None).unwrap();
        wharf.check(&["create", "box"], 0, "box\n");
        let inside =
            |script: &str| String::from_utf8(wharf.run(&["exec", "box", "--", "sh", "-c", script]).stdout).unwrap();
        // The socket is nowhere inside, under whatever name.
        assert_eq!(
            inside("touch here; find / -xdev /workspace /tmp /run /var /.wharf -type s 2>/dev/null; ls"),
            "here\n"
        );
        // What is the host's in there can neither be written, nor moved, nor joined by anything.
        let mounts = "grep -o ' /[.]wharf[^ ]* r[ow],' /proc/self/mountinfo | cut -d, -f1 | sort";
        for mount in inside(mounts).lines() {
            assert!(mount.ends_with(" ro"), "{mount}");
        }
        assert!(inside(mounts).contains("/.wharf/sandboxd ro\n"), "{}", inside(mounts));
        let changes = "for change in 'touch /.wharf/file' 'mkdir /.wharf/run' 'mv /.wharf /tmp/house' 'rm /.wharf/sandboxd' \
                       'sh -c \": >>/.wharf/sandboxd\"'; do if eval \"$change\" 2>/dev/null; then echo \"$change\"; fi; done";
        assert_eq!(inside(changes), "");
        wharf.check(&["exec", "box", "--", "true"], 0, "");
    }
}

#[test]
fn a_key_goes_to_nobody_but_the_sandboxs_own_process() {
    let wharf = Wharf::new();
    wharf.check(&["create", "box"], 0, "box\n");
    let socket = PathBuf::from(wharf.record("box").unwrap()["socket"].as_str().unwrap());
    fs::rename(&socket, socket.with_extension("old")).unwrap();
    let impostor = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let heard = std::thread::spawn(move || {
        let mut bytes = [0; 4096];
        // The end of the connection, or what should not have come.
        let count = impostor.accept().unwrap().0.read(&mut bytes).unwrap();
        String::from_utf8_lossy(&bytes[..count]).into_owned()
    });
    let refused = wharf.run(&["exec", "box", "--", "true"]);
    let told = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert_eq!(refused.status.code(), Some(125), "{told}");
    assert!(told.contains("not the first process of the sandbox"), "{told}");
    assert_eq!(heard.join().unwrap(), "");
    fs::rename(socket.with_extension("old"), &socket).unwrap();
    wharf.check(&["exec", "box", "--", "true"], 0, "");
}

#[test]
fn after_a_restart_of_the_machine_nothing_is_taken_for_running() {
    let wharf = Wharf::new();
    wharf.check(&["create", "box"], 0, "box\n");
    let path = wharf.state.path().join("sandboxes/box/record.json");
    let before = fs::read_to_string(&path).unwrap();
    let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
    let after = before.replace(boot.trim(), "00000000-0000-0000-0000-000000000000");
    assert_ne!(before, after);
    fs::write(&path, after).unwrap();
    assert_eq!(wharf.status("box").as_deref(), Some("stopped this machine was restarted"));
    assert_eq!(wharf.run(&["exec", "box", "--", "true"]).status.code(), Some(125));
    fs::write(&path, before).unwrap();
    assert_eq!(wharf.status("box").as_deref(), Some("ready"));
}

#[test]
fn names_that_were_mixed_up_once_have_ids_of_their_own() {
    let wharfs = [Wharf::new(), Wharf::new()];
    let mut firsts: Vec<u32> = Vec::new();
    // The two of the first kind shared a hash; those of the second share a name.
    for (wharf, name) in [(0, "box499"), (0, "box712"), (1, "box499")] {
        wharfs[wharf].check(&["create", name], 0, &format!("{name}\n"));
        let map = wharfs[wharf].run(&["exec", name, "--", "cat", "/proc/self/uid_map"]);
        let map = String::from_utf8(map.stdout).unwrap();
        firsts.push(map.split_whitespace().nth(1).unwrap().parse().unwrap());
    }
    firsts.sort_unstable();
    assert!(firsts.is_sorted_by(|a, b| b - a >= 65_536), "{firsts:?}");
    // It is the same after a rest, and so are the owners of files.
    wharfs[0].check(&["exec", "box712", "--", "touch", "file"], 0, "");
    wharfs[0].check(&["suspend", "box499"], 0, "box499\n");
    wharfs[0].check(&["suspend", "box712"], 0, "box712\n");
    wharfs[1].check(&["create", "another"], 0, "another\n");
    wharfs[0].check(&["resume", "box712"], 0, "box712\n");
    wharfs[0].check(&["exec", "box712", "--", "stat", "-c", "%u", "file"], 0, "0\n");
    // And they are given back.
    let held = |wharf: &Wharf| {
        let ranges = fs::read_dir("/var/lib/wharf/ids").unwrap().flatten();
        let owners = ranges.filter_map(|range| fs::read_to_string(range.path()).ok());
        owners.filter(|owner| Path::new(owner).starts_with(wharf.state.path())).count()
    };
    assert_eq!(held(&wharfs[0]), 2);
    wharfs[0].check(&["rm", "box712"], 0, "box712\n");
    assert_eq!(held(&wharfs[0]), 1);
}

#[test]
fn what_a_killed_sandboxd_has_left_ends_with_its_sandbox() {
    let wharf = Wharf::with_programs_of_its_own();
    let sleeps = format!("7{}", std::process::id());
    // Without a namespace of processes, nothing but the control group knows of them.
    wharf.check(&["create", "box", "--isolation", "none"], 0, "box\n");
    wharf.check(&["exec", "box", "--", "sh", "-c", &format!("setsid -f sleep {sleeps} >/dev/null 2>&1")], 0, "");
    eventually("it starts", || is_sleeping(&sleeps).then_some(()));
    let init = wharf.record("box").unwrap()["init"]["pid"].as_i64().unwrap();
    let init = rustix::process::Pid::from_raw(i32::try_from(init).unwrap()).unwrap();
    rustix::process::kill_process(init, rustix::process::Signal::KILL).unwrap();
    eventually("it has ended", || (wharf.status("box").as_deref() != Some("ready")).then_some(()));
    assert!(is_sleeping(&sleeps));
    wharf.check(&["rm", "box"], 0, "box\n");
    assert!(!is_sleeping(&sleeps));
}

#[test]
fn values_of_variables_are_in_nothing_that_is_shown() {
    let wharf = Wharf::new();
    wharf.check(&["create", "box", "-e", "TOKEN=s3cr3t"], 0, "box\n");
    for shown in
        [&["-o", "json", "ls"][..], &["inspect", "box"], &["-o", "json", "suspend", "box"], &["inspect", "box"]]
    {
        let output = wharf.run(shown);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(text.contains("TOKEN") && !text.contains("s3cr3t"), "{shown:?}: {text}");
    }
    let record = wharf.record("box").unwrap().to_string();
    assert!(record.contains("TOKEN") && !record.contains("s3cr3t"), "{record}");
    // It is there after a rest, all the same.
    wharf.check(&["resume", "box"], 0, "box\n");
    wharf.check(&["exec", "box", "--", "sh", "-c", "echo $TOKEN"], 0, "s3cr3t\n");
    let refused = wharf.run(&["create", "other", "-e", "=s3cr3t"]);
    assert!(!String::from_utf8_lossy(&refused.stderr).contains("s3cr3t"));
}

#[test]
fn whatever_was_made_in_a_workspace_rm_removes_it() {
    // Directories that nobody may enter, and more of them within each other than files may be open.
    let script = "mkdir -p a/b/c && touch a/b/c/file && chmod 0 a/b/c && chmod 500 a/b && chmod 0 a && \
                  perl -e 'for (1..3000) { mkdir q(d) or die; chdir q(d) or die }'";
    for wharf in [Wharf::new(), Wharf::as_ordinary_user()] {
        wharf.check(&["create", "box"], 0, "box\n");
        wharf.check(&["exec", "box", "--", "sh", "-c", script], 0, "");
        wharf.check(&["rm", "box"], 0, "box\n");
        assert_eq!(wharf.files(), [] as [PathBuf; 0]);
    }
}

#[test]
fn what_was_in_a_directory_before_it_became_one_for_state_is_left_alone() {
    let wharf = Wharf::new();
    let photos = wharf.state.path().join("sandboxes/photos");
    fs::create_dir_all(&photos).unwrap();
    fs::write(photos.join("one"), "").unwrap();
    wharf.check(&["gc"], 0, "");
    for command in [&["rm", "photos"] as &[&str], &["create", "box"], &["run", "--", "true"]] {
        let refused = wharf.run(command);
        assert_eq!(refused.status.code(), Some(125), "{command:?}: {refused:?}");
        assert!(String::from_utf8_lossy(&refused.stderr).contains("was there before"), "{refused:?}");
        assert!(photos.join("one").exists(), "{command:?}");
    }
    // What an older version has left is known by its records.
    let older = Wharf::new();
    older.check(&["create", "box"], 0, "box\n");
    fs::remove_file(older.state.path().join("wharf-state")).unwrap();
    fs::create_dir(older.state.path().join("sandboxes/half")).unwrap();
    older.check(&["gc"], 0, "half\n");
    older.check(&["exec", "box", "--", "echo", "kept"], 0, "kept\n");
}

#[test]
fn another_users_state_is_not_believed() {
    let wharf = Wharf::new();
    let data = tempfile::tempdir().unwrap();
    fs::create_dir(data.path().join("photos")).unwrap();
    fs::create_dir(wharf.state.path().join("locks")).unwrap();
    // Whoever owns it says what is garbage, and which processes are a sandbox's.
    std::os::unix::fs::symlink(data.path(), wharf.state.path().join("sandboxes")).unwrap();
    std::os::unix::fs::chown(wharf.state.path(), Some(super::ORDINARY), None).expect("run the tests as root");
    for command in [&["gc"] as &[&str], &["ls"], &["rm", "photos"], &["create", "box"]] {
        let refused = wharf.run(command);
        assert!(data.path().join("photos").exists(), "{command:?}");
        assert_eq!(refused.status.code(), Some(125), "{command:?}: {refused:?}");
        assert!(String::from_utf8_lossy(&refused.stderr).contains("belongs to user 43210"), "{refused:?}");
    }
}
