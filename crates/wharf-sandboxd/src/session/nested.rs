//! A shell that knows nothing of marks yet: one that was started in a session's shell, or in its place (`exec bash`).
//!
//! Nothing is exported that would make it mark its prompts, so it is taught: once it waits at its prompt, what the first
//! shell read from its start-up file is typed at it, with a nonce of its own.

use std::fs;

use rustix::process::Pid;

/// What the kernel tells of a process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Image {
    /// When the process began, in ticks since the start of the machine.
    pub(super) began: u64,
    /// Where its program and its stack lie: another place after each `exec`. 0 when we may not know.
    program: u64,
    stack: u64,
}

/// The image of a process that lives.
pub(super) fn image(pid: Pid) -> Option<Image> {
    parse_image(&fs::read_to_string(format!("/proc/{}/stat", pid.as_raw_nonzero())).ok()?)
}

/// proc(5): the name may hold anything, also `)`; fields count from 1, and the state behind the name is the third.
fn parse_image(stat: &str) -> Option<Image> {
    let fields: Vec<&str> = stat.rsplit_once(") ")?.1.split(' ').collect();
    let number = |field: usize| fields.get(field - 3)?.trim().parse().ok();
    Some(Image { began: number(22)?, program: number(26)?, stack: number(28)? })
}

/// Whether the process is a bash that reads commands from its terminal.
pub(super) fn is_interactive_bash(pid: Pid) -> bool {
    fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).is_ok_and(|line| reads_commands(&line))
}

fn reads_commands(command_line: &[u8]) -> bool {
    let mut words = command_line.split(|byte| *byte == 0).map(String::from_utf8_lossy);
    let name = words.next().unwrap_or_default();
    if name.rsplit('/').next().unwrap_or_default().trim_start_matches('-') != "bash" {
        return false;
    }
    while let Some(word) = words.next() {
        match &*word {
            "" => {}
            "--rcfile" | "--init-file" | "-o" | "+o" | "-O" | "+O" => {
                words.next();
            }
            "-" | "--" => return words.all(|word| word.is_empty()),
            long if long.starts_with("--") => {}
            short if short.starts_with(['-', '+']) => {
                if short.contains('c') {
                    return false;
                }
                if short.contains('s') {
                    return true;
                }
            }
            _script => return false,
        }
    }
    true
}

/// Now, as the kernel counts when it says when a process began.
pub(super) fn now_in_ticks() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let per_second = rustix::param::clock_ticks_per_second();
    now.tv_sec.unsigned_abs() * per_second + now.tv_nsec.unsigned_abs() * per_second / 1_000_000_000
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bash_that_runs_a_script_reads_no_commands() {
        for (line, reads) in [
            ("bash", true),
            ("-bash", true),
            ("/bin/bash -i", true),
            ("bash --rcfile x -i", true),
            ("bash --norc --noprofile", true),
            ("bash -il", true),
            ("bash -o vi", true),
            ("bash -s a b", true),
            ("bash --", true),
            ("bash x.sh", false),
            ("bash -i x.sh", false),
            ("bash -ic true", false),
            ("bash -- x.sh", false),
            ("zsh", false),
            ("rebash", false),
        ] {
            let line: Vec<u8> = line.split(' ').flat_map(|word| [word.as_bytes(), b"\0"].concat()).collect();
            assert_eq!(reads_commands(&line), reads, "{}", String::from_utf8_lossy(&line));
        }
    }

    #[test]
    fn an_image_is_read_whatever_the_name() {
        let stat = "7 (a) R 1 (b) S 3 4 5 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 777 9 10 11 26 27 28 29\n";
        assert_eq!(parse_image(stat), Some(Image { began: 777, program: 26, stack: 28 }));
        let ourselves = rustix::process::getpid();
        assert_eq!(image(ourselves), image(ourselves));
        assert!(image(ourselves).unwrap().began <= now_in_ticks());
    }
}
