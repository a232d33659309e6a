//! Python's idea of white space, lines, paths and `repr`, which the texts of the OpenHands editor follow. Pure.

use std::fmt::Write as _;

use serde_json::Value;

/// `str.isspace`: Unicode white space and the four ASCII separators.
pub fn is_space(character: char) -> bool {
    character.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&character)
}

/// `str.splitlines()`.
pub fn split_lines(text: &str) -> Vec<&str> {
    let mut lines = Vec::new();
    let mut rest = text;
    while let Some((end, character)) = rest.char_indices().find(|&(_, c)| is_line_end(c)) {
        let after = if rest[end..].starts_with("\r\n") { 2 } else { character.len_utf8() };
        lines.push(&rest[..end]);
        rest = &rest[end + after..];
    }
    if !rest.is_empty() {
        lines.push(rest);
    }
    lines
}

fn is_line_end(character: char) -> bool {
    matches!(character, '\n'..='\r' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}')
}

/// `str(pathlib.PurePosixPath(path))`: no empty and no `.` segments, `..` kept, exactly two leading slashes kept.
pub fn display_path(path: &str) -> String {
    let root = match path.bytes().take_while(|&byte| byte == b'/').count() {
        0 => "",
        2 => "//",
        _ => "/",
    };
    let segments: Vec<&str> = path.split('/').filter(|segment| !matches!(*segment, "" | ".")).collect();
    match format!("{root}{}", segments.join("/")) {
        empty if empty.is_empty() => ".".to_owned(),
        shown => shown,
    }
}

/// `int(text)`, clamped to what an `i64` holds; `None` where Python raises `ValueError`.
pub fn parse_int(text: &str) -> Option<i64> {
    let trimmed = text.trim_matches(is_space);
    let (negative, digits) = match trimmed.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, trimmed.strip_prefix('+').unwrap_or(trimmed)),
    };
    let well_formed = digits.split('_').all(|group| !group.is_empty() && group.bytes().all(|b| b.is_ascii_digit()));
    let clamp = if negative { i64::MIN } else { i64::MAX };
    let magnitude =
        || digits.replace('_', "").parse::<i64>().map_or(clamp, |value| if negative { -value } else { value });
    well_formed.then(magnitude)
}

/// `repr` of a value that came as JSON.
pub fn repr(value: &Value) -> String {
    match value {
        Value::Null => "None".to_owned(),
        Value::Bool(true) => "True".to_owned(),
        Value::Bool(false) => "False".to_owned(),
        Value::Number(number) => number.to_string(),
        Value::String(text) => repr_str(text),
        Value::Array(items) => format!("[{}]", items.iter().map(repr).collect::<Vec<_>>().join(", ")),
        Value::Object(map) => {
            let items: Vec<_> = map.iter().map(|(key, value)| format!("{}: {}", repr_str(key), repr(value))).collect();
            format!("{{{}}}", items.join(", "))
        }
    }
}

/// `repr` of a string: single quotes unless only double ones avoid an escape; control characters escaped.
pub fn repr_str(text: &str) -> String {
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    let mut shown = String::with_capacity(text.len() + 2);
    shown.push(quote);
    for character in text.chars() {
        match character {
            '\\' => shown.push_str("\\\\"),
            '\n' => shown.push_str("\\n"),
            '\r' => shown.push_str("\\r"),
            '\t' => shown.push_str("\\t"),
            c if c == quote => shown.extend(['\\', c]),
            c if c.is_control() => {
                let _ = write!(shown, "\\x{:02x}", u32::from(c));
            }
            c => shown.push(c),
        }
    }
    shown.push(quote);
    shown
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn paths_look_like_those_of_pathlib() {
        for (path, shown) in [
            ("/a//b/./c/", "/a/b/c"),
            ("/a/../b", "/a/../b"),
            ("//a", "//a"),
            ("///a", "/a"),
            ("", "."),
            ("./x", "x"),
            ("/", "/"),
        ] {
            assert_eq!(display_path(path), shown);
        }
    }

    #[test]
    fn integers_are_read_as_python_reads_them() {
        let huge = "9".repeat(40);
        for (text, value) in [
            ("1", Some(1)),
            (" -1_0\n", Some(-10)),
            ("+3", Some(3)),
            ("1__0", None),
            ("abc", None),
            ("", None),
            ("-", None),
            ("1.5", None),
            (&huge, Some(i64::MAX)),
        ] {
            assert_eq!(parse_int(text), value, "{text}");
        }
    }

    #[test]
    fn values_are_shown_as_python_shows_them() {
        assert_eq!(
            repr(&json!([1, "it's", 1.5, null, true, {"a": "\u{1}\n"}])),
            r#"[1, "it's", 1.5, None, True, {'a': '\x01\n'}]"#
        );
    }

    #[test]
    fn every_unicode_line_end_splits() {
        assert_eq!(split_lines("a\r\nb\x0cc\u{2028}d\n\ne"), ["a", "b", "c", "d", "", "e"]);
        assert_eq!(split_lines("a\n"), ["a"]);
        assert!(split_lines("").is_empty());
    }
}
