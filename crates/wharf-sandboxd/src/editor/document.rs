//! A text that remembers its line ends. Pure.

use std::ops::Range;

/// The text of a file twice: as it is stored, and with every line end turned into `\n`, which is what an agent sees,
/// searches and edits. An edit changes only the stored text between its ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Document {
    stored: String,
    text: String,
    line_end: &'static str,
}

impl Document {
    pub fn new(stored: String) -> Self {
        let windows = stored.matches("\r\n").count();
        let mac = stored.matches('\r').count() - windows;
        let unix = stored.matches('\n').count() - windows;
        let line_end = if windows > unix.max(mac) {
            "\r\n"
        } else if mac > unix {
            "\r"
        } else {
            "\n"
        };
        let text = universal_newlines(&stored);
        Self { stored, text, line_end }
    }

    pub fn stored(&self) -> &str {
        &self.stored
    }

    pub fn text(&self) -> &str {
        &self.text
    }

    /// Replaces `range` of [`Document::text`]. A `\n` of `replacement` becomes the line end that this file mostly uses;
    /// a `\r` is taken as it is.
    ///
    /// # Panics
    ///
    /// If `range` does not lie on character boundaries of the text.
    pub fn splice(&self, range: Range<usize>, replacement: &str) -> Self {
        let (start, end) = (self.stored_offset(range.start), self.stored_offset(range.end));
        let mut stored = String::with_capacity(self.stored.len() + replacement.len());
        stored.push_str(&self.stored[..start]);
        if self.line_end == "\n" {
            stored.push_str(replacement);
        } else {
            stored.push_str(&replacement.replace("\r\n", "\n").replace('\n', self.line_end));
        }
        stored.push_str(&self.stored[end..]);
        Self { text: universal_newlines(&stored), stored, line_end: self.line_end }
    }

    /// Only `\r\n` is shorter in the text than in the store, by one byte.
    fn stored_offset(&self, offset: usize) -> usize {
        if self.stored.len() == self.text.len() {
            return offset;
        }
        let mut shift = 0;
        for (position, _) in self.stored.match_indices("\r\n") {
            if position - shift >= offset {
                break;
            }
            shift += 1;
        }
        offset + shift
    }
}

/// `\r\n` and `\r` become `\n`.
pub fn universal_newlines(text: &str) -> String {
    if text.contains('\r') { text.replace("\r\n", "\n").replace('\r', "\n") } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(stored: &str, find: &str, replacement: &str, expected: &str) {
        let document = Document::new(stored.to_owned());
        let start = document.text().find(find).unwrap();
        assert_eq!(document.splice(start..start + find.len(), replacement).stored(), expected);
    }

    #[test]
    fn line_ends_around_an_edit_stay_and_new_ones_follow_the_file() {
        check("a\r\nb\r\nc\r\n", "b", "x\ny", "a\r\nx\r\ny\r\nc\r\n");
        check("a\r\nb\r\nc\r\n", "a\nb", "z", "z\r\nc\r\n");
        check("a\r\nb\nc\n", "b", "x\ny", "a\r\nx\ny\nc\n");
        check("a\rb\rc", "b", "x\ny", "a\rx\ry\rc");
        check("a\r\nb\r\n", "\n", "\n\n", "a\r\n\r\nb\r\n");
        check("a\r\nb", "b", "x\r\ny", "a\r\nx\r\ny");
        check("é\r\nü", "ü", "ö", "é\r\nö");
    }
}
