//! What passes the walls that the launcher builds, and what they do where a part of them cannot be built.

use std::process::Command;

use super::{FIRST_SUBORDINATE, SUBORDINATE, Wharf};

/// A shell on the host with the program as its arguments.
fn host_shell(wharf: &Wharf, script: &str) -> Command {
    let made = wharf.command(&[]);
    let mut command = Command::new("bash");
    command.args(["-c", script, "bash"]);
    command.arg(made.get_program()).args(made.get_args()).stdin(std::process::Stdio::null());
    command
}

#[track_caller]
fn output_of(mut command: Command) -> String {
    let output = command.output().unwrap();
    String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned()
}

#[test]
fn the_callers_open_files_stay_outside() {
    let wharf = Wharf::new();
    let here = tempfile::tempdir().unwrap();
    let (secret, log) = (here.path().join("secret"), here.path().join("log"));
    std::fs::write(&secret, "host secret").unwrap();
    std::fs::write(&log, "").unwrap();
    for isolation in ["full", "none"] {
        let script = format!(
            "exec 8<{} 9>>{} 63<{}\n\
             inside='ls -l /proc/self/fd /proc/1/fd; cat <&8; cat <&63; echo x >&9; cat /proc/1/fd/8; true'\n\
             \"$@\" run --isolation {isolation} -- bash -c \"$inside\"\n\
             \"$@\" create box-{isolation} --isolation {isolation}\n\
             \"$@\" exec box-{isolation} -- bash -c \"$inside\"\n\
             \"$@\" exec box-{isolation} -- bash -c 'cat /proc/$PPID/fd/8; true'",
            secret.display(),
            log.display(),
            here.path().display()
        );
        let said = output_of(host_shell(&wharf, &script));
        assert!(said.contains("8: Bad file descriptor"), "{isolation}: {said}");
        assert!(!said.contains("host secret") && !said.contains(here.path().to_str().unwrap()), "{isolation}: {said}");
        assert_eq!(std::fs::read_to_string(&log).unwrap(), "", "{isolation}");
    }
}

/// What a command and sandboxd have from their parents, as `/proc` and the shell tell it. The mark of a tree is another each
/// time, and how many threads sandboxd has.
const INHERITED: &str = "for process in self 1; do grep -E '^(Sig(Ign|Blk)|Umask|THP_enabled|Groups):' /proc/$process/status; \
                         grep -v 'realtime timeout' /proc/$process/limits; \
                         cut -d')' -f2- /proc/$process/stat | cut -d' ' -f6,7,18,40; done; umask; \
                         cat /proc/self/personality 2>/dev/null; ionice; env | grep -v ^_; pwd";

#[test]
fn the_callers_signals_limits_priority_and_mask_stay_outside() {
    let wharf = Wharf::new();
    let seen = |odd: &str| {
        let mut command = host_shell(&wharf, &format!("{odd} \"$@\" run -- bash -c \"$INHERITED\""));
        command.env("INHERITED", INHERITED);
        output_of(command)
    };
    let plain = seen("");
    for told in ["SigIgn:", "Max open files", "none"] {
        assert!(plain.contains(told), "{told}: {plain}");
    }
    let odd = "trap '' INT QUIT HUP TERM USR1 PIPE CHLD; umask 077; export STRANGE=1 LANG=de_DE LD_PRELOAD=\n\
               ulimit -Sn 200; ulimit -Ss 1024; ulimit -Sd 4000000; ulimit -Sv 8000000; ulimit -St 1000; ulimit -Sf 100000; ulimit -Sl 8\n\
               ulimit -c 1000\n\
               cd /usr/lib\n";
    assert_eq!(seen(&format!("{odd} nice -n 7 setarch -R ionice -c 3 setpriv --groups 0,42,54321")), plain);
}

#[test]
fn the_callers_keys_stay_outside() {
    let wharf = Wharf::new();
    // A session keyring with a key in it; `-3` is the session's, `10` searches.
    let with_key = "syscall(250, 1, 0); my ($kind, $name, $data) = qw(user wharf-walls secret); \
                    syscall(248, $kind, $name, $data, 6, -3) == -1 and die $!; exec @ARGV";
    let search = "my ($kind, $name) = qw(user wharf-walls); print syscall(250, 10, -3, $kind, $name, 0) == -1 ? 'none' : 'found'";
    let found = |command: Command| {
        let mut outer = Command::new("perl");
        outer.args(["-e", with_key]).arg(command.get_program()).args(command.get_args());
        String::from_utf8(outer.output().unwrap().stdout).unwrap()
    };
    let mut here = Command::new("perl");
    here.args(["-e", search]);
    assert_eq!(found(here), "found", "run the tests as root");
    for isolation in ["full", "none"] {
        assert_eq!(
            found(wharf.command(&["run", "--isolation", isolation, "--", "perl", "-e", search])),
            "none",
            "{isolation}"
        );
    }
}

#[test]
fn without_a_private_root_work_begins_in_the_workspace_or_what_is_mounted_there() {
    let wharf = Wharf::new();
    let mounted = tempfile::tempdir().unwrap();
    let mount = format!("{}:/no/such/place", mounted.path().display());
    let script = "touch made && pwd; touch /root/made /var/made; ls ~";
    let run = |more: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "sh", "-c"]);
        command.args(["echo 0 > /proc/sys/user/max_mnt_namespaces && exec \"$@\"", "sh"]);
        let wharf = wharf.command(&["run", "--isolation", "best-effort", "-w", "/no/such/place"]);
        command.arg(wharf.get_program()).args(wharf.get_args()).args(more).args(["--", "sh", "-c", script]);
        output_of(command)
    };
    let said = run(&[]);
    assert!(said.contains("/workspace\n") && said.contains("no private root"), "{said}");
    assert!(
        said.contains("/root/made': Permission denied") && said.contains("/var/made': Permission denied"),
        "{said}"
    );
    let said = run(&["--mount", &mount, "--mount", "/usr:/elsewhere:ro"]);
    assert!(said.contains(&format!("{}\n", mounted.path().display())), "{said}");
    assert!(said.contains("no mount at /elsewhere: needs a private root"), "{said}");
    assert!(mounted.path().join("made").exists());
    assert!(!std::path::Path::new("/no").exists());
}

#[test]
fn the_target_of_a_mount_is_made_inside_whatever_links_lead_there() {
    for wharf in [Wharf::new(), Wharf::as_ordinary_user()] {
        let here = tempfile::tempdir().unwrap();
        let open = <std::fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o755);
        std::fs::set_permissions(here.path(), open).unwrap();
        std::fs::write(here.path().join("file"), "mounted").unwrap();
        let name = format!("wharf-walls-{}", std::process::id());
        for target in [format!("/var/run/{name}/deep"), format!("/lib/../run/{name}"), format!("/bin/{name}")] {
            let mount = format!("{}:{target}:ro", here.path().display());
            let output = wharf.run(&["run", "--mount", &mount, "--", "cat", &format!("{target}/file")]);
            let shown = output.stdout == b"mounted";
            // With a part `..`, or where the system is read-only.
            let refused = !output.status.success() && !target.starts_with("/var/run");
            assert!(shown || refused, "{target}: {}", String::from_utf8_lossy(&output.stderr));
        }
        // The working directory likewise.
        wharf.check(&["run", "-w", &format!("/var/run/{name}/work"), "--", "touch", "file"], 0, "");
        for made in ["/run", "/var/run", "/usr/bin"] {
            assert!(!std::path::Path::new(made).join(&name).exists(), "{made}");
        }
    }
}

#[test]
fn what_is_made_on_the_way_to_a_mount_belongs_to_the_sandboxs_user() {
    for wharf in [Wharf::new(), Wharf::as_ordinary_user()] {
        let script =
            "mkdir /root/.cache/x /home/a/x && stat -c %u /root/.cache /home/a && id -u && cat /home/a/b/file.txt";
        let arguments =
            ["run", "--mount", "/usr:/root/.cache/pip:ro", "--mount", "/etc/hostname:/home/a/b/file.txt:ro"];
        let output = wharf.run(&[&arguments[..], &["--", "sh", "-c", script]].concat());
        let said = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
        let user = said.lines().next().unwrap_or_default();
        assert!(said.starts_with(&format!("{user}\n{user}\n{user}\n")), "{said}");
    }
}

#[test]
fn private_directories_are_bounded_together_and_say_that_there_is_no_space() {
    let wharf = Wharf::new();
    // Each is small enough.
    let script =
        "for place in /tmp /home /root /var /run /dev/shm; do head -c 3M /dev/zero > $place/some || exit 9; done";
    let output = wharf.run(&["run", "--system", "read-only", "--disk", "10M", "--", "sh", "-c", script]);
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(9), "{told}");
    assert!(told.contains("No space left on device"), "{told}");
}

#[test]
fn a_full_tmp_leaves_the_sandbox_alive_and_enough_memory_to_empty_it() {
    let wharf = Wharf::new();
    wharf.check(&["create", "box", "--memory", "64M"], 0, "box\n");
    let fill = "head -c 300M /dev/zero > /tmp/big; for n in $(seq 1 30000); do true > /tmp/$n || break; done; echo $n; head -c 1M /dev/zero > /tmp/x";
    let output = wharf.run(&["exec", "box", "--", "sh", "-c", fill]);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && told.contains("No space left on device"), "{output:?}");
    // Empty files take memory too.
    let files: u32 = String::from_utf8_lossy(&output.stdout).trim().parse().unwrap();
    assert!((1000..10_000).contains(&files), "{files}");
    wharf.check(
        &["exec", "box", "--", "sh", "-c", "find /tmp -delete 2>/dev/null; head -c 1M /dev/zero > /tmp/x; echo alive"],
        0,
        "alive\n",
    );
}

#[test]
fn what_takes_too_much_memory_ends_before_sandboxd_which_sees_the_kernels_count() {
    let wharf = Wharf::new();
    wharf.check(&["create", "box", "--memory", "64M"], 0, "box\n");
    let output = wharf.run(&["exec", "box", "--", "perl", "-e", "my $x = 'x' x (300 << 20); print length $x"]);
    assert_eq!(output.status.code(), Some(137), "{output:?}");
    let script =
        "tr '\\0' '\\n' </proc/1/cmdline | grep -x -A1 -e --memory-events; grep '^oom_kill ' /.wharf/memory-events";
    let said = wharf.run(&["exec", "box", "--", "sh", "-c", script]).stdout;
    assert_eq!(String::from_utf8_lossy(&said), "--memory-events\n/.wharf/memory-events\noom_kill 1\n");
}

/// What a container engine leaves root without `--cap-add`.
const CAPABILITIES: &str = "-all,+chown,+dac_override,+fsetid,+fowner,+mknod,+net_raw,+setgid,+setuid,+setfcap,+setpcap,\
                            +net_bind_service,+sys_chroot,+kill,+audit_write";

/// Runs `wharf` as in a container: control groups are read-only, parts of `/proc` are covered, system calls refused.
fn in_a_container(wharf: &Wharf, refused: &str, arguments: &[&str]) -> (Option<i32>, String) {
    let outside = "mount -t tmpfs -o ro none /sys/fs/cgroup && for part in kcore keys timer_list; do \
                   test ! -e /proc/$part || mount --bind /dev/null /proc/$part || exit; done && \
                   mount --bind -o ro /proc/sys /proc/sys && mount -o remount,bind,ro /proc/sys && exec \"$@\"";
    let program = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(program.path(), include_str!("container.pl")).unwrap();
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", outside, "sh", "perl"]);
    command.arg(program.path()).arg(refused).args(["setpriv", "--bounding-set", CAPABILITIES, "--inh-caps=-all"]);
    let made = wharf.command(arguments);
    command.arg(made.get_program()).args(made.get_args()).env("HOME", wharf.state.path());
    let output = command.output().unwrap();
    (output.status.code(), String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned())
}

#[test]
fn in_a_container_it_goes_on_with_the_walls_that_are_left_and_says_what_is_missing() {
    let script = "echo in $(pwd); grep -E '^(Seccomp|NoNewPrivs):' /proc/self/status; touch kept && ls; \
                  touch /usr/x /etc/x /var/x /root/x; unshare --user true || echo no namespaces; \
                  bash -c 'kill -0 $PPID && ls /proc/self/exe'";
    for (who, wharf) in [("root", Wharf::new()), ("user", Wharf::as_ordinary_user())] {
        for (refused, missing) in [
            ("default", &["no user namespace: ", "no mount namespace: ", "no private root: "][..]),
            ("hostname", &["no "]),
        ] {
            let (code, said) = in_a_container(&wharf, refused, &["run", "--", "true"]);
            assert!(code == Some(125) && said.contains("--isolation best-effort"), "{who}, {refused}: {said}");
            let arguments = ["run", "--isolation", "best-effort", "--network", "none", "--", "sh", "-c", script];
            let (code, said) = in_a_container(&wharf, refused, &arguments);
            assert_eq!(code, Some(0), "{who}, {refused}: {said}");
            let always =
                ["Seccomp:\t2", "NoNewPrivs:\t1", "kept\n", "/usr/x", "/etc/x", "no namespaces", "/proc/self/exe"];
            for told in always.iter().chain(missing) {
                assert!(said.contains(told), "{who}, {refused}: {told}: {said}");
            }
            for written in ["/usr/x", "/etc/x", "/var/x", "/root/x"] {
                assert!(!std::path::Path::new(written).exists(), "{who}, {refused}: {written}");
            }
            // A sandbox that stays as well.
            let steps = [
                &["create", "box", "--isolation", "best-effort"][..],
                &["exec", "box", "--", "touch", "a"],
                &["rm", "box"],
            ];
            for arguments in steps {
                let (code, said) = in_a_container(&wharf, refused, arguments);
                assert_eq!(code, Some(0), "{who}, {refused}, {arguments:?}: {said}");
            }
        }
    }
}

#[test]
fn the_system_can_be_changed_in_one_sandbox_until_it_is_removed() {
    // The host's own files too, in place.
    change_the_system(&Wharf::new(), "mv /usr/bin/seq /usr/bin/seq2; chmod 700 /usr/bin/tac");
}

#[test]
fn an_ordinary_user_with_subordinate_ids_can_change_the_system_too() {
    let wharf = Wharf::with_subordinate_ids();
    let change = "cp /usr/bin/seq /usr/bin/seq2; rm /usr/bin/seq; cp /usr/bin/tac tac; mv tac /usr/bin/tac; chmod 700 /usr/bin/tac";
    change_the_system(&wharf, change);
    // Nothing is left of it that its owner could not remove.
    wharf.check(&["gc"], 0, "");
    assert_eq!(std::fs::read_dir(wharf.state.path().join("bases")).unwrap().count(), 0);
}

fn change_the_system(wharf: &Wharf, the_hosts: &str) {
    let run = |script: &str| wharf.run(&["exec", "-u", "root", "box", "--", "sh", "-c", script]);
    wharf.check(&["create", "box"], 0, "box\n");
    let change = "set -e; exec 2>&1; cd $(mktemp -d); mkdir -p pack/DEBIAN pack/usr/bin pack/etc\n\
                  printf 'Package: wharf-walls\\nVersion: 1\\nArchitecture: all\\nMaintainer: a <a@b.c>\\nDescription: d\\n' > pack/DEBIAN/control\n\
                  printf '#!/bin/sh\\necho packed\\n' > pack/usr/bin/wharf-walls; chmod 755 pack/usr/bin/wharf-walls; echo setting > pack/etc/wharf-walls\n\
                  dpkg-deb --root-owner-group --build pack >/dev/null; dpkg -i pack.deb >/dev/null; wharf-walls\n\
                  useradd -m wally; groupadd wallies; passwd -l wally >/dev/null; su wally -c 'touch ~/file'\n\
                  echo '192.0.2.1 walls.test' >> /etc/hosts; getent hosts walls.test\n\
                  rm /usr/bin/yes; mkdir /opt/a /srv/b; echo x > /opt/a/x;";
    let output = run(&format!("{change} {the_hosts}"));
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(said, "packed\n192.0.2.1       walls.test\n", "{output:?}");
    wharf.check(&["stop", "box"], 0, "box\n");
    wharf.check(&["start", "box"], 0, "box\n");
    let kept = "wharf-walls; dpkg-query -W wharf-walls; stat -c %U /home/wally/file; seq2 1; stat -c %a:%U /usr/bin/tac; cat /opt/a/x; \
                test ! -e /usr/bin/yes && ls -d /srv/b && stat -c %U:%G /etc /usr/bin /etc/shadow";
    let expected = "packed\nwharf-walls\t1\nwally\n1\n700:root\nx\n/srv/b\nroot:root\nroot:root\nroot:shadow\n";
    assert_eq!(String::from_utf8_lossy(&run(kept).stdout), expected);
    // Neither the next sandbox nor the host has any of it.
    let elsewhere = "which wharf-walls seq2; getent passwd wally; ls /opt/a /srv/b; which yes seq";
    let said = wharf.run(&["run", "--", "sh", "-c", elsewhere]).stdout;
    assert_eq!(String::from_utf8_lossy(&said), "/usr/bin/yes\n/usr/bin/seq\n");
    for missing in ["/usr/bin/wharf-walls", "/etc/wharf-walls", "/opt/a", "/srv/b", "/home/wally"] {
        assert!(!std::path::Path::new(missing).exists(), "{missing}");
    }
    wharf.check(&["rm", "box"], 0, "box\n");
    assert_eq!(std::fs::read_dir(wharf.state.path().join("sandboxes")).unwrap().count(), 0);
}

#[test]
fn a_package_that_the_machine_has_is_replaced_by_another_version_of_it() {
    // Its files are root's of the host.
    let script = "set -e; exec 2>&1; cd $(mktemp -d); mkdir -p pack/DEBIAN pack/usr/bin\n\
                  printf 'Package: less\nVersion: 99:1\nArchitecture: all\nMaintainer: a <a@b.c>\nDescription: d\n' > pack/DEBIAN/control\n\
                  printf '#!/bin/sh\necho newer\n' > pack/usr/bin/less; chmod 755 pack/usr/bin/less\n\
                  dpkg-deb --root-owner-group --build pack >/dev/null; dpkg -i pack.deb >log 2>&1 || cat log; less; stat -c %U /usr/bin/less";
    for wharf in [Wharf::new(), Wharf::with_subordinate_ids()] {
        wharf.check(&["run", "--user", "root", "--", "sh", "-c", script], 0, "newer\nroot\n");
    }
}

#[test]
fn with_subordinate_ids_an_ordinary_users_sandbox_has_any_user() {
    use std::os::unix::fs::MetadataExt;
    let wharf = Wharf::with_subordinate_ids();
    let mounted = tempfile::tempdir().unwrap();
    std::os::unix::fs::chown(mounted.path(), Some(SUBORDINATE), Some(SUBORDINATE)).unwrap();
    let mount = format!("{}:/workspace", mounted.path().display());
    let whose = |name: &str| mounted.path().join(name).metadata().unwrap().uid();
    wharf.check(&["create", "box", "--mount", &mount], 0, "box\n");
    wharf.check(
        &["exec", "box", "--", "sh", "-c", "id -u; id -un; touch mine && touch ~/x"],
        0,
        &format!("{SUBORDINATE}\nsub\n"),
    );
    wharf.check(&["exec", "-u", "root", "box", "--", "sh", "-c", "id -u; touch roots; chmod 777 ."], 0, "0\n");
    wharf.check(&["exec", "-u", "1234", "box", "--", "sh", "-c", "id -u; touch others"], 0, "1234\n");
    assert_eq!(
        (whose("mine"), whose("roots"), whose("others")),
        (SUBORDINATE, FIRST_SUBORDINATE, FIRST_SUBORDINATE + 1234)
    );
    wharf.check(&["rm", "box"], 0, "box\n");
    // The files of a mount are those of whoever is asked for.
    for (user, id) in [("root", 0), ("agent", 1000), ("70000:70000", 70_000)] {
        let script = "id -u; stat -c %u /workspace mine; touch \"made-$(id -u)\"; touch ~/x";
        let output = wharf.run(&["run", "--user", user, "--mount", &mount, "--", "sh", "-c", script]);
        let said = String::from_utf8_lossy(&output.stdout);
        let id = if user == "agent" { said.lines().next().unwrap().parse().unwrap() } else { id };
        assert_eq!(said, format!("{id}\n{id}\n{id}\n"), "{output:?}");
        assert_eq!(whose(&format!("made-{id}")), SUBORDINATE);
    }
}

#[test]
fn a_user_of_the_machine_has_a_home_inside_too() {
    let script = "cd && pwd && touch file && stat -c %u . | grep -qx $(id -u)";
    let lists = Wharf::with_subordinate_ids();
    lists.check(&["create", "box", "--user", "agent"], 0, "box\n");
    lists.check(&["exec", "-u", "sub", "box", "--", "sh", "-c", script], 0, "/home/sub\n");
    // Not a link that was put there.
    lists.check(&["exec", "-u", "root", "box", "--", "sh", "-c", "rm -r /home/sub; ln -s /etc /home/sub"], 0, "");
    lists.check(&["stop", "box"], 0, "box\n");
    lists.check(&["start", "box"], 0, "box\n");
    lists.check(&["exec", "box", "--", "stat", "-c", "%u", "/etc"], 0, "0\n");
}

/// Files that only root of the host, or a group of it, may read; taken away again.
struct Secrets(Vec<std::path::PathBuf>);

impl Secrets {
    fn new() -> Self {
        use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
        let name = format!("wharf-secret-{}", std::process::id());
        let mut made = Self(Vec::new());
        for (tree, mode) in
            [("/usr/local", 0o600), ("/etc", 0o640), ("/opt", 0o400), ("/srv", 0o660), ("/etc/ssl", 0o000)]
        {
            let path = std::path::Path::new(tree).join(&name);
            std::fs::write(&path, "only for root").expect("run the tests as root");
            made.0.push(path.clone());
            std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).unwrap();
        }
        let closed = std::path::Path::new("/opt").join(format!("{name}-dir"));
        std::fs::DirBuilder::new().mode(0o700).create(&closed).unwrap();
        std::fs::write(closed.join("open"), "only for root").unwrap();
        made.0.push(closed);
        made
    }
}

impl Drop for Secrets {
    fn drop(&mut self) {
        for path in &self.0 {
            let _ = std::fs::remove_file(path);
            let _ = std::fs::remove_dir_all(path);
        }
    }
}

#[test]
fn what_only_the_hosts_root_may_read_stays_unread_under_a_writable_system() {
    let wharf = Wharf::new();
    wharf.check(&["create", "box"], 0, "box\n");
    // Made while the sandbox runs: no list of any moment would have it.
    let secrets = Secrets::new();
    let ways = [
        "cat P",
        "head -c 1 P",
        "cp P /tmp/copy && cat /tmp/copy",
        "chmod 666 P; cat P",
        "chown 0:0 P; cat P",
        "ln P /etc/link; ln P /opt/link; ln P /usr/link; cat /etc/link /opt/link /usr/link",
        "mv P /etc/moved; cat /etc/moved",
        "mv P $(dirname P)/moved; cat $(dirname P)/moved",
        "echo more >> P; cat P",
        "truncate -s 100 P; cat P",
        "cat /proc/1/root/P",
        "cat P/open; chmod 777 P; ls P; cat P/open; mv P /opt/moved; cat /opt/moved/open",
        "setpriv --reuid 65534 cat P",
        "cd /.wharf/disk; grep -r 'only for root' .",
        "perl -e 'use Fcntl; sysopen(F, \"P\", O_RDWR) or exit 1; read F, $x, 99; print $x'",
    ];
    for secret in &secrets.0 {
        for way in ways {
            let script = way.replace('P', &secret.display().to_string());
            let output = wharf.run(&["exec", "box", "--", "sh", "-c", &script]);
            let said = String::from_utf8_lossy(&output.stdout);
            assert!(!said.contains("only for root") && !said.starts_with('o'), "{script}: {said}");
        }
        let there = if secret.is_dir() { secret.join("open") } else { secret.clone() };
        assert_eq!(std::fs::read_to_string(there).unwrap(), "only for root");
    }
}

#[test]
fn each_hidden_file_that_programs_write_is_replaced_without_a_word_of_the_hosts() {
    let wharf = Wharf::new();
    let files =
        ["/etc/shadow", "/etc/gshadow", "/etc/shadow-", "/etc/gshadow-", "/etc/.pwd.lock", "/etc/security/opasswd"];
    let packages = ["/var/lib/dpkg/lock", "/var/lib/dpkg/lock-frontend", "/var/lib/dpkg/triggers/Lock"];
    for file in files.iter().chain(&packages).filter(|file| std::path::Path::new(*file).exists()) {
        let host = std::fs::read_to_string(file).unwrap();
        let inside = wharf.inside(&format!("cat {file} && echo >> {file}"));
        assert!(host.is_empty() || inside != host, "{file}");
        let locked = |line: &str| line.split(':').nth(1) == Some("*");
        assert!(inside.lines().all(locked), "{file}: {inside}");
        let names = inside.lines().count();
        assert_eq!(names > 0, matches!(*file, "/etc/shadow" | "/etc/gshadow"), "{file}: {inside}");
    }
}

#[test]
fn a_read_only_system_is_told_of_and_a_writable_one_that_cannot_be_is_refused() {
    let note = |wharf: &Wharf, arguments: &[&str]| {
        let output = wharf.run(&[&["create", "box"], arguments].concat());
        assert!(output.status.success(), "{output:?}");
        let about = String::from_utf8(wharf.run(&["inspect", "box"]).stdout).unwrap();
        let touched =
            wharf.run(&["exec", "box", "--", "sh", "-c", "touch /home/x /root/x /var/x && touch /usr/x /etc/x"]);
        assert!(wharf.run(&["rm", "box"]).status.success());
        (about, touched.status.success())
    };
    let (root, user) = (Wharf::new(), Wharf::as_ordinary_user());
    for (about, touched) in [note(&root, &[]), note(&root, &["--system", "writable"])] {
        assert!(touched && about.contains("what is changed in the system stays in the sandbox"), "{about}");
    }
    let (about, touched) = note(&root, &["--system", "read-only"]);
    assert!(!touched && about.contains("the system is read-only (as asked)"), "{about}");
    let (about, touched) = note(&user, &[]);
    assert!(!touched && about.contains("the system is read-only (the host's files belong to users"), "{about}");
    let output = user.run(&["run", "--system", "writable", "--", "true"]);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.code() == Some(125) && told.contains("does not allow `writable system`"), "{told}");
    let (about, touched) = note(&user, &["--isolation", "best-effort", "--system", "writable"]);
    let about: serde_json::Value = serde_json::from_str(&about).unwrap();
    let missing: Vec<_> =
        about["walls"].as_array().unwrap().iter().filter(|wall| wall.get("missing").is_some()).collect();
    assert!(!touched && missing.len() == 1 && missing[0]["part"] == "writable system", "{about}");
}

#[test]
fn where_single_files_of_the_system_are_mounts_a_user_still_has_a_name() {
    // Its `/etc/passwd` is mounted.
    let wharf = Wharf::with_subordinate_ids();
    for (user, name) in [("agent", "agent\n"), ("2000000", "user2000000\n")] {
        wharf.check(&["run", "--system", "read-only", "--user", user, "--", "id", "-un"], 0, name);
    }
}

#[test]
fn where_the_kernel_lays_no_overlay_the_system_is_read_only() {
    let wharf = Wharf::new();
    // The state on an overlay, as in a container: that is no upper layer for another.
    let script = "cd \"$0\" && mkdir lower upper work state && mount -t overlay -o lowerdir=lower,upperdir=upper,workdir=work none state && exec \"$@\"";
    let run = |arguments: &[&str]| {
        let here = tempfile::tempdir().unwrap();
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", script]).arg(here.path());
        command.arg(wharf.command(&[]).get_program()).arg("--state-dir").arg(here.path().join("state")).args(arguments);
        output_of(command)
    };
    let said = run(&["run", "--", "sh", "-c", "touch /usr/x; touch /root/x && echo runs"]);
    assert!(said.contains("/usr/x': Read-only file system") && said.contains("runs"), "{said}");
    let said = run(&["run", "--system", "writable", "--", "true"]);
    assert!(said.contains("`writable system`: the kernel lays nothing over it: /"), "{said}");
}

#[test]
fn what_is_mounted_below_the_hosts_system_is_seen_and_single_files_can_be_written() {
    let wharf = Wharf::new();
    let script = "mount -t tmpfs none /srv && mkdir /srv/a && mount -t tmpfs none /srv/a && echo below > /srv/a/file && \
                  echo mounted > /srv/hosts && mount --bind /srv/hosts /etc/hosts && echo closed > /srv/closed && \
                  chmod 640 /srv/closed && mount --bind /srv/closed /etc/hostname && exec \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"]);
    let inside = "cat /srv/a/file /etc/hosts && echo more >> /etc/hosts && cat /etc/hosts; touch /srv/new && touch /srv/a/new; \
         cat /etc/hostname";
    let made = wharf.command(&["run", "--", "sh", "-c", inside]);
    command.arg(made.get_program()).args(made.get_args());
    let said = output_of(command);
    assert!(said.starts_with("below\nmounted\nmounted\nmore\n") && said.contains("/srv/a/new': Read-only"), "{said}");
    assert!(!said.contains("closed"), "only root of the host may read it: {said}");
}

#[test]
fn what_is_changed_in_the_system_counts_on_disk() {
    let wharf = Wharf::new();
    for place in ["/usr/local", "/etc", "/home", "/root", "/var/lib"] {
        wharf.check(&["create", "box", "--disk", "10M"], 0, "box\n");
        let script = format!("trap '' TERM HUP; n=0; while :; do head -c 2M /dev/zero > {place}/$((n += 1)); done");
        let output = wharf.run(&["exec", "box", "--", "sh", "-c", &script]);
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && told.contains("more than the limit of 10485760"), "{place}: {told}");
        wharf.check(&["rm", "box"], 0, "box\n");
    }
    // Files without a name, held open.
    let script = "for n in 11 12 13 14 15 16 17 18; do eval \"exec $n>/usr/f\"; rm /usr/f; head -c 2M /dev/zero >&$n; done; sleep 60";
    let output = wharf.run(&["run", "--disk", "10M", "--", "bash", "-c", script]);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(told.contains("more than the limit of 10485760"), "{told}");
}

#[test]
fn sys_is_there_and_read_only_without_what_reaches_the_host() {
    for wharf in [Wharf::new(), Wharf::as_ordinary_user()] {
        // What is refused may be refused to whoever is not root of the host: the mount itself says what it is.
        let mounts =
            "awk '$4 != \"/null\" && ($5 == \"/sys\" || index($5, \"/sys/\") == 1) { print $6 }' /proc/self/mountinfo";
        let seen = wharf.inside(mounts);
        assert!(!seen.is_empty() && seen.lines().all(|options| options.starts_with("ro,")), "{seen}");
        let script = "ls /sys/class/net | head -1; ls /sys/devices/system/cpu | grep -c cpu0; ls /sys/fs/cgroup /sys/kernel/debug /sys/kernel/tracing \
                      /sys/firmware /sys/module 2>/dev/null | grep -cv -e : -e '^$'; for f in $(find /sys/kernel /sys/class/net/*/ -maxdepth 1 -perm -u=w -type f); do \
                      echo 1 > $f; done 2>&1 | grep -vc -e 'Read-only' -e 'Permission denied'";
        assert_eq!(wharf.inside(&format!("{script}; true")).lines().skip(1).collect::<Vec<_>>(), ["1", "0", "0"]);
        wharf.check(&["run", "--network", "none", "--", "ls", "/sys/class/net"], 0, "lo\n");
    }
}

#[test]
fn parts_of_proc_that_show_or_change_the_host_are_covered() {
    for wharf in [Wharf::new(), Wharf::as_ordinary_user()] {
        let script = "cd /proc; for part in kcore keys timer_list kmsg sysrq-trigger; do \
                      test ! -e $part || test \"$(stat -c %t:%T $part)\" = 1:3 || echo $part is the host\\'s; done; \
                      grep ' /proc/sys ' /proc/self/mountinfo | cut -d' ' -f6 | tr , '\\n' | grep -x ro";
        assert_eq!(wharf.inside(script), "ro\n");
    }
}

#[test]
fn shared_memory_has_a_size_of_its_own_if_asked_for() {
    for wharf in [Wharf::new(), Wharf::as_ordinary_user()] {
        let fill = "df -B1 --output=size /dev/shm | tail -1; head -c 9M /dev/zero > /dev/shm/x; head -c 9M /dev/zero > /tmp/x && echo tmp";
        let output = wharf.run(&["run", "--memory", "256M", "--shm-size", "8M", "--", "sh", "-c", fill]);
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(said.contains("8388608\ntmp\n"), "{output:?}");
        let output = wharf.run(&["run", "--memory", "256M", "--shm-size", "200M", "--", "true"]);
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && told.contains("`--shm-size` is not valid"), "{told}");
    }
}

#[test]
fn devices_are_there_if_they_are_named() {
    let elsewhere = tempfile::tempdir().unwrap();
    let elsewhere = elsewhere.path().join("null").display().to_string();
    assert!(
        Command::new("mknod").args([&elsewhere, "c", "1", "3"]).status().unwrap().success(),
        "run the tests as root"
    );
    // A device that anybody may have, and one that only root may.
    let script = "test -c DEVICE && exec 5<DEVICE && echo opened";
    for wharf in [Wharf::new(), Wharf::as_ordinary_user()] {
        let fuse = script.replace("DEVICE", "/dev/fuse");
        assert!(!wharf.run(&["run", "--", "sh", "-c", &fuse]).status.success());
        for (wrong, why) in [
            ("/dev", "it must be a device"),
            ("/dev/nothing", "it must be"),
            ("/etc/passwd", "it must be"),
            (&elsewhere, "it must be"),
        ] {
            let output = wharf.run(&["run", "--device", wrong, "--", "true"]);
            assert!(String::from_utf8_lossy(&output.stderr).contains(why), "{wrong}: {output:?}");
        }
    }
    let root = Wharf::new();
    for device in
        ["/dev/loop-control", "/dev/net/tun", "/dev/fuse"].iter().filter(|path| std::path::Path::new(*path).exists())
    {
        let output = root.run(&["run", "--device", device, "--", "sh", "-c", &script.replace("DEVICE", device)]);
        assert_eq!(String::from_utf8_lossy(&output.stdout), "opened\n", "{device}: {output:?}");
    }
}

#[test]
fn programs_are_looked_for_where_the_caller_looks() {
    let wharf = Wharf::new();
    let run = |arguments: &[&str]| {
        let mut command = wharf.command(arguments);
        command.env("PATH", "/opt/some/bin:/home/me/bin:/usr/bin");
        output_of(command)
    };
    let usual = "/opt/some/bin:/usr/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/sbin:/bin\n";
    assert_eq!(run(&["run", "--", "sh", "-c", "echo $PATH"]), usual);
    assert_eq!(run(&["run", "-e", "PATH=/bin", "--", "sh", "-c", "echo $PATH"]), "/bin\n");
}

#[test]
fn links_that_were_made_inside_lead_nowhere_on_the_host_at_the_next_start() {
    use std::os::unix::fs::MetadataExt;
    let wharf = Wharf::new();
    let host = tempfile::tempdir().unwrap();
    let again = |name: &str, script: &str| {
        let changed = wharf.run(&["exec", name, "-u", "0", "--", "sh", "-c", script]);
        assert!(changed.status.success(), "{script}: {changed:?}");
        wharf.check(&["stop", name], 0, &format!("{name}\n"));
        wharf.run(&["start", name])
    };
    // Where the next start lays a layer, and makes directories.
    wharf.check(&["create", "box"], 0, "box\n");
    let aside = format!(
        "mv /var/lib /var/aside && mkdir -p {0} && ln -s {0} /var/lib && rm -r /var/tmp && ln -s /gone /var/tmp",
        host.path().display()
    );
    let refused = again("box", &aside);
    assert_eq!(std::fs::read_dir(host.path()).unwrap().count(), 0, "made on the host");
    assert_eq!(refused.status.code(), Some(125), "the directory is in a file system of its own in memory");
    let said = String::from_utf8_lossy(&refused.stderr);
    assert!(said.contains("packages of the host"), "{said}");
    wharf.check(&["create", "inside"], 0, "inside\n");
    let moved = again("inside", "mkdir /home/lib && mv /var/lib /var/aside && ln -s ../home/lib /var/lib");
    assert!(moved.status.success(), "{moved:?}");
    wharf.check(&["exec", "inside", "--", "sh", "-c", "dpkg-query -W dpkg | cut -f1"], 0, "dpkg\n");
    // What becomes the user's.
    wharf.check(&["create", "user", "--user", "agent"], 0, "user\n");
    let device = std::path::Path::new("/dev/full");
    let refused = again("user", "rm -r /home/agent && ln -s /dev/full /home/agent");
    let owner = device.metadata().unwrap().uid();
    std::os::unix::fs::chown(device, Some(0), Some(0)).unwrap();
    assert_eq!(owner, 0, "a device of the host belongs to a sandbox");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("user"), "{refused:?}");
}

#[test]
fn the_list_of_users_shows_no_file_that_only_the_hosts_root_may_read() {
    let wharf = Wharf::new();
    let secret = "/proc/sys/net/ipv4/tcp_fastopen_key";
    let key = std::fs::read_to_string(secret).unwrap();
    wharf.check(&["create", "box", "--user", "agent"], 0, "box\n");
    let script = format!("rm /etc/passwd && ln -s {secret} /etc/passwd");
    wharf.check(&["exec", "box", "-u", "0", "--", "sh", "-c", &script], 0, "");
    wharf.check(&["stop", "box"], 0, "box\n");
    let started = wharf.run(&["start", "box"]);
    let shown = wharf.run(&["exec", "box", "-u", "0", "--", "cat", "/etc/passwd"]);
    assert!(!String::from_utf8_lossy(&shown.stdout).contains(key.trim()), "{shown:?}");
    assert!(String::from_utf8_lossy(&started.stderr).contains("`/etc/passwd` is a link"), "{started:?}");
    // Nor does what is no file keep the next start waiting.
    wharf.check(&["create", "pipe", "--user", "agent"], 0, "pipe\n");
    let script = "rm /etc/passwd && mkfifo /etc/passwd";
    wharf.check(&["exec", "pipe", "-u", "0", "--", "sh", "-c", script], 0, "");
    wharf.check(&["stop", "pipe"], 0, "pipe\n");
    let started = wharf.run(&["start", "pipe"]);
    assert!(String::from_utf8_lossy(&started.stderr).contains("`/etc/passwd` is not a file"), "{started:?}");
}

#[test]
fn a_file_that_reaches_the_bound_on_disk_is_refused_and_the_sandbox_goes_on() {
    for wharf in [Wharf::new(), Wharf::as_ordinary_user()] {
        wharf.check(&["create", "box", "--disk", "10M"], 0, "box\n");
        let output = wharf.run(&["exec", "box", "--", "sh", "-c", "head -c 20M /dev/zero > big"]);
        assert_eq!(output.status.code(), Some(153), "SIGXFSZ: {output:?}");
        // Long enough for the watch to look.
        wharf.check(&["exec", "box", "--", "sh", "-c", "sleep 2; echo alive"], 0, "alive\n");
    }
}

#[test]
fn inspect_tells_a_bound_on_disk_of_nothing_but_what_is_bounded() {
    let wharf = Wharf::new();
    let about = |arguments: &[&str]| {
        assert!(wharf.run(&[&["create", "box"], arguments].concat()).status.success());
        let about = String::from_utf8(wharf.run(&["inspect", "box"]).stdout).unwrap();
        wharf.check(&["rm", "box"], 0, "box\n");
        about
    };
    assert!(about(&[]).contains("the workspace and what is changed in the system may take"));
    assert!(about(&["--mount", "/usr:/workspace:ro"]).contains("\"what is changed in the system may take"));
    assert!(about(&["--mount", "/usr:/workspace:ro", "--system", "read-only"]).contains("\"a single file may take"));
}

/// Or nobody could remove anything from it.
#[test]
fn a_sandbox_that_has_filled_its_disk_can_be_cleaned_up() {
    for wharf in [Wharf::new(), Wharf::as_ordinary_user()] {
        wharf.check(&["create", "box", "--disk", "10M"], 0, "box\n");
        let fill = "trap '' TERM; n=0; while :; do head -c 2M /dev/zero > $((n += 1)); done";
        let output = wharf.run(&["exec", "box", "--", "sh", "-c", fill]);
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(told.contains("the workspace") && told.contains("more than the limit of 10485760"), "{told}");
        wharf.check(&["resume", "box"], 0, "box\n");
        // Long enough for the watch to look, several times.
        wharf.check(&["exec", "box", "--", "sh", "-c", "sleep 2; rm -f 1 2 3 4; echo smaller"], 0, "smaller\n");
        // More than was there is still too much, and so is what was removed.
        let output = wharf.run(&["exec", "box", "--", "sh", "-c", fill]);
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && told.contains("more than the limit of 10485760"), "{told}");
    }
}

#[test]
fn each_user_of_a_sandbox_may_look_into_its_workspace() {
    let wharf = Wharf::new();
    wharf.check(&["create", "box"], 0, "box\n");
    wharf.check(&["exec", "box", "--", "sh", "-c", "echo x > file"], 0, "");
    wharf.check(&["exec", "-u", "1000", "box", "--", "cat", "file"], 0, "x\n");
    let outside = std::fs::metadata(wharf.state.path().join("sandboxes/box")).unwrap();
    assert_eq!(std::os::unix::fs::PermissionsExt::mode(&outside.permissions()) & 0o077, 0);
}

/// Where there are control groups, as root has them in CI.
#[test]
fn a_busy_sandbox_gets_no_more_of_the_cpus_than_allowed() {
    let wharf = Wharf::new();
    let script = "TIMEFORMAT='%R %U %S'; time while [ $SECONDS -lt 3 ]; do :; done";
    let output = wharf.run(&["run", "--cpus", "0.2", "--", "bash", "-c", script]);
    let times = String::from_utf8(output.stderr).unwrap();
    let times: Vec<f64> = times.split_whitespace().map(|time| time.parse().expect(&times)).collect();
    let [real, user, system] = times[..] else { panic!("{times:?}") };
    // A tenth of a second is what the group gives at once.
    assert!(user + system < real * 0.2 + 0.1, "{times:?}");
}
