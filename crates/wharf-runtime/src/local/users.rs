//! Whom a sandbox's commands run as. Pure, but for what reads the machine's users.

use std::{
    borrow::Cow,
    fs,
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};

/// The user of a sandbox, by its numbers inside.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SandboxUser {
    pub(super) name: String,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) home: PathBuf,
    pub(super) shell: PathBuf,
}

/// Who makes a sandbox.
#[derive(Debug, Clone)]
pub(super) struct Caller {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// What the caller's environment says that it is called, for a machine whose `/etc/passwd` does not say.
    pub(super) name: Option<String>,
}

impl Caller {
    pub(super) fn of_this_process() -> Self {
        Self {
            uid: rustix::process::geteuid().as_raw(),
            gid: rustix::process::getegid().as_raw(),
            name: std::env::var("USER").ok(),
        }
    }
}

/// The first id that a user gets whom the machine does not know.
const FIRST_UID: u32 = 1000;
/// `(uid_t) -1` means nobody at all.
const NO_ID: u32 = u32::MAX;

/// Finds the user that was asked for as `NAME` or `UID[:GID]`: one of the machine's, else a new one. Without a word it is
/// the caller; root's sandboxes have root. `alone` is why an ordinary caller's sandbox has no other users, if so.
///
/// # Errors
///
/// Why it cannot be.
pub(super) fn plan_user(
    asked: Option<&str>,
    caller: &Caller,
    alone: Option<&String>,
    passwd: &str,
) -> Result<SandboxUser, Cow<'static, str>> {
    let user = match asked {
        None => of_id(caller.uid, caller.gid, caller.name.as_deref(), passwd),
        Some(asked) if asked.starts_with(|first: char| first.is_ascii_digit()) => {
            let (uid, gid) = asked.split_once(':').map_or((asked, None), |(uid, gid)| (uid, Some(gid)));
            let number = |text: &str| text.parse().ok().filter(|id| *id != NO_ID);
            let uid = number(uid).ok_or("a user's number is below 4294967295")?;
            let known = entries(passwd).find(|user| user.uid == uid).map(|user| user.gid);
            let gid = match gid {
                Some(gid) => number(gid).ok_or("a group's number is below 4294967295")?,
                None if uid == caller.uid => caller.gid,
                None => known.unwrap_or(uid),
            };
            of_id(uid, gid, None, passwd)
        }
        Some(name) if !is_name(name) => {
            return Err("a user's name has 1 to 32 of a-z, 0-9, `_` and `-`; or give UID[:GID]".into());
        }
        Some(name) => match entries(passwd).find(|user| user.name == name) {
            Some(user) => user,
            None => {
                let is_free = |id: &u32| !entries(passwd).any(|user| user.uid == *id);
                let uid = (FIRST_UID..NO_ID).find(is_free).ok_or("no number is left for it")?;
                new(name, uid, uid)
            }
        },
    };
    if let Some(why) = alone
        && caller.uid != 0
        && user.uid != caller.uid
        && user.uid != 0
    {
        return Err(
            format!("your sandboxes have you or, as `root`, root: the kernel maps one id for them ({why})").into()
        );
    }
    Ok(if user.uid == 0 { user } else { with_home(user) })
}

fn of_id(uid: u32, gid: u32, name: Option<&str>, passwd: &str) -> SandboxUser {
    if let Some(user) = entries(passwd).find(|user| user.uid == uid) {
        return SandboxUser { gid, ..user };
    }
    let is_free = |name: &&str| is_name(name) && !entries(passwd).any(|user| user.name == *name);
    match name.filter(is_free) {
        Some(name) => new(name, uid, gid),
        None => new(&format!("user{uid}"), uid, gid),
    }
}

/// Whoever the machine does not know.
fn new(name: &str, uid: u32, gid: u32) -> SandboxUser {
    SandboxUser { name: name.to_owned(), uid, gid, home: PathBuf::new(), shell: PathBuf::from("/bin/bash") }
}

/// A home where a sandbox has files of its own, and a shell that is one.
fn with_home(user: SandboxUser) -> SandboxUser {
    let is_shell =
        !user.shell.as_os_str().is_empty() && !user.shell.ends_with("nologin") && !user.shell.ends_with("false");
    let shell = if is_shell { user.shell.clone() } else { PathBuf::from("/bin/bash") };
    let is_own = user.home.parent() == Some(Path::new("/home"));
    let home = if is_own { user.home.clone() } else { Path::new("/home").join(&user.name) };
    SandboxUser { home, shell, ..user }
}

fn is_name(name: &str) -> bool {
    (1..=32).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'-'))
        && !name.starts_with(|first: char| first.is_ascii_digit() || first == '-')
}

/// The users of a `/etc/passwd`; broken lines are passed over.
fn entries(passwd: &str) -> impl Iterator<Item = SandboxUser> {
    passwd.lines().filter_map(|line| {
        let mut fields = line.split(':');
        let (name, uid, gid) = (fields.next()?, fields.nth(1)?.parse().ok()?, fields.next()?.parse().ok()?);
        let (home, shell) = (fields.nth(1)?, fields.next()?);
        Some(SandboxUser { name: name.to_owned(), uid, gid, home: home.into(), shell: shell.into() })
    })
}

/// The users of a `/etc/passwd` that have a home of their own below `/home`, as its name, and their ids.
pub(super) fn homes_in(passwd: &str) -> Vec<(String, u32, u32)> {
    let home = |user: SandboxUser| {
        let name = user.home.strip_prefix("/home").ok()?.to_str()?.to_owned();
        (!name.is_empty() && !name.contains('/') && name != "..").then_some((name, user.uid, user.gid))
    };
    entries(passwd).filter_map(home).collect()
}

/// The machine's users.
pub(super) fn passwd() -> String {
    fs::read("/etc/passwd").map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

/// `/etc/passwd` with this user in it, as it is in the sandbox; `None` if it is there as it is.
pub(super) fn passwd_with(passwd: &str, user: &SandboxUser) -> Option<String> {
    if entries(passwd).find(|found| found.name == user.name).as_ref() == Some(user) {
        return None;
    }
    let SandboxUser { name, uid, gid, home, shell } = user;
    let line = format!("{name}:x:{uid}:{gid}::{}:{}", home.display(), shell.display());
    let is_other = |line: &&str| line.split(':').next() != Some(name);
    Some(lines(passwd.lines().filter(is_other).chain([line.as_str()])))
}

/// `/etc/group` with the group of this user in it; `None` if there is one of this number.
pub(super) fn group_with(group: &str, user: &SandboxUser) -> Option<String> {
    let mut known = group.lines().map(|line| line.split(':').collect::<Vec<_>>());
    if known.clone().any(|fields| fields.get(2).and_then(|gid| gid.parse().ok()) == Some(user.gid)) {
        return None;
    }
    let is_taken = known.any(|fields| fields.first() == Some(&user.name.as_str()));
    let name = if is_taken { format!("group{}", user.gid) } else { user.name.clone() };
    Some(lines(group.lines().chain([format!("{name}:x:{}:", user.gid).as_str()])))
}

fn lines<'a>(lines: impl Iterator<Item = &'a str>) -> String {
    lines.fold(String::new(), |text, line| text + line + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\nbroken\nann:x:1000:100:Ann:/home/ann:/bin/zsh\n\
                          www:x:33:33::/var/www:/usr/sbin/nologin\n";

    fn user(name: &str, uid: u32, gid: u32, home: &str, shell: &str) -> SandboxUser {
        SandboxUser { name: name.into(), uid, gid, home: home.into(), shell: shell.into() }
    }

    #[track_caller]
    fn check(asked: Option<&str>, caller: (u32, u32, Option<&str>), expected: Result<SandboxUser, &str>) {
        let caller = Caller { uid: caller.0, gid: caller.1, name: caller.2.map(str::to_owned) };
        let alone = "no range".to_owned();
        let planned = plan_user(asked, &caller, Some(&alone), PASSWD);
        match (planned, expected) {
            (Ok(planned), Ok(expected)) => assert_eq!(planned, expected),
            (Err(reason), Err(expected)) => assert!(reason.contains(expected), "{reason}"),
            (planned, expected) => panic!("{planned:?}, not {expected:?}"),
        }
    }

    #[test]
    fn the_caller_is_the_user_unless_another_is_asked_for() {
        let root = (0, 0, Some("root"));
        check(None, root, Ok(user("root", 0, 0, "/root", "/bin/bash")));
        check(None, (1000, 100, None), Ok(user("ann", 1000, 100, "/home/ann", "/bin/zsh")));
        check(None, (1000, 7, None), Ok(user("ann", 1000, 7, "/home/ann", "/bin/zsh")));
        check(None, (5000, 5001, Some("bob")), Ok(user("bob", 5000, 5001, "/home/bob", "/bin/bash")));
        for taken in [None, Some("ann"), Some("a:b"), Some("")] {
            check(None, (5000, 5000, taken), Ok(user("user5000", 5000, 5000, "/home/user5000", "/bin/bash")));
        }
    }

    #[test]
    fn root_asks_for_any_user_by_name_or_number() {
        let root = (0, 0, None);
        check(Some("ann"), root, Ok(user("ann", 1000, 100, "/home/ann", "/bin/zsh")));
        check(Some("1000"), root, Ok(user("ann", 1000, 100, "/home/ann", "/bin/zsh")));
        check(Some("1000:5"), root, Ok(user("ann", 1000, 5, "/home/ann", "/bin/zsh")));
        check(Some("70000"), root, Ok(user("user70000", 70_000, 70_000, "/home/user70000", "/bin/bash")));
        check(Some("agent"), root, Ok(user("agent", 1001, 1001, "/home/agent", "/bin/bash")));
        check(Some("www"), root, Ok(user("www", 33, 33, "/home/www", "/bin/bash")));
        check(Some("0"), root, Ok(user("root", 0, 0, "/root", "/bin/bash")));
        for wrong in ["", "a:b", "A", "1000:", "4294967295", "1x", "-x", "5:x", "../x"] {
            check(Some(wrong), root, Err("'s n"));
        }
    }

    #[test]
    fn an_ordinary_user_has_itself_or_root() {
        let ann = (1000, 100, None);
        check(Some("root"), ann, Ok(user("root", 0, 0, "/root", "/bin/bash")));
        check(Some("ann"), ann, Ok(user("ann", 1000, 100, "/home/ann", "/bin/zsh")));
        check(Some("33"), ann, Err("one id for them (no range)"));
        let caller = Caller { uid: 1000, gid: 100, name: None };
        assert_eq!(plan_user(Some("33"), &caller, None, PASSWD).unwrap().name, "www");
    }

    #[test]
    fn homes_are_those_below_home_alone() {
        let more = "a:x:5:6::/home:/bin/sh\nb:x:7:8::/home/..:/bin/sh\nc:x:9:9::/home/x/y:/bin/sh\n";
        assert_eq!(homes_in(&(PASSWD.to_owned() + more)), [("ann".to_owned(), 1000, 100)]);
    }

    #[test]
    fn the_systems_files_name_the_user_once() {
        let ann = user("ann", 1000, 100, "/home/ann", "/bin/zsh");
        assert_eq!(passwd_with(PASSWD, &ann), None);
        let moved = SandboxUser { home: "/home/new".into(), ..ann };
        let text = passwd_with(PASSWD, &moved).unwrap();
        assert_eq!(text.matches("ann:").count(), 1, "{text}");
        assert_eq!(entries(&text).find(|user| user.uid == 1000), Some(moved.clone()));
        assert_eq!(passwd_with(&text, &moved), None);
        assert_eq!(group_with("users:x:100:\n", &moved), None);
        assert_eq!(group_with("ann:x:5:\n", &moved).unwrap(), "ann:x:5:\ngroup100:x:100:\n");
        assert_eq!(group_with("", &moved).unwrap(), "ann:x:100:\n");
    }
}
