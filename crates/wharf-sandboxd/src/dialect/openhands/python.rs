//! Answers in the shapes of Python's libraries: FastAPI's validation errors and the texts of `OSError`.

use std::{io, path::Path};

use axum::{
    Json,
    http::StatusCode,
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};

pub use crate::editor::python::repr;

/// The 422 of section 2.2 with one error, which is the text of a Python dict.
pub fn validation_error(error: &str) -> Response {
    let body = json!({ "detail": "Invalid request parameters", "errors": format!("[{error}]") });
    (StatusCode::UNPROCESSABLE_ENTITY, Json(body)).into_response()
}

fn tuple(location: &[&str]) -> String {
    let parts: Vec<String> = location.iter().map(|part| repr(&Value::from(*part))).collect();
    if parts.len() == 1 { format!("({},)", parts[0]) } else { format!("({})", parts.join(", ")) }
}

/// A field that is not there.
pub fn missing(location: &[&str], input: &Value) -> String {
    format!("{{'type': 'missing', 'loc': {}, 'msg': 'Field required', 'input': {}}}", tuple(location), repr(input))
}

/// A field of another type, with pydantic's name for the wanted one.
pub fn wrong_type(kind: &str, location: &[&str], input: &Value) -> String {
    let message = match kind {
        "dict_type" => "Input should be a valid dictionary",
        "bool_parsing" => "Input should be a valid boolean, unable to interpret input",
        _ => "Input should be a valid dictionary or object to extract fields from",
    };
    format!("{{'type': '{kind}', 'loc': {}, 'msg': '{message}', 'input': {}}}", tuple(location), repr(input))
}

/// A body that is no JSON, in the words of Python's decoder as far as ours tells the cases apart.
pub fn invalid_json(body: &[u8], error: &serde_json::Error) -> Response {
    let line_start = body
        .split_inclusive(|byte| *byte == b'\n')
        .take(error.line().saturating_sub(1))
        .map(<[u8]>::len)
        .sum::<usize>();
    let position = line_start + error.column().saturating_sub(1);
    let text = error.to_string();
    let reason = if text.starts_with("key must be a string") || text.starts_with("trailing comma") {
        "Expecting property name enclosed in double quotes"
    } else if text.starts_with("expected `:`") {
        "Expecting ':' delimiter"
    } else if text.starts_with("expected `,`") {
        "Expecting ',' delimiter"
    } else if text.starts_with("EOF while parsing a string") {
        "Unterminated string starting at"
    } else if text.starts_with("control character") {
        "Invalid control character at"
    } else if text.starts_with("invalid escape") {
        "Invalid \\\\escape"
    } else if text.starts_with("trailing characters") {
        "Extra data"
    } else {
        "Expecting value"
    };
    validation_error(&format!(
        "{{'type': 'json_invalid', 'loc': ('body', {position}), 'msg': 'JSON decode error', 'input': {{}}, 'ctx': \
         {{'error': {}}}}}",
        repr(&Value::from(reason))
    ))
}

/// An operating-system error as Python's `str(OSError)` prints it.
pub fn os_error(error: &io::Error, path: &Path) -> String {
    let text = error.to_string();
    match error.raw_os_error() {
        Some(number) => {
            let reason = text.strip_suffix(&format!(" (os error {number})")).unwrap_or(&text);
            format!("[Errno {number}] {reason}: {}", repr(&Value::from(path.display().to_string())))
        }
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_read_as_fastapi_prints_them() {
        assert_eq!(
            missing(&["body"], &Value::Null),
            "{'type': 'missing', 'loc': ('body',), 'msg': 'Field required', 'input': None}"
        );
        assert_eq!(
            wrong_type("dict_type", &["body", "action"], &json!("run")),
            "{'type': 'dict_type', 'loc': ('body', 'action'), 'msg': 'Input should be a valid dictionary', 'input': 'run'}"
        );
        let error = io::Error::from_raw_os_error(20);
        assert_eq!(os_error(&error, Path::new("/a'b")), "[Errno 20] Not a directory: \"/a'b\"");
    }
}
