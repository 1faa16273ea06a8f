//! The system calls of an engine whose guest runs: what WASI's files, sockets, clocks and threads need. All others do not
//! exist for it (`ENOSYS`), so that a library that tries a newer call first falls back as on an older kernel.
//!
//! seccompiler compares number after number. The kernel runs such a program once for each call's number when it is
//! installed, which took 0.3 ms for this list, all that the wall may cost. This program is a search tree, which takes a
//! tenth of that, and it knows more than one errno.

use std::io;

use super::calls::{Call, Rule, calls};

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;

/// Where the kernel puts what the filter looks at: see `struct seccomp_data`.
const NUMBER_OFFSET: u32 = 0;
const ARCHITECTURE_OFFSET: u32 = 4;
const ARGUMENTS_OFFSET: u32 = 16;
const ARGUMENT_BYTES: u32 = 8;
/// From here on the numbers are those of x32, which shares x86-64's architecture.
const X32_FIRST: u32 = 0x4000_0000;

// The few instructions of BPF that are used, by their codes.
const LOAD_WORD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const JUMP_EQUAL: u16 = 0x15;
const JUMP_GREATER: u16 = 0x25;
const JUMP_GREATER_OR_EQUAL: u16 = 0x35;
const RETURN: u16 = 0x06;

/// The calls whose numbers are `first` to `last` have one rule.
struct Span {
    first: u32,
    last: u32,
    rule: Rule,
}

/// Puts every thread of the process under the filter.
///
/// # Errors
/// Those of `seccomp(2)`: a kernel without it.
pub(super) fn install() -> io::Result<()> {
    let mut program = program(&spans(calls()?))?;
    let program =
        libc::sock_fprog { len: u16::try_from(program.len()).map_err(io::Error::other)?, filter: program.as_mut_ptr() };
    // Without the second flag kernels before 5.16 slow down everything that the process computes.
    let all_threads = libc::SECCOMP_FILTER_FLAG_TSYNC;
    apply(&program, all_threads | libc::SECCOMP_FILTER_FLAG_SPEC_ALLOW).or_else(|error| match error.raw_os_error() {
        Some(libc::EINVAL) => apply(&program, all_threads),
        _ => Err(error),
    })
}

fn apply(program: &libc::sock_fprog, flags: libc::c_ulong) -> io::Result<()> {
    // SAFETY: the program is a valid value whose instructions live on; the kernel copies them.
    let applied =
        unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, flags, std::ptr::from_ref(program)) };
    match applied {
        0 => Ok(()),
        -1 => Err(io::Error::last_os_error()),
        thread => Err(io::Error::other(format!("thread {thread} stays outside"))),
    }
}

/// Puts calls in order, and those with neighbouring numbers and no conditions together.
fn spans(mut calls: Vec<Call>) -> Vec<Span> {
    calls.sort_by_key(|call| call.number);
    let mut spans: Vec<Span> = Vec::with_capacity(calls.len());
    for Call { number, rule } in calls {
        match (spans.last_mut(), &rule) {
            (Some(Span { last, rule: Rule::Allowed, .. }), Rule::Allowed) if *last + 1 == number => *last = number,
            _ => spans.push(Span { first: number, last: number, rule }),
        }
    }
    spans
}

fn program(spans: &[Span]) -> io::Result<Vec<libc::sock_filter>> {
    let mut program = vec![
        instruction(LOAD_WORD, 0, 0, ARCHITECTURE_OFFSET),
        instruction(JUMP_EQUAL, 1, 0, ARCHITECTURE),
        instruction(RETURN, 0, 0, libc::SECCOMP_RET_KILL_PROCESS),
        instruction(LOAD_WORD, 0, 0, NUMBER_OFFSET),
    ];
    if cfg!(target_arch = "x86_64") {
        program.push(instruction(JUMP_GREATER_OR_EQUAL, 0, 1, X32_FIRST));
        program.push(instruction(RETURN, 0, 0, libc::SECCOMP_RET_KILL_PROCESS));
    }
    program.extend(tree(spans)?);
    Ok(program)
}

/// Finds the span of the loaded number, by halves.
fn tree(spans: &[Span]) -> io::Result<Vec<libc::sock_filter>> {
    let (left, right) = spans.split_at(spans.len() / 2);
    match (left, right) {
        ([], [span]) => leaf(span),
        ([], _) => Ok(vec![refuse(libc::ENOSYS)]),
        (_, [middle, ..]) => {
            let (lower, upper) = (tree(left)?, tree(right)?);
            let over_lower = u32::try_from(lower.len()).map_err(io::Error::other)?;
            let mut found =
                vec![instruction(JUMP_GREATER_OR_EQUAL, 0, 1, middle.first), instruction(JUMP, 0, 0, over_lower)];
            found.extend(lower);
            found.extend(upper);
            Ok(found)
        }
        (_, []) => tree(left),
    }
}

/// Decides about the calls of one span, whatever number is loaded.
fn leaf(span: &Span) -> io::Result<Vec<libc::sock_filter>> {
    let mut decided = if span.first == span.last {
        vec![instruction(JUMP_EQUAL, 1, 0, span.first)]
    } else {
        vec![instruction(JUMP_GREATER_OR_EQUAL, 0, 1, span.first), instruction(JUMP_GREATER, 0, 1, span.last)]
    };
    decided.push(refuse(libc::ENOSYS));
    match &span.rule {
        Rule::Allowed => decided.push(allow()),
        Rule::When(alternatives, errno) => {
            for conditions in alternatives {
                let mut checked = vec![allow()];
                for condition in conditions.iter().rev() {
                    // Over what follows: the next alternative begins there.
                    let over = u8::try_from(checked.len()).map_err(io::Error::other)?;
                    let offset = ARGUMENTS_OFFSET + ARGUMENT_BYTES * u32::from(condition.argument);
                    checked.splice(
                        0..0,
                        [
                            instruction(LOAD_WORD, 0, 0, offset),
                            instruction(AND, 0, 0, condition.mask),
                            instruction(JUMP_EQUAL, 0, over, condition.value),
                        ],
                    );
                }
                decided.extend(checked);
            }
            decided.push(refuse(*errno));
        }
    }
    Ok(decided)
}

fn allow() -> libc::sock_filter {
    instruction(RETURN, 0, 0, libc::SECCOMP_RET_ALLOW)
}

fn refuse(errno: i32) -> libc::sock_filter {
    instruction(RETURN, 0, 0, libc::SECCOMP_RET_ERRNO | errno.unsigned_abs())
}

fn instruction(code: u16, jt: u8, jf: u8, k: u32) -> libc::sock_filter {
    libc::sock_filter { code, jt, jf, k }
}
