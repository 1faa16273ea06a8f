//! The devices that a container of cgroup v2 may use: rules, and the program that decides by them.

use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::AsFd;

use super::Cgroup;
use crate::bpf::{self, Instruction};

/// The devices that the processes of a cgroup may use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Devices {
    /// All.
    All,
    /// Those for which a rule allows everything that is asked for at once.
    Only(Vec<DeviceRule>),
}

/// What may be done with some devices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DeviceRule {
    /// Whether it is about block devices instead of character devices.
    pub is_block: bool,
    /// The major number; `None` for all.
    pub major: Option<u32>,
    /// The minor number; `None` for all.
    pub minor: Option<u32>,
    /// What may be done.
    pub access: Access,
}

/// What may be done with a device.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Access {
    /// It is opened for reading.
    pub reads: bool,
    /// It is opened for writing.
    pub writes: bool,
    /// A node for it is made.
    pub makes: bool,
}

/// Registers: the answer, the question and what is read from it.
const ANSWER: u8 = 0;
const QUESTION: u8 = 1;
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

/// Codes of instructions, from `linux/bpf_common.h` and `linux/bpf.h`.
const LOAD_WORD: u8 = 0x61;
const AND: u8 = 0x54;
const SHIFT_RIGHT: u8 = 0x74;
const SET: u8 = 0xb4;
const COPY: u8 = 0xbc;
const JUMP_UNLESS_NUMBER: u8 = 0x55;
const JUMP_UNLESS_REGISTER: u8 = 0x5d;
const EXIT: u8 = 0x95;

impl Cgroup {
    /// Lets the container's processes on version 2 use `devices`, and no others. Whatever said so before does not count any more.
    ///
    /// # Errors
    /// `Unsupported` without a cgroup; those of opening it and of `bpf(2)`.
    pub fn limit_devices(&self, devices: &Devices) -> io::Result<()> {
        let missing = || io::Error::new(ErrorKind::Unsupported, "there is no cgroup for devices");
        let directory = File::open(self.unified_dir().ok_or_else(missing)?)?;
        let before = bpf::attached(directory.as_fd())?;
        bpf::attach(directory.as_fd(), bpf::load(&program(devices))?.as_fd())?;
        before.iter().try_for_each(|program| bpf::detach(directory.as_fd(), program.as_fd()))
    }
}

/// The program that allows `devices`. The kernel's question is `struct bpf_cgroup_dev_ctx`: the kind of the device below what is to
/// be done with it, then its numbers.
fn program(devices: &Devices) -> Vec<Instruction> {
    let load = |register: u8, offset: i16| instruction(LOAD_WORD, register | QUESTION << 4, offset, 0);
    let mut program = vec![
        load(KIND, 0),
        instruction(AND, KIND, 0, 0xffff),
        load(ACCESS, 0),
        instruction(SHIFT_RIGHT, ACCESS, 0, 16),
        load(MAJOR, 4),
        load(MINOR, 8),
    ];
    match devices {
        Devices::All => program.extend(answer(1)),
        Devices::Only(rules) => {
            let mut rules: Vec<&DeviceRule> = rules.iter().collect();
            // The OCI runtime's order, so that its program for the same rules is the same. `None` is less than any number.
            rules.sort_by_key(|rule| (rule.major, rule.minor, !rule.is_block));
            program.extend(rules.into_iter().flat_map(allow));
            program.extend(answer(0));
        }
    }
    program
}

/// Allows what `rule` is about, or goes on behind it.
fn allow(rule: &DeviceRule) -> Vec<Instruction> {
    let mut conditions = vec![instruction(JUMP_UNLESS_NUMBER, KIND, 0, if rule.is_block { 1 } else { 2 })];
    let Access { makes, reads, writes } = rule.access;
    let allowed = i32::from(makes) | i32::from(reads) << 1 | i32::from(writes) << 2;
    if allowed != 7 {
        conditions.extend([
            instruction(COPY, QUESTION | ACCESS << 4, 0, 0),
            instruction(AND, QUESTION, 0, allowed),
            instruction(JUMP_UNLESS_REGISTER, QUESTION | ACCESS << 4, 0, 0),
        ]);
    }
    let numbers = [(MAJOR, rule.major), (MINOR, rule.minor)];
    conditions.extend(numbers.into_iter().filter_map(|(register, number)| {
        // The kernel widens the number with its sign, and no device has one that is so large.
        Some(instruction(JUMP_UNLESS_NUMBER, register, 0, number?.cast_signed()))
    }));
    let count = conditions.len();
    for (place, condition) in conditions.iter_mut().enumerate() {
        if condition.code == JUMP_UNLESS_NUMBER || condition.code == JUMP_UNLESS_REGISTER {
            // Over the other conditions and the answer.
            condition.offset = i16::try_from(count - place - 1 + answer(1).len()).unwrap_or(i16::MAX);
        }
    }
    conditions.extend(answer(1));
    conditions
}

fn answer(number: i32) -> [Instruction; 2] {
    [instruction(SET, ANSWER, 0, number), instruction(EXIT, 0, 0, 0)]
}

fn instruction(code: u8, registers: u8, offset: i16, number: i32) -> Instruction {
    Instruction { code, registers, offset, number }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(is_block: bool, major: Option<u32>, minor: Option<u32>, letters: &str) -> DeviceRule {
        let has = |letter| letters.contains(letter);
        DeviceRule { is_block, major, minor, access: Access { reads: has('r'), writes: has('w'), makes: has('m') } }
    }

    /// What the kernel would answer: the instructions that these programs have, and no others.
    fn answer_of(program: &[Instruction], is_block: bool, access: u32, numbers: (u32, u32)) -> u64 {
        let mut registers = [0_u64; 11];
        let question = [access << 16 | if is_block { 1 } else { 2 }, numbers.0, numbers.1];
        let mut place = 0;
        loop {
            let Instruction { code, registers: pair, offset, number } = program[place];
            let (changed, read) = (usize::from(pair & 15), usize::from(pair >> 4));
            let wide = i64::from(number).cast_unsigned();
            let is_jump = match code {
                LOAD_WORD => {
                    registers[changed] = question[usize::try_from(offset).unwrap() / 4].into();
                    false
                }
                AND => {
                    registers[changed] &= u64::from(number.cast_unsigned());
                    false
                }
                SHIFT_RIGHT => {
                    registers[changed] >>= number;
                    false
                }
                SET => {
                    registers[changed] = number.cast_unsigned().into();
                    false
                }
                COPY => {
                    registers[changed] = registers[read];
                    false
                }
                JUMP_UNLESS_NUMBER => registers[changed] != wide,
                JUMP_UNLESS_REGISTER => registers[changed] != registers[read],
                EXIT => return registers[0],
                other => panic!("{other:x}"),
            };
            place += 1 + if is_jump { usize::try_from(offset).unwrap() } else { 0 };
        }
    }

    #[test]
    fn a_program_allows_what_its_rules_allow() {
        let (makes, reads, writes) = (1, 2, 4);
        let rules = Devices::Only(vec![
            rule(false, None, None, "m"),
            rule(false, Some(1), Some(3), "rwm"),
            rule(false, Some(136), None, "rw"),
            rule(true, Some(8), Some(1), "r"),
        ]);
        let only = program(&rules);
        for (is_block, access, numbers, expected) in [
            (false, makes, (9, 9), 1),
            (true, makes, (9, 9), 0),
            (false, reads, (9, 9), 0),
            (false, makes | reads, (9, 9), 0),
            (false, makes | reads | writes, (1, 3), 1),
            (false, reads, (1, 4), 0),
            (true, reads, (1, 3), 0),
            (false, reads | writes, (136, 77), 1),
            (false, reads | writes | makes, (136, 77), 0),
            (true, reads, (8, 1), 1),
            (true, reads | writes, (8, 1), 0),
            (true, reads, (8, 2), 0),
            (true, 0, (8, 1), 1),
        ] {
            let found = answer_of(&only, is_block, access, numbers);
            assert_eq!(found, expected, "{is_block} {access} {numbers:?}");
        }
        let (all, none) = (program(&Devices::All), program(&Devices::Only(vec![])));
        assert_eq!((answer_of(&all, true, 7, (8, 0)), answer_of(&none, true, 0, (8, 0))), (1, 0));
    }

    #[test]
    fn the_program_of_a_rule_is_the_oci_runtimes() {
        let text = |devices: &Devices| -> Vec<String> {
            let bytes = |instruction: &Instruction| {
                let Instruction { code, registers, offset, number } = instruction;
                format!("{code:02x} {registers:02x} {offset} {number}")
            };
            program(devices).iter().map(bytes).collect()
        };
        let beginning = ["61 12 0 0", "54 02 0 65535", "61 13 0 0", "74 03 0 16", "61 14 4 0", "61 15 8 0"];
        let check = |devices: &Devices, expected: &[&str]| {
            assert_eq!(text(devices), [&beginning, expected].concat());
        };
        check(&Devices::All, &["b4 00 0 1", "95 00 0 0"]);
        check(
            &Devices::Only(vec![rule(true, Some(8), None, "r"), rule(false, Some(1), Some(3), "rwm")]),
            &[
                "55 02 4 2",
                "55 04 3 1",
                "55 05 2 3",
                "b4 00 0 1",
                "95 00 0 0",
                "55 02 6 1",
                "bc 31 0 0",
                "54 01 0 2",
                "5d 31 3 0",
                "55 04 2 8",
                "b4 00 0 1",
                "95 00 0 0",
                "b4 00 0 0",
                "95 00 0 0",
            ],
        );
    }
}
