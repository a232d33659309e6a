//! The entry point: options, logging, the runtime. Everything else is in the library.

use std::{process::ExitCode, time::Duration};

use clap::Parser;
use wharf_sandboxd::{app, log::Log, options::Options, process::own};

/// How long a file that is being written when all else has ended may still take.
const LAST_WRITES: Duration = Duration::from_secs(5);

fn main() -> ExitCode {
    own::settle();
    let key = own::take_secret("SESSION_API_KEY");
    let options = Options::parse();
    let filter = tracing_subscriber::EnvFilter::try_from_env("WHARF_LOG")
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("info"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(Log::new(options.log_bytes()))
        .with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr()))
        .with_target(false)
        .init();
    // What runs in the sandbox must not read our memory, where the keys are: no tracing, no core file.
    if let Err(error) = rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable) {
        tracing::warn!(%error, "programs of this sandbox may trace its sandboxd");
    }
    // Two threads: one works while the other blocks in a small system call; more would only cost memory.
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let result = match runtime {
        Ok(runtime) => {
            let result = runtime.block_on(app::run(options, key));
            // A thread that hangs in a system call, as in reading a file that never comes, is not waited for.
            runtime.shutdown_timeout(Duration::from_secs(1));
            if !wharf_files::finish_writes(LAST_WRITES) {
                tracing::warn!("a file that was being written is given up");
            }
            result
        }
        Err(error) => Err(anyhow::Error::new(error).context("could not start the async runtime")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
