//! Execs: one process each, with separate output and error, or on a terminal.
//!
//! Its exit is that of the process itself; output that its children still hold open is collected a moment longer, then
//! the log is closed. What the process leaves behind in the background belongs to the sandbox and runs on.
//!
//! What becomes of an exec whose caller goes is in its request: it is killed, or runs on. A caller whose connection broke
//! has a grace to come back (see `caller`).

mod caller;
mod input;

use std::{
    collections::HashMap,
    ffi::OsString,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use bytes::Bytes;
use futures_util::{FutureExt, future::FusedFuture, stream};
use rustix::process::{Pid, Signal};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    process::{ChildStderr, ChildStdin, ChildStdout},
    sync::watch,
    time::Instant,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{Instrument, debug, info_span};
use wharf_protocol::{
    ByteOffset, Environment, ExecId, ExecInfo, ExecRequest, ExecState, Frame, INPUT_WINDOW_BYTES, OnDisconnect,
    Problem, ProblemKind, Stream, TerminalSize, WhenFull,
};

pub use self::caller::Here;
use self::{
    caller::Presence,
    input::{Input, Missing},
};
use crate::{
    core::random_hex,
    output_log::{OutputBudget, OutputLog, PIECE_BYTES},
    process::{
        memory,
        spawn::{self, Child, Exit, Spawn, Stdio},
        tree::Tree,
        users::User,
    },
    pty::{self, PtyMaster},
};

/// A process that writes or reads much is woken less often with larger pipes.
const PIPE_BYTES: usize = 1 << 20;
/// How long output is still collected from those who hold the pipes open after the process has ended.
const LINGER: Duration = Duration::from_millis(200);
/// How long processes have to end by themselves once they are told to.
const GRACE: Duration = Duration::from_secs(2);
/// How long a command whose time limit has passed may take to end after SIGTERM.
const TIMEOUT_GRACE: Duration = Duration::from_secs(5);
/// How long a caller may be away, unless its request says otherwise.
const DISCONNECT_GRACE: Duration = Duration::from_secs(45);
/// How long a finished exec is kept for those who come late.
const FINISHED_KEPT: Duration = Duration::from_secs(24 * 3600);

/// All execs by id, at most as many as allowed. Finished ones make place for new ones, the oldest first.
#[derive(Debug)]
pub struct Execs {
    limit: usize,
    output_bytes: usize,
    budget: OutputBudget,
    table: Mutex<HashMap<ExecId, Arc<Exec>>>,
}

/// Where and as whom an exec runs, already checked.
#[derive(Debug, Clone)]
pub struct Place {
    pub user: User,
    pub environment: Environment,
    pub working_dir: PathBuf,
}

/// One process and what it printed.
#[derive(Debug)]
pub struct Exec {
    id: ExecId,
    request: ExecRequest,
    pid: Pid,
    tree: Tree,
    /// How many processes the kernel had killed for want of memory before it began.
    kills_before: Option<u64>,
    started_at: SystemTime,
    log: OutputLog,
    state: watch::Sender<Observed>,
    input: Input,
    /// Whether a caller has typed the end of input on a terminal.
    input_ended: AtomicBool,
    caller: Presence,
    terminal: Option<Arc<PtyMaster>>,
    /// Cancelled to end the process tree, or to forget what has ended.
    stop: CancellationToken,
    /// Cancelled when the process has ended.
    process_ended: CancellationToken,
}

#[derive(Debug, Clone, Copy)]
struct Observed {
    state: ExecState,
    /// When its output was complete.
    finished_at: Option<SystemTime>,
    out_of_memory: bool,
    caller_gone: bool,
}

impl Execs {
    /// At most `limit` execs, each keeping its latest `output_bytes`, together what `budget` allows.
    pub fn new(limit: usize, output_bytes: usize, budget: OutputBudget) -> Self {
        Self { limit, output_bytes, budget, table: Mutex::new(HashMap::new()) }
    }

    pub fn find(&self, id: &ExecId) -> Option<Arc<Exec>> {
        self.table().get(id).cloned()
    }

    pub fn list(&self) -> Vec<Arc<Exec>> {
        let mut table = self.table();
        forget_old(&mut table);
        table.values().cloned().collect()
    }

    /// Starts a process; says whether it was started now. The same request again under the same id finds it.
    ///
    /// # Errors
    ///
    /// A problem that names the field: an empty `argv`, a program that is not found, an id that another request has. Of a
    /// program that is there and cannot be run the kind is [`ProblemKind::OperatingSystem`].
    pub fn start(
        &self,
        request: ExecRequest,
        place: Place,
        tasks: &TaskTracker,
        shutdown: &CancellationToken,
    ) -> Result<(Arc<Exec>, bool), Problem> {
        check(&request)?;
        // Held over the start, so that two callers with one id do not both start.
        let mut table = self.table();
        if let Some(exec) = request.id.as_ref().and_then(|id| table.get(id)) {
            return if exec.request == request {
                Ok((exec.clone(), false))
            } else {
                Err(Problem::new(ProblemKind::Conflict, format!("exec `{}` exists with another request", exec.id)))
            };
        }
        forget_old(&mut table);
        if table.len() >= self.limit && !forget_oldest(&mut table) {
            let detail = format!("as many execs as allowed run already ({}); end some", self.limit);
            return Err(Problem::new(ProblemKind::LimitReached, detail));
        }
        let id = match &request.id {
            Some(id) => id.clone(),
            None => format!("e{}", random_hex(6)).parse().expect("a letter and hexadecimal digits are an id"),
        };
        let (exec, child) = Exec::spawn(id.clone(), request, &place, self.output_bytes, shutdown)?;
        self.budget.include(&exec.log);
        table.insert(id, exec.clone());
        let span = info_span!("exec", exec = %exec.id, pid = exec.pid.as_raw_nonzero());
        tasks.spawn(exec.clone().live(child, tasks.clone(), shutdown.clone()).instrument(span));
        Ok((exec, true))
    }

    /// Forgets an exec; `false` if there was none. If it runs its whole process tree is ended first.
    ///
    /// # Errors
    ///
    /// A problem that names the processes that the kernel cannot end; the exec is still there then.
    pub async fn remove(&self, id: &ExecId) -> Result<bool, Problem> {
        let Some(exec) = self.find(id) else { return Ok(false) };
        exec.end().await;
        exec.tree.ensure_gone(&format!("exec `{id}`")).await?;
        let mut table = self.table();
        // Somebody else may have removed it meanwhile, and the id be another's.
        if table.get(id).is_some_and(|found| Arc::ptr_eq(found, &exec)) {
            table.remove(id);
        }
        Ok(true)
    }

    fn table(&self) -> MutexGuard<'_, HashMap<ExecId, Arc<Exec>>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Forgets what has finished long ago.
fn forget_old(table: &mut HashMap<ExecId, Arc<Exec>>) {
    table.retain(|_, exec| {
        let old = exec.finished_unattended().is_some_and(|at| at.elapsed().is_ok_and(|age| age > FINISHED_KEPT));
        if old {
            exec.stop.cancel();
        }
        !old
    });
}

/// Forgets the exec that finished longest ago and whose caller is not there; `false` if there is none.
fn forget_oldest(table: &mut HashMap<ExecId, Arc<Exec>>) -> bool {
    let finished = table.values().filter_map(|exec| Some((exec.finished_unattended()?, exec.id.clone())));
    let Some((_, id)) = finished.min_by_key(|(at, _)| *at) else { return false };
    if let Some(exec) = table.remove(&id) {
        exec.stop.cancel();
    }
    true
}

fn check(request: &ExecRequest) -> Result<(), Problem> {
    if request.argv.first().is_none_or(String::is_empty) {
        return Err(Problem::invalid("argv", "[]", "a program is needed"));
    }
    if let Some(argument) = request.argv.iter().find(|argument| argument.contains('\0')) {
        return Err(Problem::invalid("argv", argument, "an argument has no NUL"));
    }
    if let Some(size) = request.terminal.filter(|size| size.rows == 0 || size.columns == 0) {
        let value = format!("{}x{}", size.rows, size.columns);
        return Err(Problem::invalid("terminal", value, "a terminal has at least one row and one column"));
    }
    if request.timeout_ms == Some(0) {
        return Err(Problem::invalid("timeout_ms", "0", "a time limit is at least one millisecond"));
    }
    Ok(())
}

impl Exec {
    fn spawn(
        id: ExecId,
        request: ExecRequest,
        place: &Place,
        output_bytes: usize,
        shutdown: &CancellationToken,
    ) -> Result<(Arc<Self>, Child), Problem> {
        let mut environment = place.environment.clone();
        let (stdio, terminal) = match request.terminal {
            Some(TerminalSize { rows, columns }) => {
                environment.entry("TERM".to_owned()).or_insert_with(|| "xterm-256color".to_owned());
                let (master, slave) = pty::open(rows, columns).map_err(|error| {
                    Problem::new(ProblemKind::OperatingSystem, format!("could not open a terminal: {error}"))
                })?;
                (Stdio::Terminal(slave), Some(Arc::new(master)))
            }
            None => (Stdio::Pipes { stdin: request.stdin }, None),
        };
        let argv: Vec<OsString> = request.argv.iter().map(OsString::from).collect();
        let (tree, kills_before) = (Tree::new(), memory::kills());
        let child = spawn::spawn(Spawn {
            argv: &argv,
            user: &place.user,
            environment: &environment,
            working_dir: &place.working_dir,
            stdio,
            inherited: Vec::new(),
            tree: &tree,
        })
        .map_err(|error| {
            let path = environment.get("PATH").map_or(spawn::DEFAULT_PATH, String::as_str);
            let detail = spawn::refusal(&request.argv[0], path, &place.working_dir, &error);
            // A shell tells these apart by its exit code: 127 and 126.
            let kind = match error.kind() {
                std::io::ErrorKind::NotFound => ProblemKind::InvalidRequest,
                _ => ProblemKind::OperatingSystem,
            };
            Problem::about(kind, "argv", &request.argv[0], detail)
        })?;
        let exec = Self {
            pid: child.pid(),
            tree,
            kills_before,
            started_at: SystemTime::now(),
            log: match request.when_full {
                WhenFull::DropOldest => OutputLog::new(output_bytes),
                WhenFull::Wait => OutputLog::for_reader(output_bytes),
            },
            state: watch::Sender::new(Observed {
                state: ExecState::Running,
                finished_at: None,
                out_of_memory: false,
                caller_gone: false,
            }),
            input: Input::new(request.stdin || terminal.is_some()),
            input_ended: AtomicBool::new(false),
            caller: Presence::new(),
            terminal,
            process_ended: CancellationToken::new(),
            stop: shutdown.child_token(),
            id,
            request,
        };
        Ok((Arc::new(exec), child))
    }

    /// Follows the process from its start to the end of its output.
    async fn live(self: Arc<Self>, mut child: Child, tasks: TaskTracker, shutdown: CancellationToken) {
        let collecting = TaskTracker::new();
        let (stdout, stderr) = child.take_outputs();
        let outputs = [
            self.terminal.clone().map(|terminal| (Source::Terminal(terminal), Stream::Terminal)),
            stdout.map(|stdout| (Source::Stdout(stdout), Stream::Stdout)),
            stderr.map(|stderr| (Source::Stderr(stderr), Stream::Stderr)),
        ];
        for (mut source, stream) in outputs.into_iter().flatten() {
            let (exec, collected, shutdown) = (self.clone(), collecting.token(), shutdown.clone());
            let pump = async move {
                let open = exec.collect(&mut source, stream).await;
                drop((exec, collected));
                if open {
                    // Reading goes on: closing the pipe would kill whoever prints there.
                    shutdown.run_until_cancelled(source.discard()).await;
                }
            };
            tasks.spawn(pump.in_current_span());
        }
        collecting.close();
        tasks.spawn(self.clone().feed(child.take_stdin()).in_current_span());
        let abandoned = self.abandoned().fuse();
        tokio::pin!(abandoned);
        let limit = self.request.timeout_ms.map(Duration::from_millis);
        let too_long = async {
            match limit {
                Some(limit) => tokio::time::sleep(limit).await,
                None => std::future::pending().await,
            }
        };
        tokio::pin!(too_long);
        let (mut timed_out, mut caller_gone) = (false, false);
        let exit = loop {
            tokio::select! {
                biased;
                exit = child.wait() => break exit,
                () = self.stop.cancelled() => {
                    self.log.release();
                    break child.end(GRACE).await;
                }
                () = &mut abandoned => {
                    if self.request.on_disconnect == OnDisconnect::Kill {
                        debug!("the caller has gone: what runs is ended");
                        caller_gone = true;
                        break child.end(GRACE).await;
                    }
                }
                () = &mut too_long => {
                    timed_out = true;
                    break self.told_to_end(&mut child).await;
                }
            }
        };
        let state = match exit {
            _ if timed_out => ExecState::TimedOut,
            Exit { code: Some(code), .. } => ExecState::Exited { code },
            Exit { signal: Some(signal), .. } => ExecState::Signalled { signal },
            Exit { code: None, signal: None } => ExecState::Exited { code: -1 },
        };
        let was_killed = exit.shell_code() == 128 + Signal::KILL.as_raw() && !timed_out && !self.stop.is_cancelled();
        let out_of_memory = was_killed && memory::kills() > self.kills_before;
        self.state.send_modify(|observed| {
            observed.state = state;
            observed.out_of_memory = out_of_memory;
            observed.caller_gone = caller_gone;
        });
        self.input.close();
        self.process_ended.cancel();
        let collected = collecting.wait();
        tokio::pin!(collected);
        loop {
            tokio::select! {
                biased;
                () = &mut collected => break,
                () = &mut abandoned => {}
                () = self.stop.cancelled() => {
                    self.log.release();
                    collected.await;
                    break;
                }
            }
        }
        self.log.close(Some(Frame::Exit { code: exit.code, signal: exit.signal }));
        self.state.send_modify(|observed| observed.finished_at = Some(SystemTime::now()));
        if !abandoned.is_terminated() {
            // Until then the caller may come back for what it has not read.
            self.stop.run_until_cancelled(abandoned).await;
        }
    }

    /// Resolves once the caller has gone for good; from then on no output is kept for it.
    async fn abandoned(&self) {
        if self.request.on_disconnect == OnDisconnect::KeepRunning && self.request.when_full == WhenFull::DropOldest {
            return std::future::pending().await;
        }
        let grace = self.request.disconnect_grace_ms.map_or(DISCONNECT_GRACE, Duration::from_millis);
        self.caller.gone(grace).await;
        self.log.release();
    }

    /// Asks the command itself to end, and gives it some time, before the whole tree is ended.
    async fn told_to_end(&self, child: &mut Child) -> Exit {
        for signal in [Signal::TERM, Signal::CONT] {
            // It has just ended, which is as good.
            let _ = self.tree.signal_leaders_group(signal);
        }
        let grace = tokio::time::timeout(TIMEOUT_GRACE, child.wait());
        let Ok(Some(exit)) = self.stop.run_until_cancelled(grace).await.transpose() else {
            return child.end(Duration::ZERO).await;
        };
        self.tree.end(GRACE).await;
        exit
    }

    /// Carries one stream to the log until its end, or until a moment after the process's; says whether it is still open.
    async fn collect(&self, source: &mut Source, stream: Stream) -> bool {
        let mut buffer = vec![0; PIECE_BYTES];
        loop {
            tokio::select! {
                biased;
                () = self.process_ended.cancelled() => break,
                () = self.log.room() => {}
            }
            tokio::select! {
                biased;
                () = self.process_ended.cancelled() => break,
                read = source.read(&mut buffer) => match read {
                    Ok(0) | Err(_) => return false,
                    Ok(count) => drop(self.log.append(stream, &buffer[..count])),
                },
            }
        }
        // What the process has written comes whole, however long its reader takes.
        let mut owed = source.waiting();
        while owed > 0 {
            self.log.room().await;
            let most = buffer.len().min(owed);
            match source.read(&mut buffer[..most]).await {
                Ok(0) | Err(_) => return false,
                Ok(count) => {
                    self.log.append(stream, &buffer[..count]);
                    owed -= count;
                }
            }
        }
        let mut until = Instant::now() + LINGER;
        loop {
            let before = Instant::now();
            self.log.room().await;
            until += before.elapsed();
            match tokio::time::timeout_at(until, source.read(&mut buffer)).await {
                Ok(Ok(0) | Err(_)) => return false,
                Ok(Ok(count)) => drop(self.log.append(stream, &buffer[..count])),
                Err(_) => {
                    debug!("somebody still holds the output open; what it prints is not kept any longer");
                    return true;
                }
            }
            if Instant::now() >= until {
                return true;
            }
        }
    }

    /// Carries input to the process until it takes none any more.
    async fn feed(self: Arc<Self>, mut pipe: Option<ChildStdin>) {
        if let Some(pipe) = &pipe {
            // A smaller one works too.
            let _ = rustix::pipe::fcntl_setpipe_size(pipe, PIPE_BYTES);
        }
        let writing = async {
            while let Some(piece) = self.input.next().await {
                let mut rest = &piece[..];
                while !rest.is_empty() {
                    let written = match (&mut pipe, &self.terminal) {
                        (Some(pipe), _) => pipe.write(rest).await,
                        (None, Some(terminal)) => terminal.write(rest).await,
                        (None, None) => return,
                    };
                    let Ok(written) = written else { return };
                    rest = &rest[written..];
                    self.input.taken(written);
                }
            }
        };
        // A writer must not wait for a child of the process that only holds its input open.
        self.process_ended.run_until_cancelled(writing).await;
        self.input.close();
    }

    pub fn id(&self) -> &ExecId {
        &self.id
    }

    pub fn request(&self) -> &ExecRequest {
        &self.request
    }

    pub fn log(&self) -> &OutputLog {
        &self.log
    }

    pub fn info(&self) -> ExecInfo {
        let observed = *self.state.borrow();
        let seconds =
            |at: SystemTime| at.duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64());
        ExecInfo {
            id: self.id.clone(),
            argv: self.request.argv.clone(),
            pid: self.pid.as_raw_nonzero().get().unsigned_abs(),
            state: observed.state,
            terminal: self.terminal.is_some(),
            started_at: seconds(self.started_at),
            finished_at: observed.finished_at.map(seconds),
            out_of_memory: observed.out_of_memory,
            caller_gone: observed.caller_gone,
            output_end: self.log.end(),
        }
    }

    /// Waits until the process has ended and its output is complete.
    ///
    /// # Cancel safety
    ///
    /// Safe: waiting changes nothing.
    pub async fn wait(&self) -> ExecInfo {
        let mut state = self.state.subscribe();
        // The sender lives as long as `self`.
        let _ = state.wait_for(|observed| observed.finished_at.is_some()).await;
        self.info()
    }

    /// Says that the caller is there, until what it gets is dropped.
    pub fn arrive(&self) -> Here {
        self.caller.arrive()
    }

    /// When it finished, unless its caller is there.
    fn finished_unattended(&self) -> Option<SystemTime> {
        self.state.borrow().finished_at.filter(|_| !self.caller.is_here())
    }

    /// Gives the process input; returns once it has taken it.
    ///
    /// # Errors
    ///
    /// [`ProblemKind::Conflict`] if it has no input (any more).
    ///
    /// # Cancel safety
    ///
    /// Not safe: a dropped call has given all of it or none.
    pub async fn write(&self, data: &[u8]) -> Result<(), Problem> {
        let mut progress = self.input.progress();
        let end = self.accept(None, Bytes::copy_from_slice(data))?;
        // The sender lives as long as `self`.
        let reached = progress.wait_for(|now| now.closed || now.taken >= end).await;
        if reached.is_ok_and(|now| now.closed) {
            return Err(self.takes_no_input());
        }
        Ok(())
    }

    /// Keeps input for the process, from `offset` of all input on or after what has come; waits while too much waits.
    ///
    /// # Errors
    ///
    /// [`ProblemKind::InvalidRequest`] if input before `offset` is missing.
    pub async fn queue(&self, offset: Option<ByteOffset>, data: Bytes) -> Result<(), Problem> {
        self.input.room().await;
        self.input.push(offset.map(|offset| offset.0), data).map(drop).map_err(missing)
    }

    fn accept(&self, offset: Option<u64>, data: Bytes) -> Result<u64, Problem> {
        if self.input.progress().borrow().refuses() {
            return Err(self.takes_no_input());
        }
        self.input.push(offset, data).map_err(missing)
    }

    fn takes_no_input(&self) -> Problem {
        Problem::new(ProblemKind::Conflict, format!("exec `{}` takes no input (any more)", self.id))
    }

    /// Tells how much counted input was taken: at once, and from then on as it is taken. Nothing if it takes none at all.
    pub fn input_taken(self: &Arc<Self>) -> stream::BoxStream<'static, Frame> {
        if !self.request.stdin && self.terminal.is_none() {
            return Box::pin(stream::pending());
        }
        let taken =
            stream::unfold((self.clone(), self.input.progress(), None), |(exec, mut progress, told)| async move {
                let worth_telling = |now: &input::Progress| match told {
                    None => true,
                    Some(told) => {
                        now.taken > told && (now.taken == now.received || now.taken - told >= INPUT_WINDOW_BYTES / 4)
                    }
                };
                // The sender lives as long as `exec`.
                let taken = progress.wait_for(worth_telling).await.ok()?.taken;
                Some((Frame::InputTaken { offset: ByteOffset(taken) }, (exec, progress, Some(taken))))
            });
        Box::pin(taken)
    }

    /// Ends the process's input; on a terminal Ctrl-D is typed.
    pub fn end_input(&self) {
        match &self.terminal {
            // A terminal that has gone takes nothing, which is as good as an end.
            Some(_) => drop(self.input.push(None, Bytes::from_static(b"\x04"))),
            None => self.input.end(),
        }
    }

    /// The same, once however often it is asked for.
    pub fn end_input_once(&self) {
        if !self.input_ended.swap(true, Ordering::Relaxed) {
            self.end_input();
        }
    }

    /// Sends a signal to the process group, on a terminal to the one in the foreground.
    ///
    /// # Errors
    ///
    /// [`ProblemKind::Conflict`] if the process has ended.
    pub fn signal(&self, signal: Signal) -> Result<(), Problem> {
        let ended = || Problem::new(ProblemKind::Conflict, format!("exec `{}` has ended", self.id));
        // Its number may be another process's by now.
        if self.state.borrow().state != ExecState::Running {
            return Err(ended());
        }
        let foreground = self.terminal.as_ref().and_then(|terminal| terminal.foreground_process_group().ok());
        let sent = match foreground {
            Some(group) => self.tree.signal_group(group, signal),
            None => self.tree.signal_leaders_group(signal),
        };
        if sent { Ok(()) } else { Err(ended()) }
    }

    /// Gives the terminal a new size.
    ///
    /// # Errors
    ///
    /// [`ProblemKind::Conflict`] if the exec has none.
    pub fn resize(&self, rows: u16, columns: u16) -> Result<(), Problem> {
        let none = || Problem::new(ProblemKind::Conflict, format!("exec `{}` has no terminal", self.id));
        self.terminal.as_ref().ok_or_else(none)?.resize(rows, columns).map_err(|_| none())
    }

    /// Ends the whole process tree if the process runs: politely, then surely. Returns when nothing of it is left.
    pub async fn end(&self) {
        self.stop.cancel();
        self.wait().await;
    }
}

fn missing(Missing { received }: Missing) -> Problem {
    Problem::invalid("offset", "input", format!("input from {received} on is missing"))
}

/// What a process prints to.
#[derive(Debug)]
enum Source {
    Stdout(ChildStdout),
    Stderr(ChildStderr),
    Terminal(Arc<PtyMaster>),
}

impl Source {
    async fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        match self {
            Self::Stdout(pipe) => pipe.read(buffer).await,
            Self::Stderr(pipe) => pipe.read(buffer).await,
            Self::Terminal(terminal) => terminal.read(buffer).await,
        }
    }

    /// How much was written and not read yet. Of a terminal that is not known; it ends with the process, mostly.
    fn waiting(&self) -> usize {
        let bytes = match self {
            Self::Stdout(pipe) => rustix::io::ioctl_fionread(pipe),
            Self::Stderr(pipe) => rustix::io::ioctl_fionread(pipe),
            Self::Terminal(_) => return 0,
        };
        bytes.map_or(0, |bytes| usize::try_from(bytes).unwrap_or(usize::MAX))
    }

    /// Reads to the end and keeps nothing.
    async fn discard(&mut self) {
        let mut buffer = vec![0; 4 << 10];
        while matches!(self.read(&mut buffer).await, Ok(1..)) {}
    }
}

#[cfg(test)]
mod tests;
