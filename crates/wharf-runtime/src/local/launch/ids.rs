//! The sandbox's ids on the host, and the user namespaces that map them.

use std::{
    fs::{self, File},
    io::{self, Read},
    os::{fd::OwnedFd, unix::fs::MetadataExt},
};

use rustix::{
    process::{Signal, WaitOptions},
    thread::UnshareFlags,
};

use super::walls::{Failure, Part, Walls};
use crate::local::{
    plan::Plan,
    ranges::IDS,
    sys::{self, Forked},
};

/// The sandbox's ids on the host.
#[derive(Debug, Default)]
pub(super) struct Ids {
    /// As root: the namespace to enter last. Otherwise we are in it already.
    pub(super) namespace: Option<OwnedFd>,
    /// The host's number of root in the sandbox, as seen where the mounts are made.
    pub(super) root: u32,
    /// For each mount the namespace that makes its owner root inside. Made while `/proc` still shows our own numbers.
    pub(super) owners: Vec<OwnedFd>,
}

pub(super) fn enter_user_namespace(plan: &Plan, walls: &mut Walls) -> Result<Ids, Failure> {
    let part = "user namespace";
    if rustix::process::geteuid().is_root() {
        let Some(first) = plan.first_id else {
            walls.missing(part, io::Error::other("no ids of this machine could be set apart for it"))?;
            return Ok(Ids::default());
        };
        match user_namespace(&format!("0 {first} {IDS}")) {
            Ok(namespace) => {
                let owners = plan.mounts.iter().map(|mount| {
                    let metadata = fs::metadata(&mount.spec.source)?;
                    user_namespace_for(metadata.uid(), metadata.gid(), first)
                });
                let owners = owners.collect::<io::Result<_>>().part("mounts")?;
                walls.stands(part, Some(format!("root inside is user {first} outside")));
                return Ok(Ids { namespace: Some(namespace), root: first, owners });
            }
            Err(error) => walls.missing(part, error)?,
        }
        return Ok(Ids::default());
    }
    let (uid, gid) = (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw());
    let entered = sys::unshare(UnshareFlags::NEWUSER).and_then(|()| {
        fs::write("/proc/self/setgroups", "deny")?;
        fs::write("/proc/self/uid_map", format!("0 {uid} 1"))?;
        fs::write("/proc/self/gid_map", format!("0 {gid} 1"))
    });
    walls.raise(part, entered.map(|()| Some("root inside is you outside; there are no other users".to_owned())))?;
    Ok(Ids::default())
}

/// Makes a user namespace with one mapping for users and groups, held by nothing but the descriptor.
pub(super) fn user_namespace(map: &str) -> io::Result<OwnedFd> {
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
            let number = pid.as_raw_nonzero();
            let namespace = (|| {
                if File::from(made).read(&mut [0])? == 0 {
                    return Err(io::Error::other("the kernel makes no user namespace"));
                }
                fs::write(format!("/proc/{number}/uid_map"), map)?;
                fs::write(format!("/proc/{number}/gid_map"), map)?;
                File::open(format!("/proc/{number}/ns/user")).map(OwnedFd::from)
            })();
            rustix::process::kill_process(pid, Signal::KILL)?;
            rustix::process::waitpid(Some(pid), WaitOptions::empty())?;
            namespace
        }
    }
}

/// A namespace that maps one owner on disk to root of the sandbox.
pub(super) fn user_namespace_for(uid: u32, gid: u32, root: u32) -> io::Result<OwnedFd> {
    if uid == gid {
        return user_namespace(&format!("{uid} {root} 1"));
    }
    // Both are mapped for users and groups alike; only one of them ever occurs as either.
    user_namespace(&format!("{uid} {root} 1\n{gid} {} 1", root + 1))
}
