//! The user's terminal: raw while a sandbox's terminal is shown on it, and given back however this ends.

use std::io::{self, IsTerminal, Write};

use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr};
use wharf_protocol::TerminalSize;

/// Puts the terminal back when it is dropped.
#[derive(Debug)]
pub(crate) struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    /// Makes the terminal raw: every key goes to the sandbox.
    ///
    /// # Errors
    ///
    /// When standard input is no terminal.
    pub(crate) fn enter() -> io::Result<Self> {
        let before = tcgetattr(io::stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw)?;
        Ok(Self { before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        // A terminal that has gone needs nothing back.
        let _ = tcsetattr(io::stdin(), OptionalActions::Flush, &self.before);
    }
}

/// Undoes what a program that is still running has done to the terminal, where it stands: alternate screen, scroll
/// region, hidden cursor, line drawing, mouse, paste and key modes, colours.
pub(crate) fn leave_program(alternate: bool) {
    let mut out = io::stdout();
    // A terminal that has gone needs nothing back.
    let _ = out.write_all(leaving(alternate).as_bytes()).and_then(|()| out.flush());
}

fn leaving(alternate: bool) -> String {
    let screen = if alternate { "\x1b[?1049l" } else { "" };
    // Both lead to the corner of the screen; a restored cursor brings its line drawing along.
    const REGION: &str = "\x1b7\x1b[r\x1b[?6l\x1b8";
    // The first is for terminals whose restored cursor brings origin mode along too.
    const MODES: &str = "\x1b[!p\x1b[?7h\x1b[4l\x1b[20l\x1b(B\x1b)B\x0f\
        \x1b[?25h\x1b[?2004l\x1b[?1004l\x1b[?1l\x1b>\x1b[0m\
        \x1b[?9l\x1b[?1000l\x1b[?1001l\x1b[?1002l\x1b[?1003l\x1b[?1005l\x1b[?1006l\x1b[?1015l\x1b[?1016l";
    format!("{screen}{REGION}{MODES}")
}

/// The terminal's size, or the usual one if there is no terminal.
pub(crate) fn size() -> TerminalSize {
    match tcgetwinsize(io::stdout()).or_else(|_| tcgetwinsize(io::stdin())) {
        Ok(size) if size.ws_row > 0 && size.ws_col > 0 => taken(size.ws_row, size.ws_col),
        _ => TerminalSize::default(),
    }
}

/// The most of a terminal that a sandbox takes. What lies beyond stays empty.
fn taken(rows: u16, columns: u16) -> TerminalSize {
    const MOST: u16 = 4096;
    const MOST_CELLS: u32 = 1 << 20;
    let rows = rows.min(MOST);
    let columns = u32::from(columns.min(MOST)).min(MOST_CELLS / u32::from(rows));
    TerminalSize { rows, columns: columns as u16 }
}

/// Whether standard input is a terminal.
pub(crate) fn is_interactive() -> bool {
    io::stdin().is_terminal()
}

#[cfg(test)]
mod tests {
    use wharf_sandboxd::screen::{Screen, ScreenSize};

    use super::*;

    #[test]
    fn a_huge_terminal_is_used_in_part() {
        for (rows, columns, used) in
            [(24, 80, (24, 80)), (2, 60_000, (2, 4096)), (60_000, 1, (4096, 1)), (5000, 5000, (4096, 256))]
        {
            let TerminalSize { rows, columns } = taken(rows, columns);
            assert_eq!((rows, columns), used);
        }
    }

    #[test]
    fn whatever_a_program_set_is_undone_where_the_cursor_stands() {
        let region_and_origin = "\x1b[2;3r\x1b[?6h";
        for set in
            ["", "\x1b[2;3r", region_and_origin, "\x1b(0", "\x1b)0\x0e", "\x1b[4h", "\x1b[20h", "\x1b[?7l", "\x1b[31m"]
        {
            for alternate in [false, true] {
                let mut screen = Screen::new(ScreenSize { rows: 4, columns: 10 }, 100);
                let before = if alternate { "" } else { set };
                screen.feed(format!("{before}\x1b[2;3H").as_bytes());
                let stood = screen.cursor();
                if alternate {
                    screen.feed(format!("\x1b[?1049h\x1b[H{set}").as_bytes());
                }
                screen.feed(leaving(alternate).as_bytes());
                assert!(screen.cursor() == stood && !screen.is_alternate(), "{set:?} {:?}", screen.cursor());
                screen.feed(b"\x1b[4;9Hqqq\n\nx\x1b[1;1Ha");
                assert_eq!(screen.visible_text(), "a       qq\nq\n\n x", "{set:?}");
            }
        }
    }

    #[test]
    fn modes_that_a_redraw_sets_are_all_reset() {
        let mut screen = Screen::new(ScreenSize { rows: 4, columns: 10 }, 100);
        for mode in 1..3000 {
            screen.feed(format!("\x1b[?{mode}h").as_bytes());
        }
        screen.feed(leaving(true).as_bytes());
        let blank = Screen::new(ScreenSize { rows: 4, columns: 10 }, 100);
        assert_eq!(String::from_utf8(screen.redraw()), String::from_utf8(blank.redraw()));
    }
}
