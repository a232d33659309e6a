//! What each control function does.

use unicode_width::UnicodeWidthChar;
use vte::{Params, Perform};

use super::{Cursor, Grid, LONGEST_TITLE, Modes, State, row::Row};

/// DEC's line drawing characters, for `` ` `` to `~`.
const LINE_DRAWING: &[char] = &[
    '◆', '▒', '␉', '␌', '␍', '␊', '°', '±', '␤', '␋', '┘', '┐', '┌', '└', '┼', '⎺', '⎻', '─', '⎼', '⎽', '├', '┤', '┴',
    '┬', '│', '≤', '≥', 'π', '≠', '£', '·',
];

/// Cells of the largest screen that DECALN fills.
const MOST_ALIGNED: usize = 20_000;

impl Perform for State {
    fn print(&mut self, character: char) {
        if (' '..='~').contains(&character) {
            let shown = match character {
                '`'..='~' if self.is_drawing_lines() => LINE_DRAWING[character as usize - '`' as usize],
                other => other,
            };
            self.put(shown, 1);
            return;
        }
        match character.width() {
            Some(0) => self.combine(character),
            Some(width) => self.put(character, width as u16),
            None => {}
        }
    }

    fn execute(&mut self, byte: u8) {
        match byte {
            0x08 => self.backspace(),
            b'\t' => self.tab(1),
            b'\n' | 0x0b | 0x0c => {
                self.line_feed();
                if self.modes.newline {
                    self.grid_mut().cursor.column = 0;
                }
            }
            b'\r' => self.grid_mut().cursor.column = 0,
            0x0e => self.grid_mut().cursor.shifted = true,
            0x0f => self.grid_mut().cursor.shifted = false,
            _ => {}
        }
    }

    fn osc_dispatch(&mut self, parameters: &[&[u8]], bell: bool) {
        // Otherwise it ends with an escape, which begins the next sequence.
        self.in_ground_state = bell;
        if let [b"0" | b"2", title, ..] = parameters {
            let title = String::from_utf8_lossy(title);
            self.title = title.chars().filter(|character| !character.is_control()).take(LONGEST_TITLE).collect();
        }
    }

    fn terminated(&self) -> bool {
        self.in_ground_state
    }

    fn esc_dispatch(&mut self, intermediates: &[u8], _ignore: bool, byte: u8) {
        self.in_ground_state = true;
        let size = self.size;
        match (intermediates, byte) {
            ([], b'7') => self.save_cursor(),
            ([], b'8') => self.restore_cursor(),
            ([], b'D') => self.line_feed(),
            ([], b'E') => {
                self.grid_mut().cursor.column = 0;
                self.line_feed();
            }
            ([], b'H') => {
                let column = self.grid().cursor.column;
                let tabs = self.tabs();
                if let Err(place) = tabs.binary_search(&column) {
                    tabs.insert(place, column);
                }
            }
            ([], b'M') => {
                let row = self.grid().cursor.row;
                if row == self.region.0 {
                    self.scroll_down(1);
                } else {
                    self.grid_mut().cursor.row = row.saturating_sub(1);
                }
            }
            ([], b'c') => {
                self.leave_alternate(false);
                self.clear_all();
                self.main.cursor = Cursor::default();
                self.region = (0, size.rows - 1);
                self.saved = None;
                self.modes = Modes::default();
            }
            ([], b'=') => self.modes.application_keypad = true,
            ([], b'>') => self.modes.application_keypad = false,
            ([b'('], set) => self.grid_mut().cursor.line_drawing[0] = set == b'0',
            ([b')'], set) => self.grid_mut().cursor.line_drawing[1] = set == b'0',
            // For adjusting a tube. A program could fill a large screen so with three bytes, again and again.
            ([b'#'], b'8') if usize::from(size.rows) * usize::from(size.columns) <= MOST_ALIGNED => {
                let (rows, columns) = (size.rows, size.columns);
                let mut full = Row::default();
                for column in 0..columns {
                    full.put(usize::from(column), super::Cell::new('E', 0, 1));
                }
                let grid = self.grid_mut();
                grid.rows = std::iter::repeat_n(full, usize::from(rows)).collect();
                grid.used = rows;
            }
            _ => {}
        }
    }

    fn csi_dispatch(&mut self, parameters: &Params, intermediates: &[u8], _ignore: bool, action: char) {
        self.in_ground_state = true;
        let given = |at: usize| parameters.iter().nth(at).and_then(|values| values.first().copied()).unwrap_or(0);
        let count = given(0).max(1);
        let size = self.size;
        match (intermediates, action) {
            ([], '@') => self.edit_row(|row, column, columns| row.insert_blank(column, usize::from(count), columns)),
            ([], 'A') => self.up(count),
            ([], 'B' | 'e') => self.down(count),
            ([], 'C' | 'a') => {
                let cursor = &mut self.grid_mut().cursor;
                cursor.column = cursor.column.saturating_add(count).min(size.columns - 1);
            }
            ([], 'D') => {
                let cursor = &mut self.grid_mut().cursor;
                cursor.column = cursor.column.saturating_sub(count);
            }
            ([], 'E') => {
                self.down(count);
                self.grid_mut().cursor.column = 0;
            }
            ([], 'F') => {
                self.up(count);
                self.grid_mut().cursor.column = 0;
            }
            ([], 'G' | '`') => self.grid_mut().cursor.column = (count - 1).min(size.columns - 1),
            ([], 'H' | 'f') => self.move_to(count - 1, given(1).max(1) - 1),
            ([], 'I') => self.tab(count),
            ([], 'Z') => self.back_tab(count),
            ([], 'd') => {
                // Also a cursor past the end stays there, and the next character wraps.
                let column = self.grid().cursor.column;
                self.move_to(count - 1, 0);
                self.grid_mut().cursor.column = column;
            }
            ([] | [b'?'], 'J') => self.erase_display(given(0)),
            ([] | [b'?'], 'K') => self.erase_line(given(0)),
            ([], 'L' | 'M') => {
                let (top, bottom) = self.region;
                let row = self.grid().cursor.row;
                let bottom = if (top..=bottom).contains(&row) { bottom } else { size.rows - 1 };
                match action {
                    'L' => self.insert_rows(row, bottom, count),
                    _ => self.delete_rows(row, bottom, count),
                }
            }
            ([], 'P') => self.edit_row(|row, column, _| row.delete(column, usize::from(count))),
            ([], 'X') => self.edit_row(|row, column, columns| {
                row.erase(column, (column + usize::from(count)).min(columns));
            }),
            ([], 'S') => self.scroll_up(count),
            ([], 'T') => self.scroll_down(count),
            ([], 'b') => self.repeat(count),
            ([], 'c') => self.reply("\x1b[?62;22c"),
            ([b'>'], 'c') => self.reply("\x1b[>1;10;0c"),
            ([b'>'], 'q') => self.reply("\x1bP>|wharf\x1b\\"),
            ([], 'n') => match given(0) {
                5 => self.reply("\x1b[0n"),
                6 => {
                    let cursor = &self.grid().cursor;
                    let answer = format!("\x1b[{};{}R", cursor.row + 1, cursor.column.min(size.columns - 1) + 1);
                    self.reply(&answer);
                }
                _ => {}
            },
            ([b'?', b'$'], 'p') => self.reply(&format!("\x1b[?{};0$y", given(0))),
            ([b'$'], 'p') => self.reply(&format!("\x1b[{};0$y", given(0))),
            ([], 'g') => match given(0) {
                0 => {
                    let column = self.grid().cursor.column;
                    self.tabs().retain(|tab| *tab != column);
                }
                3 => self.modes.tabs = Some(Vec::new()),
                _ => {}
            },
            ([], 'h' | 'l') => {
                for mode in parameters.iter().flatten() {
                    match mode {
                        4 => self.modes.insert = action == 'h',
                        20 => self.modes.newline = action == 'h',
                        _ => {}
                    }
                }
            }
            ([b'?'], 'h' | 'l') => {
                for mode in parameters.iter().flatten() {
                    self.private_mode(*mode, action == 'h');
                }
            }
            ([], 'm') => self.grid_mut().cursor.style.apply(parameters),
            ([], 'r') => {
                let top = count - 1;
                let bottom = match given(1) {
                    0 => size.rows,
                    bottom => bottom.min(size.rows),
                };
                if top + 1 < bottom {
                    self.region = (top, bottom - 1);
                    let cursor = &mut self.grid_mut().cursor;
                    (cursor.row, cursor.column) = (0, 0);
                }
            }
            ([], 's') => self.save_cursor(),
            ([], 'u') => self.restore_cursor(),
            ([b'!'], 'p') => {
                self.modes = Modes::default();
                self.region = (0, size.rows - 1);
                let grid = self.grid_mut();
                grid.cursor.style = super::Style::default();
                grid.cursor.origin = false;
                grid.cursor.line_drawing = [false; 2];
                self.saved = None;
            }
            _ => {}
        }
    }
}

impl State {
    /// Works on the cursor's row; nothing is at a cursor past the end.
    fn edit_row(&mut self, edit: impl FnOnce(&mut Row, usize, usize)) {
        let columns = usize::from(self.size.columns);
        let column = usize::from(self.grid().cursor.column);
        if column < columns {
            edit(self.row_mut(), column, columns);
        }
    }

    fn up(&mut self, count: u16) {
        let (last, top) = (self.size.columns - 1, self.region.0);
        let cursor = &mut self.grid_mut().cursor;
        let top = if cursor.row >= top { top } else { 0 };
        cursor.row = cursor.row.saturating_sub(count).max(top);
        cursor.column = cursor.column.min(last);
    }

    fn down(&mut self, count: u16) {
        let (size, bottom) = (self.size, self.region.1);
        let cursor = &mut self.grid_mut().cursor;
        let bottom = if cursor.row <= bottom { bottom } else { size.rows - 1 };
        cursor.row = cursor.row.saturating_add(count).min(bottom);
        cursor.column = cursor.column.min(size.columns - 1);
    }

    /// From the beginning of a row to the end of the row that it continues.
    fn backspace(&mut self) {
        let last = self.size.columns - 1;
        let Grid { rows, cursor, .. } = self.grid_mut();
        if cursor.column > 0 {
            cursor.column -= 1;
        } else if cursor.row > 0 && rows[usize::from(cursor.row) - 1].wrapped {
            cursor.row -= 1;
            cursor.column = last;
        }
    }

    fn tabs(&mut self) -> &mut Vec<u16> {
        let columns = self.size.columns;
        self.modes.tabs.get_or_insert_with(|| (0..columns).step_by(8).collect())
    }

    fn tab(&mut self, count: u16) {
        let last = self.size.columns - 1;
        let column = self.grid().cursor.column;
        // Also a cursor past the end stays there, and the next character wraps.
        if column >= last {
            return;
        }
        let next = match &self.modes.tabs {
            None => (column / 8).saturating_add(count).saturating_mul(8),
            Some(tabs) => {
                let behind = tabs.partition_point(|tab| *tab <= column);
                tabs.get(behind + usize::from(count) - 1).copied().unwrap_or(last)
            }
        };
        self.grid_mut().cursor.column = next.min(last);
    }

    fn back_tab(&mut self, count: u16) {
        let column = self.grid().cursor.column;
        let before = match &self.modes.tabs {
            None => column.div_ceil(8).saturating_sub(count) * 8,
            Some(tabs) => {
                let before = tabs.partition_point(|tab| *tab < column);
                before.checked_sub(usize::from(count)).map_or(0, |at| tabs[at])
            }
        };
        self.grid_mut().cursor.column = before;
    }

    fn erase_display(&mut self, mode: u16) {
        let rows = self.size.rows;
        let (row, column) = (self.grid().cursor.row, self.grid().cursor.column);
        match mode {
            0 if row == 0 && column == 0 => self.clear_all(),
            0 => {
                self.erase_line(0);
                self.clear_rows(row + 1, rows);
            }
            1 => {
                self.clear_rows(0, row);
                self.erase_line(1);
            }
            2 => self.clear_all(),
            3 => self.history.clear(),
            _ => {}
        }
    }

    /// A cursor past the end has nothing behind it. A row that is erased as a whole no longer belongs to the line above.
    fn erase_line(&mut self, mode: u16) {
        let columns = self.size.columns;
        let (row, column) = (self.grid().cursor.row, self.grid().cursor.column);
        match mode {
            0 if column >= columns => {}
            0 if column > 0 => self.row_mut().erase(usize::from(column), usize::MAX),
            1 if column + 1 < columns => self.row_mut().erase(0, usize::from(column) + 1),
            0..=2 => self.clear_rows(row, row + 1),
            _ => {}
        }
    }

    fn save_cursor(&mut self) {
        self.saved = Some(self.grid().cursor.clone());
    }

    fn restore_cursor(&mut self) {
        let saved = self.saved.clone().unwrap_or_default();
        self.grid_mut().cursor = Cursor { column: saved.column.min(self.size.columns - 1), ..saved };
    }

    fn private_mode(&mut self, mode: u16, on: bool) {
        match mode {
            1 => self.modes.application_cursor = on,
            6 => {
                self.grid_mut().cursor.origin = on;
                self.move_to(0, 0);
            }
            7 => self.modes.wrap = on,
            25 => self.modes.cursor_hidden = !on,
            47 | 1047 if on => self.enter_alternate(false),
            47 | 1047 => self.leave_alternate(false),
            1048 if on => self.save_cursor(),
            1048 => self.restore_cursor(),
            1049 if on => self.enter_alternate(true),
            1049 => self.leave_alternate(true),
            1004 => self.modes.focus = on,
            2004 => self.modes.bracketed_paste = on,
            9 | 1000..=1003 | 1005 | 1006 | 1015 | 1016 => {
                self.modes.mouse.retain(|known| *known != mode);
                if on {
                    self.modes.mouse.push(mode);
                }
            }
            _ => {}
        }
    }
}
