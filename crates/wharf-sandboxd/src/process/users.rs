//! The users of the sandbox's image, read from `/etc/passwd` and `/etc/group` by ourselves: a static glibc binary must
//! not call `getpwnam`, which loads modules of the host's libc.

use std::{
    fs,
    io::{self, Read, Write},
    os::unix::fs::{OpenOptionsExt, PermissionsExt, chown},
    path::{Path, PathBuf},
};

const PASSWD: &str = "/etc/passwd";
const GROUP: &str = "/etc/group";
/// A longer list of users is as good as none.
const LONGEST_LIST: u64 = 16 << 20;

/// Whom a process runs as.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    pub name: String,
    pub uid: u32,
    pub gid: u32,
    /// All supplementary groups, without a fixed order.
    pub groups: Vec<u32>,
    pub home: PathBuf,
    pub shell: PathBuf,
}

impl User {
    /// Whether the image knows nothing of it but its number.
    pub fn is_nameless(&self) -> bool {
        *self == User { gid: self.gid, ..nameless(self.uid) }
    }
}

/// Why a user could not be made.
#[derive(Debug, thiserror::Error)]
pub enum UserError {
    #[error("the user name `{0}` is not valid: it has 1 to 32 characters of a-z, 0-9, `_` and `-`")]
    Name(String),
    #[error("user `{0}` does not exist, and only root can make it")]
    NotRoot(String),
    #[error("this sandbox does not run as root: nothing in it can run as `{0}`")]
    NotOurs(String),
    #[error("this sandbox has no {kind} {id} for `{name}`: its namespace has only {there}")]
    NotMapped { name: String, kind: &'static str, id: u32, there: String },
    #[error("could not make user `{name}`")]
    Create { name: String, source: io::Error },
}

/// A user of the image by name or by number. A number without an entry is a user without a name.
pub fn find_user(name_or_uid: &str) -> Option<User> {
    let (passwd, group) = (read(PASSWD), read(GROUP));
    parse_user(&passwd, &group, |name, uid| name == name_or_uid || uid.to_string() == name_or_uid)
        .or_else(|| name_or_uid.parse().ok().map(nameless))
}

/// Whom sandboxd itself runs as.
pub fn current_user() -> User {
    let uid = rustix::process::geteuid().as_raw();
    let (passwd, group) = (read(PASSWD), read(GROUP));
    let mut user = parse_user(&passwd, &group, |_, found| found == uid).unwrap_or_else(|| nameless(uid));
    user.gid = rustix::process::getegid().as_raw();
    user
}

/// A passwd and a group file in which a user has a name: the image's own lines, and what they lack.
pub(crate) fn with_user(passwd: &str, group: &str, uid: u32, gid: u32, home: &Path) -> (String, String) {
    const NAME: &str = "sandbox";
    let lines = |text: &str, otherwise: &str| {
        let text = if text.trim().is_empty() { otherwise } else { text };
        format!("{}\n", text.trim_end_matches('\n'))
    };
    let mut passwd = lines(passwd, "root:x:0:0:root:/root:/bin/sh");
    let mut group = lines(group, "root:x:0:");
    if parse_user(&passwd, "", |_, found| found == uid).is_none() {
        let is_taken = parse_user(&passwd, "", |name, _| name == NAME).is_some();
        let name = if is_taken { format!("{NAME}-{uid}") } else { NAME.to_owned() };
        let shell = if Path::new("/bin/bash").exists() { "/bin/bash" } else { "/bin/sh" };
        // A colon would end the field.
        let home = home.to_str().filter(|home| !home.contains([':', '\n'])).unwrap_or("/");
        passwd += &format!("{name}:x:{uid}:{gid}:{name}:{home}:{shell}\n");
    }
    let has_group = |line: &str| line.split(':').nth(2) == Some(gid.to_string().as_str());
    if !group.lines().any(has_group) {
        let is_taken = group.lines().any(|line| line.split(':').next() == Some(NAME));
        let name = if is_taken { format!("{NAME}-{gid}") } else { NAME.to_owned() };
        group += &format!("{name}:x:{gid}:\n");
    }
    (passwd, group)
}

/// The name of a uid, or the number as text.
pub fn name_of(uid: u32) -> String {
    parse_user(&read(PASSWD), "", |_, found| found == uid).map_or_else(|| uid.to_string(), |user| user.name)
}

/// The id of a group of the image by name, or of a number.
pub fn find_group(name_or_gid: &str) -> Option<u32> {
    let group = read(GROUP);
    let named = group.lines().find_map(|line| {
        let mut fields = line.split(':');
        (fields.next()? == name_or_gid).then(|| fields.nth(1)?.parse().ok()).flatten()
    });
    named.or_else(|| name_or_gid.parse().ok())
}

/// The user, if processes can be started as it: only root can become another.
///
/// # Errors
///
/// [`UserError::NotOurs`], [`UserError::NotMapped`].
pub fn usable(user: User) -> Result<User, UserError> {
    let ourselves = rustix::process::geteuid();
    if ourselves.as_raw() == user.uid {
        return Ok(user);
    }
    check_mapped(&user.name, "user", user.uid, &read("/proc/self/uid_map"))?;
    if !ourselves.is_root() {
        return Err(UserError::NotOurs(user.name));
    }
    let groups = read("/proc/self/gid_map");
    for gid in std::iter::once(user.gid).chain(user.groups.iter().copied()) {
        check_mapped(&user.name, "group", gid, &groups)?;
    }
    Ok(user)
}

/// Whether a user namespace with this map has the id; the kernel says of one without it no more than "invalid argument".
fn check_mapped(name: &str, kind: &'static str, id: u32, map: &str) -> Result<(), UserError> {
    let ranges: Vec<(u32, u32)> = map
        .lines()
        .filter_map(|line| {
            let mut fields = line.split_ascii_whitespace();
            Some((fields.next()?.parse().ok()?, fields.nth(1)?.parse().ok()?))
        })
        .collect();
    // Without `/proc` nobody knows.
    if ranges.is_empty() || ranges.iter().any(|(first, count)| (*first..first.saturating_add(*count)).contains(&id)) {
        return Ok(());
    }
    let range = |(first, count): &(u32, u32)| match count {
        1 => first.to_string(),
        count => format!("{first} to {}", first.saturating_add(count - 1)),
    };
    let there: Vec<String> = ranges.iter().map(range).collect();
    Err(UserError::NotMapped { name: name.to_owned(), kind, id, there: there.join(", ") })
}

/// Finds a user or makes it, as `useradd -rm -d /home/NAME -s /bin/bash -g root -G sudo -u UID NAME` does; an existing
/// user keeps its own uid.
///
/// # Errors
///
/// [`UserError`] if the name is not sound or the system's files cannot be written.
pub fn ensure_user(name: &str, uid: Option<u32>) -> Result<User, UserError> {
    let sound = (1..=32).contains(&name.len())
        && name.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'_' | b'-'))
        && !name.starts_with('-');
    if !sound {
        return Err(UserError::Name(name.chars().take(80).collect()));
    }
    let (passwd, group) = (read(PASSWD), read(GROUP));
    if let Some(user) = parse_user(&passwd, &group, |found, _| found == name) {
        return Ok(user);
    }
    if !rustix::process::geteuid().is_root() {
        return Err(UserError::NotRoot(name.to_owned()));
    }
    create(name, uid.unwrap_or(1000), &passwd, &group)
        .map_err(|source| UserError::Create { name: name.to_owned(), source })
}

fn create(name: &str, uid: u32, passwd: &str, group: &str) -> io::Result<User> {
    if let Some(taken) = parse_user(passwd, "", |_, found| found == uid) {
        return Err(io::Error::other(format!("uid {uid} belongs to `{}` already", taken.name)));
    }
    let home = PathBuf::from("/home").join(name);
    let shell = if Path::new("/bin/bash").exists() { "/bin/bash" } else { "/bin/sh" };
    append_line(PASSWD, passwd, &format!("{name}:x:{uid}:0::{}:{shell}", home.display()))?;
    let shadow = read("/etc/shadow");
    if !shadow.is_empty() {
        append_line("/etc/shadow", &shadow, &format!("{name}:!::0:99999:7:::"))?;
    }
    let mut groups = vec![0];
    if let Some(sudo) = group.lines().find(|line| line.starts_with("sudo:")) {
        let gid: Option<u32> = sudo.split(':').nth(2).and_then(|gid| gid.parse().ok());
        let separator = if sudo.ends_with(':') { "" } else { "," };
        replace(GROUP, &group.replacen(sudo, &format!("{sudo}{separator}{name}"), 1))?;
        groups.extend(gid);
        let sudoers = Path::new("/etc/sudoers.d");
        if sudoers.is_dir() {
            let mut file = fs::OpenOptions::new()
                .write(true)
                .create(true)
                .truncate(true)
                .mode(0o440)
                .open(sudoers.join("wharf"))?;
            file.write_all(b"%sudo ALL=(ALL) NOPASSWD:ALL\n")?;
        }
    }
    fs::create_dir_all(&home)?;
    fs::set_permissions(&home, fs::Permissions::from_mode(0o755))?;
    copy_skeleton(Path::new("/etc/skel"), &home, uid)?;
    chown(&home, Some(uid), Some(0))?;
    Ok(User { name: name.to_owned(), uid, gid: 0, groups, home, shell: shell.into() })
}

fn copy_skeleton(from: &Path, to: &Path, uid: u32) -> io::Result<()> {
    let Ok(entries) = fs::read_dir(from) else { return Ok(()) };
    for entry in entries {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_file() && !target.exists() {
            fs::copy(entry.path(), &target)?;
            chown(&target, Some(uid), Some(0))?;
        }
    }
    Ok(())
}

fn append_line(path: &str, old: &str, line: &str) -> io::Result<()> {
    let separator = if old.is_empty() || old.ends_with('\n') { "" } else { "\n" };
    replace(path, &format!("{old}{separator}{line}\n"))
}

/// Replaces a system file in one step, with its old mode.
fn replace(path: &str, text: &str) -> io::Result<()> {
    let mode = fs::metadata(path).map_or(0o644, |metadata| metadata.permissions().mode());
    let temporary = format!("{path}.wharf");
    fs::write(&temporary, text)?;
    fs::set_permissions(&temporary, fs::Permissions::from_mode(mode))?;
    fs::rename(&temporary, path)
}

/// A file's text; nothing where it is missing, as in an image that holds one program. What runs in the sandbox may have put
/// a pipe there or a file without an end: neither is waited for.
fn read(path: &str) -> String {
    let read = || {
        let file = fs::OpenOptions::new().read(true).custom_flags(libc::O_NONBLOCK).open(path)?;
        let mut bytes = Vec::new();
        if file.metadata()?.is_file() {
            file.take(LONGEST_LIST + 1).read_to_end(&mut bytes)?;
        }
        Ok::<_, io::Error>(if bytes.len() as u64 > LONGEST_LIST { Vec::new() } else { bytes })
    };
    read().map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
}

fn nameless(uid: u32) -> User {
    User { name: uid.to_string(), uid, gid: 0, groups: Vec::new(), home: "/".into(), shell: "/bin/sh".into() }
}

fn parse_user(passwd: &str, group: &str, wanted: impl Fn(&str, u32) -> bool) -> Option<User> {
    passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        let uid = fields.nth(1)?.parse().ok()?;
        if !wanted(name, uid) {
            return None;
        }
        let gid = fields.next()?.parse().ok()?;
        let home = fields.nth(1).filter(|home| !home.is_empty()).unwrap_or("/");
        let shell = fields.next().filter(|shell| !shell.is_empty()).unwrap_or("/bin/sh");
        let groups = group.lines().filter_map(|line| {
            let mut fields = line.split(':');
            let gid = fields.nth(2)?.parse().ok()?;
            fields.next()?.split(',').any(|member| member == name).then_some(gid)
        });
        Some(User { name: name.to_owned(), uid, gid, groups: groups.collect(), home: home.into(), shell: shell.into() })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0:root:/root:/bin/bash\nbroken line\n:x:\nann:x:1000:100:Ann,,:/home/ann:\n";
    const GROUP: &str = "users:x:100:\nsudo:x:27:bob,ann\nx:y:z:ann\ndocker:x:5:ann\n";

    #[test]
    fn a_user_without_a_name_gets_one_and_all_others_keep_theirs() {
        let home = Path::new("/workspace");
        assert_eq!(with_user(PASSWD, GROUP, 1000, 100, home), (PASSWD.to_owned(), GROUP.to_owned()));
        let (passwd, group) = with_user(PASSWD, GROUP, 4242, 4242, home);
        let user = parse_user(&passwd, &group, |_, uid| uid == 4242).unwrap();
        assert_eq!((user.name.as_str(), user.gid, user.home.as_path()), ("sandbox", 4242, home));
        assert!(passwd.starts_with(PASSWD) && group.ends_with("\nsandbox:x:4242:\n"));
        let (again, _) = with_user(&passwd, &group, 5, 4242, home);
        assert!(again.contains("\nsandbox-5:x:5:4242:"), "{again}");
        // An image with nothing but a program.
        let (passwd, group) = with_user("", "", 1000, 1000, home);
        assert_eq!(passwd.lines().count() + group.lines().count(), 4);
        assert!(passwd.starts_with("root:x:0:0:"));
    }

    #[test]
    fn a_list_of_users_that_is_no_file_or_has_no_end_is_not_waited_for() {
        let directory = tempfile::tempdir().unwrap();
        let at = |name: &str| directory.path().join(name).to_str().unwrap().to_owned();
        rustix::fs::mkfifoat(rustix::fs::CWD, at("pipe"), rustix::fs::Mode::from_raw_mode(0o600)).unwrap();
        std::os::unix::fs::symlink("/dev/zero", at("endless")).unwrap();
        fs::File::create(at("sparse")).unwrap().set_len(1 << 40).unwrap();
        fs::write(at("list"), PASSWD).unwrap();
        assert_eq!((read(&at("pipe")), read(&at("endless")), read(&at("sparse"))), Default::default());
        assert_eq!(read(&at("list")), PASSWD);
    }

    #[test]
    fn a_user_is_read_with_all_groups_and_broken_lines_are_passed_over() {
        let ann = parse_user(PASSWD, GROUP, |name, _| name == "ann").unwrap();
        let expected = User {
            name: "ann".into(),
            uid: 1000,
            gid: 100,
            groups: vec![27, 5],
            home: "/home/ann".into(),
            shell: "/bin/sh".into(),
        };
        assert_eq!(ann, expected);
        assert_eq!(parse_user(PASSWD, GROUP, |_, uid| uid == 7), None);
    }

    #[test]
    fn an_id_that_the_namespace_has_not_is_refused_in_words() {
        let map = "         0    1048576      65535\n     70000    1114111          1\n";
        for there in [0, 65_534, 70_000] {
            check_mapped("ann", "user", there, map).unwrap();
        }
        let error = check_mapped("ann", "user", 65_535, map).unwrap_err().to_string();
        assert_eq!(error, "this sandbox has no user 65535 for `ann`: its namespace has only 0 to 65534, 70000");
        check_mapped("ann", "user", 5, "").unwrap();
    }

    #[test]
    fn a_name_that_would_break_the_file_is_refused() {
        for name in ["", "a:b", "a\nroot::0:0::/:/bin/sh", "-x", "Ann", &"x".repeat(33)] {
            assert!(matches!(ensure_user(name, None), Err(UserError::Name(_))), "{name}");
        }
    }
}
