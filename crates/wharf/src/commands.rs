//! What each command does.

use std::{path::PathBuf, process::ExitCode, time::Duration};

use anyhow::{Context, anyhow, bail};
use clap::CommandFactory;
use tokio::signal::unix::{SignalKind, signal};
use wharf_protocol::{Environment, ExecRequest, OnDisconnect, SandboxId, SandboxName, SandboxSpec, WhenFull};
use wharf_runtime::{
    Lifetime, Runtime, RuntimeError, Sandbox, Status,
    local::{LocalRuntime, Settings},
};

use crate::{
    cli::{Cli, Command, Create, Exec, OutputForm, Place, Run, RuntimeArg, Shape},
    cluster, copy,
    error::{INTERRUPTED, WrongUsage},
    out, processes,
    progress::Progress,
    show, streams,
};

/// Carries out a command line.
pub(crate) async fn run(cli: Cli) -> anyhow::Result<ExitCode> {
    let form = cli.output;
    if let Command::Completions { shell } = cli.command {
        let mut script = Vec::new();
        clap_complete::generate(shell, &mut Cli::command(), "wharf", &mut script);
        out::write(&script)?;
        return Ok(ExitCode::SUCCESS);
    }
    let shape = match &cli.command {
        Command::Run(run) => Some(&run.shape),
        Command::Create(create) => Some(&create.shape),
        Command::Render(render) => Some(&render.shape),
        _ => None,
    };
    if let Command::Render(render) = &cli.command {
        return cluster::render(&cli.place, &render.name, &spec_of(&render.shape)?, form);
    }
    if matches!(cli.command, Command::Install) {
        return cluster::install(&cli.place, form);
    }
    let runtime = runtime(cli.state_dir, &cli.place, shape).await?;
    match cli.command {
        Command::Run(arguments) => return run_once(&runtime, arguments, form).await,
        Command::Create(arguments) => return create(&runtime, arguments, form).await,
        Command::Exec(arguments) => return exec(&runtime, arguments, form).await,
        Command::Shell(arguments) => return streams::shell(&runtime, arguments).await,
        Command::Attach(arguments) => return streams::attach(&runtime, arguments, form).await,
        Command::Cp(arguments) => return copy::copy(&runtime, arguments, form).await,
        Command::Ls => show::list(&runtime, form).await?,
        Command::Logs(arguments) => return streams::logs(&runtime, arguments, form).await,
        Command::Ps { name } => processes::list(&runtime, &name, form).await?,
        Command::Kill(arguments) => processes::kill(&runtime, arguments, form).await?,
        Command::Inspect { name } => show::inspect(&runtime, &name).await?,
        Command::Suspend { name } => {
            let waiting = Progress::waiting(format!("suspending `{name}`"));
            runtime.suspend(&name, &|stage| waiting.stage(stage)).await?;
            drop(waiting);
            match form {
                OutputForm::Table => out::line(&name)?,
                OutputForm::Json => changed(&runtime.get(&name).await?, form)?,
            }
        }
        Command::Resume { name } => {
            let waiting = Progress::waiting(format!("resuming `{name}`"));
            let resumed = runtime.resume(&name, &|stage| waiting.stage(stage)).await?;
            drop(waiting);
            // What the machine allows may be less than when it was made.
            warn_of_missing_walls(&resumed);
            changed(&resumed, form)?;
        }
        Command::Rm { names, all } => return remove(&runtime, names, all, form).await,
        Command::Gc => {
            let waiting = Progress::waiting("removing what was left half made");
            let collected = runtime.collect_garbage(&|stage| waiting.stage(stage)).await?;
            drop(waiting);
            cluster::warn_of_skew(&runtime);
            return removed(&collected.removed, collected.failed.into_iter().map(Into::into), form);
        }
        Command::Render(_) | Command::Install | Command::Completions { .. } => {}
    }
    Ok(ExitCode::SUCCESS)
}

/// Prints a sandbox that a command has changed: its name, or all about it.
fn changed(sandbox: &Sandbox, form: OutputForm) -> anyhow::Result<()> {
    match form {
        OutputForm::Table => Ok(out::line(&sandbox.id)?),
        OutputForm::Json => show::json(&sandbox.described()),
    }
}

async fn runtime(state_dir: Option<PathBuf>, place: &Place, shape: Option<&Shape>) -> anyhow::Result<Runtime> {
    cluster::refuse_flags(place, shape)?;
    match place.runtime {
        RuntimeArg::Local => Ok(Runtime::Local(LocalRuntime::new(settings(state_dir)?).map_err(RuntimeError::Local)?)),
        RuntimeArg::Kubernetes => Ok(Runtime::Kubernetes(Box::new(cluster::runtime(place, shape).await?))),
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
    Ok(Settings { state_dir, sandboxd, launcher, path: std::env::var("PATH").unwrap_or_default() })
}

fn environment(pairs: &[String]) -> anyhow::Result<Environment> {
    let mut environment = Environment::new();
    for pair in pairs {
        match pair.split_once('=') {
            Some(("", _)) => {
                return Err(WrongUsage("--env has a value without a name: NAME=VALUE is expected".to_owned()).into());
            }
            Some((name, value)) => drop(environment.insert(name.to_owned(), value.to_owned())),
            // As docker does: a variable that is not set is not passed on.
            None => drop(std::env::var(pair).map(|value| environment.insert(pair.clone(), value))),
        }
    }
    Ok(environment)
}

fn spec_of(shape: &Shape) -> anyhow::Result<SandboxSpec> {
    Ok(SandboxSpec {
        image: shape.image.clone(),
        working_dir: shape.workdir.clone(),
        environment: environment(&shape.env)?,
        mounts: shape.mounts().map_err(WrongUsage)?,
        user: shape.user.clone(),
        unprotect: shape.unprotect.clone(),
        system: shape.system.map(Into::into),
        devices: shape.device.clone(),
        shm_bytes: shape.shm_size,
        isolation: shape.isolation.into(),
        network: shape.network.into(),
        memory_bytes: shape.memory,
        processes: shape.processes,
        cpu_millis: shape.cpus,
        disk_bytes: shape.disk,
        deadline_seconds: shape.deadline.map(|deadline| deadline.as_secs().max(1)),
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

fn warn_of_missing_walls(sandbox: &Sandbox) {
    for warning in sandbox.warnings() {
        crate::out::note!("warning: {warning}");
    }
    for wall in sandbox.walls() {
        if let Some(reason) = &wall.missing {
            crate::out::note!("warning: no {}: {reason}", wall.part);
        }
        if wall.part == "none" {
            crate::out::note!("warning: {}", wall.note.as_deref().unwrap_or_default());
        }
    }
}

/// Ends with Ctrl-C or SIGTERM.
fn interrupted() -> std::io::Result<impl Future<Output = ()> + Send> {
    let (mut interrupt, mut terminate) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}

/// Makes a sandbox; Ctrl-C takes back what was made so far. `None` if it was.
async fn made(
    runtime: &Runtime,
    id: &SandboxId,
    spec: &SandboxSpec,
    lifetime: Lifetime,
) -> anyhow::Result<Option<Sandbox>> {
    let waiting = Progress::waiting(format!("creating `{id}`"));
    let interrupted = interrupted()?;
    let interrupted = async {
        interrupted.await;
        waiting.say(&format!("interrupted: removing `{id}`"));
    };
    let made = runtime.create(id, spec, lifetime, &|stage| waiting.stage(stage), interrupted).await?;
    drop(waiting);
    cluster::warn_of_skew(runtime);
    Ok(made)
}

async fn create(runtime: &Runtime, arguments: Create, form: OutputForm) -> anyhow::Result<ExitCode> {
    let id = arguments.name.unwrap_or_else(|| made_up_name("").into());
    let spec = spec_of(&arguments.shape)?;
    let Some(sandbox) = made(runtime, &id, &spec, Lifetime::Kept).await? else {
        return Ok(ExitCode::from(INTERRUPTED));
    };
    warn_of_missing_walls(&sandbox);
    changed(&sandbox, form)?;
    Ok(ExitCode::SUCCESS)
}

async fn run_once(runtime: &Runtime, arguments: Run, form: OutputForm) -> anyhow::Result<ExitCode> {
    let spec = spec_of(&arguments.shape)?;
    if matches!(runtime, Runtime::Local(_)) {
        // What an earlier run that was killed left behind goes now; in a cluster others may see to that.
        runtime.collect_garbage_before_another(&|_| {}).await?;
    }
    let id: SandboxId = made_up_name("run-").into();
    let Some(sandbox) = made(runtime, &id, &spec, Lifetime::OfThisProcess).await? else {
        return Ok(ExitCode::from(INTERRUPTED));
    };
    warn_of_missing_walls(&sandbox);
    let request = ExecRequest {
        argv: arguments.argv,
        timeout_ms: arguments.timeout.map(|timeout| timeout.as_millis() as u64),
        on_disconnect: OnDisconnect::Kill,
        when_full: arguments.terminal.when_full(),
        ..ExecRequest::default()
    };
    let done = tokio::select! {
        done = streams::execute(runtime, &sandbox, request, arguments.terminal, form) => done,
        () = runtime.hold(&id) => Err(anyhow!("the sandbox was removed by somebody else")),
    };
    let waiting = Progress::waiting(format!("removing `{id}`"));
    let left_behind = tokio::select! {
        discarded = runtime.discard(&id) => discarded.err().map(|error| error.to_string()),
        () = interrupted()? => Some("interrupted".to_owned()),
    };
    if let Some(why) = left_behind {
        waiting.say(&format!("warning: sandbox `{id}` is left behind: {why}"));
    }
    drop(waiting);
    done.map_err(|error| match error.downcast::<RuntimeError>() {
        Ok(error) => match error.not_running() {
            Some(reason) => anyhow!("the sandbox has ended: {reason}"),
            None => error.into(),
        },
        Err(error) => error,
    })
}

async fn exec(runtime: &Runtime, arguments: Exec, form: OutputForm) -> anyhow::Result<ExitCode> {
    let sandbox = ready(runtime, &arguments.name).await?;
    let request = ExecRequest {
        argv: arguments.argv,
        working_dir: arguments.workdir,
        environment: environment(&arguments.env)?,
        user: arguments.user,
        timeout_ms: arguments.timeout.map(|timeout| timeout.as_millis() as u64),
        on_disconnect: if arguments.detach { OnDisconnect::KeepRunning } else { OnDisconnect::Kill },
        when_full: if arguments.detach { WhenFull::DropOldest } else { arguments.terminal.when_full() },
        ..ExecRequest::default()
    };
    if arguments.detach {
        let exec = sandbox.client()?.exec(&request).await?;
        match form {
            OutputForm::Table => out::line(exec.id())?,
            OutputForm::Json => show::json(&exec.info().await?)?,
        }
        return Ok(ExitCode::SUCCESS);
    }
    streams::execute(runtime, &sandbox, request, arguments.terminal, form).await
}

/// The sandbox of this name, usable.
pub(crate) async fn ready(runtime: &Runtime, id: &SandboxId) -> anyhow::Result<Sandbox> {
    let waiting = Progress::waiting(format!("looking for `{id}`"));
    Ok(runtime.get_ready(id, &|stage| waiting.stage(stage)).await?)
}

async fn remove(runtime: &Runtime, names: Vec<SandboxId>, all: bool, form: OutputForm) -> anyhow::Result<ExitCode> {
    let names = if all {
        // What is on its way out already needs nobody.
        let there = runtime.list().await?.into_iter().filter(|sandbox| sandbox.status != Status::Deleting);
        there.map(|sandbox| sandbox.id).collect()
    } else {
        names
    };
    let waiting = match names.as_slice() {
        [one] => Progress::waiting(format!("removing `{one}`")),
        many => Progress::waiting(format!("removing {} sandboxes", many.len())),
    };
    let mut results = Vec::new();
    // What takes long is the end of their processes: that can go on in many at the same time.
    for some in names.chunks(REMOVED_AT_ONCE) {
        let removals: Vec<_> = some
            .iter()
            .map(|name| {
                let (runtime, name) = (runtime.clone(), name.clone());
                tokio::spawn(async move { runtime.remove(&name, &|_| {}).await })
            })
            .collect();
        for removal in removals {
            results.push(removal.await?);
        }
    }
    drop(waiting);
    let (mut failed, mut gone) = (Vec::new(), Vec::new());
    for (name, done) in names.into_iter().zip(results) {
        match done {
            Ok(true) => gone.push(name),
            // Somebody else has removed it since it was listed.
            Ok(false) if all => {}
            Ok(false) => failed.push(anyhow!("there is no sandbox `{name}`")),
            Err(error) => failed.push(error.into()),
        }
    }
    removed(&gone, failed, form)
}

/// Tells what could not be removed, and prints what was.
fn removed(
    names: &[SandboxId],
    failed: impl IntoIterator<Item = anyhow::Error>,
    form: OutputForm,
) -> anyhow::Result<ExitCode> {
    let mut code = ExitCode::SUCCESS;
    for error in failed {
        crate::error::report(&error);
        code = ExitCode::from(crate::error::FAILED);
    }
    show::names(names, form)?;
    Ok(code)
}

const REMOVED_AT_ONCE: usize = 16;

/// How long a file that was being written when the program ends may take to be put in its place or given up.
pub(crate) const WRITE_PATIENCE: Duration = Duration::from_secs(10);

/// Gives blocking reads of standard input no chance to hold the program up at its end.
pub(crate) const SHUTDOWN_PATIENCE: Duration = Duration::from_millis(20);
