//! What each command does.

use std::{io::Write, path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context, anyhow, bail};
use clap::CommandFactory;
use wharf_client::{Route, Sandbox};
use wharf_protocol::{Environment, ExecRequest, OnDisconnect, SandboxName, SandboxSpec};
use wharf_runtime::local::{Lifetime, LocalError, LocalRuntime, Record, Settings};

use crate::{
    cli::{Cli, Command, Create, Exec, OutputForm, Run, Shape},
    copy,
    progress::Progress,
    show, streams,
};

/// Carries out a command line.
pub(crate) async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let form = cli.output;
    if let Command::Completions { shell } = cli.command {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut Cli::command(), "wharf", &mut script);
        std::io::stdout().write_all(&script)?;
        return Ok(ExitCode::SUCCESS);
    }
    let runtime = LocalRuntime::new(settings(cli.state_dir)?);
    match cli.command {
        Command::Run(arguments) => return run_once(&runtime, arguments, form).await,
        Command::Create(arguments) => create(&runtime, arguments, form).await?,
        Command::Exec(arguments) => return exec(&runtime, arguments, form).await,
        Command::Shell(arguments) => return streams::shell(&runtime, arguments).await,
        Command::Attach(arguments) => return streams::attach(&runtime, arguments, form).await,
        Command::Cp(arguments) => copy::copy(&runtime, arguments, form).await?,
        Command::Ls => show::list(&runtime, form)?,
        Command::Logs(arguments) => return streams::logs(&runtime, arguments, form).await,
        Command::Inspect { name } => show::inspect(&runtime, &name).await?,
        Command::Stop { name } => {
            let _waiting = Progress::waiting(format!("stopping `{name}`: its processes end"));
            let (stopping, stopped) = (runtime.clone(), name.clone());
            blocking(move || stopping.stop(&stopped)).await?;
            changed(&runtime.get(&name)?, form)?;
        }
        Command::Start { name } => {
            let _waiting = Progress::waiting(format!("starting `{name}`: sandboxd is not ready yet"));
            changed(&runtime.start(&name).await?, form)?;
        }
        Command::Rm { names, all } => return remove(runtime, names, all, form).await,
        Command::Gc => {
            let removed = tokio::task::spawn_blocking(move || runtime.collect_garbage()).await?;
            show::names(&removed, form)?;
        }
        Command::Completions { .. } => {}
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints a sandbox that a command has changed: its name, or all about it.
fn changed(record: &Record, form: OutputForm) -> anyhow::Result<()> {
    match form {
        OutputForm::Table => Ok(show::line(&record.name)?),
        OutputForm::Json => show::json(&show::described(record)),
    }
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

/// The way into a running sandbox.
pub(crate) fn client(record: &Record) -> anyhow::Result<Sandbox> {
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
    let waiting = Progress::waiting(format!("creating `{name}`: sandboxd is not ready yet"));
    let record = runtime.create(name, &spec_of(&arguments.shape)?, Lifetime::Kept).await?;
    drop(waiting);
    warn_of_missing_walls(&record);
    changed(&record, form)
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

async fn run_once(runtime: &LocalRuntime, arguments: Run, form: OutputForm) -> anyhow::Result<ExitCode> {
    let spec = spec_of(&arguments.shape)?;
    let (collector, name) = (runtime.clone(), made_up_name("run-"));
    // What an earlier run that was killed left behind goes now.
    tokio::task::spawn_blocking(move || collector.collect_garbage()).await?;
    let waiting = Progress::waiting("creating a sandbox: sandboxd is not ready yet");
    let record = runtime.create(name.clone(), &spec, Lifetime::OfThisProcess).await?;
    drop(waiting);
    let throw_away = ThrowAway { runtime: runtime.clone(), name };
    warn_of_missing_walls(&record);
    let request = ExecRequest {
        argv: arguments.argv,
        timeout_ms: arguments.timeout.map(|timeout| timeout.as_millis() as u64),
        on_disconnect: OnDisconnect::Kill,
        ..ExecRequest::default()
    };
    let done = streams::execute(&record, request, arguments.terminal, form).await;
    tokio::task::spawn_blocking(move || drop(throw_away)).await?;
    done.map_err(|error| match error.downcast() {
        Ok(LocalError::NotRunning { reason, .. }) => anyhow!("the sandbox has ended: {reason}"),
        Ok(other) => other.into(),
        Err(error) => error,
    })
}

async fn exec(runtime: &LocalRuntime, arguments: Exec, form: OutputForm) -> anyhow::Result<ExitCode> {
    let record = runtime.get_ready(&arguments.name)?;
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
        let exec = client(&record)?.exec(&request).await?;
        match form {
            OutputForm::Table => show::line(exec.id())?,
            OutputForm::Json => show::json(&exec.info().await?)?,
        }
        return Ok(ExitCode::SUCCESS);
    }
    streams::execute(&record, request, arguments.terminal, form).await
}

async fn remove(
    runtime: LocalRuntime,
    names: Vec<SandboxName>,
    all: bool,
    form: OutputForm,
) -> anyhow::Result<ExitCode> {
    let names = if all { runtime.list().into_iter().map(|record| record.name).collect() } else { names };
    let (mut failed, mut removed) = (false, Vec::new());
    for name in names {
        let _waiting = Progress::waiting(format!("removing `{name}`: its processes end"));
        let (runtime, gone) = (runtime.clone(), name.clone());
        if !blocking(move || runtime.remove(&gone)).await? {
            anstream::eprintln!("error: there is no sandbox `{name}`");
            failed = true;
        } else {
            removed.push(name);
        }
    }
    show::names(&removed, form)?;
    Ok(if failed { ExitCode::from(crate::error::FAILED) } else { ExitCode::SUCCESS })
}

/// Gives blocking reads of standard input no chance to hold the program up at its end.
pub(crate) const SHUTDOWN_PATIENCE: Duration = Duration::from_millis(20);
