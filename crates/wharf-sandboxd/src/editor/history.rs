//! What `undo_edit` goes back to. Pure.

use std::collections::VecDeque;

const MAX_VERSIONS_PER_FILE: usize = 10;

/// Earlier contents of edited files, the oldest forgotten first: at most 10 of one file and a number of bytes in all.
#[derive(Debug)]
pub(crate) struct History {
    versions: VecDeque<(String, Vec<u8>)>,
    bytes: usize,
    max_bytes: usize,
}

impl History {
    pub(crate) fn new(max_bytes: usize) -> Self {
        Self { versions: VecDeque::new(), bytes: 0, max_bytes }
    }

    pub(crate) fn push(&mut self, path: &str, content: Vec<u8>) {
        self.bytes += Self::size(path, &content);
        self.versions.push_back((path.to_owned(), content));
        if self.versions.iter().filter(|(of, _)| of == path).count() > MAX_VERSIONS_PER_FILE
            && let Some(oldest) = self.versions.iter().position(|(of, _)| of == path)
        {
            self.remove(oldest);
        }
        while self.bytes > self.max_bytes && !self.versions.is_empty() {
            self.remove(0);
        }
    }

    pub(crate) fn pop(&mut self, path: &str) -> Option<Vec<u8>> {
        let latest = self.versions.iter().rposition(|(of, _)| of == path)?;
        self.remove(latest)
    }

    fn remove(&mut self, index: usize) -> Option<Vec<u8>> {
        let (path, content) = self.versions.remove(index)?;
        self.bytes -= Self::size(&path, &content);
        Some(content)
    }

    /// The fixed part keeps a flood of empty versions bounded too.
    fn size(path: &str, content: &[u8]) -> usize {
        content.len() + path.len() + 64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_come_back_latest_first_and_per_file() {
        let mut history = History::new(1 << 20);
        for (path, content) in [("a", "1"), ("b", "x"), ("a", "2")] {
            history.push(path, content.into());
        }
        let popped: Vec<_> = ["a", "a", "a", "b"].iter().map(|path| history.pop(path)).collect();
        assert_eq!(popped, [Some(b"2".to_vec()), Some(b"1".to_vec()), None, Some(b"x".to_vec())]);
        assert_eq!(history.bytes, 0);
    }

    #[test]
    fn ten_versions_of_a_file_are_kept() {
        let mut history = History::new(1 << 20);
        (0..15).for_each(|version| history.push("a", vec![version]));
        let popped: Vec<_> = std::iter::from_fn(|| history.pop("a")).flatten().collect();
        assert_eq!(popped, (5..15).rev().collect::<Vec<u8>>());
    }

    #[test]
    fn the_oldest_go_when_the_bytes_are_used_up() {
        let mut history = History::new(250);
        (0..3).for_each(|version| history.push(&format!("f{version}"), vec![version; 50]));
        assert_eq!([history.pop("f0"), history.pop("f1").map(|v| vec![v[0]])], [None, Some(vec![1])]);
        history.push("huge", vec![0; 1000]);
        assert_eq!(history.pop("huge"), None);
    }
}
