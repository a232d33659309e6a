//! What a child has of sandboxd, what belongs to a tree, and how trees end.

use std::{collections::BTreeSet, fs, os::unix::fs::PermissionsExt, path::Path};

use rustix::process::{Pid, Signal};
use serde_json::{Value, json};

use super::{KEY, SECRET, Server, is_alive, until};

impl Server {
    /// Starts a process; gives its id and its number.
    fn exec(&self, request: &Value) -> (String, String) {
        let (status, exec) = self.post(KEY, "/v1/execs", request);
        assert_eq!(status, 201, "{exec}");
        (exec["id"].as_str().unwrap().to_owned(), exec["pid"].to_string())
    }

    fn wait(&self, id: &str) -> Value {
        self.get(&format!("/v1/execs/{id}/wait?timeout_ms=60000"))
    }

    /// What a process printed until it ended.
    fn printed(&self, argv: &[&str]) -> String {
        let (id, _) = self.exec(&json!({ "argv": argv }));
        self.wait(&id);
        let url = self.url(&format!("/v1/execs/{id}/output"));
        let request = self.agent.get(url).header("Authorization", format!("Bearer {KEY}"));
        let frames = request.call().unwrap().body_mut().read_to_string().unwrap();
        let frames = frames.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
        let data = frames.filter_map(|frame| frame["data"].as_str().map(str::to_owned));
        data.map(|data| String::from_utf8(decode_base64(&data)).unwrap()).collect()
    }

    fn file(&self, name: &str) -> Option<String> {
        let text = fs::read_to_string(self.home.path().join(name)).ok()?;
        text.ends_with('\n').then(|| text.trim().to_owned())
    }
}

fn decode_base64(text: &str) -> Vec<u8> {
    let value = |byte: u8| match byte {
        b'A'..=b'Z' => byte - b'A',
        b'a'..=b'z' => byte - b'a' + 26,
        b'0'..=b'9' => byte - b'0' + 52,
        b'+' => 62,
        _ => 63,
    };
    let bits = text.bytes().filter(|byte| *byte != b'=').map(value);
    let (mut bytes, mut held, mut count) = (Vec::new(), 0_u32, 0);
    for six in bits {
        held = held << 6 | u32::from(six);
        count += 6;
        if count >= 8 {
            count -= 8;
            bytes.push((held >> count) as u8);
        }
    }
    bytes
}

fn of_process(pid: &str, file: &str) -> String {
    fs::read_to_string(format!("/proc/{pid}/{file}")).unwrap()
}

/// Everything that a careless parent can leave to its children.
fn hostile(script: &str) -> [String; 12] {
    let block = "sigprocmask(SIG_SETMASK, POSIX::SigSet->new(1..31)); exec @ARGV";
    ["env", "LEFT=over", "nice", "-n", "10", "ionice", "-c3", "sh", "-c", script, "sh", block].map(str::to_owned)
}

const CARELESS: &str = "
    ulimit -S -n 64; ulimit -S -f 100; ulimit -S -t 1000; ulimit -S -s 1024; ulimit -S -c unlimited
    umask 0
    trap '' HUP INT QUIT TERM CHLD USR1 TSTP TTIN WINCH
    exec 8</etc/passwd 9>>/dev/null
    block=$1; shift
    exec perl -MPOSIX -e \"$block\" \"$@\"";

#[test]
fn nothing_of_a_careless_start_reaches_what_runs_inside() {
    let prefix = hostile(CARELESS);
    let prefix: Vec<&str> = prefix.iter().map(String::as_str).collect();
    let server = Server::bound(&prefix, json!({}));
    let home = server.home.path().display().to_string();
    let (id, piped) = server.exec(&json!({ "argv": ["sleep", "1000"] }));
    let (on_terminal, with_terminal) =
        server.exec(&json!({ "argv": ["sleep", "1000"], "stdin": true, "terminal": { "rows": 24, "columns": 80 } }));
    for pid in [&piped, &with_terminal] {
        let status = of_process(pid, "status");
        for clean in ["SigBlk:\t0000000000000000\n", "SigIgn:\t0000000000000000\n", "Umask:\t0022\n"] {
            assert!(status.contains(clean), "{clean}: {status}");
        }
        let files = fs::read_dir(format!("/proc/{pid}/fd")).unwrap();
        let files: BTreeSet<String> = files.map(|file| file.unwrap().file_name().into_string().unwrap()).collect();
        assert_eq!(files, BTreeSet::from(["0", "1", "2"].map(str::to_owned)));
        let stat = of_process(pid, "stat");
        let fields: Vec<&str> = stat.rsplit_once(") ").unwrap().1.split(' ').collect();
        assert_eq!((fields[3], fields[2], fields[16]), (pid.as_str(), pid.as_str(), "0"), "session, group, niceness");
        let io = std::process::Command::new("ionice").args(["-p", pid]).output().unwrap();
        assert!(String::from_utf8_lossy(&io.stdout).starts_with("none"), "{io:?}");
        let limits = of_process(pid, "limits");
        let limit = |label: &str| {
            let line = limits.lines().find_map(|line| line.strip_prefix(label)).unwrap();
            let mut fields = line.split_whitespace().map(str::to_owned);
            (fields.next().unwrap(), fields.next().unwrap())
        };
        for raised in ["Max cpu time", "Max file size", "Max processes", "Max data size"] {
            let (soft, hard) = limit(raised);
            assert_eq!(soft, hard, "{raised}");
        }
        assert_eq!(limit("Max core file size").0, "0");
        assert_eq!(limit("Max stack size").0, "8388608");
        assert!(limit("Max open files").0.parse::<u64>().unwrap() >= 1024);
        let environment = of_process(pid, "environ");
        let names: BTreeSet<&str> =
            environment.split_terminator('\0').map(|pair| pair.split('=').next().unwrap()).collect();
        let known = ["HOME", "USER", "LOGNAME", "SHELL", "PATH", "LANG", "TERM"];
        assert!(names.iter().all(|name| known.contains(name)), "{environment}");
        assert_eq!(fs::read_link(format!("/proc/{pid}/cwd")).unwrap().display().to_string(), home);
        let score = |pid: &str| of_process(pid, "oom_score_adj").trim().parse::<i32>().unwrap();
        assert!(score(pid) > score(&server.child.id().to_string()), "the kernel kills it before sandboxd");
    }
    // And so Ctrl-C works.
    let typed = server.agent.post(server.url(&format!("/v1/execs/{on_terminal}/stdin")));
    assert_eq!(typed.header("Authorization", format!("Bearer {KEY}")).send("\x03").unwrap().status(), 204);
    assert_eq!(server.wait(&on_terminal)["signal"], 2);
    // sandboxd itself does its work all the same: it hears of ends, makes files as it should, and has descriptors.
    server.delete(&format!("/v1/execs/{id}"));
    assert_eq!(server.run("umask"), "0022");
    let (ended, _) = server.exec(&json!({ "argv": ["sh", "-c", "exit 7"] }));
    assert_eq!(server.wait(&ended)["state"], json!("exited"));
    assert_eq!(server.wait(&ended)["code"], 7);
    let made = format!("{home}/made");
    assert_eq!(server.post(KEY, "/v1/files/directory", &json!({ "path": made })).0, 204);
    assert_eq!(fs::metadata(made).unwrap().permissions().mode() & 0o7777, 0o755);
    let sandboxd = of_process(&server.child.id().to_string(), "limits");
    let files = sandboxd.lines().find(|line| line.starts_with("Max open files")).unwrap();
    assert!(!files.contains(" 64 "), "{files}");
}

#[test]
fn a_child_has_the_ids_and_groups_of_its_user_and_no_other() {
    // As root of many groups, which a container's often is.
    let server = Server::blank(&["setpriv", "--groups", "0,4,27,54321"]);
    let request = json!({ "keys": [KEY], "working_dir": server.home.path(), "user": { "name": "nobody" } });
    assert_eq!(server.post(SECRET, "/v1/bind", &request).0, 204, "run the tests as root");
    let nobody = "Uid: 65534 65534 65534 65534\nGid: 65534 65534 65534 65534\nGroups:";
    let ids = "grep -E '^(Uid|Gid|Groups):' /proc/self/status | sed -E 's/[[:space:]]+/ /g; s/ $//'";
    assert_eq!(server.printed(&["sh", "-c", ids]).trim_end(), nobody);
    assert_eq!(server.run(ids), nobody);
}

#[test]
fn a_score_that_leaves_no_room_is_lowered_so_that_children_go_first() {
    let server = Server::bound(&["choom", "-n", "1000", "--"], json!({}));
    let score = |pid: &str| of_process(pid, "oom_score_adj").trim().parse::<i32>().unwrap();
    let (_, pid) = server.exec(&json!({ "argv": ["sleep", "1000"] }));
    assert_eq!((score(&server.child.id().to_string()), score(&pid)), (700, 1000));
}

/// Every way to leave the tree that a process has; each writes the number of what shall be found.
const ESCAPES: &[(&str, &str)] = &[
    ("a new session", "setsid -f $STAY"),
    ("two forks", "(setsid $STAY &) &"),
    ("an empty environment", "setsid -f env -i $STAY"),
    ("a lower limit", "ulimit -R 1000000; setsid -f $STAY"),
    ("a lower soft limit", "ulimit -S -R 1000000; setsid -f $STAY"),
    ("a limit of zero", "ulimit -R 0; setsid -f $STAY"),
    ("no limit", "ulimit -R unlimited; setsid -f $STAY"),
    ("lower limits of all that could be marks", "for i in R x m; do ulimit -$i 1000; done; setsid -f $STAY"),
    ("prlimit", "prlimit --pid $$ --rttime=1000000:1000000; setsid -f $STAY"),
    (
        "prlimit of another process",
        "setsid -f $STAY; while ! [ -s stayed ]; do :; done; prlimit --pid $(cat stayed) --rttime=1:1",
    ),
    ("all at once", "ulimit -R 7; env -i setsid -f bash -c \"ulimit -R 5; (setsid $STAY &)\""),
];

fn try_to_leave(prefix: &[&str]) {
    let server = Server::bound(prefix, json!({}));
    let stay = server.home.path().join("stay");
    fs::write(
        &stay,
        format!("#!/bin/sh\necho $$ > {}\nexec sleep 1000\n", server.home.path().join("stayed").display()),
    )
    .unwrap();
    fs::set_permissions(&stay, fs::Permissions::from_mode(0o755)).unwrap();
    for (what, script) in ESCAPES {
        let _ = fs::remove_file(server.home.path().join("stayed"));
        let script = format!("exec >/dev/null 2>&1 </dev/null\n{script}\nexec sleep 1000");
        let request = json!({ "argv": ["bash", "-c", script], "environment": { "STAY": stay } });
        let (id, _) = server.exec(&request);
        let stayed = until(what, || server.file("stayed"));
        assert!(is_alive(&stayed), "{what}");
        server.delete(&format!("/v1/execs/{id}"));
        assert!(!is_alive(&stayed), "{what}");
    }
}

#[test]
fn no_process_leaves_its_tree() {
    try_to_leave(&[]);
}

#[test]
fn no_process_of_an_ordinary_user_leaves_its_tree() {
    let prefix = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups", "--no-new-privs"];
    try_to_leave(&prefix);
}

/// What is left without the filter: who lowers the limit is found as a child, or by its session.
#[test]
fn what_takes_off_its_mark_is_found_by_parent_and_session_or_ends_with_the_sandbox() {
    // As in a pod of OpenHands' own: root without CAP_SYS_ADMIN, to which new privileges are allowed.
    let mut server = Server::bound(&["setpriv", "--bounding-set", "-sys_admin", "--inh-caps=-all"], json!({}));
    let stay = |name: &str| {
        let file = server.home.path().join(name);
        format!("sh -c 'echo $$ > {}; exec sleep 1000'", file.display())
    };
    // A child in a session of its own, an orphan of the leader's session, and one that leaves both.
    let script = format!(
        "exec >/dev/null 2>&1 </dev/null\nulimit -R 1000000\nsetsid {} &\n({} &)\nsetsid -f {}\nexec sleep 1000",
        stay("child"),
        stay("orphan"),
        stay("gone")
    );
    let (id, leader) = server.exec(&json!({ "argv": ["bash", "-c", script] }));
    let [child, orphan, gone] = ["child", "orphan", "gone"].map(|name| until(name, || server.file(name)));
    server.delete(&format!("/v1/execs/{id}"));
    for (what, pid) in [("leader", &leader), ("child", &child), ("orphan", &orphan)] {
        assert!(!is_alive(pid), "{what}");
    }
    assert!(is_alive(&gone), "the kernel takes a filter here: this tries nothing");
    rustix::process::kill_process(Pid::from_child(&server.child), Signal::TERM).unwrap();
    assert_eq!(until("its end", || server.child.try_wait().unwrap()).code(), Some(0));
    assert!(!is_alive(&gone));
}

/// A program of a few machine instructions that sets the limit by one way into the kernel and ends with its errno.
#[cfg(target_arch = "x86_64")]
fn set_limit_by(way: &str, directory: &Path) -> std::path::PathBuf {
    const AT: u32 = 0x40_0000;
    const LIMITS: u32 = 160;
    let limits = (AT + LIMITS).to_le_bytes();
    let load = |opcode: u8, value: u32| [&[opcode][..], &value.to_le_bytes()].concat();
    let call =
        |number: u32| [load(0xb8, number), load(0xbf, 15), [&[0xbe][..], &limits].concat(), vec![0x0f, 0x05]].concat();
    let mut code = match way {
        "setrlimit" => call(160),
        "x32" => call(0x4000_0000 + 160),
        // mov eax, 75; mov ebx, 15; mov ecx, limits; int 0x80
        _ => [load(0xb8, 75), load(0xbb, 15), [&[0xb9][..], &limits].concat(), vec![0xcd, 0x80]].concat(),
    };
    // neg eax; mov edi, eax; mov eax, exit; syscall
    code.extend([0xf7, 0xd8, 0x89, 0xc7, 0xb8, 60, 0, 0, 0, 0x0f, 0x05]);
    let mut file = vec![0; 120];
    file[..8].copy_from_slice(&[0x7f, b'E', b'L', b'F', 2, 1, 1, 0]);
    let mut put = |at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
    put(16, &[2, 0, 62, 0, 1]);
    put(24, &u64::from(AT + 176).to_le_bytes());
    put(32, &64_u64.to_le_bytes());
    put(52, &[64, 0, 56, 0, 1]);
    put(64, &[1, 0, 0, 0, 7]);
    put(80, &u64::from(AT).to_le_bytes());
    put(88, &u64::from(AT).to_le_bytes());
    put(96, &4096_u64.to_le_bytes());
    put(104, &4096_u64.to_le_bytes());
    put(112, &4096_u64.to_le_bytes());
    file.resize(LIMITS as usize, 0);
    file.extend([7; 16]);
    file.extend(code);
    let path = directory.join(way);
    fs::write(&path, file).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).unwrap();
    path
}

#[cfg(target_arch = "x86_64")]
#[test]
fn no_way_into_the_kernel_sets_the_mark_anew() {
    let server = Server::bound(&[], json!({}));
    let code = |program: &Path| {
        let (id, _) = server.exec(&json!({ "argv": [program] }));
        server.wait(&id)["code"].clone()
    };
    let native = set_limit_by("setrlimit", server.home.path());
    // Outside it does what it should: set a limit.
    assert_eq!(std::process::Command::new(&native).status().unwrap().code(), Some(0));
    assert_eq!(code(&native), 1, "EPERM");
    assert_eq!(code(&set_limit_by("x32", server.home.path())), 38, "ENOSYS");
    let old = set_limit_by("int80", server.home.path());
    if std::process::Command::new(&old).status().unwrap().code() == Some(0) {
        assert_eq!(code(&old), 1, "EPERM");
    } else {
        // A kernel without this way in.
        assert_ne!(code(&old), 0);
    }
}

#[test]
fn what_an_ended_shell_has_left_ends_with_its_session() {
    let server = Server::bound(&[], json!({}));
    let left = server.run(
        "setsid -f sh -c 'echo $$ > left; exec sleep 1000' >/dev/null 2>&1; while ! [ -s left ]; do :; done; cat left",
    );
    assert!(is_alive(&left), "{left}");
    server.run("exit");
    until("the shell's end", || (server.get("/v1/sessions/s")["state"] == "ended").then_some(()));
    assert!(is_alive(&left), "it belongs to the session, not to the shell");
    server.delete("/v1/sessions/s");
    assert!(!is_alive(&left));
}

#[test]
fn removing_what_has_ended_kills_nobody_who_has_its_number_now() {
    let server = Server::bound(&["unshare", "--pid", "--fork", "--kill-child", "--mount-proc"], json!({}));
    let (ended, number) = server.exec(&json!({ "argv": ["true"] }));
    server.wait(&ended);
    // In the sandbox's own namespace, the next process gets the same number.
    let before: u32 = number.parse::<u32>().unwrap() - 1;
    let again = format!("echo {before} > /proc/sys/kernel/ns_last_pid; exec sleep 1000");
    let request = json!({ "argv": ["sh", "-c", again] });
    let stranger = until("the same number again", || {
        let (id, _) = server.exec(&request);
        let (next, pid) = server.exec(&json!({ "argv": ["sleep", "1000"] }));
        if pid == number {
            return Some(next);
        }
        server.delete(&format!("/v1/execs/{id}"));
        server.delete(&format!("/v1/execs/{next}"));
        None
    });
    // Neither a signal to the one that has ended reaches it, nor its removal.
    let (status, problem) = server.post(KEY, &format!("/v1/execs/{ended}/signal"), &json!({ "signal": "TERM" }));
    assert_eq!((status, &problem["kind"]), (409, &json!("conflict")), "{problem}");
    assert!(is_alive_in(&server, &number));
    server.delete(&format!("/v1/execs/{ended}"));
    assert_eq!(server.get(&format!("/v1/execs/{stranger}"))["state"], "running");
    assert!(is_alive_in(&server, &number));
}

fn is_alive_in(server: &Server, number: &str) -> bool {
    server.printed(&["sh", "-c", &format!("cat /proc/{number}/stat")]).contains("(sleep) S")
}

#[test]
fn a_program_that_misses_the_first_hangup_is_told_again() {
    let server = Server::bound(&[], json!({}));
    // It takes TERM for nothing, as an interactive shell does, and ends at the second hangup.
    let script = "trap '' TERM; n=0; trap 'n=$((n + 1)); if [ $n = 2 ]; then echo heard > heard; exit; fi' HUP
        echo ready > ready; while :; do read line; done";
    let (id, _) = server.exec(&json!({ "argv": ["sh", "-c", script], "terminal": { "rows": 24, "columns": 80 } }));
    until("the program", || server.file("ready"));
    server.delete(&format!("/v1/execs/{id}"));
    assert_eq!(server.file("heard").as_deref(), Some("heard"));
}

#[test]
fn sigterm_ends_the_server_although_it_was_started_with_it_blocked() {
    let block = "sigprocmask(SIG_SETMASK, POSIX::SigSet->new(SIGTERM)); exec @ARGV";
    let mut server = Server::bound(&["perl", "-MPOSIX", "-e", block], json!({}));
    rustix::process::kill_process(Pid::from_child(&server.child), Signal::TERM).unwrap();
    assert_eq!(until("its end", || server.child.try_wait().unwrap()).code(), Some(0));
}

/// A program that nobody but root may signal, started by an ordinary user.
fn unkillable(directory: &Path) -> String {
    let program = directory.join("become-root");
    fs::copy("/usr/bin/setpriv", &program).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o4755)).unwrap();
    program.display().to_string()
}

#[test]
fn removing_and_stopping_end_although_a_process_cannot_be_killed() {
    let prefix = ["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"];
    let mut server = Server::bound(&prefix, json!({}));
    let program = unkillable(server.home.path());
    let argv = json!({ "argv": [program, "--reuid", "0", "--regid", "0", "--clear-groups", "sleep", "1000"] });
    let (removed, first) = server.exec(&argv);
    let (stopped, second) = server.exec(&argv);
    for pid in [&first, &second] {
        until("a process of root's", || of_process(pid, "status").contains("Uid:\t0\t0\t0\t0").then_some(()));
    }
    let command = format!("{program} --reuid 0 --regid 0 --clear-groups sleep 1000 & echo $!");
    // Behind what an interactive shell says of a job.
    let third = server.run(&command).lines().last().unwrap().to_owned();
    until("another", || of_process(&third, "status").contains("Uid:\t0\t0\t0\t0").then_some(()));
    // Which is said, as often as it is asked for, until it is true.
    for (path, pid) in [(format!("/v1/execs/{removed}"), &first), ("/v1/sessions/s".to_owned(), &third)] {
        for _ in 0..2 {
            let (status, problem) = server.delete_for(&path);
            let told = problem["detail"].as_str().unwrap_or_default();
            assert!(status == 422 && told.contains("not even killed") && told.contains(pid), "{status} {problem}");
        }
        rustix::process::kill_process(Pid::from_raw(pid.parse().unwrap()).unwrap(), Signal::KILL).unwrap();
        until("its end", || (!is_alive(pid)).then_some(()));
        server.delete(&path);
    }
    let (mut socket, head) = server.web_socket(&format!("/v1/execs/{stopped}/output"));
    assert!(head.starts_with("HTTP/1.1 101"), "{head}");
    rustix::process::kill_process(Pid::from_child(&server.child), Signal::TERM).unwrap();
    let code = until("the server's end", || server.child.try_wait().unwrap()).code();
    assert_eq!(code, Some(0));
    let _ = std::io::Read::read_to_end(&mut socket, &mut Vec::new());
    assert!(is_alive(&second), "it could not be killed");
    rustix::process::kill_process(Pid::from_raw(second.parse().unwrap()).unwrap(), Signal::KILL).unwrap();
}

/// sandboxd as OpenHands starts it, once it listens; gives what it has said until then, too.
fn openhands(prefix: &[&str], arguments: &[&str], key: Option<&str>) -> (Openhands, String) {
    let home = tempfile::tempdir().unwrap();
    let port = wharf_e2e::free_port().to_string();
    let program = wharf_e2e::program("wharf-sandboxd").display().to_string();
    let argv: Vec<&str> = prefix.iter().copied().chain([program.as_str(), &port]).collect();
    let mut command = std::process::Command::new(argv[0]);
    command.args(&argv[1..]).arg("--working-dir").arg(home.path()).args(["--username", "root"]).args(arguments);
    command.env_remove("SESSION_API_KEY").envs(key.map(|key| ("SESSION_API_KEY", key))).env("AFTER", "wards");
    let mut child = command.stdin(std::process::Stdio::null()).stderr(std::process::Stdio::piped()).spawn().unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stderr.take().unwrap()));
    let mut said = String::new();
    while !said.contains("listening") {
        said.push_str(&lines.next().expect("it listens before it ends").unwrap());
        said.push('\n');
    }
    (Openhands { child, port: port.parse().unwrap(), _home: home, _lines: Box::new(lines) }, said)
}

struct Openhands {
    child: std::process::Child,
    port: u16,
    _home: tempfile::TempDir,
    _lines: Box<dyn Iterator<Item = std::io::Result<String>>>,
}

impl Drop for Openhands {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn the_key_is_in_no_environment() {
    let secret = "s3cr3t-session-api-key-of-a-test";
    let (server, said) = openhands(&[], &["--host", "127.0.0.1"], Some(secret));
    assert!(!said.contains("SESSION_API_KEY"), "{said}");
    let pid = server.child.id().to_string();
    let environment = fs::read(format!("/proc/{pid}/environ")).unwrap();
    let shown = String::from_utf8_lossy(&environment);
    assert!(!shown.contains(secret) && shown.contains("AFTER=wards"), "{shown}");
    // It is the key all the same, and no command has it.
    let run = |key: &str| {
        let body = json!({ "action": { "action": "run", "args": { "command": "env | grep -c -e SESSION_API_KEY -e AFTER" } } });
        let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
        let url = format!("http://127.0.0.1:{}/execute_action", server.port);
        let mut answer = agent.post(url).header("X-Session-API-Key", key).send_json(body).unwrap();
        (answer.status().as_u16(), answer.body_mut().read_json::<Value>().unwrap())
    };
    assert_eq!(run("another").0, 403);
    let (status, observation) = run(secret);
    assert_eq!((status, &observation["content"]), (200, &json!("1")), "{observation}");
    let tasks = fs::read_to_string(format!("/proc/{pid}/task/{pid}/children")).unwrap();
    for child in tasks.split_whitespace() {
        assert!(!String::from_utf8_lossy(&fs::read(format!("/proc/{child}/environ")).unwrap()).contains(secret));
    }
}

#[test]
fn the_original_command_line_takes_an_address_and_says_that_there_is_no_key() {
    let listens_at = |server: &Openhands| {
        let wanted = format!(":{:04X}", server.port);
        let table = fs::read_to_string("/proc/net/tcp").unwrap();
        let local = table.lines().filter_map(|line| line.split_whitespace().nth(1)).find(|at| at.ends_with(&wanted));
        local.map(|at| at.split(':').next().unwrap().to_owned())
    };
    let (server, said) = openhands(&[], &["--host", "127.0.0.1"], None);
    assert_eq!(said.matches("SESSION_API_KEY is not set").count(), 1, "{said}");
    assert_eq!(listens_at(&server).as_deref(), Some("0100007F"));
    let (server, said) = openhands(&[], &[], Some("a-key-that-is-long-enough"));
    assert_eq!(listens_at(&server).as_deref(), Some("00000000"), "{said}");
    assert!(!said.contains("SESSION_API_KEY"), "{said}");
}
