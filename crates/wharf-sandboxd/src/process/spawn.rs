//! The one place that starts a child.

use std::{
    ffi::OsString,
    io::{self, Write},
    os::{
        fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd},
        unix::{fs::PermissionsExt, process::CommandExt, process::ExitStatusExt},
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::{Mode, OFlags},
    io::FdFlags,
    process::Pid,
};
use tokio::process::{ChildStderr, ChildStdin, ChildStdout};
use wharf_protocol::Environment;

use super::{reaper, tree::TreeId, users::User};

pub const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The kernel kills what an agent runs before it kills sandboxd.
const OOM_SCORE: &[u8] = b"300";

/// What a child has for standard input, output and error.
#[derive(Debug)]
pub enum Stdio {
    /// The child's side of a terminal, which becomes its controlling one.
    Terminal(OwnedFd),
    /// Pipes for output and error; a pipe for input, or `/dev/null`.
    Pipes { stdin: bool },
}

/// A child to be. It gets a session of its own and nothing of our environment or files.
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
    /// By which all that the child starts is found again.
    pub tree: TreeId,
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
    child: tokio::process::Child,
    pid: Pid,
    tree: TreeId,
}

impl Child {
    pub fn pid(&self) -> Pid {
        self.pid
    }

    pub fn tree(&self) -> TreeId {
        self.tree
    }

    /// The pipe to the child's input, if it has one; only once.
    pub fn take_stdin(&mut self) -> Option<ChildStdin> {
        self.child.stdin.take()
    }

    /// The pipes from the child's output and error, if it has them; only once.
    pub fn take_outputs(&mut self) -> (Option<ChildStdout>, Option<ChildStderr>) {
        (self.child.stdout.take(), self.child.stderr.take())
    }

    /// Waits for the process's end; safe to drop and to call again.
    pub async fn wait(&mut self) -> Exit {
        match self.child.wait().await {
            Ok(status) => {
                reaper::forget(self.pid);
                Exit { code: status.code(), signal: status.signal() }
            }
            Err(error) => {
                tracing::error!(%error, pid = self.pid.as_raw_nonzero(), "could not wait for a child");
                Exit { code: None, signal: None }
            }
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
    let kept: Vec<RawFd> = spawn.inherited.iter().map(AsRawFd::as_raw_fd).collect();
    let identity = needs_other_identity(spawn.user).then(|| Ids::of(spawn.user));
    before_exec(&mut command, spawn.tree, terminal, kept, identity);
    let mut command = tokio::process::Command::from(command);
    let child = reaper::spawn_known(|| command.spawn())?;
    let pid = child.id().and_then(|pid| Pid::from_raw(pid.cast_signed()));
    let pid = pid.ok_or_else(|| io::Error::other("the child ended before it was known"))?;
    Ok(Child { child, pid, tree: spawn.tree })
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

fn needs_other_identity(user: &User) -> bool {
    rustix::process::geteuid().is_root() && user.uid != 0
}

/// Ids as numbers, made ready before the fork: nothing may be allocated after it.
struct Ids {
    uid: rustix::process::Uid,
    gid: rustix::process::Gid,
    groups: Vec<rustix::process::Gid>,
}

impl Ids {
    fn of(user: &User) -> Self {
        Self {
            uid: rustix::process::Uid::from_raw(user.uid),
            gid: rustix::process::Gid::from_raw(user.gid),
            groups: user.groups.iter().map(|gid| rustix::process::Gid::from_raw(*gid)).collect(),
        }
    }
}

#[allow(unsafe_code, reason = "work between fork and exec")]
fn before_exec(
    command: &mut std::process::Command,
    tree: TreeId,
    terminal: bool,
    kept: Vec<RawFd>,
    identity: Option<Ids>,
) {
    let prepare = move || -> io::Result<()> {
        rustix::process::setsid()?;
        // Where the kernel keeps no such limit, a tree is found by its parents and sessions alone.
        let _ = tree.mark_this_process();
        if terminal {
            rustix::process::ioctl_tiocsctty(rustix::stdio::stdin())?;
        }
        for file in &kept {
            // SAFETY: the parent holds these files open until the spawn has returned.
            let file = unsafe { BorrowedFd::borrow_raw(*file) };
            rustix::io::fcntl_setfd(file.as_fd(), FdFlags::empty())?;
        }
        if let Ok(file) = rustix::fs::open(c"/proc/self/oom_score_adj", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())
        {
            // Not every place allows it, and nothing depends on it.
            let _ = rustix::io::write(file, OOM_SCORE);
        }
        if let Some(ids) = &identity {
            rustix::thread::set_thread_groups(&ids.groups)?;
            rustix::thread::set_thread_res_gid(ids.gid, ids.gid, ids.gid)?;
            rustix::thread::set_thread_res_uid(ids.uid, ids.uid, ids.uid)?;
        }
        Ok(())
    };
    // SAFETY: only system calls are made, on values made ready before the fork; nothing allocates or takes a lock.
    unsafe { command.pre_exec(prepare) };
}
