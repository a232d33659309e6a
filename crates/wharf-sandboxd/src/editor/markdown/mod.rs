//! Office documents, PDFs and sound files as Markdown. Pure, and made for hostile files: depth, sizes and work are
//! bounded, and what cannot be read is an error, never a panic.

mod docx;
mod package;
mod pdf;
mod pptx;
mod table;
mod xlsx;
mod xml;

use super::python::is_space;

/// The content of a file whose lower-case suffix is `suffix`, as Markdown.
///
/// # Errors
///
/// A sentence that says what could not be read.
pub fn convert(suffix: &str, bytes: &[u8]) -> Result<String, String> {
    let converted = match suffix {
        "docx" => docx::convert(bytes),
        "xlsx" => xlsx::convert(bytes),
        "pptx" => pptx::convert(bytes),
        "pdf" => pdf::convert(bytes),
        "wav" => Ok("### Audio Transcript:\nError. Could not transcribe this audio.".to_owned()),
        _ => Ok("\n\n### Audio Transcript:\nTranscription unavailable - ffmpeg/avconv not installed.".to_owned()),
    };
    match converted {
        Ok(markdown) => Ok(tidy(&markdown)),
        // A text that only has the suffix is shown as it is.
        Err(error) => match std::str::from_utf8(bytes) {
            Ok(text) if !text.contains('\0') => Ok(tidy(text)),
            _ => Err(error),
        },
    }
}

/// No white space at line ends and at most one empty line in a row.
fn tidy(markdown: &str) -> String {
    let mut tidy = String::with_capacity(markdown.len());
    let mut newlines = 0;
    for (index, line) in markdown.split('\n').enumerate() {
        if index > 0 {
            newlines += 1;
        }
        let line = line.trim_end_matches(is_space);
        if !line.is_empty() {
            tidy.push_str(&"\n\n"[..newlines.min(2)]);
            tidy.push_str(line);
            newlines = 0;
        }
    }
    tidy.push_str(&"\n\n"[..newlines.min(2)]);
    tidy
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_with_the_suffix_of_a_document_is_shown_as_it_is() {
        assert_eq!(convert("pdf", b"%PDF-1.4 not real text only").as_deref(), Ok("%PDF-1.4 not real text only"));
        assert!(convert("docx", b"PK\x03\x04\0\0").is_err());
    }

    #[test]
    fn empty_lines_and_trailing_spaces_are_tidied() {
        assert_eq!(tidy("a \n\n\n\nb\r\n"), "a\n\nb\n");
        assert_eq!(tidy("\n\n\nx"), "\n\nx");
    }
}
