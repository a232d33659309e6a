//! Whose rights file work is done with: the one place that says so.
//!
//! Every path of a request is opened, made, replaced, listed and removed with the rights of the sandbox's user, on a
//! thread that has taken them on. Links are followed as far as that user may go, so its own links work as for any of
//! its programs; a link that it, or what runs as it, puts in our way leads nowhere where it could not have gone
//! itself. sandboxd's own rights, which may be root's, are used on open descriptors alone, never on a name.
//!
//! Where sandboxd is not root, or the user is root, there is nothing to take on.

use std::{io, sync::Arc};

use rustix::{
    process::{Gid, Uid},
    thread::{set_thread_groups, set_thread_res_gid, set_thread_res_uid},
};

use crate::process::users::User;

/// The rights of the sandbox's user.
#[derive(Debug, Clone)]
pub struct Rights(Option<Arc<Credentials>>);

#[derive(Debug)]
struct Credentials {
    uid: Uid,
    gid: Gid,
    groups: Vec<Gid>,
}

impl Rights {
    /// Those of `user`, as a process started as it has them.
    pub fn of(user: &User) -> Self {
        if user.uid == 0 || !rustix::process::geteuid().is_root() {
            return Self(None);
        }
        Self(Some(Arc::new(Credentials {
            uid: Uid::from_raw(user.uid),
            gid: Gid::from_raw(user.gid),
            groups: user.groups.iter().copied().map(Gid::from_raw).collect(),
        })))
    }

    /// sandboxd's own.
    pub fn own() -> Self {
        Self(None)
    }

    /// Does blocking work on this thread with these rights.
    ///
    /// # Errors
    ///
    /// As the operating system says if the rights cannot be taken on; then nothing was done.
    ///
    /// # Panics
    ///
    /// Passes a panic of `work` on, with sandboxd's own rights again.
    pub fn run<T>(&self, work: impl FnOnce() -> T) -> io::Result<T> {
        let Some(credentials) = &self.0 else { return Ok(work()) };
        let _taken = Taken::on(credentials)?;
        Ok(work())
    }
}

/// The rights of this thread are another's until it is dropped. The kernel keeps rights for each thread; the C library's
/// functions would change those of all.
struct Taken {
    uid: Uid,
    gid: Gid,
    groups: Vec<Gid>,
}

impl Taken {
    fn on(credentials: &Credentials) -> io::Result<Self> {
        let before = Self {
            uid: rustix::process::geteuid(),
            gid: rustix::process::getegid(),
            groups: rustix::process::getgroups()?,
        };
        set_thread_groups(&credentials.groups)?;
        // From here on dropping `before` gives back what was taken on so far. The effective id decides about files, and
        // with it all capabilities go; real and saved id stay, to come back.
        set_thread_res_gid(None, credentials.gid, None)?;
        set_thread_res_uid(None, credentials.uid, None)?;
        Ok(before)
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let back = set_thread_res_uid(None, self.uid, None)
            .and_then(|()| set_thread_res_gid(None, self.gid, None))
            .and_then(|()| set_thread_groups(&self.groups));
        if back.is_err() {
            // The thread goes back to a pool and would do others' work with the wrong rights.
            std::process::abort();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        os::unix::fs::{MetadataExt, PermissionsExt, chown},
    };

    use super::*;

    fn nobody() -> Rights {
        let user = User {
            name: "n".into(),
            uid: 54_321,
            gid: 54_322,
            groups: vec![54_323],
            home: "/".into(),
            shell: "/bin/sh".into(),
        };
        Rights::of(&user)
    }

    #[test]
    fn work_is_done_as_the_user_and_the_thread_comes_back() {
        let directory = tempfile::tempdir().unwrap();
        fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o777)).unwrap();
        let (theirs, groups, secret) = ["theirs", "groups", "secret"].map(|name| directory.path().join(name)).into();
        for (path, mode, gid) in [(&secret, 0o600, 0), (&groups, 0o640, 54_323)] {
            fs::write(path, "x").unwrap();
            chown(path, None, Some(gid)).unwrap();
            fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
        }
        let done = nobody()
            .run(|| (fs::write(&theirs, ""), fs::read(&groups), fs::read(&secret), chown(&groups, Some(1), None)));
        let (written, read, refused, kept) = done.unwrap();
        assert!(written.is_ok() && read.is_ok() && refused.is_err() && kept.is_err(), "run the tests as root");
        let metadata = fs::metadata(theirs).unwrap();
        assert_eq!((metadata.uid(), metadata.gid()), (54_321, 54_322));
        fs::read(&secret).unwrap();
        let panicked = std::panic::catch_unwind(|| nobody().run(|| panic!("of the work")));
        assert!(panicked.is_err());
        fs::read(&secret).unwrap();
        assert!(rustix::process::geteuid().is_root());
    }
}
