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
    sys::{self, Forked},
};

/// How many ids each sandbox has.
const IDS: u32 = 65_536;

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
        let first = first_id(&plan.name);
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

/// The first of the ids that belong to a sandbox alone: far above the host's users, another for each name.
fn first_id(name: &str) -> u32 {
    let hash = name.bytes().fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193));
    (16 + hash % 30_000) * IDS
}

/// Makes a user namespace with one mapping for users and groups, held by nothing but the descriptor.
pub(super) fn user_namespace(map: &str) -> io::Result<OwnedFd> {
    let (made, made_child) = rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC)?;
    match sys::fork()? {
        Forked::Child => {
            drop(made);
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
