//! Errors as a person reads them, and the exit codes.

use std::process::ExitCode;

use wharf_client::{ClientError, ErrorKind};
use wharf_protocol::ProblemKind;
use wharf_runtime::{
    RuntimeError,
    kubernetes::{ApiErrorKind, ClusterError, FailureKind, KubernetesError, Refusal, settings::SettingsError},
    local::LocalError,
};

use crate::out::{CouldNotWrite, note, printable, printable_lines};

/// wharf itself failed.
pub(crate) const FAILED: u8 = 125;
/// The command's time limit has passed, as with timeout(1).
pub(crate) const TIMED_OUT: u8 = 124;
/// The output could not be written, as to a full disk.
pub(crate) const UNWRITABLE: u8 = 120;
/// The command ended with 0, but a part of its output is missing.
pub(crate) const INCOMPLETE: u8 = 121;
/// The command is there and cannot be run: a directory, or a file without permission.
pub(crate) const NOT_EXECUTABLE: u8 = 126;
/// The command is not there.
pub(crate) const NOT_FOUND: u8 = 127;
/// The command was understood but is wrong.
pub(crate) const USAGE: u8 = 2;

/// What was asked for makes no sense, whatever there is.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(crate) struct WrongUsage(pub(crate) String);

/// Some files were not copied.
pub(crate) const PARTLY_COPIED: u8 = 3;

/// All was copied but what cannot be.
#[derive(Debug)]
pub(crate) struct PartlyCopied {
    pub(crate) count: u64,
}

impl std::fmt::Display for PartlyCopied {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let files = if self.count == 1 { "file was" } else { "files were" };
        write!(f, "{} {files} not copied; all else was", self.count)
    }
}

impl std::error::Error for PartlyCopied {}

/// Ctrl-C while a sandbox was being made, as a shell reports it.
pub(crate) const INTERRUPTED: u8 = 130;

/// What a shell adds to the number of the signal that ended a program.
pub(crate) const SIGNALLED: u8 = 128;

/// Nobody reads our output any more: as a shell reports a program that SIGPIPE ended.
pub(crate) const BROKEN_PIPE: u8 = 141;

/// Prints an error and its hint; gives the exit code that belongs to it.
pub(crate) fn report(error: &anyhow::Error) -> ExitCode {
    // Only our own output: a broken pipe behind a connection is another matter.
    let local = match error.downcast_ref() {
        Some(ClientError::Local(source)) => Some(source),
        _ => error.downcast_ref::<std::io::Error>(),
    };
    if local.is_some_and(|source| source.kind() == std::io::ErrorKind::BrokenPipe)
        || error.downcast_ref().is_some_and(CouldNotWrite::nobody_reads)
    {
        return ExitCode::from(BROKEN_PIPE);
    }
    note!("error: {}", told(error));
    if let Some(hint) = hint(error) {
        note!("hint: {hint}");
    }
    ExitCode::from(code(error))
}

/// An error on one line, but for lists that are our own: a name in it may be a sandbox's, and make another line of it.
fn told(error: &anyhow::Error) -> String {
    let is_list = |error: &anyhow::Error| match error.downcast_ref() {
        Some(RuntimeError::Kubernetes(error)) => matches!(**error, KubernetesError::Spec(_)),
        _ => error.is::<SettingsError>(),
    };
    let mut causes: Vec<String> = error.chain().map(ToString::to_string).collect();
    // An error that wraps another of the same words.
    causes.dedup();
    let text = as_typed(causes.join(": "), &refused_fields(error));
    if is_list(error) { printable_lines(&text) } else { printable(&text) }
}

/// The fields that a refusal names, as the API calls them.
fn refused_fields(error: &anyhow::Error) -> Vec<&str> {
    match error.downcast_ref::<RuntimeError>() {
        Some(RuntimeError::Local(LocalError::Spec { field, .. })) => return vec![field],
        Some(RuntimeError::Kubernetes(error)) => {
            let KubernetesError::Spec(settings) = error.as_ref() else { return Vec::new() };
            return settings.problems.iter().map(|problem| problem.field.as_str()).collect();
        }
        _ => {}
    }
    let problem = error.downcast_ref().and_then(ClientError::problem);
    problem.and_then(|problem| problem.field.as_deref()).into_iter().collect()
}

/// A text about fields, with the flags that fill them in.
fn as_typed(text: String, fields: &[&str]) -> String {
    fields.iter().fold(text, |text, field| match typed(field) {
        Some(flag) => text.replacen(&format!("`{field}`"), &format!("`{flag}`"), 1),
        None => text,
    })
}

/// What a field of a sandbox or of a command is called on the command line.
fn typed(field: &str) -> Option<&'static str> {
    Some(match field.split_once('.').map_or(field, |(whole, _)| whole) {
        "argv" => "CMD",
        "cpu_millis" => "--cpus",
        "deadline_seconds" => "--deadline",
        "devices" => "--device",
        "disk_bytes" => "--disk",
        "environment" => "--env",
        "image" => "--image",
        "isolation" => "--isolation",
        "memory_bytes" => "--memory",
        "mounts" => "--mount",
        "network" => "--network",
        "processes" => "--processes",
        "shm_bytes" => "--shm-size",
        "system" => "--system",
        "unprotect" => "--unprotect",
        "user" => "--user",
        "working_dir" => "--workdir",
        _ => return None,
    })
}

/// Tells that help could not be printed; gives the exit code.
pub(crate) fn unwritable(source: std::io::Error) -> i32 {
    if source.kind() == std::io::ErrorKind::BrokenPipe {
        return BROKEN_PIPE.into();
    }
    note!("error: could not write to standard output: {source}");
    UNWRITABLE.into()
}

fn code(error: &anyhow::Error) -> u8 {
    if let Some(client) = error.downcast_ref::<ClientError>() {
        let about_the_program = client.problem().filter(|problem| problem.field.as_deref() == Some("argv"));
        return match about_the_program.map(|problem| problem.kind) {
            Some(ProblemKind::OperatingSystem) => NOT_EXECUTABLE,
            Some(_) => NOT_FOUND,
            None => FAILED,
        };
    }
    if error.is::<CouldNotWrite>() {
        return UNWRITABLE;
    }
    if error.is::<PartlyCopied>() {
        return PARTLY_COPIED;
    }
    if error.is::<SettingsError>() || error.is::<WrongUsage>() {
        return USAGE;
    }
    match error.downcast_ref::<RuntimeError>() {
        Some(RuntimeError::Local(LocalError::Spec { .. }) | RuntimeError::Name(_) | RuntimeError::Image(_)) => USAGE,
        Some(RuntimeError::Kubernetes(error)) if matches!(**error, KubernetesError::Spec(_)) => USAGE,
        _ => FAILED,
    }
}

fn hint(error: &anyhow::Error) -> Option<String> {
    match error.downcast_ref::<RuntimeError>() {
        Some(RuntimeError::Local(local)) => return local_hint(local),
        Some(RuntimeError::Kubernetes(kubernetes)) => return kubernetes_hint(kubernetes),
        Some(RuntimeError::Image(_)) => return Some("add `--runtime kubernetes`, or leave `--image` out".to_owned()),
        Some(RuntimeError::Name(_) | RuntimeError::NoRoute(_)) => return None,
        None => {}
    }
    if let Some(cluster) = error.downcast_ref::<ClusterError>() {
        return cluster_hint(cluster);
    }
    match error.downcast_ref::<ClientError>()?.kind() {
        ErrorKind::Unreachable => Some("`wharf ls` tells whether the sandbox still runs".to_owned()),
        ErrorKind::Refused(ProblemKind::Unauthorized) => {
            Some("the server of `--profile openhands` answers OpenHands, not `wharf`".to_owned())
        }
        _ => None,
    }
}

fn local_hint(error: &LocalError) -> Option<String> {
    match error {
        LocalError::Exists(name) => Some(format!("use another name, or remove it with `wharf rm {name}`")),
        LocalError::NotFound(_) => Some("`wharf ls` lists the sandboxes that there are".to_owned()),
        LocalError::NotRunning { name, .. } => Some(format!("`wharf resume {name}` starts it again")),
        LocalError::Wall { .. } => {
            Some("`--isolation best-effort` goes on without this wall and says what is missing".to_owned())
        }
        LocalError::State { .. } | LocalError::Owner { .. } | LocalError::NotOurs { .. } => {
            Some("`--state-dir` or WHARF_STATE_DIR puts the state elsewhere".to_owned())
        }
        LocalError::Protect { .. } => Some("`--unprotect PATH` lets the sandbox write it".to_owned()),
        LocalError::Source { .. } => Some("put it back, or make a new sandbox with what is there now".to_owned()),
        LocalError::Record { name, .. } => {
            Some(format!("another version may have made it; `wharf rm {name}` removes it"))
        }
        LocalError::Unkillable { .. } => {
            Some("it may wait for a disk or a network file system that is gone".to_owned())
        }
        LocalError::Start { .. }
        | LocalError::Subordinate { .. }
        | LocalError::Ids { .. }
        | LocalError::Busy(_)
        | LocalError::Spec { .. }
        | LocalError::Launcher { .. }
        | LocalError::Bind { .. } => None,
    }
}

fn cluster_hint(error: &ClusterError) -> Option<String> {
    match error {
        ClusterError::Nowhere => Some("set KUBECONFIG, or give `--kubeconfig FILE`".to_owned()),
        ClusterError::Context { .. } => Some("`kubectl config get-contexts` lists them".to_owned()),
        ClusterError::Kubeconfig(_)
        | ClusterError::InCluster(_)
        | ClusterError::Proxy(_)
        | ClusterError::Client { .. } => None,
    }
}

fn kubernetes_hint(error: &KubernetesError) -> Option<String> {
    let hint = match error {
        KubernetesError::Exists(id) => format!("use another name, or remove it with `wharf rm '{id}'`"),
        KubernetesError::NotFound(_) | KubernetesError::Refused(Refusal::NotFound) => {
            "`wharf ls` lists the sandboxes of this namespace and installation; --namespace and --context name others"
                .to_owned()
        }
        KubernetesError::NotRunning { id, .. } => format!("`wharf resume '{id}'` gives it a new pod and its files"),
        KubernetesError::Deleting(id) => format!("once it is gone, `wharf create '{id}'` makes a new one"),
        KubernetesError::Refused(Refusal::Foreign { .. }) => {
            "it is left alone; use another name, namespace or `installation`".to_owned()
        }
        KubernetesError::Refused(Refusal::Anchor(_)) => "`wharf rm` removes it with all that belongs to it".to_owned(),
        KubernetesError::Failed { failure, .. } => match failure.kind {
            FailureKind::PullFailed => {
                "check the image's name, `image_pull_secret`, and `sandboxd_image` in [wharf]".to_owned()
            }
            FailureKind::StartFailed => {
                "where image volumes do not work, set sandboxd_carrier = \"init-container\" in [wharf]".to_owned()
            }
            FailureKind::Unprepared => "what held `prepare` up may have passed: try again".to_owned(),
            FailureKind::ImageUser => {
                "run_as_user = \"image\" takes images whose USER is a number other than 0; without it, or with a number, \
                 a sandbox runs as that"
                    .to_owned()
            }
            FailureKind::OutOfMemory => "`--memory` gives it more".to_owned(),
            FailureKind::CrashLoop | FailureKind::Evicted | FailureKind::Ended => return None,
        },
        KubernetesError::TimedOut { waiting, .. } if waiting.is_for_capacity() => {
            "`kubectl describe nodes` tells what is taken; what a sandbox reserves are the requests of the configuration \
             (`resource_cpu_request`, `resource_memory_request`, `ephemeral_storage_request`)"
                .to_owned()
        }
        KubernetesError::TimedOut { .. } => "`--start-timeout` waits longer".to_owned(),
        KubernetesError::Api(error) => match error.kind {
            ApiErrorKind::Forbidden => {
                "`wharf install` prints the Role that is needed, for `kubectl apply -f -`".to_owned()
            }
            ApiErrorKind::NoServiceAccount => {
                "`kubectl get serviceaccounts` lists those of the namespace; `service_account` in [wharf] names one".to_owned()
            }
            ApiErrorKind::Unauthorized => "the kubeconfig's credentials are not accepted (any more)".to_owned(),
            ApiErrorKind::Quota => {
                "`kubectl describe quota` tells what is used; `--memory` and `--cpus` say how much is asked for".to_owned()
            }
            ApiErrorKind::LimitRange => "`kubectl describe limitrange` tells what the namespace allows; `--memory`, `--cpus`, \
                                         `--disk` and the requests of the configuration (`resource_memory_request` and the \
                                         like) ask for another size"
                .to_owned(),
            ApiErrorKind::NotFound if error.message.starts_with("namespaces ") => {
                "`kubectl create namespace` makes it".to_owned()
            }
            kind if kind.is_unreachable() => "`kubectl cluster-info` tells whether the cluster answers".to_owned(),
            _ => return None,
        },
        KubernetesError::Bind { .. }
        | KubernetesError::Address { .. }
        | KubernetesError::Spec(_)
        | KubernetesError::Interrupted(_) => return None,
        KubernetesError::Cluster(error) => return cluster_hint(error),
    };
    Some(hint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refused_field_is_called_as_it_was_typed() {
        let spec = |field| RuntimeError::from(LocalError::Spec { field, value: "1".to_owned(), reason: "no".into() });
        assert_eq!(told(&spec("memory_bytes").into()), "`--memory` is not valid: no (it was `1`)");
        assert_eq!(told(&spec("mounts.target").into()), "`--mount` is not valid: no (it was `1`)");
        assert_eq!(told(&spec("state directory").into()), "`state directory` is not valid: no (it was `1`)");
        let problem = wharf_protocol::Problem::invalid("working_dir", "/x", "there is none");
        let refused = ClientError::Refused(Box::new(problem));
        assert_eq!(told(&refused.into()), "there is none (`--workdir` was `/x`)");
    }

    #[test]
    fn a_name_in_an_error_makes_no_line_of_its_own_and_commands_no_terminal() {
        let error = anyhow::anyhow!("Is a directory").context("could not unpack `x\nhint: \u{1b}[31m`");
        assert_eq!(told(&error), "could not unpack `x\\nhint: \\u{1b}[31m`: Is a directory");
    }
}
