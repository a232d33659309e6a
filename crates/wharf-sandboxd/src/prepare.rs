//! What is made for a sandbox before it starts, by the very user that it will run as: a working directory of this user's own
//! in a volume whose root may be anybody's, and a passwd and a group file in which the user has a name.

use std::{
    fs, io,
    os::unix::fs::{DirBuilderExt as _, MetadataExt as _, PermissionsExt as _, symlink},
    path::{Path, PathBuf},
};

use anyhow::Context as _;

use crate::{options::PrepareOptions, process::users};

/// What a file system has in its root by itself.
const LOST_AND_FOUND: &str = "lost+found";

/// Carries out `wharf-sandboxd prepare`. Safe to repeat, and to do twice at the same time.
///
/// # Errors
///
/// When something cannot be made; the path is named.
pub(crate) fn prepare(options: &PrepareOptions) -> anyhow::Result<()> {
    let PrepareOptions { workspace, etc, home } = options;
    make_workspace(workspace)
        .with_context(|| format!("could not make the working directory `{}`", workspace.display()))?;
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let (passwd, group) = users::with_user(&read("/etc/passwd"), &read("/etc/group"), uid, gid, home);
    for (name, text) in [("passwd", passwd), ("group", group)] {
        let path = etc.join(name);
        clear_foreign_directory(&path);
        // Whole at every moment: a sandbox may be started in the midst of a second time.
        let written = tempfile_beside(etc, &text).and_then(|file| fs::rename(file, &path));
        written.with_context(|| format!("could not write `{}`", path.display()))?;
    }
    Ok(())
}

/// A file of `text` that everybody may read, under a name that is nobody else's.
fn tempfile_beside(directory: &Path, text: &str) -> io::Result<PathBuf> {
    let path = directory.join(format!(".{}", std::process::id()));
    fs::write(&path, text)?;
    fs::set_permissions(&path, fs::Permissions::from_mode(0o644))?;
    Ok(path)
}

/// Removes a directory that a kubelet has made where it found nothing to mount.
fn clear_foreign_directory(path: &Path) {
    let ours = rustix::process::geteuid().as_raw();
    if fs::symlink_metadata(path).is_ok_and(|found| found.is_dir() && found.uid() != ours) {
        // Only an empty one goes; one that stays is told by what fails next, or is somebody's.
        let _ = fs::remove_dir(path);
    }
}

/// Makes a directory of our own, or leads to the volume's root if that has files already: somebody put them there to be seen.
fn make_workspace(workspace: &Path) -> io::Result<()> {
    clear_foreign_directory(workspace);
    if fs::symlink_metadata(workspace).is_ok() {
        return Ok(());
    }
    let volume = workspace.parent().ok_or_else(|| io::Error::other("it has no parent"))?;
    let name = workspace.file_name();
    let is_file = |entry: io::Result<fs::DirEntry>| {
        entry.is_ok_and(|entry| entry.file_name() != LOST_AND_FOUND && Some(&*entry.file_name()) != name)
    };
    let made = if fs::read_dir(volume)?.any(is_file) {
        symlink(".", workspace)
    } else {
        fs::DirBuilder::new().mode(0o775).create(workspace)
    };
    match made {
        // By the other one of us, who goes on with it.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
        made => made?,
    }
    if !fs::symlink_metadata(workspace)?.is_dir() {
        return Ok(());
    }
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

        // As a kubelet makes it for a sandbox that it starts too early; tests run as root, who is nobody's stranger.
        let made_by_another = |path: &Path| {
            fs::create_dir(path).unwrap();
            std::os::unix::fs::chown(path, Some(4242), None).unwrap();
        };
        let early = tempfile::tempdir().unwrap();
        let workspace = early.path().join(".wharf-workspace");
        made_by_another(&workspace);
        make_workspace(&workspace).unwrap();
        assert_eq!(fs::symlink_metadata(&workspace).unwrap().uid(), rustix::process::geteuid().as_raw());
        fs::remove_dir(&workspace).unwrap();
        made_by_another(&workspace);
        fs::write(workspace.join("note"), "kept").unwrap();
        make_workspace(&workspace).unwrap();
        assert_eq!(fs::read_to_string(workspace.join("note")).unwrap(), "kept");
        let etc = tempfile::tempdir().unwrap();
        made_by_another(&etc.path().join("passwd"));
        let home = "/workspace".into();
        prepare(&PrepareOptions { workspace, etc: etc.path().to_owned(), home }).unwrap();
        assert!(fs::read_to_string(etc.path().join("passwd")).unwrap().contains(":/"));

        let old = tempfile::tempdir().unwrap();
        fs::write(old.path().join("note"), "from before").unwrap();
        let workspace = old.path().join(".wharf-workspace");
        make_workspace(&workspace).unwrap();
        make_workspace(&workspace).unwrap();
        assert_eq!(fs::read_to_string(workspace.join("note")).unwrap(), "from before");
    }
}
