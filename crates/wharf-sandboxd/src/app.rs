//! Putting the parts together: from options to open listeners, and to the end.

use std::{
    io::Read,
    net::SocketAddr,
    os::fd::{FromRawFd, OwnedFd},
    path::Path,
    sync::Arc,
    time::Duration,
};

use anyhow::{Context, bail};
use axum::Router;
use rustix::process::Signal;
use tokio::{
    io::AsyncReadExt,
    net::unix::pipe,
    signal::unix::{self, SignalKind, signal},
};
use tokio_util::sync::CancellationToken;
use tracing::{info, warn};
use wharf_protocol::{Secret, SecretDigest};

use crate::{
    companion,
    core::Core,
    dialect::openhands::{self, OpenHands},
    http::{
        native,
        server::{self, Connections, Listener},
    },
    options::{Command, Listen, OpenHandsOptions, Options, PrepareOptions, ServeOptions},
    prepare::prepare,
    process::{memory, own, reaper, tree},
};

const SHORTEST_SECRET: usize = 16;
const LONGEST_SECRET: u64 = 4096;
/// How long tasks have to end once all that runs was ended.
const LAST_TASKS: Duration = Duration::from_secs(6);

/// Runs sandboxd until it is told to stop. `key` is what `SESSION_API_KEY` was in the environment.
///
/// # Errors
///
/// When it cannot start: a bad option, an address that is taken, a user that cannot be made.
pub async fn run(options: Options, key: Option<String>) -> anyhow::Result<()> {
    match (options.command, options.openhands) {
        (Some(Command::Serve(serve)), _) => run_blank(serve).await,
        (Some(Command::Install { directory }), _) => install(&directory),
        (Some(Command::Accompany { name, workspace, etc, home }), _) => {
            if let (Some(workspace), Some(etc), Some(home)) = (workspace, etc, home) {
                prepare(&PrepareOptions { workspace, etc, home })?;
            }
            companion::accompany(&name).await
        }
        (Some(Command::Prepare(options)), _) => prepare(&options),
        (None, Some(openhands)) => run_openhands(openhands, key).await,
        (None, None) => bail!("neither a subcommand nor a port was given"),
    }
}

/// Copies this program in one step, so that nobody starts a half of it.
fn install(directory: &Path) -> anyhow::Result<()> {
    let ourselves = std::env::current_exe().context("could not find this program itself")?;
    let (target, temporary) = (directory.join("wharf-sandboxd"), directory.join(".wharf-sandboxd.new"));
    std::fs::copy(&ourselves, &temporary)
        .and_then(|_| std::fs::rename(&temporary, &target))
        .with_context(|| format!("could not write `{}`", target.display()))
}

async fn run_blank(options: ServeOptions) -> anyhow::Result<()> {
    let secret = bind_secret(&options)?;
    if let Some(file) = options.memory_events.clone() {
        memory::count_in(file);
    }
    let shutdown = CancellationToken::new();
    let core = Arc::new(Core::new(Some(secret), shutdown).counting(options.counted.clone()));
    let dialect = OpenHands::new(core.clone(), openhands::Settings::default());
    // Held until we end.
    let _companion = options.companion.as_deref().and_then(companion::meet);
    let mut listeners = Vec::new();
    for listen in &options.listen {
        let opened = match listen {
            Listen::Inherited(number) => Listener::inherit(inherited(*number)?),
            Listen::Unix(_) | Listen::Tcp(_) => Listener::open(listen).await,
        };
        listeners.push(opened.with_context(|| format!("could not listen at {listen:?}"))?);
    }
    if let Some(maker) = options.maker_fd {
        let maker = pipe::Receiver::from_owned_fd(inherited(maker)?).context("could not watch --maker-fd")?;
        core.tasks.spawn(end_without(maker, core.clone()));
    }
    if let Some(ready) = options.ready_fd {
        rustix::io::write(inherited(ready)?, b"r").context("could not write to --ready-fd")?;
    }
    live(core, dialect, listeners, Duration::from_secs(options.stop_seconds)).await
}

async fn run_openhands(options: OpenHandsOptions, key: Option<String>) -> anyhow::Result<()> {
    options.check().map_err(anyhow::Error::msg)?;
    let shutdown = CancellationToken::new();
    let core = Arc::new(Core::new(None, shutdown));
    let address = SocketAddr::from((options.host, options.port));
    let listener =
        Listener::open(&Listen::Tcp(address)).await.with_context(|| format!("could not listen at {address}"))?;
    let settings = openhands::bind_from_start(&core, &options, key)?;
    if core.identity().is_ok_and(|identity| identity.keys.is_empty()) {
        warn!("SESSION_API_KEY is not set: whoever reaches {listener} can run anything here");
    }
    let dialect = OpenHands::new(core.clone(), settings);
    core.tasks.spawn(dialect.clone().warm_up());
    openhands::serve_viewer(&core, options.port).await;
    live(core, dialect, vec![listener], Duration::from_secs(10)).await
}

/// Serves until a signal or the deadline, then ends everything that was started.
async fn live(
    core: Arc<Core>,
    dialect: Arc<OpenHands>,
    listeners: Vec<Listener>,
    stop: Duration,
) -> anyhow::Result<()> {
    let shutdown = core.shutdown.clone();
    reaper::adopt_orphans().context("could not become the reaper of orphans")?;
    let reaping = CancellationToken::new();
    let reaper = tokio::spawn(reaper::reap(reaping.clone()));
    core.tasks.spawn(stop_on_signal(shutdown.clone())?);
    let connections = Connections::new(core.clone());
    let router: Router = native::router(core.clone()).merge(openhands::router(dialect, &core));
    let serving = tokio_util::task::TaskTracker::new();
    for listener in listeners {
        info!("listening on {listener}");
        serving.spawn(server::serve(listener, router.clone(), connections.clone()));
    }
    serving.close();
    shutdown.cancelled().await;
    info!("stopping");
    // Sessions and execs hear of the shutdown themselves; whatever else descends from us ends here.
    tree::end_descendants(stop).await;
    core.over.cancel();
    core.tasks.close();
    let all = async { tokio::join!(serving.wait(), core.tasks.wait()) };
    if tokio::time::timeout(LAST_TASKS, all).await.is_err() {
        warn!(tasks = core.tasks.len() + serving.len(), "tasks that did not end are given up");
    }
    // To the last, since whoever ended meanwhile was somebody's child.
    reaping.cancel();
    reaper.await.context("the reaper failed")?.context("zombies were not reaped")
}

/// Ends a sandbox whose maker has gone before it has bound it: nobody else knows the secret.
async fn end_without(mut maker: pipe::Receiver, core: Arc<Core>) {
    let gone = async move {
        // Nothing is ever sent.
        while maker.read(&mut [0]).await.is_ok_and(|count| count > 0) {}
    };
    if core.shutdown.run_until_cancelled(gone).await.is_some() && core.identity().is_err() {
        tracing::error!("whoever started this sandbox has gone before binding it");
        core.shutdown.cancel();
    }
}

/// Ends on SIGTERM, SIGINT and SIGHUP; not on a SIGINT or SIGHUP that a shell or nohup(1) has made us ignore, since those
/// are meant for what is in the foreground.
fn stop_on_signal(shutdown: CancellationToken) -> anyhow::Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate()).context("could not handle SIGTERM")?;
    let heard = |number, kind| (!own::is_ignored(number)).then(|| signal(kind)).transpose();
    let interrupt = heard(Signal::INT, SignalKind::interrupt()).context("could not handle SIGINT")?;
    let hang_up = heard(Signal::HUP, SignalKind::hangup()).context("could not handle SIGHUP")?;
    let received = async |signal: Option<unix::Signal>| match signal {
        Some(mut signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    };
    Ok(async move {
        tokio::select! {
            () = shutdown.cancelled() => {}
            _ = terminate.recv() => shutdown.cancel(),
            () = received(interrupt) => shutdown.cancel(),
            () = received(hang_up) => shutdown.cancel(),
        }
    })
}

fn bind_secret(options: &ServeOptions) -> anyhow::Result<SecretDigest> {
    let mut text = String::new();
    match (&options.bind_secret_file, options.bind_secret_fd, options.bind_secret_sha256) {
        (_, _, Some(digest)) => return Ok(digest),
        (Some(path), ..) => {
            let file = std::fs::File::open(path)
                .with_context(|| format!("could not read --bind-secret-file {}", path.display()))?;
            file.take(LONGEST_SECRET).read_to_string(&mut text)
        }
        (None, Some(number), _) => {
            let file = std::fs::File::from(inherited(number)?);
            file.take(LONGEST_SECRET).read_to_string(&mut text)
        }
        (None, None, None) => {
            bail!("a bind secret is needed: --bind-secret-file, --bind-secret-fd or --bind-secret-sha256")
        }
    }
    .context("could not read the bind secret")?;
    let text = text.trim();
    if text.len() < SHORTEST_SECRET {
        bail!("the bind secret has {} characters; at least {SHORTEST_SECRET} are needed", text.len());
    }
    Ok(Secret::new(text).digest())
}

/// Takes over a descriptor that our parent opened for us and named on the command line.
#[allow(unsafe_code, reason = "a descriptor given by number")]
fn inherited(number: i32) -> anyhow::Result<OwnedFd> {
    if number < 3 {
        bail!("the file descriptor {number} is not one to be given; use 3 or higher");
    }
    // SAFETY: only asked whether it is open; the number is checked by the kernel.
    let open = unsafe { rustix::fd::BorrowedFd::borrow_raw(number) };
    rustix::io::fcntl_setfd(open, rustix::io::FdFlags::CLOEXEC)
        .with_context(|| format!("the file descriptor {number} is not open"))?;
    // SAFETY: it is open, and our parent gave it to us alone; nothing else in this process knows the number.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}
