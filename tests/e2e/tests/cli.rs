//! The built `wharf`, used as a person would, with real sandboxes.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{
    io::Write,
    path::Path,
    process::{Command, Output, Stdio},
};

/// Somebody without any privilege, whom the machine need not know.
const ORDINARY: u32 = 43_210;

struct Wharf {
    state: tempfile::TempDir,
    /// Where an ordinary user finds the programs; root takes them where they were built.
    programs: Option<tempfile::TempDir>,
}

impl Wharf {
    fn new() -> Self {
        Self { state: tempfile::tempdir().unwrap(), programs: None }
    }

    fn as_ordinary_user() -> Self {
        let (state, programs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::os::unix::fs::chown(state.path(), Some(ORDINARY), Some(ORDINARY)).expect("run the tests as root");
        let open = <std::fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o755);
        std::fs::set_permissions(programs.path(), open).unwrap();
        for name in ["wharf", "wharf-sandboxd"] {
            std::fs::copy(wharf_e2e::program(name), programs.path().join(name)).unwrap();
        }
        Self { state, programs: Some(programs) }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = match &self.programs {
            None => Command::new(wharf_e2e::program("wharf")),
            Some(programs) => {
                let mut command = Command::new("setpriv");
                let id = ORDINARY.to_string();
                command.args(["--reuid", &id, "--regid", &id, "--clear-groups", "--inh-caps=-all"]);
                command.arg(programs.path().join("wharf")).env("HOME", self.state.path()).current_dir("/");
                command
            }
        };
        command.arg("--state-dir").arg(self.state.path()).args(arguments).stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    #[track_caller]
    fn check(&self, arguments: &[&str], code: i32, stdout: &str) {
        let output = self.run(arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {error}");
        assert_eq!(String::from_utf8_lossy(&output.stdout), stdout, "{arguments:?}: {error}");
    }

    /// Runs a script in a throw-away sandbox; gives what it printed.
    #[track_caller]
    fn inside(&self, script: &str) -> String {
        let output = self.run(&["run", "--", "sh", "-c", script]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for Wharf {
    fn drop(&mut self) {
        self.run(&["rm", "--all"]);
    }
}

#[test]
fn a_throw_away_sandbox_runs_a_command_and_leaves_nothing() {
    let wharf = Wharf::new();
    wharf.check(&["run", "--", "echo", "hello"], 0, "hello\n");
    wharf.check(&["run", "--", "sh", "-c", "exit 7"], 7, "");
    wharf.check(&["run", "--", "sh", "-c", "kill -9 $$"], 137, "");
    wharf.check(&["run", "--", "bash", "-c", "x=世界; echo ${#x}"], 0, "2\n");
    wharf.check(&["run", "--", "no-such-program"], 127, "");
    let output = wharf.run(&["run", "--timeout", "100ms", "--", "sleep", "1000"]);
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(124), "{told}");
    assert!(told.contains("time limit of 0.1 s"), "{told}");
    for directory in ["sandboxes", "r", "locks"] {
        let left: Vec<_> = std::fs::read_dir(wharf.state.path().join(directory)).unwrap().flatten().collect();
        assert!(left.is_empty(), "{left:?}");
    }
}

#[test]
fn input_is_passed_on_and_streams_stay_apart() {
    let wharf = Wharf::new();
    let mut child = wharf
        .command(&["run", "-i", "--", "sh", "-c", "cat; echo error >&2"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let text = "x".repeat(1 << 20);
    let mut stdin = child.stdin.take().unwrap();
    let sent = text.clone();
    // Beside the reading: any filter blocks whose output nobody takes while more is written to it.
    let writer = std::thread::spawn(move || stdin.write_all(sent.as_bytes()));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert_eq!(output.stdout.len(), text.len());
    assert_eq!(output.stderr, b"error\n");
}

#[test]
fn a_sandbox_lives_stops_starts_and_goes() {
    let wharf = Wharf::new();
    wharf.check(&["create", "box"], 0, "box\n");
    assert_eq!(wharf.run(&["create", "box"]).status.code(), Some(125));
    wharf.check(&["exec", "box", "--", "sh", "-c", "echo kept > file; pwd"], 0, "/workspace\n");
    wharf.check(&["stop", "box"], 0, "box\n");
    assert_eq!(wharf.run(&["exec", "box", "--", "true"]).status.code(), Some(125));
    wharf.check(&["start", "box"], 0, "box\n");
    wharf.check(&["exec", "box", "-e", "A=b c", "--", "sh", "-c", "cat file; echo $A"], 0, "kept\nb c\n");
    wharf.check(&["rm", "box"], 0, "box\n");
    assert_eq!(wharf.run(&["rm", "box"]).status.code(), Some(125));
}

#[test]
fn files_and_directories_are_copied_both_ways() {
    let wharf = Wharf::new();
    let here = tempfile::tempdir().unwrap();
    let at = |name: &str| here.path().join(name).display().to_string();
    std::fs::create_dir_all(here.path().join("dir/sub")).unwrap();
    std::fs::write(here.path().join("dir/sub/file"), "content").unwrap();
    wharf.check(&["create", "box"], 0, "box\n");
    wharf.check(&["cp", &at("dir"), "box:/workspace"], 0, "");
    wharf.check(&["exec", "box", "--", "cat", "dir/sub/file"], 0, "content");
    wharf.check(&["cp", "box:/workspace/dir", &at("back")], 0, "");
    assert_eq!(std::fs::read_to_string(here.path().join("back/sub/file")).unwrap(), "content");
    wharf.check(&["cp", "box:/workspace/dir/sub/file", &at("single")], 0, "");
    assert_eq!(std::fs::read_to_string(here.path().join("single")).unwrap(), "content");
    // As a command run there would find it.
    wharf.check(&["cp", "box:dir/sub/file", &at("relative")], 0, "");
    assert_eq!(std::fs::read_to_string(here.path().join("relative")).unwrap(), "content");
    wharf.check(&["cp", &at("relative"), "box:dir/./sub"], 0, "");
    wharf.check(&["cp", &at("single"), "box:"], 0, "");
    wharf.check(&["exec", "box", "--", "cat", "dir/sub/relative", "single"], 0, "contentcontent");
    assert_eq!(wharf.run(&["cp", "box:/nonexistent", &at("none")]).status.code(), Some(125));
}

#[test]
fn a_mounted_directory_is_shared_with_its_owner() {
    let wharf = Wharf::new();
    let here = tempfile::tempdir().unwrap();
    let mount = here.path().display().to_string();
    wharf.check(&["run", "--mount", &mount, "--", "sh", "-c", "echo from inside > file"], 0, "");
    let file = here.path().join("file");
    assert_eq!(std::fs::read_to_string(&file).unwrap(), "from inside\n");
    let owner = std::os::unix::fs::MetadataExt::uid(&std::fs::metadata(&file).unwrap());
    assert_eq!(owner, rustix::process::geteuid().as_raw());
    let read_only = format!("{mount}:/data:ro");
    assert_ne!(wharf.run(&["run", "--mount", &read_only, "--", "touch", "/data/x"]).status.code(), Some(0));
}

#[test]
fn attempts_to_get_out_fail() {
    try_to_get_out(&Wharf::new());
}

#[test]
fn attempts_to_get_out_of_an_ordinary_users_sandbox_fail() {
    let wharf = Wharf::as_ordinary_user();
    wharf.check(&["run", "--", "sh", "-c", "echo kept > file && cat file"], 0, "kept\n");
    try_to_get_out(&wharf);
}

fn try_to_get_out(wharf: &Wharf) {
    wharf.check(&["create", "neighbour"], 0, "neighbour\n");
    let neighbour = String::from_utf8(wharf.run(&["inspect", "neighbour"]).stdout).unwrap();
    let neighbour: serde_json::Value = serde_json::from_str(&neighbour).unwrap();
    let socket = neighbour["socket"].as_str().unwrap();
    let secret = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(secret.path(), "host secret").unwrap();
    let attempts = [
        ("read the host's shadow file", "cat /etc/shadow"),
        ("read a host file", &*format!("cat {}", secret.path().display())),
        ("read the state directory", &*format!("ls {}", wharf.state.path().join("sandboxes").display())),
        (
            "reach another sandbox's socket",
            &*format!(
                "test -S {socket} || perl -MSocket -e 'socket(S, AF_UNIX, SOCK_STREAM, 0); connect(S, sockaddr_un(\"{socket}\")) or exit 1'"
            ),
        ),
        ("trace sandboxd", "perl -e 'exit(syscall(101, 16, 1, 0, 0) == 0 ? 0 : 1)'"),
        ("write the host's programs", "touch /usr/bin/evil"),
        ("write the host's settings", "touch /etc/evil"),
        ("mount", "mount -t tmpfs none /tmp"),
        ("unmount", "umount /proc"),
        ("make the root writable", "mount -o remount,rw /usr"),
        ("make a device", "mknod /tmp/sda b 8 0"),
        ("write kernel settings", "echo 1 > /proc/sys/kernel/panic"),
        ("set the core pattern", "echo '|/tmp/x' > /proc/sys/kernel/core_pattern"),
        ("press SysRq", "echo h > /proc/sysrq-trigger"),
        ("enter a new user namespace", "unshare --user true"),
        ("enter the first process's namespaces", "nsenter -t 1 -m true"),
        ("load a module", "modprobe dummy"),
        ("change the clock", "date -s 2001-01-01"),
        ("change the host's name", "hostname evil"),
        ("trace sandboxd out of its walls", "cat /proc/1/root/etc/shadow"),
    ];
    for (what, script) in attempts {
        assert_eq!(
            wharf.inside(&format!("if ({script}) >/dev/null 2>&1; then echo out; else echo held; fi")),
            "held\n",
            "{what}"
        );
    }
}

#[test]
fn processes_of_the_host_are_neither_seen_nor_reached() {
    let wharf = Wharf::new();
    let mut host = Command::new("sleep").arg("1000").spawn().unwrap();
    let seen =
        wharf.inside(&format!("ls /proc | grep -c '^[0-9]'; kill -9 {} 2>/dev/null; kill -9 -1; true", host.id()));
    assert!(seen.trim().parse::<u32>().unwrap() < 10, "{seen}");
    assert!(host.try_wait().unwrap().is_none(), "a process of the host was killed");
    host.kill().unwrap();
    host.wait().unwrap();
}

#[test]
fn without_a_network_there_is_only_a_loopback() {
    let wharf = Wharf::new();
    wharf.check(&["run", "--network", "none", "--", "sh", "-c", "grep -c : /proc/net/dev"], 0, "1\n");
}

#[test]
fn a_fork_bomb_is_bounded() {
    fork_bomb(&Wharf::new());
}

#[test]
fn an_ordinary_users_fork_bomb_is_bounded() {
    fork_bomb(&Wharf::as_ordinary_user());
}

fn fork_bomb(wharf: &Wharf) {
    let script = r#"my $n = 0;
        while ($n < 200) { my $pid = fork; last unless defined $pid; if (!$pid) { sleep 100; exit } $n++ }
        print $n"#;
    let output = wharf.run(&["run", "--processes", "60", "--", "perl", "-e", script]);
    let started: u32 = String::from_utf8_lossy(&output.stdout).parse().unwrap();
    assert!((20..60).contains(&started), "{started} processes");
    assert!(std::fs::read_dir(wharf.state.path().join("sandboxes")).unwrap().next().is_none());
}

#[test]
fn filling_memory_and_disk_is_bounded() {
    fill(&Wharf::new());
}

#[test]
fn an_ordinary_user_cannot_fill_memory_and_disk_either() {
    fill(&Wharf::as_ordinary_user());
}

fn fill(wharf: &Wharf) {
    let output = wharf.run(&["run", "--memory", "100M", "--", "sh", "-c", "head -c 400M /dev/zero | tail"]);
    assert_ne!(output.status.code(), Some(0));
    for place in ["/tmp", "/home", "/workspace"] {
        let script = format!("head -c 50M /dev/zero > {place}/big");
        let output = wharf.run(&["run", "--disk", "10M", "--", "sh", "-c", &script]);
        assert_ne!(output.status.code(), Some(0), "{place}");
    }
    // Each file is small enough; they are too many.
    let script = "trap '' TERM HUP; n=0; while :; do head -c 2M /dev/zero > $((n += 1)); done";
    wharf.check(&["create", "full", "--disk", "10M"], 0, "full\n");
    let output = wharf.run(&["exec", "full", "--", "sh", "-c", script]);
    let told = String::from_utf8_lossy(&output.stderr);
    assert_ne!(output.status.code(), Some(0));
    assert!(told.contains("more than the limit of 10485760"), "{told}");
}

#[test]
fn a_creator_that_is_killed_leaves_nothing_that_gc_does_not_remove() {
    let wharf = Wharf::new();
    let half_made = wharf.state.path().join("sandboxes/half/workspace");
    std::fs::create_dir_all(&half_made).unwrap();
    std::fs::write(wharf.state.path().join("sandboxes/half/key"), "x").unwrap();
    wharf.check(&["gc"], 0, "half\n");
    assert!(!Path::new(&half_made).exists());
}

#[test]
fn two_creates_of_one_name_make_one_sandbox() {
    let wharf = Wharf::new();
    let children: Vec<_> =
        (0..4).map(|_| wharf.command(&["create", "same"]).stderr(Stdio::null()).spawn().unwrap()).collect();
    let won = children
        .into_iter()
        .filter_map(|child| child.wait_with_output().ok())
        .filter(|output| output.status.success())
        .count();
    assert_eq!(won, 1);
}

#[test]
fn every_result_is_json_when_asked_for() {
    let wharf = Wharf::new();
    let json = |arguments: &[&str]| -> serde_json::Value {
        let output = wharf.run(&[&["-o", "json"], arguments].concat());
        let text = String::from_utf8(output.stdout).unwrap();
        serde_json::from_str(&text).unwrap_or_else(|_| panic!("{arguments:?}: {text}"))
    };
    assert_eq!(json(&["create", "box"])["name"], "box");
    assert_eq!(json(&["ls"])[0]["name"], "box");
    let exec = json(&["exec", "-d", "box", "--", "sh", "-c", "printf out; exit 3"]);
    let id = exec["id"].as_str().unwrap();
    let output = wharf.run(&["-o", "json", "attach", "box", id, "--offset", "1"]);
    assert_eq!(output.status.code(), Some(3));
    let frames: Vec<serde_json::Value> =
        String::from_utf8(output.stdout).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!((&frames[0]["offset"], &frames.last().unwrap()["code"]), (&1.into(), &3.into()), "{frames:?}");
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), "four").unwrap();
    assert_eq!(json(&["cp", file.path().to_str().unwrap(), "box:/workspace/f"])["bytes"], 4);
    assert_eq!(json(&["inspect", "box"])["execs"][0]["state"], "exited");
    assert_eq!(json(&["stop", "box"])["name"], "box");
    assert_eq!(json(&["start", "box"])["status"], "ready");
    assert_eq!(json(&["rm", "box"]), serde_json::json!(["box"]));
    assert_eq!(json(&["gc"]), serde_json::json!([]));
}

#[test]
fn who_only_watches_does_not_end_what_is_watched() {
    let wharf = Wharf::new();
    wharf.check(&["create", "box"], 0, "box\n");
    let id =
        String::from_utf8(wharf.run(&["exec", "-d", "box", "--", "sh", "-c", "echo on; sleep 1000"]).stdout).unwrap();
    let mut watcher = wharf.command(&["logs", "-f", "box", id.trim()]).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = [0; 3];
    std::io::Read::read_exact(watcher.stdout.as_mut().unwrap(), &mut line).unwrap();
    rustix::process::kill_process(rustix::process::Pid::from_child(&watcher), rustix::process::Signal::INT).unwrap();
    watcher.wait().unwrap();
    let about = String::from_utf8(wharf.run(&["inspect", "box"]).stdout).unwrap();
    let about: serde_json::Value = serde_json::from_str(&about).unwrap();
    assert_eq!(about["execs"][0]["state"], "running");
}

#[test]
fn a_run_that_is_killed_leaves_nothing_after_gc() {
    let wharf = Wharf::new();
    let mut child =
        wharf.command(&["run", "--", "sh", "-c", "echo up; exec sleep 4321"]).stdout(Stdio::piped()).spawn().unwrap();
    std::io::Read::read_exact(child.stdout.as_mut().unwrap(), &mut [0; 3]).unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    wharf.run(&["gc"]);
    assert_eq!(std::fs::read_dir(wharf.state.path().join("sandboxes")).unwrap().count(), 0);
    let runs = |process: std::fs::DirEntry| {
        std::fs::read(process.path().join("cmdline")).is_ok_and(|argv| argv == b"sleep\x004321\0")
    };
    assert!(!std::fs::read_dir("/proc").unwrap().flatten().any(runs));
}

#[test]
fn without_walls_it_says_so_and_still_works() {
    let wharf = Wharf::new();
    let output = wharf.run(&["run", "--isolation", "none", "--", "echo", "bare"]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "bare\n");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("no walls"), "{said}");
}

#[test]
fn a_wall_that_the_kernel_refuses_is_named_and_stops_all_but_best_effort() {
    let wharf = Wharf::new();
    let run = |namespaces: &str, isolation: &str, script: &str| {
        let program = wharf_e2e::program("wharf");
        // A user namespace whose root may not make all namespaces, and has no ids to give to others.
        let output = Command::new("unshare")
            .args(["--user", "--map-root-user", "sh", "-c"])
            .args([&format!("echo 0 > /proc/sys/user/max_{namespaces}_namespaces && exec \"$@\""), "sh"])
            .arg(program)
            .arg("--state-dir")
            .arg(wharf.state.path())
            .args(["run", "--isolation", isolation, "--", "sh", "-c", script])
            .output()
            .unwrap();
        (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
    };
    let (code, said) = run("ipc", "full", "echo inside");
    assert_eq!(code, Some(125), "{said}");
    assert!(said.contains("does not allow `user namespace`") && !said.contains("inside"), "{said}");
    // The walls that can be built still are.
    let script = "echo inside; grep Seccomp: /proc/self/status; touch /usr/x || echo refused";
    for (namespaces, missing) in
        [("ipc", "no IPC namespace: a limit"), ("pid", "no PID namespace: a limit"), ("mnt", "no private root: needs")]
    {
        let (code, said) = run(namespaces, "best-effort", script);
        assert_eq!(code, Some(0), "{said}");
        for told in ["inside\n", "no user namespace", missing, "Seccomp:\t2", "refused"] {
            assert!(said.contains(told), "{told}: {said}");
        }
    }
}

#[test]
fn a_reader_that_goes_away_ends_it_quietly() {
    let wharf = Wharf::new();
    wharf.check(&["create", "box"], 0, "box\n");
    let copy = ["cp", "box:/usr/bin", "-"];
    for arguments in [&["completions", "bash"][..], &["ls"], &["-o", "json", "ls"], &["run", "--", "yes"], &copy] {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let output = wharf.command(arguments).stdout(writer).stderr(Stdio::piped()).output().unwrap();
        assert_eq!(output.status.code(), Some(141), "{arguments:?}");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{arguments:?}");
    }
}

#[test]
fn help_and_errors_teach() {
    let wharf = Wharf::new();
    let help = String::from_utf8(wharf.run(&["--help"]).stdout).unwrap();
    assert!(help.contains("wharf run -- echo hello") && help.contains("Exit codes"));
    let missing = wharf.run(&["exec", "nobody", "--", "true"]);
    let text = String::from_utf8(missing.stderr).unwrap();
    assert_eq!(text, "error: there is no sandbox `nobody`\nhint: `wharf ls` lists the sandboxes that there are\n");
}
