//! The built `wharf`, used as a person would, with real sandboxes.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::process::{Command, Output, Stdio};

mod basics;
mod copy;
mod escapes;
mod lifecycle;
mod memory;
mod mounts;
mod refusals;
mod streams;
mod walls;

/// Somebody without any privilege, whom the machine need not know.
pub(crate) const ORDINARY: u32 = 43_210;

/// Somebody without any privilege to whom the machine gives subordinate ids, in the mount namespace of each command: the
/// machine's own lists of users stay as they are.
pub(crate) const SUBORDINATE: u32 = 43_211;
/// The first of them, where root's sandboxes get none.
pub(crate) const FIRST_SUBORDINATE: u32 = 31_900 << 16;

/// As whom `wharf` is called.
#[derive(Clone, Copy, PartialEq, Eq)]
enum As {
    Root,
    Ordinary,
    Subordinate,
}

pub(crate) struct Wharf {
    pub(crate) state: tempfile::TempDir,
    /// Copies of the programs; without them they are taken where they were built.
    programs: Option<tempfile::TempDir>,
    who: As,
}

impl Wharf {
    pub(crate) fn new() -> Self {
        Self { state: tempfile::tempdir().unwrap(), programs: None, who: As::Root }
    }

    pub(crate) fn as_ordinary_user() -> Self {
        Self::of(As::Ordinary, ORDINARY)
    }

    /// An ordinary user whose sandboxes have other users too.
    pub(crate) fn with_subordinate_ids() -> Self {
        let wharf = Self::of(As::Subordinate, SUBORDINATE);
        let lists = wharf.lists();
        for (list, line) in [
            ("passwd", format!("sub:x:{SUBORDINATE}:{SUBORDINATE}::/home/sub:/bin/bash")),
            ("group", format!("sub:x:{SUBORDINATE}:")),
            ("subuid", format!("sub:{FIRST_SUBORDINATE}:65536")),
            ("subgid", format!("sub:{FIRST_SUBORDINATE}:65536")),
        ] {
            let there = std::fs::read_to_string(format!("/etc/{list}")).unwrap_or_default();
            std::fs::write(lists.join(list), format!("{there}{line}\n")).unwrap();
        }
        wharf
    }

    fn of(who: As, uid: u32) -> Self {
        let mut wharf = Self::with_programs_of_its_own();
        wharf.who = who;
        std::os::unix::fs::chown(wharf.state.path(), Some(uid), Some(uid)).expect("run the tests as root");
        wharf
    }

    /// Where the lists of users are that the machine has for this one's commands.
    fn lists(&self) -> std::path::PathBuf {
        self.programs.as_ref().unwrap().path().to_owned()
    }

    /// Its processes are known from those of other tests by the files that they execute.
    pub(crate) fn with_programs_of_its_own() -> Self {
        let (state, programs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let open = <std::fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o755);
        std::fs::set_permissions(programs.path(), open).unwrap();
        for name in ["wharf", "wharf-sandboxd"] {
            std::fs::copy(wharf_e2e::program(name), programs.path().join(name)).unwrap();
        }
        Self { state, programs: Some(programs), who: As::Root }
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = match &self.programs {
            None => Command::new(wharf_e2e::program("wharf")),
            Some(programs) => {
                let program = programs.path().join("wharf");
                match self.who {
                    As::Root => Command::new(program),
                    As::Ordinary => self.command_as(Command::new("setpriv"), ORDINARY, &program),
                    As::Subordinate => {
                        let script = "for list in passwd group subuid subgid; do touch /etc/$list && \
                                      mount --bind $0/$list /etc/$list || exit; done; exec \"$@\"";
                        let mut command = Command::new("unshare");
                        command.args(["--mount", "--propagation", "private", "sh", "-c", script]).arg(self.lists());
                        command.arg("setpriv");
                        self.command_as(command, SUBORDINATE, &program)
                    }
                }
            }
        };
        command.arg("--state-dir").arg(self.state.path()).args(arguments).stdin(Stdio::null());
        command
    }

    fn command_as(&self, mut setpriv: Command, uid: u32, program: &std::path::Path) -> Command {
        let id = uid.to_string();
        setpriv.args(["--reuid", &id, "--regid", &id, "--clear-groups", "--inh-caps=-all"]);
        setpriv.arg(program).env("HOME", self.state.path()).current_dir("/");
        setpriv
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().unwrap()
    }

    #[track_caller]
    pub(crate) fn check(&self, arguments: &[&str], code: i32, stdout: &str) {
        let output = self.run(arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {error}");
        assert_eq!(String::from_utf8_lossy(&output.stdout), stdout, "{arguments:?}: {error}");
    }

    /// Runs a script in a throw-away sandbox; gives what it printed.
    #[track_caller]
    pub(crate) fn inside(&self, script: &str) -> String {
        let output = self.run(&["run", "--", "sh", "-c", script]);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

impl Drop for Wharf {
    fn drop(&mut self) {
        self.run(&["rm", "--all"]);
    }
}
