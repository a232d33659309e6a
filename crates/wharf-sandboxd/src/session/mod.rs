//! Sessions: persistent interactive shells, each on a terminal of its own.
//!
//! ```text
//!            shell's first prompt        submit, typing          prompt mark
//!  starting ───────────────────▶ idle ───────────────▶ busy ───────────────▶ idle
//!      ▲                           │                     │
//!      │        submit             ▼   the shell exits   ▼
//!      └───────────────────────  ended ◀─────────────────┘
//! ```
//!
//! One task a shell (`pump`) reads the terminal, takes the marks out (`transcript`), appends to the output log,
//! feeds the view and says in [`Progress`] that something happened. Callers wait on that; nobody polls, and no reader
//! slows the terminal.

mod pump;
mod table;
mod wait;

use std::{
    fmt,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use rustix::process::{Pid, Signal};
use tokio::{sync::watch, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use wharf_protocol::{
    ByteOffset, CommandOutcome, CommandResult, Environment, RunRequest, SessionId, SessionInfo, SessionState,
    TerminalSize,
};

pub use self::{
    table::Sessions,
    wait::{Waited, wait_for_end},
};
use crate::{
    output_log::OutputLog,
    process::{
        spawn::Exit,
        tree::Tree,
        users::{self, User},
    },
    pty::PtyMaster,
    screen::{Screen, ScreenSize},
    transcript::ShellFacts,
};

/// How long a shell may take to its first prompt before a command is refused.
const SETTLING_PAUSE: Duration = Duration::from_millis(5);
/// So many looks in a row find that the shell has read everything.
const QUIET_LOOKS: u32 = 4;
const SETTLING_LOOKS: u32 = 200;
const LONGEST_START: Duration = Duration::from_secs(30);

/// Whoever watches a session's terminal as it happens. Called with a lock held: it must be quick and never wait.
pub trait View: fmt::Debug + Send {
    fn output(&mut self, bytes: &[u8]);
    /// The shell read a whole command; its echo is over.
    fn command_started(&mut self);
    fn prompt_shown(&mut self, facts: &ShellFacts);
    fn screen(&mut self) -> &mut Screen;
}

/// The view of a session that shows just its terminal.
impl View for Screen {
    fn output(&mut self, bytes: &[u8]) {
        self.feed(bytes);
    }

    fn command_started(&mut self) {}

    fn prompt_shown(&mut self, _: &ShellFacts) {}

    fn screen(&mut self) -> &mut Screen {
        self
    }
}

/// What a session is made of.
#[derive(Debug, Clone)]
pub struct SessionSettings {
    pub id: SessionId,
    pub user: User,
    /// Everything the shell gets, but what a login gives (`HOME`, `USER`, …) and what we add ourselves.
    pub environment: Environment,
    pub working_dir: PathBuf,
    pub terminal: TerminalSize,
    /// The value of `TERM`.
    pub term: &'static str,
    /// Whether the prompt is empty but for its mark, whatever the user's start-up files say.
    pub plain_prompt: bool,
    /// More for the shell's start-up file.
    pub startup: &'static str,
    pub output_bytes: usize,
}

/// What has happened in a session so far; every change wakes those who wait.
#[derive(Debug, Clone, Default)]
pub struct Progress {
    /// Prompts shown, over all shells of the session.
    pub prompts: u64,
    /// Pieces of output read.
    pub changes: u64,
    /// Shells that have ended.
    pub ends: u64,
    pub last_end: Option<Exit>,
    /// Whether the shell waits for a command.
    pub idle: bool,
    /// Whether a command has started since the latest prompt.
    pub started: bool,
    /// What the shell said at its latest prompt.
    pub facts: ShellFacts,
    /// Where the output of the latest command begins in the log.
    pub command_start: ByteOffset,
    /// Where the latest prompt begins in the log.
    pub prompt_start: ByteOffset,
}

/// Why a session could not do something.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    #[error("could not open a terminal for session `{session}`")]
    OpenTerminal { session: SessionId, source: std::io::Error },
    #[error("could not start a shell for session `{session}`")]
    StartShell { session: SessionId, source: std::io::Error },
    #[error("the shell of session `{session}` showed no prompt within {} s", LONGEST_START.as_secs())]
    NoPrompt { session: SessionId },
    #[error("session `{session}` is busy with another command")]
    Busy { session: SessionId },
    #[error("nothing runs in session `{session}`")]
    NothingRunning { session: SessionId },
    #[error("could not write to the terminal of session `{session}`")]
    Write { session: SessionId, source: std::io::Error },
    #[error("the session is closed")]
    Closed,
}

/// The shell that a session has at the moment.
#[derive(Debug)]
struct Shell {
    pty: PtyMaster,
    pid: Pid,
    /// Whether a pasted text arrives as one piece (readline's bracketed paste).
    pastes: bool,
}

/// A persistent interactive shell.
#[derive(Debug)]
pub struct Session {
    settings: SessionSettings,
    started_at: SystemTime,
    log: OutputLog,
    view: Arc<Mutex<dyn View>>,
    progress: watch::Sender<Progress>,
    terminal: Mutex<TerminalSize>,
    /// Held while writing to the terminal, so that two writers' bytes do not mix.
    shell: tokio::sync::Mutex<Option<Arc<Shell>>>,
    tasks: TaskTracker,
    /// What all shells of the session have started.
    tree: Tree,
    closed: CancellationToken,
    /// Whether the latest command may make the shell itself read a line, as `read -e` does.
    reads_lines: AtomicBool,
    /// Whether something was typed since the shell was last known to have read everything.
    typed: AtomicBool,
    /// How many real terminals are attached. They answer the queries of programs; without one the screen does.
    terminals: AtomicUsize,
}

/// A real terminal that shows a session, as long as this lives.
#[derive(Debug)]
pub struct AttachedTerminal(Arc<Session>);

impl Drop for AttachedTerminal {
    fn drop(&mut self) {
        self.0.terminals.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Session {
    /// Makes a session and starts its first shell. Returns once the process runs; its prompt comes later.
    ///
    /// # Errors
    ///
    /// When no terminal can be opened or no shell started.
    pub async fn start(
        settings: SessionSettings,
        view: Arc<Mutex<dyn View>>,
        tasks: TaskTracker,
        closed: CancellationToken,
    ) -> Result<Arc<Self>, SessionError> {
        let session = Arc::new(Self {
            started_at: SystemTime::now(),
            log: OutputLog::new(settings.output_bytes),
            view,
            progress: watch::Sender::new(Progress::default()),
            terminal: Mutex::new(settings.terminal),
            shell: tokio::sync::Mutex::new(None),
            tasks,
            tree: Tree::new(),
            closed,
            reads_lines: AtomicBool::new(false),
            typed: AtomicBool::new(false),
            terminals: AtomicUsize::new(0),
            settings,
        });
        session.ensure_shell().await?;
        Ok(session)
    }

    pub fn id(&self) -> &SessionId {
        &self.settings.id
    }

    pub fn log(&self) -> &OutputLog {
        &self.log
    }

    /// Wakes at everything that happens in the session.
    pub fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// Cancelled when the session is closed for good.
    pub fn closed(&self) -> &CancellationToken {
        &self.closed
    }

    /// The tasks that outlive requests.
    pub(crate) fn tasks(&self) -> &TaskTracker {
        &self.tasks
    }

    pub fn terminal(&self) -> TerminalSize {
        *self.terminal.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn view(&self) -> MutexGuard<'_, dyn View + 'static> {
        self.view.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The name of the user that the shell says it runs as.
    pub fn username(&self, uid: Option<u32>) -> Option<String> {
        match uid {
            Some(uid) if uid != self.settings.user.uid => Some(users::name_of(uid)),
            _ => Some(self.settings.user.name.clone()),
        }
    }

    pub async fn info(&self) -> SessionInfo {
        let progress = self.progress.borrow().clone();
        let shell = self.shell.lock().await.clone();
        SessionInfo {
            id: self.settings.id.clone(),
            state: match (&shell, progress.last_end) {
                (None, Some(end)) => SessionState::Ended { code: end.code, signal: end.signal },
                _ if progress.idle => SessionState::Idle,
                _ => SessionState::Busy,
            },
            pid: shell.map_or(0, |shell| shell.pid.as_raw_nonzero().get().unsigned_abs()),
            working_dir: self.working_dir(&progress).display().to_string(),
            terminal: self.terminal(),
            started_at: self.started_at.duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64()),
            output_end: self.log.end(),
        }
    }

    fn working_dir(&self, progress: &Progress) -> PathBuf {
        match &progress.facts.working_dir {
            Some(directory) => PathBuf::from(directory),
            None => self.settings.working_dir.clone(),
        }
    }

    /// Waits until the session has a shell that has shown a prompt at least once.
    ///
    /// # Errors
    ///
    /// [`SessionError::NoPrompt`] if that takes too long; the shell goes on starting.
    pub async fn ready(self: &Arc<Self>) -> Result<(), SessionError> {
        let mut progress = self.progress();
        let started_now = self.ensure_shell().await?;
        let before = progress.borrow_and_update().clone();
        if !started_now && before.prompts > 0 {
            self.settle().await;
            return Ok(());
        }
        let prompts = if started_now { before.prompts } else { 0 };
        let shown = progress.wait_for(|now| now.prompts > prompts || now.ends > before.ends);
        match tokio::time::timeout(LONGEST_START, shown).await {
            Ok(Ok(now)) if now.prompts > prompts => Ok(()),
            Ok(Err(_)) => Err(SessionError::Closed),
            Ok(Ok(_)) | Err(_) => Err(SessionError::NoPrompt { session: self.id().clone() }),
        }
    }

    /// Waits until a shell at its prompt has read what was typed while its command ran.
    ///
    /// A program that ends on a key leaves the rest of the line, often just Enter, to the shell, which answers with one
    /// more prompt. A command that is typed meanwhile would be echoed, and that prompt taken for its end.
    async fn settle(&self) {
        let mut quiet = 0;
        for _ in 0..SETTLING_LOOKS {
            if !self.typed.load(Ordering::Relaxed) || !self.progress.borrow().idle {
                return;
            }
            let calm = self.shell.lock().await.as_ref().is_none_or(|shell| {
                !shell.pastes
                    || (shell.pty.unread().is_ok_and(|bytes| bytes == 0)
                        && shell.pty.is_canonical().is_ok_and(|canonical| !canonical))
            });
            quiet = if calm { quiet + 1 } else { 0 };
            if quiet == QUIET_LOOKS {
                self.typed.store(false, Ordering::Relaxed);
                return;
            }
            tokio::time::sleep(SETTLING_PAUSE).await;
        }
    }

    /// Types a command at the prompt. Its end shows as a new prompt in [`Session::progress`].
    ///
    /// # Errors
    ///
    /// [`SessionError::Busy`] if the shell is not at its prompt.
    ///
    /// # Cancel safety
    ///
    /// Not safe: a dropped call may have typed a part of the command.
    pub async fn submit(self: &Arc<Self>, command: &str) -> Result<(), SessionError> {
        self.ready().await?;
        let shell = self.shell.lock().await;
        let current = shell.as_ref().ok_or(SessionError::Closed)?;
        let mut idle = false;
        self.progress.send_if_modified(|progress| {
            idle = std::mem::take(&mut progress.idle);
            progress.command_start = self.log.end();
            false
        });
        if !idle {
            return Err(SessionError::Busy { session: self.id().clone() });
        }
        self.reads_lines.store(command.contains("read") || command.contains("select"), Ordering::Relaxed);
        let text = if current.pastes {
            // What ends a paste must not stand inside it.
            format!("\x1b[200~{}\x1b[201~\r", command.replace("\x1b[201~", ""))
        } else {
            format!("__wharf_started; eval {}\r", quoted_for_shell(command))
        };
        self.write(current, text.as_bytes()).await
    }

    /// Types bytes, whatever the session is doing.
    ///
    /// # Errors
    ///
    /// [`SessionError::NothingRunning`] if the shell has ended.
    pub async fn type_bytes(&self, bytes: &[u8]) -> Result<(), SessionError> {
        self.typed.store(true, Ordering::Relaxed);
        let shell = self.shell.lock().await;
        let current = shell.as_ref().ok_or_else(|| SessionError::NothingRunning { session: self.id().clone() })?;
        self.write(current, bytes).await
    }

    async fn write(&self, shell: &Shell, bytes: &[u8]) -> Result<(), SessionError> {
        tokio::select! {
            biased;
            () = self.closed.cancelled() => Err(SessionError::Closed),
            written = shell.pty.write_all(bytes) => {
                written.map_err(|source| SessionError::Write { session: self.id().clone(), source })
            }
        }
    }

    /// Says that a real terminal shows this session from now on.
    pub fn attach_terminal(self: &Arc<Self>) -> AttachedTerminal {
        self.terminals.fetch_add(1, Ordering::Relaxed);
        AttachedTerminal(self.clone())
    }

    /// Gives the terminal a new size; the program in the foreground is told by the kernel.
    ///
    /// # Errors
    ///
    /// [`SessionError::NothingRunning`] if the shell has ended.
    pub async fn resize(&self, size: TerminalSize) -> Result<(), SessionError> {
        let shell = self.shell.lock().await;
        let current = shell.as_ref().ok_or_else(|| SessionError::NothingRunning { session: self.id().clone() })?;
        current
            .pty
            .resize(size.rows, size.columns)
            .map_err(|source| SessionError::Write { session: self.id().clone(), source })?;
        *self.terminal.lock().unwrap_or_else(PoisonError::into_inner) = size;
        self.view().screen().resize(size.rows, size.columns);
        Ok(())
    }

    /// Sends `signal` to the foreground process group of the terminal.
    ///
    /// # Errors
    ///
    /// [`SessionError::NothingRunning`] if the shell is at its prompt or has ended.
    pub async fn signal(&self, signal: Signal) -> Result<(), SessionError> {
        let nothing = || SessionError::NothingRunning { session: self.id().clone() };
        let shell = self.shell.lock().await.clone().ok_or_else(nothing)?;
        let group = shell.pty.foreground_process_group().map_err(|_| nothing())?;
        if group == shell.pid && self.progress.borrow().idle {
            return Err(nothing());
        }
        if self.tree.signal_group(group, signal) { Ok(()) } else { Err(nothing()) }
    }

    /// Runs one command and waits for its end or for one of its time limits.
    ///
    /// # Errors
    ///
    /// [`SessionError::Busy`] if another command runs.
    ///
    /// # Cancel safety
    ///
    /// A dropped call leaves the command running.
    pub async fn run(self: &Arc<Self>, request: &RunRequest) -> Result<CommandResult, SessionError> {
        self.ready().await?;
        let mut progress = self.progress();
        let before = progress.borrow_and_update().clone();
        self.submit(&request.command).await?;
        let waited = wait_for_end(
            &mut progress,
            &before,
            Some(before.prompts),
            Instant::now(),
            request.no_output_timeout_ms.map(Duration::from_millis),
            request.timeout_ms.map(Duration::from_millis),
        )
        .await;
        let now = progress.borrow().clone();
        let outcome = match waited {
            Waited::Prompt => CommandOutcome::Finished { exit_code: now.facts.exit_code.unwrap_or(-1) },
            Waited::ShellEnded(end) => CommandOutcome::ShellEnded { code: end.code, signal: end.signal },
            Waited::NoChange(_) => CommandOutcome::NoOutput,
            Waited::TimedOut(_) => CommandOutcome::TimedOut,
            Waited::Closed => return Err(SessionError::Closed),
        };
        let (output, truncated, output_end) =
            self.rendered(now.command_start, if now.idle { now.prompt_start } else { self.log.end() });
        Ok(CommandResult {
            outcome,
            output,
            truncated,
            output_start: now.command_start,
            output_end,
            working_dir: self.working_dir(&now).display().to_string(),
        })
    }

    /// The log from `start` on, as a terminal of the session's width shows it.
    fn rendered(&self, start: ByteOffset, end: ByteOffset) -> (String, bool, ByteOffset) {
        let end = end.max(start);
        let (bytes, truncated) = self.log.copy(start, end);
        let size = self.terminal();
        let mut screen = Screen::new(ScreenSize { rows: size.rows, columns: size.columns }, usize::MAX);
        screen.feed(&bytes);
        (screen.text().trim_end_matches('\n').to_owned(), truncated, end)
    }

    /// Ends the shell and everything that it started, politely and then surely; the session cannot be used again.
    ///
    /// Returns when they are gone; also what a shell that has ended itself has left.
    pub async fn close(&self) {
        self.closed.cancel();
        let mut progress = self.progress();
        while self.shell.lock().await.is_some() {
            if progress.changed().await.is_err() {
                break;
            }
        }
        self.tree.end(pump::GRACE).await;
    }
}

/// A text as one word of a POSIX shell.
fn quoted_for_shell(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests;
