//! What a session or an exec printed, by absolute byte offset.
//!
//! Any number of readers pull from where they are. Usually a writer never waits: the first part and the latest part are
//! kept, and a reader that asks for what lies between is told of the gap, exactly.
//!
//! ```text
//!  0          head end            tail start             end
//!  ├── kept ──┤······· gone ···········├───── kept ──────┤
//! ```
//!
//! A log can also wait for its reader, as a pipe does: then nothing goes that the reader has not acknowledged, and the
//! writer asks for [room](OutputLog::room) before it takes more.
//!
//! All logs of a sandbox share a [budget](OutputBudget). What exceeds it goes from finished logs first, the one that
//! ended longest ago before all others, and then from the largest.

use std::{
    collections::VecDeque,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak,
        atomic::{AtomicUsize, Ordering},
    },
    time::Instant,
};

use bytes::Bytes;
use tokio::sync::{Notify, watch};
use wharf_protocol::{ByteOffset, Frame, Stream};

/// Bytes of the very first output that are kept however much follows.
const HEAD_BYTES: usize = 256 << 10;
/// A chunk grows up to this, so that a million appends of one byte cost few allocations.
const CHUNK_BYTES: usize = 16 << 10;
/// What a chunk costs beside its data, so that one-byte chunks of alternating streams are bounded too.
const CHUNK_OVERHEAD: usize = 64;
/// The most that a writer may append after it was told that there is room.
pub const PIECE_BYTES: usize = 64 << 10;
/// What a piece costs at most, cut into chunks.
const PIECE_COST: usize = PIECE_BYTES + (PIECE_BYTES / CHUNK_BYTES + 1) * CHUNK_OVERHEAD;

/// A bounded log; clones are handles to the same log.
#[derive(Debug, Clone)]
pub struct OutputLog {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    ring: Mutex<Ring>,
    state: watch::Sender<State>,
    /// Told when a writer that waits for room may look again.
    room: Notify,
    budget: OnceLock<Arc<Budget>>,
}

#[derive(Debug, Clone, Copy, Default)]
struct State {
    end: ByteOffset,
    closed: bool,
}

#[derive(Debug)]
struct Ring {
    tail_bytes: usize,
    head: Vec<Chunk>,
    head_full: bool,
    head_used: usize,
    tail: VecDeque<Chunk>,
    tail_used: usize,
    end: ByteOffset,
    /// Up to where the reader has read for whom this log keeps everything else; absent: the oldest goes.
    reader: Option<ByteOffset>,
    exit: Option<Frame>,
    closed: Option<Instant>,
}

#[derive(Debug)]
struct Chunk {
    offset: ByteOffset,
    stream: Stream,
    data: Vec<u8>,
}

impl Chunk {
    fn end(&self) -> ByteOffset {
        self.offset.plus(self.data.len())
    }

    fn cost(&self) -> usize {
        self.data.len() + CHUNK_OVERHEAD
    }
}

/// What one read gave.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Read {
    /// [`Frame::Gap`] and [`Frame::Output`], in order.
    pub frames: Vec<Frame>,
    /// Where the next read goes on.
    pub next: ByteOffset,
    /// Whether `next` is the end of a log that gets no more.
    pub finished: bool,
}

impl OutputLog {
    /// A log that keeps the latest `tail_bytes`, and the first part (256 KiB) beside them.
    pub fn new(tail_bytes: usize) -> Self {
        Self::with(tail_bytes, None)
    }

    /// A log that keeps what its reader has not acknowledged, and has room for about `tail_bytes` of that.
    pub fn for_reader(tail_bytes: usize) -> Self {
        Self::with(tail_bytes, Some(ByteOffset(0)))
    }

    fn with(tail_bytes: usize, reader: Option<ByteOffset>) -> Self {
        let ring = Ring {
            tail_bytes,
            head: Vec::new(),
            // Nobody comes back to the first part of what was read for good.
            head_full: reader.is_some(),
            head_used: 0,
            tail: VecDeque::new(),
            tail_used: 0,
            end: ByteOffset(0),
            reader,
            exit: None,
            closed: None,
        };
        Self {
            shared: Arc::new(Shared {
                ring: Mutex::new(ring),
                state: watch::Sender::new(State::default()),
                room: Notify::new(),
                budget: OnceLock::new(),
            }),
        }
    }

    /// Adds output and wakes readers. Says where it begins. Nothing is added to a closed log.
    pub fn append(&self, stream: Stream, data: &[u8]) -> ByteOffset {
        let start = self.shared.changed(|ring| {
            let start = ring.end;
            if !data.is_empty() && ring.closed.is_none() {
                ring.append(stream, data);
                // Under the lock: of two writers the later one must not be overtaken, or the end would go back.
                let end = ring.end;
                self.shared.state.send_modify(|state| state.end = end);
            }
            start
        });
        if let Some(budget) = self.shared.budget.get() {
            budget.enforce();
        }
        start
    }

    /// Says that nothing more will come. `exit` is the last frame that every reader gets.
    pub fn close(&self, exit: Option<Frame>) {
        let mut ring = self.shared.ring();
        if ring.closed.is_some() {
            return;
        }
        ring.closed = Some(Instant::now());
        ring.exit = exit;
        self.shared.state.send_modify(|state| state.closed = true);
        drop(ring);
        self.shared.room.notify_waiters();
    }

    /// Says that the reader for whom this log waits has read what lies before `offset`.
    pub fn acknowledge(&self, offset: ByteOffset) {
        self.shared.changed(|ring| {
            let end = ring.end;
            if let Some(reader) = &mut ring.reader {
                *reader = offset.min(end).max(*reader);
            }
        });
        self.shared.room.notify_waiters();
    }

    /// Says that no reader is waited for any longer: from now on the oldest goes.
    pub fn release(&self) {
        self.shared.changed(|ring| ring.reader = None);
        self.shared.room.notify_waiters();
    }

    /// Waits until there is room for [`PIECE_BYTES`], which there always is unless the log waits for its reader.
    ///
    /// # Cancel safety
    ///
    /// Safe: nothing is reserved.
    pub async fn room(&self) {
        loop {
            let changed = self.shared.room.notified();
            tokio::pin!(changed);
            // Before the look, so that no change between the two is missed.
            changed.as_mut().enable();
            let share = self.shared.budget.get().map_or(usize::MAX, |budget| budget.share());
            if self.shared.changed(|ring| ring.make_room(share)) {
                return;
            }
            changed.await;
        }
    }

    /// The offset after the last byte so far.
    pub fn end(&self) -> ByteOffset {
        self.shared.state.borrow().end
    }

    pub fn is_closed(&self) -> bool {
        self.shared.state.borrow().closed
    }

    /// At most about `max_bytes` from `from` on; nothing if there is nothing (yet).
    ///
    /// An offset beyond the end is read as the end.
    pub fn read(&self, from: ByteOffset, max_bytes: usize) -> Read {
        self.shared.ring().read(from, max_bytes)
    }

    /// The kept bytes of `from..to` in one piece, and whether some of them are gone.
    pub fn copy(&self, from: ByteOffset, to: ByteOffset) -> (Vec<u8>, bool) {
        let mut bytes = Vec::new();
        let mut lost = false;
        let mut at = from;
        while at < to {
            let read = self.read(at, CHUNK_BYTES * 64);
            if read.frames.is_empty() {
                break;
            }
            for frame in read.frames {
                match frame {
                    Frame::Output { offset, data, .. } => {
                        let wanted = usize::try_from(to.0.saturating_sub(offset.0)).unwrap_or(usize::MAX);
                        bytes.extend_from_slice(&data[..data.len().min(wanted)]);
                    }
                    Frame::Gap { .. } => lost = true,
                    _ => {}
                }
            }
            at = read.next;
        }
        (bytes, lost)
    }

    /// The last frame of a closed log.
    pub fn exit(&self) -> Option<Frame> {
        self.shared.ring().exit.clone()
    }

    /// Waits until there is output beyond `offset` or the log is closed.
    ///
    /// # Cancel safety
    ///
    /// Safe: waiting changes nothing.
    pub async fn wait_beyond(&self, offset: ByteOffset) {
        let mut state = self.shared.state.subscribe();
        // The sender lives as long as `self`.
        let _ = state.wait_for(|state| state.end > offset || state.closed).await;
    }
}

impl Shared {
    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Changes what is kept and tells the budget of it.
    fn changed<T>(&self, change: impl FnOnce(&mut Ring) -> T) -> T {
        let mut ring = self.ring();
        let before = ring.cost();
        let done = change(&mut ring);
        if let Some(budget) = self.budget.get() {
            budget.count(before, ring.cost());
        }
        done
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        let cost = self.ring().cost();
        if let Some(budget) = self.budget.get() {
            budget.count(cost, 0);
        }
    }
}

impl Ring {
    fn cost(&self) -> usize {
        self.head_used + self.tail_used
    }

    fn append(&mut self, stream: Stream, mut data: &[u8]) {
        if !self.head_full {
            let room = HEAD_BYTES.saturating_sub(self.head_used);
            let (first, rest) = data.split_at(data.len().min(room));
            let before = self.head.len();
            for piece in first.chunks(CHUNK_BYTES) {
                push(&mut self.head, stream, piece, self.end);
                self.end = self.end.plus(piece.len());
            }
            self.head_used += first.len() + (self.head.len() - before) * CHUNK_OVERHEAD;
            self.head_full = self.head_used >= HEAD_BYTES;
            data = rest;
        }
        for piece in data.chunks(CHUNK_BYTES) {
            let grows = self
                .tail
                .back()
                .is_some_and(|last| last.stream == stream && last.data.len() + piece.len() <= CHUNK_BYTES);
            if grows {
                if let Some(last) = self.tail.back_mut() {
                    last.data.extend_from_slice(piece);
                    self.tail_used += piece.len();
                }
            } else {
                let chunk = Chunk { offset: self.end, stream, data: piece.to_vec() };
                self.tail_used += chunk.cost();
                self.tail.push_back(chunk);
            }
            self.end = self.end.plus(piece.len());
            while self.tail_used > self.tail_bytes && self.tail.len() > 1 && self.drop_oldest() {}
        }
    }

    /// Gives up the oldest chunk of the tail; `false` if there is none, or a reader has yet to read it.
    fn drop_oldest(&mut self) -> bool {
        let may_go = |chunk: &Chunk| self.reader.is_none_or(|reader| chunk.end() <= reader);
        if !self.tail.front().is_some_and(may_go) {
            return false;
        }
        self.tail_used -= self.tail.pop_front().map_or(0, |oldest| oldest.cost());
        true
    }

    /// Whether a piece may be appended, with at most `share` bytes kept for the reader then.
    fn make_room(&mut self, share: usize) -> bool {
        if self.reader.is_none() || self.closed.is_some() {
            return true;
        }
        let bound = self.tail_bytes.min(share);
        while self.tail_used + PIECE_COST > bound {
            if !self.drop_oldest() {
                return self.tail.is_empty();
            }
        }
        true
    }

    /// Whether something of it may go although its own bound is kept.
    fn is_evictable(&self) -> bool {
        self.reader.is_none() && self.cost() > 0
    }

    /// Gives up at least `bytes` if there are as many: the oldest of the tail, and at last the first part, from its end.
    fn evict(&mut self, bytes: usize) {
        let until = self.cost().saturating_sub(bytes);
        while self.cost() > until && self.drop_oldest() {}
        while self.cost() > until
            && let Some(last) = self.head.pop()
        {
            // What comes now would not follow on the rest of it.
            self.head_full = true;
            self.head_used -= last.cost();
        }
    }

    fn read(&self, from: ByteOffset, max_bytes: usize) -> Read {
        let mut at = from.min(self.end);
        let mut frames = Vec::new();
        let mut taken = 0;
        let in_head = self.head.partition_point(|chunk| chunk.end() <= at);
        let in_tail = self.tail.partition_point(|chunk| chunk.end() <= at);
        for chunk in self.head[in_head..].iter().chain(self.tail.range(in_tail..)) {
            if taken >= max_bytes {
                break;
            }
            if chunk.offset > at {
                frames.push(Frame::Gap { from: at, to: chunk.offset });
                at = chunk.offset;
            }
            let skip = (at.0 - chunk.offset.0) as usize;
            let data = &chunk.data[skip..chunk.data.len().min(skip + (max_bytes - taken))];
            frames.push(Frame::Output { offset: at, stream: chunk.stream, data: Bytes::copy_from_slice(data) });
            taken += data.len();
            at = at.plus(data.len());
        }
        if taken < max_bytes && at < self.end {
            // Nothing is kept up to the very end.
            frames.push(Frame::Gap { from: at, to: self.end });
            at = self.end;
        }
        Read { frames, next: at, finished: self.closed.is_some() && at == self.end }
    }
}

fn push(chunks: &mut Vec<Chunk>, stream: Stream, data: &[u8], offset: ByteOffset) {
    match chunks.last_mut() {
        Some(last) if last.stream == stream && last.data.len() + data.len() <= CHUNK_BYTES => {
            last.data.extend_from_slice(data);
        }
        _ => chunks.push(Chunk { offset, stream, data: data.to_vec() }),
    }
}

/// What all logs of a sandbox may keep together; clones are the same budget.
#[derive(Debug, Clone)]
pub struct OutputBudget(Arc<Budget>);

#[derive(Debug)]
struct Budget {
    limit: usize,
    used: AtomicUsize,
    logs: Mutex<Vec<Weak<Shared>>>,
    /// Logs that wait for a reader, when they were last counted.
    waiting: AtomicUsize,
}

impl OutputBudget {
    pub fn new(limit: usize) -> Self {
        Self(Arc::new(Budget {
            limit,
            used: AtomicUsize::new(0),
            logs: Mutex::default(),
            waiting: AtomicUsize::new(0),
        }))
    }

    /// Counts a log from now on until it is dropped. A log has one budget.
    pub fn include(&self, log: &OutputLog) {
        let mut logs = self.0.logs();
        let ring = log.shared.ring();
        if log.shared.budget.set(self.0.clone()).is_ok() {
            self.0.count(0, ring.cost());
            drop(ring);
            logs.retain(|log| log.strong_count() > 0);
            logs.push(Arc::downgrade(&log.shared));
            self.0.count_waiting(&logs);
        }
    }

    /// Bytes that are kept now.
    pub fn used(&self) -> usize {
        self.0.used.load(Ordering::Relaxed)
    }
}

impl Budget {
    fn logs(&self) -> MutexGuard<'_, Vec<Weak<Shared>>> {
        self.logs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn count(&self, before: usize, after: usize) {
        self.used.fetch_add(after.wrapping_sub(before), Ordering::Relaxed);
    }

    fn count_waiting(&self, logs: &[Weak<Shared>]) {
        let waits = |log: &&Weak<Shared>| log.upgrade().is_some_and(|log| log.ring().reader.is_some());
        self.waiting.store(logs.iter().filter(waits).count(), Ordering::Relaxed);
    }

    /// What each log that waits for its reader may keep, so that all of them together stay within the limit.
    fn share(&self) -> usize {
        self.limit / self.waiting.load(Ordering::Relaxed).max(1)
    }

    /// Gives up output until the limit is kept. Nobody may hold a ring's lock meanwhile.
    fn enforce(&self) {
        if self.used.load(Ordering::Relaxed) <= self.limit {
            return;
        }
        let mut logs = self.logs();
        logs.retain(|log| log.strong_count() > 0);
        self.count_waiting(&logs);
        // A little more than needed, so that not every append comes here.
        let until = self.limit - self.limit / 64;
        loop {
            let excess = self.used.load(Ordering::Relaxed).saturating_sub(until);
            if excess == 0 {
                return;
            }
            let mut longest_closed: Option<(Instant, Arc<Shared>)> = None;
            let mut largest: Option<(usize, Arc<Shared>)> = None;
            for log in logs.iter().filter_map(Weak::upgrade) {
                let ring = log.ring();
                let (evictable, closed, cost) = (ring.is_evictable(), ring.closed, ring.cost());
                drop(ring);
                match closed {
                    _ if !evictable => {}
                    Some(at) => {
                        if longest_closed.as_ref().is_none_or(|(other, _)| at < *other) {
                            longest_closed = Some((at, log));
                        }
                    }
                    None => {
                        if largest.as_ref().is_none_or(|(other, _)| cost > *other) {
                            largest = Some((cost, log));
                        }
                    }
                }
            }
            let (log, bytes) = match (longest_closed, largest) {
                (Some((_, log)), _) => (log, excess),
                // A part only: then another one may be the largest.
                (None, Some((_, log))) => (log, excess.min(CHUNK_BYTES)),
                // All that is left is waited for by its readers.
                (None, None) => return,
            };
            log.changed(|ring| ring.evict(bytes));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_first_and_the_latest_part_are_kept_and_the_gap_is_exact() {
        let log = OutputLog::new(100_000);
        let written: Vec<u8> = (0..2_000_000u32).map(|n| n as u8).collect();
        for piece in written.chunks(777) {
            log.append(Stream::Stdout, piece);
        }
        let mut at = ByteOffset(0);
        let mut gaps = 0;
        loop {
            let read = log.read(at, 10_000);
            for frame in &read.frames {
                match frame {
                    Frame::Gap { from, to } => {
                        gaps += 1;
                        assert!(from.0 as usize >= HEAD_BYTES - CHUNK_BYTES && to.0 > 1_800_000, "{from} {to}");
                    }
                    Frame::Output { offset, data, .. } => {
                        let start = offset.0 as usize;
                        assert_eq!(data[..], written[start..start + data.len()]);
                    }
                    other => panic!("{other:?}"),
                }
            }
            if read.next == at {
                break;
            }
            at = read.next;
        }
        assert_eq!((gaps, at), (1, ByteOffset(2_000_000)));
    }

    #[test]
    fn a_million_small_writes_of_alternating_streams_stay_bounded() {
        let log = OutputLog::new(1 << 20);
        for n in 0..1_000_000 {
            log.append(if n % 2 == 0 { Stream::Stdout } else { Stream::Stderr }, b"x");
        }
        let ring = log.shared.ring();
        assert!(ring.tail_used <= 1 << 20);
        assert!(ring.tail.len() * CHUNK_OVERHEAD <= 1 << 20);
    }

    #[tokio::test]
    async fn a_reader_is_woken_by_output_and_by_the_end() {
        let log = OutputLog::new(1000);
        let (woken, ()) = tokio::join!(log.wait_beyond(ByteOffset(0)), async {
            log.append(Stream::Stdout, b"x");
        });
        let () = woken;
        let ((), ()) = tokio::join!(log.wait_beyond(ByteOffset(1)), async { log.close(None) });
        assert!(log.read(ByteOffset(1), 10).finished);
        assert_eq!(log.append(Stream::Stdout, b"late"), ByteOffset(1));
    }

    fn gaps(log: &OutputLog) -> u64 {
        let (mut at, mut gone) = (ByteOffset(0), 0);
        loop {
            let read = log.read(at, 1 << 20);
            gone += read
                .frames
                .iter()
                .map(|f| if let Frame::Gap { from, to } = f { to.0 - from.0 } else { 0 })
                .sum::<u64>();
            if read.next == at {
                assert_eq!(at, log.end(), "a reader comes to the end");
                return gone;
            }
            at = read.next;
        }
    }

    #[tokio::test]
    async fn a_log_for_a_reader_has_room_only_as_far_as_it_was_read() {
        let log = OutputLog::for_reader(1 << 20);
        let mut written = 0;
        while tokio::time::timeout(std::time::Duration::from_millis(50), log.room()).await.is_ok() {
            log.append(Stream::Stdout, &[7; PIECE_BYTES]);
            written += PIECE_BYTES;
        }
        assert!((900 << 10..=1 << 20).contains(&written), "{written}");
        assert_eq!(gaps(&log), 0);
        let ((), ()) = tokio::join!(log.room(), async { log.acknowledge(ByteOffset(100_000)) });
        log.append(Stream::Stdout, &[7; PIECE_BYTES]);
        assert_eq!(log.read(ByteOffset(100_000), 1).frames.len(), 1);
        let ((), ()) = tokio::join!(log.room(), async { log.release() });
        log.append(Stream::Stdout, &[7; 4 << 20]);
        assert!(gaps(&log) > 0, "nobody is waited for any longer");
    }

    #[tokio::test]
    async fn a_log_smaller_than_a_piece_still_takes_one_after_another() {
        let log = OutputLog::for_reader(1);
        for round in 1..4_u64 {
            log.room().await;
            let end = log.append(Stream::Stdout, &[7; PIECE_BYTES]).plus(PIECE_BYTES);
            assert_eq!((end, gaps(&log)), (ByteOffset(round * PIECE_BYTES as u64), (round - 1) * PIECE_BYTES as u64));
            assert!(tokio::time::timeout(std::time::Duration::from_millis(20), log.room()).await.is_err());
            log.acknowledge(end);
        }
    }

    #[test]
    fn all_logs_together_stay_within_their_budget_and_finished_ones_go_first() {
        const LIMIT: usize = 8 << 20;
        let budget = OutputBudget::new(LIMIT);
        let log = || {
            let log = OutputLog::new(16 << 20);
            budget.include(&log);
            log
        };
        let (old, recent) = (log(), log());
        for finished in [&old, &recent] {
            finished.append(Stream::Stdout, &[1; 2 << 20]);
            finished.close(None);
        }
        let running: Vec<_> = (0..256).map(|_| log()).collect();
        running[0].append(Stream::Stdout, &[2; 5 << 20]);
        assert!(gaps(&old) > 0 && gaps(&recent) == 0 && gaps(&running[0]) == 0, "the oldest finished one goes first");
        for log in &running {
            for _ in 0..16 {
                log.append(Stream::Stderr, &[3; PIECE_BYTES]);
                assert!(budget.used() <= LIMIT, "{}", budget.used());
            }
        }
        assert!(gaps(&recent) == 2 << 20 && running.iter().all(|log| gaps(log) > 0));
        let kept: Vec<usize> = running.iter().map(|log| log.shared.ring().cost()).collect();
        assert!(kept.iter().all(|cost| *cost > 0), "each keeps a part: {kept:?}");
        drop((old, recent, running));
        assert_eq!(budget.used(), 0);
    }

    #[tokio::test]
    async fn logs_that_wait_for_their_readers_share_the_budget_and_lose_nothing() {
        const LIMIT: usize = 4 << 20;
        let budget = OutputBudget::new(LIMIT);
        let logs: Vec<_> = (0..8).map(|_| OutputLog::for_reader(16 << 20)).collect();
        logs.iter().for_each(|log| budget.include(log));
        for log in &logs {
            while tokio::time::timeout(std::time::Duration::from_millis(5), log.room()).await.is_ok() {
                log.append(Stream::Stdout, &[7; PIECE_BYTES]);
            }
        }
        assert!(budget.used() <= LIMIT, "{}", budget.used());
        assert!(logs.iter().all(|log| log.end().0 > 0 && gaps(log) == 0));
    }

    /// A reader that sleeps until there is more than it has read would otherwise sleep for ever.
    #[test]
    fn the_end_never_goes_back_when_two_streams_are_appended_at_once() {
        const ROUNDS: u64 = 100_000;
        let (log, arrived) = (OutputLog::new(1 << 20), AtomicU64::new(0));
        std::thread::scope(|scope| {
            for stream in [Stream::Stdout, Stream::Stderr] {
                let (log, arrived) = (log.clone(), &arrived);
                scope.spawn(move || {
                    let meet = |count: u64| {
                        arrived.fetch_add(1, Ordering::AcqRel);
                        while arrived.load(Ordering::Acquire) < count {
                            std::thread::yield_now();
                        }
                    };
                    for round in 0..ROUNDS {
                        meet(4 * round + 2);
                        log.append(stream, b"x");
                        meet(4 * round + 4);
                        assert_eq!(log.end(), ByteOffset(2 * (round + 1)));
                    }
                });
            }
        });
    }

    /// The byte that stands at `at` of a stream.
    fn byte_at(at: usize) -> u8 {
        (at ^ (at >> 8) ^ (at >> 16)) as u8
    }

    /// Reads all of a log while it is written; gives what came of each stream and how much was told as gone.
    async fn follow(log: OutputLog, at_once: usize) -> (Vec<u8>, Vec<u8>, u64) {
        let (mut at, mut gone, mut streams) = (ByteOffset(0), 0, [Vec::new(), Vec::new()]);
        loop {
            let read = log.read(at, at_once);
            for frame in &read.frames {
                match frame {
                    Frame::Gap { from, to } => {
                        assert!(*from == at && to > from, "{from} {to} at {at}");
                        gone += to.0 - from.0;
                        at = *to;
                    }
                    Frame::Output { offset, stream, data } => {
                        assert_eq!(*offset, at);
                        streams[usize::from(*stream == Stream::Stderr)].extend_from_slice(data);
                        at = at.plus(data.len());
                    }
                    other => panic!("{other:?}"),
                }
            }
            assert_eq!(read.next, at);
            if read.finished {
                let [out, err] = streams;
                return (out, err, gone);
            }
            if read.frames.is_empty() {
                log.wait_beyond(at).await;
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]
        #[test]
        fn any_interleaving_of_append_and_read_gives_the_bytes_or_an_exact_gap(
            out in proptest::collection::vec(1usize..60_000, 1..40),
            err in proptest::collection::vec(1usize..60_000, 1..40),
            at_once in proptest::collection::vec(1usize..300_000, 1..4),
        ) {
            let log = OutputLog::new(150_000);
            let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap();
            let readers: Vec<_> = at_once.iter().map(|bytes| runtime.spawn(follow(log.clone(), *bytes))).collect();
            std::thread::scope(|scope| {
                for (stream, pieces) in [(Stream::Stdout, &out), (Stream::Stderr, &err)] {
                    let log = &log;
                    scope.spawn(move || {
                        let mut written = 0;
                        for piece in pieces {
                            let data: Vec<u8> = (written..written + piece).map(byte_at).collect();
                            log.append(stream, &data);
                            written += piece;
                        }
                    });
                }
            });
            log.close(None);
            let total: usize = out.iter().chain(&err).sum();
            for reader in readers {
                let read = async { tokio::time::timeout(std::time::Duration::from_secs(30), reader).await };
                let (got_out, got_err, gone) = runtime.block_on(read).expect("it ends").unwrap();
                prop_assert_eq!(got_out.len() + got_err.len() + gone as usize, total);
                if gone == 0 {
                    prop_assert!(got_out.iter().enumerate().all(|(at, byte)| *byte == byte_at(at)));
                    prop_assert!(got_err.iter().enumerate().all(|(at, byte)| *byte == byte_at(at)));
                }
            }
        }
    }
}
