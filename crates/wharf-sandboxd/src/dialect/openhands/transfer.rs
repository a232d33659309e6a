//! `/upload_file`, `/download_files`, `/list_files`: sections 3.4 to 3.6 of the specification.
//!
//! Repaired: a file name that leads out of the destination is refused, the archive of a file holds the file, and
//! a dangling symlink does not stop a download.

use std::{
    io::{self, Seek},
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use axum::{
    Json, Router,
    body::Body,
    extract::{DefaultBodyLimit, FromRequest, Multipart, Request, State, multipart::Field},
    http::{HeaderValue, StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use bytes::Bytes;
use serde_json::{Value, json};
use tokio_util::io::{ReaderStream, SyncIoBridge};

use super::{detail, python, unexpected};
use crate::{
    core::Core,
    files::{
        self, FilesError, Owner,
        archive::{self, Bounds, Compression, Unsafe},
    },
};

const PIPE_BYTES: usize = 256 << 10;

pub fn router(core: Arc<Core>) -> Router {
    Router::new()
        .route("/upload_file", post(upload).layer(DefaultBodyLimit::disable()))
        .route("/download_files", get(download))
        .route("/list_files", post(list))
        .with_state(core)
}

/// The 500 that a handler's own exception becomes: its status and text in one.
fn caught(text: &str) -> Response {
    detail(StatusCode::INTERNAL_SERVER_ERROR, text)
}

fn query(request: &Request, name: &str) -> Option<String> {
    let query = request.uri().query()?;
    query.split('&').find_map(|pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        let decode =
            |text: &str| percent_encoding::percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
        (decode(key) == name).then(|| decode(value))
    })
}

async fn upload(State(core): State<Arc<Core>>, request: Request) -> Response {
    let destination = query(&request, "destination").unwrap_or_else(|| "/".to_owned());
    let recursive = match query(&request, "recursive") {
        None => false,
        Some(text) => match parse_bool(&text) {
            Some(recursive) => recursive,
            None => {
                let error = python::wrong_type("bool_parsing", &["query", "recursive"], &Value::from(text));
                return python::validation_error(&error);
            }
        },
    };
    let no_file = || python::validation_error(&python::missing(&["body", "file"], &Value::Null));
    let Ok(mut form) = Multipart::from_request(request, &()).await else { return no_file() };
    loop {
        match form.next_field().await {
            Ok(Some(field)) if field.name() == Some("file") && field.file_name().is_some() => {
                return receive(&core, &destination, recursive, field).await;
            }
            Ok(Some(_)) => {}
            Ok(None) | Err(_) => return no_file(),
        }
    }
}

/// FastAPI's booleans.
fn parse_bool(text: &str) -> Option<bool> {
    match text.to_ascii_lowercase().as_str() {
        "true" | "1" | "yes" | "on" | "t" | "y" => Some(true),
        "false" | "0" | "no" | "off" | "f" | "n" => Some(false),
        _ => None,
    }
}

async fn receive(core: &Core, destination: &str, recursive: bool, field: Field<'_>) -> Response {
    let Ok(identity) = core.identity() else { return unexpected() };
    let name = field.file_name().unwrap_or_default().to_owned();
    if files::checked_path(destination).is_err() {
        return caught("400: Destination must be an absolute path");
    }
    let directory = PathBuf::from(destination);
    if let Err(error) = std::fs::create_dir_all(&directory) {
        // Python's `makedirs` accepts an existing file here, and opening below it fails.
        if error.kind() != io::ErrorKind::AlreadyExists {
            return caught(&python::os_error(&error, &directory));
        }
    }
    let is_zip = name.ends_with(".zip");
    if recursive && !is_zip {
        return caught("400: Recursive uploads must be zip files");
    }
    let sound = !name.is_empty()
        && !name.contains('\0')
        && Path::new(&name).components().all(|component| matches!(component, Component::Normal(_)));
    if !sound {
        return caught("400: File name must not lead out of the destination");
    }
    // What the original's server writes belongs to the user that it runs as.
    let owner = Owner { uid: rustix::process::geteuid().as_raw(), gid: rustix::process::getegid().as_raw() };
    let target = directory.join(&name);
    let limit = identity.limits.upload_bytes;
    let bounds = Bounds { bytes: limit, entries: identity.limits.archive_entries };
    let stored = if is_zip {
        store_zip(field, directory, target, owner, bounds).await
    } else {
        store(field, target, limit).await
    };
    match stored {
        Ok(()) => Json(json!({ "filename": name, "destination": destination, "recursive": recursive })).into_response(),
        Err(text) => caught(&text),
    }
}

async fn store(mut field: Field<'_>, target: PathBuf, limit: u64) -> Result<(), String> {
    let file = std::fs::File::create(&target).map_err(|error| python::os_error(&error, &target))?;
    copy(&mut field, file, limit, &target).await.map(drop)
}

/// Spools the zip and unpacks it. A broken one stays behind under its name, as in the original.
async fn store_zip(
    mut field: Field<'_>,
    directory: PathBuf,
    target: PathBuf,
    owner: Owner,
    bounds: Bounds,
) -> Result<(), String> {
    let file = std::fs::File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .open(&target)
        .map_err(|error| python::os_error(&error, &target))?;
    let mut file = copy(&mut field, file, bounds.bytes, &target).await?;
    let unpack = move || {
        let size = file.stream_position().unwrap_or_default();
        file.rewind().map_err(|error| python::os_error(&error, &target))?;
        let unpacked = archive::unpack_zip(file, size, &directory, owner, bounds, Unsafe::Skip);
        unpacked.map_err(|error| match error {
            FilesError::Archive { .. } => format!("{} is not a zip file", target.display()),
            error => error.to_string(),
        })?;
        std::fs::remove_file(&target).map_err(|error| python::os_error(&error, &target))
    };
    tokio::task::spawn_blocking(unpack).await.map_err(|error| error.to_string())?
}

async fn copy(
    field: &mut Field<'_>,
    mut file: std::fs::File,
    limit: u64,
    target: &Path,
) -> Result<std::fs::File, String> {
    let mut bytes = 0;
    while let Some(data) = field.chunk().await.map_err(|error| error.body_text())? {
        bytes += data.len() as u64;
        if bytes > limit {
            return Err(format!("413: The upload is larger than {limit} bytes"));
        }
        let write = move || io::Write::write_all(&mut file, &data).map(|()| file);
        file = match tokio::task::spawn_blocking(write).await {
            Ok(written) => written.map_err(|error| python::os_error(&error, target))?,
            Err(error) => return Err(error.to_string()),
        };
    }
    Ok(file)
}

async fn download(State(core): State<Arc<Core>>, request: Request) -> Response {
    let Some(path) = query(&request, "path") else {
        return python::validation_error(&python::missing(&["query", "path"], &Value::Null));
    };
    if files::checked_path(&path).is_err() {
        return caught("400: Path must be an absolute path");
    }
    let directory = PathBuf::from(&path);
    if !directory.exists() {
        return caught("404: File not found");
    }
    let name = path.rsplit('/').next().unwrap_or_default().replace(['"', '\\', '\r', '\n'], "_");
    let (near, far) = tokio::io::duplex(PIPE_BYTES);
    core.tasks.spawn_blocking(move || {
        if let Err(error) = archive::pack_zip(&directory, SyncIoBridge::new(near), Compression::Stored) {
            tracing::debug!(%error, "a download was cut short");
        }
    });
    let mut response = Body::from_stream(ReaderStream::with_capacity(far, PIPE_BYTES)).into_response();
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/zip"));
    if let Ok(value) = HeaderValue::from_bytes(format!("attachment; filename=\"{name}.zip\"").as_bytes()) {
        headers.insert(header::CONTENT_DISPOSITION, value);
    }
    response
}

async fn list(State(core): State<Arc<Core>>, body: Bytes) -> Response {
    let Ok(identity) = core.identity() else { return unexpected() };
    let Ok(Value::Object(request)) = serde_json::from_slice(&body) else { return unexpected() };
    let root = identity.working_dir.clone();
    let path = match request.get("path") {
        None | Some(Value::Null) => root,
        Some(Value::String(path)) => root.join(path),
        Some(_) => return unexpected(),
    };
    let names = tokio::task::spawn_blocking(move || names_of(&path)).await.unwrap_or_default();
    Json(names).into_response()
}

/// Directories with a slash, then files, each sorted by lower-cased name; nothing if the directory cannot be read.
fn names_of(path: &Path) -> Vec<String> {
    let (mut directories, mut others) = (Vec::new(), Vec::new());
    for entry in std::fs::read_dir(path).into_iter().flatten().flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        // A symlink counts as what it points to; a dangling one as nothing.
        match std::fs::metadata(entry.path()) {
            Ok(metadata) if metadata.is_dir() => directories.push(format!("{name}/")),
            Ok(metadata) if metadata.is_file() => others.push(name),
            _ => {}
        }
    }
    for names in [&mut directories, &mut others] {
        names.sort_by(|a, b| a.to_lowercase().cmp(&b.to_lowercase()).then_with(|| a.cmp(b)));
    }
    directories.append(&mut others);
    directories
}
