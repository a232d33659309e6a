//! Unified diffs without context, equal to those of Python's `difflib`. Pure.
//!
//! The matching follows `difflib.SequenceMatcher` (longest block first, of those the earliest in the old text, lines
//! that are very frequent in a long new text do not start a block), because its odd choices are visible in the output.

use std::collections::HashMap;
use std::ops::Range;

use super::python::is_space;

/// Texts that need more comparisons get one hunk between their common beginning and end.
const MAX_STEPS: usize = 20_000_000;
/// Texts with more lines than this are only compared between their common beginning and end.
const MAX_LINES: usize = 500_000;
/// Below this many lines of the new text no line counts as too frequent.
const POPULAR_FROM_LINES: usize = 200;

/// The diff between two texts split at `\n`, with `path` in both header lines, every line right-stripped, and no final
/// newline. Empty if the texts are equal.
///
/// The work is bounded: for texts with hundreds of thousands of repeated lines the hunks may be larger than needed.
pub fn unified_diff(old: &str, new: &str, path: &str) -> String {
    if old == new {
        return String::new();
    }
    let (skipped, old, new) = without_ends(old, new);
    let (old, new): (Vec<&str>, Vec<&str>) = (old.split('\n').collect(), new.split('\n').collect());
    let mut lines = vec![format!("--- {path}"), format!("+++ {path}")];
    for (from, to) in changes(&old, &new, MAX_STEPS) {
        lines.push(format!("@@ -{} +{} @@", hunk_range(&from, skipped), hunk_range(&to, skipped)));
        lines.extend(old[from].iter().map(|line| format!("-{line}")));
        lines.extend(new[to].iter().map(|line| format!("+{line}")));
    }
    lines.iter().map(|line| line.trim_end_matches(is_space)).collect::<Vec<_>>().join("\n")
}

fn hunk_range(range: &Range<usize>, skipped: usize) -> String {
    let start = range.start + skipped;
    match range.len() {
        0 => format!("{start},0"),
        1 => format!("{}", start + 1),
        length => format!("{},{length}", start + 1),
    }
}

/// How many lines huge texts have in common at the beginning, and what is left of them without these and without the
/// common lines at the end; ordinary texts as they are.
fn without_ends<'a>(old: &'a str, new: &'a str) -> (usize, &'a str, &'a str) {
    let newlines = |text: &str| text.bytes().filter(|&byte| byte == b'\n').count();
    if newlines(old) + newlines(new) <= MAX_LINES {
        return (0, old, new);
    }
    let head = old.bytes().zip(new.bytes()).take_while(|(a, b)| a == b).count();
    let head = old.as_bytes()[..head].iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
    let (old_rest, new_rest) = (&old.as_bytes()[head..], &new.as_bytes()[head..]);
    let tail = old_rest.iter().rev().zip(new_rest.iter().rev()).take_while(|(a, b)| a == b).count();
    let tail = old_rest[old_rest.len() - tail..].iter().position(|&byte| byte == b'\n').map_or(0, |start| tail - start);
    (newlines(&old[..head]), &old[head..old.len() - tail], &new[head..new.len() - tail])
}

type Change = (Range<usize>, Range<usize>);

/// What lies between the matching blocks.
fn changes(old: &[&str], new: &[&str], max_steps: usize) -> Vec<Change> {
    let blocks = Matcher::new(old, new, max_steps).blocks().unwrap_or_else(|| ends(old, new));
    let mut changes = Vec::new();
    let (mut i, mut j) = (0, 0);
    for block in blocks.into_iter().chain([Block { old: old.len(), new: new.len(), length: 0 }]) {
        if i < block.old || j < block.new {
            changes.push((i..block.old, j..block.new));
        }
        (i, j) = (block.old + block.length, block.new + block.length);
    }
    changes
}

/// The common beginning and end.
fn ends(old: &[&str], new: &[&str]) -> Vec<Block> {
    let head = old.iter().zip(new).take_while(|(a, b)| a == b).count();
    let tail = old[head..].iter().rev().zip(new[head..].iter().rev()).take_while(|(a, b)| a == b).count();
    let end = Block { old: old.len() - tail, new: new.len() - tail, length: tail };
    vec![Block { old: 0, new: 0, length: head }, end]
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Block {
    old: usize,
    new: usize,
    length: usize,
}

struct Matcher {
    /// Lines as numbers; equal lines have equal numbers.
    old: Vec<usize>,
    new: Vec<usize>,
    /// Where each number occurs in the new text, ascending; empty for a line that is too frequent there.
    positions: Vec<Vec<usize>>,
    /// By end position in the new text plus one: the length of the match that ends there and at the current old line,
    /// and the same for the line before it.
    current: Vec<usize>,
    previous: Vec<usize>,
    steps_left: usize,
}

impl Matcher {
    fn new(old: &[&str], new: &[&str], max_steps: usize) -> Self {
        let mut numbers = HashMap::new();
        let mut number = |line| {
            let next = numbers.len();
            *numbers.entry(line).or_insert(next)
        };
        let new: Vec<usize> = new.iter().map(|&line| number(line)).collect();
        let old: Vec<usize> = old.iter().map(|&line| number(line)).collect();
        let mut positions = vec![Vec::new(); numbers.len()];
        for (position, &line) in new.iter().enumerate() {
            positions[line].push(position);
        }
        if new.len() >= POPULAR_FROM_LINES {
            let most = new.len() / 100 + 1;
            for frequent in positions.iter_mut().filter(|positions| positions.len() > most) {
                *frequent = Vec::new();
            }
        }
        let lengths = vec![0; new.len() + 1];
        Self { old, current: lengths.clone(), previous: lengths, new, positions, steps_left: max_steps }
    }

    /// All matching blocks in order; `None` if that took too many steps.
    fn blocks(mut self) -> Option<Vec<Block>> {
        let mut blocks = Vec::new();
        let mut open = vec![(0..self.old.len(), 0..self.new.len())];
        while let Some((old, new)) = open.pop() {
            let block = self.longest(&old, &new)?;
            if block.length == 0 {
                continue;
            }
            let (old_end, new_end) = (block.old + block.length, block.new + block.length);
            if old.start < block.old && new.start < block.new {
                open.push((old.start..block.old, new.start..block.new));
            }
            if old_end < old.end && new_end < new.end {
                open.push((old_end..old.end, new_end..new.end));
            }
            blocks.push(block);
        }
        blocks.sort_unstable();
        Some(blocks)
    }

    fn longest(&mut self, old: &Range<usize>, new: &Range<usize>) -> Option<Block> {
        let mut best = Block { old: old.start, new: new.start, length: 0 };
        let (mut written, mut line_before) = (0..0, None);
        for i in old.clone() {
            let positions = &self.positions[self.old[i]];
            let first = positions.partition_point(|&j| j < new.start);
            let end = positions.partition_point(|&j| j < new.end);
            self.steps_left = self.steps_left.checked_sub(end - first + 1)?;
            for &j in &positions[first..end] {
                let length = self.previous[j] + 1;
                self.current[j + 1] = length;
                if length > best.length {
                    best = Block { old: i + 1 - length, new: j + 1 - length, length };
                }
            }
            let written_before = std::mem::replace(&mut written, first..end);
            Self::forget(&mut self.previous, &self.positions, line_before, &written_before);
            line_before = Some(self.old[i]);
            std::mem::swap(&mut self.current, &mut self.previous);
        }
        Self::forget(&mut self.previous, &self.positions, line_before, &written);
        // Lines that are too frequent to start a block still belong to one that they touch.
        while best.old > old.start && best.new > new.start && self.old[best.old - 1] == self.new[best.new - 1] {
            best = Block { old: best.old - 1, new: best.new - 1, length: best.length + 1 };
        }
        while best.old + best.length < old.end
            && best.new + best.length < new.end
            && self.old[best.old + best.length] == self.new[best.new + best.length]
        {
            best.length += 1;
        }
        Some(best)
    }

    fn forget(lengths: &mut [usize], positions: &[Vec<usize>], line: Option<usize>, written: &Range<usize>) {
        if let Some(line) = line {
            for &j in &positions[line][written.clone()] {
                lengths[j + 1] = 0;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use expect_test::expect;

    use super::*;

    #[track_caller]
    fn check(old: &str, new: &str, expected: &expect_test::Expect) {
        expected.assert_eq(&unified_diff(old, new, "f"));
    }

    #[test]
    fn equal_texts_have_no_diff() {
        assert_eq!(unified_diff("a\nb", "a\nb", "f"), "");
    }

    #[test]
    fn an_empty_text_is_one_empty_line_that_may_match() {
        check(
            "",
            "x",
            &expect![[r#"
            --- f
            +++ f
            @@ -1 +1 @@
            -
            +x"#]],
        );
        check(
            "",
            "x\n",
            &expect![[r#"
            --- f
            +++ f
            @@ -0,0 +1 @@
            +x"#]],
        );
    }

    #[test]
    fn the_longest_block_wins_and_the_rest_is_matched_around_it() {
        check(
            "a\nb\nc\nd\ne",
            "b\nx\nc\nd\na",
            &expect![[r#"
            --- f
            +++ f
            @@ -1 +0,0 @@
            -a
            @@ -2,0 +2 @@
            +x
            @@ -5 +5 @@
            -e
            +a"#]],
        );
    }

    #[test]
    fn every_line_is_right_stripped() {
        check(
            "a",
            "a \t\u{1f}",
            &expect![[r#"
            --- f
            +++ f
            @@ -1 +1 @@
            -a
            +a"#]],
        );
    }

    #[test]
    fn frequent_lines_of_a_long_text_do_not_start_a_block() {
        let old = "same\nold";
        let new = format!("{}new", "same\n".repeat(250));
        let diff = unified_diff(old, &new, "f");
        assert!(diff.starts_with("--- f\n+++ f\n@@ -2 +2,250 @@\n-old\n"), "{diff}");
    }

    #[test]
    fn huge_texts_are_compared_between_their_ends() {
        let (head, tail) = ("h\n".repeat(300_000), "\nt".repeat(300_000));
        let diff = unified_diff(&format!("{head}a\nb{tail}"), &format!("{head}a\nc{tail}"), "f");
        assert_eq!(diff, "--- f\n+++ f\n@@ -300002 +300002 @@\n-b\n+c");
    }

    #[test]
    fn too_much_work_gives_one_hunk() {
        let old: Vec<&str> = ["h"].into_iter().chain(["a", "b"].repeat(50)).chain(["t"]).collect();
        let new: Vec<&str> = ["h"].into_iter().chain(["b", "a"].repeat(60)).chain(["t"]).collect();
        assert_eq!(changes(&old, &new, 100), [(1..101, 1..121)]);
    }
}
