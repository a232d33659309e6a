//! The mark by which all processes of one tree are found, and the filter that keeps it on them.
//!
//! The mark is the hard limit of a resource that nothing is ever limited by, an absurdly large one, different for each
//! tree: children inherit it over `fork`, `exec`, `setsid` and a cleared environment, and anybody may read it in
//! `/proc/PID/limits`. A hard limit can be lowered by anybody, so the children's system calls are filtered: this one limit
//! is not set again, by no way into the kernel. The kernel takes such a filter from a process without new privileges or
//! with CAP_SYS_ADMIN; where sandboxd has neither, a process that lowers the limit leaves its tree, and ends with the
//! sandbox.

use std::{
    fs, io,
    sync::{LazyLock, OnceLock},
};

use libc::sock_filter;
use rustix::process::{Resource, Rlimit};

/// A resource whose hard limit can carry the mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Carrier {
    resource: Resource,
    /// The kernel's number of it, on the architectures below.
    number: u32,
    /// How `/proc/PID/limits` calls it.
    label: &'static str,
}

/// In the order in which they are tried: inside a sandbox of ours the first is taken already.
const CARRIERS: [Carrier; 3] = [
    Carrier { resource: Resource::Rttime, number: 15, label: "Max realtime timeout" },
    Carrier { resource: Resource::Locks, number: 10, label: "Max file locks" },
    Carrier { resource: Resource::Rss, number: 5, label: "Max resident set" },
];
const HIGHEST: u64 = 1 << 62;
/// Below this a limit has too few numbers to tell trees apart.
const LOWEST: u64 = 1 << 40;

static CARRIER: LazyLock<Carrier> =
    LazyLock::new(|| CARRIERS.into_iter().find(Carrier::is_free).unwrap_or(CARRIERS[0]));

impl Carrier {
    /// Whether our children's limit can be set.
    fn is_free(&self) -> bool {
        let own = rustix::process::getrlimit(self.resource);
        own.maximum.is_none_or(|most| most >= LOWEST) && rustix::process::setrlimit(self.resource, own).is_ok()
    }
}

/// What every process of one tree carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Mark {
    carrier: Carrier,
    limit: u64,
}

impl Mark {
    /// A limit that no other tree has, and not above our own, which we might not be allowed to raise.
    pub(super) fn new() -> Self {
        let carrier = *CARRIER;
        let own = rustix::process::getrlimit(carrier.resource).maximum.unwrap_or(u64::MAX).min(HIGHEST);
        let mut random = [0; 8];
        getrandom::fill(&mut random).expect("the kernel gives random bytes");
        let half = (own / 2).max(1);
        Self { carrier, limit: half + u64::from_ne_bytes(random) % half }
    }

    /// Marks this process and all that it will start. Makes one system call, as is right between `fork` and `exec`.
    pub(super) fn mark_this_process(self) -> io::Result<()> {
        let limit = Rlimit { current: Some(self.limit), maximum: Some(self.limit) };
        Ok(rustix::process::setrlimit(self.carrier.resource, limit)?)
    }

    pub(super) fn is_on(self, pid: i32) -> bool {
        fs::read_to_string(format!("/proc/{pid}/limits"))
            .is_ok_and(|limits| hard_limit(&limits, self.carrier.label) == Some(self.limit))
    }

    pub(super) fn resource(self) -> Resource {
        self.carrier.resource
    }
}

fn hard_limit(limits: &str, label: &str) -> Option<u64> {
    let line = limits.lines().find_map(|line| line.strip_prefix(label))?;
    line.split_whitespace().nth(1)?.parse().ok()
}

/// Which numbers a way into the kernel has for what sets limits.
struct Abi {
    architecture: u32,
    setrlimit: Option<u32>,
    prlimit64: u32,
    /// System calls from here on belong to another, older way in, which no program of today needs.
    refused_from: Option<u32>,
}

const LITTLE_ENDIAN: u32 = 0x4000_0000;
const SIXTY_FOUR_BITS: u32 = 0x8000_0000;

/// linux/audit.h and the kernel's tables of system calls.
#[cfg(target_arch = "x86_64")]
const ABIS: &[Abi] = &[
    Abi {
        architecture: SIXTY_FOUR_BITS | LITTLE_ENDIAN | libc::EM_X86_64 as u32,
        setrlimit: Some(libc::SYS_setrlimit as u32),
        prlimit64: libc::SYS_prlimit64 as u32,
        refused_from: Some(0x4000_0000),
    },
    Abi { architecture: LITTLE_ENDIAN | libc::EM_386 as u32, setrlimit: Some(75), prlimit64: 340, refused_from: None },
];
#[cfg(target_arch = "aarch64")]
const ABIS: &[Abi] = &[
    Abi {
        architecture: SIXTY_FOUR_BITS | LITTLE_ENDIAN | libc::EM_AARCH64 as u32,
        setrlimit: Some(libc::SYS_setrlimit as u32),
        prlimit64: libc::SYS_prlimit64 as u32,
        refused_from: None,
    },
    Abi { architecture: LITTLE_ENDIAN | libc::EM_ARM as u32, setrlimit: Some(75), prlimit64: 369, refused_from: None },
];
#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
compile_error!("the numbers of setrlimit and prlimit64 of this architecture are missing");

const LOAD: u16 = (libc::BPF_LD | libc::BPF_W | libc::BPF_ABS) as u16;
const JUMP_IF_EQUAL: u16 = (libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K) as u16;
const JUMP_IF_AT_LEAST: u16 = (libc::BPF_JMP | libc::BPF_JGE | libc::BPF_K) as u16;
const RETURN: u16 = (libc::BPF_RET | libc::BPF_K) as u16;
const ALLOW: sock_filter = instruction(RETURN, libc::SECCOMP_RET_ALLOW, 0, 0);
const NOT_PERMITTED: sock_filter = instruction(RETURN, libc::SECCOMP_RET_ERRNO | libc::EPERM as u32, 0, 0);
const NO_SUCH_CALL: sock_filter = instruction(RETURN, libc::SECCOMP_RET_ERRNO | libc::ENOSYS as u32, 0, 0);
/// Where `struct seccomp_data` has the call's number, its architecture, and the lower and upper half of an argument.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;

const fn lower(argument: u32) -> u32 {
    16 + 8 * argument + if cfg!(target_endian = "big") { 4 } else { 0 }
}

const fn upper(argument: u32) -> u32 {
    16 + 8 * argument + if cfg!(target_endian = "big") { 0 } else { 4 }
}

const fn instruction(code: u16, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

/// Refuses to set the limit of the resource `number`; all else passes.
fn filter(number: u32) -> Vec<sock_filter> {
    let load = |at| instruction(LOAD, at, 0, 0);
    let mut program = Vec::new();
    for abi in ABIS {
        let mut rules = vec![load(NUMBER)];
        if let Some(first) = abi.refused_from {
            rules.extend([instruction(JUMP_IF_AT_LEAST, first, 0, 1), NO_SUCH_CALL]);
        }
        if let Some(setrlimit) = abi.setrlimit {
            // setrlimit(resource, ..)
            rules.extend([
                instruction(JUMP_IF_EQUAL, setrlimit, 0, 4),
                load(lower(0)),
                instruction(JUMP_IF_EQUAL, number, 0, 1),
                NOT_PERMITTED,
                ALLOW,
            ]);
        }
        // prlimit64(_, resource, new limit or NULL, _)
        rules.extend([
            instruction(JUMP_IF_EQUAL, abi.prlimit64, 0, 7),
            load(lower(1)),
            instruction(JUMP_IF_EQUAL, number, 0, 5),
            load(lower(2)),
            instruction(JUMP_IF_EQUAL, 0, 0, 2),
            load(upper(2)),
            instruction(JUMP_IF_EQUAL, 0, 1, 0),
            NOT_PERMITTED,
            ALLOW,
        ]);
        program.push(load(ARCHITECTURE));
        program.push(instruction(JUMP_IF_EQUAL, abi.architecture, 0, rules.len() as u8));
        program.extend(rules);
    }
    program.push(NO_SUCH_CALL);
    program
}

/// The filter that keeps the mark on a process; made before the fork, since nothing may be allocated after it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Keeper(&'static [sock_filter]);

impl Keeper {
    pub(super) fn new() -> Self {
        static PROGRAM: OnceLock<Vec<sock_filter>> = OnceLock::new();
        Self(PROGRAM.get_or_init(|| filter(CARRIER.number)))
    }

    /// Filters the calls of this process and of all that it starts, for ever.
    ///
    /// # Errors
    ///
    /// When the kernel does not let us: new privileges are allowed here and we have no CAP_SYS_ADMIN.
    #[allow(unsafe_code, reason = "a system call without a wrapper")]
    pub(super) fn watch_this_process(self) -> io::Result<()> {
        let program = libc::sock_fprog { len: self.0.len() as u16, filter: self.0.as_ptr().cast_mut() };
        // The first try keeps speculation as it is: what the filter reads stands in registers and is no secret.
        let mut failed = None;
        for flags in [libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW, 0] {
            // SAFETY: the program is read only, and lives for ever.
            let done = unsafe {
                libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, std::ptr::from_ref(&program))
            };
            if done == 0 {
                return Ok(());
            }
            failed = Some(io::Error::last_os_error());
        }
        Err(failed.expect("there was a try"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mark_is_read_where_the_kernel_shows_it() {
        let limits = "Limit Soft Limit Hard Limit Units\nMax realtime timeout      12                   345                  us        \n";
        let label = CARRIERS[0].label;
        assert_eq!(hard_limit(limits, label), Some(345));
        assert_eq!(hard_limit("Max realtime timeout      unlimited            unlimited            us", label), None);
    }

    #[test]
    fn every_carrier_is_called_so_by_the_kernel() {
        let limits = fs::read_to_string("/proc/self/limits").unwrap();
        for carrier in CARRIERS {
            assert!(limits.lines().any(|line| line.starts_with(carrier.label)), "{carrier:?}");
        }
    }

    /// What the kernel would do with the filter.
    fn run(program: &[sock_filter], architecture: u32, number: u32, arguments: [u64; 3]) -> u32 {
        let (mut at, mut loaded) = (0, 0);
        loop {
            let sock_filter { code, jt, jf, k } = program[at];
            let jump = |yes| 1 + usize::from(if yes { jt } else { jf });
            at += match code {
                LOAD => {
                    loaded = match k {
                        NUMBER => number,
                        ARCHITECTURE => architecture,
                        _ => {
                            let argument = arguments[(k as usize - 16) / 8];
                            if k == lower((k - 16) / 8) { argument as u32 } else { (argument >> 32) as u32 }
                        }
                    };
                    1
                }
                JUMP_IF_EQUAL => jump(loaded == k),
                JUMP_IF_AT_LEAST => jump(loaded >= k),
                RETURN => return k,
                _ => panic!("an instruction that we do not use: {code}"),
            };
        }
    }

    #[test]
    fn nothing_but_setting_the_one_limit_is_refused() {
        let program = filter(15);
        let (allow, refuse) = (ALLOW.k, NOT_PERMITTED.k);
        for abi in ABIS {
            let run = |number, arguments| run(&program, abi.architecture, number, arguments);
            let setrlimit = abi.setrlimit.unwrap();
            assert_eq!(run(setrlimit, [15, 1, 0]), refuse);
            assert_eq!(run(setrlimit, [15 | 1 << 32, 1, 0]), refuse, "the kernel takes the lower half");
            assert_eq!(run(setrlimit, [7, 1, 0]), allow);
            assert_eq!(run(abi.prlimit64, [99, 15, 1 << 40]), refuse);
            assert_eq!(run(abi.prlimit64, [0, 15, 1]), refuse);
            assert_eq!(run(abi.prlimit64, [0, 15, 0]), allow, "reading it");
            assert_eq!(run(abi.prlimit64, [0, 7, 1]), allow);
            assert_eq!(run(1, [15, 15, 15]), allow);
            if let Some(first) = abi.refused_from {
                assert_eq!(run(first + setrlimit, [15, 1, 0]), NO_SUCH_CALL.k);
            }
        }
        assert_eq!(run(&program, 1, 1, [0; 3]), NO_SUCH_CALL.k, "an unknown architecture");
    }
}
