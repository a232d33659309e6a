//! The framing of output streams.
//!
//! On a WebSocket a frame is one binary message: a tag byte, then big-endian integers, then data.
//! In newline-delimited JSON and server-sent events it is one JSON object with base64 data.

use bytes::{BufMut, Bytes, BytesMut};
use serde::{Deserialize, Serialize};

use crate::ByteOffset;

/// How much counted input may be on its way that the process has not taken.
pub const INPUT_WINDOW_BYTES: u64 = 1 << 20;

/// Where a piece of output came from. A terminal has only one stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    Stdout,
    Stderr,
    Terminal,
}

/// One message of an output stream, or of its caller.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Frame {
    /// Server: output that starts at `offset` of the log.
    Output {
        offset: ByteOffset,
        stream: Stream,
        #[serde(with = "base64_bytes")]
        #[schema(value_type = String, format = Byte)]
        data: Bytes,
    },
    /// Server: the bytes from `from` up to `to` are no longer kept.
    Gap { from: ByteOffset, to: ByteOffset },
    /// Server: the process ended; nothing follows. A process ended by a signal has no code.
    Exit { code: Option<i32>, signal: Option<i32> },
    /// Server: the log ends at `offset` and nothing more will be sent on this stream.
    End { offset: ByteOffset },
    /// Server: of the counted input, the process has taken what lies before `offset`. Comes first on every connection of a
    /// caller who may send input, and from then on as input is taken.
    InputTaken { offset: ByteOffset },
    /// Client: bytes for standard input or the terminal.
    Input {
        #[serde(with = "base64_bytes")]
        #[schema(value_type = String, format = Byte)]
        data: Bytes,
    },
    /// Client: the same, counted: the first byte of `data` is that at `offset` of all input. What has come already, over
    /// a connection that has broken since, is left out. At most 1 MiB beyond what was told as taken.
    InputAt {
        offset: ByteOffset,
        #[serde(with = "base64_bytes")]
        #[schema(value_type = String, format = Byte)]
        data: Bytes,
    },
    /// Client: standard input ends here.
    InputEnd,
    /// Client: the output before `offset` was read, so that a process that waits for its reader may go on.
    Acknowledge { offset: ByteOffset },
    /// Client: the terminal has a new size.
    Resize { rows: u16, columns: u16 },
    /// Client: send this signal to the process group.
    Signal { signal: i32 },
}

/// Why bytes are not a frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("a frame of {length} bytes is too short for tag {tag}")]
    Truncated { tag: u8, length: usize },
    #[error("a frame is empty")]
    Empty,
    #[error("unknown frame tag {0}")]
    UnknownTag(u8),
    #[error("unknown stream number {0}")]
    UnknownStream(u8),
}

const OUTPUT: u8 = 1;
const GAP: u8 = 2;
const EXIT: u8 = 3;
const END: u8 = 4;
const INPUT_TAKEN: u8 = 5;
const INPUT: u8 = 16;
const INPUT_END: u8 = 17;
const RESIZE: u8 = 18;
const SIGNAL: u8 = 19;
const INPUT_AT: u8 = 20;
const ACKNOWLEDGE: u8 = 21;

impl Frame {
    /// The binary form, for one WebSocket message.
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::with_capacity(16);
        match self {
            Self::Output { offset, stream, data } => {
                out.reserve(10 + data.len());
                out.put_u8(OUTPUT);
                out.put_u8(match stream {
                    Stream::Stdout => 1,
                    Stream::Stderr => 2,
                    Stream::Terminal => 3,
                });
                out.put_u64(offset.0);
                out.put_slice(data);
            }
            Self::Gap { from, to } => {
                out.put_u8(GAP);
                out.put_u64(from.0);
                out.put_u64(to.0);
            }
            Self::Exit { code, signal } => {
                out.put_u8(EXIT);
                out.put_u8(u8::from(code.is_some()));
                out.put_i32(code.unwrap_or(0));
                out.put_u8(u8::from(signal.is_some()));
                out.put_i32(signal.unwrap_or(0));
            }
            Self::End { offset } => {
                out.put_u8(END);
                out.put_u64(offset.0);
            }
            Self::Input { data } => {
                out.reserve(1 + data.len());
                out.put_u8(INPUT);
                out.put_slice(data);
            }
            Self::InputAt { offset, data } => {
                out.reserve(9 + data.len());
                out.put_u8(INPUT_AT);
                out.put_u64(offset.0);
                out.put_slice(data);
            }
            Self::InputEnd => out.put_u8(INPUT_END),
            Self::InputTaken { offset } => {
                out.put_u8(INPUT_TAKEN);
                out.put_u64(offset.0);
            }
            Self::Acknowledge { offset } => {
                out.put_u8(ACKNOWLEDGE);
                out.put_u64(offset.0);
            }
            Self::Resize { rows, columns } => {
                out.put_u8(RESIZE);
                out.put_u16(*rows);
                out.put_u16(*columns);
            }
            Self::Signal { signal } => {
                out.put_u8(SIGNAL);
                out.put_i32(*signal);
            }
        }
        out.freeze()
    }

    /// Reads one binary message.
    ///
    /// # Errors
    ///
    /// [`FrameError`] if the bytes are not a whole frame. Bytes after a whole frame of fixed length are refused
    /// as [`FrameError::Truncated`] too: the length does not fit the tag.
    pub fn decode(message: Bytes) -> Result<Self, FrameError> {
        let Some(&tag) = message.first() else { return Err(FrameError::Empty) };
        let truncated = FrameError::Truncated { tag, length: message.len() };
        let exactly = |length: usize| if message.len() == length { Ok(()) } else { Err(truncated.clone()) };
        let u64_at = |at: usize| {
            let mut raw = [0; 8];
            raw.copy_from_slice(&message[at..at + 8]);
            u64::from_be_bytes(raw)
        };
        let i32_at = |at: usize| {
            let mut raw = [0; 4];
            raw.copy_from_slice(&message[at..at + 4]);
            i32::from_be_bytes(raw)
        };
        let u16_at = |at: usize| u16::from_be_bytes([message[at], message[at + 1]]);
        Ok(match tag {
            OUTPUT => {
                if message.len() < 10 {
                    return Err(truncated);
                }
                let stream = match message[1] {
                    1 => Stream::Stdout,
                    2 => Stream::Stderr,
                    3 => Stream::Terminal,
                    other => return Err(FrameError::UnknownStream(other)),
                };
                Self::Output { offset: ByteOffset(u64_at(2)), stream, data: message.slice(10..) }
            }
            GAP => {
                exactly(17)?;
                Self::Gap { from: ByteOffset(u64_at(1)), to: ByteOffset(u64_at(9)) }
            }
            EXIT => {
                exactly(11)?;
                Self::Exit { code: (message[1] != 0).then(|| i32_at(2)), signal: (message[6] != 0).then(|| i32_at(7)) }
            }
            END => {
                exactly(9)?;
                Self::End { offset: ByteOffset(u64_at(1)) }
            }
            INPUT_TAKEN => {
                exactly(9)?;
                Self::InputTaken { offset: ByteOffset(u64_at(1)) }
            }
            INPUT => Self::Input { data: message.slice(1..) },
            INPUT_AT => {
                if message.len() < 9 {
                    return Err(truncated);
                }
                Self::InputAt { offset: ByteOffset(u64_at(1)), data: message.slice(9..) }
            }
            ACKNOWLEDGE => {
                exactly(9)?;
                Self::Acknowledge { offset: ByteOffset(u64_at(1)) }
            }
            INPUT_END => {
                exactly(1)?;
                Self::InputEnd
            }
            RESIZE => {
                exactly(5)?;
                Self::Resize { rows: u16_at(1), columns: u16_at(3) }
            }
            SIGNAL => {
                exactly(5)?;
                Self::Signal { signal: i32_at(1) }
            }
            other => return Err(FrameError::UnknownTag(other)),
        })
    }
}

mod base64_bytes {
    use base64::{Engine, engine::general_purpose::STANDARD};
    use bytes::Bytes;
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub(super) fn serialize<S: Serializer>(data: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(data))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD.decode(text).map(Bytes::from).map_err(D::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn any_frame() -> impl Strategy<Value = Frame> {
        let data = || proptest::collection::vec(any::<u8>(), 0..64).prop_map(Bytes::from);
        prop_oneof![
            (any::<u64>(), data()).prop_map(|(offset, data)| Frame::Output {
                offset: ByteOffset(offset),
                stream: Stream::Stderr,
                data
            }),
            (any::<u64>(), any::<u64>())
                .prop_map(|(from, to)| Frame::Gap { from: ByteOffset(from), to: ByteOffset(to) }),
            (any::<Option<i32>>(), any::<Option<i32>>()).prop_map(|(code, signal)| Frame::Exit { code, signal }),
            any::<u64>().prop_map(|offset| Frame::End { offset: ByteOffset(offset) }),
            data().prop_map(|data| Frame::Input { data }),
            (any::<u64>(), data()).prop_map(|(offset, data)| Frame::InputAt { offset: ByteOffset(offset), data }),
            any::<u64>().prop_map(|offset| Frame::InputTaken { offset: ByteOffset(offset) }),
            any::<u64>().prop_map(|offset| Frame::Acknowledge { offset: ByteOffset(offset) }),
            Just(Frame::InputEnd),
            (any::<u16>(), any::<u16>()).prop_map(|(rows, columns)| Frame::Resize { rows, columns }),
            any::<i32>().prop_map(|signal| Frame::Signal { signal }),
        ]
    }

    proptest! {
        #[test]
        fn a_frame_survives_both_encodings(frame in any_frame()) {
            prop_assert_eq!(Frame::decode(frame.encode()), Ok(frame.clone()));
            let json = serde_json::to_string(&frame).expect("frames serialize");
            prop_assert_eq!(serde_json::from_str::<Frame>(&json).expect("frames parse"), frame);
        }

        #[test]
        fn any_bytes_decode_or_are_refused(message in proptest::collection::vec(any::<u8>(), 0..40)) {
            let _ = Frame::decode(Bytes::from(message));
        }
    }
}
