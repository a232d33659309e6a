//! The file viewer: a second server, for the browser inside the sandbox only. Section 14 of the specification.
//!
//! Repaired: what comes from the request is escaped wherever it stands in a page.

use std::{net::Ipv4Addr, path::Path};

use axum::{
    Json, Router,
    http::{StatusCode, Uri},
    response::{Html, IntoResponse, Response},
    routing::get,
};
use base64::{Engine, engine::general_purpose::STANDARD};
use serde_json::json;
use tokio::net::TcpListener;

use super::detail;

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
            let _ = std::fs::write(ADDRESS_FILE, format!("http://localhost:{candidate}"));
            return Some(listener);
        }
    }
    None
}

/// The viewer's routes.
pub fn router() -> Router {
    Router::new()
        .route("/", get(|| async { Json(json!({ "status": "File viewer server is running" })) }))
        .route("/view", get(view))
        .fallback(|| async { detail(StatusCode::NOT_FOUND, "Not Found") })
        .method_not_allowed_fallback(|| async { detail(StatusCode::METHOD_NOT_ALLOWED, "Method Not Allowed") })
}

async fn view(uri: Uri) -> Response {
    let path = uri.query().and_then(|query| query.split('&').find_map(|pair| pair.strip_prefix("path=")));
    let Some(path) = path else {
        let error = json!({ "type": "missing", "loc": ["query", "path"], "msg": "Field required", "input": null });
        return (StatusCode::UNPROCESSABLE_ENTITY, Json(json!({ "detail": [error] }))).into_response();
    };
    let path = percent_encoding::percent_decode_str(&path.replace('+', " ")).decode_utf8_lossy().into_owned();
    match tokio::task::spawn_blocking(move || page_of(&path)).await {
        Ok(Ok(page)) => Html(page).into_response(),
        Ok(Err((status, page))) => (status, Html(page)).into_response(),
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
    let Ok(metadata) = std::fs::metadata(file) else { return Err(error(StatusCode::NOT_FOUND, "File not found")) };
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
        return Err(failed(&format!("Only files of at most {LARGEST_FILE} bytes can be viewed")));
    }
    let content = std::fs::read(file).map_err(|cause| failed(&super::python::os_error(&cause, file)))?;
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    Ok(PAGE
        .replace("{{NAME}}", &escaped(&name))
        .replace("{{PATH}}", &script_text(path))
        .replace("{{EXTENSION}}", &script_text(&extension))
        .replace("{{MEDIA_TYPE}}", media_type)
        .replace("{{CONTENT}}", &STANDARD.encode(content)))
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
