//! Calls of functions of running guests, by exec, in Go, C, Rust, JavaScript and Python, under a real containerd.

use skiff_test::{Container, Containerd, Outcome};

/// How many execs are in one container at once.
const AT_ONCE: usize = 100;

fn started(guest: &str) -> Container<'static> {
    Containerd::shared().job(guest).start()
}

fn invoke(container: &Container<'_>, words: &[&str]) -> Outcome {
    exec(container, &[&["invoke"], words].concat(), "")
}

/// Runs a command in the container, with this input.
fn exec(container: &Container<'_>, command: &[&str], input: impl AsRef<[u8]>) -> Outcome {
    let exec = container.exec(command, false).unwrap();
    exec.start().unwrap();
    let input = input.as_ref();
    // A command that reads nothing may have ended by now.
    if !input.is_empty() {
        exec.streams.write(input);
        exec.streams.close_stdin();
        exec.close_io().unwrap();
    }
    exec.finish()
}

fn stop(container: Container<'_>) {
    container.kill(15).unwrap();
    let ended = container.finish();
    // A node that is busy tells how long it compiled.
    let complaints = ended.stderr.lines().filter(|line| !line.starts_with("skiff: compiling ")).count();
    assert_eq!((ended.code, ended.stdout.as_str(), complaints), (0, "", 0), "{ended:?}");
}

#[test]
fn a_reactor_in_each_language_keeps_its_state_between_calls() {
    for guest in ["c-reactor", "go-reactor", "rust-reactor", "rust-values", "js-values", "python-values"] {
        let container = started(guest);
        for (expression, value) in [("counter()", "1\n"), ("add(-1, 3)", "2\n"), ("counter()", "2\n")] {
            let outcome = invoke(&container, &[expression]);
            assert_eq!((outcome.code, outcome.stdout.as_str()), (0, value), "{guest}: {expression}: {outcome:?}");
        }
        let both = invoke(&container, &["counter()", "counter()"]);
        assert_eq!((both.code, both.stdout.as_str()), (0, "3\n4\n"), "{guest}: {both:?}");
        let fresh = invoke(&container, &["--fresh", "counter()"]);
        assert_eq!((fresh.code, fresh.stdout.as_str()), (0, "1\n"), "{guest}: {fresh:?}");
        stop(container);
    }
}

#[test]
fn the_same_calls_give_the_same_values_in_each_language() {
    let item = |name: &str, shape: &str, note: &str| {
        format!(
            "{{name: \"{name}\", count: 4294967295, colour: blue, rights: {{read, run}}, shape: {shape}, note: {note}}}"
        )
    };
    let put = |item: &str| format!("guests:values/shop#put({item})");
    let [nail, nut, bolt] = [
        item("nail", "rectangle((1, 2))", "some(\"lang \\\"ü\\\"\")"),
        item("nut", "circle(0.5)", "none"),
        item("bolt", "point", "some(\"\")"),
    ];
    let rows = [
        ("initial(\"über\")".to_owned(), 0, "some('ü')\n".to_owned(), ""),
        ("initial(\"\")".into(), 0, "none\n".into(), ""),
        ("divide(-7, 2)".into(), 0, "ok(-3)\n".into(), ""),
        ("divide(1, 0)".into(), 1, String::new(), "cannot divide 1 by 0"),
        (put(&nail), 0, "ok(1)\n".into(), ""),
        (put(&nut), 0, "ok(2)\n".into(), ""),
        (put(&bolt), 0, "ok(3)\n".into(), ""),
        (put(&item("", "point", "none")), 1, String::new(), "an item needs a name"),
        ("guests:values/shop#names()".into(), 0, "[\"bolt\", \"nail\", \"nut\"]\n".into(), ""),
        ("guests:values/shop#get(\"nail\")".into(), 0, format!("some({nail})\n"), ""),
        ("guests:values/shop#get(\"nut\")".into(), 0, format!("some({nut})\n"), ""),
        ("guests:values/shop#get(\"gone\")".into(), 0, "none\n".into(), ""),
        ("guests:values/shop#remove(\"nut\")".into(), 0, "ok\n".into(), ""),
        ("guests:values/shop#remove(\"nut\")".into(), 1, String::new(), "err"),
    ];
    for guest in ["rust-values", "js-values", "python-values"] {
        let container = started(guest);
        for (expression, code, stdout, stderr) in &rows {
            let outcome = invoke(&container, &[expression]);
            assert_eq!((outcome.code, &outcome.stdout), (*code, stdout), "{guest}: {expression}: {outcome:?}");
            assert!(outcome.stderr.contains(stderr), "{guest}: {expression}: {outcome:?}");
        }
        stop(container);
    }
}

#[test]
fn a_guest_in_go_calls_back_from_its_goroutines() {
    let container = started("go-reactor");
    let outcome = invoke(&container, &["collect(2)", "collect(-5)", "half(5)"]);
    assert_eq!((outcome.code, outcome.stdout.as_str()), (0, "2\n-3\n2.5\n"), "{outcome:?}");
    let greeted = invoke(&container, &["greet()"]);
    assert_eq!(greeted.code, 0, "{greeted:?}");
    container.kill(15).unwrap();
    let ended = container.finish();
    assert!(ended.code == 0 && (ended.stdout + &greeted.stdout).contains("hello from Go's greet\n"));
}

#[test]
fn what_is_thrown_in_a_call_ends_the_call_with_its_message() {
    for (guest, code, message, told) in [
        ("rust-values", 134, "on purpose", "trapped: "),
        ("js-values", 1, "on purpose", "ended with an exception: on purpose\n"),
        ("python-values", 1, "ValueError: on purpose", "ended with an exception: ValueError: on purpose\n"),
    ] {
        let container = started(guest);
        let failed = invoke(&container, &["fail()"]);
        // By default the guest ends as well, as Kubernetes expects it.
        let ended = container.finish();
        assert_eq!((failed.code, ended.code), (code, code), "{guest}: {failed:?} {ended:?}");
        assert!(failed.stderr.contains(told) && ended.stderr.contains(told), "{guest}: {failed:?} {ended:?}");
        assert!((failed.stderr + &ended.stderr).contains(message), "{guest}: {message:?}");
    }
}

#[test]
fn calls_are_read_from_the_input_one_a_line() {
    for guest in ["go-reactor", "rust-values"] {
        let container = started(guest);
        let input: String = (0..1000).map(|number| format!("add({number}, 1)\n")).collect();
        let outcome = exec(&container, &["invoke"], &input);
        let expected: String = (1..=1000).map(|number| format!("{number}\n")).collect();
        assert_eq!((outcome.code, outcome.stdout), (0, expected), "{guest}: {}", outcome.stderr);
        stop(container);
    }
}

#[test]
fn hostile_expressions_are_refused_in_a_container() {
    let container = started("rust-values");
    let deep = format!("initial({})", "[".repeat(10_000));
    for input in [deep.as_bytes(), b"initial(\"\xff\xfe\")", b"\0", b"initial("] {
        let outcome = exec(&container, &["invoke"], input);
        assert_eq!((outcome.code, outcome.stdout.as_str()), (2, ""), "{outcome:?}");
        assert!(outcome.stderr.starts_with("skiff: ") && outcome.stderr.len() < 4096, "{outcome:?}");
    }
    let outcome = invoke(&container, &["counter()"]);
    assert_eq!((outcome.code, outcome.stdout.as_str()), (0, "1\n"), "{outcome:?}");
    stop(container);
}

#[test]
fn a_hundred_calls_and_commands_at_once_are_answered() {
    let container = started("go-reactor");
    let answers = std::thread::scope(|scope| {
        let run = |number: usize| {
            let container = &container;
            scope.spawn(move || match number % 4 {
                0 => exec(container, &["/go-reactor.wasm#seven"], ""),
                1 => exec(container, &["nonsense"], ""),
                2 => exec(container, &["skiff", "env"], ""),
                _ => invoke(container, &["counter()"]),
            })
        };
        let threads: Vec<_> = (0..AT_ONCE).map(run).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect::<Vec<_>>()
    });
    let mut counted: Vec<u32> = Vec::new();
    for (number, outcome) in answers.into_iter().enumerate() {
        match number % 4 {
            0 => assert_eq!((outcome.code, outcome.stdout.as_str()), (0, "7\n"), "{outcome:?}"),
            1 => assert_eq!(outcome.code, 127, "{outcome:?}"),
            2 => assert!(outcome.code == 0 && outcome.stdout.contains("PATH="), "{outcome:?}"),
            _ => counted.push(outcome.stdout.trim().parse().unwrap_or_else(|_| panic!("{outcome:?}"))),
        }
    }
    counted.sort_unstable();
    assert_eq!(counted, (1..=25).collect::<Vec<_>>(), "each call was made once");
    stop(container);
}
