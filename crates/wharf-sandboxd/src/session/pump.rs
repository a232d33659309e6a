//! The life of one shell: start it, read its terminal, say what happened, reap it.

use std::{
    io,
    path::Path,
    sync::{Arc, PoisonError, atomic::Ordering},
    time::Duration,
};

use tokio::time::Instant;
use tracing::{Instrument, debug, info_span};
use wharf_protocol::{ByteOffset, Stream};

use super::{Session, SessionError, Shell};
use crate::{
    core::random_hex,
    process::spawn::{self, Child, Spawn, Stdio},
    pty,
    transcript::{Event, ShellFacts, Transcript},
};

const STARTUP_BASH: &str = include_str!("startup.bash");
const STARTUP_SH: &str = include_str!("startup.sh");
const READ_BYTES: usize = 64 << 10;
/// How often a quiet, busy shell is looked at: is it at a prompt that has lost its mark?
const FIRST_LOOK: Duration = Duration::from_millis(100);
const LATER_LOOK: Duration = Duration::from_secs(2);
/// How long the terminal is read after the shell has ended while others hold it open.
const DRAIN: Duration = Duration::from_millis(50);
/// How long a closed session's programs have to end by themselves.
pub(super) const GRACE: Duration = Duration::from_secs(2);

impl Session {
    /// Starts a shell if there is none; says whether it did.
    pub(super) async fn ensure_shell(self: &Arc<Self>) -> Result<bool, SessionError> {
        let mut shell = self.shell.lock().await;
        if self.closed.is_cancelled() {
            return Err(SessionError::Closed);
        }
        if shell.is_some() {
            return Ok(false);
        }
        let (new, child, transcript) = self.spawn_shell()?;
        let new = Arc::new(new);
        *shell = Some(new.clone());
        let span = info_span!("shell", session = %self.id(), pid = child.pid().as_raw_nonzero());
        self.tasks.spawn(self.clone().pump(new, child, transcript).instrument(span));
        Ok(true)
    }

    fn spawn_shell(&self) -> Result<(Shell, Child, Transcript), SessionError> {
        let terminal = self.terminal();
        let open = |source| SessionError::OpenTerminal { session: self.id().clone(), source };
        let start = |source| SessionError::StartShell { session: self.id().clone(), source };
        let (pty, slave) = pty::open(terminal.rows, terminal.columns).map_err(open)?;
        let nonce = random_hex(16);
        let settings = &self.settings;
        let mut environment = settings.environment.clone();
        environment.insert("TERM".to_owned(), settings.term.to_owned());
        environment.insert("WHARF_NONCE".to_owned(), nonce.clone());
        environment.insert("WHARF_SESSION".to_owned(), self.id().to_string());
        if settings.plain_prompt {
            environment.insert("WHARF_PLAIN_PROMPT".to_owned(), "1".to_owned());
        }
        let path = environment.get("PATH").cloned().unwrap_or_else(|| spawn::DEFAULT_PATH.to_owned());
        let bash = spawn::find_program("bash", &path);
        let pastes = bash.is_some();
        let startup = if pastes { STARTUP_BASH } else { STARTUP_SH };
        let startup = spawn::memory_file("wharf-startup", &[startup, settings.startup].concat()).map_err(start)?;
        let startup_path = spawn::inherited_path(&startup);
        let argv = match &bash {
            Some(bash) => vec![bash.clone().into_os_string(), "--rcfile".into(), startup_path.into(), "-i".into()],
            None if spawn::find_program("sh", &path).is_none() => {
                let why = "there is neither bash nor sh; `wharf exec` runs the programs that there are";
                return Err(start(io::Error::new(io::ErrorKind::NotFound, why)));
            }
            None => {
                environment.insert("ENV".to_owned(), startup_path);
                vec!["sh".into(), "-i".into()]
            }
        };
        let remembered = self.progress.borrow().facts.working_dir.clone();
        let working_dir = remembered.as_deref().map(Path::new).filter(|path| path.is_dir());
        let child = spawn::spawn(Spawn {
            argv: &argv,
            user: &settings.user,
            environment: &environment,
            working_dir: working_dir.unwrap_or(&settings.working_dir),
            stdio: Stdio::Terminal(slave),
            inherited: vec![startup],
            tree: &self.tree,
        })
        .map_err(start)?;
        let shell = Shell { pty, pid: child.pid(), pastes };
        Ok((shell, child, Transcript::new(&nonce)))
    }

    /// Reads the shell's terminal until the shell has ended or the session is closed.
    async fn pump(self: Arc<Self>, shell: Arc<Shell>, mut child: Child, mut transcript: Transcript) {
        let mut buffer = vec![0; READ_BYTES];
        let mut latest_prompt = None;
        let mut repair = Repair::new();
        let end = loop {
            let looking = shell.pastes && !self.progress.borrow().idle && !self.reads_lines.load(Ordering::Relaxed);
            tokio::select! {
                biased;
                () = self.closed.cancelled() => {
                    break child.end(GRACE).await;
                }
                read = shell.pty.read(&mut buffer) => match read {
                    Ok(0) | Err(_) => break child.wait().await,
                    Ok(count) => {
                        self.take_in(&shell, &mut transcript, &buffer[..count], &mut latest_prompt, &mut repair).await;
                    }
                },
                end = child.wait() => {
                    self.drain(&shell, &mut transcript, &mut buffer, &mut latest_prompt, &mut repair).await;
                    break end;
                }
                () = tokio::time::sleep_until(repair.next_look), if looking => {
                    if repair.is_due(&shell) {
                        debug!("the shell is at a prompt without a mark: its hooks are put back");
                        repair.muted = true;
                        // The shell may have gone meanwhile: then the loop ends by itself.
                        let _ = shell.pty.write_all(b"\x15 __wharf_prompt\r").await;
                    }
                }
            }
        };
        debug!(code = end.code, signal = end.signal, "the shell has ended");
        let mut current = self.shell.lock().await;
        if current.as_ref().is_some_and(|current| Arc::ptr_eq(current, &shell)) {
            *current = None;
        }
        drop(current);
        self.progress.send_modify(|progress| {
            progress.ends += 1;
            progress.idle = false;
            progress.last_end = Some(end);
        });
        if self.closed.is_cancelled() {
            self.log.close(None);
        }
    }

    async fn drain(
        &self,
        shell: &Shell,
        transcript: &mut Transcript,
        buffer: &mut [u8],
        latest_prompt: &mut Option<String>,
        repair: &mut Repair,
    ) {
        let until = Instant::now() + DRAIN;
        while let Ok(Ok(count @ 1..)) = tokio::time::timeout_at(until, shell.pty.read(buffer)).await {
            self.take_in(shell, transcript, &buffer[..count], latest_prompt, repair).await;
        }
    }

    /// Applies what was read to the log, the view and the progress, then wakes whoever waits.
    async fn take_in(
        &self,
        shell: &Shell,
        transcript: &mut Transcript,
        bytes: &[u8],
        latest_prompt: &mut Option<String>,
        repair: &mut Repair,
    ) {
        repair.heard();
        let mut replies = Vec::new();
        let mut marks = Vec::new();
        let mut output = false;
        {
            let mut view = self.view.lock().unwrap_or_else(PoisonError::into_inner);
            for event in transcript.feed(bytes) {
                match event {
                    Event::Output(_) | Event::CommandStarted if repair.muted => {}
                    Event::Output(bytes) => {
                        output = true;
                        self.log.append(Stream::Terminal, &bytes);
                        view.output(&bytes);
                        replies.extend(view.screen().take_replies());
                    }
                    Event::MoreWanted => repair.more_wanted = true,
                    Event::CommandStarted => {
                        repair.more_wanted = false;
                        view.command_started();
                        marks.push(Mark::Started(self.log.end()));
                    }
                    Event::PromptShown(facts) => {
                        let painted_again = facts.prompt.is_some() && facts.prompt == *latest_prompt;
                        // Readline has the terminal before it paints a prompt: what a program prints is no prompt.
                        let forged = shell.pastes && shell.pty.is_canonical().unwrap_or(true);
                        if painted_again || forged {
                            continue;
                        }
                        repair.muted = false;
                        repair.more_wanted = false;
                        latest_prompt.clone_from(&facts.prompt);
                        view.prompt_shown(&facts);
                        marks.push(Mark::Prompt(facts, self.log.end()));
                    }
                }
            }
            self.progress.send_modify(|progress| {
                progress.changes += u64::from(output);
                for mark in marks {
                    match mark {
                        // Several commands of one text make one output.
                        Mark::Started(start) if !std::mem::replace(&mut progress.started, true) => {
                            progress.command_start = start;
                            progress.idle = false;
                        }
                        Mark::Started(_) => progress.idle = false,
                        Mark::Prompt(facts, start) => {
                            progress.prompts += 1;
                            progress.idle = true;
                            progress.started = false;
                            progress.facts = facts;
                            progress.prompt_start = start;
                        }
                    }
                }
            });
        }
        if !replies.is_empty() && self.terminals.load(Ordering::Relaxed) == 0 {
            // A terminal answers at once or not at all: a full input queue loses the answer.
            let _ = tokio::time::timeout(DRAIN, shell.pty.write_all(&replies)).await;
        }
    }
}

/// What a shell said, and where in the log.
enum Mark {
    Started(ByteOffset),
    Prompt(ShellFacts, ByteOffset),
}

/// Notices a shell that is at its prompt although no mark said so: its user has replaced PS1 and PROMPT_COMMAND.
#[derive(Debug)]
struct Repair {
    next_look: Instant,
    pause: Duration,
    /// Whether the latest look found the shell reading a line.
    suspicious: bool,
    /// Whether output is thrown away: it is the echo of what repairs the prompt.
    muted: bool,
    /// Whether the shell reads the rest of a command: nothing must be typed into that.
    more_wanted: bool,
}

impl Repair {
    fn new() -> Self {
        Self {
            next_look: Instant::now() + FIRST_LOOK,
            pause: FIRST_LOOK,
            suspicious: false,
            muted: false,
            more_wanted: false,
        }
    }

    fn heard(&mut self) {
        self.pause = FIRST_LOOK;
        self.next_look = Instant::now() + FIRST_LOOK;
        self.suspicious = false;
    }

    /// Whether two looks in a row, with nothing printed between them, found the shell itself reading a line.
    fn is_due(&mut self, shell: &Shell) -> bool {
        let reading = shell.pty.foreground_process_group().is_ok_and(|group| group == shell.pid)
            && shell.pty.is_canonical().is_ok_and(|canonical| !canonical);
        let due = reading && self.suspicious && !self.muted && !self.more_wanted;
        self.suspicious = reading;
        self.pause = if reading { FIRST_LOOK } else { (self.pause * 2).min(LATER_LOOK) };
        self.next_look = Instant::now() + self.pause;
        due
    }
}
