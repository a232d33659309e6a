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

use std::{
    fs::{self, File},
    io::{self, Read, Write},
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::{
            fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, chown, symlink},
            process::CommandExt,
        },
    },
    path::{Path, PathBuf},
    process::{Command, ExitCode},
};

use rustix::{
    fs::CWD,
    io::FdFlags,
    mount::{MountFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags},
    process::{Resource, Rlimit, Signal, WaitOptions},
    thread::{LinkNameSpaceType, UnshareFlags},
};
use wharf_protocol::{Isolation, MountSpec, NetworkMode};

use super::{
    cgroup, confine,
    plan::{Launched, Plan, Wall},
    sys::{self, Forked},
};

/// Where the sandbox finds what belongs to Wharf.
const HOUSE: &str = ".wharf";
pub(super) const SOCKET_INSIDE: &str = "/.wharf/run/api.sock";
/// How many ids each sandbox has.
const IDS: u32 = 65_536;
/// Directories of the host that a sandbox sees, read-only.
const SHOWN: &[&str] = &["usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32", "etc", "opt", "nix", "srv", "snap"];
const DEVICES: &[&str] = &["null", "zero", "full", "random", "urandom", "tty"];
/// Parts of `/proc` that show or change the host.
const MASKED: &[&str] = &["kcore", "keys", "latency_stats", "timer_list", "sched_debug", "kmsg", "sysrq-trigger"];
const READ_ONLY_PROC: &[&str] = &["sys", "irq", "bus", "fs", "acpi", "scsi", "asound"];

/// A step of the launch that failed.
#[derive(Debug)]
struct Failure {
    part: String,
    source: io::Error,
}

trait Part<T> {
    /// Names the part of the isolation that a failure belongs to.
    fn part(self, part: impl Into<String>) -> Result<T, Failure>;
}

impl<T, E: Into<io::Error>> Part<T> for Result<T, E> {
    fn part(self, part: impl Into<String>) -> Result<T, Failure> {
        self.map_err(|error| Failure { part: part.into(), source: error.into() })
    }
}

/// The walls so far, and whether one may be missing.
#[derive(Debug)]
struct Walls {
    isolation: Isolation,
    report: Vec<Wall>,
}

impl Walls {
    fn stands(&mut self, part: &str, note: Option<String>) {
        self.report.push(Wall { part: part.to_owned(), missing: None, note });
    }

    /// Notes a part that is not there; full isolation goes no further.
    fn missing(&mut self, part: &str, source: io::Error) -> Result<(), Failure> {
        if self.isolation == Isolation::Full {
            return Err(Failure { part: part.to_owned(), source });
        }
        self.report.push(Wall { part: part.to_owned(), missing: Some(source.to_string()), note: None });
        Ok(())
    }

    /// Enters a new namespace; tells whether there is one.
    fn namespace(&mut self, part: &str, flag: UnshareFlags) -> Result<bool, Failure> {
        let entered = sys::unshare(flag);
        let is_there = entered.is_ok();
        self.raise(part, entered.map(|()| None))?;
        Ok(is_there)
    }

    fn raise(&mut self, part: &str, raised: io::Result<Option<String>>) -> Result<(), Failure> {
        match raised {
            Ok(note) => {
                self.stands(part, note);
                Ok(())
            }
            Err(source) => self.missing(part, source),
        }
    }
}

/// What the sandbox has for itself that later steps depend on.
#[derive(Debug, Clone, Copy)]
struct Own {
    cgroup: bool,
    mounts: bool,
    processes: bool,
}

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
    let mut text = String::new();
    io::stdin().read_to_string(&mut text).part("launcher")?;
    let plan: Plan = serde_json::from_str(&text).map_err(io::Error::other).part("launcher")?;
    rustix::process::setsid().part("launcher")?;
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o022));
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
    let mut own = Own { cgroup: limited.is_ok(), mounts: false, processes: false };
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
            let Err(failure) = become_sandboxd(&plan, &mut walls, ids, own, &log, ready_child, &errors_child);
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
                Ok(Launched::Started { report, .. }) => {
                    let mut byte = [0];
                    let count = File::from(ready).read(&mut byte).part("sandboxd")?;
                    if count == 0 {
                        let reason = io::Error::other("it ended before it listened; its log says why");
                        return Err(Failure { part: "sandboxd".to_owned(), source: reason });
                    }
                    Ok(Launched::Started { pid: init.as_raw_nonzero().get(), report })
                }
                Ok(failed @ Launched::Failed { .. }) => Ok(failed),
                Err(error) => Err(Failure { part: "launcher".to_owned(), source: io::Error::other(error) }),
            }
        }
    }
}

/// The sandbox's ids on the host.
#[derive(Debug)]
struct Ids {
    /// As root: the namespace to enter last. Otherwise we are in it already.
    namespace: Option<OwnedFd>,
    /// The host's number of root in the sandbox, as seen where the mounts are made.
    root: u32,
    /// For each mount the namespace that makes its owner root inside. Made while `/proc` still shows our own numbers.
    owners: Vec<OwnedFd>,
}

fn enter_user_namespace(plan: &Plan, walls: &mut Walls) -> Result<Option<Ids>, Failure> {
    let part = "user namespace";
    if rustix::process::geteuid().is_root() {
        let first = first_id(&plan.name);
        match user_namespace(&format!("0 {first} {IDS}")) {
            Ok(namespace) => {
                let owners = plan.mounts.iter().map(|mount| {
                    let metadata = fs::metadata(&mount.source)?;
                    user_namespace_for(metadata.uid(), metadata.gid(), first)
                });
                let owners = owners.collect::<io::Result<_>>().part("mounts")?;
                walls.stands(part, Some(format!("root inside is user {first} outside")));
                return Ok(Some(Ids { namespace: Some(namespace), root: first, owners }));
            }
            Err(error) => walls.missing(part, error)?,
        }
        return Ok(Some(Ids { namespace: None, root: 0, owners: Vec::new() }));
    }
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let entered = sys::unshare(UnshareFlags::NEWUSER).and_then(|()| {
        fs::write("/proc/self/setgroups", "deny")?;
        fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
        fs::write("/proc/self/gid_map", format!("0 {gid} 1"))
    });
    match entered {
        Ok(()) => {
            walls.stands(part, Some("root inside is you outside; there are no other users".to_owned()));
            Ok(Some(Ids { namespace: None, root: 0, owners: Vec::new() }))
        }
        // Without it an ordinary user can build no other wall.
        Err(error) => {
            walls.missing(part, error)?;
            Ok(None)
        }
    }
}

/// The first of the ids that belong to a sandbox alone: far above the host's users, another for each name.
fn first_id(name: &str) -> u32 {
    let hash = name.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    (16 + hash % 30_000) * IDS
}

/// Makes a user namespace with one mapping for users and groups, held by nothing but the descriptor.
fn user_namespace(map: &str) -> io::Result<OwnedFd> {
    let (made, made_child) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    match sys::fork()? {
        Forked::Child => {
            drop(made);
            if sys::unshare(UnshareFlags::NEWUSER).is_ok() {
                let _ = rustix::io::write(&made_child, b"u");
            }
            drop(made_child);
            loop {
                std::thread::park();
            }
        }
        Forked::Parent(pid) => {
            drop(made_child);
            let number = pid.as_raw_nonzero();
            let namespace = (|| {
                if File::from(made).read(&mut [0])? == 0 {
                    return Err(io::Error::other("the kernel makes no user namespace"));
                }
                fs::write(format!("/proc/{number}/uid_map"), map)?;
                fs::write(format!("/proc/{number}/gid_map"), map)?;
                File::open(format!("/proc/{number}/ns/user")).map(OwnedFd::from)
            })();
            rustix::process::kill_process(pid, Signal::KILL)?;
            rustix::process::waitpid(Some(pid), WaitOptions::empty())?;
            namespace
        }
    }
}

/// Builds the rest around this process and executes sandboxd; returns only on failure.
fn become_sandboxd(
    plan: &Plan,
    walls: &mut Walls,
    ids: Option<Ids>,
    own: Own,
    log: &File,
    ready: OwnedFd,
    report: &OwnedFd,
) -> Result<std::convert::Infallible, Failure> {
    rustix::process::setsid().part("launcher")?;
    let mut program = plan.sandboxd.clone();
    let mut socket = plan.socket.display().to_string();
    if let Some(ids) = &ids {
        walls.namespace("IPC namespace", UnshareFlags::NEWIPC)?;
        walls.namespace("cgroup namespace", UnshareFlags::NEWCGROUP)?;
        if walls.namespace("UTS namespace", UnshareFlags::NEWUTS)? {
            rustix::system::sethostname(plan.name.as_bytes()).part("UTS namespace")?;
        }
        match plan.network {
            NetworkMode::Host => {
                walls.stands("network namespace", Some("shares the machine's network, as asked".to_owned()));
            }
            NetworkMode::None => {
                if walls.namespace("network namespace", UnshareFlags::NEWNET)? {
                    sys::loopback_up().part("network namespace")?;
                }
            }
        }
        if own.mounts {
            build_root(plan, ids, own)?;
            let note = "the host is read-only; what is written stays in the sandbox";
            walls.stands("private root", Some(note.to_owned()));
            program = Path::new("/").join(HOUSE).join("sandboxd");
            socket = SOCKET_INSIDE.to_owned();
        } else {
            walls.missing("private root", io::Error::other("needs a mount namespace"))?;
        }
        if let Some(namespace) = &ids.namespace {
            rustix::thread::move_into_link_name_space(
                std::os::fd::AsFd::as_fd(namespace),
                Some(LinkNameSpaceType::User),
            )
            .part("user namespace")?;
            rustix::thread::set_thread_groups(&[]).part("user namespace")?;
            rustix::thread::set_thread_res_gid(
                rustix::process::Gid::ROOT,
                rustix::process::Gid::ROOT,
                rustix::process::Gid::ROOT,
            )
            .part("user namespace")?;
            rustix::thread::set_thread_res_uid(
                rustix::process::Uid::ROOT,
                rustix::process::Uid::ROOT,
                rustix::process::Uid::ROOT,
            )
            .part("user namespace")?;
        }
    }
    limit_resources(plan, own).part("resource limits")?;
    walls.stands(
        "resource limits",
        Some(format!(
            "files in the workspace may take {} bytes on disk, and as many those in each private directory in memory",
            plan.bounds.disk_bytes
        )),
    );
    let secret = rustix::fs::memfd_create("bind-secret", rustix::fs::MemfdFlags::empty()).part("launcher")?;
    let mut secret = File::from(secret);
    secret.write_all(plan.bind_secret.reveal().as_bytes()).part("launcher")?;
    io::Seek::rewind(&mut secret).part("launcher")?;
    if ids.is_some() {
        rustix::thread::set_no_new_privs(true).part("no new privileges")?;
        let working_dir = plan.working_dir.clone();
        let writable = [
            Path::new("/tmp"),
            Path::new("/var"),
            Path::new("/home"),
            Path::new("/root"),
            Path::new("/run"),
            Path::new("/dev"),
            Path::new("/proc"),
            Path::new("/.wharf/run"),
            &working_dir,
        ];
        let targets: Vec<&Path> =
            plan.mounts.iter().filter(|mount| !mount.read_only).map(|mount| Path::new(&mount.target)).collect();
        walls.raise("landlock", confine::restrict_files(&[&writable[..], &targets[..]].concat()))?;
        walls.raise("capabilities", confine::drop_capabilities().map(|()| None))?;
    } else {
        walls.stands("none", Some("there are no walls: everything runs as you, on your machine".to_owned()));
    }
    rustix::io::fcntl_setfd(&ready, FdFlags::empty()).part("launcher")?;
    let mut command = Command::new(&program);
    command
        .args(["serve", "--listen", &format!("unix:{socket}")])
        .args(["--bind-secret-fd", &secret.as_raw_fd().to_string()])
        .args(["--ready-fd", &ready.as_raw_fd().to_string()])
        .env_clear()
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .env("LANG", "C.UTF-8")
        .current_dir("/")
        .stdin(std::process::Stdio::null())
        .stdout(log.try_clone().part("log")?)
        .stderr(log.try_clone().part("log")?);
    if ids.is_some() {
        // Last: the filter refuses what was needed until here.
        walls.raise("system call filter", confine::filter_system_calls().map(|()| None))?;
    }
    let started = Launched::Started { pid: 0, report: walls.report.clone() };
    let text = serde_json::to_string(&started).map_err(io::Error::other).part("launcher")?;
    rustix::io::write(report, text.as_bytes()).part("launcher")?;
    Err(command.exec()).part("sandboxd")
}

fn limit_resources(plan: &Plan, own: Own) -> io::Result<()> {
    let set = |resource, value: u64| {
        let most = rustix::process::getrlimit(resource).maximum.unwrap_or(u64::MAX).min(value);
        rustix::process::setrlimit(resource, Rlimit { current: Some(most), maximum: Some(most) })
    };
    set(Resource::Core, 0)?;
    if plan.isolation != Isolation::None {
        set(Resource::Fsize, plan.bounds.disk_bytes)?;
    }
    if !own.cgroup {
        // Counted for the user, not for the sandbox: the best there is without control groups.
        set(Resource::Nproc, u64::from(plan.bounds.processes))?;
        set(Resource::Data, plan.bounds.memory_bytes)?;
    }
    Ok(())
}

/// Puts a new root together and makes it ours.
fn build_root(plan: &Plan, ids: &Ids, own: Own) -> Result<(), Failure> {
    let part = "private root";
    rustix::mount::mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC).part(part)?;
    let root = plan.directory.join("root");
    fs::create_dir_all(&root).part(part)?;
    tmpfs(&root, ids, 0o755, 16 << 20).part(part)?;
    for name in SHOWN {
        show(&Path::new("/").join(name), &root.join(name)).part(format!("/{name}"))?;
    }
    for (name, mode) in [("tmp", 0o1777), ("home", 0o755), ("root", 0o700), ("run", 0o755), ("var", 0o755)] {
        let target = root.join(name);
        fs::create_dir(&target).part(part)?;
        tmpfs(&target, ids, mode, plan.bounds.disk_bytes).part(part)?;
    }
    for name in ["tmp", "lib", "log", "cache"] {
        let target = root.join("var").join(name);
        fs::DirBuilder::new().mode(if name == "tmp" { 0o1777 } else { 0o755 }).create(&target).part(part)?;
        chown(&target, Some(ids.root), Some(ids.root)).part(part)?;
    }
    symlink("/run", root.join("var/run")).part(part)?;
    let packages = Path::new("/var/lib/dpkg");
    if packages.is_dir() {
        show(packages, &root.join("var/lib/dpkg")).part("/var/lib/dpkg")?;
    }
    build_dev(&root, ids).part("/dev")?;
    build_proc(&root, own).part("/proc")?;
    build_house(plan, &root, ids)?;
    if let Some(workspace) = &plan.workspace {
        if ids.namespace.is_some() {
            chown(workspace, Some(ids.root), Some(ids.root)).part("workspace")?;
        }
        let target = below(&root, &plan.working_dir).part("workspace")?;
        make_directory(&target).part("workspace")?;
        bind(workspace, &target, false).part("workspace")?;
    }
    for (at, mount) in plan.mounts.iter().enumerate() {
        show_mount(mount, &root, ids.owners.get(at)).part(format!("mount of {}", mount.source))?;
    }
    rustix::process::chdir(&root).part(part)?;
    rustix::process::pivot_root(".", ".").part(part)?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).part(part)?;
    rustix::process::chdir("/").part(part)
}

fn tmpfs(target: &Path, ids: &Ids, mode: u32, bytes: u64) -> io::Result<()> {
    let options = format!("mode={mode:o},size={bytes},nr_inodes=1000000,uid={0},gid={0}", ids.root);
    let options = std::ffi::CString::new(options)?;
    Ok(rustix::mount::mount("tmpfs", target, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, options.as_c_str())?)
}

/// Shows a file or a directory of the host, read-only; a symlink is made again, what is missing is left out.
fn show(source: &Path, target: &Path) -> io::Result<()> {
    let Ok(metadata) = fs::symlink_metadata(source) else { return Ok(()) };
    if metadata.is_symlink() {
        return symlink(fs::read_link(source)?, target);
    }
    make_target(&metadata, target)?;
    bind(source, target, true)
}

fn make_target(metadata: &fs::Metadata, target: &Path) -> io::Result<()> {
    if metadata.is_dir() { make_directory(target) } else { File::create(target).map(drop) }
}

fn make_directory(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o755).create(path)
}

fn bind(source: &Path, target: &Path, read_only: bool) -> io::Result<()> {
    rustix::mount::mount_bind_recursive(source, target)?;
    sys::harden_mount(target, read_only)
}

/// A path inside the sandbox as a path below its new root.
fn below(root: &Path, inside: &Path) -> io::Result<PathBuf> {
    let relative = inside.strip_prefix("/").map_err(io::Error::other)?;
    Ok(root.join(relative))
}

/// Shows a directory that the user asked for. As root, its owner outside is root inside.
fn show_mount(mount: &MountSpec, root: &Path, owner: Option<&OwnedFd>) -> io::Result<()> {
    let source = Path::new(&mount.source);
    let metadata = fs::metadata(source)?;
    let target = below(root, Path::new(&mount.target))?;
    if let Some(parent) = target.parent() {
        make_directory(parent)?;
    }
    if !target.exists() {
        make_target(&metadata, &target)?;
    }
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = rustix::mount::open_tree(CWD, source, flags)?;
    if let Some(owner) = owner {
        sys::map_ids(&tree, owner)?;
    }
    rustix::mount::move_mount(&tree, "", CWD, &target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)?;
    sys::harden_mount(&target, mount.read_only)
}

/// A namespace that maps one owner on disk to root of the sandbox.
fn user_namespace_for(uid: u32, gid: u32, root: u32) -> io::Result<OwnedFd> {
    if uid == gid {
        return user_namespace(&format!("{uid} {root} 1"));
    }
    // Both are mapped for users and groups alike; only one of them ever occurs as either.
    user_namespace(&format!("{uid} {root} 1\n{gid} {} 1", root + 1))
}

fn build_dev(root: &Path, ids: &Ids) -> io::Result<()> {
    let dev = root.join("dev");
    fs::create_dir(&dev)?;
    tmpfs(&dev, ids, 0o755, 1 << 20)?;
    for name in DEVICES {
        let target = dev.join(name);
        File::create(&target)?;
        rustix::mount::mount_bind(Path::new("/dev").join(name), &target)?;
    }
    fs::create_dir(dev.join("pts"))?;
    let options = c"newinstance,ptmxmode=0666,mode=620";
    rustix::mount::mount("devpts", dev.join("pts"), "devpts", MountFlags::NOSUID | MountFlags::NOEXEC, options)?;
    fs::create_dir(dev.join("shm"))?;
    tmpfs(&dev.join("shm"), ids, 0o1777, 64 << 20)?;
    for (name, target) in [
        ("ptmx", "pts/ptmx"),
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ] {
        symlink(target, dev.join(name))?;
    }
    Ok(())
}

fn build_proc(root: &Path, own: Own) -> io::Result<()> {
    let proc = root.join("proc");
    fs::create_dir(&proc)?;
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    if own.processes {
        rustix::mount::mount("proc", &proc, "proc", flags, None)?;
    } else {
        rustix::mount::mount_bind_recursive("/proc", &proc)?;
    }
    for name in READ_ONLY_PROC {
        let target = proc.join(name);
        if target.exists() {
            bind(&target, &target, true)?;
        }
    }
    for name in MASKED {
        let target = proc.join(name);
        if target.exists() {
            rustix::mount::mount_bind("/dev/null", &target)?;
        }
    }
    Ok(())
}

/// Brings sandboxd and the directory of its socket in.
fn build_house(plan: &Plan, root: &Path, ids: &Ids) -> Result<(), Failure> {
    let house = root.join(HOUSE);
    let (program, run) = (house.join("sandboxd"), house.join("run"));
    make_directory(&run).part("sandboxd")?;
    File::create(&program).part("sandboxd")?;
    bind(&plan.sandboxd, &program, true).part("sandboxd")?;
    let outside = plan.socket.parent().unwrap_or(&plan.directory);
    if ids.namespace.is_some() {
        chown(outside, Some(ids.root), Some(ids.root)).part("sandboxd")?;
    }
    bind(outside, &run, false).part("sandboxd")
}
