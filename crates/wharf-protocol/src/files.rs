use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum FileKind {
    File,
    Directory,
    Symlink,
    Other,
}

/// A time, to the nanosecond that file systems keep. As text: decimal seconds since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct FileTime {
    /// Whole seconds since the Unix epoch, rounded down.
    pub seconds: i64,
    pub nanoseconds: u32,
}

impl fmt::Display for FileTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.seconds, self.nanoseconds) {
            (seconds @ ..0, nanoseconds @ 1..) => write!(f, "-{}.{:09}", -(seconds + 1), NANOSECONDS - nanoseconds),
            (seconds, nanoseconds) => write!(f, "{seconds}.{nanoseconds:09}"),
        }
    }
}

/// It is no decimal number of seconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("expected decimal seconds since the Unix epoch")]
pub struct FileTimeError;

impl FromStr for FileTime {
    type Err = FileTimeError;

    fn from_str(text: &str) -> Result<Self, FileTimeError> {
        let (is_negative, digits) = text.strip_prefix('-').map_or((false, text), |digits| (true, digits));
        let (whole, part) = digits.split_once('.').unwrap_or((digits, ""));
        if whole.is_empty() || !whole.bytes().chain(part.bytes()).all(|byte| byte.is_ascii_digit()) {
            return Err(FileTimeError);
        }
        let seconds: i64 = whole.parse().map_err(|_| FileTimeError)?;
        let nanoseconds: u32 = format!("{part:0<9}")[..9].parse().map_err(|_| FileTimeError)?;
        Ok(match (is_negative, nanoseconds) {
            (false, _) => Self { seconds, nanoseconds },
            (true, 0) => Self { seconds: -seconds, nanoseconds },
            (true, _) => Self { seconds: -seconds - 1, nanoseconds: NANOSECONDS - nanoseconds },
        })
    }
}

const NANOSECONDS: u32 = 1_000_000_000;

/// One entry of a directory, or one path. A symlink is described itself, not what it points to.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct FileStat {
    /// The name within its directory, or the path that was asked for. Bytes that are not UTF-8 are replaced.
    pub name: String,
    pub kind: FileKind,
    pub size: u64,
    /// Permission bits, as `chmod` takes them.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    /// Seconds since the Unix epoch.
    pub modified_at: f64,
    /// The same, exactly.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub modified: Option<FileTime>,
    /// Where a symlink points to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub target: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct DirectoryListing {
    pub path: String,
    /// Sorted by name.
    pub entries: Vec<FileStat>,
    /// Whether entries were left out because there are too many.
    pub truncated: bool,
}

#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MakeDirectoryRequest {
    /// Absolute path. Missing parents are made; an existing directory is fine.
    pub path: String,
    /// Permission bits of the last directory; absent: what the umask gives.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<u32>,
}

#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct MoveRequest {
    pub from: String,
    pub to: String,
    /// Whether an existing file at `to` is replaced.
    #[serde(default)]
    pub overwrite: bool,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "snake_case")]
pub enum ArchiveFormat {
    #[default]
    Tar,
    Zip,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct UploadResult {
    pub path: String,
    /// Files written.
    pub files: u64,
    /// Bytes written.
    pub bytes: u64,
    /// What of an archive was left out.
    #[serde(default, skip_serializing_if = "Skipped::is_empty")]
    pub skipped: Skipped,
}

/// What was left out of an archive: special files, and what could not be read.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct Skipped {
    pub count: u64,
    /// The first of them.
    pub files: Vec<SkippedFile>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SkippedFile {
    /// Within the archive. Bytes that are not UTF-8 are replaced.
    pub path: String,
    pub reason: String,
}

impl Skipped {
    /// The trailer of an archive's download that holds this as percent-encoded JSON, for clients that say `TE: trailers`.
    pub const TRAILER: &str = "wharf-skipped";

    pub fn is_empty(&self) -> bool {
        self.count == 0
    }
}

/// Looks for files by name, or for lines by content.
#[derive(Debug, Clone, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(deny_unknown_fields)]
pub struct SearchRequest {
    /// Absolute path of the directory to search below.
    pub path: String,
    /// Only files whose path below `path` matches this glob, such as `**/*.rs`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub glob: Option<String>,
    /// A regular expression; absent: files are listed by name only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pattern: Option<String>,
    #[serde(default)]
    pub case_insensitive: bool,
    /// Whether hidden files and those that `.gitignore` names are searched too.
    #[serde(default)]
    pub all: bool,
    /// At most this many matches; absent: 1000; at most 100000.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub limit: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SearchMatch {
    /// Absolute path.
    pub path: String,
    /// 1-based; absent when searching by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub line: Option<u64>,
    /// The line without its end, cut at 1000 characters.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
pub struct SearchResult {
    pub matches: Vec<SearchMatch>,
    /// Whether there were more than the limit, or more than 16 MiB of them.
    pub truncated: bool,
    /// Files that were not searched to their end: they cannot be read, or a line of them is longer than 8 MiB.
    #[serde(default)]
    pub unsearched: u64,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_is_the_same_as_text_to_its_nanosecond() {
        for (text, seconds, nanoseconds) in [
            ("1714979289.123456789", 1_714_979_289, 123_456_789),
            ("0.000000000", 0, 0),
            ("-0.500000000", -1, 500_000_000),
            ("-1.000000000", -1, 0),
            ("-315532800.999999999", -315_532_801, 1),
        ] {
            let time = FileTime { seconds, nanoseconds };
            assert_eq!((time.to_string().as_str(), text.parse()), (text, Ok(time)));
        }
        assert_eq!("7".parse(), Ok(FileTime { seconds: 7, nanoseconds: 0 }));
        assert_eq!("7.5".parse(), Ok(FileTime { seconds: 7, nanoseconds: 500_000_000 }));
        assert_eq!("7.0000000019".parse(), Ok(FileTime { seconds: 7, nanoseconds: 1 }));
        for wrong in ["", "-", ".5", "1e9", "1.-5", "+1", "99999999999999999999", "1.5s"] {
            assert_eq!(wrong.parse::<FileTime>(), Err(FileTimeError), "{wrong}");
        }
    }
}
