//! Between blocking file work and the connection: a body as a reader, a writer as a body.
//!
//! ```text
//!   body ─▶ feed ─▶ channel ─▶ BodyReader: unpack          pack: BodyWriter ─▶ channel ─▶ body
//! ```
//!
//! Both ends tell a proper end from a peer that is gone: an archive that was cut short is never taken for a whole one.

use std::{
    io::{self, Read, Write},
    path::Path,
};

use bytes::Bytes;
use futures_util::{Stream, StreamExt};
use http::{HeaderMap, HeaderName, HeaderValue};
use hyper::body::Frame;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::sync::mpsc;
use wharf_files::Packed;
use wharf_protocol::{Skipped, SkippedFile};

use super::FilesError;

/// Pieces that wait on their way; a full channel holds the faster side up.
const PIECES_AHEAD: usize = 16;
/// What of the skipped files' names goes into a trailer, encoded: clients take no long ones.
const LONGEST_TRAILER: usize = 12 << 10;

/// Reads a body on a blocking thread.
#[derive(Debug)]
pub struct BodyReader {
    pieces: mpsc::Receiver<Option<Bytes>>,
    current: Bytes,
    ended: bool,
}

/// Feeds a [`BodyReader`].
#[derive(Debug)]
pub struct BodyFeed(mpsc::Sender<Option<Bytes>>);

/// A reader, and what feeds it.
pub fn body_reader() -> (BodyFeed, BodyReader) {
    let (sender, pieces) = mpsc::channel(PIECES_AHEAD);
    (BodyFeed(sender), BodyReader { pieces, current: Bytes::new(), ended: false })
}

impl BodyFeed {
    /// Passes a body on until it ends or the reader is gone. Dropped before that, or if the body breaks, the reader fails.
    pub async fn pass<E>(self, body: impl Stream<Item = Result<Bytes, E>>) {
        let mut body = std::pin::pin!(body);
        while let Some(piece) = body.next().await {
            let Ok(piece) = piece else { return };
            if self.0.send(Some(piece)).await.is_err() {
                return;
            }
        }
        let _ = self.0.send(None).await;
    }
}

impl Read for BodyReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.current.is_empty() {
            if self.ended {
                return Ok(0);
            }
            match self.pieces.blocking_recv() {
                Some(Some(piece)) => self.current = piece,
                Some(None) => self.ended = true,
                None => return Err(io::ErrorKind::UnexpectedEof.into()),
            }
        }
        let count = self.current.len().min(buffer.len());
        buffer[..count].copy_from_slice(&self.current.split_to(count));
        Ok(count)
    }
}

enum Piece {
    Data(Bytes),
    End(Option<HeaderMap>),
    Failed(io::Error),
}

/// Writes a body on a blocking thread. Dropped before [`BodyWriter::end`], the body breaks.
#[derive(Debug)]
pub struct BodyWriter(mpsc::Sender<Piece>);

impl std::fmt::Debug for Piece {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Data(_) => "Data",
            Self::End(_) => "End",
            Self::Failed(_) => "Failed",
        })
    }
}

impl BodyWriter {
    /// All was written.
    pub fn end(self, trailers: Option<HeaderMap>) {
        let _ = self.0.blocking_send(Piece::End(trailers));
    }

    /// The body breaks here.
    pub fn fail(self, error: io::Error) {
        let _ = self.0.blocking_send(Piece::Failed(error));
    }
}

impl Write for BodyWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let piece = Piece::Data(Bytes::copy_from_slice(bytes));
        self.0.blocking_send(piece).map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A body that is being written.
#[derive(Debug)]
pub struct WrittenBody {
    first: Option<Piece>,
    pieces: mpsc::Receiver<Piece>,
}

/// A writer, and the body that it writes.
pub fn body_writer() -> (BodyWriter, WrittenBody) {
    let (sender, pieces) = mpsc::channel(PIECES_AHEAD);
    (BodyWriter(sender), WrittenBody { first: None, pieces })
}

impl WrittenBody {
    /// Waits until something was written.
    ///
    /// # Errors
    ///
    /// Why writing failed before that, while there is still time to answer with an error.
    pub async fn begun(mut self) -> io::Result<Self> {
        match self.pieces.recv().await {
            Some(Piece::Failed(error)) => Err(error),
            None => Err(io::ErrorKind::UnexpectedEof.into()),
            first => Ok(Self { first, ..self }),
        }
    }

    pub fn frames(self) -> impl Stream<Item = io::Result<Frame<Bytes>>> {
        futures_util::stream::unfold(Some(self), |body| async {
            let mut body = body?;
            let piece = match body.first.take() {
                None => body.pieces.recv().await,
                first => first,
            };
            match piece {
                Some(Piece::Data(data)) => Some((Ok(Frame::data(data)), Some(body))),
                Some(Piece::End(None)) => None,
                Some(Piece::End(Some(trailers))) => Some((Ok(Frame::trailers(trailers)), None)),
                Some(Piece::Failed(error)) => Some((Err(error), None)),
                None => Some((Err(io::ErrorKind::UnexpectedEof.into()), None)),
            }
        })
    }
}

/// What was left out, as the trailer that ends an archive.
pub fn trailer(packed: Packed) -> HeaderMap {
    let mut skipped = Skipped { count: packed.skipped_count, files: Vec::new() };
    let encoded = |skipped: &Skipped| {
        let json = serde_json::to_string(skipped).unwrap_or_default();
        utf8_percent_encode(&json, NON_ALPHANUMERIC).to_string()
    };
    let mut length = 0;
    for file in packed.skipped {
        let file = SkippedFile { path: file.path.display().to_string(), reason: file.reason };
        let json = serde_json::to_string(&file).unwrap_or_default();
        length += utf8_percent_encode(&json, NON_ALPHANUMERIC).to_string().len() + 3;
        if length > LONGEST_TRAILER {
            break;
        }
        skipped.files.push(file);
    }
    let value = HeaderValue::from_str(&encoded(&skipped)).unwrap_or(HeaderValue::from_static(""));
    HeaderMap::from_iter([(HeaderName::from_static(Skipped::TRAILER), value)])
}

/// Writes a body to `file`, off the async threads and beside the receiving.
///
/// # Errors
///
/// [`FilesError::TooLarge`], [`FilesError::Interrupted`] if the body breaks, else why `path` could not be written.
pub async fn receive<W: Write + Send + 'static, E>(
    body: impl Stream<Item = Result<Bytes, E>>,
    mut file: W,
    limit: u64,
    path: &Path,
) -> Result<(W, u64), FilesError> {
    let mut body = std::pin::pin!(body);
    let (sender, mut pieces) = tokio::sync::mpsc::channel::<Bytes>(PIECES_AHEAD);
    let writer = tokio::task::spawn_blocking(move || {
        while let Some(piece) = pieces.blocking_recv() {
            file.write_all(&piece)?;
        }
        Ok(file)
    });
    let mut bytes = 0;
    while let Some(data) = body.next().await {
        let data = data.map_err(|_| FilesError::Interrupted)?;
        bytes += data.len() as u64;
        if bytes > limit {
            return Err(FilesError::TooLarge { limit, what: "bytes in an upload" });
        }
        if sender.send(data).await.is_err() {
            // The writer has failed, and says below why.
            break;
        }
    }
    drop(sender);
    match writer.await {
        Ok(Ok(file)) => Ok((file, bytes)),
        Ok(Err(source)) => Err(FilesError::system("write", path, source)),
        Err(error) => Err(FilesError::system("write", path, io::Error::other(error))),
    }
}
