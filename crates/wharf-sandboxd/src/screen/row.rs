//! Rows that are as long as what is in them.

use super::style::{Style, Styles};

/// Combining characters beyond this are dropped: a program may send millions for one cell.
const LONGEST_CELL: usize = 8;

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
    /// Columns and the combining characters on them, sorted.
    combining: Vec<(u16, String)>,
    /// Whether the line goes on in the next row.
    pub(super) wrapped: bool,
}

impl Row {
    pub(super) fn is_empty(&self) -> bool {
        self.cells.is_empty()
    }

    pub(super) fn put(&mut self, column: usize, cell: Cell) {
        let end = column + if cell.wide { 2 } else { 1 };
        if self.cells.len() == column && !cell.wide {
            self.cells.push(cell);
            return;
        }
        if self.cells.len() < end {
            self.cells.resize(end, Cell::BLANK);
        }
        self.split_wide(column);
        self.split_wide(end);
        if !self.combining.is_empty() {
            self.combining.retain(|(at, _)| !(column..end).contains(&usize::from(*at)));
        }
        self.cells[column] = cell;
        if cell.wide {
            self.cells[column + 1] = Cell::RIGHT_HALF;
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
        match self.combining.binary_search_by_key(&column, |(at, _)| *at) {
            Ok(found) => {
                let text = &mut self.combining[found].1;
                if text.chars().count() < LONGEST_CELL {
                    text.push(character);
                }
            }
            Err(place) => self.combining.insert(place, (column, character.to_string())),
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
        if self.is_empty() {
            return;
        }
        self.split_wide(column);
        self.cells.resize(columns, Cell::BLANK);
        let count = count.min(columns - column.min(columns));
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
        self.each(|character, combining, _| {
            out.push(character);
            out.push_str(combining);
        });
        out
    }

    fn each(&self, mut visit: impl FnMut(char, &str, u16)) {
        let mut combining = self.combining.iter().peekable();
        for (at, cell) in self.cells.iter().enumerate() {
            if cell.character == '\0' {
                continue;
            }
            let marks = combining.next_if(|(column, _)| usize::from(*column) == at).map_or("", |(_, marks)| marks);
            visit(cell.character, marks, cell.style);
        }
    }

    /// Writes the row with its styles; `style` is what the terminal has set already.
    pub(super) fn paint(&self, styles: &Styles, style: &mut Style, out: &mut String) {
        self.each(|character, combining, id| {
            let wanted = styles.get(id);
            if wanted != *style {
                out.push_str(&wanted.sequence());
                *style = wanted;
            }
            out.push(character);
            out.push_str(combining);
        });
    }
}

/// A row that has scrolled away: its text, and a byte that says whether it goes on in the next one.
#[derive(Debug, Clone)]
pub(super) struct HistoryLine(Box<str>);

const WRAPPED: char = '\u{1}';

impl From<Row> for HistoryLine {
    fn from(row: Row) -> Self {
        let mut text = row.text();
        if row.wrapped {
            text.push(WRAPPED);
        } else {
            text.truncate(text.trim_end().len());
        }
        Self(text.into_boxed_str())
    }
}

impl HistoryLine {
    pub(super) fn text(&self) -> &str {
        self.0.strip_suffix(WRAPPED).unwrap_or(&self.0)
    }

    pub(super) fn wrapped(&self) -> bool {
        self.0.ends_with(WRAPPED)
    }

    pub(super) fn unwrap(&mut self) {
        if self.wrapped() {
            self.0 = self.text().trim_end().into();
        }
    }
}
