//! The built `wharf`, as a test that has a folder for its files starts it.

use std::{
    path::Path,
    process::{Command, Stdio},
};

/// `wharf` in a cluster, with the `config.toml` and the state of `files`. Nothing is typed into it.
pub fn wharf(files: &Path, kubeconfig: &Path, arguments: &[&str]) -> Command {
    let mut command = Command::new(wharf_e2e::program("wharf"));
    command
        .env("KUBECONFIG", kubeconfig)
        .env("WHARF_CONFIG", files.join("config.toml"))
        .env("WHARF_STATE_DIR", files)
        .env("WHARF_RUNTIME", "kubernetes")
        .args(arguments)
        .stdin(Stdio::null());
    command
}

/// The same, whose output is read, and that ends with the test.
pub fn watched_wharf(files: &Path, kubeconfig: &Path, arguments: &[&str]) -> tokio::process::Command {
    let mut command = tokio::process::Command::from(wharf(files, kubeconfig, arguments));
    command.stdout(Stdio::piped()).stderr(Stdio::piped()).kill_on_drop(true);
    command
}
