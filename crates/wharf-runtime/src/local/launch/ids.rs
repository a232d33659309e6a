//! The sandbox's ids on the host, and the user namespaces that map them.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::{
        fd::{AsFd, OwnedFd},
        unix::fs::MetadataExt,
    },
    process::{Command, Stdio},
};

use rustix::{
    process::{Resource, Rlimit, Signal, WaitOptions},
    thread::{LinkNameSpaceType, UnshareFlags},
};

use super::walls::{Failure, Part, Walls};
use crate::local::{
    plan::Plan,
    ranges::IDS,
    subordinate::{GROUPS, Subordinate, USERS, program_at},
    sys::{self, Forked},
};

/// A user and a group, by their numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Owner {
    pub(super) uid: u32,
    pub(super) gid: u32,
}

/// The sandbox's ids on the host.
#[derive(Debug, Default)]
pub(super) struct Ids {
    /// The namespace to enter last, if there is one more.
    pub(super) namespace: Option<OwnedFd>,
    /// Whom sandboxd runs as in it.
    pub(super) inside: Owner,
    /// Who else there is in it.
    pub(super) others: Others,
    /// Root of the sandbox, as seen where the mounts are made.
    pub(super) root: u32,
    /// The sandbox's user, likewise.
    pub(super) user: Owner,
    /// For each mount the namespace that makes its owner the sandbox's user. Made while `/proc` still shows our own numbers.
    pub(super) owners: Vec<OwnedFd>,
}

/// The users of a sandbox beside its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum Others {
    #[default]
    None,
    /// Ids of the machine that are this sandbox's alone, which only root can give it.
    OfTheMachine,
    /// The subordinate ids of the ordinary user who makes it.
    Subordinate,
}

impl Ids {
    pub(super) fn has_others(&self) -> bool {
        self.others != Others::None
    }
}

/// Enters what user namespace can be had; others than the caller are only in a sandbox with a root of its own.
pub(super) fn enter_user_namespace(plan: &Plan, has_root: bool, walls: &mut Walls) -> Result<Ids, Failure> {
    let part = "user namespace";
    let wanted = Owner { uid: plan.user.uid, gid: plan.user.gid };
    if rustix::process::geteuid().is_root() {
        let Some(first) = plan.first_id else {
            walls.missing(part, io::Error::other("no ids of this machine could be set apart for it"))?;
            return Ok(Ids { user: wanted, ..Ids::default() });
        };
        match user_namespace(&range(first, wanted.uid), &range(first, wanted.gid)) {
            Ok(namespace) => {
                let user = Owner { uid: on_host(first, wanted.uid), gid: on_host(first, wanted.gid) };
                let owners = plan.mounts.iter().map(|mount| {
                    let metadata = fs::metadata(&mount.spec.source)?;
                    user_namespace(
                        &of_a_mount(metadata.uid(), user.uid, first),
                        &of_a_mount(metadata.gid(), user.gid, first),
                    )
                });
                let owners = owners.collect::<io::Result<_>>().part("mounts")?;
                let name = &plan.user.name;
                let note = format!("root inside is user {first} outside; what is mounted belongs to `{name}` inside");
                walls.stands(part, Some(note));
                let inside = Owner::default();
                let others = Others::OfTheMachine;
                return Ok(Ids { namespace: Some(namespace), inside, others, root: first, user, owners });
            }
            Err(error) => walls.missing(part, error)?,
        }
        return Ok(Ids { user: wanted, ..Ids::default() });
    }
    let name = &plan.user.name;
    let alone = match &plan.subordinate {
        Ok(_) if !has_root => "they need a private root".to_owned(),
        Ok(subordinate) => match enter_with_others(*subordinate, wanted) {
            Ok(extents) => {
                let same = |extents: &[Extent]| -> Vec<Extent> {
                    extents.iter().map(|extent| Extent { outside: extent.inside, ..*extent }).collect()
                };
                // The kernel counts the processes of all its users together against what its maker may have.
                limit_processes(plan.bounds.processes).part(part)?;
                let namespace = user_namespace(&same(&extents.users), &same(&extents.groups)).part(part)?;
                let first = subordinate.users;
                let note =
                    format!("`{name}` inside is you outside; other users are your subordinate ids from {first} on");
                walls.stands(part, Some(note));
                let (namespace, others) = (Some(namespace), Others::Subordinate);
                return Ok(Ids { namespace, others, user: wanted, ..Ids::default() });
            }
            Err(source) if plan.needs_others => return Err(Failure { part: part.to_owned(), source }),
            Err(error) => error.to_string(),
        },
        Err(reason) => reason.clone(),
    };
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let entered = sys::unshare(UnshareFlags::NEWUSER).and_then(|()| {
        fs::write("/proc/self/setgroups", "deny")?;
        fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
        fs::write("/proc/self/gid_map", format!("0 {gid} 1"))
    });
    let is_entered = entered.is_ok();
    let note = format!("`{name}` inside is you outside; there are no other users ({alone})");
    walls.raise(part, entered.map(|()| Some(note)))?;
    if !is_entered || plan.user.uid == 0 {
        return Ok(Ids::default());
    }
    // Only as root can terminals be mounted, so the user's own number comes last, in a namespace of its own.
    let one = |inside| Extent { inside, outside: 0, count: 1 };
    let namespace = user_namespace(&[one(wanted.uid)], &[one(wanted.gid)]).part(part)?;
    Ok(Ids { namespace: Some(namespace), inside: wanted, ..Ids::default() })
}

/// A run of ids of a namespace, and what they are in the one outside it; for a mount, on disk and in the sandbox's range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Extent {
    inside: u32,
    outside: u32,
    count: u32,
}

/// The range of a sandbox. An id that is too high for it has the place of the last.
fn range(first: u32, wanted: u32) -> Vec<Extent> {
    if wanted < IDS {
        return vec![Extent { inside: 0, outside: first, count: IDS }];
    }
    let last = IDS - 1;
    vec![Extent { inside: 0, outside: first, count: last }, Extent { inside: wanted, outside: first + last, count: 1 }]
}

/// The users and the groups of a namespace.
pub(super) struct Extents {
    users: Vec<Extent>,
    groups: Vec<Extent>,
}

/// Enters a user namespace in which `user` is the caller and all others are its subordinate ids. This process keeps its
/// user, and may do there what root may.
pub(super) fn enter_with_others(subordinate: Subordinate, user: Owner) -> io::Result<Extents> {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let extents =
        Extents { users: around(subordinate.users, user.uid, uid), groups: around(subordinate.groups, user.gid, gid) };
    enter(&extents)?;
    Ok(extents)
}

/// Enters a user namespace whose users are the caller and each of its subordinate ids.
pub(super) fn enter_with_all(subordinate: Subordinate) -> io::Result<()> {
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let all = |outside, first| {
        vec![Extent { inside: 0, outside, count: 1 }, Extent { inside: 1, outside: first, count: IDS }]
    };
    enter(&Extents { users: all(uid, subordinate.users), groups: all(gid, subordinate.groups) })
}

fn enter(extents: &Extents) -> io::Result<()> {
    let namespace = user_namespace_by(|pid| {
        map_by(USERS, pid, &extents.users)?;
        map_by(GROUPS, pid, &extents.groups)
    })?;
    Ok(rustix::thread::move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::User))?)
}

/// Has a program that the machine trusts map the ids of a process's user namespace, if they are the caller's to give.
fn map_by(program: &'static str, pid: i32, extents: &[Extent]) -> io::Result<()> {
    let path = program_at(program).ok_or_else(|| io::Error::other(format!("`{program}` is missing")))?;
    let numbers = extents.iter().flat_map(|extent| [extent.inside, extent.outside, extent.count]);
    let told = Command::new(path)
        .arg(pid.to_string())
        .args(numbers.map(|number| number.to_string()))
        .env_clear()
        .stdin(Stdio::null())
        .output()?;
    if told.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&told.stderr);
    Err(io::Error::other(format!("`{program}` refuses: {}", said.trim())))
}

/// A range in which one id is somebody else.
fn around(first: u32, inside: u32, outside: u32) -> Vec<Extent> {
    let part =
        |from: u32, to: u32| (from < to).then(|| Extent { inside: from, outside: first + from, count: to - from });
    let one = Some(Extent { inside, outside, count: 1 });
    [part(0, inside.min(IDS)), one, part(inside.saturating_add(1), IDS)].into_iter().flatten().collect()
}

/// Bounds the processes of the user namespaces that this process makes from now on.
fn limit_processes(most: u32) -> io::Result<()> {
    let limit = rustix::process::getrlimit(Resource::Nproc);
    let most = limit.maximum.unwrap_or(u64::MAX).min(most.into());
    Ok(rustix::process::setrlimit(Resource::Nproc, Rlimit { current: Some(most), ..limit })?)
}

/// What the sandbox's id is on the host.
fn on_host(first: u32, inside: u32) -> u32 {
    first + inside.min(IDS - 1)
}

/// The ids of a mount: its owner on disk is the sandbox's user, and each other id of the sandbox is on disk what it is
/// on the host, where it is nobody. Were it the same number as inside, root of the sandbox could make files, and programs
/// that change the user, for any user of the host.
fn of_a_mount(owner: u32, user: u32, first: u32) -> Vec<Extent> {
    let same = |from: u32, to: u32| (from < to).then(|| Extent { inside: from, outside: from, count: to - from });
    let one = |inside, outside| Extent { inside, outside, count: 1 };
    let end = first + IDS;
    let is_of_range = (first..end).contains(&owner);
    let (low, high) = if is_of_range { (owner.min(user), owner.max(user)) } else { (user, user) };
    let mut extents = vec![one(owner, user)];
    if is_of_range && owner != user {
        extents.push(one(user, owner));
    }
    extents.extend([same(first, low), same(low + 1, high), same(high + 1, end)].into_iter().flatten());
    extents
}

fn map_text(extents: &[Extent]) -> String {
    extents.iter().map(|Extent { inside, outside, count }| format!("{inside} {outside} {count}\n")).collect()
}

/// Makes a user namespace with these users and groups, held by nothing but the descriptor.
fn user_namespace(users: &[Extent], groups: &[Extent]) -> io::Result<OwnedFd> {
    user_namespace_by(|pid| {
        fs::write(format!("/proc/{pid}/uid_map"), map_text(users))?;
        fs::write(format!("/proc/{pid}/gid_map"), map_text(groups))
    })
}

/// The same, with the ids that `map` gives to the namespace of a process.
fn user_namespace_by(map: impl FnOnce(i32) -> io::Result<()>) -> io::Result<OwnedFd> {
    let (made, made_child) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    let parent = rustix::process::getpid();
    match sys::fork()? {
        Forked::Child => {
            drop(made);
            if sys::end_with_parent(parent).is_err() {
                std::process::exit(1);
            }
            if sys::unshare(UnshareFlags::NEWUSER).is_ok() {
                let _ = rustix::io::write(&made_child, b"u");
            }
            drop(made_child);
            loop {
                std::thread::park();
            }
        }
        Forked::Parent(pid) => {
            drop(made_child);
            let number = pid.as_raw_nonzero().get();
            let namespace = (|| {
                if File::from(made).read(&mut [0])? == 0 {
                    return Err(io::Error::other("the kernel makes no user namespace"));
                }
                map(number)?;
                File::open(format!("/proc/{number}/ns/user")).map(OwnedFd::from)
            })();
            rustix::process::kill_process(pid, Signal::KILL)?;
            rustix::process::waitpid(Some(pid), WaitOptions::empty())?;
            namespace
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What an id on the left is on the right.
    fn mapped(extents: &[Extent], id: u32) -> Option<u32> {
        let found = extents.iter().find(|extent| (extent.inside..extent.inside + extent.count).contains(&id));
        found.map(|extent| extent.outside + (id - extent.inside))
    }

    #[test]
    fn a_range_has_the_users_number_however_high() {
        let plain = range(1 << 20, 1000);
        assert_eq!((mapped(&plain, 0), mapped(&plain, 1000)), (Some(1 << 20), Some((1 << 20) + 1000)));
        let high = range(1 << 20, 70_000);
        assert_eq!((mapped(&high, 0), mapped(&high, 65_535)), (Some(1 << 20), None));
        assert_eq!(mapped(&high, 70_000), Some(on_host(1 << 20, 70_000)));
    }

    #[test]
    fn one_id_among_the_subordinate_ones_is_the_callers_however_high() {
        for inside in [0, 1, 1000, IDS - 1, IDS, 70_000, u32::MAX - 1] {
            let extents = around(1 << 20, inside, 5);
            assert_eq!(mapped(&extents, inside), Some(5));
            for other in [0, 1, 999, 1001, IDS - 1].into_iter().filter(|other| *other != inside) {
                assert_eq!(mapped(&extents, other), Some((1 << 20) + other), "{inside}");
            }
            assert!(extents.iter().filter(|extent| extent.outside != 5).all(|extent| extent.count <= IDS));
        }
    }

    #[test]
    fn a_mounts_owner_is_the_user_and_all_other_ids_are_nobodys_on_the_host() {
        let first = 1 << 20;
        for inside in [0, 1, 1000, IDS - 1] {
            let user = first + inside;
            // Somebody of the host, root of it, and ids of this very range.
            for owner in [0, 1000, 4_000_000, first, first + 1000, first + IDS - 1, user] {
                let extents = of_a_mount(owner, user, first);
                assert_eq!(mapped(&extents, owner), Some(user), "{owner} {inside}");
                for host in (0..IDS).step_by(97).map(|id| first + id).filter(|host| *host != user) {
                    let on_disk: Vec<u32> =
                        [host, owner, user].into_iter().filter(|id| mapped(&extents, *id) == Some(host)).collect();
                    assert!(!on_disk.is_empty() && on_disk.iter().all(|id| *id >= first), "{owner} {inside} {host}");
                }
                let mut left: Vec<Extent> = extents.clone();
                left.sort_by_key(|extent| extent.inside);
                assert!(left.windows(2).all(|two| two[0].inside + two[0].count <= two[1].inside), "{left:?}");
                assert!(mapped(&extents, 33).is_none(), "another user of the host");
            }
        }
    }
}
