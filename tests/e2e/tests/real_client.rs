//! The real, unmodified client of OpenHands 0.62 drives the built sandboxd.

use std::process::Command;

#[test]
fn the_real_client_connects_acts_copies_retries_and_reads_our_errors() {
    let venv = Command::new(wharf_e2e::file("../../scripts/openhands-venv")).output().expect("bash is needed");
    let python = String::from_utf8(venv.stdout).expect("a path");
    assert!(venv.status.success(), "scripts/openhands-venv: {}", String::from_utf8_lossy(&venv.stderr));
    let output = Command::new(python.trim())
        .arg(wharf_e2e::file("real_client.py"))
        .arg(wharf_e2e::program("wharf-sandboxd"))
        .current_dir("/")
        .output()
        .expect("unshare is needed: apt-get install util-linux, and run as root");
    let (said, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}\n{errors}");
    assert_eq!(said.lines().filter(|line| line.starts_with("ok: ")).count(), 7, "{said}");
}
