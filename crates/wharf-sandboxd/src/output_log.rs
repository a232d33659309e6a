//! What a session or an exec printed, by absolute byte offset.
//!
//! One writer appends and never waits; any number of readers pull from where they are. The first part and the latest
//! part are kept; a reader that asks for what lies between is told of the gap, exactly.
//!
//! ```text
//!  0          head end            tail start             end
//!  ├── kept ──┤······· gone ···········├───── kept ──────┤
//! ```

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use bytes::Bytes;
use tokio::sync::watch;
use wharf_protocol::{ByteOffset, Frame, Stream};

/// Bytes of the very first output that are kept however much follows.
const HEAD_BYTES: usize = 256 << 10;
/// A chunk grows up to this, so that a million appends of one byte cost few allocations.
const CHUNK_BYTES: usize = 16 << 10;
/// What a chunk costs beside its data, so that one-byte chunks of alternating streams are bounded too.
const CHUNK_OVERHEAD: usize = 64;

/// A bounded log; clones are handles to the same log.
#[derive(Debug, Clone)]
pub struct OutputLog {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    ring: Mutex<Ring>,
    state: watch::Sender<State>,
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
    exit: Option<Frame>,
    closed: bool,
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
        let ring = Ring {
            tail_bytes,
            head: Vec::new(),
            head_full: false,
            head_used: 0,
            tail: VecDeque::new(),
            tail_used: 0,
            end: ByteOffset(0),
            exit: None,
            closed: false,
        };
        Self { shared: Arc::new(Shared { ring: Mutex::new(ring), state: watch::Sender::new(State::default()) }) }
    }

    /// Adds output and wakes readers. Says where it begins. Nothing is added to a closed log.
    pub fn append(&self, stream: Stream, data: &[u8]) -> ByteOffset {
        let mut ring = self.ring();
        let start = ring.end;
        if data.is_empty() || ring.closed {
            return start;
        }
        ring.append(stream, data);
        let end = ring.end;
        drop(ring);
        self.shared.state.send_modify(|state| state.end = end);
        start
    }

    /// Says that nothing more will come. `exit` is the last frame that every reader gets.
    pub fn close(&self, exit: Option<Frame>) {
        let mut ring = self.ring();
        if ring.closed {
            return;
        }
        ring.closed = true;
        ring.exit = exit;
        drop(ring);
        self.shared.state.send_modify(|state| state.closed = true);
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
        self.ring().read(from, max_bytes)
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
        self.ring().exit.clone()
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

    fn ring(&self) -> MutexGuard<'_, Ring> {
        self.shared.ring.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Ring {
    fn append(&mut self, stream: Stream, mut data: &[u8]) {
        if !self.head_full {
            let room = HEAD_BYTES.saturating_sub(self.head_used);
            let (first, rest) = data.split_at(data.len().min(room));
            let before = self.head.len();
            push(&mut self.head, stream, first, self.end);
            self.head_used += first.len() + (self.head.len() - before) * CHUNK_OVERHEAD;
            self.end = self.end.plus(first.len());
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
            while self.tail_used > self.tail_bytes && self.tail.len() > 1 {
                if let Some(oldest) = self.tail.pop_front() {
                    self.tail_used -= oldest.cost();
                }
            }
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
        Read { frames, next: at, finished: self.closed && at == self.end }
    }
}

fn push(chunks: &mut Vec<Chunk>, stream: Stream, data: &[u8], offset: ByteOffset) {
    match chunks.last_mut() {
        _ if data.is_empty() => {}
        Some(last) if last.stream == stream && last.data.len() + data.len() <= CHUNK_BYTES => {
            last.data.extend_from_slice(data);
        }
        _ => chunks.push(Chunk { offset, stream, data: data.to_vec() }),
    }
}

#[cfg(test)]
mod tests {
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
        let ring = log.ring();
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

    proptest! {
        #[test]
        fn any_interleaving_of_append_and_read_gives_the_bytes_or_an_exact_gap(
            steps in proptest::collection::vec((0usize..60_000, 1usize..50_000), 1..60),
        ) {
            let log = OutputLog::new(150_000);
            let mut written: Vec<u8> = Vec::new();
            let mut at = ByteOffset(0);
            for (append, read) in steps {
                let data: Vec<u8> = (0..append).map(|n| (written.len() + n) as u8 ^ ((written.len() + n) >> 8) as u8).collect();
                log.append(Stream::Stdout, &data);
                written.extend(&data);
                let got = log.read(at, read);
                for frame in got.frames {
                    match frame {
                        Frame::Gap { from, to } => {
                            prop_assert_eq!(from, at);
                            prop_assert!(to > from);
                            at = to;
                        }
                        Frame::Output { offset, data, .. } => {
                            prop_assert_eq!(offset, at);
                            let start = offset.0 as usize;
                            prop_assert_eq!(&data[..], &written[start..start + data.len()]);
                            at = at.plus(data.len());
                        }
                        other => prop_assert!(false, "{:?}", other),
                    }
                }
                prop_assert_eq!(got.next, at);
            }
        }
    }
}
