//! Execs: one process each, with separate output and error, or on a terminal.
//!
//! An exec lives on when its caller leaves. Its exit is that of the process itself; output that its children still hold
//! open is collected a moment longer, then the log is closed.

use std::{
    collections::HashMap,
    ffi::OsString,
    path::PathBuf,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime},
};

use rustix::process::{Pid, Signal};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWriteExt},
    process::ChildStdin,
    sync::watch,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use tracing::{Instrument, debug, info_span};
use wharf_protocol::{
    Environment, ExecId, ExecInfo, ExecRequest, ExecState, Frame, Problem, ProblemKind, Stream, TerminalSize,
};

use crate::{
    core::random_hex,
    output_log::OutputLog,
    process::{
        spawn::{self, Child, Exit, Spawn, Stdio},
        tree::{self, TreeId},
        users::User,
    },
    pty::{self, PtyMaster},
};

const READ_BYTES: usize = 64 << 10;
/// How long output is still collected from those who hold the pipes open after the process has ended.
const LINGER: Duration = Duration::from_millis(200);
/// How long processes have to end by themselves once they are told to.
const GRACE: Duration = Duration::from_secs(2);

/// All execs by id, at most as many as allowed.
#[derive(Debug)]
pub struct Execs {
    limit: usize,
    output_bytes: usize,
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
    tree: TreeId,
    started_at: SystemTime,
    log: OutputLog,
    state: watch::Sender<Observed>,
    stdin: tokio::sync::Mutex<Option<ChildStdin>>,
    terminal: Option<PtyMaster>,
    /// Cancelled to end the process tree.
    stop: CancellationToken,
    /// Cancelled when the process has ended: a writer must not wait for a child that only holds its input open.
    input_over: CancellationToken,
}

#[derive(Debug, Clone, Copy)]
struct Observed {
    state: ExecState,
    finished_at: Option<SystemTime>,
    /// Whether nothing of the tree is left that we know of, after a stop.
    gone: bool,
}

impl Execs {
    /// At most `limit` execs, each keeping its latest `output_bytes`.
    pub fn new(limit: usize, output_bytes: usize) -> Self {
        Self { limit, output_bytes, table: Mutex::new(HashMap::new()) }
    }

    pub fn find(&self, id: &ExecId) -> Option<Arc<Exec>> {
        self.table().get(id).cloned()
    }

    pub fn list(&self) -> Vec<Arc<Exec>> {
        self.table().values().cloned().collect()
    }

    /// Starts a process; says whether it was started now. The same request again under the same id finds it.
    ///
    /// # Errors
    ///
    /// A problem that names the field: an empty `argv`, a program that is not found, an id that another request has.
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
        if table.len() >= self.limit {
            let detail = format!("as many execs as allowed exist already ({}); remove finished ones", self.limit);
            return Err(Problem::new(ProblemKind::LimitReached, detail));
        }
        let id = match &request.id {
            Some(id) => id.clone(),
            None => format!("e{}", random_hex(6)).parse().expect("a letter and hexadecimal digits are an id"),
        };
        let (exec, child) = Exec::spawn(id.clone(), request, &place, self.output_bytes, shutdown)?;
        table.insert(id, exec.clone());
        let span = info_span!("exec", exec = %exec.id, pid = exec.pid.as_raw_nonzero());
        tasks.spawn(exec.clone().live(child).instrument(span));
        Ok((exec, true))
    }

    /// Ends an exec's whole process tree and forgets it; `false` if there was none.
    pub async fn remove(&self, id: &ExecId) -> bool {
        let Some(exec) = self.find(id) else { return false };
        exec.end().await;
        self.table().remove(id);
        true
    }

    fn table(&self) -> MutexGuard<'_, HashMap<ExecId, Arc<Exec>>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
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
                (Stdio::Terminal(slave), Some(master))
            }
            None => (Stdio::Pipes { stdin: request.stdin }, None),
        };
        let argv: Vec<OsString> = request.argv.iter().map(OsString::from).collect();
        let mut child = spawn::spawn(Spawn {
            argv: &argv,
            user: &place.user,
            environment: &environment,
            working_dir: &place.working_dir,
            stdio,
            inherited: Vec::new(),
            tree: TreeId::new(),
        })
        .map_err(|error| {
            let detail = match error.kind() {
                std::io::ErrorKind::NotFound => "there is no such program in this sandbox".to_owned(),
                std::io::ErrorKind::PermissionDenied => "this program must not be run".to_owned(),
                _ => format!("could not start the program: {error}"),
            };
            Problem::invalid("argv", &request.argv[0], detail)
        })?;
        let exec = Self {
            pid: child.pid(),
            tree: child.tree(),
            started_at: SystemTime::now(),
            log: OutputLog::new(output_bytes),
            state: watch::Sender::new(Observed { state: ExecState::Running, finished_at: None, gone: false }),
            stdin: tokio::sync::Mutex::new(child.take_stdin()),
            terminal,
            input_over: CancellationToken::new(),
            stop: shutdown.child_token(),
            id,
            request,
        };
        Ok((Arc::new(exec), child))
    }

    /// Follows the process from its start to the end of its output.
    async fn live(self: Arc<Self>, mut child: Child) {
        let (stdout, stderr) = child.take_outputs();
        let pumps = TaskTracker::new();
        let closing = CancellationToken::new();
        if self.terminal.is_some() {
            pumps.spawn(self.clone().pump_terminal(closing.clone()));
        }
        if let Some(stdout) = stdout {
            pumps.spawn(self.clone().pump(stdout, Stream::Stdout, closing.clone()));
        }
        if let Some(stderr) = stderr {
            pumps.spawn(self.clone().pump(stderr, Stream::Stderr, closing.clone()));
        }
        pumps.close();
        let limit = self.request.timeout_ms.map(Duration::from_millis);
        let too_long = async {
            match limit {
                Some(limit) => tokio::time::sleep(limit).await,
                None => std::future::pending().await,
            }
        };
        let mut timed_out = false;
        let exit = tokio::select! {
            biased;
            exit = child.wait() => exit,
            () = self.stop.cancelled() => self.killed(&mut child).await,
            () = too_long => {
                timed_out = true;
                self.killed(&mut child).await
            }
        };
        self.input_over.cancel();
        self.stdin.lock().await.take();
        if tokio::time::timeout(LINGER, pumps.wait()).await.is_err() {
            // Reading goes on, into a closed log: closing the pipes would kill whoever prints there.
            debug!("somebody still holds the output open; what it prints is not kept any longer");
        }
        let state = match exit {
            _ if timed_out => ExecState::TimedOut,
            Exit { code: Some(code), .. } => ExecState::Exited { code },
            Exit { signal: Some(signal), .. } => ExecState::Signalled { signal },
            Exit { code: None, signal: None } => ExecState::Exited { code: -1 },
        };
        self.log.close(Some(Frame::Exit { code: exit.code, signal: exit.signal }));
        self.state.send_modify(|observed| {
            observed.state = state;
            observed.finished_at = Some(SystemTime::now());
        });
        // What the process left behind runs on until the exec is removed or the sandbox ends.
        self.stop.cancelled().await;
        tree::end(self.tree, self.pid, GRACE).await;
        closing.cancel();
        pumps.wait().await;
        self.state.send_modify(|observed| observed.gone = true);
    }

    async fn killed(&self, child: &mut Child) -> Exit {
        let ended = tree::end(self.tree, self.pid, GRACE);
        let (exit, ()) = tokio::join!(child.wait(), ended);
        exit
    }

    async fn pump(self: Arc<Self>, mut from: impl AsyncRead + Unpin, stream: Stream, closing: CancellationToken) {
        let mut buffer = vec![0; READ_BYTES];
        loop {
            tokio::select! {
                biased;
                () = closing.cancelled() => return,
                read = from.read(&mut buffer) => match read {
                    Ok(0) | Err(_) => return,
                    Ok(count) => {
                        self.log.append(stream, &buffer[..count]);
                    }
                },
            }
        }
    }

    async fn pump_terminal(self: Arc<Self>, closing: CancellationToken) {
        let Some(terminal) = &self.terminal else { return };
        let mut buffer = vec![0; READ_BYTES];
        loop {
            tokio::select! {
                biased;
                () = closing.cancelled() => return,
                read = terminal.read(&mut buffer) => match read {
                    Ok(0) | Err(_) => return,
                    Ok(count) => {
                        self.log.append(Stream::Terminal, &buffer[..count]);
                    }
                },
            }
        }
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

    /// Gives the process input; waits while its pipe is full.
    ///
    /// # Errors
    ///
    /// [`ProblemKind::Conflict`] if it has no input (any more).
    ///
    /// # Cancel safety
    ///
    /// Not safe: a dropped call may have written a part.
    pub async fn write(&self, data: &[u8]) -> Result<(), Problem> {
        let closed = || Problem::new(ProblemKind::Conflict, format!("exec `{}` takes no input (any more)", self.id));
        if let Some(terminal) = &self.terminal {
            return tokio::select! {
                biased;
                () = self.stop.cancelled() => Err(closed()),
                written = terminal.write_all(data) => written.map_err(|_| closed()),
            };
        }
        let mut stdin = self.stdin.lock().await;
        let pipe = stdin.as_mut().ok_or_else(closed)?;
        let written = tokio::select! {
            biased;
            () = self.stop.cancelled() => return Err(closed()),
            () = self.input_over.cancelled() => return Err(closed()),
            written = pipe.write_all(data) => written,
        };
        if written.is_err() {
            *stdin = None;
            return Err(closed());
        }
        Ok(())
    }

    /// Ends the process's input; on a terminal Ctrl-D is typed.
    pub async fn end_input(&self) {
        match &self.terminal {
            // A terminal that is gone takes nothing, which is as good as an end.
            Some(terminal) => drop(terminal.write_all(b"\x04").await),
            None => drop(self.stdin.lock().await.take()),
        }
    }

    /// Sends a signal to the process group, on a terminal to the one in the foreground.
    ///
    /// # Errors
    ///
    /// [`ProblemKind::Conflict`] if the process has ended.
    pub fn signal(&self, signal: Signal) -> Result<(), Problem> {
        let ended = || Problem::new(ProblemKind::Conflict, format!("exec `{}` has ended", self.id));
        if self.state.borrow().finished_at.is_some() {
            return Err(ended());
        }
        let foreground = self.terminal.as_ref().and_then(|terminal| terminal.foreground_process_group().ok());
        rustix::process::kill_process_group(foreground.unwrap_or(self.pid), signal).map_err(|_| ended())
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

    /// Ends the whole process tree: politely, then surely. Returns when nothing of it is left.
    pub async fn end(&self) {
        self.stop.cancel();
        let mut state = self.state.subscribe();
        // The sender lives as long as `self`.
        let _ = state.wait_for(|observed| observed.gone).await;
    }
}

#[cfg(test)]
mod tests;
