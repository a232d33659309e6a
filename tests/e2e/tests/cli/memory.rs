//! Who is killed for want of memory is told so.

use super::Wharf;

const TAKE_TOO_MUCH: &str = "head -c 400M /dev/zero | tail";

#[test]
fn a_command_that_is_killed_for_memory_is_told_why() {
    let wharf = Wharf::new();
    // The program itself, and a shell whose program it is.
    for command in [&["sh", "-c", TAKE_TOO_MUCH][..], &["perl", "-e", "$x = 'x' x (400 << 20)"]] {
        let output = wharf.run(&[&["run", "--memory", "100M", "--"], command].concat());
        let told = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(137), "{command:?}: {told}");
        assert!(told.contains("the command was killed: the sandbox has no more memory"), "{command:?}: {told}");
    }
}

#[test]
fn a_command_that_is_killed_otherwise_is_not_said_to_have_lacked_memory() {
    let wharf = Wharf::new();
    wharf.check(&["create", "box", "--memory", "100M"], 0, "box\n");
    assert_eq!(wharf.run(&["exec", "box", "--", "sh", "-c", TAKE_TOO_MUCH]).status.code(), Some(137));
    let output = wharf.run(&["exec", "box", "--", "sh", "-c", "kill -9 $$"]);
    let told = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(137), "{told}");
    assert!(!told.contains("memory"), "{told}");
}
