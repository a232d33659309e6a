//! A terminal emulator: bytes in, what a person would see out. Pure.
//!
//! It renders as tmux 3.5 does, for that is what OpenHands' agents were trained on: 10,000 lines of history of which a
//! tenth goes at once when it is full, wrapped lines joined again, a cleared screen scrolled into history first.
//! A row is as long as what is in it, so a screen of 1000 × 1000 with nothing in it costs next to nothing.

mod perform;
mod row;
mod style;
mod utf8;

use std::{collections::VecDeque, fmt};

use unicode_width::UnicodeWidthChar;
use vte::Perform as _;

use self::{
    row::{Cell, History, Row},
    style::{Style, Styles},
    utf8::Utf8,
};

/// Rows and columns; both at least 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ScreenSize {
    pub rows: u16,
    pub columns: u16,
}

/// Bytes of answers to queries that wait for whoever writes to the terminal.
const LONGEST_REPLIES: usize = 4096;
const LONGEST_TITLE: usize = 1024;
const ESCAPE: u8 = 0x1b;
/// A history that is bounded by lines holds no more text than this: ten thousand long lines of a thousand columns.
const MOST_HISTORY_BYTES: usize = 16 << 20;

/// A terminal's state.
pub struct Screen {
    utf8: Utf8,
    parser: vte::Parser,
    state: State,
}

#[derive(Debug)]
struct State {
    size: ScreenSize,
    main: Grid,
    alternate: Option<Grid>,
    /// First and last row of the scroll region, on either screen.
    region: (u16, u16),
    /// By DECSC, for both screens.
    saved: Option<Cursor>,
    /// By the mode that enters the alternate screen.
    saved_on_entry: Option<Cursor>,
    history: History,
    history_limit: usize,
    history_bytes: usize,
    dropped: u64,
    styles: Styles,
    modes: Modes,
    title: String,
    replies: Vec<u8>,
    last_printed: Option<char>,
    /// Whether the parser is outside of any sequence and nothing but an escape begins one. After a sequence that nobody is
    /// told of, as one that was cancelled, it is not known to be there until the next one ends.
    in_ground_state: bool,
}

/// One page of rows with its own cursor.
#[derive(Debug)]
struct Grid {
    rows: VecDeque<Row>,
    /// From this row on all are blank, so that what scrolls or clears them takes no time for each.
    used: u16,
    cursor: Cursor,
}

#[derive(Debug, Clone, Default)]
struct Cursor {
    row: u16,
    /// May be one past the last column: the next character wraps.
    column: u16,
    style: Style,
    /// Line drawing for G0 and G1, and which of the two is in use.
    line_drawing: [bool; 2],
    shifted: bool,
    origin: bool,
}

#[derive(Debug, Clone)]
struct Modes {
    wrap: bool,
    insert: bool,
    newline: bool,
    application_cursor: bool,
    application_keypad: bool,
    cursor_hidden: bool,
    bracketed_paste: bool,
    focus: bool,
    /// The DEC private numbers of the mouse modes that are on.
    mouse: Vec<u16>,
    /// `None`: a stop at every eighth column.
    tabs: Option<Vec<u16>>,
}

impl Default for Modes {
    fn default() -> Self {
        Self {
            wrap: true,
            insert: false,
            newline: false,
            application_cursor: false,
            application_keypad: false,
            cursor_hidden: false,
            bracketed_paste: false,
            focus: false,
            mouse: Vec::new(),
            tabs: None,
        }
    }
}

impl Grid {
    fn new(size: ScreenSize) -> Self {
        let rows = std::iter::repeat_with(Row::default).take(usize::from(size.rows)).collect();
        Self { rows, used: 0, cursor: Cursor::default() }
    }

    /// Moves the rows from `top` to `bottom` up by `count`; blank ones follow. Takes time for the rows, not for each
    /// row as often as it moves.
    fn move_up(&mut self, top: u16, bottom: u16, count: u16) {
        if self.used <= top {
            return;
        }
        if self.used <= bottom + 1 {
            self.used = self.used.saturating_sub(count).max(top);
        }
        let (top, bottom, count) = (usize::from(top), usize::from(bottom), usize::from(count));
        if top == 0 && bottom + 1 == self.rows.len() {
            self.rows.rotate_left(count);
        } else {
            self.rows.make_contiguous()[top..=bottom].rotate_left(count);
        }
        self.rows.range_mut(bottom + 1 - count..=bottom).for_each(Row::clear);
    }

    /// Moves the rows from `top` to `bottom` down by `count`; blank ones go before.
    fn move_down(&mut self, top: u16, bottom: u16, count: u16) {
        if self.used <= top {
            return;
        }
        if self.used <= bottom + 1 {
            self.used = self.used.saturating_add(count).min(bottom + 1);
        }
        let (top, bottom, count) = (usize::from(top), usize::from(bottom), usize::from(count));
        self.rows.make_contiguous()[top..=bottom].rotate_right(count);
        self.rows.range_mut(top..top + count).for_each(Row::clear);
    }
}

impl Screen {
    /// An empty screen that keeps at most `history_limit` lines which have scrolled away, and not more text of them than
    /// a few megabytes.
    pub fn new(size: ScreenSize, history_limit: usize) -> Self {
        Self::keeping(size, history_limit, MOST_HISTORY_BYTES)
    }

    /// An empty screen that keeps all that so many bytes say, but not all that a few of them can draw: a sequence of
    /// seven bytes scrolls or fills thousands of columns and rows.
    pub fn for_output(size: ScreenSize, bytes: usize) -> Self {
        Self::keeping(size, bytes.saturating_add(usize::from(size.rows)), bytes.saturating_mul(4) + MOST_HISTORY_BYTES)
    }

    fn keeping(size: ScreenSize, history_limit: usize, history_bytes: usize) -> Self {
        let size = ScreenSize { rows: size.rows.max(1), columns: size.columns.max(1) };
        Self {
            utf8: Utf8::default(),
            parser: vte::Parser::new(),
            state: State {
                size,
                main: Grid::new(size),
                alternate: None,
                region: (0, size.rows - 1),
                saved: None,
                saved_on_entry: None,
                history: History::default(),
                history_limit,
                history_bytes,
                dropped: 0,
                styles: Styles::default(),
                modes: Modes::default(),
                title: String::new(),
                replies: Vec::new(),
                last_printed: None,
                in_ground_state: true,
            },
        }
    }

    /// Shows what a program wrote. Any split of the same bytes gives the same screen.
    pub fn feed(&mut self, bytes: &[u8]) {
        let Self { utf8, parser, state } = self;
        utf8.feed(bytes, |valid| state.take_in(parser, valid));
    }

    pub fn size(&self) -> ScreenSize {
        self.state.size
    }

    /// Gives the screen another size. Lines are not wrapped anew; what no longer fits at the top goes into history.
    pub fn resize(&mut self, rows: u16, columns: u16) {
        self.state.resize(ScreenSize { rows: rows.max(1), columns: columns.max(1) });
    }

    /// History and screen as text: wrapped lines joined, white space at the ends of lines gone, a line feed between
    /// lines. While the alternate screen shows, that alone.
    pub fn text(&self) -> String {
        let state = &self.state;
        let mut out = Joiner::default();
        if state.alternate.is_none() {
            for (text, wrapped) in state.history.iter() {
                out.push(text, wrapped);
            }
        }
        for row in &state.grid().rows {
            out.push(&row.text(), row.wrapped);
        }
        out.finish()
    }

    /// What is on the screen now, a line a row.
    pub fn visible_text(&self) -> String {
        let rows: Vec<String> = self.state.grid().rows.iter().map(|row| row.text().trim_end().to_owned()).collect();
        rows.join("\n")
    }

    /// Row and column of the cursor, from 0.
    pub fn cursor(&self) -> (u16, u16) {
        let cursor = &self.state.grid().cursor;
        (cursor.row, cursor.column.min(self.state.size.columns - 1))
    }

    pub fn is_alternate(&self) -> bool {
        self.state.alternate.is_some()
    }

    /// Whether the program on the terminal takes a paste as one piece.
    pub fn takes_pastes(&self) -> bool {
        self.state.modes.bracketed_paste
    }

    /// How many lines of history were dropped so far because there was no room for them.
    pub fn lines_dropped(&self) -> u64 {
        self.state.dropped
    }

    pub fn title(&self) -> &str {
        &self.state.title
    }

    /// Answers to the terminal queries of programs, to be written back to them. At most a few kilobytes are kept.
    pub fn take_replies(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.state.replies)
    }

    /// What paints the present screen, its modes and its cursor on a fresh terminal of the same size.
    pub fn redraw(&self) -> Vec<u8> {
        self.state.redraw()
    }
}

impl fmt::Debug for Screen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Screen").field("size", &self.state.size).field("cursor", &self.cursor()).finish_non_exhaustive()
    }
}

/// Puts wrapped rows together again.
#[derive(Debug, Default)]
struct Joiner {
    out: String,
    line: String,
}

impl Joiner {
    fn push(&mut self, text: &str, wrapped: bool) {
        self.line.push_str(text);
        if !wrapped {
            self.out.push_str(self.line.trim_end());
            self.out.push('\n');
            self.line.clear();
        }
    }

    fn finish(mut self) -> String {
        if !self.line.is_empty() {
            self.push("", false);
        }
        self.out.pop();
        self.out
    }
}

impl State {
    /// Shows what is valid UTF-8. Printable ASCII outside of sequences, which is nearly all that programs write, goes past the
    /// parser a piece at a time.
    fn take_in(&mut self, parser: &mut vte::Parser, mut bytes: &[u8]) {
        while let Some(first) = bytes.first() {
            if *first == ESCAPE || !self.in_ground_state {
                self.in_ground_state = false;
                let taken = parser.advance_until_terminated(self, bytes);
                bytes = &bytes[taken..];
                continue;
            }
            let is_printable = |byte: &u8| (b' '..=b'~').contains(byte);
            let printable = bytes.iter().take_while(|byte| is_printable(byte)).count();
            self.print_ascii(&bytes[..printable]);
            bytes = &bytes[printable..];
            let others = bytes.iter().take_while(|byte| !is_printable(byte) && **byte != ESCAPE).count();
            parser.advance(self, &bytes[..others]);
            bytes = &bytes[others..];
        }
    }

    fn print_ascii(&mut self, mut printable: &[u8]) {
        if self.modes.insert || !self.modes.wrap || self.is_drawing_lines() {
            printable.iter().for_each(|byte| self.print(char::from(*byte)));
            return;
        }
        let Some(last) = printable.last() else { return };
        self.last_printed = Some(char::from(*last));
        let (style, columns) = (self.style(), usize::from(self.size.columns));
        while !printable.is_empty() {
            let mut column = usize::from(self.grid().cursor.column);
            if column >= columns {
                self.row_mut().wrapped = true;
                self.line_feed();
                column = 0;
            }
            let (now, later) = printable.split_at(printable.len().min(columns - column));
            self.row_mut().put_ascii(column, now, style);
            self.grid_mut().cursor.column = (column + now.len()) as u16;
            printable = later;
        }
    }

    fn is_drawing_lines(&self) -> bool {
        let cursor = &self.grid().cursor;
        cursor.line_drawing[usize::from(cursor.shifted)]
    }

    fn grid(&self) -> &Grid {
        self.alternate.as_ref().unwrap_or(&self.main)
    }

    fn grid_mut(&mut self) -> &mut Grid {
        self.alternate.as_mut().unwrap_or(&mut self.main)
    }

    fn row_mut(&mut self) -> &mut Row {
        let grid = self.grid_mut();
        let at = grid.cursor.row;
        grid.used = grid.used.max(at + 1);
        &mut grid.rows[usize::from(at)]
    }

    fn style(&mut self) -> u16 {
        let style = self.grid().cursor.style;
        self.styles.intern(style)
    }

    fn resize(&mut self, size: ScreenSize) {
        let old = std::mem::replace(&mut self.size, size);
        if size.rows < old.rows {
            // The cursor's row stays on the screen; what is above it goes first.
            let keep = usize::from(size.rows);
            let above = (usize::from(self.main.cursor.row) + 1).saturating_sub(keep);
            (0..above).for_each(|at| self.remember(at as u16));
            self.main.rows.drain(..above);
            self.main.cursor.row -= above as u16;
            self.main.used = self.main.used.saturating_sub(above as u16);
            self.main.rows.truncate(keep);
        }
        for grid in std::iter::once(&mut self.main).chain(self.alternate.as_mut()) {
            grid.rows.resize_with(usize::from(size.rows), Row::default);
            grid.used = grid.used.min(size.rows);
        }
        self.region = (0, size.rows - 1);
        let cursors = [&mut self.main.cursor].into_iter().chain(self.alternate.as_mut().map(|grid| &mut grid.cursor));
        for cursor in cursors.chain(&mut self.saved).chain(&mut self.saved_on_entry) {
            cursor.row = cursor.row.min(size.rows - 1);
            cursor.column = cursor.column.min(size.columns);
        }
        self.modes.tabs = None;
    }

    /// Adds a row of the main screen to history; when that is full, its oldest tenth goes first.
    fn remember(&mut self, row: u16) {
        if self.has_room() {
            self.history.push(&self.main.rows[usize::from(row)]);
        }
    }

    fn remember_blank(&mut self, mut rows: usize) {
        while rows > 0 && self.has_room() {
            let some = (self.history_limit - self.history.len()).min(rows);
            self.history.push_blank(some as u32);
            rows -= some;
        }
    }

    /// Makes room for another line of history, if any is kept.
    fn has_room(&mut self) -> bool {
        if self.history_limit == 0 {
            self.dropped += 1;
            return false;
        }
        if self.history.len() >= self.history_limit || self.history.bytes() >= self.history_bytes {
            let oldest = (self.history.len() / 10).max(1);
            self.history.drop_oldest(oldest);
            self.dropped += oldest as u64;
        }
        true
    }

    /// Moves the rows of the scroll region up; what leaves it on the main screen goes into history, also from a region
    /// that does not begin at the top.
    fn scroll_up(&mut self, count: u16) {
        let (top, bottom) = self.region;
        let count = count.min(bottom - top + 1);
        let remembered = self.alternate.is_none();
        if remembered {
            let written = self.main.used.clamp(top, top + count);
            for at in top..written {
                self.remember(at);
            }
            self.remember_blank(usize::from(top + count - written));
        } else {
            self.unwrap_above(top);
        }
        self.grid_mut().move_up(top, bottom, count);
    }

    fn scroll_down(&mut self, count: u16) {
        let (top, bottom) = self.region;
        let count = count.min(bottom - top + 1);
        self.unwrap_above(top);
        self.unwrap_above(top + 1);
        self.grid_mut().move_down(top, bottom, count);
    }

    /// Makes blank rows at `at`; the rows from there to `bottom` move down, and the last ones of them go.
    fn insert_rows(&mut self, at: u16, bottom: u16, count: u16) {
        let count = count.min(bottom - at + 1);
        if count == 0 {
            return;
        }
        self.unwrap_above(at);
        self.unwrap_above(at + count);
        self.grid_mut().move_down(at, bottom, count);
    }

    /// Takes rows from `at` on away; the rows below them to `bottom` move up, and blank ones follow.
    fn delete_rows(&mut self, at: u16, bottom: u16, count: u16) {
        let count = count.min(bottom - at + 1);
        self.unwrap_above(at);
        self.grid_mut().move_up(at, bottom, count);
        self.unwrap_above(bottom + 1 - count);
    }

    /// The line above no longer goes on in this row, which becomes another one.
    fn unwrap_above(&mut self, row: u16) {
        match row.checked_sub(1) {
            Some(above) => self.grid_mut().rows[usize::from(above)].wrapped = false,
            None => {
                if self.alternate.is_none() {
                    self.history.unwrap_latest();
                }
            }
        }
    }

    fn line_feed(&mut self) {
        let last = self.size.rows - 1;
        let row = self.grid().cursor.row;
        if row == self.region.1 {
            self.scroll_up(1);
        } else if row < last {
            self.grid_mut().cursor.row += 1;
        }
    }

    fn put(&mut self, character: char, width: u16) {
        let columns = self.size.columns;
        let style = self.style();
        let (wrap, insert) = (self.modes.wrap, self.modes.insert);
        if self.grid().cursor.column + width > columns {
            if !wrap || columns < width {
                return;
            }
            self.row_mut().wrapped = true;
            self.grid_mut().cursor.column = 0;
            self.line_feed();
        }
        let column = usize::from(self.grid().cursor.column);
        let row = self.row_mut();
        if insert {
            row.insert_blank(column, usize::from(width), usize::from(columns));
        }
        // What is not wrapped is compared with what is there, as tmux does: a blank writes nothing behind the end.
        if wrap || insert || character != ' ' || style != 0 || !row.is_blank_from(column) {
            row.put(column, Cell::new(character, style, width));
        }
        let cursor = &mut self.grid_mut().cursor;
        cursor.column = (cursor.column + width).min(if wrap { columns } else { columns - 1 });
        self.last_printed = Some(character);
    }

    /// Puts the latest character again, at most to the end of the row, as tmux does.
    fn repeat(&mut self, count: u16) {
        let Some(character) = self.last_printed else { return };
        let columns = self.size.columns;
        let column = self.grid().cursor.column;
        let width = character.width().unwrap_or(1).max(1) as u16;
        let count = count.min(columns.saturating_sub(column) / width);
        if width > 1 || count == 0 {
            for _ in 0..count {
                self.put(character, width);
            }
            return;
        }
        let (style, insert, wrap) = (self.style(), self.modes.insert, self.modes.wrap);
        let (from, count, all) = (usize::from(column), usize::from(count), usize::from(columns));
        let row = self.row_mut();
        if insert {
            row.insert_blank(from, count, all);
        }
        row.fill(from, count, Cell::new(character, style, 1));
        let cursor = &mut self.grid_mut().cursor;
        cursor.column = (cursor.column + count as u16).min(if wrap { columns } else { columns - 1 });
    }

    /// A combining character joins the cell before the cursor.
    fn combine(&mut self, character: char) {
        let column = self.grid().cursor.column;
        if let Some(before) = column.checked_sub(1) {
            self.row_mut().combine(usize::from(before), character);
        }
    }

    fn move_to(&mut self, row: u16, column: u16) {
        let size = self.size;
        let (top, bottom) = if self.grid().cursor.origin { self.region } else { (0, size.rows - 1) };
        let cursor = &mut self.grid_mut().cursor;
        cursor.row = row.saturating_add(top).min(bottom);
        cursor.column = column.min(size.columns - 1);
    }

    fn clear_rows(&mut self, from: u16, to: u16) {
        if from >= to {
            return;
        }
        self.unwrap_above(from);
        let grid = self.grid_mut();
        let end = to.min(grid.used);
        if from < end {
            grid.rows.range_mut(usize::from(from)..usize::from(end)).for_each(Row::clear);
            if end == grid.used {
                grid.used = from;
            }
        }
    }

    /// Erases the whole screen; what stood on the main screen is scrolled into history, as tmux does.
    fn clear_all(&mut self) {
        if self.alternate.is_none() {
            let written = self.main.rows.range(..usize::from(self.main.used));
            let used = written.rev().position(|row| !row.is_empty()).map_or(0, |at| usize::from(self.main.used) - at);
            for at in 0..used {
                self.remember(at as u16);
                self.main.rows[at].clear();
            }
            if used == self.main.rows.len() {
                // The last line of a full screen goes on in the first one of the next, if it went on.
                self.main.used = 0;
                return;
            }
        }
        self.clear_rows(0, self.size.rows);
    }

    fn enter_alternate(&mut self, save_cursor: bool) {
        if self.alternate.is_some() {
            return;
        }
        if save_cursor {
            self.saved_on_entry = Some(self.main.cursor.clone());
        }
        self.unwrap_above(0);
        let mut grid = Grid::new(self.size);
        grid.cursor = self.main.cursor.clone();
        self.alternate = Some(grid);
    }

    fn leave_alternate(&mut self, restore_cursor: bool) {
        if let Some(grid) = self.alternate.take() {
            self.main.cursor = grid.cursor;
        }
        let cursor = &mut self.main.cursor;
        if restore_cursor && let Some(saved) = &self.saved_on_entry {
            *cursor = Cursor { origin: cursor.origin, ..saved.clone() };
        }
        cursor.column = cursor.column.min(self.size.columns - 1);
    }

    fn reply(&mut self, answer: &str) {
        if self.replies.len() + answer.len() <= LONGEST_REPLIES {
            self.replies.extend_from_slice(answer.as_bytes());
        }
    }

    fn redraw(&self) -> Vec<u8> {
        let mut out = String::from("\x1b[!p\x1b[?7h\x1b[H\x1b[2J");
        let paint = |grid: &Grid, out: &mut String| {
            let mut style = Style::default();
            for (at, row) in grid.rows.iter().enumerate() {
                if row.is_empty() {
                    continue;
                }
                out.push_str(&format!("\x1b[{};1H", at + 1));
                row.paint(&self.styles, &mut style, out);
            }
            out.push_str("\x1b[0m");
        };
        paint(&self.main, &mut out);
        if let Some(alternate) = &self.alternate {
            out.push_str(&format!(
                "\x1b[{};{}H\x1b[?1049h",
                self.main.cursor.row + 1,
                self.main.cursor.column.min(self.size.columns - 1) + 1
            ));
            paint(alternate, &mut out);
        }
        let grid = self.grid();
        let modes = &self.modes;
        let private = [
            (7, !modes.wrap, 'l'),
            (1, modes.application_cursor, 'h'),
            (25, modes.cursor_hidden, 'l'),
            (2004, modes.bracketed_paste, 'h'),
            (1004, modes.focus, 'h'),
        ];
        for (number, on, letter) in private {
            if on {
                out.push_str(&format!("\x1b[?{number}{letter}"));
            }
        }
        for number in &modes.mouse {
            out.push_str(&format!("\x1b[?{number}h"));
        }
        if modes.application_keypad {
            out.push_str("\x1b=");
        }
        if modes.insert {
            out.push_str("\x1b[4h");
        }
        if modes.newline {
            out.push_str("\x1b[20h");
        }
        if !self.title.is_empty() {
            out.push_str(&format!("\x1b]2;{}\x07", self.title));
        }
        let cursor = &grid.cursor;
        if cursor.style != Style::default() {
            out.push_str(&cursor.style.sequence());
        }
        for (sequence, on) in
            [("\x1b(0", cursor.line_drawing[0]), ("\x1b)0", cursor.line_drawing[1]), ("\x0e", cursor.shifted)]
        {
            if on {
                out.push_str(sequence);
            }
        }
        let (top, bottom) = self.region;
        let is_whole = (top, bottom) == (0, self.size.rows - 1);
        let region = if is_whole { String::new() } else { format!("\x1b[{};{}r", top + 1, bottom + 1) };
        let position = format!("\x1b[{};{}H", cursor.row + 1, cursor.column.min(self.size.columns - 1) + 1);
        // In origin mode only a restored cursor gets out of the region, so it is saved while that is the whole screen.
        if cursor.origin {
            out.push_str(&format!("\x1b[?6h{position}\x1b7{region}\x1b8"));
        } else {
            out.push_str(&region);
            out.push_str(&position);
        }
        out.into_bytes()
    }
}

#[cfg(test)]
mod tests;
