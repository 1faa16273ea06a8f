//! Lines of the kernel's trace, as values.

/// Something that the kernel recorded.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Event {
    /// On the monotonic clock, in milliseconds.
    pub(super) at: f64,
    /// The thread that did it.
    pub(super) thread: u32,
    pub(super) what: What,
}

/// What happened.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum What {
    /// It made this thread or process.
    Fork(u32),
    /// It became this program.
    Exec(String),
    Exit,
    /// The processor went from the first thread to the second.
    Switch(u32, u32),
    /// It made this cgroup.
    Mkdir(String),
    /// It moved a process into this cgroup.
    Attach(String),
    /// It entered the system call.
    Enter(String),
    /// It came back from it.
    Leave(String),
}

impl Event {
    /// Reads a trace; other lines than those of its own events are skipped.
    pub(super) fn parse_all(trace: &str) -> Vec<Self> {
        trace.lines().filter_map(Self::parse).collect()
    }

    /// A line is `NAME-THREAD [CPU] FLAGS SECONDS: EVENT: FIELDS`.
    fn parse(line: &str) -> Option<Self> {
        let (head, rest) = line.split_once("] ")?;
        let thread = head.rsplit_once('[')?.0.trim_end().rsplit_once('-')?.1.parse().ok()?;
        let (time, rest) = rest.split_once(": ")?;
        let seconds: f64 = time.split_whitespace().next_back()?.parse().ok()?;
        Some(Self { at: seconds * 1e3, thread, what: What::parse(rest)? })
    }
}

impl What {
    fn parse(text: &str) -> Option<Self> {
        // A system call is `sys_NAME(ARGUMENTS)` or `sys_NAME -> RESULT`.
        if let Some(call) = text.strip_prefix("sys_") {
            let leaves = call.split_once(" -> ").map(|(name, _)| Self::Leave(name.into()));
            return leaves.or_else(|| Some(Self::Enter(call.split_once('(')?.0.into())));
        }
        let (name, fields) = text.split_once(": ")?;
        let field = |name: &str| {
            let (_, value) = fields.split_once(&format!(" {name}="))?;
            value.split_whitespace().next()
        };
        Some(match name {
            "sched_process_fork" => Self::Fork(field("child_pid")?.parse().ok()?),
            "sched_process_exec" => Self::Exec(fields.strip_prefix("filename=")?.split_whitespace().next()?.into()),
            "sched_process_exit" => Self::Exit,
            "sched_switch" => Self::Switch(field("prev_pid")?.parse().ok()?, field("next_pid")?.parse().ok()?),
            "cgroup_mkdir" => Self::Mkdir(field("path")?.into()),
            "cgroup_attach_task" => Self::Attach(field("dst_path")?.into()),
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(line: &str, thread: u32, what: What) {
        assert_eq!(Event::parse_all(line), [Event { at: 717_060.5, thread, what }], "{line}");
    }

    #[test]
    fn the_kernels_lines_are_read() {
        let line = |name: &str, text: &str| format!("{name:>16}-7       [001] d..2.   717.060500: {text}");
        let fork = "sched_process_fork: comm=a-b c pid=7 child_comm=x pid=1 child_pid=9";
        check(&line("a-b c", fork), 7, What::Fork(9));
        let exec = "sched_process_exec: filename=/usr/bin/runc pid=7 old_pid=7";
        check(&line("runc", exec), 7, What::Exec("/usr/bin/runc".into()));
        check(&line("runc", "sched_process_exit: comm=runc pid=7 prio=120 group_dead=true"), 7, What::Exit);
        let switch = "sched_switch: prev_comm=[x] prev_pid=7 prev_prio=120 prev_state=S ==> next_comm=y next_pid=0 next_prio=120";
        check(&line("runc", switch), 7, What::Switch(7, 0));
        check(&line("runc", "cgroup_mkdir: root=1 id=31 level=1 path=/a/b"), 7, What::Mkdir("/a/b".into()));
        let attach = "cgroup_attach_task: dst_root=1 dst_id=31 dst_level=1 dst_path=/a/b pid=8 comm=x";
        check(&line("runc", attach), 7, What::Attach("/a/b".into()));
        check(&line("runc", "sys_mount(dev_name: c000, dir_name: 0, flags: 1000)"), 7, What::Enter("mount".into()));
        check(&line("runc", "sys_umount -> 0x0"), 7, What::Leave("umount".into()));
    }

    #[test]
    fn other_lines_are_skipped() {
        for line in [
            "",
            "# tracer: nop",
            "#              | |         |   |||||     |         |",
            "a-7 [000] d..1. 1.0: other: x=1",
        ] {
            assert_eq!(Event::parse_all(line), [], "{line}");
        }
    }
}
