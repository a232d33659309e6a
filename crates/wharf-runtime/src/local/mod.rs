//! Sandboxes on this machine: confined process trees, each with sandboxd as its first process.
//!
//! All state is files below the state directory, so that a sandbox outlives the program that made it, two programs do
//! not get into each other's way, and a program that is killed at any moment leaves nothing that the next call does not
//! recognise:
//!
//! ```text
//! <state>/wharf-state                      says that all this is ours
//! <state>/bases/                           what lies under the layers of an ordinary user's sandboxes; see `bases`
//! <state>/locks/<name>                     held while a sandbox is made, stopped or removed; gone when nobody holds it
//! <state>/sandboxes/<name>/record.json     what it is, and in which step of its life; see `record`
//!                         /key             the key that opens it, for its owner only
//!                         /environment.json its variables with their values, likewise
//!                         /workspace/      what it has at its working directory
//!                         /sandboxd.log
//! <state>/r/<short>/api.sock               sandboxd's socket
//! ```

mod bases;
mod cgroup;
mod confine;
mod launch;
mod launcher;
mod lock;
mod object;
mod plan;
mod process;
mod protection;
mod ranges;
mod record;
mod removal;
mod socket;
mod subordinate;
mod sys;
mod users;

use std::{
    borrow::Cow,
    collections::BTreeMap,
    fs::{self, File, Permissions},
    io::{self, Write},
    os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use wharf_protocol::{
    BindRequest, Environment, Isolation, Limits, MountSpec, NetworkMode, SandboxName, SandboxSpec, Secret,
    SystemAccess, UserSpec,
};

use crate::{Collected, Lifetime, Status, random_hex};

pub(crate) use self::record::read_end;
pub use self::{
    launch::launch_main,
    plan::{Bounds, HeldBounds, Wall},
    record::Record,
};
use self::{
    launcher::Launcher,
    lock::Lock,
    plan::{Launched, MOUNT_AT, Order, Plan},
    process::{Running, Unkillable},
    protection::{
        Mounts, PROTECTED_PATHS, Placeholder, hide, is_state, plan_mounts, remove_placeholders, set_placeholders,
    },
    ranges::{RangeError, Register},
    record::{Found, Phase, Verdict},
    removal::remove_tree,
    subordinate::Subordinate,
    users::{Caller, plan_user},
};

/// The hidden first argument with which the program itself is started as the launcher.
pub const LAUNCH_ARGUMENT: &str = "__launch";

/// In a state directory: says that it is one, and that what is in it is ours.
const MARK: &str = "wharf-state";
/// In a state directory: what opens sandboxes, or lies under them.
const KEEPS: [&str; 3] = ["sandboxes", "r", "bases"];
/// The file beside a record that names what stands on the host while the sandbox runs.
const PLACEHOLDERS: &str = "placeholders.json";
/// The file of a sandbox's directory without which it is garbage.
const RECORD: &str = "record.json";
const DEFAULT_PROCESSES: u32 = 4096;
const DEFAULT_DISK_BYTES: u64 = 10 << 30;
/// How long sandboxd may take to answer a bind.
const BIND_PATIENCE: Duration = Duration::from_secs(10);
/// How long another program may be at work on a sandbox before we give up: as long as a start takes at most.
const LOCK_PATIENCE: Duration = Duration::from_secs(15);

/// Where the local runtime keeps its state, and its programs.
#[derive(Debug, Clone)]
pub struct Settings {
    pub state_dir: PathBuf,
    pub sandboxd: PathBuf,
    /// The program that calls [`launch_main`] when its first argument is [`LAUNCH_ARGUMENT`].
    pub launcher: PathBuf,
    /// The caller's `PATH`: a new sandbox looks for programs in the same places, as far as it sees them.
    pub path: String,
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
    Spec { field: &'static str, value: String, reason: Cow<'static, str> },
    #[error("this machine does not allow `{part}`: {reason}")]
    Wall { part: String, reason: String },
    /// Though walls may be missing.
    #[error("could not start the sandbox: `{part}`: {reason}")]
    Start { part: String, reason: String },
    #[error("could not {action} `{path}`", path = path.display())]
    State { action: &'static str, path: PathBuf, source: io::Error },
    #[error("the state directory `{path}` belongs to user {owner}, and you are user {we}", path = path.display())]
    Owner { path: PathBuf, owner: u32, we: u32 },
    #[error("`{path}` was there before, and no sandbox is in it", path = path.display())]
    NotOurs { path: PathBuf },
    #[error("could not keep what the host runs from being made in a mount")]
    Protect { source: io::Error },
    #[error("could not mount `{path}`: {reason}")]
    Source { path: String, reason: String },
    #[error("could not start the launcher `{path}`", path = path.display())]
    Launcher { path: PathBuf, source: io::Error },
    #[error("sandboxd of `{name}` did not take its identity: {reason}")]
    Bind { name: SandboxName, reason: String },
    #[error("process {pid} of sandbox `{name}` does not end, not even killed")]
    Unkillable { name: SandboxName, pid: i32 },
    #[error("sandbox `{name}` gets no ids of its own")]
    Ids { name: SandboxName, source: Box<dyn std::error::Error + Send + Sync> },
    /// In the sandbox's directory are files of its maker's subordinate ids.
    #[error("could not work with what belongs to your subordinate ids: `{part}`: {reason}")]
    Subordinate { part: String, reason: String },
    #[error("the record of sandbox `{name}` cannot be read: {reason}")]
    Record { name: SandboxName, reason: String },
}

impl LocalError {
    /// Whether the file system of the state is full.
    fn is_no_space(&self) -> bool {
        let full = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded];
        matches!(self, Self::State { source, .. } if full.contains(&source.kind()))
    }
}

fn state(action: &'static str, path: &Path, source: io::Error) -> LocalError {
    LocalError::State { action, path: path.to_owned(), source }
}

fn ids(name: &SandboxName, source: RangeError) -> LocalError {
    LocalError::Ids { name: name.clone(), source: source.into() }
}

/// An error with what it comes from, in one line.
fn reason_of(error: &LocalError) -> String {
    let mut reason = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        reason.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    reason
}

/// What is no use to any sandbox now, and yet is no garbage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Spare {
    /// What the next sandbox would have to make again.
    Recent,
    Nothing,
}

/// A sandbox whose walls stand and whose sandboxd is blank.
#[derive(Debug)]
struct Started {
    record: Record,
    /// Whether paths inside are those of a root of its own.
    private_root: bool,
    /// Whom commands run as, if not as sandboxd does.
    user: Option<UserSpec>,
    /// What counts against the bound on disk.
    counted: Vec<PathBuf>,
    /// A blank sandboxd ends once this is closed: nobody else could ever bind it.
    maker: std::process::ChildStdin,
}

/// Sandboxes on this machine.
#[derive(Debug, Clone)]
pub struct LocalRuntime {
    settings: Settings,
}

impl LocalRuntime {
    /// The sandboxes of a state directory, which may not be there yet.
    ///
    /// # Errors
    ///
    /// [`LocalError::Owner`] if it is somebody else's: whoever owns it says what is garbage, and which processes are a
    /// sandbox's.
    pub fn new(settings: Settings) -> Result<Self, LocalError> {
        let we = rustix::process::geteuid().as_raw();
        match fs::metadata(&settings.state_dir).map(|metadata| metadata.uid()) {
            Ok(owner) if owner != we => Err(LocalError::Owner { path: settings.state_dir, owner, we }),
            Ok(_) | Err(_) => Ok(Self { settings }),
        }
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
    /// What a dropped call has made is garbage: [`LocalRuntime::remove`] or [`LocalRuntime::collect_garbage`] removes it.
    pub async fn create(
        &self,
        name: SandboxName,
        spec: &SandboxSpec,
        lifetime: Lifetime,
    ) -> Result<Record, LocalError> {
        check(spec)?;
        let mut spec = spec.clone();
        for mount in &mut spec.mounts {
            let source =
                fs::canonicalize(&mount.source).map_err(|source| state("find", Path::new(&mount.source), source))?;
            // A name that is no text stays as it is, and is refused by the start.
            mount.source = source.to_str().unwrap_or(&mount.source).to_owned();
        }
        let (lock, record, key) = self.blocking(move |local| local.prepare(&name, &spec, lifetime)).await?;
        let name = record.name.clone();
        let made = self.launch(&lock, record, key).await;
        if made.is_err() {
            // The first error is the one to tell.
            let _ = self.blocking(move |local| local.clean(&lock, &name)).await;
        }
        made
    }

    /// Takes the name: nothing runs yet, but whoever comes next sees what is being made.
    fn prepare(
        &self,
        name: &SandboxName,
        spec: &SandboxSpec,
        lifetime: Lifetime,
    ) -> Result<(Arc<Lock>, Record, Secret), LocalError> {
        let lock = Arc::new(self.lock(name)?);
        if self.found(name).is_taken() {
            return Err(LocalError::Exists(name.clone()));
        }
        self.clean(&lock, name)?;
        let directory = self.directory(name);
        make_private(&directory)?;
        let covered = spec.mounts.iter().any(|mount| mount.target == spec.working_dir);
        let record = Record {
            name: name.clone(),
            spec: spec.clone(),
            created_at: seconds_now(),
            phase: Phase::Making,
            worker: Running::ourselves(),
            launcher: None,
            init: None,
            owner: match lifetime {
                Lifetime::Kept => None,
                Lifetime::OfThisProcess => Running::ourselves(),
            },
            socket: self.socket_directory(name).join("api.sock"),
            workspace: (!covered).then(|| directory.join("workspace")),
            path: path_inside(&self.settings.path, spec.isolation),
            walls: Vec::new(),
            bounds: bounds_of(spec),
            grouped: false,
            private_root: false,
            variables: spec.environment.names().into_iter().map(str::to_owned).collect(),
            protected: Vec::new(),
            warnings: Vec::new(),
            notes: Vec::new(),
            sources: None,
            first_id: None,
            subordinate: None,
            bases: Vec::new(),
            directory,
        };
        self.write(&record)?;
        if let Some(workspace) = &record.workspace {
            // Its parent is closed to other users of this machine; those of the sandbox may look in.
            fs::create_dir(workspace)
                .and_then(|()| fs::set_permissions(workspace, Permissions::from_mode(0o755)))
                .map_err(|source| state("make", workspace, source))?;
        }
        let key = Secret::new(random_hex(32));
        let variables = serde_json::to_string(&record.spec.environment).unwrap_or_default();
        for (name, text) in [(record::ENVIRONMENT, variables.as_str()), ("key", key.reveal())] {
            let path = record.directory.join(name);
            write_private(&path, text).map_err(|source| state("write", &path, source))?;
        }
        Ok((lock, record, key))
    }

    /// Starts the processes of a sandbox and binds sandboxd. The record names each process before it goes on.
    async fn launch(&self, lock: &Arc<Lock>, record: Record, key: Secret) -> Result<Record, LocalError> {
        let bind_secret = Secret::new(random_hex(32));
        let (held, secret) = (lock.clone(), bind_secret.clone());
        let started = self.blocking(move |local| {
            let started = local.start(record, secret);
            drop(held);
            started
        });
        let Started { mut record, private_root, user, counted, maker } = started.await?;
        let mut environment = record.spec.environment.clone();
        let working_dir =
            if private_root { PathBuf::from(&record.spec.working_dir) } else { working_dir_outside(&record) };
        environment.entry("PATH".to_owned()).or_insert_with(|| record.path.clone());
        if self.placeholders(&record.name).iter().any(|placeholder| placeholder.path == Path::new(".git")) {
            // Go takes it for a repository, and gives up where git knows nothing of one.
            environment.entry("GOFLAGS".to_owned()).or_insert_with(|| "-buildvcs=false".to_owned());
        }
        if !private_root && record.spec.isolation != Isolation::None {
            // The walls that are left let nobody write in the user's own home.
            environment.entry("HOME".to_owned()).or_insert_with(|| working_dir.display().to_string());
        }
        let request = BindRequest { user, ..bind_request(&record, key, environment, &working_dir, &counted) };
        let blank = wharf_client::Sandbox::new(record.route(), bind_secret);
        let failed = match tokio::time::timeout(BIND_PATIENCE, blank.bind(&request)).await {
            Ok(Ok(())) => {
                record.phase = Phase::Ready;
                record.worker = None;
                self.write(&record)?;
                drop(maker);
                return Ok(record);
            }
            Ok(Err(error)) => error.to_string(),
            Err(_) => format!("no answer within {} s", BIND_PATIENCE.as_secs()),
        };
        Err(LocalError::Bind { name: record.name.clone(), reason: record.explained(&failed) })
    }

    fn start(&self, mut record: Record, bind_secret: Secret) -> Result<Started, LocalError> {
        let socket_directory = self.socket_directory(&record.name);
        remove_all(&socket_directory)?;
        make_private(&socket_directory)?;
        if record.socket.as_os_str().len() > 107 {
            let path = record.socket.display().to_string();
            let reason = "a socket below it would have a longer path than the kernel takes (107 bytes)";
            return Err(LocalError::Spec { field: "state directory", value: path, reason: reason.into() });
        }
        if rustix::process::geteuid().is_root() && record.spec.isolation != Isolation::None {
            record.first_id = match Register::of_this_machine().allot(&record.directory, record.first_id) {
                Ok(first) => Some(first),
                // Its files belong to them.
                Err(error) if record.first_id.is_some() => return Err(ids(&record.name, error)),
                Err(_) if record.spec.isolation == Isolation::BestEffort => None,
                Err(error) => return Err(ids(&record.name, error)),
            };
        }
        let caller = Caller::of_this_process();
        let passwd = users::passwd();
        let needs_subordinate = record.subordinate.is_some();
        let mut subordinate = match record.subordinate {
            // Its files belong to them.
            Some(subordinate) => Ok(subordinate),
            None if caller.uid == 0 => Err("root has no need of them".to_owned()),
            None => Subordinate::of(&caller, &passwd),
        };
        let user = plan_user(record.spec.user.as_deref(), &caller, subordinate.as_ref().err(), &passwd);
        let user = user.map_err(|reason| LocalError::Spec {
            field: "user",
            value: record.spec.user.clone().unwrap_or_default(),
            reason,
        })?;
        let needs_others = needs_subordinate || (caller.uid != 0 && user.uid != 0 && user.uid != caller.uid);
        let is_confined = record.spec.isolation != Isolation::None;
        let hidden = if is_confined { self.hidden(&record.spec.mounts)? } else { Vec::new() };
        // Before anything is read there: what is put in their place meanwhile is refused by the launcher.
        let given = record.spec.mounts.iter().map(|mount| Ok((mount.source.clone(), record.source(&mount.source)?)));
        let mut sources = given.collect::<Result<BTreeMap<_, _>, LocalError>>()?;
        let mut mounts = Mounts::default();
        if is_confined {
            let homes = protection::homes();
            let programs = protection::programs(&homes);
            let others = subordinate.as_ref().ok().map(|others| others.users..others.users + ranges::IDS);
            let is_inside = |uid| uid == caller.uid || others.as_ref().is_some_and(|others| others.contains(&uid));
            mounts = plan_mounts(&record.spec.mounts, &record.spec.unprotect, &homes, &programs, &is_inside);
            hide(&mut mounts, &hidden);
            mounts.keep(&record.protected);
        }
        let knows = |source: &String| record.sources.as_ref().is_none_or(|known| known.contains_key(source));
        mounts.leave_out(|source| !knows(source));
        for mount in &mounts.planned {
            let source = &mount.spec.source;
            if !sources.contains_key(source) {
                sources.insert(source.clone(), record.source(source)?);
            }
        }
        // What was shown once is known as what it was, also if it is not shown this time.
        record.sources.get_or_insert_default().extend(sources.clone());
        let mut bases = BTreeMap::new();
        if let Ok(theirs) = subordinate
            && is_confined
        {
            record.subordinate = Some(theirs);
            if record.spec.system != Some(SystemAccess::ReadOnly) {
                match self.bases(&mut record, theirs, user.uid == 0) {
                    Ok(made) => bases = made,
                    Err(error) if needs_others => return Err(error),
                    Err(error) => subordinate = Err(reason_of(&error)),
                }
            }
        }
        self.hold_placeholders(&record.name, &mounts.placeholders)?;
        let needless = record.spec.unprotect.iter().filter(|given| is_confined && !mounts.unprotected.contains(*given));
        mounts.warnings.extend(needless.map(|given| {
            format!("`--unprotect {given}` names nothing that is protected; `wharf inspect` lists what is")
        }));
        (record.protected, record.warnings, record.notes) = (mounts.protected, mounts.warnings, mounts.notes);
        let spec = &record.spec;
        let plan = Plan {
            name: record.name.to_string(),
            sandboxd: self.settings.sandboxd.clone(),
            directory: record.directory.clone(),
            socket: record.socket.clone(),
            log: record.log(),
            workspace: record.workspace.clone(),
            working_dir: PathBuf::from(&spec.working_dir),
            working_dir_outside: working_dir_outside(&record),
            mounts: mounts.planned,
            sources,
            user: user.clone(),
            system: spec.system,
            devices: spec.devices.iter().map(PathBuf::from).collect(),
            isolation: spec.isolation,
            stood: record.walls.iter().filter(|wall| wall.missing.is_none()).map(|wall| wall.part.clone()).collect(),
            network: spec.network,
            bounds: record.bounds,
            cgroup: self.cgroup(&record.name),
            first_id: record.first_id,
            subordinate,
            needs_others,
            bases,
            bind_secret,
        };
        let path = &self.settings.launcher;
        let failed = |source| LocalError::Launcher { path: path.clone(), source };
        let mut launcher = Launcher::start(path).map_err(failed)?;
        record.launcher = Running::of(launcher.pid());
        self.write(&record)?;
        let mut answer = launcher.build(&Order::Build(Box::new(plan))).map_err(failed)?;
        // Where walls may be missing it tries several times.
        while let Launched::Forked { pid } = answer {
            record.init = Running::of(pid);
            self.write(&record)?;
            answer = launcher.go_on().map_err(failed)?;
        }
        match answer {
            Launched::Started { report, private_root, counted, has_subordinate, grouped } => {
                record.launcher = None;
                (record.private_root, record.grouped) = (private_root, grouped);
                if let Some(bytes) = record.spec.memory_bytes.filter(|_| !grouped) {
                    record.warnings.push(format!(
                        "{bytes} bytes of memory bound each process alone, without what it shares, not all together: this machine delegates no control groups"
                    ));
                }
                if !has_subordinate {
                    (record.subordinate, record.bases) = (None, Vec::new());
                }
                record.walls = report;
                if record.walls.iter().any(|wall| wall.part == PROTECTED_PATHS) {
                    record.protected.clear();
                }
                // Without a private root the system's files name only the machine's users.
                let user = (user.uid != 0 && (private_root || record.spec.user.is_some()))
                    .then_some(UserSpec { name: user.name, uid: Some(user.uid) });
                Ok(Started { record, private_root, user, counted, maker: launcher.finish().map_err(failed)? })
            }
            Launched::Failed { part, reason } => {
                let reason = record.explained(&reason);
                Err(match record.spec.isolation {
                    Isolation::Full if !part.starts_with(MOUNT_AT) && part != "sandboxd" => {
                        LocalError::Wall { part, reason }
                    }
                    Isolation::Full | Isolation::BestEffort | Isolation::None => LocalError::Start { part, reason },
                })
            }
            Launched::Forked { .. } | Launched::Done => Err(failed(io::Error::other("it goes on without a word"))),
        }
    }

    /// The directories in which Wharf keeps what no sandbox may see; no mount may be one, or lead elsewhere than it did.
    fn hidden(&self, mounts: &[MountSpec]) -> Result<Vec<PathBuf>, LocalError> {
        let directories = [self.settings.state_dir.as_path(), Path::new(ranges::STATE)];
        let hidden: Vec<PathBuf> =
            directories.into_iter().filter_map(|directory| fs::canonicalize(directory).ok()).collect();
        for MountSpec { source, .. } in mounts {
            let is_elsewhere = fs::canonicalize(source).ok().as_deref() != Some(Path::new(source));
            let reason = if is_elsewhere {
                "something in it is a link now, or gone: it is not what was mounted when the sandbox was made"
            } else if hidden.iter().any(|directory| is_state(Path::new(source), directory)) {
                "Wharf keeps the keys of sandboxes there"
            } else {
                continue;
            };
            return Err(LocalError::Spec { field: "mounts.source", value: source.clone(), reason: reason.into() });
        }
        Ok(hidden)
    }

    fn found(&self, name: &SandboxName) -> Found {
        Record::find(&self.directory(name))
    }

    /// The sandbox of this name, if there is one.
    pub fn find(&self, name: &SandboxName) -> Option<Record> {
        match self.found(name) {
            Found::Record(record) => Some(*record),
            Found::Unreadable(_) | Found::Nothing => None,
        }
    }

    /// The sandbox of this name.
    ///
    /// # Errors
    ///
    /// [`LocalError::NotFound`], [`LocalError::Record`].
    pub fn get(&self, name: &SandboxName) -> Result<Record, LocalError> {
        match self.found(name) {
            Found::Record(record) => Ok(*record),
            Found::Unreadable(reason) => Err(LocalError::Record { name: name.clone(), reason }),
            Found::Nothing => Err(LocalError::NotFound(name.clone())),
        }
    }

    /// The sandbox of this name, if it runs.
    ///
    /// # Errors
    ///
    /// [`LocalError::NotFound`], [`LocalError::NotRunning`].
    pub fn get_ready(&self, name: &SandboxName) -> Result<Record, LocalError> {
        let record = self.get(name)?;
        let reason = match record.status() {
            Status::Ready => return Ok(record),
            Status::Stopped { reason } => reason,
            Status::Suspended => "it is suspended".to_owned(),
            Status::Starting { waiting } => format!("it is starting, {waiting}"),
            Status::Deleting => "it is being removed".to_owned(),
        };
        Err(LocalError::NotRunning { name: name.clone(), reason })
    }

    /// All sandboxes, oldest first.
    pub fn list(&self) -> Vec<Record> {
        let mut records: Vec<Record> = self.names("sandboxes").iter().filter_map(|name| self.find(name)).collect();
        records.sort_by(|a, b| a.created_at.total_cmp(&b.created_at));
        records
    }

    fn names(&self, directory: &str) -> Vec<SandboxName> {
        let entries = fs::read_dir(self.settings.state_dir.join(directory)).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect()
    }

    /// Ends the processes of a sandbox and keeps its workspace. A suspended one stays so.
    ///
    /// # Errors
    ///
    /// [`LocalError::NotFound`], [`LocalError::Busy`].
    pub fn suspend(&self, name: &SandboxName) -> Result<(), LocalError> {
        let _lock = self.lock(name)?;
        let mut record = self.get_whole(name)?;
        record.phase = Phase::Suspended;
        match self.write(&record) {
            // What runs ends nevertheless: it may be what takes the space.
            Err(error) if error.is_no_space() => {}
            noted => noted?,
        }
        self.settle(&mut record)
    }

    /// Starts a suspended or ended sandbox again, with its workspace, a new boot id and the same key.
    ///
    /// # Errors
    ///
    /// As [`LocalRuntime::create`]; a sandbox that runs is left alone.
    pub async fn resume(&self, name: &SandboxName) -> Result<Record, LocalError> {
        let wanted = name.clone();
        let begun = self.blocking(move |local| {
            let lock = local.lock(&wanted)?;
            let mut record = local.get_whole(&wanted)?;
            if record.status() != Status::Ready {
                // With what is left of an earlier life, until that has ended.
                record.phase = Phase::Starting;
                record.worker = Running::ourselves();
                local.write(&record)?;
                local.end(&record)?;
                (record.launcher, record.init) = (None, None);
            }
            Ok((Arc::new(lock), record))
        });
        let (lock, mut record) = begun.await?;
        if record.phase == Phase::Ready {
            return Ok(record);
        }
        let key = record.key()?;
        record.spec.environment = record.environment()?;
        let started = self.launch(&lock, record, key).await;
        if let Err(error) = &started {
            let (name, reason) = (name.clone(), reason_of(error));
            // The first error is the one to tell.
            let _ = self.blocking(move |local| local.note_failure(&name, reason)).await;
        }
        started
    }

    fn note_failure(&self, name: &SandboxName, reason: String) -> Result<(), LocalError> {
        let mut record = self.get(name)?;
        self.settle(&mut record)?;
        record.phase = Phase::Failed(reason);
        self.write(&record)
    }

    /// The sandbox of this name, if it was ever ready. Asked under its lock.
    fn get_whole(&self, name: &SandboxName) -> Result<Record, LocalError> {
        let record = self.get(name)?;
        match record.phase {
            Phase::Making | Phase::Removing => Err(LocalError::NotFound(name.clone())),
            Phase::Starting | Phase::Ready | Phase::Suspended | Phase::Failed(_) => Ok(record),
        }
    }

    /// Ends a sandbox and removes all that belongs to it; `false` if there was nothing.
    ///
    /// # Errors
    ///
    /// [`LocalError::Busy`], or what could not be removed.
    pub fn remove(&self, name: &SandboxName) -> Result<bool, LocalError> {
        let lock = self.lock(name)?;
        let there = self.directory(name).exists();
        self.clean(&lock, name)?;
        Ok(there)
    }

    /// Removes what programs that were killed left half made, and brings to its end what they left half done.
    pub fn collect_garbage(&self, spare: Spare) -> Collected<LocalError> {
        self.release_placeholders_of_ended();
        let sandboxes = self.settings.state_dir.join("sandboxes");
        let is_ours = self.is_marked() || (sandboxes.exists() && self.adopt().is_ok());
        let names = if is_ours { self.names("sandboxes") } else { Vec::new() };
        let collected = names.into_iter().filter_map(|name| self.tend(name).transpose()).collect();
        // The next one tries again.
        let _ = self.collect_bases(spare);
        for name in self.names("locks") {
            // One that nobody holds goes.
            let _ = self.find_lock(&name, Duration::ZERO);
        }
        if rustix::process::geteuid().is_root() {
            // The next one tries again.
            let _ = Register::of_this_machine().free_gone(&self.settings.state_dir.join("sandboxes"));
        }
        collected
    }

    /// Looks after a sandbox that nobody is at work on; its name if it was garbage.
    fn tend(&self, name: SandboxName) -> Result<Option<wharf_protocol::SandboxId>, LocalError> {
        // Most need nothing, and whoever wants to work on them shall not wait for us.
        if self.found(&name).judge() == Verdict::Keep {
            return Ok(None);
        }
        let Some(lock) = self.find_lock(&name, Duration::ZERO)? else { return Ok(None) };
        // What was seen before may have been the work of somebody who has finished it since.
        let found = self.found(&name);
        match (found.judge(), found) {
            (Verdict::Keep, _) => Ok(None),
            (Verdict::Settle, Found::Record(mut record)) => self.settle(&mut record).map(|()| None),
            (Verdict::Settle | Verdict::Remove, _) => {
                let there = self.directory(&name).exists();
                self.clean(&lock, &name)?;
                Ok(there.then(|| name.into()))
            }
        }
    }

    /// Ends what runs, and notes what is true then.
    fn settle(&self, record: &mut Record) -> Result<(), LocalError> {
        self.end(record)?;
        (record.launcher, record.init, record.worker) = (None, None, None);
        record.phase = record.phase.settled();
        self.write(record)
    }

    fn clean(&self, lock: &Lock, name: &SandboxName) -> Result<(), LocalError> {
        let directory = self.directory(name);
        let mut subordinate = None;
        match self.found(name) {
            Found::Record(mut record) => {
                record.phase = Phase::Removing;
                record.worker = Running::ourselves();
                match self.write(&record) {
                    Err(error) if error.is_no_space() => {
                        // To remove it may be the only way to make space. Without a record it is known as garbage too, once
                        // nothing of it runs.
                        self.end(&record)?;
                        let path = directory.join(RECORD);
                        fs::remove_file(&path).map_err(|source| state("remove", &path, source))?;
                    }
                    noted => {
                        noted?;
                        self.end(&record)?;
                    }
                }
                subordinate = record.subordinate;
            }
            Found::Unreadable(_) | Found::Nothing => {
                self.end_group(name)?;
                self.release_placeholders(name);
            }
        }
        remove_all(&self.socket_directory(name))?;
        // What is left of this if we are killed is known as garbage: it has a record that says so, or none.
        self.remove_all_ids(&directory, subordinate, lock)?;
        if rustix::process::geteuid().is_root() {
            Register::of_this_machine().free(&directory).map_err(|error| ids(name, error.into()))?;
        }
        Ok(())
    }

    /// Removes a directory in which files may be the caller's subordinate ids'.
    fn remove_all_ids(&self, path: &Path, known: Option<Subordinate>, lock: &Lock) -> Result<(), LocalError> {
        match remove_tree(path) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied && !rustix::process::geteuid().is_root() => {
                let found = || Subordinate::of(&Caller::of_this_process(), &users::passwd());
                let failed = |reason| LocalError::Subordinate { part: path.display().to_string(), reason };
                let subordinate = known.map_or_else(found, Ok).map_err(failed)?;
                self.run_errand(&Order::Remove { path: path.to_owned(), subordinate }, lock)
            }
            removed => removed.map_err(|source| state("remove", path, source)),
        }
    }

    /// Has a process of its own do something in another user namespace. It holds the lock too: it may outlive this one.
    fn run_errand(&self, order: &Order, lock: &Lock) -> Result<(), LocalError> {
        let path = &self.settings.launcher;
        let failed = |source| LocalError::Launcher { path: path.clone(), source };
        match lock.share().and_then(|file| launcher::run_errand(path, order, file)).map_err(failed)? {
            Launched::Failed { part, reason } => Err(LocalError::Subordinate { part, reason }),
            _ => Ok(()),
        }
    }

    /// Ends the processes of a sandbox: politely where it was ready, then surely.
    fn end(&self, record: &Record) -> Result<(), LocalError> {
        let unkillable = |Unkillable(pid)| LocalError::Unkillable { name: record.name.clone(), pid };
        if let Some(launcher) = &record.launcher {
            launcher.end(false).map_err(unkillable)?;
        }
        if let Some(init) = &record.init {
            init.end(record.launcher.is_none()).map_err(unkillable)?;
        }
        self.end_group(&record.name)?;
        self.release_placeholders(&record.name);
        Ok(())
    }

    /// Puts placeholders on the host, on record before they are there.
    fn hold_placeholders(&self, name: &SandboxName, placeholders: &[Placeholder]) -> Result<(), LocalError> {
        if placeholders.is_empty() {
            return Ok(());
        }
        let _lock = self.lock_placeholders()?;
        let path = self.directory(name).join(PLACEHOLDERS);
        let known: Vec<Placeholder> =
            self.names("sandboxes").iter().flat_map(|sandbox| self.placeholders(sandbox)).collect();
        // What is there and nobody's placeholder is the owner's, though it looks like one.
        let is_ours = |placeholder: &&Placeholder| !placeholder.is_there() || known.contains(placeholder);
        let placeholders: Vec<Placeholder> = placeholders.iter().filter(is_ours).cloned().collect();
        let text = serde_json::to_string(&placeholders).unwrap_or_default();
        write_private(&path, &text).map_err(|source| state("write", &path, source))?;
        set_placeholders(&placeholders).map_err(|source| LocalError::Protect { source })
    }

    /// Takes a sandbox's placeholders from the host, but those that another sandbox holds too.
    fn release_placeholders(&self, name: &SandboxName) {
        let own = self.placeholders(name);
        if own.is_empty() {
            return;
        }
        let Ok(_lock) = self.lock_placeholders() else { return };
        let names = self.names("sandboxes");
        let others: Vec<Placeholder> =
            names.iter().filter(|other| *other != name).flat_map(|other| self.placeholders(other)).collect();
        remove_placeholders(own.iter().rev().filter(|placeholder| !others.contains(placeholder)));
        let _ = fs::remove_file(self.directory(name).join(PLACEHOLDERS));
    }

    /// Takes the placeholders away of sandboxes that ended by themselves.
    fn release_placeholders_of_ended(&self) {
        let has_some = |name: &SandboxName| self.directory(name).join(PLACEHOLDERS).exists();
        let holders = self.names("sandboxes").into_iter().filter(has_some);
        // First without the lock: whoever wants to work on a sandbox that runs shall not wait for us.
        let has_ended = |name: &SandboxName| self.find(name).is_some_and(|record| record.status() != Status::Ready);
        for name in holders.filter(has_ended) {
            // Whoever has the lock is starting it, or ending it.
            let Ok(Some(_lock)) = self.find_lock(&name, Duration::ZERO) else { continue };
            if has_ended(&name) {
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
            rustix::fs::flock(&file, rustix::fs::FlockOperation::LockExclusive)?;
            Ok(file)
        };
        lock().map_err(|source| state("lock", &path, source))
    }

    fn end_group(&self, name: &SandboxName) -> Result<(), LocalError> {
        let group = self.cgroup(name);
        cgroup::kill(&group).map_err(|Unkillable(pid)| LocalError::Unkillable { name: name.clone(), pid })?;
        cgroup::remove(&group);
        Ok(())
    }

    fn write(&self, record: &Record) -> Result<(), LocalError> {
        let path = record.directory.join(RECORD);
        let temporary = record.directory.join("record.json.new");
        // A record may be shown; values may be secrets.
        let spec = SandboxSpec { environment: Environment::new(), ..record.spec.clone() };
        let text = serde_json::to_string_pretty(&Record { spec, ..record.clone() }).unwrap_or_default();
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

    /// Takes a sandbox's lock, once nobody else is at work on it.
    ///
    /// # Errors
    ///
    /// [`LocalError::Busy`] if that takes too long.
    fn lock(&self, name: &SandboxName) -> Result<Lock, LocalError> {
        make_private(&self.settings.state_dir)?;
        self.adopt()?;
        for directory in ["locks", "sandboxes", "r"] {
            make_private(&self.settings.state_dir.join(directory))?;
        }
        self.find_lock(name, LOCK_PATIENCE)?.ok_or_else(|| LocalError::Busy(name.clone()))
    }

    fn is_marked(&self) -> bool {
        self.settings.state_dir.join(MARK).exists()
    }

    /// Marks the state directory as ours, so that what has no record in there is known for something half made.
    ///
    /// # Errors
    ///
    /// [`LocalError::NotOurs`] if somebody else has made `sandboxes` in it.
    fn adopt(&self) -> Result<(), LocalError> {
        if self.is_marked() {
            return Ok(());
        }
        let path = self.settings.state_dir.join("sandboxes");
        let is_empty = fs::read_dir(&path).map_or(true, |mut entries| entries.next().is_none());
        // Versions before this one made no mark.
        let has_record = || self.names("sandboxes").iter().any(|name| matches!(self.found(name), Found::Record(_)));
        if !is_empty && !has_record() {
            return Err(LocalError::NotOurs { path });
        }
        let mark = self.settings.state_dir.join(MARK);
        write_private(&mark, "wharf\n").map_err(|source| state("write", &mark, source))
    }

    fn find_lock(&self, name: &SandboxName, patience: Duration) -> Result<Option<Lock>, LocalError> {
        let path = self.lock_path(name);
        Lock::take(&path, patience).map_err(|source| state("lock", &path, source))
    }

    /// Does what blocks where it may; it goes on when this future is dropped, and holds what it was given until its end.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Self) -> Result<T, LocalError> + Send + 'static,
    ) -> Result<T, LocalError> {
        let local = self.clone();
        let done = tokio::task::spawn_blocking(move || work(&local)).await;
        done.map_err(|error| state("work in", &self.settings.state_dir, io::Error::other(error)))?
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
            Err(LocalError::Spec { field, value: path.to_owned(), reason: "an absolute path below / is needed".into() })
        }
    };
    absolute("working_dir", &spec.working_dir)?;
    if spec.isolation == Isolation::None
        && let Some((field, value, reason)) = impossible_without_isolation(spec)
    {
        let reason = format!("without isolation {reason}").into();
        return Err(LocalError::Spec { field, value, reason });
    }
    for (at, mount) in spec.mounts.iter().enumerate() {
        absolute("mounts.target", &mount.target)?;
        if spec.mounts[..at].iter().any(|other| Path::new(&other.target) == Path::new(&mount.target)) {
            let reason = "another mount is there".into();
            return Err(LocalError::Spec { field: "mounts.target", value: mount.target.clone(), reason });
        }
        let source = Path::new(&mount.source);
        let reason = match fs::metadata(source) {
            Ok(_) if source.is_absolute() => None,
            Ok(_) => Some("it must be an absolute path".to_owned()),
            Err(error) => Some(error.to_string()),
        };
        if let Some(reason) = reason {
            let (field, value) = ("mounts.source", mount.source.clone());
            return Err(LocalError::Spec { field, value, reason: reason.into() });
        }
        if ["/", "/proc", "/dev", "/.wharf", "/usr", "/etc"]
            .iter()
            .any(|path| Path::new(&mount.target).starts_with(path) && *path != "/")
        {
            let reason = "nothing is mounted over the system's own directories";
            return Err(LocalError::Spec {
                field: "mounts.target",
                value: mount.target.clone(),
                reason: reason.into(),
            });
        }
    }
    for device in &spec.devices {
        let is_device = |path: &Path| {
            fs::metadata(path)
                .is_ok_and(|found| found.file_type().is_char_device() || found.file_type().is_block_device())
        };
        absolute("devices", device)?;
        if !device.starts_with("/dev/") || !is_device(Path::new(device)) {
            let reason = "it must be a device below /dev; each is named by itself";
            return Err(LocalError::Spec { field: "devices", value: device.clone(), reason: reason.into() });
        }
    }
    let bounds = bounds_of(spec);
    if let Some(bytes) = spec.shm_bytes.filter(|bytes| *bytes > bounds.memory_bytes / 2) {
        let reason = "it may be half of the memory at most";
        return Err(LocalError::Spec { field: "shm_bytes", value: bytes.to_string(), reason: reason.into() });
    }
    for (field, value, least) in [
        ("memory_bytes", spec.memory_bytes, 16 << 20),
        ("processes", spec.processes.map(u64::from), 4),
        ("cpu_millis", spec.cpu_millis.map(u64::from), 10),
        ("disk_bytes", spec.disk_bytes, 1 << 20),
    ] {
        if let Some(value) = value.filter(|value| *value < least) {
            let reason = format!("sandboxd itself needs {least}").into();
            return Err(LocalError::Spec { field, value: value.to_string(), reason });
        }
    }
    Ok(())
}

/// The first wish that nothing would come of without walls: its field, its value, and why.
fn impossible_without_isolation(spec: &SandboxSpec) -> Option<(&'static str, String, &'static str)> {
    let is_work = |mount: &&MountSpec| mount.target == spec.working_dir;
    let work = spec.mounts.iter().find(is_work);
    let elsewhere = spec.mounts.iter().find(|mount| !is_work(mount)).map(|mount| mount.target.clone());
    let wishes = [
        ("user", spec.user.clone(), "everything runs as you"),
        ("network", (spec.network == NetworkMode::None).then(|| "none".to_owned()), "there is the machine's network"),
        ("system", spec.system.map(|system| system.as_str().to_owned()), "the system is the machine's own"),
        ("devices", spec.devices.first().cloned(), "there are the machine's devices"),
        ("shm_bytes", spec.shm_bytes.map(|bytes| bytes.to_string()), "`/dev/shm` is the machine's own"),
        (
            "mounts.target",
            elsewhere,
            "nothing is mounted: work can begin in one directory, that of the working directory",
        ),
        ("mounts.read_only", work.filter(|work| work.read_only).map(|work| work.source.clone()), "nothing is mounted"),
        ("unprotect", spec.unprotect.first().cloned(), "nothing is protected"),
        (
            "disk_bytes",
            spec.disk_bytes.filter(|_| work.is_some()).map(|bytes| bytes.to_string()),
            "only a private workspace is bounded",
        ),
    ];
    wishes.into_iter().find_map(|(field, value, reason)| value.map(|value| (field, value, reason)))
}

/// The working directory as the host knows it: the private workspace, or what is mounted there.
fn working_dir_outside(record: &Record) -> PathBuf {
    let mounted = || record.spec.mounts.iter().find(|mount| mount.target == record.spec.working_dir);
    let outside = record.workspace.clone().or_else(|| mounted().map(|mount| PathBuf::from(&mount.source)));
    outside.unwrap_or_else(|| PathBuf::from(&record.spec.working_dir))
}

fn bind_request(
    record: &Record,
    key: Secret,
    environment: Environment,
    working_dir: &Path,
    counted: &[PathBuf],
) -> BindRequest {
    BindRequest {
        keys: vec![key],
        environment,
        inherit_environment: false,
        user: None,
        working_dir: working_dir.display().to_string(),
        limits: Limits { disk_bytes: (!counted.is_empty()).then_some(record.bounds.disk_bytes), ..record.spec.limits },
        deadline_seconds: record.spec.deadline_seconds,
    }
}

const USUAL_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

fn usual_path() -> String {
    USUAL_PATH.to_owned()
}

/// The caller's `PATH` without what a sandbox does not see, and what is usual behind it.
fn path_inside(path: &str, isolation: Isolation) -> String {
    let seen = |directory: &&str| {
        let trees = ["/usr", "/bin", "/sbin", "/opt", "/nix", "/snap", "/srv", "/etc"];
        let plain = Path::new(directory).is_absolute() && !directory.split('/').any(|part| part == "..");
        plain && (isolation == Isolation::None || trees.iter().any(|tree| Path::new(directory).starts_with(tree)))
    };
    let mut directories: Vec<&str> = Vec::new();
    for directory in path.split(':').filter(seen).chain(USUAL_PATH.split(':')) {
        if !directories.contains(&directory) {
            directories.push(directory);
        }
    }
    directories.join(":")
}

fn bounds_of(spec: &SandboxSpec) -> Bounds {
    Bounds {
        // Three quarters of the machine: a sandbox that fills its memory must not take the machine with it.
        memory_bytes: spec.memory_bytes.unwrap_or_else(|| machine_memory() / 4 * 3),
        processes: spec.processes.unwrap_or(DEFAULT_PROCESSES),
        cpu_millis: spec.cpu_millis,
        disk_bytes: spec.disk_bytes.unwrap_or(DEFAULT_DISK_BYTES),
        shm_bytes: spec.shm_bytes,
    }
}

fn machine_memory() -> u64 {
    let info = rustix::system::sysinfo();
    (info.totalram as u64).saturating_mul(u64::from(info.mem_unit))
}

fn remove_all(path: &Path) -> Result<(), LocalError> {
    remove_tree(path).map_err(|source| state("remove", path, source))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sandbox_looks_for_programs_where_its_maker_does_as_far_as_it_sees_that() {
        let path = "/opt/go/bin:/home/me/.cargo/bin:/usr/bin::bin:/usr/../home/x:/usr/local/bin:/opt/go/bin";
        let inside = path_inside(path, Isolation::Full);
        assert_eq!(inside, "/opt/go/bin:/usr/bin:/usr/local/bin:/usr/local/sbin:/usr/sbin:/sbin:/bin");
        assert!(path_inside(path, Isolation::None).starts_with("/opt/go/bin:/home/me/.cargo/bin:/usr/bin:"));
        assert_eq!(path_inside("", Isolation::Full), USUAL_PATH);
    }
}
