//! The `run` action: sections 6.3 to 6.9 of the specification, on a session of the core.
//!
//! What differs from the original on purpose: a command's end is known from the shell's own mark, the exit code is
//! always that of the command, and a shell that has ended is reported with its own status and replaced.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::time::Instant;

use super::{
    console::{Capture, Console},
    multi_command,
};
use crate::{
    process::memory,
    session::{Progress, Session, SessionError, Waited, wait_for_end},
};

const MORE: &str = "You may wait longer to see additional output by sending empty command '', send other commands to \
                    interact with the current process, send keys (\"C-c\", \"C-z\", \"C-d\") to interrupt/kill the \
                    previous command before sending your new command, or use the timeout parameter in execute_bash \
                    for future commands.";
const CONTINUED: &str = "[Below is the output of the previous command.]\n";
const LONGEST_CONTENT: usize = 30_000;
/// The words of OpenHands' later terminal tool.
const RESET: &str = "Terminal session has been reset. All previous environment variables and session state have been \
                     cleared.";
const RESET_COMMAND: &str = "[RESET]";
/// The exit code of what was ended by SIGKILL.
const KILLED: i32 = 128 + 9;
/// In the place of an exit code.
const LOST: &str = "The shell waits for commands, but no longer says how they end: a DEBUG trap refuses its own commands, or \
                    its variables cannot be changed. Whether this command has succeeded is unknown.";
const OUT_OF_MEMORY: &str = "\n[A process was killed: the sandbox has no more memory than its limit.]";
/// Keys that the shell answers with a new prompt, or by ending: Ctrl-C, Ctrl-D, Ctrl-J, Ctrl-M.
const ANSWERED_KEYS: [u8; 4] = [3, 4, 10, 13];

/// The arguments of a `run` action that matter here.
#[derive(Debug, Clone)]
pub struct Run {
    pub command: String,
    pub is_input: bool,
    pub blocking: bool,
    pub hidden: bool,
    /// Whether another shell takes the place of the present one before the command runs.
    pub reset: bool,
    pub timeout: Option<Duration>,
}

/// The metadata of a `run` observation; a field of `None` is `null` on the wire.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Metadata {
    pub exit_code: i32,
    pub pid: i64,
    pub username: Option<String>,
    pub hostname: Option<String>,
    pub working_dir: Option<String>,
    pub python: Option<String>,
    pub prefix: String,
    pub suffix: String,
}

impl Default for Metadata {
    fn default() -> Self {
        Self {
            exit_code: -1,
            pid: -1,
            username: None,
            hostname: None,
            working_dir: None,
            python: None,
            prefix: String::new(),
            suffix: String::new(),
        }
    }
}

/// What a `run` action came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RunReply {
    Ran {
        content: String,
        command: String,
        metadata: Metadata,
        hidden: bool,
    },
    /// An `error` observation.
    Refused(String),
}

/// How the latest command was last reported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Reported {
    Nothing,
    Completed,
    Pending,
}

/// One OpenHands shell: a session of the core and what the agent has been told about it.
#[derive(Debug)]
pub struct BashShell {
    session: Arc<Session>,
    console: Arc<Mutex<Console>>,
    no_change_timeout: Duration,
    reported: Reported,
    /// The whole text behind the latest report of a pending command.
    told: Option<String>,
    /// Whether the agent knows that the shell has ended and a new one takes its place.
    told_of_end: bool,
    /// How many processes the kernel had killed for memory when the latest command began.
    kills_before: Option<u64>,
    initial_dir: String,
    working_dir: String,
}

impl BashShell {
    /// `console` must be the view of `session`.
    pub fn new(
        session: Arc<Session>,
        console: Arc<Mutex<Console>>,
        working_dir: String,
        no_change_timeout: Duration,
    ) -> Self {
        Self {
            session,
            console,
            no_change_timeout,
            reported: Reported::Nothing,
            told: None,
            told_of_end: false,
            kills_before: None,
            initial_dir: working_dir.clone(),
            working_dir,
        }
    }

    /// Where the shell was when its latest command ended.
    pub fn working_dir(&self) -> &str {
        &self.working_dir
    }

    pub fn session(&self) -> &Arc<Session> {
        &self.session
    }

    /// Runs a command, sends input, or waits for more output.
    ///
    /// # Errors
    ///
    /// When the session is closed or no shell can be started.
    ///
    /// # Cancel safety
    ///
    /// A dropped call leaves the command running; the next call reports it as pending if it told about it already,
    /// else its output precedes that of the next command.
    pub async fn execute(&mut self, run: &Run) -> Result<RunReply, SessionError> {
        if !run.reset {
            return self.execute_in_shell(run).await;
        }
        self.session.reset().await?;
        self.reported = Reported::Nothing;
        self.told = None;
        self.told_of_end = false;
        self.working_dir.clone_from(&self.initial_dir);
        if run.command.trim().is_empty() {
            let metadata =
                Metadata { exit_code: 0, working_dir: Some(self.working_dir.clone()), ..Metadata::default() };
            return Ok(reply(RESET.to_owned(), RESET_COMMAND, metadata, run.hidden));
        }
        Ok(match self.execute_in_shell(run).await? {
            RunReply::Ran { content, command, metadata, hidden } => RunReply::Ran {
                content: format!("{RESET}\n\n{content}"),
                command: format!("{RESET_COMMAND} {command}"),
                metadata,
                hidden,
            },
            refused @ RunReply::Refused(_) => refused,
        })
    }

    async fn execute_in_shell(&mut self, run: &Run) -> Result<RunReply, SessionError> {
        let command = run.command.trim();
        if self.reported != Reported::Pending && self.session.runs_a_command() {
            // Whoever asked for it has left: whoever comes now can wait for it, type to it and end it.
            self.reported = Reported::Pending;
            self.told = None;
        }
        if self.reported != Reported::Pending {
            if command.is_empty() {
                return Ok(nothing_to("retrieve logs from"));
            }
            if run.is_input {
                return Ok(nothing_to("interact with"));
            }
        }
        let commands = multi_command::split(command);
        if commands.len() > 1 {
            return Ok(multiple(&commands, command, run.hidden));
        }
        self.session.ready().await?;
        let replaced = self.session.take_replaced().filter(|_| !std::mem::take(&mut self.told_of_end));
        let mut progress = self.session.progress();
        let before = progress.borrow_and_update().clone();
        if let ("", Some(end)) = (command, replaced) {
            let told = self.report(Waited::ShellEnded(end), command, None, false, run, &before).await;
            // The new shell runs already, and whoever asked knows.
            self.told_of_end = false;
            return told;
        }
        let started = Instant::now();
        let idle = before.idle;
        if self.reported == Reported::Pending && !idle && !run.is_input && !command.is_empty() {
            let mut metadata = Metadata {
                suffix: format!(
                    "\n[Your command \"{command}\" is NOT executed. The previous command is still running - You CANNOT \
                     send new commands until the previous command is completed. By setting `is_input` to `true`, you \
                     can interact with the current process: {MORE}]"
                ),
                ..Metadata::default()
            };
            let raw = self.capture().await.between_prompts();
            let content = self.news(None, raw, &mut metadata, CONTINUED);
            return Ok(reply(content, command, metadata, run.hidden));
        }
        let key = special_key(command);
        let mut echoed = None;
        match (command, key) {
            ("", _) => {}
            (_, Some(key)) if idle && !ANSWERED_KEYS.contains(&key) => {
                if self.session.press_at_prompt(key).await?
                    && self.session.progress().borrow().prompts == before.prompts
                {
                    return Ok(self.did_nothing(command, run.hidden));
                }
            }
            (_, Some(key)) => {
                self.console().end_echo();
                self.session.type_bytes(&[key]).await?;
            }
            (_, None) if run.is_input => {
                echoed = Some(command).filter(|_| self.session.echoes_input());
                self.session.type_bytes(command.replace('\n', "\r").as_bytes()).await?;
                self.session.type_bytes(b"\r").await?;
            }
            (_, None) => {
                if before.facts.echoes {
                    // The output of a command that ended unseen stands before the new one, as in the original.
                    if self.reported == Reported::Pending {
                        self.console().expect_shown_echo(command);
                    } else {
                        self.console().expect_echo(command);
                    }
                }
                self.kills_before = memory::kills();
                self.session.submit(command).await?;
            }
        }
        // The empty command reports a pending command that has ended meanwhile at once.
        let prompts_before = if command.is_empty() && idle { None } else { Some(before.prompts) };
        let no_change = (!run.blocking).then_some(self.no_change_timeout);
        let outcome = wait_for_end(&mut progress, &before, prompts_before, started, no_change, run.timeout).await;
        let now = progress.borrow().clone();
        let mut told = self.report(outcome, command, echoed, key.is_some(), run, &now).await?;
        if let (Some(end), RunReply::Ran { metadata, .. }) = (replaced, &mut told) {
            metadata.prefix.insert_str(
                0,
                &format!(
                    "[The shell had ended (exit code {}). This command ran in a new one: directory, variables, functions \
                     and background jobs of the old one are gone.]\n",
                    end.shell_code()
                ),
            );
        }
        Ok(told)
    }

    /// A key at the prompt that the shell answers with nothing.
    fn did_nothing(&mut self, command: &str, hidden: bool) -> RunReply {
        let metadata = Metadata {
            exit_code: 0,
            working_dir: Some(self.working_dir.clone()),
            suffix: completed(0, Some(command)),
            ..self.facts(&self.session.progress().borrow().clone())
        };
        self.reported = Reported::Completed;
        self.told = None;
        self.console().clear();
        reply(String::new(), command, metadata, hidden)
    }

    fn facts(&self, progress: &Progress) -> Metadata {
        let facts = &progress.facts;
        Metadata {
            exit_code: facts.exit_code.unwrap_or(-1),
            pid: facts.background_pid.unwrap_or(-1),
            username: self.session.username(facts.uid),
            hostname: facts.hostname.clone(),
            working_dir: facts.working_dir.clone(),
            python: Some(facts.python.clone().unwrap_or_default()),
            ..Metadata::default()
        }
    }

    async fn report(
        &mut self,
        outcome: Waited,
        command: &str,
        echoed: Option<&str>,
        is_key: bool,
        run: &Run,
        progress: &Progress,
    ) -> Result<RunReply, SessionError> {
        let mut metadata = Metadata::default();
        match outcome {
            Waited::Prompt | Waited::ShellEnded(_) | Waited::ShellLost => {
                metadata = self.facts(progress);
                if let Waited::ShellLost = outcome {
                    metadata.exit_code = -1;
                }
                if let Waited::ShellEnded(end) = &outcome {
                    metadata.exit_code = end.shell_code();
                    metadata.working_dir = Some(self.working_dir.clone());
                }
                if let Some(directory) = &metadata.working_dir {
                    self.working_dir.clone_from(directory);
                }
                let capture = self.capture().await;
                let raw = match outcome {
                    Waited::Prompt if capture.lost_its_start() => {
                        let raw = capture.before_last_prompt().to_owned();
                        metadata.prefix = format!(
                            "[Previous command outputs are truncated. Showing the last {} lines of the output \
                             below.]\n",
                            raw.lines().count()
                        );
                        raw
                    }
                    _ => Capture::between_prompts(&capture),
                };
                if !matches!(outcome, Waited::ShellLost) {
                    metadata.suffix = completed(metadata.exit_code, Some(command).filter(|_| is_key));
                }
                if metadata.exit_code == KILLED && memory::kills() > self.kills_before {
                    metadata.suffix.push_str(OUT_OF_MEMORY);
                }
                let why = match &outcome {
                    Waited::ShellEnded(_) => Some("The shell has ended."),
                    Waited::ShellLost => Some(LOST),
                    _ => None,
                };
                if let Some(why) = why {
                    self.told_of_end = true;
                    metadata.suffix.push_str(&format!(
                        "\n[{why} The next command runs in a new one, in {}: variables, functions and background jobs \
                         are gone.]",
                        self.working_dir
                    ));
                }
                let content = self.news(echoed, raw, &mut metadata, "");
                self.reported = Reported::Completed;
                self.told = None;
                self.console().clear();
                Ok(reply(content, command, metadata, run.hidden))
            }
            Waited::NoChange(after) => {
                metadata.suffix =
                    format!("\n[The command has no new output after {} seconds. {MORE}]", after.as_secs());
                Ok(self.still_running(command, echoed, metadata).await)
            }
            Waited::TimedOut(after) => {
                metadata.suffix =
                    format!("\n[The command timed out after {} seconds. {MORE}]", python_float(after.as_secs_f64()));
                Ok(self.still_running(command, echoed, metadata).await)
            }
            Waited::Closed => Err(SessionError::Closed),
        }
    }

    async fn still_running(&mut self, command: &str, echoed: Option<&str>, mut metadata: Metadata) -> RunReply {
        self.reported = Reported::Pending;
        let raw = self.capture().await.between_prompts();
        let content = self.news(echoed, raw, &mut metadata, CONTINUED);
        reply(content, command, metadata, false)
    }

    /// What is new in `raw` since the last report, without the echo of an input line and white space around it.
    fn news(&mut self, echoed: Option<&str>, raw: String, metadata: &mut Metadata, continued: &str) -> String {
        let new = match &self.told {
            None => raw.as_str(),
            Some(told) => {
                continued.clone_into(&mut metadata.prefix);
                raw.strip_prefix(told.as_str()).unwrap_or(&raw)
            }
        };
        let new = new.trim_start();
        let content = echoed.and_then(|input| without_echo(new, input)).unwrap_or(new).trim().to_owned();
        self.told = Some(raw);
        content
    }

    /// The text of the console, taken off the threads that serve requests: it may have ten thousand long lines.
    async fn capture(&self) -> Capture {
        let console = self.console.clone();
        let capture = move || console.lock().unwrap_or_else(PoisonError::into_inner).capture();
        tokio::task::spawn_blocking(capture).await.expect("reading the console does not panic")
    }

    fn console(&self) -> MutexGuard<'_, Console> {
        self.console.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The line behind the output of a command that has ended; `key` is the one that was pressed.
fn completed(exit_code: i32, key: Option<&str>) -> String {
    let key = key.and_then(|key| key.chars().last());
    let key = key.map_or(String::new(), |key| format!(" CTRL+{} was sent.", key.to_uppercase()));
    format!("\n[The command completed with exit code {exit_code}.{key}]")
}

/// The text behind the echo of an input line, if it begins with that: a line of its own.
fn without_echo<'a>(text: &'a str, input: &str) -> Option<&'a str> {
    text.strip_prefix(input.trim_start()).filter(|rest| rest.is_empty() || rest.starts_with(['\n', '\r']))
}

fn reply(content: String, command: &str, metadata: Metadata, hidden: bool) -> RunReply {
    let content = if hidden { content } else { truncated(content) };
    RunReply::Ran { content, command: command.to_owned(), metadata, hidden }
}

fn nothing_to(what: &str) -> RunReply {
    RunReply::Ran {
        content: format!("ERROR: No previous running command to {what}."),
        command: String::new(),
        metadata: Metadata::default(),
        hidden: false,
    }
}

/// Several commands at once are refused. The client cannot parse an `error` observation for a hidden
/// command (section 4.3), so that gets the same text as a `run` observation.
fn multiple(commands: &[String], command: &str, hidden: bool) -> RunReply {
    let mut content =
        "ERROR: Cannot execute multiple commands at once.\nPlease run each command separately OR chain them \
                       into a single command via && or ;\nProvided commands:"
            .to_owned();
    for (at, command) in commands.iter().enumerate() {
        content.push_str(&format!("\n({}) {command}", at + 1));
    }
    if hidden {
        RunReply::Ran { content, command: command.to_owned(), metadata: Metadata::default(), hidden }
    } else {
        RunReply::Refused(content)
    }
}

/// The first and the last half of a text that is longer than the limit, counted in characters.
fn truncated(content: String) -> String {
    let length = content.chars().count();
    if length <= LONGEST_CONTENT {
        return content;
    }
    let half = LONGEST_CONTENT / 2;
    let at = |characters: usize| content.char_indices().nth(characters).map_or(content.len(), |(at, _)| at);
    format!(
        "{}\n[... Observation truncated due to length ...]\n{}",
        &content[..at(half)],
        &content[at(length - half)..]
    )
}

/// `C-` and one character: that key with Ctrl.
fn special_key(command: &str) -> Option<u8> {
    let mut characters = command.strip_prefix("C-")?.chars();
    match (characters.next(), characters.next()) {
        (Some('?'), None) => Some(0x7f),
        (Some(key @ ('@'..='_' | 'a'..='z')), None) => Some(key as u8 & 0x1f),
        // Other characters have no control key; a terminal sends them as they are.
        (Some(key), None) if key.is_ascii() => Some(key as u8),
        _ => None,
    }
}

/// A float as Python prints it.
pub(super) fn python_float(value: f64) -> String {
    format!("{value:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_special_key_is_ctrl_and_one_character() {
        for (text, key) in [
            ("C-c", Some(3)),
            ("C-D", Some(4)),
            ("C-[", Some(0x1b)),
            ("C-?", Some(0x7f)),
            ("C-cc", None),
            ("c-c", None),
        ] {
            assert_eq!(special_key(text), key, "{text}");
        }
    }

    #[test]
    fn only_a_whole_line_is_an_echo() {
        for (text, input, rest) in [
            ("Bob\nhi Bob", "Bob", Some("\nhi Bob")),
            ("y", "y", Some("")),
            ("yes, I know", "y", None),
            ("hi", "Bob", None),
        ] {
            assert_eq!(without_echo(text, input), rest, "{text}");
        }
    }

    #[test]
    fn a_long_text_keeps_its_first_and_last_fifteen_thousand_characters() {
        let text: String = std::iter::repeat_n('é', 15_000).chain(std::iter::repeat_n('b', 15_001)).collect();
        let cut = truncated(text);
        assert_eq!(cut.chars().count(), 30_000 + "\n[... Observation truncated due to length ...]\n".chars().count());
        assert!(cut.starts_with("éé") && cut.ends_with("bb"));
        assert_eq!(truncated("x".repeat(30_000)).len(), 30_000);
    }

    #[test]
    fn a_time_out_is_printed_as_python_prints_a_float() {
        for (value, text) in [(3.0, "3.0"), (1.5, "1.5"), (120.0, "120.0"), (0.1, "0.1")] {
            assert_eq!(python_float(value), text);
        }
    }
}
