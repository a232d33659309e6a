//! Sandboxes on this machine: confined process trees, each with sandboxd as its first process.
//!
//! All state is files below the state directory, so that a sandbox outlives the program that made it, two programs do
//! not get into each other's way, and a program that is killed at any moment leaves nothing that the next call does not
//! recognise:
//!
//! ```text
//! <state>/locks/<name>                     held while a sandbox is made, stopped or removed
//! <state>/sandboxes/<name>/record.json     what it is; written in one step, last
//!                         /key             the key that opens it, for its owner only
//!                         /workspace/      what it has at its working directory
//!                         /sandboxd.log
//! <state>/r/<short>/api.sock               sandboxd's socket
//! ```

mod cgroup;
mod confine;
mod launch;
mod plan;
mod protection;
mod sys;

use std::{
    fs::{self, File},
    io::{self, Read, Seek, SeekFrom, Write},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, SystemTime},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec},
    fs::FlockOperation,
    process::{Pid, PidfdFlags, Signal},
};
use serde::{Deserialize, Serialize};
use wharf_client::Route;
use wharf_protocol::{BindRequest, Isolation, Limits, SandboxName, SandboxSpec, Secret};

use crate::{Collected, Lifetime, Status, random_hex};

pub use self::{
    launch::launch_main,
    plan::{Bounds, Wall},
};
use self::{
    plan::{Launched, Plan},
    protection::{Mounts, PROTECTED_PATHS, Placeholder, plan_mounts, remove_placeholders, set_placeholders},
};

/// The hidden first argument with which the program itself is started as the launcher.
pub const LAUNCH_ARGUMENT: &str = "__launch";

/// The file beside a record that names what stands on the host while the sandbox runs.
const PLACEHOLDERS: &str = "placeholders.json";
const DEFAULT_PROCESSES: u32 = 4096;
const DEFAULT_DISK_BYTES: u64 = 10 << 30;
/// How long a stopped sandbox has to end by itself.
const STOP_PATIENCE: Duration = Duration::from_secs(12);
/// How much of sandboxd's log is searched for what went wrong.
const LOG_END: u64 = 16 << 10;
/// How long sandboxd may take to answer a bind.
const BIND_PATIENCE: Duration = Duration::from_secs(10);

/// Where the local runtime keeps its state, and its programs.
#[derive(Debug, Clone)]
pub struct Settings {
    pub state_dir: PathBuf,
    pub sandboxd: PathBuf,
    /// The program that calls [`launch_main`] when its first argument is [`LAUNCH_ARGUMENT`].
    pub launcher: PathBuf,
}

/// Why something could not be done with a local sandbox.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    #[error("sandbox `{0}` exists already")]
    Exists(SandboxName),
    #[error("there is no sandbox `{0}`")]
    NotFound(SandboxName),
    #[error("sandbox `{name}` is not running: {reason}")]
    NotRunning { name: SandboxName, reason: String },
    #[error("sandbox `{0}` is being made, stopped or removed by another program")]
    Busy(SandboxName),
    #[error("`{field}` is not valid: {reason} (it was `{value}`)")]
    Spec { field: &'static str, value: String, reason: &'static str },
    #[error("this machine does not allow `{part}`: {reason}")]
    Wall { part: String, reason: String },
    /// Though walls may be missing.
    #[error("could not start the sandbox: `{part}`: {reason}")]
    Start { part: String, reason: String },
    #[error("could not {action} `{path}`", path = path.display())]
    State { action: &'static str, path: PathBuf, source: io::Error },
    #[error("could not keep what the host runs from being made in a mount")]
    Protect { source: io::Error },
    #[error("could not start the launcher `{path}`", path = path.display())]
    Launcher { path: PathBuf, source: io::Error },
    #[error("sandboxd of `{name}` did not take its identity: {reason}")]
    Bind { name: SandboxName, reason: String },
}

/// One sandbox as its files describe it.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    pub name: SandboxName,
    pub spec: SandboxSpec,
    /// Seconds since the Unix epoch.
    pub created_at: f64,
    /// The first process of the sandbox, by its number on the host, and when it was started.
    init: Option<Running>,
    /// For whom it was made: it is garbage once that process has ended.
    #[serde(default)]
    owner: Option<Running>,
    /// Why it was stopped, if somebody did.
    #[serde(default)]
    stopped: Option<String>,
    pub socket: PathBuf,
    pub workspace: Option<PathBuf>,
    /// The parts of the isolation.
    pub walls: Vec<Wall>,
    pub bounds: Bounds,
    /// What of its writable mounts cannot be written, because the host would run it.
    #[serde(default)]
    pub protected: Vec<String>,
    /// What the user should know of the mounts.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
    #[serde(skip)]
    directory: PathBuf,
}

/// One process of the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
struct Running {
    pid: i32,
    /// Clock ticks after boot: a number that comes again is not taken for the same process.
    started: u64,
}

impl Record {
    pub fn status(&self) -> Status {
        match (&self.stopped, self.init) {
            (Some(_), _) => Status::Suspended,
            (None, Some(init)) if is_running(init) => Status::Ready,
            (None, _) => Status::Stopped { reason: self.last_error().unwrap_or_else(|| self.ended_silently()) },
        }
    }

    /// What is known of an end of which sandboxd could say nothing.
    fn ended_silently(&self) -> String {
        let state_dir = self.directory.ancestors().nth(2).unwrap_or(&self.directory);
        match cgroup::oom_kills(&group_name(state_dir, &self.name)) {
            0 => "its processes have ended".to_owned(),
            kills => format!(
                "its processes have ended; the kernel killed {kills} of them, as more than {} bytes of memory were needed",
                self.bounds.memory_bytes
            ),
        }
    }

    /// The process id of the sandbox's first process on the host, while it runs.
    pub fn pid(&self) -> Option<i32> {
        self.init.filter(|init| is_running(*init)).map(|init| init.pid)
    }

    /// The key that opens the sandbox's API.
    ///
    /// # Errors
    ///
    /// When the key file cannot be read, for instance by another user.
    pub fn key(&self) -> Result<Secret, LocalError> {
        let path = self.directory.join("key");
        let text = fs::read_to_string(&path).map_err(|source| state("read", &path, source))?;
        Ok(Secret::new(text.trim()))
    }

    /// Where sandboxd logs.
    pub fn log(&self) -> PathBuf {
        self.directory.join("sandboxd.log")
    }

    /// The last error that sandboxd has logged since it was started.
    fn last_error(&self) -> Option<String> {
        let log = read_end(&self.log(), LOG_END).unwrap_or_default();
        let error = log.lines().rev().take_while(|line| !line.contains(" listening on ")).find_map(error_in);
        error.map(|error| error.chars().take(300).collect())
    }

    fn explained(&self, what: &str) -> String {
        self.last_error().map_or_else(|| what.to_owned(), |error| format!("{what}: {error}"))
    }
}

/// The last `most` bytes of a file, as text.
fn read_end(path: &Path, most: u64) -> io::Result<String> {
    let mut file = File::open(path)?;
    let length = file.metadata()?.len();
    file.seek(SeekFrom::Start(length.saturating_sub(most)))?;
    let mut bytes = Vec::new();
    file.take(most).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

/// `2026-01-01T00:00:00Z ERROR what happened` of a log.
fn error_in(line: &str) -> Option<&str> {
    line.split_once(" ERROR ").map(|(_, error)| error.trim())
}

fn state(action: &'static str, path: &Path, source: io::Error) -> LocalError {
    LocalError::State { action, path: path.to_owned(), source }
}

/// Sandboxes on this machine.
#[derive(Debug, Clone)]
pub struct LocalRuntime {
    settings: Settings,
}

impl LocalRuntime {
    pub fn new(settings: Settings) -> Self {
        Self { settings }
    }

    /// Makes a sandbox and waits until sandboxd answers in it.
    ///
    /// # Errors
    ///
    /// [`LocalError::Exists`] if there is one of this name, [`LocalError::Wall`] if a wall cannot be built that the
    /// isolation asks for. Nothing is left behind then.
    ///
    /// # Cancel safety
    ///
    /// A dropped call may leave a sandbox that runs; it is found, or cleaned by [`LocalRuntime::collect_garbage`].
    pub async fn create(
        &self,
        name: SandboxName,
        spec: &SandboxSpec,
        lifetime: Lifetime,
    ) -> Result<Record, LocalError> {
        check(spec)?;
        let lock = self.lock(&name)?;
        let directory = self.directory(&name);
        if directory.join("record.json").exists() {
            return Err(LocalError::Exists(name));
        }
        self.clean(&name)?;
        let made = self.make(&name, spec, lifetime, &directory).await;
        if made.is_err() {
            // The first error is the one to tell.
            let _ = self.clean(&name);
        }
        drop(lock);
        made
    }

    async fn make(
        &self,
        name: &SandboxName,
        spec: &SandboxSpec,
        lifetime: Lifetime,
        directory: &Path,
    ) -> Result<Record, LocalError> {
        let ourselves = rustix::process::getpid().as_raw_nonzero().get();
        let owner = match lifetime {
            Lifetime::Kept => None,
            Lifetime::OfThisProcess => started_at(ourselves).map(|started| Running { pid: ourselves, started }),
        };
        make_private(directory)?;
        let covered = spec.mounts.iter().any(|mount| mount.target == spec.working_dir);
        let workspace = (!covered).then(|| directory.join("workspace"));
        if let Some(workspace) = &workspace {
            make_private(workspace)?;
        }
        let key = Secret::new(random_hex(32));
        let path = directory.join("key");
        write_private(&path, key.reveal()).map_err(|source| state("write", &path, source))?;
        let mut record = Record {
            name: name.clone(),
            spec: spec.clone(),
            created_at: seconds_now(),
            init: None,
            owner,
            stopped: None,
            socket: self.socket_directory(name).join("api.sock"),
            workspace,
            walls: Vec::new(),
            bounds: bounds_of(spec),
            protected: Vec::new(),
            notes: Vec::new(),
            directory: directory.to_owned(),
        };
        self.launch(&mut record, key).await?;
        Ok(record)
    }

    /// Starts the processes of a sandbox, binds sandboxd and writes the record.
    async fn launch(&self, record: &mut Record, key: Secret) -> Result<(), LocalError> {
        let socket_directory = self.socket_directory(&record.name);
        if socket_directory.exists() {
            fs::remove_dir_all(&socket_directory).map_err(|source| state("remove", &socket_directory, source))?;
        }
        make_private(&socket_directory)?;
        if record.socket.as_os_str().len() > 107 {
            let path = record.socket.display().to_string();
            let reason = "a socket below it would have a longer path than the kernel takes (107 bytes)";
            return Err(LocalError::Spec { field: "state directory", value: path, reason });
        }
        let bind_secret = Secret::new(random_hex(32));
        let spec = &record.spec;
        let working_dir_outside = working_dir_outside(record);
        let mounts = if spec.isolation == Isolation::None {
            Mounts::default()
        } else {
            plan_mounts(&spec.mounts, &spec.unprotect, &protection::homes())
        };
        self.hold_placeholders(&record.name, &mounts.placeholders)?;
        (record.protected, record.notes) = (mounts.protected, mounts.notes);
        let spec = &record.spec;
        let plan = Plan {
            name: record.name.to_string(),
            sandboxd: self.settings.sandboxd.clone(),
            directory: record.directory.clone(),
            socket: record.socket.clone(),
            log: record.log(),
            workspace: record.workspace.clone(),
            working_dir: PathBuf::from(&spec.working_dir),
            working_dir_outside: working_dir_outside.clone(),
            mounts: mounts.planned,
            isolation: spec.isolation,
            network: spec.network,
            bounds: record.bounds,
            cgroup: self.cgroup(&record.name),
            bind_secret: bind_secret.clone(),
        };
        let launcher = self.settings.launcher.clone();
        let launched = tokio::task::spawn_blocking(move || run_launcher(&launcher, &plan));
        let launched = launched.await.map_err(|error| LocalError::Launcher {
            path: self.settings.launcher.clone(),
            source: io::Error::other(error),
        })??;
        let (pid, private_root) = match launched {
            Launched::Started { pid, report, private_root } => {
                record.walls = report;
                if record.walls.iter().any(|wall| wall.part == PROTECTED_PATHS) {
                    record.protected.clear();
                }
                (pid, private_root)
            }
            Launched::Failed { part, reason } => {
                let reason = record.explained(&reason);
                return Err(match record.spec.isolation {
                    Isolation::Full => LocalError::Wall { part, reason },
                    Isolation::BestEffort | Isolation::None => LocalError::Start { part, reason },
                });
            }
        };
        record.init = started_at(pid).map(|started| Running { pid, started });
        record.stopped = None;
        // From here on the record names the processes, so that whoever comes next can end them.
        self.write(record)?;
        let mut environment = record.spec.environment.clone();
        let working_dir = if private_root { PathBuf::from(&record.spec.working_dir) } else { working_dir_outside };
        if !private_root && record.spec.isolation != Isolation::None {
            // The walls that are left let nobody write in the user's own home.
            environment.entry("HOME".to_owned()).or_insert_with(|| working_dir.display().to_string());
        }
        let request = BindRequest {
            keys: vec![key],
            environment,
            inherit_environment: false,
            user: None,
            working_dir: working_dir.display().to_string(),
            limits: Limits {
                disk_bytes: record.workspace.as_ref().map(|_| record.bounds.disk_bytes),
                ..record.spec.limits
            },
            deadline_seconds: record.spec.deadline_seconds,
        };
        let blank = wharf_client::Sandbox::new(Route::Unix(record.socket.clone()), bind_secret);
        let failed = match tokio::time::timeout(BIND_PATIENCE, blank.bind(&request)).await {
            Ok(Ok(())) => return Ok(()),
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {} s", BIND_PATIENCE.as_secs()),
        };
        self.end(record);
        Err(LocalError::Bind { name: record.name.clone(), reason: record.explained(&failed) })
    }

    /// The sandbox of this name, if there is one.
    pub fn find(&self, name: &SandboxName) -> Option<Record> {
        let directory = self.directory(name);
        let text = fs::read(directory.join("record.json")).ok()?;
        let record: Record = serde_json::from_slice(&text).ok()?;
        Some(Record { directory, ..record })
    }

    /// The sandbox of this name.
    ///
    /// # Errors
    ///
    /// [`LocalError::NotFound`].
    pub fn get(&self, name: &SandboxName) -> Result<Record, LocalError> {
        self.find(name).ok_or_else(|| LocalError::NotFound(name.clone()))
    }

    /// The sandbox of this name, if it runs.
    ///
    /// # Errors
    ///
    /// [`LocalError::NotFound`], [`LocalError::NotRunning`].
    pub fn get_ready(&self, name: &SandboxName) -> Result<Record, LocalError> {
        let record = self.get(name)?;
        match record.status() {
            Status::Ready => Ok(record),
            Status::Stopped { reason } => Err(LocalError::NotRunning { name: name.clone(), reason }),
            Status::Suspended | Status::Starting { .. } | Status::Deleting => {
                Err(LocalError::NotRunning { name: name.clone(), reason: "it is suspended".to_owned() })
            }
        }
    }

    /// All sandboxes, oldest first.
    pub fn list(&self) -> Vec<Record> {
        let mut records: Vec<Record> = self.names().iter().filter_map(|name| self.find(name)).collect();
        records.sort_by(|a, b| a.created_at.total_cmp(&b.created_at));
        records
    }

    fn names(&self) -> Vec<SandboxName> {
        let entries = fs::read_dir(self.settings.state_dir.join("sandboxes")).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
    }

    /// Ends the processes of a sandbox and keeps its workspace. A suspended one stays so.
    ///
    /// # Errors
    ///
    /// [`LocalError::NotFound`], [`LocalError::Busy`].
    pub fn suspend(&self, name: &SandboxName) -> Result<(), LocalError> {
        let _lock = self.lock(name)?;
        let mut record = self.get(name)?;
        self.end(&record);
        record.stopped.get_or_insert_with(|| "stopped on request".to_owned());
        self.write(&record)
    }

    /// Starts a suspended or ended sandbox again, with its workspace, a new boot id and the same key.
    ///
    /// # Errors
    ///
    /// As [`LocalRuntime::create`]; a sandbox that runs is left alone.
    pub async fn resume(&self, name: &SandboxName) -> Result<Record, LocalError> {
        let _lock = self.lock(name)?;
        let mut record = self.get(name)?;
        if record.status() == Status::Ready {
            return Ok(record);
        }
        self.end(&record);
        let key = record.key()?;
        self.launch(&mut record, key).await?;
        Ok(record)
    }

    /// Ends a sandbox and removes all that belongs to it; `false` if there was nothing.
    ///
    /// # Errors
    ///
    /// [`LocalError::Busy`], or what could not be removed.
    pub fn remove(&self, name: &SandboxName) -> Result<bool, LocalError> {
        let lock = self.lock(name)?;
        let there = self.directory(name).exists();
        self.clean(name)?;
        // Another program that waits for this lock makes the file anew.
        let _ = fs::remove_file(self.lock_path(name));
        drop(lock);
        Ok(there)
    }

    /// Removes what programs that were killed left half made.
    pub fn collect_garbage(&self) -> Collected<LocalError> {
        self.release_placeholders_of_ended();
        let is_garbage = |name: &SandboxName| match self.find(name) {
            Some(record) => record.owner.is_some_and(|owner| !is_running(owner)),
            // A record that cannot be read may be another version's.
            None => !self.directory(name).join("record.json").exists(),
        };
        let removed = |name: SandboxName| match self.remove(&name) {
            Ok(_) => Some(Ok(name.into())),
            // Somebody is at work on it, so it is no garbage.
            Err(LocalError::Busy(_)) => None,
            Err(error) => Some(Err(error)),
        };
        self.names().into_iter().filter(is_garbage).filter_map(removed).collect()
    }

    fn clean(&self, name: &SandboxName) -> Result<(), LocalError> {
        if let Some(record) = self.find(name) {
            self.end(&record);
        }
        self.kill_group(name);
        self.release_placeholders(name);
        let remove = |path: &Path| match fs::remove_dir_all(path) {
            Err(source) if source.kind() != io::ErrorKind::NotFound => Err(state("remove", path, source)),
            _ => Ok(()),
        };
        remove(&self.socket_directory(name))?;
        // The record goes first: what is left of an interrupted removal is then known as garbage.
        let directory = self.directory(name);
        let _ = fs::remove_file(directory.join("record.json"));
        remove(&directory)
    }

    /// Ends the processes of a sandbox: politely, then surely.
    fn end(&self, record: &Record) {
        if let Some(init) = record.init.filter(|init| is_running(*init)) {
            end_process(init.pid);
        }
        self.kill_group(&record.name);
        self.release_placeholders(&record.name);
    }

    /// Puts placeholders on the host, on record before they are there.
    fn hold_placeholders(&self, name: &SandboxName, placeholders: &[Placeholder]) -> Result<(), LocalError> {
        if placeholders.is_empty() {
            return Ok(());
        }
        let _lock = self.lock_placeholders()?;
        let path = self.directory(name).join(PLACEHOLDERS);
        let text = serde_json::to_string(placeholders).unwrap_or_default();
        write_private(&path, &text).map_err(|source| state("write", &path, source))?;
        set_placeholders(placeholders).map_err(|source| LocalError::Protect { source })
    }

    /// Takes a sandbox's placeholders from the host, but those that another sandbox holds too.
    fn release_placeholders(&self, name: &SandboxName) {
        let own = self.placeholders(name);
        if own.is_empty() {
            return;
        }
        let Ok(_lock) = self.lock_placeholders() else { return };
        let others: Vec<Placeholder> =
            self.names().iter().filter(|other| *other != name).flat_map(|other| self.placeholders(other)).collect();
        remove_placeholders(own.iter().rev().filter(|placeholder| !others.contains(placeholder)));
        let _ = fs::remove_file(self.directory(name).join(PLACEHOLDERS));
    }

    /// Takes the placeholders away of sandboxes that ended by themselves.
    fn release_placeholders_of_ended(&self) {
        let holders = self.names().into_iter().filter(|name| self.directory(name).join(PLACEHOLDERS).exists());
        for name in holders {
            // Whoever has the lock is starting it, or ending it.
            let Ok(_lock) = self.lock(&name) else { continue };
            if self.find(&name).is_some_and(|record| record.status() != Status::Ready) {
                self.release_placeholders(&name);
            }
        }
    }

    fn placeholders(&self, name: &SandboxName) -> Vec<Placeholder> {
        let text = fs::read(self.directory(name).join(PLACEHOLDERS)).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    /// One program at a time sets and removes placeholders.
    fn lock_placeholders(&self) -> Result<File, LocalError> {
        let path = self.settings.state_dir.join("placeholders.lock");
        let lock = || {
            let file = File::options().create(true).write(true).truncate(false).mode(0o600).open(&path)?;
            rustix::fs::flock(&file, FlockOperation::LockExclusive)?;
            Ok(file)
        };
        lock().map_err(|source| state("lock", &path, source))
    }

    fn kill_group(&self, name: &SandboxName) {
        let group = self.cgroup(name);
        loop {
            let left = cgroup::processes(&group);
            if left.is_empty() {
                break;
            }
            for pid in left.into_iter().filter_map(Pid::from_raw) {
                // It may be gone already.
                let _ = rustix::process::kill_process(pid, Signal::KILL);
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        cgroup::remove(&group);
    }

    fn write(&self, record: &Record) -> Result<(), LocalError> {
        let path = record.directory.join("record.json");
        let temporary = record.directory.join("record.json.new");
        let text = serde_json::to_string_pretty(record).unwrap_or_default();
        write_private(&temporary, &text)
            .and_then(|()| fs::rename(&temporary, &path))
            .map_err(|source| state("write", &path, source))
    }

    fn directory(&self, name: &SandboxName) -> PathBuf {
        self.settings.state_dir.join("sandboxes").join(name.as_str())
    }

    fn socket_directory(&self, name: &SandboxName) -> PathBuf {
        self.settings.state_dir.join("r").join(short(name.as_str()))
    }

    fn cgroup(&self, name: &SandboxName) -> String {
        group_name(&self.settings.state_dir, name)
    }

    fn lock_path(&self, name: &SandboxName) -> PathBuf {
        self.settings.state_dir.join("locks").join(name.as_str())
    }

    /// Takes a sandbox's lock, which the kernel gives back however this program ends.
    fn lock(&self, name: &SandboxName) -> Result<File, LocalError> {
        let path = self.lock_path(name);
        make_private(&self.settings.state_dir)?;
        for directory in ["locks", "sandboxes", "r"] {
            make_private(&self.settings.state_dir.join(directory))?;
        }
        let open = || File::options().create(true).write(true).truncate(false).mode(0o600).open(&path);
        loop {
            let file = open().map_err(|source| state("open", &path, source))?;
            match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {}
                Err(rustix::io::Errno::WOULDBLOCK) => return Err(LocalError::Busy(name.clone())),
                Err(error) => return Err(state("lock", &path, error.into())),
            }
            // Whoever held it before may have removed the file: then it is not the lock any more.
            let same = |a: fs::Metadata, b: fs::Metadata| {
                use std::os::unix::fs::MetadataExt;
                a.ino() == b.ino()
            };
            if let (Ok(held), Ok(there)) = (file.metadata(), fs::metadata(&path))
                && same(held, there)
            {
                return Ok(file);
            }
        }
    }
}

fn check(spec: &SandboxSpec) -> Result<(), LocalError> {
    let absolute = |field, path: &str| {
        let plain = path.starts_with('/')
            && path.len() > 1
            && !path.contains('\0')
            && !path.split('/').any(|part| part == "..");
        if plain {
            Ok(())
        } else {
            Err(LocalError::Spec { field, value: path.to_owned(), reason: "an absolute path below / is needed" })
        }
    };
    absolute("working_dir", &spec.working_dir)?;
    for mount in &spec.mounts {
        absolute("mounts.target", &mount.target)?;
        if !Path::new(&mount.source).is_absolute() || !Path::new(&mount.source).exists() {
            let reason = "it must be an absolute path that exists";
            return Err(LocalError::Spec { field: "mounts.source", value: mount.source.clone(), reason });
        }
        if ["/", "/proc", "/dev", "/.wharf", "/usr", "/etc"]
            .iter()
            .any(|path| Path::new(&mount.target).starts_with(path) && *path != "/")
        {
            let reason = "nothing is mounted over the system's own directories";
            return Err(LocalError::Spec { field: "mounts.target", value: mount.target.clone(), reason });
        }
    }
    for (field, value, least) in [
        ("memory_bytes", spec.memory_bytes, 16 << 20),
        ("processes", spec.processes.map(u64::from), 4),
        ("cpu_millis", spec.cpu_millis.map(u64::from), 10),
        ("disk_bytes", spec.disk_bytes, 1 << 20),
    ] {
        if let Some(value) = value.filter(|value| *value < least) {
            let reason = "it is too little for sandboxd itself";
            return Err(LocalError::Spec { field, value: value.to_string(), reason });
        }
    }
    Ok(())
}

/// The working directory as the host knows it: the private workspace, or what is mounted there.
fn working_dir_outside(record: &Record) -> PathBuf {
    let mounted = || record.spec.mounts.iter().find(|mount| mount.target == record.spec.working_dir);
    let outside = record.workspace.clone().or_else(|| mounted().map(|mount| PathBuf::from(&mount.source)));
    outside.unwrap_or_else(|| PathBuf::from(&record.spec.working_dir))
}

fn bounds_of(spec: &SandboxSpec) -> Bounds {
    Bounds {
        // Three quarters of the machine: a sandbox that fills its memory must not take the machine with it.
        memory_bytes: spec.memory_bytes.unwrap_or_else(|| machine_memory() / 4 * 3),
        processes: spec.processes.unwrap_or(DEFAULT_PROCESSES),
        cpu_millis: spec.cpu_millis,
        disk_bytes: spec.disk_bytes.unwrap_or(DEFAULT_DISK_BYTES),
    }
}

fn machine_memory() -> u64 {
    let info = rustix::system::sysinfo();
    (info.totalram as u64).saturating_mul(u64::from(info.mem_unit))
}

fn run_launcher(launcher: &Path, plan: &Plan) -> Result<Launched, LocalError> {
    let failed = |source| LocalError::Launcher { path: launcher.to_owned(), source };
    let text = serde_json::to_string(plan).map_err(io::Error::other).map_err(failed)?;
    let mut child = Command::new(launcher)
        .arg(LAUNCH_ARGUMENT)
        .env_clear()
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .current_dir("/")
        .spawn()
        .map_err(failed)?;
    if let Some(mut stdin) = child.stdin.take() {
        stdin.write_all(text.as_bytes()).map_err(failed)?;
    }
    let mut answer = String::new();
    if let Some(mut stdout) = child.stdout.take() {
        stdout.read_to_string(&mut answer).map_err(failed)?;
    }
    match child.wait() {
        // Our caller ignores the end of children, and so do we: the answer tells all.
        Err(error) if error.raw_os_error() == Some(libc::ECHILD) => {}
        ended => drop(ended.map_err(failed)?),
    }
    serde_json::from_str(&answer).map_err(|_| failed(io::Error::other("it ended without an answer")))
}

/// When a process was started, in clock ticks after boot; `None` if it is gone or a zombie.
fn started_at(pid: i32) -> Option<u64> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(") ")?.1.split(' ');
    if matches!(fields.next()?, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

fn is_running(process: Running) -> bool {
    started_at(process.pid) == Some(process.started)
}

/// Ends one process and waits for it: SIGTERM, then SIGKILL.
fn end_process(pid: i32) {
    let Some(pid) = Pid::from_raw(pid) else { return };
    let Ok(handle) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else { return };
    for (signal, patience) in [(Signal::TERM, STOP_PATIENCE), (Signal::KILL, STOP_PATIENCE)] {
        if rustix::process::pidfd_send_signal(&handle, signal).is_err() {
            return;
        }
        let mut wait = [PollFd::new(&handle, PollFlags::IN)];
        let patience = Timespec { tv_sec: patience.as_secs().cast_signed(), tv_nsec: 0 };
        if rustix::event::poll(&mut wait, Some(&patience)).is_ok_and(|ready| ready > 0) {
            return;
        }
    }
}

fn make_private(path: &Path) -> Result<(), LocalError> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path).map_err(|source| state("make", path, source))
}

fn write_private(path: &Path, text: &str) -> io::Result<()> {
    let mut file = File::options().create(true).write(true).truncate(true).mode(0o600).open(path)?;
    file.set_permissions(fs::Permissions::from_mode(0o600))?;
    file.write_all(text.as_bytes())
}

/// Two state directories have sandboxes of the same name; their groups stand side by side.
fn group_name(state_dir: &Path, name: &SandboxName) -> String {
    format!("{}-{}", short(&state_dir.display().to_string()), name.as_str())
}

/// Sixteen hexadecimal digits that stand for a longer text (FNV-1a).
fn short(text: &str) -> String {
    let hash = text
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    format!("{hash:016x}")
}

fn seconds_now() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}
