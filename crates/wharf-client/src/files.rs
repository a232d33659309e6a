use std::time::Duration;

use futures_util::TryStreamExt;
use http::Method;
use http_body_util::{BodyExt, BodyStream, StreamBody};
use hyper::body::Frame as BodyFrame;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    time::timeout,
};
use tokio_util::io::ReaderStream;
use wharf_protocol::{DirectoryListing, FileStat, UploadResult};

use crate::{CALL_PATIENCE, ClientError, Sandbox, empty, silence::Heard};

/// How long nothing of a download may come.
const STALL_PATIENCE: Duration = Duration::from_secs(60);

/// The files of a sandbox. Content goes through in pieces, never whole through memory.
#[derive(Debug, Clone, Copy)]
pub struct Files<'a> {
    sandbox: &'a Sandbox,
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
        self.download(&format!("/v1/files/content?path={}", encoded(path)), out).await
    }

    /// Copies what is below a directory, or one file, to `out` as a tar stream.
    ///
    /// # Errors
    ///
    /// As [`Files::read`].
    pub async fn read_tar(&self, path: &str, out: impl AsyncWrite + Unpin) -> Result<u64, ClientError> {
        self.download(&format!("/v1/files/archive?path={}", encoded(path)), out).await
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
        mode: Option<u32>,
        input: impl AsyncRead + Send + 'static,
    ) -> Result<UploadResult, ClientError> {
        let mode = mode.map(|mode| format!("&mode={mode:o}")).unwrap_or_default();
        self.upload(&format!("/v1/files/content?path={}&parents=true{mode}", encoded(path)), input).await
    }

    /// Unpacks a tar stream below a directory, which is made if it is missing.
    ///
    /// # Errors
    ///
    /// As [`Files::write`]; members before the refused or the last one that arrived are left, that one perhaps short.
    pub async fn write_tar(
        &self,
        path: &str,
        input: impl AsyncRead + Send + 'static,
    ) -> Result<UploadResult, ClientError> {
        self.upload(&format!("/v1/files/archive?path={}", encoded(path)), input).await
    }

    async fn download(&self, path: &str, mut out: impl AsyncWrite + Unpin) -> Result<u64, ClientError> {
        let answer = self.sandbox.send(Method::GET, path, None, empty(), CALL_PATIENCE).await?;
        let mut body = BodyStream::new(answer.into_body());
        let mut bytes = 0;
        loop {
            let frame = timeout(STALL_PATIENCE, body.try_next()).await;
            let frame = frame.map_err(|_| ClientError::Stalled { after: STALL_PATIENCE })?;
            let Some(frame) = frame.map_err(ClientError::connection)? else { break };
            if let Ok(data) = frame.into_data() {
                bytes += data.len() as u64;
                out.write_all(&data).await.map_err(ClientError::Local)?;
            }
        }
        out.flush().await.map_err(ClientError::Local)?;
        Ok(bytes)
    }

    async fn upload(&self, path: &str, input: impl AsyncRead + Send + 'static) -> Result<UploadResult, ClientError> {
        let heard = Heard::new();
        let taken = heard.clone();
        // A piece that is taken is a sign of life, and over a slow line there is no room for another.
        let frames =
            ReaderStream::with_capacity(input, 256 << 10).inspect_ok(move |_| taken.now()).map_ok(BodyFrame::data);
        let body = BodyExt::boxed_unsync(StreamBody::new(frames));
        // The input and the sandbox's disk take as long as they like.
        self.sandbox.send_patiently(Method::PUT, path, "application/octet-stream", body, heard).await?.parse().await
    }
}

fn encoded(path: &str) -> String {
    utf8_percent_encode(path, NON_ALPHANUMERIC).to_string()
}
