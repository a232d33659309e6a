use std::{io, time::Duration};

use futures_util::TryStreamExt;
use http::{HeaderMap, Method};
use http_body_util::{BodyExt, BodyStream, StreamBody};
use hyper::body::Frame as BodyFrame;
use percent_encoding::{NON_ALPHANUMERIC, percent_decode, utf8_percent_encode};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    sync::oneshot,
    time::timeout,
};
use tokio_util::io::ReaderStream;
use wharf_protocol::{DirectoryListing, FileStat, FileTime, Skipped, UploadResult};

use crate::{CALL_PATIENCE, ClientError, Sandbox, silence::Heard};

/// How long nothing of a download may come.
const STALL_PATIENCE: Duration = Duration::from_secs(60);

/// The files of a sandbox. Content goes through in pieces, never whole through memory.
#[derive(Debug, Clone, Copy)]
pub struct Files<'a> {
    sandbox: &'a Sandbox,
}

/// What a file that is written shall be like.
#[derive(Debug, Clone, Copy, Default)]
pub struct Like {
    /// Permission bits; `None`: those of the file that is replaced, else 0644.
    pub mode: Option<u32>,
    /// When it was modified; `None`: now.
    pub modified: Option<FileTime>,
}

impl<'a> Files<'a> {
    pub(crate) fn new(sandbox: &'a Sandbox) -> Self {
        Self { sandbox }
    }

    /// Describes one path; a symlink itself.
    ///
    /// # Errors
    ///
    /// [`ClientError`]; nothing there is a refusal of kind `NotFound`.
    pub async fn stat(&self, path: &str) -> Result<FileStat, ClientError> {
        self.sandbox.get(&format!("/v1/files/stat?path={}", encoded(path))).await
    }

    /// Describes one path; of a symlink what it points to.
    ///
    /// # Errors
    ///
    /// As [`Files::stat`]; a link that leads nowhere is not found.
    pub async fn stat_target(&self, path: &str) -> Result<FileStat, ClientError> {
        self.sandbox.get(&format!("/v1/files/stat?path={}&follow=true", encoded(path))).await
    }

    /// The entries of a directory, sorted by name.
    ///
    /// # Errors
    ///
    /// [`ClientError`].
    pub async fn list(&self, path: &str) -> Result<DirectoryListing, ClientError> {
        self.sandbox.get(&format!("/v1/files/list?path={}", encoded(path))).await
    }

    /// Copies a file's bytes to `out`; says how many.
    ///
    /// # Errors
    ///
    /// [`ClientError`]; a connection that breaks in the middle is one too, and one over which nothing comes for 60 seconds.
    pub async fn read(&self, path: &str, out: impl AsyncWrite + Unpin) -> Result<u64, ClientError> {
        let (bytes, _) = self.download(&format!("/v1/files/content?path={}", encoded(path)), out).await?;
        Ok(bytes)
    }

    /// Copies a directory with what is below it, or one file, to `out` as a tar stream; says what was left out of it:
    /// special files, and what cannot be read.
    ///
    /// # Errors
    ///
    /// As [`Files::read`].
    pub async fn read_tar(&self, path: &str, out: impl AsyncWrite + Unpin) -> Result<Skipped, ClientError> {
        let (_, trailers) = self.download(&format!("/v1/files/archive?path={}", encoded(path)), out).await?;
        let value = trailers.as_ref().and_then(|trailers| trailers.get(Skipped::TRAILER));
        let Some(value) = value else { return Ok(Skipped::default()) };
        let json: Vec<u8> = percent_decode(value.as_bytes()).collect();
        serde_json::from_slice(&json).map_err(|error| ClientError::Answer {
            reason: format!("the trailer `{}` is not valid: {error}", Skipped::TRAILER),
        })
    }

    /// Writes a file in one step from `input`, making missing directories.
    ///
    /// # Errors
    ///
    /// [`ClientError`]; then the old file stays, or the new one is there whole if only the answer was lost. A sandbox of which
    /// nothing is heard for 45 seconds has timed out.
    pub async fn write(
        &self,
        path: &str,
        like: Like,
        input: impl AsyncRead + Send + 'static,
    ) -> Result<UploadResult, ClientError> {
        let mode = like.mode.map(|mode| format!("&mode={mode:o}")).unwrap_or_default();
        let modified = like.modified.map(|at| format!("&modified_at={at}")).unwrap_or_default();
        self.upload(&format!("/v1/files/content?path={}&parents=true{mode}{modified}", encoded(path)), input).await
    }

    /// Unpacks a tar stream below a directory, which is made if it is missing.
    ///
    /// # Errors
    ///
    /// As [`Files::write`]; members before the refused or the last one that arrived are left, each one whole.
    pub async fn write_tar(
        &self,
        path: &str,
        input: impl AsyncRead + Send + 'static,
    ) -> Result<UploadResult, ClientError> {
        self.upload(&format!("/v1/files/archive?path={}", encoded(path)), input).await
    }

    async fn download(
        &self,
        path: &str,
        mut out: impl AsyncWrite + Unpin,
    ) -> Result<(u64, Option<HeaderMap>), ClientError> {
        let answer = self.sandbox.send_for_trailers(path, CALL_PATIENCE).await?;
        let mut body = BodyStream::new(answer.into_body());
        let (mut bytes, mut trailers) = (0, None);
        loop {
            let frame = timeout(STALL_PATIENCE, body.try_next()).await;
            let frame = frame.map_err(|_| ClientError::Stalled { after: STALL_PATIENCE })?;
            let Some(frame) = frame.map_err(ClientError::connection)? else { break };
            match frame.into_data() {
                Ok(data) => {
                    bytes += data.len() as u64;
                    out.write_all(&data).await.map_err(ClientError::Local)?;
                }
                Err(frame) => trailers = frame.into_trailers().ok(),
            }
        }
        out.flush().await.map_err(ClientError::Local)?;
        Ok((bytes, trailers))
    }

    async fn upload(&self, path: &str, input: impl AsyncRead + Send + 'static) -> Result<UploadResult, ClientError> {
        let heard = Heard::new();
        let taken = heard.clone();
        let (unreadable, mut failure) = oneshot::channel();
        let mut unreadable = Some(unreadable);
        // A piece that is taken is a sign of life, and over a slow line there is no room for another.
        let frames = ReaderStream::with_capacity(input, 256 << 10).inspect_ok(move |_| taken.now());
        let frames = frames.map_ok(BodyFrame::data).inspect_err(move |error| {
            if let Some(unreadable) = unreadable.take() {
                // Nobody asks where the sandbox has answered before.
                let _ = unreadable.send(io::Error::new(error.kind(), error.to_string()));
            }
        });
        let body = BodyExt::boxed_unsync(StreamBody::new(frames));
        // The input and the sandbox's disk take as long as they like.
        let sent = self.sandbox.send_patiently(Method::PUT, path, "application/octet-stream", body, heard).await;
        match (sent, failure.try_recv()) {
            (Ok(answer), _) => answer.parse().await,
            // That the connection broke is our own doing.
            (Err(_), Ok(source)) => Err(ClientError::Local(source)),
            (Err(error), Err(_)) => Err(error),
        }
    }
}

fn encoded(path: &str) -> String {
    utf8_percent_encode(path, NON_ALPHANUMERIC).to_string()
}
