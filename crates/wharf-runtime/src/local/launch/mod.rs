//! The launcher: a process of its own, with one thread, that builds a sandbox around itself and becomes sandboxd.
//!
//! ```text
//!  wharf ──spawns──▶ launcher ──forks──▶ init of the sandbox ──exec──▶ sandboxd (PID 1)
//!    ▲                  │  cgroup, user namespace,   new root, second walls
//!    └── Launched ──────┘  PID namespace
//! ```
//!
//! Both end when wharf does, until sandboxd is bound: see `launcher`.
//!
//! As root, the mounts are made by root of the host before the process enters the sandbox's user namespace, so nothing in
//! there has power over them. As an ordinary user the user namespace comes first.

mod accounts;
mod base;
mod below;
mod dev;
mod door;
mod ids;
mod init;
mod mounts;
mod proc;
mod root;
mod sysfs;
pub(super) mod system;
mod walls;

use std::{
    fs::File,
    io::{self, Read, Write},
    os::{
        fd::OwnedFd,
        unix::fs::{OpenOptionsExt, PermissionsExt},
    },
    path::Path,
    process::ExitCode,
};

use rustix::{
    net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType},
    process::WaitOptions,
    thread::UnshareFlags,
};
use wharf_protocol::Isolation;

use self::{
    base::make_base,
    ids::{Ids, enter_user_namespace, enter_with_all},
    init::{Files, become_sandboxd},
    walls::{Failure, LeftOut, Own, Part, Walls},
};
use super::{
    cgroup,
    plan::{GO_ON, Launched, Order, Plan},
    removal::remove_tree,
    sys::{self, Forked},
};

/// Where the sandbox finds what belongs to Wharf.
const HOUSE: &str = ".wharf";
/// In the house: the file in which the kernel counts what it kills in the sandbox for want of memory.
const MEMORY_EVENTS: &str = "memory-events";
/// In the house: what the sandbox keeps on disk besides its workspace, for sandboxd to count.
const DISK: &str = "disk";

/// The entry of the launcher process: reads a plan from standard input, answers on standard output.
///
/// Must be called before any thread is started.
pub fn launch_main() -> ExitCode {
    let answer = told(launch());
    let failed = matches!(answer, Launched::Failed { .. });
    tell(&answer);
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

/// Tells wharf how far we are.
fn tell(launched: &Launched) {
    let mut line = serde_json::to_string(launched).unwrap_or_default();
    line.push('\n');
    // Without a reader nobody wants the answer.
    let _ = io::stdout().write_all(line.as_bytes()).and_then(|()| io::stdout().flush());
}

fn launch() -> Result<Launched, Failure> {
    door::enter()?;
    let mut text = String::new();
    io::stdin().read_line(&mut text).part("launcher")?;
    let plan = match serde_json::from_str(&text).map_err(io::Error::other).part("launcher")? {
        Order::Build(plan) => *plan,
        Order::MakeBase(plan) => return make_base(&plan).map(|()| Launched::Done),
        Order::Remove { path, subordinate } => {
            enter_with_all(subordinate).part("user namespace")?;
            return remove_tree(&path).part("removal").map(|()| Launched::Done);
        }
    };
    let listener = listening_socket(&plan.socket).part("socket")?;
    let mut walls = Walls { isolation: plan.isolation, stood: plan.stood.clone(), report: Vec::new() };
    let limited = cgroup::enter(&plan.cgroup, &plan.bounds);
    match &limited {
        Ok(()) => walls.stands("cgroup", None),
        Err(error) => {
            let note = format!(
                "this machine delegates no control groups ({error}): memory is bounded for each process alone, CPUs are not"
            );
            walls.stands("cgroup", Some(note));
            if plan.bounds.cpu_millis.is_some() {
                let reason = format!("needs control groups, and this machine delegates none ({error})");
                walls.missing("limit of CPUs", io::Error::other(reason))?;
            }
        }
    }
    let memory_events = limited.is_ok().then(|| cgroup::memory_events(&plan.cgroup)).flatten();
    let own = Own { cgroup: limited.is_ok(), memory_events, namespaces: false, mounts: false, processes: false };
    if plan.isolation == Isolation::BestEffort {
        return as_good_as_it_gets(&plan, &listener, &walls, &own);
    }
    build(&plan, &listener, walls, own, &LeftOut::default())
}

/// Tries with fewer and fewer walls, each time in a process of its own: most of what is done for them cannot be undone.
///
/// That a namespace can be entered does not mean that it can be used: in a container a filter may refuse `sethostname`, and
/// the kernel a new `/proc` because parts of the old one are covered.
fn as_good_as_it_gets(plan: &Plan, listener: &OwnedFd, walls: &Walls, own: &Own) -> Result<Launched, Failure> {
    let mut left_out = LeftOut::default();
    loop {
        let answer = in_a_process(|| build(plan, listener, walls.clone(), own.clone(), &left_out))?;
        match answer {
            Launched::Failed { part, reason } if left_out.leave_out_more(&part, &reason, &plan.stood) => {}
            answer => return Ok(answer),
        }
    }
}

fn in_a_process(work: impl FnOnce() -> Result<Launched, Failure>) -> Result<Launched, Failure> {
    let (answer, answer_child) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).part("launcher")?;
    let parent = rustix::process::getpid();
    match sys::fork().part("launcher")? {
        Forked::Child => {
            drop(answer);
            sys::end_with_parent(parent).part("launcher")?;
            let text = serde_json::to_string(&told(work())).unwrap_or_default();
            let _ = File::from(answer_child).write_all(text.as_bytes());
            std::process::exit(0);
        }
        Forked::Parent(child) => {
            drop(answer_child);
            let mut text = String::new();
            File::from(answer).read_to_string(&mut text).part("launcher")?;
            rustix::process::waitpid(Some(child), WaitOptions::empty()).part("launcher")?;
            serde_json::from_str(&text).map_err(io::Error::other).part("launcher")
        }
    }
}

/// What a program that only reads the answer has to know.
fn told(launched: Result<Launched, Failure>) -> Launched {
    launched.unwrap_or_else(|failure| Launched::Failed { part: failure.part, reason: failure.source.to_string() })
}

/// Builds the walls and starts sandboxd behind them.
fn build(
    plan: &Plan,
    listener: &OwnedFd,
    mut walls: Walls,
    mut own: Own,
    left_out: &LeftOut,
) -> Result<Launched, Failure> {
    let log = File::options().create(true).read(true).append(true).mode(0o600).open(&plan.log).part("log")?;
    let (ready, ready_child) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).part("launcher")?;
    let (errors, errors_child) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).part("launcher")?;
    let mut ids = Ids::default();
    if plan.isolation != Isolation::None {
        match left_out.namespaces() {
            Some(reason) => walls.missing("namespaces", io::Error::other(reason))?,
            None => {
                own.namespaces = true;
                ids = enter_user_namespace(plan, left_out.root().is_none(), &mut walls)?;
                own.mounts = match left_out.root() {
                    Some(reason) => walls.missing("private root", io::Error::other(reason)).map(|()| false)?,
                    None => walls.namespace("mount namespace", UnshareFlags::NEWNS)?,
                };
                let without = match left_out.processes() {
                    Some(reason) => Some(reason),
                    None if own.mounts => None,
                    None => Some("needs a mount namespace, for a `/proc` of its own".to_owned()),
                };
                own.processes = match without {
                    Some(reason) => walls.missing("PID namespace", io::Error::other(reason)).map(|()| false)?,
                    None => walls.namespace("PID namespace", UnshareFlags::NEWPID)?,
                };
            }
        }
    }
    match sys::fork().part("launcher")? {
        Forked::Child => {
            drop((ready, errors));
            wait_for_word();
            let files = Files { log: &log, listener, ready: ready_child, report: &errors_child };
            let Err(failure) = become_sandboxd(plan, &mut walls, ids, &own, &files);
            let text = serde_json::to_string(&told(Err(failure))).unwrap_or_default();
            let _ = File::from(errors_child).write_all(text.as_bytes());
            std::process::exit(1);
        }
        Forked::Parent(init) => {
            drop((ready_child, errors_child));
            tell(&Launched::Forked { pid: init.as_raw_nonzero().get() });
            let mut told = String::new();
            File::from(errors).read_to_string(&mut told).part("launcher")?;
            // The init process tells what stands, or what failed, or both: sandboxd may still not be executed. Its end closes
            // the pipe.
            let all = serde_json::Deserializer::from_str(&told).into_iter::<Launched>();
            match all.last().unwrap_or_else(|| serde_json::from_str("")) {
                Ok(started @ Launched::Started { .. }) => {
                    let mut byte = [0];
                    let count = File::from(ready).read(&mut byte).part("sandboxd")?;
                    if count == 0 {
                        let reason = io::Error::other("it ended before it listened; its log says why");
                        return Err(Failure { part: "sandboxd".to_owned(), source: reason });
                    }
                    Ok(started)
                }
                Ok(failed @ (Launched::Failed { .. } | Launched::Forked { .. } | Launched::Done)) => Ok(failed),
                Err(error) => Err(Failure { part: "launcher".to_owned(), source: io::Error::other(error) }),
            }
        }
    }
}

/// A socket of its owner alone, in a directory that the sandbox never sees: nobody inside can put another in its place.
fn listening_socket(path: &Path) -> io::Result<OwnedFd> {
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    rustix::net::bind(&socket, &SocketAddrUnix::new(path)?)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(socket)
}

/// Waits until the record names this process; ends it if wharf has ended instead.
fn wait_for_word() {
    let mut byte = [0; GO_ON.len()];
    if io::stdin().read_exact(&mut byte).is_err() {
        std::process::exit(1);
    }
}
