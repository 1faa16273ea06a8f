//! A further process of a wasm container: what its arguments mean, and its specification and plan if its program is the engine. Pure.

use oci_spec::runtime::Process as ProcessSpec;
use skiff_protocol::{ENGINE_FD, EnginePlan, Task};

/// What arguments mean that name no file of the container: questions to the guest's engine, or nothing.
pub(crate) fn task_of(args: &[String]) -> Task {
    match args.split_first() {
        Some((first, rest)) if first == "invoke" => Task::Invoke(rest.to_vec()),
        Some((first, rest)) if first == "skiff" => Task::Look(rest.to_vec()),
        first => Task::Refuse(format!(
            "there is no `{}` in this wasm container, where an exec runs: a `.wasm` file, by its path or by its name in `PATH` (a \
             wasm layer of the image is not a file); a native program of the image; `invoke 'FUNCTION(ARGUMENT, …)'`, which \
             calls a function of the running guest; or `skiff COMMAND`, which looks into the container",
            first.map_or("", |(first, _)| first)
        )),
    }
}

/// The specification of a process whose program is the engine instead. Its environment is empty, so that no variable of the
/// container changes what the engine does.
pub(crate) fn for_engine(spec: &ProcessSpec) -> ProcessSpec {
    let mut args = vec![format!("/proc/self/fd/{ENGINE_FD}")];
    args.extend(spec.args().iter().flatten().cloned());
    let mut rewritten = spec.clone();
    rewritten.set_args(Some(args)).set_env(None);
    rewritten
}

/// The plan of a process of `spec` in a container whose guest has the plan `guest`: the same view and limits, and arguments,
/// environment and working directory of its own. Its end is not the container's, so that it has no last words.
pub(crate) fn plan_of(guest: &EnginePlan, spec: &ProcessSpec, task: Task) -> EnginePlan {
    let args = spec.args().clone().unwrap_or_default();
    EnginePlan {
        task,
        module: args.first().cloned().unwrap_or_default(),
        function: None,
        args,
        env: spec.env().clone().unwrap_or_default(),
        cwd: spec.cwd().to_str().filter(|cwd| cwd.starts_with('/')).unwrap_or("/").to_string(),
        termination_log: None,
        core_dump: None,
        ..guest.clone()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn spec() -> ProcessSpec {
        let text = json!({"user": {"uid": 7, "gid": 8}, "args": ["b.wasm", "x"], "env": ["B=2"], "cwd": "/work",
            "terminal": true, "noNewPrivileges": true, "capabilities": {"bounding": ["CAP_KILL"]}});
        serde_json::from_value(text).unwrap()
    }

    #[test]
    fn arguments_that_name_no_file_are_questions_or_are_refused_with_what_would_work() {
        let task = |args: &[&str]| task_of(&args.iter().map(|arg| (*arg).to_string()).collect::<Vec<_>>());
        assert_eq!(task(&["invoke"]), Task::Invoke(vec![]));
        assert_eq!(task(&["invoke", "add(1, 2)", "--json"]), Task::Invoke(vec!["add(1, 2)".into(), "--json".into()]));
        assert_eq!(task(&["skiff", "ls", "/"]), Task::Look(vec!["ls".into(), "/".into()]));
        let Task::Refuse(sentence) = task(&["sh", "-c", "ls"]) else { panic!("it is refused") };
        for part in ["no `sh` in", "`.wasm` file", "wasm layer", "native program", "`invoke ", "`skiff "] {
            assert!(sentence.contains(part), "{part}: {sentence}");
        }
    }

    #[test]
    fn the_engine_is_the_process_and_nothing_else_of_it_changes() {
        let (given, rewritten) = (spec(), for_engine(&spec()));
        assert_eq!(rewritten.args().clone().unwrap(), ["/proc/self/fd/3", "b.wasm", "x"]);
        assert_eq!(rewritten.env(), &None);
        let mut again = rewritten;
        again.set_args(given.args().clone()).set_env(given.env().clone());
        assert_eq!(again, given);
    }

    #[test]
    fn a_further_process_has_the_guests_view_and_limits_and_arguments_of_its_own() {
        let guest = EnginePlan {
            module: "/a.wasm".into(),
            function: Some("run".into()),
            args: vec!["/a.wasm".into()],
            env: vec!["A=1".into()],
            memory_limit_bytes: Some(1),
            termination_log: Some("/dev/termination-log".into()),
            core_dump: Some("/dumps/core".into()),
            each_signal_stops: true,
            ..EnginePlan::default()
        };
        let plan = plan_of(&guest, &spec(), Task::Run);
        let expected = EnginePlan {
            module: "b.wasm".into(),
            function: None,
            args: vec!["b.wasm".into(), "x".into()],
            env: vec!["B=2".into()],
            cwd: "/work".into(),
            termination_log: None,
            core_dump: None,
            ..guest
        };
        assert_eq!(plan, expected);
    }
}
