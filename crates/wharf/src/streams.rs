//! Conversations with what runs in a sandbox: its output to ours, our input and signals to it.

use std::{io::Write, process::ExitCode, time::Duration};

use anyhow::bail;
use tokio::{
    io::AsyncReadExt,
    signal::unix::{SignalKind, signal},
};
use wharf_client::{Input, Output, Sandbox as Client};
use wharf_protocol::{ByteOffset, ExecRequest, ExecState, Frame, HealthStatus, SandboxId, SessionRequest, Stream};
use wharf_runtime::{Runtime, Status};

use crate::{
    cli::{Attach, Logs, OutputForm, Shell, TerminalFlags},
    commands::ready,
    error::{BROKEN_PIPE, TIMED_OUT},
    show,
    terminal::{self, RawTerminal},
};

const READ_BYTES: usize = 16 << 10;
/// How long a sandbox that is ending is waited for, to say why.
const ENDING_CHECKS: u32 = 200;
const ENDING_INTERVAL: Duration = Duration::from_millis(20);
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
        bail!("-t needs a terminal: standard input is none");
    }
    request.stdin = flags.interactive;
    request.terminal = flags.tty.then(terminal::size);
    let sandbox = found.client()?;
    let exec = sandbox.exec(&request).await?;
    let output = exec.attach(0);
    let raw = if flags.tty && flags.interactive { Some(RawTerminal::enter()?) } else { None };
    let manner = Manner { input: flags.interactive, tty: flags.tty, detachable: false, watching: false, form };
    let ended = converse(output, manner).await;
    drop(raw);
    let mut code = concluded(runtime, &sandbox, &found.id, ended).await;
    if let (Ok(code), Some(limit)) = (&mut code, request.timeout_ms)
        && exec.info().await.is_ok_and(|info| info.state == ExecState::TimedOut)
    {
        anstream::eprintln!("wharf: the command was ended: its time limit of {} s has passed", limit as f64 / 1000.0);
        *code = ExitCode::from(TIMED_OUT);
    }
    // A finished exec leaves nothing to look at.
    let _ = exec.remove().await;
    code
}

/// How a conversation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Ended {
    /// With the exit code of the other side.
    Exited(i32),
    /// The other side goes on.
    Detached,
}

/// The exit code of a conversation. If a signal or an error ended it because the whole sandbox has ended, says why.
async fn concluded(
    runtime: &Runtime,
    sandbox: &Client,
    id: &SandboxId,
    ended: anyhow::Result<Ended>,
) -> anyhow::Result<ExitCode> {
    let regular = matches!(ended, Ok(Ended::Detached | Ended::Exited(..=128)));
    if !regular && !sandbox.health().await.is_ok_and(|health| health.status == HealthStatus::Ready) {
        for _ in 0..ENDING_CHECKS {
            // Whoever finds it without a way in is told the reason.
            match runtime.get(id).await.map(|found| found.status) {
                Ok(Status::Ready | Status::Starting { .. }) => tokio::time::sleep(ENDING_INTERVAL).await,
                Ok(Status::Stopped { .. } | Status::Suspended | Status::Deleting) => {
                    runtime.get_ready(id, &|_| {}).await?;
                }
                Err(error) => return Err(error.into()),
            }
        }
    }
    ended.map(|ended| match ended {
        Ended::Exited(code) => ExitCode::from(code as u8),
        Ended::Detached => ExitCode::SUCCESS,
    })
}

/// How to converse.
#[derive(Debug, Clone, Copy)]
struct Manner {
    /// Whether standard input is passed on.
    input: bool,
    tty: bool,
    /// Whether Ctrl-P Ctrl-Q leaves.
    detachable: bool,
    /// Whether only output is wanted: Ctrl-C then ends this program and nothing else.
    watching: bool,
    form: OutputForm,
}

impl Manner {
    fn watching(form: OutputForm) -> Self {
        Self { input: false, tty: false, detachable: false, watching: true, form }
    }
}

/// Carries output, input and signals until the other side ends; gives its exit code.
async fn converse(mut output: Output, manner: Manner) -> anyhow::Result<Ended> {
    let Manner { input, tty, detachable, watching, form } = manner;
    let sender = output.input();
    let (detach, mut detached) = tokio::sync::oneshot::channel();
    let feeding = input.then(|| tokio::spawn(feed(sender.clone(), detachable.then_some(detach))));
    let signals = (!watching).then(|| tokio::spawn(forward_signals(sender, tty)));
    let (mut out, mut err) = (std::io::stdout(), std::io::stderr());
    let ended = loop {
        let frame = tokio::select! {
            biased;
            Ok(()) = &mut detached, if detachable => break Ended::Detached,
            frame = output.next() => frame,
        };
        let frame = frame?;
        if form == OutputForm::Json
            && let Some(frame) = &frame
            && show::frame(frame).is_err()
        {
            break Ended::Exited(BROKEN_PIPE.into());
        }
        match frame {
            Some(Frame::Output { .. } | Frame::Gap { .. }) if form == OutputForm::Json => {}
            Some(Frame::Output { stream, data, .. }) => {
                let written = match stream {
                    Stream::Stdout | Stream::Terminal => out.write_all(&data).and_then(|()| out.flush()),
                    Stream::Stderr => err.write_all(&data),
                };
                // Nobody reads any more: that ends quietly, as for any program in a pipe.
                if written.is_err() {
                    break Ended::Exited(BROKEN_PIPE.into());
                }
            }
            Some(Frame::Gap { from, to }) => {
                anstream::eprintln!("\r\nwharf: {} bytes of output are no longer kept\r", to.0 - from.0);
            }
            Some(Frame::Exit { code, signal }) => {
                break Ended::Exited(code.or(signal.map(|signal| 128 + signal)).unwrap_or(1));
            }
            Some(Frame::End { .. }) | None => break Ended::Exited(0),
            Some(Frame::Input { .. } | Frame::InputEnd | Frame::Resize { .. } | Frame::Signal { .. }) => {}
        }
    };
    if let Some(signals) = signals {
        signals.abort();
    }
    if let Some(feeding) = feeding {
        feeding.abort();
    }
    Ok(ended)
}

/// Passes standard input on until its end, or until the keys to detach.
async fn feed(sender: Input, detach: Option<tokio::sync::oneshot::Sender<()>>) {
    let mut stdin = tokio::io::stdin();
    let mut buffer = vec![0; READ_BYTES];
    let mut held = false;
    loop {
        match stdin.read(&mut buffer).await {
            Ok(0) | Err(_) => {
                sender.send(Frame::InputEnd).await;
                return;
            }
            Ok(count) => {
                let mut data = buffer[..count].to_vec();
                if let Some(detach) = &detach
                    && !detach.is_closed()
                {
                    // The first key waits for the next one, which says what it was.
                    if std::mem::take(&mut held) {
                        data.insert(0, DETACH[0]);
                    }
                    if data.starts_with(&DETACH) {
                        break;
                    }
                    if data == DETACH[..1] {
                        held = true;
                        continue;
                    }
                }
                if !sender.send(Frame::Input { data: data.into() }).await {
                    return;
                }
            }
        }
    }
    if let Some(detach) = detach {
        // The other side has ended by itself: then there is nothing to detach from.
        let _ = detach.send(());
    }
}

/// Ctrl-C and the like go to the command; a second Ctrl-C kills it. The window's size follows ours.
async fn forward_signals(sender: Input, tty: bool) -> anyhow::Result<()> {
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let mut quit = signal(SignalKind::quit())?;
    let mut resized = signal(SignalKind::window_change())?;
    let mut interrupts = 0;
    loop {
        let number = tokio::select! {
            _ = interrupt.recv() => {
                interrupts += 1;
                if interrupts > 1 { 9 } else { 2 }
            }
            _ = terminate.recv() => 15,
            _ = hangup.recv() => 1,
            _ = quit.recv() => 3,
            _ = resized.recv() => {
                if tty {
                    let size = terminal::size();
                    sender.send(Frame::Resize { rows: size.rows, columns: size.columns }).await;
                }
                continue;
            }
        };
        sender.send(Frame::Signal { signal: number }).await;
    }
}

/// `wharf shell`.
pub(crate) async fn shell(runtime: &Runtime, arguments: Shell) -> anyhow::Result<ExitCode> {
    if !terminal::is_interactive() {
        bail!(
            "a shell needs a terminal: standard input is none (`wharf exec {} -- CMD` runs a command)",
            arguments.name
        );
    }
    let sandbox = ready(runtime, &arguments.name).await?.client()?;
    let size = terminal::size();
    let request = SessionRequest { id: Some(arguments.session.clone()), terminal: size, ..SessionRequest::default() };
    let session = sandbox.session(&request).await?;
    let output = session.attach(None);
    output.input().send(Frame::Resize { rows: size.rows, columns: size.columns }).await;
    let raw = RawTerminal::enter()?;
    let manner = Manner { input: true, tty: true, detachable: true, watching: false, form: OutputForm::Table };
    let ended = converse(output, manner).await;
    drop(raw);
    let alternate = session.screen().await.is_ok_and(|screen| screen.alternate);
    terminal::leave_program(alternate);
    match ended {
        Ok(Ended::Detached) => {
            anstream::eprintln!("\nthe shell goes on: `wharf shell {}` comes back to it", arguments.name)
        }
        _ => anstream::eprintln!(),
    }
    concluded(runtime, &sandbox, &arguments.name, ended).await
}

/// `wharf attach`.
pub(crate) async fn attach(runtime: &Runtime, arguments: Attach, form: OutputForm) -> anyhow::Result<ExitCode> {
    let sandbox = ready(runtime, &arguments.name).await?.client()?;
    let (output, _) = find_output(&sandbox, &arguments.id, arguments.offset).await?;
    watch(runtime, &sandbox, &arguments.name, output, form).await
}

/// Shows output until its end, and passes nothing on.
async fn watch(
    runtime: &Runtime,
    sandbox: &Client,
    id: &SandboxId,
    output: Output,
    form: OutputForm,
) -> anyhow::Result<ExitCode> {
    let ended = converse(output, Manner::watching(form)).await;
    concluded(runtime, sandbox, id, ended).await
}

/// The output of an exec or a session, whichever has this id, and where it ends so far.
async fn find_output(sandbox: &Client, id: &str, offset: u64) -> anyhow::Result<(Output, ByteOffset)> {
    if let Some(exec) = sandbox.execs().await?.into_iter().find(|exec| exec.id.as_str() == id) {
        return Ok((sandbox.find_exec(exec.id).attach(offset), exec.output_end));
    }
    match sandbox.sessions().await?.into_iter().find(|session| session.id.as_str() == id) {
        Some(session) => Ok((sandbox.find_session(session.id).attach(Some(offset)), session.output_end)),
        None => bail!("neither an exec nor a session has the id `{id}`; `wharf inspect` lists them"),
    }
}

/// `wharf logs`.
pub(crate) async fn logs(runtime: &Runtime, arguments: Logs, form: OutputForm) -> anyhow::Result<ExitCode> {
    let Some(id) = arguments.id else {
        let log = runtime.log(&arguments.name).await?;
        std::io::stdout().write_all(&log)?;
        return Ok(ExitCode::SUCCESS);
    };
    let sandbox = ready(runtime, &arguments.name).await?.client()?;
    let (mut output, end) = find_output(&sandbox, &id, 0).await?;
    if arguments.follow {
        return watch(runtime, &sandbox, &arguments.name, output, form).await;
    }
    let mut at = 0;
    while at < end.0 {
        let frame = output.next().await?;
        if form == OutputForm::Json
            && let Some(frame) = &frame
        {
            show::frame(frame)?;
        }
        match frame {
            Some(Frame::Output { offset, data, .. }) => {
                at = offset.0 + data.len() as u64;
                if form == OutputForm::Table {
                    std::io::stdout().write_all(&data)?;
                }
            }
            Some(Frame::Gap { from, to }) => anstream::eprintln!("wharf: {} bytes are no longer kept", to.0 - from.0),
            Some(Frame::Exit { .. } | Frame::End { .. }) | None => break,
            Some(Frame::Input { .. } | Frame::InputEnd | Frame::Resize { .. } | Frame::Signal { .. }) => {}
        }
    }
    Ok(ExitCode::SUCCESS)
}
