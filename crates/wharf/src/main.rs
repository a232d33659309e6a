//! `wharf`: sandboxes from a terminal.
#![forbid(unsafe_code)]

mod cli;
mod cluster;
mod commands;
mod copy;
mod error;
mod out;
mod parse;
mod processes;
mod progress;
mod show;
mod streams;
mod terminal;

use std::process::ExitCode;

use wharf_runtime::local::{LAUNCH_ARGUMENT, launch_main};

fn main() -> ExitCode {
    // The launcher forks: it must come before any thread.
    if std::env::args_os().nth(1).is_some_and(|argument| argument == LAUNCH_ARGUMENT) {
        return launch_main();
    }
    let cli = cli::Cli::read();
    let runtime = match tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build() {
        Ok(runtime) => runtime,
        Err(cause) => return error::report(&anyhow::Error::new(cause).context("could not start the async runtime")),
    };
    let done = runtime.block_on(commands::run(cli));
    // A read of standard input that waits for a key must not hold the program up.
    runtime.shutdown_timeout(commands::SHUTDOWN_PATIENCE);
    wharf_files::finish_writes(commands::WRITE_PATIENCE);
    done.unwrap_or_else(|cause| error::report(&cause))
}
