//! The static sandboxd in a root that holds nothing but busybox.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::{
    net::TcpStream,
    path::Path,
    process::{Command, Stdio},
};

use serde_json::{Value, json};

const LARGEST: u64 = 8_000_000;

#[test]
fn it_is_small_and_runs_where_there_is_only_busybox() {
    let binary = wharf_e2e::file("../../target/static/wharf-sandboxd");
    assert!(binary.exists(), "{} is missing: run scripts/build-static", binary.display());
    assert!(std::fs::metadata(&binary).unwrap().len() <= LARGEST);
    let busybox = ["/bin/busybox", "/usr/bin/busybox"].into_iter().find(|path| Path::new(path).exists());
    let busybox = busybox.expect("busybox is missing: apt-get install busybox-static");
    let root = tempfile::tempdir().unwrap();
    for directory in ["bin", "proc", "dev", "tmp", "w"] {
        std::fs::create_dir(root.path().join(directory)).unwrap();
    }
    std::fs::copy(busybox, root.path().join("bin/busybox")).unwrap();
    for applet in ["sh", "ls", "cat"] {
        std::os::unix::fs::symlink("busybox", root.path().join("bin").join(applet)).unwrap();
    }
    std::fs::copy(&binary, root.path().join("sandboxd")).unwrap();
    let port = wharf_e2e::free_port();
    // What a container engine mounts, and nothing else.
    let script = r#"mount -t proc proc "$0/proc"; mount --rbind /dev "$0/dev"
                    exec chroot "$0" /sandboxd "$1" --working-dir /w --username root --user-id 0"#;
    let mut server = Command::new("unshare")
        .args(["--mount", "--pid", "--fork", "--kill-child", "sh", "-c", script])
        .arg(root.path())
        .arg(port.to_string())
        .stderr(Stdio::null())
        .spawn()
        .expect("unshare is missing: apt-get install util-linux");
    while TcpStream::connect(("127.0.0.1", port)).is_err() {
        assert!(server.try_wait().unwrap().is_none(), "the static sandboxd ended");
        std::thread::yield_now();
    }
    let run = |command: &str| -> Value {
        let action = json!({ "action": { "action": "run", "args": { "command": command } } });
        let mut answer = ureq::post(format!("http://127.0.0.1:{port}/execute_action")).send_json(action).unwrap();
        answer.body_mut().read_json().unwrap()
    };
    let answer = run("echo $((6 * 7)) > f; cat f; ls /; (exit 5)");
    assert_eq!(answer["content"], "42\nbin       dev       proc      sandboxd  tmp       w", "{answer}");
    assert_eq!(answer["extras"]["metadata"]["exit_code"], 5, "{answer}");
    assert_eq!(run("cd /tmp && pwd")["extras"]["metadata"]["working_dir"], "/tmp");
    server.kill().unwrap();
    server.wait().unwrap();
}
