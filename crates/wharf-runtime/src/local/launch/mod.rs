//! The launcher: a process of its own, with one thread, that builds a sandbox around itself and becomes sandboxd.
//!
//! ```text
//!  wharf ──spawns──▶ launcher ──forks──▶ init of the sandbox ──exec──▶ sandboxd (PID 1)
//!    ▲                  │  cgroup, user namespace,   new root, second walls
//!    └── Launched ──────┘  PID namespace
//! ```
//!
//! As root, the mounts are made by root of the host before the process enters the sandbox's user namespace, so nothing in
//! there has power over them. As an ordinary user the user namespace comes first.

mod below;
mod dev;
mod door;
mod ids;
mod init;
mod mounts;
mod proc;
mod root;
mod walls;

use std::{
    fs::File,
    io::{self, Read, Write},
    os::unix::fs::OpenOptionsExt,
    process::ExitCode,
};

use rustix::thread::UnshareFlags;
use wharf_protocol::Isolation;

use self::{
    ids::enter_user_namespace,
    init::become_sandboxd,
    walls::{Failure, Own, Part, Walls},
};
use super::{
    cgroup,
    plan::{Launched, Plan},
    sys::{self, Forked},
};

/// Where the sandbox finds what belongs to Wharf.
const HOUSE: &str = ".wharf";
/// In the house: the file in which the kernel counts what it kills in the sandbox for want of memory.
const MEMORY_EVENTS: &str = "memory-events";
const SOCKET_INSIDE: &str = "/.wharf/run/api.sock";

/// The entry of the launcher process: reads a plan from standard input, answers on standard output.
///
/// Must be called before any thread is started.
pub fn launch_main() -> ExitCode {
    let answer = match launch() {
        Ok(started) => started,
        Err(failure) => Launched::Failed { part: failure.part, reason: failure.source.to_string() },
    };
    let failed = matches!(answer, Launched::Failed { .. });
    let text = serde_json::to_string(&answer).unwrap_or_default();
    // Without a reader nobody wants the answer.
    let _ = io::stdout().write_all(text.as_bytes());
    if failed { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn launch() -> Result<Launched, Failure> {
    door::enter()?;
    let mut text = String::new();
    io::stdin().read_to_string(&mut text).part("launcher")?;
    let plan: Plan = serde_json::from_str(&text).map_err(io::Error::other).part("launcher")?;
    let mut walls = Walls { isolation: plan.isolation, report: Vec::new() };
    let limited = cgroup::enter(&plan.cgroup, &plan.bounds);
    match &limited {
        Ok(()) => walls.stands("cgroup", None),
        Err(error) => {
            let note = format!("this machine delegates no control groups ({error}): resource limits stand in for them");
            walls.stands("cgroup", Some(note));
        }
    }
    let log = File::options().create(true).append(true).mode(0o600).open(&plan.log).part("log")?;
    let (ready, ready_child) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).part("launcher")?;
    let (errors, errors_child) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).part("launcher")?;
    let mut ids = None;
    let mut own = Own {
        cgroup: limited.is_ok(),
        memory_events: limited.is_ok().then(|| cgroup::memory_events(&plan.cgroup)).flatten(),
        mounts: false,
        processes: false,
    };
    if plan.isolation != Isolation::None {
        ids = enter_user_namespace(&plan, &mut walls)?;
        own.mounts = walls.namespace("mount namespace", UnshareFlags::NEWNS)?;
        if own.mounts {
            own.processes = walls.namespace("PID namespace", UnshareFlags::NEWPID)?;
        } else {
            let without = "needs a mount namespace, for a `/proc` of its own";
            walls.missing("PID namespace", io::Error::other(without))?;
        }
    }
    match sys::fork().part("launcher")? {
        Forked::Child => {
            drop((ready, errors));
            let Err(failure) = become_sandboxd(&plan, &mut walls, ids, &own, &log, ready_child, &errors_child);
            let failed = Launched::Failed { part: failure.part, reason: failure.source.to_string() };
            let mut errors = File::from(errors_child);
            let _ = errors.write_all(serde_json::to_string(&failed).unwrap_or_default().as_bytes());
            std::process::exit(1);
        }
        Forked::Parent(init) => {
            drop((ready_child, errors_child));
            let mut told = String::new();
            File::from(errors).read_to_string(&mut told).part("launcher")?;
            // The init process tells what stands, or what failed; its end closes the pipe.
            match serde_json::from_str::<Launched>(&told) {
                Ok(Launched::Started { report, private_root, .. }) => {
                    let mut byte = [0];
                    let count = File::from(ready).read(&mut byte).part("sandboxd")?;
                    if count == 0 {
                        let reason = io::Error::other("it ended before it listened; its log says why");
                        return Err(Failure { part: "sandboxd".to_owned(), source: reason });
                    }
                    Ok(Launched::Started { pid: init.as_raw_nonzero().get(), report, private_root })
                }
                Ok(failed @ Launched::Failed { .. }) => Ok(failed),
                Err(error) => Err(Failure { part: "launcher".to_owned(), source: io::Error::other(error) }),
            }
        }
    }
}
