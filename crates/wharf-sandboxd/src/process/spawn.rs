//! The one place that starts a child.

use std::{
    ffi::OsString,
    io::{self, BufRead, Read, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{
            fs::{OpenOptionsExt, PermissionsExt},
            process::CommandExt,
            process::ExitStatusExt,
        },
    },
    path::{Path, PathBuf},
    time::Duration,
};

use rustix::process::{Pid, PidfdFlags, Signal};
use tokio::{
    io::{Interest, unix::AsyncFd},
    process::{ChildStderr, ChildStdin, ChildStdout},
    signal::unix::SignalKind,
};
use wharf_protocol::Environment;

use super::{
    door::{self, Passing},
    reaper,
    tree::{ProcessId, Tree},
    users::User,
};
use crate::pty;

pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// What a child has for standard input, output and error.
#[derive(Debug)]
pub enum Stdio {
    /// The child's side of a terminal, which becomes its controlling one.
    Terminal(OwnedFd),
    /// Pipes for output and error; a pipe for input, or `/dev/null`.
    Pipes { stdin: bool },
}

/// A child to be. What else it has is stated in [`door`].
#[derive(Debug)]
pub struct Spawn<'a> {
    /// The program, found in the child's `PATH` unless it has a slash, and its arguments.
    pub argv: &'a [OsString],
    pub user: &'a User,
    pub environment: &'a Environment,
    pub working_dir: &'a Path,
    pub stdio: Stdio,
    /// Files that the child keeps, under the same numbers.
    pub inherited: Vec<OwnedFd>,
    /// To which the child and all that it starts will belong.
    pub tree: &'a Tree,
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exit {
    pub code: Option<i32>,
    pub signal: Option<i32>,
}

impl Exit {
    /// As a shell reports its child: the code, or 128 and the signal.
    pub fn shell_code(self) -> i32 {
        self.code.or(self.signal.map(|signal| 128 + signal)).unwrap_or(-1)
    }
}

/// A running child. Dropping it leaves the process running.
#[derive(Debug)]
pub struct Child {
    child: std::process::Child,
    id: ProcessId,
    tree: Tree,
    stdin: Option<ChildStdin>,
    stdout: Option<ChildStdout>,
    stderr: Option<ChildStderr>,
    ending: Ending,
    exit: Option<Exit>,
}

/// What wakes us when a child may have ended.
#[derive(Debug)]
enum Ending {
    Descriptor(AsyncFd<OwnedFd>),
    /// Before Linux 5.3.
    Signal(tokio::signal::unix::Signal),
}

impl Ending {
    fn of(id: ProcessId) -> io::Result<Self> {
        let pid = Pid::from_raw(id.pid).ok_or_else(|| io::Error::other("a process has a number"))?;
        // The child is not reaped yet, so the number is its own.
        match rustix::process::pidfd_open(pid, PidfdFlags::empty()) {
            Ok(descriptor) => pty::registered(descriptor, Interest::READABLE).map(Self::Descriptor),
            Err(_) => tokio::signal::unix::signal(SignalKind::child()).map(Self::Signal),
        }
    }

    /// # Cancel safety
    ///
    /// Safe: the next call wakes for what a dropped one has missed, if the child is looked at in between.
    async fn wake(&mut self) -> io::Result<()> {
        match self {
            Self::Descriptor(descriptor) => descriptor.readable().await?.clear_ready(),
            Self::Signal(signal) => drop(signal.recv().await),
        }
        Ok(())
    }
}

impl Child {
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.id.pid).expect("a process has a number")
    }

    /// The pipe to the child's input, if it has one; only once.
    pub fn take_stdin(&mut self) -> Option<ChildStdin> {
        self.stdin.take()
    }

    /// The pipes from the child's output and error, if it has them; only once.
    pub fn take_outputs(&mut self) -> (Option<ChildStdout>, Option<ChildStderr>) {
        (self.stdout.take(), self.stderr.take())
    }

    /// Waits for the process's end; safe to drop and to call again.
    pub async fn wait(&mut self) -> Exit {
        loop {
            if let Some(exit) = self.exit {
                return exit;
            }
            match reaper::try_reap(&mut self.child, self.id) {
                Ok(None) => {
                    if let Err(error) = self.ending.wake().await {
                        tracing::error!(%error, pid = self.id.pid, "cannot hear of a child's end");
                        tokio::time::sleep(Duration::from_millis(50)).await;
                    }
                }
                Ok(Some(status)) => self.exit = Some(Exit { code: status.code(), signal: status.signal() }),
                Err(error) => {
                    tracing::error!(%error, pid = self.id.pid, "could not wait for a child");
                    self.exit = Some(Exit { code: None, signal: None });
                }
            }
        }
    }

    /// Ends the child's whole tree ([`Tree::end`]); gives how the child ended. One that the kernel cannot end counts as
    /// killed.
    pub async fn end(&mut self, grace: Duration) -> Exit {
        let tree = self.tree.clone();
        let mut exit = None;
        let all_gone = {
            let ended = tree.end(grace);
            tokio::pin!(ended);
            loop {
                tokio::select! {
                    biased;
                    all_gone = &mut ended => break all_gone,
                    ended = self.wait(), if exit.is_none() => exit = Some(ended),
                }
            }
        };
        match exit {
            Some(exit) => exit,
            // No process of the tree is left: the child is a zombie at most.
            None if all_gone => self.wait().await,
            None => Exit { code: None, signal: Some(Signal::KILL.as_raw()) },
        }
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        if self.exit.is_none() {
            reaper::abandon(self.id);
        }
    }
}

/// The program that `name` stands for, as a shell finds it.
pub fn find_program(name: &str, path: &str) -> Option<PathBuf> {
    let executable = |file: &Path| {
        file.metadata().is_ok_and(|metadata| metadata.is_file() && metadata.permissions().mode() & 0o111 != 0)
    };
    if name.contains('/') {
        return Some(PathBuf::from(name)).filter(|file| executable(file));
    }
    path.split(':').map(|directory| Path::new(directory).join(name)).find(|file| executable(file))
}

/// Why a program could not be started, in the words that bash has for it.
pub fn refusal(program: &str, path: &str, working_dir: &Path, error: &io::Error) -> String {
    let file = find_program(program, path);
    let named = program.contains('/') || file.is_some();
    let file = working_dir.join(file.as_deref().unwrap_or(Path::new(program)));
    match error.kind() {
        _ if named && file.is_dir() => "Is a directory".to_owned(),
        io::ErrorKind::NotFound if named && file.exists() => match interpreter(&file) {
            Some(interpreter) => format!("{interpreter}: bad interpreter: No such file or directory"),
            None => "cannot execute: required file not found".to_owned(),
        },
        io::ErrorKind::NotFound if named => "No such file or directory".to_owned(),
        io::ErrorKind::NotFound => "there is no such program in this sandbox".to_owned(),
        io::ErrorKind::PermissionDenied => "Permission denied".to_owned(),
        io::ErrorKind::NotADirectory => "Not a directory".to_owned(),
        _ => format!("could not start the program: {error}"),
    }
}

/// What the first line of a script names, as a terminal shows it.
fn interpreter(script: &Path) -> Option<String> {
    let mut line = String::new();
    // By now it may be a pipe.
    let file = std::fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(script).ok()?;
    io::BufReader::new(file.take(256)).read_line(&mut line).ok()?;
    let words = line.strip_prefix("#!")?.trim_end_matches('\n').replace('\r', "^M");
    words.split_whitespace().next().map(str::to_owned)
}

/// A file in memory that only its descriptor names.
///
/// # Errors
///
/// When the kernel has no memory for it.
pub fn memory_file(name: &str, text: &str) -> io::Result<OwnedFd> {
    let file = rustix::fs::memfd_create(name, rustix::fs::MemfdFlags::CLOEXEC)?;
    let mut file = std::fs::File::from(file);
    file.write_all(text.as_bytes())?;
    Ok(file.into())
}

/// The path under which a child that inherits `file` opens it.
pub fn inherited_path(file: &OwnedFd) -> String {
    format!("/proc/self/fd/{}", file.as_raw_fd())
}

/// Starts a child.
///
/// # Errors
///
/// The operating system's: no such program, no permission, no more processes.
pub fn spawn(spawn: Spawn<'_>) -> io::Result<Child> {
    let (program, arguments) =
        spawn.argv.split_first().ok_or_else(|| io::Error::new(io::ErrorKind::InvalidInput, "no program is named"))?;
    let environment = environment_of(&spawn);
    let path = environment.iter().find(|(name, _)| name == "PATH").map(|(_, value)| value.clone()).unwrap_or_default();
    let file =
        program.to_str().and_then(|program| find_program(program, &path)).unwrap_or_else(|| PathBuf::from(program));
    let mut command = std::process::Command::new(file);
    command.arg0(program).args(arguments).env_clear().envs(environment).current_dir(spawn.working_dir);
    let terminal = match spawn.stdio {
        Stdio::Terminal(slave) => {
            command.stdin(slave.try_clone()?).stdout(slave.try_clone()?).stderr(slave);
            true
        }
        Stdio::Pipes { stdin } => {
            command.stdin(if stdin { std::process::Stdio::piped() } else { std::process::Stdio::null() });
            command.stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
            false
        }
    };
    let passing = Passing {
        mark: spawn.tree.mark(),
        terminal,
        kept: spawn.inherited.iter().map(AsRawFd::as_raw_fd).collect(),
        user: spawn.user,
    };
    door::prepare(&mut command, passing);
    let (mut child, id) = reaper::spawn_known(|| command.spawn())?;
    spawn.tree.has_leader(id);
    let started = (|| {
        Ok(Child {
            id,
            tree: spawn.tree.clone(),
            stdin: child.stdin.take().map(ChildStdin::from_std).transpose()?,
            stdout: child.stdout.take().map(ChildStdout::from_std).transpose()?,
            stderr: child.stderr.take().map(ChildStderr::from_std).transpose()?,
            ending: Ending::of(id)?,
            exit: None,
            child,
        })
    })();
    if started.is_err() {
        // Out of descriptors, for instance: nobody would know of it.
        let _ = reaper::while_held(id, |pid| rustix::process::kill_process_group(pid, Signal::KILL));
        reaper::abandon(id);
    }
    started
}

/// What a login gives, then what was asked for, then our own.
fn environment_of(spawn: &Spawn<'_>) -> Vec<(String, String)> {
    let user = spawn.user;
    let mut environment = Environment::from([
        ("HOME".to_owned(), user.home.display().to_string()),
        ("USER".to_owned(), user.name.clone()),
        ("LOGNAME".to_owned(), user.name.clone()),
        ("SHELL".to_owned(), user.shell.display().to_string()),
        ("PATH".to_owned(), DEFAULT_PATH.to_owned()),
    ]);
    // The locale is the machine's: without it a shell counts bytes where a person sees characters.
    environment.extend(std::env::var("LANG").map(|locale| ("LANG".to_owned(), locale)));
    environment.extend(spawn.environment.clone());
    environment.into_iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_that_cannot_be_started_is_refused_in_the_words_of_bash() {
        let home = tempfile::tempdir().unwrap();
        let script = |name: &str, text: &str| {
            let file = home.path().join(name);
            std::fs::write(&file, text).unwrap();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
            file.display().to_string()
        };
        for (program, words) in [
            (script("crlf", "#!/bin/sh\r\necho x\r\n"), "/bin/sh^M: bad interpreter: No such file or directory"),
            (script("lost", "#!/no/such -x\n"), "/no/such: bad interpreter: No such file or directory"),
            (home.path().display().to_string(), "Is a directory"),
            (home.path().join("none").display().to_string(), "No such file or directory"),
            ("no-such-program".to_owned(), "there is no such program in this sandbox"),
        ] {
            let error = std::process::Command::new(&program).spawn().unwrap_err();
            assert_eq!(refusal(&program, DEFAULT_PATH, Path::new("/"), &error), words, "{program}");
        }
    }
}
