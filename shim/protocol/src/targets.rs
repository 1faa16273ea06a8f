//! Hosts that are not WASI, which a module's imports give away: browsers, JavaScript, emscripten, threads. `skiff inspect` and
//! the engine name them with the same words.

/// How many imports of a module are looked at.
const IMPORTS_MAX: usize = 10_000;

const WASM_BINDGEN: &str = "it was built for JavaScript with wasm-bindgen: build it for `wasm32-wasip1` or `wasm32-wasip2`, without wasm-bindgen";
const GO_JS: &str = "it was built for a browser (`GOOS=js`): build it with `GOOS=wasip1 GOARCH=wasm`";
const EMSCRIPTEN: &str =
    "it was built with emscripten for JavaScript: build it with `clang --target=wasm32-wasip1` and wasi-libc";
const THREADS: &str = "it was built with threads (`wasi-threads`), which skiff does not have: build it without them";

/// What a core module was built for, if that is not WASI, and how to build it instead; by the module and the name of each of
/// its imports.
pub fn other_target<'a>(imports: impl IntoIterator<Item = (&'a str, &'a str)>) -> Option<&'static str> {
    imports.into_iter().take(IMPORTS_MAX).find_map(|(module, name)| target_of(module, name))
}

/// The host that provides the import `name` of `module`, as its toolchain spells it.
fn target_of(module: &str, name: &str) -> Option<&'static str> {
    let begins = |prefixes: &[&str]| prefixes.iter().any(|prefix| name.starts_with(prefix));
    match module {
        // What the compiler wrote has the first two, and what wasm-bindgen made of it the others.
        "__wbindgen_placeholder__" | "__wbindgen_externref_xform__" | "wbg" => Some(WASM_BINDGEN),
        _ if module.starts_with("./") && module.ends_with("_bg.js") => Some(WASM_BINDGEN),
        // Before Go 1.21 the module was called `go`.
        "gojs" => Some(GO_JS),
        "go" if begins(&["runtime.", "syscall/js."]) => Some(GO_JS),
        "env" if begins(&["emscripten_", "_emscripten_", "_embind_", "__syscall_", "invoke_"]) => Some(EMSCRIPTEN),
        "wasi" if name == "thread-spawn" => Some(THREADS),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_module_for_another_host_is_known_by_its_imports() {
        for (module, name, expected) in [
            ("__wbindgen_placeholder__", "__wbindgen_describe", Some(WASM_BINDGEN)),
            ("__wbindgen_externref_xform__", "__wbindgen_externref_table_grow", Some(WASM_BINDGEN)),
            ("wbg", "__wbg_log_1", Some(WASM_BINDGEN)),
            ("./app_bg.js", "__wbg_alert_1", Some(WASM_BINDGEN)),
            ("gojs", "runtime.wasmExit", Some(GO_JS)),
            ("go", "syscall/js.valueGet", Some(GO_JS)),
            ("go", "other", None),
            ("env", "emscripten_run_script", Some(EMSCRIPTEN)),
            ("env", "__syscall_openat", Some(EMSCRIPTEN)),
            ("env", "memory", None),
            ("wasi", "thread-spawn", Some(THREADS)),
            ("wasi_snapshot_preview1", "fd_write", None),
        ] {
            assert_eq!(other_target([("env", "x"), (module, name)]), expected, "{module} {name}");
        }
        assert_eq!(other_target([]), None);
    }
}
