//! Whose fault it is when `skiff compile` fails, as its exit code reports it.

/// What caused an error, and so where it can be fixed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The module, or what the caller asked for: the same call fails everywhere. Exit code 1.
    Guest,
    /// The node: the same call may succeed elsewhere or later. Exit code 2.
    Host,
    /// A limit on time or size of the output was reached. Exit code 3.
    Limit,
    /// The limit on memory was reached: the same call may succeed with fewer threads. Exit code 4.
    Memory,
}

impl Fault {
    /// The exit code of a program that fails because of this.
    pub const fn code(self) -> u8 {
        match self {
            Self::Guest => 1,
            Self::Host => 2,
            Self::Limit => 3,
            Self::Memory => 4,
        }
    }

    /// The fault of a program that exited with `code`, which is not 0; `None` when a signal ended it. An unknown code
    /// counts as the guest's fault.
    pub const fn of_exit(code: Option<i32>) -> Option<Self> {
        match code {
            None => None,
            Some(2) => Some(Self::Host),
            Some(3) => Some(Self::Limit),
            Some(4) => Some(Self::Memory),
            Some(_) => Some(Self::Guest),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_code_reads_back() {
        for fault in [Fault::Guest, Fault::Host, Fault::Limit, Fault::Memory] {
            assert_eq!(Fault::of_exit(Some(fault.code().into())), Some(fault));
        }
        assert_eq!(Fault::of_exit(None), None);
    }
}
