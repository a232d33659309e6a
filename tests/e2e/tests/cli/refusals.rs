//! What cannot be had is refused, or told, and never taken in silence.

use std::{
    fs,
    process::{Command, Output, Stdio},
};

use serde_json::{Value, json};

use crate::{Wharf, memory::call, streams::until};

fn told(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn inspected(wharf: &Wharf) -> Value {
    serde_json::from_slice(&wharf.run(&["inspect", "box"]).stdout).unwrap()
}

#[test]
fn a_limit_that_needs_control_groups_is_refused_or_warned_of_without_them() {
    let wharf = Wharf::as_ordinary_user();
    let refused = wharf.run(&["create", "box", "--cpus", "0.5"]);
    let said = told(&refused);
    assert_eq!(refused.status.code(), Some(125), "{said}");
    assert!(said.contains("`limit of CPUs`") && said.contains("--isolation best-effort"), "{said}");

    let said = told(&wharf.run(&["create", "box", "--memory", "200M"]));
    assert!(said.contains("warning: 209715200 bytes of memory bound each process alone"), "{said}");
    let bounds = &inspected(&wharf)["bounds"];
    assert_eq!(bounds["memory_bytes"], Value::Null);
    assert_eq!(bounds["memory_bytes_of_each_process"], 209_715_200);
    wharf.check(&["rm", "box"], 0, "box\n");

    let said = told(&wharf.run(&["create", "box", "--cpus", "0.5", "--isolation", "best-effort"]));
    assert!(said.contains("warning: no limit of CPUs: ") && !said.contains("bytes of memory"), "{said}");
    assert_eq!(inspected(&wharf)["bounds"]["cpu_millis"], Value::Null);

    let root = Wharf::new();
    let output = root.run(&["create", "box", "--cpus", "0.5", "--memory", "200M"]);
    assert_eq!((output.status.code(), told(&output)), (Some(0), String::new()));
    let bounds = &inspected(&root)["bounds"];
    assert_eq!((&bounds["cpu_millis"], &bounds["memory_bytes"]), (&json!(500), &json!(209_715_200)));
    assert_eq!(bounds["memory_bytes_of_each_process"], Value::Null);
}

#[test]
fn what_is_no_option_is_not_taken_for_the_program_and_fields_are_called_as_they_were_typed() {
    let wharf = Wharf::new();
    let directory = tempfile::tempdir().unwrap();
    let mount = |rest: &str| format!("{}{rest}", directory.path().display());
    let (capitals, file) = (mount(":/src:RO"), mount("/file"));
    std::fs::write(&file, "").unwrap();
    for (wrong, named) in [
        (&["run", "--rm", "-it", "--", "true"][..], "'--rm'"),
        (&["exec", "box", "--privileged", "--", "true"], "'--privileged'"),
        (&["run", "--memory", "1", "--", "true"], "`--memory` is not valid: sandboxd itself needs 16777216"),
        (&["run", "--workdir", "x", "--", "true"], "`--workdir` is not valid"),
        (&["run", "--mount", &capitals, "--", "true"], "`RO` is neither ro nor rw"),
        (&["run", "--mount", &file, "--", "true"], "is no directory"),
    ] {
        let output = wharf.run(wrong);
        let said = told(&output);
        assert!(output.status.code() == Some(2) && said.contains(named), "{wrong:?}: {said}");
    }
    wharf.check(&["run", "echo", "-n", "--rm"], 0, "--rm");
    let said = told(&wharf.run(&["run", "--", "no-such-program"]));
    assert!(said.contains("there is no such program in this sandbox (`CMD` was `no-such-program`)"), "{said}");
}

#[test]
fn without_isolation_what_cannot_be_had_is_refused() {
    let wharf = Wharf::new();
    let directory = tempfile::tempdir().unwrap();
    let at = |rest: &str| format!("{}{rest}", directory.path().display());
    let (elsewhere, read_only, here) = (at(":/zzz"), at(":ro"), at(""));
    let bare = ["run", "--isolation", "none"];
    for wrong in [
        &["--network", "none"][..],
        &["--mount", &elsewhere],
        &["--mount", &read_only],
        &["--device", "/dev/null"],
        &["--shm-size", "8M"],
        &["--system", "read-only"],
        &["--unprotect", "all"],
        &["--disk", "5M", "--mount", &here],
        &["--user", "nobody"],
    ] {
        let flag = wrong[0];
        let output = wharf.run(&[&bare, wrong, &["--", "true"]].concat());
        let said = told(&output);
        assert_eq!(output.status.code(), Some(2), "{wrong:?}: {said}");
        assert!(said.contains(&format!("`{flag}` is not valid: without isolation")), "{wrong:?}: {said}");
    }
    // What is mounted at the working directory is where work begins.
    wharf.check(&[&bare, &["--mount", &here, "--", "pwd"][..]].concat(), 0, &format!("{here}\n"));
    assert!(wharf.run(&["create", "box", "--isolation", "none", "--disk", "5M"]).status.success());
    let about = inspected(&wharf).to_string();
    assert!(about.contains("the workspace may take 5242880 bytes on disk\""), "{about}");
}

#[test]
fn without_a_private_root_what_needs_one_is_named() {
    let wharf = Wharf::new();
    let mut command = Command::new("unshare");
    command.args(["--user", "--map-root-user", "sh", "-c"]);
    command.args(["echo 0 > /proc/sys/user/max_mnt_namespaces && exec \"$@\"", "sh"]);
    let run = ["run", "--isolation", "best-effort", "--shm-size", "8M", "--system", "writable", "--", "true"];
    let called = wharf.command(&run);
    let output = command.arg(called.get_program()).args(called.get_args()).output().unwrap();
    let said = told(&output);
    for named in ["no size of /dev/shm: needs a private root", "no writable system: needs a private root"] {
        assert!(said.contains(named), "{named}: {said}");
    }
}

#[test]
fn a_sandbox_that_had_a_wall_is_not_started_without_it() {
    let wharf = Wharf::new();
    wharf.check(&["create", "box", "--isolation", "best-effort"], 0, "box\n");
    wharf.check(&["suspend", "box"], 0, "box\n");
    let without_pid_namespaces = |arguments: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(["--user", "--map-root-user", "sh", "-c"]);
        command.args(["echo 0 > /proc/sys/user/max_pid_namespaces && exec \"$@\"", "sh"]);
        let called = wharf.command(arguments);
        command.arg(called.get_program()).args(called.get_args()).output().unwrap()
    };
    let output = without_pid_namespaces(&["run", "--isolation", "best-effort", "--", "true"]);
    assert!(output.status.success() && told(&output).contains("no PID namespace"), "{output:?}");
    let output = without_pid_namespaces(&["resume", "box"]);
    assert!(output.status.code() == Some(125) && told(&output).contains("could not start"), "{output:?}");
    wharf.check(&["resume", "box"], 0, "box\n");
}

#[test]
fn a_sandbox_without_its_loader_starts_again_or_says_what_is_missing() {
    let wharf = Wharf::new();
    wharf.check(&["create", "box"], 0, "box\n");
    wharf.run(&["exec", "box", "--", "rm", "-rf", "/usr/lib64"]);
    wharf.check(&["suspend", "box"], 0, "box\n");
    let output = wharf.run(&["resume", "box"]);
    // A sandboxd that is not static needs the system's loader.
    let said = told(&output);
    assert!(output.status.success() || said.contains("`sandboxd`: No such file or directory"), "{said}");
    assert!(!said.contains("hint: `--isolation"), "{said}");
}

#[test]
fn flags_of_one_runtime_are_wrong_usage_with_the_other() {
    let wharf = Wharf::new();
    for wrong in [&["run", "--start-timeout", "1ms", "--", "true"][..], &["--context", "x", "ls"], &["ls", "-n", "x"]] {
        let output = wharf.run(wrong);
        assert_eq!(output.status.code(), Some(2), "{wrong:?}: {}", told(&output));
        assert!(told(&output).contains("is for sandboxes in a cluster: add `--runtime kubernetes`"), "{wrong:?}");
    }
    // Our tests give a state directory.
    let output = wharf.run(&["--runtime", "kubernetes", "ls"]);
    assert_eq!(output.status.code(), Some(2), "{}", told(&output));
    assert!(told(&output).contains("`--state-dir` is for sandboxes on this machine"), "{}", told(&output));
}

#[test]
fn what_is_unprotected_without_being_protected_is_told() {
    let wharf = Wharf::new();
    let directory = tempfile::tempdir().unwrap();
    assert!(Command::new("git").args(["init", "-q"]).arg(directory.path()).status().unwrap().success());
    let mount = directory.path().display().to_string();
    let run = |unprotect: &str| told(&wharf.run(&["run", "--mount", &mount, "--unprotect", unprotect, "--", "true"]));
    for wrong in ["nonsense", ".git/confg"] {
        let said = run(wrong);
        assert!(said.contains(&format!("warning: `--unprotect {wrong}` names nothing that is protected")), "{said}");
    }
    for right in ["all", ".git/config", ".git", "/workspace/.vscode", ".vscode/"] {
        assert_eq!(run(right), "", "{right}");
    }
}

#[test]
fn what_is_missing_is_told_again_when_a_sandbox_is_resumed() {
    let wharf = Wharf::new();
    assert!(wharf.run(&["create", "box", "--isolation", "none"]).status.success());
    wharf.check(&["suspend", "box"], 0, "box\n");
    let resumed = wharf.run(&["resume", "box"]);
    assert!(told(&resumed).contains("warning: there are no walls"), "{resumed:?}");
}

/// Whoever lists what runs in a sandbox, or copies from it, has a terminal that obeys.
#[test]
fn names_that_are_made_inside_command_no_terminal() {
    const ODD: &str = "e\u{1b}]0;title\u{7}\u{1b}[31m\u{9b}1mf";
    let wharf = Wharf::new();
    wharf.check(&["create", "box"], 0, "box\n");
    let (inside, here) = (format!("/tmp/d/{ODD}"), tempfile::tempdir().unwrap());
    wharf.check(&["exec", "box", "--", "mkdir", "-p", &inside, "/tmp/g"], 0, "");
    wharf.check(&["exec", "box", "--", "touch", &format!("/tmp/g/{ODD}")], 0, "");
    call(&wharf, "/v1/sessions", &json!({ "working_dir": inside }));
    wharf.run(&["exec", "-d", "box", "--", "sleep", &inside]);
    // A directory is in the place of the file.
    fs::create_dir_all(here.path().join("g").join(ODD).join("x")).unwrap();
    let target = here.path().display().to_string();
    for (arguments, shows) in [
        (&["ps", "box"][..], "/tmp/d/e\\u{1b}]0;title\\u{7}"),
        (&["-o", "json", "ps", "box"], "/tmp/d/e\\u001b]0;title\\u0007\\u001b[31m\\u009b1mf"),
        (&["inspect", "box"], "\\u009b1mf"),
        (&["cp", "box:/tmp/g", &target], "/g/e\\u{1b}]0;title"),
        (&["cp", &format!("box:{inside}x"), &target], "e\\u{1b}]0;title"),
    ] {
        // As to a terminal: to all else no sequences are written at all.
        let output = wharf.command(arguments).env("CLICOLOR_FORCE", "1").output().unwrap();
        let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        assert!(said.contains(shows), "{arguments:?}: {said:?}");
        assert!(!said.chars().any(|each| each.is_control() && each != '\n'), "{arguments:?}: {said:?}");
    }
}

#[test]
fn an_exec_in_a_sandbox_that_ends_meanwhile_says_that_it_has() {
    let wharf = Wharf::new();
    wharf.check(&["create", "box"], 0, "box\n");
    let about = inspected(&wharf);
    let (pid, socket) = (about["pid"].to_string(), about["socket"].as_str().unwrap().to_owned());
    let signal = |name: &str| assert!(Command::new("kill").args(["-s", name, &pid]).status().unwrap().success());
    // It takes the connection, and answers nothing.
    signal("STOP");
    let exec = wharf.command(&["exec", "box", "--", "true"]).stderr(Stdio::piped()).spawn().unwrap();
    until("it has connected", || {
        fs::read_to_string("/proc/net/unix").unwrap().lines().filter(|line| line.ends_with(&socket)).count() > 1
    });
    signal("KILL");
    let output = exec.wait_with_output().unwrap();
    let said = told(&output);
    assert_eq!(output.status.code(), Some(125), "{said}");
    assert!(said.contains("sandbox `box` is not running: its processes have ended"), "{said}");
}
