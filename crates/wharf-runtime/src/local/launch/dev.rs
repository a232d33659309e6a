//! `/dev`: the devices that have no power, and terminals of the sandbox's own.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, chown, symlink},
    path::Path,
};

use rustix::{
    fs::{FileType, Mode},
    mount::{MountFlags, UnmountFlags},
};

use super::{
    ids::{Ids, Others},
    root::{make_directory, tmpfs},
};
use crate::local::plan::Plan;

const DEVICES: &[&str] = &["null", "zero", "full", "random", "urandom", "tty"];

pub(super) fn build_dev(root: &Path, plan: &Plan, ids: &Ids) -> io::Result<()> {
    let dev = root.join("dev");
    fs::create_dir(&dev)?;
    tmpfs(&dev, ids, 0o755, 1 << 20, 1024)?;
    for name in DEVICES {
        let target = dev.join(name);
        File::create(&target)?;
        rustix::mount::mount_bind(Path::new("/dev").join(name), &target)?;
    }
    show_devices(plan, root, ids)?;
    fs::create_dir(dev.join("pts"))?;
    let options = c"newinstance,ptmxmode=0666,mode=620";
    rustix::mount::mount("devpts", dev.join("pts"), "devpts", MountFlags::NOSUID | MountFlags::NOEXEC, options)?;
    for (name, target) in [
        ("ptmx", "pts/ptmx"),
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ] {
        symlink(target, dev.join(name))?;
    }
    Ok(())
}

/// Shows devices that were asked for. As root they are made anew, as root's of the sandbox; an ordinary user has what rights
/// it has outside.
fn show_devices(plan: &Plan, root: &Path, ids: &Ids) -> io::Result<()> {
    if plan.devices.is_empty() {
        return Ok(());
    }
    let nodes = root.join("devices");
    fs::create_dir(&nodes)?;
    if ids.others == Others::OfTheMachine {
        rustix::mount::mount("tmpfs", &nodes, "tmpfs", MountFlags::NOSUID | MountFlags::NOEXEC, c"mode=755,size=64k")?;
    }
    for (at, device) in plan.devices.iter().enumerate() {
        let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", device.display()));
        let target = root.join(device.strip_prefix("/").map_err(io::Error::other)?);
        if let Some(parent) = target.parent() {
            make_directory(parent).map_err(named)?;
        }
        File::create(&target).map_err(named)?;
        if ids.others == Others::OfTheMachine {
            let node = nodes.join(at.to_string());
            make_node(device, &node, ids.root).map_err(named)?;
            rustix::mount::mount_bind(&node, &target).map_err(io::Error::from).map_err(named)?;
        } else {
            rustix::mount::mount_bind(device, &target).map_err(io::Error::from).map_err(named)?;
        }
    }
    if ids.others == Others::OfTheMachine {
        rustix::mount::unmount(&nodes, UnmountFlags::DETACH)?;
    }
    fs::remove_dir(&nodes)
}

/// Makes the same device again, for the sandbox's users as for the host's.
fn make_node(device: &Path, node: &Path, owner: u32) -> io::Result<()> {
    let metadata = fs::metadata(device)?;
    let kind = if metadata.file_type().is_block_device() { FileType::BlockDevice } else { FileType::CharacterDevice };
    let mode = Mode::from_raw_mode(metadata.mode() & 0o777);
    rustix::fs::mknodat(rustix::fs::CWD, node, kind, mode, metadata.rdev())?;
    fs::set_permissions(node, fs::Permissions::from_mode(metadata.mode() & 0o777))?;
    chown(node, Some(owner), Some(owner))
}
