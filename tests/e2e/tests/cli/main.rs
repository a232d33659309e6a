//! The built `wharf`, used as a person would, with real sandboxes.
#![allow(clippy::unwrap_used, reason = "helpers of tests")]

use std::process::{Command, Output, Stdio};

mod basics;
mod copy;
mod escapes;
mod lifecycle;
mod memory;
mod mounts;
mod streams;
mod walls;

/// Somebody without any privilege, whom the machine need not know.
pub(crate) const ORDINARY: u32 = 43_210;

pub(crate) struct Wharf {
    pub(crate) state: tempfile::TempDir,
    /// Copies of the programs; without them they are taken where they were built.
    programs: Option<tempfile::TempDir>,
    ordinary: bool,
}

impl Wharf {
    pub(crate) fn new() -> Self {
        Self { state: tempfile::tempdir().unwrap(), programs: None, ordinary: false }
    }

    pub(crate) fn as_ordinary_user() -> Self {
        let mut wharf = Self::with_programs_of_its_own();
        std::os::unix::fs::chown(wharf.state.path(), Some(ORDINARY), Some(ORDINARY)).expect("run the tests as root");
        wharf.ordinary = true;
        wharf
    }

    /// Its processes are known from those of other tests by the files that they execute.
    pub(crate) fn with_programs_of_its_own() -> Self {
        let (state, programs) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let open = <std::fs::Permissions as std::os::unix::fs::PermissionsExt>::from_mode(0o755);
        std::fs::set_permissions(programs.path(), open).unwrap();
        for name in ["wharf", "wharf-sandboxd"] {
            std::fs::copy(wharf_e2e::program(name), programs.path().join(name)).unwrap();
        }
        Self { state, programs: Some(programs), ordinary: false }
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = match &self.programs {
            None => Command::new(wharf_e2e::program("wharf")),
            Some(programs) if !self.ordinary => Command::new(programs.path().join("wharf")),
            Some(programs) => {
                let mut command = Command::new("setpriv");
                let id = ORDINARY.to_string();
                command.args(["--reuid", &id, "--regid", &id, "--clear-groups", "--inh-caps=-all"]);
                command.arg(programs.path().join("wharf")).env("HOME", self.state.path()).current_dir("/");
                command
            }
        };
        command.arg("--state-dir").arg(self.state.path()).args(arguments).stdin(Stdio::null());
        command
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
