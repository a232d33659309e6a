//! What a shell's terminal says: bytes in, output and marks out. Pure.
//!
//! The start-up file of a session (`session/startup.bash`) makes bash write operating-system commands
//! (OSC, ECMA-48 8.3.89) with a number of our own and the session's nonce:
//!
//! ```text
//! ESC ] 7777 ; NONCE ; C BEL                 a command was read and starts (PS0)
//! ESC ] 7777 ; NONCE ; P BEL                 the shell wants more of a command (PS2)
//! ESC ] 7777 ; NONCE ; B US fields … BEL     the shell waits for input (PS1)
//! ```
//!
//! Fields are separated by US (0x1f) and quoted by bash so that no control character stands in them. A sequence
//! with another number or nonce is ordinary output, so a program that prints an old recording changes nothing.

/// What the shell knows when it shows its prompt. A field that the shell did not tell is `None`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ShellFacts {
    /// The shell's process id and its count of prompts: a prompt that is only painted again has the same.
    pub prompt: Option<String>,
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

/// One thing that happened on the terminal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    Output(Vec<u8>),
    /// The shell read a whole command; what follows is its output.
    CommandStarted,
    /// What was typed is not a whole command yet.
    MoreWanted,
    /// The shell waits for input. The terminal is in readline's hands already.
    PromptShown(ShellFacts),
}

/// A mark that is longer than this is dropped: the longest path has 4096 bytes, each at most 4 when quoted.
const LONGEST_MARK: usize = 20_000;

const US: u8 = 0x1f;
const BEL: u8 = 0x07;

/// The parser's state between two reads.
#[derive(Debug)]
pub struct Transcript {
    /// `ESC ] 7777 ; NONCE ;`
    prefix: Vec<u8>,
    state: State,
}

#[derive(Debug)]
enum State {
    Output,
    /// So many bytes of the prefix have been seen.
    Prefix(usize),
    Mark(Vec<u8>),
    /// Inside a mark that was too long.
    Oversized,
}

impl Transcript {
    /// `nonce` is random for each session and consists of letters and digits.
    pub fn new(nonce: &str) -> Self {
        Self { prefix: format!("\x1b]7777;{nonce};").into_bytes(), state: State::Output }
    }

    /// Reads the next bytes. Any split of the same bytes gives the same events, but for where output is cut.
    pub fn feed(&mut self, mut bytes: &[u8]) -> Vec<Event> {
        let mut events = Vec::new();
        while !bytes.is_empty() {
            bytes = match &mut self.state {
                State::Output => {
                    let start = memchr::memchr(self.prefix[0], bytes).unwrap_or(bytes.len());
                    push_output(&mut events, &bytes[..start]);
                    if start < bytes.len() {
                        self.state = State::Prefix(1);
                    }
                    bytes.get(start + 1..).unwrap_or_default()
                }
                State::Prefix(seen) => {
                    if bytes[0] == self.prefix[*seen] {
                        *seen += 1;
                        if *seen == self.prefix.len() {
                            self.state = State::Mark(Vec::new());
                        }
                        &bytes[1..]
                    } else {
                        // ESC stands only at the prefix's start, so the byte that does not fit may begin a new one.
                        push_output(&mut events, &self.prefix[..*seen]);
                        self.state = State::Output;
                        bytes
                    }
                }
                State::Mark(mark) => {
                    let end = memchr::memchr(BEL, bytes);
                    mark.extend_from_slice(&bytes[..end.unwrap_or(bytes.len())]);
                    if mark.len() > LONGEST_MARK {
                        self.state = if end.is_some() { State::Output } else { State::Oversized };
                    } else if end.is_some() {
                        events.extend(parse_mark(mark));
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
        events
    }
}

fn push_output(events: &mut Vec<Event>, bytes: &[u8]) {
    match events.last_mut() {
        _ if bytes.is_empty() => {}
        Some(Event::Output(output)) => output.extend_from_slice(bytes),
        _ => events.push(Event::Output(bytes.to_vec())),
    }
}

/// `None` for a mark of no known kind.
fn parse_mark(mark: &[u8]) -> Option<Event> {
    let mut fields = mark.split(|byte| *byte == US);
    let kind = fields.next()?;
    let mut text = || fields.next().map(unquote).filter(|text| !text.is_empty());
    let mut facts = || ShellFacts {
        prompt: text(),
        exit_code: text().and_then(|code| code.parse().ok()),
        background_pid: text().and_then(|pid| pid.parse().ok()),
        uid: text().and_then(|uid| uid.parse().ok()),
        hostname: text(),
        working_dir: text(),
        python: text(),
    };
    match kind {
        b"C" => Some(Event::CommandStarted),
        b"P" => Some(Event::MoreWanted),
        b"B" => Some(Event::PromptShown(facts())),
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

    const NONCE: &str = "n0nce";

    #[track_caller]
    fn check(chunks: &[&str], expected: &[Event]) {
        let mut transcript = Transcript::new(NONCE);
        let events: Vec<Event> = chunks.iter().flat_map(|chunk| transcript.feed(chunk.as_bytes())).collect();
        assert_eq!(events, expected);
    }

    fn output(text: &str) -> Event {
        Event::Output(text.as_bytes().to_vec())
    }

    #[test]
    fn an_end_mark_split_across_two_reads_still_ends_the_command() {
        let facts = ShellFacts {
            prompt: Some("7:1".into()),
            exit_code: Some(3),
            working_dir: Some("/a b\n'".into()),
            uid: Some(1000),
            hostname: Some("vm".into()),
            ..ShellFacts::default()
        };
        check(
            &["hi\r\n\x1b]7777;n0n", "ce;B\x1f7:1\x1f3\x1f\x1f1000\x1fvm\x1f$'/a b\\n\\''\x1f\x07", "rest"],
            &[output("hi\r\n"), Event::PromptShown(facts), output("rest")],
        );
    }

    #[test]
    fn a_mark_with_another_nonce_is_output() {
        check(&["\x1b]7777;other;B\x1f0\x07"], &[output("\x1b]7777;other;B\x1f0\x07")]);
    }

    #[test]
    fn an_escape_that_begins_no_mark_is_kept_even_before_a_mark() {
        check(
            &["\x1b\x1b]77", "\x1b]7777;n0nce;C\x07x"],
            &[output("\x1b"), output("\x1b]77"), Event::CommandStarted, output("x")],
        );
    }

    #[test]
    fn an_endless_mark_is_dropped_and_does_not_grow_memory() {
        let mut transcript = Transcript::new(NONCE);
        assert_eq!(transcript.feed(b"\x1b]7777;n0nce;B"), []);
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
                Just(b"\x1b]7777;n0nce;C\x07".to_vec()),
                Just(b"\x1b]7777;n0nce;B\x1f1:1\x1f1\x1f\x1f0\x1fh\x1f/\x1f\x07".to_vec()),
                Just(b"\x1b]7777;n0".to_vec()),
                Just(b"\x1b".to_vec()),
                proptest::collection::vec(any::<u8>(), 0..10),
            ], 0..12),
            cuts in proptest::collection::vec(0usize..200, 0..8),
        ) {
            let bytes = pieces.concat();
            let whole = merged(Transcript::new(NONCE).feed(&bytes));
            let mut cuts: Vec<usize> = cuts.into_iter().map(|cut| cut.min(bytes.len())).collect();
            cuts.extend([0, bytes.len()]);
            cuts.sort_unstable();
            let mut transcript = Transcript::new(NONCE);
            let split = merged(cuts.windows(2).flat_map(|cut| transcript.feed(&bytes[cut[0]..cut[1]])).collect());
            prop_assert_eq!(split, whole);
        }
    }
}
