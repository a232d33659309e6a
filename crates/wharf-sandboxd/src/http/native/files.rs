//! `/v1/files`.

use std::{
    io::{self, Seek, SeekFrom, Write},
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use axum::{
    Json, Router,
    body::{Body, BodyDataStream},
    extract::{DefaultBodyLimit, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use serde::Deserialize;
use tokio::io::AsyncReadExt;
use tokio_util::io::{ReaderStream, StreamReader, SyncIoBridge};
use wharf_protocol::{
    ArchiveFormat, DirectoryListing, FileStat, MakeDirectoryRequest, MoveRequest, Problem, ProblemKind, SearchRequest,
    SearchResult, UploadResult,
};

use crate::{
    core::Core,
    files::{
        self, FilesError, NewFile, Owner,
        archive::{self, Bounds, Compression, Unpacked, Unsafe},
        search,
    },
    http::problem::{ApiError, ApiJson, ApiQuery},
};

const PIPE_BYTES: usize = 256 << 10;
/// How many pieces of an upload wait for the disk, each as large as one read of the connection.
const PIECES_AHEAD: usize = 16;

pub(super) fn router() -> Router<Arc<Core>> {
    Router::new()
        .route("/v1/files", axum::routing::delete(remove))
        .route("/v1/files/content", get(read).put(write))
        .route("/v1/files/list", get(list))
        .route("/v1/files/stat", get(stat))
        .route("/v1/files/directory", post(make_directory))
        .route("/v1/files/move", post(rename))
        .route("/v1/files/archive", get(download).put(upload))
        .route("/v1/files/search", post(search))
        .layer(DefaultBodyLimit::disable())
}

impl From<FilesError> for ApiError {
    fn from(error: FilesError) -> Self {
        Problem::from(error).into()
    }
}

/// Runs file work off the async threads.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, FilesError> + Send + 'static,
) -> Result<T, ApiError> {
    Ok(tokio::task::spawn_blocking(work).await.map_err(ApiError::internal)??)
}

fn owner(core: &Core) -> Result<Owner, ApiError> {
    let user = &core.identity()?.user;
    Ok(Owner { uid: user.uid, gid: user.gid })
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
pub(super) struct PathQuery {
    /// Absolute path.
    path: String,
}

/// A file's bytes, or the one range that the `Range` header asks for.
#[utoipa::path(
    get, path = "/v1/files/content", tag = "files", params(PathQuery),
    responses((status = 200, content_type = "application/octet-stream", body = Vec<u8>),
              (status = 206, content_type = "application/octet-stream", body = Vec<u8>),
              (status = 404, body = Problem), (status = 416, body = Problem)),
)]
pub(super) async fn read(ApiQuery(query): ApiQuery<PathQuery>, headers: HeaderMap) -> Result<Response, ApiError> {
    let path = files::checked_path(&query.path)?;
    let (mut file, size) = blocking(move || files::open(&path)).await?;
    let range = headers.get(header::RANGE).and_then(|range| range.to_str().ok()).map(|range| parse_range(range, size));
    let (status, from, length) = match range {
        None | Some(Range::Whole) => (StatusCode::OK, 0, size),
        Some(Range::Part { from, length }) => (StatusCode::PARTIAL_CONTENT, from, length),
        Some(Range::Outside) => {
            let detail = format!("the range lies outside the file of {size} bytes");
            return Err(ApiError::new(ProblemKind::RangeNotSatisfiable, detail));
        }
    };
    file.seek(SeekFrom::Start(from)).map_err(ApiError::internal)?;
    // A file of /proc says it has no bytes, and has some.
    let unknown = size == 0;
    let file = tokio::fs::File::from_std(file).take(if unknown { u64::MAX } else { length });
    let body = Body::from_stream(ReaderStream::with_capacity(file, PIPE_BYTES));
    let mut response = (status, [(header::CONTENT_TYPE, "application/octet-stream")], body).into_response();
    let headers = response.headers_mut();
    headers.insert(header::ACCEPT_RANGES, header::HeaderValue::from_static("bytes"));
    if !unknown {
        headers.insert(header::CONTENT_LENGTH, length.into());
    }
    if status == StatusCode::PARTIAL_CONTENT
        && let Ok(value) = format!("bytes {from}-{}/{size}", from + length - 1).try_into()
    {
        headers.insert(header::CONTENT_RANGE, value);
    }
    Ok(response)
}

#[derive(Debug, PartialEq, Eq)]
enum Range {
    /// Not understood, or several ranges: the whole file answers (RFC 9110 14.2).
    Whole,
    Part {
        from: u64,
        length: u64,
    },
    Outside,
}

fn parse_range(header: &str, size: u64) -> Range {
    let Some((first, last)) = header.trim().strip_prefix("bytes=").and_then(|range| range.split_once('-')) else {
        return Range::Whole;
    };
    let (from, to) = match (first.parse::<u64>(), last.parse::<u64>()) {
        (Ok(from), Ok(to)) if from <= to => (from, to.min(size.saturating_sub(1))),
        (Ok(from), Err(_)) if last.is_empty() => (from, size.saturating_sub(1)),
        (Err(_), Ok(count)) if first.is_empty() && count > 0 => (size.saturating_sub(count), size.saturating_sub(1)),
        _ => return Range::Whole,
    };
    if from >= size { Range::Outside } else { Range::Part { from, length: to - from + 1 } }
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
pub(super) struct WriteQuery {
    /// Absolute path.
    path: String,
    /// Permission bits in octal, such as 0644; absent: those of the file that is replaced, else 0644.
    mode: Option<String>,
    /// Whether missing directories are made.
    #[serde(default)]
    parents: bool,
}

/// Writes a file in one step: until the body has ended the old one stays.
#[utoipa::path(
    put, path = "/v1/files/content", tag = "files", params(WriteQuery),
    request_body(content = Vec<u8>, content_type = "application/octet-stream"),
    responses((status = 200, body = UploadResult), (status = 404, body = Problem), (status = 413, body = Problem)),
)]
pub(super) async fn write(
    State(core): State<Arc<Core>>,
    ApiQuery(query): ApiQuery<WriteQuery>,
    body: Body,
) -> Result<Json<UploadResult>, ApiError> {
    let path = files::checked_path(&query.path)?;
    let mode = query.mode.as_deref().map(parse_mode).transpose()?;
    let (owner, limit) = (owner(&core)?, core.identity()?.limits.upload_bytes);
    let (parents, target) = (query.parents, path.clone());
    let file = blocking(move || NewFile::create(&target, mode, parents, owner)).await?;
    let (file, bytes) = receive(body.into_data_stream(), file, limit, &path).await?;
    blocking(move || file.commit()).await?;
    Ok(Json(UploadResult { path: query.path, files: 1, bytes }))
}

fn parse_mode(mode: &str) -> Result<u32, ApiError> {
    u32::from_str_radix(mode, 8)
        .ok()
        .filter(|mode| *mode <= 0o7777)
        .ok_or_else(|| ApiError::invalid("mode", mode, "expected permission bits in octal, such as 0644"))
}

/// Writes a body to `file`, off the async threads and beside the receiving.
pub(crate) async fn receive<W: Write + Send + 'static>(
    mut body: BodyDataStream,
    mut file: W,
    limit: u64,
    path: &std::path::Path,
) -> Result<(W, u64), FilesError> {
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

/// The entries of a directory, sorted by name.
#[utoipa::path(
    get, path = "/v1/files/list", tag = "files", params(PathQuery),
    responses((status = 200, body = DirectoryListing), (status = 404, body = Problem), (status = 409, body = Problem)),
)]
pub(super) async fn list(ApiQuery(query): ApiQuery<PathQuery>) -> Result<Json<DirectoryListing>, ApiError> {
    let path = files::checked_path(&query.path)?;
    blocking(move || files::list(&path)).await.map(Json)
}

/// One path; a symlink itself.
#[utoipa::path(
    get, path = "/v1/files/stat", tag = "files", params(PathQuery),
    responses((status = 200, body = FileStat), (status = 404, body = Problem)),
)]
pub(super) async fn stat(ApiQuery(query): ApiQuery<PathQuery>) -> Result<Json<FileStat>, ApiError> {
    let path = files::checked_path(&query.path)?;
    blocking(move || files::stat(&path)).await.map(Json)
}

/// Makes a directory and its parents; an existing one is fine.
#[utoipa::path(
    post, path = "/v1/files/directory", tag = "files", request_body = MakeDirectoryRequest,
    responses((status = 204, description = "made"), (status = 409, body = Problem)),
)]
pub(super) async fn make_directory(
    State(core): State<Arc<Core>>,
    ApiJson(request): ApiJson<MakeDirectoryRequest>,
) -> Result<StatusCode, ApiError> {
    let path = files::checked_path(&request.path)?;
    let owner = owner(&core)?;
    blocking(move || files::make_directory(&path, request.mode, owner)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Moves a file or a directory.
#[utoipa::path(
    post, path = "/v1/files/move", tag = "files", request_body = MoveRequest,
    responses((status = 204, description = "moved"), (status = 404, body = Problem), (status = 409, body = Problem)),
)]
pub(super) async fn rename(ApiJson(request): ApiJson<MoveRequest>) -> Result<StatusCode, ApiError> {
    let (from, to) = (files::checked_path(&request.from)?, files::checked_path(&request.to)?);
    blocking(move || files::rename(&from, &to, request.overwrite)).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
pub(super) struct RemoveQuery {
    /// Absolute path.
    path: String,
    /// Whether a directory goes with all that is in it.
    #[serde(default)]
    recursive: bool,
}

/// Removes a file, a symlink itself, or a directory.
#[utoipa::path(
    delete, path = "/v1/files", tag = "files", params(RemoveQuery),
    responses((status = 204, description = "removed"), (status = 404, body = Problem), (status = 409, body = Problem)),
)]
pub(super) async fn remove(ApiQuery(query): ApiQuery<RemoveQuery>) -> Result<StatusCode, ApiError> {
    let path = files::checked_path(&query.path)?;
    blocking(move || files::remove(&path, query.recursive)).await?;
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
pub(super) struct ArchiveQuery {
    /// Absolute path.
    path: String,
    #[serde(default)]
    format: ArchiveFormat,
}

/// A directory's entries, or one file, as a tar or zip stream.
#[utoipa::path(
    get, path = "/v1/files/archive", tag = "files", params(ArchiveQuery),
    responses((status = 200, content_type = "application/x-tar", body = Vec<u8>), (status = 404, body = Problem)),
)]
pub(super) async fn download(
    State(core): State<Arc<Core>>,
    ApiQuery(query): ApiQuery<ArchiveQuery>,
) -> Result<Response, ApiError> {
    let path = files::checked_path(&query.path)?;
    let there = path.clone();
    blocking(move || std::fs::metadata(&there).map_err(|source| FilesError::system("pack", &there, source))).await?;
    let (near, far) = tokio::io::duplex(PIPE_BYTES);
    let media_type = match query.format {
        ArchiveFormat::Tar => {
            core.tasks.spawn(async move { report(archive::pack_tar(&path, near).await) });
            "application/x-tar"
        }
        ArchiveFormat::Zip => {
            core.tasks.spawn_blocking(move || {
                report(archive::pack_zip(&path, SyncIoBridge::new(near), Compression::Deflated));
            });
            "application/zip"
        }
    };
    let body = Body::from_stream(ReaderStream::with_capacity(far, PIPE_BYTES));
    Ok(([(header::CONTENT_TYPE, media_type)], body).into_response())
}

/// An archive that has begun can only be cut short; the log says why.
fn report(packed: Result<(), FilesError>) {
    if let Err(error) = packed {
        tracing::debug!(%error, "an archive was cut short");
    }
}

/// Unpacks a tar or zip stream below a directory, which is made if it is missing.
#[utoipa::path(
    put, path = "/v1/files/archive", tag = "files", params(ArchiveQuery),
    request_body(content = Vec<u8>, content_type = "application/x-tar"),
    responses((status = 200, body = UploadResult), (status = 400, body = Problem), (status = 413, body = Problem)),
)]
pub(super) async fn upload(
    State(core): State<Arc<Core>>,
    ApiQuery(query): ApiQuery<ArchiveQuery>,
    body: Body,
) -> Result<Json<UploadResult>, ApiError> {
    let path = files::checked_path(&query.path)?;
    let owner = owner(&core)?;
    let limits = core.identity()?.limits;
    let bounds = Bounds { bytes: limits.upload_bytes, entries: limits.archive_entries };
    let Unpacked { files, bytes } = match query.format {
        ArchiveFormat::Tar => {
            let mut reader = StreamReader::new(body.into_data_stream().map_err(io::Error::other));
            let unpacked = archive::unpack_tar(&mut reader, &path, owner, bounds).await?;
            // The blocks of zeros after the last member are read, so that the connection can go on.
            tokio::io::copy(&mut reader.take(1 << 20), &mut tokio::io::sink())
                .await
                .map_err(|_| FilesError::Interrupted)?;
            unpacked
        }
        ArchiveFormat::Zip => unpack_zip(body, path, owner, bounds).await?,
    };
    Ok(Json(UploadResult { path: query.path, files, bytes }))
}

/// Spools a zip, whose index is at its end, and unpacks it.
async fn unpack_zip(body: Body, path: PathBuf, owner: Owner, bounds: Bounds) -> Result<Unpacked, ApiError> {
    let spool_at = path.clone();
    let file = blocking(move || {
        files::make_directory(&spool_at, None, owner)?;
        archive::spool(&spool_at).map_err(|source| FilesError::system("write", &spool_at, source))
    })
    .await?;
    let (mut file, size) = receive(body.into_data_stream(), file, bounds.bytes, &path).await?;
    blocking(move || {
        file.rewind().map_err(|source| FilesError::system("read", &path, source))?;
        archive::unpack_zip(file, size, &path, owner, bounds, Unsafe::Refuse)
    })
    .await
}

/// Looks for files by name, or for lines by content. Ends when the caller goes away.
#[utoipa::path(
    post, path = "/v1/files/search", tag = "files", request_body = SearchRequest,
    responses((status = 200, body = SearchResult), (status = 400, body = Problem), (status = 404, body = Problem)),
)]
pub(super) async fn search(ApiJson(request): ApiJson<SearchRequest>) -> Result<Json<SearchResult>, ApiError> {
    let cancelled = Arc::new(AtomicBool::new(false));
    let _guard = CancelOnDrop(cancelled.clone());
    blocking(move || search::search(&request, &cancelled)).await.map(Json)
}

struct CancelOnDrop(Arc<AtomicBool>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_range_is_read_as_rfc_9110_says() {
        for (header, expected) in [
            ("bytes=0-3", Range::Part { from: 0, length: 4 }),
            ("bytes=5-", Range::Part { from: 5, length: 5 }),
            ("bytes=-3", Range::Part { from: 7, length: 3 }),
            ("bytes=8-100", Range::Part { from: 8, length: 2 }),
            ("bytes=-100", Range::Part { from: 0, length: 10 }),
            ("bytes=10-", Range::Outside),
            ("bytes=3-1", Range::Whole),
            ("bytes=0-1,3-4", Range::Whole),
            ("lines=0-1", Range::Whole),
        ] {
            assert_eq!(parse_range(header, 10), expected, "{header}");
        }
    }
}
