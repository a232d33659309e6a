//! Each command, as a person uses it.

use std::{
    io::Write,
    process::{Command, Stdio},
};

use super::Wharf;

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
fn a_program_that_is_there_and_cannot_be_run_is_told_from_one_that_is_not() {
    let wharf = Wharf::new();
    wharf.check(&["create", "box"], 0, "box\n");
    wharf.check(
        &["exec", "box", "--", "sh", "-c", "echo x > plain; printf '#!/no/such\\n' > lost; chmod +x lost"],
        0,
        "",
    );
    for (program, code, words) in [
        ("/tmp", 126, "Is a directory"),
        ("./plain", 126, "Permission denied"),
        ("./plain/x", 126, "Not a directory"),
        ("./lost", 127, "/no/such: bad interpreter: No such file or directory"),
        ("./none", 127, "No such file or directory"),
        ("no-such-program", 127, "there is no such program in this sandbox"),
    ] {
        let output = wharf.run(&["exec", "box", "--", program]);
        let told = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(code) && told.contains(words), "{program}: {:?} {told}", output.status);
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

#[test]
fn of_a_long_log_the_end_is_shown() {
    let wharf = Wharf::new();
    wharf.check(&["create", "box"], 0, "box\n");
    let found = Command::new("find").arg(wharf.state.path()).args(["-name", "sandboxd.log"]).output().unwrap();
    let log = String::from_utf8(found.stdout).unwrap();
    let mut log = std::fs::OpenOptions::new().append(true).open(log.trim()).unwrap();
    log.write_all("a line of the log\n".repeat(200_000).as_bytes()).unwrap();
    log.write_all(b"the last\n").unwrap();
    let shown = wharf.run(&["logs", "box"]).stdout;
    assert!((1 << 19..=1 << 20).contains(&shown.len()), "{}", shown.len());
    assert!(shown.ends_with(b"the last\n"));
}
