//! The flags.

use std::path::PathBuf;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum, parser::ValueSource};
use wharf_protocol::{Isolation, MountSpec, NetworkMode, SandboxId, SystemAccess, WhenFull};

use wharf_runtime::kubernetes::settings::{Profile, RouteChoice};

use crate::{error, parse};

/// Sandboxes for coding agents: a shell that stays, files, processes, and walls around all of it.
#[derive(Debug, Parser)]
#[command(
    name = "wharf",
    version,
    after_help = "Examples:\n  wharf run -- echo hello                 a throw-away sandbox for one command\n  wharf run \
                  --mount . -w /workspace -it -- bash\n  wharf create box && wharf exec box -- make test && wharf rm \
                  box\n  wharf cp src box:/workspace             copy a directory in\n  wharf --runtime kubernetes run --image \
                  python:3.12 -- python3 -c 'print(42)'\n\nExit codes: that of the command; 124 \
                  if --timeout ended it, 120 if the output could not be written, 121 if a part of it is missing though the \
                  command ended with 0, 125 if wharf itself failed, 126 if the command cannot be run, 127 if it does not exist, 141 if nobody \
                  reads the output any more, 130 after Ctrl-C while a sandbox was made, 128 and a signal's number if that ended the \
                  command or cp, 2 for wrong usage; of cp 3 if files were left out, which it names."
)]
pub(crate) struct Cli {
    /// Where sandboxes are kept [default: /var/lib/wharf for root, else wharf in XDG_STATE_HOME or
    /// ~/.local/state].
    #[arg(long, global = true, env = "WHARF_STATE_DIR", value_name = "DIR")]
    pub(crate) state_dir: Option<PathBuf>,
    #[command(flatten)]
    pub(crate) place: Place,
    /// How results are printed; with json, output of a command comes as one frame a line.
    #[arg(short, long, global = true, value_enum, default_value_t = OutputForm::Table)]
    pub(crate) output: OutputForm,
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// Where sandboxes live.
#[derive(Debug, Clone, Args)]
pub(crate) struct Place {
    /// Confined processes on this machine, or pods in a cluster.
    #[arg(long, global = true, env = "WHARF_RUNTIME", value_enum, default_value_t = RuntimeArg::Local, help_heading = "Runtime")]
    pub(crate) runtime: RuntimeArg,
    /// A context of the kubeconfig [default: its current one; in a pod, its service account].
    #[arg(long, global = true, env = "WHARF_CONTEXT", value_name = "NAME", help_heading = "Runtime")]
    pub(crate) context: Option<String>,
    /// The namespace of all objects [default: the settings' or the context's].
    #[arg(short, long, global = true, env = "WHARF_NAMESPACE", value_name = "NAME", help_heading = "Runtime")]
    pub(crate) namespace: Option<String>,
    /// A kubeconfig file [default: KUBECONFIG or ~/.kube/config].
    #[arg(long, global = true, value_name = "FILE", help_heading = "Runtime")]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// An OpenHands config.toml; our own settings are in its section `wharf`.
    #[arg(long, global = true, env = "WHARF_CONFIG", value_name = "FILE", help_heading = "Runtime")]
    pub(crate) config: Option<PathBuf>,
    /// Whose objects a sandbox is made of [default: wharf].
    #[arg(long, global = true, value_enum, value_name = "WHOSE", help_heading = "Runtime")]
    pub(crate) profile: Option<ProfileArg>,
    /// How sandboxd is reached [default: the pod's address in a cluster, port-forward outside].
    #[arg(long, global = true, value_enum, value_name = "WAY", help_heading = "Runtime")]
    pub(crate) route: Option<RouteArg>,
    /// Which flags stand on the command line that only the other runtime understands.
    #[arg(skip)]
    pub(crate) given: Vec<&'static str>,
}

impl Cli {
    /// Reads the command line; ends the program if it is wrong.
    pub(crate) fn read() -> Self {
        const OF_A_CLUSTER: &[&str] = &["context", "namespace", "kubeconfig", "config", "profile", "route"];
        const OF_THIS_MACHINE: &[&str] = &["state_dir"];
        let matches = Self::command().try_get_matches().unwrap_or_else(|error| {
            // Help and version are results: that they cannot be written is told like any other.
            let code = match error.print() {
                Err(source) if !error.use_stderr() => error::unwritable(source),
                Ok(()) | Err(_) => error.exit_code(),
            };
            std::process::exit(code)
        });
        let mut cli = Self::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
        // A variable of the environment may be there for other calls.
        let is_given = |flag: &&str| matches.value_source(flag) == Some(ValueSource::CommandLine);
        let of_the_other = match cli.place.runtime {
            RuntimeArg::Local => OF_A_CLUSTER,
            RuntimeArg::Kubernetes => OF_THIS_MACHINE,
        };
        cli.place.given = of_the_other.iter().copied().filter(is_given).collect();
        cli
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RuntimeArg {
    Local,
    Kubernetes,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProfileArg {
    /// Any image, sandboxd carried in, restricted Pod Security.
    Wharf,
    /// Equal to those of OpenHands' KubernetesRuntime, for its own images.
    #[value(name = "openhands")]
    OpenHands,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum RouteArg {
    PodAddress,
    Service,
    PortForward,
}

impl From<ProfileArg> for Profile {
    fn from(argument: ProfileArg) -> Self {
        match argument {
            ProfileArg::Wharf => Self::Wharf,
            ProfileArg::OpenHands => Self::OpenHands,
        }
    }
}

impl From<RouteArg> for RouteChoice {
    fn from(argument: RouteArg) -> Self {
        match argument {
            RouteArg::PodAddress => Self::PodAddress,
            RouteArg::Service => Self::Service,
            RouteArg::PortForward => Self::PortForward,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum OutputForm {
    Table,
    Json,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run one command in a throw-away sandbox.
    Run(Run),
    /// Make a sandbox and print its name.
    Create(Create),
    /// Run a command in a sandbox; what it leaves running in the background stays.
    Exec(Exec),
    /// Open a shell in a sandbox; it stays when you leave with Ctrl-P Ctrl-Q, or your terminal goes.
    Shell(Shell),
    /// Follow the output of an exec or a session from an offset.
    Attach(Attach),
    /// Copy files: SANDBOX:PATH on one side, a local path on the other, `-` for a tar stream.
    ///
    /// As `docker cp`: modes and times come along (set-user-id and set-group-id do not), links stay links, and a file is
    /// replaced once the new one is whole. Sockets, pipes, devices and what cannot be read are left out and named at the
    /// end; then the exit code is 3.
    Cp(Cp),
    /// List sandboxes.
    Ls,
    /// Print what an exec printed so far; without an id, the end of sandboxd's own log.
    Logs(Logs),
    /// List the execs and sessions of a sandbox, also finished execs.
    Ps { name: SandboxId },
    /// End execs or sessions and forget them, or send them a signal.
    Kill(Kill),
    /// Show all about a sandbox as JSON.
    Inspect { name: SandboxId },
    /// End a sandbox's processes or pod and keep its workspace.
    #[command(visible_alias = "stop")]
    Suspend { name: SandboxId },
    /// Start a suspended or ended sandbox again.
    #[command(visible_alias = "start")]
    Resume { name: SandboxId },
    /// Remove sandboxes and all that belongs to them.
    Rm {
        #[arg(required_unless_present = "all")]
        names: Vec<SandboxId>,
        /// Every sandbox.
        #[arg(long, conflicts_with = "names")]
        all: bool,
    },
    /// Remove what killed programs left half made.
    Gc,
    /// Print the Kubernetes objects of a sandbox as YAML; nothing is made.
    Render(Render),
    /// Print what a namespace needs once, for `kubectl apply -f -`: ServiceAccount, Role, NetworkPolicy.
    Install,
    /// Print a completion script.
    Completions { shell: clap_complete::Shell },
}

/// What a new sandbox is like.
#[derive(Debug, Clone, Args)]
pub(crate) struct Shape {
    /// `SOURCE[:TARGET[:ro]]` shows a directory of this machine; TARGET is the working directory if it is left out. With colons
    /// in a path: `src=SOURCE,dst=TARGET,ro`.
    #[arg(long, value_name = "MOUNT")]
    pub(crate) mount: Vec<String>,
    /// Let the sandbox write what the host would run from a mount (`inspect` names it): a path, or `all`.
    #[arg(long, value_name = "PATH")]
    pub(crate) unprotect: Vec<String>,
    /// Whom commands run as: `NAME` or `UID[:GID]`; a name that this machine does not know is made [default: you].
    #[arg(short = 'u', long, value_name = "USER")]
    pub(crate) user: Option<String>,
    /// The container image, for a sandbox in a cluster [default: the settings'].
    #[arg(long, value_name = "IMAGE")]
    pub(crate) image: Option<String>,
    /// Where commands start.
    #[arg(short = 'w', long, default_value = "/workspace", value_name = "DIR")]
    pub(crate) workdir: String,
    /// End the sandbox by itself after so long, such as 8h.
    #[arg(long, value_parser = parse::duration, value_name = "TIME")]
    pub(crate) deadline: Option<std::time::Duration>,
    /// Give up if a sandbox in a cluster is not ready after so long [default: 5m].
    #[arg(long, value_parser = parse::duration, value_name = "TIME")]
    pub(crate) start_timeout: Option<std::time::Duration>,
    /// K=V, or K alone to pass a variable on.
    #[arg(short = 'e', long, value_name = "K=V")]
    pub(crate) env: Vec<String>,
    /// How strong the walls have to be: full or nothing, as good as this machine allows, or none at all.
    #[arg(long, value_enum, default_value_t = IsolationArg::Full)]
    pub(crate) isolation: IsolationArg,
    /// Whether the system (/usr, /etc, /opt, /srv, /var) can be changed, for this sandbox alone and kept until it is removed [default:
    /// writable where that is possible, else read-only; `wharf inspect` says which].
    #[arg(long, value_enum, value_name = "HOW")]
    pub(crate) system: Option<SystemArg>,
    /// A device of this machine, such as /dev/fuse or /dev/nvidia0; may be given several times.
    #[arg(long, value_name = "PATH")]
    pub(crate) device: Vec<String>,
    /// The machine's network, or a loopback of its own.
    #[arg(long, value_enum, default_value_t = NetworkArg::Host)]
    pub(crate) network: NetworkArg,
    /// Bytes of memory, such as 512M or 2G [default: three quarters of the machine].
    #[arg(long, value_parser = parse::size, value_name = "SIZE")]
    pub(crate) memory: Option<u64>,
    /// Processes and threads at the same time [default: 4096].
    #[arg(long, value_name = "N")]
    pub(crate) processes: Option<u32>,
    /// CPUs, such as 1.5.
    #[arg(long, value_parser = parse::cpus, value_name = "N")]
    pub(crate) cpus: Option<u32>,
    /// Bytes on disk of the workspace and what is changed in the system, and in memory of /tmp and the like together, such as
    /// 1G [default: 10G].
    #[arg(long, value_parser = parse::size, value_name = "SIZE")]
    pub(crate) disk: Option<u64>,
    /// Bytes of /dev/shm alone, such as 1G; at most half of the memory [default: it shares what /tmp has].
    #[arg(long, value_parser = parse::size, value_name = "SIZE")]
    pub(crate) shm_size: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum IsolationArg {
    Full,
    BestEffort,
    None,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum SystemArg {
    ReadOnly,
    Writable,
}

impl From<SystemArg> for SystemAccess {
    fn from(argument: SystemArg) -> Self {
        match argument {
            SystemArg::ReadOnly => Self::ReadOnly,
            SystemArg::Writable => Self::Writable,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum NetworkArg {
    Host,
    None,
}

impl From<IsolationArg> for Isolation {
    fn from(argument: IsolationArg) -> Self {
        match argument {
            IsolationArg::Full => Self::Full,
            IsolationArg::BestEffort => Self::BestEffort,
            IsolationArg::None => Self::None,
        }
    }
}

impl From<NetworkArg> for NetworkMode {
    fn from(argument: NetworkArg) -> Self {
        match argument {
            NetworkArg::Host => Self::Host,
            NetworkArg::None => Self::None,
        }
    }
}

impl Shape {
    /// The mounts, with the working directory as the default target.
    pub(crate) fn mounts(&self) -> Result<Vec<MountSpec>, String> {
        self.mount.iter().map(|text| parse::mount(text, &self.workdir)).collect()
    }
}

#[derive(Debug, Args)]
pub(crate) struct Run {
    #[command(flatten)]
    pub(crate) shape: Shape,
    #[command(flatten)]
    pub(crate) terminal: TerminalFlags,
    /// End the command after so long, such as 30s or 5m: SIGTERM, and SIGKILL five seconds later.
    #[arg(long, value_parser = parse::duration, value_name = "TIME")]
    pub(crate) timeout: Option<std::time::Duration>,
    /// The command and its arguments.
    #[arg(required = true, trailing_var_arg = true, value_name = "CMD")]
    pub(crate) argv: Vec<String>,
}

#[derive(Debug, Clone, Copy, Args)]
pub(crate) struct TerminalFlags {
    /// Pass standard input on.
    #[arg(short = 'i', long)]
    pub(crate) interactive: bool,
    /// Give the command a terminal.
    #[arg(short = 't', long)]
    pub(crate) tty: bool,
    /// Let the command go on while its output is not read; what does not fit then is lost, and that is told.
    #[arg(long)]
    pub(crate) no_wait: bool,
}

impl TerminalFlags {
    pub(crate) fn when_full(self) -> WhenFull {
        if self.no_wait { WhenFull::DropOldest } else { WhenFull::Wait }
    }
}

#[derive(Debug, Args)]
pub(crate) struct Kill {
    pub(crate) name: SandboxId,
    /// Ids of execs or sessions, as `wharf ps` lists them.
    #[arg(required_unless_present = "finished", value_name = "ID")]
    pub(crate) ids: Vec<String>,
    /// Only send this signal, such as INT or 9, to what runs in the foreground.
    #[arg(short, long, value_name = "SIGNAL")]
    pub(crate) signal: Option<String>,
    /// Forget all finished execs.
    #[arg(long, conflicts_with_all = ["ids", "signal"])]
    pub(crate) finished: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Create {
    /// Made up if it is left out.
    pub(crate) name: Option<SandboxId>,
    #[command(flatten)]
    pub(crate) shape: Shape,
}

#[derive(Debug, Args)]
pub(crate) struct Render {
    /// What the sandbox is called.
    #[arg(default_value = "box")]
    pub(crate) name: SandboxId,
    #[command(flatten)]
    pub(crate) shape: Shape,
}

#[derive(Debug, Args)]
pub(crate) struct Exec {
    pub(crate) name: SandboxId,
    #[command(flatten)]
    pub(crate) terminal: TerminalFlags,
    /// Print the exec's id and leave it running.
    #[arg(short, long, conflicts_with_all = ["interactive", "tty"])]
    pub(crate) detach: bool,
    /// A user of the sandbox, by name or number.
    #[arg(short, long)]
    pub(crate) user: Option<String>,
    /// Where the command starts [default: the sandbox's working directory].
    #[arg(short = 'w', long, value_name = "DIR")]
    pub(crate) workdir: Option<String>,
    /// K=V, or K alone to pass a variable on.
    #[arg(short = 'e', long, value_name = "K=V")]
    pub(crate) env: Vec<String>,
    /// End the command after so long, such as 30s or 5m: SIGTERM, and SIGKILL five seconds later.
    #[arg(long, value_parser = parse::duration, value_name = "TIME")]
    pub(crate) timeout: Option<std::time::Duration>,
    /// The command and its arguments.
    #[arg(required = true, trailing_var_arg = true, value_name = "CMD")]
    pub(crate) argv: Vec<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Shell {
    pub(crate) name: SandboxId,
    /// The session; the same one again shows what is on its screen.
    #[arg(long, default_value = "main")]
    pub(crate) session: wharf_protocol::SessionId,
    /// First end the session's shell with all that it started, whatever has become of it, and start another; without a
    /// terminal that is all.
    #[arg(long)]
    pub(crate) reset: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Attach {
    pub(crate) name: SandboxId,
    /// An exec's or a session's id.
    pub(crate) id: String,
    /// Where to start in its output.
    #[arg(long, default_value_t = 0, value_name = "BYTES")]
    pub(crate) offset: u64,
}

#[derive(Debug, Args)]
pub(crate) struct Cp {
    /// SANDBOX:PATH, a local path, or `-` for a tar stream; a relative PATH begins in the sandbox's working directory.
    pub(crate) source: String,
    /// Likewise; into a directory that exists the source goes under its own name, and DIR/. as what is in DIR.
    pub(crate) target: String,
    /// Copy what SOURCE points to if it is a symlink. Links below it stay links.
    #[arg(short = 'L', long)]
    pub(crate) follow_link: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Logs {
    pub(crate) name: SandboxId,
    pub(crate) id: Option<String>,
    /// Go on with what is printed later.
    #[arg(short, long)]
    pub(crate) follow: bool,
}
