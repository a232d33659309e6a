//! Numbered listings and their clipping. Pure.

use std::fmt::Write as _;

/// Characters, as the original counts.
const MAX_SHOWN_CHARS: usize = 16_000;

/// What a clipped text ends with.
#[derive(Clone, Copy, Debug)]
pub enum Notice {
    File,
    Directory,
    Converted,
}

impl Notice {
    const fn text(self) -> &'static str {
        match self {
            Self::File => {
                "<response clipped><NOTE>Due to the max output limit, only part of this file has been shown to you. \
                 You should retry this tool after you have searched inside the file with `grep -n` in order to find \
                 the line numbers of what you are looking for.</NOTE>"
            }
            Self::Directory => {
                "<response clipped><NOTE>Due to the max output limit, only part of this directory has been shown to \
                 you. You should use `ls -la` instead to view large directories incrementally.</NOTE>"
            }
            Self::Converted => {
                "<response clipped><NOTE>Due to the max output limit, only part of this file has been shown to you. \
                 Please use Python libraries to view the entire file or search for specific content within the \
                 file.</NOTE>"
            }
        }
    }
}

/// At most 16,000 characters, the rest replaced by the notice.
pub fn clip(text: &str, notice: Notice) -> String {
    match text.char_indices().nth(MAX_SHOWN_CHARS) {
        Some((end, _)) => format!("{}{}", &text[..end], notice.text()),
        None => text.to_owned(),
    }
}

/// `text` with line numbers from `first_line`; a text that ends with a newline shows one more, empty, line.
pub fn numbered(text: &str, what: &str, first_line: usize) -> String {
    let mut shown = format!("Here's the result of running `cat -n` on {what}:\n");
    for (line, number) in clip(text, Notice::File).split('\n').zip(first_line..) {
        let _ = writeln!(shown, "{number:6}\t{line}");
    }
    shown
}

/// Text of a converted file, without numbers.
pub fn converted(markdown: &str, path: &str) -> String {
    let shown = clip(markdown, Notice::Converted);
    format!("Here's the content of the file {path} displayed in Markdown format:\n{shown}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_final_newline_and_an_empty_text_show_one_empty_line() {
        assert_eq!(numbered("a\n", "f", 9), "Here's the result of running `cat -n` on f:\n     9\ta\n    10\t\n");
        assert_eq!(numbered("", "f", 1), "Here's the result of running `cat -n` on f:\n     1\t\n");
    }

    #[test]
    fn clipping_counts_characters_not_bytes() {
        assert_eq!(clip(&"é".repeat(MAX_SHOWN_CHARS), Notice::File), "é".repeat(MAX_SHOWN_CHARS));
        let clipped = clip(&"é".repeat(MAX_SHOWN_CHARS + 1), Notice::Directory);
        assert!(clipped.starts_with(&("é".repeat(MAX_SHOWN_CHARS) + "<response clipped>")), "{clipped}");
    }
}
