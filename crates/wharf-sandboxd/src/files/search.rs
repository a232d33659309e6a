//! Looking for files by name and for lines by content, with ripgrep's engine.

use std::{
    path::Path,
    sync::atomic::{AtomicBool, Ordering},
};

use globset::{GlobBuilder, GlobMatcher};
use grep_regex::{RegexMatcher, RegexMatcherBuilder};
use grep_searcher::{BinaryDetection, Searcher, SearcherBuilder, sinks::Lossy};
use ignore::WalkBuilder;
use wharf_protocol::{SearchMatch, SearchRequest, SearchResult};

use super::{FilesError, checked_path};

const DEFAULT_LIMIT: usize = 1000;
const LARGEST_LIMIT: u32 = 100_000;
const LONGEST_LINE: usize = 1000;
const PATTERN_BYTES: usize = 10 << 20;

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
    let mut searcher = SearcherBuilder::new().binary_detection(BinaryDetection::quit(0)).line_number(true).build();
    let walk = WalkBuilder::new(&root)
        .standard_filters(!request.all)
        .require_git(false)
        .follow_links(false)
        .sort_by_file_name(std::ffi::OsStr::cmp)
        .build();
    let mut result = SearchResult { matches: Vec::new(), truncated: false };
    for entry in walk.filter_map(Result::ok) {
        if cancelled.load(Ordering::Relaxed) || result.truncated {
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
            None => push(&mut result, limit, entry.path(), None),
            Some(pattern) => lines(&mut searcher, pattern, entry.path(), limit, &mut result),
        }
    }
    Ok(result)
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

fn lines(searcher: &mut Searcher, pattern: &RegexMatcher, path: &Path, limit: usize, result: &mut SearchResult) {
    // A file that cannot be read matches nothing.
    let _ = searcher.search_path(
        pattern,
        path,
        Lossy(|number, line| {
            push(result, limit, path, Some((number, line)));
            Ok(!result.truncated)
        }),
    );
}

fn push(result: &mut SearchResult, limit: usize, path: &Path, line: Option<(u64, &str)>) {
    if result.matches.len() == limit {
        result.truncated = true;
        return;
    }
    result.matches.push(SearchMatch {
        path: path.display().to_string(),
        line: line.map(|(number, _)| number),
        text: line.map(|(_, text)| text.trim_end_matches(['\r', '\n']).chars().take(LONGEST_LINE).collect()),
    });
}
