//! Where the program of a container may be: the paths that its first argument can mean.

use std::borrow::Cow;
use std::iter::once;
use std::path::{Path, PathBuf};

/// The suffix of the files of modules.
const SUFFIX: &str = ".wasm";
/// How many directories of a `PATH` are looked into. Each may be on a slow volume.
const DIRECTORIES_MAX: usize = 256;

/// What a first argument can mean: a file, and an export of it to run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Candidate {
    /// An absolute path in the container.
    pub(crate) path: PathBuf,
    /// The export after `#`.
    pub(crate) function: Option<String>,
    /// Another file than a module is not meant: its name was completed with `.wasm`, or it is where the OCI runtime would not
    /// look for a program.
    pub(crate) only_wasm: bool,
}

/// The meanings of `argument`, the likeliest first. A name with a slash is a path, seen from `cwd`; one without is looked
/// for in the first 256 directories of `PATH` and, as a module, in `cwd`. `module.wasm#function` means the file of this name, or
/// the export of `module.wasm`.
pub(crate) fn candidates<'a>(argument: &'a str, cwd: &'a Path, env: &'a [String]) -> impl Iterator<Item = Candidate> {
    let exported = match split_function(argument) {
        (module, Some(function)) => Some(paths(module.into(), cwd, env, Some(function))),
        (_, None) => None,
    };
    paths(argument.into(), cwd, env, None).chain(exported.into_iter().flatten())
}

/// The meanings of `argument` in a wasm container, where the name of a module may be written without its suffix.
pub(crate) fn candidates_in_wasm<'a>(
    argument: &'a str,
    cwd: &'a Path,
    env: &'a [String],
) -> impl Iterator<Item = Candidate> {
    let (module, function) = split_function(argument);
    let completed = (!module.ends_with(SUFFIX)).then(|| paths(format!("{module}{SUFFIX}").into(), cwd, env, function));
    let completed = completed.into_iter().flatten().map(|candidate| Candidate { only_wasm: true, ..candidate });
    candidates(argument, cwd, env).chain(completed)
}

/// Splits `module#function`, where the part after the last `#` is a function.
pub(crate) fn split_function(argument: &str) -> (&str, Option<&str>) {
    match argument.rsplit_once('#') {
        Some((module, function)) if !module.is_empty() && !function.is_empty() => (module, Some(function)),
        _ => (argument, None),
    }
}

fn paths<'a>(
    name: Cow<'a, str>,
    cwd: &'a Path,
    env: &'a [String],
    function: Option<&'a str>,
) -> impl Iterator<Item = Candidate> {
    let is_path = name.contains('/');
    let path = env.iter().rev().find_map(|variable| variable.strip_prefix("PATH=")).filter(|_| !is_path);
    let searched = path.unwrap_or_default().split(':').filter(|directory| !directory.is_empty());
    let searched = searched.take(DIRECTORIES_MAX).map(|directory| (Path::new(directory), false));
    searched.chain(once((cwd, !is_path))).map(move |(directory, only_wasm)| Candidate {
        path: cwd.join(directory).join(&*name),
        function: function.map(str::to_string),
        only_wasm,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(argument: &str, expected: &[(&str, Option<&str>)]) {
        let env = ["PATH=/first".to_string(), "PATH=/usr/bin:/bin".to_string()];
        let found = candidates(argument, Path::new("/work"), &env);
        let found: Vec<_> = found.map(|c| (c.path.to_str().unwrap().to_string(), c.function)).collect();
        let found: Vec<_> = found.iter().map(|(path, function)| (path.as_str(), function.as_deref())).collect();
        assert_eq!(found, expected, "{argument}");
    }

    #[test]
    fn a_first_argument_means_what_a_shell_would_take_it_for() {
        check("/app.wasm", &[("/app.wasm", None)]);
        check("./app.wasm", &[("/work/./app.wasm", None)]);
        check("dir/app", &[("/work/dir/app", None)]);
        check("app", &[("/usr/bin/app", None), ("/bin/app", None), ("/work/app", None)]);
    }

    #[test]
    fn in_a_wasm_container_a_module_is_named_with_or_without_its_suffix() {
        let only_wasm = |argument: &str| {
            let env = ["PATH=/bin".to_string()];
            let found = candidates_in_wasm(argument, Path::new("/work"), &env).filter(|candidate| candidate.only_wasm);
            found.map(|c| (c.path.to_string_lossy().into_owned(), c.function)).collect::<Vec<_>>()
        };
        // The OCI runtime would look for a native program in `PATH` alone.
        let expected = ["/work/app", "/bin/app.wasm", "/work/app.wasm"].map(|path| (path.to_string(), None));
        assert_eq!(only_wasm("app"), expected);
        assert_eq!(only_wasm("/app#run"), [("/app.wasm".into(), Some("run".to_string()))]);
        assert_eq!(only_wasm("/app.wasm"), []);
        assert_eq!(only_wasm("/app.wasm#run"), []);
    }

    #[test]
    fn a_path_of_any_length_is_looked_into_only_so_far() {
        let env = [format!("PATH={}", "/none:".repeat(100_000))];
        assert_eq!(candidates("app", Path::new("/work"), &env).count(), DIRECTORIES_MAX + 1);
    }

    #[test]
    fn a_hash_sign_names_an_export_unless_a_file_has_it() {
        check("/a.wasm#run", &[("/a.wasm#run", None), ("/a.wasm", Some("run"))]);
        check("/a#b#run", &[("/a#b#run", None), ("/a#b", Some("run"))]);
        check("/a#", &[("/a#", None)]);
    }
}
