//! The system calls of an engine whose guest runs: what WASI's files, sockets, clocks and threads need. All others do not
//! exist for it (`ENOSYS`), so that a library that tries a newer call first falls back as it does on an older kernel.
//!
//! seccompiler's programs compare one number after the other. The kernel runs such a program once for each call's number
//! when it is installed. For this list that took 0.3 ms, all that the wall may cost. This program is a search tree, which
//! takes a tenth of that, and it can return more than one errno.

use std::io;

use skiff_linux::seccomp::install_on_all_threads;

use super::calls::{Call, Rule, calls};

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;

/// Where the kernel puts what the filter inspects: see `struct seccomp_data`.
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
/// Those of `seccomp(2)`, on a kernel without it.
pub(super) fn install() -> io::Result<()> {
    install_on_all_threads(&mut program(&spans(calls()?))?)
}

/// Sorts calls, and joins those with neighbouring numbers and no conditions.
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

/// Finds the span of the loaded number by bisection.
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
                    // Jumps over the rest of this alternative, to the next one.
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
