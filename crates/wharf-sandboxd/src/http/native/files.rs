//! `/v1/files`.

use std::{
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use axum::{
    Json, Router,
    body::Body,
    extract::{DefaultBodyLimit, State},
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::Deserialize;
use tokio::io::AsyncReadExt;
use tokio_util::io::ReaderStream;
use wharf_protocol::{
    ArchiveFormat, DirectoryListing, FileStat, FileTime, FileTimeError, MakeDirectoryRequest, MoveRequest, Problem,
    ProblemKind, SearchRequest, SearchResult, Skipped, SkippedFile, UploadResult,
};

use crate::{
    core::Core,
    files::{
        self, Bounds, FilesError, NewFile, Unpacked, Wanted,
        archive::{self, Compression, Unsafe},
        rights::Rights,
        search,
        stream::{body_reader, body_writer, receive, trailer},
    },
    http::problem::{ApiError, ApiJson, ApiQuery},
};

const PIPE_BYTES: usize = 256 << 10;
/// A JSON request of these routes: paths and patterns, no content.
const LONGEST_REQUEST: usize = 1 << 20;
/// What may follow the last member of a tar, such as blocks of zeros.
const LONGEST_TAIL: u64 = 1 << 20;

pub(super) fn router() -> Router<Arc<Core>> {
    let content = Router::new()
        .route("/v1/files/content", get(read).put(write))
        .route("/v1/files/archive", get(download).put(upload))
        .layer(DefaultBodyLimit::disable());
    Router::new()
        .route("/v1/files", axum::routing::delete(remove))
        .route("/v1/files/list", get(list))
        .route("/v1/files/stat", get(stat))
        .route("/v1/files/directory", post(make_directory))
        .route("/v1/files/move", post(rename))
        .route("/v1/files/search", post(search))
        .layer(DefaultBodyLimit::max(LONGEST_REQUEST))
        .merge(content)
}

impl From<FilesError> for ApiError {
    fn from(error: FilesError) -> Self {
        Problem::from(error).into()
    }
}

/// Runs file work off the async threads, with the rights of the sandbox's user.
async fn blocking<T: Send + 'static>(
    core: &Core,
    work: impl FnOnce() -> Result<T, FilesError> + Send + 'static,
) -> Result<T, ApiError> {
    let rights = Rights::of(&core.identity()?.user);
    Ok(tokio::task::spawn_blocking(move || rights.run(work))
        .await
        .map_err(ApiError::internal)?
        .map_err(FilesError::Rights)??)
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
pub(super) async fn read(
    State(core): State<Arc<Core>>,
    ApiQuery(query): ApiQuery<PathQuery>,
    headers: HeaderMap,
) -> Result<Response, ApiError> {
    let path = files::checked_path(&query.path)?;
    let (mut file, size) = blocking(&core, move || files::open(&path)).await?;
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
    /// When it was modified, in decimal seconds since the Unix epoch, to the nanosecond; absent: now.
    modified_at: Option<String>,
    /// Whether missing directories are made.
    #[serde(default)]
    parents: bool,
}

/// Writes a file in one step: until the body has ended the old one stays. A symlink stays too, and its target is written.
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
    let wanted = Wanted {
        mode: query.mode.as_deref().map(parse_mode).transpose()?,
        fresh_mode: Some(0o644),
        modified: query.modified_at.as_deref().map(parse_time).transpose()?,
        parents: query.parents,
        replace_special: false,
    };
    let limit = core.identity()?.limits.upload_bytes;
    let target = path.clone();
    let file =
        blocking(&core, move || NewFile::create(&target, wanted).map_err(|error| FilesError::replace(&target, error)));
    let (file, bytes) = receive(body.into_data_stream(), file.await?, limit, &path).await?;
    blocking(&core, move || file.commit().map_err(|error| FilesError::replace(&path, error))).await?;
    Ok(Json(UploadResult { path: query.path, files: 1, bytes, skipped: Skipped::default() }))
}

fn parse_time(text: &str) -> Result<(i64, u32), ApiError> {
    let time: FileTime =
        text.parse().map_err(|error: FileTimeError| ApiError::invalid("modified_at", text, error.to_string()))?;
    Ok((time.seconds, time.nanoseconds))
}

fn parse_mode(mode: &str) -> Result<u32, ApiError> {
    u32::from_str_radix(mode, 8)
        .ok()
        .filter(|mode| *mode <= 0o7777)
        .ok_or_else(|| ApiError::invalid("mode", mode, "expected permission bits in octal, such as 0644"))
}

/// The entries of a directory, sorted by name.
#[utoipa::path(
    get, path = "/v1/files/list", tag = "files", params(PathQuery),
    responses((status = 200, body = DirectoryListing), (status = 404, body = Problem), (status = 409, body = Problem)),
)]
pub(super) async fn list(
    State(core): State<Arc<Core>>,
    ApiQuery(query): ApiQuery<PathQuery>,
) -> Result<Json<DirectoryListing>, ApiError> {
    let path = files::checked_path(&query.path)?;
    blocking(&core, move || files::list(&path)).await.map(Json)
}

#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
pub(super) struct StatQuery {
    /// Absolute path.
    path: String,
    /// Whether a symlink's target is described.
    #[serde(default)]
    follow: bool,
}

/// One path; a symlink itself, unless `follow` is said.
#[utoipa::path(
    get, path = "/v1/files/stat", tag = "files", params(StatQuery),
    responses((status = 200, body = FileStat), (status = 404, body = Problem)),
)]
pub(super) async fn stat(
    State(core): State<Arc<Core>>,
    ApiQuery(query): ApiQuery<StatQuery>,
) -> Result<Json<FileStat>, ApiError> {
    let path = files::checked_path(&query.path)?;
    blocking(&core, move || files::stat(&path, query.follow)).await.map(Json)
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
    blocking(&core, move || files::make_directory(&path, request.mode)).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Moves a file or a directory.
#[utoipa::path(
    post, path = "/v1/files/move", tag = "files", request_body = MoveRequest,
    responses((status = 204, description = "moved"), (status = 404, body = Problem), (status = 409, body = Problem)),
)]
pub(super) async fn rename(
    State(core): State<Arc<Core>>,
    ApiJson(request): ApiJson<MoveRequest>,
) -> Result<StatusCode, ApiError> {
    let (from, to) = (files::checked_path(&request.from)?, files::checked_path(&request.to)?);
    blocking(&core, move || files::rename(&from, &to, request.overwrite)).await?;
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
pub(super) async fn remove(
    State(core): State<Arc<Core>>,
    ApiQuery(query): ApiQuery<RemoveQuery>,
) -> Result<StatusCode, ApiError> {
    let path = files::checked_path(&query.path)?;
    blocking(&core, move || files::remove(&path, query.recursive)).await?;
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

/// A directory with its entries, or one file, as a tar or zip stream. In a tar symlinks stay symlinks; what is neither a
/// file, a directory nor a symlink is left out, and so is what cannot be read: the trailer `wharf-skipped` names it.
#[utoipa::path(
    get, path = "/v1/files/archive", tag = "files", params(ArchiveQuery),
    responses((status = 200, content_type = "application/x-tar", body = Vec<u8>), (status = 404, body = Problem)),
)]
pub(super) async fn download(
    State(core): State<Arc<Core>>,
    ApiQuery(query): ApiQuery<ArchiveQuery>,
) -> Result<Response, ApiError> {
    let path = files::checked_path(&query.path)?;
    let rights = Rights::of(&core.identity()?.user);
    let (mut writer, body) = body_writer();
    let packing = path.clone();
    core.tasks.spawn_blocking(move || {
        let packed = rights.run(|| match query.format {
            ArchiveFormat::Tar => {
                let name =
                    if packing.is_dir() { Path::new("") } else { Path::new(packing.file_name().unwrap_or_default()) };
                wharf_files::pack(&packing, wharf_files::Root::Target, name, &mut writer)
                    .map(|packed| Some(trailer(packed)))
                    .map_err(|source| FilesError::system("pack", &packing, source))
            }
            ArchiveFormat::Zip => archive::pack_zip(&packing, &mut writer, Compression::Deflated).map(|()| None),
        });
        match packed.map_err(FilesError::Rights).flatten() {
            Ok(trailers) => writer.end(trailers),
            Err(error) => {
                // An archive that has begun can only be cut short; the log says why.
                tracing::debug!(%error, "an archive was cut short");
                writer.fail(match error {
                    FilesError::NotFound { .. } => io::ErrorKind::NotFound.into(),
                    FilesError::System { source, .. } | FilesError::Rights(source) => source,
                    error => io::Error::other(error),
                });
            }
        }
    });
    let body = body.begun().await.map_err(|source| FilesError::system("pack", &path, source))?;
    let body = Body::new(http_body_util::StreamBody::new(body.frames()));
    Ok(match query.format {
        ArchiveFormat::Tar => {
            ([(header::CONTENT_TYPE, "application/x-tar"), (header::TRAILER, Skipped::TRAILER)], body).into_response()
        }
        ArchiveFormat::Zip => ([(header::CONTENT_TYPE, "application/zip")], body).into_response(),
    })
}

/// Unpacks a tar or zip stream below a directory, which is made if it is missing. Members whose names lead out are refused,
/// and nothing is written through a symlink; a tar's symlinks are made as they are, and its special files left out and
/// named in the answer.
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
    let limits = core.identity()?.limits;
    let bounds = Bounds { bytes: limits.upload_bytes, entries: limits.archive_entries };
    let Unpacked { files, bytes, skipped, skipped_count } = match query.format {
        ArchiveFormat::Tar => unpack_tar(&core, body, path, bounds).await?,
        ArchiveFormat::Zip => unpack_zip(&core, body, path, bounds).await?,
    };
    let skipped = skipped.into_iter();
    let skipped =
        skipped.map(|file| SkippedFile { path: file.path.display().to_string(), reason: file.reason }).collect();
    let skipped = Skipped { count: skipped_count, files: skipped };
    Ok(Json(UploadResult { path: query.path, files, bytes, skipped }))
}

async fn unpack_tar(core: &Core, body: Body, path: PathBuf, bounds: Bounds) -> Result<Unpacked, ApiError> {
    let (feed, mut reader) = body_reader();
    let unpacking = blocking(core, move || {
        let unpacked = wharf_files::unpack(&mut reader, &path, bounds)?;
        // What follows the last member is read, so that the connection can go on.
        io::copy(&mut reader.take(LONGEST_TAIL), &mut io::sink()).map_err(|_| FilesError::Interrupted)?;
        Ok(unpacked)
    });
    let ((), unpacked) = tokio::join!(feed.pass(body.into_data_stream()), unpacking);
    unpacked
}

/// Spools a zip, whose index is at its end, and unpacks it.
async fn unpack_zip(core: &Core, body: Body, path: PathBuf, bounds: Bounds) -> Result<Unpacked, ApiError> {
    let spool_at = path.clone();
    let file = blocking(core, move || {
        files::make_directory(&spool_at, None)?;
        wharf_files::spool(&spool_at).map_err(|source| FilesError::system("write", &spool_at, source))
    })
    .await?;
    let (mut file, size) = receive(body.into_data_stream(), file, bounds.bytes, &path).await?;
    blocking(core, move || {
        file.rewind().map_err(|source| FilesError::system("read", &path, source))?;
        archive::unpack_zip(file, size, &path, bounds, Unsafe::Refuse)
    })
    .await
}

/// Looks for files by name, or for lines by content. Ends when the caller goes away.
#[utoipa::path(
    post, path = "/v1/files/search", tag = "files", request_body = SearchRequest,
    responses((status = 200, body = SearchResult), (status = 400, body = Problem), (status = 404, body = Problem)),
)]
pub(super) async fn search(
    State(core): State<Arc<Core>>,
    ApiJson(request): ApiJson<SearchRequest>,
) -> Result<Json<SearchResult>, ApiError> {
    let cancelled = Arc::new(AtomicBool::new(false));
    let _guard = CancelOnDrop(cancelled.clone());
    blocking(&core, move || search::search(&request, &cancelled)).await.map(Json)
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
