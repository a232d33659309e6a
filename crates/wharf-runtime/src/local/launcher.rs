//! The side of the program that starts a launcher: it says each step, so that the record can name who takes it before.
//!
//! ```text
//!  wharf                                launcher                 init of the sandbox
//!    │ the record names the launcher       │
//!    ├──────────── plan ──────────────────▶│
//!    │◀─────────── forked ─────────────────┤ forks ──────────────────▶│ waits
//!    │ the record names init                                          │
//!    ├──────────── go on ────────────────────────────────────────────▶│ walls, sandboxd
//!    │◀─────────── started ────────────────┤◀────────── ready ────────┤ blank
//!    │ bind                                ends                       │ bound
//! ```
//!
//! What wharf writes to is read by init, and by sandboxd while it is blank: when wharf ends, so do they.

use std::{
    fs::File,
    io::{self, BufRead, BufReader, Write},
    path::Path,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
};

use super::{
    LAUNCH_ARGUMENT,
    plan::{GO_ON, Launched, Order},
};

#[derive(Debug)]
pub(super) struct Launcher {
    child: Child,
    steps: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Launcher {
    /// Starts a launcher, which does nothing before it has a plan.
    pub(super) fn start(program: &Path) -> io::Result<Self> {
        Self::start_with(program, Stdio::null())
    }

    fn start_with(program: &Path, held: Stdio) -> io::Result<Self> {
        let mut child = Command::new(program)
            .arg(LAUNCH_ARGUMENT)
            .env_clear()
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(held)
            .current_dir("/")
            .spawn()?;
        match (child.stdin.take(), child.stdout.take()) {
            (Some(steps), Some(answers)) => Ok(Self { child, steps, answers: BufReader::new(answers) }),
            _ => Err(io::Error::other("it has no pipes")),
        }
    }

    pub(super) fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// Has it build up to the first process of the sandbox.
    pub(super) fn build(&mut self, order: &Order) -> io::Result<Launched> {
        let mut line = serde_json::to_vec(order)?;
        line.push(b'\n');
        self.say(&line)
    }

    /// Lets the first process go on.
    pub(super) fn go_on(&mut self) -> io::Result<Launched> {
        self.say(GO_ON)
    }

    fn say(&mut self, step: &[u8]) -> io::Result<Launched> {
        // One that has ended may have said why before.
        let said = self.steps.write_all(step);
        let mut answer = String::new();
        self.answers.read_line(&mut answer)?;
        said?;
        serde_json::from_str(&answer).map_err(|_| io::Error::other("it ended without an answer"))
    }

    /// Waits for its end, and gives what keeps a blank sandboxd alive.
    pub(super) fn finish(mut self) -> io::Result<ChildStdin> {
        match self.child.wait() {
            // Our caller ignores the end of children, and so do we: the answer has told all.
            Err(error) if error.raw_os_error() == Some(libc::ECHILD) => {}
            ended => drop(ended?),
        }
        Ok(self.steps)
    }
}

/// Has a launcher do something else than to build a sandbox. It holds `held` open until it has ended, also if we end before.
pub(super) fn run_errand(program: &Path, order: &Order, held: File) -> io::Result<Launched> {
    // Where nothing is written, and what its door lets through.
    let mut launcher = Launcher::start_with(program, held.into())?;
    let answer = launcher.build(order);
    launcher.finish()?;
    answer
}
