//! What each command does.

use std::{
    io::{IsTerminal, Write},
    path::{Path, PathBuf},
    process::ExitCode,
    time::Duration,
};

use anyhow::{Context, bail};
use clap::CommandFactory;
use comfy_table::{Table, presets};
use serde::Serialize;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    signal::unix::{SignalKind, signal},
};
use wharf_client::{ClientError, Input, Output, Route, Sandbox};
use wharf_protocol::{
    Environment, ExecRequest, FileKind, Frame, OnDisconnect, SandboxName, SandboxSpec, SessionRequest, Stream,
};
use wharf_runtime::local::{LocalRuntime, Record, Settings, Status};

use crate::{
    cli::{Attach, Cli, Command, Cp, Create, Exec, Logs, OutputForm, Run, Shape, Shell, TerminalFlags},
    parse::{self, Place},
    terminal::{self, RawTerminal},
};

const READ_BYTES: usize = 16 << 10;
/// Ctrl-P Ctrl-Q, as docker has it.
const DETACH: [u8; 2] = [0x10, 0x11];

/// Carries out a command line.
pub(crate) async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let form = cli.output;
    if let Command::Completions { shell } = cli.command {
        clap_complete::generate(shell, &mut Cli::command(), "wharf", &mut std::io::stdout());
        return Ok(ExitCode::SUCCESS);
    }
    let runtime = LocalRuntime::new(settings(cli.state_dir)?);
    match cli.command {
        Command::Run(arguments) => return run_once(&runtime, arguments).await,
        Command::Create(arguments) => create(&runtime, arguments, form).await?,
        Command::Exec(arguments) => return exec(&runtime, arguments).await,
        Command::Shell(arguments) => return shell(&runtime, arguments).await,
        Command::Attach(arguments) => return attach(&runtime, arguments).await,
        Command::Cp(arguments) => copy(&runtime, arguments).await?,
        Command::Ls => list(&runtime, form)?,
        Command::Logs(arguments) => return logs(&runtime, arguments).await,
        Command::Inspect { name } => inspect(&runtime, &name).await?,
        Command::Stop { name } => blocking(move || runtime.stop(&name)).await?,
        Command::Start { name } => drop(runtime.start(&name).await?),
        Command::Rm { names, all } => return remove(runtime, names, all).await,
        Command::Gc => {
            let removed = tokio::task::spawn_blocking(move || runtime.collect_garbage()).await?;
            removed.iter().for_each(|name| anstream::println!("{name}"));
        }
        Command::Completions { .. } => {}
    }
    Ok(ExitCode::SUCCESS)
}

fn settings(state_dir: Option<PathBuf>) -> anyhow::Result<Settings> {
    let state_dir = match state_dir {
        Some(directory) => std::path::absolute(directory)?,
        None if rustix::process::geteuid().is_root() => PathBuf::from("/var/lib/wharf"),
        None => {
            let base = std::env::var_os("XDG_STATE_HOME").map(PathBuf::from).filter(|path| path.is_absolute());
            let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local/state"));
            base.or_else(home).context("neither XDG_STATE_HOME nor HOME is set")?.join("wharf")
        }
    };
    let launcher = std::env::current_exe().context("could not find this program itself")?;
    let sandboxd = launcher.with_file_name("wharf-sandboxd");
    if !sandboxd.exists() {
        bail!(
            "`{}` is missing: wharf finds its sandboxd beside itself (`cargo build --release` makes both)",
            sandboxd.display()
        );
    }
    Ok(Settings { state_dir, sandboxd, launcher })
}

async fn blocking<T, E>(work: impl FnOnce() -> Result<T, E> + Send + 'static) -> anyhow::Result<T>
where
    T: Send + 'static,
    E: Into<anyhow::Error> + Send + 'static,
{
    tokio::task::spawn_blocking(work).await?.map_err(Into::into)
}

fn client(record: &Record) -> anyhow::Result<Sandbox> {
    Ok(Sandbox::new(Route::Unix(record.socket.clone()), record.key()?))
}

fn environment(pairs: &[String]) -> anyhow::Result<Environment> {
    let mut environment = Environment::new();
    for pair in pairs {
        match pair.split_once('=') {
            Some(("", _)) => bail!("--env `{pair}` has no name"),
            Some((name, value)) => drop(environment.insert(name.to_owned(), value.to_owned())),
            // As docker does: a variable that is not set is not passed on.
            None => drop(std::env::var(pair).map(|value| environment.insert(pair.clone(), value))),
        }
    }
    Ok(environment)
}

fn spec_of(shape: &Shape) -> anyhow::Result<SandboxSpec> {
    Ok(SandboxSpec {
        working_dir: shape.workdir.clone(),
        environment: environment(&shape.env)?,
        mounts: shape.mounts().map_err(anyhow::Error::msg)?,
        isolation: shape.isolation.into(),
        network: shape.network.into(),
        memory_bytes: shape.memory,
        processes: shape.processes,
        cpu_millis: shape.cpus,
        disk_bytes: shape.disk,
        ..SandboxSpec::default()
    })
}

/// A name that can be said and is most likely free.
fn made_up_name(prefix: &str) -> SandboxName {
    const FIRST: [&str; 16] = [
        "amber", "brisk", "calm", "dusky", "eager", "fresh", "green", "happy", "ivory", "jolly", "keen", "lively",
        "misty", "noble", "proud", "quiet",
    ];
    const SECOND: [&str; 16] = [
        "anchor", "buoy", "cable", "crane", "dock", "ferry", "gull", "harbor", "jetty", "kelp", "mast", "pier", "quay",
        "rope", "sail", "tide",
    ];
    let mut raw = [0; 5];
    getrandom::fill(&mut raw).expect("the kernel gives random bytes on every Linux since 3.17");
    let pick = |byte: u8| usize::from(byte % 16);
    let name =
        format!("{prefix}{}-{}-{:02x}{:02x}{:02x}", FIRST[pick(raw[0])], SECOND[pick(raw[1])], raw[2], raw[3], raw[4]);
    name.parse().expect("words, hyphens and hexadecimal digits are a name")
}

fn warn_of_missing_walls(record: &Record) {
    for wall in &record.walls {
        if let Some(reason) = &wall.missing {
            anstream::eprintln!("warning: no {}: {reason}", wall.part);
        }
        if wall.part == "none" {
            anstream::eprintln!("warning: {}", wall.note.as_deref().unwrap_or_default());
        }
    }
}

async fn create(runtime: &LocalRuntime, arguments: Create, form: OutputForm) -> anyhow::Result<()> {
    let name = arguments.name.unwrap_or_else(|| made_up_name(""));
    let record = runtime.create(name, &spec_of(&arguments.shape)?).await?;
    warn_of_missing_walls(&record);
    match form {
        OutputForm::Table => anstream::println!("{}", record.name),
        OutputForm::Json => print_json(&described(&record))?,
    }
    Ok(())
}

/// Removes a throw-away sandbox when the command that made it ends, however it ends.
struct ThrowAway {
    runtime: LocalRuntime,
    name: SandboxName,
}

impl Drop for ThrowAway {
    fn drop(&mut self) {
        if let Err(error) = self.runtime.remove(&self.name) {
            anstream::eprintln!("warning: sandbox `{}` is left behind: {error}", self.name);
        }
    }
}

async fn run_once(runtime: &LocalRuntime, arguments: Run) -> anyhow::Result<ExitCode> {
    let spec = spec_of(&arguments.shape)?;
    let (collector, name) = (runtime.clone(), made_up_name("run-"));
    // What an earlier run that was killed left behind goes now.
    tokio::task::spawn_blocking(move || collector.collect_garbage()).await?;
    let record = runtime.create(name.clone(), &spec).await?;
    let throw_away = ThrowAway { runtime: runtime.clone(), name };
    warn_of_missing_walls(&record);
    let request = ExecRequest {
        argv: arguments.argv,
        timeout_ms: arguments.timeout.map(|timeout| timeout.as_millis() as u64),
        on_disconnect: OnDisconnect::Kill,
        ..ExecRequest::default()
    };
    let done = execute(&client(&record)?, request, arguments.terminal).await;
    tokio::task::spawn_blocking(move || drop(throw_away)).await?;
    done
}

async fn exec(runtime: &LocalRuntime, arguments: Exec) -> anyhow::Result<ExitCode> {
    let sandbox = client(&runtime.get_ready(&arguments.name)?)?;
    let request = ExecRequest {
        argv: arguments.argv,
        working_dir: arguments.workdir,
        environment: environment(&arguments.env)?,
        user: arguments.user,
        timeout_ms: arguments.timeout.map(|timeout| timeout.as_millis() as u64),
        on_disconnect: if arguments.detach { OnDisconnect::KeepRunning } else { OnDisconnect::Kill },
        ..ExecRequest::default()
    };
    if arguments.detach {
        anstream::println!("{}", sandbox.exec(&request).await?.id);
        return Ok(ExitCode::SUCCESS);
    }
    execute(&sandbox, request, arguments.terminal).await
}

/// Runs a command in the foreground: its streams are ours, and its exit code.
async fn execute(sandbox: &Sandbox, mut request: ExecRequest, flags: TerminalFlags) -> anyhow::Result<ExitCode> {
    if flags.tty && !terminal::is_interactive() {
        bail!("-t needs a terminal: standard input is none");
    }
    request.stdin = flags.interactive;
    request.terminal = flags.tty.then(terminal::size);
    let exec = sandbox.exec(&request).await?;
    let output = sandbox.attach_exec(&exec.id, 0);
    let raw = if flags.tty && flags.interactive { Some(RawTerminal::enter()?) } else { None };
    let ended = converse(output, flags.interactive, flags.tty, false).await;
    drop(raw);
    // A finished exec leaves nothing to look at.
    let _ = sandbox.remove_exec(&exec.id).await;
    ended
}

/// How a conversation with a process or a shell ended.
async fn converse(mut output: Output, input: bool, tty: bool, detachable: bool) -> anyhow::Result<ExitCode> {
    let sender = output.input();
    let (detach, mut detached) = tokio::sync::oneshot::channel();
    let feeding = input.then(|| tokio::spawn(feed(sender.clone(), detachable.then_some(detach))));
    let signals = tokio::spawn(forward_signals(sender, tty));
    let (mut out, mut err) = (std::io::stdout(), std::io::stderr());
    let code = loop {
        let frame = tokio::select! {
            biased;
            Ok(()) = &mut detached, if detachable => break 0,
            frame = output.next() => frame,
        };
        match frame? {
            Some(Frame::Output { stream, data, .. }) => {
                let written = match stream {
                    Stream::Stdout | Stream::Terminal => out.write_all(&data).and_then(|()| out.flush()),
                    Stream::Stderr => err.write_all(&data),
                };
                // Nobody reads any more: that ends quietly, as for any program in a pipe.
                if written.is_err() {
                    break 141;
                }
            }
            Some(Frame::Gap { from, to }) => {
                anstream::eprintln!("\r\nwharf: {} bytes of output are no longer kept\r", to.0 - from.0);
            }
            Some(Frame::Exit { code, signal }) => {
                break code.or(signal.map(|signal| 128 + signal)).unwrap_or(1);
            }
            Some(Frame::End { .. }) | None => break 0,
            Some(Frame::Input { .. } | Frame::InputEnd | Frame::Resize { .. } | Frame::Signal { .. }) => {}
        }
    };
    signals.abort();
    if let Some(feeding) = feeding {
        feeding.abort();
    }
    Ok(ExitCode::from(code as u8))
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
                let data = &buffer[..count];
                if let Some(detach) = &detach
                    && !detach.is_closed()
                    && (data == DETACH || (held && data == &DETACH[1..]))
                {
                    break;
                }
                held = data == &DETACH[..1];
                if !sender.send(Frame::Input { data: data.to_vec().into() }).await {
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

async fn shell(runtime: &LocalRuntime, arguments: Shell) -> anyhow::Result<ExitCode> {
    if !terminal::is_interactive() {
        bail!(
            "a shell needs a terminal: standard input is none (`wharf exec {} -- CMD` runs a command)",
            arguments.name
        );
    }
    let sandbox = client(&runtime.get_ready(&arguments.name)?)?;
    let size = terminal::size();
    let request = SessionRequest { id: Some(arguments.session.clone()), terminal: size, ..SessionRequest::default() };
    let session = sandbox.session(&request).await?;
    let output = sandbox.attach_session(&session.id, None);
    output.input().send(Frame::Resize { rows: size.rows, columns: size.columns }).await;
    anstream::eprintln!("(Ctrl-P Ctrl-Q leaves the shell running)");
    let raw = RawTerminal::enter()?;
    let ended = converse(output, true, true, true).await;
    drop(raw);
    anstream::eprintln!();
    ended
}

async fn attach(runtime: &LocalRuntime, arguments: Attach) -> anyhow::Result<ExitCode> {
    let sandbox = client(&runtime.get_ready(&arguments.name)?)?;
    let output = find_output(&sandbox, &arguments.id, arguments.offset).await?;
    converse(output, false, false, false).await
}

/// The output of an exec or a session, whichever has this id.
async fn find_output(sandbox: &Sandbox, id: &str, offset: u64) -> anyhow::Result<Output> {
    if let Some(exec) = sandbox.execs().await?.into_iter().find(|exec| exec.id.as_str() == id) {
        return Ok(sandbox.attach_exec(&exec.id, offset));
    }
    match sandbox.sessions().await?.into_iter().find(|session| session.id.as_str() == id) {
        Some(session) => Ok(sandbox.attach_session(&session.id, Some(offset))),
        None => bail!("neither an exec nor a session has the id `{id}`; `wharf inspect` lists them"),
    }
}

async fn logs(runtime: &LocalRuntime, arguments: Logs) -> anyhow::Result<ExitCode> {
    let record = runtime.get(&arguments.name)?;
    let Some(id) = arguments.id else {
        let log = tokio::fs::read(record.log()).await.context("could not read sandboxd's log")?;
        std::io::stdout().write_all(&log)?;
        return Ok(ExitCode::SUCCESS);
    };
    let sandbox = client(&runtime.get_ready(&arguments.name)?)?;
    let mut output = find_output(&sandbox, &id, 0).await?;
    if arguments.follow {
        return converse(output, false, false, false).await;
    }
    let execs = sandbox.execs().await?.into_iter().map(|exec| (exec.id.to_string(), exec.output_end));
    let sessions = sandbox.sessions().await?.into_iter().map(|session| (session.id.to_string(), session.output_end));
    let end = execs.chain(sessions).find(|(known, _)| *known == id).map_or(0, |(_, end)| end.0);
    let mut at = 0;
    while at < end {
        match output.next().await? {
            Some(Frame::Output { offset, data, .. }) => {
                at = offset.0 + data.len() as u64;
                std::io::stdout().write_all(&data)?;
            }
            Some(Frame::Gap { from, to }) => anstream::eprintln!("wharf: {} bytes are no longer kept", to.0 - from.0),
            Some(Frame::Exit { .. } | Frame::End { .. }) | None => break,
            Some(Frame::Input { .. } | Frame::InputEnd | Frame::Resize { .. } | Frame::Signal { .. }) => {}
        }
    }
    Ok(ExitCode::SUCCESS)
}

#[derive(Debug, Serialize)]
struct Described<'a> {
    name: &'a SandboxName,
    #[serde(flatten)]
    status: Status,
    created_at: f64,
    pid: Option<i32>,
    socket: &'a Path,
    workspace: Option<&'a Path>,
    walls: &'a [wharf_runtime::local::Wall],
    bounds: wharf_runtime::local::Bounds,
    spec: &'a SandboxSpec,
}

fn described(record: &Record) -> Described<'_> {
    Described {
        name: &record.name,
        status: record.status(),
        created_at: record.created_at,
        pid: record.pid(),
        socket: &record.socket,
        workspace: record.workspace.as_deref(),
        walls: &record.walls,
        bounds: record.bounds,
        spec: &record.spec,
    }
}

fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    anstream::println!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}

fn list(runtime: &LocalRuntime, form: OutputForm) -> anyhow::Result<()> {
    let records = runtime.list();
    if form == OutputForm::Json {
        return print_json(&records.iter().map(described).collect::<Vec<_>>());
    }
    let mut table = Table::new();
    table.load_style(presets::NOTHING).set_header(["NAME", "STATUS", "AGE", "WORKSPACE"]);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?.as_secs_f64();
    for record in &records {
        let status = match record.status() {
            Status::Ready => "ready".to_owned(),
            Status::Stopped { reason } => format!("stopped: {reason}"),
        };
        let mounted = || record.spec.mounts.first().map(|mount| mount.source.clone()).unwrap_or_default();
        let workspace = record.workspace.as_ref().map_or_else(mounted, |path| path.display().to_string());
        table.add_row([record.name.to_string(), status, age(now - record.created_at), workspace]);
    }
    anstream::println!("{}", table.trim_fmt());
    Ok(())
}

fn age(seconds: f64) -> String {
    match seconds.max(0.0) as u64 {
        seconds @ 0..=119 => format!("{seconds}s"),
        seconds @ 120..=7199 => format!("{}m", seconds / 60),
        seconds @ 7200..=172_799 => format!("{}h", seconds / 3600),
        seconds => format!("{}d", seconds / 86_400),
    }
}

async fn inspect(runtime: &LocalRuntime, name: &SandboxName) -> anyhow::Result<()> {
    let record = runtime.get(name)?;
    let mut all = serde_json::to_value(described(&record))?;
    if record.status() == Status::Ready {
        let sandbox = client(&record)?;
        all["info"] = serde_json::to_value(sandbox.info().await?)?;
        all["sessions"] = serde_json::to_value(sandbox.sessions().await?)?;
        all["execs"] = serde_json::to_value(sandbox.execs().await?)?;
    }
    print_json(&all)
}

async fn remove(runtime: LocalRuntime, names: Vec<SandboxName>, all: bool) -> anyhow::Result<ExitCode> {
    let names = if all { runtime.list().into_iter().map(|record| record.name).collect() } else { names };
    let mut failed = false;
    for name in names {
        let (runtime, gone) = (runtime.clone(), name.clone());
        if !blocking(move || runtime.remove(&gone)).await? {
            anstream::eprintln!("error: there is no sandbox `{name}`");
            failed = true;
        } else {
            anstream::println!("{name}");
        }
    }
    Ok(if failed { ExitCode::from(crate::error::FAILED) } else { ExitCode::SUCCESS })
}

async fn copy(runtime: &LocalRuntime, arguments: Cp) -> anyhow::Result<()> {
    match (parse::place(&arguments.source), parse::place(&arguments.target)) {
        (Place::Sandbox { name, path }, target) => {
            let sandbox = client(&runtime.get_ready(&name.parse()?)?)?;
            copy_out(&sandbox, &path, target).await
        }
        (source, Place::Sandbox { name, path }) => {
            let sandbox = client(&runtime.get_ready(&name.parse()?)?)?;
            copy_in(&sandbox, source, &path).await
        }
        _ => bail!("one side must be in a sandbox: SANDBOX:PATH"),
    }
}

async fn copy_out(sandbox: &Sandbox, path: &str, target: Place) -> anyhow::Result<()> {
    let files = sandbox.files();
    let target = match target {
        Place::Stream if std::io::stdout().is_terminal() => bail!("a tar stream is not for a terminal: redirect it"),
        Place::Stream => {
            files.read_tar(path, tokio::io::stdout()).await?;
            return Ok(());
        }
        Place::Local(target) => PathBuf::from(target),
        Place::Sandbox { .. } => bail!("copying between two sandboxes goes through `-`"),
    };
    let stat = files.stat(path).await?;
    let name = Path::new(path).file_name().map(PathBuf::from).unwrap_or_default();
    // As `cp` does: into an existing directory under its own name, else as the target.
    let target = if target.is_dir() { target.join(name) } else { target };
    if stat.kind == FileKind::Directory {
        tokio::fs::create_dir_all(&target).await?;
        let (near, far) = tokio::io::duplex(256 << 10);
        // The library refuses members that lead out of the target; what comes from a sandbox is hostile.
        let unpacked =
            async { tokio_tar::Archive::new(far).unpack(&target).await.map(drop).map_err(anyhow::Error::from) };
        let (read, unpacked) = tokio::join!(files.read_tar(path, near), unpacked);
        read?;
        return unpacked.with_context(|| format!("could not unpack below `{}`", target.display()));
    }
    let file =
        tokio::fs::File::create(&target).await.with_context(|| format!("could not write `{}`", target.display()))?;
    files.read(path, file).await?;
    Ok(())
}

async fn copy_in(sandbox: &Sandbox, source: Place, path: &str) -> anyhow::Result<()> {
    let files = sandbox.files();
    let source = match source {
        Place::Stream => {
            files.write_tar(path, tokio::io::stdin()).await?;
            return Ok(());
        }
        Place::Local(source) => PathBuf::from(source),
        Place::Sandbox { .. } => bail!("copying between two sandboxes goes through `-`"),
    };
    let metadata = std::fs::metadata(&source).with_context(|| format!("could not read `{}`", source.display()))?;
    let name = std::fs::canonicalize(&source)?.file_name().map(|name| name.to_string_lossy().into_owned());
    let is_directory =
        |stat: Result<wharf_protocol::FileStat, ClientError>| stat.is_ok_and(|stat| stat.kind == FileKind::Directory);
    let into = path.ends_with('/') || is_directory(files.stat(path).await);
    let target = match name {
        Some(name) if into => format!("{}/{name}", path.trim_end_matches('/')),
        _ => path.to_owned(),
    };
    if metadata.is_dir() {
        let (near, far) = tokio::io::duplex(256 << 10);
        let pack = async move {
            let mut builder = tokio_tar::Builder::new(near);
            builder.follow_symlinks(false);
            builder.append_dir_all("", &source).await?;
            builder.into_inner().await?.shutdown().await
        };
        let (packed, written) = tokio::join!(pack, files.write_tar(&target, far));
        written?;
        return packed.context("could not read the directory");
    }
    let mode = std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o777;
    files.write(&target, Some(mode), tokio::fs::File::open(&source).await?).await?;
    Ok(())
}

/// Gives blocking reads of standard input no chance to hold the program up at its end.
pub(crate) const SHUTDOWN_PATIENCE: Duration = Duration::from_millis(20);
