//! The ids that this machine lets an ordinary user give to others: its subordinate ids. Pure, but for what reads them.

use std::{fs, path::PathBuf};

use serde::{Deserialize, Serialize};

use super::{ranges::IDS, users::Caller};

/// What the kernel lets set ids on an ordinary user's behalf, where it is found.
const PLACES: [&str; 4] = ["/usr/bin", "/bin", "/usr/local/bin", "/run/wrappers/bin"];

/// The first of [`IDS`] users and of as many groups. All sandboxes of their owner have the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Subordinate {
    pub(super) users: u32,
    pub(super) groups: u32,
}

impl Subordinate {
    /// Those of a caller, by what the machine's files say.
    ///
    /// # Errors
    ///
    /// Why there are none, and what has to be there.
    pub(super) fn of(caller: &Caller, passwd: &str) -> Result<Self, String> {
        if [USERS, GROUPS].into_iter().any(|program| program_at(program).is_none()) {
            return Err(format!("`{USERS}` is missing: Debian's package uidmap has it"));
        }
        let read = |path: &'static str| (path, fs::read_to_string(path).unwrap_or_default());
        find(caller, passwd, read("/etc/subuid"), read("/etc/subgid"))
    }
}

/// The program that maps users.
pub(super) const USERS: &str = "newuidmap";
/// The program that maps groups.
pub(super) const GROUPS: &str = "newgidmap";

/// Where one of the two is.
pub(super) fn program_at(name: &str) -> Option<PathBuf> {
    PLACES.into_iter().map(|place| PathBuf::from(place).join(name)).find(|path| path.is_file())
}

fn find(caller: &Caller, passwd: &str, users: (&str, String), groups: (&str, String)) -> Result<Subordinate, String> {
    let named = passwd.lines().find_map(|line| {
        let mut fields = line.split(':');
        let name = fields.next()?;
        (fields.nth(1)?.parse() == Ok(caller.uid)).then(|| name.to_owned())
    });
    let name = named.or_else(|| caller.name.clone()).unwrap_or_else(|| caller.uid.to_string());
    let first = |(path, text): (&str, String)| {
        first_of(&text, &name, caller.uid).ok_or_else(|| format!("{path} has no line `{name}:FIRST:{IDS}`"))
    };
    Ok(Subordinate { users: first(users)?, groups: first(groups)? })
}

/// The first id of the first range that is large enough.
fn first_of(text: &str, name: &str, uid: u32) -> Option<u32> {
    text.lines().find_map(|line| {
        let mut fields = line.trim().split(':');
        let owner = fields.next()?;
        let (first, count): (u32, u32) = (fields.next()?.parse().ok()?, fields.next()?.parse().ok()?);
        let is_ours = owner == name || owner.parse() == Ok(uid);
        (is_ours && first > 0 && count >= IDS && first.checked_add(IDS).is_some()).then_some(first)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PASSWD: &str = "root:x:0:0::/root:/bin/sh\nann:x:1000:100::/home/ann:/bin/sh\n";

    fn of(uid: u32, name: Option<&str>, users: &str, groups: &str) -> Result<Subordinate, String> {
        let caller = Caller { uid, gid: 100, name: name.map(str::to_owned) };
        find(&caller, PASSWD, ("/etc/subuid", users.to_owned()), ("/etc/subgid", groups.to_owned()))
    }

    #[test]
    fn they_are_found_by_name_or_number_and_only_if_there_are_enough() {
        let lines = "root:100000:65536\nann:1:2\nbroken\nann:300000:65536\nann:500000:65536\n77:700000:70000\n";
        assert_eq!(of(1000, Some("root"), lines, lines), Ok(Subordinate { users: 300_000, groups: 300_000 }));
        assert_eq!(of(77, None, lines, lines), Ok(Subordinate { users: 700_000, groups: 700_000 }));
        // Whom the machine does not know has the name that it says; the mapping programs have the last word.
        assert_eq!(of(5, Some("root"), lines, lines).map(|found| found.users), Ok(100_000));
        for (users, groups, missing) in [(lines, "", "/etc/subgid"), ("ann:0:65536\nann:9:65535", lines, "/etc/subuid")]
        {
            let reason = of(1000, None, users, groups).unwrap_err();
            assert_eq!(reason, format!("{missing} has no line `ann:FIRST:65536`"));
        }
    }
}
