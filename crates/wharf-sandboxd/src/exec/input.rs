//! Input that has come and that the process has not taken yet.
//!
//! It is counted: what comes twice, because a connection broke in between, is taken once. Writing to the process is a
//! task of its own, so that a process that does not read holds up neither signals nor acknowledgements.

use std::{
    collections::VecDeque,
    sync::{Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use tokio::sync::watch;
use wharf_protocol::INPUT_WINDOW_BYTES;

#[derive(Debug)]
pub(super) struct Input {
    queue: Mutex<Queue>,
    progress: watch::Sender<Progress>,
}

#[derive(Debug, Default)]
struct Queue {
    pieces: VecDeque<Bytes>,
    ended: bool,
}

/// How far the input has come. Its offsets are those of all input.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Progress {
    pub(super) received: u64,
    pub(super) taken: u64,
    ended: bool,
    /// Whether nobody takes any more: whatever comes counts as taken.
    pub(super) closed: bool,
}

impl Progress {
    /// Whether more input would be thrown away.
    pub(super) fn refuses(&self) -> bool {
        self.closed || self.ended
    }
}

/// Bytes between what has come and what was sent are missing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Missing {
    pub(super) received: u64,
}

impl Input {
    /// With `open` unset, none is taken.
    pub(super) fn new(open: bool) -> Self {
        let progress = Progress { closed: !open, ..Progress::default() };
        Self { queue: Mutex::default(), progress: watch::Sender::new(progress) }
    }

    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn progress(&self) -> watch::Receiver<Progress> {
        self.progress.subscribe()
    }

    /// Takes what follows on the input so far, or begins at `offset` of it; gives the offset after it.
    pub(super) fn push(&self, offset: Option<u64>, mut data: Bytes) -> Result<u64, Missing> {
        let mut queue = self.queue();
        let received = self.progress.borrow().received;
        let offset = offset.unwrap_or(received);
        if offset > received {
            return Err(Missing { received });
        }
        let known = usize::try_from(received - offset).unwrap_or(usize::MAX).min(data.len());
        let data = data.split_off(known);
        let end = received + data.len() as u64;
        let closed = self.progress.borrow().closed || queue.ended;
        if !closed && !data.is_empty() {
            queue.pieces.push_back(data);
        }
        self.progress.send_modify(|progress| {
            progress.received = end;
            if closed {
                progress.taken = end;
            }
        });
        Ok(end)
    }

    /// Says that no more will come.
    pub(super) fn end(&self) {
        let mut queue = self.queue();
        queue.ended = true;
        self.progress.send_modify(|progress| progress.ended = true);
    }

    /// Says that nobody takes any more; what waits is thrown away.
    pub(super) fn close(&self) {
        let mut queue = self.queue();
        queue.pieces.clear();
        self.progress.send_modify(|progress| {
            progress.closed = true;
            progress.taken = progress.received;
        });
    }

    /// The next piece for the process; `None` at the end. It counts as taken only by [`Input::taken`].
    ///
    /// # Cancel safety
    ///
    /// Safe: a piece is only removed when it is returned.
    pub(super) async fn next(&self) -> Option<Bytes> {
        let mut progress = self.progress.subscribe();
        loop {
            progress.mark_unchanged();
            {
                let mut queue = self.queue();
                if let Some(piece) = queue.pieces.pop_front() {
                    return Some(piece);
                }
                if queue.ended || self.progress.borrow().closed {
                    return None;
                }
            }
            // The sender lives as long as `self`.
            let _ = progress.changed().await;
        }
    }

    /// Says that the process has taken `bytes` more.
    pub(super) fn taken(&self, bytes: usize) {
        self.progress.send_modify(|progress| {
            if !progress.closed {
                progress.taken += bytes as u64;
            }
        });
    }

    /// Waits until what waits is less than the window again.
    ///
    /// # Cancel safety
    ///
    /// Safe: waiting changes nothing.
    pub(super) async fn room(&self) {
        let fits = |progress: &Progress| progress.received - progress.taken < 2 * INPUT_WINDOW_BYTES;
        // The sender lives as long as `self`.
        let _ = self.progress.subscribe().wait_for(fits).await;
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    fn waiting(input: &Input) -> String {
        let queue = input.queue();
        queue.pieces.iter().map(|piece| String::from_utf8_lossy(piece)).collect()
    }

    #[test]
    fn what_nobody_takes_holds_up_what_comes() {
        let input = Input::new(true);
        let window = usize::try_from(INPUT_WINDOW_BYTES).unwrap();
        input.push(None, Bytes::from(vec![0; 2 * window - 1])).unwrap();
        assert!(input.room().now_or_never().is_some());
        input.push(None, Bytes::from_static(b"x")).unwrap();
        assert!(input.room().now_or_never().is_none());
        input.taken(1);
        assert!(input.room().now_or_never().is_some());
    }

    #[test]
    fn what_comes_twice_is_taken_once_and_what_is_missing_is_noticed() {
        let input = Input::new(true);
        assert_eq!(input.push(Some(0), Bytes::from_static(b"abc")), Ok(3));
        assert_eq!(input.push(Some(1), Bytes::from_static(b"bcd")), Ok(4));
        assert_eq!(input.push(Some(0), Bytes::from_static(b"ab")), Ok(4));
        assert_eq!(input.push(None, Bytes::from_static(b"e")), Ok(5));
        assert_eq!(input.push(Some(6), Bytes::from_static(b"g")), Err(Missing { received: 5 }));
        assert_eq!(waiting(&input), "abcde");
        input.close();
        assert_eq!(input.push(Some(5), Bytes::from_static(b"fgh")), Ok(8));
        let progress = *input.progress.borrow();
        assert_eq!((progress.received, progress.taken, waiting(&input).as_str()), (8, 8, ""));
    }
}
