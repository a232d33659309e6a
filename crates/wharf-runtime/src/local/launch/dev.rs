//! `/dev`: the devices that have no power, and terminals of the sandbox's own.

use std::{
    fs::{self, File},
    io,
    os::unix::fs::symlink,
    path::Path,
};

use rustix::mount::MountFlags;

use super::{ids::Ids, root::tmpfs};

const DEVICES: &[&str] = &["null", "zero", "full", "random", "urandom", "tty"];

pub(super) fn build_dev(root: &Path, ids: &Ids) -> io::Result<()> {
    let dev = root.join("dev");
    fs::create_dir(&dev)?;
    tmpfs(&dev, ids, 0o755, 1 << 20, 1024)?;
    for name in DEVICES {
        let target = dev.join(name);
        File::create(&target)?;
        rustix::mount::mount_bind(Path::new("/dev").join(name), &target)?;
    }
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
