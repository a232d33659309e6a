//! The command line: our own `serve`, and the one that OpenHands' clients start.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    str::FromStr,
};

use clap::{Args, Parser, Subcommand};
use wharf_protocol::SecretDigest;

/// Where to listen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Listen {
    Unix(PathBuf),
    Tcp(SocketAddr),
    /// A unix socket that our parent has bound and given us.
    Inherited(i32),
}

impl FromStr for Listen {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Some(path) = text.strip_prefix("unix:") {
            let path = PathBuf::from(path);
            return if path.is_absolute() {
                Ok(Self::Unix(path))
            } else {
                Err("the path of a unix socket must be absolute".to_owned())
            };
        }
        if let Some(number) = text.strip_prefix("fd:") {
            return number.parse().map(Self::Inherited).map_err(|_| "expected fd:NUMBER".to_owned());
        }
        text.strip_prefix("tcp:")
            .unwrap_or(text)
            .parse()
            .map(Self::Tcp)
            .map_err(|_| "expected unix:/path/to/socket, fd:NUMBER or tcp:ADDRESS:PORT".to_owned())
    }
}

/// The action execution server of Wharf: the one process that runs inside every sandbox.
#[derive(Debug, Parser)]
#[command(
    name = "wharf-sandboxd",
    version,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true,
    disable_help_subcommand = true,
    after_help = "Without a subcommand it starts as OpenHands' runtimes start their action execution server, bound from \
                  the command line and the environment (SESSION_API_KEY, NO_CHANGE_TIMEOUT_SECONDS, SU_TO_USER, \
                  RUNTIME_USERNAME):\n\n  wharf-sandboxd 8080 --working-dir /workspace --username root\n\nOur own \
                  runtimes start it blank and bind it over the API:\n\n  wharf-sandboxd serve --listen \
                  unix:/run/wharf.sock --bind-secret-file /run/secret"
)]
pub struct Options {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub openhands: Option<OpenHandsOptions>,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Start blank and wait for `bind`.
    Serve(ServeOptions),
    /// Copy this program to a directory, from where a container of any image can start it.
    Install {
        /// An existing directory.
        directory: PathBuf,
    },
    /// Wait until whoever is started with `serve --companion NAME` in the same network has ended.
    Accompany {
        /// What both call the abstract socket between them.
        name: String,
        /// Do first what `prepare` does with this and the other two.
        #[arg(long, value_name = "DIR", requires_all = ["etc", "home"])]
        workspace: Option<PathBuf>,
        #[arg(long, value_name = "DIR", requires = "workspace")]
        etc: Option<PathBuf>,
        #[arg(long, value_name = "DIR", requires = "workspace")]
        home: Option<PathBuf>,
    },
    /// Make what a sandbox needs before it starts: run as the user that it will run as, in its image.
    Prepare(PrepareOptions),
}

#[derive(Debug, Args)]
pub struct PrepareOptions {
    /// The working directory to make in a volume. Where the volume has files already, it leads to them.
    #[arg(long, value_name = "DIR")]
    pub workspace: PathBuf,
    /// Where to write a passwd and a group file in which this user has a name.
    #[arg(long, value_name = "DIR")]
    pub etc: PathBuf,
    /// The home of a user that the image does not know.
    #[arg(long, value_name = "DIR")]
    pub home: PathBuf,
}

#[derive(Debug, Args)]
#[command(group = clap::ArgGroup::new("bind_secret").required(true).args(["bind_secret_file", "bind_secret_fd", "bind_secret_sha256"]))]
pub struct ServeOptions {
    /// unix:/path/to/socket, fd:N (an inherited unix socket that is bound), or tcp:ADDRESS:PORT; may be given several times.
    #[arg(long, required = true, value_name = "WHERE")]
    pub listen: Vec<Listen>,
    /// A file that holds the bind secret; white space around it is ignored.
    #[arg(long, value_name = "FILE")]
    pub bind_secret_file: Option<PathBuf>,
    /// An inherited file descriptor to read the bind secret from, up to its end.
    #[arg(long, value_name = "N")]
    pub bind_secret_fd: Option<i32>,
    /// The SHA-256 of the bind secret, which has to be random: for who must not hand it over itself.
    #[arg(long, value_name = "HEX")]
    pub bind_secret_sha256: Option<SecretDigest>,
    /// An inherited file descriptor that gets one byte and is closed when all listeners are open.
    #[arg(long, value_name = "N")]
    pub ready_fd: Option<i32>,
    /// A file of the control group with a line `oom_kill N`: how many of its processes were killed for want of memory.
    #[arg(long, value_name = "FILE")]
    pub memory_events: Option<PathBuf>,
    /// An inherited pipe whose other end whoever binds this sandbox holds: when it is closed before that, we end.
    #[arg(long, value_name = "N")]
    pub maker_fd: Option<i32>,
    /// Keep a connection to the abstract socket of `accompany NAME` until the end, for who has to end with this server.
    #[arg(long, value_name = "NAME")]
    pub companion: Option<String>,
    /// A directory whose files count against the limit on disk; may be given several times [default: the working directory].
    #[arg(long, value_name = "DIR")]
    pub counted: Vec<PathBuf>,
    /// Bytes that the log may have, where standard error is a file open for reading and appending: older lines go.
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u64).range(4096..))]
    pub log_bytes: Option<u64>,
    /// Seconds that sessions and execs have to end after SIGTERM before they are killed.
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    pub stop_seconds: u64,
}

impl Options {
    /// What the log may have at most.
    pub fn log_bytes(&self) -> Option<u64> {
        match &self.command {
            Some(Command::Serve(serve)) => serve.log_bytes,
            Some(Command::Install { .. } | Command::Accompany { .. } | Command::Prepare(_)) | None => None,
        }
    }
}

/// The original's command line: section 1.1 of its specification.
#[derive(Debug, Clone, Args)]
pub struct OpenHandsOptions {
    /// The TCP port.
    pub port: u16,
    /// The address to listen at; the default are all interfaces, as in the original.
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0")]
    pub host: IpAddr,
    /// Initial directory of the shell and of relative listings.
    #[arg(long, value_name = "DIR")]
    pub working_dir: Option<PathBuf>,
    /// Plugins: jupyter, agent_skills, vscode.
    #[arg(long, num_args = 1.., value_name = "PLUGIN")]
    pub plugins: Vec<String>,
    /// The user for the shell.
    #[arg(long, default_value = "openhands", value_name = "NAME")]
    pub username: String,
    /// The uid used when the user must be created and for new files of the write action.
    #[arg(long, default_value_t = 1000, value_name = "UID")]
    pub user_id: u32,
    /// Accepted for compatibility: this server has no browser.
    #[arg(long, overrides_with = "no_enable_browser")]
    pub enable_browser: bool,
    #[arg(long)]
    pub no_enable_browser: bool,
    /// Accepted for compatibility: this server has no browser.
    #[arg(long, value_name = "NAME")]
    pub browsergym_eval_env: Option<String>,
}

impl OpenHandsOptions {
    /// Refuses what clap cannot know.
    ///
    /// # Errors
    ///
    /// A sentence that names the flag and its value.
    pub fn check(&self) -> Result<(), String> {
        if let Some(unknown) =
            self.plugins.iter().find(|plugin| !matches!(plugin.as_str(), "jupyter" | "agent_skills" | "vscode"))
        {
            return Err(format!("Plugin {unknown} not found"));
        }
        match &self.working_dir {
            Some(directory) if directory.is_absolute() => Ok(()),
            Some(directory) => Err(format!("--working-dir must be absolute, not `{}`", directory.display())),
            None => Err("--working-dir is missing: the file editor needs an absolute directory".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_of_openhands_is_understood() {
        let options = Options::try_parse_from(
            "wharf-sandboxd 8080 --working-dir /workspace --plugins agent_skills jupyter vscode --username root \
             --user-id 1000 --no-enable-browser"
                .split_whitespace(),
        )
        .unwrap();
        let openhands = options.openhands.unwrap();
        assert_eq!((openhands.port, openhands.plugins.len(), openhands.user_id), (8080, 3, 1000));
        assert_eq!(openhands.check(), Ok(()));
        let unknown = OpenHandsOptions { plugins: vec!["nope".into()], ..openhands.clone() };
        assert_eq!(unknown.check(), Err("Plugin nope not found".to_owned()));
        assert!(OpenHandsOptions { working_dir: Some("rel".into()), ..openhands }.check().is_err());
    }

    /// Pods of suspended sandboxes are stored as they were made.
    #[test]
    fn who_accompanies_may_prepare_too_and_need_not() {
        let parse = |line: &str| Options::try_parse_from(line.split_whitespace());
        parse("wharf-sandboxd accompany wharf-companion").unwrap();
        parse("wharf-sandboxd accompany wharf-companion --workspace /w --etc /e --home /h").unwrap();
        parse("wharf-sandboxd accompany wharf-companion --workspace /w --etc /e").unwrap_err();
        parse("wharf-sandboxd accompany wharf-companion --home /h").unwrap_err();
    }

    #[test]
    fn our_own_command_line_is_understood() {
        let parse = |line: &str| Options::try_parse_from(line.split_whitespace());
        let options =
            parse("wharf-sandboxd serve --listen unix:/x --listen tcp:127.0.0.1:0 --bind-secret-fd 3").unwrap();
        let Some(Command::Serve(serve)) = options.command else { panic!("no serve") };
        assert_eq!(serve.listen, [Listen::Unix("/x".into()), Listen::Tcp("127.0.0.1:0".parse().unwrap())]);
        let options = parse("wharf-sandboxd serve --listen fd:5 --maker-fd 4 --bind-secret-fd 3").unwrap();
        let Some(Command::Serve(serve)) = options.command else { panic!("no serve") };
        assert_eq!((serve.listen, serve.maker_fd), (vec![Listen::Inherited(5)], Some(4)));
        assert!(parse("wharf-sandboxd serve --listen fd:x --bind-secret-fd 3").is_err());
        assert!(parse("wharf-sandboxd serve --listen unix:rel --bind-secret-fd 3").is_err());
        let digest = "ab".repeat(32);
        let options = parse(&format!("wharf-sandboxd serve --listen unix:/x --bind-secret-sha256 {digest}")).unwrap();
        let Some(Command::Serve(serve)) = options.command else { panic!("no serve") };
        assert_eq!(serve.bind_secret_sha256.unwrap().to_string(), digest);
        for wrong in ["", "--bind-secret-sha256 ab", "--bind-secret-fd 3 --bind-secret-file /f"] {
            assert!(parse(&format!("wharf-sandboxd serve --listen unix:/x {wrong}")).is_err(), "{wrong}");
        }
        assert!(parse("wharf-sandboxd").is_err());
    }
}
