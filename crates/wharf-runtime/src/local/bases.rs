//! Which bases there are on this machine; see `launch::base` for what they are.
//!
//! ```text
//! <state>/bases/<layer>-<stamp>/   as the host's directory was; another stamp once that has changed
//! <state>/bases.lock               held while one is made or removed, by who does it too
//! ```

use std::{
    collections::BTreeMap,
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::{Duration, SystemTime},
};

use super::{
    LocalError, LocalRuntime, Spare,
    launch::system::{PACKAGES, SETTINGS, SHOWN, UNCHANGING, mounted_below},
    lock::Lock,
    make_private,
    plan::{BasePlan, Order},
    record::{Found, Record},
    short, state,
    subordinate::Subordinate,
};

/// How long somebody may make one: all directories of a system.
const PATIENCE: Duration = Duration::from_secs(120);
/// How long one is kept that nobody uses.
const KEPT: Duration = Duration::from_secs(24 * 3600);
/// How deep a change of the host's directories is looked for: a new one deeper down belongs to nobody inside until
/// something above it changes.
const DEPTH: usize = 2;

/// A directory of the host that gets a base.
#[derive(Debug)]
struct Based {
    layer: &'static str,
    source: PathBuf,
    with_files: bool,
    /// How deep what is in it tells of a change.
    depth: usize,
}

impl LocalRuntime {
    /// Makes the bases that are missing, and notes all that a sandbox uses in its record.
    pub(super) fn bases(
        &self,
        record: &mut Record,
        subordinate: Subordinate,
        for_root: bool,
    ) -> Result<BTreeMap<String, PathBuf>, LocalError> {
        let path = self.settings.state_dir.join("bases.lock");
        let lock = Lock::take(&path, PATIENCE).and_then(|lock| lock.ok_or_else(|| io::ErrorKind::TimedOut.into()));
        let lock = lock.map_err(|source| state("lock", &path, source))?;
        let directory = self.settings.state_dir.join("bases");
        make_private(&directory)?;
        let mut found = BTreeMap::new();
        for based in based() {
            let target = directory.join(format!("{}-{}", based.layer, stamp(&based, subordinate, for_root)));
            if !target.exists() {
                let (layer, with_files) = (based.layer.to_owned(), based.with_files);
                let (source, target) = (based.source, target.clone());
                self.run_errand(
                    &Order::MakeBase(BasePlan { source, target, layer, with_files, for_root, subordinate }),
                    &lock,
                )?;
            }
            found.insert(based.layer.to_owned(), target);
        }
        record.bases = found.values().filter_map(|path| Some(path.file_name()?.to_str()?.to_owned())).collect();
        // Before the lock is given back: what no record names is garbage.
        self.write(record)?;
        Ok(found)
    }

    /// Removes bases that no sandbox uses.
    pub(super) fn collect_bases(&self, spare: Spare) -> Result<(), LocalError> {
        let directory = self.settings.state_dir.join("bases");
        let Ok(entries) = fs::read_dir(&directory) else { return Ok(()) };
        let path = self.settings.state_dir.join("bases.lock");
        // Whoever has it makes one, or removes some.
        let Some(lock) = Lock::take(&path, Duration::ZERO).map_err(|source| state("lock", &path, source))? else {
            return Ok(());
        };
        let mut used = Vec::new();
        for name in self.names("sandboxes") {
            match self.found(&name) {
                Found::Record(record) => used.extend(record.bases),
                // Nobody knows what it uses.
                Found::Unreadable(_) => return Ok(()),
                Found::Nothing => {}
            }
        }
        let is_recent = |metadata: fs::Metadata| {
            let changed = SystemTime::UNIX_EPOCH + Duration::from_secs(metadata.ctime().unsigned_abs());
            spare == Spare::Recent && changed.elapsed().is_ok_and(|age| age < KEPT)
        };
        for entry in entries.flatten() {
            let is_used = entry.file_name().to_str().is_some_and(|name| used.iter().any(|used| used == name));
            if !is_used && !entry.metadata().is_ok_and(is_recent) {
                self.remove_all_ids(&entry.path(), None, &lock)?;
            }
        }
        Ok(())
    }
}

/// The directories that get a base: none in which something else is mounted, which the kernel would not lay anything over.
fn based() -> Vec<Based> {
    let is_whole = |source: &Path| mounted_below(source).is_ok_and(|mounted| mounted.is_empty());
    let is_directory = |path: &Path| fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir());
    let mut found = Vec::new();
    for layer in SHOWN.iter().filter(|name| !UNCHANGING.contains(name)) {
        let source = Path::new("/").join(layer);
        let with_files = *layer == SETTINGS;
        if is_directory(&source) && (with_files || is_whole(&source)) {
            found.push(Based { layer, source, with_files, depth: if with_files { usize::MAX } else { DEPTH } });
        }
    }
    for (path, layer) in PACKAGES {
        let source = Path::new("/").join(path);
        if is_directory(&source) && is_whole(&source) {
            found.push(Based { layer, source, with_files: true, depth: 1 });
        }
    }
    found
}

/// Stands for what the host's directory is like, and for whom the base is.
fn stamp(based: &Based, subordinate: Subordinate, for_root: bool) -> String {
    let mut text = format!("1 {subordinate:?} {for_root}");
    let mut left = vec![(based.source.clone(), 0)];
    while let Some((path, depth)) = left.pop() {
        let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
        let (time, part) = (metadata.mtime(), metadata.mtime_nsec());
        text.push_str(&format!("\n{} {time}.{part} {} {}", path.display(), metadata.mode(), metadata.uid()));
        if metadata.is_dir() && depth < based.depth {
            let entries = fs::read_dir(&path).into_iter().flatten().flatten();
            let told = entries.filter(|entry| based.with_files || entry.file_type().is_ok_and(|kind| kind.is_dir()));
            let mut below: Vec<_> = told.map(|entry| (entry.path(), depth + 1)).collect();
            // The kernel lists them in any order.
            below.sort();
            left.extend(below);
        }
    }
    short(&text)
}
