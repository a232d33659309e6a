//! What runs inside tries to get out, or to take more than its share.

use std::{
    os::{
        linux::net::SocketAddrExt,
        unix::net::{SocketAddr, UnixListener},
    },
    process::Command,
};

use super::Wharf;

#[test]
fn attempts_to_get_out_fail() {
    try_to_get_out(&Wharf::new(), &[]);
}

#[test]
fn attempts_to_get_out_of_an_ordinary_users_sandbox_fail() {
    let wharf = Wharf::as_ordinary_user();
    wharf.check(&["run", "--", "sh", "-c", "echo kept > file && cat file"], 0, "kept\n");
    try_to_get_out(&wharf, &[]);
}

#[test]
fn attempts_to_get_out_of_a_sandbox_with_subordinate_ids_fail() {
    let wharf = Wharf::with_subordinate_ids();
    try_to_get_out(&wharf, &[]);
    try_to_get_out(&wharf, &["--user", "root"]);
}

/// One way out. That it is one is seen where there are no walls: else a missing program would pass for a wall.
struct Attempt {
    what: &'static str,
    /// Succeeds outside; inside it may also succeed if it leaves no trace.
    script: String,
    /// What it leaves on the host.
    trace: Option<std::path::PathBuf>,
}

fn attempts(wharf: &Wharf, secret: &std::path::Path, socket: &str) -> Vec<Attempt> {
    let attempt = |what, script: &str| Attempt { what, script: script.to_owned(), trace: None };
    let writing = |what, directory: &str| {
        // The two suites run at the same time.
        let ours = wharf.state.path().file_name().unwrap().to_string_lossy();
        let trace = std::path::Path::new(directory).join(format!("wharf-escape-{ours}"));
        Attempt { what, script: format!("touch {}", trace.display()), trace: Some(trace) }
    };
    let shadow = std::fs::read("/etc/shadow").expect("run the tests as root");
    let sum = |path: &str| format!("test \"$(cksum < {path})\" = '{}'", checksum(&shadow));
    let namespace = |what, name: &str| {
        let host = std::fs::read_link(format!("/proc/self/ns/{name}")).unwrap();
        attempt(what, &format!("test \"$(readlink /proc/self/ns/{name})\" = '{}'", host.display()))
    };
    vec![
        namespace("be among the host's processes", "pid"),
        namespace("be one of the host's users", "user"),
        namespace("share memory and queues with the host", "ipc"),
        namespace("see the host's control groups", "cgroup"),
        attempt("read the host's shadow file", &sum("/etc/shadow")),
        attempt("read the host's shadow file by way of sandboxd", &sum("/proc/$PPID/root/etc/shadow")),
        attempt("read a host file", &format!("cat {}", secret.display())),
        attempt("read the state directory", &format!("ls {}", wharf.state.path().join("sandboxes").display())),
        attempt(
            "reach another sandbox's socket",
            &format!(
                "perl -MSocket -e 'socket(S, AF_UNIX, SOCK_STREAM, 0); connect(S, sockaddr_un(\"{socket}\")) or exit 1'"
            ),
        ),
        attempt(
            "reach a socket of the host that has no file",
            &format!(
                "perl -MSocket -e 'socket(S, AF_UNIX, SOCK_STREAM, 0); connect(S, sockaddr_un(\"\\0{}\")) or exit 1'",
                abstract_name(wharf)
            ),
        ),
        // PTRACE_SEIZE, which stops nobody.
        attempt("trace sandboxd", "P=$PPID perl -e 'exit(syscall(101, 0x4206, int $ENV{P}, 0, 0) == 0 ? 0 : 1)'"),
        writing("write the host's programs", "/usr/bin"),
        writing("write the host's settings", "/etc"),
        writing("write the host's services", "/srv"),
        writing("write among the host's root's files", "/root"),
        attempt("mount", "mount -t tmpfs none /mnt || mount -t tmpfs none /tmp"),
        attempt("unmount", "umount -l /proc"),
        attempt("make the root writable", "mount -o remount,rw /"),
        attempt("make a device", "cd $(mktemp -d) && mknod sda b 8 0"),
        // Each with the value that it has.
        attempt("write kernel settings", "v=$(cat /proc/sys/kernel/panic) && echo $v > /proc/sys/kernel/panic"),
        attempt(
            "set the core pattern",
            "v=$(cat /proc/sys/kernel/core_pattern) && echo \"$v\" > /proc/sys/kernel/core_pattern",
        ),
        attempt(
            "set kernel settings by way of /sys",
            "v=$(cat /sys/kernel/rcu_expedited) && echo $v > /sys/kernel/rcu_expedited",
        ),
        attempt("enter a new user namespace", "unshare --user true"),
        attempt("enter the namespaces of sandboxd", "nsenter -t $PPID -m true"),
        // No module is there: the kernel finds that out only for who may load one.
        attempt("load a module", "perl -e 'syscall(175, 0, 0, 0); exit($!{EPERM} ? 1 : 0)'"),
        attempt("change the clock", "date -s @$(date +%s.%N)"),
        attempt("change the host's name", "hostname \"$(hostname)\""),
        attempt("use the kernel's keys", "perl -e 'exit(syscall(250, 0, -3, 1) == -1 ? 1 : 0)'"),
    ]
}

/// The name of a socket without a file. The two suites run at the same time.
fn abstract_name(wharf: &Wharf) -> String {
    format!("wharf-escape-{}", wharf.state.path().file_name().unwrap().display())
}

/// As `cksum` prints it.
fn checksum(bytes: &[u8]) -> String {
    let mut child =
        Command::new("cksum").stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn().unwrap();
    std::io::Write::write_all(child.stdin.as_mut().unwrap(), bytes).unwrap();
    String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap().trim().to_owned()
}

fn try_to_get_out(wharf: &Wharf, options: &[&str]) {
    if wharf.run(&["inspect", "neighbour"]).stdout.is_empty() {
        wharf.check(&["create", "neighbour"], 0, "neighbour\n");
    }
    let neighbour = String::from_utf8(wharf.run(&["inspect", "neighbour"]).stdout).unwrap();
    let neighbour: serde_json::Value = serde_json::from_str(&neighbour).unwrap();
    let socket = neighbour["socket"].as_str().unwrap();
    let listening = SocketAddr::from_abstract_name(abstract_name(wharf)).unwrap();
    let _listening = UnixListener::bind_addr(&listening).unwrap();
    let secret = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(secret.path(), "host secret").unwrap();
    let unwalled = Wharf::new();
    for Attempt { what, script, trace } in attempts(wharf, secret.path(), socket) {
        let is_out = |told: &std::process::Output| match &trace {
            Some(trace) => std::fs::remove_file(trace).is_ok(),
            None => String::from_utf8_lossy(&told.stdout).ends_with("out\n"),
        };
        let script = format!("if ({script}); then echo out; else echo held; fi");
        let told = wharf.run(&[&["run"], options, &["--", "sh", "-c", &script]].concat());
        assert!(told.status.success() && !is_out(&told), "{what}: it is out: {told:?}");
        // As root of the host, whose mounts and name are spared.
        let inner = unwalled.command(&["run", "--isolation", "none", "--", "sh", "-c", &script]);
        let mut control = Command::new("unshare");
        control.args(["--mount", "--uts", "--propagation", "private"]).arg(inner.get_program()).args(inner.get_args());
        let told = control.output().unwrap();
        assert!(is_out(&told), "{what}: this is no attempt: it fails without walls too: {told:?}");
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
    // Which is up: a server and its client find each other.
    let script = "use Socket; socket(A, PF_INET, SOCK_STREAM, 0); bind(A, sockaddr_in(8080, INADDR_LOOPBACK)) or die $!; \
                  listen(A, 1); socket(B, PF_INET, SOCK_STREAM, 0); \
                  connect(B, sockaddr_in(8080, INADDR_LOOPBACK)) or die $!; print 'connected'";
    wharf.check(&["run", "--network", "none", "--", "perl", "-e", script], 0, "connected");
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

/// Without control groups the kernel counts for each user.
#[test]
fn a_fork_bomb_of_many_users_is_bounded() {
    let wharf = Wharf::with_subordinate_ids();
    let script = r#"my $n = 0;
        for my $user (2000 .. 2009) {
            for (1 .. 20) { my $pid = fork; last unless defined $pid; if (!$pid) { $( = $) = $user; $< = $> = $user; sleep 100; exit } $n++ }
        }
        print $n"#;
    let output = wharf.run(&["run", "--user", "root", "--processes", "60", "--", "perl", "-e", script]);
    let started: u32 = String::from_utf8_lossy(&output.stdout).parse().unwrap();
    assert!((20..60).contains(&started), "{started} processes");
}

#[test]
fn filling_memory_and_disk_is_bounded() {
    fill(&Wharf::new());
}

#[test]
fn an_ordinary_user_cannot_fill_memory_and_disk_either() {
    fill(&Wharf::as_ordinary_user());
    fill(&Wharf::with_subordinate_ids());
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
fn what_is_kept_from_all_others_counts_on_disk() {
    let unlisted = "mkdir -m 300 d; for n in $(seq 40); do head -c 2M /dev/zero > d/$n; done";
    let unsearched = "mkdir d; for n in $(seq 40); do exec {file}>d/$n; chmod 600 d; head -c 2M /dev/zero >&$file; chmod 700 d; \
                      done; chmod 600 d";
    let unnamed = "for n in $(seq 40); do exec {file}>f; rm f; head -c 2M /dev/zero >&$file; done";
    for (wharf, user) in [
        (Wharf::as_ordinary_user(), None),
        (Wharf::new(), Some("1234")),
        (Wharf::with_subordinate_ids(), None),
        (Wharf::with_subordinate_ids(), Some("1234")),
    ] {
        for script in [unlisted, unsearched, unnamed] {
            let script = format!("{script}; sleep 100");
            let mut arguments = vec!["run", "--disk", "10M"];
            arguments.extend(user.iter().flat_map(|user| ["--user", user]));
            arguments.extend(["--", "bash", "-c", &script]);
            let output = wharf.run(&arguments);
            let told = String::from_utf8_lossy(&output.stderr);
            assert!(told.contains("more than the limit of 10485760"), "{user:?} {script}: {told}");
        }
    }
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
