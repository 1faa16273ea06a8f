//! The exit table: how a guest's end becomes the container's exit code.

/// The guest trapped (the shell's code for a process that aborted: 128 + SIGABRT).
pub const EXIT_TRAP: i32 = 134;
/// The engine cannot start the guest; the reason is in the reply to Start.
pub const EXIT_ENGINE: i32 = 125;
/// There is nothing to run under the name that was executed (the shell's code for a command that is not found).
pub const EXIT_NOT_FOUND: i32 = 127;
/// The guest ended because it reached its memory limit; Kubernetes shows `OOMKilled`.
pub const EXIT_OOM: i32 = 137;

/// The exit code of a guest that called `proc_exit(code)` or returned it: `code` modulo 256, as `wait(2)` reports it.
pub const fn exit_code_of_proc_exit(code: i32) -> i32 {
    code & 0xff
}

/// The exit code of a process that signal `signal` ended: 128 + `signal`.
pub const fn exit_code_of_signal(signal: i32) -> i32 {
    128 + signal
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn proc_exit_is_taken_modulo_256() {
        for (code, expected) in
            [(0, 0), (1, 1), (125, 125), (126, 126), (200, 200), (255, 255), (256, 0), (300, 44), (-1, 255)]
        {
            assert_eq!(exit_code_of_proc_exit(code), expected, "proc_exit({code})");
        }
    }

    #[test]
    fn signals_end_as_in_a_shell() {
        assert_eq!(exit_code_of_signal(9), 137);
        assert_eq!(exit_code_of_signal(15), 143);
    }
}
