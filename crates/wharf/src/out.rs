//! Our own standard output and error. What cannot be written is an error with its reason; a reader that has gone is not.

use std::{
    fmt,
    fs::File,
    io::{self, Write},
};

use bytes::Bytes;
use tokio::{sync::mpsc, task::JoinHandle};
use wharf_protocol::Stream;

/// Pieces of output that wait to be written while their reader is slow.
const WAITING_PIECES: usize = 8;

/// Standard output takes no more.
#[derive(Debug, thiserror::Error)]
#[error("could not write to standard {stream}")]
pub(crate) struct CouldNotWrite {
    stream: &'static str,
    source: io::Error,
}

impl CouldNotWrite {
    pub(crate) fn output(source: io::Error) -> Self {
        Self { stream: "output", source }
    }

    /// Whether nobody reads any more: that ends quietly, as for any program in a pipe.
    pub(crate) fn nobody_reads(&self) -> bool {
        self.source.kind() == io::ErrorKind::BrokenPipe
    }

    /// Whether it was a terminal that has gone.
    pub(crate) fn terminal_has_gone(&self) -> bool {
        self.source.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error())
    }
}

/// Writes to standard output, to the last byte.
pub(crate) fn write(bytes: &[u8]) -> Result<(), CouldNotWrite> {
    let mut out = io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(CouldNotWrite::output)
}

/// Writes one line to standard output, without colours where it is no terminal.
pub(crate) fn line(text: impl fmt::Display) -> Result<(), CouldNotWrite> {
    let mut out = anstream::stdout().lock();
    writeln!(out, "{text}").and_then(|()| out.flush()).map_err(CouldNotWrite::output)
}

/// Says something on standard error. If that takes nothing, nobody wants to know.
///
/// What is in it may come from a sandbox: of what a terminal would obey only the ends of our own lines are left.
pub(crate) fn say(text: fmt::Arguments<'_>) {
    let text = escaped(&text.to_string(), |character| matches!(character, '\n' | '\r'));
    let _ = writeln!(anstream::stderr(), "{text}");
}

/// What a sandbox says, on one line and without what a terminal would obey.
pub(crate) fn printable(text: &str) -> String {
    escaped(text, |_| false)
}

/// A text of several lines without what a terminal would obey.
pub(crate) fn printable_lines(text: &str) -> String {
    escaped(text, |character| character == '\n')
}

fn escaped(text: &str, is_kept: impl Fn(char) -> bool) -> String {
    let mut shown = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() && !is_kept(character) {
            shown.extend(character.escape_default());
        } else {
            shown.push(character);
        }
    }
    shown
}

/// `eprintln!` that does not panic where standard error has gone or is full.
macro_rules! note {
    () => { $crate::out::say(format_args!("")) };
    ($($text:tt)*) => { $crate::out::say(format_args!($($text)*)) };
}
pub(crate) use note;

/// Writes both streams beside everything else: a reader that does not read holds up neither signals nor input.
#[derive(Debug)]
pub(crate) struct Writer {
    pieces: mpsc::Sender<(Stream, Bytes)>,
    writing: JoinHandle<Result<(), CouldNotWrite>>,
}

impl Writer {
    pub(crate) fn start() -> Self {
        let (pieces, mut waiting) = mpsc::channel::<(Stream, Bytes)>(WAITING_PIECES);
        let writing = tokio::task::spawn_blocking(move || {
            // Whatever else is written there is written to its end.
            let open =
                |stream, name: io::Result<_>| name.map(File::from).map_err(|source| CouldNotWrite { stream, source });
            let mut out = open("output", rustix::io::dup(rustix::stdio::stdout()).map_err(Into::into))?;
            let mut err = open("error", rustix::io::dup(rustix::stdio::stderr()).map_err(Into::into))?;
            while let Some((stream, piece)) = waiting.blocking_recv() {
                match stream {
                    Stream::Stdout | Stream::Terminal => out.write_all(&piece).map_err(CouldNotWrite::output)?,
                    Stream::Stderr => {
                        err.write_all(&piece).map_err(|source| CouldNotWrite { stream: "error", source })?;
                    }
                }
            }
            Ok(())
        });
        Self { pieces, writing }
    }

    /// Room for one more piece; `None` once nothing can be written any more, which [`Writer::finish`] tells of.
    ///
    /// # Cancel safety
    ///
    /// Safe: nothing was written.
    pub(crate) async fn room(&self) -> Option<mpsc::Permit<'_, (Stream, Bytes)>> {
        self.pieces.reserve().await.ok()
    }

    /// Waits until all is written.
    pub(crate) async fn finish(self) -> anyhow::Result<()> {
        drop(self.pieces);
        Ok(self.writing.await??)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_from_a_sandbox_cannot_command_a_terminal() {
        assert_eq!(printable("a\u{1b}[2Jb\u{9b}é\n"), "a\\u{1b}[2Jb\\u{9b}é\\n");
        assert_eq!(printable_lines("a\r\nb\t"), "a\\r\nb\\t");
    }
}
