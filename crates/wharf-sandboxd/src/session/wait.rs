//! Waiting for the end of a command.

use std::time::Duration;

use tokio::{sync::watch, time::Instant};

use super::Progress;
use crate::process::spawn::Exit;

/// How waiting for a command ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Waited {
    /// The shell is at its prompt again.
    Prompt,
    ShellEnded(Exit),
    /// Nothing was printed for so long; the command runs on.
    NoChange(Duration),
    /// It took so long in all; the command runs on.
    TimedOut(Duration),
    /// The shell waits for commands, and does not say how this one has ended.
    ShellLost,
    /// The session was closed.
    Closed,
}

/// Waits until a prompt newer than `prompts_before` is shown, the shell ends, or a time limit passes.
///
/// `before` is what `progress` said when the waiting began at `started`; without `prompts_before` any prompt will do.
///
/// # Cancel safety
///
/// Safe: waiting changes nothing.
pub async fn wait_for_end(
    progress: &mut watch::Receiver<Progress>,
    before: &Progress,
    prompts_before: Option<u64>,
    started: Instant,
    no_change: Option<Duration>,
    timeout: Option<Duration>,
) -> Waited {
    let mut changes = before.changes;
    let mut changed_at = started;
    loop {
        {
            let now = progress.borrow_and_update();
            if now.ends > before.ends {
                return now.last_end.map_or(Waited::Closed, Waited::ShellEnded);
            }
            if now.lost {
                return Waited::ShellLost;
            }
            if now.idle && prompts_before.is_none_or(|before| now.prompts > before) {
                return Waited::Prompt;
            }
            if now.changes != changes {
                changes = now.changes;
                changed_at = Instant::now();
            }
        }
        let no_change_at = no_change.map(|limit| changed_at + limit);
        let timeout_at = timeout.map(|limit| started + limit);
        let wake_at = [no_change_at, timeout_at].into_iter().flatten().min();
        let changed = async {
            match wake_at {
                Some(at) => tokio::time::timeout_at(at, progress.changed()).await.ok(),
                None => Some(progress.changed().await),
            }
        };
        match changed.await {
            Some(Ok(())) => {}
            Some(Err(_)) => return Waited::Closed,
            // The time-out for no change is looked at first, as the original does.
            None => {
                let now = Instant::now();
                match (no_change, timeout) {
                    (Some(limit), _) if no_change_at.is_some_and(|at| now >= at) => return Waited::NoChange(limit),
                    (_, Some(limit)) if timeout_at.is_some_and(|at| now >= at) => return Waited::TimedOut(limit),
                    _ => {}
                }
            }
        }
    }
}
