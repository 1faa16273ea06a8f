//! Terminals in pods: `kubectl run -it`, `attach -it` and `exec -it`, typed at through a real pseudo terminal.

use serde_json::{Value, json};
use skiff_test::{Cluster, Lasting, Namespace, container, wasm_pod};

const CTRL_C: &str = "\x03";
const CTRL_D: &str = "\x04";
const PROMPT: &str = "sqlite> ";

/// Types a statement and waits for its result.
fn ask(shell: &mut Lasting, statement: &str, result: &str) {
    shell.write(&format!("{statement};\r"));
    shell.expect(&format!("{result}\r\n{PROMPT}"));
}

/// A pod that waits for somebody to type.
fn shell() -> Value {
    wasm_pod("shell", &[container("main", "sqlite", json!({"stdin": true, "tty": true}))])
}

fn namespace() -> Namespace<'static> {
    Cluster::shared().namespace()
}

#[test]
fn a_shell_is_run_by_hand() {
    let namespace = namespace();
    let overrides = r#"{"spec": {"runtimeClassName": "skiff"}}"#;
    let image = "--image=localhost:5000/examples/sqlite:1";
    let words = ["run", "shell", "-it", "--restart=Never", "--pod-running-timeout=2m", image, "--overrides", overrides];
    let mut shell = namespace.terminal(&words);
    // The first prompt may have come before kubectl was there.
    shell.expect("If you don't see a command prompt, try pressing enter");
    ask(&mut shell, "select 'sum', 20 + 22", "sum|42");
    shell.write(CTRL_D);
    shell.end().unwrap();
    assert_eq!(namespace.ended("shell")["exitCode"], 0);
}

#[test]
fn a_client_that_leaves_a_terminal_returns_to_it() {
    let namespace = namespace();
    namespace.start(&shell());
    let mut first = namespace.terminal(&["attach", "-it", "shell"]);
    ask(&mut first, "create table t (n); insert into t values (42); select 'kept', n from t", "kept|42");
    drop(first);
    let mut second = namespace.terminal(&["attach", "-it", "shell"]);
    ask(&mut second, "select 'still', n from t", "still|42");
    second.write(CTRL_C);
    assert_eq!(namespace.ended("shell")["exitCode"], 130, "it is the signal of the terminal");
}
#[test]
fn commands_have_terminals() {
    let namespace = namespace();
    namespace.start(&wasm_pod("mixed", &[container("main", "mixed", json!({}))]));
    let mut cat = namespace.terminal(&["exec", "-it", "mixed", "--", "cat.wasm"]);
    cat.write("typed\r");
    cat.expect("typed\r\ntyped\r\n");
    cat.write(CTRL_D);
    cat.end().unwrap();
    let mut sleep = namespace.terminal(&["exec", "-it", "mixed", "--", "sleep.wasm"]);
    sleep.expect("sleeping\r\n");
    sleep.write(CTRL_C);
    sleep.end().expect_err("it is interrupted");
    let mut sh = namespace.terminal(&["exec", "-it", "mixed", "--", "sh"]);
    sh.write("tty; exit 3\r");
    sh.expect("/dev/pts/");
    sh.end().expect_err("it ends with 3");
}

#[test]
fn functions_are_called_at_a_terminal() {
    let namespace = namespace();
    namespace.start(&wasm_pod("reactor", &[container("main", "reactor", json!({}))]));
    let list = namespace.terminal(&["exec", "-it", "reactor", "--", "invoke"]);
    list.expect("counter");
    list.end().unwrap();
    let sum = namespace.terminal(&["exec", "-it", "reactor", "--", "invoke", "add(20, 22)"]);
    sum.expect("42\r\n");
    sum.end().unwrap();
}
