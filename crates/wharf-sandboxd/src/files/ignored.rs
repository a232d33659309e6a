//! Which files a search leaves out: those that `.gitignore`, `.ignore` and `.git/info/exclude` name, as git and ripgrep read
//! them.
//!
//! These files are whatever runs in the sandbox has made of them: each is read only if it is a regular file of a sensible
//! size, and all that hold at one place have so many rules at most. What is beyond that is not heeded.

use std::{
    io::Read,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
};

use ignore::{
    Match,
    gitignore::{Gitignore, GitignoreBuilder},
};

const LONGEST_FILE: u64 = 1 << 20;
const LONGEST_RULE: usize = 1000;
/// Rules of a directory and all above it.
const MOST_RULES: usize = 10_000;

/// The rules that hold where a walk is. It has to be asked in the order of the walk, directories before what is in them.
pub(super) struct Ignored(Mutex<Vec<Level>>);

/// What one directory says of all below it.
struct Level {
    directory: PathBuf,
    ignore: Gitignore,
    gitignore: Gitignore,
    exclude: Gitignore,
    is_repository: bool,
    rules: usize,
}

impl Ignored {
    /// The rules of `root` and of the directories above it.
    pub(super) fn below(root: &Path) -> Self {
        let mut levels = Vec::new();
        let above: Vec<&Path> = root.ancestors().collect();
        for directory in above.into_iter().rev() {
            enter(&mut levels, directory);
        }
        Self(Mutex::new(levels))
    }

    /// Whether a path of the walk is left out.
    pub(super) fn covers(&self, path: &Path, is_directory: bool) -> bool {
        let mut levels = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(parent) = path.parent() else { return false };
        while levels.last().is_some_and(|level| !parent.starts_with(&level.directory)) {
            levels.pop();
        }
        if levels.last().is_none_or(|level| level.directory != parent) {
            enter(&mut levels, parent);
        }
        let nearest = |rules: fn(&Level) -> &Gitignore, within_repository: bool| {
            for level in levels.iter().rev() {
                let found = rules(level).matched(path, is_directory);
                if !found.is_none() {
                    return found.map(|_| ());
                }
                if within_repository && level.is_repository {
                    break;
                }
            }
            Match::None
        };
        let found = nearest(|level| &level.ignore, false)
            .or(nearest(|level| &level.gitignore, true))
            .or(nearest(|level| &level.exclude, true));
        found.is_ignore()
    }
}

fn enter(levels: &mut Vec<Level>, directory: &Path) {
    let mut rules = levels.last().map_or(0, |level| level.rules);
    let mut read = |name: &str| rules_of(directory, &directory.join(name), &mut rules);
    let (ignore, gitignore) = (read(".ignore"), read(".gitignore"));
    let is_repository = directory.join(".git").exists();
    let exclude = if is_repository { read(".git/info/exclude") } else { Gitignore::empty() };
    levels.push(Level { directory: directory.to_owned(), ignore, gitignore, exclude, is_repository, rules });
}

fn rules_of(directory: &Path, file: &Path, rules: &mut usize) -> Gitignore {
    let mut text = Vec::new();
    let read = super::open(file).ok().filter(|(_, size)| *size <= LONGEST_FILE);
    let Some(Ok(_)) = read.map(|(file, _)| file.take(LONGEST_FILE).read_to_end(&mut text)) else {
        return Gitignore::empty();
    };
    let text = String::from_utf8_lossy(&text);
    let mut builder = GitignoreBuilder::new(directory);
    let lines = text.trim_start_matches('\u{feff}').lines().filter(|line| line.len() <= LONGEST_RULE);
    for line in lines.filter(|line| !line.trim().is_empty() && !line.starts_with('#')) {
        if *rules == MOST_RULES {
            break;
        }
        *rules += 1;
        // What is no rule is passed over, as git does.
        let _ = builder.add_line(None, line);
    }
    builder.build().unwrap_or_else(|_| Gitignore::empty())
}
