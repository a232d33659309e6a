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
//! A reset ends the shell from any state, whatever has become of it, and starts another.
//!
//! One task a shell (`pump`) reads the terminal, takes the marks out (`transcript`), appends to the output log,
//! feeds the view and says in [`Progress`] that something happened. Callers wait on that; nobody polls, and no reader
//! slows the terminal.

mod nested;
mod pump;
mod table;
mod wait;

use std::{
    fmt,
    path::PathBuf,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering},
    },
    time::{Duration, SystemTime},
};

use rustix::process::{Pid, Signal};
use tokio::{sync::watch, time::Instant};
use tokio_util::{sync::CancellationToken, task::TaskTracker};
use wharf_protocol::{
    ByteOffset, CommandOutcome, CommandResult, Environment, Problem, RunRequest, SessionId, SessionInfo, SessionState,
    TerminalSize,
};

pub use self::{
    table::Sessions,
    wait::{Waited, wait_for_end},
};
use crate::{
    output_log::OutputLog,
    process::{
        memory,
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
/// How long a terminal whose program reads nothing may refuse the next byte.
const LONGEST_STALL: Duration = Duration::from_secs(10);
/// So much output may be rendered at a time, in mebibytes of all sessions: rendering takes several times that.
const RENDERED_AT_ONCE: u32 = 32;
static RENDERING: tokio::sync::Semaphore = tokio::sync::Semaphore::const_new(RENDERED_AT_ONCE as usize);
/// How long readline may take from a prompt's mark to taking the terminal.
const LONGEST_PAINT: Duration = Duration::from_secs(2);

/// Whoever watches a session's terminal as it happens. Called with a lock held: it must be quick and never wait.
pub trait View: fmt::Debug + Send {
    fn output(&mut self, bytes: &[u8]);
    /// The shell read a line, which need not be a whole command; what it shows of it is over.
    fn line_read(&mut self) {}
    /// The shell read a whole command and starts it.
    fn command_started(&mut self) {}
    fn prompt_shown(&mut self, _: &ShellFacts) {}
    /// What comes up to the first prompt is of the start-up files of a new shell.
    fn shell_started(&mut self) {}
    /// Another shell takes the place of the one whose output this shows.
    fn reset(&mut self);
    fn screen(&mut self) -> &mut Screen;
}

/// The view of a session that shows just its terminal.
impl View for Screen {
    fn output(&mut self, bytes: &[u8]) {
        self.feed(bytes);
    }

    fn reset(&mut self) {
        self.feed(b"\x1bc");
    }

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
    /// How many of them were shown before the present shell was started.
    pub prompts_at_start: u64,
    /// Pieces of output read.
    pub changes: u64,
    /// Shells that have ended.
    pub ends: u64,
    pub last_end: Option<Exit>,
    /// Whether the shell waits for a command.
    pub idle: bool,
    /// Whether a command has started since the latest prompt.
    pub started: bool,
    /// Whether the shell waits for commands, but no longer says how they end.
    pub lost: bool,
    /// What the shell said at its latest prompt.
    pub facts: ShellFacts,
    /// Where in the log the shell had read what was typed, if it has read a line since the latest command was submitted.
    pub line_read: Option<ByteOffset>,
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
    #[error("the shell of session `{session}` ended before its first prompt, with exit code {code}")]
    EndedAtStart { session: SessionId, code: i32 },
    #[error("session `{session}` is busy with another command")]
    Busy { session: SessionId },
    #[error("nothing runs in session `{session}`")]
    NothingRunning { session: SessionId },
    #[error("could not write to the terminal of session `{session}`")]
    Write { session: SessionId, source: std::io::Error },
    #[error(
        "what runs in session `{session}` reads no input: {typed} of {total} bytes were typed in {} s",
        LONGEST_STALL.as_secs()
    )]
    NotRead { session: SessionId, typed: usize, total: usize },
    #[error("session `{session}` was reset")]
    Reset { session: SessionId },
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
    /// Held while writing to the terminal, so that two writers' bytes do not mix. A program that reads nothing makes
    /// a writer wait, so nothing else may need it.
    writing: tokio::sync::Mutex<()>,
    /// Ends this shell and all that it started, whatever it is doing.
    ending: CancellationToken,
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
    /// Never held over anything that waits.
    shell: Mutex<Option<Arc<Shell>>>,
    tasks: TaskTracker,
    /// What all shells of the session have started.
    tree: Tree,
    closed: CancellationToken,
    /// Whether the latest command may have cost the shell the hook that marks its prompts.
    may_lose_hook: AtomicBool,
    /// Whether something was typed since the shell was last known to have read everything.
    typed: AtomicBool,
    /// Whether something was typed since the latest command was submitted: it may stand on the line still.
    line_touched: AtomicBool,
    /// When something was typed last, in ticks since the start of the machine.
    typed_at: AtomicU64,
    /// The end of the shell that had to be replaced, until the next command has been told.
    replaced: Mutex<Option<Exit>>,
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
            shell: Mutex::new(None),
            tasks,
            tree: Tree::new(),
            closed,
            may_lose_hook: AtomicBool::new(false),
            typed: AtomicBool::new(false),
            line_touched: AtomicBool::new(false),
            typed_at: AtomicU64::new(0),
            replaced: Mutex::new(None),
            terminals: AtomicUsize::new(0),
            settings,
        });
        session.ensure_shell()?;
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

    /// Does something to the view, off the threads that serve requests: much output may be rendered just now.
    pub(crate) async fn in_view<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&mut (dyn View + 'static)) -> T + Send + 'static,
    ) -> T {
        let session = self.clone();
        let done = tokio::task::spawn_blocking(move || work(&mut *session.view()));
        done.await.expect("what is done to a view does not panic")
    }

    /// The name of the user that the shell says it runs as.
    pub fn username(&self, uid: Option<u32>) -> Option<String> {
        match uid {
            Some(uid) if uid != self.settings.user.uid => Some(users::name_of(uid)),
            _ => Some(self.settings.user.name.clone()),
        }
    }

    fn current_shell(&self) -> MutexGuard<'_, Option<Arc<Shell>>> {
        self.shell.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The shell that was there before the present one, if it ended by itself and nobody has asked yet.
    pub fn take_replaced(&self) -> Option<Exit> {
        self.replaced.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Never waits, whatever the session is doing.
    pub fn info(&self) -> SessionInfo {
        let progress = self.progress.borrow().clone();
        let shell = self.current_shell().clone();
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
    /// [`SessionError::NoPrompt`] if that takes too long; the shell goes on starting. [`SessionError::EndedAtStart`] if it
    /// ends instead, as one whose start-up file says `exit`.
    pub async fn ready(self: &Arc<Self>) -> Result<(), SessionError> {
        let mut progress = self.progress();
        if progress.borrow().lost {
            self.end_shell().await;
        }
        self.ensure_shell()?;
        let before = progress.borrow_and_update().clone();
        if before.prompts > before.prompts_at_start {
            self.settle().await;
            return Ok(());
        }
        let prompts = before.prompts_at_start;
        let shown = progress.wait_for(|now| now.prompts > prompts || now.ends > before.ends);
        match tokio::time::timeout(LONGEST_START, shown).await {
            Ok(Ok(now)) if now.prompts > prompts => Ok(()),
            Ok(Ok(now)) => {
                let code = now.last_end.map_or(-1, |end| end.shell_code());
                Err(SessionError::EndedAtStart { session: self.id().clone(), code })
            }
            Ok(Err(_)) => Err(SessionError::Closed),
            Err(_) => Err(SessionError::NoPrompt { session: self.id().clone() }),
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
            let calm = self.current_shell().as_ref().is_none_or(|shell| !shell.pastes || shell.has_read_all());
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
        let busy = || SessionError::Busy { session: self.id().clone() };
        let shell = self.current_shell().clone().ok_or(SessionError::Closed)?;
        if !self.progress.borrow().idle {
            return Err(busy());
        }
        let pastes = shell.pastes && !self.progress.borrow().facts.cooked;
        // Once begun, a command is typed to its end, also if the caller goes: a half would be the next one's beginning.
        let session = self.clone();
        // The end of a line as some callers write it.
        let command = command.replace("\r\n", "\n");
        let typing = self.tasks.spawn(async move {
            let writing = shell.writing.lock().await;
            let mut idle = false;
            session.progress.send_if_modified(|progress| {
                idle = std::mem::take(&mut progress.idle);
                progress.command_start = session.log.end();
                progress.line_read = None;
                false
            });
            if !idle {
                return Err(SessionError::Busy { session: session.id().clone() });
            }
            session.may_lose_hook.store(may_lose_hook(&command), Ordering::Relaxed);
            let touched = session.line_touched.swap(false, Ordering::Relaxed);
            let long = pastes && command.len() > LONGEST_PASTE && {
                let facts = &session.progress.borrow().facts;
                facts.echoes && !facts.robbed
            };
            let text = match pastes {
                true if long => announced(&command, touched),
                true => pasted(&command, touched),
                false => evaluated(&command, touched),
            };
            if pastes {
                session.wait_for_readline(&shell).await;
            }
            if pastes && !long && has_keys(&command) {
                // Readline puts the terminal's settings back once it has the line.
                let _ = shell.pty.stop_taking_keys();
            }
            let mut typed = session.write(&shell, text.as_bytes()).await;
            if long && typed.is_ok() {
                typed = session.send(&shell, &command).await;
            }
            drop(writing);
            typed
        });
        typing.await.unwrap_or(Err(SessionError::Closed))
    }

    /// Sends the text of a command that was announced, once the shell reads it.
    async fn send(&self, shell: &Shell, command: &str) -> Result<(), SessionError> {
        let until = Instant::now() + LONGEST_PAINT;
        let mut progress = self.progress();
        loop {
            let started = progress.borrow_and_update().started;
            if started && shell.pty.is_canonical().is_ok_and(|canonical| !canonical) {
                break;
            }
            if Instant::now() >= until {
                return Err(SessionError::NotRead { session: self.id().clone(), typed: 0, total: command.len() });
            }
            let _ = tokio::time::timeout(Duration::from_millis(1), progress.changed()).await;
        }
        let error = |source| SessionError::Write { session: self.id().clone(), source };
        shell.pty.stop_taking_keys().map_err(error)?;
        self.write(shell, command.as_bytes()).await
    }

    /// Waits until the shell that has said it is at its prompt has taken the terminal. Before that, the terminal would
    /// echo what is typed, cut a line at 4095 bytes and take some bytes for signals.
    async fn wait_for_readline(&self, shell: &Shell) {
        let until = Instant::now() + LONGEST_PAINT;
        let mut progress = self.progress();
        while shell.pty.is_canonical().is_ok_and(|canonical| canonical) && Instant::now() < until {
            progress.borrow_and_update();
            // Painting the prompt is output; without any a look now and then tells.
            let _ = tokio::time::timeout(Duration::from_millis(1), progress.changed()).await;
        }
    }

    /// Types bytes, whatever the session is doing.
    ///
    /// # Errors
    ///
    /// [`SessionError::NothingRunning`] if the shell has ended, [`SessionError::NotRead`] if no program reads so much.
    pub async fn type_bytes(&self, bytes: &[u8]) -> Result<(), SessionError> {
        let shell = self.running_shell()?;
        self.typed.store(true, Ordering::Relaxed);
        self.line_touched.store(true, Ordering::Relaxed);
        self.typed_at.store(nested::now_in_ticks(), Ordering::Relaxed);
        let writing = tokio::select! {
            biased;
            () = self.closed.cancelled() => return Err(SessionError::Closed),
            () = shell.ending.cancelled() => return Err(SessionError::Reset { session: self.id().clone() }),
            writing = shell.writing.lock() => writing,
        };
        let typed = self.write(&shell, bytes).await;
        drop(writing);
        typed
    }

    /// Whether a line that is typed to the program shows on the terminal: the terminal echoes it, or the program edits
    /// lines itself, as readline does.
    pub fn echoes_input(&self) -> bool {
        self.current_shell().as_ref().is_some_and(|shell| shell.pty.shows_input().unwrap_or(true))
    }

    /// Types a key at the prompt; says whether the shell has done with it and still waits at the same prompt.
    ///
    /// # Errors
    ///
    /// As for [`Session::type_bytes`].
    pub async fn press_at_prompt(&self, key: u8) -> Result<bool, SessionError> {
        self.type_bytes(&[key]).await?;
        self.settle().await;
        Ok(self.progress.borrow().idle)
    }

    /// Whether a command runs that nobody need be waiting for. A shell that is only starting runs none.
    pub fn runs_a_command(&self) -> bool {
        let has_shell = self.current_shell().is_some();
        let progress = self.progress.borrow();
        has_shell && !progress.idle && !progress.lost && progress.prompts > progress.prompts_at_start
    }

    fn running_shell(&self) -> Result<Arc<Shell>, SessionError> {
        self.current_shell().clone().ok_or_else(|| SessionError::NothingRunning { session: self.id().clone() })
    }

    async fn write(&self, shell: &Shell, bytes: &[u8]) -> Result<(), SessionError> {
        let mut typed = 0;
        while typed < bytes.len() {
            let written = tokio::select! {
                biased;
                () = self.closed.cancelled() => return Err(SessionError::Closed),
                () = shell.ending.cancelled() => return Err(SessionError::Reset { session: self.id().clone() }),
                written = tokio::time::timeout(LONGEST_STALL, shell.pty.write(&bytes[typed..])) => written,
            };
            match written {
                Ok(Ok(count)) => typed += count,
                Ok(Err(source)) => return Err(SessionError::Write { session: self.id().clone(), source }),
                Err(_) => {
                    return Err(SessionError::NotRead { session: self.id().clone(), typed, total: bytes.len() });
                }
            }
        }
        Ok(())
    }

    /// Ends the shell and all that it started, whatever has become of it, and starts another in the directory that the
    /// session began in. Returns once the new shell runs.
    ///
    /// # Errors
    ///
    /// [`SessionError::Closed`], or why no shell could be started.
    ///
    /// # Cancel safety
    ///
    /// A dropped call has ended the shell once it has begun; the next command starts another.
    pub async fn reset(self: &Arc<Self>) -> Result<(), SessionError> {
        self.end_shell().await;
        if self.closed.is_cancelled() {
            return Err(SessionError::Closed);
        }
        let session = self.clone();
        // Painting a screen may be waited for behind much output.
        let _ = tokio::task::spawn_blocking(move || session.view().reset()).await;
        self.progress.send_modify(|progress| progress.facts = ShellFacts::default());
        self.ensure_shell()?;
        self.take_replaced();
        Ok(())
    }

    /// Ends the present shell with all that it started; returns when it has gone.
    async fn end_shell(&self) {
        let mut progress = self.progress();
        let Some(shell) = self.current_shell().clone() else { return };
        shell.ending.cancel();
        while self.current_shell().as_ref().is_some_and(|current| Arc::ptr_eq(current, &shell)) {
            if progress.changed().await.is_err() {
                break;
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
    pub async fn resize(self: &Arc<Self>, size: TerminalSize) -> Result<(), SessionError> {
        self.running_shell()?
            .pty
            .resize(size.rows, size.columns)
            .map_err(|source| SessionError::Write { session: self.id().clone(), source })?;
        *self.terminal.lock().unwrap_or_else(PoisonError::into_inner) = size;
        self.in_view(move |view| view.screen().resize(size.rows, size.columns)).await;
        Ok(())
    }

    /// Sends `signal` to the foreground process group of the terminal.
    ///
    /// # Errors
    ///
    /// [`SessionError::NothingRunning`] if the shell is at its prompt or has ended.
    pub async fn signal(&self, signal: Signal) -> Result<(), SessionError> {
        let nothing = || SessionError::NothingRunning { session: self.id().clone() };
        let shell = self.running_shell()?;
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
        let new_shell = self.take_replaced().is_some();
        let mut progress = self.progress();
        let before = progress.borrow_and_update().clone();
        let kills_before = memory::kills();
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
            Waited::ShellLost => CommandOutcome::ShellLost,
            Waited::Closed => return Err(SessionError::Closed),
        };
        let end = if now.idle { now.prompt_start } else { self.log.end() };
        let reading = !now.idle
            && !now.started
            && before.facts.echoes
            && matches!(waited, Waited::NoChange(_) | Waited::TimedOut(_));
        // As long as the shell wants more of the command, all that there is is the echo.
        let start = if reading { end } else { now.command_start };
        let (output, truncated, output_end) = self.rendered(start, end).await;
        let out_of_memory = outcome.was_killed() && memory::kills() > kills_before;
        Ok(CommandResult {
            outcome,
            out_of_memory,
            output,
            truncated,
            output_start: start,
            output_end,
            working_dir: self.working_dir(&now).display().to_string(),
            new_shell,
        })
    }

    /// The log from `start` on, as a terminal of the session's width shows it.
    async fn rendered(&self, start: ByteOffset, end: ByteOffset) -> (String, bool, ByteOffset) {
        let end = end.max(start);
        let size = self.terminal();
        let log = self.log.clone();
        let render = move || {
            let (bytes, truncated) = log.copy(start, end);
            let mut screen = Screen::for_output(ScreenSize { rows: size.rows, columns: size.columns }, bytes.len());
            screen.feed(&bytes);
            drop(bytes);
            let truncated = truncated || screen.lines_dropped() > 0;
            (screen.text().trim_end_matches('\n').to_owned(), truncated, end)
        };
        let mebibytes = u32::try_from(end.0.saturating_sub(start.0) >> 20).unwrap_or(u32::MAX).saturating_add(1);
        let _turn = RENDERING.acquire_many(mebibytes.min(RENDERED_AT_ONCE)).await;
        tokio::task::spawn_blocking(render).await.unwrap_or_else(|_| (String::new(), true, end))
    }

    /// Ends the shell and everything that it started, politely and then surely; the session cannot be used again.
    ///
    /// Returns when they are gone; also what a shell that has ended itself has left.
    pub async fn close(&self) {
        self.closed.cancel();
        let mut progress = self.progress();
        while self.current_shell().is_some() {
            if progress.changed().await.is_err() {
                break;
            }
        }
        self.tree.end(pump::GRACE).await;
        // The shell may have ended long before, and its readers wait for another.
        self.log.close(None);
    }

    /// Makes sure that nothing is left of a session that was closed.
    ///
    /// # Errors
    ///
    /// A problem that names the processes that the kernel cannot end.
    pub async fn ensure_gone(&self) -> Result<(), Problem> {
        self.tree.ensure_gone(&format!("session `{}`", self.id())).await
    }
}

impl Shell {
    /// Whether readline has the terminal and has read all that was typed.
    fn has_read_all(&self) -> bool {
        self.pty.unread().is_ok_and(|bytes| bytes == 0) && self.pty.is_canonical().is_ok_and(|canonical| !canonical)
    }
}

/// A longer command is not pasted but sent.
const LONGEST_PASTE: usize = 16 << 10;
const PASTE_START: &str = "\x1b[200~";
const PASTE_END: &str = "\x1b[201~";
/// What begins a paste and what is Enter in a shell that marks its prompts: the usual keys may mean anything to a user.
const OUR_PASTE_START: &str = "\x1b[7770~";
const OUR_ENTER: &str = "\x1b[7771~";
/// What makes readline leave a search or half a key, sets a terminal going that Ctrl-S has stopped, and takes away what
/// stands on the line. Where Ctrl-Q is not the terminal's, it quotes the bell behind it.
const CLEAN_LINE: &str = "\x07\x11\x07\x15";

/// What types `command` as one paste. Readline takes a carriage return in a paste for a line feed, and knows a paste's
/// end by its bytes: a command that holds either is spelled out.
fn pasted(command: &str, clean: bool) -> String {
    let clean = if clean { CLEAN_LINE } else { "" };
    if command.contains('\r') || command.contains(PASTE_END) {
        return format!("{clean}{OUR_PASTE_START}eval {}{PASTE_END}{OUR_ENTER}", spelled_out(command));
    }
    format!("{clean}{OUR_PASTE_START}{command}{PASTE_END}{OUR_ENTER}")
}

/// What makes the shell read `command` as it comes and run it. Readline takes a paste apart byte by byte.
fn announced(command: &str, clean: bool) -> String {
    let clean = if clean { CLEAN_LINE } else { "" };
    let length = command.len();
    let line = format!("{{ __wharf_take {length}; }} 2>/dev/null; eval \"$__wharf_text\"");
    format!("{clean}{OUR_PASTE_START}{line}{PASTE_END}{OUR_ENTER}")
}

/// A line that is typed where there is no pasting is not longer: a terminal cuts one at 4095 bytes, busybox at 1023.
const LONGEST_LINE: usize = 700;
/// What takes away what stands on a line that a terminal edits, and sets one going that Ctrl-S has stopped.
const ERASED_LINE: &str = "\x11\x15";

/// What types `command` where there is no pasting. What a terminal or a line editor would take for keys is spelled out,
/// and so is what would be too long a line.
fn evaluated(command: &str, clean: bool) -> String {
    let clean = if clean { ERASED_LINE } else { "" };
    let is_long = command.split('\n').any(|line| line.len() > LONGEST_LINE);
    if is_long || has_keys(command) || command.contains(['\t', '\x7f']) {
        return format!("{clean}__wharf_started; eval \"__wharf_again;$(printf %b{})\"\r", spelled_for_printf(command));
    }
    format!("{clean}__wharf_started; eval {}\r", quoted_for_shell(command))
}

/// A text as words of a POSIX shell that its `printf %b` puts together, in printable characters on short lines.
fn spelled_for_printf(text: &str) -> String {
    let (mut out, mut line) = (String::new(), String::new());
    for character in text.chars() {
        match character {
            '\'' => line.push_str("\\0047"),
            '\\' => line.push_str("\\\\"),
            control if control.is_ascii_control() => line.push_str(&format!("\\0{:03o}", control as u32)),
            other => line.push(other),
        }
        if line.len() >= LONGEST_LINE {
            out.push_str(&format!(" \\\n'{}'", std::mem::take(&mut line)));
        }
    }
    out.push_str(&format!(" \\\n'{line}'"));
    out
}

/// Whether a terminal would take some of it for more than text: Ctrl-C, Ctrl-S and their like.
fn has_keys(command: &str) -> bool {
    command.bytes().any(|byte| byte < 0x20 && !matches!(byte, b'\n' | b'\t'))
}

/// Whether the shell may have lost its hook once it has run this line. Of several lines it is not known whether all
/// were read; and nothing must be typed into the rest of a command, or to a `read` of the shell's own.
fn may_lose_hook(command: &str) -> bool {
    const HINTS: [&str; 14] = [
        "PROMPT_COMMAND",
        "source",
        "eval",
        "exec",
        "unset",
        ". ",
        "alias",
        "trap",
        "shopt",
        "enable",
        "readonly",
        "declare",
        "typeset",
        "__wharf",
    ];
    !command.trim_end().contains('\n')
        && HINTS.iter().any(|hint| command.contains(hint))
        && !["read", "select"].iter().any(|hint| command.replace("readonly", "").contains(hint))
}

/// A text as one word of bash, in printable characters on one line.
fn spelled_out(text: &str) -> String {
    let mut out = String::from("$'");
    for character in text.chars() {
        match character {
            '\n' => out.push_str("\\n"),
            '\'' | '\\' => out.extend(['\\', character]),
            // History expansion looks into this kind of quotes too.
            '!' => out.push_str("\\041"),
            control if control.is_ascii_control() => out.push_str(&format!("\\{:03o}", control as u32)),
            other => out.push(other),
        }
    }
    out.push('\'');
    out
}

/// A text as one word of a POSIX shell.
fn quoted_for_shell(text: &str) -> String {
    format!("'{}'", text.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests;
