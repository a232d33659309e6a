//! The file viewer: a second server, for the browser inside the sandbox only. Section 14 of the specification.
//!
//! It asks for no key, by contract: the browser that it is for has none. So it shows what anybody could read who is the
//! sandbox's user, and no more: regular files alone, with that user's rights, and nothing through a link that leads out of
//! the directory that was asked for. It listens on the loopback interface, and answers only to its names: a page from
//! elsewhere whose name was made to point here (DNS rebinding) learns nothing.
//!
//! Repaired: what comes from the request is escaped wherever it stands in a page.

use std::{fs::File, io::Read, net::Ipv4Addr, path::Path, sync::Arc};

use axum::{
    Json, Router,
    extract::{Request, State},
    http::{StatusCode, Uri, header},
    middleware::{self, Next},
    response::{Html, IntoResponse, Response},
    routing::get,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::json;
use tokio::net::TcpListener;

use rustix::{
    fs::{Mode, OFlags, ResolveFlags},
    io::Errno,
};
use wharf_files::{NewFile, Wanted};

use super::detail;
use crate::{core::Core, files::rights::Rights};

const PAGE: &str = include_str!("viewer.html");
/// Beyond this a page is of no use to a browser.
const LARGEST_FILE: u64 = 64 << 20;
const ADDRESS_FILE: &str = "/tmp/oh-server-url";
const TRIES: usize = 10;

/// Opens a listener on a random free port above `port`, on the loopback interface alone, and writes its address to
/// `/tmp/oh-server-url`. `None` if there is no such port.
pub async fn listen(port: u16) -> Option<TcpListener> {
    for _ in 0..TRIES {
        let mut random = [0; 2];
        getrandom::fill(&mut random).ok()?;
        let offset = u16::from_le_bytes(random) % 1024 + 1;
        let Some(candidate) = port.checked_add(offset) else { continue };
        if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, candidate)).await {
            // The file is a convenience; without it the viewer still works.
            let _ = publish(Path::new(ADDRESS_FILE), &format!("http://localhost:{candidate}"));
            return Some(listener);
        }
    }
    None
}

/// Writes the address in place of whatever is there: in `/tmp` anybody may have left a link.
fn publish(path: &Path, address: &str) -> std::io::Result<()> {
    let wanted = Wanted { mode: Some(0o644), replace_special: true, ..Wanted::default() };
    let mut file = NewFile::create(path, wanted).map_err(wharf_files::ReplaceError::into_io)?;
    std::io::Write::write_all(&mut file, address.as_bytes())?;
    file.commit().map_err(wharf_files::ReplaceError::into_io)
}

/// The viewer's routes.
pub fn router(core: Arc<Core>) -> Router {
    Router::new()
        .route("/", get(|| async { Json(json!({ "status": "File viewer server is running" })) }))
        .route("/view", get(view))
        .fallback(|| async { detail(StatusCode::NOT_FOUND, "Not Found") })
        .method_not_allowed_fallback(|| async { detail(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed") })
        .layer(middleware::from_fn(check_host))
        .with_state(core)
}

async fn check_host(request: Request, next: Next) -> Response {
    let host = request.headers().get(header::HOST).and_then(|host| host.to_str().ok()).unwrap_or_default();
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    if matches!(name, "localhost" | "127.0.0.1") {
        next.run(request).await
    } else {
        detail(StatusCode::FORBIDDEN, "The file viewer is for the browser inside the sandbox, at http://localhost")
    }
}

async fn view(State(core): State<Arc<Core>>, uri: Uri) -> Response {
    let Ok(identity) = core.identity() else {
        return detail(StatusCode::SERVICE_UNAVAILABLE, "not initialized");
    };
    let rights = Rights::of(&identity.user);
    let path = uri.query().and_then(|query| query.split('&').find_map(|pair| pair.strip_prefix("path=")));
    let Some(path) = path else {
        let error = json!({ "type": "missing", "loc": ["query", "path"], "msg": "Field required", "input": null });
        return (StatusCode::UNPROCESSABLE_ENTITY, Json(json!({ "detail": [error] }))).into_response();
    };
    let path = percent_encoding::percent_decode_str(&path.replace('+', " ")).decode_utf8_lossy().into_owned();
    match tokio::task::spawn_blocking(move || rights.run(|| page_of(&path))).await {
        Ok(Err(error)) => detail(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
        Ok(Ok(Ok(page))) => Html(page).into_response(),
        Ok(Ok(Err((status, page)))) => (status, Html(page)).into_response(),
        Err(error) => detail(StatusCode::INTERNAL_SERVER_ERROR, &error.to_string()),
    }
}

fn page_of(path: &str) -> Result<String, (StatusCode, String)> {
    let shown = escaped(path);
    let error = |status, what: &str| (status, format!("<h1>Error: {what}</h1><p>{shown}</p>"));
    let failed = |reason: &str| {
        let page = format!("<h1>Error viewing file</h1><p>{shown}</p><p>{}</p>", escaped(reason));
        (StatusCode::INTERNAL_SERVER_ERROR, page)
    };
    let file = Path::new(path);
    if !file.is_absolute() {
        return Err(error(StatusCode::BAD_REQUEST, "Path must be absolute"));
    }
    let os_error = |cause: Errno| failed(&super::python::os_error(&cause.into(), file));
    let directory = match (file.parent(), file.file_name()) {
        (Some(parent), Some(_)) => parent,
        _ => return Err(error(StatusCode::BAD_REQUEST, "Path is a directory")),
    };
    let opened = match open_within(directory, Path::new(file.file_name().unwrap_or_default())) {
        Ok(opened) => opened,
        Err(Errno::NOENT | Errno::NOTDIR) => return Err(error(StatusCode::NOT_FOUND, "File not found")),
        Err(Errno::XDEV | Errno::LOOP) => return Err(failed("A link leads out of the directory")),
        // A socket, a device that is not there.
        Err(Errno::NXIO | Errno::NODEV) => return Err(failed("Only regular files can be viewed")),
        Err(cause) => return Err(os_error(cause)),
    };
    let metadata = opened.metadata().map_err(|cause| failed(&cause.to_string()))?;
    if metadata.is_dir() {
        return Err(error(StatusCode::BAD_REQUEST, "Path is a directory"));
    }
    let extension = file.extension().map(|extension| format!(".{}", extension.to_string_lossy().to_lowercase()));
    let extension = extension.unwrap_or_default();
    let media_type = match extension.as_str() {
        ".pdf" => "application/pdf",
        ".png" => "image/png",
        ".jpg" | ".jpeg" => "image/jpeg",
        ".gif" => "image/gif",
        _ => {
            let supported = "Supported extensions are: .pdf, .png, .jpg, .jpeg, .gif";
            return Err(failed(&format!("Unsupported file extension: {extension}. {supported}")));
        }
    };
    if !metadata.is_file() || metadata.len() > LARGEST_FILE {
        return Err(failed(&format!("Only regular files of at most {LARGEST_FILE} bytes can be viewed")));
    }
    let mut content = Vec::new();
    let read = opened.take(LARGEST_FILE).read_to_end(&mut content);
    read.map_err(|cause| failed(&super::python::os_error(&cause, file)))?;
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    Ok(PAGE
        .replace("{{NAME}}", &escaped(&name))
        .replace("{{PATH}}", &script_text(path))
        .replace("{{EXTENSION}}", &script_text(&extension))
        .replace("{{MEDIA_TYPE}}", media_type)
        .replace("{{CONTENT}}", &STANDARD.encode(content)))
}

/// Opens a file of a directory, through links only where they stay below it. Opening a pipe does not wait.
fn open_within(directory: &Path, name: &Path) -> Result<File, Errno> {
    let directory = rustix::fs::open(directory, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let within = ResolveFlags::BENEATH | ResolveFlags::NO_MAGICLINKS;
    rustix::fs::openat2(directory, name, flags, Mode::empty(), within).map(File::from)
}

/// A text as HTML shows it.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;").replace('\'', "&#x27;")
}

/// A text as a JavaScript string that cannot end its script element.
fn script_text(text: &str) -> String {
    serde_json::to_string(text).unwrap_or_default().replace('<', "\\u003c")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_regular_files_are_shown_and_nothing_through_a_link_that_leads_out() {
        use std::os::unix::fs::symlink;
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name);
        std::fs::create_dir_all(at("asked/sub")).unwrap();
        std::fs::write(at("secret"), "secret").unwrap();
        std::fs::write(at("asked/sub/real"), "shown").unwrap();
        symlink("/proc/self/environ", at("asked/environ.png")).unwrap();
        symlink("../secret", at("asked/up.png")).unwrap();
        symlink(at("secret"), at("asked/absolute.png")).unwrap();
        symlink("sub/real", at("asked/within.png")).unwrap();
        symlink("asked", at("asked-too")).unwrap();
        rustix::fs::mkfifoat(rustix::fs::CWD, at("asked/pipe.png"), Mode::from_raw_mode(0o666)).unwrap();
        symlink("/dev/zero", at("asked/zero.png")).unwrap();
        for name in ["environ", "up", "absolute", "pipe", "zero"] {
            let path = at(&format!("asked/{name}.png")).display().to_string();
            let (status, page) = page_of(&path).unwrap_err();
            assert_eq!(status, StatusCode::INTERNAL_SERVER_ERROR, "{name}: {page}");
        }
        let shown = STANDARD.encode("shown");
        for path in ["asked/within.png", "asked-too/within.png"] {
            assert!(page_of(&at(path).display().to_string()).unwrap().contains(&shown), "{path}");
        }
    }

    #[test]
    fn the_address_replaces_a_link_and_not_its_target() {
        let directory = tempfile::tempdir().unwrap();
        let (address, target) = (directory.path().join("address"), directory.path().join("target"));
        std::fs::write(&target, "kept").unwrap();
        std::os::unix::fs::symlink(&target, &address).unwrap();
        publish(&address, "http://localhost:1").unwrap();
        assert_eq!(std::fs::read_to_string(&address).unwrap(), "http://localhost:1");
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "kept");
    }

    #[test]
    fn a_path_cannot_put_markup_into_a_page() {
        let (_, page) = page_of("/<script>alert(1)</script>.png").unwrap_err();
        assert!(page.contains("&lt;script&gt;") && !page.contains("<script>"), "{page}");
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("</script><script>x.png");
        // A slash cannot stand in a name: the path holds it as directories.
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, b"x").unwrap();
        let page = page_of(&file.display().to_string()).unwrap();
        assert!(!page.contains("</script><script>x"), "{page}");
    }
}
