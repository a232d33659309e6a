//! Conversations with what runs in a sandbox: its output to ours, our input and signals to it.

use std::{io, process::ExitCode, time::Duration};

use anyhow::bail;
use bytes::BytesMut;
use rustix::process::Signal;
use tokio::{
    io::AsyncReadExt,
    signal::unix::{self, SignalKind, signal},
    sync::{mpsc, oneshot},
    task::JoinSet,
};
use wharf_client::{ErrorKind, Input, Output, Sandbox as Client};
use wharf_protocol::{ByteOffset, ExecRequest, ExecState, Frame, HealthStatus, SandboxId, SessionRequest, Stream};
use wharf_runtime::{Runtime, Status};

use crate::{
    cli::{Attach, Logs, OutputForm, Shell, TerminalFlags},
    commands::ready,
    error::{INCOMPLETE, TIMED_OUT, WrongUsage},
    out::{self, CouldNotWrite, Writer, note},
    show,
    terminal::{self, RawTerminal},
};

const READ_BYTES: usize = 256 << 10;
/// How long a sandbox that is ending is waited for, to say why: the pause after the first look, and how many there are,
/// each twice as long as the one before.
const FIRST_PAUSE: Duration = Duration::from_millis(30);
const PAUSES: u32 = 7;
/// The exit code of what was ended by SIGKILL.
const KILLED: i32 = 128 + 9;
/// Ctrl-P Ctrl-Q, as docker has it.
const DETACH: [u8; 2] = [0x10, 0x11];

/// Runs a command in the foreground: its streams are ours, and its exit code.
pub(crate) async fn execute(
    runtime: &Runtime,
    found: &wharf_runtime::Sandbox,
    mut request: ExecRequest,
    flags: TerminalFlags,
    form: OutputForm,
) -> anyhow::Result<ExitCode> {
    if flags.tty && !terminal::is_interactive() {
        return Err(WrongUsage("-t needs a terminal: standard input is none".to_owned()).into());
    }
    request.stdin = flags.interactive;
    request.terminal = flags.tty.then(terminal::size);
    let sandbox = found.client()?;
    let raw = if flags.tty && flags.interactive { Some(RawTerminal::enter()?) } else { None };
    let exec = match sandbox.exec(&request).await {
        Ok(exec) => exec,
        // It may have ended since it was found.
        Err(error) if error.kind() == ErrorKind::Unreachable => {
            drop(raw);
            return concluded(runtime, &sandbox, &found.id, Err(error.into())).await;
        }
        Err(error) => return Err(error.into()),
    };
    let output = exec.attach(0);
    let manner = Manner { input: flags.interactive, tty: flags.tty, form, ..Manner::COMMAND };
    let ended = converse(output, manner).await;
    drop(raw);
    let was_killed = matches!(ended, Ok(Ended::Exited { code: KILLED, .. }));
    let mut code = concluded(runtime, &sandbox, &found.id, ended).await;
    if let (Ok(code), Some(limit)) = (&mut code, request.timeout_ms)
        && exec.info().await.is_ok_and(|info| info.state == ExecState::TimedOut)
    {
        note!("wharf: the command was ended: its time limit of {} s has passed", limit as f64 / 1000.0);
        *code = ExitCode::from(TIMED_OUT);
    }
    if code.is_ok() && was_killed && exec.info().await.is_ok_and(|info| info.out_of_memory) {
        note!("wharf: the command was killed: the sandbox has no more memory than its limit; `--memory` sets it");
    }
    // A finished exec leaves nothing to look at.
    let _ = exec.remove().await;
    code
}

/// How a conversation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    /// With the exit code of the other side, and so many bytes of output missing.
    Exited { code: i32, missing: u64 },
    /// Without an exit code: a session was removed.
    Closed { missing: u64 },
    /// We have left, and the other side goes on.
    Left(Leaving),
}

/// Why we leave what goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leaving {
    /// The keys to detach.
    Keys,
    Signal(i32),
    TerminalGone,
}

/// The exit code of a conversation. If a signal or an error ended it because the whole sandbox has ended, says why.
async fn concluded(
    runtime: &Runtime,
    sandbox: &Client,
    id: &SandboxId,
    ended: anyhow::Result<Ended>,
) -> anyhow::Result<ExitCode> {
    let regular = match &ended {
        Ok(Ended::Left(_) | Ended::Closed { .. } | Ended::Exited { code: ..=128, .. }) => true,
        Ok(Ended::Exited { .. }) => false,
        // That is about us.
        Err(error) => error.is::<CouldNotWrite>(),
    };
    if !regular && !sandbox.health().await.is_ok_and(|health| health.status == HealthStatus::Ready) {
        for pause in pauses() {
            // Whoever finds it without a way in is told the reason.
            match runtime.get(id).await.map(|found| found.status) {
                Ok(Status::Ready | Status::Starting { .. }) => tokio::time::sleep(pause).await,
                Ok(Status::Stopped { .. } | Status::Suspended | Status::Deleting) => {
                    runtime.get_ready(id, &|_| {}).await?;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
    Ok(match ended? {
        // What no process ends with is no success either.
        Ended::Exited { code, missing } => whole(missing, u8::try_from(code).unwrap_or(u8::MAX)),
        Ended::Closed { missing } => whole(missing, 0),
        Ended::Left(Leaving::Keys) => ExitCode::SUCCESS,
        Ended::Left(Leaving::Signal(signal)) => ExitCode::from(128 + signal as u8),
        Ended::Left(Leaving::TerminalGone) => ExitCode::from(128 + Signal::HUP.as_raw() as u8),
    })
}

/// Few looks, since each asks the API server: soon at first, for most that end have ended already, then less often.
fn pauses() -> impl Iterator<Item = Duration> {
    (0..PAUSES).map(|tries| FIRST_PAUSE * 2_u32.pow(tries))
}

/// The exit code of what is whole only if nothing is missing.
fn whole(missing: u64, code: u8) -> ExitCode {
    if missing > 0 {
        note!("wharf: the output is incomplete: {missing} bytes are missing");
        return ExitCode::from(if code == 0 { INCOMPLETE } else { code });
    }
    ExitCode::from(code)
}

/// How to converse.
#[derive(Debug, Clone, Copy)]
struct Manner {
    /// Whether standard input is passed on.
    input: bool,
    tty: bool,
    /// Whether leaving in any way (Ctrl-P Ctrl-Q, a signal, a terminal that goes) leaves the other side as it is.
    stays: bool,
    /// Whether only output is wanted: Ctrl-C then ends this program and nothing else.
    watching: bool,
    /// Whether it may end without an exit code.
    session: bool,
    form: OutputForm,
}

impl Manner {
    /// A command whose caller we are.
    const COMMAND: Self =
        Self { input: false, tty: false, stays: false, watching: false, session: false, form: OutputForm::Table };
}

/// Carries output, input and signals until the other side ends, or we leave it.
async fn converse(mut output: Output, manner: Manner) -> anyhow::Result<Ended> {
    let sender = output.input();
    let (leave, mut leaving) = mpsc::channel(1);
    let mut beside = JoinSet::new();
    let (unreadable, mut input_failure) = oneshot::channel();
    if manner.input {
        let feeding = feed(sender.clone(), manner.stays.then(|| leave.clone()));
        beside.spawn(async {
            if let Err(error) = feeding.await {
                // Whoever would be told has ended by itself.
                let _ = unreadable.send(error);
            }
        });
    }
    if !manner.watching {
        let signals = Signals::install()?;
        beside.spawn(signals.forward(
            signal(SignalKind::window_change())?,
            sender,
            manner.tty,
            manner.stays.then_some(leave),
        ));
    }
    let writer = Writer::start();
    let mut missing = 0;
    let ended = loop {
        let frame = tokio::select! {
            biased;
            Some(why) = leaving.recv(), if manner.stays => break Some(Ended::Left(why)),
            Ok(error) = &mut input_failure, if !input_failure.is_terminated() => {
                // What came so far is not to be taken for all: the command is ended before it sees an end.
                return Err(anyhow::Error::new(error).context("could not read standard input"));
            }
            frame = output.next() => frame?,
        };
        let (piece, last) = match frame {
            Some(frame @ (Frame::Output { .. } | Frame::Gap { .. } | Frame::Exit { .. } | Frame::End { .. })) => {
                if let Frame::Gap { from, to } = frame {
                    missing = u64::saturating_add(missing, to.0 - from.0);
                    let (start, end) = if manner.tty { ("\r\n", "\r") } else { ("", "") };
                    note!("{start}wharf: {} bytes of output are no longer kept{end}", to.0 - from.0);
                }
                let last = match frame {
                    Frame::Exit { code, signal } => {
                        let code = code.or(signal.map(|signal| signal.saturating_add(128))).unwrap_or(1);
                        Some(Ended::Exited { code, missing })
                    }
                    Frame::End { .. } if manner.session => Some(Ended::Closed { missing }),
                    Frame::End { .. } => bail!("the sandbox does not tell how the command ended"),
                    _ => None,
                };
                let piece = match (manner.form, frame) {
                    (OutputForm::Json, frame) => Some((Stream::Stdout, show::frame(&frame)?.into())),
                    (OutputForm::Table, Frame::Output { stream, data, .. }) => Some((stream, data)),
                    (OutputForm::Table, _) => None,
                };
                (piece, last)
            }
            Some(
                Frame::Input { .. }
                | Frame::InputAt { .. }
                | Frame::InputEnd
                | Frame::InputTaken { .. }
                | Frame::Acknowledge { .. }
                | Frame::Resize { .. }
                | Frame::Signal { .. },
            ) => (None, None),
            None => bail!("the sandbox does not tell how the command ended"),
        };
        if let Some(piece) = piece {
            // Signals and input go on while our own reader takes its time.
            let room = loop {
                tokio::select! {
                    biased;
                    Some(why) = leaving.recv(), if manner.stays => break Err(Ended::Left(why)),
                    room = writer.room() => break Ok(room),
                    () = output.pass_input_on() => {}
                }
            };
            match room {
                Ok(Some(room)) => room.send(piece),
                // It has failed, and says why below.
                Ok(None) => break None,
                Err(left) => break Some(left),
            }
        }
        if let Some(last) = last {
            break Some(last);
        }
    };
    // From here on a signal ends us: nobody is left whom to pass it on to.
    beside.shutdown().await;
    let written = match ended {
        Some(Ended::Left(_)) => return Ok(ended.unwrap_or(Ended::Closed { missing })),
        _ if manner.watching => writer.finish().await,
        _ => {
            let mut signals = Signals::install()?;
            tokio::select! {
                biased;
                written = writer.finish() => written,
                signal = signals.next() => return Ok(Ended::Exited { code: 128 + signal, missing: 0 }),
            }
        }
    };
    match (written, ended) {
        (Err(error), _) if manner.stays && error.downcast_ref().is_some_and(CouldNotWrite::terminal_has_gone) => {
            Ok(Ended::Left(Leaving::TerminalGone))
        }
        (Err(error), _) => Err(error),
        (Ok(()), Some(ended)) => Ok(ended),
        (Ok(()), None) => bail!("the output was not written"),
    }
}

/// Passes standard input on until its end, or until the keys to detach.
///
/// # Errors
///
/// If it cannot be read; then nothing says that it has ended.
async fn feed(sender: Input, leave: Option<mpsc::Sender<Leaving>>) -> io::Result<()> {
    let mut stdin = tokio::io::stdin();
    let mut buffer = BytesMut::new();
    let mut held = false;
    loop {
        buffer.reserve(READ_BYTES);
        match stdin.read_buf(&mut buffer).await {
            read @ (Ok(0) | Err(_)) => {
                match (leave, read) {
                    // Ctrl-D is a byte in a raw terminal: only one that has gone ends.
                    (Some(leave), _) => drop(leave.send(Leaving::TerminalGone).await),
                    // A terminal that has gone has no more input.
                    (None, Err(error)) if !terminal::is_interactive() => return Err(error),
                    (None, _) => drop(sender.send(Frame::InputEnd).await),
                }
                return Ok(());
            }
            Ok(_) => {
                let mut data = buffer.split().freeze();
                if let Some(leave) = &leave {
                    // The first key waits for the next one, which says what it was.
                    if std::mem::take(&mut held) {
                        data = [&DETACH[..1], &data].concat().into();
                    }
                    if data.starts_with(&DETACH) {
                        // The other side has ended by itself: then there is nothing to detach from.
                        let _ = leave.send(Leaving::Keys).await;
                        return Ok(());
                    }
                    if data == DETACH[..1] {
                        held = true;
                        continue;
                    }
                }
                if !sender.send(Frame::Input { data }).await {
                    return Ok(());
                }
            }
        }
    }
}

/// The signals by which a person or the system ends a program in a terminal.
#[derive(Debug)]
struct Signals {
    interrupt: unix::Signal,
    terminate: unix::Signal,
    hangup: unix::Signal,
    quit: unix::Signal,
}

impl Signals {
    fn install() -> io::Result<Self> {
        Ok(Self {
            interrupt: signal(SignalKind::interrupt())?,
            terminate: signal(SignalKind::terminate())?,
            hangup: signal(SignalKind::hangup())?,
            quit: signal(SignalKind::quit())?,
        })
    }

    /// The next one, by its number.
    async fn next(&mut self) -> i32 {
        tokio::select! {
            _ = self.interrupt.recv() => 2,
            _ = self.terminate.recv() => 15,
            _ = self.hangup.recv() => 1,
            _ = self.quit.recv() => 3,
        }
    }

    /// Ctrl-C and the like go to the command; a second Ctrl-C kills it. What stays is left instead. The window's size
    /// follows ours.
    async fn forward(
        mut self,
        mut resized: unix::Signal,
        sender: Input,
        tty: bool,
        leave: Option<mpsc::Sender<Leaving>>,
    ) {
        let mut interrupts = 0;
        loop {
            let number = tokio::select! {
                _ = resized.recv() => None,
                number = self.next() => Some(number),
            };
            match (number, &leave) {
                (None, _) if tty => {
                    let size = terminal::size();
                    sender.send(Frame::Resize { rows: size.rows, columns: size.columns }).await;
                }
                (None, _) => {}
                (Some(number), Some(leave)) => drop(leave.send(Leaving::Signal(number)).await),
                (Some(number), None) => {
                    interrupts += u32::from(number == 2);
                    let number = if number == 2 && interrupts > 1 { 9 } else { number };
                    sender.send(Frame::Signal { signal: number }).await;
                }
            }
        }
    }
}

/// `wharf shell`.
pub(crate) async fn shell(runtime: &Runtime, arguments: Shell) -> anyhow::Result<ExitCode> {
    if !terminal::is_interactive() && !arguments.reset {
        let name = &arguments.name;
        let instead = format!("`wharf exec {name} -- CMD` runs a command");
        return Err(WrongUsage(format!("a shell needs a terminal: standard input is none ({instead})")).into());
    }
    let sandbox = ready(runtime, &arguments.name).await?.client()?;
    let size = terminal::size();
    let request = SessionRequest { id: Some(arguments.session.clone()), terminal: size, ..SessionRequest::default() };
    let session = sandbox.session(&request).await?;
    if arguments.reset {
        session.reset().await?;
        if !terminal::is_interactive() {
            return Ok(ExitCode::SUCCESS);
        }
    }
    let output = session.attach(None);
    output.input().send(Frame::Resize { rows: size.rows, columns: size.columns }).await;
    let raw = RawTerminal::enter()?;
    let manner = Manner { input: true, tty: true, stays: true, session: true, ..Manner::COMMAND };
    let ended = converse(output, manner).await;
    drop(raw);
    let alternate = session.screen().await.is_ok_and(|screen| screen.alternate);
    terminal::leave_program(alternate);
    match ended {
        Ok(Ended::Left(_)) => {
            note!("\nthe shell goes on: `wharf shell {}` comes back to it", arguments.name)
        }
        Ok(_) => note!(),
        Err(_) => note!("\nthe shell goes on if its sandbox does: `wharf shell {}` comes back to it", arguments.name),
    }
    concluded(runtime, &sandbox, &arguments.name, ended).await
}

/// `wharf attach`.
pub(crate) async fn attach(runtime: &Runtime, arguments: Attach, form: OutputForm) -> anyhow::Result<ExitCode> {
    let sandbox = ready(runtime, &arguments.name).await?.client()?;
    let found = find_output(&sandbox, &arguments.id, arguments.offset).await?;
    watch(runtime, &sandbox, &arguments.name, found, form).await
}

/// Shows output until its end, and passes nothing on.
async fn watch(
    runtime: &Runtime,
    sandbox: &Client,
    id: &SandboxId,
    found: FoundOutput,
    form: OutputForm,
) -> anyhow::Result<ExitCode> {
    let manner = Manner { watching: true, session: found.session, form, ..Manner::COMMAND };
    let ended = converse(found.output, manner).await;
    concluded(runtime, sandbox, id, ended).await
}

/// The output of an exec or a session.
struct FoundOutput {
    output: Output,
    /// Where it ends so far.
    end: ByteOffset,
    session: bool,
}

/// The output of whichever has this id.
async fn find_output(sandbox: &Client, id: &str, offset: u64) -> anyhow::Result<FoundOutput> {
    if let Some(exec) = sandbox.execs().await?.into_iter().find(|exec| exec.id.as_str() == id) {
        let output = sandbox.find_exec(exec.id).watch(offset);
        return Ok(FoundOutput { output, end: exec.output_end, session: false });
    }
    match sandbox.sessions().await?.into_iter().find(|session| session.id.as_str() == id) {
        Some(session) => {
            let output = sandbox.find_session(session.id).attach(Some(offset));
            Ok(FoundOutput { output, end: session.output_end, session: true })
        }
        None => bail!("neither an exec nor a session has the id `{id}`; `wharf ps` lists them"),
    }
}

/// `wharf logs`.
pub(crate) async fn logs(runtime: &Runtime, arguments: Logs, form: OutputForm) -> anyhow::Result<ExitCode> {
    let Some(id) = arguments.id else {
        let log = runtime.log(&arguments.name).await?;
        // What runs in a sandbox has a say in it.
        let is_seen = io::IsTerminal::is_terminal(&io::stdout());
        out::write(if is_seen { show::plain(&log).into_bytes() } else { log }.as_slice())?;
        return Ok(ExitCode::SUCCESS);
    };
    let sandbox = ready(runtime, &arguments.name).await?.client()?;
    let mut found = find_output(&sandbox, &id, 0).await?;
    if arguments.follow {
        return watch(runtime, &sandbox, &arguments.name, found, form).await;
    }
    let (mut at, mut missing) = (0, 0);
    while at < found.end.0 {
        let Some(frame) = found.output.next().await? else { break };
        if form == OutputForm::Json {
            out::write(&show::frame(&frame)?)?;
        }
        match frame {
            Frame::Output { offset, data, .. } => {
                at = offset.0 + data.len() as u64;
                if form == OutputForm::Table {
                    out::write(&data)?;
                }
            }
            Frame::Gap { from, to } => {
                at = to.0;
                missing += to.0 - from.0;
                note!("wharf: {} bytes are no longer kept", to.0 - from.0);
            }
            Frame::Exit { .. } | Frame::End { .. } => break,
            Frame::Input { .. }
            | Frame::InputAt { .. }
            | Frame::InputEnd
            | Frame::InputTaken { .. }
            | Frame::Acknowledge { .. }
            | Frame::Resize { .. }
            | Frame::Signal { .. } => {}
        }
    }
    Ok(whole(missing + found.end.0.saturating_sub(at), 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sandbox_that_ends_is_looked_for_in_a_few_looks_over_some_seconds() {
        assert!(pauses().count() <= 10);
        let whole: Duration = pauses().sum();
        assert!((3..5).contains(&whole.as_secs()), "{whole:?}");
    }
}
