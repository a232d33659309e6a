//! What is going on, on standard error, when it takes more than a second and a person looks on.

use std::{
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::{io::AsyncRead, task::JoinHandle};
use wharf_runtime::kubernetes::{Stage, Waiting};

const PATIENCE: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_millis(120);

/// A line that appears after a second and goes with this value.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: ProgressBar,
    what: String,
    stages: Mutex<Stages>,
    appearing: JoinHandle<()>,
}

/// The stages that are done with the time that each took, and the one that is going on.
#[derive(Debug, Default)]
struct Stages {
    done: Vec<(Stage, Duration)>,
    current: Option<(Stage, Instant)>,
}

impl Stages {
    fn enter(&mut self, stage: Stage, now: Instant) {
        match self.current {
            Some((current, _)) if current == stage => {}
            _ => {
                if let Some((ended, since)) = self.current.replace((stage, now)) {
                    self.done.push((ended, now - since));
                }
            }
        }
    }

    /// `scheduling 2.1s, pulling 14.0s, ` for what is done.
    fn told(&self) -> String {
        let one = |(stage, took): &(Stage, Duration)| format!("{} {:.1}s, ", stage.as_str(), took.as_secs_f64());
        self.done.iter().map(one).collect()
    }
}

impl Progress {
    /// Says what is being waited for.
    pub(crate) fn waiting(what: impl Into<String>) -> Self {
        Self::new(what.into(), "{spinner} {msg} ({elapsed})")
    }

    /// Says how far it is by now, and why it takes so long.
    pub(crate) fn stage(&self, waiting: &Waiting) {
        let mut stages = self.stages.lock().unwrap_or_else(PoisonError::into_inner);
        stages.enter(waiting.stage, Instant::now());
        self.bar.set_message(format!("{}: {}{waiting}", self.what, stages.told()));
    }

    /// A line for good, above what is going on.
    pub(crate) fn say(&self, line: &str) {
        self.bar.suspend(|| anstream::eprintln!("{line}"));
    }

    /// Counts bytes; see [`Progress::read`].
    pub(crate) fn bytes(what: impl Into<String>) -> Self {
        Self::new(what.into(), "{spinner} {msg}: {bytes}, {bytes_per_sec}")
    }

    fn new(what: String, template: &str) -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden()).with_message(what.clone());
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        let shown = bar.clone();
        let appearing = tokio::spawn(async move {
            tokio::time::sleep(PATIENCE).await;
            // Hidden where standard error is no terminal.
            shown.set_draw_target(ProgressDrawTarget::stderr());
            shown.enable_steady_tick(TICK);
        });
        Self { bar, what, stages: Mutex::default(), appearing }
    }

    /// Counts what is read through it.
    pub(crate) fn read<R: AsyncRead + Unpin>(&self, from: R) -> impl AsyncRead + Unpin + use<R> {
        self.bar.wrap_async_read(from)
    }

    /// Counts what is written through it.
    pub(crate) fn write<W: tokio::io::AsyncWrite + Unpin>(&self, to: W) -> impl tokio::io::AsyncWrite + Unpin + use<W> {
        self.bar.wrap_async_write(to)
    }

    /// Bytes so far.
    pub(crate) fn count(&self) -> u64 {
        self.bar.position()
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.appearing.abort();
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_stage_is_told_with_its_time() {
        let start = Instant::now();
        let mut stages = Stages::default();
        for (stage, millis) in
            [(Stage::Making, 0), (Stage::Scheduling, 100), (Stage::Scheduling, 900), (Stage::Pulling, 2100)]
        {
            stages.enter(stage, start + Duration::from_millis(millis));
        }
        assert_eq!(stages.told(), "making 0.1s, scheduling 2.0s, ");
    }
}
