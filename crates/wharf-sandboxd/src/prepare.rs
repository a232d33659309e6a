//! What is made for a sandbox before it starts, by the very user that it will run as: a working directory of this user's own
//! in a volume whose root may be anybody's, and a passwd and a group file in which the user has a name.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _, symlink},
    path::Path,
};

use anyhow::Context as _;

use crate::process::users;

/// What a file system has in its root by itself.
const LOST_AND_FOUND: &str = "lost+found";

/// Carries out `wharf-sandboxd prepare`. Safe to repeat.
///
/// # Errors
///
/// When something cannot be made; the path is named.
pub(crate) fn prepare(workspace: &Path, etc: &Path, home: &Path) -> anyhow::Result<()> {
    make_workspace(workspace)
        .with_context(|| format!("could not make the working directory `{}`", workspace.display()))?;
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let (passwd, group) = users::with_user(&read("/etc/passwd"), &read("/etc/group"), uid, gid, home);
    for (name, text) in [("passwd", passwd), ("group", group)] {
        let path = etc.join(name);
        let written =
            fs::write(&path, text).and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(0o644)));
        written.with_context(|| format!("could not write `{}`", path.display()))?;
    }
    Ok(())
}

/// Makes a directory of our own, or leads to the volume's root if that has files already: somebody put them there to be seen.
fn make_workspace(workspace: &Path) -> io::Result<()> {
    if fs::symlink_metadata(workspace).is_ok() {
        return Ok(());
    }
    let volume = workspace.parent().ok_or_else(|| io::Error::other("it has no parent"))?;
    let has_files = fs::read_dir(volume)?.any(|entry| entry.is_ok_and(|entry| entry.file_name() != LOST_AND_FOUND));
    if has_files {
        return symlink(".", workspace);
    }
    fs::DirBuilder::new().mode(0o775).create(workspace)?;
    // Who comes with another number and the same group may write too, whatever our umask is.
    let shared = fs::symlink_metadata(volume)?.mode() & 0o2000;
    fs::set_permissions(workspace, fs::Permissions::from_mode(0o775 | shared))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_working_directory_is_ours_and_a_volume_with_files_shows_them() {
        let volume = tempfile::tempdir().unwrap();
        fs::create_dir(volume.path().join(LOST_AND_FOUND)).unwrap();
        let workspace = volume.path().join(".wharf-workspace");
        make_workspace(&workspace).unwrap();
        assert!(fs::symlink_metadata(&workspace).unwrap().is_dir());
        fs::write(workspace.join("note"), "kept").unwrap();
        make_workspace(&workspace).unwrap();
        assert_eq!(fs::read_to_string(workspace.join("note")).unwrap(), "kept");

        let old = tempfile::tempdir().unwrap();
        fs::write(old.path().join("note"), "from before").unwrap();
        let workspace = old.path().join(".wharf-workspace");
        make_workspace(&workspace).unwrap();
        make_workspace(&workspace).unwrap();
        assert_eq!(fs::read_to_string(workspace.join("note")).unwrap(), "from before");
    }
}
