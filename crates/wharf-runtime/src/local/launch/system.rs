//! The system: the host's programs and settings, read-only or under a layer of the sandbox's own.
//!
//! ```text
//!  /usr of the sandbox = overlay ─┬─ upper: <sandbox>/system/usr/upper, what was changed; on disk, counted, kept
//!                                 └─ lower: veil ── /usr of the host with its ids mapped, so that root's is root's
//! ```
//!
//! With mapped ids, root of the sandbox would own what only root of the host may read. The veil keeps that from it: an
//! overlay without an upper layer, mounted with the rights of nobody. The kernel lets no one read through an overlay what
//! its mounter may not read, so what passes is what any user of the host may read; that holds for files of later, too.
//!
//! An ordinary user may map no ids of the host's root. Where it has subordinate ids, a base is in the place of the veil (see
//! `base`), and the host's directory is seen under it with the rights of that user.

use std::{
    collections::BTreeMap,
    ffi::CString,
    fs::{self, DirBuilder},
    io,
    os::{
        fd::{AsRawFd, OwnedFd},
        unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt, chown},
    },
    path::{Path, PathBuf},
};

use rustix::{
    fs::CWD,
    mount::{MountFlags, OpenTreeFlags, UnmountFlags},
};
use wharf_protocol::SystemAccess;

use super::{
    below::{Below, attach, bind_at},
    ids::{Ids, Others},
    root::{make_directory, show, tmpfs},
};
use crate::local::{plan::Plan, ranges::IDS, sys};

/// Directories of the host that a sandbox sees.
pub(in crate::local) const SHOWN: &[&str] =
    &["usr", "bin", "sbin", "lib", "lib32", "lib64", "libx32", "etc", "opt", "nix", "srv", "snap"];
/// Those that nobody changes but a service of the host.
pub(in crate::local) const UNCHANGING: &[&str] = &["nix", "snap"];
/// What package managers know of the host, with its directory's name among the layers.
pub(in crate::local) const PACKAGES: &[(&str, &str)] =
    &[("var/lib/dpkg", "dpkg"), ("var/lib/rpm", "rpm"), ("var/lib/pacman", "pacman"), ("lib/apk", "apk")];
/// Directories of the sandbox's own that begin empty: on disk where the system can be changed, else in memory.
pub(super) const OWN: &[(&str, u32)] = &[("home", 0o755), ("root", 0o700), ("var", 0o755)];
/// Files that the veil hides although programs of the system write them; a sandbox has others instead.
const REPLACED: &[Replaced] = &[
    Replaced { layer: "etc", name: "shadow", lines: Some(("passwd", ":*:20000:0:99999:7:::\n")) },
    Replaced { layer: "etc", name: "gshadow", lines: Some(("group", ":*::\n")) },
    Replaced { layer: "etc", name: "shadow-", lines: None },
    Replaced { layer: "etc", name: "gshadow-", lines: None },
    Replaced { layer: "etc", name: ".pwd.lock", lines: None },
    Replaced { layer: "etc", name: "security/opasswd", lines: None },
    Replaced { layer: "dpkg", name: "lock", lines: None },
    Replaced { layer: "dpkg", name: "lock-frontend", lines: None },
    Replaced { layer: "dpkg", name: "triggers/Lock", lines: None },
];

/// One such file.
struct Replaced {
    layer: &'static str,
    name: &'static str,
    /// For each name in this file of `/etc` a line that goes on so; without, the file is empty.
    lines: Option<(&'static str, &'static str)>,
}

/// Where the layers are put together, in the new root.
const LAYERS: &str = "layers";
const OPTIONS: &str = "metacopy=off,redirect_dir=off,index=off,xino=off";
/// The layer of settings, whose files a base has too.
pub(in crate::local) const SETTINGS: &str = "etc";
/// In a user namespace: the kernel refuses to be told what else it will not do there.
const USER_OPTIONS: &str = "userxattr";

/// How the system is in a sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum System {
    ReadOnly {
        reason: String,
    },
    Writable {
        /// What of it is not.
        but: Option<String>,
    },
}

/// Shows the system in the new root, which is the working directory.
pub(super) fn build_system(plan: &Plan, ids: &Ids, root: &Below) -> io::Result<System> {
    let reason = match (plan.system, &ids.namespace) {
        (Some(SystemAccess::ReadOnly), _) => "as asked".to_owned(),
        _ if !ids.has_others() => {
            let why = plan.subordinate.as_ref().err().map_or("", String::as_str);
            format!("the host's files belong to users that this sandbox does not have: {why}")
        }
        (_, None) => "the sandbox has no users of its own".to_owned(),
        (_, Some(namespace)) => match build_layers(plan, ids, root, namespace) {
            Ok(but) => return Ok(System::Writable { but }),
            Err(error) => {
                for name in SHOWN.iter().chain(&[LAYERS]) {
                    // Most are not mounted.
                    let _ = rustix::mount::unmount(*name, UnmountFlags::DETACH);
                }
                format!("the kernel lays nothing over it: {error}")
            }
        },
    };
    for name in SHOWN {
        show(&Path::new("/").join(name), Path::new(name)).map_err(|error| named(name, &error))?;
    }
    Ok(System::ReadOnly { reason })
}

/// Shows what package managers know of the host, once `/var` is there.
pub(super) fn show_packages(plan: &Plan, ids: &Ids, root: &Below, writable: bool) -> io::Result<()> {
    for (path, layer) in PACKAGES {
        let source = Path::new("/").join(path);
        if !source.is_dir() {
            continue;
        }
        match &ids.namespace {
            Some(namespace) if writable => {
                let layers = Layers::open(plan, ids, root, namespace)?;
                if layers.can_lay(layer) {
                    layers.lay(&source, Path::new(path), layer)?;
                } else {
                    show(&source, Path::new(path))?;
                }
                layers.close()?;
            }
            _ => show(&source, Path::new(path))?,
        }
    }
    Ok(())
}

fn named(name: &str, error: &io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("/{name}: {error}"))
}

/// Gives what is not writable.
fn build_layers(plan: &Plan, ids: &Ids, root: &Below, namespace: &OwnedFd) -> io::Result<Option<String>> {
    let layers = Layers::open(plan, ids, root, namespace)?;
    if let Under::Bases(bases) = layers.under
        && bases.is_empty()
    {
        return Err(io::Error::other("nothing of it has a base"));
    }
    let mut unwritable = Vec::new();
    for name in SHOWN {
        let source = Path::new("/").join(name);
        let Ok(metadata) = fs::symlink_metadata(&source) else { continue };
        if metadata.is_symlink() || UNCHANGING.contains(name) {
            show(&source, Path::new(name))?;
        } else if !layers.can_lay(name) {
            show(&source, Path::new(name))?;
            unwritable.push(format!("/{name}"));
        } else {
            layers.lay(&source, Path::new(name), name).map_err(|error| named(name, &error))?;
        }
    }
    for (name, mode) in OWN {
        let source = layers.disk.join(name);
        own_directory(&source, *mode, ids.root)?;
        make_directory(Path::new(name))?;
        rustix::mount::mount_bind(&source, *name)?;
        sys::harden_mount(Path::new(name), false)?;
    }
    let is_based = matches!(layers.under, Under::Bases(_));
    layers.close()?;
    let mut but = Vec::new();
    if is_based {
        but.push("programs of the machine can be removed and replaced there, not changed in place".to_owned());
    }
    if !unwritable.is_empty() {
        but.push(format!("{} is read-only, since more is mounted in it", unwritable.join(", ")));
    }
    Ok((!but.is_empty()).then(|| but.join("; ")))
}

/// Makes a directory of the sandbox's own, unless it is there from its life before.
fn own_directory(path: &Path, mode: u32, owner: u32) -> io::Result<()> {
    match DirBuilder::new().mode(mode).create(path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        Err(error) => Err(error),
        Ok(()) => {
            fs::set_permissions(path, fs::Permissions::from_mode(mode))?;
            chown(path, Some(owner), Some(owner))
        }
    }
}

/// The place in the new root where layers are put together.
struct Layers<'a> {
    /// The sandbox's directory on disk; relative, as all paths here: an option of an overlay takes no `,` and `:`.
    disk: PathBuf,
    root: u32,
    /// The new root: where a layer goes, the sandbox may have put links in its life before.
    below: &'a Below,
    under: Under<'a>,
}

/// What is between a directory of the host and a layer.
enum Under<'a> {
    /// The ids of a namespace, and the rights of nobody.
    Veil(&'a OwnedFd),
    /// A base, of each layer that has one.
    Bases(&'a BTreeMap<String, PathBuf>),
}

impl<'a> Layers<'a> {
    fn open(plan: &'a Plan, ids: &Ids, below: &'a Below, namespace: &'a OwnedFd) -> io::Result<Self> {
        let source = plan.directory.join("system");
        // For nobody but sandboxd, which counts what is there.
        own_directory(&source, 0o700, ids.root)?;
        let place = Path::new(LAYERS);
        make_directory(place)?;
        // Of its own: what an overlay is made of has to stay when the place goes.
        tmpfs(place, ids, 0o755, 1 << 20, 64)?;
        for name in ["disk", "host", "empty", "veil", "base"] {
            make_directory(&place.join(name))?;
        }
        let disk = place.join("disk");
        rustix::mount::mount_bind(&source, &disk)?;
        let under = match ids.others {
            Others::Subordinate => Under::Bases(&plan.bases),
            Others::OfTheMachine | Others::None => Under::Veil(namespace),
        };
        Ok(Self { disk, root: ids.root, below, under })
    }

    fn can_lay(&self, name: &str) -> bool {
        match self.under {
            Under::Veil(_) => true,
            Under::Bases(bases) => bases.contains_key(name),
        }
    }

    /// Lays a layer of the sandbox's own over a directory of the host.
    fn lay(&self, source: &Path, target: &Path, name: &str) -> io::Result<()> {
        let metadata = fs::metadata(source)?;
        let layer = self.disk.join(name);
        let (upper, work) = (layer.join("upper"), layer.join("work"));
        let is_new = !upper.exists();
        for directory in [&layer, &work] {
            own_directory(directory, 0o700, self.root)?;
        }
        own_directory(&upper, metadata.mode() & 0o7777, self.root)?;
        if is_new && name == SETTINGS {
            self.resolve_names(&upper)?;
        }
        let layers = format!("upperdir={},workdir={}", upper.display(), work.display());
        match self.under {
            Under::Veil(namespace) => {
                if is_new {
                    self.replace_hidden(source, name, &upper)?;
                }
                self.lay_over_veil(source, target, namespace, &layers)?;
                self.show_mounted(source, target, is_new)
            }
            Under::Bases(bases) => {
                let base = bases.get(name).ok_or_else(|| io::Error::other("it has no base"))?;
                let place = Path::new(LAYERS).join("base");
                rustix::mount::mount_bind(base, &place)?;
                // Of settings the base has all; and a file that is mounted among the host's could not be under it.
                let host = if name == SETTINGS { String::new() } else { format!(":{}", source.display()) };
                let options = format!("lowerdir={}{host},{layers},{USER_OPTIONS}", place.display());
                let at = self.below.directory(&Path::new("/").join(target))?;
                overlay(&path_of(&at), MountFlags::empty(), &options)?;
                Ok(rustix::mount::unmount(&place, UnmountFlags::DETACH)?)
            }
        }
    }

    fn lay_over_veil(&self, source: &Path, target: &Path, namespace: &OwnedFd, layers: &str) -> io::Result<()> {
        let place = Path::new(LAYERS);
        let (host, veil) = (place.join("host"), place.join("veil"));
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = rustix::mount::open_tree(CWD, source, flags)?;
        sys::map_ids(&tree, namespace)?;
        let at = rustix::fs::open(&host, rustix::fs::OFlags::PATH | rustix::fs::OFlags::CLOEXEC, 0.into())?;
        attach(&tree, at)?;
        let lower = format!("lowerdir={}:{},{OPTIONS}", host.display(), place.join("empty").display());
        sys::as_nobody(|| overlay(&veil, MountFlags::RDONLY, &lower))?;
        let at = self.below.directory(&Path::new("/").join(target))?;
        let options = format!("lowerdir={},{layers},{OPTIONS}", veil.display());
        overlay(&path_of(&at), MountFlags::empty(), &options)?;
        for mount in [&veil, &host] {
            rustix::mount::unmount(mount, UnmountFlags::DETACH)?;
        }
        Ok(())
    }

    /// Shows what the host has mounted below a directory.
    fn show_mounted(&self, source: &Path, target: &Path, is_new: bool) -> io::Result<()> {
        let inside = Path::new("/").join(target);
        for below in mounted_below(source)? {
            let relative = below.strip_prefix(source).map_err(io::Error::other)?;
            // Engines mount single files, such as `/etc/hosts`: a copy can be written.
            if fs::metadata(&below)?.is_file() {
                if is_new && fs::metadata(&below)?.mode() & 0o004 != 0 {
                    self.copy(&below, &target.join(relative))?;
                }
            } else {
                bind_at(&below, self.below.directory(&inside.join(relative))?, true)?;
            }
        }
        Ok(())
    }

    fn replace_hidden(&self, source: &Path, layer: &str, upper: &Path) -> io::Result<()> {
        for replaced @ Replaced { name, .. } in REPLACED.iter().filter(|replaced| replaced.layer == layer) {
            let Ok(hidden) = fs::metadata(source.join(name)) else { continue };
            let path = upper.join(name);
            if let (Some(parent), Some(above)) = (path.parent(), Path::new(name).parent())
                && parent != upper
            {
                own_directory(parent, fs::metadata(source.join(above))?.mode() & 0o7777, self.root)?;
            }
            fs::write(&path, replaced.text())?;
            fs::set_permissions(&path, fs::Permissions::from_mode(hidden.mode() & 0o777))?;
            // Programs that check passwords run as its group.
            let group = Some(hidden.gid()).filter(|gid| *gid < IDS).unwrap_or(0);
            chown(&path, Some(self.root), Some(self.root + group))?;
        }
        Ok(())
    }

    /// `resolv.conf` is often a link into `/run`, where a sandbox has its own.
    fn resolve_names(&self, upper: &Path) -> io::Result<()> {
        let resolver = Path::new("/etc/resolv.conf");
        if fs::symlink_metadata(resolver).is_ok_and(|metadata| metadata.is_symlink()) && resolver.exists() {
            self.copy(resolver, &upper.join("resolv.conf"))?;
        }
        Ok(())
    }

    fn copy(&self, source: &Path, target: &Path) -> io::Result<()> {
        let _ = fs::remove_file(target);
        fs::copy(source, target)?;
        fs::set_permissions(target, fs::Permissions::from_mode(0o644))?;
        chown(target, Some(self.root), Some(self.root))
    }

    /// Takes the place away; the mounts that were made from it keep what they need.
    fn close(self) -> io::Result<()> {
        rustix::mount::unmount(LAYERS, UnmountFlags::DETACH)?;
        fs::remove_dir(LAYERS)
    }
}

impl Replaced {
    fn find(layer: &str, name: &Path) -> Option<&'static Self> {
        REPLACED.iter().find(|replaced| replaced.layer == layer && Path::new(replaced.name) == name)
    }

    fn text(&self) -> String {
        let Some((names, rest)) = self.lines else { return String::new() };
        let names = fs::read_to_string(Path::new("/etc").join(names)).unwrap_or_default();
        names.lines().filter_map(|line| Some(line.split_once(':')?.0.to_owned() + rest)).collect()
    }
}

/// Whether a sandbox has another file of this name.
pub(super) fn is_replaced(layer: &str, name: &Path) -> bool {
    Replaced::find(layer, name).is_some()
}

/// What is in the file that a sandbox has instead.
pub(super) fn hidden_text(layer: &str, name: &Path) -> String {
    Replaced::find(layer, name).map(Replaced::text).unwrap_or_default()
}

/// A path to what a descriptor names, for calls that take no descriptor.
fn path_of(file: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

fn overlay(target: &Path, flags: MountFlags, options: &str) -> io::Result<()> {
    let options = CString::new(options)?;
    let flags = flags | MountFlags::NOSUID | MountFlags::NODEV;
    Ok(rustix::mount::mount("overlay", target, "overlay", flags, options.as_c_str())?)
}

/// What the host has mounted below a directory, without what is below that again: an overlay does not show it.
pub(in crate::local) fn mounted_below(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut found = paths_below(&fs::read_to_string("/proc/self/mountinfo")?, directory);
    found.retain(|path| fs::symlink_metadata(path).is_ok_and(|metadata| metadata.is_dir() || metadata.is_file()));
    Ok(found)
}

fn paths_below(mountinfo: &str, directory: &Path) -> Vec<PathBuf> {
    let path = |line: &str| line.split(' ').nth(4).map(|path| PathBuf::from(unescaped(path)));
    let mut all: Vec<PathBuf> = mountinfo.lines().filter_map(path).collect();
    all.retain(|path| path != directory && path.starts_with(directory));
    all.sort();
    let mut top: Vec<PathBuf> = Vec::new();
    for path in all {
        if !top.last().is_some_and(|above| path.starts_with(above)) {
            top.push(path);
        }
    }
    top
}

/// A path of mountinfo: blanks, tabs, line ends and backslashes are octal numbers there.
fn unescaped(path: &str) -> String {
    let escapes = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    escapes.iter().fold(path.to_owned(), |path, (escape, character)| path.replace(escape, character))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_below_a_directory_are_found_with_odd_names_and_without_what_is_in_them() {
        let line = |path: &str| format!("36 35 98:0 / {path} rw,noatime master:1 - ext3 /dev/root rw\n");
        let paths = ["/", "/usr", "/usr/local", "/usr/local/a", "/usr2", "/etc/hosts", "/usr/a\\040b", "/usr/local"];
        let info: String = paths.into_iter().map(line).collect();
        assert_eq!(paths_below(&info, Path::new("/usr")), [Path::new("/usr/a b"), Path::new("/usr/local")]);
        assert_eq!(paths_below(&info, Path::new("/etc")), [Path::new("/etc/hosts")]);
        assert_eq!(paths_below(&info, Path::new("/opt")), [] as [&Path; 0]);
    }
}
