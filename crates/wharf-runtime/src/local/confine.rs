//! What a process gives up for good before it becomes sandboxd: capabilities, system calls, files.

use std::{collections::BTreeMap, io, path::PathBuf};

use landlock::{
    ABI, Access, AccessFs, CompatLevel, Compatible, Ruleset, RulesetAttr, RulesetCreatedAttr, RulesetStatus, Scope,
    path_beneath_rules,
};
use rustix::thread::{CapabilitySet, CapabilitySets};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    sock_filter,
};

/// What root of a sandbox keeps: what package managers, `su` and servers need, and only over its own user namespace.
const KEPT: CapabilitySet = CapabilitySet::CHOWN
    .union(CapabilitySet::DAC_OVERRIDE)
    .union(CapabilitySet::FOWNER)
    .union(CapabilitySet::FSETID)
    .union(CapabilitySet::KILL)
    .union(CapabilitySet::SETGID)
    .union(CapabilitySet::SETUID)
    .union(CapabilitySet::SETFCAP)
    .union(CapabilitySet::NET_BIND_SERVICE)
    .union(CapabilitySet::SYS_CHROOT);

/// What sandboxd alone has besides, for the thread that counts what is on disk: users of a sandbox keep directories and open
/// files to themselves, also from its root. Nothing that sandboxd starts gets them.
const COUNTING: CapabilitySet = CapabilitySet::DAC_READ_SEARCH.union(CapabilitySet::SYS_PTRACE);

/// Takes away every capability but the few that are harmless in a user namespace. `counts` gives sandboxd what it counts with:
/// only where it sees no processes but those of its sandbox.
pub(super) fn drop_capabilities(counts: bool) -> io::Result<()> {
    let held = rustix::thread::capabilities(None)?;
    let counting = if counts { COUNTING & held.permitted } else { CapabilitySet::empty() };
    // Before they leave the bounding set, which nothing becomes inheritable without.
    rustix::thread::set_capabilities(None, CapabilitySets { inheritable: counting, ..held })?;
    for capability in CapabilitySet::all().iter() {
        if KEPT.contains(capability) {
            continue;
        }
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            // A capability that this kernel does not know yet.
            Ok(()) | Err(rustix::io::Errno::INVAL) => {}
            // In a container without the right to: with no new privileges, what we do not have stays out of reach.
            Err(rustix::io::Errno::PERM) => break,
            Err(error) => return Err(error.into()),
        }
    }
    let kept = (KEPT | counting) & held.permitted;
    rustix::thread::set_capabilities(None, CapabilitySets { effective: kept, permitted: kept, inheritable: counting })?;
    for capability in counting.iter() {
        rustix::thread::configure_capability_in_ambient_set(capability, true)?;
    }
    Ok(())
}

/// System calls that no agent's work needs and that reach beyond the sandbox or deep into the kernel.
const REFUSED: &[libc::c_long] = &[
    libc::SYS_acct,
    libc::SYS_add_key,
    libc::SYS_bpf,
    libc::SYS_clock_adjtime,
    libc::SYS_clock_settime,
    libc::SYS_delete_module,
    libc::SYS_fanotify_init,
    libc::SYS_finit_module,
    libc::SYS_fsconfig,
    libc::SYS_fsmount,
    libc::SYS_fsopen,
    libc::SYS_fspick,
    libc::SYS_init_module,
    libc::SYS_io_uring_enter,
    libc::SYS_io_uring_register,
    libc::SYS_io_uring_setup,
    libc::SYS_kexec_file_load,
    libc::SYS_kexec_load,
    libc::SYS_keyctl,
    libc::SYS_lookup_dcookie,
    libc::SYS_mount,
    libc::SYS_mount_setattr,
    libc::SYS_move_mount,
    libc::SYS_name_to_handle_at,
    libc::SYS_nfsservctl,
    libc::SYS_open_by_handle_at,
    libc::SYS_open_tree,
    libc::SYS_perf_event_open,
    libc::SYS_pivot_root,
    libc::SYS_quotactl,
    libc::SYS_reboot,
    libc::SYS_request_key,
    libc::SYS_setns,
    libc::SYS_settimeofday,
    libc::SYS_swapoff,
    libc::SYS_swapon,
    libc::SYS_umount2,
    libc::SYS_userfaultfd,
    libc::SYS_vhangup,
];

/// Refuses those calls, new user namespaces, and typing into terminals (TIOCSTI), for ever. A program of another
/// architecture, such as one of 32 bits, is killed at its first call: that its numbers stand for others here would be a way out.
pub(super) fn filter_system_calls() -> io::Result<()> {
    programs()?.iter().try_for_each(|program| seccompiler::apply_filter(program).map_err(io::Error::other))
}

fn programs() -> io::Result<[BpfProgram; 2]> {
    let arch = std::env::consts::ARCH.try_into().map_err(io::Error::other)?;
    let flag = |argument: u8, width: SeccompCmpArgLen, operator: SeccompCmpOp, value: u64| {
        let condition = SeccompCondition::new(argument, width, operator, value).map_err(io::Error::other)?;
        SeccompRule::new(vec![condition]).map_err(io::Error::other)
    };
    let new_user = libc::CLONE_NEWUSER as u64;
    let masked = SeccompCmpOp::MaskedEq(new_user);
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> = REFUSED.iter().map(|call| (*call, Vec::new())).collect();
    for call in [libc::SYS_unshare, libc::SYS_clone] {
        rules.insert(call, vec![flag(0, SeccompCmpArgLen::Qword, masked.clone(), new_user)?]);
    }
    rules.insert(libc::SYS_ioctl, vec![flag(1, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, libc::TIOCSTI)?]);
    let refuse = SeccompAction::Errno(libc::EPERM.unsigned_abs());
    let mut refusing = compiled(SeccompFilter::new(rules, SeccompAction::Allow, refuse, arch))?;
    if cfg!(target_arch = "x86_64") {
        refuse_x32(&mut refusing);
    }
    // The flags of `clone3` stand in memory, where no filter sees them; without it libc falls back to `clone`.
    let unknown = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    let clone3 = BTreeMap::from([(libc::SYS_clone3, Vec::new())]);
    Ok([refusing, compiled(SeccompFilter::new(clone3, SeccompAction::Allow, unknown, arch))?])
}

fn compiled(filter: Result<SeccompFilter, seccompiler::BackendError>) -> io::Result<BpfProgram> {
    filter.and_then(TryInto::try_into).map_err(io::Error::other)
}

/// What marks a number of the x32 ABI: to a filter it is of the same architecture, and the kernel takes it for the same call.
const X32: u32 = 0x4000_0000;

/// Lets a filter say of every call by such a number that there is none, as most kernels do.
fn refuse_x32(program: &mut BpfProgram) {
    const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
    const JUMP_IF_GREATER_OR_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
    const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
    const NUMBER: u32 = 0;
    // Behind the three instructions that look at the architecture. Jumps are relative.
    program.splice(
        3..3,
        [
            sock_filter { code: LOAD, jt: 0, jf: 0, k: NUMBER },
            sock_filter { code: JUMP_IF_GREATER_OR_EQUAL, jt: 0, jf: 1, k: X32 },
            sock_filter { code: RETURN, jt: 0, jf: 0, k: libc::SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs() },
        ],
    );
}

/// A second wall behind the mounts: files may be written only below `writable`, and neither abstract sockets nor
/// signals reach processes outside.
///
/// # Errors
///
/// When the kernel has no landlock; a kernel that has only a part of it gives a note.
pub(super) fn restrict_files(writable: &[PathBuf]) -> io::Result<Option<String>> {
    let abi = ABI::V6;
    let status = Ruleset::default()
        .set_compatibility(CompatLevel::BestEffort)
        .handle_access(AccessFs::from_all(abi))
        .and_then(|ruleset| ruleset.scope(Scope::from_all(abi)))
        .and_then(Ruleset::create)
        .and_then(|ruleset| ruleset.add_rules(path_beneath_rules(["/"], AccessFs::from_read(abi))))
        .and_then(|ruleset| ruleset.add_rules(path_beneath_rules(writable, AccessFs::from_all(abi))))
        .and_then(landlock::RulesetCreated::restrict_self)
        .map_err(io::Error::other)?;
    match status.ruleset {
        RulesetStatus::FullyEnforced => Ok(None),
        RulesetStatus::PartiallyEnforced => Ok(Some("this kernel knows only a part of what is asked".to_owned())),
        RulesetStatus::NotEnforced => Err(io::Error::other("this kernel has no landlock")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the kernel does of a filter, as far as ours use it.
    fn decide(program: &[sock_filter], architecture: u32, number: u32, argument: u64) -> u32 {
        let halves = [number, architecture, 0, 0, argument as u32, (argument >> 32) as u32, argument as u32];
        let (mut at, mut held) = (0, 0_u32);
        loop {
            let sock_filter { code, jt, jf, k } = program[at].clone();
            at += 1;
            let mut jump = |taken: bool| at += usize::from(if taken { jt } else { jf });
            match code {
                0x20 => held = halves[k as usize / 4],
                0x54 => held &= k,
                0x05 => at += k as usize,
                0x15 => jump(held == k),
                0x25 => jump(held > k),
                0x35 => jump(held >= k),
                0x06 => return k,
                other => panic!("an instruction that is not known here: {other:#x}"),
            }
        }
    }

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn no_number_leads_around_the_filter() {
        const X86_64: u32 = 0xC000_003E;
        const I386: u32 = 0x4000_0003;
        let [refusing, clone3] = programs().unwrap();
        let errno = |errno: i32| libc::SECCOMP_RET_ERRNO | errno.unsigned_abs();
        let call = |number: i64| u32::try_from(number).unwrap();
        for refused in REFUSED.iter().map(|refused| call(*refused)) {
            assert_eq!(decide(&refusing, X86_64, refused, 0), errno(libc::EPERM), "{refused}");
            assert_eq!(decide(&refusing, X86_64, refused | X32, 0), errno(libc::ENOSYS), "{refused}");
        }
        let new_user = libc::CLONE_NEWUSER as u64;
        assert_eq!(decide(&refusing, X86_64, call(libc::SYS_unshare), new_user), errno(libc::EPERM));
        assert_eq!(decide(&refusing, X86_64, call(libc::SYS_unshare), 0), libc::SECCOMP_RET_ALLOW);
        assert_eq!(decide(&refusing, X86_64, call(libc::SYS_read), 0), libc::SECCOMP_RET_ALLOW);
        // That of ioctl is another one there.
        assert_eq!(decide(&refusing, X86_64, 514 | X32, 0), errno(libc::ENOSYS));
        assert_eq!(decide(&clone3, X86_64, call(libc::SYS_clone3), 0), errno(libc::ENOSYS));
        assert_eq!(decide(&refusing, I386, 21, 0), libc::SECCOMP_RET_KILL_PROCESS);
    }

    /// What a system call gives whose arguments mean nothing: whoever lets it through finds fault with those.
    #[allow(unsafe_code, reason = "system calls by number")]
    fn errno_of(call: libc::c_long, arguments: [libc::c_long; 3]) -> Option<i32> {
        let [first, second, third] = arguments;
        // SAFETY: the callers' arguments are no pointers that the kernel could follow.
        let done = unsafe { libc::syscall(call, first, second, third, -1, -1, -1) };
        match done {
            -1 => io::Error::last_os_error().raw_os_error(),
            // A `clone` that nothing has refused: this is the child, a copy of one thread.
            0 if call == libc::SYS_clone => std::process::abort(),
            _ => None,
        }
    }

    #[test]
    fn what_reaches_beyond_a_sandbox_is_refused_to_root_too_and_all_else_is_not() {
        let new_user = libc::c_long::from(libc::CLONE_NEWUSER);
        let tiocsti = libc::c_long::try_from(libc::TIOCSTI).unwrap();
        let refused = std::thread::spawn(move || {
            rustix::thread::set_no_new_privs(true).unwrap();
            filter_system_calls().unwrap();
            for (name, call) in [
                ("acct", libc::SYS_acct),
                ("add_key", libc::SYS_add_key),
                ("bpf", libc::SYS_bpf),
                ("clock_settime", libc::SYS_clock_settime),
                ("delete_module", libc::SYS_delete_module),
                ("fanotify_init", libc::SYS_fanotify_init),
                ("finit_module", libc::SYS_finit_module),
                ("fsconfig", libc::SYS_fsconfig),
                ("fsmount", libc::SYS_fsmount),
                ("fsopen", libc::SYS_fsopen),
                ("fspick", libc::SYS_fspick),
                ("init_module", libc::SYS_init_module),
                ("io_uring_enter", libc::SYS_io_uring_enter),
                ("io_uring_register", libc::SYS_io_uring_register),
                ("io_uring_setup", libc::SYS_io_uring_setup),
                ("kexec_file_load", libc::SYS_kexec_file_load),
                ("kexec_load", libc::SYS_kexec_load),
                ("keyctl", libc::SYS_keyctl),
                ("mount", libc::SYS_mount),
                ("mount_setattr", libc::SYS_mount_setattr),
                ("move_mount", libc::SYS_move_mount),
                ("name_to_handle_at", libc::SYS_name_to_handle_at),
                ("open_by_handle_at", libc::SYS_open_by_handle_at),
                ("open_tree", libc::SYS_open_tree),
                ("perf_event_open", libc::SYS_perf_event_open),
                ("pivot_root", libc::SYS_pivot_root),
                ("quotactl", libc::SYS_quotactl),
                ("reboot", libc::SYS_reboot),
                ("request_key", libc::SYS_request_key),
                ("setns", libc::SYS_setns),
                ("settimeofday", libc::SYS_settimeofday),
                ("swapoff", libc::SYS_swapoff),
                ("swapon", libc::SYS_swapon),
                ("umount2", libc::SYS_umount2),
                ("userfaultfd", libc::SYS_userfaultfd),
            ] {
                assert_eq!(errno_of(call, [-1, -1, -1]), Some(libc::EPERM), "{name}");
            }
            for (name, call, arguments) in [
                ("unshare", libc::SYS_unshare, [new_user, 0, 0]),
                ("unshare with more", libc::SYS_unshare, [new_user | libc::c_long::from(libc::CLONE_NEWNS), 0, 0]),
                ("clone", libc::SYS_clone, [new_user | libc::c_long::from(libc::SIGCHLD), 0, 0]),
                ("typing into a terminal", libc::SYS_ioctl, [-1, tiocsti, -1]),
                ("the same, as the kernel reads it", libc::SYS_ioctl, [-1, tiocsti | 1 << 32, -1]),
            ] {
                assert_eq!(errno_of(call, arguments), Some(libc::EPERM), "{name}");
            }
            assert_eq!(errno_of(libc::SYS_clone3, [-1, -1, -1]), Some(libc::ENOSYS));
            assert_eq!(errno_of(libc::SYS_ioctl, [-1, -1, -1]), Some(libc::EBADF), "another request");
            assert_eq!(errno_of(libc::SYS_unshare, [0, 0, 0]), None, "nothing new");
        });
        refused.join().unwrap();
        assert_eq!(errno_of(libc::SYS_setns, [-1, -1, -1]), Some(libc::EBADF), "of this thread alone");
    }
}
