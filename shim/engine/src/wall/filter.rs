//! The system calls of an engine whose guest runs: what WASI's files, sockets, clocks and threads need. All others do not
//! exist for it (`ENOSYS`), so that a library that tries a newer call first falls back as it does on an older kernel.
//!
//! seccompiler's programs compare one number after the other. The kernel runs such a program once for each call's number
//! when it is installed, which took 0.3 ms for this list. This program is a search tree, which takes a tenth of that, and it
//! can return more than one errno.

use std::io;

use skiff_linux::seccomp::install_on_all_threads;

use super::calls::{Call, Condition, Rule, calls};

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
const JUMP_GREATER_OR_EQUAL: u16 = 0x35;
const RETURN: u16 = 0x06;
/// Room for the whole program, in instructions.
const ROOM: usize = 512;

/// The calls whose numbers are at least `first`, and less than that of the next span, have one rule.
struct Span {
    first: u32,
    rule: Rule,
}

/// Puts every thread of the process under the filter.
///
/// # Errors
/// Those of `seccomp(2)`, on a kernel without it.
pub(super) fn install() -> io::Result<()> {
    install_on_all_threads(&mut program(&spans(calls()?)))
}

/// Divides all numbers there are among the calls. Those between them do not exist.
fn spans(mut calls: Vec<Call>) -> Vec<Span> {
    calls.sort_by_key(|call| call.number);
    let mut spans = Vec::with_capacity(2 * calls.len() + 2);
    let mut next = 0;
    for Call { number, rule } in calls {
        if next < number {
            spans.push(Span { first: next, rule: Rule::Missing });
        }
        next = number + 1;
        let is_alike = matches!((spans.last(), &rule), (Some(Span { rule: Rule::Allowed, .. }), Rule::Allowed));
        if !is_alike {
            spans.push(Span { first: number, rule });
        }
    }
    spans.push(Span { first: next, rule: Rule::Missing });
    if cfg!(target_arch = "x86_64") {
        spans.push(Span { first: X32_FIRST, rule: Rule::Fatal });
    }
    spans
}

fn program(spans: &[Span]) -> Vec<libc::sock_filter> {
    let mut program = Vec::with_capacity(ROOM);
    program.extend([
        instruction(LOAD_WORD, 0, 0, ARCHITECTURE_OFFSET),
        instruction(JUMP_EQUAL, 1, 0, ARCHITECTURE),
        instruction(RETURN, 0, 0, libc::SECCOMP_RET_KILL_PROCESS),
        instruction(LOAD_WORD, 0, 0, NUMBER_OFFSET),
    ]);
    tree(spans, &mut program);
    program
}

/// Appends the search for the span of the loaded number, by bisection.
fn tree(spans: &[Span], program: &mut Vec<libc::sock_filter>) {
    let (lower, upper) = spans.split_at(spans.len() / 2);
    let [middle, ..] = upper else { return };
    if lower.is_empty() {
        return leaf(&middle.rule, program);
    }
    let start = program.len();
    tree(lower, program);
    let length = program.len() - start;
    // A conditional jump leads over 255 instructions at most.
    match u8::try_from(length) {
        Ok(length) => program.insert(start, instruction(JUMP_GREATER_OR_EQUAL, length, 0, middle.first)),
        Err(_) => {
            let over = u32::try_from(length).unwrap_or(u32::MAX);
            let far = [instruction(JUMP_GREATER_OR_EQUAL, 0, 1, middle.first), instruction(JUMP, 0, 0, over)];
            program.splice(start..start, far);
        }
    }
    tree(upper, program);
}

/// Appends the decision about a call that has this rule.
fn leaf(rule: &Rule, program: &mut Vec<libc::sock_filter>) {
    match rule {
        Rule::Allowed => program.push(allow()),
        Rule::Missing => program.push(refuse(libc::ENOSYS)),
        Rule::Fatal => program.push(instruction(RETURN, 0, 0, libc::SECCOMP_RET_KILL_PROCESS)),
        Rule::When(alternatives, errno) => {
            alternatives.iter().for_each(|conditions| alternative(conditions, program));
            program.push(refuse(*errno));
        }
    }
}

/// Appends what allows a call if all `conditions` hold, and otherwise goes on behind it.
fn alternative(conditions: &[Condition], program: &mut Vec<libc::sock_filter>) {
    // How many instructions are left of this alternative.
    let mut over = 1;
    let start = program.len();
    program.push(allow());
    for condition in conditions.iter().rev() {
        let offset = ARGUMENTS_OFFSET + ARGUMENT_BYTES * u32::from(condition.argument);
        let checked = [
            instruction(LOAD_WORD, 0, 0, offset),
            instruction(AND, 0, 0, condition.mask),
            instruction(JUMP_EQUAL, 0, over, condition.value),
        ];
        over += 3;
        program.splice(start..start, checked);
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    /// The most instructions that finding a call may take.
    const STEPS_MAX: usize = 16;

    /// What the kernel would return for a call of this number whose arguments are all ones, and after how many instructions.
    fn run(program: &[libc::sock_filter], number: u32) -> (u32, usize) {
        let (mut at, mut loaded) = (0, 0);
        for steps in 1.. {
            let libc::sock_filter { code, jt, jf, k } = program[at];
            let jump = |holds: bool| usize::from(if holds { jt } else { jf });
            at += 1;
            match code {
                LOAD_WORD if k == ARCHITECTURE_OFFSET => loaded = ARCHITECTURE,
                LOAD_WORD if k == NUMBER_OFFSET => loaded = number,
                LOAD_WORD => loaded = u32::MAX,
                AND => loaded &= k,
                JUMP => at += usize::try_from(k).unwrap(),
                JUMP_EQUAL => at += jump(loaded == k),
                JUMP_GREATER_OR_EQUAL => at += jump(loaded >= k),
                RETURN => return (k, steps),
                _ => break,
            }
        }
        unreachable!()
    }

    #[test]
    fn every_number_finds_its_own_rule() {
        let program = program(&spans(calls().unwrap()));
        let known = calls().unwrap();
        let last = known.iter().map(|call| call.number).max().unwrap();
        for number in (0..last + 100).chain([X32_FIRST - 1]) {
            let wanted = match known.iter().find(|call| call.number == number).map(|call| &call.rule) {
                Some(Rule::Allowed) => libc::SECCOMP_RET_ALLOW,
                // All ones meet no conditions.
                Some(Rule::When(_, errno)) => libc::SECCOMP_RET_ERRNO | errno.unsigned_abs(),
                Some(Rule::Missing | Rule::Fatal) | None => libc::SECCOMP_RET_ERRNO | libc::ENOSYS.unsigned_abs(),
            };
            let (found, steps) = run(&program, number);
            assert_eq!(found, wanted, "{number}");
            // The kernel runs the program for each number when it is installed.
            let has_conditions = found != libc::SECCOMP_RET_ALLOW && found != refuse(libc::ENOSYS).k;
            assert!(steps <= STEPS_MAX || has_conditions, "{number}: {steps} instructions");
        }
        if cfg!(target_arch = "x86_64") {
            assert_eq!(run(&program, X32_FIRST).0, libc::SECCOMP_RET_KILL_PROCESS);
            assert_eq!(run(&program, u32::MAX).0, libc::SECCOMP_RET_KILL_PROCESS);
        }
        assert!(program.len() <= ROOM, "{}", program.len());
    }
}
