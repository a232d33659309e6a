//! Which file or directory of the host a path stands for, whatever is put in its place later.

use std::{
    fs::{self, File, Metadata},
    io,
    os::unix::fs::MetadataExt,
    path::Path,
    time::{Duration, SystemTime},
};

use serde::{Deserialize, Serialize};

/// One file or directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Object {
    device: u64,
    inode: u64,
    /// When it was made, which nobody can set; since the Unix epoch, where the file system notes it.
    #[serde(default)]
    born: Option<Duration>,
}

impl Object {
    /// What `path` leads to now, links followed.
    pub(super) fn at(path: &Path) -> io::Result<Self> {
        fs::metadata(path).map(|metadata| Self::of(&metadata))
    }

    pub(super) fn opened(file: &File) -> io::Result<Self> {
        file.metadata().map(|metadata| Self::of(&metadata))
    }

    fn of(metadata: &Metadata) -> Self {
        let born = metadata.created().ok().and_then(|at| at.duration_since(SystemTime::UNIX_EPOCH).ok());
        Self { device: metadata.dev(), inode: metadata.ino(), born }
    }

    /// Whether both are the same. A device may have another number once the machine was restarted.
    pub(super) fn is(self, other: Self) -> bool {
        self.inode == other.inode && (self.device == other.device || (self.born.is_some() && self.born == other.born))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_renamed_stays_itself_and_what_is_put_in_its_place_is_another() {
        let home = tempfile::tempdir().unwrap();
        let [first, second] = ["first", "second"].map(|name| home.path().join(name));
        fs::create_dir(&first).unwrap();
        let object = Object::at(&first).unwrap();
        fs::rename(&first, &second).unwrap();
        assert!(object.is(Object::at(&second).unwrap()));
        fs::create_dir(&first).unwrap();
        assert!(!object.is(Object::at(&first).unwrap()));
        let restarted = Object { device: object.device + 1, ..object };
        assert_eq!(object.is(restarted), object.born.is_some());
        assert!(!object.is(Object { born: None, ..restarted }));
    }
}
