//! What a command prints and is given comes whole, or it is told; and who leaves takes nothing along.

use std::{
    fs::File,
    io::{Read, Write},
    os::unix::process::ExitStatusExt,
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use rustix::{
    net::{Shutdown, SocketAddrUnix, getpeername, shutdown},
    process::{Pid, PidfdFlags, PidfdGetfdFlags, Signal, kill_process, pidfd_getfd, pidfd_open},
    pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt},
};
use serde_json::Value;

use super::Wharf;

/// Nothing here takes as long, unless it never comes.
const PATIENCE: Duration = Duration::from_secs(30);

/// Asks again until it is so; for what no event tells.
#[track_caller]
pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let started = Instant::now();
    while !is_so() {
        assert!(started.elapsed() < PATIENCE, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn with_box() -> Wharf {
    let wharf = Wharf::new();
    wharf.check(&["create", "box"], 0, "box\n");
    wharf
}

fn ps(wharf: &Wharf) -> Value {
    serde_json::from_slice(&wharf.run(&["-o", "json", "ps", "box"]).stdout).unwrap()
}

/// Ends the program of which a test has seen enough; gives its exit code, or that of a shell for its signal.
fn ended(child: &mut Child) -> i32 {
    let mut status = None;
    until("the program ends", || {
        status = child.try_wait().unwrap();
        status.is_some()
    });
    let status = status.unwrap();
    status.code().or(status.signal().map(|signal| 128 + signal)).unwrap()
}

fn numbers(last: u32) -> String {
    (1..=last).map(|number| format!("{number}\n")).collect()
}

#[test]
fn another_user_can_open_the_standard_streams_again() {
    let wharf = with_box();
    let script = "cat /dev/stdin && echo two >/dev/stdout && echo three >/dev/stderr";
    let mut command = wharf.command(&["exec", "-i", "-u", "nobody", "box", "--", "sh", "-c", script]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"one\n").unwrap();
    let output = child.wait_with_output().unwrap();
    let texts = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).into_owned());
    assert_eq!(texts, ["one\ntwo\n", "three\n"]);
    let (_master, slave) = terminal();
    let mut command = wharf.command(&["exec", "-it", "-u", "nobody", "box", "--", "sh", "-c", "true <>$(tty)"]);
    command.stdin(slave.try_clone().unwrap()).stdout(slave.try_clone().unwrap()).stderr(slave);
    let status = command.status().unwrap();
    assert_eq!(status.code(), Some(0));
}

#[test]
fn a_slow_reader_gets_every_byte() {
    let wharf = with_box();
    for command in [&["exec", "box", "--", "seq", "6000000"][..], &["run", "--", "seq", "6000000"]] {
        let mut child = wharf.command(command).stdout(Stdio::piped()).spawn().unwrap();
        if command[0] == "exec" {
            // As much as there is room for, and more than a log keeps.
            until("the log is full", || {
                ps(&wharf)["execs"][0]["output_end"].as_u64().is_some_and(|end| end > 15 << 20)
            });
        }
        let mut text = String::new();
        child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        assert_eq!((ended(&mut child), text.len()), (0, numbers(6_000_000).len()));
    }
}

#[test]
fn a_reader_that_stops_reading_does_not_hold_up_signals() {
    let wharf = with_box();
    for (signal, code) in [(Signal::TERM, 143), (Signal::INT, 130)] {
        let mut child = wharf.command(&["exec", "box", "--", "yes"]).stdout(Stdio::piped()).spawn().unwrap();
        let is_full = |exec: &Value| exec["state"] == "running" && exec["output_end"].as_u64() > Some(15 << 20);
        until("the log is full", || ps(&wharf)["execs"].as_array().unwrap().iter().any(is_full));
        kill_process(Pid::from_child(&child), signal).unwrap();
        until("the command ends", || !ps(&wharf)["execs"].as_array().unwrap().iter().any(|e| e["state"] == "running"));
        // And once more for what it has printed and nobody reads.
        kill_process(Pid::from_child(&child), signal).unwrap();
        drop(child.stdout.take());
        let ended = ended(&mut child);
        assert!(ended == code || ended == 141, "{ended}");
    }
}

#[test]
fn what_is_no_longer_kept_is_never_a_success() {
    let wharf = with_box();
    let id = String::from_utf8(wharf.run(&["exec", "-d", "box", "--", "head", "-c", "30000000", "/dev/zero"]).stdout);
    let id = id.unwrap();
    until("it ends", || ps(&wharf)["execs"][0]["state"] == "exited");
    for arguments in [&["logs"][..], &["logs", "-f"], &["attach"], &["-o", "json", "logs"], &["-o", "json", "attach"]] {
        let output = wharf.run(&[arguments, &["box", id.trim()]].concat());
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(121), "{arguments:?}: {told}");
        assert!(told.contains("the output is incomplete: 13"), "{arguments:?}: {told}");
    }
    let slow = wharf
        .command(&["exec", "--no-wait", "box", "--", "head", "-c", "60000000", "/dev/zero"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    until("it does not wait", || {
        ps(&wharf)["execs"].as_array().unwrap().iter().any(|exec| exec["output_end"] == 60_000_000)
    });
    assert_eq!(slow.wait_with_output().unwrap().status.code(), Some(121));
}

#[test]
fn a_full_disk_is_told_wherever_something_is_printed() {
    let wharf = with_box();
    let id = String::from_utf8(wharf.run(&["exec", "-d", "box", "--", "echo", "short"]).stdout).unwrap();
    for arguments in [
        &["exec", "box", "--", "seq", "200000"][..],
        &["exec", "box", "--", "printf", "short"],
        &["-o", "json", "exec", "box", "--", "true"],
        &["run", "--", "printf", "short"],
        &["ls"],
        &["-o", "json", "ls"],
        &["ps", "box"],
        &["inspect", "box"],
        &["logs", "box", id.trim()],
        &["attach", "box", id.trim()],
        &["cp", "box:/etc/passwd", "-"],
        &["completions", "bash"],
        &["--help"],
        &["--version"],
    ] {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let output = wharf.command(arguments).stdout(full).stderr(Stdio::piped()).output().unwrap();
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(120), "{arguments:?}: {told}");
        assert!(told.contains("could not write to standard output: No space left on device"), "{arguments:?}: {told}");
    }
    let full = File::options().write(true).open("/dev/full").unwrap();
    let output = wharf.command(&["exec", "nobody", "--", "true"]).stderr(full).output().unwrap();
    assert_eq!(output.status.code(), Some(125), "no panic where nothing can be said");
}

#[test]
fn what_a_command_leaves_in_the_background_belongs_to_the_sandbox() {
    let wharf = with_box();
    let script = "nohup setsid sleep 4567 >/dev/null 2>&1 & sleep 4568 & echo started";
    wharf.check(&["exec", "box", "--", "sh", "-c", script], 0, "started\n");
    let count = "cat /proc/[0-9]*/cmdline | tr '\\0' ' ' | grep -o 'sleep 456[78]' | sort";
    wharf.check(&["exec", "box", "--", "sh", "-c", count], 0, "sleep 4567\nsleep 4568\n");
}

#[test]
fn execs_and_sessions_are_listed_ended_and_forgotten() {
    let wharf = with_box();
    let start = |script: &str| {
        let output = wharf.run(&["exec", "-d", "box", "--", "sh", "-c", script]);
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let (running, finished) = (start("sleep 1000"), start("exit 3"));
    until("it ends", || ps(&wharf)["execs"][1]["state"] == "exited");
    let table = String::from_utf8(wharf.run(&["ps", "box"]).stdout).unwrap();
    let line = |id: &str| table.lines().find(|line| line.contains(id)).unwrap_or_else(|| panic!("{id}: {table}"));
    assert!(line(&running).contains("running") && line(&finished).contains("exited 3"), "{table}");
    wharf.check(&["kill", "box", "--finished"], 0, &format!("{finished}\n"));
    wharf.check(&["kill", "box", &running, "-s", "TERM"], 0, &format!("{running}\n"));
    until("it ends", || ps(&wharf)["execs"][0]["state"] == "signalled");
    wharf.check(&["kill", "box", &running], 0, &format!("{running}\n"));
    assert_eq!(ps(&wharf)["execs"], serde_json::json!([]));
    assert_eq!(wharf.run(&["kill", "box", &running]).status.code(), Some(125));
    assert_eq!(wharf.run(&["kill", "box", &running, "-s", "NOPE"]).status.code(), Some(2), "wrong usage");
}

#[test]
fn a_watcher_that_is_killed_does_not_end_another_ones_command() {
    let wharf = with_box();
    let mut caller = wharf.command(&["exec", "-i", "box", "--", "cat"]);
    let mut caller = caller.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    caller.stdin.as_mut().unwrap().write_all(b"one\n").unwrap();
    let mut line = [0; 4];
    caller.stdout.as_mut().unwrap().read_exact(&mut line).unwrap();
    let id = ps(&wharf)["execs"][0]["id"].as_str().unwrap().to_owned();
    for command in ["logs", "attach"] {
        let arguments: &[&str] = if command == "logs" { &["logs", "-f", "box", &id] } else { &["attach", "box", &id] };
        let mut watcher = wharf.command(arguments).stdout(Stdio::piped()).spawn().unwrap();
        watcher.stdout.as_mut().unwrap().read_exact(&mut line).unwrap();
        watcher.kill().unwrap();
        watcher.wait().unwrap();
    }
    caller.stdin.as_mut().unwrap().write_all(b"two\n").unwrap();
    caller.stdout.as_mut().unwrap().read_exact(&mut line).unwrap();
    assert_eq!(&line, b"two\n");
    drop(caller.stdin.take());
    assert_eq!(ended(&mut caller), 0);
}

#[test]
fn what_a_watcher_has_read_is_kept_for_the_caller_that_has_not() {
    let wharf = with_box();
    let mut caller = wharf.command(&["exec", "box", "--", "seq", "6000000"]).stdout(Stdio::piped()).spawn().unwrap();
    until("the log is full", || ps(&wharf)["execs"][0]["output_end"].as_u64().is_some_and(|end| end > 15 << 20));
    let id = ps(&wharf)["execs"][0]["id"].as_str().unwrap().to_owned();
    let mut watcher = wharf.command(&["logs", "-f", "box", &id]).stdout(Stdio::piped()).spawn().unwrap();
    std::io::copy(&mut watcher.stdout.as_mut().unwrap().take(14 << 20), &mut std::io::sink()).unwrap();
    watcher.kill().unwrap();
    watcher.wait().unwrap();
    let mut text = String::new();
    caller.stdout.take().unwrap().read_to_string(&mut text).unwrap();
    assert_eq!((ended(&mut caller), text.len()), (0, numbers(6_000_000).len()));
    assert_eq!(ps(&wharf)["execs"], serde_json::json!([]), "a command in the foreground leaves nothing to look at");
}

/// A terminal with `wharf shell` in it, which is its controlling one.
struct Terminal {
    master: Option<File>,
    shell: Child,
}

/// Both ends of a new terminal.
fn terminal() -> (File, File) {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
    grantpt(&master).unwrap();
    unlockpt(&master).unwrap();
    let slave = ptsname(&master, Vec::new()).unwrap();
    let slave = File::options().read(true).write(true).open(slave.to_str().unwrap()).unwrap();
    (master.into(), slave)
}

impl Terminal {
    fn open(wharf: &Wharf) -> Self {
        let (master, slave) = terminal();
        let wharf = wharf.command(&["shell", "box"]);
        let mut command = Command::new("setsid");
        command.args(["--ctty", "--wait"]).arg(wharf.get_program()).args(wharf.get_args());
        command.stdin(slave.try_clone().unwrap()).stdout(slave.try_clone().unwrap()).stderr(slave);
        Self { master: Some(master), shell: command.spawn().unwrap() }
    }

    fn type_line(&mut self, line: &str) {
        writeln!(self.master.as_mut().unwrap(), "{line}").unwrap();
    }

    /// Reads what is shown until it has this text.
    fn shows(&mut self, text: &str) {
        let (mut shown, mut buffer) = (String::new(), [0; 1024]);
        while !shown.contains(text) {
            let count = self.master.as_mut().unwrap().read(&mut buffer).unwrap();
            shown += &String::from_utf8_lossy(&buffer[..count]);
        }
    }

    /// The line goes dead: the other side is hung up.
    fn hang_up(&mut self) {
        drop(self.master.take());
    }
}

#[test]
fn whoever_leaves_a_shell_in_any_way_leaves_its_job_running() {
    let wharf = with_box();
    let busy = || ps(&wharf)["sessions"][0]["state"] == "busy";
    let leaving: [fn(&mut Terminal); 3] = [
        Terminal::hang_up,
        |terminal| kill_process(Pid::from_child(&terminal.shell), Signal::TERM).unwrap(),
        |terminal| kill_process(Pid::from_child(&terminal.shell), Signal::HUP).unwrap(),
    ];
    // At the prompt, and then while a job runs.
    for job in [false, true] {
        for (number, leave) in leaving.iter().enumerate() {
            let mut terminal = Terminal::open(&wharf);
            if job && number == 0 {
                terminal.type_line("echo up$((1 + 1)); sleep 4569");
                terminal.shows("up2");
                until("the job runs", busy);
            } else if !job {
                terminal.type_line("echo here$((20 + 22))");
                terminal.shows("here42");
            }
            leave(&mut terminal);
            let code = ended(&mut terminal.shell);
            assert_eq!(code, if number == 1 { 143 } else { 129 }, "job: {job}, way {number}");
            assert!(!job || busy(), "the job is gone: way {number}, {}", ps(&wharf));
        }
    }
}

/// Breaks the connections to sandboxes that a `wharf` has, as a line does that goes dead; says how many.
fn cut_connections_of(wharf: &Child) -> usize {
    let pid = Pid::from_child(wharf);
    let process = pidfd_open(pid, PidfdFlags::empty()).unwrap();
    let files = std::fs::read_dir(format!("/proc/{}/fd", pid.as_raw_nonzero())).unwrap().flatten();
    let numbers = files.filter_map(|file| file.file_name().to_str()?.parse().ok());
    let connections = numbers.filter_map(|number| {
        let file = pidfd_getfd(&process, number, PidfdGetfdFlags::empty()).ok()?;
        let peer = SocketAddrUnix::try_from(getpeername(&file).ok()??).ok()?;
        peer.path_bytes()?.ends_with(b"api.sock").then_some(file)
    });
    connections.filter(|connection| shutdown(connection, Shutdown::Both).is_ok()).count()
}

#[test]
fn a_command_and_its_input_are_whole_although_the_connection_is_cut_again_and_again() {
    let wharf = with_box();
    let script = "cat; seq 200000; exit 7";
    let mut command = wharf.command(&["exec", "-i", "box", "--", "sh", "-c", script]);
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let (mut stdin, mut stdout) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    let input = numbers(400_000);
    let sent = input.clone();
    let typing = std::thread::spawn(move || stdin.write_all(sent.as_bytes()));
    let (mut bytes, mut cuts) = (Vec::new(), 0);
    while (&mut stdout).take(300_000).read_to_end(&mut bytes).unwrap() > 0 {
        cuts += cut_connections_of(&child);
    }
    typing.join().unwrap().unwrap();
    assert_eq!(ended(&mut child), 7);
    assert!(cuts > 3, "{cuts}");
    let expected = input + &numbers(200_000);
    assert!(bytes == expected.as_bytes(), "{} bytes instead of {}", bytes.len(), expected.len());
}

#[test]
fn input_that_cannot_be_read_is_not_taken_for_its_end() {
    let wharf = with_box();
    let script = "cat >got && mv got whole";
    let mut command = wharf.command(&["exec", "-i", "box", "--", "sh", "-c", script]);
    let output = command.stdin(File::open("/").unwrap()).output().unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(125), "{error}");
    assert_eq!(error, "error: could not read standard input: Is a directory (os error 21)\n");
    wharf.check(&["exec", "box", "--", "test", "-e", "whole"], 1, "");
    assert_eq!(ps(&wharf)["execs"], serde_json::json!([]));
}
