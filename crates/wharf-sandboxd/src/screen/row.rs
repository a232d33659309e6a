//! Rows that are as long as what is in them.

use std::collections::VecDeque;

use super::style::{Style, Styles};

/// Combining characters beyond this are dropped: a program may send millions for one cell.
const LONGEST_CELL: usize = 8;

/// Cells of room that a blank row may keep.
const MOST_KEPT_ROOM: usize = 256;

/// One column of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cell {
    /// `\0`: the right half of the wide character before it.
    character: char,
    style: u16,
    wide: bool,
}

impl Cell {
    pub(super) fn new(character: char, style: u16, width: u16) -> Self {
        Self { character, style, wide: width == 2 }
    }

    const BLANK: Self = Self { character: ' ', style: 0, wide: false };
    const RIGHT_HALF: Self = Self { character: '\0', style: 0, wide: false };
}

#[derive(Debug, Clone, Default)]
pub(super) struct Row {
    cells: Vec<Cell>,
    /// Combining characters by their columns, sorted, and in their order within a column.
    combining: Vec<(u16, char)>,
    /// Whether the line goes on in the next row.
    pub(super) wrapped: bool,
}

impl Row {
    pub(super) fn is_empty(&self) -> bool {
        self.cells.is_empty()
    }

    pub(super) fn is_blank_from(&self, column: usize) -> bool {
        self.cells.len() <= column
    }

    /// Makes the row blank. A short one keeps its room for what comes next; a long one keeps none.
    pub(super) fn clear(&mut self) {
        self.wrapped = false;
        self.combining = Vec::new();
        if self.cells.capacity() > MOST_KEPT_ROOM {
            self.cells = Vec::new();
        } else {
            self.cells.clear();
        }
    }

    pub(super) fn put(&mut self, column: usize, cell: Cell) {
        let end = column + if cell.wide { 2 } else { 1 };
        if self.cells.len() == column && !cell.wide {
            self.cells.push(cell);
            return;
        }
        self.make_room(column, end);
        self.cells[column] = cell;
        if cell.wide {
            self.cells[column + 1] = Cell::RIGHT_HALF;
        }
    }

    /// Puts printable ASCII from `column` on.
    pub(super) fn put_ascii(&mut self, column: usize, printable: &[u8], style: u16) {
        let cells = printable.iter().map(|byte| Cell::new(char::from(*byte), style, 1));
        if self.cells.len() == column {
            self.cells.extend(cells);
            return;
        }
        let end = column + printable.len();
        self.make_room(column, end);
        for (place, cell) in self.cells[column..end].iter_mut().zip(cells) {
            *place = cell;
        }
    }

    /// Puts the same narrow character into `count` columns.
    pub(super) fn fill(&mut self, column: usize, count: usize, cell: Cell) {
        let end = column + count;
        self.make_room(column, end);
        self.cells[column..end].fill(cell);
    }

    /// Makes the columns ready to be written anew.
    fn make_room(&mut self, column: usize, end: usize) {
        if self.cells.len() < end {
            self.cells.resize(end, Cell::BLANK);
        }
        self.split_wide(column);
        self.split_wide(end);
        if !self.combining.is_empty() {
            self.combining.retain(|(at, _)| !(column..end).contains(&usize::from(*at)));
        }
    }

    /// A wide character that loses a half becomes blank.
    fn split_wide(&mut self, column: usize) {
        if self.cells.get(column).is_some_and(|cell| cell.character == '\0') {
            self.cells[column] = Cell::BLANK;
            if column > 0 {
                self.cells[column - 1] = Cell::BLANK;
            }
        }
    }

    pub(super) fn combine(&mut self, column: usize, character: char) {
        let Some(cell) = self.cells.get(column) else { return };
        let column = if cell.character == '\0' { column.saturating_sub(1) } else { column } as u16;
        let end = self.combining.partition_point(|(at, _)| *at <= column);
        let here = self.combining[..end].iter().rev().take_while(|(at, _)| *at == column).count();
        // As many as there is room for in twice the row: a screen full of them is bounded too.
        if here < LONGEST_CELL && self.combining.len() < 2 * self.cells.len().max(LONGEST_CELL) {
            self.combining.insert(end, (column, character));
        }
    }

    /// Makes columns blank.
    pub(super) fn erase(&mut self, from: usize, to: usize) {
        self.split_wide(from);
        self.split_wide(to);
        if to >= self.cells.len() {
            let length = self.cells.len();
            self.cells.truncate(from);
            // What goes on in the next row keeps its length.
            if self.wrapped {
                self.cells.resize(length, Cell::BLANK);
            }
        } else if from < to {
            self.cells[from..to].fill(Cell::BLANK);
        }
        self.combining.retain(|(at, _)| !(from..to).contains(&usize::from(*at)));
    }

    /// Moves what is at `column` and behind it; the row then counts as written up to its end.
    pub(super) fn insert_blank(&mut self, column: usize, count: usize, columns: usize) {
        let room = columns - column.min(columns);
        if count >= room && room > 1 {
            // What would push all away pushes nothing away in tmux, but makes a blank row count as written.
            if self.is_empty() {
                self.cells.resize(columns, Cell::BLANK);
            }
            return;
        }
        self.split_wide(column);
        self.cells.resize(columns, Cell::BLANK);
        let count = count.min(room);
        self.cells.splice(column..column, std::iter::repeat_n(Cell::BLANK, count));
        self.cells.truncate(columns);
        for (at, _) in &mut self.combining {
            if usize::from(*at) >= column {
                *at = at.saturating_add(count as u16);
            }
        }
        self.forget_beyond(columns);
    }

    pub(super) fn delete(&mut self, column: usize, count: usize) {
        self.split_wide(column);
        self.split_wide(column + count);
        let end = (column + count).min(self.cells.len());
        if column < end {
            let length = self.cells.len();
            self.cells.drain(column..end);
            if self.wrapped {
                self.cells.resize(length, Cell::BLANK);
            }
        }
        self.combining.retain(|(at, _)| !(column..column + count).contains(&usize::from(*at)));
        for (at, _) in &mut self.combining {
            if usize::from(*at) >= column + count {
                *at -= count as u16;
            }
        }
    }

    /// A wide character whose right half was pushed off the row becomes blank.
    fn forget_beyond(&mut self, columns: usize) {
        if let Some(last) = self.cells.last_mut()
            && last.wide
        {
            *last = Cell::BLANK;
        }
        self.combining.retain(|(at, _)| usize::from(*at) < columns);
    }

    pub(super) fn text(&self) -> String {
        let mut out = String::with_capacity(self.cells.len());
        self.append_to(&mut out);
        out
    }

    pub(super) fn append_to(&self, out: &mut String) {
        if self.combining.is_empty() {
            out.extend(self.cells.iter().map(|cell| cell.character).filter(|character| *character != '\0'));
        } else {
            self.each(|characters, _| out.extend(characters));
        }
    }

    /// Visits each character with those that join it, and its style.
    fn each(&self, mut visit: impl FnMut(&mut dyn Iterator<Item = char>, u16)) {
        let mut combining = self.combining.as_slice();
        for (at, cell) in self.cells.iter().enumerate() {
            let here = combining.partition_point(|(column, _)| usize::from(*column) <= at);
            let (marks, rest) = combining.split_at(here);
            combining = rest;
            if cell.character != '\0' {
                visit(&mut std::iter::once(cell.character).chain(marks.iter().map(|(_, mark)| *mark)), cell.style);
            }
        }
    }

    /// Writes the row with its styles; `style` is what the terminal has set already.
    pub(super) fn paint(&self, styles: &Styles, style: &mut Style, out: &mut String) {
        self.each(|characters, id| {
            let wanted = styles.get(id);
            if wanted != *style {
                out.push_str(&wanted.sequence());
                *style = wanted;
            }
            out.extend(characters);
        });
    }
}

/// The rows that have scrolled away, as text. A million short lines cost little more than their characters, and any
/// number of blank ones in a row next to nothing: a few bytes scroll a whole screen.
#[derive(Debug, Default)]
pub(super) struct History {
    text: String,
    lines: VecDeque<Line>,
    count: usize,
}

/// The length of one line's text, and how many of it there are one after another: more than one only of blank ones, none if
/// it goes on in the next line.
#[derive(Debug, Clone, Copy)]
struct Line {
    bytes: u32,
    times: u32,
}

impl Line {
    fn is_wrapped(self) -> bool {
        self.times == 0
    }

    fn count(self) -> usize {
        self.times.max(1) as usize
    }
}

impl History {
    pub(super) fn len(&self) -> usize {
        self.count
    }

    pub(super) fn bytes(&self) -> usize {
        self.text.len()
    }

    pub(super) fn push(&mut self, row: &Row) {
        let start = self.text.len();
        row.append_to(&mut self.text);
        if !row.wrapped {
            self.text.truncate(start + self.text[start..].trim_end().len());
        }
        match (self.text.len() - start) as u32 {
            0 if !row.wrapped => self.push_blank(1),
            bytes => {
                self.count += 1;
                self.lines.push_back(Line { bytes, times: u32::from(!row.wrapped) });
            }
        }
    }

    pub(super) fn push_blank(&mut self, times: u32) {
        self.count += times as usize;
        let more = |line: &Line| line.times.checked_add(times).filter(|_| line.bytes == 0 && !line.is_wrapped());
        if let Some(line) = self.lines.back_mut()
            && let Some(all) = more(line)
        {
            line.times = all;
        } else {
            self.lines.push_back(Line { bytes: 0, times });
        }
    }

    pub(super) fn drop_oldest(&mut self, lines: usize) {
        let (mut left, mut bytes) = (lines, 0);
        while left > 0
            && let Some(line) = self.lines.front_mut()
        {
            let dropped = line.count().min(left);
            left -= dropped;
            self.count -= dropped;
            if dropped < line.count() {
                line.times -= dropped as u32;
            } else {
                bytes += line.bytes as usize;
                self.lines.pop_front();
            }
        }
        self.text.drain(..bytes);
    }

    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// The latest line no longer goes on in the next one.
    pub(super) fn unwrap_latest(&mut self) {
        if let Some(line) = self.lines.back_mut()
            && line.is_wrapped()
        {
            let start = self.text.len() - line.bytes as usize;
            self.text.truncate(start + self.text[start..].trim_end().len());
            *line = Line { bytes: (self.text.len() - start) as u32, times: 1 };
        }
    }

    /// Each line, and whether it goes on in the next one.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, bool)> {
        let mut rest = self.text.as_str();
        self.lines.iter().flat_map(move |line| {
            let (text, behind) = rest.split_at(line.bytes as usize);
            rest = behind;
            std::iter::repeat_n((text, line.is_wrapped()), line.count())
        })
    }
}
