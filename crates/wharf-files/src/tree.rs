//! Making files below one directory, whatever stands there and whatever the names are.
//!
//! Every directory on the way is opened beneath the destination without following any link (`openat2`), and every name is
//! made in a directory that is held open: neither names with `..`, nor absolute ones, nor links made by an earlier member
//! or by a racing process lead out. Links themselves are made as they are; nothing is ever written through one.

use std::{
    ffi::{OsStr, OsString},
    fs::{File, Permissions},
    io::{self, Write},
    os::{fd::OwnedFd, unix::fs::PermissionsExt},
    path::{Component, Path, PathBuf},
    sync::Arc,
};

use rustix::{
    fs::{AtFlags, Mode, OFlags, ResolveFlags},
    io::Errno,
};

use crate::{
    Skipped, make_directories,
    place::{give_name, named, nameless, random_name},
    replace::times,
    unfinished::Unfinished,
};

/// Names of what was left out; of more than these only the number is kept.
const MOST_SKIPPED: usize = 1000;
/// A new file of so many bytes has no name until it is whole, so that a killed process leaves no half of it. Of smaller ones
/// there are many, which would take longer so.
const NAMELESS_BYTES: u64 = 1 << 20;
/// The permission bits only: neither side brings the other programs that run as their owner.
const PERMISSIONS: u32 = 0o777;
/// Of a directory also that only owners remove from it: a copy of /tmp is as safe as /tmp.
const DIRECTORY_PERMISSIONS: u32 = 0o1777;

/// What a tree may take.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    pub bytes: u64,
    pub entries: u64,
}

impl Bounds {
    /// For a caller whose own disk is the only bound.
    pub const NONE: Self = Self { bytes: u64::MAX, entries: u64::MAX };
}

/// What was made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Unpacked {
    pub files: u64,
    pub bytes: u64,
    /// The first thousand that were left out.
    pub skipped: Vec<Skipped>,
    /// How many were left out.
    pub skipped_count: u64,
}

/// Why a tree could not be made. What was made before stays, and each file of it is whole.
#[derive(Debug, thiserror::Error)]
pub enum TreeError {
    #[error("{reason}")]
    Archive { reason: String },
    #[error("more than the allowed {limit} {what}")]
    TooLarge { limit: u64, what: &'static str },
    #[error("could not {action} `{path}`", path = path.display())]
    System { action: &'static str, path: PathBuf, source: io::Error },
    /// The stream broke, for whatever reason its source had.
    #[error("the stream ended before its end")]
    Stream(#[source] io::Error),
}

/// A directory that is being filled.
#[derive(Debug)]
pub struct Tree {
    root: Arc<OwnedFd>,
    shown: PathBuf,
    bounds: Bounds,
    entries: u64,
    /// The directory that was used last: members of one directory come together.
    last: Option<(PathBuf, Arc<OwnedFd>)>,
    /// Modes and times of directories, set at the end: filling them would change their times, or not be allowed.
    directories: Vec<Directory>,
    made_root: bool,
    pub(crate) done: Unpacked,
}

#[derive(Debug)]
struct Directory {
    path: PathBuf,
    mode: Option<u32>,
    modified: Option<(i64, u32)>,
    made: bool,
}

/// A file below the tree that is being written. Dropped before [`NewMember::finish`], it is gone, and what it would have
/// replaced is as it was.
#[derive(Debug)]
pub struct NewMember {
    file: File,
    directory: Arc<OwnedFd>,
    name: OsString,
    stands: Stands,
    _unfinished: Unfinished,
}

/// Where a member is until it is finished.
#[derive(Debug)]
enum Stands {
    /// Gone with the process.
    Nowhere,
    Beside(OsString),
    InItsPlace,
    Finished,
}

impl Tree {
    /// Makes the destination if it is missing.
    ///
    /// # Errors
    ///
    /// As the operating system says.
    pub fn below(destination: &Path, bounds: Bounds) -> Result<Self, TreeError> {
        let system = |source| TreeError::System { action: "open", path: destination.to_owned(), source };
        let made_root = std::fs::symlink_metadata(destination).is_err();
        make_directories(destination).map_err(system)?;
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let root = rustix::fs::open(destination, flags, Mode::empty()).map_err(|error| system(error.into()))?;
        Ok(Self {
            root: Arc::new(root),
            shown: destination.to_owned(),
            bounds,
            entries: 0,
            last: None,
            directories: Vec::new(),
            made_root,
            done: Unpacked::default(),
        })
    }

    /// Counts one more member, of whatever kind.
    ///
    /// # Errors
    ///
    /// [`TreeError::TooLarge`].
    pub fn count_entry(&mut self) -> Result<(), TreeError> {
        self.entries += 1;
        if self.entries > self.bounds.entries {
            return Err(TreeError::TooLarge { limit: self.bounds.entries, what: "entries in an archive" });
        }
        Ok(())
    }

    /// Counts bytes that are about to be written.
    ///
    /// # Errors
    ///
    /// [`TreeError::TooLarge`].
    pub fn count_bytes(&mut self, bytes: usize) -> Result<(), TreeError> {
        self.done.bytes += bytes as u64;
        if self.done.bytes > self.bounds.bytes {
            return Err(TreeError::TooLarge { limit: self.bounds.bytes, what: "bytes unpacked from an archive" });
        }
        Ok(())
    }

    /// Notes what was left out.
    pub fn skip(&mut self, path: &Path, reason: impl Into<String>) {
        self.done.skipped_count += 1;
        if self.done.skipped.len() < MOST_SKIPPED {
            self.done.skipped.push(Skipped { path: path.to_owned(), reason: reason.into() });
        }
    }

    /// Makes a directory, or takes the one that is there; `mode` and `modified` (seconds and nanoseconds since 1970), where
    /// they are said, are set by [`Tree::finish`].
    ///
    /// # Errors
    ///
    /// As the operating system says; [`TreeError::Archive`] if a link is on the way.
    pub fn directory(&mut self, path: &Path, mode: Option<u32>, modified: Option<(i64, u32)>) -> Result<(), TreeError> {
        let made = self.enter(path, mode.unwrap_or(0o777))? || (path.as_os_str().is_empty() && self.made_root);
        // The destination was there before: it stays as its owner has it.
        if made || !path.as_os_str().is_empty() {
            self.directories.push(Directory {
                path: path.to_owned(),
                mode: mode.map(|mode| mode & DIRECTORY_PERMISSIONS),
                modified,
                made,
            });
        }
        Ok(())
    }

    /// Begins a file of about so many `bytes`. A file or a link that is there is replaced once it is whole.
    ///
    /// # Errors
    ///
    /// As [`Tree::directory`].
    pub fn file(&mut self, path: &Path, bytes: u64) -> Result<NewMember, TreeError> {
        let (directory, name) = self.place(path)?;
        let wrong = |error| self.error(path, error);
        let mode = Mode::from_raw_mode(0o600);
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let at_once = match bytes < NAMELESS_BYTES {
            true => rustix::fs::openat(&*directory, &name, flags, mode),
            false => Err(Errno::EXIST),
        };
        let (file, stands) = match at_once {
            Ok(file) => (File::from(file), Stands::InItsPlace),
            Err(Errno::EXIST) => match nameless(&directory, mode) {
                Ok(file) => (file, Stands::Nowhere),
                // Not every file system has nameless files.
                Err(_) => named(&directory, mode).map(|(file, name)| (file, Stands::Beside(name))).map_err(wrong)?,
            },
            Err(error) => return Err(wrong(error)),
        };
        let member = NewMember { file, directory, name, stands, _unfinished: Unfinished::begin() };
        self.done.files += 1;
        Ok(member)
    }

    /// Puts a file in its place.
    ///
    /// # Errors
    ///
    /// As the operating system says.
    pub fn finish_file(
        &self,
        path: &Path,
        member: NewMember,
        mode: u32,
        modified: Option<(i64, u32)>,
    ) -> Result<(), TreeError> {
        member.finish(mode, modified).map_err(|source| self.system(path, source))
    }

    /// Makes a link as it is, wherever it points.
    ///
    /// # Errors
    ///
    /// As [`Tree::directory`].
    pub fn symlink(&mut self, path: &Path, target: &Path, modified: Option<(i64, u32)>) -> Result<(), TreeError> {
        let (parent, name) = self.place(path)?;
        let made =
            replace_name(&parent, &name, |name: &OsStr| rustix::fs::symlinkat(target, &*parent, name)).and_then(|()| {
                let Some((seconds, nanoseconds)) = modified else { return Ok(()) };
                rustix::fs::utimensat(&*parent, &name, &times(seconds, nanoseconds), AtFlags::SYMLINK_NOFOLLOW)
            });
        made.map_err(|error| self.error(path, error))
    }

    /// Gives a file of the tree another name.
    ///
    /// # Errors
    ///
    /// As [`Tree::directory`].
    pub fn hard_link(&mut self, path: &Path, target: &Path) -> Result<(), TreeError> {
        let (from, from_name) = self.place(target)?;
        let (to, name) = self.place(path)?;
        let link = |name: &OsStr| rustix::fs::linkat(&*from, &from_name, &*to, name, AtFlags::empty());
        replace_name(&to, &name, link).map_err(|error| self.error(path, error))
    }

    /// Sets the modes and times of the directories; says what was made.
    ///
    /// # Errors
    ///
    /// As the operating system says.
    pub fn finish(mut self) -> Result<Unpacked, TreeError> {
        // What is further down comes later in an archive: its parents still let us in.
        for directory in std::mem::take(&mut self.directories).into_iter().rev() {
            let file = if directory.path.as_os_str().is_empty() {
                self.root.try_clone().map_err(|source| self.system(&directory.path, source))?
            } else {
                match self.open(&directory.path) {
                    Ok(file) => file,
                    // A later member or somebody else has put something else there.
                    Err(Errno::LOOP | Errno::NOTDIR | Errno::NOENT) => continue,
                    Err(error) => return Err(self.error(&directory.path, error)),
                }
            };
            let file = File::from(file);
            let mode = directory.mode.map_or(Ok(()), |mode| file.set_permissions(Permissions::from_mode(mode)));
            let set = mode.and_then(|()| {
                let Some((seconds, nanoseconds)) = directory.modified else { return Ok(()) };
                rustix::fs::futimens(&file, &times(seconds, nanoseconds)).map_err(io::Error::from)
            });
            match set {
                // It was there before and is somebody else's.
                Err(error) if !directory.made && error.kind() == io::ErrorKind::PermissionDenied => {}
                set => set.map_err(|source| self.system(&directory.path, source))?,
            }
        }
        Ok(self.done)
    }

    /// The directory that a member stands in, and its name there.
    fn place(&mut self, path: &Path) -> Result<(Arc<OwnedFd>, OsString), TreeError> {
        let name = path
            .file_name()
            .map(ToOwned::to_owned)
            .ok_or_else(|| TreeError::Archive { reason: format!("a member is named `{}`", path.display()) })?;
        let parent = path.parent().unwrap_or(Path::new(""));
        if self.last.as_ref().is_none_or(|(last, _)| last != parent) {
            self.enter(parent, 0o777)?;
        }
        let directory = self.last.as_ref().map_or(&self.root, |(_, directory)| directory);
        Ok((directory.clone(), name))
    }

    /// Opens a directory, making what is missing; says whether the last one was made.
    fn enter(&mut self, path: &Path, mode: u32) -> Result<bool, TreeError> {
        if path.as_os_str().is_empty() {
            self.last = None;
            return Ok(false);
        }
        match self.open(path) {
            Ok(directory) => {
                self.last = Some((path.to_owned(), Arc::new(directory)));
                return Ok(false);
            }
            Err(Errno::NOENT) => {}
            Err(error) => return Err(self.error(path, error)),
        }
        let wrong = |error| self.error(path, error);
        let mut at = self.root.try_clone().map_err(|source| self.system(path, source))?;
        let mut made = false;
        let mut components = path.components().peekable();
        while let Some(component) = components.next() {
            let name = Path::new(component.as_os_str());
            // Ours alone to fill: its own mode comes last.
            let bits = if components.peek().is_none() { (mode & PERMISSIONS) | 0o700 } else { 0o777 };
            made = match rustix::fs::mkdirat(&at, name, Mode::from_raw_mode(bits)) {
                Ok(()) => true,
                Err(Errno::EXIST) => false,
                Err(error) => return Err(wrong(error)),
            };
            at = open_beneath(&at, name).map_err(wrong)?;
        }
        self.last = Some((path.to_owned(), Arc::new(at)));
        Ok(made)
    }

    fn open(&self, path: &Path) -> Result<OwnedFd, Errno> {
        open_beneath(&self.root, path)
    }

    fn error(&self, path: &Path, error: Errno) -> TreeError {
        let shown = self.shown.join(path);
        match error {
            Errno::LOOP | Errno::XDEV => {
                TreeError::Archive { reason: format!("`{}` would be written through a symlink", shown.display()) }
            }
            error => TreeError::System { action: "unpack", path: shown, source: error.into() },
        }
    }

    fn system(&self, path: &Path, source: io::Error) -> TreeError {
        TreeError::System { action: "unpack", path: self.shown.join(path), source }
    }
}

impl NewMember {
    fn finish(mut self, mode: u32, modified: Option<(i64, u32)>) -> io::Result<()> {
        if matches!(self.stands, Stands::Nowhere) {
            let (copy, name) = give_name(&self.file, &self.directory)?;
            self.stands = Stands::Beside(name);
            if let Some(copy) = copy {
                self.file = copy;
            }
        }
        self.file.set_permissions(Permissions::from_mode(mode & PERMISSIONS))?;
        if let Some((seconds, nanoseconds)) = modified {
            rustix::fs::futimens(&self.file, &times(seconds, nanoseconds))?;
        }
        if let Stands::Beside(temporary) = &self.stands {
            rustix::fs::renameat(&*self.directory, temporary, &*self.directory, &self.name)?;
        }
        self.stands = Stands::Finished;
        Ok(())
    }
}

impl Write for NewMember {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

impl Drop for NewMember {
    fn drop(&mut self) {
        let name = match &self.stands {
            Stands::Beside(temporary) => temporary,
            Stands::InItsPlace => &self.name,
            Stands::Nowhere | Stands::Finished => return,
        };
        // Nobody can do more about a file that cannot be removed.
        let _ = rustix::fs::unlinkat(&*self.directory, name, AtFlags::empty());
    }
}

fn open_beneath(at: &OwnedFd, path: &Path) -> Result<OwnedFd, Errno> {
    let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
    loop {
        match rustix::fs::openat2(at, path, flags, Mode::empty(), beneath) {
            // Somebody renamed something meanwhile.
            Err(Errno::AGAIN) => {}
            opened => return opened,
        }
    }
}

/// Makes `name` by `make`; what is there is replaced in one step.
fn replace_name(at: &OwnedFd, name: &OsStr, make: impl Fn(&OsStr) -> Result<(), Errno>) -> Result<(), Errno> {
    match make(name) {
        Err(Errno::EXIST) => {}
        made => return made,
    }
    let temporary = random_name();
    make(&temporary)?;
    let renamed = rustix::fs::renameat(at, &temporary, at, name);
    // Of two names of one file a rename leaves both.
    let _ = rustix::fs::unlinkat(at, &temporary, AtFlags::empty());
    renamed
}

/// A member's name as a path below the destination; `None` if it leads out.
pub fn relative(name: &Path) -> Option<PathBuf> {
    let mut path = PathBuf::new();
    for component in name.components() {
        match component {
            Component::Normal(name) => path.push(name),
            Component::CurDir => {}
            Component::ParentDir | Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    Some(path)
}
