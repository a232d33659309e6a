//! Which writes of this process are not finished, for whoever is about to end it.

use std::{
    sync::{Condvar, Mutex, PoisonError},
    time::Duration,
};

static COUNT: Mutex<usize> = Mutex::new(0);
static NONE_LEFT: Condvar = Condvar::new();

/// A file that is neither whole nor gone yet.
#[derive(Debug)]
pub(crate) struct Unfinished(());

impl Unfinished {
    pub(crate) fn begin() -> Self {
        *COUNT.lock().unwrap_or_else(PoisonError::into_inner) += 1;
        Self(())
    }
}

impl Drop for Unfinished {
    fn drop(&mut self) {
        let mut count = COUNT.lock().unwrap_or_else(PoisonError::into_inner);
        *count -= 1;
        if *count == 0 {
            NONE_LEFT.notify_all();
        }
    }
}

/// Waits until every file that is being written is in its place or given up, so that the process can end without leaving a
/// half; says whether that was so within `patience`. Whoever asks has seen to it that no more come.
pub fn finish_writes(patience: Duration) -> bool {
    let count = COUNT.lock().unwrap_or_else(PoisonError::into_inner);
    let waited = NONE_LEFT.wait_timeout_while(count, patience, |count| *count > 0);
    !waited.unwrap_or_else(PoisonError::into_inner).1.timed_out()
}
