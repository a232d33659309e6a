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

/// Undoes what a program that is still running has done to the terminal: alternate screen, hidden cursor, mouse, paste
/// and key modes, colours.
pub(crate) fn leave_program(alternate: bool) {
    const MODES: &str = "\x1b[?25h\x1b[?2004l\x1b[?1000l\x1b[?1002l\x1b[?1003l\x1b[?1006l\x1b[?1l\x1b>\x1b[0m";
    let screen = if alternate { "\x1b[?1049l" } else { "" };
    let mut out = io::stdout();
    // A terminal that has gone needs nothing back.
    let _ = write!(out, "{screen}{MODES}").and_then(|()| out.flush());
}

/// The terminal's size, or the usual one if there is no terminal.
pub(crate) fn size() -> TerminalSize {
    match tcgetwinsize(io::stdout()).or_else(|_| tcgetwinsize(io::stdin())) {
        Ok(size) if size.ws_row > 0 && size.ws_col > 0 => TerminalSize { rows: size.ws_row, columns: size.ws_col },
        _ => TerminalSize::default(),
    }
}

/// Whether standard input is a terminal.
pub(crate) fn is_interactive() -> bool {
    io::stdin().is_terminal()
}
