//! `/upload_file`, `/download_files`, `/list_files`: sections 3.4 to 3.6 of the specification.
//!
//! Repaired: a file name that leads out of the destination is refused, the archive of a file holds the file, and
//! a dangling symlink does not stop a download.

use std::{
    io::Seek,
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
use wharf_files::{NewFile, ReplaceError, Wanted};

use super::{detail, python, unexpected};
use crate::{
    core::Core,
    files::{
        self, Bounds, FilesError,
        archive::{self, Compression, Unsafe},
        rights::Rights,
        stream::{body_writer, receive},
    },
};

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
                return take(&core, &destination, recursive, field).await;
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

async fn take(core: &Core, destination: &str, recursive: bool, field: Field<'_>) -> Response {
    let Ok(identity) = core.identity() else { return unexpected() };
    let name = field.file_name().unwrap_or_default().to_owned();
    if files::checked_path(destination).is_err() {
        return caught("400: Destination must be an absolute path");
    }
    let directory = PathBuf::from(destination);
    let rights = Rights::of(&identity.user);
    let made = directory.clone();
    let made = blocking(&rights, move || wharf_files::make_directories(&made).map(drop)).await;
    match made {
        Err(text) => return caught(&text),
        // Python's `makedirs` accepts an existing file here, and opening below it fails.
        Ok(Err(error)) if !directory.is_file() => return caught(&python::os_error(&error, &directory)),
        Ok(_) => {}
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
    let target = directory.join(&name);
    let bounds = Bounds { bytes: identity.limits.upload_bytes, entries: identity.limits.archive_entries };
    match store(field, directory, target, is_zip, bounds, &rights).await {
        Ok(()) => Json(json!({ "filename": name, "destination": destination, "recursive": recursive })).into_response(),
        Err(text) => caught(&text),
    }
}

/// Takes an upload in whole before anything is changed; a zip is then unpacked. A broken zip stays behind under its name,
/// as in the original.
async fn store(
    field: Field<'_>,
    directory: PathBuf,
    target: PathBuf,
    is_zip: bool,
    bounds: Bounds,
    rights: &Rights,
) -> Result<(), String> {
    let at = target.clone();
    let os_error = move |error: ReplaceError| python::os_error(&error.into_io(), &at);
    let at = target.clone();
    let file = blocking(rights, move || NewFile::create(&at, Wanted::default())).await?.map_err(&os_error)?;
    let received = receive(field, file, bounds.bytes, &target).await;
    let (mut file, size) = received.map_err(|error| match error {
        FilesError::TooLarge { limit, .. } => format!("413: The upload is larger than {limit} bytes"),
        FilesError::System { source, .. } => python::os_error(&source, &target),
        error => error.to_string(),
    })?;
    if !is_zip {
        return blocking(rights, move || file.commit()).await?.map_err(&os_error);
    }
    let unpack = move || {
        file.rewind().map_err(|error| python::os_error(&error, &target))?;
        match archive::unpack_zip(&mut file, size, &directory, bounds, Unsafe::Skip) {
            Ok(_) => Ok(()),
            Err(FilesError::Archive { .. }) => {
                file.commit().map_err(|error| python::os_error(&error.into_io(), &target))?;
                Err(format!("{} is not a zip file", target.display()))
            }
            Err(error) => Err(error.to_string()),
        }
    };
    blocking(rights, unpack).await?
}

/// Runs file work off the async threads, with the rights of the sandbox's user.
async fn blocking<T: Send + 'static>(rights: &Rights, work: impl FnOnce() -> T + Send + 'static) -> Result<T, String> {
    let rights = rights.clone();
    let done = tokio::task::spawn_blocking(move || rights.run(work)).await;
    done.map_err(|error| error.to_string())?.map_err(|error| error.to_string())
}

async fn download(State(core): State<Arc<Core>>, request: Request) -> Response {
    let Some(path) = query(&request, "path") else {
        return python::validation_error(&python::missing(&["query", "path"], &Value::Null));
    };
    if files::checked_path(&path).is_err() {
        return caught("400: Path must be an absolute path");
    }
    let Ok(identity) = core.identity() else { return unexpected() };
    let rights = Rights::of(&identity.user);
    let directory = PathBuf::from(&path);
    let there = directory.clone();
    match blocking(&rights, move || there.exists()).await {
        Ok(true) => {}
        Ok(false) => return caught("404: File not found"),
        Err(text) => return caught(&text),
    }
    let name = path.rsplit('/').next().unwrap_or_default().replace(['"', '\\', '\r', '\n'], "_");
    let (mut writer, body) = body_writer();
    core.tasks.spawn_blocking(move || {
        match rights.run(|| archive::pack_zip(&directory, &mut writer, Compression::Stored)) {
            Ok(Ok(())) => writer.end(None),
            Ok(Err(error)) => {
                tracing::debug!(%error, "a download was cut short");
                writer.fail(std::io::Error::other(error));
            }
            Err(error) => writer.fail(error),
        }
    });
    let mut response = Body::new(http_body_util::StreamBody::new(body.frames())).into_response();
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
    let names = blocking(&Rights::of(&identity.user), move || names_of(&path)).await.unwrap_or_default();
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
