//! Where sandboxd logs: standard error, and where that is a file of our runtime's, never more than it shall hold.

use std::{
    fs::File,
    io::{self, Write},
    os::{fd::AsFd, unix::fs::FileExt},
    sync::{Mutex, PoisonError},
};

use tracing_subscriber::fmt::MakeWriter;

/// Standard error as a log.
#[derive(Debug)]
pub struct Log {
    /// `None`: it is not ours to cut.
    bounded: Option<Mutex<Bounded>>,
}

#[derive(Debug)]
struct Bounded {
    file: File,
    most_bytes: u64,
}

/// One event's way into the log.
#[derive(Debug)]
pub struct Writer<'a>(&'a Log);

impl Log {
    /// A log of which older lines go once it has more than `most_bytes`, if standard error is a file.
    pub fn new(most_bytes: Option<u64>) -> Self {
        let bounded = most_bytes.and_then(|most_bytes| {
            let file = File::from(io::stderr().as_fd().try_clone_to_owned().ok()?);
            file.metadata().ok()?.is_file().then(|| Mutex::new(Bounded { file, most_bytes }))
        });
        Self { bounded }
    }
}

impl Bounded {
    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        self.file.write_all(line)?;
        let length = self.file.metadata()?.len();
        if length <= self.most_bytes {
            return Ok(());
        }
        // The latest quarter stays, from the start of a line on.
        let mut kept = vec![0; usize::try_from(self.most_bytes / 4).unwrap_or(0)];
        let from = length.saturating_sub(kept.len() as u64);
        self.file.read_exact_at(&mut kept, from)?;
        let from = kept.iter().position(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        // It is open for appending: what is written next begins where it ends then.
        self.file.set_len(0)?;
        self.file.write_all(&kept[from..])
    }
}

impl Write for Writer<'_> {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        match &self.0.bounded {
            None => io::stderr().write_all(line)?,
            Some(bounded) => bounded.lock().unwrap_or_else(PoisonError::into_inner).write(line)?,
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        io::stderr().flush()
    }
}

impl<'a> MakeWriter<'a> for Log {
    type Writer = Writer<'a>;

    fn make_writer(&'a self) -> Writer<'a> {
        Writer(self)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_log_keeps_its_latest_lines_and_never_grows_beyond_its_bound() {
        let path = tempfile::NamedTempFile::new().unwrap();
        let file = File::options().read(true).append(true).open(path.path()).unwrap();
        let mut log = Bounded { file, most_bytes: 4096 };
        for number in 0..10_000 {
            log.write(format!("line {number}\n").as_bytes()).unwrap();
            assert!(path.as_file().metadata().unwrap().len() <= 4096);
        }
        let text = std::fs::read_to_string(path.path()).unwrap();
        let numbers: Vec<u32> = text.lines().map(|line| line.strip_prefix("line ").unwrap().parse().unwrap()).collect();
        assert!(numbers.len() > 50, "{}", numbers.len());
        assert!(numbers.is_sorted_by(|a, b| a + 1 == *b) && numbers.last() == Some(&9999));
    }
}
