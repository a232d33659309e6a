//! What a shell's terminal says: bytes in, output and marks out. Pure.
//!
//! The start-up file of a session (`session/startup.bash`) makes bash write operating-system commands
//! (OSC, ECMA-48 8.3.89) with a number of our own and a nonce of the shell's own:
//!
//! ```text
//! ESC ] 7777 ; NONCE ; C US count BEL            a command was read and starts (PS0)
//! ESC ] 7777 ; NONCE ; B US count US fields … BEL   the shell waits for a command (PROMPT_COMMAND)
//! ```
//!
//! Fields are separated by US (0x1f) and quoted by bash so that no control character stands in them. `count` is that of
//! the shell's prompts: a mark that comes again, from a recording of the terminal, has an old one. A sequence with
//! another number or an unknown nonce is ordinary output.

/// What the shell knows when it shows its prompt. A field that the shell did not tell is `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ShellFacts {
    /// Whether what the shell shows of a command that is typed comes to the terminal, and the mark of its start with it:
    /// not while its standard error leads elsewhere.
    pub echoes: bool,
    /// Whether the terminal edits lines because readline is switched off.
    pub cooked: bool,
    /// Whether the shell's own builtins are out of reach, behind a function or switched off.
    pub robbed: bool,
    pub exit_code: Option<i32>,
    /// The process id of the latest background job.
    pub background_pid: Option<i64>,
    pub uid: Option<u32>,
    pub hostname: Option<String>,
    /// The shell's own idea of its directory, which may go through symlinks.
    pub working_dir: Option<String>,
    /// The first `python` in the shell's `PATH`.
    pub python: Option<String>,
}

/// A shell that may write marks: the place of its nonce among those that were added.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Author(usize);

/// One thing that happened on the terminal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    Output(Vec<u8>),
    /// A shell read a whole command, the first one at its prompt of this count or one more; what follows is output.
    CommandStarted {
        author: Author,
        count: u64,
    },
    /// Readline takes the terminal for a line: it switched bracketed paste on, and will paint a prompt.
    LineBegun,
    /// Readline has read a line: it switched bracketed paste off, and what it shows of the line is over.
    LineRead,
    /// A shell will wait for input once readline has taken the terminal.
    PromptShown {
        author: Author,
        count: u64,
        facts: ShellFacts,
    },
}

/// A mark that is longer than this is dropped: the longest path has 4096 bytes, each at most 4 when quoted.
const LONGEST_MARK: usize = 20_000;
/// Every nonce has so many letters and digits.
pub const NONCE_LETTERS: usize = 32;

const PREFIX: &[u8] = b"\x1b]7777;";
/// Bracketed paste on (`h`) or off (`l`).
const PASTING: &[u8] = b"\x1b[?2004";
const US: u8 = 0x1f;
const BEL: u8 = 0x07;

/// The parser's state between two reads.
#[derive(Debug, Default)]
pub struct Transcript {
    nonces: Vec<String>,
    state: State,
    /// How much of [`PASTING`] the output ends with.
    pasting: usize,
}

#[derive(Debug, Default)]
enum State {
    #[default]
    Output,
    /// What has been seen of the prefix, the nonce and the `;` behind it.
    Prefix(Vec<u8>),
    Mark(Author, Vec<u8>),
    /// Inside a mark that was too long.
    Oversized,
}

impl Transcript {
    /// Makes the marks with `nonce` count from now on: random, [`NONCE_LETTERS`] letters and digits.
    pub fn add(&mut self, nonce: String) -> Author {
        debug_assert_eq!(nonce.len(), NONCE_LETTERS, "the parser waits for so many letters");
        self.nonces.push(nonce);
        Author(self.nonces.len() - 1)
    }

    /// Gives a shell another nonce; marks with the one before no longer count.
    pub fn replace(&mut self, author: Author, nonce: String) {
        self.nonces[author.0] = nonce;
    }

    /// Reads the next bytes. Any split of the same bytes gives the same events, but for where output is cut.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Vec<Event> {
        let mut events = Vec::new();
        while !bytes.is_empty() {
            bytes = match &mut self.state {
                State::Output => {
                    let start = memchr::memchr(PREFIX[0], bytes).unwrap_or(bytes.len());
                    push_output(&mut events, &bytes[..start]);
                    if start < bytes.len() {
                        self.state = State::Prefix(vec![PREFIX[0]]);
                    }
                    bytes.get(start + 1..).unwrap_or_default()
                }
                State::Prefix(seen) => {
                    let byte = bytes[0];
                    let fits = match seen.len() {
                        at if at < PREFIX.len() => byte == PREFIX[at],
                        at if at < PREFIX.len() + NONCE_LETTERS => byte.is_ascii_alphanumeric(),
                        _ => byte == b';',
                    };
                    let author = if fits && seen.len() == PREFIX.len() + NONCE_LETTERS {
                        self.nonces.iter().position(|nonce| nonce.as_bytes() == &seen[PREFIX.len()..]).map(Author)
                    } else {
                        None
                    };
                    match author {
                        Some(author) => {
                            self.state = State::Mark(author, Vec::new());
                            &bytes[1..]
                        }
                        None if fits && seen.len() < PREFIX.len() + NONCE_LETTERS => {
                            seen.push(byte);
                            &bytes[1..]
                        }
                        None => {
                            // ESC stands only at the prefix's start, so the byte that does not fit may begin a new one.
                            push_output(&mut events, seen);
                            self.state = State::Output;
                            bytes
                        }
                    }
                }
                State::Mark(author, mark) => {
                    let end = memchr::memchr(BEL, bytes);
                    mark.extend_from_slice(&bytes[..end.unwrap_or(bytes.len())]);
                    if mark.len() > LONGEST_MARK {
                        self.state = if end.is_some() { State::Output } else { State::Oversized };
                    } else if end.is_some() {
                        events.extend(parse_mark(*author, mark));
                        self.state = State::Output;
                    }
                    end.map_or(&[][..], |end| &bytes[end + 1..])
                }
                State::Oversized => match memchr::memchr(BEL, bytes) {
                    Some(end) => {
                        self.state = State::Output;
                        &bytes[end + 1..]
                    }
                    None => &[],
                },
            };
        }
        let mut split = Vec::with_capacity(events.len());
        for event in events {
            match event {
                Event::Output(output) => self.split_at_lines_read(output, &mut split),
                other => split.push(other),
            }
        }
        split
    }

    /// Says behind the bytes with which readline begins or ends a line that it did.
    fn split_at_lines_read(&mut self, mut output: Vec<u8>, events: &mut Vec<Event>) {
        let mut at = 0;
        while at < output.len() {
            if self.pasting == 0 {
                let Some(escape) = memchr::memchr(PASTING[0], &output[at..]) else { break };
                self.pasting = 1;
                at += escape + 1;
            } else if self.pasting < PASTING.len() && output[at] == PASTING[self.pasting] {
                self.pasting += 1;
                at += 1;
            } else {
                let event = match output[at] {
                    b'h' if self.pasting == PASTING.len() => Some(Event::LineBegun),
                    b'l' if self.pasting == PASTING.len() => Some(Event::LineRead),
                    _ => None,
                };
                self.pasting = 0;
                if let Some(event) = event {
                    let rest = output.split_off(at + 1);
                    events.push(Event::Output(std::mem::replace(&mut output, rest)));
                    events.push(event);
                    at = 0;
                }
            }
        }
        if !output.is_empty() {
            events.push(Event::Output(output));
        }
    }
}

fn push_output(events: &mut Vec<Event>, bytes: &[u8]) {
    match events.last_mut() {
        _ if bytes.is_empty() => {}
        Some(Event::Output(output)) => output.extend_from_slice(bytes),
        _ => events.push(Event::Output(bytes.to_vec())),
    }
}

/// `None` for a mark of no known kind, or without its count.
fn parse_mark(author: Author, mark: &[u8]) -> Option<Event> {
    let mut fields = mark.split(|byte| *byte == US);
    let kind = fields.next()?;
    let mut text = || fields.next().map(unquote).filter(|text| !text.is_empty());
    let count = text()?.parse().ok()?;
    match kind {
        b"C" => Some(Event::CommandStarted { author, count }),
        b"B" => {
            let facts = ShellFacts {
                echoes: text().as_deref() == Some("1"),
                exit_code: text().and_then(|code| code.parse().ok()),
                background_pid: text().and_then(|pid| pid.parse().ok()),
                uid: text().and_then(|uid| uid.parse().ok()),
                hostname: text(),
                working_dir: text(),
                python: text(),
                cooked: text().as_deref() == Some("1"),
                robbed: text().as_deref() == Some("0"),
            };
            Some(Event::PromptShown { author, count, facts })
        }
        _ => None,
    }
}

/// Takes bash's quoting (`${name@Q}`) off. Bytes that are not UTF-8 are replaced.
fn unquote(quoted: &[u8]) -> String {
    let mut out = Vec::with_capacity(quoted.len());
    let mut rest = quoted;
    while let Some((&byte, tail)) = rest.split_first() {
        rest = match byte {
            b'\\' => match tail.split_first() {
                Some((&escaped, tail)) => {
                    out.push(escaped);
                    tail
                }
                None => tail,
            },
            b'\'' => {
                let end = memchr::memchr(b'\'', tail).unwrap_or(tail.len());
                out.extend_from_slice(&tail[..end]);
                tail.get(end + 1..).unwrap_or_default()
            }
            b'$' if tail.first() == Some(&b'\'') => unquote_ansi_c(&tail[1..], &mut out),
            _ => {
                out.push(byte);
                tail
            }
        };
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// The inside of `$'…'`; gives what follows the closing quote.
fn unquote_ansi_c<'a>(mut rest: &'a [u8], out: &mut Vec<u8>) -> &'a [u8] {
    while let Some((&byte, tail)) = rest.split_first() {
        rest = tail;
        match byte {
            b'\'' => return rest,
            b'\\' => {
                let Some((&escape, tail)) = rest.split_first() else { return rest };
                rest = tail;
                out.push(match escape {
                    b'a' => 0x07,
                    b'b' => 0x08,
                    b'e' | b'E' => 0x1b,
                    b'f' => 0x0c,
                    b'n' => b'\n',
                    b'r' => b'\r',
                    b't' => b'\t',
                    b'v' => 0x0b,
                    b'0'..=b'7' => {
                        let mut value = u32::from(escape - b'0');
                        for _ in 0..2 {
                            let Some((&digit @ b'0'..=b'7', tail)) = rest.split_first() else { break };
                            value = value * 8 + u32::from(digit - b'0');
                            rest = tail;
                        }
                        value as u8
                    }
                    other => other,
                });
            }
            _ => out.push(byte),
        }
    }
    rest
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NONCE: &str = "0123456789abcdef0123456789abcdef";

    fn transcript() -> Transcript {
        let mut transcript = Transcript::default();
        transcript.add(NONCE.to_owned());
        transcript
    }

    /// `N` stands for the nonce.
    #[track_caller]
    fn check(chunks: &[&str], expected: &[Event]) {
        let mut transcript = transcript();
        let events: Vec<Event> =
            chunks.iter().flat_map(|chunk| transcript.feed(chunk.replace('N', NONCE).as_bytes())).collect();
        assert_eq!(events, expected);
    }

    fn output(text: &str) -> Event {
        Event::Output(text.replace('N', NONCE).into_bytes())
    }

    #[test]
    fn an_end_mark_split_across_two_reads_still_ends_the_command() {
        let facts = ShellFacts {
            echoes: true,
            exit_code: Some(3),
            working_dir: Some("/a b\n'".into()),
            uid: Some(1000),
            hostname: Some("vm".into()),
            ..ShellFacts::default()
        };
        check(
            &["hi\r\n\x1b]77", "77;N;B\x1f7\x1f1\x1f3\x1f\x1f1000\x1fvm\x1f$'/a b\\n\\''\x1f\x07", "rest"],
            &[output("hi\r\n"), Event::PromptShown { author: Author(0), count: 7, facts }, output("rest")],
        );
    }

    #[test]
    fn a_mark_with_another_nonce_is_output() {
        let other = "\x1b]7777;0123456789abcdef0123456789abcdeF;B\x1f0\x1f1\x07";
        check(&[other], &[output(other)]);
        check(&["\x1b]7777;short;B\x1f0\x07"], &[output("\x1b]7777;short;B\x1f0\x07")]);
    }

    #[test]
    fn a_mark_without_a_count_is_no_mark() {
        check(&["a\x1b]7777;N;B\x07\x1b]7777;N;Bx\x1fx\x07\x1b]7777;N;C\x1f-1\x07b"], &[output("ab")]);
    }

    #[test]
    fn an_escape_that_begins_no_mark_is_kept_even_before_a_mark() {
        check(
            &["\x1b\x1b]77", "\x1b]7777;N;C\x1f4\x07x"],
            &[output("\x1b"), output("\x1b]77"), Event::CommandStarted { author: Author(0), count: 4 }, output("x")],
        );
    }

    #[test]
    fn the_end_of_a_line_is_told_behind_its_bytes() {
        check(
            &["echo\x1b[?20", "04l\rerror\x1b[?2004h"],
            &[output("echo\x1b[?20"), output("04l"), Event::LineRead, output("\rerror\x1b[?2004h"), Event::LineBegun],
        );
    }

    #[test]
    fn an_endless_mark_is_dropped_and_does_not_grow_memory() {
        let mut transcript = transcript();
        assert_eq!(transcript.feed(format!("\x1b]7777;{NONCE};B").as_bytes()), []);
        for _ in 0..100 {
            assert_eq!(transcript.feed(&[b'x'; 1000]), []);
        }
        assert!(matches!(transcript.state, State::Oversized));
        assert_eq!(transcript.feed(b"\x07after"), [output("after")]);
    }

    #[test]
    fn bash_quoting_comes_off() {
        for (quoted, plain) in [
            ("/plain", "/plain"),
            (r"/a\ b\;c", "/a b;c"),
            (r"$'\E]7777;x\a\037\303\251'", "\x1b]7777;x\x07\x1f\u{e9}"),
            (r"'it'\''s'", "it's"),
            (r"$'unclosed\", "unclosed"),
        ] {
            assert_eq!(unquote(quoted.as_bytes()), plain, "{quoted}");
        }
    }

    fn merged(events: Vec<Event>) -> Vec<Event> {
        let mut out: Vec<Event> = Vec::new();
        for event in events {
            match (out.last_mut(), event) {
                (Some(Event::Output(before)), Event::Output(more)) => before.extend(more),
                (_, event) => out.push(event),
            }
        }
        out
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_events(
            pieces in proptest::collection::vec(prop_oneof![
                Just(format!("\x1b]7777;{NONCE};C\x1f1\x07").into_bytes()),
                Just(format!("\x1b]7777;{NONCE};B\x1f1\x1f1\x1f1\x1f\x1f0\x1fh\x1f/\x1f\x07").into_bytes()),
                Just(format!("\x1b]7777;{}", &NONCE[..9]).into_bytes()),
                Just(format!("\x1b]7777;{NONCE}").into_bytes()),
                Just(b"\x1b".to_vec()),
                Just(b"\x1b[?2004l".to_vec()),
                proptest::collection::vec(any::<u8>(), 0..10),
            ], 0..12),
            cuts in proptest::collection::vec(0usize..400, 0..8),
        ) {
            let bytes = pieces.concat();
            let whole = merged(transcript().feed(&bytes));
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let mut transcript = transcript();
            let split = merged(cuts.windows(2).flat_map(|cut| transcript.feed(&bytes[cut[0]..cut[1]])).collect());
            prop_assert_eq!(split, whole);
        }
    }
}
