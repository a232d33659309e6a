//! Looking for files by name and for lines by content, with ripgrep's engine.

use std::{
    io,
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use globset::{GlobBuilder, GlobMatcher};
use grep_regex::{RegexMatcher, RegexMatcherBuilder};
use grep_searcher::{BinaryDetection, Searcher, SearcherBuilder, sinks::Lossy};
use ignore::WalkBuilder;
use wharf_protocol::{SearchMatch, SearchRequest, SearchResult};

use super::{FilesError, checked_path, ignored::Ignored};

const DEFAULT_LIMIT: usize = 1000;
const LARGEST_LIMIT: u32 = 100_000;
const LONGEST_LINE: usize = 1000;
const PATTERN_BYTES: usize = 10 << 20;
/// What is held of a file, and with it its longest line.
const HEAP_BYTES: usize = 8 << 20;
/// What all matches of one answer take.
const RESULT_BYTES: usize = 16 << 20;

/// Searches below a directory until `cancelled`. Results come in the order of the walk, sorted by name.
///
/// # Errors
///
/// A bad path, glob, expression or limit, named.
pub fn search(request: &SearchRequest, cancelled: &AtomicBool) -> Result<SearchResult, FilesError> {
    let root = checked_path(&request.path)?;
    if !root.exists() {
        return Err(FilesError::NotFound { path: root });
    }
    let glob = request.glob.as_deref().map(matcher_of).transpose()?;
    let pattern = request.pattern.as_deref().map(|pattern| regex_of(pattern, request.case_insensitive)).transpose()?;
    let limit = match request.limit {
        None => DEFAULT_LIMIT,
        Some(limit @ 1..=LARGEST_LIMIT) => limit as usize,
        Some(limit) => {
            let reason = format!("it is from 1 to {LARGEST_LIMIT}");
            return Err(FilesError::Pattern { field: "limit", value: limit.to_string(), reason });
        }
    };
    let mut searcher = SearcherBuilder::new();
    searcher.binary_detection(BinaryDetection::quit(0)).line_number(true).heap_limit(Some(HEAP_BYTES));
    let mut searcher = searcher.build();
    let mut walk = WalkBuilder::new(&root);
    // The library would read every list of what is ignored to its end, and wait for it.
    walk.standard_filters(false).hidden(!request.all).follow_links(false).sort_by_file_name(std::ffi::OsStr::cmp);
    if !request.all {
        let ignored = Ignored::below(&root);
        walk.filter_entry(move |entry| {
            let is_directory = entry.file_type().is_some_and(|kind| kind.is_dir());
            entry.depth() == 0 || !ignored.covers(entry.path(), is_directory)
        });
    }
    let walk = walk.build();
    let mut found =
        Found { result: SearchResult { matches: Vec::new(), truncated: false, unsearched: 0 }, limit, bytes: 0 };
    for entry in walk.filter_map(Result::ok) {
        if cancelled.load(Ordering::Relaxed) || found.result.truncated {
            break;
        }
        if !entry.file_type().is_some_and(|kind| kind.is_file()) {
            continue;
        }
        let below = entry.path().strip_prefix(&root).unwrap_or(entry.path());
        if glob.as_ref().is_some_and(|glob| !glob.is_match(below)) {
            continue;
        }
        match &pattern {
            None => found.push(entry.path(), None),
            Some(pattern) => found.lines(&mut searcher, pattern, entry.path()),
        }
    }
    Ok(found.result)
}

fn matcher_of(glob: &str) -> Result<GlobMatcher, FilesError> {
    let built = GlobBuilder::new(glob).literal_separator(true).build();
    built.map(|glob| glob.compile_matcher()).map_err(|error| FilesError::Pattern {
        field: "glob",
        value: glob.to_owned(),
        reason: error.to_string(),
    })
}

fn regex_of(pattern: &str, case_insensitive: bool) -> Result<RegexMatcher, FilesError> {
    let mut builder = RegexMatcherBuilder::new();
    builder.case_insensitive(case_insensitive).size_limit(PATTERN_BYTES).dfa_size_limit(PATTERN_BYTES);
    builder.build(pattern).map_err(|error| FilesError::Pattern {
        field: "pattern",
        value: pattern.to_owned(),
        reason: error.to_string(),
    })
}

struct Found {
    result: SearchResult,
    limit: usize,
    bytes: usize,
}

impl Found {
    fn lines(&mut self, searcher: &mut Searcher, pattern: &RegexMatcher, path: &Path) {
        let searched = super::open(path).map_err(io::Error::other).and_then(|(file, _)| {
            let sink = Lossy(|number, line| {
                self.push(path, Some((number, line)));
                Ok(!self.result.truncated)
            });
            searcher.search_file(pattern, &file, sink)
        });
        if searched.is_err() {
            self.result.unsearched += 1;
        }
    }

    fn push(&mut self, path: &Path, line: Option<(u64, &str)>) {
        let text: Option<String> =
            line.map(|(_, text)| text.trim_end_matches(['\r', '\n']).chars().take(LONGEST_LINE).collect());
        let path = path.display().to_string();
        self.bytes += path.len() + text.as_ref().map_or(0, String::len);
        if self.result.matches.len() == self.limit || self.bytes > RESULT_BYTES {
            self.result.truncated = true;
            return;
        }
        self.result.matches.push(SearchMatch { path, line: line.map(|(number, _)| number), text });
    }
}
