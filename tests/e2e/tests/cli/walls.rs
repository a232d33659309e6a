//! What passes the walls that the launcher builds, and what they do where a part of them cannot be built.

use std::process::Command;

use super::Wharf;

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

/// What a process has from its parent, as `/proc` and the shell tell it.
const INHERITED: &str = "grep -E '^(Sig(Ign|Blk)|Umask|THP_enabled):' /proc/self/status; umask; \
                         (ulimit -Ha; ulimit -Sa) | grep -v real-time.non-blocking; cat /proc/self/personality 2>/dev/null; \
                         cut -d')' -f2- /proc/self/stat | cut -d' ' -f6,7,18,19,40,41; env | grep -v ^_; pwd";

#[test]
fn the_callers_signals_limits_priority_and_mask_stay_outside() {
    let wharf = Wharf::new();
    let plain = output_of(host_shell(&wharf, &format!("\"$@\" run -- bash -c {INHERITED:?}")));
    assert!(plain.contains("SigIgn:"), "{plain}");
    let odd = "trap '' INT QUIT HUP TERM USR1 PIPE CHLD; umask 077; export STRANGE=1 LANG=de_DE LD_PRELOAD=\n\
               ulimit -Sn 200; ulimit -Ss 1024; ulimit -Sd 4000000; ulimit -Sv 8000000; ulimit -St 1000; ulimit -Sf 100000; ulimit -Sl 8\n\
               cd /usr/lib\n";
    let script = format!("{odd} nice -n 7 setarch -R ionice -c 3 \"$@\" run -- bash -c {INHERITED:?}");
    assert_eq!(output_of(host_shell(&wharf, &script)), plain);
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
            let shown = output.stdout == b"mounted" && target.starts_with("/var/run");
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
    let output = wharf.run(&["run", "--disk", "10M", "--", "sh", "-c", script]);
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(9), "{told}");
    assert!(told.contains("No space left on device"), "{told}");
}

#[test]
fn a_full_tmp_leaves_the_sandbox_alive_and_enough_memory_to_empty_it() {
    let wharf = Wharf::new();
    wharf.check(&["create", "box", "--memory", "64M"], 0, "box\n");
    let fill = "head -c 300M /dev/zero > /tmp/big; for n in $(seq 1 30000); do : > /tmp/$n || break; done; head -c 1M /dev/zero > /home/x";
    let output = wharf.run(&["exec", "box", "--", "sh", "-c", fill]);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && told.contains("No space left on device"), "{output:?}");
    wharf.check(
        &["exec", "box", "--", "sh", "-c", "rm -r /tmp/*; head -c 1M /dev/zero > /home/x; echo alive"],
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
