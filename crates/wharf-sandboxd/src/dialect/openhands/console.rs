//! What OpenHands' agent reads of its shell: the screen of a terminal of 1000 × 1000 with 10,000 lines of history,
//! on which every prompt is a block of ten lines. The original draws that block and searches the screen for it;
//! we draw a stand-in of the same height at each prompt mark, so that what scrolls away and what is left
//! is the same, line by line. Pure.

use crate::{
    screen::{Screen, ScreenSize},
    session::View,
    transcript::ShellFacts,
};

const SIZE: ScreenSize = ScreenSize { rows: 1000, columns: 1000 };
const HISTORY_LINES: usize = 10_000;
/// `###PS1JSON###`, `{`, six fields, `}`, `###PS1END###`.
const LINES_BETWEEN: usize = 8;
/// How much is kept of what the shell says of a line that turns out to be no command.
const LONGEST_REFUSAL: usize = 256 << 10;

/// The terminal of one OpenHands session.
#[derive(Debug)]
pub struct Console {
    screen: Screen,
    block_start: String,
    block_end: String,
    /// While what comes is the echo of a command: what stands for it on the screen.
    echo: Option<String>,
    /// What came behind the last line that the shell has read of that command: if it starts nothing, the reason.
    behind_line: Vec<u8>,
    /// Whether a new shell has not shown its first prompt: what its start-up files print is nobody's, as in the original,
    /// which clears the screen then.
    starting: bool,
    /// Whether nothing was shown since the latest prompt.
    at_prompt: bool,
}

impl Console {
    /// `nonce` makes the stand-in for the prompt unlike anything a program prints.
    pub fn new(nonce: &str) -> Self {
        let mut console = Self {
            screen: Screen::new(SIZE, HISTORY_LINES),
            block_start: format!("\u{f8ff}{nonce}\u{f8ff}<"),
            block_end: format!("\u{f8ff}{nonce}\u{f8ff}>"),
            echo: None,
            behind_line: Vec::new(),
            starting: false,
            at_prompt: false,
        };
        console.draw_prompt();
        console
    }

    /// A fresh screen with one prompt on top, as after Ctrl-L and `clear-history`.
    pub fn clear(&mut self) {
        self.screen = Screen::new(SIZE, HISTORY_LINES);
        self.echo = None;
        self.draw_prompt();
    }

    /// Says that a command is about to be typed: up to the mark of its start all that comes is its echo, which depends on
    /// tabs, width and bracketed paste. As many blank lines stand for it on the screen.
    pub fn expect_echo(&mut self, command: &str) {
        let columns = usize::from(SIZE.columns);
        let rows = |line: &str| 1 + line.chars().count().saturating_sub(1) / columns;
        self.expect("\r\n".repeat(command.split('\n').map(rows).sum()));
    }

    /// The same where the command shall be seen: its plain text stands for the echo.
    pub fn expect_shown_echo(&mut self, command: &str) {
        self.expect(format!("{}\r\n", command.replace('\n', "\r\n")));
    }

    /// Says that a key is about to be pressed: what comes is no echo of a command any more.
    pub fn end_echo(&mut self) {
        if let Some(stand_in) = self.echo.take() {
            self.show(stand_in.as_bytes());
        }
    }

    fn show(&mut self, bytes: &[u8]) {
        self.at_prompt = false;
        self.screen.feed(bytes);
    }

    fn expect(&mut self, stand_in: String) {
        self.echo = Some(stand_in);
        self.behind_line.clear();
    }

    /// History and screen as text, each line without trailing white space, without blank lines at the end.
    pub fn capture(&self) -> Capture {
        let text = self.screen.text();
        let text = text.trim_end_matches('\n');
        let mut prompts = Vec::new();
        let mut from = 0;
        while let Some(start) = find_line(text, &self.block_start, from) {
            let Some(end) = find_line(text, &self.block_end, start) else { break };
            let end = end + self.block_end.len();
            prompts.push(start..end);
            from = end;
        }
        Capture { text: text.to_owned(), prompts }
    }

    fn draw_prompt(&mut self) {
        let mut block = format!("\r\n{}", self.block_start);
        for _ in 0..=LINES_BETWEEN {
            block.push_str("\r\n");
        }
        block.push_str(&self.block_end);
        block.push_str("\r\n");
        self.screen.feed(block.as_bytes());
        self.at_prompt = true;
    }
}

/// The start of the first line from `from` on that is `line`.
fn find_line(text: &str, line: &str, from: usize) -> Option<usize> {
    text[from..].match_indices(line).map(|(at, _)| from + at).find(|at| *at == 0 || text.as_bytes()[at - 1] == b'\n')
}

impl View for Console {
    fn output(&mut self, bytes: &[u8]) {
        if self.starting {
            return;
        }
        if self.echo.is_some() {
            let room = LONGEST_REFUSAL.saturating_sub(self.behind_line.len());
            self.behind_line.extend_from_slice(&bytes[..bytes.len().min(room)]);
        } else {
            self.show(bytes);
        }
    }

    fn shell_started(&mut self) {
        self.end_echo();
        self.starting = true;
    }

    fn line_read(&mut self) {
        self.behind_line.clear();
    }

    fn command_started(&mut self) {
        self.end_echo();
    }

    fn prompt_shown(&mut self, _: &ShellFacts) {
        if std::mem::take(&mut self.starting) && self.at_prompt {
            return;
        }
        if let Some(stand_in) = self.echo.take() {
            self.show(stand_in.as_bytes());
            self.screen.feed(&self.behind_line);
        }
        self.draw_prompt();
    }

    fn reset(&mut self) {
        self.clear();
    }

    fn screen(&mut self) -> &mut Screen {
        &mut self.screen
    }
}

/// The text of a console and where the prompts stand in it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capture {
    pub text: String,
    prompts: Vec<std::ops::Range<usize>>,
}

impl Capture {
    /// Whether the first prompt, after which the command was typed, has scrolled away.
    pub fn lost_its_start(&self) -> bool {
        self.prompts.len() == 1
    }

    /// What stands before the only prompt that is left.
    pub fn before_last_prompt(&self) -> &str {
        self.prompts.last().map_or(&self.text, |prompt| &self.text[..prompt.start])
    }

    /// What stands between the prompts and after the last one.
    pub fn between_prompts(&self) -> String {
        let Some(last) = self.prompts.last() else { return self.text.clone() };
        let after = |end: usize| (end + 1).min(self.text.len());
        let mut out = String::new();
        for pair in self.prompts.windows(2) {
            let (from, to) = (after(pair[0].end), pair[1].start);
            out.push_str(self.text.get(from..to).unwrap_or_default());
            out.push('\n');
        }
        out.push_str(self.text.get(after(last.end)..).unwrap_or_default());
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finished(output: &[u8]) -> Capture {
        let mut console = Console::new("x");
        console.expect_echo("cmd");
        console.output(b"\x1b[7mcmd\x1b[27m\r\n\x1b[?2004l");
        console.line_read();
        console.command_started();
        console.output(output);
        console.prompt_shown(&ShellFacts::default());
        console.capture()
    }

    #[test]
    fn the_command_and_its_output_stand_between_two_prompts() {
        assert_eq!(finished(b"a\r\n\r\n  b\r\n").between_prompts(), "\na\n\n  b\n\n\n");
        assert_eq!(finished(b"abc").between_prompts(), "\nabc\n\n");
    }

    #[test]
    fn what_is_no_command_shows_only_what_the_shell_says_of_it() {
        let mut console = Console::new("x");
        console.expect_echo("echo )");
        console.output(b"echo )\r\n\x1b[?2004l");
        console.line_read();
        console.output(b"\rbash: syntax error\r\n");
        console.prompt_shown(&ShellFacts::default());
        assert_eq!(console.capture().between_prompts().trim(), "bash: syntax error");
    }

    #[test]
    fn what_was_printed_before_a_command_was_typed_is_kept() {
        let mut console = Console::new("x");
        console.output(b"from the background\r\n");
        console.expect_echo("cmd");
        console.output(b"cmd\r\n\x1b[?2004l");
        console.line_read();
        console.command_started();
        console.output(b"mine\r\n");
        console.prompt_shown(&ShellFacts::default());
        assert_eq!(console.capture().between_prompts().trim(), "from the background\n\nmine");
    }

    #[test]
    fn twelve_thousand_lines_leave_as_many_as_in_the_recording() {
        let output: String = (1..=12_000).map(|n| format!("{n}\r\n")).collect();
        let capture = finished(output.as_bytes());
        assert!(capture.lost_its_start());
        let left = capture.before_last_prompt();
        assert!(left.starts_with("1989\n"), "{}", &left[..20]);
        assert_eq!(left.lines().count(), 10_013);
    }

    #[test]
    fn clearing_the_screen_loses_the_start() {
        let capture = finished(b"\x1b[H\x1b[2J\x1b[3Jafter clear\r\n");
        assert!(capture.lost_its_start());
        assert_eq!(capture.before_last_prompt().lines().count(), 2);
    }

    #[test]
    fn what_start_up_files_print_is_nobodys_and_what_the_shell_before_printed_stays() {
        let mut console = Console::new("x");
        console.shell_started();
        console.output(b"welcome\r\n");
        console.prompt_shown(&ShellFacts::default());
        assert_eq!(console.capture(), Console::new("x").capture());
        console.output(b"last words\r\n");
        console.shell_started();
        console.output(b"welcome again\r\n");
        console.prompt_shown(&ShellFacts::default());
        console.output(b"mine\r\n");
        assert_eq!(console.capture().between_prompts().trim(), "last words\n\n\nmine");
    }
}
