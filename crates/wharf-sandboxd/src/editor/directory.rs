//! The directory view: what `find -L DIR -maxdepth 2 | sort` shows, without hidden names and without a shell.

use std::collections::BinaryHeap;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use super::disk::python_error;
use super::listing::{Notice, clip};

/// A listing is clipped at 16,000 characters, and no line is shorter than two.
const MAX_ENTRIES: usize = 8_001;

/// The view of the directory `path`, shown as `shown`.
///
/// # Errors
///
/// What `find` would print to standard error about directories that cannot be read.
pub(crate) fn view(path: &Path, shown: &str) -> Result<String, String> {
    let mut listing = Listing::default();
    let hidden = listing.add_children(path);
    let subdirectories: Vec<PathBuf> = listing.subdirectories.drain().map(PathBuf::from).collect();
    for subdirectory in subdirectories {
        listing.add_children(&subdirectory);
    }
    if !listing.errors.is_empty() {
        return Err(listing.errors);
    }
    listing.add(path.as_os_str().to_owned());
    let paths: Vec<_> = listing.paths.into_sorted_vec();
    let raw = paths.iter().map(|path| path.to_string_lossy() + "\n").collect::<String>();
    let lines: Vec<String> = clip(&raw, Notice::Directory)
        .trim()
        .split('\n')
        .map(|line| if Path::new(line).is_dir() { format!("{line}/") } else { line.to_owned() })
        .collect();
    let mut view = format!(
        "Here's the files and directories up to 2 levels deep in {shown}, excluding hidden items:\n{}",
        lines.join("\n")
    );
    if hidden > 0 {
        view += &format!(
            "\n\n{hidden} hidden files/directories in this directory are excluded. You can use 'ls -la {shown}' to see \
             them."
        );
    }
    Ok(view)
}

#[derive(Default)]
struct Listing {
    /// The first entries by byte order; the heap's largest is dropped when there are too many.
    paths: BinaryHeap<OsString>,
    subdirectories: BinaryHeap<OsString>,
    errors: String,
}

impl Listing {
    /// Returns how many children are hidden.
    fn add_children(&mut self, directory: &Path) -> usize {
        let mut hidden = 0;
        let result = fs::read_dir(directory).and_then(|entries| {
            for entry in entries {
                let entry = entry?;
                if entry.file_name().as_bytes().starts_with(b".") {
                    hidden += 1;
                    continue;
                }
                let path = entry.path();
                // Following links costs a call only for links.
                let kind = entry.file_type()?;
                if kind.is_dir() || (kind.is_symlink() && path.is_dir()) {
                    push_bounded(&mut self.subdirectories, path.clone().into_os_string());
                }
                self.add(path.into_os_string());
            }
            Ok(())
        });
        if let Err(error) = result {
            self.note(directory, &error);
        }
        hidden
    }

    fn add(&mut self, path: OsString) {
        push_bounded(&mut self.paths, path);
    }

    fn note(&mut self, directory: &Path, error: &io::Error) {
        let text = python_error(error, None);
        let reason = text.split_once("] ").map_or(text.as_str(), |(_, reason)| reason);
        self.errors += &format!("find: ‘{}’: {reason}\n", directory.display());
    }
}

fn push_bounded(heap: &mut BinaryHeap<OsString>, path: OsString) {
    heap.push(path);
    if heap.len() > MAX_ENTRIES {
        heap.pop();
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn tree(files: &[&str]) -> tempfile::TempDir {
        let root = tempfile::tempdir().unwrap();
        for file in files {
            let path = root.path().join(file);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, "").unwrap();
        }
        root
    }

    #[track_caller]
    fn check(root: &tempfile::TempDir, expected: &str) {
        let shown = root.path().to_str().unwrap();
        let view = view(root.path(), shown).unwrap().replace(shown, "R");
        assert_eq!(
            view,
            format!("Here's the files and directories up to 2 levels deep in R, excluding hidden items:\n{expected}")
        );
    }

    #[test]
    fn two_levels_in_byte_order_without_hidden_names() {
        let root = tree(&["b.txt", "B.txt", "sub/x/deep", "sub/.hid", "sub.txt", ".git/config", ".env", "a b/c'd"]);
        symlink("/nonexistent", root.path().join("dangling")).unwrap();
        symlink("sub", root.path().join("link")).unwrap();
        check(
            &root,
            "R/\nR/B.txt\nR/a b/\nR/a b/c'd\nR/b.txt\nR/dangling\nR/link/\nR/link/x/\nR/sub/\nR/sub.txt\nR/sub/x/\n\n\
             2 hidden files/directories in this directory are excluded. You can use 'ls -la R' to see them.",
        );
    }

    #[test]
    fn an_empty_directory_shows_itself() {
        check(&tree(&[]), "R/");
    }

    #[test]
    fn a_long_listing_is_clipped() {
        let names: Vec<String> = (0..9000).map(|number| format!("{number}")).collect();
        let root = tree(&names.iter().map(String::as_str).collect::<Vec<_>>());
        let view = view(root.path(), "R").unwrap();
        assert!(view.ends_with("to view large directories incrementally.</NOTE>"), "{view}");
        assert!(view.chars().count() < 17_500);
    }
}
