//! What is going on, on standard error, when it takes long: a line that changes for a person who looks on, and lines for a log.

use std::{
    io::IsTerminal as _,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::{io::AsyncRead, task::JoinHandle};
use wharf_runtime::kubernetes::{Stage, Waiting};

const PATIENCE: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_millis(120);
/// The first line of a log, and the least time between two.
const LINES_APART: Duration = Duration::from_secs(5);
/// After so long the same is said again: it still goes on.
const REPEATED_AFTER: Duration = Duration::from_secs(60);

/// A line that appears after a second and goes with this value.
#[derive(Debug)]
pub(crate) struct Progress {
    bar: ProgressBar,
    what: String,
    stages: Mutex<Stages>,
    lines: Arc<Mutex<Lines>>,
    appearing: JoinHandle<()>,
}

/// What a log is told, and when.
#[derive(Debug, Default)]
struct Lines {
    now: String,
    told: Option<(String, Instant)>,
}

impl Lines {
    /// The line that is due, if one is.
    fn due(&mut self, started: Instant, now: Instant) -> Option<String> {
        let is_due = match &self.told {
            None => now - started >= LINES_APART,
            Some((told, at)) if *told == self.now => now - *at >= REPEATED_AFTER,
            Some((_, at)) => now - *at >= LINES_APART,
        };
        if !is_due {
            return None;
        }
        self.told = Some((self.now.clone(), now));
        Some(format!("{} ({} s)", self.now, (now - started).as_secs()))
    }
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
        Self::new(what.into(), "{spinner} {msg} ({elapsed})", true)
    }

    /// Says how far it is by now, and why it takes so long.
    pub(crate) fn stage(&self, waiting: &Waiting) {
        let mut stages = self.stages.lock().unwrap_or_else(PoisonError::into_inner);
        stages.enter(waiting.stage, Instant::now());
        self.bar.set_message(format!("{}: {}{waiting}", self.what, stages.told()));
        self.lines.lock().unwrap_or_else(PoisonError::into_inner).now = format!("{}: {waiting}", self.what);
    }

    /// A line for good, above what is going on.
    pub(crate) fn say(&self, line: &str) {
        self.bar.suspend(|| crate::out::note!("{line}"));
    }

    /// Counts bytes; see [`Progress::read`].
    pub(crate) fn bytes(what: impl Into<String>) -> Self {
        Self::new(what.into(), "{spinner} {msg}: {bytes}, {bytes_per_sec}", false)
    }

    fn new(what: String, template: &str, is_logged: bool) -> Self {
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::hidden()).with_message(what.clone());
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        let shown = bar.clone();
        let lines = Arc::new(Mutex::new(Lines { now: what.clone(), told: None }));
        let logged = lines.clone();
        let appearing = tokio::spawn(async move {
            if std::io::stderr().is_terminal() {
                tokio::time::sleep(PATIENCE).await;
                shown.set_draw_target(ProgressDrawTarget::stderr());
                shown.enable_steady_tick(TICK);
                return;
            }
            if !is_logged {
                return;
            }
            let started = Instant::now();
            loop {
                tokio::time::sleep(PATIENCE).await;
                let due = logged.lock().unwrap_or_else(PoisonError::into_inner).due(started, Instant::now());
                if let Some(line) = due {
                    crate::out::note!("wharf: {line}");
                }
            }
        });
        Self { bar, what, stages: Mutex::default(), lines, appearing }
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
    fn a_log_hears_after_a_while_what_is_waited_for_and_what_changes() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut lines = Lines { now: "creating `box`".to_owned(), told: None };
        assert_eq!(lines.due(start, at(4)), None);
        lines.now = "creating `box`: pulling: i/o timeout".to_owned();
        assert_eq!(lines.due(start, at(5)).as_deref(), Some("creating `box`: pulling: i/o timeout (5 s)"));
        assert_eq!(lines.due(start, at(30)), None);
        lines.now = "creating `box`: starting".to_owned();
        assert_eq!(lines.due(start, at(31)).as_deref(), Some("creating `box`: starting (31 s)"));
        lines.now = "creating `box`: pulling: again".to_owned();
        assert_eq!(lines.due(start, at(33)), None);
        assert_eq!(lines.due(start, at(36)).as_deref(), Some("creating `box`: pulling: again (36 s)"));
        assert_eq!(lines.due(start, at(95)), None);
        assert_eq!(lines.due(start, at(96)).as_deref(), Some("creating `box`: pulling: again (96 s)"));
    }

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
