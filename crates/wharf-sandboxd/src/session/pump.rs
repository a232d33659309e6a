//! The life of one shell: start it, read its terminal, say what happened, reap it.

use std::{
    io::{self, Write},
    os::fd::OwnedFd,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError, atomic::Ordering},
    time::Duration,
};

use rustix::{
    fs::{Mode, OFlags},
    process::Pid,
};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{Instrument, debug, info_span};
use wharf_protocol::{ByteOffset, Stream};

use super::{
    CLEAN_LINE, PASTE_END, PASTE_START, Session, SessionError, Shell, View,
    nested::{self, Image},
    spelled_out,
};
use crate::{
    core::random_hex,
    files::rights::Rights,
    process::spawn::{self, Child, Spawn, Stdio},
    pty,
    transcript::{Author, Event, ShellFacts, Transcript},
};

const STARTUP_BASH: &str = include_str!("startup.bash");
const STARTUP_SH: &str = include_str!("startup.sh");
/// Before anything of the user's: nobody else reads the start-up file, and `!` is an ordinary character.
const BEFORE_LESSON: &str = "{ exec @FILE@<&-; } 2>/dev/null\nset +H\n";
/// The hook is there before the user's own start-up file, which may make its place unchangeable. Before bash 5.1 there is
/// only the one place, which such files ask whether it is empty.
const AFTER_LESSON: &str = "if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] > 500)); then __wharf_install; fi\n\
                            if [[ -f ~/.bashrc && -r ~/.bashrc ]]; then . ~/.bashrc; fi\n\
                            __wharf_install\n";
/// Installs the hook, and takes the line that taught a shell out of its history.
const FORGET: &str = "__wharf_line=$(HISTTIMEFORMAT= history 1)\n\
                      case $__wharf_line in *__wharf_install*) history -d \"${__wharf_line%%[!0-9 ]*}\" ;; esac\n\
                      __wharf_install \"$__wharf_was\"\n";
const READ_BYTES: usize = 64 << 10;
/// More bytes than this are taken in off the threads that serve requests: rendering them may take a while.
const FEW_BYTES: usize = 512;
/// How often a quiet, busy shell is looked at: is it at a prompt that has no mark?
const FIRST_LOOK: Duration = Duration::from_millis(100);
const LATER_LOOK: Duration = Duration::from_secs(2);
/// How long a shell may take to learn to mark its prompts.
const LONGEST_LESSON: Duration = Duration::from_secs(3);
/// How long the terminal is read after the shell has ended while others hold it open.
const DRAIN: Duration = Duration::from_millis(50);
/// How long a terminal that no program has open is left alone: one may open it again.
const ABANDONED: Duration = Duration::from_millis(200);
/// How long a closed session's programs have to end by themselves.
pub(super) const GRACE: Duration = Duration::from_secs(2);
const ERASE_LINE: &[u8] = b"\r\x1b[K";
/// So many shells of one session can mark their prompts.
const MOST_SHELLS: usize = 64;

impl Session {
    /// Starts a shell if there is none; says whether it did.
    pub(crate) fn ensure_shell(self: &Arc<Self>) -> Result<bool, SessionError> {
        let mut shell = self.current_shell();
        if self.closed.is_cancelled() {
            return Err(SessionError::Closed);
        }
        if shell.is_some() {
            return Ok(false);
        }
        let (new, child, intake) = self.spawn_shell()?;
        let new = Arc::new(new);
        *shell = Some(new.clone());
        self.progress.send_modify(|progress| {
            progress.prompts_at_start = progress.prompts;
            progress.lost = false;
        });
        drop(shell);
        if let Some(end) = self.progress.borrow().last_end {
            *self.replaced.lock().unwrap_or_else(PoisonError::into_inner) = Some(end);
        }
        let span = info_span!("shell", session = %self.id(), pid = child.pid().as_raw_nonzero());
        self.tasks.spawn(self.clone().pump(new, child, intake).instrument(span));
        Ok(true)
    }

    fn spawn_shell(&self) -> Result<(Shell, Child, Intake), SessionError> {
        let terminal = self.terminal();
        let open = |source| SessionError::OpenTerminal { session: self.id().clone(), source };
        let start = |source| SessionError::StartShell { session: self.id().clone(), source };
        let (pty, slave) = pty::open(terminal.rows, terminal.columns).map_err(open)?;
        let nonce = random_hex(16);
        let settings = &self.settings;
        let mut environment = settings.environment.clone();
        environment.insert("TERM".to_owned(), settings.term.to_owned());
        let path = environment.get("PATH").cloned().unwrap_or_else(|| spawn::DEFAULT_PATH.to_owned());
        let bash = spawn::find_program("bash", &path);
        let pastes = bash.is_some();
        let (startup, mut writer) = pipe().map_err(start)?;
        if rustix::process::geteuid().is_root() {
            // The shell opens it by its path, and may only if it is its own.
            let user = rustix::process::Uid::from_raw(settings.user.uid);
            rustix::fs::fchown(&startup, Some(user), None).map_err(|error| start(error.into()))?;
        }
        let startup_path = spawn::inherited_path(&startup);
        let text = if pastes {
            let file = startup_path.rsplit('/').next().unwrap_or_default();
            [&BEFORE_LESSON.replace("@FILE@", file), &self.lesson(STARTUP_BASH, &nonce), AFTER_LESSON].concat()
        } else {
            self.lesson(STARTUP_SH, &nonce)
        };
        // A pipe holds 64 KiB, which is more than this, and is read but once.
        writer.write_all([&text, settings.startup].concat().as_bytes()).map_err(start)?;
        drop(writer);
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
        let working_dir = self.directory_to_start_in();
        let child = spawn::spawn(Spawn {
            argv: &argv,
            user: &settings.user,
            environment: &environment,
            working_dir: &working_dir,
            stdio: Stdio::Terminal(slave),
            inherited: vec![startup],
            tree: &self.tree,
        })
        .map_err(start)?;
        let mut transcript = Transcript::default();
        let author = transcript.add(nonce);
        let intake = Intake {
            transcript,
            shells: vec![Marking { author, group: child.pid(), count: 0, image: None }],
            repair: Repair::new(),
            unpainted: None,
            is_doubtful: false,
            started_at: 0,
        };
        let shell = Shell {
            pty,
            pid: child.pid(),
            pastes,
            writing: tokio::sync::Mutex::new(()),
            ending: CancellationToken::new(),
        };
        Ok((shell, child, intake))
    }

    /// A shell that takes an ended one's place goes where that was, or as near to it as its user may: a directory that is
    /// gone must not leave the session without a shell for ever.
    fn directory_to_start_in(&self) -> PathBuf {
        let settings = &self.settings;
        let progress = self.progress.borrow();
        if progress.ends == 0 {
            return settings.working_dir.clone();
        }
        let remembered = progress.facts.working_dir.as_ref().map(PathBuf::from);
        drop(progress);
        let places = [settings.working_dir.as_path(), &settings.user.home, Path::new("/")].map(Path::to_owned);
        let can_enter = |directory: &PathBuf| {
            // Only who may search a directory gets at its own entry.
            let entry = directory.join(".");
            let open = || rustix::fs::open(&entry, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty());
            Rights::of(&settings.user).run(open).is_ok_and(|opened| opened.is_ok())
        };
        let mut places = remembered.into_iter().chain(places);
        places.find(can_enter).unwrap_or_else(|| settings.working_dir.clone())
    }

    /// The start-up file with a nonce, without the comments.
    fn lesson(&self, startup: &str, nonce: &str) -> String {
        let plain = match self.settings.plain_prompt {
            true => "[[ ${PS1@a} == *r* ]] || PS1=; [[ ${PS2@a} == *r* ]] || PS2=",
            false => ":",
        };
        let lines = startup.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        let text: String = lines.flat_map(|line| [line, "\n"]).collect();
        text.replace("@NONCE@", nonce).replace("@PLAIN@", plain)
    }

    /// Reads the shell's terminal until the shell has ended or the session is closed.
    async fn pump(self: Arc<Self>, shell: Arc<Shell>, mut child: Child, mut intake: Intake) {
        let mut buffer = vec![0; READ_BYTES];
        let mut abandoned_until = None;
        self.view().shell_started();
        let end = loop {
            let looking = shell.pastes && !self.progress.borrow().idle;
            let next_look = intake.repair.next_look;
            tokio::select! {
                biased;
                () = self.closed.cancelled() => break child.end(GRACE).await,
                () = shell.ending.cancelled() => break child.end(GRACE).await,
                end = child.wait() => {
                    let until = Instant::now() + DRAIN;
                    while let Ok(Ok(count @ 1..)) = tokio::time::timeout_at(until, shell.pty.read(&mut buffer)).await {
                        (intake, buffer) = self.take_in(&shell, intake, buffer, count).await;
                    }
                    break end;
                }
                // What has replaced the shell may have let go of the terminal, and runs on.
                () = until(abandoned_until), if abandoned_until.is_some() => abandoned_until = None,
                read = shell.pty.read(&mut buffer), if abandoned_until.is_none() => match read {
                    Ok(0) | Err(_) => abandoned_until = Some(Instant::now() + ABANDONED),
                    Ok(count) => (intake, buffer) = self.take_in(&shell, intake, buffer, count).await,
                },
                () = tokio::time::sleep_until(next_look), if looking => {
                    if let Some(facts) = intake.unpainted.take() {
                        // Readline paints no prompt that it could be known by.
                        let mark = self.at_prompt(&mut intake, &mut *self.view(), facts);
                        self.note(vec![mark], false);
                    } else if let Some(output) = intake.repair.given_up() {
                        self.show(&output);
                    } else if let Some(pupil) = intake.pupil(&shell, &self) {
                        self.teach(&shell, &mut intake, pupil).await;
                    }
                }
            }
        };
        debug!(code = end.code, signal = end.signal, "the shell has ended");
        let mut current = self.current_shell();
        if current.as_ref().is_some_and(|current| Arc::ptr_eq(current, &shell)) {
            *current = None;
        }
        drop(current);
        self.progress.send_modify(|progress| {
            progress.ends += 1;
            progress.idle = false;
            progress.started = false;
            progress.last_end = Some(end);
        });
        if self.closed.is_cancelled() {
            self.log.close(None);
        }
    }

    /// Makes a shell that waits at its prompt mark it from now on. What it shows of that is kept from everybody.
    async fn teach(&self, shell: &Shell, intake: &mut Intake, pupil: Pid) {
        debug!(group = pupil.as_raw_nonzero(), "a shell is at a prompt without a mark: it is taught to mark it");
        let nonce = random_hex(16);
        let lesson = ["__wharf_was=$?\n", &self.lesson(STARTUP_BASH, &nonce), FORGET].concat();
        let pastes = self.view().screen().takes_pastes();
        let (start, end) = if pastes { (PASTE_START, PASTE_END) } else { ("", "") };
        let line = format!("{CLEAN_LINE}{start} eval {}{end}\r", spelled_out(&lesson));
        intake.add(nonce, pupil);
        intake.repair.lesson =
            Some(Lesson { until: Instant::now() + LONGEST_LESSON, group: pupil, output: Vec::new(), was_read: false });
        // A shell that does not read it gives the lesson up by its time.
        let _ = tokio::time::timeout(LONGEST_LESSON, shell.pty.write_all(line.as_bytes())).await;
    }

    /// Shows output that was held back.
    fn show(&self, output: &[u8]) {
        let mut view = self.view();
        self.log.append(Stream::Terminal, output);
        view.output(output);
        drop(view);
        self.progress.send_modify(|progress| progress.changes += 1);
    }

    /// Takes in what was read, and answers what programs ask of the terminal.
    async fn take_in(
        self: &Arc<Self>,
        shell: &Arc<Shell>,
        mut intake: Intake,
        buffer: Vec<u8>,
        count: usize,
    ) -> (Intake, Vec<u8>) {
        let replies;
        let buffer = if count <= FEW_BYTES {
            replies = self.apply(shell, &mut intake, &buffer[..count]);
            // Many small pieces must not keep a thread for themselves.
            tokio::task::yield_now().await;
            buffer
        } else {
            let (session, shell) = (self.clone(), shell.clone());
            let work = move || {
                let replies = session.apply(&shell, &mut intake, &buffer[..count]);
                (intake, buffer, replies)
            };
            let taken;
            (intake, taken, replies) =
                tokio::task::spawn_blocking(work).await.expect("taking output in does not panic");
            taken
        };
        if !replies.is_empty()
            && self.terminals.load(Ordering::Relaxed) == 0
            && let Ok(_writing) = shell.writing.try_lock()
        {
            // A terminal answers at once or not at all: a full input queue loses the answer.
            let _ = tokio::time::timeout(DRAIN, shell.pty.write_all(&replies)).await;
        }
        (intake, buffer)
    }

    /// Applies what was read to the log, the view and the progress, then wakes whoever waits. Gives the terminal's
    /// answers.
    fn apply(&self, shell: &Shell, intake: &mut Intake, bytes: &[u8]) -> Vec<u8> {
        intake.repair.heard();
        let mut replies = Vec::new();
        let mut marks = Vec::new();
        let mut output = false;
        let mut view = self.view();
        for event in intake.transcript.feed(bytes) {
            match event {
                Event::Output(bytes) if intake.repair.lesson.is_some() => intake.repair.hold(&bytes),
                Event::Output(bytes) => {
                    output = true;
                    self.log.append(Stream::Terminal, &bytes);
                    view.output(&bytes);
                    replies.extend(view.screen().take_replies());
                }
                Event::LineBegun => {
                    if let Some(facts) = intake.unpainted.take() {
                        marks.push(self.at_prompt(intake, &mut *view, facts));
                    } else if let Some(lesson) = &intake.repair.lesson {
                        // It has a prompt again, and has not said so. Of a shell in a shell that is a program that runs.
                        if lesson.was_read && lesson.group == shell.pid && !intake.is_doubtful {
                            intake.repair.refuse();
                            marks.push(Mark::Lost);
                        }
                    } else if !std::mem::take(&mut intake.is_doubtful) {
                        marks.push(Mark::LineBegun);
                    }
                }
                Event::CommandStarted { .. } if intake.repair.lesson.is_some() => {}
                Event::LineRead if intake.repair.lesson.is_some() => intake.repair.lesson_read(),
                Event::LineRead => {
                    view.line_read();
                    marks.push(Mark::LineRead(self.log.end()));
                }
                Event::CommandStarted { author, count } => {
                    if !intake.is_latest(author, count) {
                        continue;
                    }
                    if let Some(facts) = intake.unpainted.take() {
                        marks.push(self.at_prompt(intake, &mut *view, facts));
                    }
                    intake.started_at = nested::now_in_ticks();
                    view.command_started();
                    marks.push(Mark::Started(self.log.end()));
                }
                Event::PromptShown { author, count, facts } => {
                    // A shell at its prompt has the terminal; whoever prints its mark otherwise is not that shell.
                    let foreground = shell.pty.foreground_process_group().ok();
                    if !intake.is_next_prompt(author, count, foreground) {
                        // It may be a shell's all the same, whose next command has the terminal by now.
                        intake.is_doubtful = true;
                        continue;
                    }
                    if facts.echoes && shell.pastes && !facts.cooked {
                        // What the shell still says before it paints the prompt, of jobs that have ended, is output.
                        intake.unpainted = Some(facts);
                    } else {
                        marks.push(self.at_prompt(intake, &mut *view, facts));
                    }
                }
            }
        }
        self.note(marks, output);
        replies
    }

    /// Shows that a shell waits at its prompt.
    fn at_prompt(&self, intake: &mut Intake, view: &mut dyn View, facts: ShellFacts) -> Mark {
        if intake.repair.lesson.take().is_some() {
            // The prompt that it has painted without a mark, and will paint again, is no output.
            self.log.append(Stream::Terminal, ERASE_LINE);
            view.output(ERASE_LINE);
        }
        view.prompt_shown(&facts);
        Mark::Prompt(facts, self.log.end())
    }

    /// Puts what was said into the progress, and wakes whoever waits.
    fn note(&self, marks: Vec<Mark>, output: bool) {
        let nobody_typed = !self.line_touched.load(Ordering::Relaxed);
        self.progress.send_modify(|progress| {
            progress.changes += u64::from(output);
            for mark in marks {
                match mark {
                    // A prompt at which nobody has typed reads no line: some other program switches pasting off and on.
                    Mark::LineRead(_) if progress.idle && nobody_typed => {}
                    Mark::LineRead(end) => progress.line_read = Some(end),
                    // Another line without a prompt between them: the shell wants more of a command.
                    Mark::LineBegun => progress.idle &= progress.line_read.is_none(),
                    // Several commands of one text make one output.
                    Mark::Started(start) if !std::mem::replace(&mut progress.started, true) => {
                        progress.command_start = start;
                        progress.idle = false;
                    }
                    Mark::Started(_) => progress.idle = false,
                    Mark::Lost => progress.lost = !progress.idle,
                    Mark::Prompt(facts, start) => {
                        // What is no command starts none: an error behind what was typed is all the output.
                        if let Some(end) = progress.line_read.take()
                            && !progress.started
                        {
                            progress.command_start = end;
                        }
                        progress.prompts += 1;
                        progress.idle = true;
                        progress.started = false;
                        progress.lost = false;
                        progress.facts = facts;
                        progress.prompt_start = start;
                    }
                }
            }
        });
    }
}

async fn until(at: Option<Instant>) {
    if let Some(at) = at {
        tokio::time::sleep_until(at).await;
    }
}

fn pipe() -> io::Result<(OwnedFd, std::fs::File)> {
    let (reader, writer) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    Ok((reader, writer.into()))
}

/// What a shell said, and where in the log.
enum Mark {
    LineBegun,
    LineRead(ByteOffset),
    Started(ByteOffset),
    Prompt(ShellFacts, ByteOffset),
    /// A shell is at a prompt, does not say so and does not learn to.
    Lost,
}

/// What is known of the shells on one terminal: the session's own, and those that were started in it or in its place.
#[derive(Debug)]
struct Intake {
    transcript: Transcript,
    shells: Vec<Marking>,
    repair: Repair,
    /// What a shell said before a prompt that is not painted yet.
    unpainted: Option<ShellFacts>,
    /// Whether the line that begins next may follow a prompt whose mark did not count.
    is_doubtful: bool,
    /// When the latest command started, in ticks since the start of the machine.
    started_at: u64,
}

/// A shell that marks its prompts.
#[derive(Debug)]
struct Marking {
    author: Author,
    /// The process group that has the terminal when this shell is at its prompt.
    group: Pid,
    /// The count of its latest prompt.
    count: u64,
    /// What the process was at its latest prompt.
    image: Option<Image>,
}

impl Intake {
    fn is_latest(&self, author: Author, count: u64) -> bool {
        self.shells.iter().any(|shell| shell.author == author && shell.count == count)
    }

    fn is_next_prompt(&mut self, author: Author, count: u64, foreground: Option<Pid>) -> bool {
        let next =
            |shell: &&mut Marking| shell.author == author && count > shell.count && Some(shell.group) == foreground;
        let Some(shell) = self.shells.iter_mut().find(next) else { return false };
        shell.count = count;
        shell.image = nested::image(shell.group);
        true
    }

    fn add(&mut self, nonce: String, group: Pid) {
        if self.shells.len() < MOST_SHELLS {
            let author = self.transcript.add(nonce);
            self.shells.push(Marking { author, group, count: 0, image: None });
            return;
        }
        // The first one is the session's own shell.
        let Marking { author, .. } = self.shells.remove(1);
        self.transcript.replace(author, nonce);
        self.shells.push(Marking { author, group, count: 0, image: None });
    }

    /// A shell that waits at a prompt that it does not mark, so that it can be taught: nothing was printed for two looks,
    /// nothing that was typed is left, and it cannot be reading anything else than a new command.
    fn pupil(&mut self, shell: &Shell, session: &Session) -> Option<Pid> {
        let group = shell.pty.foreground_process_group().ok();
        let reading = group.filter(|_| shell.has_read_all());
        let group = self.repair.look(reading)?;
        let image = nested::image(group)?;
        let typed_at = session.typed_at.load(Ordering::Relaxed);
        let known = self.shells.iter().rfind(|shell| shell.group == group);
        let can_learn = match known.map(|known| known.image) {
            // The session's own shell before its first prompt: it still reads its start-up file.
            Some(None) => false,
            Some(Some(before)) if before != image => typed_at < self.started_at && nested::is_interactive_bash(group),
            Some(Some(_)) => typed_at < self.started_at && session.may_lose_hook.load(Ordering::Relaxed),
            None => typed_at < image.began && nested::is_interactive_bash(group),
        };
        can_learn.then_some(group)
    }
}

/// Notices a shell that is at its prompt although no mark said so.
#[derive(Debug)]
struct Repair {
    next_look: Instant,
    pause: Duration,
    /// Whom the latest look found reading a line.
    suspect: Option<Pid>,
    lesson: Option<Lesson>,
    /// Who did not learn to mark its prompts.
    refused: Option<Pid>,
}

/// What a shell prints while it is taught is kept back.
#[derive(Debug)]
struct Lesson {
    until: Instant,
    group: Pid,
    output: Vec<u8>,
    /// Whether the pupil has read it.
    was_read: bool,
}

impl Repair {
    fn new() -> Self {
        Self { next_look: Instant::now() + FIRST_LOOK, pause: FIRST_LOOK, suspect: None, lesson: None, refused: None }
    }

    fn heard(&mut self) {
        self.pause = FIRST_LOOK;
        self.next_look = Instant::now() + FIRST_LOOK;
        self.suspect = None;
    }

    /// Whom two looks in a row, with nothing printed between them, found reading a line.
    fn look(&mut self, reading: Option<Pid>) -> Option<Pid> {
        let reading = reading.filter(|group| self.refused != Some(*group));
        let found = reading.filter(|group| self.suspect == Some(*group) && self.lesson.is_none());
        self.suspect = reading;
        self.pause = if reading.is_some() { FIRST_LOOK } else { (self.pause * 2).min(LATER_LOOK) };
        self.next_look = Instant::now() + self.pause;
        found
    }

    fn hold(&mut self, bytes: &[u8]) {
        if let Some(lesson) = &mut self.lesson {
            let room = READ_BYTES.saturating_sub(lesson.output.len());
            lesson.output.extend_from_slice(&bytes[..bytes.len().min(room)]);
        }
    }

    fn lesson_read(&mut self) {
        if let Some(lesson) = &mut self.lesson {
            lesson.was_read = true;
        }
    }

    /// Gives the lesson up for good; what it made the shell print is nothing that anybody asked for.
    fn refuse(&mut self) {
        self.refused = self.lesson.take().map(|lesson| lesson.group).or(self.refused);
    }

    /// What a shell has printed that did not learn in time.
    fn given_up(&mut self) -> Option<Vec<u8>> {
        let late = self.lesson.take_if(|lesson| lesson.until <= Instant::now())?;
        self.refused = Some(late.group);
        Some(late.output)
    }
}
