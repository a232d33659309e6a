//! The sandbox's first process: the rest of the walls, from inside, and then sandboxd.

use std::{
    fs::File,
    io::{self, Write},
    os::{
        fd::{AsFd, AsRawFd, OwnedFd},
        unix::process::CommandExt,
    },
    path::{Path, PathBuf},
    process::Command,
};

use rustix::{
    process::{Resource, Rlimit},
    thread::{LinkNameSpaceType, UnshareFlags},
};
use wharf_protocol::{Isolation, NetworkMode, SystemAccess};

use super::{
    DISK, HOUSE, MEMORY_EVENTS, door,
    ids::{Ids, Others},
    root::build_root,
    system::System,
    walls::{Failure, Own, Part, Walls},
};
use crate::local::{
    confine,
    plan::{Launched, MOUNT_AT, Plan},
    protection::{PROTECTED_PATHS, PlannedMount},
    sys,
};

/// What sandboxd's log may have.
const LOG_BYTES: u64 = 8 << 20;

/// What is open for the first process.
#[derive(Debug)]
pub(super) struct Files<'a> {
    pub(super) log: &'a File,
    /// Where sandboxd listens.
    pub(super) listener: &'a OwnedFd,
    /// Gets a byte once it does.
    pub(super) ready: OwnedFd,
    /// Gets what stands, or what failed.
    pub(super) report: &'a OwnedFd,
}

/// The part that is missing where the system shall be writable and cannot be.
const WRITABLE_SYSTEM: &str = "writable system";

/// Builds the rest around this process and executes sandboxd; returns only on failure.
pub(super) fn become_sandboxd(
    plan: &Plan,
    walls: &mut Walls,
    mut ids: Ids,
    own: &Own,
    files: &Files<'_>,
) -> Result<std::convert::Infallible, Failure> {
    let Files { log, listener, ready, report } = files;
    rustix::process::setsid().part("launcher")?;
    let confined = plan.isolation != Isolation::None;
    let private_root = confined && own.mounts;
    let mut program = plan.sandboxd.clone();
    let (mut counted, mut is_writable) = (Vec::new(), false);
    if confined && ids.has_others() && !private_root {
        ids = Ids::default();
        walls.falls(
            "user namespace",
            io::Error::other("needs a private root: nothing of the host belongs to its users"),
        )?;
    }
    if own.namespaces {
        build_namespaces(plan, walls)?;
    }
    if private_root {
        let system = build_root(plan, &ids, own)?;
        counted.extend(plan.workspace.is_some().then(|| plan.working_dir.clone()));
        let note = match system {
            System::ReadOnly { reason } => {
                if plan.system == Some(SystemAccess::Writable) {
                    walls.missing(WRITABLE_SYSTEM, io::Error::other(reason.clone()))?;
                }
                format!("the system is read-only ({reason})")
            }
            System::Writable { but } => {
                is_writable = true;
                counted.push(Path::new("/").join(HOUSE).join(DISK));
                let but = but.map(|but| format!("; {but}")).unwrap_or_default();
                format!("what is changed in the system stays in the sandbox{but}")
            }
        };
        walls.stands("private root", Some(note));
        program = Path::new("/").join(HOUSE).join("sandboxd");
    } else if own.namespaces && !walls.tells_of("private root") {
        walls.missing("private root", io::Error::other("needs a mount namespace"))?;
    }
    if !private_root {
        counted.extend(plan.workspace.clone());
        miss_what_needs_a_root(plan, walls)?;
    }
    if let Some(namespace) = &ids.namespace {
        enter(namespace, &ids).part("user namespace")?;
    }
    limit_resources(plan, own).part("resource limits")?;
    walls.stands("resource limits", Some(bounds_note(plan, private_root, is_writable)));
    let secret = rustix::fs::memfd_create("bind-secret", rustix::fs::MemfdFlags::empty()).part("launcher")?;
    let mut secret = File::from(secret);
    secret.write_all(plan.bind_secret.reveal().as_bytes()).part("launcher")?;
    io::Seek::rewind(&mut secret).part("launcher")?;
    if confined {
        rustix::thread::set_no_new_privs(true).part("no new privileges")?;
        let writable = writable(plan, own.mounts, is_writable);
        let note = (!own.mounts).then(|| {
            "the machine's files are seen, and may be changed in the workspace, /tmp, /var/tmp and /dev".to_owned()
        });
        walls.raise("landlock", confine::restrict_files(&writable).map(|partly| partly.or(note)))?;
        walls.raise("capabilities", confine::drop_capabilities(private_root && own.processes).map(|()| None))?;
    } else {
        walls.stands("none", Some("there are no walls: everything runs as you, on your machine".to_owned()));
    }
    // Where our standard input was: wharf holds the other end until sandboxd is bound.
    let maker = rustix::io::fcntl_dupfd_cloexec(io::stdin(), 3).part("launcher")?;
    let mut command = Command::new(&program);
    if let Some(events) = &own.memory_events {
        let inside = Path::new("/").join(HOUSE).join(MEMORY_EVENTS);
        command.arg("serve").arg("--memory-events").arg(if private_root { &inside } else { events });
    } else {
        command.arg("serve");
    }
    for directory in &counted {
        command.arg("--counted").arg(directory);
    }
    command
        .args(["--listen", &format!("fd:{}", listener.as_raw_fd())])
        .args(["--bind-secret-fd", &secret.as_raw_fd().to_string()])
        .args(["--ready-fd", &ready.as_raw_fd().to_string()])
        .args(["--log-bytes", &LOG_BYTES.to_string()])
        .args(["--maker-fd", &maker.as_raw_fd().to_string()])
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("LANG", "C.UTF-8")
        .current_dir("/")
        .stdin(std::process::Stdio::null())
        .stdout(log.try_clone().part("log")?)
        .stderr(log.try_clone().part("log")?);
    if confined {
        // Last: the filter refuses what was needed until here.
        walls.raise("system call filter", confine::filter_system_calls().map(|()| None))?;
    }
    let has_subordinate = ids.others == Others::Subordinate;
    let started = Launched::Started {
        report: walls.report.clone(),
        private_root,
        counted: counted.clone(),
        has_subordinate,
        grouped: own.cgroup,
    };
    let text = serde_json::to_string(&started).map_err(io::Error::other).part("launcher")?;
    rustix::io::write(report, text.as_bytes()).part("launcher")?;
    door::keep_only(&[secret.as_fd(), ready.as_fd(), maker.as_fd(), listener.as_fd()]).part("launcher")?;
    Err(command.exec()).part("sandboxd")
}

/// What is bounded, and how.
fn bounds_note(plan: &Plan, private_root: bool, is_writable: bool) -> String {
    let workspace = plan.workspace.is_some().then_some("the workspace");
    let system = is_writable.then_some("what is changed in the system");
    let counted: Vec<&str> = [workspace, system].into_iter().flatten().collect();
    let on_disk = match counted.as_slice() {
        [] if plan.isolation == Isolation::None => return "nothing is bounded on disk".to_owned(),
        [] => "a single file may take".to_owned(),
        counted => format!("{} may take", counted.join(" and ")),
    };
    if !private_root {
        return format!("{on_disk} {} bytes on disk", plan.bounds.disk_bytes);
    }
    let private = if is_writable { "/tmp, /run and /dev/shm" } else { "/tmp, /home, /root, /var, /run and /dev/shm" };
    format!(
        "{on_disk} {} bytes on disk, {private} together {} in memory",
        plan.bounds.disk_bytes,
        plan.bounds.private_bytes()
    )
}

/// Enters the namespaces that need nothing but themselves.
fn build_namespaces(plan: &Plan, walls: &mut Walls) -> Result<(), Failure> {
    walls.namespace("IPC namespace", UnshareFlags::NEWIPC)?;
    walls.namespace("cgroup namespace", UnshareFlags::NEWCGROUP)?;
    if walls.namespace("UTS namespace", UnshareFlags::NEWUTS)?
        && let Err(error) = rustix::system::sethostname(plan.name.as_bytes())
    {
        walls.missing("host name of its own", error.into())?;
    }
    match plan.network {
        NetworkMode::Host => {
            walls.stands("network namespace", Some("shares the machine's network, as asked".to_owned()));
        }
        NetworkMode::None => {
            if walls.namespace("network namespace", UnshareFlags::NEWNET)?
                && let Err(error) = sys::loopback_up()
            {
                walls.missing("loopback interface", error)?;
            }
        }
    }
    Ok(())
}

/// Enters the sandbox's own user namespace, as whom sandboxd runs.
fn enter(namespace: &OwnedFd, ids: &Ids) -> io::Result<()> {
    use rustix::process::{Gid, Uid};
    rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::User))?;
    if ids.has_others() {
        // Where there is one group only, the kernel lets nobody change them.
        rustix::thread::set_thread_groups(&[])?;
    }
    let (uid, gid) = (Uid::from_raw(ids.inside.uid), Gid::from_raw(ids.inside.gid));
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    Ok(rustix::thread::set_thread_res_uid(uid, uid, uid)?)
}

/// Names what was asked for and cannot be without a private root. Work begins in what is mounted at the working directory.
fn miss_what_needs_a_root(plan: &Plan, walls: &mut Walls) -> Result<(), Failure> {
    let is_work = |mount: &&PlannedMount| Path::new(&mount.spec.target) == plan.working_dir;
    if plan.mounts.iter().filter(is_work).any(|mount| !mount.covers.is_empty()) {
        walls.missing(PROTECTED_PATHS, io::Error::other("need a private root"))?;
    }
    for mount in plan.mounts.iter().filter(|mount| !is_work(mount)) {
        walls.missing(&format!("{MOUNT_AT}{}", mount.spec.target), io::Error::other("needs a private root"))?;
    }
    let of_a_root = [
        ("size of /dev/shm", plan.bounds.shm_bytes.is_some()),
        (WRITABLE_SYSTEM, plan.system == Some(SystemAccess::Writable)),
    ];
    for (part, _) in of_a_root.into_iter().filter(|(_, is_asked_for)| *is_asked_for) {
        walls.missing(part, io::Error::other("needs a private root"))?;
    }
    Ok(())
}

/// Where landlock lets files be written: in a private root nearly all that is not the host's, else hardly more than the
/// workspace.
fn writable(plan: &Plan, private_root: bool, system: bool) -> Vec<PathBuf> {
    if !private_root {
        let shared = ["/tmp", "/var/tmp", "/dev", "/proc"].map(PathBuf::from);
        let read_only =
            plan.mounts.iter().any(|mount| Path::new(&mount.spec.target) == plan.working_dir && mount.spec.read_only);
        let workspace = (!read_only).then(|| plan.working_dir_outside.clone());
        return shared.into_iter().chain(workspace).collect();
    }
    let private = ["/tmp", "/var", "/home", "/root", "/run", "/dev", "/proc"].map(PathBuf::from);
    let targets =
        plan.mounts.iter().filter(|mount| !mount.spec.read_only).map(|mount| PathBuf::from(&mount.spec.target));
    let workspace = plan.workspace.is_some().then(|| plan.working_dir.clone());
    let system = system.then_some(["/usr", "/etc", "/opt", "/srv"]).into_iter().flatten().map(PathBuf::from);
    private.into_iter().chain(system).chain(workspace).chain(targets).collect()
}

fn limit_resources(plan: &Plan, own: &Own) -> io::Result<()> {
    let set = |resource, value: u64| {
        let most = rustix::process::getrlimit(resource).maximum.unwrap_or(u64::MAX).min(value);
        rustix::process::setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })
    };
    set(Resource::Core, 0)?;
    if plan.isolation != Isolation::None {
        set(Resource::Fsize, plan.bounds.file_bytes())?;
    }
    if !own.cgroup {
        // Counted for the user, not for the sandbox: the best there is without control groups.
        set(Resource::Nproc, u64::from(plan.bounds.processes))?;
        set(Resource::Data, plan.bounds.memory_bytes)?;
    }
    Ok(())
}
