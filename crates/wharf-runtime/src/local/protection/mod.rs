//! What of a writable mount must not be written from inside, because the host would run it: which paths that are.
//!
//! A path is covered by a mount of its own: read-only where it must not change, and merely *pinned* where something below
//! must not change, since a mount point cannot be renamed or removed from where it is one. What is not there cannot be
//! covered: a *placeholder* is put there for as long as the sandbox runs.
//!
//! A directory made later inside, below the mount's own, may hold another repository or editor's settings. No mount can
//! forbid that; `inspect` and the documentation say it.

mod any_path;
mod placeholders;
mod table;

use std::{
    collections::{BTreeMap, BTreeSet, HashSet, VecDeque},
    ffi::{OsStr, OsString},
    fs::{self, File, OpenOptions},
    io::{self, Read},
    os::unix::fs::{MetadataExt, OpenOptionsExt},
    path::{Component, Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use wharf_protocol::MountSpec;

pub(super) use self::placeholders::{remove_placeholders, set_placeholders};
use self::table::{Absent, BARE_REPOSITORY, HEAD, PROTECTED, Place};
use super::{KEEPS, MARK};

/// The part of the isolation that is missing where nothing can be covered.
pub(super) const PROTECTED_PATHS: &str = "protected paths";
/// The file of a placeholder that ignores itself.
const GITIGNORE: &str = ".gitignore";
/// What that file says.
const EVERYTHING: &str = "*\n";
/// Where npm and its like put packages.
const PACKAGES: &str = "node_modules";
/// How many directories of a mount are looked into, those nearest to its top first.
const DIRECTORIES: usize = 65_536;
/// How many paths of all mounts are covered, those nearest to a top first: each is a mount, which takes a millisecond or two.
const COVERS: usize = 4096;
/// The longest config of a repository that is read.
const CONFIG_BYTES: u64 = 1 << 20;

/// One mount as the launcher makes it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct PlannedMount {
    pub(super) spec: MountSpec,
    /// What covers paths below it, an outer one before those within.
    pub(super) covers: Vec<Cover>,
}

/// A path below a mount that has a mount of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Cover {
    /// Relative to the mount; no part of it is a link, but perhaps the last.
    #[serde(with = "any_path")]
    pub(super) path: PathBuf,
    pub(super) with: With,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum With {
    /// Itself, writable: it stays where it is.
    Itself,
    /// Itself, read-only.
    ReadOnly,
    /// A file with another text, read-only: what names a place of the host names that of the sandbox.
    Text(String),
    /// An empty directory, read-only.
    Nothing,
}

/// What is to be put on the host while the sandbox runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Placeholder {
    /// The mount's source.
    #[serde(with = "any_path")]
    pub(super) source: PathBuf,
    /// Relative to it.
    #[serde(with = "any_path")]
    pub(super) path: PathBuf,
    pub(super) content: Content,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Content {
    EmptyDirectory,
    /// A directory with nothing but a `.gitignore` of everything.
    IgnoredDirectory,
    File(String),
}

/// All that is decided about the mounts of a sandbox before it starts.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Mounts {
    pub(super) planned: Vec<PlannedMount>,
    pub(super) placeholders: Vec<Placeholder>,
    /// What cannot be written, as it is called inside.
    pub(super) protected: Vec<String>,
    /// What was given to be left unprotected, as far as something is there that would be protected.
    pub(super) unprotected: BTreeSet<String>,
    /// What does not work as its maker may think.
    pub(super) warnings: Vec<String>,
    /// What else is worth knowing.
    pub(super) notes: Vec<String>,
}

impl Mounts {
    /// Keeps read-only what was so at an earlier start, as it is called inside: somebody inside may have hidden it among more
    /// directories than are looked into.
    pub(super) fn keep(&mut self, protected_before: &[String]) {
        for PlannedMount { spec, covers } in self.planned.iter_mut().filter(|mount| !mount.spec.read_only) {
            let mut all: BTreeMap<PathBuf, With> =
                std::mem::take(covers).into_iter().map(|cover| (cover.path, cover.with)).collect();
            for inside in protected_before {
                let Ok(path) = Path::new(inside).strip_prefix(&spec.target) else { continue };
                let on_host = Path::new(&spec.source).join(path);
                let is_covered = all.contains_key(path)
                    || path.ancestors().any(|above| all.get(above).is_some_and(|with| *with != With::Itself));
                // What covers a path is mounted there, so no part above it may be a link.
                let is_in_place = || {
                    on_host.parent().is_some_and(|parent| fs::canonicalize(parent).is_ok_and(|found| found == parent))
                };
                if is_covered || path.as_os_str().is_empty() || all.len() >= 2 * COVERS {
                    continue;
                }
                let is_state = is_of_a_state_directory(&on_host);
                let with = if is_state { With::Nothing } else { With::ReadOnly };
                match fs::symlink_metadata(&on_host) {
                    Ok(found) if is_in_place() && (found.is_dir() || !is_state) => {
                        all.insert(path.to_owned(), with);
                        self.protected.push(inside.clone());
                    }
                    // Somebody inside may have closed a directory above it, and may open it again.
                    Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                        let is_seen = |above: &&Path| {
                            let place = Path::new(&spec.source).join(above);
                            fs::canonicalize(&place).is_ok_and(|found| found == place)
                        };
                        let closed =
                            path.ancestors().skip(1).filter(|above| !above.as_os_str().is_empty()).find(is_seen);
                        if let Some(closed) = closed {
                            all.insert(closed.to_owned(), with);
                            self.protected.push(inside.clone());
                        }
                    }
                    Ok(_) | Err(_) => {}
                }
            }
            *covers = all.into_iter().map(|(path, with)| Cover { path, with }).collect();
        }
    }

    /// Leaves out what `is_new` says of a source: a git directory that did not belong to a mount when its sandbox was made,
    /// and that something inside may have made it name since.
    pub(super) fn leave_out(&mut self, is_new: impl Fn(&String) -> bool) {
        let (new, kept) = std::mem::take(&mut self.planned).into_iter().partition(|mount| is_new(&mount.spec.source));
        self.planned = kept;
        for PlannedMount { spec, .. } in new {
            self.placeholders.retain(|placeholder| placeholder.source != Path::new(&spec.source));
            self.protected.retain(|path| !Path::new(path).starts_with(&spec.target));
            self.warnings.push(format!(
                "git does not work in a mount: its git directory `{}` was not its own when the sandbox was made; a new sandbox \
                 shows it",
                spec.source
            ));
        }
    }
}

/// Decides what covers the paths of `mounts`. `unprotected` are paths as they are called inside, or relative to a mount;
/// `homes` are the home directories of this machine, `programs` the directories in which it looks for programs; `is_inside`
/// tells which users of it somebody inside may be. Reads the host, changes nothing.
pub(super) fn plan_mounts(
    mounts: &[MountSpec],
    unprotected: &[String],
    homes: &[PathBuf],
    programs: &[PathBuf],
    is_inside: &dyn Fn(u32) -> bool,
) -> Mounts {
    let mut plan = Mounts::default();
    let mut shown = mounts.to_vec();
    // What is within another comes after it, or would be hidden by it.
    shown.sort_by_key(|mount| Path::new(&mount.target).components().count());
    let mut all = VecDeque::from(shown.clone());
    let mut covered = 0;
    while let Some(mut mount) = all.pop_front() {
        let mut found = Survey {
            mount: &mount,
            source: Path::new(&mount.source),
            shown: &shown,
            homes,
            programs,
            is_inside,
            left: COVERS.saturating_sub(covered),
            found: Found::default(),
        }
        .take(DIRECTORIES);
        covered += found.covers.len();
        if found.is_closed && !mount.read_only && !unprotected.iter().any(|given| given == "all") {
            mount.read_only = true;
            plan.protected.push(mount.target.clone());
        }
        for directory in found.git_directories_outside {
            let is_shown = shown.iter().any(|other| place_in(other, &directory).as_ref() == Some(&directory));
            let Some(directory) = directory.to_str().map(str::to_owned) else {
                plan.warnings.push(format!(
                    "git does not work in a mount: the name of its git directory `{}` is not UTF-8",
                    directory.display()
                ));
                continue;
            };
            if !is_shown {
                let spec = MountSpec { source: directory.clone(), target: directory, read_only: mount.read_only };
                shown.push(spec.clone());
                all.push_back(spec);
            }
        }
        plan.warnings.append(&mut found.warnings);
        plan.notes.append(&mut found.notes);
        let covered_by = |given: &str, path: &Path| {
            let given = given.trim_end_matches('/');
            given == "all" || path.starts_with(given) || Path::new(&mount.target).join(path).starts_with(given)
        };
        let is_unprotected = |path: &Path| unprotected.iter().any(|given| covered_by(given, path));
        let mut covers = found.covers;
        let names_some = |given: &&String| *given == "all" || covers.keys().any(|path| covered_by(given, path));
        plan.unprotected.extend(unprotected.iter().filter(names_some).cloned());
        covers.retain(|path, with| match with {
            With::Text(_) | With::Nothing => true,
            With::Itself | With::ReadOnly => !mount.read_only && (path.ends_with(MARK) || !is_unprotected(path)),
        });
        let is_read_only = |with: &With| !matches!(with, With::Itself);
        for (path, _) in covers.iter().filter(|(_, with)| is_read_only(with)) {
            plan.protected.push(Path::new(&mount.target).join(path).display().to_string());
        }
        plan.placeholders
            .extend(found.placeholders.into_iter().filter(|placeholder| covers.contains_key(&placeholder.path)));
        let covers = covers.into_iter().map(|(path, with)| Cover { path, with }).collect();
        plan.planned.push(PlannedMount { spec: mount, covers });
    }
    plan
}

/// Hides directories of the host that are below a mount, and keeps those that they are in where they are: what Wharf keeps
/// of a sandbox opens it, and says what is shown in it.
pub(super) fn hide(mounts: &mut Mounts, hidden: &[PathBuf]) {
    for mount in &mut mounts.planned {
        for directory in hidden {
            let Ok(path) = directory.strip_prefix(&mount.spec.source) else { continue };
            let mut covers: BTreeMap<PathBuf, With> =
                mount.covers.drain(..).map(|cover| (cover.path, cover.with)).collect();
            covers.retain(|covered, _| !covered.starts_with(path));
            for above in path.ancestors().skip(1).filter(|above| !above.as_os_str().is_empty() && !mount.spec.read_only)
            {
                covers.entry(above.to_owned()).or_insert(With::Itself);
            }
            covers.insert(path.to_owned(), With::Nothing);
            mount.covers = covers.into_iter().map(|(path, with)| Cover { path, with }).collect();
            mounts.protected.push(Path::new(&mount.spec.target).join(path).display().to_string());
        }
    }
    let is_hidden = |placeholder: &Placeholder| {
        let path = placeholder.source.join(&placeholder.path);
        hidden.iter().any(|directory| path.starts_with(directory) && !placeholder.source.starts_with(directory))
    };
    mounts.placeholders.retain(|placeholder| !is_hidden(placeholder));
}

/// Whether a mount would show what Wharf keeps in `state_dir`, itself. The workspace of a sandbox is its owner's.
pub(super) fn is_state(source: &Path, state_dir: &Path) -> bool {
    let Ok(path) = source.strip_prefix(state_dir) else { return false };
    let parts: Vec<_> = path.components().map(Component::as_os_str).take(3).collect();
    !(parts.len() == 3 && parts[0] == "sandboxes" && parts[2] == "workspace")
}

/// A path of the host as it is called inside, if it is below this mount.
fn place_in(mount: &MountSpec, path: &Path) -> Option<PathBuf> {
    let relative = path.strip_prefix(&mount.source).ok()?;
    // Joined to nothing, a path gets a slash at its end.
    Some(if relative.as_os_str().is_empty() {
        PathBuf::from(&mount.target)
    } else {
        Path::new(&mount.target).join(relative)
    })
}

/// The home directories of this machine's users.
pub(super) fn homes() -> Vec<PathBuf> {
    let passwd = fs::read_to_string("/etc/passwd").unwrap_or_default();
    let fields = passwd.lines().filter_map(|line| line.split(':').nth(5));
    let homes = fields.map(PathBuf::from).chain(std::env::var_os("HOME").map(PathBuf::from));
    // What many system users have is nobody's home.
    let is_home = |home: &PathBuf| home.is_absolute() && home.components().count() > 1;
    homes.filter(is_home).filter_map(|home| fs::canonicalize(home).ok()).filter(|home| home != Path::new("/")).collect()
}

/// The directories in which a shell on this machine looks for programs, and those that a login adds.
pub(super) fn programs(homes: &[PathBuf]) -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let of_homes = homes.iter().map(|home| home.join("bin"));
    std::env::split_paths(&path).filter(|directory| !directory.as_os_str().is_empty()).chain(of_homes).collect()
}

/// One look through one mount.
struct Survey<'a> {
    mount: &'a MountSpec,
    source: &'a Path,
    shown: &'a [MountSpec],
    homes: &'a [PathBuf],
    programs: &'a [PathBuf],
    is_inside: &'a dyn Fn(u32) -> bool,
    /// How many paths may be covered.
    left: usize,
    found: Found,
}

#[derive(Default)]
struct Found {
    /// Sorted by path, so that an outer one comes before those within.
    covers: BTreeMap<PathBuf, With>,
    placeholders: Vec<Placeholder>,
    /// Git directories that belong to what is in this mount and are not in it.
    git_directories_outside: Vec<PathBuf>,
    /// Whether the mount's top is closed to us, and not to whoever may be its owner inside.
    is_closed: bool,
    warnings: Vec<String>,
    notes: Vec<String>,
}

impl Survey<'_> {
    fn take(mut self, directories: usize) -> Found {
        if self.source.is_dir() && !self.is_closed(Path::new("")) {
            self.walk(directories);
            self.look_at_programs();
        }
        if self.is_full() {
            self.found.warnings.push(format!(
                "`{}` has more than {} paths that this machine would run something from: those deepest below it can be \
                 written inside; a mount of less is protected whole",
                self.mount.source, self.left
            ));
        }
        self.found
    }

    /// Where this machine looks for programs. What such a directory is in stays too: another could be put in its place.
    fn look_at_programs(&mut self) {
        for directory in self.programs {
            // A relative one is meant wherever somebody works.
            let Some(path) = self.within(&self.source.join(directory)) else { continue };
            let is_read_only =
                |path: &Path| self.found.covers.get(path).is_some_and(|with| !matches!(with, With::Itself));
            if path.as_os_str().is_empty() || path.ancestors().any(is_read_only) {
                continue;
            }
            self.pin(&path);
            self.found.covers.insert(path, With::ReadOnly);
        }
    }

    /// Whether no more paths are looked for: what is in one directory is covered all the same.
    fn is_full(&self) -> bool {
        self.found.covers.len() > self.left
    }

    fn walk(&mut self, directories: usize) {
        let mut left = directories;
        let mut queue = VecDeque::from([PathBuf::new()]);
        while let Some(directory) = queue.pop_front() {
            let read = fs::read_dir(self.source.join(&directory));
            let is_listed = read.is_ok();
            let entries: Vec<fs::DirEntry> = read.into_iter().flatten().flatten().collect();
            let names = is_listed.then(|| entries.iter().map(fs::DirEntry::file_name).collect());
            self.hide_state(&directory, names.as_ref());
            if !self.mount.read_only || directory.as_os_str().is_empty() {
                self.look_at(&directory, names.as_ref());
            }
            if self.is_full() {
                return;
            }
            for entry in entries {
                let path = directory.join(entry.file_name());
                let is_within =
                    entry.file_type().is_ok_and(|kind| kind.is_dir()) && !self.found.covers.contains_key(&path);
                if !is_within {
                    continue;
                }
                if left == 0 && self.mount.read_only {
                    return;
                }
                if left == 0 {
                    self.found.warnings.push(format!(
                        "`{}` has more than {directories} directories: what this machine would run from those deepest below \
                         it can be written inside; a mount of less is protected whole",
                        self.mount.source
                    ));
                    return;
                }
                left -= 1;
                queue.push_back(path);
            }
        }
    }

    /// Hides what Wharf keeps of sandboxes, if a directory is one for that: it opens them.
    fn hide_state(&mut self, directory: &Path, names: Option<&HashSet<OsString>>) {
        let mark = directory.join(MARK);
        let is_named = names.is_none_or(|names| names.contains(OsStr::new(MARK)));
        if !is_named || fs::symlink_metadata(self.source.join(&mark)).is_err() {
            return;
        }
        let is_directory =
            |path: &PathBuf| fs::symlink_metadata(self.source.join(path)).is_ok_and(|found| found.is_dir());
        let kept: Vec<PathBuf> = KEEPS.iter().map(|name| directory.join(name)).filter(is_directory).collect();
        self.pin(directory);
        // Without the mark the next start would not know it.
        self.found.covers.insert(mark, With::ReadOnly);
        self.found.covers.extend(kept.into_iter().map(|path| (path, With::Nothing)));
    }

    /// Notes what of one directory is to be covered; `names` are those in it, if it can be listed.
    fn look_at(&mut self, directory: &Path, names: Option<&HashSet<OsString>>) {
        let is_top = directory.as_os_str().is_empty();
        let is_home = |path: &Path| self.homes.iter().any(|home| home == path);
        let is_home = is_home(&self.source.join(directory));
        // Nobody works there, and a package manager replaces whole directories with all that packages bring along.
        let is_of_packages = directory.components().any(|part| part.as_os_str() == PACKAGES);
        let is_there = |name: &str| names.is_none_or(|names| names.contains(OsStr::new(name)));
        let is_git_directory = is_there("HEAD") && self.is_git_directory(directory);
        if is_git_directory {
            self.look_at_git_directory(directory);
        } else if is_there(".git") {
            self.look_for_a_repository(directory);
        }
        let is_repository = is_git_directory || self.found.covers.contains_key(&directory.join(".git"));
        for entry in PROTECTED {
            let may_be_made = match entry.place {
                Place::Project => is_top && !is_git_directory,
                Place::Home => is_home,
                Place::HomeAlone if is_home => true,
                Place::NoRepository if is_top && !is_repository => true,
                Place::HomeAlone | Place::NoRepository | Place::GitDirectory | Place::LinkedWorktree => continue,
            };
            if may_be_made || !is_of_packages && is_there(entry.name) {
                self.cover(&directory.join(entry.name), if may_be_made { entry.absent } else { Absent::Nothing });
            }
        }
        if is_top && !is_repository {
            self.keep_from_being_bare();
        }
    }

    /// Keeps the top from becoming a bare repository, also once the placeholders are gone: what it lacks of one is not made,
    /// and what somebody has there for something else stays.
    fn keep_from_being_bare(&mut self) {
        let mut may_be_kept = false;
        for path in BARE_REPOSITORY.map(Path::new) {
            match fs::symlink_metadata(self.source.join(path)) {
                Ok(found) if !self.looks_like_a_placeholder(path) => {
                    let with = if found.is_symlink() { With::ReadOnly } else { With::Itself };
                    self.found.covers.insert(path.to_owned(), with);
                }
                _ if may_be_kept && path == Path::new(HEAD) => {}
                found => {
                    self.cover(path, Absent::Ignored);
                    if found.is_err() {
                        return;
                    }
                    // Another sandbox's placeholder, or somebody's directory that looks like one.
                    may_be_kept = true;
                }
            }
        }
    }

    fn looks_like_a_placeholder(&self, directory: &Path) -> bool {
        self.holds_nothing_but_ignores(directory)
            && self.read(&directory.join(GITIGNORE)).is_some_and(|text| text == EVERYTHING)
    }

    fn look_for_a_repository(&mut self, directory: &Path) {
        let path = directory.join(".git");
        let Ok(metadata) = fs::symlink_metadata(self.source.join(&path)) else { return };
        if metadata.is_dir() {
            if self.is_closed(&path) {
                // As a whole.
            } else if self.is_git_directory(&path) {
                self.found.covers.insert(path.clone(), With::Itself);
                self.look_at_git_directory(&path);
            }
        } else if metadata.is_symlink() {
            self.cover(&path, Absent::Nothing);
            if let Some(target) = self.within(&self.source.join(&path))
                && self.is_git_directory(&target)
            {
                self.pin(&target);
                self.look_at_git_directory(&target);
            }
        } else {
            self.found.covers.insert(path.clone(), With::ReadOnly);
            self.look_at_git_file(directory, &path);
        }
    }

    /// The file `.git` of a linked worktree or of a submodule.
    fn look_at_git_file(&mut self, worktree: &Path, path: &Path) {
        let Some(text) = self.read(path) else { return };
        let Some(named) = table::git_directory_named_in(&text) else { return };
        if self.is_named_as_inside(named) {
            // It was made in a sandbox, and works in this one as it is.
            return;
        }
        let worktree = self.source.join(worktree);
        // A path with a slash at its end is not what the other side names.
        let worktree = fs::canonicalize(&worktree).unwrap_or(worktree);
        let Ok(git_directory) = fs::canonicalize(worktree.join(named)) else {
            self.found.warnings.push(format!(
                "git does not work in `{}`: the directory `{}` that its `.git` names does not exist",
                worktree.display(),
                named.display()
            ));
            return;
        };
        // Otherwise a file that was written inside would show any directory of the host next time.
        let Some(home) = home_of(&git_directory, &worktree) else {
            self.found.warnings.push(format!(
                "git does not work in `{0}`: `{1}`, which its `.git` names, does not name `{0}` in turn; if it belongs \
                 together, `--mount {1}:{1}`",
                worktree.display(),
                git_directory.display()
            ));
            return;
        };
        let inside = if git_directory.starts_with(self.source) {
            place_in(self.mount, &git_directory).unwrap_or(git_directory)
        } else {
            self.found.git_directories_outside.push(home);
            git_directory
        };
        let place = Path::new(&self.mount.target).join(path.parent().unwrap_or(path));
        if plain(&place.join(named)) != inside {
            // What is relative, or begins with the host's name of the mount, leads elsewhere in the sandbox.
            self.found.covers.insert(path.to_owned(), With::Text(format!("gitdir: {}\n", inside.display())));
        }
    }

    fn look_at_git_directory(&mut self, directory: &Path) {
        for entry in PROTECTED.iter().filter(|entry| entry.place == Place::GitDirectory) {
            self.cover(&directory.join(entry.name), entry.absent);
        }
        let config = directory.join("config");
        let config_text = self.read(&config).unwrap_or_default();
        self.cover_named_in(directory, &config_text);
        if let Some(worktree) = self.submodule_inside(directory, &config_text) {
            let text = format!("{config_text}\n[core]\n\tworktree = \"{}\"\n", worktree.display());
            self.found.covers.insert(config, With::Text(text));
        }
        self.look_at_alternates(directory);
        for worktree in self.directories(&directory.join("worktrees")) {
            if self.is_full() {
                return;
            }
            self.pin(&worktree);
            if self.is_closed(&worktree) {
                continue;
            }
            for entry in PROTECTED.iter().filter(|entry| entry.place == Place::LinkedWorktree) {
                self.cover(&worktree.join(entry.name), entry.absent);
            }
            let path = worktree.join("gitdir");
            let Some(text) = self.read(&path) else { continue };
            if self.is_named_as_inside(Path::new(text.trim())) {
                continue;
            }
            // A worktree that the sandbox does not see is not one that is gone: `git worktree prune` looks for a file.
            let inside = fs::canonicalize(text.trim())
                .ok()
                .and_then(|file| self.inside(&file))
                .unwrap_or_else(|| Path::new(&self.mount.target).join(&path));
            self.found.covers.insert(path, With::Text(format!("{}\n", inside.display())));
        }
        let mut modules = self.directories(&directory.join("modules"));
        let mut left = DIRECTORIES;
        while let Some(module) = modules.pop() {
            if self.is_full() {
                return;
            }
            self.pin(&module);
            if self.is_closed(&module) {
                continue;
            }
            if self.is_git_directory(&module) {
                self.look_at_git_directory(&module);
            } else if left > 0 {
                // The name of a submodule may have slashes.
                left -= 1;
                modules.extend(self.directories(&module));
            }
        }
    }

    /// The directories of objects that a repository borrows from: of `git clone --shared` and `--reference`.
    fn look_at_alternates(&mut self, directory: &Path) {
        let objects = directory.join("objects");
        let text = self.read(&objects.join("info/alternates")).unwrap_or_default();
        for named in text.lines().map(Path::new).filter(|named| named.is_absolute()) {
            let is_seen = self.inside(named).is_some_and(|inside| inside == named) || self.is_named_as_inside(named);
            if !is_seen {
                self.found.warnings.push(format!(
                    "git lacks objects in `{0}`: it borrows them from `{1}`, which the sandbox does not see; \
                     `--mount {1}:{1}:ro`",
                    self.source.join(directory).display(),
                    named.display()
                ));
            }
        }
    }

    /// Where the worktree of a submodule is inside, if that is not where its git directory says.
    fn submodule_inside(&self, directory: &Path, config: &str) -> Option<PathBuf> {
        let git_directory = self.source.join(directory);
        let worktree = fs::canonicalize(git_directory.join(table::worktree_named_in(config)?)).ok()?;
        let inside = self.inside(&worktree)?;
        let named_inside =
            plain(&Path::new(&self.mount.target).join(directory).join(table::worktree_named_in(config)?));
        (inside != named_inside).then_some(inside)
    }

    /// What the config of a repository names that runs or is more config.
    fn cover_named_in(&mut self, git_directory: &Path, config: &str) {
        let git_directory = self.source.join(git_directory);
        let worktree = git_directory.parent().unwrap_or(&git_directory);
        for named in table::files_named_in(config) {
            for base in [worktree, &git_directory] {
                if let Some(path) = self.within(&base.join(named))
                    && !path.as_os_str().is_empty()
                    && !git_directory.starts_with(self.source.join(&path))
                {
                    self.found.covers.insert(path, With::ReadOnly);
                }
            }
        }
    }

    /// Covers a path, read-only; a link and what it leads to.
    fn cover(&mut self, path: &Path, absent: Absent) {
        match fs::symlink_metadata(self.source.join(path)) {
            Ok(metadata) => {
                let is_placeholder = match absent {
                    Absent::Empty | Absent::Ignored => metadata.is_dir() && self.holds_nothing_but_ignores(path),
                    Absent::File(text) => self.read(path).is_some_and(|found| found == text),
                    Absent::Nothing => false,
                };
                if is_placeholder {
                    // Another sandbox's, perhaps: whoever ends last takes it away.
                    self.hold(path, absent);
                }
                self.found.covers.insert(path.to_owned(), With::ReadOnly);
                if metadata.is_symlink()
                    && let Some(target) = self.within(&self.source.join(path))
                    && !target.as_os_str().is_empty()
                {
                    self.found.covers.entry(target).or_insert(With::ReadOnly);
                }
            }
            Err(_) if absent == Absent::Nothing => {}
            Err(_) => {
                let parent = path.parent().unwrap_or(Path::new(""));
                if self.allows(parent, rustix::fs::Access::WRITE_OK) {
                    self.hold(path, absent);
                    self.found.covers.insert(path.to_owned(), With::ReadOnly);
                } else if self.is_owned_inside(parent) {
                    self.close(parent);
                }
                // Else nothing can be made inside either.
            }
        }
    }

    fn holds_nothing_but_ignores(&self, directory: &Path) -> bool {
        fs::read_dir(self.source.join(directory))
            .is_ok_and(|mut entries| entries.all(|entry| entry.is_ok_and(|entry| entry.file_name() == GITIGNORE)))
    }

    /// Whether a directory may not be searched by us, though its owner inside may change that: then what is in it is not known,
    /// and it is covered as a whole.
    fn is_closed(&mut self, directory: &Path) -> bool {
        let is_closed = !self.allows(directory, rustix::fs::Access::EXEC_OK) && self.is_owned_inside(directory);
        if is_closed {
            self.close(directory);
        }
        is_closed
    }

    fn close(&mut self, directory: &Path) {
        let is_top = directory.as_os_str().is_empty();
        let before = self.found.covers.insert(directory.to_owned(), With::ReadOnly);
        if is_top {
            self.found.covers.remove(directory);
        }
        let is_known =
            if is_top { std::mem::replace(&mut self.found.is_closed, true) } else { before == Some(With::ReadOnly) };
        if !is_known && !self.mount.read_only {
            let path = if is_top { self.source.to_owned() } else { self.source.join(directory) };
            self.found.warnings.push(format!(
                "`{0}` is read-only in the sandbox: what this machine would run from it is not protected otherwise, since you \
                 may not look into it or write in it yourself; `chmod u+rwx {0}` before the next start",
                path.display()
            ));
        }
    }

    /// Whether we may do this with a directory; what is refused for another reason than its mode is refused inside too.
    fn allows(&self, directory: &Path, access: rustix::fs::Access) -> bool {
        rustix::fs::access(self.source.join(directory), access) != Err(rustix::io::Errno::ACCESS)
    }

    fn is_owned_inside(&self, directory: &Path) -> bool {
        fs::symlink_metadata(self.source.join(directory)).is_ok_and(|found| (self.is_inside)(found.uid()))
    }

    fn hold(&mut self, path: &Path, absent: Absent) {
        let content = match absent {
            Absent::Nothing => return,
            Absent::Empty => Content::EmptyDirectory,
            Absent::Ignored => Content::IgnoredDirectory,
            Absent::File(text) => Content::File(text.to_owned()),
        };
        self.found.placeholders.push(Placeholder { source: self.source.to_owned(), path: path.to_owned(), content });
    }

    /// Keeps a directory where it is, and those that it is in.
    fn pin(&mut self, path: &Path) {
        for part in path.ancestors().filter(|part| !part.as_os_str().is_empty()) {
            self.found.covers.entry(part.to_owned()).or_insert(With::Itself);
        }
    }

    fn is_git_directory(&self, path: &Path) -> bool {
        is_git_directory(&self.source.join(path))
    }

    /// The directories in a directory. Of a link only the link is covered: somebody inside may have put it there, and nothing
    /// can be mounted below it.
    fn directories(&mut self, path: &Path) -> Vec<PathBuf> {
        if fs::symlink_metadata(self.source.join(path)).is_ok_and(|found| found.is_symlink()) {
            self.cover(path, Absent::Nothing);
            return Vec::new();
        }
        let entries = match fs::read_dir(self.source.join(path)) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied && self.is_owned_inside(path) => {
                self.close(path);
                return Vec::new();
            }
            Err(_) => return Vec::new(),
            Ok(entries) => entries,
        };
        let directories = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
        directories.map(|entry| path.join(entry.file_name())).collect()
    }

    /// A path of the host as it is called below this mount, if it is there, with all links followed.
    fn within(&self, path: &Path) -> Option<PathBuf> {
        let path = fs::canonicalize(path).ok()?;
        path.strip_prefix(self.source).ok().map(Path::to_owned)
    }

    /// A path of the host as it is called in the sandbox.
    fn inside(&self, path: &Path) -> Option<PathBuf> {
        place_in(self.mount, path).or_else(|| self.shown.iter().find_map(|mount| place_in(mount, path)))
    }

    /// Whether a path is one in the sandbox, below this mount, and there is something.
    fn is_named_as_inside(&self, path: &Path) -> bool {
        let is_other = self.mount.source != self.mount.target;
        is_other
            && path.strip_prefix(&self.mount.target).is_ok_and(|path| self.within(&self.source.join(path)).is_some())
    }

    fn read(&self, path: &Path) -> Option<String> {
        read_small(&self.source.join(path)).ok()
    }
}

/// Reads a file that somebody hostile may have made: nothing but a plain one of a sound size, and no link.
fn read_small(path: &Path) -> io::Result<String> {
    let flags = rustix::fs::OFlags::NOFOLLOW | rustix::fs::OFlags::NONBLOCK;
    let file: File = OpenOptions::new().read(true).custom_flags(flags.bits().cast_signed()).open(path)?;
    if !file.metadata()?.is_file() {
        return Err(io::Error::other("not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(CONFIG_BYTES).read_to_end(&mut bytes)?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn is_git_directory(path: &Path) -> bool {
    let is = |name: &str, ask: fn(&fs::Metadata) -> bool| {
        fs::symlink_metadata(path.join(name)).is_ok_and(|found| ask(&found))
    };
    is("HEAD", |found| !found.is_dir())
        && is("objects", |found| !found.is_file())
        && is("refs", |found| !found.is_file())
}

/// The directory to show for a git directory that names `worktree` as `worktree` names it: the repository's for a linked
/// worktree, a submodule's own.
fn home_of(git_directory: &Path, worktree: &Path) -> Option<PathBuf> {
    if let Ok(text) = read_small(&git_directory.join("gitdir")) {
        let back = fs::canonicalize(git_directory.join(text.trim())).ok()?;
        let all = git_directory.parent().filter(|parent| parent.ends_with("worktrees"))?;
        // Somebody's directory that happens to be called `worktrees`, and to be mounted, leads nowhere.
        let home = all.parent().filter(|home| is_git_directory(home))?;
        return (back == worktree.join(".git")).then(|| home.to_owned());
    }
    let config = read_small(&git_directory.join("config")).ok()?;
    let back = fs::canonicalize(git_directory.join(table::worktree_named_in(&config)?)).ok()?;
    (back == worktree).then(|| git_directory.to_owned())
}

/// Whether something was hidden because Wharf keeps sandboxes there, as far as can be seen.
fn is_of_a_state_directory(path: &Path) -> bool {
    let mark = fs::symlink_metadata(path.with_file_name(MARK));
    KEEPS.iter().any(|name| path.ends_with(name)) && !mark.is_err_and(|error| error.kind() == io::ErrorKind::NotFound)
}

/// A path without `.` and `..`.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => drop(plain.pop()),
            Component::CurDir => {}
            Component::Prefix(_) | Component::RootDir | Component::Normal(_) => plain.push(part),
        }
    }
    plain
}

#[cfg(test)]
mod tests;
