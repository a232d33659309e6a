//! Which ids of this machine belong to which sandbox: a range for each, allotted under a lock and written down.
//!
//! ```text
//! /var/lib/wharf/ids/lock          held while a range is allotted or given back
//! /var/lib/wharf/ids/<number>      the directory of the sandbox that has this range
//! ```
//!
//! One register for the whole machine, whatever the state directory: two sandboxes with the same ids could read each
//! other's files. It outlasts a restart, since the files of a suspended sandbox belong to its ids.

use std::{
    collections::BTreeMap,
    fs::{self, File},
    io,
    ops::RangeInclusive,
    os::unix::{
        ffi::{OsStrExt, OsStringExt},
        fs::{DirBuilderExt, OpenOptionsExt},
    },
    path::{Path, PathBuf},
};

use rustix::fs::FlockOperation;

/// How many ids each sandbox has.
pub(super) const IDS: u32 = 65_536;
/// Far above the host's users, and below 2^31, which some programs take for negative.
const NUMBERS: RangeInclusive<u32> = 16..=32_000;
/// What root keeps on this machine, whatever the state directory.
pub(super) const STATE: &str = "/var/lib/wharf";
const REGISTER: &str = "/var/lib/wharf/ids";
/// What else hands out ids: name, first id, count.
const SUBORDINATE: [&str; 2] = ["/etc/subuid", "/etc/subgid"];
/// Where single ids stand in the third column.
const ACCOUNTS: [&str; 2] = ["/etc/passwd", "/etc/group"];

/// The register of this machine.
#[derive(Debug, Clone)]
pub(super) struct Register {
    directory: PathBuf,
}

/// Why a sandbox gets no range.
#[derive(Debug, thiserror::Error)]
pub(super) enum RangeError {
    #[error("its ids {first} to {last} now belong to the sandbox in `{owner}`", last = first + IDS - 1, owner = owner.display())]
    Taken { first: u32, owner: PathBuf },
    #[error("all ranges of ids are taken; `wharf gc` frees those of sandboxes that are gone")]
    Exhausted,
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Register {
    pub(super) fn of_this_machine() -> Self {
        Self { directory: PathBuf::from(REGISTER) }
    }

    /// The first id of a sandbox's range: `had`, if it has one already, else a new one. Safe to repeat.
    pub(super) fn allot(&self, sandbox: &Path, had: Option<u32>) -> Result<u32, RangeError> {
        let _lock = self.lock()?;
        let taken = self.taken()?;
        let number = match had {
            Some(first) => {
                let number = first / IDS;
                if let Some(owner) = taken.get(&number).filter(|owner| *owner != sandbox && owner.exists()) {
                    return Err(RangeError::Taken { first, owner: owner.clone() });
                }
                number
            }
            None => match taken.iter().find(|(_, owner)| *owner == sandbox) {
                Some((number, _)) => *number,
                None => free_number(&taken, &elsewhere()).ok_or(RangeError::Exhausted)?,
            },
        };
        if taken.get(&number).is_none_or(|owner| owner != sandbox) {
            let path = self.directory.join(number.to_string());
            let temporary = self.directory.join("new");
            fs::write(&temporary, sandbox.as_os_str().as_bytes())?;
            fs::rename(&temporary, &path)?;
        }
        Ok(number * IDS)
    }

    /// Gives a sandbox's range back.
    pub(super) fn free(&self, sandbox: &Path) -> io::Result<()> {
        self.free_all(|owner| owner == sandbox)
    }

    /// Gives back the ranges of sandboxes below `directory` that are gone. Those of other directories may come back: a
    /// volume that is not mounted now.
    pub(super) fn free_gone(&self, directory: &Path) -> io::Result<()> {
        self.free_all(|owner| owner.starts_with(directory) && !owner.exists())
    }

    fn free_all(&self, is_free: impl Fn(&Path) -> bool) -> io::Result<()> {
        if !self.directory.exists() {
            return Ok(());
        }
        let _lock = self.lock()?;
        for (number, owner) in self.taken()? {
            if is_free(&owner) {
                fs::remove_file(self.directory.join(number.to_string()))?;
            }
        }
        Ok(())
    }

    fn taken(&self) -> io::Result<BTreeMap<u32, PathBuf>> {
        let mut taken = BTreeMap::new();
        for entry in fs::read_dir(&self.directory)? {
            let entry = entry?;
            if let Some(number) = entry.file_name().to_str().and_then(|name| name.parse().ok()) {
                taken.insert(number, PathBuf::from(std::ffi::OsString::from_vec(fs::read(entry.path())?)));
            }
        }
        Ok(taken)
    }

    fn lock(&self) -> io::Result<File> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.directory)?;
        let path = self.directory.join("lock");
        let file = File::options().create(true).write(true).truncate(false).mode(0o600).open(path)?;
        // Held for as long as it takes to read a directory.
        rustix::fs::flock(&file, FlockOperation::LockExclusive)?;
        Ok(file)
    }
}

/// The lowest number that nobody has and whose ids this machine gives to nobody else. Pure.
fn free_number(taken: &BTreeMap<u32, PathBuf>, elsewhere: &[RangeInclusive<u64>]) -> Option<u32> {
    NUMBERS.into_iter().find(|number| {
        let first = u64::from(*number) * u64::from(IDS);
        let last = first + u64::from(IDS) - 1;
        !taken.contains_key(number) && !elsewhere.iter().any(|ids| *ids.start() <= last && first <= *ids.end())
    })
}

/// The ids that this machine gives to others.
fn elsewhere() -> Vec<RangeInclusive<u64>> {
    let lines = |paths: [&str; 2]| paths.map(|path| fs::read_to_string(path).unwrap_or_default()).concat();
    let mut all = subordinate_ids(&lines(SUBORDINATE));
    all.extend(account_ids(&lines(ACCOUNTS)));
    all
}

fn subordinate_ids(text: &str) -> Vec<RangeInclusive<u64>> {
    let range = |line: &str| {
        let mut fields = line.split(':').skip(1);
        let (first, count): (u64, u64) = (fields.next()?.parse().ok()?, fields.next()?.trim().parse().ok()?);
        (count > 0).then(|| first..=first.saturating_add(count - 1))
    };
    text.lines().filter_map(range).collect()
}

fn account_ids(text: &str) -> Vec<RangeInclusive<u64>> {
    let id = |line: &str| line.split(':').nth(2)?.parse().ok().map(|id: u64| id..=id);
    text.lines().filter_map(id).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn register() -> (tempfile::TempDir, Register) {
        let directory = tempfile::tempdir().unwrap();
        let register = Register { directory: directory.path().join("ids") };
        (directory, register)
    }

    #[test]
    fn no_two_sandboxes_share_an_id() {
        let (directory, register) = register();
        let sandboxes: Vec<PathBuf> = (0..100).map(|number| directory.path().join(format!("box{number}"))).collect();
        let mut firsts = std::thread::scope(|scope| {
            let allotting: Vec<_> =
                sandboxes.iter().map(|sandbox| scope.spawn(|| register.allot(sandbox, None).unwrap())).collect();
            allotting.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
        });
        firsts.sort_unstable();
        assert!(firsts.is_sorted_by(|a, b| b - a >= IDS), "{firsts:?}");
    }

    #[test]
    fn a_sandbox_keeps_its_range_until_it_is_removed() {
        let (directory, register) = register();
        let [a, b] = ["a", "b"].map(|name| directory.path().join(name));
        let first = register.allot(&a, None).unwrap();
        assert_eq!(register.allot(&a, None).unwrap(), first);
        assert_eq!(register.allot(&a, Some(first)).unwrap(), first);
        let other = register.allot(&b, None).unwrap();
        assert_ne!(first, other);
        register.free(&a).unwrap();
        assert_eq!(register.allot(&directory.path().join("c"), None).unwrap(), first);
        assert_eq!(register.allot(&b, Some(other)).unwrap(), other);
    }

    #[test]
    fn a_range_that_another_has_taken_meanwhile_is_refused_by_name() {
        let (directory, register) = register();
        let [mine, theirs] = ["mine", "theirs"].map(|name| directory.path().join(name));
        let first = register.allot(&theirs, None).unwrap();
        fs::create_dir(&theirs).unwrap();
        let error = register.allot(&mine, Some(first)).unwrap_err().to_string();
        assert!(error.contains("theirs"), "{error}");
        // A state directory that was moved takes its ranges along.
        fs::rename(&theirs, &mine).unwrap();
        assert_eq!(register.allot(&mine, Some(first)).unwrap(), first);
    }

    #[test]
    fn what_is_gone_is_freed_below_its_own_state_directory_alone() {
        let (directory, register) = register();
        let [ours, other] = ["ours/box", "other/box"].map(|name| directory.path().join(name));
        let firsts = [register.allot(&ours, None).unwrap(), register.allot(&other, None).unwrap()];
        register.free_gone(&directory.path().join("ours")).unwrap();
        assert_eq!(register.taken().unwrap().into_keys().collect::<Vec<_>>(), [firsts[1] / IDS]);
    }

    #[test]
    fn ids_of_accounts_and_of_other_containers_are_passed_over() {
        let mut elsewhere = subordinate_ids("root:1048576:65536\nbad\nx:1114112:1\nnone:1179648:0\n");
        elsewhere.extend(account_ids("a:x:1245183:1::/:\nb:x:0:0::/:\n"));
        assert_eq!(elsewhere.len(), 4);
        let taken = BTreeMap::from([(19, PathBuf::new())]);
        // 16 and 17 overlap the subordinate ids, 18 holds an account, 19 is taken.
        assert_eq!(free_number(&taken, &elsewhere), Some(20));
        let all: BTreeMap<u32, PathBuf> = NUMBERS.map(|number| (number, PathBuf::new())).collect();
        assert_eq!(free_number(&all, &[]), None);
    }
}
